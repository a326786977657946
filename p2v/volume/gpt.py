"""The GUID partition table: two headers with checksums, one array of entries each.

None of our guests boots from such a disk (NT 4, 2000, XP and 2003 on x86 have no loader for it), but their
data disks, and members of dynamic disk groups, may carry one. The table counts when the MBR protects it with
an entry of type EE, as Windows has it. LBAs are of the disk's own sectors.
Source: the UEFI specification, chapter 5.3; checked on disks of Server 2008 R2 (libldm's test data).
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import construct as c

from p2v.binary import parse, parse_bytes
from p2v.errors import Finding, LayoutError, P2VError, ReadError, Severity, Where
from p2v.model import Member, Origin, Source, Volume, read
from p2v.source.window import Window
from p2v.volume import mbr, problems
from p2v.volume.problems import Problem

NAME = "gpt"
PROTECTIVE = 0xEE
PRIMARY_LBA = 1
HEADER_BYTES = 92
NAMED = 8  # kinds of partition in one finding
LARGEST_ENTRY = 4096  # bytes; 128 everywhere
LARGEST_ARRAY = 1 << 20  # bytes; 16 KiB everywhere

UNUSED = uuid.UUID(int=0)
LDM_METADATA = uuid.UUID("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3")
LDM_DATA = uuid.UUID("af9b60a0-1431-4f62-bc68-3311714a69ad")
MICROSOFT_RESERVED = uuid.UUID("e3c9e316-0b5c-4db8-817d-f92df00215ae")
NO_VOLUME = {LDM_METADATA, LDM_DATA, MICROSOFT_RESERVED}
KNOWN = {
    LDM_METADATA: "LDM metadata",
    LDM_DATA: "LDM data",
    MICROSOFT_RESERVED: "Microsoft reserved",
    uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"): "EFI system partition",
    uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"): "basic data",
}

HEADER_LAYOUT = c.Struct(
    "signature" / c.Const(b"EFI PART"),
    "revision" / c.Int32ul,
    "header_size" / c.Int32ul,
    "header_crc" / c.Int32ul,
    "reserved" / c.Int32ul,
    "my_lba" / c.Int64ul,
    "alternate_lba" / c.Int64ul,
    "first_usable_lba" / c.Int64ul,
    "last_usable_lba" / c.Int64ul,
    "disk_guid" / c.Bytes(16),
    "array_lba" / c.Int64ul,
    "entry_count" / c.Int32ul,
    "entry_size" / c.Int32ul,
    "array_crc" / c.Int32ul,
)

ENTRY_LAYOUT = c.Struct(
    "type_guid" / c.Bytes(16),
    "unique_guid" / c.Bytes(16),
    "first_lba" / c.Int64ul,
    "last_lba" / c.Int64ul,
    "attributes" / c.Int64ul,
    "raw_name" / c.Bytes(72),
)

DAMAGED = Problem(
    "the {which} of the GPT cannot be trusted: {reason}",
    "{why}",
    "nothing for a copy; let a partition tool write it again on the copy")
LOST = Problem(
    "its GPT cannot be read: {reason}",
    "the MBR says that the partitions are in a GPT; without it no volume of this disk is known",
    "give the whole disk; copy it again if it can be read elsewhere", Severity.ERROR)
DIFFER = Problem(
    "the two arrays of its GPT differ",
    "both have good checksums; the primary is used, as Windows does",
    problems.COMPARE)
REMAINS = Problem(
    "remains of a GPT under a partition table of the old kind",
    "the MBR has no entry of type EE, so Windows does not look at it",
    "nothing", Severity.INFO)
HYBRID = Problem(
    "the MBR has other entries beside the one that protects the GPT",
    "two tables describe this disk, and they can disagree; both are read",
    problems.COMPARE)
OUTSIDE = Problem(
    "GPT entry {number} lies outside the disk",
    "it says LBA {first} to {last}: the disk is cut short, or the entry is damaged",
    "give the whole disk", Severity.ERROR)
OVERLAP = Problem(
    "GPT entries {number} and {other} claim the same bytes",
    "which of them is true cannot be told from the table; neither is read",
    "correct the table on a copy of the disk", Severity.ERROR)
SEEN = Problem(
    "GPT disk: {partitions}",
    "none of these guests boots from it",
    "nothing: give it together with the disk that boots", Severity.INFO)


@dataclass(frozen=True, slots=True)
class Header:
    """One of the two headers."""

    header_size: int
    header_crc: int
    my_lba: int
    alternate_lba: int
    array_lba: int
    entry_count: int
    entry_size: int
    array_crc: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the array's entries. last_lba belongs to it."""

    type_guid: bytes
    unique_guid: bytes
    first_lba: int
    last_lba: int
    attributes: int
    raw_name: bytes


@dataclass(frozen=True, slots=True)
class GptPartition:
    """An entry in use. number: from 1, its place in the array; entry_offset, offset, length: bytes."""

    number: int
    type: uuid.UUID
    name: str
    entry_offset: int
    offset: int
    length: int

    @property
    def kind(self) -> str:
        """What its type is called."""
        return KNOWN.get(self.type, f"type {self.type}")


@dataclass(frozen=True, slots=True)
class Table:
    """What a disk's GPT says, and what is wrong with it."""

    partitions: tuple[GptPartition, ...]
    findings: tuple[Finding, ...]


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Finding]:
    """The volumes of GPT disks. disks: by id in the plan ("disk0")."""
    for disk, source in disks.items():
        table = read_table(disk, source)
        disputed = _overlaps(disk, source, table.partitions)
        for partition in table.partitions:
            if partition.type not in NO_VOLUME and partition.number not in disputed:
                yield _volume(disk, source, partition)
        yield from table.findings
        yield from disputed.values()


def read_table(disk: str, source: Source) -> Table:
    """The GPT of a disk; empty where its MBR does not say that there is one."""
    try:
        table = parse(mbr.SECTOR_LAYOUT, source, 0, mbr.TableSector, "the partition table")
    except P2VError:  # mbr.find says so
        return Table((), ())
    types = [raw[4] for raw in table.entries] if table.signature == mbr.SIGNATURE else []
    if PROTECTIVE not in types:
        return Table((), _remains(disk, source))
    return _Reading(disk, source).table(hybrid=any(type not in (0, PROTECTIVE) for type in types))


def _remains(disk: str, source: Source) -> tuple[Finding, ...]:
    try:
        _header(source, PRIMARY_LBA)
    except P2VError:
        return ()
    return (REMAINS.at(disk, Where(source.name, source.sector_size, HEADER_BYTES)),)


class _Reading:
    """One disk's two tables, read once."""

    def __init__(self, disk: str, source: Source) -> None:
        self.disk = disk
        self.source = source
        self.findings: list[Finding] = []

    def table(self, *, hybrid: bool) -> Table:
        """The primary table, or else the backup; damage to either is said."""
        primary = self._try("primary header or array", PRIMARY_LBA, "the backup at the end of the disk is used")
        last = self.source.size // self.source.sector_size - 1
        backup = self._try("backup header or array", primary[0].alternate_lba if primary else last,
                           "the primary is good and is used")
        found = primary or backup
        if found is None:
            reason = "neither header with its array is whole"
            return Table((), (LOST.at(self.disk, self._where(PRIMARY_LBA), reason=reason),))
        if backup and backup[1] != found[1]:
            self.findings.append(DIFFER.at(self.disk, self._where(backup[0].my_lba)))
        partitions = tuple(self._partitions(*found))
        if hybrid:
            self.findings.append(HYBRID.at(self.disk, Where(self.source.name, mbr.TABLE, 4 * mbr.ENTRY_BYTES)))
        names = ", ".join(sorted({partition.kind for partition in partitions})[:NAMED]) or "no partition"
        self.findings.append(SEEN.at(self.disk, self._where(found[0].my_lba), partitions=names))
        return Table(partitions, tuple(self.findings))

    def _try(self, which: str, lba: int, why: str) -> tuple[Header, bytes] | None:
        try:
            header = _header(self.source, lba)
            return header, _array(self.source, header)
        except (LayoutError, ReadError) as error:
            place = error.where if error.where.offset is not None else self._where(lba)
            self.findings.append(DAMAGED.at(self.disk, place, which=which, reason=error.why or error.what, why=why))
            return None

    def _where(self, lba: int) -> Where:
        return Where(self.source.name, lba * self.source.sector_size, HEADER_BYTES)

    def _partitions(self, header: Header, array: bytes) -> Iterator[GptPartition]:
        unit = self.source.sector_size
        for index in range(header.entry_count):
            raw = array[index * header.entry_size:index * header.entry_size + ENTRY_LAYOUT.sizeof()]
            if raw[:16] == UNUSED.bytes:
                continue
            place = header.array_lba * unit + index * header.entry_size
            where = Where(self.source.name, place, header.entry_size)
            entry = parse_bytes(ENTRY_LAYOUT, raw, Entry, "a GPT entry", where)
            offset, length = entry.first_lba * unit, (entry.last_lba - entry.first_lba + 1) * unit
            if length <= 0 or offset + length > self.source.size:
                self.findings.append(OUTSIDE.at(self.disk, where, number=index + 1, first=entry.first_lba,
                                                last=entry.last_lba))
                continue
            name = entry.raw_name.decode("utf-16-le", "replace").split("\0", 1)[0]
            name = "".join(letter for letter in name if letter.isprintable())
            yield GptPartition(index + 1, uuid.UUID(bytes_le=entry.type_guid), name, place, offset, length)


def _header(source: Source, lba: int) -> Header:
    """Raises LayoutError, ReadError."""
    unit = source.sector_size
    header = parse(HEADER_LAYOUT, source, lba * unit, Header, "the GPT header")
    where = Where(source.name, lba * unit, HEADER_BYTES)
    if not HEADER_BYTES <= header.header_size <= min(unit, source.size - lba * unit):
        raise _distrust(where, f"its size is {header.header_size} bytes")
    raw = read(source, lba * unit, header.header_size)
    computed = zlib.crc32(raw[:16] + bytes(4) + raw[20:])
    if computed != header.header_crc:
        raise _distrust(where, f"checksum stored {header.header_crc:#x}, computed {computed:#x}")
    if header.my_lba != lba:
        raise _distrust(where, f"it says that it lies at LBA {header.my_lba}")
    return header


def _array(source: Source, header: Header) -> bytes:
    """Raises LayoutError, ReadError."""
    length = header.entry_count * header.entry_size
    offset = header.array_lba * source.sector_size
    where = Where(source.name, header.my_lba * source.sector_size, HEADER_BYTES)
    if not ENTRY_LAYOUT.sizeof() <= header.entry_size <= LARGEST_ENTRY or length > LARGEST_ARRAY:
        raise _distrust(where, f"{header.entry_count} entries of {header.entry_size} bytes")
    if offset + length > source.size:
        raise _distrust(where, f"its array lies at {offset:#x}, past the end of the disk")
    array = read(source, offset, length)
    if zlib.crc32(array) != header.array_crc:
        raise _distrust(Where(source.name, offset, length), "the array's checksum is wrong")
    return array


def _distrust(where: Where, why: str) -> LayoutError:
    return LayoutError("the GPT cannot be trusted", where, why, "give the whole disk")


def _overlaps(disk: str, source: Source, partitions: tuple[GptPartition, ...]) -> dict[int, Finding]:
    """By number of the entry, those that share bytes with another."""
    found: dict[int, Finding] = {}
    ordered = sorted(partitions, key=lambda partition: partition.offset)
    reaching: GptPartition | None = None
    for partition in ordered:
        if reaching and partition.offset < reaching.offset + reaching.length:
            where = Where(source.name, partition.entry_offset, ENTRY_LAYOUT.sizeof())
            finding = OVERLAP.at(disk, where, number=partition.number, other=reaching.number)
            found.setdefault(partition.number, finding)
            found.setdefault(reaching.number, finding)
        if not reaching or partition.offset + partition.length > reaching.offset + reaching.length:
            reaching = partition
    return found


def _volume(disk: str, source: Source, partition: GptPartition) -> Volume:
    name = f"gpt.{disk}p{partition.number}"
    return Volume(name, Window(source, partition.offset, partition.length, name), "basic",
                  (Member(disk, partition.offset, partition.length),), None,
                  Origin("gpt", partition.name or partition.kind))
