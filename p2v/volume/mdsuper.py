"""Superblocks of Linux md: 0.90 in both byte orders, 1.0, 1.1 and 1.2.

Source: the structures and comments of mdadm's md_p.h, super0.c, super1.c and bitmap.h; checked with
`mdadm --examine` on real members.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, Where
from p2v.model import SECTOR

MAGIC = 0xA92B4EFC
SPARE, FAULTY, JOURNAL = -1, -2, -3  # roles that are no slot
MOST_DEVICES = 1920  # what the 4 KiB of a 1.x superblock have room for
OLD_DEVICES = 27
OLD_BYTES, OLD_RESERVED = 4096, 1 << 16
NEW_BYTES = 4096
IN_STEP = (1 << 64) - 1  # resync_offset of an array whose members agree

MIRROR = 1
LEVELS = {-1: "linear", 0: "raid0", 1: "raid1", 4: "raid4", 5: "raid5", 6: "raid6", 10: "raid10"}


@dataclass(frozen=True, slots=True)
class Superblock:
    """What one member says of itself and of its array. All amounts in bytes.

    version: "0.90", "1.0", "1.1", "1.2". at: from the start of the device. size: what is used of each member
    (0 for raid0 and linear: all). chunk: of stripes. ctime, utime: seconds since 1970.
    number: of this device in table. role: its slot, or SPARE, FAULTY, JOURNAL. table: device number → role
    as this member knows them. resync: up to where the members agree, None for all.
    recovered: up to where this member is rebuilt, None for all. bitmap: where its superblock lies, or None.
    """

    version: str
    at: int
    uuid: str
    name: str
    ctime: int
    utime: int
    events: int
    level: int
    layout: int
    chunk: int
    raid_disks: int
    size: int
    data_offset: int
    data_size: int
    number: int
    role: int
    table: Mapping[int, int]
    resync: int | None
    recovered: int | None
    reshape: bool
    write_mostly: bool
    bitmap: int | None
    device: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.raid_disks <= MOST_DEVICES:
            raise ValueError(f"{self.raid_disks} member disks")
        if self.level not in LEVELS:
            raise ValueError(f"unknown level {self.level}")
        if self.role >= self.raid_disks:
            raise ValueError(f"slot {self.role} of {self.raid_disks}")
        if not self.size and self.level not in (-1, 0):
            raise ValueError("no size")
        if self.chunk % SECTOR or (not self.chunk and self.level not in (-1, MIRROR)):
            raise ValueError(f"chunks of {self.chunk} bytes")

    @property
    def used(self) -> int:
        """Bytes of this member that the array uses."""
        if self.size:
            return self.size
        return self.data_size - (self.data_size % self.chunk if self.chunk else 0)

    @property
    def active(self) -> frozenset[int]:
        """The slots that this member believes to be in use."""
        return frozenset(role for role in self.table.values() if role >= 0)

    def knows(self, other: Superblock) -> bool:
        """Is the other one, in its slot, a working member for this one?"""
        return other.role < 0 or self.table.get(other.number) == other.role

    def gives_up(self, other: Superblock) -> bool:
        """Does this member call the other one's slot empty? Then it has run without it (mdadm's own test)."""
        return other.role >= 0 and other.role not in self.active


OLD_LAYOUT = {order: c.Struct(
    "magic" / u32, "major" / u32, "minor" / u32, c.Padding(8), "uuid0" / u32, "ctime" / u32, "level" / s32,
    "size" / u32, "nr_disks" / u32, "raid_disks" / u32, "md_minor" / u32, "not_persistent" / u32,
    "uuid1" / u32, "uuid2" / u32, "uuid3" / u32, c.Padding(64),
    "utime" / u32, "state" / u32, c.Padding(16), "sb_csum" / u32, "events" / u64, "cp_events" / u64,
    "recovery_cp" / u32, c.Padding(80), "layout" / u32, "chunk_size" / u32, c.Padding(248),
    "disks" / c.Array(OLD_DEVICES, c.Array(32, u32)),
    "this_disk" / c.Array(32, u32),
) for order, u32, s32, u64 in (("little", c.Int32ul, c.Int32sl, c.Int64ul),
                               ("big", c.Int32ub, c.Int32sb, c.Int64ub))}


@dataclass(frozen=True, slots=True)
class Old:
    """A 0.90 superblock as it is written."""

    magic: int
    major: int
    minor: int
    uuid0: int
    ctime: int
    level: int
    size: int
    nr_disks: int
    raid_disks: int
    md_minor: int
    uuid1: int
    uuid2: int
    uuid3: int
    utime: int
    state: int
    sb_csum: int
    events: int
    cp_events: int
    recovery_cp: int
    layout: int
    chunk_size: int
    disks: tuple[list[int], ...]
    this_disk: tuple[int, ...]


NEW_LAYOUT = c.Struct(
    "magic" / c.Int32ul, "major_version" / c.Int32ul, "feature_map" / c.Int32ul, c.Padding(4),
    "set_uuid" / c.Bytes(16), "set_name" / c.Bytes(32), "ctime" / c.Int64ul, "level" / c.Int32sl,
    "layout" / c.Int32ul, "size" / c.Int64ul, "chunksize" / c.Int32ul, "raid_disks" / c.Int32ul,
    "bitmap_offset" / c.Int32sl, c.Padding(28),
    "data_offset" / c.Int64ul, "data_size" / c.Int64ul, "super_offset" / c.Int64ul, "recovery_offset" / c.Int64ul,
    "dev_number" / c.Int32ul, c.Padding(4), "device_uuid" / c.Bytes(16), "devflags" / c.Int8ul, c.Padding(7),
    "utime" / c.Int64ul, "events" / c.Int64ul, "resync_offset" / c.Int64ul, "sb_csum" / c.Int32ul,
    "max_dev" / c.Int32ul, c.Padding(32),
)


@dataclass(frozen=True, slots=True)
class New:
    """The fixed 256 bytes of a 1.x superblock as they are written; offsets and sizes in sectors."""

    feature_map: int
    set_uuid: bytes
    set_name: bytes
    ctime: int
    level: int
    layout: int
    size: int
    chunksize: int
    raid_disks: int
    bitmap_offset: int
    data_offset: int
    data_size: int
    super_offset: int
    recovery_offset: int
    dev_number: int
    device_uuid: bytes
    devflags: int
    utime: int
    events: int
    resync_offset: int
    sb_csum: int
    max_dev: int


def spots(size: int) -> list[tuple[str, int]]:
    """(version, byte offset) of every superblock that a device of size bytes may carry."""
    found = [("1.1", 0), ("1.2", 8 * SECTOR), ("1.0", ((size // SECTOR - 16) & ~7) * SECTOR),
             ("0.90", size // OLD_RESERVED * OLD_RESERVED - OLD_RESERVED)]
    return [(version, at) for version, at in found if 0 <= at <= size - NEW_BYTES]


def is_superblock(version: str, data: bytes) -> bool:
    """Do these bytes begin as a superblock of this version does?"""
    words = [(int.from_bytes(data[i:i + 4], "little"), int.from_bytes(data[i:i + 4], "big")) for i in (0, 4)]
    orders = [0, 1] if version == "0.90" else [0]
    return any(words[0][o] == MAGIC and words[1][o] == (version != "0.90") for o in orders)


def parse(version: str, data: bytes, at: int, where: Where) -> Superblock:
    """The superblock in data (4096 bytes), read at byte `at` of its device. Raises LayoutError."""
    try:
        return _old(data, at, where) if version == "0.90" else _new(version, data, at, where)
    except ValueError as error:
        raise _broken(version, where, "", str(error)) from error


def _old(data: bytes, at: int, where: Where) -> Superblock:
    order = "little" if int.from_bytes(data[:4], "little") == MAGIC else "big"
    sb = parse_bytes(OLD_LAYOUT[order], data, Old, "the md superblock (0.90)", where)
    _check(sb.sb_csum, _sum(data, order, len(data)) - sb.sb_csum, "0.90", where)
    if sb.minor not in (90, 91):
        raise _broken("0.90", where, "minor", f"version 0.{sb.minor}")
    clean = bool(sb.state & 1)
    table = {number: _old_role(sb.disks[number]) for number in range(OLD_DEVICES) if any(sb.disks[number])}
    return Superblock(
        "0.90", at, ":".join(f"{word:08x}" for word in (sb.uuid0, sb.uuid1, sb.uuid2, sb.uuid3)),
        f"md{sb.md_minor}", sb.ctime, sb.utime, sb.events, sb.level, sb.layout, sb.chunk_size, sb.raid_disks,
        sb.size * 1024, 0, at, sb.this_disk[0], _old_role(list(sb.this_disk)), table,
        None if clean else sb.recovery_cp * SECTOR if sb.events == sb.cp_events else 0, None, sb.minor == 91,
        bool(sb.this_disk[4] & 1 << 9), at + OLD_BYTES if sb.state & 1 << 8 else None)


def _old_role(disk: list[int]) -> int:
    """From a descriptor of 0.90: number, major, minor, raid_disk, state."""
    if disk[4] & 0b1001:  # faulty, removed
        return FAULTY
    return disk[3] if disk[4] & 0b110 == 0b110 else SPARE  # active and in sync


def _new(version: str, data: bytes, at: int, where: Where) -> Superblock:
    sb = parse_bytes(NEW_LAYOUT, data[:256], New, f"the md superblock ({version})", where)
    if sb.max_dev > MOST_DEVICES:
        raise _broken(version, where, "max_dev", f"{sb.max_dev} devices; there is room for {MOST_DEVICES}")
    length = 256 + 2 * sb.max_dev
    _check(sb.sb_csum, _sum(data, "little", length) - sb.sb_csum, version, where)
    if sb.super_offset * SECTOR != at:
        raise _broken(version, where, "super_offset", f"it says that it lies at sector {sb.super_offset}")
    roles = array("H", data[256:length])
    if sys.byteorder == "big":
        roles.byteswap()
    table = {number: _new_role(role) for number, role in enumerate(roles)}
    return Superblock(
        version, at, groups(sb.set_uuid), _text(sb.set_name), sb.ctime & (1 << 40) - 1, sb.utime & (1 << 40) - 1,
        sb.events, sb.level, sb.layout, sb.chunksize * SECTOR, sb.raid_disks, sb.size * SECTOR,
        sb.data_offset * SECTOR, sb.data_size * SECTOR, sb.dev_number, table.get(sb.dev_number, SPARE), table,
        None if sb.resync_offset == IN_STEP else sb.resync_offset * SECTOR,
        sb.recovery_offset * SECTOR if sb.feature_map & 2 else None, bool(sb.feature_map & 4),
        bool(sb.devflags & 1), at + sb.bitmap_offset * SECTOR if sb.feature_map & 1 else None,
        groups(sb.device_uuid))


def _new_role(role: int) -> int:
    return {0xFFFF: SPARE, 0xFFFE: FAULTY, 0xFFFD: JOURNAL}.get(role, role)


def groups(uuid: bytes) -> str:
    """As mdadm prints a UUID."""
    return ":".join(uuid[i:i + 4].hex() for i in range(0, 16, 4))


def _text(name: bytes) -> str:
    """A name as it can stand on a command line."""
    text = name.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(char if char.isalnum() or char in "-_.:+/" else "_" for char in text)


def _sum(data: bytes, order: str, length: int) -> int:
    """The sum of 32-bit words, and of a last half one."""
    words = array("I", data[:length & ~3])
    if order != sys.byteorder:
        words.byteswap()
    return sum(words) + (int.from_bytes(data[length - 2:length], "little") if length & 2 else 0)


def _check(stored: int, total: int, version: str, where: Where) -> None:
    computed = (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF
    if computed != stored:
        raise _broken(version, where, "sb_csum", f"stored {stored:#010x}, computed {computed:#010x}")


def _broken(version: str, where: Where, field: str, why: str) -> LayoutError:
    return LayoutError(
        f"{where.source}: the md superblock ({version}) cannot be trusted",
        Where(where.source, where.offset, where.length, field),
        f"{why}; which array this disk belongs to, and how old its copy is, cannot be told",
        "give the other members of the array without this one; or, when it is a leftover of an old array, clear its "
        "magic number in an image of the disk (mdadm --zero-superblock IMAGE)")
