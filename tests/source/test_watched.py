"""Failed reads are remembered, once each, whoever swallowed the error."""

from __future__ import annotations

import contextlib

from p2v.errors import ReadError
from p2v.model import Range, read
from p2v.source.watched import Watched
from p2v.testing import FaultySource, MemorySource


def test_failed_reads_are_remembered_once() -> None:
    bad = Range(1024, 512)
    source = Watched(FaultySource(MemorySource(bytes(8192)), [bad]))
    for _ in range(3):
        with contextlib.suppress(ReadError):
            read(source, 0, 4096)
    assert read(source, 4096, 512) == bytes(512)
    assert source.failed == [bad]


def test_memory_does_not_grow_with_the_damage() -> None:
    source = Watched(FaultySource(MemorySource(bytes(4 << 20)), [Range(0, 4 << 20)]))
    for offset in range(0, 4 << 20, 1024):
        with contextlib.suppress(ReadError):
            read(source, offset, 512)
    assert len(source.failed) == 1000
