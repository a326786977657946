"""qcow2, version 3: clusters appended in the order in which they arrive.

File: header | clusters of data, each L2 table before the first data it maps | L1 | refcount blocks |
refcount table; the header is written last, so an unfinished file is no qcow2. Nothing is ever moved or
given back: a cluster that is written again is written in place. L2 tables have their place in the file
from the start and few are kept in memory, so memory grows neither with the disk nor with its data.
Source of every field: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from itertools import pairwise

from p2v.errors import LayoutError, Unsupported, Where
from p2v.formats.part import PartFile
from p2v.model import ImageWriter, Source
from p2v.model import read as read_bytes

NAME = "qcow2"
SUFFIX = ".qcow2"
SEQUENTIAL = False
EDITABLE = True
LIMIT = 1 << 50  # bytes: its refcount table stays within the 8 MiB that qemu takes, also when it is full

CLUSTER = 64 << 10  # bytes
ENTRIES = CLUSTER // 8  # of an L1 or L2 cluster
COPIED = 1 << 63  # "refcount is exactly one" in L1 and L2 entries
MAGIC = b"QFI\xfb"
KEPT = 64  # L2 tables in memory, 64 KiB each; a streaming copy needs one

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2's 72 bytes
_HEADER3 = struct.Struct(">QQQII")  # incompatible, compatible, autoclear, refcount_order, header_length
_STATE = struct.Struct(">8sQQQ")  # magic, version, the disk's size, clusters used; then (index, place) pairs
_STATE_MAGIC = b"p2v-qcw1"


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    return create_version(path, size, 3)


def create_version(path: str, size: int, version: int) -> ImageWriter:
    """create() of version 2 or 3."""
    if size <= 0:
        raise ValueError(f"no disk has {size} bytes")
    if size > LIMIT:
        raise Unsupported(f"qcow2 holds no disk of {size} bytes", Where(path),
                          f"its tables end at {LIMIT} bytes", "use raw")
    return Writer(PartFile(path), size, version)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint of either version; what was written after it is forgotten."""
    version, size, used, tables = _parse(path, state)
    part = PartFile(path, new=False)
    try:
        if part.size < used * CLUSTER:
            raise LayoutError(f"{part.part} is shorter than its checkpoint says", Where(str(part.part)),
                              "something else has changed it", "remove it and begin again")
        part.resize(used * CLUSTER)
        writer = Writer(part, size, version, used, tables)
        writer.forget_later()
    except BaseException:
        part.close()
        raise
    return writer


def probe(source: Source) -> bool:
    """The magic and version 3."""
    return probe_version(source, 3)


def probe_version(source: Source, version: int) -> bool:
    """The magic and this version."""
    return source.size >= 8 and read_bytes(source, 0, 8) == MAGIC + version.to_bytes(4, "big")


def read(path: str) -> Source:
    """The disk inside, through qemu-nbd."""
    from p2v.source.nbd import open_image

    return open_image(path, "qcow2")


class Writer:
    """version: 2 or 3. used: clusters of the file taken so far. tables: L2 index → its table's place."""

    compression = 0  # of clusters that are compressed: 0 deflate, 1 zstd; what is not 0 must be said

    def __init__(
        self, part: PartFile, size: int, version: int, used: int = 1, tables: dict[int, int] | None = None
    ) -> None:
        self._part, self._size, self._version = part, size, version
        self._used = used
        self._places = tables or {}
        self._kept: dict[int, array[int]] = {}  # L2 tables, the one used last at the end
        self._dirty: set[int] = set()

    def write_at(self, offset: int, data: memoryview) -> None:
        self._inside(offset, len(data))
        done = 0
        while done < len(data):
            at = offset + done
            index, first = divmod(at // CLUSTER, ENTRIES)
            step = min(len(data) - done, (index + 1) * ENTRIES * CLUSTER - at)
            last = (at + step - 1) // CLUSTER % ENTRIES
            inside = at % CLUSTER
            for host, count in self._allocate(index, first, last + 1):
                length = min(count * CLUSTER - inside, step)
                self._part.write(host + inside, data[done : done + length])
                done, step, inside = done + length, step - length, 0

    def zero(self, offset: int, length: int) -> None:
        """What was never written stays unallocated; what was is overwritten."""
        self._inside(offset, length)
        if not length:
            return
        reach = ENTRIES * CLUSTER
        tables = range(offset // reach, (offset + length - 1) // reach + 1)
        few = tables if len(tables) <= len(self._places) else sorted(self._places)
        for index in few:
            if index in self._places and index in tables:
                self._blank(index, max(offset, index * reach), min(offset + length, (index + 1) * reach))

    def checkpoint(self) -> bytes:
        self._flush()
        self._part.resize(self._used * CLUSTER)
        self._part.sync()
        pairs = array("Q", [number for pair in sorted(self._places.items()) for number in pair])
        return _STATE.pack(_STATE_MAGIC, self._version, self._size, self._used) + _big_endian(pairs)

    def finish(self) -> None:
        self._flush()
        self._kept.clear()
        l1, l1_size = self._write_l1()
        table, table_clusters = self._write_refcounts()
        self._part.write(0, self._header(l1, l1_size, table, table_clusters))
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def forget_later(self) -> None:
        """After reopening: L2 entries that were written after the checkpoint go.

        An entry only ever changes from nothing to a cluster, so even a table torn by a power cut holds
        nothing but entries from before and after.
        """
        import numpy as np

        for place in self._places.values():
            entries = np.frombuffer(self._part.read(place, CLUSTER), ">u8")
            hosts = entries & ~np.uint64(COPIED)
            known = (entries == 0) | ((entries >= COPIED) & (hosts % CLUSTER == 0) & (hosts > 0))
            if len(entries) != ENTRIES or not known.all():
                raise LayoutError(f"{self._part.part} holds a damaged L2 table",
                                  Where(str(self._part.part), place, CLUSTER),
                                  "something else has changed it", "remove it and begin again")
            later = hosts >= self._used * CLUSTER
            if later.any():
                self._part.write(place, np.where(later, 0, entries).astype(">u8").tobytes())

    def _allocate(self, index: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Clusters first to end of L2 table index, new ones where there are none.

        Returns (place in the file, clusters that follow one another there).
        """
        table = self._table(index)
        entries = table[first:end]
        if any(entries):
            for at, entry in enumerate(entries):
                if not entry:
                    entries[at] = COPIED | self._take(1)
        else:
            start = COPIED | self._take(end - first)
            entries = array("Q", range(start, start + (end - first) * CLUSTER, CLUSTER))
        if entries != table[first:end]:
            table[first:end] = entries
            self._dirty.add(index)
        return _runs(entries)

    def _take(self, clusters: int) -> int:
        """The place of as many new clusters; they read as zero, being past the end of the file."""
        place = self._used * CLUSTER
        self._used += clusters
        return place

    def _table(self, index: int) -> array[int]:
        """An L2 table; a new one where there is none. Keeps KEPT of them in memory."""
        table = self._kept.pop(index, None)
        if table is None:
            table = self._load(index)
        self._kept[index] = table
        if len(self._kept) > KEPT:
            oldest = next(iter(self._kept))
            self._store(oldest)
            del self._kept[oldest]
        return table

    def _load(self, index: int) -> array[int]:
        if index not in self._places:
            self._places[index] = self._take(1)
            return array("Q", bytes(CLUSTER))
        data = self._part.read(self._places[index], CLUSTER)
        table = array("Q", data + bytes(CLUSTER - len(data)))  # never stored yet: past the end of the file
        if sys.byteorder == "little":
            table.byteswap()
        return table

    def _store(self, index: int) -> None:
        if index in self._dirty:
            self._part.write(self._places[index], _big_endian(self._kept[index]))
            self._dirty.discard(index)

    def _flush(self) -> None:
        for index in sorted(self._dirty):
            self._store(index)

    def _blank(self, index: int, start: int, end: int) -> None:
        """Zeroes over what bytes start to end, all mapped by L2 table index, hold."""
        first = start // CLUSTER
        entries = self._table(index)[first % ENTRIES : (end - 1) // CLUSTER % ENTRIES + 1]
        if not any(entries):
            return
        for number, entry in enumerate(entries, first):
            if entry:
                low, high = max(start, number * CLUSTER), min(end, (number + 1) * CLUSTER)
                self._part.blank((entry & ~COPIED) + low % CLUSTER, high - low)

    def _write_l1(self) -> tuple[int, int]:
        size = -(-self._size // (CLUSTER * ENTRIES))
        l1 = array("Q", bytes(8 * size))
        for index, place in self._places.items():
            l1[index] = COPIED | place
        place = self._take(-(-size // ENTRIES))
        self._part.write(place, _big_endian(l1))
        return place, size

    def _write_refcounts(self) -> tuple[int, int]:
        """Every cluster of the file is counted, the refcounts' own too.

        Returns the place of the refcount table and its clusters.
        """
        per_block = CLUSTER // 2
        total, blocks, tables = 0, 0, 0
        while total != self._used + blocks + tables:
            total = self._used + blocks + tables
            blocks = -(-total // per_block)
            tables = -(-blocks // ENTRIES)
        place = self._take(blocks)
        table = self._take(tables)
        for number in range(blocks):
            ones = min(per_block, total - number * per_block)
            counts = self._counts(number * per_block, ones)
            self._part.write(place + number * CLUSTER, counts + bytes(CLUSTER - len(counts)))
        entries = _big_endian(array("Q", range(place, table, CLUSTER)))
        self._part.write(table, entries + bytes(tables * CLUSTER - len(entries)))
        return table, tables

    def _counts(self, _first: int, clusters: int) -> bytes:
        """Refcounts of as many clusters of the file, 16 bits each: every cluster holds one thing."""
        return b"\0\1" * clusters

    def _header(self, l1: int, l1_size: int, table: int, table_clusters: int) -> bytes:
        size = -(-self._size // 512) * 512
        header = _HEADER.pack(MAGIC, self._version, 0, 0, CLUSTER.bit_length() - 1, size, 0, l1_size, l1,
                              table, table_clusters, 0, 0)
        if self._version >= 3:
            more = bytes([self.compression]) + bytes(7) if self.compression else b""
            header += _HEADER3.pack(8 if more else 0, 0, 0, 4, _HEADER.size + _HEADER3.size + len(more)) + more
        return header + bytes(CLUSTER - len(header))

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")


def _big_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers = array("Q", numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _runs(entries: array[int]) -> Iterator[tuple[int, int]]:
    """(place, clusters) of clusters that follow one another in the file."""
    start = 0
    for at, (one, two) in enumerate(pairwise(entries), 1):
        if two != one + CLUSTER:
            yield entries[start] & ~COPIED, at - start
            start = at
    yield entries[start] & ~COPIED, len(entries) - start


def _parse(path: str, state: bytes) -> tuple[int, int, int, dict[int, int]]:
    """Version, size, clusters used and tables of a checkpoint. Raises LayoutError."""
    wrong = LayoutError("this is no checkpoint of a qcow2 image", Where(path), next="begin again")
    if len(state) < _STATE.size or (len(state) - _STATE.size) % 16:
        raise wrong
    magic, version, size, used = _STATE.unpack_from(state)
    numbers = array("Q", state[_STATE.size :])
    if sys.byteorder == "little":
        numbers.byteswap()
    tables = dict(zip(numbers[::2], numbers[1::2], strict=True))
    fits = all(
        index * ENTRIES * CLUSTER < size and place % CLUSTER == 0 and 0 < place < used * CLUSTER
        for index, place in tables.items()
    )
    if magic != _STATE_MAGIC or version not in (2, 3) or not 0 < size <= LIMIT or used < 1 or not fits:
        raise wrong
    return version, size, used, tables
