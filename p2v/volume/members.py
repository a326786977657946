"""Where a set's metadata may lie: whole disks and their partitions, each as a source of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from p2v.errors import Finding, ReadError, Severity, Where
from p2v.model import Member, Partition, Source, Volume, read
from p2v.source.window import Window
from p2v.volume import gpt, mbr


@dataclass(frozen=True, slots=True)
class Place:
    """A whole disk, or a partition of one.

    source: its bytes. offset: where they begin on the disk. partition: its entry in an MBR's table; None for a
    whole disk and in a GPT. covered: of a whole disk, the byte ranges (start, end) that its own tables give to
    partitions.
    """

    disk: str
    source: Source
    offset: int
    whole: bool = True
    partition: Partition | None = None
    covered: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """What the user would call it."""
        return self.disk if self.whole else self.source.name

    @property
    def claim(self) -> Member:
        """All of it: no volume by itself."""
        return Member(self.disk, self.offset, self.source.size)

    def in_a_partition(self, offset: int, length: int) -> bool:
        """Does this disk's table give any of these bytes to a partition?"""
        return any(start < offset + length and offset < end for start, end in self.covered)

    def where(self, offset: int, length: int, item: str = "") -> Where:
        """Bytes of it, as bytes of the disk."""
        return Where(self.disk, self.offset + offset, length, item)


def places(disks: Mapping[str, Source]) -> Iterator[Place]:
    """Every disk, followed by its partitions. What is wrong with the tables is told by their own readers."""
    for disk, source in disks.items():
        found = [v for v in mbr.find({disk: source}) if isinstance(v, Volume) and v.partition]
        found += [v for v in gpt.find({disk: source}) if isinstance(v, Volume)]
        covered = tuple((m.offset, m.offset + m.length) for v in found for m in v.members)
        yield Place(disk, source, 0, covered=covered)
        for volume in found:
            yield Place(disk, volume.source, volume.members[0].offset, False, volume.partition)


def look(place: Place, offset: int, length: int, what: str) -> bytes | Finding:
    """Bytes of a place in which metadata may lie; b"" where it has none; a finding where they cannot be read."""
    if offset < 0 or offset + length > place.source.size:
        return b""
    try:
        return read(place.source, offset, length)
    except ReadError as error:
        return Finding(f"{place.name}: nobody can tell whether {what} is here", place.where(offset, length),
                       f"{error.what}; a member of a set that is taken for a plain disk may be an old copy",
                       "if this disk is no member of a set: nothing; otherwise rescue it first (p2v image)",
                       Severity.WARNING)


def window(place: Place, offset: int, length: int, name: str) -> tuple[Window, Member] | None:
    """A part of a place, and where it lies on the disk; None where the place has no such bytes."""
    if offset < 0 or length <= 0 or offset + length > place.source.size:
        return None
    return Window(place.source, offset, length, name), Member(place.disk, place.offset + offset, length)
