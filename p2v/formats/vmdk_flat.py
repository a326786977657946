"""VMDK, monolithicFlat: the raw disk in NAME-flat.vmdk and a text that describes it in NAME.vmdk.

Holes stay holes. The descriptor is renamed last, so there is none of an unfinished disk.
"""

from __future__ import annotations

from p2v.formats import raw
from p2v.formats.part import PartFile, withdraw
from p2v.formats.vmdk_layout import SUFFIX, check_size, create_type, descriptor, read, sibling
from p2v.model import SECTOR, ImageWriter, Source

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "vmdk-flat"
SEQUENTIAL = False
EDITABLE = True
LIMIT = 62 << 40  # bytes: VMware's largest disk; VMFS 3 takes 2 TiB less 512 bytes


def create(path: str, size: int) -> ImageWriter:
    """Begin both files. Raises PlanError where one exists, Unsupported past LIMIT, WriteError."""
    return create_type_of(path, size, "monolithicFlat", "FLAT")


def create_type_of(path: str, size: int, kind: str, extent: str) -> ImageWriter:
    """create() of another createType, with its type of extent."""
    check_size(path, size, LIMIT, "a VMDK", "VMware's largest disk has 62 TiB")
    flat = sibling(path, "-flat")
    part = PartFile(path)
    try:
        writer = raw.create(flat, -(-size // SECTOR) * SECTOR)
    except BaseException:
        part.discard()
        raise
    return _Writer(part, writer, flat, size, kind, extent)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written past its last byte is forgotten."""
    return reopen_type_of(path, state, "monolithicFlat", "FLAT")


def reopen_type_of(path: str, state: bytes, kind: str, extent: str) -> ImageWriter:
    """reopen() of another createType."""
    flat = sibling(path, "-flat")
    withdraw(path, flat)
    writer = raw.reopen(flat, state[8:])
    return _Writer(PartFile(path, new=False), writer, flat, int.from_bytes(state[:8], "big"), kind, extent)


def probe(source: Source) -> bool:
    """By the type in its descriptor."""
    return create_type(source) == "monolithicflat"


class _Writer:
    """part: the descriptor's. flat: the extent's path, written by a raw writer."""

    def __init__(self, part: PartFile, writer: ImageWriter, flat: str, size: int, kind: str, extent: str) -> None:
        self._part, self._writer, self._flat = part, writer, flat
        self._size, self._kind, self._extent = size, kind, extent

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        self._writer.write_at(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        self._writer.zero(offset, length)

    def checkpoint(self) -> bytes:
        return self._size.to_bytes(8, "big") + self._writer.checkpoint()

    def finish(self) -> None:
        self._part.refuse_published()
        name = self._flat.rpartition("/")[2]
        text = descriptor(self._kind, self._size, [("RW", -(-self._size // SECTOR), self._extent, name)])
        self._part.write(0, text)
        self._writer.finish()
        self._part.publish()

    def abort(self) -> None:
        self._writer.abort()
        self._part.discard()

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")
