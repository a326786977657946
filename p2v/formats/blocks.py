"""What the formats with a block table share: blocks appended in the order in which they are first written.

File: room for headers, and the table | blocks, each with what its format puts before it. The format says
what a table entry looks like, and writes headers and what follows the blocks when all is known; until
then the file opens as nothing. Nothing is ever moved or given back: what is written again is written in
place. The table in memory has four bytes per block and is touched only where the disk holds something, so
memory grows with the data (2 MiB for a TiB in blocks of 2 MiB), not with the disk.
"""

from __future__ import annotations

import mmap
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from p2v.errors import LayoutError, Unsupported, Where
from p2v.formats.part import PartFile
from p2v.model import SECTOR

if TYPE_CHECKING:
    import numpy
    import numpy.typing

Numbers: TypeAlias = "numpy.typing.NDArray[numpy.uint64]"

PAGE = 16 << 10  # table entries that are scanned, kept and encoded at once

_STATE = struct.Struct(">16sQQ")  # "p2v NAME", the disk's size, blocks (or bytes) used


@dataclass(frozen=True, slots=True)
class Shape(ABC):
    """Where things lie in an image, and what its table looks like; a format makes it a class of its own.

    All in bytes. name: the format's. size: of the disk. block: of the disk, for one table entry. table:
    where the table lies. data: the first block with what is before it. before: what every block begins
    with (VHD's sector bitmap). A place is a block's number in the file, from 1; 0 is no block.
    """

    name: str
    size: int
    block: int
    table: int
    data: int
    before: bytes = b""

    @property
    def entries(self) -> int:
        """Blocks of the disk."""
        return -(-self.size // self.block)

    @property
    def slot(self) -> int:
        """Bytes of the file for one block, with what is before it."""
        return len(self.before) + self.block

    def end(self, used: int) -> int:
        """Where the file's first used blocks end."""
        return self.data + used * self.slot

    def span(self, first: int, end: int) -> tuple[int, int]:
        """(offset in the file, bytes) of table entries first to end; first is a multiple of PAGE."""
        return self.table + 4 * first, 4 * (end - first)

    @abstractmethod
    def encode(self, places: Numbers) -> bytes:
        """The table entries for these places, the first of which is a multiple of PAGE."""

    @abstractmethod
    def decode(self, data: bytes) -> Numbers:
        """What encode() was given; anything else than 1 to used where the bytes are no entry's."""


class Blocks:
    """An image while it is being made. finish: writes headers and tail; it is given the file and this writer."""

    def __init__(self, part: PartFile, shape: Shape, finish: Callable[[PartFile, Blocks], None]) -> None:
        self._part, self.shape, self._finish = part, shape, finish
        # private: a page that was only read is the kernel's page of zeroes and costs nothing
        self._places = memoryview(
            mmap.mmap(-1, 4 * shape.entries, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).cast("I")
        self.used = 0
        self._top = 0  # no block of the disk from here on was ever taken
        self._changed: set[int] = set()  # pages of the table that the file does not have yet

    def write_at(self, offset: int, data: memoryview) -> None:
        inside(self.shape.size, offset, len(data))
        done = 0
        for place, length in self._pieces(offset, len(data)):
            self._part.write(place, data[done : done + length])
            done += length

    def zero(self, offset: int, length: int) -> None:
        """What was never written stays without a block; what was is overwritten."""
        import numpy as np

        inside(self.shape.size, offset, length)
        block = self.shape.block
        end = min(offset + length, self._top * block)
        if offset >= end:
            return
        last = (end - 1) // block + 1
        for first in range(offset // block, last, PAGE):
            places = np.frombuffer(self._places[first : min(first + PAGE, last)], np.uint32)
            for number in (np.flatnonzero(places) + first).tolist():
                low, high = max(offset, number * block), min(end, (number + 1) * block)
                self._part.blank(self._place(number) + low % block, high - low)

    def checkpoint(self) -> bytes:
        """The table is in the file; the state is small."""
        self._store()
        self._part.resize(self.shape.end(self.used))
        self._part.sync()
        return pack_state(self.shape.name, self.shape.size, self.used)

    def finish(self) -> None:
        self._store()
        self._part.resize(self.shape.end(self.used))
        self._finish(self._part, self)
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def clear(self) -> None:
        """A table without blocks goes to the file, where that is anything but zeroes."""
        import numpy as np

        blank = self.shape.encode(np.zeros(PAGE, np.uint64))
        if blank.strip(b"\0"):
            for first in range(0, self.shape.entries, PAGE):
                place, length = self._span(first)
                self._part.write(place, blank[:length])

    def load(self, used: int) -> None:
        """The table of a checkpoint; entries made later are forgotten.

        An entry only ever changes from none to a block, so even a table torn by a power cut holds nothing
        but entries from before and after. Raises LayoutError.
        """
        import numpy as np

        seen = np.zeros(used, np.bool_)
        count = 0
        for first in range(0, self.shape.entries, PAGE):
            data = self._part.read(*self._span(first))
            found = self.shape.decode(data)
            if not found.any():
                continue
            known = np.where(found <= used, found, 0)
            if self.shape.encode(known) != data:
                self._changed.add(first // PAGE)
            taken = np.flatnonzero(known)
            if len(taken):
                np.frombuffer(self._places, np.uint32)[first : first + len(known)] = known
                seen[known[taken] - np.uint64(1)] = True
                count += len(taken)
                self._top = first + int(taken[-1]) + 1
        if count != used or not seen.all():
            raise LayoutError(f"{self._part.part} holds a damaged block table",
                              Where(str(self._part.part), self.shape.table),
                              "something else has changed it", "remove it and begin again")
        self.used = used

    def _store(self) -> None:
        import numpy as np

        for page in sorted(self._changed):
            first = page * PAGE
            places = np.frombuffer(self._places[first : first + PAGE], np.uint32)
            self._part.write(self._span(first)[0], self.shape.encode(places.astype(np.uint64)))
        self._changed.clear()

    def _span(self, first: int) -> tuple[int, int]:
        return self.shape.span(first, min(first + PAGE, self.shape.entries))

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(place in the file, bytes) of these bytes of the disk, new blocks where there are none."""
        at, end = offset, offset + length
        start = run = 0
        while at < end:
            inner = at % self.shape.block
            step = min(end - at, self.shape.block - inner)
            place = self._place(at // self.shape.block) + inner
            if place != start + run:
                if run:
                    yield start, run
                start, run = place, 0
            run += step
            at += step
        if run:
            yield start, run

    def _place(self, number: int) -> int:
        """Where the bytes of a block of the disk lie; it is taken if there is none."""
        shape = self.shape
        place = self._places[number]
        if not place:
            if shape.before:
                self._part.write(shape.end(self.used), shape.before)
            self.used += 1  # its bytes read as zero, being past the end of the file
            place = self._places[number] = self.used
            self._top = max(self._top, number + 1)
            self._changed.add(number // PAGE)
        return shape.end(place - 1) + len(shape.before)


def create(path: str, shape: Shape, finish: Callable[[PartFile, Blocks], None]) -> Blocks:
    """Begin PATH.part. Raises PlanError where it or PATH exists, WriteError."""
    part = PartFile(path)
    try:
        writer = Blocks(part, shape, finish)
        writer.clear()
    except BaseException:
        part.discard()
        raise
    return writer


def reopen(path: str, shape: Shape, used: int, finish: Callable[[PartFile, Blocks], None]) -> Blocks:
    """Go on from a checkpoint with so many blocks; what was written after it is forgotten."""
    if used > shape.entries:
        raise no_checkpoint(path, shape.name)
    part = PartFile(path, new=False)
    try:
        cut(part, shape.end(used))
        writer = Blocks(part, shape, finish)
        writer.load(used)
    except BaseException:
        part.close()
        raise
    return writer


# --- what the formats without a table need as well


def check_size(path: str, name: str, size: int, limit: int, instead: str) -> None:
    """Raises Unsupported past limit, which is in bytes; ValueError for no disk. instead: formats that hold more."""
    if size <= 0:
        raise ValueError(f"no disk has {size} bytes")
    if size > limit:
        raise Unsupported(f"{name} holds no disk of {size} bytes", Where(path), f"it ends at {limit} bytes",
                          f"use {instead}")


def sectors(size: int) -> int:
    """A size in whole sectors, in bytes: what is missing reads as zero."""
    return -(-size // SECTOR) * SECTOR


def inside(size: int, offset: int, length: int) -> None:
    """Raises ValueError where a range lies outside a disk of size bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {size:#x}")


def cut(part: PartFile, end: int) -> None:
    """Forget what was written after a checkpoint, at which the file ended here. Raises LayoutError."""
    if part.size < end:
        raise LayoutError(f"{part.part} is shorter than its checkpoint says", Where(str(part.part), end),
                          "something else has changed it", "remove it and begin again")
    part.resize(end)


def pack_state(name: str, size: int, used: int) -> bytes:
    """A checkpoint of format name."""
    return _STATE.pack(b"p2v " + name.encode(), size, used)


def parse_state(path: str, state: bytes, name: str, limit: int) -> tuple[int, int]:
    """(size, used) of a checkpoint of format name. Raises LayoutError."""
    if len(state) != _STATE.size:
        raise no_checkpoint(path, name)
    magic, size, used = _STATE.unpack(state)
    if magic.rstrip(b"\0") != b"p2v " + name.encode() or not 0 < size <= limit:
        raise no_checkpoint(path, name)
    return size, used


def no_checkpoint(path: str, name: str) -> LayoutError:
    """This state is not of such an image."""
    return LayoutError(f"this is no checkpoint of a {name} image", Where(path), next="begin again")
