"""A mirrored volume: the chosen leg, and where the legs are in step, the other ones' help."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2v.errors import ReadError
from p2v.model import Extent, Range, Source
from p2v.source.ahead import Ahead
from p2v.source.bounds import check_read, failed_range, seen_through
from p2v.source.device import DeviceGone
from p2v.source.ways import Way, add, fill, is_exact

_SKIP = 64 << 10  # bytes: the first stretch behind bad places in which a leg is not asked; it doubles
_LONGEST_SKIP = 1 << 30
_ON_END = 3  # failures without a good read between them: from here on, stretches are skipped


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes of the volume that came from legs[leg], as the leg that should have given them could not. reason: why."""

    range: Range
    leg: int
    reason: str


class Mirrored:
    """The first size bytes of legs[0], the chosen leg.

    in_step: every leg is known to have the same bytes. Then what legs[0] cannot read comes from the next leg,
    and a leg that fails again and again is left alone for a while; except_in lists ranges in which only legs[0]
    counts all the same. Without it no other leg is ever read.
    shared: large reads in a row are read from all legs at once, each giving long runs (needs in_step).
    taken: what came from another leg than it should, ascending, each byte once, with the first reason for it.
    Raises ValueError for legs that are too short, or differ in their sectors' size.
    """

    def __init__(
        self, legs: Sequence[Source], name: str, *, size: int, in_step: bool = False,
        except_in: Sequence[Range] = (), shared: bool = False,
    ) -> None:
        if len({leg.sector_size for leg in legs}) != 1 or min(leg.size for leg in legs) < size or size < 0:
            raise ValueError(f"{name}: legs of at least {size} bytes and one sector size are needed")
        if shared and not in_step:
            raise ValueError(f"{name}: only legs in step can share the reading")
        self.name = name
        self.size = size
        self.sector_size = legs[0].sector_size
        self._legs = [_Leg(leg, size) for leg in legs]
        self._in_step = in_step and len(legs) > 1
        self._alone: list[Range] = []
        for span in except_in:
            add(self._alone, span)
        self._spans: list[Range] = []  # of taken, ascending
        self._said: list[tuple[int, str]] = []  # for each of them: leg and reason
        self._lock = threading.Lock()
        self._ahead = Ahead(self._read, size, len(legs)) if shared and len(legs) > 1 else None
        self._closed = False

    @property
    def taken(self) -> list[Taken]:
        """What came from another leg, and why."""
        with self._lock:
            return [Taken(span, leg, reason) for span, (leg, reason) in zip(self._spans, self._said, strict=True)]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError in the volume's own bytes (DeviceGone where no leg is left)."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        if self._ahead is not None:
            self._ahead.read(offset, buffer)
        elif self._in_step:
            self._read(0, offset, buffer)
        else:
            self._only_first(offset, buffer)

    def extents(self) -> Iterator[Extent]:
        """The chosen leg's own, as far as the volume goes."""
        for extent in self._legs[0].source.extents():
            if extent.offset >= self.size:
                break
            yield Extent(extent.offset, min(extent.end, self.size) - extent.offset, extent.kind)

    def close(self) -> None:
        """The legs stay open."""
        self._closed = True
        if self._ahead is not None:
            self._ahead.close()

    def _only_first(self, offset: int, buffer: memoryview) -> None:
        try:
            self._legs[0].source.read_into(offset, buffer)
        except ReadError as error:
            raise seen_through(error, self.name, offset, len(buffer), 0) from error

    def _read(self, planned: int, offset: int, buffer: memoryview) -> None:
        """Fill buffer from legs[planned], and from the others what it cannot read."""
        todo = [(offset, offset + len(buffer))]  # the last one comes first
        while todo:
            start, end = todo.pop()
            alone, stop = _inside(self._alone, start, end)
            if not alone:
                avoided, stop = _inside(self._legs[planned].avoided, start, stop)
            if stop < end:
                todo.append((stop, end))
            piece = buffer[start - offset : stop - offset]
            if alone:
                self._only_first(start, piece)
            elif avoided:
                self._from_others(planned, start, piece, f"{self._legs[planned].source.name} has failed here or just "
                                  "before, so that it was not asked")
            else:
                todo += self._from_one(planned, start, piece)

    def _from_one(self, planned: int, start: int, piece: memoryview) -> list[tuple[int, int]]:
        """Read a piece from the leg that should have it; what it cannot, from the others.

        Returns what lies beside the range that failed, which is still to be read.
        """
        leg = self._legs[planned]
        try:
            leg.source.read_into(start, piece)
        except ReadError as error:
            bad = failed_range(error, start, len(piece))
            leg.failed(bad, error)
            exact = is_exact(error, bad, len(piece))
            self._from_others(planned, bad.offset, piece[bad.offset - start : bad.end - start], error.what,
                              error if exact else None)
            beside = [(bad.end, start + len(piece)), (start, bad.offset)]
            return [(low, high) for low, high in beside if low < high]
        leg.on_end = 0
        return []

    def _from_others(
        self, planned: int, start: int, piece: memoryview, reason: str, known: ReadError | None = None
    ) -> None:
        """Read a piece from the other legs, and from the planned one what none of them can read.

        known: the planned one's error, where it is known to have nothing of the piece.
        """
        order = [number for number in range(len(self._legs)) if number != planned]
        order += [] if known else [planned]
        ways = [Way(self._legs[number].source, start) for number in order]
        at = start
        for detour in fill(self.name, ways, start, piece, self.sector_size, known):
            self._note(at, start + detour.start, order[0], reason)
            if order[detour.way] != planned:
                self._note(start + detour.start, start + detour.end, order[detour.way], reason)
            at = start + detour.end
        self._note(at, start + len(piece), order[0], reason)

    def _note(self, start: int, end: int, leg: int, reason: str) -> None:
        """Bytes start to end came from leg; what is noted of them already stands."""
        with self._lock:
            while start < end:
                known, stop = _inside(self._spans, start, end)
                if not known:
                    self._insert(Range(start, stop - start), leg, reason)
                start = stop

    def _insert(self, span: Range, leg: int, reason: str) -> None:
        """Bytes that are not noted yet; touching ones of one leg and reason become one."""
        index = bisect_right(self._spans, span.offset, key=lambda r: r.offset)
        self._spans.insert(index, span)
        self._said.insert(index, (leg, reason))
        for left in (index, index - 1):
            both = self._spans[left : left + 2] if left >= 0 else []
            if len(both) == 2 and both[0].end == both[1].offset and self._said[left] == self._said[left + 1]:
                self._spans[left : left + 2] = [Range(both[0].offset, both[0].length + both[1].length)]
                del self._said[left]


class _Leg:
    """A leg, and how far it is trusted. avoided: ranges for which it is asked last, ascending."""

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        self.avoided: list[Range] = []
        self.on_end = 0  # failures since the last good read
        self._size = size
        self._lock = threading.Lock()

    def failed(self, bad: Range, error: ReadError) -> None:
        """bad cannot be read; on a dying disk each further try may cost half a minute."""
        with self._lock:
            self.on_end += 1
            skip = 0
            if self.on_end >= _ON_END:
                skip = min(_SKIP << (self.on_end - _ON_END), _LONGEST_SKIP)
            avoided = list(self.avoided)
            gone = isinstance(error, DeviceGone)
            add(avoided, Range(0, self._size) if gone else Range(bad.offset, bad.length + skip))
            self.avoided = avoided


def _inside(ranges: Sequence[Range], start: int, end: int) -> tuple[bool, int]:
    """Does start lie in one of the ascending ranges, and up to where (at most end) is that so?"""
    index = bisect_right(ranges, start, key=lambda r: r.offset)
    if index and start < ranges[index - 1].end:
        return True, min(end, ranges[index - 1].end)
    return False, min(end, ranges[index].offset) if index < len(ranges) else end
