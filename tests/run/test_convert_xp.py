"""The main job on the physical XP server: two appliance starts, everything that was promised looked at.

One conversion, then what is true of it; at last the undo.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import p2v
from fixtures import boot
from fixtures.qemu import READ_ERROR, boot_text
from fixtures.servers import Server, build_xp
from p2v import changes as changing
from p2v import planning
from p2v.copy import verify_copy
from p2v.errors import MismatchError, PlanError, Severity
from p2v.folder import images, load_reports
from p2v.guest.closure import boot_closure
from p2v.model import FileChange, KeyChange, Plan, State, ValueChange
from p2v.rundir import RunDir
from p2v.target import target_named
from tests.run import walk

pytestmark = pytest.mark.appliance

written: set[str] = set()  # files that this process has opened for writing since the module was loaded


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int) and (
            arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        written.add(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_audit)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Run:
    server: Server
    disk: Path
    before: str
    plan: Plan
    result: p2v.Result
    folder: Path
    stages: list[str]

    @contextlib.contextmanager
    def output(self) -> Iterator[planning.View]:
        with images(self.plan, RunDir.of_output(self.folder)) as disks:
            yield planning.view(disks)

    @contextlib.contextmanager
    def source(self) -> Iterator[planning.View]:
        with planning.opened([self.disk]) as disks:
            yield planning.view(disks)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Run:
    folder = tmp_path_factory.mktemp("xp-run")
    server = build_xp(folder / "server", corpus, real_boot_code=True)
    disk = server.disks[0]
    before = digest(disk)
    written.discard(os.path.realpath(disk))
    stages: list[str] = []
    plan = p2v.plan([disk], target="kvm", output=folder / "web01")
    assert not (folder / "web01").exists(), "planning writes nothing"
    result = p2v.convert(plan, progress=lambda stage, done, total: stages.append(stage))
    return Run(server, disk, before, plan, result, folder / "web01", stages)


def test_the_source_is_never_written(run: Run) -> None:
    assert digest(run.disk) == run.before
    assert os.path.realpath(run.disk) not in written
    assert os.path.realpath(run.folder / "disk0.qcow2.part") in written, "the audit sees what is written"


def test_the_guest_is_edited_and_proven_before_the_copy_begins(run: Run) -> None:
    order = list(dict.fromkeys(run.stages))
    assert order.index("edit") < order.index("prove") < order.index("copy disk0") < order.index("check")


def test_the_image_is_sound(run: Run) -> None:
    subprocess.run(["qemu-img", "check", "-f", "qcow2", run.folder / "disk0.qcow2"], check=True, capture_output=True)
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "disk0.qcow2", "manifest.json", "plan.json", "run", "web01.xml"]


def test_every_planned_change_is_in_the_output(run: Run) -> None:
    with run.output() as seen:
        states = {change.place: changing.state_of(change, seen.known_guest) for change in run.plan.changes}
    assert len(states) > 50
    assert set(states.values()) == {State.DONE}


def test_the_boot_closure_fails_on_the_source_and_passes_on_the_output(run: Run) -> None:
    def errors(seen: planning.View) -> list[str]:
        found = boot_closure(seen.known_guest, target_named("kvm"))
        return [finding.what for finding in found if finding.severity is Severity.ERROR]

    with run.source() as before, run.output() as after:
        assert errors(before)
        assert errors(after) == []


def test_nothing_changed_that_was_not_planned(run: Run) -> None:
    planned = {change.path.lower() for change in run.plan.changes if isinstance(change, FileChange)}
    planned |= {"\\windows\\system32\\config\\system"}
    with run.source() as before, run.output() as after:
        old, new = walk.files(before, "disk0p1"), walk.files(after, "disk0p1")
        assert len(old) > 40
        assert {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)} == planned
        edited = {change.key.lower() for change in run.plan.changes if isinstance(change, (ValueChange, KeyChange))}
        differing = walk.differing_keys(before.known_guest.hive("SYSTEM"), after.known_guest.hive("SYSTEM"))
        parents = {key.rpartition("\\")[0] for key in edited}
        assert differing <= edited | parents and edited <= differing | parents


def test_the_filesystem_is_clean_for_ntfs_3g(run: Run, tmp_path: Path) -> None:
    volume = walk.extract(run.folder / "disk0.qcow2", "qcow2", run.server.volumes[0], tmp_path / "volume")
    subprocess.run(["ntfsresize", "-i", "-f", volume], check=True, capture_output=True)
    said = subprocess.run(["ntfsrecover", "-n", volume], capture_output=True, text=True)
    assert said.returncode == 0 or "wiped out" in said.stdout + said.stderr, "a journal is left to replay"


def test_libvirt_accepts_the_definition(run: Run, needs: Callable[..., None]) -> None:
    needs("virt-xml-validate", "xmllint")
    subprocess.run(["virt-xml-validate", run.folder / "web01.xml", "domain"], check=True, capture_output=True)


@pytest.mark.qemu
def test_real_boot_code_starts_from_the_output_and_not_with_the_old_geometry(run: Run) -> None:
    assert boot.LOADED in boot_text(run.folder / "disk0.qcow2", "qcow2")
    assert READ_ERROR in boot_text(run.disk, "raw")


def test_converting_again_says_that_all_is_done_and_changes_nothing(run: Run) -> None:
    before = {path.name: digest(path) for path in run.folder.iterdir() if path.is_file()}
    again = p2v.convert(p2v.load_plan(run.folder))
    assert again.done_before and again.changes == 0
    assert {path.name: digest(path) for path in run.folder.iterdir() if path.is_file()} == before


def test_planning_the_output_finds_nothing_to_do(run: Run, tmp_path: Path) -> None:
    assert p2v.plan([run.folder / "disk0.qcow2"], output=tmp_path / "again").changes == ()


def test_another_plan_does_not_take_the_folder(run: Run) -> None:
    other = p2v.plan([run.disk], output=run.folder, format="raw")
    with pytest.raises(PlanError, match="the output folder is in use"):
        p2v.convert(other)
    assert not (run.folder / "disk0.raw").exists()


def test_verify_passes_and_finds_one_changed_byte(run: Run, tmp_path: Path) -> None:
    p2v.verify(run.folder)
    copy = tmp_path / "web01"
    shutil.copytree(run.folder, copy)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x77 1M 512", copy / "disk0.qcow2"], check=True,
                   capture_output=True)
    with pytest.raises(MismatchError) as error:
        p2v.verify(copy)
    assert error.value.where.offset == 1 << 20


def test_verify_reads_the_source_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    p2v.verify(run.folder, source=True)
    with run.source() as seen:
        kernel = seen.known_guest.files("disk0p1").read("\\WINDOWS\\system32\\ntoskrnl.exe")
    at = run.disk.read_bytes().find(kernel[:4096]) + 100
    assert at > 100
    honest = planning.open_source
    monkeypatch.setattr(planning, "open_source",
                        lambda path, format=None, **words: Changed(honest(path, format, **words), at))
    with pytest.raises(MismatchError, match="not what was copied") as error:
        p2v.verify(run.folder, source=True)
    assert error.value.where.offset == at // (1 << 20) << 20


class Changed:
    """A source that answers with one other byte, in a file that no edit and no fingerprint looks at."""

    def __init__(self, source: planning.Source, at: int) -> None:
        self._at = at
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self.extents, self.close, self._read = source.extents, source.close, source.read_into

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._read(offset, buffer)
        if offset <= self._at < offset + len(buffer):
            buffer[self._at - offset] ^= 0xFF


def test_undo_brings_the_guest_back(run: Run) -> None:
    """The last test of the module: it changes the output."""
    result = p2v.undo(run.folder)
    assert not result.done_before
    with run.source() as before, run.output() as after:
        old, new = walk.files(before, "disk0p1"), walk.files(after, "disk0p1")
        assert {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)} == {
            "\\windows\\system32\\config\\system"}
        assert walk.differing_keys(before.known_guest.hive("SYSTEM"), after.known_guest.hive("SYSTEM")) == set()
        for change in run.plan.changes:
            if not isinstance(change, (FileChange, ValueChange, KeyChange)):
                assert after.known_guest.look(change) == change.before
    assert p2v.undo(run.folder).done_before
    with pytest.raises(MismatchError, match="were undone"):
        p2v.verify(run.folder)
    reports = load_reports(RunDir.of_output(run.folder))
    with run.output() as seen:
        verify_copy(seen.disks["disk0"], reports["disk0"])  # the manifest was kept in step
