"""CHS fields and boot sectors: what is set, what is said, and what is never touched."""

from __future__ import annotations

import struct

import pytest

from p2v.errors import Finding, Severity
from p2v.guest.fixers import boot_sectors
from p2v.guest.fixers.boot_sectors import boot_sector_kind
from p2v.testing import DirGuest, check_fixer

DISK = 24 << 20  # bytes: 16 heads, 63 sectors in the VM
START, LENGTH = 32, 40000  # sectors; 64 x 32 was the geometry of small SCSI disks
LAST = START + LENGTH - 1


def boot_sector(kind: str, *, heads: int = 64, sectors: int = 32, hidden: int = START, drive: int = 0x81,
                size: int = LENGTH - 1) -> bytes:
    sector = bytearray(512)
    sector[0:3] = b"\xeb\x3c\x90"
    struct.pack_into("<HBHB", sector, 0x0B, 512, 8, 0 if kind == "ntfs" else 32, 0 if kind == "ntfs" else 2)
    struct.pack_into("<HHI", sector, 0x18, sectors, heads, hidden)
    if kind == "ntfs":
        sector[3:11] = b"NTFS    "
        struct.pack_into("<Q", sector, 0x28, size)
    elif kind == "fat32":
        struct.pack_into("<H", sector, 0x32, 6)
        sector[0x52:0x5A] = b"FAT32   "
    else:
        struct.pack_into("<H", sector, 0x16, 100)
        sector[0x36:0x3E] = b"FAT16   "
    sector[0x40 if kind == "fat32" else 0x24] = drive
    sector[0x100:0x105] = b"NTLDR"
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def disk(kind: str, **fields: int) -> bytearray:
    data = bytearray(DISK)
    data[0:4] = b"\xfa\x33\xc0\x8e"
    entry = struct.pack("<B3sB3sII", 0x80, b"\x01\x00\x00", 7, b"\x3f\xe0\x12", START, LENGTH)
    data[0x1BE:0x1CE], data[510:512] = entry, b"\x55\xaa"
    sector = boot_sector(kind, **fields)
    data[START * 512:START * 512 + 512] = sector
    backup = {"ntfs": START + LENGTH - 1, "fat32": START + 6}.get(kind)
    if backup:
        data[backup * 512:backup * 512 + 512] = sector
    if kind == "fat32":
        data[(START + 12) * 512:(START + 12) * 512 + 4] = b"more"
    return data


@pytest.fixture
def make(nt4_tree):
    return lambda data: DirGuest({"disk0p1": nt4_tree}, {"disk0": data})


def split(wishes) -> tuple[dict[int, bytes], list[Finding]]:
    wishes = list(wishes)
    return ({wish.offset: wish.after for wish in wishes if not isinstance(wish, Finding)},
            [wish for wish in wishes if isinstance(wish, Finding)])


@pytest.mark.parametrize(("kind", "drive", "backup"), [
    ("ntfs", 0x24, (START + LENGTH - 1) * 512), ("fat16", 0x24, None), ("fat32", 0x40, (START + 6) * 512)])
def test_all_that_the_bios_must_agree_on(make, piix_target, kind, drive, backup):
    changes, findings = split(check_fixer(boot_sectors, make(disk(kind)), piix_target))
    fields = struct.pack("<HHI", 63, 16, START)
    wanted = {0x1BF: b"\x00\x21\x00", 0x1C3: b"\xfe\xff\xff"}  # LBA 32: head 0, sector 33
    for place in (START * 512, backup):
        if place:
            wanted |= {place + 0x18: fields, place + drive: b"\x80"}
    assert changes == wanted
    assert findings == []


def test_what_is_right_stays(make, piix_target):
    data = disk("ntfs", heads=16, sectors=63, drive=0x80)
    data[0x1BF:0x1C2], data[0x1C3:0x1C6] = b"\x00\x21\x00", b"\xfe\xff\xff"
    assert list(boot_sectors.plan(make(data), piix_target)) == []


def test_only_the_field_that_is_wrong(make, piix_target):
    data = disk("ntfs", heads=16, sectors=63, drive=0x80, hidden=63)
    changes, _ = split(boot_sectors.plan(make(data), piix_target))
    assert START * 512 + 0x18 in changes and START * 512 + 0x24 not in changes


def test_a_partition_longer_than_its_volume(make, piix_target):
    """The backup lies behind the volume's last sector, not the partition's."""
    data = disk("ntfs", size=30000)
    data[(START + 30000) * 512:(START + 30001) * 512] = data[START * 512:(START + 1) * 512]
    changes, findings = split(boot_sectors.plan(make(data), piix_target))
    assert (START + 30000) * 512 + 0x18 in changes and (START + LENGTH - 1) * 512 + 0x18 not in changes
    assert findings == []


@pytest.mark.parametrize("size", [LENGTH, 1 << 40, (1 << 64) - 1, 77])
def test_a_backup_that_is_not_there(make, piix_target, size):
    changes, findings = split(boot_sectors.plan(make(disk("ntfs", size=size)), piix_target))
    assert findings[0].severity is Severity.INFO and "backup" in findings[0].what
    assert [finding.what for finding in findings[1:]] == ["the volume is larger than its partition"][:size > LENGTH]
    assert not any(offset > START * 512 + 0x24 for offset in changes)


@pytest.mark.parametrize(("spoil", "said", "severity"), [
    (lambda data: data.__setitem__(0x1BE, 0), "0 partitions of the boot disk are active", "error"),
    (lambda data: data.__setitem__(slice(0, 4), bytes(4)), "no boot code in its first sector", "error"),
    (lambda data: data.__setitem__(START * 512 + 510, 0), "no boot sector of NTFS or FAT", "error"),
    (lambda data: data.__setitem__(START * 512 + 3, 0x4D), "no boot sector of NTFS or FAT", "error"),
    (lambda data: data.__setitem__(START * 512 + 0x0C, 8), "does not count in 512-byte sectors", "error"),
    (lambda data: data.__setitem__(START * 512 + 0x100, 0), "does not name ntldr", "warning"),
    (lambda data: data.__setitem__(slice(0x180, 0x184), b"GRUB"), "first sector is GRUB", "warning"),
    (lambda data: data.__setitem__(START * 512 + 0x50, 9), "and its backup differ", "info"),
])
def test_what_stops_the_boot_is_said(make, piix_target, spoil, said, severity):
    data = disk("ntfs")
    spoil(data)
    _, findings = split(boot_sectors.plan(make(data), piix_target))
    assert [finding.severity.value for finding in findings if said in finding.what] == [severity]


def test_two_active_partitions(make, piix_target):
    data = disk("ntfs")
    data[0x1CE:0x1DE] = struct.pack("<B3sB3sII", 0x80, b"\0\0\0", 7, b"\0\0\0", START + LENGTH, 1000)
    _, findings = split(boot_sectors.plan(make(data), piix_target))
    assert any("2 partitions" in finding.what for finding in findings)


def test_types_and_code_are_never_touched(make, piix_target):
    data = disk("ntfs")
    before = bytes(data)
    for wish in boot_sectors.plan(make(data), piix_target):
        data[wish.offset:wish.offset + len(wish.after)] = wish.after
    allowed = {*range(0x1BF, 0x1C2), *range(0x1C3, 0x1C6)}
    for sector in (START * 512, (START + LENGTH - 1) * 512):
        allowed |= {*range(sector + 0x18, sector + 0x20), sector + 0x24}
    assert {at for at, (old, new) in enumerate(zip(before, data, strict=True)) if old != new} <= allowed


def test_logical_partitions_too(make, piix_target):
    data = disk("ntfs")
    ebr = START + LENGTH
    data[0x1CE:0x1DE] = struct.pack("<B3sB3sII", 0, b"\1\2\3", 5, b"\1\2\3", ebr, 4000)
    data[ebr * 512 + 0x1BE:ebr * 512 + 0x1CE] = struct.pack("<B3sB3sII", 0, b"\1\2\3", 6, b"\1\2\3", 32, 3000)
    data[ebr * 512 + 510:ebr * 512 + 512] = b"\x55\xaa"
    changes, _ = split(boot_sectors.plan(make(data), piix_target))
    # LBA 40064 = cylinder 39, head 11, sector 60; LBA 40032 = cylinder 39, head 11, sector 28
    assert changes[ebr * 512 + 0x1BF] == bytes((11, 60, 39))
    assert changes[0x1CF] == bytes((11, 28, 39))
    assert changes[ebr * 512 + 0x1C3] == changes[0x1D3] == b"\xfe\xff\xff"


@pytest.mark.parametrize("sector", [b"", bytes(511), bytes(512), b"\xff" * 512, bytes(510) + b"\x55\xaa"])
def test_no_boot_sector(sector):
    assert boot_sector_kind(sector) == ""


def test_a_lost_boot_sector_whose_copy_is_whole(make, piix_target):
    data = disk("ntfs")
    data[START * 512:START * 512 + 512] = bytes(512)
    _, findings = split(boot_sectors.plan(make(data), piix_target))
    assert f"a copy of the sector lies at byte {(START + LENGTH - 1) * 512:#x}" in findings[-1].next


def test_fat32_code_without_its_second_part(make, piix_target):
    data = disk("fat32")
    data[(START + 12) * 512:(START + 12) * 512 + 4] = bytes(4)
    _, findings = split(boot_sectors.plan(make(data), piix_target))
    assert [finding.what for finding in findings] == ["the second part of the boot code is empty"]
    assert findings[0].where.offset == (START + 12) * 512


@pytest.mark.parametrize(("kind", "mark"), [("fat32", 0x41), ("fat16", 0x25)])
def test_a_dirty_mark_stays_and_is_no_difference(make, piix_target, kind, mark):
    """NT sets it beside the drive number while it has the volume open, in the first copy only."""
    data = disk(kind)
    data[START * 512 + mark] = 1
    changes, findings = split(check_fixer(boot_sectors, make(data), piix_target))
    assert findings == [] and not any(START * 512 + mark in range(at, at + len(new)) for at, new in changes.items())
