"""Fills a chunk's buffer from a source, and saves what can be saved of one that fails to read."""

from __future__ import annotations

import errno
import threading

from p2v.errors import ReadError, Where
from p2v.model import Range, Source
from p2v.ring import CHUNK, Item, Stopped

# What Linux says when a device is no longer there, as opposed to EIO for a place that cannot be read.
GONE = {errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.ESHUTDOWN, errno.ENOTCONN}
PATIENCE = 8  # chunks on end without one readable sector, before asking whether the device is still there
_ZEROES = memoryview(bytes(CHUNK))


class Interrupted(Exception):
    """Nobody wants the chunk any more. Never leaves the copy."""


def fill(source: Source, item: Item, buffer: memoryview) -> None:
    """The chunk as it will be written: what item reads, and zeroes. Raises ReadError."""
    if sum(span.length for span in item.reads) < CHUNK:
        blank(buffer, 0, CHUNK)
    for span in item.reads:
        at = span.offset - item.offset
        source.read_into(span.offset, buffer[at : at + span.length])
    for gap in item.blanks:
        blank(buffer, gap.offset - item.offset, gap.length)


def blank(buffer: memoryview, at: int, length: int) -> None:
    """Zeroes, length bytes of them, from at on."""
    buffer[at : at + length] = _ZEROES[:length]


class Rescue:
    """Reads a chunk piece by piece, in halves down to one sector, and notices when a device is gone."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._good: int | None = None  # a byte of a place that could be read
        self._lost = 0  # chunks on end of which nothing could be read

    def fill(self, item: Item, buffer: memoryview, stopped: Stopped) -> list[Range]:
        """Like fill(), but unreadable sectors are left as zeroes and returned, ascending.

        Raises ReadError when the device itself seems gone: then nothing more is learned by going on.
        """
        blank(buffer, 0, CHUNK)
        bad: list[Range] = []
        for piece in item.pieces:
            for part in self._piece(piece, item.offset, buffer, stopped):
                append(bad, part)
        self._judge(item, bad)
        return bad

    def note(self, item: Item) -> None:
        """This chunk could be read."""
        self._lost = 0
        if self._good is None:
            self._good = item.reads[0].offset

    def _piece(self, piece: Range, base: int, buffer: memoryview, stopped: Stopped) -> list[Range]:
        sector = self._source.sector_size
        bad: list[Range] = []
        todo = [(piece.offset, piece.end)]
        while todo:
            if stopped():
                raise Interrupted
            start, end = todo.pop()
            if self._try(start, buffer[start - base : end - base]):
                continue
            if start // sector == (end - 1) // sector:
                blank(buffer, start - base, end - start)
                bad.append(Range(start, end - start))
                continue
            middle = (start + end) // 2 // sector * sector
            if middle <= start:
                middle = (start // sector + 1) * sector
            todo += [(middle, end), (start, middle)]
        return bad

    def _try(self, offset: int, part: memoryview) -> bool:
        try:
            self._source.read_into(offset, part)
        except ReadError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in GONE:
                raise self._gone(offset, len(part)) from error
            return False
        return True

    def _judge(self, item: Item, bad: list[Range]) -> None:
        """Count the chunks on end without a readable sector; after PATIENCE of them, probe."""
        lost = sum(r.length for r in bad) == sum(p.length for p in item.pieces)
        with self._lock:
            if not lost:
                self.note(item)
                return
            self._lost += 1
            if self._lost < PATIENCE:
                return
            self._lost = 0
        if not self._alive():
            raise self._gone(item.offset, item.length)

    def _alive(self) -> bool:
        """Can anything still be read: what could be before, the first, middle or last sector?"""
        source = self._source
        sector = min(source.sector_size, source.size)
        last = (source.size - 1) // sector * sector
        places = {0, source.size // 2 // sector * sector, last}
        if self._good is not None:
            places.add(self._good)
        buffer = memoryview(bytearray(sector))
        return any(self._try(at, buffer[: source.size - at]) for at in sorted(places))

    def _gone(self, offset: int, length: int) -> ReadError:
        return ReadError(
            f"{self._source.name} seems gone",
            Where(self._source.name, offset, length),
            "nothing can be read any more, not even places that were read before; going on would fill the "
            "image with zeroes",
            "check cable, power and controller, let the disk cool down, then begin again; a disk that goes "
            "away often is rescued first with GNU ddrescue",
        )


def append(ranges: list[Range], part: Range) -> None:
    """Add the next one of ascending ranges; touching ones become one."""
    if ranges and ranges[-1].end == part.offset:
        ranges[-1] = Range(ranges[-1].offset, ranges[-1].length + part.length)
    else:
        ranges.append(part)
