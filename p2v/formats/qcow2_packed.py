"""Compressed qcow2, version 3: what its two formats, deflate and zstd, have in common.

Packed clusters lie one behind the other, byte by byte, and may reach across clusters of the file that
follow one another; what does not shrink is stored as it is, in a cluster of its own. A cluster of the
file counts as often as packed ones touch it. qemu reads such an image and writes to it (what it writes is
not compressed). Source: QEMU's docs/interop/qcow2.txt, "Compressed Clusters Descriptor".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TypeAlias

from p2v.errors import Unsupported, Where
from p2v.formats.packing import Packer, Unit, no_resume
from p2v.formats.part import PartFile
from p2v.formats.qcow2 import CLUSTER, COPIED, ENTRIES, LIMIT
from p2v.formats.qcow2 import Writer as PlainWriter

COMPRESSED = 1 << 62  # in an L2 entry
SECTORS = 62 - (CLUSTER.bit_length() - 1 - 8)  # bits from here to 61: additional 512-byte sectors

Packs: TypeAlias = list[tuple[int, "memoryview | bytes"]]  # cluster, its bytes: CLUSTER of them if plain


def begin(path: str, size: int, kind: str, compression: int, compress: Callable[[memoryview], bytes]) -> Writer:
    """Begin PATH.part. compress: a cluster → its packed form; runs in several threads at once."""
    if size <= 0:
        raise ValueError(f"no disk has {size} bytes")
    if size > LIMIT:
        raise Unsupported(f"qcow2 holds no disk of {size} bytes", Where(path),
                          f"its tables end at {LIMIT} bytes", "use raw")
    return Writer(path, size, kind, compression, compress)


class Writer(PlainWriter):
    """The plain writer's tables, filled with packed clusters. compression: as in the header."""

    def __init__(
        self, path: str, size: int, kind: str, compression: int, compress: Callable[[memoryview], bytes]
    ) -> None:
        super().__init__(PartFile(path), size, 3)
        self.compression = compression
        self._path, self._kind = path, kind
        self._touching = array("H", [1])  # per cluster of the file: how many things lie in it
        self._at = self._end = 0  # the file's bytes from at to end are free for packed clusters

        def pack(units: Sequence[Unit]) -> Packs:
            packs: Packs = []
            for cluster, data in units:
                packed = compress(data)
                packs.append((cluster, packed if len(packed) < CLUSTER else data))
            return packs

        self._packer = Packer(path, size, kind, "qcow2", pack, self._emit)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Ascending only. Raises PlanError."""
        self._packer.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Ascending only. Raises PlanError."""
        self._packer.zero(offset, length)

    def checkpoint(self) -> bytes:
        """Raises Unsupported."""
        raise no_resume(self._path, self._kind, "qcow2")

    def finish(self) -> None:
        self._packer.drain()
        super().finish()

    def abort(self) -> None:
        self._packer.cancel()
        super().abort()

    def _emit(self, packs: Packs) -> None:
        """Packed clusters go first, so that plain ones among them tear no gaps."""
        index = packs[0][0] // ENTRIES
        table = self._table(index)
        self._dirty.add(index)
        small = [(cluster, data) for cluster, data in packs if len(data) < CLUSTER]
        place = start = self._room(sum(len(data) for _, data in small))
        for cluster, data in small:
            last = place + len(data) - 1
            table[cluster % ENTRIES] = COMPRESSED | (last // 512 - place // 512) << SECTORS | place
            for host in range(place // CLUSTER, last // CLUSTER + 1):
                self._touching[host] += 1
            place += len(data)
        self._part.write(start, b"".join(data for _, data in small))
        for cluster, data in packs:
            if len(data) == CLUSTER:
                plain = self._take(1)
                table[cluster % ENTRIES] = COPIED | plain
                self._part.write(plain, data)

    def _room(self, length: int) -> int:
        """Where as many bytes may be packed: behind the last ones, where that is in one piece."""
        if self._end != self._used * CLUSTER and self._end - self._at < length:
            self._at = self._end = self._used * CLUSTER
        start = self._at
        self._at += length
        more = -(-(self._at - self._end) // CLUSTER)
        if more > 0:
            first = self._take(more) // CLUSTER
            self._touching[first:] = array("H", bytes(2 * more))
            self._end = self._used * CLUSTER
        return start

    def _take(self, clusters: int) -> int:
        self._touching.extend([1] * clusters)
        return super()._take(clusters)

    def _counts(self, first: int, clusters: int) -> bytes:
        counts = self._touching[first : first + clusters]
        if sys.byteorder == "little":
            counts.byteswap()
        return counts.tobytes()
