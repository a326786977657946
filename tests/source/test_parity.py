"""Parity sets against the kernel's own arrays, a model of our own, Windows' RAID-5, lost members and bad sectors."""

from __future__ import annotations

import itertools
import lzma
import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fixtures.mdlayouts import Array, arrays
from p2v.errors import ReadError, Where
from p2v.filesystem import examine, open_files
from p2v.model import Extent, FilesystemState, Kind, Range, Source, read
from p2v.source.device import DeviceGone
from p2v.source.parity import LAYOUTS, Parity
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

KERNELS = arrays(4, 5, 6)
CHUNK = 1024


def layout_of(array: Array) -> str:
    return "parity-last" if array.level == 4 else LAYOUTS[array.layout]


def losses(members: int, most: int) -> list[tuple[int, ...]]:
    return [lost for count in range(most + 1) for lost in itertools.combinations(range(members), count)]


@pytest.mark.parametrize("array", KERNELS, ids=lambda array: array.name)
def test_arrays_of_the_kernel(array: Array) -> None:
    for lost in losses(len(array.members), 2 if array.level == 6 else 1):
        members = [None if n in lost else MemorySource(data) for n, data in enumerate(array.members)]
        raid = Parity(members, array.chunk, "md0", level=array.level, layout=layout_of(array), size=len(array.volume))
        assert read(raid, 0, raid.size) == array.volume, f"without {lost}"
        assert read(raid, 5000, 700) == array.volume[5000:5700]
        assert raid.rebuilt == []


ROWS_OF_3 = {  # a model of our own for three members; letters: the volume's chunks in order, P: parity
    "left-asymmetric": ("ab P", "c P d", "P e f"),
    "left-symmetric": ("ab P", "d P c", "P e f"),
    "right-asymmetric": ("P ab", "c P d", "e f P"),
    "right-symmetric": ("P ab", "d P c", "e f P"),
    "parity-first": ("P ab", "P c d", "P e f"),
    "parity-last": ("ab P", "c d P", "e f P"),
}


@cache
def made(layout: str, rows: int) -> tuple[bytes, list[bytes]]:
    """A RAID 5 of three members with that many rows."""
    volume = numbered_sectors("volume", rows * 2 * CHUNK)
    members = [b"", b"", b""]
    for row in range(rows):
        drawn = ROWS_OF_3[layout][row % 3].replace(" ", "")
        base = row // 3 * 6
        chunks = {letter: volume[(base + n) * CHUNK : (base + n + 1) * CHUNK] for n, letter in enumerate("abcdef")}
        numbers = [int.from_bytes(chunks[letter], "big") for letter in drawn if letter != "P"]
        chunks["P"] = (numbers[0] ^ numbers[1]).to_bytes(CHUNK, "big")
        members = [member + chunks[letter] for member, letter in zip(members, drawn, strict=True)]
    return volume, members


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lost", [None, 0, 1, 2])
def test_the_contract(layout: str, lost: int | None) -> None:
    volume, members = made(layout, 7)
    sources = [None if n == lost else MemorySource(member + b"tail") for n, member in enumerate(members)]
    raid = Parity(sources, CHUNK, "raid", level=5, layout=layout, size=len(volume) - 512)
    check_source(raid, volume[:-512], range(0, len(volume) - 512, CHUNK))


bad_spots = some.lists(some.tuples(some.integers(0, 4), some.integers(0, 41)), max_size=14)


@given(array=some.sampled_from([a for a in KERNELS if a.level != 4]), bad=bad_spots,
       gone=some.integers(0, 9), span=some.tuples(some.integers(0, 200_000), some.integers(1, 60_000)))
def test_any_bad_sectors(array: Array, bad: list[tuple[int, int]], gone: int, span: tuple[int, int]) -> None:
    """What enough members of its row have is read; what is lost is named, and not a byte more."""
    count, spare = len(array.members), 2 if array.level == 6 else 1
    spots = {(member % count, sector * 4) for member, sector in bad}
    faulty = [FaultySource(MemorySource(data), [Range(s * 512, 512) for m, s in spots if m == number])
              for number, data in enumerate(array.members)]
    members: list[Source | None] = [*faulty]
    if gone < count:
        members[gone] = None
    raid = Parity(members, array.chunk, "md0", level=array.level, layout=layout_of(array), size=len(array.volume))
    offset = span[0] % len(array.volume)
    length = min(span[1], len(array.volume) - offset)
    beyond = {s for _, s in spots if len({m for m, at in spots if at == s} | {gone} & set(range(count))) > spare}
    try:
        assert read(raid, offset, length) == array.volume[offset : offset + length]
    except ReadError as error:
        where = error.where
        assert where.offset is not None and where.length is not None and where.source == "md0"
        assert offset <= where.offset < where.offset + where.length <= offset + length
        assert where.offset // 512 == (where.offset + where.length - 1) // 512
        row = where.offset // (array.chunk * (count - spare))
        assert row * array.chunk // 512 + where.offset % array.chunk // 512 in beyond


def test_a_bad_sector_is_computed_and_told() -> None:
    volume, members = made("left-symmetric", 6)
    disks = [FaultySource(MemorySource(members[0], "sda"), [Range(512, 512)]),
             FaultySource(MemorySource(members[1], "sdb"), [Range(1024, 512)]), MemorySource(members[2], "sdc")]
    raid = Parity(disks, CHUNK, "raid", level=5, layout="left-symmetric", size=len(volume))
    assert read(raid, 0, len(volume)) == volume
    assert raid.rebuilt == [Range(512, 512)]  # sdb's lies in a chunk of parity


def test_too_many_bad_sectors_are_named() -> None:
    volume, members = made("left-symmetric", 6)
    disks = [FaultySource(MemorySource(members[0], "sda"), [Range(512, 512)]), MemorySource(members[1], "sdb"), None]
    raid = Parity(disks, CHUNK, "raid", level=5, layout="left-symmetric", size=len(volume))
    with pytest.raises(ReadError) as caught:
        read(raid, 0, len(volume))
    assert caught.value.where == Where("raid", 512, 512) and not isinstance(caught.value, DeviceGone)
    assert "sda, bytes 0x200" in caught.value.why and "member 2 of raid is missing" in caught.value.why


class Gone(MemorySource):
    """A disk that has vanished."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise DeviceGone("sda is gone", Where("sda", offset, len(buffer)), "a test said so", "nothing")


def test_a_disk_that_vanishes() -> None:
    volume, members = made("left-symmetric", 6)
    rest = [MemorySource(members[1], "sdb"), MemorySource(members[2], "sdc")]
    raid = Parity([Gone(members[0]), *rest], CHUNK, "raid", level=5, layout="left-symmetric", size=len(volume))
    assert read(raid, 0, len(volume)) == volume
    raid = Parity([Gone(members[0]), None, rest[1]], CHUNK, "raid", level=5, layout="left-symmetric", size=len(volume))
    with pytest.raises(DeviceGone):
        read(raid, 0, len(volume))


@pytest.mark.parametrize(("count", "lost", "level", "layout", "size"), [
    (3, 2, 5, "left-symmetric", 0), (4, 3, 6, "left-symmetric", 0), (3, 0, 5, "sideways", 0),
    (3, 0, 4, "left-symmetric", 0), (3, 0, 1, "parity-last", 0), (1, 0, 5, "left-symmetric", 0),
    (2, 0, 6, "left-symmetric", 0), (3, 0, 5, "left-symmetric", 2 * CHUNK + 1),
])
def test_nonsense(count: int, lost: int, level: int, layout: str, size: int) -> None:
    members = [None if n < lost else MemorySource(bytes(CHUNK)) for n in range(count)]
    with pytest.raises(ValueError):
        Parity(members, CHUNK, "raid", level=level, layout=layout, size=size)


def test_a_row_of_zeroes_is_known() -> None:
    holes = [Extent(0, CHUNK, Kind.DATA), Extent(CHUNK, 3 * CHUNK, Kind.ZERO)]
    disk = MemorySource(b"d" * CHUNK + bytes(3 * CHUNK), extents=holes)
    raid = Parity([disk, None, disk], CHUNK, "raid", level=5, layout="left-symmetric", size=8 * CHUNK)
    assert list(raid.extents()) == [Extent(0, 2 * CHUNK, Kind.DATA), Extent(2 * CHUNK, 6 * CHUNK, Kind.ZERO)]


def part(image: Path, offset: int, length: int) -> bytes:
    with lzma.open(image) as file:
        file.seek(offset)
        return file.read(length)


def test_the_raid5_of_windows(corpus: Path) -> None:
    """ldmtool: Disk10, Disk9, Disk8 (images 3, 2, 1), 128 sectors. NTFS is whole, with each one of them missing."""
    found = []
    data = [part(corpus / "ldm" / f"ldm-2003r2-raid5-{number}.img.xz", 63 * 512, 96256 * 512) for number in (3, 2, 1)]
    for lost in (None, 0, 1, 2):
        members = [None if number == lost else MemorySource(one) for number, one in enumerate(data)]
        raid = Parity(members, 128 * 512, "Raid1", level=5, layout="left-symmetric", size=192512 * 512)
        found.append(read(raid, 0, raid.size))
    assert all(other == found[0] for other in found)
    filesystem = examine(raid)
    assert (filesystem.kind, filesystem.state, filesystem.findings) == ("ntfs", FilesystemState.CLEAN, ())
    files = open_files(raid, filesystem)
    assert "test.txt" in files.list("\\") and files.read("\\test.txt")
    assert found[0][-512:] == found[0][:512]


def test_the_array_of_mdadm(corpus: Path) -> None:
    """Each 4 KiB of the first 2 MiB count up, as somebody once wrote them to the real array."""
    data = [part(corpus / "md" / f"md-raid5-{number}.bin.xz", 2 << 20, 2 << 20) for number in (1, 2, 3)]
    for lost in (None, 0, 1, 2):
        members = [None if number == lost else MemorySource(one) for number, one in enumerate(data)]
        raid = Parity(members, 512 << 10, "md0", level=5, layout="left-symmetric", size=4 << 20)
        assert read(raid, 0, 2 << 20) == b"".join(struct.pack("<H", number) * 2048 for number in range(1, 513))
