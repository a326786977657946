"""The registry value that describes NT 4's fault-tolerant sets: HKLM\\SYSTEM\\DISK, value Information.

Little-endian. Disks and partitions: the public Windows SDK header ntdskreg.h, packed to 4. Header and sets:
ntddft.h of the NT 4 DDK. No real sample is public, so who reads it compares every partition with the tables
of the disks before anything is believed (ftdisk.py), and nothing here depends on the version or checksum,
whose values nobody published.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, Where

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

KEY, VALUE = "DISK", "Information"  # below the root of the hive SYSTEM
LIMIT = 1 << 18  # bytes; 32 disks of 32 partitions take 54 KB
NEXT = ("name the copy to read with --leg; or save the configuration anew with Disk Administrator on the machine, "
        "and copy its disks again")

_Row = TypeVar("_Row", bound="DataclassInstance")


class FtType(enum.IntEnum):
    """What kind of set a partition belongs to."""

    MIRROR = 0
    STRIPE = 1
    STRIPE_WITH_PARITY = 2
    VOLUME_SET = 3
    NOT_A_MEMBER = 4
    WHOLE_DISK = 5


class FtState(enum.IntEnum):
    """How a member fares; SYNC_COPY is never seen on a disk."""

    HEALTHY = 0
    ORPHANED = 1
    REGENERATING = 2
    INITIALIZING = 3
    SYNC_COPY = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class SetState(enum.IntEnum):
    """How a whole set fares."""

    OK = 0
    HAS_ORPHAN = 1
    DISABLED = 2
    REGENERATING = 3
    INITIALIZING = 4
    CHECK_PARITY = 5
    NO_CHECK_DATA = 6


HEADER_LAYOUT = c.Struct(
    "version" / c.Int32ul,
    "checksum" / c.Int32ul,
    "dirty_shutdown" / c.Int8ul,
    "reserved" / c.Bytes(3),
    "disks_offset" / c.Int32ul,
    "disks_size" / c.Int32ul,
    "sets_offset" / c.Int32ul,
    "sets_size" / c.Int32ul,
    "stripe_width" / c.Int32ul,
    "pool_size" / c.Int32ul,
    "names_offset" / c.Int32ul,
    "names_size" / c.Int32ul,
)
COUNT_LAYOUT = c.Struct("count" / c.Int16ul, "reserved" / c.Int16ul)
DISK_LAYOUT = c.Struct("count" / c.Int16ul, "reserved" / c.Int16ul, "signature" / c.Int32ul)
PARTITION_LAYOUT = c.Struct(
    "ft_type" / c.Int32ul,
    "ft_state" / c.Int32ul,
    "offset" / c.Int64sl,
    "length" / c.Int64sl,
    "ft_length" / c.Int64sl,
    "reserved" / c.Bytes(8),
    "drive_letter" / c.Int8ul,
    "assign_drive_letter" / c.Int8ul,
    "logical_number" / c.Int16ul,
    "ft_group" / c.Int16ul,
    "ft_member" / c.Int16ul,
    "modified" / c.Int8ul,
    "padding" / c.Bytes(3),
)
SET_LAYOUT = c.Struct("count" / c.Int16ul, "type" / c.Int16ul, "reserved" / c.Int32ul, "state" / c.Int32ul)
MEMBER_LAYOUT = c.Struct(
    "state" / c.Int16ul,
    "reserved" / c.Int16ul,
    "signature" / c.Int32ul,
    "partition_offset" / c.Int32ul,
    "logical_number" / c.Int32ul,
)

HEADER_BYTES, PARTITION_BYTES = HEADER_LAYOUT.sizeof(), PARTITION_LAYOUT.sizeof()


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front. Offsets and sizes are bytes of the value: of the disks, the sets, the names."""

    version: int
    checksum: int
    dirty_shutdown: int
    reserved: bytes
    disks_offset: int
    disks_size: int
    sets_offset: int
    sets_size: int
    stripe_width: int
    pool_size: int
    names_offset: int
    names_size: int


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """A partition as NT knows it.

    offset, length: bytes on its disk. drive_letter: ASCII, 0 for none. ft_group: the set's number within
    its type; ft_member: its place in the set, 0 for a mirror's primary.
    """

    ft_type: int
    ft_state: int
    offset: int
    length: int
    ft_length: int
    reserved: bytes
    drive_letter: int
    assign_drive_letter: int
    logical_number: int
    ft_group: int
    ft_member: int
    modified: int
    padding: bytes

    def __post_init__(self) -> None:
        FtType(self.ft_type)
        FtState(self.ft_state)
        if self.offset < 0 or self.length < 0:
            raise ValueError(f"a partition of {self.length} bytes at {self.offset}")

    @property
    def is_member(self) -> bool:
        """Of a set?"""
        return self.ft_type < FtType.NOT_A_MEMBER

    @property
    def letter(self) -> str:
        """ "C:", "" where it has none."""
        letter = chr(self.drive_letter).upper()
        return f"{letter}:" if letter.isascii() and letter.isalpha() else ""


@dataclass(frozen=True, slots=True)
class DiskRow:
    """A disk by its MBR signature."""

    signature: int
    partitions: tuple[PartitionRow, ...]
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member in the list of sets. partition_offset: where its PartitionRow lies in the value."""

    state: int
    reserved: int
    signature: int
    partition_offset: int
    logical_number: int


@dataclass(frozen=True, slots=True)
class SetRow:
    """A set in the list of sets. type: FtType. state: SetState as far as it is known."""

    type: int
    state: int
    members: tuple[MemberRow, ...]
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Information:
    """The whole value. base: the bytes around what is parsed here, kept when it is written again."""

    header: Header
    disks: tuple[DiskRow, ...]
    sets: tuple[SetRow, ...]
    base: bytes
    disks_reserved: int = 0
    sets_reserved: int = 0


def parse(data: bytes, name: str) -> Information:
    """The value's data. name: hive and value, for the errors.

    Raises LayoutError naming bytes and field: truncated, overlapping, more than a set or disk can have.
    """
    if len(data) > LIMIT:
        raise _damaged(name, 0, len(data), "the value", f"it has {len(data)} bytes, at most {LIMIT} are sensible")
    reader = _Reader(data, name)
    header = reader.row(HEADER_LAYOUT, Header, len(data))
    _check_areas(header, len(data), name)
    reader.at = header.disks_offset
    disks, disks_reserved = _disks(reader, header.disks_offset + header.disks_size)
    sets, sets_reserved = _sets(reader, header) if header.sets_size else ((), 0)
    return Information(header, disks, sets, data, disks_reserved, sets_reserved)


def serialise(information: Information) -> bytes:
    """The value's data. Raises ValueError where disks or sets do not fit into the areas of the header."""
    header = information.header
    out = bytearray(information.base)
    out[:HEADER_BYTES] = HEADER_LAYOUT.build(asdict(header))
    disks = _count(len(information.disks), information.disks_reserved)
    for disk in information.disks:
        disks += DISK_LAYOUT.build({"count": len(disk.partitions), "reserved": disk.reserved,
                                    "signature": disk.signature})
        disks += b"".join(PARTITION_LAYOUT.build(asdict(row)) for row in disk.partitions)
    sets = _count(len(information.sets), information.sets_reserved) if header.sets_size else b""
    for group in information.sets:
        sets += SET_LAYOUT.build({"count": len(group.members), "type": group.type, "reserved": group.reserved,
                                  "state": group.state})
        sets += b"".join(MEMBER_LAYOUT.build(asdict(row)) for row in group.members)
    for area, offset, size in ((disks, header.disks_offset, header.disks_size),
                               (sets, header.sets_offset, header.sets_size)):
        if len(area) > size or offset + size > len(out):
            raise ValueError(f"{len(area)} bytes do not fit into {size} at {offset} of {len(out)}")
        out[offset:offset + len(area)] = area
    return bytes(out)


def _count(count: int, reserved: int) -> bytes:
    return bytes(COUNT_LAYOUT.build({"count": count, "reserved": reserved}))


@dataclass(frozen=True, slots=True)
class _Count:
    count: int
    reserved: int


@dataclass(frozen=True, slots=True)
class _Disk:
    count: int
    reserved: int
    signature: int


@dataclass(frozen=True, slots=True)
class _Set:
    count: int
    type: int
    reserved: int
    state: int


class _Reader:
    """The next row of the value, never past the end of its area."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def row(self, layout: c.Construct, into: type[_Row], end: int) -> _Row:
        size = layout.sizeof()
        if self.at + size > end:
            raise _damaged(self.name, self.at, size, into.__name__.strip("_"),
                           f"it needs {size} bytes, {end - self.at} are left")
        where = Where(self.name, self.at, size)
        found = parse_bytes(layout, self.data[self.at:self.at + size], into, "DISK\\Information", where)
        self.at += size
        return found


def _check_areas(header: Header, length: int, name: str) -> None:
    """Disks and sets lie in the value, behind the header, and not on top of each other."""
    disks = (header.disks_offset, header.disks_offset + header.disks_size)
    sets = (header.sets_offset, header.sets_offset + header.sets_size)
    for (start, end), what in ((disks, "DiskInformationOffset"), (sets, "FtInformationOffset")):
        if start != end and not HEADER_BYTES <= start < end <= length:
            raise _damaged(name, start, end - start, what,
                           f"{start:#x} to {end:#x} of a value of {length} bytes with a header of {HEADER_BYTES}")
    if header.disks_size == 0:
        raise _damaged(name, 0, HEADER_BYTES, "DiskInformationSize", "it describes no disk")
    if header.sets_size and max(disks[0], sets[0]) < min(disks[1], sets[1]):
        raise _damaged(name, sets[0], header.sets_size, "FtInformationOffset", "disks and sets overlap")


def _disks(reader: _Reader, end: int) -> tuple[tuple[DiskRow, ...], int]:
    head = reader.row(COUNT_LAYOUT, _Count, end)
    disks = []
    for _ in range(head.count):
        disk = reader.row(DISK_LAYOUT, _Disk, end)
        rows = tuple(reader.row(PARTITION_LAYOUT, PartitionRow, end) for _ in range(disk.count))
        disks.append(DiskRow(disk.signature, rows, disk.reserved))
    return tuple(disks), head.reserved


def _sets(reader: _Reader, header: Header) -> tuple[tuple[SetRow, ...], int]:
    reader.at, end = header.sets_offset, header.sets_offset + header.sets_size
    head = reader.row(COUNT_LAYOUT, _Count, end)
    sets = []
    for _ in range(head.count):
        group = reader.row(SET_LAYOUT, _Set, end)
        rows = tuple(reader.row(MEMBER_LAYOUT, MemberRow, end) for _ in range(group.count))
        sets.append(SetRow(group.type, group.state, rows, group.reserved))
    return tuple(sets), head.reserved


def _damaged(name: str, offset: int, length: int, field: str, why: str) -> LayoutError:
    return LayoutError("DISK\\Information cannot be trusted", Where(name, offset, length, field), why, NEXT)
