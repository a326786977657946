"""A source that remembers which of its reads failed, whoever made them and whatever they made of it."""

from __future__ import annotations

from collections.abc import Iterable

from p2v.errors import ReadError
from p2v.model import Extent, Range, Source
from p2v.source.bounds import failed_range

_KEPT = 1000  # ranges: more are not remembered, the disk is bad enough


class Watched:
    """The source itself, with the ranges that could not be read in failed (at most 1000 of them)."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.size = source.size
        self.sector_size = source.sector_size
        self.failed: list[Range] = []
        self._source = source

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As the source does."""
        try:
            self._source.read_into(offset, buffer)
        except ReadError as error:
            bad = failed_range(error, offset, len(buffer))
            if bad not in self.failed and len(self.failed) < _KEPT:
                self.failed.append(bad)
            raise

    def extents(self) -> Iterable[Extent]:
        """As the source says."""
        return self._source.extents()

    def close(self) -> None:
        """Close the source."""
        self._source.close()
