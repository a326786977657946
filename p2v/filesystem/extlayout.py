"""The superblock of ext2, ext3 and ext4: which features it has, and where its groups keep what.

Field names are those of the kernel's fs/ext4/ext4.h, without the s_.
Source: that header and e2fsprogs lib/ext2fs (alloc_tables.c, closefs.c); checked with dumpe2fs.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

SUPERBLOCK = 1024  # bytes from the start of the volume; as long, too
MAGIC = 0xEF53
MOST_GROUPS = 1 << 19  # 64 TiB of 4 KiB blocks; the descriptors take 32 MiB

COMPAT_JOURNAL, COMPAT_SPARSE2 = 0x4, 0x200
NEEDS_RECOVERY, JOURNAL_DEVICE, META_BG, EXTENTS, WIDE, CSUM_SEED = 0x4, 0x8, 0x10, 0x40, 0x80, 0x2000
KNOWN_INCOMPAT = {
    0x2: "filetype", 0x4: "needs_recovery", 0x8: "journal_dev", 0x10: "meta_bg", 0x40: "extents", 0x80: "64bit",
    0x100: "mmp", 0x200: "flex_bg", 0x400: "ea_inode", 0x2000: "metadata_csum_seed", 0x4000: "large_dir",
    0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold",
}
SPARSE_SUPER, GDT_CSUM, BIGALLOC, METADATA_CSUM, ORPHANS = 0x1, 0x10, 0x200, 0x400, 0x10000
KNOWN_RO_COMPAT = {
    0x1: "sparse_super", 0x2: "large_file", 0x4: "btree_dir", 0x8: "huge_file", 0x10: "uninit_bg",
    0x20: "dir_nlink", 0x40: "extra_isize", 0x100: "quota", 0x200: "bigalloc", 0x400: "metadata_csum",
    0x1000: "read-only", 0x2000: "project", 0x4000: "shared_blocks", 0x8000: "verity", 0x10000: "orphan_present",
}
EXT4_INCOMPAT, EXT4_RO_COMPAT = ~(0x2 | 0x4 | 0x8 | 0x10), ~0x7

LAYOUT = c.Struct(
    "inodes_count" / c.Int32ul,
    "blocks_count_lo" / c.Int32ul,
    c.Padding(12),
    "first_data_block" / c.Int32ul,
    "log_block_size" / c.Int32ul,
    "log_cluster_size" / c.Int32ul,
    "blocks_per_group" / c.Int32ul,
    "clusters_per_group" / c.Int32ul,
    "inodes_per_group" / c.Int32ul,
    c.Padding(12),
    "magic" / c.Int16ul,
    "state" / c.Int16ul,
    c.Padding(16),
    "rev_level" / c.Int32ul,
    c.Padding(8),
    "inode_size" / c.Int16ul,
    c.Padding(2),
    "feature_compat" / c.Int32ul,
    "feature_incompat" / c.Int32ul,
    "feature_ro_compat" / c.Int32ul,
    "uuid" / c.Bytes(16),
    c.Padding(86),
    "reserved_gdt_blocks" / c.Int16ul,
    c.Padding(16),
    "journal_inum" / c.Int32ul,
    "journal_dev" / c.Int32ul,
    "last_orphan" / c.Int32ul,
    c.Padding(18),
    "desc_size" / c.Int16ul,
    c.Padding(4),
    "first_meta_bg" / c.Int32ul,
    c.Padding(72),
    "blocks_count_hi" / c.Int32ul,
    c.Padding(248),
    "backup_bgs" / c.Array(2, c.Int32ul),
    c.Padding(28),
    "checksum_seed" / c.Int32ul,
    c.Padding(392),
    "checksum" / c.Int32ul,
)


@dataclass(frozen=True, slots=True)
class Superblock:
    """A superblock that holds together. A block is what descriptors count in, a cluster what a bitmap does."""

    inodes_count: int
    blocks_count_lo: int
    first_data_block: int
    log_block_size: int
    log_cluster_size: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    magic: int
    state: int
    rev_level: int
    inode_size: int
    feature_compat: int
    feature_incompat: int
    feature_ro_compat: int
    uuid: bytes
    reserved_gdt_blocks: int
    journal_inum: int
    journal_dev: int
    last_orphan: int
    desc_size: int
    first_meta_bg: int
    blocks_count_hi: int
    backup_bgs: tuple[int, ...]
    checksum_seed: int
    checksum: int

    def __post_init__(self) -> None:
        if self.magic != MAGIC or self.rev_level > 1:
            raise ValueError(f"magic {self.magic:#06x}, revision {self.rev_level}")
        unknown = self.unknown_features
        if unknown:
            raise ValueError(f"it has features that nobody here knows: {unknown}")
        if self.incompat(JOURNAL_DEVICE):
            raise ValueError("it is a journal for another volume")
        if self.log_block_size > 6 or not self.log_block_size <= self.log_cluster <= self.log_block_size + 16:
            raise ValueError(f"blocks of 2^{self.log_block_size + 10} bytes, clusters of 2^{self.log_cluster + 10}")
        checks = {
            "first data block": self.first_data_block == (1 if self.log_cluster == 0 else 0),
            "clusters per group": 0 < self.group_clusters <= 8 * self.block_size and self.group_clusters % 8 == 0,
            "blocks per group": self.blocks_per_group == self.group_clusters << self.log_ratio,
            "inodes per group": 0 < self.inodes_per_group <= 8 * self.block_size,
            "inode size": self.inode_bytes in (1 << bit for bit in range(7, 17))
            and self.inode_bytes <= self.block_size,
            "descriptor size": self.descriptor_size in (32, 64),
            "number of blocks": self.first_data_block < self.blocks,
            "reserved descriptor blocks": self.reserved_gdt_blocks <= self.block_size // 4,
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong:
            raise ValueError("its fields contradict each other: " + ", ".join(wrong))
        if self.groups > MOST_GROUPS:
            raise ValueError(f"{self.groups} groups of blocks are more than any volume has")

    def incompat(self, feature: int) -> bool:
        """Has it this feature, without which nobody may read it?"""
        return self.rev_level > 0 and bool(self.feature_incompat & feature)

    def ro_compat(self, feature: int) -> bool:
        """Has it this feature, without which nobody may write it?"""
        return self.rev_level > 0 and bool(self.feature_ro_compat & feature)

    def compat(self, feature: int) -> bool:
        """Has it this feature, which harms nobody?"""
        return self.rev_level > 0 and bool(self.feature_compat & feature)

    @property
    def unknown_features(self) -> str:
        """The bits of no known feature, "" where there are none."""
        sets = (("incompat", self.feature_incompat, KNOWN_INCOMPAT),
                ("ro_compat", self.feature_ro_compat, KNOWN_RO_COMPAT))
        left = ((name, bits & ~sum(known)) for name, bits, known in sets)
        return ", ".join(f"{name} {bits:#x}" for name, bits in left if bits and self.rev_level)

    @property
    def kind(self) -> str:
        """ext2, ext3 or ext4: what the features ask of the kernel."""
        if self.rev_level and (self.feature_incompat & EXT4_INCOMPAT or self.feature_ro_compat & EXT4_RO_COMPAT):
            return "ext4"
        return "ext3" if self.compat(COMPAT_JOURNAL) else "ext2"

    @property
    def block_size(self) -> int:
        """Bytes."""
        return 1024 << self.log_block_size

    @property
    def log_cluster(self) -> int:
        """As log_block_size; the same where there is no bigalloc."""
        return self.log_cluster_size if self.ro_compat(BIGALLOC) else self.log_block_size

    @property
    def log_ratio(self) -> int:
        """A cluster is 2^this blocks."""
        return self.log_cluster - self.log_block_size

    @property
    def cluster_size(self) -> int:
        """Bytes: what a bit of a bitmap stands for."""
        return 1024 << self.log_cluster

    @property
    def group_clusters(self) -> int:
        """Clusters in a group; the field is not set where there is no bigalloc."""
        return self.clusters_per_group if self.ro_compat(BIGALLOC) else self.blocks_per_group

    @property
    def blocks(self) -> int:
        """Of the volume, block 0 included."""
        return self.blocks_count_lo | (self.blocks_count_hi << 32 if self.incompat(WIDE) else 0)

    @property
    def groups(self) -> int:
        """The last one may be short."""
        return -(-(self.blocks - self.first_data_block) // self.blocks_per_group)

    @property
    def inode_bytes(self) -> int:
        """128 before the first revision."""
        return self.inode_size if self.rev_level else 128

    @property
    def descriptor_size(self) -> int:
        """Bytes of a group descriptor."""
        return self.desc_size if self.incompat(WIDE) else 32

    @property
    def descriptors_per_block(self) -> int:
        """Groups whose descriptors share a block."""
        return self.block_size // self.descriptor_size

    @property
    def descriptor_blocks(self) -> int:
        """Of one copy of the descriptors."""
        return -(-self.groups // self.descriptors_per_block)

    @property
    def inode_table_blocks(self) -> int:
        """Of one group."""
        return -(-self.inodes_per_group * self.inode_bytes // self.block_size)

    def first_block(self, group: int) -> int:
        """Where the superblock's copy of a group lies, if it has one."""
        block = self.first_data_block + group * self.blocks_per_group
        return 1 if block == 0 and self.block_size == SUPERBLOCK else block  # bigalloc of 1 KiB blocks

    def has_super(self, group: int) -> bool:
        """Does a group hold a copy of the superblock?"""
        if group == 0:
            return True
        if self.compat(COMPAT_SPARSE2):
            return group in self.backup_bgs
        if not self.ro_compat(SPARSE_SUPER):
            return True
        return group == 1 or any(_is_power(group, base) for base in (3, 5, 7))

    def descriptor_block(self, number: int) -> int:
        """Where the block number of the descriptors' first copy lies."""
        if not self.incompat(META_BG) or number < self.first_meta_bg:
            return self.first_block(0) + 1 + number
        group = number * self.descriptors_per_block
        return self.first_block(group) + self.has_super(group)

    def own_blocks(self, group: int) -> int:
        """How many blocks the superblock's and the descriptors' copies take at the start of a group."""
        copies = int(self.has_super(group))
        per_block = self.descriptors_per_block
        if self.incompat(META_BG) and group // per_block >= self.first_meta_bg:
            return copies + (group % per_block in (0, 1, per_block - 1))
        if not copies:
            return 0
        old = self.first_meta_bg if self.incompat(META_BG) else self.descriptor_blocks + self.reserved_gdt_blocks
        return 1 + old


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
