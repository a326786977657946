"""Sources to test with, and the checks that every source, format and fixer must pass.

For other people's code too: nothing here needs pytest; a failed check is an AssertionError that says
what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from p2v.errors import ReadError, Where
from p2v.model import SECTOR, Extent, Kind, Range, Source, read

_MOST_EDGES = 256  # edges at which check_source reads; of more, evenly chosen ones


class MemorySource:
    """Bytes as a source. extents: all DATA unless given."""

    def __init__(
        self, data: bytes | bytearray, name: str = "memory", sector_size: int = SECTOR,
        extents: Sequence[Extent] | None = None,
    ) -> None:
        self.name = name
        self.size = len(data)
        self.sector_size = sector_size
        self._data = memoryview(data)
        self._extents = extents
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ValueError past the end and after close()."""
        if self._closed or offset < 0 or offset + len(buffer) > self.size:
            raise ValueError(f"{self.name}: no bytes {offset:#x} to {offset + len(buffer):#x}")
        buffer[:] = self._data[offset : offset + len(buffer)]

    def extents(self) -> Iterable[Extent]:
        """Those given, or one of DATA."""
        if self._extents is not None:
            return self._extents
        return [Extent(0, self.size, Kind.DATA)] if self.size else []

    def close(self) -> None:
        """Reading is a ValueError from now on."""
        self._closed = True


class FaultySource:
    """A source with bad spots: reading any byte of them is a ReadError that names the first.

    failed: each range that a read has run into, in order.
    """

    def __init__(self, source: Source, bad: Sequence[Range]) -> None:
        self.name = source.name
        self.size = source.size
        self.sector_size = source.sector_size
        self.bad = tuple(sorted(bad, key=lambda r: r.offset))
        self.failed: list[Range] = []
        self._source = source

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, or raise ReadError naming the part of the read that is bad."""
        end = offset + len(buffer)
        for spot in self.bad:
            start, stop = max(spot.offset, offset), min(spot.end, end)
            if start < stop:
                self.failed.append(Range(start, stop - start))
                raise ReadError(f"{self.name}: {stop - start} bytes cannot be read",
                                Where(self.name, start, stop - start), "a test said so", "nothing")
        self._source.read_into(offset, buffer)

    def extents(self) -> Iterable[Extent]:
        """The source's own: a medium does not know its bad spots."""
        return self._source.extents()

    def close(self) -> None:
        """Closes the source below: a faulty disk stands for that disk."""
        self._source.close()


def check_source(source: Source, expected: bytes, edges: Sequence[int] = ()) -> None:
    """Does a source keep the contract of model.Source, with these bytes?

    edges: offsets where its parts meet, besides those that its extents show. Leaves it open.
    Raises AssertionError.
    """
    _expect(isinstance(source, Source), "is no Source")
    _expect(bool(source.name), "has no name")
    _expect(source.size == len(expected), f"has {source.size} bytes, expected {len(expected)}")
    _expect(source.sector_size in (512, 4096), f"has sectors of {source.sector_size} bytes")
    shown = list(source.extents())
    _check_extents(shown, expected)
    every = sorted({0, 512, 4096, len(expected) // 2, len(expected), *edges,
                    *(e.offset for e in shown), *(e.end for e in shown)})
    chosen = every[:: -(-len(every) // _MOST_EDGES)]
    reads = [(max(edge - before, 0), min(edge + after, len(expected)))
             for edge in chosen for before, after in ((1, 0), (0, 1), (1, 1), (513, 700), (0, 0))
             if edge <= len(expected)]
    reads += [(first, last) for first, last in zip(chosen, chosen[3:], strict=False) if last <= len(expected)]
    reads += [(max(len(expected) - 1000, 0), len(expected)), (0, len(expected))]
    _check_reads(source, expected, reads)
    _check_outside(source)
    _check_threads(source, expected, reads)


def _check_extents(shown: Sequence[Extent], expected: bytes) -> None:
    at = 0
    for extent in shown:
        _expect(extent.offset == at, f"an extent begins at {extent.offset:#x}, expected {at:#x}")
        at = extent.end
        if extent.kind is Kind.ZERO:
            _expect(not any(memoryview(expected)[extent.offset : at].tobytes().strip(b"\0")),
                    f"bytes {extent.offset:#x} to {at:#x} are called ZERO and are not")
    _expect(at == len(expected), f"the extents end at {at:#x}, expected {len(expected):#x}")


def _check_reads(source: Source, expected: bytes, reads: Iterable[tuple[int, int]]) -> None:
    for start, end in reads:
        guarded = bytearray(b"\xa5" * (end - start + 2))  # a byte each side shows a write outside
        source.read_into(start, memoryview(guarded)[1 : end - start + 1])
        _expect(guarded[1:-1] == expected[start:end], f"bytes {start:#x} to {end:#x} are wrong")
        _expect(guarded[0] == guarded[-1] == 0xA5, f"reading {start:#x} to {end:#x} wrote outside the buffer")


def _check_outside(source: Source) -> None:
    for offset, length in ((source.size, 1), (max(source.size - 1, 0), 2), (-1, 1), (source.size + 1, 0)):
        try:
            read(source, offset, length)
        except ValueError:
            continue
        _expect(False, f"{length} bytes at {offset:#x} could be read, outside its {source.size} bytes")


def _check_threads(source: Source, expected: bytes, reads: Sequence[tuple[int, int]]) -> None:
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(_check_reads, source, expected, mine) for mine in (reads, reads[::-1])]:
            done.result()


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(f"the source {otherwise}" if not otherwise.startswith("the ") else otherwise)
