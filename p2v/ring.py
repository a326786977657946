"""A source's chunks, read and worked on by a few threads, and handed on one by one in their order.

Each thread owns one buffer of CHUNK bytes: it takes the next item, reads and works on it, waits for its
turn and hands the result on itself, while the bytes are still in its core's cache. So memory does not
grow with the disk, whoever takes the results sees them ascending and one at a time, and nothing is
queued. Taking turns at the writer is meant to cost little: a buffered write holds the inode's lock on ext4
and most Linux file systems, so two threads could hardly write into one file at once anyway.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from p2v.model import Extent, Kind, Range

CHUNK = 1 << 20  # bytes: what has one digest, is read at once, and fits a core's cache
GRAIN = 64 << 10  # bytes: what is tested for zero, and the largest gap that is read rather than skipped
STEP = 2 << 30  # bytes: runs of zeroes are handed on in such pieces, or a thousand of them
TICK = 0.1  # seconds between two looks at progress and cancellation

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Item:
    """One chunk of which something is read, or a run of chunks (the last may be short) of which nothing is.

    reads: what is read of the chunk, ascending; empty for a run of zeroes.
    blanks: small gaps inside reads: they are read along, and are zero all the same.
    """

    offset: int
    length: int
    reads: tuple[Range, ...] = ()
    blanks: tuple[Range, ...] = ()

    @property
    def index(self) -> int:
        """The number of its first chunk."""
        return self.offset // CHUNK

    @property
    def pieces(self) -> list[Range]:
        """reads without blanks: exactly what somebody needs."""
        found: list[Range] = []
        blanks = list(self.blanks)
        for span in self.reads:
            at = span.offset
            while blanks and blanks[0].offset < span.end:
                blank = blanks.pop(0)
                found.append(Range(at, blank.offset - at))
                at = blank.end
            found.append(Range(at, span.end - at))
        return found


def items(extents: Iterable[Extent], size: int) -> Iterator[Item]:
    """The work for extents that run from 0 to size: only DATA is read, all else is zero."""
    chunk = _Chunk(size)
    for extent in extents:
        if extent.kind is Kind.BAD:
            chunk.bad_end = extent.end
        if extent.kind is not Kind.DATA:
            continue
        at = extent.offset
        while at < extent.end:
            yield from chunk.move_to(at // CHUNK)
            end = min(extent.end, (at // CHUNK + 1) * CHUNK)
            chunk.add(at, end)
            at = end
    yield from chunk.move_to(-(-size // CHUNK))


def after(work: Iterator[Item], done: int) -> Iterator[Item]:
    """The work from byte done on, which is where a chunk begins, or the end."""
    for item in work:
        if item.offset >= done:
            yield item
        elif item.offset + item.length > done:  # a run of zeroes
            yield Item(done, item.offset + item.length - done)


def in_steps(work: Iterator[Item]) -> Iterator[Item]:
    """The work with long runs of zeroes in pieces: a device that has to write them can be stopped between."""
    for item in work:
        step = max(STEP, item.length // 1024 // CHUNK * CHUNK)
        if item.length <= step:
            yield item
            continue
        end = item.offset + item.length
        yield from (Item(at, min(step, end - at)) for at in range(item.offset, end, step))


class _Chunk:
    """Gathers the reads of one chunk after the other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._index = 0  # everything before this chunk has been handed out
        self._reads: list[tuple[int, int]] = []
        self._blanks: list[Range] = []
        self.bad_end = 0  # where the last BAD extent ended: no gap is read across one

    def add(self, start: int, end: int) -> None:
        """Bytes start to end of the current chunk are to be read."""
        if self._reads:
            first, last = self._reads[-1]
            if start - last <= GRAIN and self.bad_end <= last:
                if start > last:
                    self._blanks.append(Range(last, start - last))
                self._reads[-1] = (first, end)
                return
        self._reads.append((start, end))

    def move_to(self, index: int) -> Iterator[Item]:
        """Hand out what lies before chunk index."""
        if index == self._index:
            return
        if self._reads:
            reads = tuple(Range(start, end - start) for start, end in self._reads)
            yield self._item(self._index, self._index + 1, reads, tuple(self._blanks))
            self._index += 1
            self._reads, self._blanks = [], []
        if index > self._index:
            yield self._item(self._index, index)
            self._index = index

    def _item(
        self, first: int, last: int, reads: tuple[Range, ...] = (), blanks: tuple[Range, ...] = ()
    ) -> Item:
        return Item(first * CHUNK, min(last * CHUNK, self._size) - first * CHUNK, reads, blanks)


Stopped = Callable[[], bool]
Work = Callable[[Item, memoryview, Stopped], Result]
HandOn = Callable[[Item, Result], None]


def in_order(
    work: Iterator[Item], do: Work[Result], hand_on: HandOn[Result], tick: Callable[[], None]
) -> None:
    """do() each item in a few threads at once, then hand_on() its result, ascending, one at a time.

    do(item, buffer, stopped) has a buffer of CHUNK bytes to itself until its result has been handed on;
    stopped() says that nobody wants the result any more. tick() is called in the calling thread every
    TICK seconds. Whatever do, hand_on or tick raises ends the work and is raised from here; no thread is
    left when this returns.
    """
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    ring = _Ring(work, do, hand_on)
    threads = max(2, min(4, os.cpu_count() or 1))  # three on two cores were slower
    with ThreadPoolExecutor(threads, "p2v-copy") as pool:
        try:
            pending = {pool.submit(ring.thread) for _ in range(threads)}
            while pending:
                done, pending = wait(pending, TICK, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                tick()
        finally:
            ring.stop()


class _Ring(Generic[Result]):
    """What the threads share."""

    def __init__(self, work: Iterator[Item], do: Work[Result], hand_on: HandOn[Result]) -> None:
        self._work, self._do, self._hand_on = work, do, hand_on
        self._turn = threading.Condition()
        self._taken = 0  # items handed out so far: an item's ticket
        self._handed_on = 0  # the ticket whose turn it is
        self._stopped = False

    def stop(self) -> None:
        """Every thread leaves at the end of what it is doing."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def thread(self) -> None:
        """Work until nothing is left; an error stops the others too."""
        buffer = memoryview(mmap.mmap(-1, CHUNK))  # page-aligned, as O_DIRECT wants it
        try:
            while self._one(buffer):
                pass
        except BaseException:  # also KeyboardInterrupt: it goes on to the caller through the future
            self.stop()
            raise

    def _one(self, buffer: memoryview) -> bool:
        with self._turn:
            item = None if self._stopped else next(self._work, None)
            ticket = self._taken
            self._taken += 1
        if item is None:
            return False
        try:
            result = self._do(item, buffer, lambda: self._stopped)
        except Exception:
            if self._stopped:  # the echo of another thread's error, which is the one to tell
                return False
            raise
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._handed_on == ticket)
            if self._stopped:
                return False
        self._hand_on(item, result)
        with self._turn:
            self._handed_on += 1
            self._turn.notify_all()
        return True
