"""Dynamic disks: what the databases of Windows' own disks say, and those of a broken mirror of each other."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from fixtures import ldm as writer
from fixtures import ldmgroup
from p2v.errors import Finding, Severity
from p2v.filesystem import examine
from p2v.filesystem.reader import open_files
from p2v.model import Mirror, Range, Source, Volume, read
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from p2v.volume import ldm
from p2v.volume import ldmrecords as records
from p2v.volume.ldmrecords import Flag
from tests.volume.ldmdisks import CONFIG, SECTOR, Ldm, disks, names
from tests.volume.made_tables import sector as table

GROUP = "03c0c4fc-8b6f-402b-9431-4be2e5823b1c"
PAIR = ("2003r2-mirrored-1", "2003r2-mirrored-2")
ALL_2003 = tuple(name for name in names() if name.startswith("2003"))
ALL_2008 = tuple(name for name in names() if name.startswith("2008"))


class Found:
    """What the reader says of some disks."""

    def __init__(self, given: Mapping[str, Source]) -> None:
        every = list(ldm.find(given))
        self.volumes = {v.name: v for v in every if isinstance(v, Volume)}
        self.mirrors = {m.name: m for m in every if isinstance(m, Mirror)}
        self.findings = [f for f in every if isinstance(f, Finding)]
        assert all(f.what and f.why and f.next and f.where.source and f.where.offset is not None for f in self.findings)

    def said(self, words: str) -> Finding:
        (finding,) = [f for f in self.findings if words in f.what]
        return finding

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.severity is Severity.ERROR]


def test_all_records_of_all_disks_parse_to_their_last_byte_and_can_be_written_again() -> None:
    assert len(names()) == 19
    count = 0
    for name in names():
        disk = Ldm(name)
        for record, places in disk.records().values():
            data = b"".join(disk.bytes_at(place + 16, 112) for place in places)
            length = 8 + int.from_bytes(data[4:8], "big")
            values = {field: getattr(record, field) for field in type(record).__slots__} | {"length": length - 8}
            assert records.KINDS[record.kind][0].build(values) == data[:length]
            count += 1
    assert count == 657


# -- whole groups


def test_a_group_of_2003_as_windows_made_it() -> None:
    found = Found(disks(*ALL_2003))
    assert not found.findings
    assert {name: (v.layout, v.origin.letter if v.origin else "", v.source.size // SECTOR, len(v.members))
            for name, v in found.volumes.items()} == {
        "ldm.Volume1": ("simple", "E:", 96256, 1), "ldm.Volume2": ("spanned", "F:", 192512, 2),
        "ldm.Stripe1": ("striped", "G:", 122880, 2), "ldm.Raid1": ("raid5", "I:", 192512, 3),
        "ldm.Volume4": ("spanned", "J:", 69632, 2)}
    assert list(found.mirrors) == ["ldm.Volume3"]


def test_a_group_of_2008_mixes_mbr_and_gpt() -> None:
    found = Found(disks(*ALL_2008))
    assert not found.findings
    assert {name: (v.layout, v.source.size // SECTOR, len(v.members)) for name, v in found.volumes.items()} == {
        "ldm.Volume1": ("spanned", 129024, 2), "ldm.Volume2": ("striped", 65536, 2),
        "ldm.Volume4": ("raid5", 65536, 3), "ldm.Volume5": ("spanned", 190464, 3)}
    (mirror,) = found.mirrors.values()
    assert [leg.member.offset for leg in mirror.legs] == [128 * SECTOR, 65664 * SECTOR]


def test_the_legs_of_a_mirror() -> None:
    (mirror,) = Found(disks(*reversed(PAIR))).mirrors.values()
    assert [leg.disk for leg in mirror.legs] == ["disk1", "disk0"]  # in the components' order, not the disks'
    assert mirror.size == 96256 * SECTOR and not mirror.missing
    origin = mirror.origin
    assert (origin.manager, origin.name, origin.letter, origin.type, origin.group) == ("ldm", "Volume3", "H:", 7, GROUP)
    assert origin.guid.hex() == "1010eeb709e44a6d9c436753ec9d3af2"
    for leg in mirror.legs:
        assert leg.generation == (1133, 5, 129918423480782884)
        assert leg.history == "committed 1133, TOC 5, changed 2012-09-11 13:05:48"
        assert not leg.against and not leg.fails and leg.source.size == mirror.size
        assert leg.partition and (leg.partition.type, leg.partition.offset) == (0x42, 63 * SECTOR)


def test_disks_that_were_not_given() -> None:
    found = Found(disks("2003r2-mirrored-2", "2003r2-raid5-1", "2003r2-raid5-3", "2003r2-striped-1"))
    (mirror,) = found.mirrors.values()
    assert mirror.missing == ("Disk6 (bfcb718c-3809-44b7-ae62-c94a3bd6b057) was not given",)
    assert found.said("mirror ldm.Volume3: 1 of its 2").severity is Severity.WARNING
    assert list(found.volumes) == ["ldm.Raid1"]
    assert "Disk9" in found.said("ldm.Raid1 is not whole").why
    assert {f.what.partition(":")[0] for f in found.errors} == {
        "volume ldm.Stripe1 cannot be read", "volume ldm.Volume4 cannot be read"}
    assert all("Disk5" in f.why for f in found.errors)
    told = found.said("6 of its 10 disks were not given").why
    assert told.startswith("Disk1 (d17c2c04-6afc-46c3-84b7-cdc2f3956c5c), Disk2 (") and told.endswith(
        "; volumes wholly on them: Volume1, Volume2")


def test_two_groups_are_read_each_by_itself() -> None:
    found = Found(disks("2003r2-simple-1", "2008r2-mirrored-1", "2008r2-mirrored-2", "2003r2-mirrored-1"))
    assert found.said("of 2 disk groups").severity is Severity.WARNING
    assert set(found.volumes) == {"ldm.03c0c4fc.Volume1"}
    assert set(found.mirrors) == {"ldm.03c0c4fc.Volume3", "ldm.06495a84.Volume3"}


def test_the_same_disk_twice_is_an_error() -> None:
    found = Found(disks(PAIR[0], PAIR[0]))
    assert found.said("disk0 and disk1 are the same dynamic disk").severity is Severity.ERROR
    (mirror,) = found.mirrors.values()
    assert [leg.disk for leg in mirror.legs] == ["disk0"]


# -- unequal disks


def stale(found: dict[str, Ldm]) -> None:
    found["disk0"].change_vmdb(committed_tid=1121, pending_tid=1121, changed=129918423480782884 - 10 ** 15)
    for name, (record, _) in found["disk0"].records().items():
        if record.commit_tid > 1121:
            found["disk0"].change(name, commit_tid=1121)


def test_an_older_leg_is_told_and_not_chosen_here() -> None:
    found = Found(disks(*PAIR, change=stale))
    (mirror,) = found.mirrors.values()
    old, new = mirror.legs
    assert old.generation < new.generation and old.history.startswith("committed 1121, TOC 5, changed 2009-")
    assert old.changed and new.changed and old.changed < new.changed
    told = found.said("not of one generation")
    assert told.severity is Severity.WARNING and "disk1 describes the group" in told.why
    assert not old.against and not found.errors


@pytest.mark.parametrize("record, values, words", [
    ("Disk6", {"flags": Flag.DISK_FAILING}, "disk Disk6 is failing"),
    ("Disk6", {"flags": Flag.DISK_REMOVED}, "disk Disk6 is removed"),
    ("Disk6", {"flags": Flag.DISK_DETACHED}, "disk Disk6 is detached"),
    ("Disk6", {"flags": Flag.DISK_MERGE_REQUIRED}, "disk Disk6 is to be merged"),
    ("Disk6-01", {"flags": Flag.PARTITION_RECOVER}, "partition Disk6-01 is to be recovered"),
    ("Disk6-01", {"flags": Flag.PARTITION_KDETACH}, "partition Disk6-01 is detached by the kernel"),
    ("Volume3-01", {"flags": Flag.COMPONENT_IOFAIL}, "component Volume3-01 is marked for I/O errors"),
    ("Volume3-01", {"flags": Flag.COMPONENT_RECOVER}, "component Volume3-01 is to be recovered"),
    ("Volume3-01", {"state": "STALE"}, "component Volume3-01 is STALE"),
    ("Volume3-01", {"state": "?new?"}, "component Volume3-01 is ?new?"),
])
def test_what_the_database_holds_against_one_leg(record: str, values: dict[str, object], words: str) -> None:
    def mark(found: dict[str, Ldm]) -> None:
        for disk in found.values():
            disk.change(record, **values)

    (mirror,) = Found(disks(*PAIR, change=mark)).mirrors.values()
    assert mirror.legs[0].against == (words,) and not mirror.legs[1].against


@pytest.mark.parametrize("values, words", [({"state": "SYNC"}, "volume Volume3 is SYNC"),
                                           ({"flags": 0x11 | Flag.VOLUME_CRASHED}, "volume Volume3 is crashed")])
def test_what_is_held_against_a_volume_is_held_against_both_legs(values: dict[str, object], words: str) -> None:
    def mark(found: dict[str, Ldm]) -> None:
        for disk in found.values():
            disk.change("Volume3", **values)

    (mirror,) = Found(disks(*PAIR, change=mark)).mirrors.values()
    assert [leg.against for leg in mirror.legs] == [(words,), (words,)]


def test_two_disks_that_fail_each_other() -> None:
    def split(found: dict[str, Ldm]) -> None:
        stale(found)
        found["disk0"].change("Disk7", flags=Flag.DISK_DETACHED)
        found["disk1"].change("Disk6", flags=Flag.DISK_REMOVED)

    (mirror,) = Found(disks(*PAIR, change=split)).mirrors.values()
    assert [leg.fails for leg in mirror.legs] == [("disk1",), ("disk0",)]
    assert mirror.legs[0].against == ("disk Disk6 is removed",)  # the newest database's word alone


def test_a_copy_that_the_newest_database_gave_up() -> None:
    def broken(found: dict[str, Ldm]) -> None:
        stale(found)
        found["disk1"].delete("Volume3-01", "Disk6-01", "Disk6")
        found["disk1"].change("Volume3", components=1)

    found = Found(disks(*PAIR, change=broken))
    assert not found.mirrors
    assert [member.disk for member in found.volumes["ldm.Volume3"].members] == ["disk1"]
    assert found.said("does not know this disk").where.source == PAIR[0]
    assert "Volume3 is put together in another way" in found.said("describes other volumes").why


def test_an_older_database_that_places_its_copy_elsewhere() -> None:
    def moved(found: dict[str, Ldm]) -> None:
        stale(found)
        found["disk0"].change("Disk6-01", start_sectors=8)

    found = Found(disks(*PAIR, change=moved))
    (mirror,) = found.mirrors.values()
    assert mirror.legs[0].against == ("the own database of disk0 does not place the copy there",)
    assert found.said("describes other volumes").severity is Severity.WARNING


def test_a_raid5_member_that_is_not_current_is_computed_from_the_others() -> None:
    def old(found: dict[str, Ldm]) -> None:
        found["disk1"].change_vmdb(committed_tid=1100, pending_tid=1100)

    def older(found: dict[str, Ldm]) -> None:
        old(found)
        found["disk2"].change_vmdb(committed_tid=1099, pending_tid=1099)

    wanted = tuple(f"2003r2-raid5-{number}" for number in (1, 2, 3))
    found = Found(disks(*wanted, change=old))
    assert found.said("without a member that is not current") and "ldm.Raid1" in found.volumes
    assert "ldm.Raid1" not in Found(disks(*wanted, change=older)).volumes


def test_databases_of_one_generation_that_differ_are_an_error() -> None:
    def differ(found: dict[str, Ldm]) -> None:
        found["disk1"].change("Disk7-01", start_sectors=8)

    finding = Found(disks(*PAIR, change=differ)).said("disk0 and disk1 disagree on Disk7-01")
    assert finding.severity is Severity.ERROR and finding.where.source == PAIR[1] and finding.where.length == 128


# -- copies, generations, updates


@pytest.mark.parametrize("name", ["2003r2-simple-1", "2008r2-mirrored-2"])
def test_any_copy_of_the_header_will_do(name: str) -> None:
    for keep in Ldm(name).head_places():
        disk = Ldm(name)
        for place in set(disk.head_places()) - {keep}:
            disk.patch(place + 40, b"x")
        found = Found({"disk0": disk})
        assert found.volumes or found.mirrors
        lost = {f.where.offset for f in found.findings if "a copy of the LDM header" in f.what}
        assert lost == set(disk.head_places()) - {keep}


def test_no_header_at_all_is_an_error() -> None:
    disk = Ldm("2003r2-simple-1")
    for place in disk.head_places():
        disk.patch(place, b"X")
    found = Found({"disk0": disk})
    assert found.said("whose header cannot be read").severity is Severity.ERROR and not found.volumes


def test_the_toc_in_force_is_the_one_with_the_highest_sequence() -> None:
    disk = Ldm("2003r2-simple-1")
    moved = records.TocRegion("config", 0, 400, 1481, 6, 1, bytes(4))
    for sector in (2, 2045):
        raw = records.TOCBLOCK_LAYOUT.parse(disk.bytes_at(disk.private + sector * SECTOR, SECTOR))
        disk.change_toc(sector, regions=(moved, *raw["regions"][1:]))
    assert "ldm.Volume1" in Found({"disk0": disk}).volumes
    disk.patch(disk.private + SECTOR + 100, b"x")  # the primary in force
    found = Found({"disk0": disk})
    assert "ldm.Volume1" in found.volumes
    assert found.said("TOCBLOCK is damaged").where.offset == disk.private + SECTOR


def test_an_update_that_was_interrupted() -> None:
    disk = Ldm("2003r2-simple-1")
    disk.change("Volume1", status=records.BEING_ADDED)
    disk.change_vmdb(status=2)
    found = Found({"disk0": disk})
    assert not found.volumes and "before it" in found.said("interrupted").why
    disk.change_vmdb(status=3)
    found = Found({"disk0": disk})
    assert "ldm.Volume1" in found.volumes and found.said("interrupted").severity is Severity.ERROR
    disk = Ldm("2003r2-simple-1")
    disk.change_vmdb(pending_tid=1134)
    assert Found({"disk0": disk}).said("pending 1134").severity is Severity.WARNING


def test_the_log_is_told_and_does_not_count() -> None:
    disk, twin = Ldm(PAIR[0]), Ldm(PAIR[1])
    place = disk.private + 1498 * SECTOR + 24
    disk.patch(place, b"\1" + (1133).to_bytes(8, "big") + (1134).to_bytes(8, "big"))
    found = Found({"disk0": disk, "disk1": twin})
    assert "detach 1133 → 1134" in found.said("log of the LDM database").what
    (mirror,) = found.mirrors.values()
    assert [leg.against for leg in mirror.legs] == [(), ()]


def test_fragments_in_any_order_and_any_slot() -> None:
    disk = Ldm("2003r2-simple-1")
    before = Found({"disk0": disk})
    held = dict(disk.slots())
    places = list(held)
    for place, content in zip(places, reversed([held[place] for place in places]), strict=True):
        disk.patch(place, content[:4] + disk.bytes_at(place + 4, 4) + content[8:])
    after = Found({"disk0": disk})
    assert [f.what for f in after.findings] == [f.what for f in before.findings]
    assert {n: v.members for n, v in after.volumes.items()} == {n: v.members for n, v in before.volumes.items()}


# -- what does not add up


def test_a_shorter_disk_is_said() -> None:
    disk = Ldm("2003r2-simple-1")
    disk.size = 40 << 20
    found = Found({"disk0": disk})
    assert "cut short" in found.said("database cannot be read").why and not found.volumes
    whole, short = Ldm(PAIR[0]), Ldm(PAIR[1])
    short.size = 40 << 20
    found = Found({"disk0": whole, "disk1": short})
    (mirror,) = found.mirrors.values()
    assert [leg.disk for leg in mirror.legs] == ["disk0"] and "cut short" in mirror.missing[0]
    assert not found.errors


def test_a_disk_copied_to_a_larger_one_is_read() -> None:
    disk = Ldm("2003r2-simple-1")
    disk.size += 1 << 20
    found = Found({"disk0": disk})
    assert "ldm.Volume1" in found.volumes and [f.what[:20] for f in found.findings] == ["disk group Red-nzv8x"]


@pytest.mark.parametrize("record, values, words", [
    ("Volume1", {"components": 2}, "2 components"),
    ("Volume1", {"components": 0}, "0 components"),
    ("Volume1", {"sectors": 0}, "no length"),
    ("Volume1", {"sectors": 96257}, "do not fit"),
    ("Volume1-01", {"partitions": 0xFFFFFFFF}, "4294967295 partition records"),
    ("Volume1-01", {"layout": 9}, "layout 9"),
    ("Volume1-01", {"layout": 1}, "layout 1 with 0 columns"),
    ("Disk1-01", {"offset_sectors": 8}, "lies at sector 8"),
    ("Disk1-01", {"start_sectors": 8}, None),
    ("Disk1-01", {"start_sectors": 96327 - 96255}, "a part of it"),
    ("Disk1-01", {"start_sectors": 2 ** 64 - 1}, "a part of it"),
    ("Disk1-01", {"sectors": 0}, "lies at sector 0"),
    ("Disk1-01", {"disk_id": 77}, None),
])
def test_records_that_contradict_each_other_cost_their_volume_alone(
    record: str, values: dict[str, object], words: str | None
) -> None:
    given = disks("2003r2-simple-1", *PAIR)
    for disk in given.values():
        disk.change(record, **values)
    found = Found(given)
    assert len(found.mirrors) == 1
    if words:
        assert words in found.said("volume ldm.Volume1 cannot be read").what and not found.volumes


def test_columns_that_do_not_fit() -> None:
    for record, values in (("Stripe1-01", {"columns": 0xFFFFFFFF}), ("Stripe1-01", {"columns": 3}),
                           ("Stripe1-01", {"stripe_sectors": 0}), ("Disk5-01", {"column": 7}),
                           ("Disk5-01", {"column": 0}), ("Stripe1-01", {"stripe_sectors": 2 ** 63})):
        given = disks("2003r2-striped-1", "2003r2-striped-2")
        for disk in given.values():
            disk.change(record, **values)
        found = Found(given)
        assert "ldm.Stripe1" not in found.volumes and "ldm.Volume4" in found.volumes
        assert found.said("volume ldm.Stripe1 cannot be read").severity is Severity.ERROR


def test_volumes_that_claim_the_same_bytes_are_not_read() -> None:
    given = disks("2003r2-striped-1", "2003r2-striped-2")
    for disk in given.values():
        disk.change("Disk4-02", start_sectors=61439)
    found = Found(given)
    assert not found.volumes and len(found.errors) == 2
    assert all("Disk4-01, Disk4-02 claim the same bytes" in f.what for f in found.errors)


def test_a_database_of_another_group_is_not_read() -> None:
    disk = Ldm("2003r2-simple-1")
    disk.change_vmdb(group_guid="06495a84-fbfd-11e1-8cf9-52540061f5db")
    assert "another disk group" in Found({"disk0": disk}).said("database cannot be read").why
    assert not Found({"disk0": disk}).volumes


@pytest.mark.parametrize("values", [
    {"private_start_sectors": 2 ** 63}, {"private_sectors": 0}, {"private_sectors": 2 ** 50},
    {"primary_toc": 2 ** 60, "secondary_toc": 2 ** 60}, {"public_start_sectors": 2 ** 60},
    {"primary_sector": 2 ** 63, "secondary_sector": 5},
])
def test_absurd_places_in_the_header(values: dict[str, object]) -> None:
    disk = Ldm("2003r2-simple-1")
    disk.change_heads(**values)
    assert Found({"disk0": disk}).findings


@pytest.mark.parametrize("values", [{"slots": 2 ** 32 - 1}, {"slot_bytes": 0}, {"slot_bytes": 3}, {"header_bytes": 0},
                                    {"slots": 0}, {"header_bytes": 2 ** 32 - 1}])
def test_absurd_counts_in_the_head_of_the_database(values: dict[str, object]) -> None:
    disk = Ldm("2003r2-simple-1")
    disk.change_vmdb(**values)
    found = Found({"disk0": disk})
    assert found.errors and not found.volumes


def test_unreadable_sectors_of_one_database_are_made_up_for_by_another() -> None:
    first, second = disks(*PAIR).values()
    for place in (first.private + CONFIG, first.private + CONFIG + SECTOR):
        given: dict[str, Source] = {"disk0": FaultySource(first, [Range(place, SECTOR)]), "disk1": second}
        found = Found(given)
        (mirror,) = found.mirrors.values()
        assert len(mirror.legs) == 2 and not found.errors
        assert any(f.where.offset == place for f in found.findings)
        assert Found({"disk0": given["disk0"]}).errors


def test_remains_under_a_basic_table_are_left_alone() -> None:
    disk = Ldm("2003r2-simple-1")
    disk.patch(450, b"\7")
    found = Found({"disk0": disk})
    assert found.said("remains of a dynamic disk").severity is Severity.INFO and not found.volumes
    assert not list(ldm.private_bytes(disk))
    disk.patch(446, bytes(64))
    found = Found({"disk0": disk})
    assert found.said("without an entry of type 42") and "ldm.Volume1" in found.volumes


def test_what_ldm_keeps_for_itself() -> None:
    assert list(ldm.private_bytes(Ldm(PAIR[0]))) == [Range(6 * SECTOR, SECTOR), Range(100352 * SECTOR, 2048 * SECTOR)]
    assert list(ldm.private_bytes(Ldm("2008r2-mirrored-2"))) == [Range(34 * SECTOR, 2048 * SECTOR)]
    assert not list(ldm.private_bytes(MemorySource(bytes(1 << 20))))


def test_components_that_are_spanned_or_columns_of_several_extents() -> None:
    """A stripe whose second column goes on with the second extent of its disk."""
    given = disks("2003r2-striped-1", "2003r2-striped-2")
    for disk in given.values():
        known = {name: record for name, (record, _) in disk.records().items()}
        disk.delete("Volume4", "Volume4-01")
        component = known["Stripe1-01"]
        for name, column in (("Disk4-02", 0), ("Disk5-02", 1)):
            disk.change(name, parent_id=component.id, offset_sectors=61440, record_flags=8 if column else 0,
                        column=column or None)
        disk.change("Stripe1-01", partitions=4)
        disk.change("Stripe1", sectors=2 * 96256)
    volume = Found(given).volumes["ldm.Stripe1"]
    assert volume.source.size == 2 * 96256 * SECTOR
    assert [(m.disk, m.offset // SECTOR) for m in volume.members] == [
        ("disk0", 63), ("disk0", 63 + 61440), ("disk1", 63), ("disk1", 63 + 61440)]


def test_a_retained_logical_partition_is_the_leg_s_own() -> None:
    disk = Ldm(PAIR[0])
    disk.patch(0, table([(5, 10, 96380)]))
    disk.patch(10 * SECTOR, table([(0x42, 53, 96256)]))
    (mirror,) = Found({"disk0": disk}).mirrors.values()
    partition = mirror.legs[0].partition
    assert partition and partition.logical and partition.offset == mirror.legs[0].member.offset
    disk.patch(10 * SECTOR, table([(0x42, 54, 96255)]))
    (mirror,) = Found({"disk0": disk}).mirrors.values()
    assert mirror.legs[0].partition is None


def made(group: ldmgroup.Group, sectors: int = 4096) -> dict[str, Source]:
    """Small disks of a group, every sector with the disk's and its own number."""
    given: dict[str, Source] = {}
    for index, member in enumerate(group.disks):
        data = bytearray(numbered_sectors(f"disk{index}", sectors * SECTOR))
        data[:SECTOR] = table([(0x42, 63, sectors - 2048 - 63)])
        place = ldmgroup.Place(63, sectors - 2048 - 63, sectors - 2048)
        database = ldmgroup.database(group, member.name, place)
        data[6 * SECTOR:7 * SECTOR] = writer.head_sector(database.head)
        data[place.private_start * SECTOR:] = writer.private_region(database)
        given[f"disk{index}"] = MemorySource(bytes(data), name=f"disk{index}")
    return given


def test_a_leg_may_be_a_stripe_itself() -> None:
    four = ("Disk1", "Disk2", "Disk3", "Disk4")
    components = tuple(ldmgroup.Component(tuple(ldmgroup.Run(disk, 10 * leg, 256, column=column)
                                                for column, disk in enumerate(four[2 * leg:2 * leg + 2])),
                                          records.STRIPED, 128) for leg in (0, 1))
    group = ldmgroup.Group("Dg0", ldmgroup.guid("g"), tuple(ldmgroup.Disk(name, ldmgroup.guid(name)) for name in four),
                           (ldmgroup.Volume("Volume1", 512, ldmgroup.guid("v"), components, "D:"),))
    given = made(group)
    found = Found(given)
    (mirror,) = found.mirrors.values()
    assert not found.findings and mirror.size == 512 * SECTOR
    for number, leg in enumerate(mirror.legs):
        assert leg.disk == f"disk{2 * number}" and leg.member.offset == (63 + 10 * number) * SECTOR
        for chunk, (disk, row) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
            expected = read(given[f"disk{2 * number + disk}"], (63 + 10 * number + 128 * row) * SECTOR, 128 * SECTOR)
            assert read(leg.source, chunk * 128 * SECTOR, 128 * SECTOR) == expected
    without = Found({id: disk for id, disk in given.items() if id != "disk3"})
    (mirror,) = without.mirrors.values()
    assert [leg.disk for leg in mirror.legs] == ["disk0"] and "Disk4" in mirror.missing[0]


def test_system_and_boot_volumes_and_records_of_revision_4() -> None:
    disk, twin = disks(*PAIR).values()
    for one in (disk, twin):
        one.change("Volume3", flags=0x11 | Flag.VOLUME_SYSTEM | Flag.VOLUME_BOOT)
        for name, guid in (("Disk6", "bfcb718c-3809-44b7-ae62-c94a3bd6b057"),):
            record, places = one.records()[name]
            one.store(records.DiskRecord4(0, 0, 0x44, record.id, name, uuid.UUID(guid).bytes, bytes(16), "", 0,
                                          record.commit_tid), places)
    (mirror,) = Found({"disk0": disk, "disk1": twin}).mirrors.values()
    assert mirror.origin.system and mirror.origin.boot and len(mirror.legs) == 2


# -- witnesses


def unpacked(corpus: Path, folder: Path, *wanted: str) -> dict[str, Path]:
    for name in wanted:
        with lzma.open(corpus / f"ldm/ldm-{name}.img.xz") as packed, open(folder / name, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    return {name: folder / name for name in wanted}


def in_ldmtool(images: Mapping[str, Path], *words: str) -> dict[str, object]:
    options = [option for image in images.values() for option in ("-d", str(image))]
    done = subprocess.run(["ldmtool", *options, "show", *words], capture_output=True, text=True, check=True)
    shown: dict[str, object] = json.loads(done.stdout)
    return shown


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Path]]]:
    """Both groups as files of holes and metadata."""
    folder = tmp_path_factory.mktemp("ldm")
    made = []
    for wanted in (ALL_2003, ALL_2008):
        images = {}
        for name in wanted:
            images[name] = folder / name
            with open(images[name], "wb") as file:
                file.truncate(Ldm(name).size)
                for offset, data in Ldm(name).pieces.items():
                    file.seek(offset)
                    file.write(data)
        made.append(images)
    yield made


def test_ldmtool_sees_the_same_volumes(groups: list[dict[str, Path]], needs: Callable[..., None]) -> None:
    needs("ldmtool")
    for images in groups:
        given = disks(*images)
        found = Found(given)
        volumes: dict[str, Volume | Mirror] = {**found.volumes, **found.mirrors}
        guid = next(iter(volumes.values())).origin.group
        group = in_ldmtool(images, "diskgroup", guid)
        assert {f"ldm.{name}" for name in group["volumes"]} == set(volumes)
        for name, volume in volumes.items():
            origin = volume.origin
            assert origin
            shown = in_ldmtool(images, "volume", guid, origin.name)
            size = volume.size if isinstance(volume, Mirror) else volume.source.size
            layout = "mirrored" if isinstance(volume, Mirror) else volume.layout
            assert (shown["guid"], shown["hint"], shown["size"]) == (
                records.guid_text(origin.guid), origin.letter, size // SECTOR), name
            assert str(shown["type"]).lower() == layout
            places = [in_ldmtool(images, "partition", guid, part) for part in shown["partitions"]]
            starts = {(part["disk"], part["start"], part["size"]) for part in places}
            assert starts == theirs(given, volume)


def theirs(given: Mapping[str, Ldm], volume: Volume | Mirror) -> set[tuple[object, ...]]:
    """Our members in ldmtool's words: disk record, sectors from the public region's start, sectors."""
    found = set()
    for member in ([leg.member for leg in volume.legs] if isinstance(volume, Mirror) else volume.members):
        disk = given[member.disk]
        head = records.PRIVHEAD_LAYOUT.parse(disk.bytes_at(disk.head_places()[0], SECTOR))
        (name,) = [name for name, (record, _) in disk.records().items()
                   if getattr(record, "guid", b"") == head.disk_guid]
        found.add((name, member.offset // SECTOR - head.public_start_sectors, member.length // SECTOR))
    return found


def test_the_files_of_the_corpus_are_read_in_every_layout(corpus: Path, tmp_path: Path) -> None:
    images = unpacked(corpus, tmp_path, "2003r2-simple-1", *PAIR, "2003r2-striped-1", "2003r2-striped-2",
                      "2003r2-raid5-1", "2003r2-raid5-2", "2003r2-raid5-3")
    sources = {f"disk{index}": open_disk(str(path)) for index, path in enumerate(images.values())}
    without = {id: source for id, source in sources.items() if id != "disk6"}
    for given in (sources, without):
        found = Found(given)
        legs = [leg.source for mirror in found.mirrors.values() for leg in mirror.legs]
        volumes = {name: volume.source for name, volume in found.volumes.items()}
        assert set(volumes) == {"ldm.Volume1", "ldm.Stripe1", "ldm.Volume4", "ldm.Raid1"} and len(legs) == 2
        for source in (*volumes.values(), *legs):
            filesystem = examine(source)
            assert filesystem.kind == "ntfs"
            files = open_files(source, filesystem)
            assert files.list("\\")
            every = [name for name in files.list("\\") if not files.stat(f"\\{name}").is_folder]
            assert all(len(files.read(f"\\{name}")) == files.stat(f"\\{name}").size for name in every)
    for source in sources.values():
        source.close()
