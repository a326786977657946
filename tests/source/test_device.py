"""open_disk: what it refuses, what it says of a failing disk, and that it never opens for writing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from p2v.errors import LayoutError, P2VError, PlanError, ReadError, Where
from p2v.model import Kind, read
from p2v.source import device
from p2v.source.device import DeviceGone, DiskSource, open_disk
from p2v.testing import numbered_sectors

PAGE = 4096
MakeDisk = Callable[..., tuple[DiskSource, "FailingDisk"]]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(numbered_sectors("disk0", 1 << 20))
    return path


def has_four_answers(error: P2VError) -> bool:
    return all((error.what, str(error.where), error.why, error.next))


# -- what is no disk


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(("make", "kind", "says"), [
    pytest.param(lambda path: None, PlanError, "nothing of this name", id="nothing"),
    pytest.param(Path.mkdir, PlanError, "a folder", id="folder"),
    pytest.param(fifo, PlanError, "a pipe", id="pipe"),
    pytest.param(a_socket, PlanError, "a socket", id="socket"),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), PlanError, "a character device", id="zero"),
    pytest.param(lambda path: path.symlink_to(path.name), PlanError, "cannot be opened", id="link to itself"),
    pytest.param(Path.touch, LayoutError, "is empty", id="empty"),
    pytest.param(lambda path: path.write_bytes(b"x" * 700), LayoutError, "cut off inside a sector", id="cut off"),
])
def test_refused(make: Callable[[Path], object], kind: type[P2VError], says: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    make(path)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(kind, match=says) as caught:
        open_disk(str(path))
    assert has_four_answers(caught.value)
    assert set(os.listdir("/proc/self/fd")) == before  # nothing stays open


def test_cut_off_names_the_rest_and_how_to_pad(tmp_path: Path) -> None:
    path = tmp_path / "cut.img"
    path.write_bytes(b"x" * 1234)
    with pytest.raises(LayoutError) as caught:
        open_disk(str(path))
    assert caught.value.where == Where(str(path), 1024, 210)
    assert "truncate -s %512" in caught.value.next
    subprocess.run(["truncate", "-s", "%512", str(path)], check=True)
    padded = open_disk(str(path))
    assert read(padded, 0, padded.size) == b"x" * 1234 + bytes(302)
    padded.close()


def test_not_permitted(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(device.os, "open", refuse)  # the tests run as root, who may read everything
    with pytest.raises(PlanError, match="not permitted"):
        open_disk(str(disk))


# -- reading and closing


def test_close_gives_the_descriptor_back_once(disk: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    source = open_disk(str(disk))
    source.close()
    source.close()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="closed"):
        list(source.extents())


def test_a_file_that_shrinks(disk: Path) -> None:
    source = open_disk(str(disk))
    os.truncate(disk, 300_000)
    assert read(source, 299_000, 1000) == numbered_sectors("disk0", 300_000)[299_000:]
    with pytest.raises(ReadError, match="shorter than it was") as caught:
        read(source, 299_000, 2000)
    assert (caught.value.where.offset, caught.value.where.length) == (300_000, 1000)
    extents = list(source.extents())
    assert extents[-1].end == source.size
    assert {extent.kind for extent in extents} == {Kind.DATA}  # what is gone is not called zero
    source.close()


def test_a_file_that_shrinks_while_it_is_asked_for_holes(disk: Path) -> None:
    source = open_disk(str(disk))
    extents = iter(source.extents())
    os.truncate(disk, 0)
    assert [(e.offset, e.end, e.kind) for e in extents] == [(0, source.size, Kind.DATA)]
    source.close()


# -- a failing disk


class FailingDisk:
    """os.preadv as a disk with bad sectors would have it: buffered reads fail by whole pages."""

    def __init__(self, bad_sectors: Sequence[int], error: int) -> None:
        self.bad = [(number * 512, number * 512 + 512) for number in bad_sectors]
        self.error = error
        self.real = os.preadv
        self.calls = self.failures = 0

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.calls += 1
        grain = 512 if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT else PAGE
        end = offset + len(buffers[0])
        for start, stop in self.bad:
            first, last = start // grain * grain, -(-stop // grain) * grain
            if first < end and offset < last:
                if first > offset:  # what lies before a bad spot arrives
                    return self.real(fd, [buffers[0][: first - offset]], offset)
                self.failures += 1
                raise OSError(self.error, os.strerror(self.error))
        return self.real(fd, buffers, offset)


@pytest.fixture
def failing(disk: Path, monkeypatch: pytest.MonkeyPatch) -> MakeDisk:
    def make(bad: Sequence[int], error: int = errno.EIO, is_device: bool = True) -> tuple[DiskSource, FailingDisk]:
        fault = FailingDisk(bad, error)
        monkeypatch.setattr(device.os, "preadv", fault)
        return DiskSource(os.open(disk, os.O_RDONLY), "sda", 1 << 20, 512, is_device), fault

    return make


@pytest.mark.parametrize("bad", [[0], [777], [2047], [777, 778, 779], [800, 1500]])
def test_a_bad_sector_is_named_exactly(bad: list[int], failing: MakeDisk) -> None:
    source, fault = failing(bad)
    with pytest.raises(ReadError, match="bytes cannot be read") as caught:
        read(source, 0, source.size)
    run = [number for number in bad if number - bad.index(number) == bad[0]]
    assert caught.value.where == Where("sda", bad[0] * 512, len(run) * 512)
    assert has_four_answers(caught.value)
    assert fault.failures <= 20 + len(run)
    assert fault.calls <= 40 + len(run)  # by halving, not sector by sector
    source.close()


def test_good_sectors_beside_a_bad_one_are_read(failing: MakeDisk) -> None:
    source, _ = failing([777])
    data = numbered_sectors("disk0", 1 << 20)
    bad = 777 * 512
    for start, end in ((bad - 3000, bad), (bad + 512, bad + 3512), (bad - 511, bad - 510)):
        assert read(source, start, end - start) == data[start:end]
    source.close()


def test_an_unaligned_read_names_only_its_own_bytes(failing: MakeDisk) -> None:
    source, _ = failing([777])
    with pytest.raises(ReadError) as caught:
        read(source, 777 * 512 + 100, 1)
    assert (caught.value.where.offset, caught.value.where.length) == (777 * 512 + 100, 1)
    source.close()


def test_without_o_direct_a_bad_page_is_named(failing: MakeDisk) -> None:
    source, _ = failing([777], is_device=False)
    with pytest.raises(ReadError) as caught:
        read(source, 0, source.size)
    assert (caught.value.where.offset, caught.value.where.length) == (776 * 512, PAGE)
    source.close()


def test_a_long_bad_run_is_not_followed_to_its_end(failing: MakeDisk) -> None:
    source, fault = failing(list(range(1000, 2048)))
    with pytest.raises(ReadError) as caught:
        read(source, 0, source.size)
    assert (caught.value.where.offset, caught.value.where.length) == (1000 * 512, 64 * 512)
    assert fault.failures < 100
    source.close()


@pytest.mark.parametrize("error", [errno.ENODEV, errno.ENXIO])
def test_a_device_that_is_gone(error: int, failing: MakeDisk) -> None:
    source, fault = failing([777], error)
    with pytest.raises(DeviceGone, match="is gone") as caught:
        read(source, 777 * 512, 512)
    assert fault.failures == 1  # it is not searched for bad sectors
    assert has_four_answers(caught.value)
    source.close()


def test_a_device_of_size_zero_is_gone(disk: Path, failing: MakeDisk) -> None:
    source, _ = failing([777])
    os.truncate(disk, 0)
    with pytest.raises(DeviceGone):
        read(source, 777 * 512, 512)
    source.close()


def test_other_errors_are_no_bad_sectors(failing: MakeDisk) -> None:
    source, fault = failing([777], errno.ESTALE)
    with pytest.raises(ReadError, match=os.strerror(errno.ESTALE)):
        read(source, 777 * 512, 512)
    assert fault.failures == 1
    source.close()


# -- never for writing

AUDITED = """
import fcntl, os, sys
path, opened = sys.argv[1], []
def audit(event, args):
    if event == "open" and isinstance(args[0], str) and (args[0] == path or args[0].startswith("/proc/self/fd/")):
        opened.append(args)
sys.addaudithook(audit)
from p2v.model import read
from p2v.source.device import open_disk
source = open_disk(path)
read(source, 0, source.size), list(source.extents())
os.close(source._exact()) if source._exact() != source._fd else None
source._is_device = True
os.close(source._exact())  # what looks at bad sectors through O_DIRECT
flags = [flags for _, _, flags in opened]
assert len(opened) >= 2 and all(mode is None for _, mode, _ in opened), opened
assert all(f & os.O_ACCMODE == os.O_RDONLY and not f & (os.O_CREAT | os.O_TRUNC) for f in flags), opened
for fd in os.listdir("/proc/self/fd"):
    if os.path.exists("/proc/self/fd/" + fd) and os.path.samefile("/proc/self/fd/" + fd, path):
        assert fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        print("open read-only")
"""


def test_never_opened_for_writing(disk: Path) -> None:
    before, stat = hashlib.sha256(disk.read_bytes()).digest(), disk.stat()
    done = subprocess.run([sys.executable, "-c", AUDITED, str(disk)], capture_output=True, text=True,
                          cwd=Path(device.__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "open read-only\n"
    assert hashlib.sha256(disk.read_bytes()).digest() == before
    assert (disk.stat().st_mtime_ns, disk.stat().st_blocks) == (stat.st_mtime_ns, stat.st_blocks)
