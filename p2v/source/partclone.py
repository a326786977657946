"""An image of partclone, version 2 ("0002"): one partition's used blocks, read by us because qemu cannot.

Head of 110 bytes | bitmap, its CRC | used blocks, a CRC behind each 256 of them. Every CRC is verified when
its blocks are read; partclone's CRC-32 is the usual one without the last inversion.
Not read: version 1 (one byte per block; its CRCs are wrong on 64-bit machines), checksums that run on over
the whole image (--no-reseed), and XXH64, which the standard library lacks.
partclone leaves out what lies past the last block: NTFS's backup boot sector reads as zero.
Source: partclone's IMAGE_FORMATS.md and images of partclone 0.3.23.
"""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass

import construct as c
import numpy as np

from p2v.binary import parse
from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.blockimage import BlockImage, BlockIndex
from p2v.source.split import open_parts

MAGIC = b"partclone-image"
LARGEST = 64 << 40  # bytes of a partition
MOST_BITMAP = 1 << 30  # bytes
MOST_STRIP = 64 << 20  # bytes between two checksums
NONE, CRC32 = 0, 0x20  # of the field checksum_mode
KEPT = 8  # strips kept after they were verified, for small reads
RESTORE = "partclone.restore -s IMAGE -O partition.img, then give partition.img"

LAYOUT = c.Struct(
    "magic" / c.Bytes(16),
    "version" / c.Bytes(14),
    "format" / c.Bytes(4),
    "endian" / c.Int16ul,
    "fs" / c.Bytes(16),
    "device_size" / c.Int64ul,
    "total_blocks" / c.Int64ul,
    "used_by_superblock" / c.Int64ul,
    "used_by_bitmap" / c.Int64ul,
    "block_size" / c.Int32ul,
    "feature_size" / c.Int32ul,
    "image_version" / c.Int16ul,
    "cpu_bits" / c.Int16ul,
    "checksum_mode" / c.Int16ul,
    "checksum_size" / c.Int16ul,
    "blocks_per_checksum" / c.Int32ul,
    "reseed_checksum" / c.Int8ul,
    "bitmap_mode" / c.Int8ul,
    "crc" / c.Int32ul,
)


@dataclass(frozen=True, slots=True)
class Head:
    """A head that holds together."""

    device_size: int
    total_blocks: int
    used_by_bitmap: int
    block_size: int
    feature_size: int
    image_version: int
    checksum_mode: int
    checksum_size: int
    blocks_per_checksum: int
    reseed_checksum: int
    bitmap_mode: int

    def __post_init__(self) -> None:
        checks = {
            "block size": 0 < self.block_size <= 4 << 20 and self.block_size % SECTOR == 0,
            "device size": 0 < self.device_size <= LARGEST and self.device_size % SECTOR == 0,
            "total blocks": 0 < self.total_blocks <= self.device_size // max(self.block_size, 1) + 1
            and self.total_blocks <= 8 * MOST_BITMAP,
            "used blocks": self.used_by_bitmap <= self.total_blocks,
            "feature size": self.feature_size == 18,
            "version": self.image_version == 2,
            "bitmap mode": self.bitmap_mode == 1,
            "checksum": self.checksum_size == (4 if self.checksum_mode == CRC32 else 0)
            or self.checksum_mode not in (NONE, CRC32),
            "strip": self.blocks_per_checksum * self.block_size <= MOST_STRIP
            and (self.checksum_mode != CRC32 or self.blocks_per_checksum > 0),
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"its fields contradict each other: {', '.join(wrong)}")


def open_partclone(path: str) -> Source:
    """The partition in an image, also one in parts (.aa, .ab …). Raises LayoutError, Unsupported, PlanError."""
    file = open_parts(path)
    try:
        return _opened(file)
    except BaseException:
        file.close()
        raise


def _opened(file: Source) -> Source:
    head = _head(file)
    start = LAYOUT.sizeof()
    length = -(-head.total_blocks // 8)
    if start + length + 4 > file.size:
        raise _cut(file, start + length + 4)
    bitmap = read(file, start, length)
    if _crc(bitmap) != int.from_bytes(read(file, start + length, 4), "little"):
        raise _wrong(file, start, length, "the bitmap's checksum is wrong")
    index = BlockIndex(np.frombuffer(bitmap, np.uint8), head.total_blocks)
    if index.total != head.used_by_bitmap:
        raise _wrong(file, start, length, f"the bitmap has {index.total} used blocks, the head {head.used_by_bitmap}")
    strips = _Strips(file, start + length + 4, head, index)
    size = max(head.device_size, head.total_blocks * head.block_size)
    return BlockImage(file, size, head.block_size, index, strips)


def _head(file: Source) -> Head:
    raw = read(file, 0, min(LAYOUT.sizeof(), file.size))
    where = Where(file.name, 0, LAYOUT.sizeof())
    if raw[:15] != MAGIC:
        raise LayoutError(f"{file.name} is no image of partclone", where, next="name its format with --source-format")
    if raw[30:34] == b"0001":
        raise Unsupported("an image of partclone's first format", where, "its checksums cannot be verified",
                          "restore it: " + RESTORE)
    if raw[30:34] != b"0002" or raw[34:36] != b"\xde\xc0":
        raise LayoutError("an image of an unknown format of partclone, or a damaged one", where,
                          next="restore it: " + RESTORE)
    if len(raw) < LAYOUT.sizeof():
        raise _cut(file, LAYOUT.sizeof())
    if _crc(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise _wrong(file, 0, len(raw), "the head's checksum is wrong")
    head = parse(LAYOUT, file, 0, Head, "the head of the partclone image")
    if head.checksum_mode not in (NONE, CRC32) or (head.checksum_mode and not head.reseed_checksum):
        raise Unsupported("an image of partclone with checksums that p2v cannot verify", where,
                          f"mode {head.checksum_mode:#x}, reseeding {head.reseed_checksum}", "restore it: " + RESTORE)
    return head


class _Strips:
    """The used blocks, a checksum behind each strip of them."""

    def __init__(self, file: Source, start: int, head: Head, index: BlockIndex) -> None:
        self._file, self._start, self._index = file, start, index
        self._block = head.block_size
        self._data = index.total * head.block_size  # bytes, checksums not counted
        self._crc = head.checksum_size
        self._strip = head.blocks_per_checksum * head.block_size if self._crc else max(self._data, 1)
        self._kept: dict[int, memoryview] = {}
        self._lock = threading.Lock()
        end = start + self._data + -(-self._data // self._strip) * self._crc
        if end > file.size:
            raise _cut(file, end)
        if end < file.size:
            raise _wrong(file, end, file.size - end, f"{file.size - end} bytes follow the last block")

    def load(self, block: int, offset: int, view: memoryview) -> None:
        """Fill view from the strips that it touches, verified."""
        at, done = self._index.rank(block) * self._block + offset, 0
        if not self._crc:
            self._file.read_into(self._start + at, view)
            return
        while done < len(view):
            number, inside = divmod(at + done, self._strip)
            piece = self._verified(number)[inside : inside + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)

    def _verified(self, number: int) -> memoryview:
        with self._lock:
            kept = self._kept.get(number)
        if kept is not None:
            return kept
        length = min(self._strip, self._data - number * self._strip)
        place = self._start + number * (self._strip + self._crc)
        raw = memoryview(bytearray(length + self._crc))
        self._file.read_into(place, raw)
        if _crc(raw[:length]) != int.from_bytes(raw[length:], "little"):
            raise _wrong(self._file, place, length, "the checksum of these blocks is wrong")
        with self._lock:
            self._kept[number] = raw[:length]
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return raw[:length]


def _crc(data: bytes | memoryview) -> int:
    return zlib.crc32(data) ^ 0xFFFFFFFF


def _cut(file: Source, need: int) -> LayoutError:
    return LayoutError(f"{file.name} is cut off", Where(file.name, file.size, max(need - file.size, 0)),
                       f"it needs {need} bytes, there are {file.size}", "copy it again, and all its parts")


def _wrong(file: Source, offset: int, length: int, what: str) -> LayoutError:
    return LayoutError(what, Where(file.name, offset, length), "the image is damaged",
                       "copy it again; partclone.chkimg -s IMAGE checks it")
