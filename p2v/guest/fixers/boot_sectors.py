"""Boot code must compute the addresses that the VM's BIOS understands: CHS fields and boot sectors.

MBR and boot sector code of NT 4 and 2000 reads by cylinder, head and sector. Table entries, the boot
sector of the system volume and the VM must agree on the geometry, or the boot ends in "A disk read error
occurred" or a cursor. Partition types and boot code are never changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.guest.facts import volume_of
from p2v.model import SECTOR, BytesChange, Change, Family, Geometry, Guest, Partition, Source, Target
from p2v.volume.geometry import end_chs, start_chs, target_geometry

NAME = "boot-sectors"
GPT_PROTECTIVE = 0xEE
FIRST_DISK = 0x80  # INT 13h
SIGNATURE = b"\x55\xaa"
CODE_SECTORS = 16  # the boot code of NTFS
MORE_CODE = 12  # sector of a FAT32 volume in which NT's boot code goes on
BOOT_MANAGERS = {b"GRUB": "GRUB", b"LILO": "LILO", b"SYSLINUX": "SYSLINUX"}


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """CHS fields of every table entry, then the boot sector of the active partition and its backup."""
    if guest.facts.family is not Family.WINDOWS:
        return
    for partition in guest.partitions:
        if guest.disks[partition.disk].sector_size == SECTOR and partition.type != GPT_PROTECTIVE:
            yield from _entry(guest, partition)
    first = next(iter(guest.disks), "")
    if first:
        yield from _boot_disk(guest, first)


def _change(guest: Guest, disk: str, offset: int, wanted: bytes, why: str) -> Iterator[BytesChange]:
    before = guest.read_bytes(disk, offset, len(wanted))
    if before != wanted:
        yield BytesChange(disk, offset, before, wanted, why, NAME)


def _entry(guest: Guest, partition: Partition) -> Iterator[BytesChange]:
    """Start and end CHS of one entry; the type between them stays."""
    geometry = target_geometry(guest.disks[partition.disk].size)
    start, last = partition.offset // SECTOR, (partition.offset + partition.length) // SECTOR - 1
    shape = f"the VM's BIOS presents {geometry.heads} heads, {geometry.sectors} sectors per track"
    why = f"{shape}; NT 4's MBR code reads by these fields"
    yield from _change(guest, partition.disk, partition.entry_offset + 1, start_chs(start, geometry), why)
    yield from _change(guest, partition.disk, partition.entry_offset + 5, end_chs(last, geometry),
                       f"{shape}; QEMU and the boot code take the geometry from the entry's end")


def _boot_disk(guest: Guest, disk: str) -> Iterator[Change | Finding]:
    source = guest.disks[disk]
    if source.size < SECTOR or source.sector_size != SECTOR:
        yield _error(source, 0, "the boot disk has no 512-byte sectors", "no BIOS starts these systems from it",
                     "copy it to a disk with 512-byte sectors")
        return
    yield from _master(source, guest.read_bytes(disk, 0, SECTOR))
    active = [one for one in guest.partitions if one.disk == disk and one.active and not one.logical]
    if len(active) != 1:
        yield _error(source, 0x1BE, f"{len(active)} partitions of the boot disk are active",
                     'exactly one must be; else "Invalid partition table" or "Missing operating system"',
                     "make the partition with ntldr the only active one, on the server with fdisk or diskpart")
        return
    if volume_of(guest.volumes, active[0]) != guest.facts.system_volume:
        yield _error(source, active[0].entry_offset, "the active partition is not the one with ntldr",
                     "the BIOS would start something else", "give the disks in the order of the server's BIOS")
    yield from _boot_sector(guest, active[0])


def _master(source: Source, sector: bytes) -> Iterator[Finding]:
    if sector[510:] != SIGNATURE:
        yield _error(source, 510, "the boot disk's first sector has no 55 AA", "the BIOS does not start it",
                     "write standard MBR code on the server (fixmbr)")
    elif not any(sector[:0x1B8]):
        yield _error(source, 0, "the boot disk has no boot code in its first sector",
                     "the VM would show a cursor and nothing else", "write standard MBR code (fixmbr)")
    else:
        for sign, name in BOOT_MANAGERS.items():
            if sign in sector[:0x1B8]:
                yield Finding(f"the code in the boot disk's first sector is {name}", Where(source.name, 0, 0x1B8),
                              "it starts what it was installed for, by addresses that it keeps itself, and not just "
                              "the active partition",
                              "run fixmbr on the server, if the VM does not reach Windows", Severity.WARNING, NAME)


# ---------------------------------------------------------------------------------------------
# The boot sector of the system volume


def _boot_sector(guest: Guest, partition: Partition) -> Iterator[Change | Finding]:
    source = guest.disks[partition.disk]
    if partition.offset + SECTOR > source.size:
        return  # said when the table was read
    sector = guest.read_bytes(partition.disk, partition.offset, SECTOR)
    kind = boot_sector_kind(sector)
    if kind == "":
        yield _error(source, partition.offset, "the active partition has no boot sector of NTFS or FAT",
                     "the boot would end with Missing operating system",
                     f"run fixboot on the server{_spare(guest, partition)}")
        return
    if struct.unpack_from("<H", sector, 0x0B)[0] != SECTOR:
        yield _error(source, partition.offset + 0x0B, "the boot sector does not count in 512-byte sectors",
                     "the boot code cannot read such a volume",
                     "move the system to a volume with 512-byte sectors")
        return
    geometry = target_geometry(source.size)
    yield from _fields(guest, partition, partition.offset, kind, geometry, "the boot sector")
    yield from _backup(guest, partition, sector, kind, geometry)
    yield from _size(source, partition, sector, kind)
    length = min(CODE_SECTORS * SECTOR, source.size - partition.offset)
    code = guest.read_bytes(partition.disk, partition.offset, length)
    if not _names_ntldr(code):
        yield Finding("the boot sector does not name ntldr", Where(source.name, partition.offset, length),
                      "its code starts another system, or none; partitions formatted by DOS or Linux do so",
                      "run fixboot on the server if the VM does not start", Severity.WARNING, NAME)
    elif kind == "fat32" and not any(code[MORE_CODE * SECTOR:(MORE_CODE + 1) * SECTOR]):
        yield Finding("the second part of the boot code is empty",
                      Where(source.name, partition.offset + MORE_CODE * SECTOR, SECTOR),
                      "NT's boot code of FAT32 goes on in the volume's sector 12",
                      "run fixboot on the server if the VM shows a cursor and nothing else", Severity.WARNING, NAME)


def _spare(guest: Guest, partition: Partition) -> str:
    """Where a whole copy of a lost boot sector lies, in words; "" where there is none."""
    source = guest.disks[partition.disk]
    places = [partition.offset + partition.length - SECTOR, partition.offset + 6 * SECTOR]  # NTFS, FAT32
    for place in places:
        if place + SECTOR <= source.size and boot_sector_kind(guest.read_bytes(partition.disk, place, SECTOR)):
            return f"; a copy of the sector lies at byte {place:#x}"
    return ""


def _size(source: Source, partition: Partition, sector: bytes, kind: str) -> Iterator[Finding]:
    """The volume must not be larger than its partition."""
    if kind == "ntfs":
        total = int(struct.unpack_from("<Q", sector, 0x28)[0])
    else:
        total = struct.unpack_from("<H", sector, 0x13)[0] or struct.unpack_from("<I", sector, 0x20)[0]
    if total * SECTOR > partition.length:
        yield Finding("the volume is larger than its partition", Where(source.name, partition.offset, SECTOR),
                      f"{total} sectors against {partition.length // SECTOR}; what lies past the end may be another's",
                      "check on the server that the volume is whole (chkdsk), and that all of the disk was given",
                      Severity.WARNING, NAME)


def boot_sector_kind(sector: bytes) -> str:
    """"ntfs", "fat16" (and FAT12), "fat32", or "" for anything else."""
    if len(sector) < SECTOR or sector[510:512] != SIGNATURE:
        return ""
    if sector[3:11] == b"NTFS    ":
        return "ntfs"
    reserved, fats, fat_sectors = struct.unpack_from("<H", sector, 0x0E)[0], sector[0x10], sector[0x16:0x18]
    if not reserved or fats not in (1, 2):
        return ""
    return "fat32" if fat_sectors == b"\0\0" else "fat16"


def _fields(guest: Guest, partition: Partition, place: int, kind: str, geometry: Geometry,
            what: str) -> Iterator[BytesChange]:
    """Sectors per track, heads and hidden sectors lie side by side at 0x18; the drive number apart."""
    hidden = partition.offset // SECTOR
    wanted = struct.pack("<HHI", geometry.sectors, geometry.heads, hidden)
    yield from _change(
        guest, partition.disk, place + 0x18, wanted,
        f"in the VM {what} computes with {geometry.heads} heads, {geometry.sectors} sectors per track and "
        f'{hidden} hidden sectors; else "A disk read error occurred" or a hang')
    drive = 0x40 if kind == "fat32" else 0x24
    yield from _change(guest, partition.disk, place + drive, bytes((FIRST_DISK,)),
                       f"{what} of NT 4 takes the BIOS drive from here; the VM's boot disk is 0x80")


def _backup(guest: Guest, partition: Partition, sector: bytes, kind: str,
            geometry: Geometry) -> Iterator[Change | Finding]:
    """NTFS keeps a copy behind its last sector, FAT32 in a reserved sector, FAT16 none."""
    if kind == "ntfs":
        number = int(struct.unpack_from("<Q", sector, 0x28)[0])
    elif kind == "fat32":
        number = int(struct.unpack_from("<H", sector, 0x32)[0])
    else:
        return
    place = partition.offset + number * SECTOR
    source = guest.disks[partition.disk]
    inside = number > 0 and place + SECTOR <= min(partition.offset + partition.length, source.size)
    copy = guest.read_bytes(partition.disk, place, SECTOR) if inside else b""
    if boot_sector_kind(copy) == kind:
        yield from _fields(guest, partition, place, kind, geometry, "the backup boot sector")
        if _lasting(copy, kind) != _lasting(sector, kind):
            yield Finding("the boot sector and its backup differ", Where(source.name, place, SECTOR),
                          "in more than geometry and marks; nothing boots from the backup",
                          "nothing: the boot sector itself is used", Severity.INFO, NAME)
    elif number not in (0, 0xFFFF):
        where = Where(source.name, place, SECTOR) if inside else Where(source.name, partition.offset, SECTOR)
        yield Finding("the backup boot sector is not where it should be", where,
                      "NT 3.51 kept it in the middle of the volume; nothing boots from it",
                      "nothing: the boot sector itself is set right", Severity.INFO, NAME)


def _lasting(sector: bytes, kind: str) -> bytes:
    """A boot sector without geometry, drive, and the marks of a dirty volume that FAT keeps beside the drive."""
    drive = 0x40 if kind == "fat32" else 0x24
    kept = bytearray(sector)
    kept[0x18:0x20] = bytes(8)
    kept[drive:drive + 2] = bytes(2)
    return bytes(kept)


def _names_ntldr(code: bytes) -> bool:
    """FAT boot sectors spell the name in ASCII, NTFS ones in UTF-16."""
    return b"NTLDR" in code.upper() or "NTLDR".encode("utf-16-le") in code


def _error(source: Source, offset: int, what: str, why: str, next: str) -> Finding:
    return Finding(what, Where(source.name, offset), why, next, Severity.ERROR, NAME)
