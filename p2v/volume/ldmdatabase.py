"""One dynamic disk: the LDM database in its private region, which its PRIVHEAD finds.

No structure is trusted for lying where it should: the good TOCBLOCK with the highest sequence counts, VBLKs are
put together by group and fragment number, and what is damaged is a finding that names its bytes. VMDB and VBLK
carry no checksum: their counts are compared here, the databases of several disks with each other in ldm.py.
Source: the LDM documentation of Linux-NTFS; checked on the disks of libldm's test data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Severity, Where
from p2v.model import Source, read
from p2v.volume import ldmrecords as records
from p2v.volume.ldmhead import FIRST_COPY, checked, read_head
from p2v.volume.ldmrecords import (
    NEXT,
    SECTOR,
    LogBlock,
    LogEntry,
    PrivHead,
    Record,
    Slot,
    Stored,
    TocBlock,
    Vmdb,
    printable,
)

TOC_PLACES = (1, 2, 2045, 2046)  # sectors of a private region where TOCBLOCKs take turns
LARGEST_REGION = 4 << 20  # bytes: 1 MiB on all disks seen
SLOT_SIZES = (128, 256, 512)  # bytes: 128 on all disks seen
MOST_FRAGMENTS = 64  # of one record: 2 on all disks seen, 4 for Linux
MOST_TOLD = 8  # of one kind in or as findings for one disk
MOST_FINDINGS = 32  # for one disk

CLEAN, COMMITTING = 1, 3
STATUS = {1: "clean", 2: "in change", 3: "being committed", 4: "aborted", 5: "new", 6: "stale", 8: "offline"}
LOG_WORDS = {1: "detach", 2: "dirty", 3: "commit", 4: "log detach", 5: "application dirty"}
COMMIT = 3
SLOT = struct.Struct(">4sIIHH")


@dataclass(frozen=True, slots=True)
class Database:
    """The database of one disk as it stands there. stored: the records in force, by slot.

    config: byte of the disk at which the VMDB lies. damaged: something in it cannot be trusted.
    """

    toc: TocBlock
    vmdb: Vmdb
    stored: tuple[Stored, ...]
    log: tuple[LogBlock, ...]
    config: int
    damaged: bool

    @property
    def generation(self) -> tuple[int, int, int]:
        """Committed transaction, TOCBLOCK sequence, FILETIME of the last change: higher is newer."""
        return self.vmdb.committed_tid, self.toc.sequence, self.vmdb.changed

    @property
    def changed(self) -> datetime | None:
        """When it was last written."""
        return moment(self.vmdb.changed)

    @property
    def history(self) -> str:
        """The generation in words."""
        when = f"{self.changed:%Y-%m-%d %H:%M:%S}" if self.changed else "at no time"
        words = [f"committed {self.vmdb.committed_tid}", f"TOC {self.toc.sequence}", f"changed {when}"]
        if self.vmdb.status != CLEAN:
            words.append(f"database {status(self.vmdb)}")
        return ", ".join(words)

    def where(self, disk: str, stored: Stored) -> Where:
        """The first slot of a record, as bytes of the disk."""
        slot_bytes = self.vmdb.slot_bytes
        return Where(disk, self.config + stored.slots[0] * slot_bytes, slot_bytes, f"VBLK {stored.record.name}")


@dataclass(frozen=True, slots=True)
class DynamicDisk:
    """A disk whose PRIVHEAD says that it is dynamic.

    id: in the plan. place: byte at which the PRIVHEAD in force lies. database: None where it cannot be read, for
    the reason that trouble gives.
    """

    id: str
    source: Source
    head: PrivHead
    place: int
    database: Database | None
    findings: tuple[Finding, ...]
    trouble: LayoutError | ReadError | None = None

    @property
    def generation(self) -> tuple[int, ...]:
        """That of its database; () without one."""
        return self.database.generation if self.database else ()

    @property
    def has_first_copy(self) -> bool:
        """Does a PRIVHEAD, good or bad, lie behind the MBR?"""
        try:
            return (self.source.size >= (FIRST_COPY + 1) * SECTOR
                    and read(self.source, FIRST_COPY * SECTOR, len(records.PRIVHEAD)) == records.PRIVHEAD)
        except ReadError:
            return False

    @property
    def guid(self) -> str:
        """Its own, in lower case."""
        return self.head.disk_guid.lower()

    @property
    def where(self) -> Where:
        """Its PRIVHEAD."""
        return Where(self.source.name, self.place, SECTOR, "PRIVHEAD")

    @property
    def database_where(self) -> Where:
        """Its VMDB; its PRIVHEAD where there is none."""
        return Where(self.source.name, self.database.config, SECTOR, "VMDB") if self.database else self.where


def moment(ticks: int) -> datetime | None:
    """A FILETIME (100 ns since 1601), in UTC; None for none that a calendar has."""
    try:
        return datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=ticks // 10)
    except OverflowError:
        return None


def status(vmdb: Vmdb) -> str:
    """The update status in words."""
    return STATUS.get(vmdb.status, f"in the unknown state {vmdb.status}")


def read_disk(disk: str, source: Source, metadata: tuple[int, int] | None) -> DynamicDisk:
    """What a dynamic disk says of itself and of its group.

    metadata: offset and length of the LDM metadata partition of a GPT disk; None with an MBR.
    Raises LayoutError where no PRIVHEAD can be trusted, ReadError where none can be read.
    """
    place, head, findings = read_head(disk, source, metadata)
    reading = _Reading(disk, source, findings)
    database, trouble = None, None
    try:
        database = reading.database(head)
    except (LayoutError, ReadError) as error:
        trouble = error
    return DynamicDisk(disk, source, head, place, database, tuple(reading.findings), trouble)


@dataclass(slots=True)
class _Reading:
    """One disk while it is being read."""

    disk: str
    source: Source
    findings: list[Finding] = field(default_factory=list)
    damaged: bool = False

    # -- the private region

    def database(self, head: PrivHead) -> Database:
        """Raises LayoutError, ReadError."""
        start, length = head.private_start_sectors * SECTOR, head.private_sectors * SECTOR
        where = Where(self.source.name, start, min(length, LARGEST_REGION), "private region")
        if not 0 < length <= LARGEST_REGION:
            raise LayoutError("the LDM database has no sensible size", where, f"{length} bytes", NEXT)
        if start + length > self.source.size:
            raise LayoutError("the LDM database lies past the end of the disk", where,
                              f"the disk has {self.source.size} bytes: it is cut short", "give the whole disk")
        toc = self._toc(head, start, length)
        config = self._region(toc, "config", start, length)
        vmdb = self._vmdb(head, config[0], config[1])
        stored = tuple(self._records(vmdb, config[0]))
        stored = self._in_force(vmdb, stored, config[0])
        log = self._log(toc, vmdb, start, length)
        return Database(toc, vmdb, stored, log, config[0], self.damaged)

    def _toc(self, head: PrivHead, start: int, length: int) -> TocBlock:
        pointers = (head.primary_toc, head.secondary_toc)
        good: list[TocBlock] = []
        for sector in sorted({*pointers, *TOC_PLACES}):
            place = start + sector * SECTOR
            try:
                if (sector + 1) * SECTOR > length:
                    raise LayoutError("a TOCBLOCK lies outside the private region", Where(self.source.name, place),
                                      f"it has {length} bytes", NEXT)
                good.append(_toc(self.source, place))
            except (LayoutError, ReadError):
                if sector in pointers:
                    self._warn("a TOCBLOCK is damaged, missing or cannot be read",
                               Where(self.source.name, place, SECTOR, "TOCBLOCK"), "another copy is used", "nothing")
        if not good:
            raise LayoutError("no TOCBLOCK can be trusted", Where(self.source.name, start, length, "TOCBLOCK"),
                              "without it nobody knows where the LDM database lies", NEXT)
        toc = max(good, key=lambda block: block.sequence)
        if toc.sequence != head.sequence:
            self._warn(f"the newest TOCBLOCK has sequence {toc.sequence}, PRIVHEAD says {head.sequence}",
                       Where(self.source.name, start, length, "TOCBLOCK"), "an update was interrupted between the two",
                       "nothing: the newest one that is whole is used")
        return toc

    def _region(self, toc: TocBlock, name: str, start: int, length: int) -> tuple[int, int]:
        """Byte of the disk and length of a region. Raises LayoutError."""
        region = toc.region(name)
        where = Where(self.source.name, start, length, f"TOCBLOCK region {name}")
        if region is None:
            raise LayoutError(f"the TOCBLOCK names no region {name}", where, "the database cannot be found", NEXT)
        if not 0 < region.sectors * SECTOR <= length - region.start_sectors * SECTOR:
            raise LayoutError(f"the region {name} lies outside the private region", where,
                              f"sectors {region.start_sectors} to {region.start_sectors + region.sectors}", NEXT)
        return start + region.start_sectors * SECTOR, region.sectors * SECTOR

    def _vmdb(self, head: PrivHead, config: int, length: int) -> Vmdb:
        where = Where(self.source.name, config, SECTOR, "VMDB")
        raw = read(self.source, config, SECTOR)
        vmdb = parse_bytes(records.VMDB_LAYOUT, raw, Vmdb, "the head of the LDM database", where)
        sane = (vmdb.slot_bytes in SLOT_SIZES and SECTOR <= vmdb.header_bytes < length
                and not vmdb.header_bytes % vmdb.slot_bytes and vmdb.slots * vmdb.slot_bytes <= length)
        if not sane:
            raise LayoutError("the head of the LDM database cannot be trusted", where,
                              f"{vmdb.slots} slots of {vmdb.slot_bytes} bytes behind {vmdb.header_bytes} do not fit "
                              f"its {length} bytes", NEXT)
        if vmdb.group_guid != head.group_guid:
            raise LayoutError("the LDM database belongs to another disk group", where,
                              f"it says {vmdb.group_guid}, PRIVHEAD says {head.group_guid}", NEXT)
        if vmdb.group_name != head.group_name or (vmdb.major, vmdb.minor) != (4, 10):
            self._warn(f"the head of the LDM database is unusual: group {printable(vmdb.group_name)}, version "
                       f"{vmdb.major}.{vmdb.minor}", where, f"expected is {printable(head.group_name)}, 4.10",
                       "compare the volumes with what the machine shows")
        return vmdb

    # -- VBLKs

    def _records(self, vmdb: Vmdb, config: int) -> Iterator[Stored]:
        """All records that can be read, by their first slot; the others are damage."""
        groups: dict[int, list[tuple[Slot, int, bytes]]] = {}
        for number, slot, payload in self._slots(vmdb, config):
            groups.setdefault(slot.group, []).append((slot, number, payload))
        for group, found in groups.items():
            found.sort(key=lambda piece: piece[0].index)
            number, count = found[0][1], found[0][0].count
            where = Where(self.source.name, config + number * vmdb.slot_bytes, vmdb.slot_bytes, f"VBLK group {group}")
            try:
                if (count > MOST_FRAGMENTS or [piece[0].index for piece in found] != list(range(count))
                        or any(piece[0].count != count for piece in found)):
                    raise LayoutError("a record of the LDM database is not whole", where,
                                      f"{len(found)} fragments where {count} are due, or numbered wrongly", NEXT)
                record = records.parse_record(b"".join(piece[2] for piece in found), where)
                yield Stored(record, group, tuple(piece[1] for piece in found))
            except LayoutError as error:
                self._damage(error.what, error.where, error.why)

    def _slots(self, vmdb: Vmdb, config: int) -> Iterator[tuple[int, Slot, bytes]]:
        """The slots in use: number, head, payload."""
        length = vmdb.slots * vmdb.slot_bytes
        data = self._careful_read(config, length)
        foreign = []
        for number in range(vmdb.header_bytes // vmdb.slot_bytes, vmdb.slots):
            place = number * vmdb.slot_bytes
            magic, sequence, group, index, count = SLOT.unpack_from(data, place)
            if magic != records.VBLK or sequence != number:
                foreign.append(place)
            if magic == records.VBLK and count:
                payload = data[place + records.SLOT_HEADER:place + vmdb.slot_bytes]
                yield number, Slot(sequence, group, index, count), payload
        for place in foreign[:MOST_TOLD]:
            self._damage("a slot of the LDM database is damaged",
                         Where(self.source.name, config + place, vmdb.slot_bytes, "VBLK"),
                         f"it lacks its mark or its number; {len(foreign)} of {vmdb.slots} slots do")

    def _careful_read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk, zeroes and a finding for each sector that cannot be read."""
        try:
            return read(self.source, offset, length)
        except ReadError:
            data = bytearray(length)
            for place in range(0, length, SECTOR):
                try:
                    data[place:place + SECTOR] = read(self.source, offset + place, min(SECTOR, length - place))
                except ReadError as error:
                    self._damage(error.what, error.where, error.why)
            return bytes(data)

    # -- which records are in force

    def _in_force(self, vmdb: Vmdb, stored: Sequence[Stored], config: int) -> tuple[Stored, ...]:
        """Of an update that was interrupted, the state before it; after it where it was being committed."""
        where = Where(self.source.name, config, SECTOR, "VMDB")
        before = [one for one in stored if one.record.status in (records.ACTIVE, records.BEING_DELETED)]
        after = [one for one in stored if one.record.status in (records.ACTIVE, records.BEING_ADDED)]
        forward = vmdb.status == COMMITTING
        if any(one.record.status for one in stored):
            self._damage("an update of the LDM database was interrupted", where,
                         f"it is {status(vmdb)}; shown is the state {'after' if forward else 'before'} it, by a rule "
                         "that no disk has confirmed",
                         "start the machine once, if it can be, or compare the volumes with what it showed")
        elif vmdb.status != CLEAN or vmdb.committed_tid != vmdb.pending_tid:
            self._warn(f"the LDM database is {status(vmdb)}, "
                       f"committed {vmdb.committed_tid}, pending {vmdb.pending_tid}",
                       where, "an update of it did not end", "compare the volumes with what the machine showed")
        chosen = tuple(after if forward else before)
        self._count(vmdb, chosen, forward=forward, where=where)
        return chosen

    def _count(self, vmdb: Vmdb, chosen: Sequence[Stored], *, forward: bool, where: Where) -> None:
        """No checksum covers VMDB and VBLKs; that they agree is what there is."""
        due = vmdb.pending if forward else vmdb.committed
        told = (due.volumes, due.components, due.partitions, due.disks)
        kinds = [one.record.kind & 0x0F for one in chosen]
        there = tuple(kinds.count(kind) for kind in (1, 2, 3, 4))
        if told != there:
            self._damage("the LDM database is not complete", where,
                         f"volumes, components, partitions, disks: its head counts {told}, its records are {there}")
        names = [(one.record.kind & 0x0F, one.record.id) for one in chosen]
        if len(set(names)) != len(names):
            self._damage("the LDM database has two records of one number", where,
                         "which of them is true cannot be told")
        last = max((one.record.commit_tid for one in chosen), default=0)
        if last > max(vmdb.committed_tid, vmdb.pending_tid):
            self._damage("a record of the LDM database is newer than the database", where,
                         f"its transaction is {last}, committed is {vmdb.committed_tid}")

    # -- the log

    def _log(self, toc: TocBlock, vmdb: Vmdb, start: int, length: int) -> tuple[LogBlock, ...]:
        """Told, never counted: what its entries mean was inferred from documents."""
        if toc.region("log") is None:
            return ()
        try:
            place, size = self._region(toc, "log", start, length)
            data = read(self.source, place, size)
        except (LayoutError, ReadError) as error:
            self._warn("the log of the LDM database cannot be read", error.where, error.why or error.what, "nothing")
            return ()
        blocks = [parse_bytes(records.KLOG_LAYOUT, data[at:at + SECTOR], LogBlock, "the LDM log",
                              Where(self.source.name, place + at, SECTOR, "KLOG"))
                  for at in range(0, size, SECTOR) if data[at:at + 4] == records.KLOG]
        told = [entry for block in blocks for entry in _entries(block) if _unusual(entry, vmdb)]
        if told:
            words = ", ".join(f"{LOG_WORDS.get(entry.status, entry.status)} {entry.committed_tid} → {entry.pending_tid}"
                              for entry in told[:MOST_TOLD])
            self._warn(f"{len(told)} entries in the log of the LDM database: {words}",
                       Where(self.source.name, place, size, "KLOG"),
                       f"Windows may have dropped a copy without writing it down (committed is {vmdb.committed_tid}); "
                       "it does not count in the choice of a leg",
                       "compare the legs of the mirrors (p2v inspect --compare)")
        return tuple(blocks)

    def _warn(self, what: str, where: Where, why: str, next: str) -> None:
        self.findings.append(Finding(f"{self.disk}: {what}", where, why, next, Severity.WARNING))

    def _damage(self, what: str, where: Where, why: str, next: str = NEXT) -> None:
        """Keep it; the first few of a disk are enough."""
        self.damaged = True
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(f"{self.disk}: {what}", where, why, next, Severity.ERROR))


def _toc(source: Source, offset: int) -> TocBlock:
    raw = checked(source, offset, "TOCBLOCK")
    where = Where(source.name, offset, SECTOR, "TOCBLOCK")
    return parse_bytes(records.TOCBLOCK_LAYOUT, raw, TocBlock, "the LDM table of contents", where)


def _entries(block: LogBlock) -> Iterator[LogEntry]:
    for entry in block.entries:
        if not entry.status:
            return
        yield entry


def _unusual(entry: LogEntry, vmdb: Vmdb) -> bool:
    """A commit up to the committed transaction is what every healthy disk shows."""
    return entry.status != COMMIT or entry.pending_tid > vmdb.committed_tid


def records_of(database: Database) -> tuple[Record, ...]:
    """The records in force."""
    return tuple(stored.record for stored in database.stored)
