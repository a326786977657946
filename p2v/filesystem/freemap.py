"""Bits of a used-block map → ascending byte ranges that are free, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from p2v.model import Range

LEAST = 64 << 10  # bytes: shorter free ranges are copied, skipping them saves nothing
MOST = 100_000  # ranges kept (some 10 MB); past that the shortest are copied as data


class FreeRanges:
    """Fed with the clusters' states in order; gives the free ranges at the end.

    base: bytes from the start of the volume to cluster 0 of the map. unit: bytes of a cluster.
    """

    def __init__(self, base: int, unit: int, least: int = LEAST, most: int = MOST) -> None:
        self._base = base
        self._unit = unit
        self._least = max(least // unit, 1)
        self._most = most
        self._seen = 0
        self._since: int | None = None  # the cluster where a range began that may go on
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, free: NDArray[np.bool_]) -> None:
        """The next clusters: True where nobody uses one."""
        before = np.array([self._since is not None])
        steps = np.diff(np.concatenate((before, free)).astype(np.int8))
        starts = np.flatnonzero(steps == 1) + self._seen
        ends = np.flatnonzero(steps == -1) + self._seen
        if self._since is not None:
            starts = np.concatenate((np.array([self._since]), starts))
        self._since = int(starts[-1]) if len(starts) > len(ends) else None
        self._seen += len(free)
        self._keep(starts[: len(ends)], ends)

    def finish(self) -> tuple[Range, ...]:
        """All ranges, in bytes of the volume."""
        if self._since is not None:
            self._keep(np.array([self._since]), np.array([self._seen]))
            self._since = None
        offsets = (self._starts * self._unit + self._base).tolist()
        lengths = ((self._ends - self._starts) * self._unit).tolist()
        return tuple(Range(offset, length) for offset, length in zip(offsets, lengths, strict=True))

    def _keep(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._starts = np.concatenate((self._starts, starts))
        self._ends = np.concatenate((self._ends, ends))
        self._drop_short()
        while len(self._starts) > self._most:
            self._least *= 2
            self._drop_short()

    def _drop_short(self) -> None:
        long = self._ends - self._starts >= self._least
        self._starts, self._ends = self._starts[long], self._ends[long]


def overlap(ranges: tuple[Range, ...], other: list[Range]) -> Range | None:
    """The first of other that shares a byte with one of the ascending ranges."""
    starts = np.array([r.offset for r in ranges], np.int64)
    ends = np.array([r.end for r in ranges], np.int64)
    for candidate in other:
        index = int(np.searchsorted(ends, candidate.offset, side="right"))
        if index < len(ranges) and starts[index] < candidate.end:
            return candidate
    return None
