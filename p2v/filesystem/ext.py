"""The used-block map of ext2, ext3 and ext4, and whether it can be trusted.

A cluster is free where its group's bitmap says so, on a volume that was unmounted in order: state is valid
and without errors, no journal to replay, no orphans. A group that was never written (BLOCK_UNINIT) has no
bitmap: what the superblock, the descriptors and all groups' tables occupy is used there, the rest is free.
Whatever does not fit (a checksum, a count of free blocks, metadata that a bitmap calls free, a feature that
nobody here knows) makes the whole volume data. The first KiB and the tail past the last block are never free.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Severity, Where
from p2v.filesystem.extlayout import (
    COMPAT_JOURNAL,
    CSUM_SEED,
    EXTENTS,
    GDT_CSUM,
    LAYOUT,
    MAGIC,
    METADATA_CSUM,
    NEEDS_RECOVERY,
    ORPHANS,
    SUPERBLOCK,
    Superblock,
)
from p2v.filesystem.extsums import CRC16, CRC32C, checksum, checksums
from p2v.filesystem.freemap import FreeRanges
from p2v.model import Filesystem, FilesystemState, Range, Source, read

VALID, ERRORS, REPAIRING = 1, 2, 4  # of the field state
BLOCK_UNINIT = 2  # of a descriptor's flags
AT_A_TIME = 256  # groups; 8 million clusters at most
STEP = 1 << 23  # bytes of descriptors or bitmaps read at once
JOURNAL_MAGIC = bytes.fromhex("C03B3998")
EXTENT_MAGIC = 0xF30A
ALL_ONES = 0xFFFFFFFF
EVERY = slice(None)
Bits = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def examine(source: Source) -> Filesystem | None:
    """None where there is no superblock. Never raises for what the volume holds."""
    if source.size < 2 * SUPERBLOCK:
        return None
    kind = "ext"
    try:
        head = read(source, SUPERBLOCK, SUPERBLOCK)
        if int.from_bytes(head[0x38:0x3A], "little") != MAGIC:
            return None
        volume = Ext(source, head)
        kind = volume.block.kind
        state, findings = volume.state()
        free = volume.free() if state is FilesystemState.CLEAN else ()
    except (LayoutError, ReadError) as error:
        why = f"{error.why}; " if error.why else ""
        finding = Finding(f"{kind} cannot be trusted: {error.what}", error.where,
                          f"{why}every byte of the volume is copied, free space too", error.next, Severity.WARNING)
        return Filesystem(kind, findings=(finding,))
    return Filesystem(kind, "", volume.block.cluster_size, state, free, (), tuple(findings))


class Ext:
    """A volume with a superblock (head) that holds together. Raises LayoutError, ReadError."""

    def __init__(self, source: Source, head: bytes) -> None:
        self.source = source
        where = Where(source.name, SUPERBLOCK, SUPERBLOCK)
        self.block = block = parse_bytes(LAYOUT, head, Superblock, "the superblock", where)
        if block.blocks * block.block_size > source.size:
            raise LayoutError("the volume is longer than its partition", where,
                              f"it needs {block.blocks * block.block_size} bytes, there are {source.size}",
                              "give the whole disk")
        self._seed = block.checksum_seed if block.incompat(CSUM_SEED) else checksum(CRC32C, ALL_ONES, block.uuid)
        if block.ro_compat(METADATA_CSUM) and checksum(CRC32C, ALL_ONES, head[:0x3FC]) != block.checksum:
            raise self._damaged("the superblock's checksum is wrong", SUPERBLOCK)
        self._rows = self._descriptors()

    def _damaged(self, what: str, offset: int, length: int = SUPERBLOCK, why: str = "") -> LayoutError:
        return LayoutError(what, Where(self.source.name, offset, length), why,
                           "run e2fsck on the machine, if it still starts")

    # -- state

    def state(self) -> tuple[FilesystemState, list[Finding]]:
        """An unreplayed journal weighs more than an error."""
        block = self.block
        if block.incompat(NEEDS_RECOVERY) or self._journal_in_use():
            return FilesystemState.UNCLEAN, [self._not_clean(
                "the volume's journal is not replayed", "it was not unmounted, or was copied while mounted")]
        if block.state & (VALID | ERRORS | REPAIRING) != VALID:
            return FilesystemState.DIRTY, [self._not_clean(
                "the volume was not unmounted in order", f"its state is {block.state:#x}")]
        if block.last_orphan or block.ro_compat(ORPHANS):
            return FilesystemState.DIRTY, [self._not_clean(
                "the volume holds files that were removed while open", "they are cleared at its next mount")]
        return FilesystemState.CLEAN, []

    def _not_clean(self, what: str, why: str) -> Finding:
        return Finding(what, Where(self.source.name, SUPERBLOCK, SUPERBLOCK), f"{why}; free space is copied too",
                       "nothing, or run e2fsck on the machine first", Severity.WARNING)

    def _journal_in_use(self) -> bool:
        """Does the journal's own superblock speak of transactions, or of an error?"""
        block = self.block
        if not block.compat(COMPAT_JOURNAL) or not block.journal_inum:
            return False
        head = self._read_block(self._journal_block())[:36]
        if head[:4] != JOURNAL_MAGIC:
            raise self._damaged("the journal's superblock is none", SUPERBLOCK)
        return any(head[28:36])  # s_start, s_errno

    def _journal_block(self) -> int:
        """The first block of the journal, by its inode."""
        block = self.block
        group, index = divmod(block.journal_inum - 1, block.inodes_per_group)
        if not 0 <= group < block.groups:
            raise self._damaged(f"the journal's inode {block.journal_inum} is none", SUPERBLOCK)
        at = int(self._field(0x08, 0x28)[group]) * block.block_size + index * block.inode_bytes
        inode = self._inside(at, 128)
        if not int.from_bytes(inode[32:36], "little") & 0x80000:  # it has no extents
            return int.from_bytes(inode[40:44], "little")
        node = inode[40:100]
        for _ in range(6):  # the deepest tree has five levels
            magic, entries, _, depth = (int.from_bytes(node[i:i + 2], "little") for i in range(0, 8, 2))
            if magic != EXTENT_MAGIC or not entries or not block.incompat(EXTENTS):
                break
            if depth == 0:
                return int.from_bytes(node[20:24] + node[18:20], "little")
            node = self._read_block(int.from_bytes(node[16:22], "little"))
        raise self._damaged("the journal's inode cannot be followed", at, 128)

    def _read_block(self, number: int) -> bytes:
        return self._inside(number * self.block.block_size, self.block.block_size)

    def _inside(self, offset: int, length: int) -> bytes:
        if not 0 < offset <= self.block.blocks * self.block.block_size - length:
            raise self._damaged("the volume points outside itself", SUPERBLOCK, why=f"at byte {offset:#x}")
        return read(self.source, offset, length)

    # -- group descriptors

    def _descriptors(self) -> NDArray[np.uint8]:
        """A row for each group. Raises LayoutError where a checksum is wrong."""
        block = self.block
        size = block.descriptor_size
        places = np.array([block.descriptor_block(number) for number in range(block.descriptor_blocks)], np.int64)
        data = b"".join(self._runs(places))
        rows = np.frombuffer(data, np.uint8)[: block.groups * size].reshape(block.groups, size)
        if not block.ro_compat(METADATA_CSUM) and not block.ro_compat(GDT_CSUM):
            return rows
        numbers = np.arange(block.groups, dtype="<u4").view(np.uint8).reshape(-1, 4)
        if block.ro_compat(METADATA_CSUM):
            blank = np.zeros((block.groups, 2), np.uint8)
            parts = np.hstack((numbers, rows[:, :0x1E], blank, rows[:, 0x20:]))
            sums = checksums(CRC32C, np.array(self._seed, np.uint32), parts)
        else:
            start = np.array(checksum(CRC16, 0xFFFF, block.uuid), np.uint32)
            sums = checksums(CRC16, start, np.hstack((numbers, rows[:, :0x1E], rows[:, 0x20:])))
        wrong = np.flatnonzero((sums & 0xFFFF) != rows[:, 0x1E:0x20].copy().view("<u2")[:, 0])
        if len(wrong):
            raise self._damaged(f"the descriptor of group {wrong[0]} has a wrong checksum",
                                int(places[wrong[0] // block.descriptors_per_block]) * block.block_size)
        return rows

    def _runs(self, places: Numbers) -> Iterator[bytes]:
        """These blocks, neighbours in one read."""
        size = self.block.block_size
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        for run in np.split(places, breaks):
            for first in range(0, len(run), STEP // size):
                piece = run[first : first + STEP // size]
                yield self._inside(int(piece[0]) * size, len(piece) * size)

    def _field(self, low: int, high: int, kind: str = "<u4", groups: slice | Numbers = EVERY) -> Numbers:
        """A number of each descriptor, from its low half and, with 64bit, its high half."""
        width = int(kind[2])
        rows = self._rows[groups]
        value = rows[:, low : low + width].copy().view(kind)[:, 0].astype(np.int64)
        if self.block.descriptor_size > 32:
            value |= rows[:, high : high + width].copy().view(kind)[:, 0].astype(np.int64) << (8 * width)
        return value

    # -- free clusters

    def free(self) -> tuple[Range, ...]:
        """What the bitmaps call free, and of groups without one what nothing occupies."""
        block = self.block
        fixed = self._fixed()
        blocks = block.blocks - block.first_data_block
        ranges = FreeRanges(block.first_data_block * block.block_size, block.cluster_size)
        whole = blocks >> block.log_ratio  # a last cluster that is not whole is data
        for first in range(0, block.groups, AT_A_TIME):
            count = min(AT_A_TIME, block.groups - first)
            bits = self._group_bits(first, count, fixed, -(-blocks // (1 << block.log_ratio)))
            ranges.add(bits[: whole - first * block.group_clusters])
        return ranges.finish()

    def _fixed(self) -> tuple[Numbers, Numbers]:
        """Where superblocks, descriptors, bitmaps and inode tables lie: disjoint clusters, first and past the last."""
        block = self.block
        own = np.array([(block.first_block(group), block.own_blocks(group)) for group in range(block.groups)], np.int64)
        one = np.ones(block.groups, np.int64)
        starts = np.concatenate((own[:, 0], self._field(0, 0x20), self._field(4, 0x24), self._field(8, 0x28)))
        counts = np.concatenate((own[:, 1], one, one, one * block.inode_table_blocks))
        starts, ends = starts[counts > 0], (starts + counts)[counts > 0]
        outside = (starts < block.first_data_block) | (ends > block.blocks)
        if outside.any():
            raise self._damaged("a group's tables lie outside the volume", SUPERBLOCK,
                                why=f"block {int(starts[outside][0])}")
        return _disjoint((starts - block.first_data_block) >> block.log_ratio,
                         (ends - 1 - block.first_data_block >> block.log_ratio) + 1)

    def _group_bits(self, first: int, count: int, fixed: tuple[Numbers, Numbers], clusters: int) -> Bits:
        """The clusters of some groups: True where one is free. clusters: of the volume, a short last one too."""
        block = self.block
        base = first * block.group_clusters
        flat = np.zeros(count * block.group_clusters, np.bool_)
        low, high = (int(n) for n in (np.searchsorted(fixed[1], base, "right"),
                                      np.searchsorted(fixed[0], base + len(flat))))
        for start, end in zip(fixed[0][low:high].tolist(), fixed[1][low:high].tolist(), strict=True):
            flat[max(start - base, 0) : end - base] = True
        flat[clusters - base :] = True
        occupied = flat.reshape(count, block.group_clusters)
        unwritten = self._unwritten(slice(first, first + count))
        free = ~occupied
        free[~unwritten] = self._bitmaps(np.flatnonzero(~unwritten) + first)
        free.reshape(-1)[clusters - base :] = False
        claimed = np.flatnonzero((free & occupied).any(axis=1))
        if len(claimed):
            raise self._damaged(f"the bitmap of group {first + claimed[0]} calls its own tables free", SUPERBLOCK)
        told = self._field(0x0C, 0x2C, "<u2", slice(first, first + count))
        differ = free.sum(axis=1) != told
        wrong = np.flatnonzero(differ & ~unwritten)
        if len(wrong):
            raise self._damaged(f"group {first + wrong[0]} has another number of free blocks than its bitmap",
                                SUPERBLOCK)
        free[differ] = False  # a group without a bitmap whose count is odd: data
        return free.reshape(-1)

    def _unwritten(self, groups: slice) -> Bits:
        """Groups without a bitmap; the flag counts only where a checksum guards it."""
        flags = self._rows[groups, 0x12]
        if not self.block.ro_compat(METADATA_CSUM) and not self.block.ro_compat(GDT_CSUM):
            flags = np.zeros_like(flags)
        return (flags & BLOCK_UNINIT).astype(np.bool_)

    def _bitmaps(self, groups: Numbers) -> Bits:
        """True where the bitmap of a group says free; a row for each of these groups."""
        block = self.block
        if not len(groups):
            return np.zeros((0, block.group_clusters), np.bool_)
        places = self._field(0, 0x20, "<u4", groups)
        data = b"".join(self._runs(places))
        maps = np.frombuffer(data, np.uint8).reshape(-1, block.block_size)[:, : block.group_clusters // 8]
        if block.ro_compat(METADATA_CSUM):
            sums = checksums(CRC32C, np.array(self._seed, np.uint32), maps)
            mask = 0xFFFFFFFF if block.descriptor_size > 32 else 0xFFFF
            wrong = np.flatnonzero((sums & np.uint32(mask)) != self._field(0x18, 0x38, "<u2", groups))
            if len(wrong):
                raise self._damaged(f"the bitmap of group {groups[wrong[0]]} has a wrong checksum",
                                    int(places[wrong[0]]) * block.block_size)
        bits: Bits = np.unpackbits(maps, axis=1, bitorder="little") == 0
        return bits


def _disjoint(starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
    """The same clusters as ascending ranges of which no two touch."""
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins = np.concatenate((np.array([True]), starts[1:] > ends[:-1]))
    last = np.concatenate((np.flatnonzero(begins)[1:] - 1, np.array([len(ends) - 1])))
    return starts[begins], ends[last]
