"""The used-block map of FAT12, FAT16 and FAT32, and whether it can be trusted.

A cluster is free where its entry is 0 in every copy of the FAT, on a volume whose clean bits are set.
Reserved sectors, FATs, the root folder of FAT12/16 and the sectors past the last cluster are never free;
bad clusters (FF7) are not 0 and so stay used.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import construct as c
import numpy as np
from numpy.typing import NDArray

from p2v.binary import parse_bytes
from p2v.errors import Finding, GuestError, LayoutError, ReadError, Severity, Where
from p2v.filesystem.freemap import FreeRanges, overlap
from p2v.filesystem.reader import open_files
from p2v.filesystem.sleeping import PAGEFILE, droppable_page_file, hibernated
from p2v.model import Filesystem, FilesystemState, Range, Source, read

CHUNK = 1 << 20  # entries at a time
HOP = 4096  # entries looked at for one step along a chain
FAT12_BYTES = 6144  # 12 sectors hold 4096 entries, more than FAT12 has
FRAGMENTS = 10_000  # of a page file; with more it is copied
FAT12_END, FAT16_END = 4085, 65525  # clusters from which on the next wider FAT is used
CLEAN_BITS = {16: 0xC000, 32: 0x0C000000}  # of FAT[1]: shut down, no I/O error
DIRTY_BYTE = {12: 0x25, 16: 0x25, 32: 0x41}  # of the boot sector; NT sets bit 0 while it is mounted

BOOT_LAYOUT = c.Struct(
    "jump" / c.Bytes(3),
    "oem" / c.Bytes(8),
    "bytes_per_sector" / c.Int16ul,
    "sectors_per_cluster" / c.Int8ul,
    "reserved_sectors" / c.Int16ul,
    "fats" / c.Int8ul,
    "root_entries" / c.Int16ul,
    "total_sectors_16" / c.Int16ul,
    "media" / c.Int8ul,
    "sectors_per_fat_16" / c.Int16ul,
    "sectors_per_track" / c.Int16ul,
    "heads" / c.Int16ul,
    "hidden_sectors" / c.Int32ul,
    "total_sectors_32" / c.Int32ul,
    "sectors_per_fat_32" / c.Int32ul,  # FAT32 only, as what follows
    "flags" / c.Int16ul,
    "version" / c.Int16ul,
    "root_cluster" / c.Int32ul,
)
"""The BIOS parameter block; before Windows 98's FAT32 it ends with total_sectors_32."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot sector that holds together as FAT."""

    jump: bytes
    bytes_per_sector: int
    sectors_per_cluster: int
    reserved_sectors: int
    fats: int
    root_entries: int
    total_sectors_16: int
    media: int
    sectors_per_fat_16: int
    total_sectors_32: int
    sectors_per_fat_32: int
    root_cluster: int

    def __post_init__(self) -> None:
        checks = {
            "jump": self.jump[0] in (0xE9, 0xEB),
            "bytes per sector": self.bytes_per_sector in (512, 1024, 2048, 4096),
            "sectors per cluster": self.sectors_per_cluster in (1, 2, 4, 8, 16, 32, 64, 128),
            "reserved sectors": self.reserved_sectors > 0,
            "number of FATs": self.fats in (1, 2),
            "media": self.media == 0xF0 or self.media >= 0xF8,
            "sectors per FAT": self.sectors_per_fat > 0,
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong or not 0 < self.clusters < 0x0FFFFFF5:
            raise ValueError(f"this is no FAT: {', '.join(wrong) or 'number of clusters'}")
        if self.is_wide != (self.root_entries == 0) or (not self.is_wide and self.clusters >= FAT16_END):
            raise ValueError("FAT16 and FAT32 are mixed up in it")
        if (self.clusters + 2) * self.bits > 8 * self.sectors_per_fat * self.bytes_per_sector:
            raise ValueError("its FAT has fewer entries than clusters")

    @property
    def is_wide(self) -> bool:
        """FAT32: as Windows' driver decides, by the missing 16-bit length of the FAT."""
        return self.sectors_per_fat_16 == 0

    @property
    def bits(self) -> int:
        """Of an entry: 12, 16 or 32."""
        if self.is_wide:
            return 32
        return 12 if self.clusters < FAT12_END else 16

    @property
    def sectors_per_fat(self) -> int:
        """Of one copy."""
        return self.sectors_per_fat_16 or self.sectors_per_fat_32

    @property
    def total_sectors(self) -> int:
        """Of the volume, as the filesystem counts."""
        return self.total_sectors_16 or self.total_sectors_32

    @property
    def data_sector(self) -> int:
        """Where cluster 2 begins."""
        root = -(-self.root_entries * 32 // self.bytes_per_sector)
        return self.reserved_sectors + self.fats * self.sectors_per_fat + root

    @property
    def clusters(self) -> int:
        """Whole clusters; they are numbered from 2."""
        return (self.total_sectors - self.data_sector) // self.sectors_per_cluster

    @property
    def cluster_size(self) -> int:
        """Bytes."""
        return self.bytes_per_sector * self.sectors_per_cluster

    def place(self, cluster: int) -> int:
        """The byte of the volume where a cluster begins."""
        return self.data_sector * self.bytes_per_sector + (cluster - 2) * self.cluster_size


def examine(source: Source, head: bytes) -> Filesystem | None:
    """None where the boot sector (head) is not FAT's. Never raises for what the volume holds."""
    where = Where(source.name, 0, len(head))
    try:
        boot = parse_bytes(BOOT_LAYOUT, head, Boot, "the FAT boot sector", where)
    except LayoutError as error:
        named = head[0x36:0x39] == b"FAT" or head[0x52:0x57] == b"FAT32"
        return Filesystem("fat", findings=(_all_data(error),)) if named else None
    kind = f"fat{boot.bits}"
    try:
        if boot.total_sectors * boot.bytes_per_sector > source.size:
            raise LayoutError("the FAT volume is longer than its partition", where,
                              f"it needs {boot.total_sectors * boot.bytes_per_sector} bytes, "
                              f"there are {source.size}", "give the whole disk")
        state, findings = _state(source, boot, head, kind)
        if state is not FilesystemState.CLEAN:
            return Filesystem(kind, "", boot.cluster_size, state, findings=tuple(findings))
        free = _free(source, boot)
        droppable, findings = _page_file(source, boot, kind, free)
    except (LayoutError, ReadError, GuestError) as error:
        return Filesystem(kind, "", boot.cluster_size, findings=(_all_data(error),))
    return Filesystem(kind, "", boot.cluster_size, state, free, droppable, tuple(findings))


def _all_data(error: LayoutError | ReadError | GuestError) -> Finding:
    why = f"{error.why}; " if error.why else ""
    return Finding(f"FAT cannot be trusted: {error.what}", error.where,
                   f"{why}every byte of the volume is copied, free space too", error.next, Severity.WARNING)


def _state(source: Source, boot: Boot, head: bytes, kind: str) -> tuple[FilesystemState, list[Finding]]:
    asleep = hibernated(open_files(source, Filesystem(kind)), source.name)
    if asleep:
        return FilesystemState.HIBERNATED, [asleep]
    if not left_in_use(source, boot, head):
        return FilesystemState.CLEAN, []
    return FilesystemState.DIRTY, [Finding(
        "the volume is marked dirty", Where(source.name, item=kind.upper()),
        "Windows wants to run chkdsk; free space is copied too",
        "nothing, or run chkdsk on the machine first", Severity.WARNING)]


def left_in_use(source: Source, boot: Boot, head: bytes) -> bool:
    """Was it not shut down in order? Raises ReadError."""
    clean = CLEAN_BITS.get(boot.bits, 0)  # FAT12 has none: the boot sector alone decides
    second = [int(_copy(source, boot, copy, 1, 1)[0]) for copy in range(boot.fats)] if clean else []
    return any(entry & clean != clean for entry in second) or bool(head[DIRTY_BYTE[boot.bits]] & 1)


def _entries(source: Source, boot: Boot, first: int, count: int) -> NDArray[np.uint32]:
    """FAT entries; where the copies differ, all bits of all of them."""
    entries = np.zeros(count, np.uint32)
    for copy in range(boot.fats):
        entries |= _copy(source, boot, copy, first, count)
    return entries & np.uint32(0x0FFFFFFF if boot.bits == 32 else 0xFFFF)


def _copy(source: Source, boot: Boot, copy: int, first: int, count: int) -> NDArray[np.uint32]:
    """Entries of one copy of the FAT. FAT12 is small and read whole."""
    size = boot.sectors_per_fat * boot.bytes_per_sector
    start = boot.reserved_sectors * boot.bytes_per_sector + copy * size
    if boot.bits == 12:
        return _unpack12(read(source, start, min(size, FAT12_BYTES)))[first:first + count]
    width = boot.bits // 8
    return np.frombuffer(read(source, start + first * width, count * width), f"<u{width}").astype(np.uint32)


def _unpack12(raw: bytes) -> NDArray[np.uint32]:
    """Two entries in three bytes."""
    whole = raw + bytes(-len(raw) % 3)
    triples = np.frombuffer(whole, np.uint8).reshape(-1, 3).astype(np.uint32)
    low = triples[:, 0] | (triples[:, 1] & 15) << 8
    high = triples[:, 1] >> 4 | triples[:, 2] << 4
    return np.column_stack((low, high)).reshape(-1)


def _free(source: Source, boot: Boot) -> tuple[Range, ...]:
    ranges = FreeRanges(boot.place(2), boot.cluster_size)
    end = boot.clusters + 2
    for first in range(2, end, CHUNK):
        ranges.add(_entries(source, boot, first, min(CHUNK, end - first)) == 0)
    free = ranges.finish()
    root = Range(boot.place(boot.root_cluster), boot.cluster_size) if 2 <= boot.root_cluster < end else None
    if boot.is_wide and (root is None or overlap(free, [root])):
        raise LayoutError("the FAT calls the root folder free", Where(source.name, 0x2C, 4, "root_cluster"),
                          f"cluster {boot.root_cluster} of {boot.clusters}", "run chkdsk on the machine")
    return free


def _page_file(source: Source, boot: Boot, kind: str,
               free: tuple[Range, ...]) -> tuple[tuple[Range, ...], list[Finding]]:
    """Whole clusters of \\pagefile.sys, by its directory entry and its chain."""
    files = open_files(source, Filesystem(kind))
    wanted, finding = droppable_page_file(files, source.name)
    entry = files.record_number(PAGEFILE) if wanted else None
    stat = files.stat(PAGEFILE)
    if entry is None or stat is None:
        return (), [finding] if finding else []
    raw = read(source, entry, 32)
    first = int.from_bytes(raw[26:28], "little")
    if boot.is_wide:
        first |= int.from_bytes(raw[20:22], "little") << 16
    chain = _chain(source, boot, first, stat.size // boot.cluster_size)
    ranges = tuple(sorted(chain, key=lambda r: r.offset))
    if any(a.end > b.offset for a, b in itertools.pairwise(ranges)) or overlap(free, list(ranges)):
        raise LayoutError("the page file's chain of clusters is a loop", Where(source.name, item=PAGEFILE),
                          "it comes by a cluster twice", "run chkdsk on the machine")
    return ranges, []


def _chain(source: Source, boot: Boot, cluster: int, count: int) -> list[Range]:
    """The first count clusters of a chain, run by run; nothing where it is odd or in too many pieces."""
    ranges: list[Range] = []
    end = boot.clusters + 2
    while count:
        if not 2 <= cluster < end or len(ranges) >= FRAGMENTS:
            return []
        length = min(count, HOP, end - cluster)
        following = _entries(source, boot, cluster, length)
        breaks = np.flatnonzero(following != np.arange(cluster + 1, cluster + 1 + length, dtype=np.uint32))
        run = int(breaks[0]) + 1 if len(breaks) else length
        piece = Range(boot.place(cluster), run * boot.cluster_size)
        if ranges and ranges[-1].end == piece.offset:
            piece = Range(ranges[-1].offset, ranges[-1].length + piece.length)
            ranges.pop()
        ranges.append(piece)
        cluster = int(following[run - 1])
        count -= run
    return ranges
