"""What partclone's and ntfsclone's images have in common: a bitmap of used blocks, and those blocks in order.

Random access goes through the bitmap and two counts for each 128 bytes of it: blocks used before, and runs of
used blocks begun before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from p2v.errors import LayoutError, ReadError, Where
from p2v.model import SECTOR, Extent, Kind, Source
from p2v.source.bounds import check_read

CHUNK = 128  # bytes of the bitmap for one count
STEP = 1 << 22  # blocks, or bytes of bitmap, looked at in one go
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)


class BlockIndex:
    """Which of count blocks are used. bits: their bitmap, lowest bit first; bits past count do not count."""

    def __init__(self, bits: NDArray[np.uint8], count: int) -> None:
        self.count = count
        self._bits = np.zeros(-(-count // (8 * CHUNK)) * CHUNK, np.uint8)
        self._bits[: -(-count // 8)] = bits[: -(-count // 8)]
        if count % 8:
            self._bits[count // 8] &= (1 << count % 8) - 1
        used = np.zeros(len(self._bits) // CHUNK + 1, np.int64)
        runs = np.zeros_like(used)
        for at in range(0, len(self._bits), STEP):
            piece = self._bits[at : at + STEP]
            chunks = slice(at // CHUNK + 1, at // CHUNK + 1 + len(piece) // CHUNK)
            used[chunks] = _ONES[piece].reshape(-1, CHUNK).sum(axis=1)
            runs[chunks] = _ONES[self._begun(at, at + len(piece))].reshape(-1, CHUNK).sum(axis=1)
        self._used, self._runs = np.cumsum(used), np.cumsum(runs)
        self.total = int(self._used[-1])

    def rank(self, block: int) -> int:
        """Used blocks before this one."""
        chunk, start = block // (8 * CHUNK), block // (8 * CHUNK) * CHUNK
        return int(self._used[chunk]) + self._ones(self._bits[start : block // 8 + 1], block)

    def runs_before(self, block: int) -> int:
        """Runs of used blocks that begin before this one."""
        chunk, start = block // (8 * CHUNK), block // (8 * CHUNK) * CHUNK
        return int(self._runs[chunk]) + self._ones(self._begun(start, block // 8 + 1), block)

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """first to end as (start, count, used); a run may come in several pieces."""
        for at in range(first, end, STEP):
            count = min(STEP, end - at)
            lead = at % 8
            bits = np.unpackbits(self._bits[at // 8 : -(-(at + count) // 8)], bitorder="little")[lead : lead + count]
            edges = np.flatnonzero(np.diff(bits)) + 1
            bounds = [0, *edges.tolist(), count]
            used = bool(bits[0])
            for start, stop in itertools.pairwise(bounds):
                yield at + start, stop - start, used
                used = not used

    def _begun(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bitmap's bytes start to stop with only the first bit of each run set."""
        piece = self._bits[start:stop]
        before = np.empty_like(piece)
        before[1:] = piece[:-1] >> 7
        before[:1] = self._bits[start - 1] >> 7 if start else 0
        begun: NDArray[np.uint8] = piece & ~(piece << np.uint8(1) | before)
        return begun

    @staticmethod
    def _ones(piece: NDArray[np.uint8], block: int) -> int:
        """Bits set in piece, whose last byte is the block's, before the block's own."""
        if not len(piece):
            return 0
        last = int(piece[-1]) & ((1 << block % 8) - 1)
        return int(_ONES[piece[:-1]].sum()) + last.bit_count()


class Blocks(Protocol):
    """How an image stores its used blocks."""

    def load(self, block: int, offset: int, view: memoryview) -> None:
        """Fill view from byte offset of a used block on; all blocks that it touches are one used run."""


class BlockImage:
    """A partition out of an image of its used blocks; the others read as zero.

    file: the image; closed with this. size: of the partition; what lies past the last block is zero.
    """

    def __init__(self, file: Source, size: int, block_size: int, index: BlockIndex, blocks: Blocks) -> None:
        self.name = file.name
        self.size = size
        self.sector_size = SECTOR
        self._file = file
        self._block_size = block_size
        self._index = index
        self._blocks = blocks
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError, also where a checksum of the image is wrong."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        size, end = self._block_size, offset + len(buffer)
        last = min(-(-end // size), self._index.count)
        done = offset
        for first, count, used in self._index.pieces(offset // size, last):
            stop = min((first + count) * size, end)
            view = buffer[done - offset : stop - offset]
            if used:
                self._load(done, view)
            else:
                view[:] = bytes(len(view))
            done = stop
        buffer[done - offset :] = bytes(end - done)

    def _load(self, offset: int, view: memoryview) -> None:
        try:
            self._blocks.load(offset // self._block_size, offset % self._block_size, view)
        except (LayoutError, ReadError) as error:
            kind = type(error) if isinstance(error, ReadError) else ReadError
            why = "; ".join(part for part in (error.why, f"that is {error.where}") if part)
            raise kind(error.what, Where(self.name, offset, len(view)), why, error.next) from error

    def extents(self) -> Iterator[Extent]:
        """Used blocks are DATA, the others ZERO."""
        check_read(self.name, self.size, 0, 0, self._closed)
        start, kind, end = 0, Kind.DATA, 0
        for first, count, used in self._index.pieces(0, self._index.count):
            now = Kind.DATA if used else Kind.ZERO
            if now is not kind and first:
                yield Extent(start, end - start, kind)
                start = end
            kind, end = now, min((first + count) * self._block_size, self.size)
        if end < self.size and kind is Kind.DATA and end > start:
            yield Extent(start, end - start, kind)
            start = end
        yield Extent(start, self.size - start, kind if end == self.size else Kind.ZERO)

    def close(self) -> None:
        """The image is closed too."""
        self._closed = True
        self._file.close()
