"""A raw image file or a block device, opened read-only."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import weakref
from collections.abc import Iterator

from p2v.errors import LayoutError, PlanError, ReadError, Unsupported, Where
from p2v.model import SECTOR, Extent, Kind, Range, Source
from p2v.source.bounds import BadSectors, check_read, salvage
from p2v.source.in_use import check_unused

_BLKSSZGET = 0x1268  # <linux/fs.h>: logical sector size

# What Linux calls an unreadable spot. Source: blk_errors[] in the kernel's block/blk-core.c; buffered
# reads say EIO for all of them, O_DIRECT tells them apart.
_MEDIUM = {errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ}
_GONE = {errno.ENODEV, errno.ENXIO}


class DeviceGone(ReadError):
    """The whole device has vanished: stop at once and keep what is there; nothing is bad yet."""


def open_disk(path: str) -> Source:
    """A raw image file or a block device. It is opened O_RDONLY and never otherwise.

    Raises PlanError (nothing there, not a disk, not permitted, in use), LayoutError (empty, or cut off
    inside a sector), Unsupported (sectors of neither 512 nor 4096 bytes).
    """
    kind = _kind(path)
    if stat.S_ISBLK(kind.st_mode):
        check_unused(path, f"{os.major(kind.st_rdev)}:{os.minor(kind.st_rdev)}")
    try:  # O_NONBLOCK: never waits, whatever is there by now
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        return _opened(path, fd, kind)
    except BaseException:
        os.close(fd)
        raise


def _kind(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    if stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode):
        return found
    words = {stat.S_IFDIR: "a folder", stat.S_IFCHR: "a character device", stat.S_IFIFO: "a pipe",
             stat.S_IFSOCK: "a socket"}
    raise PlanError(f"{path} is {words.get(stat.S_IFMT(found.st_mode), 'no file')}, not a disk", path,
                    "p2v reads raw image files and block devices, at any place and more than once",
                    "name the disk (/dev/sdX, /dev/disk/by-id/…) or an image of it")


def _cannot_open(path: str, error: OSError) -> PlanError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return PlanError(f"{path}: there is nothing of this name", path, "a disk is read from here",
                         "check the spelling; lsblk lists the disks of this machine")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PlanError(f"{path}: not permitted to read it", path, "a disk is read from here",
                         "disks are read by root and by the group of the device, often 'disk'")
    return PlanError(f"{path} cannot be opened: {error.strerror}", path, "a disk is read from here",
                     "check cables and the kernel's log (dmesg)")


def _opened(path: str, fd: int, expected: os.stat_result) -> DiskSource:
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino, found.st_rdev) != (expected.st_dev, expected.st_ino, expected.st_rdev):
        raise PlanError(f"{path} was replaced while it was being opened", path,
                        "what was checked is not what was opened", "run p2v again")
    is_device = stat.S_ISBLK(found.st_mode)
    size = os.lseek(fd, 0, os.SEEK_END)
    sector_size = SECTOR
    if is_device:
        sector_size = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, b"\0" * 4))[0]
    if sector_size not in (512, 4096):
        raise Unsupported(f"{path} has sectors of {sector_size} bytes", path,
                          "p2v knows disks of 512 and 4096 bytes per sector", "name another disk")
    if size == 0:
        raise LayoutError(f"{path} is empty", Where(path, 0),
                          "a drive without a medium, or a copy that never began",
                          "name the disk or image that was meant")
    if size % sector_size:
        raise LayoutError(
            f"{path} is cut off inside a sector: its size is no multiple of {sector_size} bytes",
            Where(path, size - size % sector_size, size % sector_size),
            "no disk has such a size: a copy broke off, or this is not a raw image",
            f"copy the disk again; to go on with what is there, pad a copy: truncate -s %{sector_size} COPY",
        )
    return DiskSource(fd, path, size, sector_size, is_device)


class DiskSource:
    """An open file descriptor as a Source; it owns the descriptor.

    is_device: bad spots are looked at through O_DIRECT, because buffered reads fail by whole pages, and
    there are no holes to ask for.
    """

    def __init__(self, fd: int, name: str, size: int, sector_size: int, is_device: bool) -> None:
        self.name = name
        self.size = size
        self.sector_size = sector_size
        self._fd = fd
        self._is_device = is_device
        self._closing = weakref.finalize(self, os.close, fd)
        self._direct: int | None = None  # opened when it is first needed
        self._closing_direct: weakref.finalize[[int], DiskSource] | None = None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError naming the bad sectors, DeviceGone, ValueError past the end."""
        check_read(self.name, self.size, offset, len(buffer), not self._closing.alive)
        done = 0
        while done < len(buffer):
            count = self._some(self._fd, offset + done, buffer[done:])
            if count == 0:
                self._salvage(offset + done, buffer[done:])
                return
            done += count

    def attempt(self, offset: int, buffer: memoryview, direct: bool = True) -> int:
        """One try: the bytes at the start of buffer that are good.

        direct: past the page cache where that is possible; then whole sectors, into memory that O_DIRECT takes.
        Raises DeviceGone.
        """
        check_read(self.name, self.size, offset, len(buffer), not self._closing.alive)
        if direct and self._direct is None:
            self._direct = self._exact()
            if self._direct != self._fd:
                self._closing_direct = weakref.finalize(self, os.close, self._direct)
        return self._some(self._direct if direct and self._direct is not None else self._fd, offset, buffer)

    def extents(self) -> Iterator[Extent]:
        """Holes of a file are ZERO, everything else is DATA."""
        check_read(self.name, self.size, 0, 0, not self._closing.alive)
        if self._is_device:
            yield Extent(0, self.size, Kind.DATA)
            return
        at = 0
        while at < self.size:
            data = self._seek(at, os.SEEK_DATA)
            if data > at:
                yield Extent(at, data - at, Kind.ZERO)
            if data < self.size:
                hole = self._seek(data, os.SEEK_HOLE)
                end = hole if hole > data else self.size  # a hole punched meanwhile: unproven is data
                yield Extent(data, end - data, Kind.DATA)
                data = end
            at = data

    def close(self) -> None:
        """Close the file descriptor."""
        self._closing()
        if self._closing_direct is not None:
            self._closing_direct()

    def _seek(self, at: int, whence: int) -> int:
        """The next data or hole from at on, at most size. What the file cannot say is data."""
        unknown = at if whence == os.SEEK_DATA else self.size
        try:
            return min(max(os.lseek(self._fd, at, whence), at), self.size)
        except OSError as error:
            # ENXIO: no data behind at, or at is behind the end of a file that has shrunk meanwhile
            if error.errno == errno.ENXIO and os.fstat(self._fd).st_size >= self.size:
                return self.size
            return unknown

    def _some(self, fd: int, offset: int, view: memoryview) -> int:
        """Read at least a byte; 0 where the medium is bad. Raises ReadError for any other failure."""
        try:
            count = os.preadv(fd, [view], offset)
        except OSError as error:
            if error.errno in _GONE or (self._is_device and os.lseek(self._fd, 0, os.SEEK_END) == 0):
                raise self._gone(offset, len(view), error) from error
            if error.errno in _MEDIUM:
                return 0
            raise ReadError(f"{self.name} cannot be read: {error.strerror}",
                            Where(self.name, offset, len(view)), "the operating system refused the read",
                            "see the kernel's log (dmesg)") from error
        if count == 0:
            raise ReadError(f"{self.name} is shorter than it was when it was opened",
                            Where(self.name, offset, len(view)),
                            f"it had {self.size} bytes; something has cut it off since",
                            "find out what writes to it, then run p2v again")
        return count

    def _gone(self, offset: int, length: int, error: OSError) -> DeviceGone:
        return DeviceGone(f"{self.name} is gone", Where(self.name, offset, length),
                          f"the kernel no longer reaches the device: {error.strerror}",
                          "check power and cables, let the drive cool down, then run p2v again")

    def _salvage(self, offset: int, buffer: memoryview) -> None:
        exact = self._exact()
        try:
            bad = salvage(lambda at, piece: self._all(exact, at, piece), offset, buffer,
                          self.sector_size, self.size)
        finally:
            if exact != self._fd:
                os.close(exact)
        if bad is not None:
            raise unreadable(self.name, bad)

    def _exact(self) -> int:
        """A descriptor whose errors are not rounded to pages: O_DIRECT, where the device can do that."""
        if not self._is_device:
            return self._fd
        try:
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return self._fd

    def _all(self, fd: int, offset: int, piece: memoryview) -> bool:
        done = 0
        while done < len(piece):
            count = self._some(fd, offset + done, piece[done:])
            if count == 0:
                return False
            done += count
        return True


def unreadable(name: str, bad: Range) -> BadSectors:
    """The error for sectors that were tried one by one."""
    return BadSectors(f"{name}: {bad.length} bytes cannot be read", Where(name, bad.offset, bad.length),
                      "the medium is damaged there; each sector was tried alone",
                      "rescue the disk into an image first (GNU ddrescue: ddrescue -d DISK IMAGE MAPFILE), "
                      "then convert the image")
