"""binary.parse: a dataclass, or an error that names source, bytes and field."""

from __future__ import annotations

from dataclasses import dataclass

import construct as c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.binary import parse
from p2v.errors import LayoutError, ReadError
from p2v.model import Range
from p2v.testing import FaultySource, MemorySource

LAYOUT = c.Struct("magic" / c.Const(b"MAGC"), "inner" / c.Struct("mode" / c.OneOf(c.Int8ul, [1, 2])),
                  "rows" / c.Array(2, c.Int16ub), "size" / c.Int32ul)


@dataclass(frozen=True, slots=True)
class Header:
    rows: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        if self.size > 1000:
            raise ValueError(f"a size of {self.size}")


GOOD = b"MAGC\x01\x00\x02\x00\x03\x04\x00\x00\x00"


def test_fields_by_name_and_arrays_as_tuples() -> None:
    assert parse(LAYOUT, MemorySource(b"xx" + GOOD), 2, Header, "the header") == Header((2, 3), 4)


@pytest.mark.parametrize("data, item, why", [
    (b"MAGX" + GOOD[4:], "magic", "MAGX"),
    (GOOD[:4] + b"\x09" + GOOD[5:], "inner.mode", "9"),
    (GOOD[:9] + b"\xff\xff\xff\xff", "the header", "a size of 4294967295"),
])
def test_damage_names_source_bytes_and_field(data: bytes, item: str, why: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parse(LAYOUT, MemorySource(b"12" + data, name="disk7"), 2, Header, "the header")
    where = caught.value.where
    assert (where.source, where.offset, where.length, where.item) == ("disk7", 2, len(GOOD), item)
    assert why in caught.value.why and "the header" in caught.value.what and caught.value.next


@pytest.mark.parametrize("offset", [-1, 1, 100, 1 << 70])
def test_outside_the_medium(offset: int) -> None:
    with pytest.raises(LayoutError, match="outside its medium"):
        parse(LAYOUT, MemorySource(GOOD), offset, Header, "the header")


def test_what_cannot_be_read_is_a_read_error() -> None:
    with pytest.raises(ReadError):
        parse(LAYOUT, FaultySource(MemorySource(GOOD), [Range(4, 1)]), 0, Header, "the header")


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=13, max_size=13))
def test_any_bytes_give_a_header_or_a_layout_error(data: bytes) -> None:
    try:
        assert parse(LAYOUT, MemorySource(data), 0, Header, "the header").size <= 1000
    except LayoutError as error:
        assert error.where.length == 13
