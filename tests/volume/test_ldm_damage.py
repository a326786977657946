"""Dynamic disks that lie: every byte of their metadata flipped, and records of any bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.errors import Finding, LayoutError, Where
from p2v.model import Mirror, Source, Volume
from p2v.volume import ldm
from p2v.volume import ldmrecords as records
from tests.volume.ldmdisks import CONFIG, FIRST_SLOT, SECTOR, SLOT, Ldm, disks

PAIR = ("2003r2-mirrored-1", "2003r2-mirrored-2")
STRIPE = ("2003r2-striped-1", "2003r2-striped-2")
STEP = 79  # bytes between those that are flipped; 1 was tried once
SLOW = 20.0  # seconds that nothing here may take


def answer(given: Mapping[str, Source]) -> tuple[list[object], list[Finding]]:
    """All that is found but the findings, and those."""
    every = list(ldm.find(given))
    shown: list[object] = [(v.name, v.layout, v.members, v.partition, v.origin, v.source.size)
                           for v in every if isinstance(v, Volume)]
    for mirror in every:
        if isinstance(mirror, Mirror):
            shown.append((mirror.name, mirror.size, mirror.origin, mirror.missing))
            shown += [(leg.disk, leg.member, leg.partition, leg.generation, leg.against, leg.fails)
                      for leg in mirror.legs]
    return shown, [one for one in every if isinstance(one, Finding)]


def metadata(disk: Ldm) -> Iterator[int]:
    """Every byte that a structure of this disk uses."""
    for place in disk.head_places():
        yield from range(place, place + SECTOR)
    for sector in (1, 2, 2045, 2046, 17, 1498):
        yield from range(disk.private + sector * SECTOR, disk.private + (sector + 1) * SECTOR)
    for place, _ in disk.slots():
        yield from range(place, place + SLOT)


@pytest.mark.parametrize("wanted", [PAIR, STRIPE], ids=["mirror", "stripe"])
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_a_flipped_byte_gives_the_same_answer_or_a_finding(wanted: tuple[str, str], flip: int) -> None:
    usual, known = answer(disks(*wanted))
    for place in list(metadata(Ldm(wanted[1])))[flip % STEP::STEP]:
        given = disks(*wanted)
        given["disk1"].patch(place, bytes([given["disk1"].bytes_at(place, 1)[0] ^ flip]))
        shown, findings = answer(given)
        assert shown == usual or len(findings) > len(known), f"byte {place:#x} of disk1"


def test_flips_on_a_lone_disk_are_survived() -> None:
    """Nothing contradicts a record's number there: what counts is that nothing else is raised."""
    for place in list(metadata(Ldm("2008r2-raid5-2")))[::STEP]:
        disk = Ldm("2008r2-raid5-2")
        disk.patch(place, bytes([disk.bytes_at(place, 1)[0] ^ 0x80]))
        answer({"disk0": disk})


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_many_changed_bytes_are_survived(data: st.DataObject) -> None:
    given = disks(*data.draw(st.sampled_from([PAIR, STRIPE, ("2008r2-mirrored-1", "2008r2-mirrored-2")])))
    for disk in given.values():
        places = list(metadata(disk))
        for place in data.draw(st.lists(st.sampled_from(places), max_size=12)):
            disk.patch(place, bytes([data.draw(st.integers(0, 255))]))
        disk.size = data.draw(st.sampled_from([disk.size, disk.size, disk.size - SECTOR, 30 << 20, 5 * SECTOR, 0]))
    for found in ldm.find(given):
        if isinstance(found, Volume):
            assert all(0 <= m.offset < m.offset + m.length <= given[m.disk].size for m in found.members)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(records.KINDS)), st.integers(0, 255), st.binary(max_size=200), st.integers(-2, 2))
def test_a_record_of_any_bytes_is_parsed_exactly_or_refused(kind: int, flags: int, body: bytes, wrong: int) -> None:
    data = bytes([0, 0, flags, kind]) + max(len(body) + wrong, 0).to_bytes(4, "big") + body
    try:
        record = records.parse_record(data, Where("a record"))
    except LayoutError as error:
        assert error.why and error.where.source
        return
    assert (record.record_flags, record.kind) == (flags, kind)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_record_that_is_changed_is_parsed_exactly_or_refused(data: st.DataObject) -> None:
    held = dict(Ldm("2003r2-simple-1").slots())
    slot = bytearray(held[data.draw(st.sampled_from([place for place, one in held.items() if one[15] == 1]))][16:])
    for _ in range(data.draw(st.integers(1, 6))):
        slot[data.draw(st.integers(0, len(slot) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = records.parse_record(bytes(slot), Where("a record"))
    except LayoutError:
        return
    length = 8 + int.from_bytes(slot[4:8], "big")
    values = {field: getattr(record, field) for field in type(record).__slots__} | {"length": length - 8}
    if max(values.get("sectors", 0), 0) < 1 << 32:
        assert len(records.KINDS[record.kind][0].build(values)) <= length


def test_a_database_full_of_records_costs_little() -> None:
    """All slots hold a volume of its own number: as much as a private region can say."""
    disk = Ldm("2003r2-simple-1")
    record, (place,) = disk.records()["Volume1"]
    payload = disk.bytes_at(place + 16, SLOT - 16)
    filled = bytearray(disk.bytes_at(disk.private + CONFIG, 5924 * SLOT))
    for number in range(FIRST_SLOT, 5924):
        head = b"VBLK" + number.to_bytes(4, "big") + number.to_bytes(4, "big") + b"\0\0\0\1"
        filled[number * SLOT:(number + 1) * SLOT] = head + payload.replace(b"\4\x21", number.to_bytes(2, "big"), 1)
    disk.patch(disk.private + CONFIG, filled)
    began = time.monotonic()
    _, findings = answer({"disk0": disk})
    assert time.monotonic() - began < SLOW and 0 < len(findings) < 50 and record.id == 0x421


def test_headers_that_point_at_each_other_end() -> None:
    disk = Ldm("2003r2-simple-1")
    for step, place in enumerate(disk.head_places()):
        raw = records.PRIVHEAD_LAYOUT.parse(disk.bytes_at(place, SECTOR))
        raw["primary_sector"], raw["secondary_sector"] = 1856 + step, 2047 - step
        disk.patch(place, records.PRIVHEAD_LAYOUT.build(raw))
    answer({"disk0": disk})
