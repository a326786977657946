"""Bytes that can be had in more than one way: the first that reads, narrowed down to the sectors that do not."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from p2v.errors import ReadError, Where
from p2v.model import Kind, Range, Source
from p2v.source.bounds import BadSectors, failed_range
from p2v.source.device import DeviceGone


class Reads(Protocol):
    """As much of a Source as a way needs."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, or raise ReadError."""


@dataclass(frozen=True, slots=True)
class Way:
    """A place that has the bytes. offset: where the first of them lies in source."""

    source: Reads
    offset: int


@dataclass(frozen=True, slots=True)
class Detour:
    """Bytes start to end of a read came by ways[way], because of what the ways before it said."""

    start: int
    end: int
    way: int
    errors: tuple[ReadError, ...]


@dataclass(frozen=True, slots=True)
class _Vague:
    """ways[way] was asked for start to end, and something in there is bad."""

    way: int
    error: ReadError
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What is still to be had. untried: numbers of ways, best first.

    exact: errors of ways that named just this part, so that asking them again would teach nothing.
    vague: those that did not say which bytes of what they were asked for are bad.
    """

    start: int
    end: int
    untried: tuple[int, ...]
    exact: tuple[tuple[int, ReadError], ...] = ()
    vague: tuple[_Vague, ...] = ()


def fill(
    name: str, ways: Sequence[Way], offset: int, buffer: memoryview, sector: int, known: ReadError | None = None
) -> list[Detour]:
    """Fill buffer, each piece by the first way that can read it; returns where that was not the first way.

    name, offset: of the whole, whose bytes offset to offset + len(buffer) are read. A way that fails is
    asked again for what lies beside the range that it named. Where all fail and none was exact, the range is
    halved, down to one sector: at most some four reads for each sector and way.
    known: what one more way has said of all these bytes; it is not asked again.
    Raises ReadError in the whole's own bytes for the first range that no way can read (DeviceGone where all
    of them are gone).
    """
    detours: list[Detour] = []
    exact = ((-1, known),) if known else ()
    todo = [_Part(0, len(buffer), tuple(range(len(ways))), exact)]  # the last one comes first
    while todo:
        part = todo.pop()
        if part.start == part.end:
            continue
        if not part.untried:
            todo += _halves(name, part, offset, sector)
            continue
        index = part.untried[0]
        way = ways[index]
        at = way.offset + part.start
        try:
            way.source.read_into(at, buffer[part.start : part.end])
        except ReadError as error:
            bad = failed_range(error, at, part.end - part.start)
            todo += _beside(part, bad.offset - way.offset, bad.end - way.offset, error,
                            is_exact(error, bad, part.end - part.start))
        else:
            if index:
                detours.append(Detour(part.start, part.end, index, _errors(part)))
    return detours


def is_exact(error: ReadError, bad: Range, length: int) -> bool:
    """Did a source that was asked for length bytes say which of them are bad, or just that some of them are?"""
    return bad.length < length or isinstance(error, BadSectors)


def _beside(part: _Part, start: int, end: int, error: ReadError, exact: bool) -> Iterator[_Part]:
    """Its first way cannot read start to end: that is for the next way. Last comes what is read first."""
    index, rest = part.untried[0], part.untried[1:]
    yield replace(part, start=end)
    if exact:
        yield replace(part, start=start, end=end, untried=rest, exact=(*part.exact, (index, error)))
    else:
        yield replace(part, start=start, end=end, untried=rest, vague=(*part.vague, _Vague(index, error, start, end)))
    yield replace(part, end=start)


def _halves(name: str, part: _Part, offset: int, sector: int) -> list[_Part]:
    """No way reads all of a part. It again, for ways that were asked for more than it, or its halves."""
    asked_for_more = tuple(v.way for v in part.vague if v.end - v.start > part.end - part.start)
    if asked_for_more:
        return [replace(part, untried=asked_for_more, vague=tuple(v for v in part.vague
                                                                  if v.way not in asked_for_more))]
    first, last = (offset + part.start) // sector, (offset + part.end - 1) // sector
    if first == last or not part.vague:
        raise _none_reads(name, Range(offset + part.start, part.end - part.start), _errors(part))
    middle = (first + last + 1) // 2 * sector - offset
    both = replace(part, untried=tuple(sorted(v.way for v in part.vague)), vague=())
    return [replace(both, start=middle), replace(both, end=middle)]


def _errors(part: _Part) -> tuple[ReadError, ...]:
    said = [*part.exact, *((v.way, v.error) for v in part.vague)]
    return tuple(error for _, error in sorted(said, key=lambda pair: pair[0]))


def _none_reads(name: str, bad: Range, errors: Sequence[ReadError]) -> ReadError:
    kind = DeviceGone if all(isinstance(error, DeviceGone) for error in errors) else BadSectors
    why = "; ".join(f"{error.what} ({error.where})" for error in errors)
    return kind(f"{name}: {bad.length} bytes cannot be read", Where(name, bad.offset, bad.length), why,
                errors[-1].next)


def add(ranges: list[Range], part: Range) -> None:
    """Put part into ascending ranges that do not touch; it may overlap them."""
    first = bisect_left(ranges, part.offset, key=lambda r: r.end)
    last = first
    start, end = part.offset, part.end
    while last < len(ranges) and ranges[last].offset <= end:
        start, end = min(start, ranges[last].offset), max(end, ranges[last].end)
        last += 1
    ranges[first:last] = [Range(start, end - start)]


def common_zeroes(members: Sequence[Source]) -> list[tuple[int, int]]:
    """(start, end) of what all members call ZERO, ascending."""
    common: list[tuple[int, int]] | None = None
    for member in members:
        mine = [(e.offset, e.end) for e in member.extents() if e.kind is Kind.ZERO]
        common = mine if common is None else list(_both(common, mine))
    return common or []


def _both(one: Sequence[tuple[int, int]], two: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    i = j = 0
    while i < len(one) and j < len(two):
        start, end = max(one[i][0], two[j][0]), min(one[i][1], two[j][1])
        if start < end:
            yield start, end
        if one[i][1] <= two[j][1]:
            i += 1
        else:
            j += 1
