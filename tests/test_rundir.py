"""What a run keeps: contents by digest, state, the lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2v.errors import MismatchError, PlanError, WriteError
from p2v.rundir import RunDir, load_json, save_bytes, save_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.of_output(tmp_path / "web01")
    run.make()
    return run


def test_contents_come_back_by_their_digest(run: RunDir) -> None:
    digest = run.put(b"atapi")
    assert run.get(digest) == b"atapi"
    assert run.put(b"atapi") == digest


def test_a_changed_content_is_found_out(run: RunDir) -> None:
    digest = run.put(b"atapi")
    (run.run / "contents" / digest).write_bytes(b"other")
    with pytest.raises(MismatchError, match="not what its digest says"):
        run.get(digest)


def test_a_missing_content_says_what_to_do(run: RunDir) -> None:
    with pytest.raises(PlanError) as error:
        run.get("00" * 32)
    assert error.value.next and error.value.why


def test_state_adds_up_and_none_takes_away(run: RunDir) -> None:
    run.save_state(overlays={"disk0": "ab"}, finished=True)
    run.save_state(finished=None)
    assert run.state() == {"overlays": {"disk0": "ab"}}


def test_two_processes_cannot_hold_one_run(run: RunDir) -> None:
    code = ("import sys; from p2v.rundir import RunDir; from p2v.errors import PlanError\n"
            f"try:\n    RunDir.of_output({str(run.folder)!r}).locked().__enter__()\n"
            "except PlanError as error:\n    print(error.what)")
    with run.locked():
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "another p2v" in held.stdout
    assert free.stdout == ""


def test_saving_keeps_the_old_file_when_it_fails(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.folder / "plan.json"
    save_json(path, {"a": 1})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="cannot write"):
        save_json(path, {"a": 2})
    monkeypatch.undo()
    assert load_json(path) == {"a": 1}
    assert [p.name for p in run.folder.iterdir() if p.name.startswith(".")] == []


def test_saved_files_have_the_users_mode(run: RunDir) -> None:
    old = os.umask(0o027)
    try:
        save_bytes(run.folder / "x", b"")
    finally:
        os.umask(old)
    assert (run.folder / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_document_is_a_plan_error(run: RunDir, content: bytes) -> None:
    path = run.folder / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError):
        load_json(path)


def test_no_folder_can_be_made_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError):
        RunDir.of_output(tmp_path / "file" / "web01").make()
