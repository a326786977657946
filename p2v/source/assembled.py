"""A disk put together from pieces of other sources: what a collapsed set becomes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from p2v.errors import ReadError
from p2v.model import SECTOR, Extent, Kind, Source
from p2v.source.bounds import check_read, seen_through


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes offset to offset + length of the disk are source's from byte at on; None: zeroes."""

    offset: int
    length: int
    source: Source | None = None
    at: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0 or self.at < 0:
            raise ValueError(f"no part: offset {self.offset}, length {self.length}, from {self.at}")

    @property
    def end(self) -> int:
        """The first byte past the part."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part, or what is left of one beside the patches; or a patch, whose bytes data are."""

    part: Part
    data: bytes = b""


class Assembled:
    """parts side by side, from 0 to size without a gap, in any order; patches, as (offset, bytes), lie on top.

    What is under a patch is never read. Raises ValueError where parts or patches overlap or leave the disk, or a
    source has no such bytes.
    """

    def __init__(
        self, parts: Sequence[Part], name: str, *, size: int, sector_size: int = SECTOR,
        patches: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        self.name = name
        self.size = size
        self.sector_size = sector_size
        self._parts = sorted(parts, key=lambda part: part.offset)
        self._patches = sorted((offset, bytes(data)) for offset, data in patches if data)
        _check_tiling(name, self._parts, size)
        _check_patches(name, self._patches, size)
        self._pieces = list(_laid_over(self._parts, self._patches))
        self._starts = [piece.part.offset for piece in self._pieces]
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, each piece straight from the source that has it. Raises ReadError in the disk's own bytes."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        index, done = bisect_right(self._starts, offset) - 1, 0
        while done < len(buffer):
            piece = self._pieces[index]
            part, inside = piece.part, offset + done - piece.part.offset
            target = buffer[done : done + part.length - inside]
            if part.source is None:
                _fill_in(piece, inside, target)
            else:
                at = part.at + inside
                try:
                    part.source.read_into(at, target)
                except ReadError as error:
                    raise seen_through(error, self.name, at, len(target), offset + done - at) from error
            done += len(target)
            index += 1

    def origin(self, offset: int) -> tuple[str, int]:
        """What a byte is read from, and where in that: a disk, or a volume over several disks."""
        part = self._pieces[bisect_right(self._starts, offset) - 1].part
        return (part.source.name, part.at + offset - part.offset) if part.source else (self.name, offset)

    def extents(self) -> Iterator[Extent]:
        """The sources' own; a patch is DATA."""
        patches = iter(self._patches)
        patch = next(patches, None)
        for extent in self._below():
            at = extent.offset
            while at < extent.end:
                while patch is not None and patch[0] + len(patch[1]) <= at:
                    patch = next(patches, None)
                if patch is None or patch[0] >= extent.end:
                    yield Extent(at, extent.end - at, extent.kind)
                    break
                if at < patch[0]:
                    yield Extent(at, patch[0] - at, extent.kind)
                start, at = max(at, patch[0]), min(extent.end, patch[0] + len(patch[1]))
                yield Extent(start, at - start, Kind.DATA)

    def close(self) -> None:
        """The sources stay open."""
        self._closed = True

    def _below(self) -> Iterator[Extent]:
        """The parts' extents, as if there were no patches."""
        for part in self._parts:
            if part.source is None:
                yield Extent(part.offset, part.length, Kind.ZERO)
                continue
            for extent in part.source.extents():
                start, end = max(extent.offset, part.at), min(extent.end, part.at + part.length)
                if start < end:
                    yield Extent(part.offset + start - part.at, end - start, extent.kind)
                if extent.end >= part.at + part.length:
                    break


def _fill_in(piece: _Piece, inside: int, target: memoryview) -> None:
    if piece.data:
        target[:] = piece.data[inside : inside + len(target)]
        return
    done = 0
    while done < len(target):
        step = min(len(target) - done, len(_ZEROES))
        target[done : done + step] = _ZEROES[:step]
        done += step


_ZEROES = memoryview(bytes(1 << 16))


def _check_tiling(name: str, parts: Sequence[Part], size: int) -> None:
    at = 0
    for part in parts:
        if part.offset != at:
            raise ValueError(f"{name}: a part begins at {part.offset:#x}, the one before ends at {at:#x}")
        if part.source is not None and part.at + part.length > part.source.size:
            raise ValueError(f"{name}: {part.source.name} has {part.source.size} bytes, not "
                             f"{part.length} from {part.at:#x} on")
        at = part.end
    if at != size:
        raise ValueError(f"{name}: the parts end at {at}, the disk at {size}")


def _check_patches(name: str, patches: Sequence[tuple[int, bytes]], size: int) -> None:
    at = 0
    for offset, data in patches:
        if offset < at:
            raise ValueError(f"{name}: two patches at {offset:#x}")
        at = offset + len(data)
    if at > size:
        raise ValueError(f"{name}: a patch ends at {at:#x}, behind the disk's {size} bytes")


def _laid_over(parts: Iterable[Part], patches: Sequence[tuple[int, bytes]]) -> Iterator[_Piece]:
    """parts and patches as one row of pieces."""
    pending = list(reversed(patches))
    covered = 0  # up to here a patch is on top
    for part in parts:
        at = max(part.offset, covered)
        while pending and pending[-1][0] < part.end:
            offset, data = pending.pop()
            if at < offset:
                yield _Piece(_cut(part, at, offset))
            yield _Piece(Part(offset, len(data)), data)
            at = covered = offset + len(data)
        if at < part.end:
            yield _Piece(_cut(part, at, part.end))


def _cut(part: Part, start: int, end: int) -> Part:
    return replace(part, offset=start, length=end - start, at=part.at + start - part.offset)
