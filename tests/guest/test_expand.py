"""Compressed files of Windows media: single-file cabinets, SZDD, and what only looks like them."""

from __future__ import annotations

import random
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.cabs import cabinet
from fixtures.pe import StandIn, pe_file
from p2v.errors import GuestError
from p2v.guest.expand import SZDD, compressed_name, expand

MIB = 1 << 20
DRIVER = pe_file(StandIn("atapi.sys", (4, 0, 1381, 333), padding=20000))


def szdd(data: bytes) -> bytes:
    """Literals only: valid, and larger than the file."""
    out = SZDD + b"A\0" + struct.pack("<I", len(data))
    for at in range(0, len(data), 8):
        out += b"\xff" + data[at : at + 8]
    return out


def test_a_cabinet_of_one_file(needs):
    needs("gcab", "cabextract")
    assert expand(cabinet({"atapi.sys": DRIVER}), "ATAPI.SY_", MIB) == DRIVER


def test_a_cabinet_of_two_is_none(needs):
    needs("gcab", "cabextract")
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        expand(cabinet({"atapi.sys": DRIVER, "disk.sys": DRIVER}), "ATAPI.SY_", MIB)


def test_szdd_as_another_program_writes_it(needs, tmp_path):
    """mscompress finds matches, some of which reach into what they write."""
    needs("mscompress")
    noise = random.Random(1).randbytes(9999)
    for name, data in (("driver", DRIVER), ("runs", b"ab" * 9000 + bytes(9000)), ("noise", noise), ("empty", b""),
                       ("spaces", b" " * 5000)):
        path = tmp_path / name
        path.write_bytes(data)
        subprocess.run(["mscompress", str(path)], check=True, capture_output=True)
        packed = (tmp_path / f"{name}_").read_bytes()
        assert packed.startswith(SZDD) and expand(packed, name, MIB) == data


@given(st.binary(max_size=3000))
def test_szdd_of_anything(data):
    assert expand(szdd(data), "x", MIB) == data


@given(st.binary(max_size=400), st.integers(0, 5000))
def test_szdd_damaged(data, size):
    """The bytes it claims, or an error: nothing else, and never more."""
    try:
        assert len(expand(SZDD + b"A\0" + struct.pack("<I", size) + data, "x", MIB)) == size
    except GuestError as error:
        assert error.next


@pytest.mark.parametrize(("data", "why"), [
    (SZDD, "cut off"), (SZDD + b"B\0" + bytes(4), "unknown mode"), (szdd(DRIVER)[:-9], "it is cut off"),
    (SZDD + b"A\0\xff\xff\xff\xff", "4294967295 bytes"), (b"KWAJ\x88\xf0\x27\xd1" + bytes(20), "KWAJ")])
def test_what_cannot_be_unpacked(data, why):
    with pytest.raises(GuestError, match="cannot be unpacked") as error:
        expand(data, "ATAPI.SY_", MIB)
    assert why in error.value.why and "expand" in error.value.next


def test_a_plain_file_stays():
    assert expand(DRIVER, "ATAPI.SY_", MIB) == DRIVER
    assert compressed_name("atapi.sys") == "atapi.sy_"
