"""One digest per chunk of a disk, kept small: parts of a disk that are zero cost nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from p2v.errors import LayoutError
from p2v.ring import CHUNK

ALGORITHM = "blake3"
DIGEST = 32  # bytes
_BLOCK = 1024  # chunks: digests are kept in blocks of this many; a block of zero chunks is not kept


def digest_of(data: memoryview | bytes) -> bytes:
    """The digest of a chunk."""
    from blake3 import blake3

    return blake3(data).digest()


class Digests:
    """The digests of a disk of size bytes, in chunks of CHUNK bytes; the last chunk may be shorter.

    A new one says that all chunks are zero. Blocks of chunks that stay so are never allocated.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"no disk has {size} bytes")
        self.size = size
        self._count = -(-size // CHUNK)
        self._zero = digest_of(bytes(CHUNK))
        self._last_zero = digest_of(bytes(size - (self._count - 1) * CHUNK))
        self._blocks: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (self.digest(index) for index in range(self._count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digests) and self.to_json() == other.to_json() and self.size == other.size

    __hash__ = None  # type: ignore[assignment]  # it changes while a copy runs

    def zero(self, index: int) -> bytes:
        """The digest that chunk index has when it is zero."""
        return self._last_zero if index == self._count - 1 else self._zero

    def digest(self, index: int) -> bytes:
        """The digest of chunk index."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        block = self._blocks.get(index // _BLOCK)
        if block is None:
            return self.zero(index)
        at = index % _BLOCK * DIGEST
        return bytes(block[at : at + DIGEST])

    def put(self, index: int, digest: bytes) -> None:
        """Chunk index has this digest."""
        if not 0 <= index < self._count or len(digest) != DIGEST:
            raise ValueError(f"chunk {index} of {self._count}, a digest of {len(digest)} bytes")
        block = self._blocks.get(index // _BLOCK)
        if block is None:
            block = self._blocks[index // _BLOCK] = self._zero_block(index // _BLOCK)
        at = index % _BLOCK * DIGEST
        block[at : at + DIGEST] = digest

    def not_zero(self, first: int, count: int) -> Iterator[int]:
        """The chunks from first on, count of them, whose digest is not that of zeroes.

        Where whole blocks are zero, no time is spent on them.
        """
        end = first + count
        blocks = range(first // _BLOCK, -(-end // _BLOCK))
        kept = [b for b in blocks if b in self._blocks] if len(blocks) <= len(self._blocks) else \
            sorted(b for b in self._blocks if b in blocks)
        for number in kept:
            low, high = max(first, number * _BLOCK), min(end, (number + 1) * _BLOCK)
            yield from (i for i in range(low, high) if self.digest(i) != self.zero(i))

    def differing(self, other: Digests) -> list[int]:
        """The chunks whose digests are not the same in both, ascending. Raises ValueError for another size."""
        if self.size != other.size:
            raise ValueError(f"digests of {self.size} and of {other.size} bytes")
        kept = {*self.not_zero(0, len(self)), *other.not_zero(0, len(other))}
        return sorted(index for index in kept if self.digest(index) != other.digest(index))

    def to_json(self) -> list[str | int]:
        """A number stands for that many zero chunks, text for the digests of others in hex, end to end."""
        runs: list[str | int] = []
        done = 0
        for run in self._runs():
            if run.start > done:
                runs.append(run.start - done)
            runs.append(b"".join(self.digest(index) for index in run).hex())
            done = run.stop
        if done < self._count:
            runs.append(self._count - done)
        return runs

    @classmethod
    def from_json(cls, size: int, runs: Sequence[object]) -> Digests:
        """What to_json() wrote. Raises LayoutError when it does not cover size bytes exactly."""
        digests = cls(size)
        index = 0
        for run in runs:
            if isinstance(run, int) and not isinstance(run, bool) and run > 0:
                index += run
                continue
            data = _unhex(run)
            if index + len(data) // DIGEST > len(digests):
                break
            for at in range(0, len(data), DIGEST):
                digests.put(index, data[at : at + DIGEST])
                index += 1
        if index != len(digests):
            raise LayoutError("the digests do not fit their disk",
                              why=f"a disk of {size} bytes has {len(digests)} chunks",
                              next="take the manifest that the copy wrote")
        return digests

    def _zero_block(self, number: int) -> bytearray:
        block = bytearray(self._zero * _BLOCK)
        last = self._count - 1
        if last // _BLOCK == number:
            block[last % _BLOCK * DIGEST : (last % _BLOCK + 1) * DIGEST] = self._last_zero
        return block

    def _runs(self) -> Iterator[range]:
        """Runs of chunks that are not zero."""
        numbered = enumerate(self.not_zero(0, self._count))
        for _, run in groupby(numbered, lambda pair: pair[1] - pair[0]):
            chunks = [index for _, index in run]
            yield range(chunks[0], chunks[-1] + 1)


def _unhex(run: object) -> bytes:
    try:
        data = bytes.fromhex(run) if isinstance(run, str) else b""
    except ValueError:
        data = b""
    if not data or len(data) % DIGEST:
        raise LayoutError("the digests are damaged", why="a run is neither a count nor digests in hex",
                          next="take the manifest that the copy wrote")
    return data
