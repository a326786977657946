"""`p2v convert` killed while it copies: the next one goes on and ends with the image of an uninterrupted run.

The plan's changes are left out, and with them the proof that the guest would boot, so that no appliance is started:
edits are over, proven, and kept on an overlay before the first byte is copied.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import p2v
from fixtures.servers import Server
from p2v import editing
from p2v.folder import claim, load_plan, load_reports
from p2v.model import Plan
from p2v.rundir import RunDir

KILLS = 3  # in the quick run; test-slow makes a hundred
CHILD = """
import functools, sys
from p2v import conversion, keeping
from p2v.folder import load_plan
from p2v.source.paced import Paced
conversion.Job = functools.partial(keeping.Job, seconds=0.02)
conversion.editing.prove = lambda *words, **more: None
copy = conversion.copy_image
conversion.copy_image = lambda source, *rest, **more: copy(Paced(source, 12 << 20), *rest, **more)
conversion.convert(load_plan(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "prove", lambda *words, **more: None)


def unedited(server: Server, folder: Path) -> Plan:
    plan = replace(p2v.plan(server.disks, output=folder), changes=(), findings=())
    run = RunDir.of_output(folder)
    with run.locked():
        claim(plan, run)
    return plan


def killed_and_gone_on_with(folder: Path, kills: int) -> int:
    """Returns how many kills came while bytes were copied."""
    record, draw, middle = folder / "run" / "disk0.copy", random.Random(7), 0
    for _ in range(kills):
        before = record.read_bytes() if record.exists() else b""
        child = subprocess.Popen([sys.executable, "-c", CHILD, folder], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        while child.poll() is None and time.monotonic() < deadline and (
                not record.exists() or record.read_bytes() == before):
            time.sleep(0.005)
        time.sleep(draw.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        _, said = child.communicate()
        assert child.returncode in (0, -signal.SIGKILL), said.decode()
        middle += child.returncode != 0 and record.exists()
        if (folder / "manifest.json").exists():
            for name in ("manifest.json", "disk0.qcow2"):
                (folder / name).unlink()
    p2v.convert(load_plan(folder))
    return middle


def check(server: Server, tmp_path: Path, kills: int) -> int:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    p2v.convert(unedited(server, whole))
    unedited(server, cut)
    middle = killed_and_gone_on_with(cut, kills)
    subprocess.run(["qemu-img", "compare", whole / "disk0.qcow2", cut / "disk0.qcow2"], check=True,
                   capture_output=True)
    one, two = (load_reports(RunDir.of_output(folder))["disk0"] for folder in (whole, cut))
    assert one.digests == two.digests and one.counts == two.counts
    p2v.verify(cut)
    assert not list(cut.glob("*.part")) and p2v.convert(load_plan(cut)).done_before
    return middle


def test_kill_at_random_points(xp_server: Server, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("qemu-img")
    assert check(xp_server, tmp_path, KILLS) == KILLS


@pytest.mark.slow
def test_kill_at_a_hundred_random_points(xp_server: Server, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("qemu-img")
    assert check(xp_server, tmp_path, 100) >= 80
