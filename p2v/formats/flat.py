"""What the formats share that hold the disk's bytes in one piece: room for headers, the bytes, a tail.

What is zero is a hole in the file. The format writes headers and tail when it finishes.
"""

from __future__ import annotations

from collections.abc import Callable

from p2v.formats.blocks import PAGE, Shape, cut, inside, no_checkpoint, pack_state
from p2v.formats.part import PartFile


class Flat:
    """An image while it is being made.

    base: where the disk's bytes begin in the file. total: the file's size when the bytes are there.
    end: no byte of the disk from here on was ever written. finish: writes headers and tail.
    """

    def __init__(
        self, part: PartFile, name: str, size: int, base: int, total: int, finish: Callable[[PartFile, int], None],
        end: int = 0,
    ) -> None:
        self._part, self._name, self._size, self._base = part, name, size, base
        self._total, self._finish, self._end = total, finish, end
        part.resize(total)  # whether the file system holds such a file at all is said now

    def write_at(self, offset: int, data: memoryview) -> None:
        inside(self._size, offset, len(data))
        self._part.write(self._base + offset, data)
        self._end = max(self._end, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        inside(self._size, offset, length)
        if offset < self._end:
            self._part.blank(self._base + offset, min(length, self._end - offset))

    def checkpoint(self) -> bytes:
        self._part.sync()
        return pack_state(self._name, self._size, self._end)

    def finish(self) -> None:
        self._finish(self._part, self._size)
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()


def create(
    path: str, name: str, size: int, base: int, total: int, finish: Callable[[PartFile, int], None]
) -> Flat:
    """Begin PATH.part. Raises PlanError where it or PATH exists, WriteError."""
    part = PartFile(path)
    try:
        return Flat(part, name, size, base, total, finish)
    except BaseException:
        part.discard()
        raise


def reopen(
    path: str, name: str, size: int, end: int, base: int, total: int, finish: Callable[[PartFile, int], None]
) -> Flat:
    """Go on from a checkpoint; what was written past its last byte, end, is forgotten."""
    if end > size:
        raise no_checkpoint(path, name)
    part = PartFile(path, new=False)
    try:
        cut(part, base + end)
        return Flat(part, name, size, base, total, finish, end)
    except BaseException:
        part.close()
        raise


def write_table(part: PartFile, shape: Shape) -> None:
    """A block table in which every block is there, in order."""
    import numpy as np

    for first in range(0, shape.entries, PAGE):
        end = min(first + PAGE, shape.entries)
        part.write(shape.span(first, end)[0], shape.encode(np.arange(first + 1, end + 1, dtype=np.uint64)))
