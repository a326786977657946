"""VDI: read by qemu, after a look at whether its block map stays in the file.

Source: VirtualBox' VDICore.h, as disk-format documents quote it; checked with images of VirtualBox 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c
import numpy as np

from p2v.binary import parse
from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.split import open_whole
from p2v.source.tables import STEP, check_size, cut_off

VDI = c.Struct(
    c.Padding(64),
    "signature" / c.Const(0xBEDA107F, c.Int32ul),
    "version" / c.Int32ul,
    "header_size" / c.Int32ul,
    "type" / c.Int32ul,
    c.Padding(260),
    "blocks_offset" / c.Int32ul,
    "data_offset" / c.Int32ul,
    c.Padding(12),
    "sector_size" / c.Int32ul,
    c.Padding(4),
    "disk_size" / c.Int64ul,
    "block_size" / c.Int32ul,
    "block_extra" / c.Int32ul,
    "blocks" / c.Int32ul,
    "allocated" / c.Int32ul,
    c.Padding(32),
    "link" / c.Bytes(32),
)
VDI_TYPES, VDI_FIRST_FREE = (1, 2), 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class Vdi:
    """A header that holds together, of an image that needs no other."""

    version: int
    type: int
    blocks_offset: int
    data_offset: int
    sector_size: int
    disk_size: int
    block_size: int
    block_extra: int
    blocks: int
    link: bytes

    def __post_init__(self) -> None:
        if self.version != 0x10001 or self.sector_size != SECTOR or self.block_size != 1 << 20 or self.block_extra:
            raise ValueError(f"version {self.version:#x}, sectors of {self.sector_size}, blocks of {self.block_size}")
        if not check_size(self.disk_size) or self.disk_size % SECTOR:
            raise ValueError(f"a disk of {self.disk_size} bytes")
        if self.blocks != -(-self.disk_size // self.block_size):
            raise ValueError(f"{self.blocks} blocks for {self.disk_size} bytes")
        if self.data_offset < self.blocks_offset + 4 * self.blocks or self.blocks_offset < SECTOR:
            raise ValueError("map and data overlap")


def check_vdi(file: Source) -> None:
    """Raises LayoutError, or Unsupported for a snapshot's image."""
    kind = int.from_bytes(read(file, 76, 4), "little") if file.size >= 80 else 0
    head = parse(VDI, file, 0, Vdi, "the VDI header")
    if kind not in VDI_TYPES or any(head.link):
        raise Unsupported(f"{file.name} is a snapshot's VDI", Where(file.name, 76, 4),
                          "what did not change since the snapshot lies in its parent",
                          "merge it first: VBoxManage clonemedium IMAGE NEW")
    if head.blocks_offset + 4 * head.blocks > file.size:
        raise cut_off(file, "the block map", head.blocks_offset)
    _check_map(file, head)


def _check_map(file: Source, head: Vdi) -> None:
    """Does each block lie in the file, and in a place of its own? A byte for each MiB of the file is kept."""
    taken = np.zeros(max(file.size - head.data_offset, 0) // head.block_size, np.bool_)
    for first in range(0, head.blocks, STEP):
        data = read(file, head.blocks_offset + 4 * first, 4 * min(STEP, head.blocks - first))
        entries = np.frombuffer(data, "<u4")
        entries = np.sort(entries[entries < VDI_FIRST_FREE])
        if len(entries) and int(entries[-1]) >= len(taken):
            raise cut_off(file, "a block", head.blocks_offset + 4 * first)
        if taken[entries].any() or (np.diff(entries) == 0).any():
            raise LayoutError(f"{file.name}: two blocks lie in one place", Where(file.name, head.blocks_offset),
                              "the block map is damaged", "copy the image again")
        taken[entries] = True


def open_vdi(path: str) -> Source:
    """The disk in a VDI. Raises LayoutError, Unsupported for a snapshot's."""
    from p2v.source.nbd import open_image

    file = open_whole(path)
    try:
        check_vdi(file)
    finally:
        file.close()
    return open_image(path, "vdi")
