"""Sources one behind the other as one source: a volume spanned over several disks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from p2v.errors import ReadError
from p2v.model import Extent, Source
from p2v.source.bounds import check_read, seen_through


class Linear:
    """The parts in order. Raises ValueError where there is none, or their sectors differ in size."""

    def __init__(self, parts: Sequence[Source], name: str) -> None:
        if len({part.sector_size for part in parts}) != 1:
            raise ValueError(f"{name}: parts of one sector size are needed")
        self.name = name
        self._parts = [part for part in parts if part.size]
        self._starts = list(accumulate((part.size for part in self._parts), initial=0))
        self.size = self._starts[-1]
        self.sector_size = parts[0].sector_size
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer from as many parts as it touches. Raises ReadError in the whole's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        index, done = bisect_right(self._starts, offset) - 1, 0
        while done < len(buffer):
            part, start = self._parts[index], self._starts[index]
            inside = offset + done - start
            piece = buffer[done : done + part.size - inside]
            try:
                part.read_into(inside, piece)
            except ReadError as error:
                raise seen_through(error, self.name, inside, len(piece), start) from error
            done += len(piece)
            index += 1

    def extents(self) -> Iterator[Extent]:
        """The parts' own, one behind the other."""
        for part, start in zip(self._parts, self._starts, strict=False):
            for extent in part.extents():
                yield Extent(start + extent.offset, extent.length, extent.kind)

    def close(self) -> None:
        """The parts stay open."""
        self._closed = True
