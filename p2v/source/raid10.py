"""Chunks that lie on several members each: md's RAID 10 in its near, far and offset layouts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from p2v.model import Extent, Range, Source
from p2v.source.bounds import check_read
from p2v.source.striped import check_members, check_size, kinds, whole
from p2v.source.ways import Way, add, common_zeroes, fill


class Raid10:
    """Every chunk near times far times. None is a missing member; ValueError where a chunk has no copy left.

    near: copies side by side in a row. far: copies of all rows, each shifted by near members; a copy's rows lie
    together behind those of the copy before, or with offset right below the row that they repeat.
    member_size: bytes that md uses of each member, all of the shortest one unless given: the place of the far
    copies follows from it. rebuilt: ranges that had to come from another copy because a member failed there.
    Source: md.4, "RAID10"; checked on arrays that the Linux kernel made (tests/source/test_raid10.py).
    """

    def __init__(
        self, members: Sequence[Source | None], chunk: int, name: str, *, near: int = 2, far: int = 1,
        offset: bool = False, member_size: int | None = None, size: int | None = None,
    ) -> None:
        if near < 1 or far < 1 or near * far > len(members):
            raise ValueError(f"{name}: no {near} near and {far} far copies on {len(members)} members")
        self.sector_size = check_members(members, chunk, name)
        self.name = name
        self._members, self._chunk = tuple(members), chunk
        self._near, self._far, self._offset = near, far, offset
        shortest = min(member.size for member in members if member is not None)
        rows = check_size(name, member_size, shortest) // chunk
        chunks = rows // far * len(members) // near
        # Far copies begin behind the rows that are in use, which may be one less than a far-th of the member
        self._stride = chunk if offset else -(-chunks * near * far // len(members)) // far * chunk
        self.size = check_size(name, size, chunks * chunk)
        self.rebuilt: list[Range] = []
        self._lock = threading.Lock()
        self._closed = False
        if not all(any(True for _ in self._copies(number)) for number in range(min(len(members), chunks))):
            raise ValueError(f"{name}: so many members are missing that chunks have no copy left")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, each chunk from the first copy that reads. Raises ReadError in the volume's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        done = 0
        while done < len(buffer):
            number, inside = divmod(offset + done, self._chunk)
            piece = buffer[done : done + self._chunk - inside]
            self._read(number, inside, piece)
            done += len(piece)

    def extents(self) -> Iterator[Extent]:
        """ZERO where a row is zero in all members, else DATA. With a member missing, all is DATA."""
        present = [member for member in self._members if member is not None]
        zeroes = common_zeroes(present) if len(present) == len(self._members) else []
        unit = self._chunk * (self._far if self._offset else 1)
        yield from kinds(((self._begins(first), self._begins(last))
                          for first, last in whole(zeroes, unit, 0, present[0].size)), self.size)

    def close(self) -> None:
        """The members stay open."""
        self._closed = True

    def _begins(self, row: int) -> int:
        """The byte of the volume at which a row of first copies begins."""
        return -(-row * len(self._members) // self._near) * self._chunk

    def _read(self, number: int, inside: int, piece: memoryview) -> None:
        ways = [Way(member, at + inside) for member, at in self._copies(number)]
        start = number * self._chunk + inside
        for detour in fill(self.name, ways, start, piece, self.sector_size):
            with self._lock:
                add(self.rebuilt, Range(start + detour.start, detour.end - detour.start))

    def _copies(self, number: int) -> Iterator[tuple[Source, int]]:
        """The members that are there and have a chunk of the volume, and where it begins on them."""
        row, first = divmod(number * self._near, len(self._members))
        for near in range(self._near):
            down, index = divmod(first + near, len(self._members))
            at = (row * (self._far if self._offset else 1) + down) * self._chunk
            for far in range(self._far):
                member = self._members[(index + far * self._near) % len(self._members)]
                if member is not None:
                    yield member, at + far * self._stride
