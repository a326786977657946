"""Sources that take turns, chunk by chunk: RAID 0, an LDM stripe, a stripe set of NT 4."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from p2v.errors import ReadError
from p2v.model import Extent, Kind, Source
from p2v.source.bounds import check_read, seen_through
from p2v.source.ways import common_zeroes


@dataclass(frozen=True, slots=True)
class _Zone:
    """Rows of chunks over the members that are long enough.

    offset: of the volume's bytes. start, end: of each member's bytes. turn: whose turn the first chunk is.
    """

    offset: int
    start: int
    end: int
    members: tuple[Source, ...]
    turn: int

    @property
    def length(self) -> int:
        """Bytes of the volume."""
        return (self.end - self.start) * len(self.members)


class Striped:
    """The members' chunks in turn: chunk 0 of the first, chunk 0 of the second, and so on.

    chunk: bytes. size: of the volume; all whole rows unless given.
    zones: "" for sets whose members count alike, each as far as the shortest one goes. Linux md goes on with the
    longer members alone where a shorter one ends, each such stretch being a zone: "original" where whose turn it
    is follows from the chunk's number in the volume (md's layout 1, all kernels before 3.14), "alternate" from
    its number in the zone (layout 2). Source: mdadm's md.4, "RAID0", and the kernel's names for the two.
    Raises ValueError for members of different sector sizes, or a size that they do not have.
    """

    def __init__(
        self, members: Sequence[Source], chunk: int, name: str, *, size: int | None = None, zones: str = "",
    ) -> None:
        if zones not in ("", "original", "alternate"):
            raise ValueError(f"{name}: no such zones: {zones}")
        self.sector_size = check_members(members, chunk, name)
        self.name = name
        self._chunk = chunk
        self._zones = list(_zones(members, chunk, zones))
        self._starts = [zone.offset for zone in self._zones]
        self.size = check_size(name, size, self._zones[-1].offset + self._zones[-1].length)
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, chunk by chunk. Raises ReadError in the volume's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        done = 0
        while done < len(buffer):
            zone = self._zones[bisect_right(self._starts, offset + done) - 1]
            number, inside = divmod(offset + done - zone.offset, self._chunk)
            member = zone.members[(zone.turn + number) % len(zone.members)]
            at = zone.start + number // len(zone.members) * self._chunk + inside
            piece = buffer[done : done + self._chunk - inside]
            try:
                member.read_into(at, piece)
            except ReadError as error:
                raise seen_through(error, self.name, at, len(piece), offset + done - at) from error
            done += len(piece)

    def extents(self) -> Iterator[Extent]:
        """ZERO where a row is zero in all members, else DATA."""
        yield from kinds(self._zeroes(), self.size)

    def close(self) -> None:
        """The members stay open."""
        self._closed = True

    def _zeroes(self) -> Iterator[tuple[int, int]]:
        for zone in self._zones:
            for first, last in whole(common_zeroes(zone.members), self._chunk, zone.start, zone.end):
                wide = self._chunk * len(zone.members)
                yield zone.offset + first * wide, zone.offset + last * wide


def check_members(members: Sequence[Source | None], chunk: int, name: str) -> int:
    """The members' sector size. Raises ValueError for none, different ones, or a chunk that they do not fit."""
    sizes = {member.sector_size for member in members if member is not None}
    if len(sizes) != 1:
        raise ValueError(f"{name}: members of one sector size are needed")
    sector = sizes.pop()
    if chunk <= 0 or chunk % sector:
        raise ValueError(f"{name}: chunks of {chunk} bytes are no number of sectors")
    return sector


def check_size(name: str, size: int | None, most: int) -> int:
    """size, or most where none is given. Raises ValueError for more than most."""
    if size is None:
        return most
    if not 0 <= size <= most:
        raise ValueError(f"{name}: {size} bytes asked for, the members hold {most}")
    return size


def whole(
    ranges: Iterable[tuple[int, int]], unit: int, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """(first, last) numbers of whole units inside ranges; unit 0 begins at start, none ends behind end."""
    for low, high in ranges:
        first, last = -(-(max(low, start) - start) // unit), (min(high, end) - start) // unit
        if first < last:
            yield first, last


def kinds(zeroes: Iterable[tuple[int, int]], size: int) -> Iterator[Extent]:
    """Extents from 0 to size: ZERO where zeroes (ascending) say so, else DATA."""
    at = 0
    for start, end in zeroes:
        end = min(end, size)
        if end <= start:
            break
        if start > at:
            yield Extent(at, start - at, Kind.DATA)
        yield Extent(start, end - start, Kind.ZERO)
        at = end
    if at < size:
        yield Extent(at, size - at, Kind.DATA)


def _zones(members: Sequence[Source], chunk: int, zones: str) -> Iterator[_Zone]:
    lengths = [member.size // chunk * chunk for member in members]
    offset = start = 0
    for end in sorted(set(lengths)) if zones else [min(lengths)]:
        taking_part = tuple(m for m, length in zip(members, lengths, strict=True) if length > start)
        turn = offset // chunk if zones == "original" else 0
        zone = _Zone(offset, start, end, taking_part or tuple(members), turn)
        yield zone
        offset, start = offset + zone.length, end
