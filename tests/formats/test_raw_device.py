"""Raw onto block devices: a file stands in for the device; where loop devices work, a real one, too."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest

import p2v
from p2v import planning
from p2v.diskcopy import Options
from p2v.errors import DriftError, LayoutError, PlanError, ReadError, Unsupported, WriteError
from p2v.formats import raw_device
from p2v.keeping import CopyLog
from p2v.model import Range
from p2v.source import in_use
from p2v.testing import MemorySource

MIB = 1 << 20
OLD = b"\xee" * 4096
EXTRA = 3 * MIB + 512  # bytes of the device behind the disk's end


@pytest.fixture
def disk(tmp_path):
    draw = random.Random(4)
    content = draw.randbytes(2 * MIB) + bytes(5 * MIB) + draw.randbytes(700_000) + bytes(100_000) + draw.randbytes(MIB)
    content = content[: len(content) // 512 * 512]
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


@pytest.fixture
def device(disk, tmp_path, monkeypatch):
    """A file that is taken for a device, full of what was there before."""
    path = tmp_path / "sdx"
    size = disk.stat().st_size + EXTRA
    path.write_bytes((OLD * (size // 4096 + 1))[:size])
    monkeypatch.setattr(raw_device, "is_device", lambda name: Path(name) == path)
    monkeypatch.setattr(raw_device, "users", lambda number, *, proc, sys: [])
    monkeypatch.chdir(tmp_path)
    return path


def holds(device, disk):
    content = disk.read_bytes()
    found = device.read_bytes()
    assert found[: len(content)] == content
    assert set(found[len(content) :]) == {0xEE}, "what lies behind the disk's end stays as it was"


WAYS = {"a hole": (None, None), "the kernel's zeroing": (errno.EOPNOTSUPP, None),
        "writing": (errno.EOPNOTSUPP, errno.ENOTTY)}


@pytest.mark.parametrize("way", WAYS)
def test_every_byte_is_written_also_zeroes(way, disk, device, tmp_path, monkeypatch):
    asked = []

    def answers(name, number):
        def ask(fd, offset, length):
            asked.append((name, offset, length))
            if number:
                raise OSError(number, "no")
            os.pwrite(fd, bytes(length), offset)
        return ask

    for name, number in zip(("punch", "zero_out"), WAYS[way], strict=True):
        monkeypatch.setattr(raw_device, name, answers(name, number))
    result = p2v.image([disk], device, force=True)
    holds(device, disk)
    tried = [name for name, _, _ in asked]
    assert len(tried) >= 1 and tried.count("punch") == (1 if WAYS[way][0] else len(tried))
    assert all(offset % 4096 == 0 and length % 4096 == 0 for _, offset, length in asked)
    said = next(one for one in result.findings if "were not written" in one.what)
    assert said.where.offset == disk.stat().st_size and said.where.length == EXTRA
    assert not (tmp_path / "sdx.part").exists()
    p2v.verify(tmp_path / "sdx.p2v", source=True)


def test_a_device_that_fails_to_zero_is_an_error(disk, device, monkeypatch):
    def fail(fd, offset, length):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(raw_device, "punch", fail)
    with pytest.raises(WriteError, match="Input/output"):
        p2v.image([disk], device, force=True)


def test_it_is_never_overwritten_unasked(disk, device):
    before = device.read_bytes()
    with pytest.raises(PlanError, match="overwritten") as error:
        p2v.image([disk], device)
    assert "--force" in error.value.next
    with pytest.raises(PlanError):
        p2v.image([disk], device, resume=True)
    with pytest.raises(Unsupported, match="qcow2"):
        p2v.image([disk], device, format="qcow2", force=True)
    with pytest.raises(PlanError, match="one disk"):
        p2v.image([disk, disk], device, force=True)
    assert device.read_bytes() == before


def test_not_onto_a_device_in_use_too_small_write_protected_or_the_source(disk, device, monkeypatch):
    before = device.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(raw_device, "users", lambda number, **more: ["sdx1 is mounted read-write on /srv"])
        with pytest.raises(PlanError, match="in use: sdx1"):
            p2v.image([disk], device, force=True)
    for number, word in ((errno.EBUSY, "mounted or held"), (errno.EROFS, "protected"), (errno.EACCES, "permission")):
        with monkeypatch.context() as patch:
            def refused(path, number=number):
                raise OSError(number, os.strerror(number))

            patch.setattr(raw_device, "_opened", refused)
            with pytest.raises(PlanError) as error:
                p2v.image([disk], device, force=True)
            assert word in error.value.why
    with pytest.raises(PlanError, match="source"):
        p2v.image([device], device, force=True)
    os.truncate(device, disk.stat().st_size - 512)
    with pytest.raises(PlanError, match="too small"):
        p2v.image([disk], device, force=True)
    assert device.read_bytes() == before[: disk.stat().st_size - 512]


@pytest.mark.parametrize(("source", "target"), [("8:0", "8:0"), ("8:1", "8:0"), ("8:0", "8:1")])
def test_disk_and_partition_share_their_bytes(source, target, monkeypatch):
    numbers = {"source": source, "target": target}
    monkeypatch.setattr(raw_device, "is_device", lambda path: True)
    monkeypatch.setattr(raw_device, "whole", lambda number: "8:0")
    monkeypatch.setattr(raw_device.os, "stat", lambda path: type("Stat", (), {
        "st_rdev": os.makedev(*map(int, numbers[path].split(":")))}))
    with pytest.raises(PlanError, match="shares its bytes"):
        raw_device.refuse("target", MIB, ["source"])


def test_the_disk_of_a_partition(tmp_path):
    disk = tmp_path / "devices" / "sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1" / "partition").write_text("1\n")
    (tmp_path / "dev" / "block").mkdir(parents=True)
    for number, home in (("8:0", disk), ("8:1", disk / "sda1")):
        (tmp_path / "dev" / "block" / number).symlink_to(home)
    assert [in_use.whole(number, tmp_path) for number in ("8:0", "8:1")] == ["8:0", "8:0"]


class Stop(Exception):
    """The test's own."""


def cut_short(disk, device, monkeypatch, at):
    save = CopyLog.save

    def stopping(self, checkpoint, chunks):
        if checkpoint.at >= at:
            raise Stop
        save(self, checkpoint, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(CopyLog, "save", stopping)
        with pytest.raises(Stop):
            p2v.image([disk], device, force=True, options=Options(seconds=0.0))


def test_what_was_cut_short_goes_on_and_looks_like_nothing_until_then(disk, device, monkeypatch):
    cut_short(disk, device, monkeypatch, 7 * MIB)
    assert device.read_bytes()[:4096] == bytes(4096), "neither the old partition table nor the new one"
    with pytest.raises(PlanError):
        p2v.image([disk], device)
    p2v.image([disk], device, resume=True)
    holds(device, disk)
    assert p2v.image([disk], device, resume=True).done_before


def test_it_never_goes_on_with_another_device(disk, device, monkeypatch):
    cut_short(disk, device, monkeypatch, 8 * MIB)
    other = OLD * (device.stat().st_size // 4096)
    device.write_bytes(other + bytes(device.stat().st_size - len(other)))
    before = device.read_bytes()
    with pytest.raises(DriftError, match="not the device that the copy began on"):
        p2v.image([disk], device, resume=True)
    assert device.read_bytes() == before


def test_where_nothing_tells_it_asks_again(disk, device, monkeypatch):
    cut_short(disk, device, monkeypatch, 2 * MIB)
    with pytest.raises(PlanError, match="nothing on"):
        p2v.image([disk], device, resume=True)
    p2v.image([disk], device, force=True)
    holds(device, disk)


@pytest.mark.parametrize("state", [b"", b"x" * 16, raw_device._STATE.pack(raw_device._MAGIC, MIB), bytes(9000)])
def test_a_strange_checkpoint_is_refused(state, device):
    with pytest.raises(LayoutError, match="no checkpoint"):
        raw_device.reopen(str(device), state)


def test_onto_a_real_one(disk, tmp_path, monkeypatch, needs):
    needs("losetup")
    backing = tmp_path / "backing"
    size = -(-disk.stat().st_size // MIB) * MIB + MIB
    backing.write_bytes((OLD * (size // 4096 + 1))[:size])
    made = subprocess.run(["losetup", "-f", "--show", backing], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    loop = Path(made.stdout.strip())
    try:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PlanError, match="overwritten"):
            p2v.image([disk], loop)
        p2v.image([disk], loop, force=True)
        p2v.verify(tmp_path / f"{loop.name}.p2v", source=True)
        with pytest.raises(PlanError, match="source"):
            p2v.image([loop], loop, force=True)
        held = os.open(loop, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(PlanError, match="cannot be opened"):
                p2v.image([disk], loop, force=True)
        finally:
            os.close(held)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    content = disk.read_bytes()
    assert backing.read_bytes()[: len(content)] == content


class Poor(MemorySource):
    def __init__(self, data, bad):
        super().__init__(data, "poor")
        self.bad = list(bad)

    def attempt(self, offset, buffer, direct=True):
        if any(r.offset < offset + len(buffer) and offset < r.end for r in self.bad):
            return 0
        MemorySource.read_into(self, offset, buffer)
        return len(buffer)

    def read_into(self, offset, buffer):
        if self.attempt(offset, buffer) < len(buffer):
            raise ReadError("bad")

    def close(self):
        pass


@pytest.mark.parametrize("spot", [Range(1024, 512), Range(8 * MIB - 512, 2048)])
def test_a_failing_disk_is_rescued_onto_it_and_gone_on_with(spot, disk, device, tmp_path, monkeypatch):
    content = disk.read_bytes()
    source = Poor(content, [spot])
    monkeypatch.setattr(planning, "open_source", lambda path, format=None, **more: source)
    result = p2v.image(["poor"], device, force=True)
    assert [Range(e.offset, e.length) for e in result.reports["disk0"].bad] == [spot]
    lost = content[: spot.offset] + bytes(spot.length) + content[spot.end :]
    assert device.read_bytes()[: len(content)] == lost
    p2v.verify(tmp_path / "sdx.p2v")
    source.bad = []
    p2v.image(["poor"], device, resume=True, options=Options(retries=1))
    holds(device, disk)
    p2v.verify(tmp_path / "sdx.p2v", source=True)


def test_what_has_changed_is_written_onto_it(disk, device, tmp_path):
    p2v.image([disk], device, force=True)
    content = bytearray(disk.read_bytes())
    content[MIB : MIB + 9] = b"different"
    content[-MIB:] = bytes(MIB)
    disk.write_bytes(content)
    p2v.image([disk], device, since=tmp_path / "sdx.p2v" / "manifest.json")
    holds(device, disk)
    p2v.verify(tmp_path / "sdx.p2v", source=True)


def test_a_device_that_is_gone_is_not_verified(disk, device, tmp_path, monkeypatch):
    p2v.image([disk], device, force=True)
    monkeypatch.setattr(raw_device, "is_device", lambda path: False)
    with pytest.raises(PlanError, match="no block device"):
        p2v.verify(tmp_path / "sdx.p2v")
