"""COWD: the sparse disks of ESX 2 and 3, also those that a descriptor calls VMFSSPARSE. Read by us.

qemu reads them behind a descriptor only, and a disk of ESX 2 has none. A grain directory leads to tables of 4096
grains, a grain to where its sectors lie; 0 is a grain that is not there and reads as zero.
Source: open-vmdk's and qemu's headers; no disk of a real ESX was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2v.errors import ReadError
from p2v.model import SECTOR, Extent, Kind, Source, read
from p2v.source.bounds import check_read, seen_through
from p2v.source.vmdktables import COWD_TABLE, Cowd, check_cowd

STEP = 1 << 16  # grains looked up at once


class CowdDisk:
    """The disk in a file, which is closed with it. Raises LayoutError, Unsupported for a snapshot."""

    def __init__(self, file: Source) -> None:
        self._head: Cowd = check_cowd(file)
        self._file = file
        self._grain = self._head.grain_size * SECTOR
        self._tables = np.frombuffer(read(file, self._head.gd_offset * SECTOR, 4 * self._head.gd_entries), "<u4")
        self.name = file.name
        self.size = self._head.sectors * SECTOR
        self.sector_size = SECTOR
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError in the disk's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        end = offset + len(buffer)
        for first, place, count in self._runs(offset // self._grain, -(-end // self._grain)):
            start, stop = max(first * self._grain, offset), min((first + count) * self._grain, end)
            piece = buffer[start - offset : stop - offset]
            if not place:
                piece[:] = bytes(len(piece))
                continue
            inside = place * SECTOR + start - first * self._grain
            try:
                self._file.read_into(inside, piece)
            except ReadError as error:
                raise seen_through(error, self.name, inside, len(piece), start - inside) from error

    def extents(self) -> Iterator[Extent]:
        """Grains that are there are DATA, the others ZERO."""
        check_read(self.name, self.size, 0, 0, self._closed)
        start, end, kind = 0, 0, Kind.DATA
        for first, place, count in self._runs(0, -(-self.size // self._grain)):
            now = Kind.DATA if place else Kind.ZERO
            if now is not kind and end > start:
                yield Extent(start, end - start, kind)
                start = end
            kind, end = now, min((first + count) * self._grain, self.size)
        yield Extent(start, end - start, kind)

    def close(self) -> None:
        """The file is closed too."""
        self._closed = True
        self._file.close()

    def _runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(grain, its sector in the file or 0, grains that lie behind it or are missing with it)."""
        for at in range(first, end, STEP):
            places = self._places(at, min(at + STEP, end))
            step = np.where(places[:-1] > 0, self._head.grain_size, 0)
            edges = np.flatnonzero(np.diff(places) != step) + 1
            starts = [0, *edges.tolist()]
            for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
                yield at + start, int(places[start]), stop - start

    def _places(self, first: int, end: int) -> NDArray[np.int64]:
        """The sectors of the file where grains lie."""
        found = np.zeros(end - first, np.int64)
        for number in range(first // COWD_TABLE, -(-end // COWD_TABLE)):
            table = int(self._tables[number])
            if table:
                low, high = max(first, number * COWD_TABLE), min(end, (number + 1) * COWD_TABLE)
                at = table * SECTOR + 4 * (low - number * COWD_TABLE)
                found[low - first : high - first] = np.frombuffer(read(self._file, at, 4 * (high - low)), "<u4")
        return found
