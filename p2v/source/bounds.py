"""What every source says alike: reads outside, reads after close, and a failed read seen through a layer."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from p2v.errors import ReadError, Where
from p2v.model import Range

_STEP = 1 << 20  # bytes; the largest single attempt while a bad spot is being searched
_RUN_SECTORS = 64  # a bad run is followed no further: on a dying disk each sector may cost half a minute


class BadSectors(ReadError):
    """The sectors that it names were tried alone, each of them: reading them in smaller pieces is no use."""


def check_read(name: str, size: int, offset: int, length: int, closed: bool = False) -> None:
    """Raises ValueError for a read that is our own caller's bug."""
    if closed:
        raise ValueError(f"{name} is closed")
    if offset < 0 or offset + length > size:
        raise ValueError(f"{name}: bytes {offset:#x} to {offset + length:#x} are outside its {size} bytes")


def failed_range(error: ReadError, offset: int, length: int) -> Range:
    """The bytes that a ReadError names, cut to the read of length bytes at offset that raised it.

    An error that names no bytes in there means all of them.
    """
    where = error.where
    if where.offset is not None and where.length:
        start = max(where.offset, offset)
        end = min(where.offset + where.length, offset + length)
        if start < end:
            return Range(start, end - start)
    return Range(offset, length)


def seen_through(error: ReadError, name: str, offset: int, length: int, shift: int) -> ReadError:
    """The same failure in the bytes of the layer called name.

    offset, length: what the layer asked of the source below. shift: bytes to add to get the layer's own.
    """
    bad = failed_range(error, offset, length)
    why = "; ".join(part for part in (error.why, f"that is {error.where}") if part)
    where = Where(name, bad.offset + shift, bad.length, error.where.item)
    return type(error)(error.what, where, why, error.next)


def salvage(
    attempt: Callable[[int, memoryview], bool], offset: int, buffer: memoryview, sector: int, size: int
) -> Range | None:
    """Read what failed in one piece in ever smaller ones, down to a sector.

    attempt: fills a page-aligned memoryview from an offset, both multiples of sector, or says False.
    size: of the source. Returns the first bad run, cut to the read and at most 64 sectors long (the
    next read goes on behind it), or None when everything could be read after all.
    """
    scratch = memoryview(mmap.mmap(-1, max(_STEP, sector)))
    last = offset + len(buffer)
    end = min(-(-last // sector) * sector, size)
    at, step, narrowing = offset - offset % sector, sector, False
    while at < end:
        piece = scratch[: min(step, end - at)]
        if attempt(at, piece):
            start, stop = max(at, offset), min(at + len(piece), last)
            buffer[start - offset : stop - offset] = piece[start - at : stop - at]
            at += len(piece)
            narrowing = narrowing and len(piece) > sector
        elif len(piece) <= sector:
            start, stop = max(at, offset), min(_bad_until(attempt, at, scratch, sector, end), last)
            return Range(start, stop - start)
        else:
            narrowing = True
        step = max(sector, len(piece) // 2 // sector * sector) if narrowing else min(step * 2, _STEP)
    return None


def _bad_until(
    attempt: Callable[[int, memoryview], bool], start: int, scratch: memoryview, sector: int, end: int
) -> int:
    """The end of the bad run that begins with the sector at start."""
    at = start + sector
    while at < min(end, start + _RUN_SECTORS * sector):
        if attempt(at, scratch[: min(sector, end - at)]):
            break
        at += sector
    return min(at, end)
