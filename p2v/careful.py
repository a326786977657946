"""Fills a chunk's buffer from a source, and saves what can be saved of one that fails to read."""

from __future__ import annotations

import threading

from p2v.errors import ReadError, Where
from p2v.extents import append
from p2v.model import Range, Source
from p2v.ring import CHUNK, Item, Stopped
from p2v.source.bounds import failed_range
from p2v.source.device import DeviceGone

PATIENCE = 8  # chunks on end without one readable sector, before asking whether the device is still there
_ZEROES = memoryview(bytes(CHUNK))


class Interrupted(Exception):
    """Nobody wants the chunk any more. Never leaves the copy."""


def fill(source: Source, item: Item, buffer: memoryview) -> None:
    """The chunk as it will be written: what item reads, and zeroes. Raises ReadError."""
    at = 0
    for span in item.reads:
        start = span.offset - item.offset
        blank(buffer, at, start - at)
        at = start + span.length
        source.read_into(span.offset, buffer[start:at])
    blank(buffer, at, CHUNK - at)
    for gap in item.blanks:
        blank(buffer, gap.offset - item.offset, gap.length)


def blank(buffer: memoryview, at: int, length: int) -> None:
    """Zeroes, length bytes of them, from at on."""
    buffer[at : at + length] = _ZEROES[:length]


class Careful:
    """Reads a chunk piece by piece, in halves down to one sector, and notices when a device is gone."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pulse = Pulse(source)

    def fill(self, item: Item, buffer: memoryview, stopped: Stopped) -> list[Range]:
        """Like fill(), but unreadable sectors are left as zeroes and returned, ascending.

        Raises DeviceGone when the device itself seems gone: then nothing more is learned by going on.
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
        self._pulse.good(item.reads[0].offset)

    def _piece(self, piece: Range, base: int, buffer: memoryview, stopped: Stopped) -> list[Range]:
        """Fill one piece of the chunk that begins at base; returns what is bad in it, ascending."""
        sector = self._source.sector_size
        bad: list[Range] = []
        todo = [piece]  # the last one comes first
        while todo:
            if stopped():
                raise Interrupted
            part = todo.pop()
            failed = self._try(part, buffer[part.offset - base : part.end - base])
            if failed is None:
                continue
            if failed == part and part.offset // sector != (part.end - 1) // sector:
                todo += _halves(part, sector)
                continue
            # One sector, or less than was asked for: then the source has looked itself, sector by sector.
            blank(buffer, failed.offset - base, failed.length)
            append(bad, failed)
            todo += _around(failed, part)
        return bad

    def _try(self, part: Range, into: memoryview) -> Range | None:
        """None, or what of part could not be read. Raises DeviceGone."""
        try:
            self._source.read_into(part.offset, into)
        except DeviceGone:
            raise
        except ReadError as error:
            return failed_range(error, part.offset, part.length)
        return None

    def _judge(self, item: Item, bad: list[Range]) -> None:
        """Was anything of the chunk readable?"""
        if sum(r.length for r in bad) == sum(p.length for p in item.pieces):
            self._pulse.lost(item.offset, item.length)
        else:
            self.note(item)


class Pulse:
    """Tells a disk with bad places from one that is gone: after so many failures on end, it is asked.

    Each time that it answers, patience doubles until something is readable again: asking costs reads.
    """

    def __init__(self, source: Source, patience: int = PATIENCE) -> None:
        self._source, self._first = source, patience
        self._lock = threading.Lock()
        self._good: int | None = None  # a byte of a place that could be read
        self._lost, self._patience = 0, self._first

    def good(self, offset: int) -> None:
        """This place could be read."""
        self._lost, self._patience = 0, self._first
        if self._good is None:
            self._good = offset

    def lost(self, offset: int, length: int) -> None:
        """Nothing here could be read. Raises DeviceGone when nothing can be read anywhere."""
        with self._lock:
            self._lost += 1
            if self._lost < self._patience:
                return
            self._lost, self._patience = 0, self._patience * 2
        if not self._alive():
            raise self._gone(offset, length)

    def _alive(self) -> bool:
        """Can anything still be read: what could be before, the first, middle or last sector?"""
        source = self._source
        sector = min(source.sector_size, source.size)
        last = (source.size - 1) // sector * sector
        known = () if self._good is None else (self._good,)
        places = dict.fromkeys((*known, 0, source.size // 2 // sector * sector, last))
        return any(self._answers(Range(at, min(sector, source.size - at))) for at in places)

    def _answers(self, look: Range) -> bool:
        try:
            self._source.read_into(look.offset, memoryview(bytearray(look.length)))
        except DeviceGone:
            raise
        except ReadError:
            return False
        return True

    def _gone(self, offset: int, length: int) -> DeviceGone:
        return DeviceGone(
            f"{self._source.name} seems gone",
            Where(self._source.name, offset, length),
            "nothing can be read any more, not even places that were read before; going on would fill the "
            "image with zeroes",
            "check cable, power and controller, let the disk cool down, then go on with the same command; a disk "
            "that goes away often is rescued first: p2v image",
        )


def _halves(part: Range, sector: int) -> list[Range]:
    """Two parts of more than one sector's part, cut between sectors; the second one first."""
    middle = max((part.offset + part.end) // 2, part.offset // sector * sector + sector) // sector * sector
    return [Range(middle, part.end - middle), Range(part.offset, middle - part.offset)]


def _around(failed: Range, part: Range) -> list[Range]:
    """What is left of part behind and before failed."""
    left = [(failed.end, part.end), (part.offset, failed.offset)]
    return [Range(start, end - start) for start, end in left if end > start]
