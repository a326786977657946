"""The structures of the Logical Disk Manager (dynamic disks, Windows 2000 to 2008 R2): bytes → dataclasses.

All integers are big-endian; LBAs and sizes count sectors of 512 bytes whatever the disk's own sectors are.
The private region holds PRIVHEAD, TOCBLOCK, VMDB, VBLK and KLOG. Each dataclass keeps every field of its
structure, also those that nothing here needs, so that a sector can be made again from it.
Source: the LDM documentation of Linux-NTFS (flatcap/ldm-docs); checked on the disks of Server 2003 R2 and
2008 R2 in libldm's test data: every record parses to exactly its record_length + 8 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, Where

SECTOR = 512
PRIVHEAD = b"PRIVHEAD"
TOCBLOCK = b"TOCBLOCK"
VMDB = b"VMDB"
VBLK = b"VBLK"
KLOG = b"KLOG"
SLOT_HEADER = 16  # bytes of a VBLK slot before its payload
RECORD_HEADER = 8  # bytes of a record that its length does not count
REGIONS = 14  # places for regions in a TOCBLOCK
CHECKSUM = 8  # where PRIVHEAD and TOCBLOCK keep theirs


# ---------------------------------------------------------------------------------------------
# How fields are written


def checksum(sector: bytes) -> int:
    """Of a PRIVHEAD or TOCBLOCK: the sum of its 512 bytes without the checksum's own four, modulo 2^32."""
    return (sum(sector) - sum(sector[CHECKSUM:CHECKSUM + 4])) & 0xFFFFFFFF


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1")


def _padded_text(length: int) -> Any:
    """Text in a field of fixed size, NUL-padded; what follows the first NUL is slack."""
    return c.ExprAdapter(c.Bytes(length), lambda raw, _: _text(raw),
                         lambda text, _: text.encode("latin-1").ljust(length, b"\0"))


def _var_int(limit: int, widths: tuple[int, ...]) -> Any:
    """A length byte n of at most limit, then n bytes (none is 0).

    widths: those that Windows writes; it takes the smallest that holds the value.
    """
    def decode(raw: bytes, _: Any) -> int:
        if len(raw) > limit:
            raise ValueError(f"an integer of {len(raw)} bytes where at most {limit} can be")
        return int.from_bytes(raw, "big")

    def encode(value: int, _: Any) -> bytes:
        width = next(width for width in widths if value < 1 << 8 * width)
        return value.to_bytes(width, "big")

    return c.ExprAdapter(c.Prefixed(c.Int8ub, c.GreedyBytes), decode, encode)


VAR_U32 = _var_int(4, (0, 1, 2, 3, 4))
VAR_U64 = _var_int(8, (0, 1, 2, 3, 4, 5, 6, 7, 8))
PADDED_U64 = _var_int(8, (0, 1, 2, 3, 4, 8))
STRING = c.ExprAdapter(c.Prefixed(c.Int8ub, c.GreedyBytes), lambda raw, _: raw.decode("latin-1"),
                       lambda text, _: text.encode("latin-1"))


def _when(flag: int, field: Any) -> Any:
    """A field that is there only where the record's flags say so; None otherwise."""
    return c.If(lambda record: record.record_flags & flag, field)


# ---------------------------------------------------------------------------------------------
# PRIVHEAD, TOCBLOCK


@dataclass(frozen=True, slots=True)
class PrivHead:
    """Which disk this is, of which group, and where its database lies.

    updated: FILETIME. sequence: that of the TOCBLOCK in force. primary_sector, secondary_sector, primary_toc,
    secondary_toc: counted from private_start_sectors; public and private: from the start of the disk.
    disk_set, disk_set_again: raw GUIDs. tail: what follows to the end of the sector.
    """

    checksum: int
    major: int
    minor: int
    updated: int
    sequence: int
    primary_sector: int
    secondary_sector: int
    disk_guid: str
    host_guid: str
    group_guid: str
    group_name: str
    bytes_per_sector: int
    flags: int
    public_slice: int
    private_slice: int
    public_start_sectors: int
    public_sectors: int
    private_start_sectors: int
    private_sectors: int
    primary_toc: int
    secondary_toc: int
    configs: int
    logs: int
    config_sectors: int
    log_sectors: int
    disk_signature: int
    disk_set: bytes
    disk_set_again: bytes
    tail: bytes


PRIVHEAD_LAYOUT = c.Struct(
    "magic" / c.Const(PRIVHEAD),
    "checksum" / c.Int32ub,
    "major" / c.Int16ub,
    "minor" / c.Int16ub,
    "updated" / c.Int64ub,
    "sequence" / c.Int64ub,
    "primary_sector" / c.Int64ub,
    "secondary_sector" / c.Int64ub,
    "disk_guid" / _padded_text(64),
    "host_guid" / _padded_text(64),
    "group_guid" / _padded_text(64),
    "group_name" / _padded_text(31),
    "bytes_per_sector" / c.Int32ub,
    "flags" / c.Int32ub,
    "public_slice" / c.Int16ub,
    "private_slice" / c.Int16ub,
    "public_start_sectors" / c.Int64ub,
    "public_sectors" / c.Int64ub,
    "private_start_sectors" / c.Int64ub,
    "private_sectors" / c.Int64ub,
    "primary_toc" / c.Int64ub,
    "secondary_toc" / c.Int64ub,
    "configs" / c.Int32ub,
    "logs" / c.Int32ub,
    "config_sectors" / c.Int64ub,
    "log_sectors" / c.Int64ub,
    "disk_signature" / c.Int32ub,
    "disk_set" / c.Bytes(16),
    "disk_set_again" / c.Bytes(16),
    "tail" / c.Bytes(121),
)


@dataclass(frozen=True, slots=True)
class TocRegion:
    """One region of the private region: "config" or "log". name is "" for a place that is not used.

    flags: 1 not there, 2 new, 4 being deleted, 8 disabled. kind is always 6, copy always 1.
    """

    name: str
    flags: int
    start_sectors: int
    sectors: int
    kind: int
    copy: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class TocBlock:
    """Where config and log lie. Its four sectors take turns: the highest sequence is in force."""

    checksum: int
    sequence: int
    reserved: bytes
    regions: tuple[TocRegion, ...]

    def region(self, name: str) -> TocRegion | None:
        """The region of that name; None where it is not listed or flagged as not there."""
        return next((region for region in self.regions if region.name == name and not region.flags & 1), None)


TOC_REGION_LAYOUT = c.Struct(
    "name" / _padded_text(8),
    "flags" / c.Int16ub,
    "start_sectors" / c.Int64ub,
    "sectors" / c.Int64ub,
    "kind" / c.Int16ub,
    "copy" / c.Int16ub,
    "reserved" / c.Bytes(4),
)

TOCBLOCK_LAYOUT = c.Struct(
    "magic" / c.Const(TOCBLOCK),
    "checksum" / c.Int32ub,
    "sequence" / c.Int64ub,
    "reserved" / c.Bytes(16),
    "regions" / c.Array(REGIONS, c.ExprAdapter(
        TOC_REGION_LAYOUT, lambda raw, _: TocRegion(**{name: raw[name] for name in TocRegion.__slots__}),
        lambda region, _: {name: getattr(region, name) for name in TocRegion.__slots__})),
)


# ---------------------------------------------------------------------------------------------
# VMDB, VBLK slots, KLOG


@dataclass(frozen=True, slots=True)
class Counts:
    """How many records of each kind there are."""

    volumes: int
    components: int
    partitions: int
    disks: int
    accesses: int
    unused: bytes


@dataclass(frozen=True, slots=True)
class Vmdb:
    """The head of the database.

    slots: of slot_bytes each, those that the head itself fills included. status: 1 clean, 2 change, 3 commit,
    4 abort, 5 new, 6 stale, 8 offline. committed_tid, pending_tid: transactions; changed: FILETIME.
    """

    slots: int
    slot_bytes: int
    header_bytes: int
    status: int
    major: int
    minor: int
    group_name: str
    group_guid: str
    committed_tid: int
    pending_tid: int
    committed: Counts
    pending: Counts
    changed: int
    tail: bytes


COUNTS_LAYOUT = c.ExprAdapter(
    c.Struct("volumes" / c.Int32ub, "components" / c.Int32ub, "partitions" / c.Int32ub, "disks" / c.Int32ub,
             "accesses" / c.Int32ub, "unused" / c.Bytes(8)),
    lambda raw, _: Counts(**{name: raw[name] for name in Counts.__slots__}),
    lambda counts, _: {name: getattr(counts, name) for name in Counts.__slots__})

VMDB_LAYOUT = c.Struct(
    "magic" / c.Const(VMDB),
    "slots" / c.Int32ub,
    "slot_bytes" / c.Int32ub,
    "header_bytes" / c.Int32ub,
    "status" / c.Int16ub,
    "major" / c.Int16ub,
    "minor" / c.Int16ub,
    "group_name" / _padded_text(31),
    "group_guid" / _padded_text(64),
    "committed_tid" / c.Int64ub,
    "pending_tid" / c.Int64ub,
    "committed" / COUNTS_LAYOUT,
    "pending" / COUNTS_LAYOUT,
    "changed" / c.Int64ub,
    "tail" / c.Bytes(315),
)


@dataclass(frozen=True, slots=True)
class Slot:
    """The head of one VBLK: fragment number index of count of the record in group; count 0 is a free slot.

    sequence: the slot's own number in the database, counted from its head (whose place is that of 4 slots).
    """

    sequence: int
    group: int
    index: int
    count: int


SLOT_LAYOUT = c.Struct(
    "magic" / c.Const(VBLK),
    "sequence" / c.Int32ub,
    "group" / c.Int32ub,
    "index" / c.Int16ub,
    "count" / c.Int16ub,
)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the kernel's log. status: 1 detach, 2 dirty, 3 commit, 4 logdetach, 5 app-dirty."""

    status: int
    committed_tid: int
    pending_tid: int
    recovery: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class LogBlock:
    """One sector of the log. entries: all that fit; those from the first of status 0 on are old."""

    tid: int
    sequence: int
    pages: int
    page: int
    entries: tuple[LogEntry, ...]
    tail: bytes


LOG_ENTRY_LAYOUT = c.Struct(
    "status" / c.Int8ub,
    "committed_tid" / c.Int64ub,
    "pending_tid" / c.Int64ub,
    "recovery" / c.Int32ub,
    "reserved" / c.Bytes(3),
)

KLOG_LAYOUT = c.Struct(
    "magic" / c.Const(KLOG),
    "tid" / c.Int64ub,
    "sequence" / c.Int32ub,
    "pages" / c.Int32ub,
    "page" / c.Int32ub,
    "entries" / c.Array(20, c.ExprAdapter(
        LOG_ENTRY_LAYOUT, lambda raw, _: LogEntry(**{name: raw[name] for name in LogEntry.__slots__}),
        lambda entry, _: {name: getattr(entry, name) for name in LogEntry.__slots__})),
    "tail" / c.Bytes(8),
)


# ---------------------------------------------------------------------------------------------
# Records


class Flag:
    """Flags that mean something to a reader, by the record that carries them."""

    VOLUME_CRASHED = 0x4
    VOLUME_KDETACH = 0x400
    VOLUME_PENDING = 0x2000
    VOLUME_BOOT = 0x200000
    VOLUME_SYSTEM = 0x400000
    VOLUME_RETAINED = 0x800000
    COMPONENT_RECOVER = 0x2
    COMPONENT_IOFAIL = 0x4
    COMPONENT_PENDING = 0x8
    PARTITION_RECOVER = 0x8
    PARTITION_KDETACH = 0x10
    DISK_FAILING = 0x4
    DISK_MERGE_REQUIRED = 0x10
    DISK_REMOVED = 0x100
    DISK_DETACHED = 0x200


STRIPED = 1  # layouts of a component
CONCATENATED = 2
RAID5 = 3

ACTIVE = 0  # status of a record
BEING_DELETED = 1
BEING_ADDED = 2


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume. kind: revision << 4 | type (0x51). record_flags: which of the last four fields are there.

    type: "gen" or "raid5". components: how many there are. guid: raw, as MountedDevices has it.
    hint: its drive letter ("E:"). Sizes are sectors.
    """

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    type: str
    drive_letter_off: str
    state: str
    read_policy: int
    number: int
    flags: int
    components: int
    commit_tid: int
    other_tid: int
    sectors: int
    reserved: bytes
    partition_type: int
    guid: bytes
    id1: int | None
    id2: int | None
    column_sectors: int | None
    hint: str | None


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """A component (elsewhere: plex) of volume parent_id. partitions: how many records it is made of.

    layout: STRIPED, CONCATENATED or RAID5. stripe_sectors: its chunk; columns: how many.
    """

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    state: str
    layout: int
    flags: int
    partitions: int
    commit_tid: int
    reserved: bytes
    parent_id: int
    log_id: int
    stripe_sectors: int | None
    columns: int | None


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """A partition record (elsewhere: subdisk): one range of one disk in component parent_id.

    start_sectors: counted from the public region's start. offset_sectors: where it lies in its column.
    column: None is the first. hidden_sectors: what its boot sector says, where it is kept.
    """

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    flags: int
    commit_tid: int
    start_sectors: int
    offset_sectors: int
    sectors: int
    parent_id: int
    disk_id: int
    column: int | None
    other_tid: int | None
    unknown: int | None
    hidden_sectors: int | None


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A disk of revision 3 (kind 0x34). guid: text, as in PRIVHEAD. device: its last device name."""

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    guid: str
    device: str
    flags: int
    commit_tid: int


@dataclass(frozen=True, slots=True)
class DiskRecord4:
    """A disk of revision 4 (kind 0x44). raw_guid, disk_set: 16 bytes each."""

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    raw_guid: bytes
    disk_set: bytes
    device: str
    flags: int
    commit_tid: int

    @property
    def guid(self) -> str:
        """As text, as in PRIVHEAD: the raw form is big-endian."""
        return guid_text(self.raw_guid)


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """The disk group, revision 3 (kind 0x35)."""

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    guid: str
    reserved: bytes
    commit_tid: int
    config_copies: int | None
    log_copies: int | None
    minors: int | None


@dataclass(frozen=True, slots=True)
class GroupRecord4:
    """The disk group, revision 4 (kind 0x45). raw_guid, last_guid: 16 bytes each."""

    status: int
    record_flags: int
    kind: int
    id: int
    name: str
    raw_guid: bytes
    last_guid: bytes
    reserved: bytes
    commit_tid: int
    config_copies: int | None
    log_copies: int | None
    minors: int | None

    @property
    def guid(self) -> str:
        """As text, as in PRIVHEAD."""
        return guid_text(self.raw_guid)


Record: TypeAlias = (VolumeRecord | ComponentRecord | PartitionRecord | DiskRecord | DiskRecord4 | GroupRecord
                     | GroupRecord4)


@dataclass(frozen=True, slots=True)
class Stored:
    """A record and where it lies: the group number of its fragments, and their slots by fragment index."""

    record: Record
    group: int
    slots: tuple[int, ...]


def printable(text: str) -> str:
    """A name from the disk, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def guid_text(raw: bytes) -> str:
    """A GUID in the order that LDM keeps it, as text."""
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


_BEGIN = ("status" / c.Int16ub, "record_flags" / c.Int8ub, "kind" / c.Int8ub, "length" / c.Int32ub,
          "id" / VAR_U64, "name" / STRING)
_GROUP_END = ("reserved" / c.Bytes(4), "commit_tid" / c.Int64ub, "config_copies" / _when(0x08, VAR_U32),
              "log_copies" / _when(0x08, VAR_U32), "minors" / _when(0x10, VAR_U32), c.Terminated)

VOLUME_LAYOUT = c.Struct(
    *_BEGIN,
    "type" / STRING,
    "drive_letter_off" / STRING,
    "state" / _padded_text(14),
    "read_policy" / c.Int8ub,
    "number" / VAR_U32,
    "flags" / c.Int32ub,
    "components" / VAR_U32,
    "commit_tid" / c.Int64ub,
    "other_tid" / c.Int64ub,
    "sectors" / PADDED_U64,
    "reserved" / c.Bytes(4),
    "partition_type" / c.Int8ub,
    "guid" / c.Bytes(16),
    "id1" / _when(0x08, VAR_U64),
    "id2" / _when(0x20, VAR_U64),
    "column_sectors" / _when(0x80, PADDED_U64),
    "hint" / _when(0x02, STRING),
    c.Terminated,
)

COMPONENT_LAYOUT = c.Struct(
    *_BEGIN,
    "state" / STRING,
    "layout" / c.Int8ub,
    "flags" / c.Int32ub,
    "partitions" / VAR_U32,
    "commit_tid" / c.Int64ub,
    "reserved" / c.Bytes(8),
    "parent_id" / VAR_U64,
    "log_id" / VAR_U64,
    "stripe_sectors" / _when(0x10, PADDED_U64),
    "columns" / _when(0x10, VAR_U32),
    c.Terminated,
)

PARTITION_LAYOUT = c.Struct(
    *_BEGIN,
    "flags" / c.Int32ub,
    "commit_tid" / c.Int64ub,
    "start_sectors" / c.Int64ub,
    "offset_sectors" / c.Int64ub,
    "sectors" / PADDED_U64,
    "parent_id" / VAR_U64,
    "disk_id" / VAR_U64,
    "column" / _when(0x08, VAR_U32),
    "other_tid" / _when(0x20, c.Int64ub),
    "unknown" / _when(0x40, VAR_U32),
    "hidden_sectors" / _when(0x02, PADDED_U64),
    c.Terminated,
)

DISK_LAYOUT = c.Struct(*_BEGIN, "guid" / STRING, "device" / STRING, "flags" / c.Int32ub,
                       "commit_tid" / c.Int64ub, c.Terminated)
DISK4_LAYOUT = c.Struct(*_BEGIN, "raw_guid" / c.Bytes(16), "disk_set" / c.Bytes(16), "device" / STRING,
                        "flags" / c.Int32ub, "commit_tid" / c.Int64ub, c.Terminated)
GROUP_LAYOUT = c.Struct(*_BEGIN, "guid" / STRING, *_GROUP_END)
GROUP4_LAYOUT = c.Struct(*_BEGIN, "raw_guid" / c.Bytes(16), "last_guid" / c.Bytes(16), *_GROUP_END)

KINDS: dict[int, tuple[Any, type[Any], str]] = {
    0x51: (VOLUME_LAYOUT, VolumeRecord, "a volume record"),
    0x32: (COMPONENT_LAYOUT, ComponentRecord, "a component record"),
    0x33: (PARTITION_LAYOUT, PartitionRecord, "a partition record"),
    0x34: (DISK_LAYOUT, DiskRecord, "a disk record"),
    0x44: (DISK4_LAYOUT, DiskRecord4, "a disk record"),
    0x35: (GROUP_LAYOUT, GroupRecord, "a disk group record"),
    0x45: (GROUP4_LAYOUT, GroupRecord4, "a disk group record"),
}


def parse_record(data: bytes, where: Where) -> Record:
    """A record from the joined payloads of its slots; what follows its length is slack.

    where: its (first) slot. Raises LayoutError.
    """
    length = RECORD_HEADER + int.from_bytes(data[4:8], "big")
    if not RECORD_HEADER < length <= len(data):
        raise LayoutError("an LDM record is longer than its slots", where,
                          f"it says {length} bytes, its slots hold {len(data)}", NEXT)
    if data[3] not in KINDS:
        raise LayoutError(f"an LDM record of unknown kind {data[3]:#04x}", where,
                          "p2v knows those of Windows 2000 to 2008 R2", NEXT)
    layout, into, what = KINDS[data[3]]
    record: Record = parse_bytes(layout, data[:length], into, what, where)
    return record


NEXT = "give all disks of the group: each carries the whole database"
