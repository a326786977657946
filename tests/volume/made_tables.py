"""Partition tables for tests, entry by entry."""

from __future__ import annotations

import struct
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
