"""Reads ahead on several equal legs at once, so that a reader who goes straight on gets the speed of all.

A copy asks for one chunk of 1 MiB after the other, two or four at once. Were the chunks dealt out one by one, each
disk would read a MiB and skip a MiB, and skipping takes a disk about as long. So the legs take turns in runs of
8 MiB, and as no reader asks that far ahead, a thread per leg does, into at most 24 MiB of memory. How far it reads
ahead grows with what was read on end, so that at most as much is read in vain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from p2v.errors import ReadError

UNIT = 1 << 20  # bytes: what is read at once, as much as a copy's chunk
RUN = 8  # units that a leg reads on end
LARGE = UNIT // 2  # bytes: a smaller read does not count as going on
_BACK = 4  # units: readers in several threads do not ask quite in order

Read = Callable[[int, int, memoryview], None]
"""read(leg, offset, buffer): from this leg, as far as it can. Raises ReadError."""


class Ahead:
    """Reads ahead on legs of size bytes."""

    def __init__(self, read: Read, size: int, legs: int) -> None:
        self._read, self._size, self._legs = read, size, legs
        self._pools: list[ThreadPoolExecutor] = []
        self._lock = threading.Lock()
        self._units: dict[int, Future[memoryview]] = {}  # asked for, and perhaps there
        self._front = 0  # the unit behind the furthest that a reader has asked for
        self._on_end = 0  # units that were read one behind the other
        self._closed = False

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError."""
        done, seen = 0, 0
        while done < len(buffer):
            if done >= seen:
                seen = min(done + RUN * UNIT, len(buffer))
                self._look_ahead(offset + done, seen - done)
            unit, inside = divmod(offset + done, UNIT)
            piece = buffer[done : done + UNIT - inside]
            if not self._from_memory(unit, inside, piece):
                self._read(self._leg(unit), offset + done, piece)
            done += len(piece)

    def close(self) -> None:
        """No thread is left when this returns."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, []
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        self._units.clear()

    def _leg(self, unit: int) -> int:
        return unit // RUN % self._legs

    def _from_memory(self, unit: int, inside: int, piece: memoryview) -> bool:
        with self._lock:
            waiting = self._units.get(unit)
        if waiting is None:
            return False
        try:
            piece[:] = waiting.result()[inside : inside + len(piece)]
        except (ReadError, CancelledError):  # then just what is asked for may still be readable
            return False
        return True

    def _look_ahead(self, offset: int, length: int) -> None:
        """Have the legs read what this read needs and, if it goes on where others ended, what comes next."""
        if length < LARGE:
            return
        first, last = offset // UNIT, (offset + length - 1) // UNIT
        with self._lock:
            goes_on = self._front - _BACK <= first <= self._front + _BACK
            if goes_on:
                self._on_end += max(0, last + 1 - self._front)
                self._front = max(self._front, last + 1)
            else:
                self._on_end, self._front = last + 1 - first, last + 1
            end = min(self._front + min(self._on_end, RUN * self._legs), -(-self._size // UNIT))
            for unit in [unit for unit in self._units if not first - _BACK <= unit < end]:
                self._units.pop(unit).cancel()
            if goes_on and not self._closed:
                self._ask(range(first, end))

    def _ask(self, wanted: range) -> None:
        if not self._pools:
            self._pools = [ThreadPoolExecutor(1, "p2v-leg") for _ in range(self._legs)]
        for unit in wanted:
            if unit not in self._units:
                self._units[unit] = self._pools[self._leg(unit)].submit(self._fetch, unit)

    def _fetch(self, unit: int) -> memoryview:
        buffer = memoryview(bytearray(min(UNIT, self._size - unit * UNIT)))
        self._read(self._leg(unit), unit * UNIT, buffer)
        return buffer
