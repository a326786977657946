"""Geometry: SeaBIOS's table, and CHS bytes that boot code and QEMU agree on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.model import Geometry
from p2v.volume.geometry import FILLER, end_chs, start_chs, target_geometry, unpack

CYLINDERS_OF_63 = 63 * 1024 * 512  # bytes that one more head reaches with 1024 cylinders


@pytest.mark.parametrize("size, heads", [
    (1, 16), (CYLINDERS_OF_63 * 17 - 512, 16), (CYLINDERS_OF_63 * 17, 32), (CYLINDERS_OF_63 * 33 - 512, 32),
    (CYLINDERS_OF_63 * 33, 64), (CYLINDERS_OF_63 * 65, 128), (CYLINDERS_OF_63 * 129 - 512, 128),
    (CYLINDERS_OF_63 * 129, 255), (8 << 30, 255), ((8 << 30) + 512, 255), (2 << 40, 255),
])
def test_the_row_of_seabios(size: int, heads: int) -> None:
    assert target_geometry(size) == Geometry(heads, 63)


@pytest.mark.parametrize("lba, geometry, chs", [
    (63, Geometry(255, 63), b"\x01\x01\x00"),
    (32, Geometry(64, 32), b"\x01\x01\x00"),
    (2048, Geometry(255, 63), b"\x20\x21\x00"),  # every disk since Vista
    (16450559, Geometry(255, 63), b"\xfe\xff\xff"),  # the last that CHS can say
    (16450560, Geometry(255, 63), FILLER),
    (300 * 16065, Geometry(255, 63), b"\x00\x41\x2c"),  # cylinder bits 8 and 9 lie in the sector byte
])
def test_starts(lba: int, geometry: Geometry, chs: bytes) -> None:
    assert start_chs(lba, geometry) == chs


@pytest.mark.parametrize("lba, geometry, chs", [
    (16065 - 1, Geometry(255, 63), b"\xfe\x3f\x00"),
    (16065 * 2, Geometry(255, 63), FILLER),  # inside a cylinder
    (63 * 16 * 100 - 1, Geometry(16, 63), b"\x0f\x3f\x63"),
    (63 * 16 * 100 - 2, Geometry(16, 63), FILLER),
    (1024 * 16 * 63 - 1, Geometry(16, 63), b"\x0f\xff\xff"),
    (1025 * 16 * 63 - 1, Geometry(16, 63), FILLER),
])
def test_ends(lba: int, geometry: Geometry, chs: bytes) -> None:
    assert end_chs(lba, geometry) == chs


@settings(deadline=None, max_examples=100)
@given(lba=st.integers(0, 1 << 32), heads=st.sampled_from([2, 16, 64, 128, 240, 255]), sectors=st.integers(1, 63))
def test_what_is_packed_is_unpacked(lba: int, heads: int, sectors: int) -> None:
    chs = start_chs(lba, Geometry(heads, sectors))
    cylinder, head, sector = unpack(chs)
    if lba >= 1024 * heads * sectors:
        assert chs == FILLER and (cylinder, head, sector) == (1023, 254, 63)
    else:
        assert (cylinder * heads + head) * sectors + sector - 1 == lba


@settings(deadline=None, max_examples=100)
@given(lba=st.integers(0, 1 << 32), heads=st.sampled_from([16, 32, 64, 128, 255]))
def test_no_end_misleads_qemu(lba: int, heads: int) -> None:
    """QEMU guesses heads = end head + 1, sectors = end sector: that is the truth, or 255 x 63."""
    _, head, sector = unpack(end_chs(lba, Geometry(heads, 63)))
    assert (head + 1, sector) in ((heads, 63), (255, 63))


def test_no_sector_before_the_first() -> None:
    with pytest.raises(ValueError, match="-1"):
        start_chs(-1, Geometry(255, 63))
