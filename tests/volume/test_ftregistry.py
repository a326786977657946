"""DISK\\Information: the public headers' layout, the same bytes again, and nothing but LayoutError for damage."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.ft import Row, information
from p2v.errors import LayoutError
from p2v.volume.ftregistry import LIMIT, FtState, FtType, Information, SetState, parse, serialise

MIRROR = [(0x11111111, [Row(0x7E00, 1 << 30, "C", FtType.MIRROR, 0, 0)]),
          (0x22222222, [Row(0x7E00, 4096, "E"),
                        Row(0x8E00, 1 << 30, "C", FtType.MIRROR, 0, 1, FtState.ORPHANED)])]
VALUE = information(MIRROR, dirty=True)


def test_the_layout_of_the_public_headers() -> None:
    """By hand, from ntdskreg.h (packed to 4) and ntddft.h as the knowledge files have them."""
    partition = struct.pack("<IIqqqIIBBHHHB3s", 2, 1, 0x7E00, 0x100000, 0xC0000, 7, 8, ord("e"), 1, 9, 3, 2, 1, b"abc")
    assert len(partition) == 52
    disks = struct.pack("<HH", 1, 0) + struct.pack("<HHI", 1, 0, 0xCAFE0001) + partition
    member = struct.pack("<HHIII", 1, 0, 0xCAFE0001, 44 + 4 + 8, 6)
    sets = struct.pack("<HH", 1, 0) + struct.pack("<HHII", 1, 2, 0, 1) + member
    header = struct.pack("<IIB3sIIIIIIII", 3, 4, 1, b"xyz", 44, len(disks), 44 + len(disks), len(sets), 5, 6, 0, 0)
    assert len(header) == 44
    found = parse(header + disks + sets, "hive")
    (disk,), (group,) = found.disks, found.sets
    (row,) = disk.partitions
    assert (found.header.version, found.header.dirty_shutdown, found.header.stripe_width) == (3, 1, 5)
    assert (disk.signature, row.ft_type, row.ft_state) == (0xCAFE0001, FtType.STRIPE_WITH_PARITY, FtState.ORPHANED)
    assert (row.offset, row.length, row.ft_length, row.letter) == (0x7E00, 0x100000, 0xC0000, "E:")
    assert (row.logical_number, row.ft_group, row.ft_member, row.modified) == (9, 3, 2, 1)
    assert (group.type, group.state) == (FtType.STRIPE_WITH_PARITY, SetState.HAS_ORPHAN)
    assert group.members[0].partition_offset == 56
    assert serialise(found) == header + disks + sets


def test_what_is_built_comes_back() -> None:
    found = parse(VALUE, "hive")
    assert serialise(found) == VALUE
    assert [[(p.offset, p.ft_type, p.ft_state, p.letter) for p in disk.partitions] for disk in found.disks] == [
        [(0x7E00, 0, 0, "C:")], [(0x7E00, 4, 0, "E:"), (0x8E00, 0, 1, "C:")]]
    assert [VALUE[m.partition_offset + 8:][:8] for m in found.sets[0].members] == [
        struct.pack("<q", 0x7E00), struct.pack("<q", 0x8E00)]


def test_bytes_between_the_parts_are_kept() -> None:
    header = bytearray(VALUE[:44])
    start, size = struct.unpack_from("<II", header, 12)
    struct.pack_into("<I", header, 12, start + 20)
    struct.pack_into("<I", header, 20, struct.unpack_from("<I", header, 20)[0] + 25)
    value = bytes(header) + b"g" * 20 + VALUE[44:44 + size] + b"GAPS!" + VALUE[44 + size:] + b"names"
    assert serialise(parse(value, "hive")) == value


@pytest.mark.parametrize(("at", "form", "number", "field"), [
    (12, "<I", 40, "DiskInformationOffset"), (12, "<I", 1 << 31, "DiskInformationOffset"),
    (16, "<I", 1 << 20, "DiskInformationOffset"), (20, "<I", 60, "FtInformationOffset"),
    (24, "<I", 1 << 20, "FtInformationOffset"), (44, "<H", 65535, ""), (48, "<H", 65535, ""),
    (56, "<I", 6, ""), (60, "<I", 5, ""), (64, "<q", -1, ""), (72, "<q", -512, ""),
])
def test_nonsense_is_refused_with_its_place(at: int, form: str, number: int, field: str) -> None:
    value = bytearray(VALUE)
    struct.pack_into(form, value, at, number)
    with pytest.raises(LayoutError) as caught:
        parse(bytes(value), "disk0, SYSTEM")
    where = caught.value.where
    assert where.source == "disk0, SYSTEM" and where.offset is not None and where.length
    assert field in where.item and caught.value.why and caught.value.next


@pytest.mark.parametrize("value", [b"", VALUE[:43], bytes(44), VALUE + bytes(LIMIT)])
def test_too_short_too_long(value: bytes) -> None:
    with pytest.raises(LayoutError):
        parse(value, "hive")


def test_no_list_of_sets_at_all() -> None:
    value = bytearray(VALUE)
    struct.pack_into("<II", value, 20, 0, 0)
    found = parse(bytes(value), "hive")
    assert found.sets == () and serialise(found) == value


def test_what_does_not_fit_is_not_written() -> None:
    found = parse(VALUE, "hive")
    with pytest.raises(ValueError, match="do not fit"):
        serialise(replace(found, disks=(*found.disks, found.disks[0])))
    with pytest.raises(ValueError, match="do not fit"):
        serialise(replace(found, base=VALUE[:100]))


def parsed_or_refused(value: bytes) -> Information | None:
    try:
        found = parse(value, "hive")
    except LayoutError:
        return None
    assert serialise(found) == value
    return found


def test_every_byte_flipped() -> None:
    refused = 0
    for at in range(len(VALUE)):
        for bit in (0x01, 0x80, 0xFF):
            value = bytearray(VALUE)
            value[at] ^= bit
            refused += parsed_or_refused(bytes(value)) is None
    assert refused > 50
    for length in range(len(VALUE)):
        assert parsed_or_refused(VALUE[:length]) is None


ROWS = st.builds(Row, st.integers(0, 1 << 62), st.integers(0, 1 << 62), st.sampled_from(["", "C", "Z"]),
                 st.sampled_from(FtType), st.integers(0, 9), st.integers(0, 65535), st.sampled_from([
                     FtState.HEALTHY, FtState.ORPHANED, FtState.REGENERATING, FtState.INITIALIZING]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.lists(ROWS, max_size=4)), max_size=4), st.booleans())
def test_any_description_comes_back(described: list[tuple[int, list[Row]]], dirty: bool) -> None:
    value = information(described, dirty)
    found = parsed_or_refused(value)
    assert found is not None
    assert [(disk.signature, [(p.offset, p.length, p.ft_type, p.ft_state, p.ft_group, p.ft_member)
                              for p in disk.partitions]) for disk in found.disks] == [
        (signature, [(r.offset, r.length, r.kind, r.state, r.group, r.member) for r in rows])
        for signature, rows in described]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=400), st.lists(st.tuples(st.integers(0, len(VALUE) - 1), st.integers(0, 255)), max_size=6))
def test_anything_is_an_answer_or_a_layout_error(junk: bytes, changes: list[tuple[int, int]]) -> None:
    parsed_or_refused(junk)
    value = bytearray(VALUE)
    for at, byte in changes:
        value[at] = byte
    parsed_or_refused(bytes(value))
