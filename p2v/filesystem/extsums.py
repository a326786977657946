"""The checksums of ext4 over many rows at once: a step of Python per byte of a row, not per byte.

gdt_csum: CRC-16 (polynomial A001 reflected) of a group descriptor. metadata_csum: CRC-32C, not inverted at
the end. Source: e2fsprogs lib/ext2fs/csum.c, crc16.c, crc32c.c; checked on volumes of mke2fs.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

CRC16, CRC32C = 0xA001, 0x82F63B78


def checksums(polynomial: int, start: NDArray[np.uint32], rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The CRC of each row, going on from start (one number, or one a row)."""
    table = _table(polynomial)
    sums = np.broadcast_to(start, len(rows)).astype(np.uint32)
    for column in np.ascontiguousarray(rows.T):
        sums = table[(sums ^ column) & 0xFF] ^ (sums >> np.uint32(8))
    return sums


def checksum(polynomial: int, start: int, data: bytes) -> int:
    """The CRC of some bytes."""
    row = np.frombuffer(data, np.uint8).reshape(1, -1)
    return int(checksums(polynomial, np.array([start], np.uint32), row)[0])


@functools.cache
def _table(polynomial: int) -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(polynomial), table >> np.uint32(1))
    return table.astype(np.uint32)
