"""How far a copy has come: what is kept of it, and when.

A checkpoint claims no more than the image's own checkpoint() covers, which was on the medium before: after a
power cut it is true, or it is the one before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from p2v.digests import Digests
from p2v.model import Extent, Range

SECONDS = 20.0  # between two checkpoints: what a power cut costs at most …
EARLY = 2.0  # before the first one: a disk that turns out too small says so soon
AMOUNT = 16 << 30  # … or so many bytes of the disk


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """at: every byte of the disk before it is in the image, whole chunks. state: the image's own checkpoint.

    tie: what it belongs to: nobody goes on from a checkpoint of something else. found_zero, bad, seconds,
    digests: of a CopyReport, up to at. map: the mapfile of a rescue that went on from at, else "". done: the
    rescue is over.
    """

    tie: str
    at: int
    state: bytes
    found_zero: int
    bad: tuple[Range, ...]
    seconds: float
    digests: Digests = field(repr=False)
    map: str = field(default="", repr=False)
    done: bool = False


Save: TypeAlias = Callable[[Checkpoint, Iterable[int]], None]
"""save(checkpoint, chunks): keep it; chunks are those with a digest that the one before did not have."""


@dataclass(slots=True)
class Keeper:
    """Says when a checkpoint is due, and hands it on. seconds, amount (bytes): the longest between two.

    tie: put into each checkpoint.
    """

    save: Save
    tie: str
    seconds: float = SECONDS
    amount: int = AMOUNT
    _when: float = field(default_factory=time.monotonic)
    _where: int = 0
    _first: bool = True

    def due(self, done: int) -> bool:
        """Is it time, with so many bytes done?"""
        seconds = min(EARLY, self.seconds) if self._first else self.seconds
        return time.monotonic() - self._when >= seconds or done - self._where >= self.amount

    def keep(self, checkpoint: Checkpoint, chunks: Iterable[int], done: int) -> None:
        """Save one."""
        self.save(checkpoint, chunks)
        self._when, self._where, self._first = time.monotonic(), done, False


def tie(extents: Sequence[Extent], *others: str) -> str:
    """What a checkpoint belongs to: the extents that are copied, and what else the caller names. SHA-256."""
    digest = hashlib.sha256("\n".join(others).encode())
    for extent in extents:
        digest.update(f"\n{extent.offset:x} {extent.length:x} {extent.kind.value}".encode())
    return digest.hexdigest()
