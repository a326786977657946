"""A sparse VMDK extent while it is being made: grains appended in the order in which they arrive.

File: header | descriptor, if any | second grain directory and its tables | grain directory and its tables |
grains. The tables have their place from the start and a few pieces of them are kept in memory, so memory
does not grow with the disk. A grain that is written again is written in place. The header comes last, so an
unfinished file is no VMDK.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import pairwise

from p2v.errors import LayoutError, Where
from p2v.formats.part import PartFile
from p2v.formats.vmdk_layout import (
    DESCRIPTOR_SECTORS,
    GRAIN,
    GRAIN_SECTORS,
    TABLE_ENTRIES,
    Header,
    embedded,
)
from p2v.model import SECTOR

PAGE = 16384  # entries of the grain tables that are kept, read and written together: 1 GiB of disk
KEPT = 32  # pages in memory, 64 KiB each; a streaming copy needs one
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR


class SparseExtent:
    """capacity: sectors, whole grains. text: the descriptor to embed. used: grains taken so far."""

    def __init__(self, part: PartFile, capacity: int, text: bytes = b"", used: int = 0) -> None:
        self.used = used
        self._part, self._capacity, self._text = part, capacity, text
        self._tables = -(-capacity // (GRAIN_SECTORS * TABLE_ENTRIES))
        directory = -(-self._tables * 4 // SECTOR)
        self._redundant = 1 + (DESCRIPTOR_SECTORS if text else 0)
        self._directory = self._redundant + directory + self._tables * _TABLE_SECTORS
        self._places = tuple(start + directory for start in (self._redundant, self._directory))  # of the tables
        self._overhead = -(-(self._places[1] + self._tables * _TABLE_SECTORS) // GRAIN_SECTORS) * GRAIN_SECTORS
        self._kept: dict[int, array[int]] = {}  # pages, the one used last at the end
        self._dirty: set[int] = set()

    @property
    def end(self) -> int:
        """Bytes of the file that are in use."""
        return self._overhead * SECTOR + self.used * GRAIN

    def write_at(self, offset: int, data: memoryview) -> None:
        """Data at byte offset of the extent."""
        done = 0
        while done < len(data):
            at = offset + done
            page, first = divmod(at // GRAIN, PAGE)
            step = min(len(data) - done, (page + 1) * PAGE * GRAIN - at)
            last = (at + step - 1) // GRAIN % PAGE
            inside = at % GRAIN
            for sector, count in self._allocate(page, first, last + 1):
                length = min(count * GRAIN - inside, step)
                self._part.write(sector * SECTOR + inside, data[done : done + length])
                done, step, inside = done + length, step - length, 0

    def zero(self, offset: int, length: int) -> None:
        """What was never written stays unallocated; what was is overwritten."""
        reach, end = PAGE * GRAIN, offset + length
        for page in range(offset // reach, -(-end // reach)) if self.used and length else ():
            start, stop = max(offset, page * reach), min(end, (page + 1) * reach)
            first = start // GRAIN
            entries = self._page(page)[first % PAGE : (stop - 1) // GRAIN % PAGE + 1]
            for number, sector in enumerate(entries, first) if any(entries) else ():
                if sector:
                    low, high = max(start, number * GRAIN), min(stop, (number + 1) * GRAIN)
                    self._part.blank(sector * SECTOR + low % GRAIN, high - low)

    def sync(self) -> None:
        """Tables into the file, the file onto the medium."""
        self._flush()
        self._part.resize(self.end)
        self._part.sync()

    def complete(self) -> None:
        """Tables, directories and header into the file; it can be published then."""
        self._flush()
        self._part.resize(self.end)
        for start, tables in zip((self._redundant, self._directory), self._places, strict=True):
            entries = array("I", range(tables, tables + self._tables * _TABLE_SECTORS, _TABLE_SECTORS))
            self._part.write(start * SECTOR, _little_endian(entries))
        if self._text:
            self._part.write(SECTOR, embedded(self._text))
        header = Header(self._capacity, self._directory, self._overhead, self._redundant,
                        DESCRIPTOR_SECTORS if self._text else 0)
        self._part.write(0, header.pack())

    def forget_later(self) -> None:
        """After reopening: entries that were written after the checkpoint go, in both copies.

        An entry only ever changes from nothing to a grain, so even a table torn by a power cut holds nothing
        but entries from before and after. Raises LayoutError.
        """
        if self._part.size < self.end:
            raise LayoutError(f"{self._part.part} is shorter than its checkpoint says", Where(str(self._part.part)),
                              "something else has changed it", "remove it and begin again")
        self._part.resize(self.end)
        for page in range(-(-self._tables * TABLE_ENTRIES // PAGE)):
            self._forget_in(page)

    def _forget_in(self, page: int) -> None:
        import numpy as np

        size = self._page_bytes(page)
        copies = [self._part.read(self._page_place(page, start), size) for start in self._places]
        wanted = np.frombuffer(copies[1], "<u4")
        grains, odd = np.divmod(np.maximum(wanted, self._overhead) - self._overhead, GRAIN_SECTORS)
        known = (wanted == 0) | ((wanted >= self._overhead) & (odd == 0))
        if not known.all():
            raise LayoutError(f"{self._part.part} holds a damaged grain table",
                              Where(str(self._part.part), self._page_place(page, self._places[1]), size),
                              "something else has changed it", "remove it and begin again")
        kept = np.where(grains >= self.used, 0, wanted).astype("<u4").tobytes()
        for start, copy in zip(self._places, copies, strict=True):
            if copy != kept:
                self._part.write(self._page_place(page, start), kept)

    def _allocate(self, page: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Entries first to end of a page, new grains where there are none.

        Returns (sector in the file, grains that follow one another there).
        """
        table = self._page(page)
        entries = table[first:end]
        if not any(entries):
            start = self._take(end - first)
            entries = array("I", range(start, start + (end - first) * GRAIN_SECTORS, GRAIN_SECTORS))
        elif not all(entries):
            entries = array("I", [entry or self._take(1) for entry in entries])
        if entries != table[first:end]:
            table[first:end] = entries
            self._dirty.add(page)
        return _runs(entries)

    def _take(self, grains: int) -> int:
        """The sector of as many new grains; they read as zero, being past the end of the file."""
        sector = self._overhead + self.used * GRAIN_SECTORS
        self.used += grains
        return sector

    def _page(self, page: int) -> array[int]:
        entries = self._kept.pop(page, None)
        if entries is None:
            size = self._page_bytes(page)
            data = self._part.read(self._page_place(page, self._places[1]), size)
            entries = array("I", data + bytes(size - len(data)))
            if sys.byteorder == "big":
                entries.byteswap()
        self._kept[page] = entries
        if len(self._kept) > KEPT:
            oldest = next(iter(self._kept))
            self._store(oldest)
            del self._kept[oldest]
        return entries

    def _page_place(self, page: int, start: int) -> int:
        return start * SECTOR + page * PAGE * 4

    def _page_bytes(self, page: int) -> int:
        return min(PAGE, self._tables * TABLE_ENTRIES - page * PAGE) * 4

    def _store(self, page: int) -> None:
        if page in self._dirty:
            for start in self._places:
                self._part.write(self._page_place(page, start), _little_endian(self._kept[page]))
            self._dirty.discard(page)

    def _flush(self) -> None:
        for page in sorted(self._dirty):
            self._store(page)


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array("I", numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _runs(entries: array[int]) -> Iterator[tuple[int, int]]:
    """(sector, grains) of grains that follow one another in the file."""
    start = 0
    for at, (one, two) in enumerate(pairwise(entries), 1):
        if two != one + GRAIN_SECTORS:
            yield entries[start], at - start
            start = at
    yield entries[start], len(entries) - start
