"""RAID 10 against the kernel's own arrays, whole, with members missing and with bad sectors."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fixtures.mdlayouts import Array, arrays
from p2v.errors import ReadError, Where
from p2v.model import Extent, Kind, Range, Source, read
from p2v.source.raid10 import Raid10
from p2v.testing import FaultySource, MemorySource, check_source

KERNELS = arrays(10)


def opened(array: Array, members: list[Source | None]) -> Raid10:
    """The layout's number is near copies, far copies << 8, and 1 << 16 for offset."""
    return Raid10(members, array.chunk, "md0", near=array.layout & 0xFF, far=array.layout >> 8 & 0xFF,
                  offset=bool(array.layout >> 16))


@pytest.mark.parametrize("array", KERNELS, ids=lambda array: array.name)
def test_arrays_of_the_kernel(array: Array) -> None:
    whole = [MemorySource(data) for data in array.members]
    check_source(opened(array, [*whole]), array.volume, range(0, len(array.volume), array.chunk))
    copies = (array.layout & 0xFF) * (array.layout >> 8 & 0xFF)
    for lost in itertools.combinations(range(len(whole)), copies - 1):
        raid = opened(array, [None if number in lost else member for number, member in enumerate(whole)])
        assert read(raid, 0, raid.size) == array.volume, f"without {lost}"


@given(array=some.sampled_from(KERNELS), bad=some.sets(some.tuples(some.integers(0, 4), some.integers(0, 150)),
                                                       max_size=30))
def test_any_bad_sectors(array: Array, bad: set[tuple[int, int]]) -> None:
    """Whatever has a copy left is read, and only what has none fails."""
    words = [[data[at : at + 512] for at in range(0, len(data), 512)] for data in array.members]
    spots = [[Range(sector * 512, 512) for member, sector in bad if member == number] for number in range(len(words))]
    left = {word for number, member in enumerate(words) for sector, word in enumerate(member)
            if (number, sector) not in bad}
    raid = opened(array, [FaultySource(MemorySource(data), spots[number])
                          for number, data in enumerate(array.members)])
    lost = [at for at in range(0, raid.size, 512) if array.volume[at : at + 512] not in left]
    if not lost:
        assert read(raid, 0, raid.size) == array.volume
        return
    with pytest.raises(ReadError) as caught:
        read(raid, 0, raid.size)
    assert caught.value.where.offset in lost and caught.value.where.source == "md0"


def test_a_bad_sector_comes_from_the_copy_and_is_told() -> None:
    array = next(a for a in KERNELS if a.layout == 258)
    members = [MemorySource(data, f"sd{number}") for number, data in enumerate(array.members)]
    raid = opened(array, [FaultySource(members[0], [Range(1024, 512)]), *members[1:]])
    assert read(raid, 0, raid.size) == array.volume
    assert raid.rebuilt == [Range(1024, 512)]
    raid = opened(array, [FaultySource(members[0], [Range(1024, 512)]), None, *members[2:]])
    with pytest.raises(ReadError) as caught:
        read(raid, 0, raid.size)
    assert caught.value.where == Where("md0", 1024, 512)


@pytest.mark.parametrize(("lost", "near", "far"), [((0, 1), 2, 1), ((0, 1), 1, 2), ((3, 0), 1, 2), ((), 5, 1),
                                                   ((), 0, 1), ((), 2, 3)])
def test_nonsense(lost: tuple[int, ...], near: int, far: int) -> None:
    members = [None if number in lost else MemorySource(bytes(8192)) for number in range(4)]
    with pytest.raises(ValueError):
        Raid10(members, 1024, "raid", near=near, far=far)
    with pytest.raises(ValueError):
        Raid10([MemorySource(bytes(8192))] * 4, 1024, "raid", member_size=8193)


@pytest.mark.parametrize("array", KERNELS, ids=lambda array: array.name)
def test_rows_of_zeroes_are_known(array: Array) -> None:
    """The volume's zeroes are laid out by swapping the kernel's sectors for zeroes from a row on."""
    first = 6 * array.chunk
    blank = [data[:first] + bytes(len(data) - first) for data in array.members]
    extents = [[Extent(0, first, Kind.DATA), Extent(first, len(data) - first, Kind.ZERO)] for data in blank]
    raid = opened(array, [MemorySource(data, extents=e) for data, e in zip(blank, extents, strict=True)])
    found = list(raid.extents())
    assert found[-1].kind is Kind.ZERO and not any(read(raid, found[-1].offset, found[-1].length))
    check_source(raid, read(raid, 0, raid.size))
