"""VDI, dynamic: VirtualBox's own; qemu reads it as well.

File: header | map, at 1 MiB | blocks of 1 MiB. All is little-endian. A map entry is a block's place among
the blocks. The size is exact, rounded up to a sector. The header carries the geometry that the BIOS is to
present, because NT 4 and 2000 read by it until their drivers run. Identities are fresh: VirtualBox opens
no two disks of one.
Source of the fields: QEMU's block/vdi.c and VirtualBox's VDICore.h as described there; compared with files of
VirtualBox 7.2.
"""

from __future__ import annotations

import struct
import uuid

from p2v.formats import blocks
from p2v.formats.blocks import Blocks, Numbers, Shape
from p2v.formats.part import PartFile
from p2v.model import SECTOR, ImageWriter, Source
from p2v.model import read as read_bytes
from p2v.volume.geometry import CYLINDERS, target_geometry

NAME = "vdi"
SUFFIX = ".vdi"
SEQUENTIAL = False
EDITABLE = True
LIMIT = 0x1FFFFFFF << 20  # bytes, 512 TiB: qemu's, its map has to stay below 2 GiB; VirtualBox's is 4 PiB

MIB = 1 << 20
BLOCK = MIB
MAP = MIB  # byte offset of the map
FREE = 0xFFFFFFFF  # in the map
DYNAMIC, FIXED = 1, 2
SIGNATURE = 0xBEDA107F

_HEADER = struct.Struct("<64s5I256s7IQ4I16s16s16s16s4I40x")


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "raw")
    return blocks.create(path, shape(NAME, size), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, used = blocks.parse_state(path, state, NAME, LIMIT)
    return blocks.reopen(path, shape(NAME, size), used, _finish)


def probe(source: Source) -> bool:
    """The signature and the type."""
    return _type(source) == DYNAMIC


def probe_fixed(source: Source) -> bool:
    """The signature and the type."""
    return _type(source) == FIXED


def read(path: str) -> Source:
    """The disk inside, through qemu-nbd, after a look at its map.

    Raises LayoutError for one that is cut short, where qemu would show zeroes; Unsupported for a snapshot's.
    """
    from p2v.source.vdiimage import open_vdi

    return open_vdi(path)


class _Map(Shape):
    """The map: each block's number in the file, from 0."""

    def encode(self, places: Numbers) -> bytes:
        import numpy as np

        return np.where(places == 0, FREE, places - 1).astype("<u4").tobytes()

    def decode(self, data: bytes) -> Numbers:
        import numpy as np

        numbers = np.frombuffer(data, "<u4").astype(np.uint64)
        return np.where(numbers == FREE, 0, numbers + 1)


def shape(name: str, size: int) -> Shape:
    """What lies where for a disk of size bytes: map and blocks on whole MiB."""
    end = MAP + 4 * -(-size // BLOCK)
    return _Map(name, size, BLOCK, MAP, -(-end // MIB) * MIB)


def header(image: Shape, kind: int, used: int) -> bytes:
    """The first sector. used: blocks in the file."""
    size = blocks.sectors(image.size)
    lchs = target_geometry(size)
    cylinders = max(1, min(CYLINDERS, size // SECTOR // lchs.heads // lchs.sectors))
    return _HEADER.pack(
        b"<<< Oracle VirtualBox Disk Image >>>\n", SIGNATURE, 0x10001, 400, kind, 0, b"",
        MAP, image.data, 0, 0, 0, SECTOR, 0, size, BLOCK, 0, image.entries, used,
        uuid.uuid4().bytes_le, uuid.uuid4().bytes_le, bytes(16), bytes(16),
        cylinders, lchs.heads, lchs.sectors, SECTOR)


def _finish(part: PartFile, image: Blocks) -> None:
    part.write(0, header(image.shape, DYNAMIC, image.used))


def _type(source: Source) -> int | None:
    """The image's type; None where this is no VDI."""
    if source.size < SECTOR:
        return None
    data = read_bytes(source, 64, 16)
    return int.from_bytes(data[12:], "little") if int.from_bytes(data[:4], "little") == SIGNATURE else None
