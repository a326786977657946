"""Sources of which one or two can be lost: RAID 4, 5 and 6, an LDM RAID-5 volume, a stripe set with parity."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from p2v.errors import ReadError, Where
from p2v.model import Extent, Range, Source
from p2v.source.bounds import check_read
from p2v.source.device import DeviceGone
from p2v.source.striped import check_members, check_size, kinds, whole
from p2v.source.ways import Way, add, common_zeroes, fill

if TYPE_CHECKING:
    import numpy as np

    Bytes: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

LAYOUTS = ("left-asymmetric", "right-asymmetric", "left-symmetric", "right-symmetric", "parity-first", "parity-last")
"""mdadm's names; the place in the list is the number in an md superblock."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Which member has what in one row. data: in the volume's order. q: None but in RAID 6."""

    data: tuple[int, ...]
    p: int
    q: int | None


class Parity:
    """Rows of one chunk of each member, of which one holds P (the others' XOR), and in RAID 6 one more Q.

    None is a missing member, whose chunks are computed. So is a range that a member cannot read: rebuilt lists
    those, in the volume's bytes. chunk: bytes. layout: one of LAYOUTS; RAID 4 is "parity-last". LDM's RAID-5 is
    "left-symmetric". Q is over GF(256) with the polynomial 0x11d and the generator 2, its powers counted along
    the members from the one behind Q. Raises ValueError for more missing members than the level bears.
    Source: md.4 and the kernel's names of the layouts; checked on arrays that the Linux kernel made
    (tests/source/test_parity.py) and, for LDM, on Windows Server 2003's own (volumes of the corpus).
    """

    def __init__(
        self, members: Sequence[Source | None], chunk: int, name: str, *, level: int, layout: str, size: int,
    ) -> None:
        if level not in (4, 5, 6) or layout not in LAYOUTS or (level == 4 and layout != "parity-last"):
            raise ValueError(f"{name}: no RAID {level} is {layout}")
        self._spare = 2 if level == 6 else 1
        if len(members) <= self._spare or sum(member is None for member in members) > self._spare:
            raise ValueError(f"{name}: RAID {level} cannot be read from these of its {len(members)} members")
        self.sector_size = check_members(members, chunk, name)
        self.name = name
        self._members, self._chunk = tuple(members), chunk
        rows = min(member.size for member in members if member is not None) // chunk
        self.size = check_size(name, size, rows * chunk * (len(members) - self._spare))
        self._rows = [_row(number, len(members), self._spare, layout) for number in range(len(members))]
        self.rebuilt: list[Range] = []
        self._lock = threading.Lock()
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, chunk by chunk; first those that can be read, then those that are computed.

        Raises ReadError in the volume's own bytes.
        """
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        lost = []
        have: dict[tuple[int, int], tuple[int, memoryview]] = {}
        for start, row, column, piece in self._pieces(offset, buffer):
            member = self.row(row).data[column]
            at = row * self._chunk + start % self._chunk
            source = self._members[member]
            if source is None:
                lost.append((start, row, member, at, piece))
                continue
            for detour in fill(self.name, [Way(source, at), Way(_Computed(self, row, member, {}), at)], start, piece,
                               self.sector_size):
                with self._lock:
                    add(self.rebuilt, Range(start + detour.start, detour.end - detour.start))
            have[row, member] = at, piece
        for start, row, member, at, piece in lost:
            fill(self.name, [Way(_Computed(self, row, member, have), at)], start, piece, self.sector_size)

    def extents(self) -> Iterator[Extent]:
        """ZERO where a row is zero in all members that are there, else DATA."""
        present = [member for member in self._members if member is not None]
        wide = self._chunk * (len(self._members) - self._spare)
        rows = whole(common_zeroes(present), self._chunk, 0, min(member.size for member in present))
        yield from kinds(((first * wide, last * wide) for first, last in rows), self.size)

    def close(self) -> None:
        """The members stay open."""
        self._closed = True

    def _pieces(self, offset: int, buffer: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
        """For each chunk that a read touches: where in the volume, row, column, and its part of buffer."""
        done = 0
        while done < len(buffer):
            number, inside = divmod(offset + done, self._chunk)
            row, column = divmod(number, len(self._members) - self._spare)
            piece = buffer[done : done + self._chunk - inside]
            yield offset + done, row, column, piece
            done += len(piece)

    def row(self, number: int) -> _Row:
        """Which member has what in a row."""
        return self._rows[number % len(self._rows)]

    def member(self, number: int, offset: int, buffer: memoryview) -> ReadError | None:
        """Fill buffer from a member, or say why not."""
        source = self._members[number]
        if source is None:
            return DeviceGone(f"member {number} of {self.name} is missing", Where(self.name),
                              "its disk was not given", "give the missing disk")
        try:
            source.read_into(offset, buffer)
        except ReadError as error:
            return error
        return None


class _Computed:
    """A member's bytes in one row, as the other members tell them.

    have: bytes of this row (and others) that a read has already: (row, member) → where they begin, and they.
    """

    def __init__(
        self, parity: Parity, row: int, member: int, have: Mapping[tuple[int, int], tuple[int, memoryview]],
    ) -> None:
        self._parity, self._number, self._lost, self._have = parity, row, member, have
        self._row = parity.row(row)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer with what the lost member had from offset on. Raises ReadError in the members' bytes."""
        import numpy as np

        row, length = self._row, len(buffer)
        known: dict[int, Bytes] = {}
        errors: list[ReadError] = []
        needed = [*(member for member in row.data if member != self._lost), row.p]
        for member in needed:
            self._gather(member, offset, length, known, errors)
        if errors and row.q is not None:
            self._gather(row.q, offset, length, known, errors)
        # In a row, what lies at one offset of the members belongs together: their errors name our range as well
        if len(errors) > (row.q is not None):
            raise errors[0] if len(errors) == 1 else _several(errors, offset, length)
        found = np.frombuffer(buffer, np.uint8)
        found[:] = self._from_p(known) if not errors else self._from_q(known)

    def _gather(
        self, member: int, offset: int, length: int, known: dict[int, Bytes], errors: list[ReadError]
    ) -> None:
        import numpy as np

        at, piece = self._have.get((self._number, member), (0, memoryview(b"")))
        if at <= offset and offset + length <= at + len(piece):
            known[member] = np.frombuffer(piece[offset - at : offset - at + length], np.uint8)
            return
        fresh = bytearray(length)
        error = self._parity.member(member, offset, memoryview(fresh))
        if error is None:
            known[member] = np.frombuffer(fresh, np.uint8)
        else:
            errors.append(error)

    def _from_p(self, known: Mapping[int, Bytes]) -> Bytes:
        """All others, XORed."""
        first, *others = (known[member] for member in (*self._row.data, self._row.p) if member != self._lost)
        found = first.copy()
        for other in others:
            found ^= other
        return found

    def _from_q(self, known: Mapping[int, Bytes]) -> Bytes:
        """With Q's help, as either P or one more of the data is lost.

        Of two lost x and y: P' = Dx + Dy and Q' = g^x Dx + g^y Dy, so Dx = (g^y P' + Q') / (g^y + g^x).
        Source: H. P. Anvin, "The mathematics of RAID-6".
        """
        row = self._row
        assert row.q is not None
        power = _powers(row, len(row.data) + 2)
        q = known[row.q].copy()
        for member in row.data:
            if member in known:
                q ^= _times(power[member])[known[member]]
        if row.p not in known:
            return _times(_inverse(power[self._lost]))[q]
        other = next(member for member in row.data if member != self._lost and member not in known)
        p = known[row.p].copy()
        for member in row.data:
            if member in known:
                p ^= known[member]
        mixed = _times(power[other])[p]
        mixed ^= q
        return _times(_inverse(power[other] ^ power[self._lost]))[mixed]


def _several(errors: Sequence[ReadError], offset: int, length: int) -> ReadError:
    """Too many members fail: nobody knows yet in which of these bytes they do so together."""
    why = "; ".join(f"{error.what} ({error.where})" for error in errors)
    kind = DeviceGone if all(isinstance(error, DeviceGone) for error in errors) else ReadError
    return kind("more members fail here than the parity makes up for", Where("the members", offset, length), why,
                errors[0].next)


def _row(number: int, members: int, spare: int, layout: str) -> _Row:
    """The row of this number; it repeats after as many rows as there are members."""
    if layout == "parity-first":
        p = 0
    elif layout == "parity-last":
        p = members - spare
    else:
        p = number % members if layout.startswith("right") else members - 1 - number % members
    q = (p + 1) % members if spare == 2 else None
    if layout.endswith("-symmetric"):
        data = tuple((p + spare + column) % members for column in range(members - spare))
    else:
        data = tuple(member for member in range(members) if member not in (p, q))
    return _Row(data, p, q)


def _powers(row: _Row, members: int) -> dict[int, int]:
    """Each data member's power of 2 in Q: counted along the members from the one behind Q."""
    assert row.q is not None
    powers, power = {}, 1
    for step in range(1, members):
        member = (row.q + step) % members
        if member != row.p:
            powers[member] = power
            power = _double(power)
    return powers


def _double(number: int) -> int:
    return (number << 1) ^ (0x11D if number & 0x80 else 0)


def _product(one: int, two: int) -> int:
    result = 0
    while two:
        if two & 1:
            result ^= one
        one, two = _double(one), two >> 1
    return result


@lru_cache(256)
def _times(factor: int) -> Bytes:
    """The products of all 256 numbers with factor."""
    import numpy as np

    return np.array([_product(number, factor) for number in range(256)], np.uint8)


@lru_cache(256)
def _inverse(number: int) -> int:
    return next(other for other in range(1, 256) if _product(number, other) == 1)
