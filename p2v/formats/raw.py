"""Raw: the disk's bytes as they are; what is zero is a hole in the file."""

from __future__ import annotations

import struct

from p2v.errors import LayoutError, Unsupported, Where
from p2v.formats.part import PartFile
from p2v.model import ImageWriter, Source

NAME = "raw"
SUFFIX = ".raw"
SEQUENTIAL = False
EDITABLE = True
LIMIT = (1 << 63) - 512  # bytes: Linux counts a file's bytes in 63 bits; the file system may allow less

_STATE = struct.Struct(">8sQQ")  # magic, the disk's size, the end of what was written
_MAGIC = b"p2v-raw1"


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    if size <= 0:
        raise ValueError(f"no disk has {size} bytes")
    if size > LIMIT:
        raise Unsupported(f"no file holds a disk of {size} bytes", Where(path), f"files end at {LIMIT} bytes",
                          "choose another format")
    part = PartFile(path)
    try:
        part.resize(size)
    except BaseException:
        part.discard()
        raise
    return _Writer(part, size, 0)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written past its last byte is forgotten."""
    try:
        magic, size, end = _STATE.unpack(state)
    except struct.error:
        magic, size, end = b"", 0, 0
    if magic != _MAGIC or not 0 <= end <= size:
        raise LayoutError("this is no checkpoint of a raw image", Where(path), next="begin again")
    part = PartFile(path, new=False)
    if part.size < end:
        part.close()
        raise LayoutError(f"{part.part} is shorter than its checkpoint says", Where(str(part.part), end),
                          "something else has changed it", "remove it and begin again")
    part.resize(end)
    part.resize(size)
    return _Writer(part, size, end)


def probe(source: Source) -> bool:
    """Any bytes may be a raw disk: ask the other formats first."""
    return source.size > 0


def read(path: str) -> Source:
    """The disk inside, through qemu-nbd."""
    from p2v.source.nbd import open_image

    return open_image(path, "raw")


class _Writer:
    """size: of the disk. end: no byte from here on was ever written."""

    def __init__(self, part: PartFile, size: int, end: int) -> None:
        self._part, self._size, self._end = part, size, end

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        self._part.write(offset, data)
        self._end = max(self._end, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        if offset < self._end:
            self._part.blank(offset, min(length, self._end - offset))

    def checkpoint(self) -> bytes:
        self._part.sync()
        return _STATE.pack(_MAGIC, self._size, self._end)

    def finish(self) -> None:
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")
