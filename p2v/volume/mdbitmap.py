"""The write-intent bitmap of a Linux md member: which chunks may differ between the copies of a mirror.

Source: mdadm's bitmap.h; documentation/bitmap.md in its tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Severity
from p2v.model import SECTOR, read
from p2v.volume.mdsuper import Superblock, groups
from p2v.volume.members import Place, look

HEADER_BYTES = 256
MOST_CHUNKS = 1 << 27  # 16 MiB of bits
STEP = 1 << 20  # bytes of bits that are counted at once
STALE, WRITE_ERROR = 2, 4  # in state

LAYOUT = c.Struct(
    "magic" / c.Const(b"bitm"), "version" / c.Int32ul, "uuid" / c.Bytes(16), "events" / c.Int64ul,
    "events_cleared" / c.Int64ul, "sync_size" / c.Int64ul, "state" / c.Int32ul, "chunksize" / c.Int32ul,
    c.Padding(200),
)


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap's superblock. sync_size: sectors of a member that it speaks of; chunksize: bytes of a bit."""

    uuid: bytes
    events: int
    events_cleared: int
    sync_size: int
    state: int
    chunksize: int

    def __post_init__(self) -> None:
        if self.chunksize < SECTOR or self.chunks > MOST_CHUNKS:
            raise ValueError(f"chunks of {self.chunksize} bytes for {self.sync_size} sectors")

    @property
    def chunks(self) -> int:
        """How many bits follow the superblock."""
        return -(-self.sync_size * SECTOR // self.chunksize)


def told(place: Place, sb: Superblock) -> str | Finding:
    """What a member's bitmap says, in words; "" for a member without one. Counts bits, believes nothing."""
    if sb.bitmap is None:
        return ""
    data = look(place, sb.bitmap, HEADER_BYTES, "a bitmap of md")
    if isinstance(data, Finding):
        return data
    where = place.where(sb.bitmap, HEADER_BYTES, "bitmap")
    try:
        bitmap = parse_bytes(LAYOUT, data, Bitmap, f"{place.name}: the bitmap of md", where)
        dirty = _dirty(place, sb.bitmap + HEADER_BYTES, bitmap.chunks)
    except (LayoutError, ReadError) as error:
        return Finding(error.what, error.where, f"{error.why}; it is not needed to read the array",
                       "nothing", Severity.INFO)
    if (groups(bitmap.uuid) != sb.uuid and sb.version != "0.90") or bitmap.state & STALE \
            or not 0 <= sb.events - bitmap.events <= 1:
        return "its bitmap is out of date"
    return f"its bitmap marks {dirty} of {bitmap.chunks} chunks of {bitmap.chunksize // 1024} KiB as being written"


def _dirty(place: Place, offset: int, chunks: int) -> int:
    """How many of the bits from byte offset on are set."""
    end = offset + -(-chunks // 8)
    if end > place.source.size:
        raise LayoutError(f"{place.name}: the bitmap of md lies outside its medium", place.where(offset, 1),
                          f"it has {chunks} bits", "give the whole disk")
    count = 0
    for at in range(offset, end, STEP):
        bits = int.from_bytes(read(place.source, at, min(STEP, end - at)), "little")
        if at + STEP >= end and chunks % 8:
            bits &= (1 << chunks - (at - offset) * 8) - 1
        count += bits.bit_count()
    return count
