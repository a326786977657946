"""Raw, onto a block device: every byte of the disk is written there, also those that are zero.

What the device held before must go, so a range of zeroes is asked of the device (a hole, where it promises that
holes read as zero; else the kernel's own zeroing) and written where neither is known. The first 4 KiB, with
boot code and partition table, are written last: a copy that was cut short looks like an empty disk.
What lies behind the disk's end stays as it was.
Source: ioctl BLKZEROOUT of <linux/fs.h>; fallocate(2) on block devices, Linux 4.9 and later.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from p2v.errors import Finding, LayoutError, PlanError, Severity, Where
from p2v.formats.part import PartFile
from p2v.formats.raw import LIMIT
from p2v.model import ImageWriter, Source
from p2v.source.in_use import users, whole

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "raw"
SUFFIX = ""
SEQUENTIAL = False
EDITABLE = True
HELD = 4096  # bytes at the disk's beginning that are written last

_STEP = 128 << 20  # bytes zeroed in one call, which nothing can interrupt
_SMALL = 1 << 20  # bytes: less is written, which the page cache takes at once; a device answers each call
_PAGE = 4096  # bytes: no device has larger sectors
_BLKZEROOUT = 0x127F
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_STATE = struct.Struct(">8sQ")  # magic, the disk's size; the held bytes follow
_MAGIC = b"p2v-dev1"
_UNKNOWN = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EREMOTEIO}


def is_device(path: str | Path) -> bool:
    """Does a block device lie there?"""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def refuse(path: str, size: int, sources: list[str]) -> None:
    """Raises PlanError where a disk of size bytes must not go: in use, too small, not writable, or a source."""
    try:
        number = os.stat(path).st_rdev
        device = f"{os.major(number)}:{os.minor(number)}"
        for source in filter(is_device, sources):
            other = os.stat(source).st_rdev
            theirs = f"{os.major(other)}:{os.minor(other)}"
            if device in (theirs, whole(theirs)) or theirs == whole(device):
                raise PlanError(f"{path} is the source {source}, or shares its bytes", path,
                                "the output is overwritten; a source never is", "name another device")
        found = users(device, proc=Path("/proc"), sys=Path("/sys"))
        if found:
            raise PlanError(f"{path} is in use: {found[0]}", path, "; ".join([*found[1:5], "all of it is overwritten"]),
                            "unmount it, swapoff it, or stop the array or mapping; or name another device")
        fd = _opened(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        room = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    if room < size:
        raise PlanError(f"{path} is too small", Where(path, room, size - room),
                        f"it has {room} bytes, the disk has {size}", "name a larger device")


def beyond(path: str, size: int, run: Path) -> Finding:
    """What is worth saying of a finished one: what lies behind the disk's end, and where its record is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest = os.lseek(fd, 0, os.SEEK_END) - size
    finally:
        os.close(fd)
    then = f"p2v verify {run} checks the device; let the kernel see its new partitions with: partprobe {path}"
    if not rest:
        return Finding(f"{path} is full to its last byte", Where(path), "device and disk are of one size", then)
    return Finding(f"the last {rest} bytes of {path} were not written", Where(path, size, rest),
                   "the device is larger than the disk; what lies there is what it held before",
                   f"{then}; to clear the rest: blkdiscard -z -o {size} {path}", Severity.INFO)


def create(path: str, size: int) -> ImageWriter:
    """Begin on the device: its first bytes are cleared. Raises PlanError, WriteError."""
    part = _Device(path)
    writer = _Writer(part, size, bytearray(min(HELD, size)))
    try:
        part.write(0, bytes(min(HELD, size)))
    except BaseException:
        part.close()
        raise
    return writer


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint. Raises LayoutError, PlanError, WriteError."""
    magic, size = _STATE.unpack(state[: _STATE.size].ljust(_STATE.size, b"\0"))
    held = state[_STATE.size :]
    if magic != _MAGIC or not 0 < size <= LIMIT or len(held) != min(HELD, size):
        raise LayoutError("this is no checkpoint of a copy onto a device", Where(path), next="begin again with --force")
    return _Writer(_Device(path), size, bytearray(held))


def probe(source: Source) -> bool:
    """Any bytes may be a raw disk."""
    return source.size > 0


def read(path: str) -> Source:
    """The whole device, through qemu-nbd."""
    from p2v.source.nbd import open_image

    return open_image(path, "raw")


class _Writer:
    """size: of the disk. held: its first bytes, which finish() writes."""

    def __init__(self, part: _Device, size: int, held: bytearray) -> None:
        self._part, self._size, self._held = part, size, held

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        kept = max(0, min(len(self._held) - offset, len(data)))
        self._held[offset : offset + kept] = data[:kept]
        if kept < len(data):
            self._part.write(offset + kept, data[kept:])

    def zero(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        kept = max(0, min(len(self._held) - offset, length))
        self._held[offset : offset + kept] = bytes(kept)
        if kept < length:
            self._part.blank(offset + kept, length - kept)

    def checkpoint(self) -> bytes:
        self._part.sync()
        return _STATE.pack(_MAGIC, self._size) + self._held

    def finish(self) -> None:
        self._part.sync()
        self._part.write(0, bytes(self._held))
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")


class _Device(PartFile):
    """The device, open for this process alone: nothing of it can be mounted meanwhile. It is never removed."""

    def __init__(self, path: str) -> None:
        self.path = self.part = Path(path)
        self._eager = self._low = self._high = 0
        self._ways = [punch, zero_out]  # those that are left to try
        self._fd = -1
        try:
            self._fd = _opened(path)
        except OSError as error:
            raise _cannot_open(path, error) from error

    def blank(self, offset: int, length: int) -> None:
        """These bytes read as zero, whatever was there."""
        start, end = -(-offset // _PAGE) * _PAGE, (offset + length) // _PAGE * _PAGE
        if length < _SMALL:
            self._write_zeroes(offset, length)
            return
        if offset < start:
            self._write_zeroes(offset, start - offset)
        for at in range(start, end, _STEP):
            self._zero_pages(at, min(_STEP, end - at))
        if end < offset + length:
            self._write_zeroes(end, offset + length - end)

    def publish(self) -> None:
        """All of it is on the medium when this returns."""
        self.sync()
        self.close()

    def discard(self) -> None:
        """Let go of the device."""
        self.close()

    def _zero_pages(self, offset: int, length: int) -> None:
        while self._ways:
            try:
                self._ways[0](self._fd, offset, length)
                return
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise self._failed(error, "write", offset, length) from error
                del self._ways[0]
        self._write_zeroes(offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = bytes(min(length, 1 << 20))
        for at in range(offset, offset + length, len(zeroes)):
            self.write(at, zeroes[: offset + length - at])


def punch(fd: int, offset: int, length: int) -> None:
    """A hole, where the device promises that it reads as zero. Raises OSError."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def zero_out(fd: int, offset: int, length: int) -> None:
    """The kernel's own zeroing, by a command of the device or by writing. Raises OSError."""
    fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))


def _opened(path: str) -> int:
    """O_EXCL on a block device: refused while it, or a partition of it, is mounted or held. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)


def _cannot_open(path: str, error: OSError) -> PlanError:
    why, then = {
        errno.EBUSY: ("it, or a partition of it, is mounted or held by another program",
                      "unmount it, and stop what uses it (lsblk shows what does)"),
        errno.EROFS: ("the device is write-protected", "unlock it (blockdev --setrw), or name another"),
        errno.EACCES: ("writing a device needs permission", "run p2v as root, or name a file"),
    }.get(error.errno or 0, (error.strerror or str(error), "check the name and the kernel's log (dmesg)"))
    return PlanError(f"{path} cannot be opened to be written", path, why, then)
