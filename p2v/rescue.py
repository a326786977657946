"""Reads a failing disk: what is easy first, bad places later and ever more carefully.

The phases are GNU ddrescue's: copying in blocks with growing skips behind each failure, from both sides;
trimming the edges of what failed; scraping its inside sector by sector; then retries. Each sector is read at
most twice before the retries: once in a block, once alone. Source: the manual of GNU ddrescue 1.27,
"Algorithm"; the reads are counted against ddrescue's own in tests/test_rescue.py.
"""

from __future__ import annotations

import bisect
import mmap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from p2v.careful import Pulse
from p2v.errors import ReadError, Where
from p2v.extents import union
from p2v.mapfile import Activity, Block, Mapfile, Status
from p2v.model import Extent, Range, Source
from p2v.source.device import DeviceGone

BLOCK = 64 << 10  # bytes: what the copying phase reads at once
PASSES = 5  # of the copying phase; the last one skips nothing
SLOW = 10  # times the usual duration of a read: then the disk is busy with its own repairs
BLINK = 0.1  # seconds: no read that is faster is slow
PATIENCE = 128  # reads on end that fail, before asking whether the disk is still there: bad areas are long
_LONGEST_SKIP = 1 << 30

Take: TypeAlias = Callable[[int, memoryview], None]
"""take(offset, data): bytes that could be read, at any place, in any order, each place once."""


@runtime_checkable
class Attempting(Protocol):
    """A source that can be asked for one try: no second one, no search for the bad sector."""

    def attempt(self, offset: int, buffer: memoryview, direct: bool = True) -> int:
        """The bytes at the start of buffer that were read before the medium failed. Raises DeviceGone.

        direct: past the page cache, whole sectors.
        """


def attempt(source: Source, offset: int, buffer: memoryview) -> int:
    """One try. Returns how many bytes at the start of buffer are good. Raises DeviceGone."""
    if isinstance(source, Attempting):
        return source.attempt(offset, buffer)
    try:
        source.read_into(offset, buffer)
    except DeviceGone:
        raise
    except ReadError:
        return 0
    return len(buffer)


class Once:
    """A source whose reads are tried once: where one fails nothing is searched for."""

    def __init__(self, source: Source) -> None:
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self._source = source

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, or raise ReadError at the first failure."""
        if not isinstance(self._source, Attempting):
            self._source.read_into(offset, buffer)
            return
        done = 0
        while done < len(buffer):
            good = self._source.attempt(offset + done, buffer[done:], direct=False)
            if not good:
                raise ReadError(f"{self.name} cannot be read", Where(self.name, offset + done, len(buffer) - done),
                                "the medium is damaged somewhere there", "rescue it")
            done += good

    def extents(self) -> Iterable[Extent]:
        """As the source says."""
        return self._source.extents()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class Rescue:
    """Fills the map of a disk; whatever can be read goes to take().

    domain: what is wanted of the disk; the rest of the map stays as it is. chart: the map, gone on with where
    it is. retries: of what stays bad. tick: called before each read, and may raise to stop.
    """

    def __init__(
        self,
        source: Source,
        domain: Sequence[Range],
        chart: Mapfile,
        take: Take,
        *,
        retries: int = 0,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._chart, self._take = source, chart, take
        self._retries, self._tick, self._clock = retries, tick, clock
        self._sector = source.sector_size
        self._domain = union(_rounded(span, self._sector, source.size) for span in domain)
        self._ends = [span.end for span in self._domain]
        self._buffer = memoryview(mmap.mmap(-1, BLOCK))  # page-aligned, as O_DIRECT wants it
        self._pulse = Pulse(source, PATIENCE)
        self._usual: deque[float] = deque(maxlen=65)
        self._is_slow = False
        self.reads = 0

    @property
    def stage(self) -> str:
        """What is being done, in words."""
        words = {Activity.COPYING: f"copy, pass {self._chart.passes}", Activity.TRIMMING: "trim the bad areas",
                 Activity.SCRAPING: "scrape the bad areas", Activity.RETRYING: f"retry, pass {self._chart.passes}"}
        return f"rescue: {words.get(self._chart.activity, 'done')}"

    def run(self) -> None:
        """All phases. Raises DeviceGone when the disk is gone: the map then says what is left."""
        first = self._chart.passes if self._chart.activity is Activity.COPYING else 1
        for number in range(min(first, PASSES), PASSES + 1):
            self._pass(number)
        self._begin(Activity.TRIMMING, 1)
        for block in self._blocks(Status.NON_TRIMMED):
            self._trim(block)
        self._begin(Activity.SCRAPING, 1)
        for block in self._blocks(Status.NON_SCRAPED):
            for at in range(block.offset, block.end, self._sector):
                self._alone(at)
        for number in range(1, self._retries + 1):
            self._begin(Activity.RETRYING, number)
            self._retry(forward=number % 2 == 1)
        self._chart.activity = Activity.DONE

    def left(self) -> int:
        """Bytes of the domain that are not read yet and were not given up."""
        return sum(block.length for span in self._domain for block in self._chart.blocks(span.offset, span.end)
                   if block.status not in (Status.FINISHED, Status.BAD))

    def lost(self) -> int:
        """Bytes of the domain that could not be read so far."""
        return sum(block.length for span in self._domain for block in self._chart.blocks(span.offset, span.end)
                   if block.status not in (Status.FINISHED, Status.NON_TRIED))

    # -- copying

    def _pass(self, number: int) -> None:
        """Odd passes go forward, even ones backward, so that a bad zone is closed in from both sides."""
        self._begin(Activity.COPYING, number)
        forward, skips = number % 2 == 1, number < PASSES
        first = -(-max(BLOCK, self._source.size // 100_000) // BLOCK) * BLOCK
        most = min(max(self._source.size // 100 // BLOCK * BLOCK, first), _LONGEST_SKIP)
        at, skip = 0 if forward else self._source.size, first
        while block := self._next(at, forward):
            good = self._block(block)
            at = block.end if forward else block.offset
            if good and not (self._is_slow and number <= 2):
                skip = first
            elif skips:
                at += skip if forward else -skip
                skip = min(skip * 2, most)

    def _next(self, at: int, forward: bool) -> Block | None:
        """The next block to read from at on, or before it."""
        index = bisect.bisect_right(self._ends, at)
        if forward:
            for number in range(index, len(self._domain)):  # no slice: it would be copied for each block
                span = self._domain[number]
                found = self._chart.find(Status.NON_TRIED, max(at, span.offset), span.end)
                if found:
                    return Block(found.offset, min(found.length, BLOCK), found.status)
            return None
        for number in range(min(index, len(self._domain) - 1), -1, -1):
            span = self._domain[number]
            if span.offset < at:
                found = self._chart.find_last(Status.NON_TRIED, span.offset, min(at, span.end))
                if found:
                    length = min(found.length, BLOCK)
                    return Block(found.end - length, length, found.status)
        return None

    def _block(self, block: Block) -> bool:
        """Read one; is all of it good?"""
        good = self._read(block.offset, block.length)
        rest = block.length - good
        if rest:
            alone = rest <= self._sector
            self._chart.set(block.offset + good, rest, Status.BAD if alone else Status.NON_TRIMMED)
        return not rest

    # -- the careful phases

    def _trim(self, block: Block) -> None:
        """Single sectors from both edges inwards, up to the first bad one each."""
        start, end = block.offset, block.end
        while start < end:
            start += self._sector
            if not self._alone(start - self._sector):
                break
        while end > start:
            end -= self._sector
            if not self._alone(end):
                break
        if end > start:
            self._chart.set(start, end - start, Status.NON_SCRAPED)

    def _retry(self, *, forward: bool) -> None:
        blocks = list(self._blocks(Status.BAD))
        for block in blocks if forward else reversed(blocks):
            places = range(block.offset, block.end, self._sector)
            for at in places if forward else reversed(places):
                self._alone(at)

    def _alone(self, at: int) -> bool:
        """Read one sector; is it good?"""
        length = min(self._sector, self._source.size - at)
        good = self._read(at, length) == length
        if not good:
            self._chart.set(at, length, Status.BAD)
        return good

    def _read(self, offset: int, length: int) -> int:
        """How many bytes from offset on are good; they are finished then."""
        self._chart.position = offset
        self._tick()
        buffer = self._buffer[:length]
        begun = self._clock()
        self.reads += 1
        good = attempt(self._source, offset, buffer)
        if good < length:
            good -= good % self._sector
        if good:
            self._time(self._clock() - begun)
            self._pulse.good(offset)
            self._chart.set(offset, good, Status.FINISHED)
            self._take(offset, buffer[:good])
        else:
            self._pulse.lost(offset, length)
        return good

    def _time(self, seconds: float) -> None:
        """Was this read much slower than most?"""
        usual = sorted(self._usual)[len(self._usual) // 2] if self._usual else seconds
        self._is_slow = seconds > max(SLOW * usual, BLINK)
        if not self._is_slow:
            self._usual.append(seconds)

    def _begin(self, activity: Activity, number: int) -> None:
        self._chart.activity, self._chart.passes = activity, number

    def _blocks(self, status: Status) -> Iterator[Block]:
        """Whole blocks of a status in the domain, ascending; they may change while they are gone through."""
        for span in self._domain:
            at = span.offset
            while found := self._chart.find(status, at, span.end):
                yield found
                at = found.end


def _rounded(span: Range, sector: int, size: int) -> Range:
    """To whole sectors: less cannot be read."""
    start, end = span.offset // sector * sector, min(-(-span.end // sector) * sector, size)
    return Range(start, end - start)
