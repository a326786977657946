"""Sparse extents of VMDK: of hosted products (KDMV), and of ESX 2 and 3 (COWD). Do their tables fit the file?

Source: VMware's "Virtual Disk Format 5.0"; COWD from open-vmdk and qemu's block/vmdk.c.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c
import numpy as np
from numpy.typing import NDArray

from p2v.binary import parse
from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.tables import STEP, check_size, cut_off

SPARSE = c.Struct(
    "magic" / c.Const(b"KDMV"),
    "version" / c.Int32ul,
    "flags" / c.Int32ul,
    "capacity" / c.Int64ul,
    "grain_size" / c.Int64ul,
    "descriptor_offset" / c.Int64ul,
    "descriptor_size" / c.Int64ul,
    "gtes_per_gt" / c.Int32ul,
    "rgd_offset" / c.Int64ul,
    "gd_offset" / c.Int64ul,
    "overhead" / c.Int64ul,
    "unclean" / c.Int8ul,
    "line_ends" / c.Bytes(4),
    "compression" / c.Int16ul,
)
WINDOW = 1 << 18  # entries of a grain directory looked at at once
COMPRESSED_GRAINS, GD_AT_END = 1 << 16, 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse extent's header that holds together. Amounts are sectors."""

    version: int
    flags: int
    capacity: int
    grain_size: int
    descriptor_offset: int
    descriptor_size: int
    gtes_per_gt: int
    gd_offset: int
    compression: int
    line_ends: bytes = b"\n \r\n"

    def __post_init__(self) -> None:
        if self.version not in (1, 2, 3) or self.line_ends != b"\n \r\n":
            raise ValueError(f"version {self.version}, line ends {self.line_ends!r}: copied as text?")
        if not check_size(self.capacity * SECTOR):
            raise ValueError(f"a disk of {self.capacity} sectors")
        if self.gtes_per_gt != 512 or not 1 <= self.grain_size <= 1 << 11 or self.grain_size & self.grain_size - 1:
            raise ValueError(f"grains of {self.grain_size} sectors, {self.gtes_per_gt} in a table")
        if self.compression > 1 or bool(self.compression) != bool(self.flags & COMPRESSED_GRAINS):
            raise ValueError(f"compression {self.compression}, flags {self.flags:#x}")


def check_sparse(file: Source) -> Sparse:
    """The header, when directory, tables and grains lie in the file. Raises LayoutError."""
    head = parse(SPARSE, file, 0, Sparse, "the header of the VMDK extent")
    if head.gd_offset == GD_AT_END:
        if file.size < 4 * SECTOR or any(read(file, file.size - SECTOR, SECTOR)):
            raise cut_off(file, "the end-of-stream marker", file.size)
        head = parse(SPARSE, file, file.size - 2 * SECTOR, Sparse, "the footer of the VMDK extent")
    whole = 0 if head.compression else head.grain_size * SECTOR
    _check_grains(file, head.gd_offset, -(-head.capacity // (512 * head.grain_size)), 512, whole)
    return head


def _check_grains(file: Source, directory: int, count: int, per_table: int, whole: int) -> None:
    """directory: its sector; count: its entries. whole: bytes of a grain in the file, 0 for packed ones."""
    if directory * SECTOR + 4 * count > file.size:
        raise cut_off(file, "the grain directory", min(directory * SECTOR, 1 << 62))
    for first in range(0, count, WINDOW):  # a directory may be as large as a small file says it is
        data = read(file, directory * SECTOR + 4 * first, 4 * min(WINDOW, count - first))
        tables = np.unique(np.frombuffer(data, "<u4")).astype(np.int64)
        _check_tables(file, directory, tables[tables != 0] * SECTOR, per_table, whole)


def _check_tables(file: Source, directory: int, tables: NDArray[np.int64], per_table: int, whole: int) -> None:
    """tables: where some of them lie, ascending, bytes."""
    if len(tables) and int(tables[-1]) + 4 * per_table > file.size:
        raise cut_off(file, "a grain table", directory * SECTOR)
    gaps = np.diff(tables)
    if (gaps < 4 * per_table).any():
        raise LayoutError(f"{file.name}: two grain tables overlap", Where(file.name, directory * SECTOR),
                          "the grain directory is damaged", "copy the image again")
    for run in np.split(tables, np.flatnonzero(gaps != 4 * per_table) + 1):
        for first in range(0, len(run), STEP // per_table):
            piece = run[first : first + STEP // per_table]
            data = read(file, int(piece[0]), 4 * per_table * len(piece))
            last = int(np.frombuffer(data, "<u4").max(initial=0)) * SECTOR
            if last > SECTOR and last + (whole or _packed(file, last)) > file.size:
                raise cut_off(file, "a grain", int(piece[0]))


def _packed(file: Source, place: int) -> int:
    """Bytes of a compressed grain: its number, its length, and so many bytes."""
    if place + 12 > file.size:
        return file.size
    return 12 + int.from_bytes(read(file, place + 8, 4), "little")


COWD = c.Struct(
    "magic" / c.Const(b"COWD"),
    "version" / c.Int32ul,
    "flags" / c.Int32ul,
    "sectors" / c.Int32ul,
    "grain_size" / c.Int32ul,
    "gd_offset" / c.Int32ul,
    "gd_entries" / c.Int32ul,
    "free_sector" / c.Int32ul,
    c.Padding(2048 - 32),
)
COWD_ROOT, COWD_TABLE = 1, 4096


@dataclass(frozen=True, slots=True)
class Cowd:
    """A header that holds together."""

    version: int
    flags: int
    sectors: int
    grain_size: int
    gd_offset: int
    gd_entries: int

    def __post_init__(self) -> None:
        if not self.sectors or not 1 <= self.grain_size <= 1 << 11 or self.grain_size & self.grain_size - 1:
            raise ValueError(f"{self.sectors} sectors in grains of {self.grain_size}")
        if self.gd_entries < -(-self.sectors // (COWD_TABLE * self.grain_size)) or self.gd_entries > 1 << 22:
            raise ValueError(f"{self.gd_entries} entries in the grain directory")


def check_cowd(file: Source) -> Cowd:
    """The header, when directory, tables and grains lie in the file.

    Raises LayoutError; Unsupported for a snapshot, and for the tables of Workstation 3.
    """
    where = Where(file.name, 4, 8)
    head = parse(COWD, file, 0, Cowd, "the COWD header")
    if head.version != 1:
        raise Unsupported(f"{file.name} is a COWD of version {head.version}, as Workstation 3 wrote them", where,
                          "its tables are others than those of ESX, and no sample of one was found",
                          "convert it with vmware-vdiskmanager -r")
    if not head.flags & COWD_ROOT:
        raise Unsupported(f"{file.name} is a snapshot: it holds only what differs from its parent", where,
                          "what did not change since the snapshot lies in its parent",
                          "consolidate it (vmkfstools -i), then give the result")
    _check_grains(file, head.gd_offset, head.gd_entries, COWD_TABLE, head.grain_size * SECTOR)
    return head
