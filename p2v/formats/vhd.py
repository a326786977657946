"""VHD, dynamic: for Hyper-V, Virtual PC and Server, XenServer; VirtualBox and qemu read it as well.

File: copy of the footer | header | BAT | blocks of 2 MiB, each behind its sector bitmap | footer. All is
big-endian. Data lies on 4 KiB, as Windows 10 lays it out: a block takes 2 MiB and 4 KiB.

The size is exact, rounded up to a sector. The footer names the creator "win ", because others are not
believed: qemu and Virtual PC take cylinders times heads times sectors for the size of an image by "vpc " or
"vbox", and cut off the end of the disk (tried with qemu 7.2 on VirtualBox's images).
Not tested: Virtual PC 2004 and 2007, which may do so for any creator. Hyper-V refuses a file with NTFS's
sparse attribute: copy it there with a tool that sets none (robocopy, scp).
Source of the fields: Microsoft's "Virtual Hard Disk Image Format Specification", 2006; compared with files
of Windows 10 and VirtualBox 7.2.
"""

from __future__ import annotations

import struct
import time
import uuid

from p2v.formats import blocks
from p2v.formats.blocks import Blocks, Numbers, Shape
from p2v.formats.part import PartFile
from p2v.model import SECTOR, ImageWriter, Source
from p2v.model import read as read_bytes

NAME = "vhd"
SUFFIX = ".vhd"
SEQUENTIAL = False
EDITABLE = True
LIMIT = 2040 << 30  # bytes: what Hyper-V and qemu take

FIXED, DYNAMIC = 2, 3
MAGIC = b"conectix"
NOWHERE = 0xFFFFFFFF_FFFFFFFF  # an offset that there is none of
BLOCK = 2 << 20  # bytes; every product's
UNUSED = 0xFFFFFFFF  # in the BAT
BITMAP = bytes(4096 - SECTOR) + b"\xff" * SECTOR  # every sector of the block is in this file
TABLE = 1536  # byte offset of the BAT

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sI4x512s192x256x")
_EPOCH = 946684800  # 2000-01-01 UTC, from which a VHD counts its seconds
_CHECKSUM = 64  # bytes: its place in the footer
_HEADER_CHECKSUM = 36


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "vhdx, vdi, qcow2 or raw")
    return blocks.create(path, _shape(size), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, used = blocks.parse_state(path, state, NAME, LIMIT)
    return blocks.reopen(path, _shape(size), used, _finish)


def probe(source: Source) -> bool:
    """The copy of the footer, and its type."""
    return _type(source, 0) == DYNAMIC


def probe_fixed(source: Source) -> bool:
    """The footer, and its type; of a fixed VHD there is only the one at the end."""
    return _type(source, 0) is None and _type(source, source.size - SECTOR) == FIXED


def read(path: str) -> Source:
    """The disk inside, of any creator; a fixed one is its file without the footer, the rest goes through qemu-nbd.

    Raises LayoutError, Unsupported for a differencing image: qemu would show zeroes for what the parent holds.
    """
    from p2v.source.vhdimage import open_vhd

    return open_vhd(path)


def footer(size: int, kind: int) -> bytes:
    """The 512 bytes for a disk of size bytes. kind: FIXED or DYNAMIC."""
    size = blocks.sectors(size)
    made = int(time.time()) - _EPOCH
    offset = NOWHERE if kind == FIXED else SECTOR
    plain = _FOOTER.pack(
        MAGIC, 2, 0x10000, offset, made, b"win ", 0xA0000, b"Wi2k", size, size, *geometry(size), kind, 0,
        uuid.uuid4().bytes, 0)
    return _signed(plain, _CHECKSUM)


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for size bytes, as the specification's appendix computes them."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    track = 17
    heads = max(4, -(-(total // track) // 1024))
    if heads > 16 or total // track >= heads * 1024:
        track, heads = 31, 16
    if total // track >= heads * 1024:
        track = 63
    return total // track // heads, heads, track


class _Shape(Shape):
    """The BAT: the sector of each block's bitmap."""

    def encode(self, places: Numbers) -> bytes:
        import numpy as np

        bitmaps = (self.data + len(BITMAP)) // SECTOR - 1 + (places - 1) * np.uint64(self.slot // SECTOR)
        return np.where(places == 0, UNUSED, bitmaps).astype(">u4").tobytes()

    def decode(self, data: bytes) -> Numbers:
        import numpy as np

        bitmaps = np.frombuffer(data, ">u4").astype(np.uint64)
        start = (self.data + len(BITMAP)) // SECTOR - 1
        return np.where(bitmaps == UNUSED, 0, (bitmaps - np.uint64(start)) // np.uint64(self.slot // SECTOR) + 1)


def _shape(size: int) -> Shape:
    table = TABLE + 4 * -(-size // BLOCK)
    return _Shape(NAME, size, BLOCK, TABLE, -(-table // 4096) * 4096, BITMAP)


def _finish(part: PartFile, image: Blocks) -> None:
    shape = image.shape
    end = TABLE + 4 * shape.entries
    part.write(end, b"\xff" * (-end % SECTOR))
    last = footer(shape.size, DYNAMIC)
    header = _HEADER.pack(b"cxsparse", NOWHERE, TABLE, 0x10000, shape.entries, BLOCK, 0, bytes(16), 0, bytes(512))
    part.write(0, last + _signed(header, _HEADER_CHECKSUM))
    part.write(shape.end(image.used), last)


def _signed(data: bytes, place: int) -> bytes:
    """With its checksum: the one's complement of the sum of all bytes."""
    return data[:place] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[place + 4 :]


def _type(source: Source, offset: int) -> int | None:
    """The type in the footer at byte offset; None where there is no footer."""
    if not 0 <= offset <= source.size - SECTOR:
        return None
    data = read_bytes(source, offset, SECTOR)
    return int.from_bytes(data[60:64], "big") if data.startswith(MAGIC) else None
