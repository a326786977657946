"""Partition tables for tests, entry by entry."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence

Row = tuple[int, int, int]  # type, start, count in sectors


def sector(rows: Sequence[Row], active: int = -1, signature: bytes = b"\x55\xaa") -> bytes:
    """A table sector with up to four rows."""
    entries = b"".join(
        struct.pack("<B3sB3sII", 0x80 if index == active else 0, b"\1\1\0", type, b"\xfe\xff\xff", start, count)
        for index, (type, start, count) in enumerate(rows))
    return bytes(446) + entries.ljust(64, b"\0") + signature


def disk(sectors: int, tables: dict[int, bytes]) -> bytearray:
    """A disk of zeroes with table sectors at these LBAs."""
    data = bytearray(sectors * 512)
    for lba, table in tables.items():
        data[lba * 512:lba * 512 + 512] = table
    return data


def chain(data: bytearray, base: int, logicals: Sequence[int], gap: int = 63) -> None:
    """Logical partitions of these lengths (sectors), one after the other, in a container at sector base."""
    place = base
    for index, length in enumerate(logicals):
        following = place + gap + length
        rows = [(7, gap, length)]
        if index + 1 < len(logicals):
            rows.append((5, following - base, gap + logicals[index + 1]))
        data[place * 512:place * 512 + 512] = sector(rows)
        place = following


def gpt(data: bytearray, rows: Sequence[tuple[str, int, int]], unit: int = 512) -> None:
    """A protective MBR and both tables, with partitions of these types (GUID, first LBA, last LBA)."""
    last = len(data) // unit - 1
    array = b"".join(uuid.UUID(type).bytes_le + uuid.UUID(int=number + 1).bytes_le
                     + struct.pack("<QQQ", first, end, 0) + f"part {number}".encode("utf-16-le").ljust(72, b"\0")
                     for number, (type, first, end) in enumerate(rows)).ljust(128 * 128, b"\0")
    data[:512] = sector([(0xEE, 1, last)])
    sectors = len(array) // unit
    for own, other, place in ((1, last, 2), (last, 1, last - sectors)):
        data[place * unit:place * unit + len(array)] = array
        data[own * unit:own * unit + 92] = gpt_header(own, other, place, zlib.crc32(array), last)


def gpt_header(own: int, other: int, array: int, array_crc: int, last: int, count: int = 128, size: int = 128) -> bytes:
    """One header with its checksum."""
    def packed(crc: int) -> bytes:
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, last - 33, bytes(16),
                           array, count, size, array_crc)

    return packed(zlib.crc32(packed(0)))
