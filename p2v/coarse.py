"""A leg that is read while another leg may have what it lacks: bad places are left at once, not searched.

Down to the last good sector a failing disk is only read where the other leg cannot help (filling.py). That spares
it most of the reads that a rescue of it alone needs.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Sequence

from p2v.errors import ReadError, Where
from p2v.model import Extent, Range, Source
from p2v.rescue import BLOCK, Once
from p2v.source.device import DeviceGone
from p2v.source.ways import add

ON_END = 3  # blocks that fail one behind the other: from here on, stretches are left out untried …
SKIP = BLOCK  # bytes: … the first one as long as this, each next one twice as long
LONGEST_SKIP = 1 << 30


class Coarse:
    """A source that fails by blocks of BLOCK bytes, each read once at most, and leaves out what lies behind bad ones.

    What it calls unreadable may be readable in part.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self._source, self._once = source, Once(source)
        self._bad: list[Range] = []  # replaced as a whole; ascending, not touching
        self._on_end = 0
        self._lock = threading.Lock()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError naming the first range that is given up, DeviceGone."""
        if self._first(offset, len(buffer)) is None:
            try:
                self._once.read_into(offset, buffer)
            except DeviceGone:
                raise
            except ReadError:
                with self._lock:
                    self._look(offset, buffer)
            else:
                self._on_end = 0
                return
        bad = self._first(offset, len(buffer))
        if bad is None:  # the blocks could be read one by one
            self._once.read_into(offset, buffer)
            return
        raise ReadError(f"{self.name} cannot be read", Where(self.name, bad.offset, bad.length),
                        "the medium is damaged somewhere there; it is left in peace for the time being",
                        "take it from the other leg, or rescue the disk")

    def extents(self) -> Iterable[Extent]:
        """As the source says."""
        return self._source.extents()

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _first(self, offset: int, length: int) -> Range | None:
        """The first range of a read that is given up."""
        return first_inside(self._bad, offset, length)

    def _look(self, offset: int, buffer: memoryview) -> None:
        """Try the blocks of a read that failed."""
        end, at = offset + len(buffer), offset
        while at < end:
            stop = min(at // BLOCK * BLOCK + BLOCK, end)
            given_up = self._first(at, stop - at)
            if given_up is not None:
                at = given_up.end
                continue
            try:
                self._once.read_into(at, buffer[at - offset : stop - offset])
                self._on_end = 0
            except DeviceGone:
                raise
            except ReadError:
                self._give_up(at, stop)
            at = stop

    def _give_up(self, start: int, end: int) -> None:
        self._on_end += 1
        skip = min(SKIP << (self._on_end - ON_END), LONGEST_SKIP) if self._on_end >= ON_END else 0
        bad = list(self._bad)
        add(bad, Range(start, min(end + skip, self.size) - start))
        self._bad = bad


def first_inside(ranges: Sequence[Range], offset: int, length: int) -> Range | None:
    """The first of ascending ranges that a read touches, cut to the read."""
    index = bisect.bisect_right(ranges, offset, key=lambda one: one.end)
    if index == len(ranges) or ranges[index].offset >= offset + length:
        return None
    start, end = max(ranges[index].offset, offset), min(ranges[index].end, offset + length)
    return Range(start, end - start)
