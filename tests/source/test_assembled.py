"""Disks put together from pieces: any tiling and patches, what is refused, and that nothing is read in vain."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from p2v.errors import ReadError, Where
from p2v.model import Extent, Kind, Range, read
from p2v.source.assembled import Assembled, Part
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

DATA = numbered_sectors("disk0", 4096)
SIZE = 64


@settings(max_examples=50)
@given(cuts=some.sets(some.integers(1, SIZE - 1), max_size=7), marks=some.sets(some.integers(0, SIZE), max_size=8),
       data=some.data())
def test_any_disk(cuts: set[int], marks: set[int], data: some.DataObject) -> None:
    expected = bytearray(SIZE)
    parts = []
    edges = [0, *sorted(cuts), SIZE]
    for start, end in pairwise(edges):
        at = data.draw(some.integers(0, 4000))
        bare = data.draw(some.booleans())
        zeroes = data.draw(some.integers(0, at))
        source = MemorySource(bytes(zeroes) + DATA[zeroes:], extents=[
            *([Extent(0, zeroes, Kind.ZERO)] if zeroes else []), Extent(zeroes, 4096 - zeroes, Kind.DATA)])
        parts.append(Part(start, end - start) if bare else Part(start, end - start, source, at))
        if not bare:
            expected[start:end] = DATA[at : at + end - start]
    places = sorted(marks)
    patches = [(start, bytes([200 + number]) * (end - start))
               for number, (start, end) in enumerate(zip(places[::2], places[1::2], strict=False))]
    for offset, patch in patches:
        expected[offset : offset + len(patch)] = patch
    disk = Assembled(data.draw(some.permutations(parts)), "new", size=SIZE,
                     patches=data.draw(some.permutations(patches)))
    check_source(disk, bytes(expected), range(SIZE))


@pytest.mark.parametrize(("parts", "patches"), [
    ([], []), ([Part(0, 99)], []), ([Part(0, 101)], []), ([Part(1, 99)], []), ([Part(0, 60), Part(50, 50)], []),
    ([Part(0, 40), Part(50, 50)], []), ([Part(0, 100, MemorySource(DATA), 3997)], []),
    ([Part(0, 100)], [(99, b"xx")]), ([Part(0, 100)], [(-1, b"xx")]), ([Part(0, 100)], [(5, b"xx"), (6, b"y")]),
])
def test_what_is_no_disk(parts: list[Part], patches: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ValueError):
        Assembled(parts, "new", size=100, patches=patches)


@pytest.mark.parametrize(("offset", "length", "at"), [(-1, 1, 0), (0, 0, 0), (0, 1, -1)])
def test_what_is_no_part(offset: int, length: int, at: int) -> None:
    with pytest.raises(ValueError):
        Part(offset, length, None, at)


def test_errors_name_the_disks_bytes_and_what_is_patched_is_not_read() -> None:
    below = FaultySource(MemorySource(DATA, "sda"), [Range(1024, 512), Range(2048, 512)])
    disk = Assembled([Part(0, 512), Part(512, 3000, below, 512)], "new", size=3512, patches=[(1024, b"p" * 512)])
    assert read(disk, 0, 2048) == bytes(512) + DATA[512:1024] + b"p" * 512 + DATA[1536:2048]
    assert below.failed == []
    with pytest.raises(ReadError) as caught:
        read(disk, 0, 3512)
    assert caught.value.where == Where("new", 2048, 512)
    assert "sda, bytes 0x800" in caught.value.why


def test_a_read_inside_a_part_goes_straight_into_the_callers_buffer() -> None:
    asked: list[tuple[int, memoryview]] = []

    class Watching(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            asked.append((offset, buffer))
            super().read_into(offset, buffer)

    disk = Assembled([Part(0, 512), Part(512, 3584, Watching(DATA), 512)], "new", size=4096)
    buffer = bytearray(2048)
    disk.read_into(1000, memoryview(buffer))
    assert [(offset, len(view), view.obj is buffer) for offset, view in asked] == [(1000, 2048, True)]


def test_extents_are_the_sources_own_below_patches() -> None:
    holes = MemorySource(bytes(1000) + b"d" * 1000, extents=[Extent(0, 1000, Kind.ZERO), Extent(1000, 1000, Kind.DATA)])
    disk = Assembled([Part(0, 500), Part(500, 1000, holes, 800)], "new", size=1500, patches=[(10, b"x" * 20)])
    assert [(e.offset, e.length, e.kind) for e in disk.extents()] == [
        (0, 10, Kind.ZERO), (10, 20, Kind.DATA), (30, 470, Kind.ZERO), (500, 200, Kind.ZERO), (700, 800, Kind.DATA)]
