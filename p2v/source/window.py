"""A part of a source as a source of its own: a partition of a disk."""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import ReadError
from p2v.model import Extent, Source
from p2v.source.bounds import check_read, seen_through


class Window:
    """Bytes offset to offset + length of a source. Raises ValueError where the source has no such bytes."""

    def __init__(self, source: Source, offset: int, length: int, name: str = "") -> None:
        check_read(source.name, source.size, offset, length)
        if length < 0:
            raise ValueError(f"no window: length {length}")
        self.name = name or f"{source.name} from byte {offset:#x}"
        self.size = length
        self.sector_size = source.sector_size
        self._source = source
        self._offset = offset
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError in the window's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        try:
            self._source.read_into(self._offset + offset, buffer)
        except ReadError as error:
            raise seen_through(error, self.name, self._offset + offset, len(buffer), -self._offset) from error

    def extents(self) -> Iterator[Extent]:
        """The source's own, cut to the window."""
        end = self._offset + self.size
        for extent in self._source.extents():
            if extent.offset >= end:
                break
            start, stop = max(extent.offset, self._offset), min(extent.end, end)
            if start < stop:
                yield Extent(start - self._offset, stop - start, extent.kind)

    def close(self) -> None:
        """The source below stays open."""
        self._closed = True
