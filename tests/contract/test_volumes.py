"""Every volume reader: what it finds lies where it says, and damage is a finding, never an exception."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import firmware, fttiny, ldm, ldmgroup, lvm, md
from fixtures.ft import Row
from p2v.errors import Finding
from p2v.model import Member, Mirror, Partition, Range, Volume, read
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from p2v.volume import READERS, Layout, VolumeReader, find_volumes
from p2v.volume.ftregistry import FtType
from tests.volume.made_tables import gpt as make_gpt
from tests.volume.made_tables import sector as table_sector

SIZE = 4096 * 512


def mbr_disk() -> bytes:
    """Two primaries and a logical, over sectors that carry their own numbers."""
    data = bytearray(numbered_sectors("disk0", SIZE))
    for table, rows in ((0, [(7, 63, 500), (6, 600, 1000), (5, 2000, 2000)]), (2000, [(7, 63, 1000)])):
        entries = b"".join(bytes(4) + bytes([type]) + bytes(3) + start.to_bytes(4, "little")
                           + count.to_bytes(4, "little") for type, start, count in rows)
        data[table * 512 + 446:table * 512 + 512] = entries.ljust(64, b"\0") + b"\x55\xaa"
    return bytes(data)


def md_disk() -> bytes:
    """The only member of an array, its superblock (1.2) at sector 8."""
    data = bytearray(numbered_sectors("disk0", SIZE))
    array = md.Array("1.2", SIZE // 2, level=-1, raid_disks=1, roles=(0,))
    data[:8 * 512] = bytes(8 * 512)
    data[8 * 512:16 * 512] = md.superblock(array, md.Disk(0), SIZE)
    return bytes(data)


def ft_disk() -> bytes:
    """A volume set of two partitions, and a third one with the hive that describes it."""
    places = ((1100 * 512, 500 * 512), (2100 * 512, 700 * 512))
    rows = [Row(offset, length, "D", FtType.VOLUME_SET, 0, number) for number, (offset, length) in enumerate(places)]
    data = fttiny.disk(fttiny.hive(fttiny.described(rows)), [(0x87, 1100, 500), (0x87, 2100, 700)])
    return bytes(data)


def firmware_disk() -> bytes:
    """One of two members of a DDF RAID 1, which ends in front of the metadata."""
    data = bytearray(numbered_sectors("disk0", SIZE))
    for sector, content in firmware.ddf(SIZE // 2, 0)(SIZE // 512).items():
        data[sector * 512:sector * 512 + len(content)] = content
    return bytes(data)


def lvm_disk() -> bytes:
    """A volume group with one volume on a whole disk."""
    text = lvm.group({"root": lvm.volume(lvm.striped(0, 4, [("pv0", 2)]))}, physical=1)
    return lvm.physical_volume(0, text, numbered_sectors("disk0", SIZE - lvm.DATA))


def gpt_disk() -> bytes:
    """One basic data partition."""
    data = bytearray(numbered_sectors("disk0", SIZE))
    make_gpt(data, [("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", 100, 1099)])
    return bytes(data)


def ldm_disk() -> bytes:
    """The only disk of its group, with a simple and a spanned volume."""
    data = bytearray(numbered_sectors("disk0", SIZE))
    data[:512] = table_sector([(0x42, 63, 1985)])
    runs = ldmgroup.Run("Disk1", 0, 500), ldmgroup.Run("Disk1", 900, 300), ldmgroup.Run("Disk1", 600, 100, 300)
    volumes = tuple(ldmgroup.Volume(name, size, ldmgroup.guid(name), (ldmgroup.Component(parts),))
                    for name, size, parts in (("Volume1", 500, runs[:1]), ("Volume2", 400, runs[1:])))
    group = ldmgroup.Group("Dg0", ldmgroup.guid("group"), (ldmgroup.Disk("Disk1", ldmgroup.guid("disk")),), volumes)
    made = ldmgroup.database(group, "Disk1", ldmgroup.Place(63, 1985, 2048))
    data[6 * 512:7 * 512] = ldm.head_sector(made.head)
    data[2048 * 512:] = ldm.private_region(made)
    return bytes(data)


DISKS = {
    "gpt": gpt_disk(), "ldm": ldm_disk(),
    "firmware": firmware_disk(), "lvm": lvm_disk(), "ftdisk": ft_disk(), "mbr": mbr_disk(), "md": md_disk(),
}
"""By the reader's NAME, a disk on which it finds volumes: each new reader brings one."""
SECTORS = {
    "gpt": (1, 2), "ldm": (6, 2048 + 1, 2048 + 17, 2048 + 18, 2048 + 19),
    "firmware": (3840, 3842, 3846, 4095), "lvm": (1, 8, 9), "ftdisk": (fttiny.HIVE_SECTOR,),
    "mbr": (0, 2000), "md": (8,),
}
"""By the reader's NAME, where the metadata of that disk lies."""


@pytest.fixture(params=READERS, ids=lambda reader: reader.NAME)
def reader(request: pytest.FixtureRequest) -> VolumeReader:
    assert request.param.NAME in DISKS, "a volume reader without a fixture"
    return request.param


def test_volumes_are_the_bytes_of_their_members(reader: VolumeReader) -> None:
    data = DISKS[reader.NAME]
    found = [v for v in reader.find({"disk0": MemorySource(data)}) if isinstance(v, Volume | Mirror)]
    assert found and len({v.name for v in found}) == len(found)
    for leg in (leg for mirror in found if isinstance(mirror, Mirror) for leg in mirror.legs):
        start, length = leg.member.offset, leg.member.length
        assert read(leg.source, 0, length) == data[start:start + length]
    for volume in (v for v in found if isinstance(v, Volume)):
        assert volume.source.size == sum(member.length for member in volume.members)
        if volume.layout == "basic":
            (member,) = volume.members
            assert read(volume.source, 0, member.length) == data[member.offset:member.offset + member.length]
        assert volume.source.name == volume.name


def test_names_and_numbers_are_stable(reader: VolumeReader) -> None:
    def told(layout: Layout) -> list[object]:
        return [*((v.name, v.members, v.partition) for v in layout.volumes), *layout.partitions, *layout.findings]

    disks = {"disk0": MemorySource(DISKS[reader.NAME]), "disk1": MemorySource(DISKS[reader.NAME])}
    assert told(find_volumes(disks)) == told(find_volumes(disks))
    assert {v.members[0].disk for v in reader.find(disks) if isinstance(v, Volume)} <= set(disks)


def test_nothing_on_an_empty_disk(reader: VolumeReader) -> None:
    for data in (b"", bytes(512), bytes(SIZE)):
        assert not [v for v in reader.find({"disk0": MemorySource(data)}) if isinstance(v, Volume | Mirror | Member)]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_is_a_finding(data: st.DataObject) -> None:
    for reader in READERS:
        disk = bytearray(DISKS[reader.NAME])
        for _ in range(data.draw(st.integers(1, 8))):
            sector = data.draw(st.sampled_from(SECTORS[reader.NAME]))
            first = 440 if reader.NAME == "mbr" else 0  # boot code is nobody's metadata
            disk[sector * 512 + data.draw(st.integers(first, 511))] = data.draw(st.integers(0, 255))
        size = data.draw(st.sampled_from([SIZE, 2001 * 512, 600 * 512, 512, 100]))
        for found in reader.find({"disk0": MemorySource(disk[:size])}):
            assert isinstance(found, Volume | Mirror | Partition | Member | Finding)
            if isinstance(found, Volume):
                assert all(0 <= m.offset < m.offset + m.length <= size for m in found.members)


def test_a_table_that_cannot_be_read_is_a_finding(reader: VolumeReader) -> None:
    for sector in SECTORS[reader.NAME]:
        source = FaultySource(MemorySource(DISKS[reader.NAME]), [Range(sector * 512, 512)])
        findings = [found for found in reader.find({"disk0": source}) if isinstance(found, Finding)]
        assert findings and all(f.what and f.why and f.where.source for f in findings)
