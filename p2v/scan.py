"""A chunk in memory: which of its grains hold anything, and its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from p2v.digests import digest_of
from p2v.model import Range
from p2v.ring import CHUNK, GRAIN, Item

if TYPE_CHECKING:
    import numpy.typing


class Scan:
    """digest None: all is zero. bad: what of it could not be read."""

    __slots__ = ("bad", "buffer", "digest", "length", "live")

    def __init__(self, item: Item, buffer: memoryview, bad: Sequence[Range] = ()) -> None:
        self.buffer, self.length, self.bad = buffer, item.length, bad
        self.live = live(buffer)
        self.digest = digest_of(buffer[: item.length]) if any(self.live) else None

    def runs(self) -> Iterator[tuple[int, int, bool]]:
        """(start, end, live), ascending: bytes of the chunk in whole grains, the last one cut short."""
        if all(self.live):
            yield 0, self.length, True
            return
        start = 0
        for grain in range(1, -(-self.length // GRAIN)):
            if self.live[grain] != self.live[grain - 1]:
                yield start, grain * GRAIN, self.live[grain - 1]
                start = grain * GRAIN
        yield start, self.length, self.live[(self.length - 1) // GRAIN]


def live(buffer: memoryview) -> list[bool]:
    """For each grain of a full chunk's buffer: is any byte not zero?"""
    import numpy as np

    words: numpy.typing.NDArray[numpy.uint64]
    words = np.frombuffer(buffer, np.uint64).reshape(CHUNK // GRAIN, -1)
    largest = words[:, ::512].max(axis=1)  # sixteen looks each: enough for most data
    if not largest.all():
        largest = words.max(axis=1)  # at memory speed; any() is half as fast on u64
    return [bool(word) for word in largest.tolist()]
