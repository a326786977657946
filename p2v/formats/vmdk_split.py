"""VMDK, twoGbMaxExtentSparse: growing files of at most 2 GiB, for FAT32 and old NFS, GSX, and ESX's vmkfstools -i.

NAME.vmdk describes them, NAME-s001.vmdk and so on hold the disk. ESX 5.1 and later read them only after
`vmkload_mod multiextent`. The descriptor is renamed last, so there is none of an unfinished disk.
"""

from __future__ import annotations

import os
import struct
from array import array
from contextlib import suppress
from pathlib import Path

from p2v.errors import LayoutError, Where
from p2v.formats.part import PartFile, refuse_existing, withdraw
from p2v.formats.vmdk_extent import SparseExtent
from p2v.formats.vmdk_layout import SUFFIX, check_size, create_type, descriptor, read, sibling, whole_grains
from p2v.model import SECTOR, ImageWriter, Source

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "vmdk-split"
SEQUENTIAL = False
EDITABLE = True
EXTENT_SECTORS = 4192256  # what VMware's own extents hold
EXTENT = EXTENT_SECTORS * SECTOR  # bytes
LIMIT = 999 * EXTENT  # bytes: three digits number the files

OPEN = 8  # extents open at once; a streaming copy needs one
_STATE = struct.Struct(">8sQ")  # magic, the disk's size; then the grains used in each extent, as this machine counts
_MAGIC = b"p2v-vm21"


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where a file of the image exists, Unsupported past LIMIT, WriteError."""
    check_size(path, size, LIMIT, "a split VMDK", f"three digits number its files: {LIMIT} bytes")
    extents = _extents(path, size)
    for extent in extents:
        refuse_existing(Path(extent))
        refuse_existing(Path(extent + ".part"))
    return _Writer(PartFile(path), size, extents, array("Q", bytes(8 * len(extents))))


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    wrong = LayoutError("this is no checkpoint of a split VMDK image", Where(path), next="begin again")
    if len(state) < _STATE.size:
        raise wrong
    magic, size = _STATE.unpack_from(state)
    if magic != _MAGIC or not 0 < size <= LIMIT or len(state) != _STATE.size + 8 * -(-size // EXTENT):
        raise wrong
    used = array("Q", state[_STATE.size :])
    extents = _extents(path, size)
    for extent in extents:
        withdraw(path, extent)
    writer = _Writer(PartFile(path, new=False), size, extents, used)
    try:
        writer.forget_later()
    except BaseException:
        writer.close()
        raise
    return writer


def probe(source: Source) -> bool:
    """By the type in its descriptor."""
    return create_type(source) in ("twogbmaxextentsparse", "2gbmaxextentsparse")


def _extents(path: str, size: int) -> list[str]:
    return [sibling(path, f"-s{number:03d}") for number in range(1, -(-size // EXTENT) + 1)]


class _Writer:
    """used: grains of each extent; an extent of which none are has no file before finish()."""

    def __init__(self, part: PartFile, size: int, extents: list[str], used: array[int]) -> None:
        self._part, self._size, self._extents, self._used = part, size, extents, used
        self._open: dict[int, tuple[PartFile, SparseExtent]] = {}  # the one used last at the end
        self._published: list[str] = []
        self._ended = False

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, EXTENT)
            step = min(len(data) - done, EXTENT - inside)
            self._extent(number)[1].write_at(inside, data[done : done + step])
            done += step

    def zero(self, offset: int, length: int) -> None:
        """An extent of which nothing was written needs no file for that."""
        self._inside(offset, length)
        for number in range(offset // EXTENT, -(-(offset + length) // EXTENT)):
            if number in self._open or self._used[number]:
                start = max(offset - number * EXTENT, 0)
                self._extent(number)[1].zero(start, min(offset + length - number * EXTENT, EXTENT) - start)

    def checkpoint(self) -> bytes:
        """Extents that were closed since the last one were synced then."""
        for number, (_part, extent) in self._open.items():
            extent.sync()
            self._used[number] = extent.used
        return _STATE.pack(_MAGIC, self._size) + self._used.tobytes()

    def finish(self) -> None:
        """Each extent is published as soon as it is complete; all of them before the descriptor."""
        self._part.refuse_published()
        lines = [("RW", self._capacity(number), "SPARSE", os.path.basename(extent))
                 for number, extent in enumerate(self._extents)]
        for number in range(len(self._extents)):
            part, extent = self._extent(number)
            extent.complete()
            part.publish()
            self._published.append(self._extents[number])
            del self._open[number]
        self._part.write(0, descriptor("twoGbMaxExtentSparse", self._size, lines))
        self._part.publish()
        self._ended = True

    def abort(self) -> None:
        """Also removes extents that are complete, as long as the descriptor is not."""
        if not self._ended:
            self._ended = True
            self.close_extents()
            for file in (*self._published, *(f"{extent}.part" for extent in self._extents)):
                with suppress(FileNotFoundError):
                    os.unlink(file)
            self._part.discard()

    def forget_later(self) -> None:
        """After reopening: what was written after the checkpoint goes, whole extents too."""
        for number, extent in enumerate(self._extents):
            if self._used[number]:
                self._extent(number)[1].forget_later()
            else:
                with suppress(FileNotFoundError):
                    os.unlink(extent + ".part")

    def close(self) -> None:
        """Let go of all files; they stay as they are."""
        self.close_extents()
        self._part.close()

    def close_extents(self) -> None:
        """Let go of the extents' files; they stay as they are."""
        while self._open:
            self._open.popitem()[1][0].close()

    def _extent(self, number: int) -> tuple[PartFile, SparseExtent]:
        found = self._open.pop(number, None)
        if found is None:
            part = PartFile(self._extents[number], new=not self._used[number])
            found = part, SparseExtent(part, self._capacity(number), used=self._used[number])
        self._open[number] = found
        if len(self._open) > OPEN:
            oldest = next(iter(self._open))
            part, extent = self._open[oldest]
            extent.sync()
            self._used[oldest] = extent.used
            del self._open[oldest]
            part.close()
        return found

    def _capacity(self, number: int) -> int:
        return min(EXTENT_SECTORS, whole_grains(self._size) - number * EXTENT_SECTORS)

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")
