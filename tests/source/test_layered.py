"""Layers: what they refuse, whose bytes their errors name, and any arithmetic at all."""

from __future__ import annotations

from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from p2v.errors import ReadError, Where
from p2v.model import Extent, Kind, Range, read
from p2v.source.bounds import failed_range, salvage
from p2v.source.device import DeviceGone
from p2v.source.linear import Linear
from p2v.source.overlaid import Overlaid
from p2v.source.window import Window
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

DATA = numbered_sectors("disk0", 8192)
SMALL = 64


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, 8193), (8192, 1), (8000, 200), (10, -1)])
def test_a_window_outside(offset: int, length: int) -> None:
    with pytest.raises(ValueError):
        Window(MemorySource(DATA), offset, length)


def test_linear_of_nothing_or_of_unequal_sectors() -> None:
    with pytest.raises(ValueError):
        Linear([], "volume")
    with pytest.raises(ValueError):
        Linear([MemorySource(DATA), MemorySource(DATA, sector_size=4096)], "volume")


def test_changes_outside() -> None:
    with pytest.raises(ValueError):
        Overlaid(MemorySource(DATA), MemorySource(DATA[:512]), [Range(512, 1)])
    with pytest.raises(ValueError):
        Overlaid(MemorySource(DATA), MemorySource(DATA * 2), [Range(8192, 1)])


def test_changes_in_any_order_become_one_list() -> None:
    changed = [Range(600, 10), Range(0, 5), Range(5, 5), Range(590, 15), Range(20, 1)]
    both = Overlaid(MemorySource(DATA), MemorySource(DATA), changed)
    assert both.changed == (Range(0, 10), Range(20, 1), Range(590, 20))


def test_errors_name_the_layers_own_bytes() -> None:
    disk = FaultySource(MemorySource(DATA, "sda"), [Range(2048, 512)])
    partition = Window(disk, 1024, 4096, "disk0p1")
    volume = Linear([MemorySource(DATA[:512]), partition], "volume")
    with pytest.raises(ReadError) as caught:
        read(partition, 0, 4096)
    assert caught.value.where == Where("disk0p1", 1024, 512)
    with pytest.raises(ReadError) as caught:
        read(volume, 1600, 1000)
    assert caught.value.where == Where("volume", 1600, 448)
    assert "disk0p1, bytes 0x440" in caught.value.why and "sda, bytes 0x840" in caught.value.why


def test_a_layer_keeps_what_kind_of_error_it_is() -> None:
    class Gone(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise DeviceGone("sda is gone", "sda")

    with pytest.raises(DeviceGone) as caught:
        read(Window(Gone(DATA), 1024, 4096, "disk0p1"), 10, 20)
    assert caught.value.where == Where("disk0p1", 10, 20, "sda")


def test_a_bad_spot_under_a_change_is_not_read() -> None:
    base = FaultySource(MemorySource(DATA, "sda"), [Range(1024, 512), Range(4096, 512)])
    top = FaultySource(MemorySource(b"t" * 8192, "overlay"), [Range(6000, 1)])
    both = Overlaid(base, top, [Range(1024, 512), Range(6000, 10)])
    assert read(both, 0, 4096) == DATA[:1024] + b"t" * 512 + DATA[1536:4096]
    assert base.failed == []
    with pytest.raises(ReadError) as caught:
        read(both, 0, 8192)
    assert caught.value.where == Where("sda", 4096, 512)
    with pytest.raises(ReadError) as caught:
        read(both, 5999, 100)
    assert caught.value.where == Where("sda", 6000, 1)
    assert "overlay" in caught.value.why


def test_closing_a_layer_leaves_what_it_was_given_open() -> None:
    disk = MemorySource(DATA)
    for layer in (Window(disk, 0, 512), Linear([disk], "v"), Overlaid(disk, disk, [])):
        layer.close()
    assert read(disk, 0, 8192) == DATA


ranges = some.lists(some.tuples(some.integers(0, SMALL - 1), some.integers(1, SMALL)).map(
    lambda pair: Range(pair[0], min(pair[1], SMALL - pair[0]))), max_size=8)
cuts = some.lists(some.integers(1, SMALL - 1), max_size=6, unique=True).map(sorted)


@given(changed=ranges, cut=cuts)
def test_any_overlay(changed: list[Range], cut: list[int]) -> None:
    edges = [0, *cut, SMALL]
    kinds = cycle((Kind.ZERO, Kind.DATA))
    extents = [Extent(a, b - a, kind) for (a, b), kind in zip(pairwise(edges), kinds, strict=False)]
    data = b"".join((b"\0", b"b")[e.kind is Kind.DATA] * e.length for e in extents)
    expected = bytearray(data)
    for part in changed:
        expected[part.offset : part.end] = b"t" * part.length
    both = Overlaid(MemorySource(data, extents=extents), MemorySource(b"t" * SMALL), changed)
    check_source(both, bytes(expected), range(SMALL))
    zero = bytearray(b"?" * SMALL)
    for extent in both.extents():
        if extent.kind is Kind.ZERO:
            zero[extent.offset : extent.end] = bytes(extent.length)
    assert zero.count(0) == expected.count(0)  # nothing that is known to be zero is lost


@given(sizes=some.lists(some.integers(0, 20), min_size=1, max_size=8), data=some.data())
def test_any_row_of_windows(sizes: list[int], data: some.DataObject) -> None:
    parts, expected = [], b""
    for size in sizes:
        start = data.draw(some.integers(0, len(DATA) - size))
        parts.append(Window(MemorySource(DATA), start, size))
        expected += DATA[start : start + size]
    check_source(Linear(parts, "volume"), expected, range(len(expected)))


@given(bad=some.sets(some.integers(0, 39), max_size=12),
       span=some.tuples(some.integers(0, 20_479), some.integers(1, 20_480)))
def test_any_salvage(bad: set[int], span: tuple[int, int]) -> None:
    data = numbered_sectors("disk", 40 * 512)
    offset, length = span[0], min(span[1], len(data) - span[0])
    buffer = bytearray(length)

    def attempt(at: int, piece: memoryview) -> bool:
        assert at % 512 == len(piece) % 512 == 0 and len(piece)
        if any(at < (sector + 1) * 512 and sector * 512 < at + len(piece) for sector in bad):
            return False
        piece[:] = data[at : at + len(piece)]
        return True

    found = salvage(attempt, offset, memoryview(buffer), 512, len(data))
    hit = sorted(sector for sector in bad if offset < (sector + 1) * 512 and sector * 512 < offset + length)
    if not hit:
        assert found is None and buffer == data[offset : offset + length]
        return
    run = [sector for index, sector in enumerate(hit) if sector == hit[0] + index]
    assert found is not None
    assert found.offset == max(offset, run[0] * 512)
    assert found.end == min(offset + length, (run[-1] + 1) * 512)


@pytest.mark.parametrize("bad", [0, 1, 1000, 1500, 2047])
def test_salvage_halves(bad: int) -> None:
    calls = []

    def attempt(at: int, piece: memoryview) -> bool:
        calls.append(at)
        return not at <= bad * 512 < at + len(piece)

    assert salvage(attempt, 0, memoryview(bytearray(1 << 20)), 512, 1 << 20) == Range(bad * 512, 512)
    assert len(calls) <= 24


@given(where=some.tuples(some.none() | some.integers(0, 100), some.none() | some.integers(0, 100)),
       offset=some.integers(0, 100), length=some.integers(1, 100))
def test_the_failed_range_lies_in_the_read(where: tuple[int | None, int | None], offset: int, length: int) -> None:
    found = failed_range(ReadError("bad", Where("disk", *where)), offset, length)
    assert offset <= found.offset and found.end <= offset + length
