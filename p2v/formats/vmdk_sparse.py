"""VMDK, monolithicSparse: one growing file, for Workstation, Player, VirtualBox and qemu; ESX does not run it."""

from __future__ import annotations

import struct

from p2v.errors import LayoutError, Where
from p2v.formats.part import PartFile
from p2v.formats.vmdk_extent import SparseExtent
from p2v.formats.vmdk_layout import (
    SUFFIX,
    check_size,
    create_type,
    descriptor,
    own_name,
    read,
    whole_grains,
)
from p2v.model import ImageWriter, Source

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "vmdk"
SEQUENTIAL = False
EDITABLE = True
LIMIT = (2 << 40) - (1 << 30)  # bytes: 32-bit sector numbers reach 2 TiB of file, tables included

_STATE = struct.Struct(">8sQQ")  # magic, the disk's size, grains used
_MAGIC = b"p2v-vms1"


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    check_size(path, size, LIMIT, "a VMDK file", f"the sector numbers in its tables end there: {LIMIT} bytes")
    return _Writer(path, PartFile(path), size)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    try:
        magic, size, used = _STATE.unpack(state)
    except struct.error:
        magic, size, used = b"", 0, 0
    if magic != _MAGIC or not 0 < size <= LIMIT or used > whole_grains(size):
        raise LayoutError("this is no checkpoint of a VMDK image", Where(path), next="begin again")
    part = PartFile(path, new=False)
    try:
        writer = _Writer(path, part, size, used)
        writer.extent.forget_later()
    except BaseException:
        part.close()
        raise
    return writer


def probe(source: Source) -> bool:
    """By the type in its descriptor."""
    return create_type(source) == "monolithicsparse"


class _Writer:
    def __init__(self, path: str, part: PartFile, size: int, used: int = 0) -> None:
        self._part, self._size = part, size
        capacity = whole_grains(size)
        text = descriptor("monolithicSparse", size, [("RW", capacity, "SPARSE", own_name(path))])
        self.extent = SparseExtent(part, capacity, text, used)

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        self.extent.write_at(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self.extent.zero(offset, length)

    def checkpoint(self) -> bytes:
        self.extent.sync()
        return _STATE.pack(_MAGIC, self._size, self.extent.used)

    def finish(self) -> None:
        self.extent.complete()
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")
