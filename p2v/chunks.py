"""Reads a source's chunks in a thread of its own, a few ahead of whoever takes them.

For sources that are read beside others: one that hangs holds up nobody who has stopped it. Memory is a fixed
number of buffers.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from p2v.careful import Careful, Interrupted, fill
from p2v.errors import ReadError
from p2v.model import Range, Source
from p2v.ring import CHUNK, TICK, Item

DEPTH = 4  # buffers
PATIENCE = 2.0  # seconds for a read that is under way when nobody wants it any more


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was read of an item: a full chunk's buffer, zero where nothing is read; bad: what is unreadable."""

    item: Item
    buffer: memoryview
    bad: Sequence[Range] = ()


class ChunkReader:
    """One source being read. work: ascending; runs of which nothing is read are left out."""

    def __init__(self, source: Source, work: Iterable[Item], depth: int = DEPTH) -> None:
        self._source, self._work = source, work
        self._careful = Careful(source)
        self._stopped = False
        self._ready: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        for _ in range(depth):
            self._buffers.put(memoryview(mmap.mmap(-1, CHUNK)))  # page-aligned, as O_DIRECT wants it
        self._thread = threading.Thread(target=self._run, name=f"p2v-chunks {source.name}", daemon=True)
        self._thread.start()

    def take(self, tick: Callable[[], None]) -> Chunk | None:
        """The next chunk, to be given back; None after the last.

        tick: called while there is none yet; what it raises is raised. Raises what reading raised: DeviceGone.
        """
        while True:
            try:
                found = self._ready.get(timeout=TICK)
            except queue.Empty:
                tick()
                continue
            if isinstance(found, BaseException):
                raise found
            return found

    def give_back(self, chunk: Chunk) -> None:
        """Its buffer may be filled again."""
        self._buffers.put(chunk.buffer)

    def stop(self, patience: float = PATIENCE) -> bool:
        """Read no more. Returns whether the thread has ended; after patience seconds it is left to itself."""
        self._stopped = True
        self._buffers.put(None)
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for item in self._work:
                if not item.reads:
                    continue
                buffer = self._buffers.get()
                if self._stopped or buffer is None:
                    return
                self._ready.put(Chunk(item, buffer, self._read(item, buffer)))
            self._ready.put(None)
        except BaseException as error:  # take() raises it; after stop() nobody asks
            self._ready.put(error)

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
