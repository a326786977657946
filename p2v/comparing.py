"""Reads the legs of a mirror at once, and says where they differ and what of each cannot be read.

Only such a comparison shows that two legs are equal: what a volume manager counts shows that they should be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from p2v.chunks import Chunk, ChunkReader
from p2v.errors import Cancelled, Where
from p2v.extents import Merger, check, intersection, union
from p2v.model import SECTOR, Cancel, Extent, Kind, Progress, Range, Source, no_progress
from p2v.ring import CHUNK, items
from p2v.source.device import DeviceGone

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 1 << 16  # ranges that are kept one by one; of more, those near to each other are taken together


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the legs of a mirror have in common. Ranges are ascending and do not touch.

    names: of the legs, the chosen one first. compared: bytes that two legs could read. differences: where two
    legs that can both be read do not hold the same, in sectors; different: how many bytes that is. unreadable: of
    each leg, in sectors. grain: bytes; so close to each other, ranges were taken together (0 for none), and then
    say more than is so. left: what was not compared, because a leg went away or was given up, or beside a copy
    because so much differs that a part of it tells enough.
    """

    size: int
    names: tuple[str, ...]
    compared: int
    differences: tuple[Range, ...] = field(repr=False)
    different: int
    unreadable: tuple[tuple[Range, ...], ...] = field(repr=False)
    grain: int = 0
    left: tuple[Range, ...] = ()

    @property
    def equal(self) -> bool:
        """Was all compared that was wanted, and no difference found?"""
        return self.compared > 0 and not self.left and not self.differences

    @property
    def in_none(self) -> tuple[Range, ...]:
        """What no leg could read."""
        found = list(self.unreadable[0])
        for one in self.unreadable[1:]:
            found = intersection(found, one)
        return tuple(found)


def compare(
    legs: Sequence[Source],
    *,
    size: int | None = None,
    names: Sequence[str] = (),
    extents: Sequence[Extent] | None = None,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
    patience: float | None = None,
) -> Comparison:
    """Compare legs, byte by byte. Each is read once, in a thread of its own, all at the same time.

    legs: two or more, the chosen one first. size: bytes, of the volume: a leg may be longer. names: of the legs,
    if they have better ones than their sources. extents: from 0 to size; DATA alone is compared; without them all
    that is not a hole in every leg. patience: seconds in which something must arrive; None waits for ever.
    Raises DeviceGone when a leg seems gone or patience is over, Cancelled. Memory does not grow with the size.
    """
    if len(legs) < 2:
        raise ValueError("one leg has nothing to be compared with")
    whole = min(leg.size for leg in legs) if size is None else size
    shown = list(extents) if extents is not None else _not_holes(legs, whole)
    check(shown, whole)
    total = sum(extent.length for extent in shown if extent.kind is Kind.DATA)
    found = _Found(len(legs))

    def tick() -> None:
        progress("compare", found.seen, total)
        if patience is not None and time.monotonic() - found.when > patience:
            raise hanging(legs[0].name, patience)
        if cancel is not None and cancel.is_set():
            raise Cancelled("the comparison was stopped", Where(legs[0].name),
                            f"you asked for it; {found.seen} of {total} bytes were compared", "start it again")

    readers = [ChunkReader(leg, items(shown, whole)) for leg in legs]
    try:
        _together(readers, found, tick)
    finally:
        for reader in readers:
            reader.stop()
    return found.result(whole, tuple(names) or tuple(leg.name for leg in legs))


def _together(readers: Sequence[ChunkReader], found: _Found, tick: Callable[[], None]) -> None:
    tick()
    while True:
        chunks = [chunk for reader in readers if (chunk := reader.take(tick)) is not None]
        if not chunks:
            break
        found.add(chunks)
        for reader, chunk in zip(readers, chunks, strict=True):
            reader.give_back(chunk)
        tick()


def _not_holes(legs: Iterable[Source], size: int) -> list[Extent]:
    """DATA where any leg holds anything."""
    held = union(Range(e.offset, min(e.end, size) - e.offset) for leg in legs for e in leg.extents()
                 if e.kind is not Kind.ZERO and e.offset < size)
    return data_of(held, size)


def data_of(ranges: Iterable[Range], size: int, gaps: Kind = Kind.FREE) -> list[Extent]:
    """Extents from 0 to size: DATA in ranges (ascending, not overlapping), gaps elsewhere."""
    found, at = Merger(), 0
    for span in ranges:
        found.add(at, span.offset, gaps)
        found.add(span.offset, span.end, Kind.DATA)
        at = span.end
    found.add(at, size, gaps)
    return found.extents()


def hanging(name: str, patience: float) -> DeviceGone:
    """The error for a leg that neither answers nor fails."""
    return DeviceGone("a leg of the mirror does not answer", Where(name),
                      f"nothing was read for {patience:.0f} seconds",
                      "check power and cables of its disk; --single-leg leaves the other leg alone")


class Bounded:
    """Ascending ranges, as many as there may be: when they become too many, near ones are taken together."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self.ranges: list[Range] = []
        self.grain = 0

    def add(self, part: Range) -> None:
        """The next one."""
        last = self.ranges[-1] if self.ranges else None
        if last is not None and part.offset <= last.end + self.grain:
            self.ranges[-1] = Range(last.offset, part.end - last.offset)
            return
        self.ranges.append(part)
        while len(self.ranges) > self._most:
            self.grain = max(2 * self.grain, SECTOR)
            before, self.ranges = self.ranges, []
            for one in before:
                self.add(one)


class _Found:
    """What comes of one chunk of all legs after the other."""

    def __init__(self, count: int) -> None:
        self._differences = Bounded()
        self._unreadable = [Bounded() for _ in range(count)]
        self._compared = self._different = 0
        self.seen, self.when = 0, time.monotonic()

    def add(self, chunks: Sequence[Chunk]) -> None:
        """One chunk, as each leg has it."""
        item = chunks[0].item
        wanted = sum(piece.length for piece in item.pieces)
        self.seen, self.when = self.seen + wanted, time.monotonic()
        self._compared += wanted
        words = [np.frombuffer(chunk.buffer, np.uint64) for chunk in chunks]
        if any(chunk.bad for chunk in chunks):
            for bounded, chunk in zip(self._unreadable, chunks, strict=True):
                for part in chunk.bad:
                    bounded.add(part)
        elif all(np.array_equal(words[0], one) for one in words[1:]):
            return
        bad = [_sectors(chunk) for chunk in chunks]
        alone = len(chunks) - sum(mask.astype(np.uint8) for mask in bad) < 2
        self._compared -= int(np.count_nonzero(alone)) * SECTOR
        differ = np.zeros(CHUNK // SECTOR, np.bool_)
        for (one, one_bad), (two, two_bad) in combinations(zip(words, bad, strict=True), 2):
            sectors = (one != two).reshape(CHUNK // SECTOR, -1).any(axis=1)
            differ |= sectors & ~(one_bad | two_bad)
        for start, end in _runs(differ, self._differences.grain // SECTOR):
            low, high = item.offset + start * SECTOR, item.offset + min(end * SECTOR, item.length)
            self._differences.add(Range(low, high - low))
        overhang = -item.length % SECTOR if differ[(item.length - 1) // SECTOR] else 0
        self._different += int(np.count_nonzero(differ)) * SECTOR - overhang

    def result(self, size: int, names: tuple[str, ...]) -> Comparison:
        """When all is read."""
        lists = [self._differences, *self._unreadable]
        return Comparison(size, names, max(self._compared, 0), tuple(self._differences.ranges),
                          self._different, tuple(tuple(one.ranges) for one in self._unreadable),
                          max(one.grain for one in lists))


def _sectors(chunk: Chunk) -> NDArray[np.bool_]:
    """Which sectors of a chunk are unreadable."""
    mask = np.zeros(CHUNK // SECTOR, np.bool_)
    for part in chunk.bad:
        mask[(part.offset - chunk.item.offset) // SECTOR : -(-(part.end - chunk.item.offset) // SECTOR)] = True
    return mask


def _runs(mask: NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """(first, end) of each run that is set; runs no further than gap apart are one."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    apart = starts[1:] - ends[:-1] > gap
    first, last = np.append(True, apart), np.append(apart, True)
    if not len(starts):
        return []
    return list(zip(starts[first].tolist(), ends[last].tolist(), strict=True))


def cut(comparison: Comparison, span: Range) -> Comparison:
    """What a comparison says of a part, in that part's own bytes; compared stays what it was, at most all of it."""

    def inside(ranges: Iterable[Range]) -> tuple[Range, ...]:
        return tuple(Range(part.offset - span.offset, part.length) for part in intersection(list(ranges), [span]))

    differences = inside(comparison.differences)
    return replace(
        comparison, size=span.length, differences=differences, left=inside(comparison.left),
        different=min(comparison.different, sum(part.length for part in differences)),
        compared=min(comparison.compared, span.length), unreadable=tuple(map(inside, comparison.unreadable)))
