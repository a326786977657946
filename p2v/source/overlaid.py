"""A source with its edits on top: the changed ranges from an overlay, everything else from the source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from p2v.errors import ReadError
from p2v.model import Extent, Kind, Range, Source
from p2v.source.bounds import check_read, seen_through


class Overlaid:
    """base, with the changed ranges read from top, which has them at the same offsets.

    changed: in any order; may touch and overlap. Raises ValueError where base or top has no such bytes.
    """

    def __init__(self, base: Source, top: Source, changed: Sequence[Range]) -> None:
        self.name = base.name
        self.size = base.size
        self.sector_size = base.sector_size
        self.changed = _merged(changed)
        if self.changed and self.changed[-1].end > min(base.size, top.size):
            raise ValueError(f"{top.name} changes bytes up to {self.changed[-1].end:#x}, which are not in "
                             f"both {base.size} and {top.size} bytes")
        self._base = base
        self._top = top
        self._starts = [part.offset for part in self.changed]
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, each piece from the source that has it. Raises ReadError."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        done = 0
        while done < len(buffer):
            source, end = self._owner(offset + done)
            piece = buffer[done : done + end - (offset + done)]
            try:
                source.read_into(offset + done, piece)
            except ReadError as error:
                if source is self._base:
                    raise
                raise seen_through(error, self.name, offset + done, len(piece), 0) from error
            done += len(piece)

    def extents(self) -> Iterator[Extent]:
        """base's own, with the changed ranges as DATA."""
        pending = iter(self.changed)
        change = next(pending, None)
        for extent in self._base.extents():
            at = extent.offset
            while at < extent.end:
                while change is not None and change.end <= at:
                    yield Extent(change.offset, change.length, Kind.DATA)
                    change = next(pending, None)
                if change is None or change.offset >= extent.end:
                    yield Extent(at, extent.end - at, extent.kind)
                    break
                if at < change.offset:
                    yield Extent(at, change.offset - at, extent.kind)
                at = change.end
        if change is not None:
            yield Extent(change.offset, change.length, Kind.DATA)

    def close(self) -> None:
        """base and top stay open."""
        self._closed = True

    def _owner(self, offset: int) -> tuple[Source, int]:
        """Who has the byte at offset, and up to where."""
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < self.changed[index].end:
            return self._top, self.changed[index].end
        following = index + 1
        return self._base, self._starts[following] if following < len(self._starts) else self.size


def _merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ascending, none touching the next."""
    merged: list[Range] = []
    for part in sorted(ranges, key=lambda r: r.offset):
        if merged and part.offset <= merged[-1].end:
            start = merged[-1].offset
            merged[-1] = Range(start, max(merged[-1].end, part.end) - start)
        else:
            merged.append(part)
    return tuple(merged)
