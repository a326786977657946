"""qcow2 and its backing files: read by qemu, after a look at whether the chain is safe and its tables whole.

A backing file is named in the image, which may come from anywhere: it must lie in the image's folder, be a
plain file, and have its format named, or the image is refused.
Source: qemu's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import construct as c
import numpy as np
from numpy.typing import NDArray

from p2v.binary import parse
from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.split import open_whole
from p2v.source.tables import STEP, check_size, cut_off

Numbers = NDArray[np.int64]
_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_DEEPEST = 16  # backing files behind one another
_QEMU_NAMES = {"vpc": "vhd"}

QCOW2 = c.Struct(
    "magic" / c.Const(b"QFI\xfb"),
    "version" / c.Int32ub,
    "backing_file_offset" / c.Int64ub,
    "backing_file_size" / c.Int32ub,
    "cluster_bits" / c.Int32ub,
    "size" / c.Int64ub,
    "crypt_method" / c.Int32ub,
    "l1_size" / c.Int32ub,
    "l1_table_offset" / c.Int64ub,
    c.Padding(24),
    "incompatible_features" / c.Int64ub,
    c.Padding(20),
    "header_length" / c.Int32ub,
)
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
OFFSET, COMPRESSED = 0x00FFFFFFFFFFFE00, 1 << 62


@dataclass(frozen=True, slots=True)
class Qcow2:
    """A header that holds together."""

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    incompatible_features: int
    header_length: int

    def __post_init__(self) -> None:
        if self.version not in (2, 3) or not 9 <= self.cluster_bits <= 21:
            raise ValueError(f"version {self.version}, clusters of 2^{self.cluster_bits} bytes")
        if not check_size(self.size) or self.size % SECTOR:
            raise ValueError(f"a disk of {self.size} bytes")
        if self.backing_file_size > 1023 or self.l1_size > 1 << 25:
            raise ValueError("a name or a table of absurd length")
        if self.l1_size * self.l2_entries << self.cluster_bits < self.size:
            raise ValueError("the L1 table is too short for the disk")

    @property
    def features(self) -> int:
        """Version 2 has none."""
        return self.incompatible_features if self.version > 2 else 0

    @property
    def l2_entries(self) -> int:
        """Clusters that one L2 table maps."""
        return (1 << self.cluster_bits) // (16 if self.features & EXTENDED_L2 else 8)


def check_qcow2(file: Source) -> Qcow2:
    """The header, when all tables and clusters lie in the file. Raises LayoutError, Unsupported."""
    head = parse(QCOW2, file, 0, Qcow2, "the qcow2 header")
    if head.crypt_method:
        raise Unsupported(f"{file.name} is encrypted", Where(file.name, 32, 4), next="decrypt it with qemu-img convert")
    if head.features & DATA_FILE:
        raise Unsupported(f"{file.name} keeps its data in another file", Where(file.name, 72, 8),
                          "that file is named in the image, and could be any of this machine",
                          "qemu-img convert -O qcow2 joins the two")
    cluster = 1 << head.cluster_bits
    for numbers, place in _big_numbers(file, head.l1_table_offset, head.l1_size, "the L1 table"):
        tables = np.unique(numbers & OFFSET)
        tables = tables[tables != 0]
        if len(tables) and (int(tables[-1]) + cluster > file.size or (tables & (cluster - 1)).any()):
            raise cut_off(file, "an L2 table", place)
        for table in tables.tolist():
            _check_l2(file, table, head)
    return head


def _check_l2(file: Source, table: int, head: Qcow2) -> None:
    wide = bool(head.features & EXTENDED_L2)
    entries = np.frombuffer(read(file, table, 1 << head.cluster_bits), ">i8").astype(np.int64)[:: 2 if wide else 1]
    packed = (entries & COMPRESSED) != 0
    width = 62 - (head.cluster_bits - 8)  # of a compressed cluster's byte offset
    places = np.where(packed, entries & ((1 << width) - 1), entries & OFFSET)
    if int(places.max(initial=0)) >= file.size:
        raise cut_off(file, "a cluster", table + 8 * int(places.argmax()))


def _big_numbers(file: Source, offset: int, count: int, what: str) -> Iterator[tuple[Numbers, int]]:
    if offset + 8 * count > file.size:
        raise cut_off(file, what, offset)
    for first in range(0, count, STEP):
        part = min(STEP, count - first)
        yield np.frombuffer(read(file, offset + 8 * first, 8 * part), ">i8").astype(np.int64), offset + 8 * first


def open_qcow2(path: str, outside: bool) -> Source:
    """The disk in a qcow2 and its backing files. Raises LayoutError, Unsupported, PlanError."""
    from p2v.source.nbd import open_image

    _check_chain(path, outside, os.path.realpath(os.path.dirname(path) or "."), 0)
    return open_image(path, "qcow2")


def _check_chain(path: str, outside: bool, folder: str, depth: int) -> None:
    """The image and all behind it. Raises Unsupported where one lies outside the folder."""
    file = open_whole(path)
    try:
        head = check_qcow2(file)
        if not head.backing_file_offset:
            return
        if head.backing_file_offset + head.backing_file_size > file.size:
            raise LayoutError("the backing file's name lies outside the file", Where(path, 8, 8),
                              next="take an undamaged copy of the image")
        name = os.fsdecode(read(file, head.backing_file_offset, head.backing_file_size))
        kind = _backing_format(file, head.header_length if head.version > 2 else 72, head.backing_file_offset)
    finally:
        file.close()
    if _PROTOCOL.match(name) or "\0" in name or depth >= _DEEPEST:
        raise Unsupported(f"{path} has a backing file that is no file, or too many of them", Where(path, item=name),
                          "an image must not make p2v reach out", "qemu-img convert joins them into one image")
    behind = os.path.join(os.path.dirname(os.path.abspath(path)), name)
    if not outside and not os.path.realpath(behind).startswith(folder.rstrip("/") + "/"):
        raise Unsupported(f"{path} has a backing file outside its folder", Where(path, item=name),
                          "an image must not make p2v read other files of this machine",
                          "put the backing file beside the image: qemu-img rebase -u -F FORMAT -b NAME IMAGE")
    if not os.path.exists(behind):
        raise LayoutError(f"the backing file of {path} is missing", Where(path, item=name),
                          "what the image does not hold itself lies there", "put it where the image says")
    kind = _QEMU_NAMES.get(kind, kind)
    if kind == "qcow2":
        _check_chain(behind, outside, folder, depth + 1)
    elif kind:  # an unnamed format is refused by open_image
        from p2v.source.images import INPUTS, open_input

        if kind not in INPUTS:
            raise Unsupported(f"{path} has a backing file of format {kind}", Where(path, item=name),
                              "p2v does not read that", "qemu-img convert joins them into one image")
        open_input(behind, kind, outside=outside).close()


def _backing_format(file: Source, at: int, end: int) -> str:
    """The header extension that names it; "" where there is none."""
    while at + 8 <= min(end, file.size):
        kind, length = (int.from_bytes(read(file, at + i, 4), "big") for i in (0, 4))
        if kind == 0xE2792ACA and at + 8 + length <= file.size and length < 64:
            return read(file, at + 8, length).decode("latin-1")
        if not kind:
            break
        at += 8 + -(-length // 8) * 8
    return ""
