"""`p2v image`: copies, goes on after any cut, rescues failing disks, and names whose content was lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import p2v
from p2v import imaging, losses, places, planning, record
from p2v.copy import COUNTED
from p2v.diskcopy import Options
from p2v.errors import DriftError, LayoutError, MismatchError, PlanError, ReadError, Unsupported, WriteError
from p2v.formats import FORMATS
from p2v.mapfile import Status, from_text
from p2v.model import Kind, Range
from p2v.outlets import Existing
from p2v.source.device import DeviceGone
from p2v.source.paced import Paced
from p2v.testing import MemorySource

MIB = 1 << 20
KILLS = 7  # in the quick run; test-slow makes a hundred
PYTHON = [sys.executable, "-c"]
CHILD = """
import sys
from p2v import imaging
from p2v.diskcopy import Options
imaging.image([sys.argv[1]], sys.argv[2], format=sys.argv[3], resume=True,
              options=Options(rate=int(sys.argv[4]), seconds=0.02))
"""


class Poor(MemorySource):
    """A disk with bad places that is asked for single tries; gone after so many of them."""

    def __init__(self, data, bad=(), lasts=10**9):
        super().__init__(data, "poor")
        self.bad, self.left, self.tries = list(bad), lasts, 0

    def attempt(self, offset, buffer, direct=True):
        self.left -= 1
        self.tries += 1
        if self.left < 0:
            raise DeviceGone("poor is gone")
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
def disk(tmp_path):
    """A disk of data, zeroes and holes."""
    draw = random.Random(3)
    content = b"".join(draw.choice([draw.randbytes(300_000), bytes(200_000)]) for _ in range(60))
    content = content[: len(content) // 512 * 512]
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


@pytest.fixture
def ntfs(tmp_path, needs):
    """A volume with two files, and where the content of each lies."""
    needs("mkntfs", "ntfscp")
    path, file = tmp_path / "ntfs.img", tmp_path / "file"
    with open(path, "wb") as image:
        image.truncate(20 * MIB)
    subprocess.run(["mkntfs", "-q", "-F", path], check=True, capture_output=True)
    places = {}
    for name, seed in (("one.bin", 1), ("two.bin", 2)):
        file.write_bytes(random.Random(seed).randbytes(300_000))
        subprocess.run(["ntfscp", path, file, f"/{name}"], check=True)
        places[name] = path.read_bytes().index(file.read_bytes()[:4096])
    return path, places


def read_back(path, kind):
    source = FORMATS[kind].read(str(path))
    try:
        data = bytearray(source.size)
        source.read_into(0, memoryview(data))
        return bytes(data)
    finally:
        source.close()


def opens(monkeypatch, source):
    monkeypatch.setattr(planning, "open_source", lambda path, format=None, **more: source)


# --- plain copies


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format_holds_the_disk(kind, disk, tmp_path):
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    result = p2v.image([disk], out, format=kind)
    assert result.files == (str(out),) and out.exists()
    assert read_back(out, kind)[: disk.stat().st_size] == disk.read_bytes()
    p2v.verify(f"{out}.p2v")
    assert not list(tmp_path.glob("*.part")) and not list((tmp_path / f"{out.name}.p2v" / "run").glob("*.copy"))


def test_free_space_is_left_out_unless_all_is_asked_for(ntfs, tmp_path, needs):
    path, _ = ntfs
    result = p2v.image([path], tmp_path / "used.qcow2")
    counts = result.reports["disk0"].counts
    assert counts["free"] > 15 * MIB
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "used.qcow2", tmp_path / "used.raw"], check=True)
    subprocess.run(["ntfsresize", "-i", "-f", tmp_path / "used.raw"], check=True, capture_output=True)
    whole = p2v.image([path], tmp_path / "all.raw", options=Options(everything=True))
    assert whole.reports["disk0"].counts["free"] == 0
    assert (tmp_path / "all.raw").read_bytes() == path.read_bytes()


def test_several_disks_go_into_a_folder(disk, tmp_path):
    (tmp_path / "out").mkdir()
    result = p2v.image([disk, disk], tmp_path / "out", format="qcow2")
    assert [Path(file).name for file in result.files] == ["disk0.qcow2", "disk1.qcow2"]
    p2v.verify(tmp_path / "out")
    with open(tmp_path / "out" / "disk1.qcow2", "r+b") as image:
        image.seek(2 * MIB)
        image.write(bytes(65536))
    with pytest.raises(MismatchError):
        p2v.verify(tmp_path / "out")


def test_a_pipe_gets_every_byte_and_null_nothing(disk, tmp_path):
    with open(tmp_path / "pipe", "wb") as file:
        p2v.image([disk], "-", pipe=file.fileno())
    assert (tmp_path / "pipe").read_bytes() == disk.read_bytes()
    before = sorted(tmp_path.iterdir())
    assert sum(p2v.image([disk], "null").reports["disk0"].counts.values()) == disk.stat().st_size
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(Unsupported, match="vhdx"):
        p2v.image([disk], "-", format="vhdx")
    with pytest.raises(PlanError):
        p2v.image([disk, disk], "-")


def test_nothing_is_overwritten_unasked(disk, tmp_path):
    out = tmp_path / "out.raw"
    out.write_bytes(b"precious")
    for resume in (False, True):
        with pytest.raises(PlanError, match="there"):
            p2v.image([disk], out, resume=resume)
    assert out.read_bytes() == b"precious"
    with pytest.raises(PlanError, match="source"):
        p2v.image([disk], disk, force=True)
    p2v.image([disk], out, force=True)
    assert out.read_bytes() == disk.read_bytes()
    assert p2v.image([disk], out, resume=True).done_before


@pytest.mark.parametrize("name", ["out.vmdk", "out-flat.vmdk", "out-s001.vmdk", "out.vmdk.part"])
def test_no_file_of_the_output_may_be_the_source(name, disk, tmp_path):
    disk.rename(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    with pytest.raises(PlanError, match="the source"):
        p2v.image([tmp_path / name], tmp_path / "out.vmdk", format="vmdk-flat", source_format="raw", force=True)
    assert (tmp_path / name).read_bytes() == content


def test_no_faster_than_told():
    now, waits = [0.0], []

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds

    source = Paced(MemorySource(bytes(10 * MIB)), MIB, clock=lambda: now[0], wait=wait)
    for at in range(10):
        source.read_into(at * MIB, memoryview(bytearray(MIB)))
    assert now[0] == pytest.approx(9.0)
    with pytest.raises(ValueError):
        Paced(MemorySource(bytes(512)), 0)


# --- going on


def killed_and_resumed(disk, out, kind, kills, seed=1):
    """Kill a copy at random points, then let it finish. Returns how many kills came in the middle of one."""
    draw, middle = random.Random(seed), 0
    record = Path(f"{out}.p2v") / "run" / "disk0.copy"
    for _ in range(kills):
        child = subprocess.Popen([*PYTHON, CHILD, disk, out, kind, str(20 * MIB)], stderr=subprocess.PIPE)
        ready = time.monotonic() + 20
        seen = record.read_bytes() if record.exists() else b""
        while child.poll() is None and time.monotonic() < ready and (
                not record.exists() or record.read_bytes() == seen):
            time.sleep(0.005)
        time.sleep(draw.random() * 0.08)
        child.kill()
        _, said = child.communicate()
        assert child.returncode in (0, -signal.SIGKILL), said.decode()
        middle += child.returncode != 0
        if out.exists():
            shutil.rmtree(f"{out}.p2v")
            for path in out.parent.glob(f"{out.stem}*"):
                path.unlink()
    p2v.image([disk], out, format=kind, resume=True)
    return middle


def same_as_uninterrupted(disk, out, kind, tmp_path):
    p2v.image([disk], tmp_path / "whole", format=kind)
    subprocess.run(["qemu-img", "compare", tmp_path / "whole", out], check=True, capture_output=True)
    reports = [imaging.load_reports(imaging.RunDir.of_output(f"{path}.p2v"))["disk0"]
               for path in (tmp_path / "whole", out)]
    assert reports[0].digests == reports[1].digests and reports[0].counts == reports[1].counts
    p2v.verify(f"{out}.p2v")


def test_kill_at_random_points(disk, tmp_path, needs):
    needs("qemu-img")
    middle = killed_and_resumed(disk, tmp_path / "out", "qcow2", KILLS)
    assert middle >= KILLS - 1
    same_as_uninterrupted(disk, tmp_path / "out", "qcow2", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if not form.SEQUENTIAL])
def test_kill_at_a_hundred_random_points(kind, disk, tmp_path, needs):
    needs("qemu-img")
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    assert killed_and_resumed(disk, out, kind, 100) >= 90
    p2v.verify(f"{out}.p2v")
    assert read_back(out, kind)[: disk.stat().st_size] == disk.read_bytes()


class Stop(Exception):
    """The test's own."""


def cut_short(monkeypatch, disk, out, kind, at, **more):
    """Let a copy stop at byte `at`, in the middle between two checkpoints; none is made at its end."""
    from p2v.keeping import CopyLog

    saved = CopyLog.save
    held = {}

    def save(self, checkpoint, chunks):
        if checkpoint.at >= at:
            raise Stop
        saved(self, checkpoint, chunks)
        held["part"] = {path: path.read_bytes() for path in out.parent.glob(f"{out.stem}*.part")}

    with monkeypatch.context() as patch:
        patch.setattr(CopyLog, "save", save)
        with pytest.raises(Stop):
            p2v.image([disk], out, format=kind, options=Options(seconds=0.0), **more)
    return held["part"]


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if not form.SEQUENTIAL])
def test_a_power_cut_costs_what_came_after_the_last_checkpoint(kind, disk, tmp_path, monkeypatch):
    """What was written after the last fsync is torn: some of it is there, some is zero, some is rubbish."""
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    draw = random.Random(kind)
    synced = cut_short(monkeypatch, disk, out, kind, 7 * MIB)
    for path, before in synced.items():
        after = bytearray(path.read_bytes())
        for place in range(0, len(after), 4096):
            old, new = before[place : place + 4096], after[place : place + 4096]
            if old != new:
                after[place : place + 4096] = draw.choice([new, old.ljust(len(new), b"\0")[: len(new)]])
        if draw.random() < 0.5:
            after += draw.randbytes(100_000)
        path.write_bytes(after)
    result = p2v.image([disk], out, format=kind, resume=True)
    assert read_back(out, kind)[: disk.stat().st_size] == disk.read_bytes()
    p2v.verify(f"{out}.p2v")
    assert sum(result.reports["disk0"].counts.values()) == disk.stat().st_size


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if not form.SEQUENTIAL])
def test_a_full_disk_suspends_the_copy(kind, disk, tmp_path, monkeypatch):
    out, written = tmp_path / f"out{FORMATS[kind].SUFFIX}", [0]
    pwrite = os.pwrite

    def full(fd, data, offset):
        written[0] += len(data)
        if written[0] > 5 * MIB:
            pwrite(fd, memoryview(data)[: len(data) // 2], offset)  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(WriteError, match="No space") as error:
            p2v.image([disk], out, format=kind, options=Options(seconds=0.0))
    assert "--resume" in error.value.next and "free some space" in error.value.next and not out.exists()
    p2v.image([disk], out, format=kind, resume=True)
    assert read_back(out, kind)[: disk.stat().st_size] == disk.read_bytes()
    p2v.verify(f"{out}.p2v")


def test_room_is_looked_at_before_the_first_byte(disk, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage._replace(free=MIB))
    with pytest.raises(WriteError, match="not enough space") as error:
        p2v.image([disk], tmp_path / "out.raw")
    assert "--resume" in error.value.next and not list(tmp_path.glob("*.part"))
    p2v.image([disk], tmp_path / "out.raw", resume=True)
    p2v.image([disk], "null")


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if form.SEQUENTIAL])
def test_what_is_written_in_one_go_is_begun_again(kind, disk, tmp_path, monkeypatch):
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"

    def stop(stage, done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        p2v.image([disk], out, format=kind, progress=stop)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(Unsupported, match="beginning") as error:
        p2v.image([disk], out, format=kind, resume=True)
    assert "--force" in error.value.next and "qcow2" in error.value.next
    with pytest.raises(Unsupported, match="beginning"):
        p2v.image([disk], tmp_path / f"other{FORMATS[kind].SUFFIX}", format=kind, options=Options(retries=1))
    p2v.image([disk], out, format=kind, force=True)


def test_never_onto_something_that_moved(disk, tmp_path, monkeypatch):
    out = tmp_path / "out.raw"
    cut_short(monkeypatch, disk, out, "raw", 5 * MIB)
    content = disk.read_bytes()
    disk.write_bytes(b"x" * 512 + content[512:])
    with pytest.raises(DriftError, match="not the disk"):
        p2v.image([disk], out, format="raw", resume=True)
    disk.write_bytes(content)
    with pytest.raises(PlanError, match="another copy"):
        p2v.image([disk], out, format="raw", resume=True, options=Options(everything=True))
    with pytest.raises(PlanError, match="there already"):
        p2v.image([disk], out, format="raw")
    record = tmp_path / "out.raw.p2v" / "run" / "disk0.copy"
    record.write_text("{")
    with pytest.raises(LayoutError, match="damaged"):
        p2v.image([disk], out, format="raw", resume=True)
    p2v.image([disk], out, format="raw", force=True)
    assert out.read_bytes() == content


# --- failing disks


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhdx"])
def test_a_failing_disk_is_rescued_and_its_files_are_named(kind, ntfs, tmp_path, monkeypatch):
    path, places = ntfs
    content = path.read_bytes()
    bad = [Range(places["two.bin"] + 8192, 1024), Range(places["two.bin"] + 99 * 512, 512)]
    source = Poor(content, bad)
    opens(monkeypatch, source)
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    result = p2v.image(["poor"], out, format=kind)
    report = result.reports["disk0"]
    assert [Range(e.offset, e.length) for e in report.bad] == bad
    expected = bytearray(content)
    for spot in bad:
        expected[spot.offset : spot.end] = bytes(spot.length)
    found, extents = read_back(out, kind), json.loads((Path(f"{out}.p2v") / "run" / "extents.json").read_text())
    for offset, length, what in extents["disk0"]:
        place = slice(offset, offset + length)
        assert found[place] == (bytes(length) if what == Kind.FREE.value else expected[place])
    said = [finding.what for finding in result.findings]
    assert "disk0:\\two.bin has lost 1536 bytes" in said
    assert not any("one.bin" in what for what in said)
    assert sum("cannot be read" in what for what in said) == len(bad)
    chart = from_text((Path(f"{out}.p2v") / "disk0.map").read_text(), source.size)
    assert chart.sum(Status.BAD) == 1536
    assert chart.sum(Status.NON_TRIED) == report.counts["free"], "what nobody needs is left for ddrescue"
    p2v.verify(f"{out}.p2v")


@pytest.mark.parametrize("bits", [16, 32])
def test_files_on_fat_are_named_too(bits, tmp_path, monkeypatch, needs):
    needs("mkfs.fat", "mcopy")
    path, file = tmp_path / "fat.img", tmp_path / "file"
    with open(path, "wb") as image:
        image.truncate(40 * MIB)
    subprocess.run(["mkfs.fat", "-F", str(bits), "-s", "4" if bits == 16 else "1", path], check=True,
                   capture_output=True)
    subprocess.run(["mmd", "-i", path, "::DATA"], check=True)
    places = {}
    for name, seed in (("one.bin", 1), ("two.bin", 2)):
        file.write_bytes(random.Random(seed).randbytes(300_000))
        subprocess.run(["mcopy", "-i", path, file, f"::DATA/{name}"], check=True)
        places[name] = path.read_bytes().index(file.read_bytes()[:512])
    content = path.read_bytes()
    bad = [Range(places["two.bin"] + 8192, 1024), Range(places["two.bin"] + 99 * 512, 512)]
    opens(monkeypatch, Poor(content, bad))
    result = p2v.image(["poor"], tmp_path / "out.qcow2")
    assert result.reports["disk0"].counts["free"] > 30 * MIB and result.reports["disk0"].counts["bad"] == 1536
    said = [finding.what for finding in result.findings]
    assert any(what.startswith("disk0:\\DATA\\two.bin has lost 1536 bytes") for what in said), said
    assert not any("one.bin" in what for what in said)


def test_ddrescue_completes_what_we_left(tmp_path, monkeypatch, needs):
    needs("ddrescue")
    content = random.Random(1).randbytes(6 * MIB)
    (tmp_path / "disk").write_bytes(content)
    opens(monkeypatch, Poor(content, [Range(MIB, 70_144), Range(3 * MIB + 512, 512)]))
    p2v.image(["poor"], tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() != content
    subprocess.run(["ddrescue", "-q", "-r1", "disk", "out.raw", "out.raw.p2v/disk0.map"], cwd=tmp_path, check=True)
    assert (tmp_path / "out.raw").read_bytes() == content


@pytest.mark.parametrize(("kind", "lasts"), [("raw", 2), ("qcow2", 9), ("raw", 150)])
def test_a_disk_that_vanishes_suspends_and_goes_on(kind, lasts, tmp_path, monkeypatch):
    content = random.Random(2).randbytes(8 * MIB + 512)
    bad = [Range(2 * MIB + 1024, 512), Range(4 * MIB - 512, 66_000 // 512 * 512), Range(len(content) - 512, 512)]
    expected = bytearray(content)
    for spot in bad:
        expected[spot.offset : spot.end] = bytes(spot.length)
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    source = Poor(content, bad, lasts=10**9)
    opens(monkeypatch, source)
    monkeypatch.setattr(record, "fingerprint", lambda disk, seen: "")
    view = losses.look
    monkeypatch.setattr(losses, "look", lambda disks: (setattr(source, "left", 10**9), view(disks),
                                                         setattr(source, "left", lasts))[1])
    times = 0
    while True:
        try:
            result = p2v.image(["poor"], out, format=kind, resume=times > 0, options=Options(seconds=0.0))
            break
        except DeviceGone as error:
            assert "--resume" in error.next
            assert not out.exists()
            times += 1
            lasts += 20
            assert times < 60
    assert times > 0
    assert read_back(out, kind)[: len(content)] == expected
    assert [Range(e.offset, e.length) for e in result.reports["disk0"].bad] == bad
    assert sum(result.reports["disk0"].counts.values()) == len(content)
    p2v.verify(f"{out}.p2v")


def test_no_more_reads_than_ddrescue_on_the_same_disk(tmp_path, monkeypatch, needs):
    """The whole of it: from the first healthy pass to the last scraped sector."""
    needs("ddrescue")
    from p2v.mapfile import Mapfile

    size, draw = 24 * MIB, random.Random(5)
    poor = Mapfile(size)
    poor.set(0, size, Status.FINISHED)
    for _ in range(12):
        poor.set(draw.randrange(4 * MIB, size - MIB) // 512 * 512, draw.choice([512, 4096, 100 * 512]), Status.BAD)
    (tmp_path / "poor").write_text(poor.to_text())
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(size)
    subprocess.run(["ddrescue", "-q", "-H", "poor", "--log-reads=log", "disk", "image", "map"], cwd=tmp_path,
                   check=True)
    reads = [line for line in (tmp_path / "log").read_text().splitlines() if line and line[0] != "#"]
    bad = [Range(b.offset, b.length) for b in poor.blocks() if b.status is Status.BAD]
    source = Poor(random.Random(6).randbytes(size), bad)
    opens(monkeypatch, source)
    result = p2v.image(["poor"], tmp_path / "out.raw")
    assert [Range(e.offset, e.length) for e in result.reports["disk0"].bad] == bad
    assert source.tries <= len(reads)


# --- a second pass


@pytest.mark.parametrize("kind", [name for name, form in FORMATS.items() if form.EDITABLE and not form.SEQUENTIAL])
def test_a_second_pass_ends_like_a_full_copy_and_writes_what_has_changed(kind, disk, tmp_path, monkeypatch):
    out, manifest = tmp_path / f"out{FORMATS[kind].SUFFIX}", tmp_path / f"out{FORMATS[kind].SUFFIX}.p2v/manifest.json"
    p2v.image([disk], out, format=kind)
    content = bytearray(disk.read_bytes())
    content[MIB + 5] ^= 1
    content[3 * MIB : 4 * MIB] = bytes(MIB)
    content[-512:] = b"\x55" * 512
    disk.write_bytes(content)
    written = []
    for name in ("write_at", "zero"):
        honest = getattr(Existing, name)
        monkeypatch.setattr(Existing, name, lambda self, offset, data, honest=honest: (
            written.append(offset // MIB), honest(self, offset, data)))
    result = p2v.image([disk], out, format=kind, since=manifest)
    assert set(written) == {1, 3, (len(content) - 1) // MIB}
    assert read_back(out, kind)[: len(content)] == content
    p2v.verify(f"{out}.p2v")
    whole = p2v.image([disk], tmp_path / "whole", format="raw").reports["disk0"]
    assert result.reports["disk0"].digests == whole.digests and result.reports["disk0"].counts == whole.counts


def test_a_second_pass_that_is_cut_short_trusts_nothing_the_next_time(disk, tmp_path):
    out, content = tmp_path / "out.raw", disk.read_bytes()
    p2v.image([disk], out)
    manifest = tmp_path / "out.raw.p2v" / "manifest.json"
    disk.write_bytes(bytes(reversed(content)))

    def stop(stage, done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        p2v.image([disk], out, since=manifest, progress=stop)
    disk.write_bytes(content)  # as it was: what the manifest says is not what the image holds
    p2v.image([disk], out, since=manifest)
    assert out.read_bytes() == content
    p2v.verify(tmp_path / "out.raw.p2v")


def test_a_second_pass_needs_the_first(disk, tmp_path):
    out = tmp_path / "out.raw"
    with pytest.raises(PlanError, match="no finished copy"):
        p2v.image([disk], out, since=tmp_path / "out.raw.p2v" / "manifest.json")
    p2v.image([disk], tmp_path / "other.raw")
    p2v.image([disk], out, force=True)
    with pytest.raises(PlanError):
        p2v.image([disk], out, since=tmp_path / "nothing.json")
    with open(disk, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(DriftError, match="size"):
        p2v.image([disk], out, since=tmp_path / "out.raw.p2v" / "manifest.json")


# --- the command


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "p2v.cli", "image", *map(str, arguments)], capture_output=True,
                          env=os.environ | {"COLUMNS": "120"})


def test_the_command(disk, tmp_path):
    done = run(disk, "-o", tmp_path / "out.qcow2", "--json")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    nothing = dict.fromkeys(COUNTED, 0)
    assert lines[0] == {"stage": "copy disk0", "done": 0, "total": disk.stat().st_size, **nothing}
    assert lines[-1]["done"] == lines[-1]["total"] == sum(lines[-1][name] for name in COUNTED)
    assert {name: lines[-1][name] for name in COUNTED} == json.loads(done.stdout)["disks"]["disk0"]["counts"]
    assert json.loads(done.stdout)["disks"]["disk0"]["size"] == disk.stat().st_size
    assert run(disk, "-o", tmp_path / "out.qcow2").returncode == PlanError.exit_code
    piped = run(disk, "-o", "-", "--rate", "1G")
    assert piped.stdout == disk.read_bytes() and b"copied" in piped.stderr
    assert run(disk, "-o", "null", "--rate", "slow").returncode == 2


def test_a_reader_that_has_gone_is_no_bug(disk, tmp_path):
    """p2v … | head: it ends like other programs."""
    for words in ((disk, "-o", "null", "--json"), (disk, "-o", "null"), (disk, "-o", "-")):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, "-m", "p2v.cli", "image", *map(str, words)], stdout=writer,
                              stderr=subprocess.PIPE)
        os.close(writer)
        assert b"did not foresee" not in done.stderr and b"Traceback" not in done.stderr
        assert done.returncode == (WriteError.exit_code if words[-1] == "-" else 141), done.stderr


def test_progress_says_what_is_skipped_zero_and_bad(ntfs, tmp_path, monkeypatch):
    path, places = ntfs
    bad = [Range(places["two.bin"] + 8192, 1024)]
    opens(monkeypatch, Poor(path.read_bytes(), bad))
    told = []
    result = p2v.image(["poor"], tmp_path / "out.raw",
                       progress=lambda stage, done, total: told.append((stage, getattr(done, "counts", None))))
    seen = [counts for _, counts in told if counts]
    assert seen and all(sum(counts.values()) <= path.stat().st_size for counts in seen)
    assert max(counts["free"] for counts in seen) == result.reports["disk0"].counts["free"]
    assert any(stage.startswith("disk0 rescue") and counts for stage, counts in told)


def test_ctrl_c_says_how_to_go_on(disk, tmp_path):
    out = tmp_path / "out.raw"
    child = subprocess.Popen([sys.executable, "-m", "p2v.cli", "image", disk, "-o", out, "--rate", "4M"],
                             stderr=subprocess.PIPE,  # in a shell's background all are deaf to SIGINT
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / "out.raw.part").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 130 and b"--resume" in said
    assert run(disk, "-o", tmp_path / "out.raw", "--resume").returncode == 0
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_a_copy_never_goes_on_with_another_disk(disk, tmp_path, monkeypatch):
    """Two data disks that were made alike: tables and sizes do not tell them apart, their content does."""
    out = tmp_path / "out.qcow2"
    cut_short(monkeypatch, disk, out, "qcow2", 7 * MIB)
    other = bytearray(disk.read_bytes())
    for at in range(1 * MIB, len(other), MIB):
        other[at] ^= 0xFF
    disk.write_bytes(other)
    with pytest.raises(DriftError, match="not the disk that the copy began with"):
        p2v.image([disk], out, format="qcow2", resume=True)
    assert not out.exists()


def test_since_refuses_an_image_that_is_not_what_its_manifest_says(disk, tmp_path):
    import subprocess

    out = tmp_path / "out.qcow2"
    p2v.image([disk], out)
    manifest = tmp_path / "out.qcow2.p2v" / "manifest.json"
    foreign = tmp_path / "manifest.json"
    foreign.write_bytes(manifest.read_bytes())
    with pytest.raises(PlanError, match="not the manifest of these images"):
        p2v.image([disk], out, since=foreign)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x55 1M 512", out], check=True, capture_output=True)
    with pytest.raises(MismatchError):
        p2v.image([disk], out, since=manifest)


def test_force_never_replaces_a_part_of_the_source(disk, tmp_path):
    folder = tmp_path / "vm"
    folder.mkdir()
    p2v.image([disk], folder / "s.vmdk", format="vmdk-flat")
    before = (folder / "s-flat.vmdk").read_bytes()
    with pytest.raises(PlanError, match="may be a file of it"):
        p2v.image([folder / "s.vmdk"], folder / "s-flat.vmdk", format="raw", force=True)
    assert (folder / "s-flat.vmdk").read_bytes() == before


def test_force_takes_nothing_away_before_the_limit_is_checked(tmp_path):
    huge, out = tmp_path / "huge.img", tmp_path / "out.vhd"
    with open(huge, "wb") as file:
        file.truncate(3 << 40)
    out.write_bytes(b"precious")
    with pytest.raises(Unsupported, match="holds at most"):
        p2v.image([huge], out, force=True)
    assert out.read_bytes() == b"precious"


def test_the_output_must_be_a_file(disk, tmp_path):
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", "/dev/null"):
        with pytest.raises(PlanError, match="not a file"):
            p2v.image([disk], place, format="raw", force=True)
