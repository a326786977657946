"""Intel Matrix RAID (IMSM, isw): the metadata that its option ROM keeps at the end of each member disk.

All members carry the same metadata, and name each other by serial numbers, which are not on the medium: which of
two members of the same generation is the one that is being rebuilt cannot be told from the disks alone.
Source: the structures of mdadm's super-intel.c; checked on a real RAID 0 member and with libblkid.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

from p2v.binary import T, parse_bytes
from p2v.errors import Finding, LayoutError, Where
from p2v.model import SECTOR
from p2v.volume.members import Place, look

SIGNATURE = b"Intel Raid ISM Cfg Sig. "
ANCHOR = 2  # sectors from the end; longer metadata goes on in front of it
MOST_SECTORS = 2210  # of metadata, says mdadm
DISK_BYTES, DEVICE_BYTES, MAP_BYTES = 48, 112, 48  # without a device's maps, a map's table of disks
SPARE, FAILED = 1, 4  # a disk's status
REBUILD = 1 << 24  # in a map's table of disks
STATES = ("normal", "uninitialised", "degraded", "failed")

HEADER_LAYOUT = c.Struct(
    "sig" / c.Bytes(32), "check_sum" / c.Int32ul, "mpb_size" / c.Int32ul, "family_num" / c.Int32ul,
    "generation_num" / c.Int32ul, "error_log_size" / c.Int32ul, "attributes" / c.Int32ul, "num_disks" / c.Int8ul,
    "num_raid_devs" / c.Int8ul, c.Padding(158),
)
DISK_LAYOUT = c.Struct(
    "serial" / c.Bytes(16), "total_blocks_lo" / c.Int32ul, "scsi_id" / c.Int32ul, "status" / c.Int32ul,
    "owner_cfg_num" / c.Int32ul, "total_blocks_hi" / c.Int32ul, c.Padding(12),
)
DEVICE_LAYOUT = c.Struct(
    "volume" / c.Bytes(16), "size_low" / c.Int32ul, "size_high" / c.Int32ul, "status" / c.Int32ul, c.Padding(60),
    "migr_state" / c.Int8ul, "migr_type" / c.Int8ul, "dirty" / c.Int8ul, c.Padding(21),
)
MAP_LAYOUT = c.Struct(
    "pba_of_lba0_lo" / c.Int32ul, "blocks_per_member_lo" / c.Int32ul, c.Padding(4), "blocks_per_strip" / c.Int16ul,
    "map_state" / c.Int8ul, "raid_level" / c.Int8ul, "num_members" / c.Int8ul, c.Padding(1),
    "failed_disk_num" / c.Int8ul, c.Padding(1), "pba_of_lba0_hi" / c.Int32ul, "blocks_per_member_hi" / c.Int32ul,
    c.Padding(20),
)


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of the metadata."""

    sig: bytes
    check_sum: int
    mpb_size: int
    family_num: int
    generation_num: int
    num_disks: int
    num_raid_devs: int


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """A member of the group of disks."""

    serial: bytes
    total_blocks_lo: int
    status: int
    total_blocks_hi: int

    @property
    def name(self) -> str:
        """Its serial number, as the option ROM shows it."""
        return _text(self.serial) or "without a serial number"

    @property
    def sectors(self) -> int:
        """Of the disk."""
        return self.total_blocks_lo | self.total_blocks_hi << 32


@dataclass(frozen=True, slots=True)
class RaidDevice:
    """A RAID volume, without its maps."""

    volume: bytes
    size_low: int
    size_high: int
    migr_state: int
    migr_type: int
    dirty: int


@dataclass(frozen=True, slots=True)
class Map:
    """Where a RAID volume lies on its members, in sectors."""

    pba_of_lba0_lo: int
    blocks_per_member_lo: int
    map_state: int
    raid_level: int
    num_members: int
    failed_disk_num: int
    pba_of_lba0_hi: int
    blocks_per_member_hi: int


@dataclass(frozen=True, slots=True)
class Set:
    """A RAID volume. start, length: bytes of each member. members: numbers in the table of disks.

    size: bytes of the volume. state: of STATES. rebuilt: members that are being rebuilt.
    """

    name: str
    size: int
    start: int
    length: int
    level: int
    state: str
    members: tuple[int, ...]
    rebuilt: tuple[int, ...]
    dirty: bool
    migrating: bool


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one member carries. at: byte offset of its anchor."""

    at: int
    family: int
    generation: int
    disks: tuple[DiskEntry, ...]
    sets: tuple[Set, ...]


def read_metadata(place: Place) -> Metadata | Finding | None:
    """A disk's metadata; None where there is none. Raises LayoutError for one that cannot be trusted."""
    at = (place.source.size // SECTOR - ANCHOR) * SECTOR
    data = look(place, at, SECTOR, "the metadata of an Intel RAID")
    if isinstance(data, Finding):
        return data
    if not data.startswith(SIGNATURE):
        return None
    where = place.where(at, SECTOR, "IMSM metadata")
    header = parse_bytes(HEADER_LAYOUT, data[:HEADER_LAYOUT.sizeof()], Header, "the metadata of an Intel RAID", where)
    if not HEADER_LAYOUT.sizeof() <= header.mpb_size <= MOST_SECTORS * SECTOR:
        raise _broken(where, f"its size is given as {header.mpb_size} bytes")
    more = -(-header.mpb_size // SECTOR) - 1
    if more:
        front = look(place, at - more * SECTOR, more * SECTOR, "the metadata of an Intel RAID")
        if isinstance(front, Finding):
            return front
        data += front
    if len(data) < header.mpb_size:
        raise _broken(where, "it is longer than the disk")
    computed = _sum(data[:header.mpb_size]) - header.check_sum & 0xFFFFFFFF
    if computed != header.check_sum:
        raise _broken(where, f"stored {header.check_sum:#010x}, computed {computed:#010x}")
    reader = _Reader(data[:header.mpb_size], where)
    disks = tuple(reader.next(DISK_LAYOUT, DiskEntry) for _ in range(header.num_disks))
    sets = tuple(_set(reader, len(disks)) for _ in range(header.num_raid_devs))
    return Metadata(at, header.family_num, header.generation_num, disks, sets)


class _Reader:
    """The records behind the header, one after the other."""

    def __init__(self, data: bytes, where: Where) -> None:
        self.data, self.where, self.at = data, where, HEADER_LAYOUT.sizeof()

    def next(self, layout: c.Construct, into: type[T]) -> T:
        """The next record. Raises LayoutError."""
        return parse_bytes(layout, self.bytes(layout.sizeof()), into, "the metadata of an Intel RAID", self.where)

    def bytes(self, length: int) -> bytes:
        """The next so many bytes. Raises LayoutError."""
        raw = self.data[self.at:self.at + length]
        if len(raw) < length:
            raise _broken(self.where, "its records are longer than itself")
        self.at += length
        return raw


def _set(reader: _Reader, disks: int) -> Set:
    device = reader.next(DEVICE_LAYOUT, RaidDevice)
    maps = []
    for _ in range(2 if device.migr_state else 1):
        shape = reader.next(MAP_LAYOUT, Map)
        table = reader.bytes(4 * shape.num_members)
        maps.append((shape, [int.from_bytes(table[i:i + 4], "little") for i in range(0, len(table), 4)]))
    shape, order = maps[0]
    members = tuple(number & 0xFFFFFF for number in order)
    if any(number >= disks for number in members) or shape.map_state >= len(STATES):
        raise _broken(reader.where, f"{_text(device.volume)}: members {members}, state {shape.map_state}")
    rebuilt = tuple(sorted({number & 0xFFFFFF for _, table in maps for number in table if number & REBUILD}))
    return Set(_text(device.volume), (device.size_low | device.size_high << 32) * SECTOR,
               (shape.pba_of_lba0_lo | shape.pba_of_lba0_hi << 32) * SECTOR,
               (shape.blocks_per_member_lo | shape.blocks_per_member_hi << 32) * SECTOR, shape.raid_level,
               STATES[shape.map_state], members, rebuilt, bool(device.dirty & 1), bool(device.migr_state))


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace").strip()
    return "".join(char if char.isalnum() or char in "-_.:+" else "_" for char in text)


def _sum(data: bytes) -> int:
    return sum(int.from_bytes(data[i:i + 4], "little") for i in range(0, len(data) & ~3, 4))


def _broken(where: Where, why: str) -> LayoutError:
    return LayoutError(f"{where.source}: the metadata of an Intel RAID cannot be trusted", where,
                       f"{why}; what this disk is a member of cannot be told",
                       "give the other members of the set without this one")
