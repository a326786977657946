"""Finished images, gone on with: retries of a rescue, what ddrescue has added, and the disks compared again."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

import p2v
from p2v import planning
from p2v.diskcopy import Options
from p2v.errors import Cancelled, MismatchError, PlanError, ReadError
from p2v.folder import load_reports
from p2v.formats import FORMATS
from p2v.mapfile import Mapfile, Status, from_text
from p2v.model import Cancel, Kind, Range
from p2v.outlets import Existing
from p2v.rundir import RunDir
from p2v.testing import MemorySource

MIB = 1 << 20
BAD = [Range(MIB + 1024, 1024), Range(3 * MIB - 512, 2048), Range(5 * MIB, 512)]


class Healing(MemorySource):
    """A disk whose bad places may be read later."""

    def __init__(self, data, bad):
        super().__init__(data, "poor")
        self.bad, self.reads = list(bad), []

    def attempt(self, offset, buffer, direct=True):
        self.reads.append(offset)
        if any(r.offset < offset + len(buffer) and offset < r.end for r in self.bad):
            return 0
        MemorySource.read_into(self, offset, buffer)
        return len(buffer)

    def read_into(self, offset, buffer):
        if self.attempt(offset, buffer) < len(buffer):
            raise ReadError("bad")

    def close(self):
        pass


@pytest.fixture
def content():
    return random.Random(9).randbytes(6 * MIB + 512)


@pytest.fixture
def poor(content, tmp_path, monkeypatch):
    source = Healing(content, BAD)
    monkeypatch.setattr(planning, "open_source", lambda path, format=None, **more: source)
    return source


def without(content, bad):
    data = bytearray(content)
    for spot in bad:
        data[spot.offset : spot.end] = bytes(spot.length)
    return bytes(data)


def disk_in(out, kind, length):
    source = FORMATS[kind].read(str(out))
    try:
        data = bytearray(length)
        source.read_into(0, memoryview(data))
        return bytes(data)
    finally:
        source.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhdx", "vmdk"])
def test_retries_of_a_finished_rescue(kind, content, poor, tmp_path):
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    first = p2v.image(["poor"], out, format=kind)
    assert first.reports["disk0"].counts["bad"] == 3584
    assert any("--resume --retries 3" in finding.next for finding in first.findings)
    assert p2v.image(["poor"], out, format=kind, resume=True).done_before
    poor.bad, poor.reads = BAD[1:], []
    result = p2v.image(["poor"], out, format=kind, resume=True, options=Options(retries=1))
    report = result.reports["disk0"]
    spots = [Range(e.offset, e.length) for e in report.bad]
    assert spots == BAD[1:] and report.counts["bad"] == 2560
    assert report.counts["copied"] == first.reports["disk0"].counts["copied"] + 1024
    assert sum(report.counts.values()) == len(content)
    tried = [at for at in poor.reads if at]  # the first sector is looked at for what the disk is
    assert all(any(r.offset <= at < r.end for r in BAD) or at < 64 * 1024 for at in tried)
    assert disk_in(out, kind, len(content)) == without(content, BAD[1:])
    p2v.verify(f"{out}.p2v")
    poor.bad = []
    last = p2v.image(["poor"], out, format=kind, resume=True, options=Options(retries=2))
    assert not last.reports["disk0"].bad and not last.findings
    assert disk_in(out, kind, len(content)) == content
    assert p2v.verify(f"{out}.p2v", source=True).reports["disk0"].counts["bad"] == 0
    poor.reads = []
    assert p2v.image(["poor"], out, format=kind, resume=True, options=Options(retries=2)).done_before


def test_retries_that_are_stopped_keep_what_they_have(content, poor, tmp_path):
    out = tmp_path / "out.raw"
    p2v.image(["poor"], out)
    poor.bad = []
    cancel = Cancel()

    def stop(stage, done, total):
        if "retry" in stage and done > total - 2000:
            cancel.set()

    with pytest.raises(Cancelled) as error:
        p2v.image(["poor"], out, resume=True, options=Options(retries=1), progress=stop, cancel=cancel)
    assert "--resume" in error.value.next
    with pytest.raises(PlanError, match="cut short"):
        p2v.verify(tmp_path / "out.raw.p2v")
    kept = p2v.image(["poor"], out, resume=True).reports["disk0"]
    assert 0 < kept.counts["bad"] < 3584
    p2v.verify(tmp_path / "out.raw.p2v")
    p2v.image(["poor"], out, resume=True, options=Options(retries=1))
    assert out.read_bytes() == content


def test_an_edited_image_is_not_retried(poor, tmp_path):
    out = tmp_path / "out.raw"
    p2v.image(["poor"], out)
    run = RunDir.of_output(f"{out}.p2v")
    run.save_state(plan="digest")
    with pytest.raises(PlanError, match="edited"):
        p2v.image(["poor"], out, resume=True, options=Options(retries=1))


def test_what_ddrescue_has_added_is_taken_in(content, poor, tmp_path, needs):
    needs("ddrescue")
    out, run = tmp_path / "out.raw", RunDir.of_output(tmp_path / "out.raw.p2v")
    p2v.image(["poor"], out)
    (tmp_path / "disk").write_bytes(content)
    subprocess.run(["ddrescue", "-q", "-r1", "-i", str(MIB), "-s", str(3 * MIB), tmp_path / "disk", out,
                    run.folder / "disk0.map"], check=True)
    with pytest.raises(MismatchError):
        p2v.verify(run.folder)
    report = p2v.image(["poor"], out, resume=True).reports["disk0"]
    assert [Range(e.offset, e.length) for e in report.bad] == BAD[2:]
    p2v.verify(run.folder)
    assert p2v.image(["poor"], out, resume=True).done_before


def test_what_nobody_needed_and_ddrescue_copied_belongs_to_the_image(tmp_path, monkeypatch, needs):
    needs("mkntfs")
    disk, out = tmp_path / "ntfs.img", tmp_path / "out.raw"
    with open(disk, "wb") as file:
        file.truncate(12 * MIB)
    subprocess.run(["mkntfs", "-q", "-F", disk], check=True, capture_output=True)
    data = bytearray(disk.read_bytes())
    data[9 * MIB : 10 * MIB] = b"x" * MIB  # of a deleted file
    chart = Mapfile(len(data))
    chart.set(0, len(data), Status.FINISHED)
    source = Healing(bytes(data), [Range(8192, 512)])
    monkeypatch.setattr(planning, "open_source", lambda path, format=None, **more: source)
    counts = p2v.image(["poor"], out).reports["disk0"].counts
    assert counts["free"] > 6 * MIB and out.read_bytes()[9 * MIB : 10 * MIB] == bytes(MIB)
    out.write_bytes(data)
    run = RunDir.of_output(tmp_path / "out.raw.p2v")
    (run.folder / "disk0.map").write_text(chart.to_text())
    source.bad = []
    report = p2v.image(["poor"], out, resume=True).reports["disk0"]
    assert report.counts["free"] == 0 and sum(report.counts.values()) == len(data)
    kept = json.loads((run.run / "extents.json").read_text())["disk0"]
    assert Kind.FREE.value not in {kind for _, _, kind in kept}
    p2v.verify(run.folder, source=True)


# --- the disks compared again


@pytest.fixture
def disk(content, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


def test_the_disk_is_compared_with_its_copy(disk, tmp_path, monkeypatch):
    out = tmp_path / "out.qcow2"
    p2v.image([disk], out)
    monkeypatch.chdir("/")  # the disk is found again from anywhere
    p2v.verify(f"{out}.p2v", source=True)
    with open(disk, "r+b") as file:
        file.seek(2 * MIB)
        file.write(b"new")
    p2v.verify(f"{out}.p2v")
    with pytest.raises(MismatchError, match="source") as error:
        p2v.verify(f"{out}.p2v", source=True)
    assert error.value.where.offset == 2 * MIB
    with open(disk, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(MismatchError, match="size"):
        p2v.verify(f"{out}.p2v", source=True)


def test_what_cannot_be_read_is_listed_and_not_compared(poor, tmp_path):
    out = tmp_path / "out.raw"
    p2v.image(["poor"], out)
    poor.bad = [BAD[0], Range(4 * MIB, 512)]  # other places are bad now
    result = p2v.verify(f"{out}.p2v", source=True)
    assert {finding.where.offset for finding in result.findings} == {r.offset for r in (*BAD, Range(4 * MIB, 512))}


def test_free_space_is_not_compared(tmp_path, needs):
    needs("mkntfs")
    disk = tmp_path / "ntfs.img"
    with open(disk, "wb") as file:
        file.truncate(12 * MIB)
    subprocess.run(["mkntfs", "-q", "-F", disk], check=True, capture_output=True)
    free = bytearray(disk.read_bytes())
    free[9 * MIB : 10 * MIB] = b"x" * MIB  # of a deleted file
    disk.write_bytes(free)
    p2v.image([disk], tmp_path / "out.raw")
    p2v.verify(tmp_path / "out.raw.p2v", source=True)


def test_an_older_run_says_that_it_cannot(disk, tmp_path):
    p2v.image([disk], tmp_path / "out.raw")
    RunDir.of_output(tmp_path / "out.raw.p2v").save_state(inputs=None)
    with pytest.raises(PlanError, match="which disks"):
        p2v.verify(tmp_path / "out.raw.p2v", source=True)


# --- a second pass


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhdx", "vdi", "vmdk", "vhd"])
def test_zeroes_of_a_second_pass_are_holes(kind, disk, tmp_path):
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    p2v.image([disk], out, format=kind)
    before = out.stat().st_size, out.stat().st_blocks
    disk.write_bytes(disk.read_bytes()[: 2 * MIB] + bytes(3 * MIB) + disk.read_bytes()[5 * MIB :])
    p2v.image([disk], out, format=kind, since=Path(f"{out}.p2v") / "manifest.json")
    after = out.stat().st_size, out.stat().st_blocks
    assert after[0] <= before[0] + 64 * 1024, "the image does not grow"
    if kind in ("raw", "qcow2"):
        assert after[1] * 512 <= before[1] * 512 - 2 * MIB, "the room is given back"
    assert disk_in(out, kind, disk.stat().st_size) == disk.read_bytes()
    p2v.verify(f"{out}.p2v", source=True)


def test_zeroes_are_asked_for_in_pieces_that_nbd_takes():
    asked = []
    Existing(type("Handle", (), {"zero": lambda self, count, at: asked.append((at, count))})()).zero(5, 200 * MIB)
    assert sum(count for _, count in asked) == 200 * MIB and asked[0][0] == 5
    assert max(count for _, count in asked) <= 1 << 30


def test_the_map_is_one_that_ddrescue_reads(poor, tmp_path):
    p2v.image(["poor"], tmp_path / "out.raw")
    run = RunDir.of_output(tmp_path / "out.raw.p2v")
    chart = from_text((run.folder / "disk0.map").read_text(), poor.size)
    assert chart.sum(Status.BAD) == load_reports(run)["disk0"].counts["bad"]
