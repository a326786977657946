"""Stripes against a model that deals out chunk by chunk, the kernel's own zones, Windows' stripes, and errors."""

from __future__ import annotations

import io
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fixtures.mdlayouts import Array, arrays
from p2v.errors import ReadError, Where
from p2v.filesystem import examine, open_files
from p2v.model import Extent, FilesystemState, Kind, Range, Source, read
from p2v.source.linear import Linear
from p2v.source.striped import Striped
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors


def dealt(members: list[bytes], chunk: int, zones: str) -> bytes:
    """The volume, chunk by chunk: each turn goes to a member that has chunks left."""
    left = [[m[at : at + chunk] for at in range(0, len(m) // chunk * chunk, chunk)] for m in members]
    if not zones:
        left = [chunks[: min(map(len, left))] for chunks in left]
    volume: list[bytes] = []
    while any(left):
        taking_part = [chunks for chunks in left if chunks]
        rows = min(map(len, taking_part))
        first = len(volume) if zones == "original" else 0
        dealt_out = [chunks[:rows] for chunks in taking_part]
        for number in range(rows * len(taking_part)):
            row = number // len(taking_part)
            volume.append(dealt_out[(first + number) % len(taking_part)][row])
        for chunks in taking_part:
            del chunks[:rows]
    return b"".join(volume)


@given(sizes=some.lists(some.integers(1, 6), min_size=1, max_size=5), chunk=some.sampled_from([512, 1024, 1536]),
       zones=some.sampled_from(["", "original", "alternate"]), tail=some.integers(0, 1))
def test_any_stripe(sizes: list[int], chunk: int, zones: str, tail: int) -> None:
    members = [numbered_sectors(f"disk{number}", size * chunk + tail * 512) for number, size in enumerate(sizes)]
    expected = dealt(members, chunk, zones)
    stripe = Striped([MemorySource(m) for m in members], chunk, "stripe", zones=zones)
    check_source(stripe, expected, range(0, len(expected), chunk))


@pytest.mark.parametrize("array", arrays(0), ids=lambda array: array.name)
def test_zones_of_the_kernel(array: Array) -> None:
    stripe = Striped([MemorySource(member) for member in array.members], array.chunk, "md0",
                     zones={1: "original", 2: "alternate"}[array.layout])
    assert read(stripe, 0, stripe.size) == array.volume
    check_source(stripe, array.volume)


def test_the_kernels_two_kinds_of_zones_differ() -> None:
    original, alternate = ([a.members for a in arrays(0) if a.layout == layout] for layout in (1, 2))
    assert any(one != other for one, other in zip(original, alternate, strict=True))


@pytest.mark.parametrize(("sizes", "chunk", "size", "zones"), [
    ([], 512, None, ""), ([1024, 1024], 0, None, ""), ([1024, 1024], 700, None, ""), ([1024, 1024], 512, 2049, ""),
    ([1024, 512], 512, 1025, ""), ([1024], 512, -1, ""), ([1024], 512, None, "newest"),
])
def test_nonsense(sizes: list[int], chunk: int, size: int | None, zones: str) -> None:
    with pytest.raises(ValueError):
        Striped([MemorySource(bytes(s)) for s in sizes], chunk, "stripe", size=size, zones=zones)


def test_errors_name_the_volumes_bytes() -> None:
    members = [MemorySource(bytes(4096), "sda"), FaultySource(MemorySource(bytes(4096), "sdb"), [Range(1536, 512)])]
    stripe = Striped(members, 1024, "stripe")
    with pytest.raises(ReadError) as caught:
        read(stripe, 0, 8192)
    assert caught.value.where == Where("stripe", 3072 + 512, 512)
    assert "sdb, bytes 0x600 to 0x800" in caught.value.why


def test_a_row_of_zeroes_is_known() -> None:
    holes = [Extent(0, 700, Kind.DATA), Extent(700, 2372, Kind.ZERO), Extent(3072, 1024, Kind.DATA)]
    data = b"d" * 700 + bytes(2372) + b"d" * 1024
    stripe = Striped([MemorySource(data, extents=holes), MemorySource(data, extents=holes)], 512, "stripe")
    assert list(stripe.extents()) == [Extent(0, 2048, Kind.DATA), Extent(2048, 4096, Kind.ZERO),
                                      Extent(6144, 2048, Kind.DATA)]


def member(image: Path, start_sectors: int, sectors: int) -> Source:
    """A part of a compressed image in the corpus."""
    with lzma.open(image) as file:
        file.seek(start_sectors * 512, io.SEEK_SET)
        return MemorySource(file.read(sectors * 512), image.name)


@pytest.mark.parametrize(("case", "starts", "sectors"), [
    ("ldm-2003r2-striped", (63, 63), 61440), ("ldm-2008r2-striped", (128, 65664), 32768),
])
def test_stripes_of_windows(corpus: Path, case: str, starts: tuple[int, int], sectors: int) -> None:
    """NTFS is whole in this order of the members, and its backup boot sector lies at the end; ldmtool: 128 sectors."""
    members = [member(corpus / "ldm" / f"{case}-{number + 1}.img.xz", start, sectors)
               for number, start in enumerate(starts)]
    stripe = Striped(members, 128 * 512, "stripe", size=2 * sectors * 512)
    filesystem = examine(stripe)
    assert (filesystem.kind, filesystem.state, filesystem.findings) == ("ntfs", FilesystemState.CLEAN, ())
    files = open_files(stripe, filesystem)
    assert "test.txt" in files.list("\\") and files.read("\\test.txt")
    assert read(stripe, stripe.size - 512, 512) == read(stripe, 0, 512)


@pytest.mark.parametrize(("case", "starts", "sizes"), [
    ("md-raid0", 4096, (4096, 4096, 2048)), ("md-linear", 2048, (2048, 2048)),
])
def test_arrays_of_mdadm(corpus: Path, case: str, starts: int, sizes: tuple[int, ...]) -> None:
    """Each 4 KiB of the first 2 MiB count up, as somebody once wrote them to the real array."""
    members = [member(corpus / "md" / f"{case}-{number + 1}.bin.xz", starts, size) for number, size in enumerate(sizes)]
    volume: Source = Linear(members, "md0")
    if case == "md-raid0":
        volume = Striped(members, 512 << 10, "md0", zones="original")
        assert volume.size == 5 << 20
    assert read(volume, 0, 2 << 20) == b"".join(struct.pack("<H", number) * 2048 for number in range(1, 513))


