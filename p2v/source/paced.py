"""A source that is read no faster than told, so that a server in use stays usable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from p2v.model import Extent, Source


class Paced:
    """The source itself, at no more than rate bytes a second on average since the first read."""

    def __init__(
        self, source: Source, rate: int, *,
        clock: Callable[[], float] = time.monotonic, wait: Callable[[float], object] = time.sleep,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"no rate: {rate}")
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self._source, self._rate = source, rate
        self._clock, self._wait = clock, wait
        self._lock = threading.Lock()
        self._ready = 0.0  # when the next read may begin

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """As the source does, after a wait where it would be too fast."""
        self.pause(len(buffer))
        self._source.read_into(offset, buffer)

    def pause(self, length: int) -> None:
        """Wait until length bytes more may be read."""
        with self._lock:
            now = self._clock()
            begin = max(self._ready, now)
            self._ready = begin + length / self._rate
        if begin > now:
            self._wait(begin - now)

    def extents(self) -> Iterable[Extent]:
        """As the source says."""
        return self._source.extents()

    def close(self) -> None:
        """Close the source."""
        self._source.close()
