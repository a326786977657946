"""The partition table of an MBR with its chain of logical partitions.

Only metadata is read. Whatever contradicts itself or the disk becomes a finding, and bytes in doubt carry
no volume, so that they are copied whole. A container is type 05 or 0F for Windows (IsContainerPartition in
the public winioctl.h), 85 for Linux only; partition(N) of an ARC path counts all other types in use,
primaries first (Q102873).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import construct as c

from p2v.binary import parse, parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Where
from p2v.model import SECTOR, Member, Partition, Source, Volume, read
from p2v.source.window import Window
from p2v.volume import overlay, problems
from p2v.volume.problems import Problem

NAME = "mbr"

TABLE = 0x1BE  # bytes from the start of the sector
ENTRY_BYTES = 16
SIGNATURE = b"\x55\xaa"
CHAIN_LIMIT = 256  # table sectors; Linux stops at 256 partitions, drive letters end at Z
WINDOWS_CONTAINERS = frozenset({0x05, 0x0F})
CONTAINERS = WINDOWS_CONTAINERS | {0x85}
FIRST_LOGICAL = 5  # in the names of volumes, as Linux counts

SECTOR_LAYOUT = c.Struct(
    "code" / c.Bytes(440),
    "disk_signature" / c.Int32ul,
    "reserved" / c.Int16ul,
    "entries" / c.Array(4, c.Bytes(ENTRY_BYTES)),
    "signature" / c.Bytes(2),
)

ENTRY_LAYOUT = c.Struct(
    "flag" / c.Int8ul,
    "start_chs" / c.Bytes(3),
    "type" / c.Int8ul,
    "end_chs" / c.Bytes(3),
    "start_sectors" / c.Int32ul,
    "count_sectors" / c.Int32ul,
)


@dataclass(frozen=True, slots=True)
class TableSector:
    """An MBR, or one link of the chain of logical partitions (EBR)."""

    disk_signature: int
    entries: tuple[bytes, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the four entries of a TableSector. What start_sectors counts from depends on the table."""

    flag: int
    start_chs: bytes
    type: int
    end_chs: bytes
    start_sectors: int
    count_sectors: int


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Partition | Finding]:
    """All that the tables of these disks say. disks: by id in the plan ("disk0")."""
    for disk, source in disks.items():
        walk = _Walk(disk, source)
        try:
            yield from walk.volumes()
        except (ReadError, LayoutError) as error:
            walk.findings.append(error.as_finding())
        yield from walk.partitions
        yield from walk.findings


class _Walk:
    """One disk's tables, read once."""

    def __init__(self, disk: str, source: Source) -> None:
        self.disk = disk
        self.source = source
        self.unit = source.sector_size
        self.partitions: list[Partition] = []
        self.findings: list[Finding] = []
        self.names: dict[int, str] = {}  # entry_offset → the volume's name
        self.counted = 0  # the last number that an ARC path can use
        self.tables = [0]  # byte offsets of all table sectors

    def volumes(self) -> Iterator[Volume]:
        table = parse(SECTOR_LAYOUT, self.source, 0, TableSector, "the partition table")
        if table.signature != SIGNATURE:
            self._say(problems.NO_TABLE, 0, SECTOR)
        elif _is_boot_sector(read(self.source, 0, SECTOR), table):
            self._say(problems.SUPERFLOPPY, 0, SECTOR)
            yield Volume(self.disk, Window(self.source, 0, self.source.size, self.disk), "basic",
                         (Member(self.disk, 0, self.source.size),))
        else:
            self._primaries(table)
            self._look_for_an_overlay()
            disputed = self._overlaps()
            found = [self._volume(partition, disputed) for partition in self.partitions]
            yield from (volume for volume in found if volume)

    # -- the tables

    def _primaries(self, table: TableSector) -> None:
        for slot, raw in enumerate(table.entries, 1):
            entry, place = self._entry(raw, 0, slot)
            if entry.type:
                counted = entry.type not in WINDOWS_CONTAINERS
                self._add(entry, place, entry.start_sectors * self.unit, slot, counted=counted)
        if sum(partition.active for partition in self.partitions) > 1:
            self._say(problems.TWO_ACTIVE, TABLE, 4 * ENTRY_BYTES)
        containers = [p for p in self.partitions if p.type in CONTAINERS]
        for container in containers[:1]:
            self._chain(container)
        for container in containers[1:]:
            self._say(problems.TWO_CONTAINERS, container.entry_offset, ENTRY_BYTES)

    def _look_for_an_overlay(self) -> None:
        """Its code lies in front of the first partition, whatever type that has."""
        starts = [partition.offset for partition in self.partitions]
        if starts and not any(problems.BY_TYPE.get(p.type) is problems.OVERLAY for p in self.partitions):
            sign = overlay.sign(self.source, min(starts))
            if sign:
                self._say(problems.OVERLAY_CODE, 0, min(overlay.TRACK, *starts), sign=sign)

    def _chain(self, container: Partition) -> None:
        """In each EBR a partition relative to the EBR, and a link relative to the container."""
        place: int | None = container.offset
        number = FIRST_LOGICAL
        while place is not None:
            table = self._ebr(place, container)
            if table is None:
                return
            self.tables.append(place)
            following = None
            for slot, raw in enumerate(table.entries, 1):
                entry, where = self._entry(raw, place, slot)
                if entry.type in CONTAINERS:
                    start = container.offset + entry.start_sectors * self.unit
                    following = self._link(entry, where, start, following)
                elif entry.type:
                    start = place + entry.start_sectors * self.unit
                    number += self._logical(entry, where, start, number, slot, container)
            place = following

    def _ebr(self, place: int, container: Partition) -> TableSector | None:
        """The table sector at byte place; None (and a finding) where the chain must end."""
        problem = self._must_end(place)
        if problem:
            self._say(problem, place, SECTOR, limit=CHAIN_LIMIT, size=self.source.size)
            return None
        if not container.offset <= place < container.offset + container.length:
            self._say(problems.CHAIN_LEAVES_CONTAINER, place, SECTOR)
        try:
            table = parse(SECTOR_LAYOUT, self.source, place, TableSector, "the table of a logical partition")
        except ReadError as error:
            self.findings.append(error.as_finding())
            return None
        if table.signature != SIGNATURE:
            self._say(problems.CHAIN_ENDS, place, SECTOR)
            return None
        return table

    def _must_end(self, place: int) -> Problem | None:
        if place in self.tables:
            return problems.LOOP
        if len(self.tables) > CHAIN_LIMIT:
            return problems.TOO_LONG
        return problems.CHAIN_LEAVES_DISK if place + SECTOR > self.source.size else None

    def _link(self, entry: Entry, where: int, start: int, following: int | None) -> int | None:
        if following is not None:
            self._say(problems.TWO_LINKS, where, ENTRY_BYTES)
            return following
        if not entry.count_sectors and not entry.start_sectors:
            return None
        self._add(entry, where, start, 0, counted=False)
        return start

    def _logical(self, entry: Entry, where: int, start: int, number: int, slot: int,
                 container: Partition) -> int:
        if slot > 2:
            self._say(problems.ODD_SLOT, where, ENTRY_BYTES)
        return self._add(entry, where, start, number, counted=container.type in WINDOWS_CONTAINERS)

    def _entry(self, raw: bytes, table: int, slot: int) -> tuple[Entry, int]:
        place = table + TABLE + ENTRY_BYTES * (slot - 1)
        where = Where(self.source.name, place, ENTRY_BYTES)
        return parse_bytes(ENTRY_LAYOUT, raw, Entry, "a partition entry", where), place

    def _add(self, entry: Entry, place: int, offset: int, number: int, *, counted: bool) -> int:
        """Keep an entry. Returns how many numbers of volumes it takes: 1, or 0 without a length."""
        self.counted += counted  # NT counts by type alone, whatever the length
        if not entry.count_sectors:
            self._say(problems.EMPTY, place, ENTRY_BYTES)
            return 0
        if entry.flag not in (0x00, 0x80):
            self._say(problems.ODD_FLAG, place, ENTRY_BYTES, flag=entry.flag)
        self.partitions.append(Partition(
            self.disk, place, self.counted if counted else 0, entry.type, entry.flag == 0x80, place >= SECTOR,
            offset, entry.count_sectors * self.unit, entry.start_chs, entry.end_chs))
        self.names[place] = f"{self.disk}p{number}"
        return 1

    # -- what lies in them

    def _overlaps(self) -> set[int]:
        """entry_offset of every partition that shares bytes with another one or with a table sector."""
        claims = [(p.offset, p.offset + p.length, p.entry_offset) for p in self.partitions
                  if p.type not in CONTAINERS]
        claims += [(table, table + SECTOR, -1) for table in self.tables]
        disputed: set[int] = set()
        reaching = (0, 0, -1)  # of the claims so far, the one that ends last
        for claim in sorted(claims):
            start, end, place = claim
            if start < reaching[1]:
                disputed |= {place, reaching[2]}
                self._say(problems.OVERLAP, start, min(end, reaching[1]) - start)
            reaching = max(reaching, claim, key=lambda known: known[1])
        self._reaches_into_container()
        return disputed

    def _reaches_into_container(self) -> None:
        primaries = [p for p in self.partitions if not p.logical]
        for container in (p for p in primaries if p.type in CONTAINERS):
            for primary in (p for p in primaries if p.type not in CONTAINERS):
                start = max(primary.offset, container.offset)
                end = min(primary.offset + primary.length, container.offset + container.length)
                if start < end:
                    self._say(problems.OVER_CONTAINER, start, end - start)

    def _volume(self, partition: Partition, disputed: set[int]) -> Volume | None:
        length = min(partition.length, self.source.size - partition.offset)
        if length < partition.length:
            self._say(problems.PAST_THE_END, partition.offset, partition.length, size=self.source.size)
        kind = partition.type
        if kind in problems.BY_TYPE:
            self._say(problems.BY_TYPE[kind], partition.entry_offset, ENTRY_BYTES, type=kind)
        if length <= 0 or partition.entry_offset in disputed or kind in CONTAINERS | problems.NOT_READ:
            return None
        name = self.names[partition.entry_offset]
        return Volume(name, Window(self.source, partition.offset, length, name), "basic",
                      (Member(self.disk, partition.offset, length),), partition)

    def _say(self, problem: Problem, offset: int, length: int, **values: object) -> None:
        self.findings.append(problem.at(self.disk, Where(self.source.name, offset, length), **values))


def _is_boot_sector(sector: bytes, table: TableSector) -> bool:
    """Does a filesystem's boot sector lie where an MBR should be? Both end in 55 AA."""
    named = sector[3:11] == b"NTFS    " or sector[0x36:0x39] == b"FAT" or sector[0x52:0x57] == b"FAT32"
    sane = all(raw[0] in (0x00, 0x80) for raw in table.entries) and any(raw[4] for raw in table.entries)
    return named and sector[0] in (0xEB, 0xE9) and not sane
