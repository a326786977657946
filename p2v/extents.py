"""Arithmetic on extents and ranges: ascending, half-open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2v.model import Extent, Kind, Range


class Merger:
    """Extents in the making: touching ones of one kind become one."""

    def __init__(self) -> None:
        self._found: list[Extent] = []
        self._start, self._end, self._kind = 0, 0, Kind.DATA

    def add(self, start: int, end: int, kind: Kind) -> None:
        """Bytes start to end, not before what was added last; an empty range is nothing."""
        if end <= start:
            return
        if kind is not self._kind or start != self._end:
            self._flush()
            self._start, self._kind = start, kind
        self._end = end

    def extents(self) -> list[Extent]:
        """What was added, when all is in."""
        self._flush()
        return self._found

    def _flush(self) -> None:
        if self._end > self._start:
            self._found.append(Extent(self._start, self._end - self._start, self._kind))
        self._start = self._end


def union(ranges: Iterable[Range]) -> list[Range]:
    """Ascending, overlaps and neighbours merged."""
    found: list[Range] = []
    for part in sorted(ranges, key=lambda r: r.offset):
        if found and part.offset <= found[-1].end:
            if part.end > found[-1].end:
                found[-1] = Range(found[-1].offset, part.end - found[-1].offset)
        else:
            found.append(part)
    return found


def append(ranges: list[Range], part: Range) -> None:
    """Add the next one of ascending ranges; touching ones become one."""
    if ranges and ranges[-1].end == part.offset:
        ranges[-1] = Range(ranges[-1].offset, ranges[-1].length + part.length)
    else:
        ranges.append(part)


def overlap(ranges: Iterable[Range], span: Range) -> int:
    """How many bytes of span ranges (none of them overlapping another) cover."""
    return sum(max(0, min(r.end, span.end) - max(r.offset, span.offset)) for r in ranges)


def check(extents: Sequence[Extent], size: int) -> None:
    """Raises ValueError unless extents are ascending, touching and complete from 0 to size."""
    at = 0
    for extent in extents:
        if extent.offset != at:
            raise ValueError(f"extents do not touch at {at:#x}: {extent}")
        at = extent.end
    if at != size:
        raise ValueError(f"extents end at {at}, the disk at {size}")


def intersection(one: Sequence[Range], two: Sequence[Range]) -> list[Range]:
    """What lies in both. Each is ascending."""
    result = []
    i = j = 0
    while i < len(one) and j < len(two):
        start, end = max(one[i].offset, two[j].offset), min(one[i].end, two[j].end)
        if start < end:
            result.append(Range(start, end - start))
        if one[i].end <= two[j].end:
            i += 1
        else:
            j += 1
    return result


def without(one: Iterable[Range], two: Sequence[Range]) -> list[Range]:
    """What of one does not lie in two. Each is ascending."""
    result = []
    j = 0
    for part in one:
        at = part.offset
        while j < len(two) and two[j].end <= at:
            j += 1
        k = j
        while k < len(two) and two[k].offset < part.end:
            if two[k].offset > at:
                result.append(Range(at, two[k].offset - at))
            at = max(at, two[k].end)
            k += 1
        if at < part.end:
            result.append(Range(at, part.end - at))
    return result
