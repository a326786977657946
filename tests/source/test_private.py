"""Folders for sockets: nobody else reaches them, and none stays when its process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from p2v.source.private import PrivateFolder, clean

CHILD = """
import sys, time
from p2v.source.private import PrivateFolder
kept = PrivateFolder("test")
print(kept.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def grow_old(folder: Path) -> None:
    os.utime(folder, (1, 1))


def test_it_is_ours_and_goes(place: Path) -> None:
    folder = PrivateFolder("test")
    assert Path(folder.path).parent == place and os.stat(folder.path).st_mode & 0o777 == 0o700
    folder.remove()
    folder.remove()
    assert not list(place.iterdir())
    kept = Path(PrivateFolder("test").path)  # nobody holds it
    assert not kept.exists()


def test_what_a_killed_process_left_is_removed_and_no_other(place: Path) -> None:
    living = PrivateFolder("test")
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    left = Path(child.stdout.readline().strip())
    grow_old(left)
    clean("test")
    assert left.exists(), "its process lives"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (place / "p2v-test-foreign").mkdir()  # without a lock: not one of ours
    grow_old(place / "p2v-test-foreign")
    grow_old(Path(living.path))
    clean("other")
    assert left.exists()
    grow_old(left)
    clean("test")
    assert not left.exists() and Path(living.path).exists() and (place / "p2v-test-foreign").exists()
    living.remove()


def test_a_young_one_is_left_alone(place: Path) -> None:
    (place / "p2v-test-young").mkdir()
    (place / "p2v-test-young" / "lock").touch()
    clean("test")
    assert (place / "p2v-test-young").exists()
