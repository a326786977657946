"""VHDX, dynamic: for Hyper-V from 2012 on; qemu and VirtualBox (7.0 and later) read it as well.

File, all of it in whole MiB: identifier, two headers and two region tables | log, empty | metadata | BAT |
payload blocks. All is little-endian. A block that was never written is "not present" and reads as zero.
The size is exact, rounded up to a sector.
Physical sectors are said to have 512 bytes, not Hyper-V's 4096: our guests' partitions begin at sector 63,
and for 4096 every cluster they write would be read, changed and written.
Source of the fields: Microsoft's MS-VHDX; compared with files of Windows 10 and Server 2012.
"""

from __future__ import annotations

import struct
import uuid

from p2v.formats import blocks
from p2v.formats.blocks import Blocks, Numbers, Shape
from p2v.formats.part import PartFile
from p2v.model import SECTOR, ImageWriter, Source
from p2v.model import read as read_bytes

NAME = "vhdx"
SUFFIX = ".vhdx"
SEQUENTIAL = False
EDITABLE = True
LIMIT = 64 << 40  # bytes

MIB = 1 << 20
BLOCK = 2 * MIB  # the smallest whose table stays below 200 MiB in memory for a full disk of LIMIT
LOG, METADATA, TABLE = MIB, 2 * MIB, 3 * MIB  # byte offsets in the file
PRESENT = 6  # a BAT entry's state: all of the block is in the file
KEEP, PARENT = 1, 2  # flags of the file parameters: fixed; differencing

_HEADERS = (64 << 10, 128 << 10)  # byte offsets; the one with the higher sequence number counts
_REGIONS = (192 << 10, 256 << 10)
_ITEMS = 64 << 10  # byte offset of the metadata's items in their region

_BAT = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_SIZE = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_LOGICAL = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PHYSICAL = uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
_PAGE83 = uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ4016x")
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIII4x")


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "vdi, qcow2 or raw")
    return blocks.create(path, table(NAME, size, BLOCK), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, used = blocks.parse_state(path, state, NAME, LIMIT)
    return blocks.reopen(path, table(NAME, size, BLOCK), used, _finish)


def probe(source: Source) -> bool:
    """The magic, and neither a fixed nor a differencing image."""
    return _flags(source) == 0


def probe_fixed(source: Source) -> bool:
    """The magic, and a fixed image."""
    return _flags(source) == KEEP


def read(path: str) -> Source:
    """The disk inside, through qemu-nbd. Raises LayoutError, Unsupported for a differencing image."""
    from p2v.source.vhdimage import open_vhdx

    return open_vhdx(path)


class Table(Shape):
    """The BAT; an entry is a block's place and state, and each row of _ratio() of them ends in one more.

    That is the place of their sector bitmaps, which only a differencing image has: 0.
    """

    def span(self, first: int, end: int) -> tuple[int, int]:
        ratio = _ratio(self.block)
        start, stop = first + first // ratio, end + (end - 1) // ratio
        return self.table + 8 * start, 8 * (stop - start)

    def encode(self, places: Numbers) -> bytes:
        import numpy as np

        ratio = _ratio(self.block)
        rows = np.zeros((-(-len(places) // ratio), ratio + 1), "<u8")
        blocks = np.zeros(len(rows) * ratio, np.uint64)
        blocks[: len(places)] = np.where(places == 0, 0, self.data + (places - 1) * np.uint64(self.block) | PRESENT)
        rows[:, :-1] = blocks.reshape(len(rows), ratio)
        return rows.tobytes()[: 8 * (len(places) + (len(places) - 1) // ratio)]

    def decode(self, data: bytes) -> Numbers:
        import numpy as np

        ratio = _ratio(self.block)
        entries = np.frombuffer(data, "<u8").astype(np.uint64)
        found = entries[np.arange(len(entries)) % (ratio + 1) != ratio]
        return np.where(found == 0, 0, (found - np.uint64(self.data)) // np.uint64(self.block) + 1)


def table(name: str, size: int, block: int) -> Table:
    """What lies where for a disk of size bytes in such blocks; the BAT's region is of whole MiB."""
    entries = -(-size // block)
    length = -(-8 * (entries + (entries - 1) // _ratio(block)) // MIB) * MIB
    return Table(name, size, block, TABLE, TABLE + length)


def write_headers(part: PartFile, shape: Shape, flags: int) -> None:
    """All that lies before the BAT. flags: of the file parameters."""
    part.write(0, b"vhdxfile" + "p2v".encode("utf-16-le"))
    written, content = uuid.uuid4().bytes_le, uuid.uuid4().bytes_le
    for sequence, place in enumerate(_HEADERS, 1):  # a LogGuid of zeroes: the log is empty
        header = _HEADER.pack(b"head", 0, sequence, written, content, bytes(16), 0, 1, MIB, LOG)
        part.write(place, _signed(header))
    regions = struct.pack("<4sII4x", b"regi", 0, 2) + _REGION.pack(_BAT.bytes_le, TABLE, shape.data - TABLE, 1)
    regions += _REGION.pack(_METADATA.bytes_le, METADATA, MIB, 1)
    regions = _signed(regions + bytes((64 << 10) - len(regions)))
    for place in _REGIONS:
        part.write(place, regions[:4096])  # the rest is zero, and a hole
    _write_metadata(part, blocks.sectors(shape.size), shape.block, flags)


def _finish(part: PartFile, image: Blocks) -> None:
    write_headers(part, image.shape, 0)


def _ratio(block: int) -> int:
    """Blocks whose sector bitmaps share one block of 1 MiB."""
    return (1 << 23) * SECTOR // block


def _write_metadata(part: PartFile, size: int, block: int, flags: int) -> None:
    items = (  # flags: 4 required, 2 of the virtual disk; in Hyper-V's order
        (_PARAMETERS, 4, struct.pack("<II", block, flags)),
        (_SIZE, 6, struct.pack("<Q", size)),
        (_LOGICAL, 6, struct.pack("<I", SECTOR)),
        (_PHYSICAL, 6, struct.pack("<I", SECTOR)),
        (_PAGE83, 6, uuid.uuid4().bytes_le),
    )
    table, data = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for guid, kind, value in items:
        table += _ITEM.pack(guid.bytes_le, _ITEMS + len(data), len(value), kind)
        data += value
    part.write(METADATA, table)
    part.write(METADATA + _ITEMS, data)


def _signed(data: bytes) -> bytes:
    """With its CRC-32C at byte 4, counted as zero there."""
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


def crc32c(data: bytes) -> int:
    """CRC-32 by Castagnoli's polynomial, RFC 3720. 7 ms for the 72 KiB of an image: no library is worth it."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _flags(source: Source) -> int | None:
    """The flags in the file parameters; None where they cannot be found."""
    if _at(source, 0, 8) != b"vhdxfile":
        return None
    for place in _REGIONS:
        head = _at(source, place, 16)
        if not head.startswith(b"regi"):
            continue
        region = _find(source, place + 16, int.from_bytes(head[8:12], "little"), _METADATA)
        start = int.from_bytes(region[16:24], "little")
        count = int.from_bytes(_at(source, start + 10, 2), "little")
        item = _find(source, start + 32, count, _PARAMETERS)
        value = _at(source, start + int.from_bytes(item[16:20], "little"), 8)
        if len(item) == 32 and len(value) == 8:
            return int.from_bytes(value[4:], "little") & (KEEP | PARENT)
    return None


def _find(source: Source, offset: int, count: int, guid: uuid.UUID) -> bytes:
    """The entry of 32 bytes that begins with guid; nothing where there is none."""
    for number in range(min(count, 2047)):  # as many as a table may have
        entry = _at(source, offset + 32 * number, 32)
        if entry.startswith(guid.bytes_le):
            return entry
    return b""


def _at(source: Source, offset: int, length: int) -> bytes:
    """These bytes; nothing where they lie outside."""
    return read_bytes(source, offset, length) if offset + length <= source.size else b""
