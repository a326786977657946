"""Reads a source's chunks in threads of its own, a few ahead of whoever takes them.

For sources that are read beside others: one that hangs holds up nobody who has stopped it. Memory is a fixed
number of buffers.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2v.careful import Careful, Interrupted, fill
from p2v.errors import ReadError
from p2v.model import Range, Source
from p2v.ring import CHUNK, TICK, Item

THREADS = 2  # so that the device always has something to do
DEPTH = 6  # buffers
PATIENCE = 2.0  # seconds for reads that are under way when nobody wants them any more


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was read of an item: a full chunk's buffer, zero where nothing is read; bad: what is unreadable."""

    item: Item
    buffer: memoryview
    bad: Sequence[Range] = ()


class ChunkReader:
    """One source being read. work: ascending; runs of which nothing is read are left out."""

    def __init__(self, source: Source, work: Iterable[Item]) -> None:
        self._source = source
        self._work = (item for item in work if item.reads)
        self._careful = Careful(source)
        self._buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(DEPTH):
            self._buffers.put(memoryview(mmap.mmap(-1, CHUNK)))  # page-aligned, as O_DIRECT wants it
        self._turn = threading.Condition()
        self._ready: dict[int, Chunk | BaseException | None] = {}  # by their number; None: there is none
        self._begun = self._taken = 0  # numbers of the next to be read, and to be taken
        self._stopped = False
        self._threads = [threading.Thread(target=self._run, name=f"p2v-chunks {source.name}", daemon=True)
                         for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def take(self, tick: Callable[[], None]) -> Chunk | None:
        """The next chunk, to be given back; None after the last.

        tick: called while there is none yet; what it raises is raised. Raises what reading raised: DeviceGone.
        """
        while True:
            with self._turn:
                if self._turn.wait_for(lambda: self._taken in self._ready, TICK):
                    found = self._ready[self._taken]
                    if isinstance(found, BaseException):
                        raise found
                    if found is not None:
                        del self._ready[self._taken]
                        self._taken += 1
                    return found
            tick()

    def give_back(self, chunk: Chunk) -> None:
        """Its buffer may be filled again."""
        self._buffers.put(chunk.buffer)

    def stop(self) -> None:
        """Read no more. Threads that hang in a read are left to themselves after PATIENCE seconds."""
        self._stopped = True
        for _ in self._threads:
            self._buffers.put(memoryview(b""))
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while not self._stopped:
            buffer = self._buffers.get()
            with self._turn:
                number = self._begun
                self._begun += 1
                item = None if self._stopped else next(self._work, None)
            found: Chunk | BaseException | None = None
            if item is not None:
                try:
                    found = Chunk(item, buffer, self._read(item, buffer))
                except BaseException as error:  # take() raises it; after stop() nobody asks
                    found = error
            with self._turn:
                self._ready[number] = found
                self._turn.notify_all()
            if not isinstance(found, Chunk):
                return

    def _read(self, item: Item, buffer: memoryview) -> Sequence[Range]:
        """Fill buffer; returns what is unreadable, down to sectors."""
        try:
            fill(self._source, item, buffer)
        except ReadError:
            if self._stopped:
                raise Interrupted from None
            return self._careful.fill(item, buffer, lambda: self._stopped)
        self._careful.note(item)
        return ()
