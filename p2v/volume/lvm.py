"""LVM2: volume groups over disks and partitions; linear, striped and mirrored logical volumes are read.

A physical volume is no volume by itself. The newest text (highest seqno) of a group counts for all of it; a
mirror ("mirror", or "raid1" whose copies lie in one piece) is given as a Mirror, its leg chosen elsewhere. LVM
keeps no word on which copy is current but which disks were there at the last change, so generation is the seqno of the
text on the copy's own disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2v.errors import Finding, LayoutError, Severity
from p2v.model import SECTOR, Leg, Member, Mirror, Origin, Source, Volume
from p2v.source.linear import Linear
from p2v.source.striped import Striped
from p2v.source.window import Window
from p2v.volume import md
from p2v.volume.lvmlabel import PhysicalVolume, read_physical_volume
from p2v.volume.lvmtext import Node
from p2v.volume.members import places

NAME = "lvm"
MOST_PARTS = 10_000  # of one volume
MOST_DEEP = 4  # volumes in volumes: a mirror's copy, a stripe of it
MIRRORS = {"mirror": "mirrors", "raid1": "raids"}
GIVE = "give all disks of the volume group"


class Unreadable(Exception):
    """Why a logical volume cannot be put together, in words. Never leaves this module."""


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Member | Finding]:
    """The logical volumes on these disks. A Member is a physical volume, which no other reader may read."""
    found: list[PhysicalVolume] = []
    for place in places(disks):
        try:
            volume = read_physical_volume(place)
        except LayoutError as error:
            yield place.claim
            yield error.as_finding()
            continue
        if isinstance(volume, Finding):
            yield volume
        elif volume and not md.is_member(place):  # else it lies inside the array
            yield place.claim
            found.append(volume)
    names = dict.fromkeys(name for volume in found for name in volume.group or ())
    for name in names:
        yield from _groups(name, found)


def _groups(name: str, found: Sequence[PhysicalVolume]) -> Iterator[Volume | Mirror | Finding]:
    """All groups of one name: they differ in their ids."""
    by_id: dict[str, list[PhysicalVolume]] = {}
    for volume in found:
        section = (volume.group or {}).get(name)
        if isinstance(section, Mapping) and isinstance(section.get("physical_volumes"), Mapping):
            by_id.setdefault(str(section.get("id", "")), []).append(volume)
    for index, volumes in enumerate(by_id.values()):
        called = name if not index else f"{name}-{index + 1}"
        try:
            yield from _Group(called, name, volumes, found).volumes()
        except Unreadable as error:
            where = volumes[0].place.where(volumes[0].at, SECTOR, "LVM metadata")
            yield Finding(f"{NAME}.{called}: this volume group cannot be read", where, str(error), GIVE,
                          Severity.ERROR)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a logical volume, in order. members: where they lie; kind: a Volume's layout."""

    source: Source
    members: tuple[Member, ...]
    kind: str
    seqno: int


class _Group:
    """One volume group by its newest text."""

    def __init__(self, name: str, key: str, keepers: Sequence[PhysicalVolume],
                 found: Sequence[PhysicalVolume]) -> None:
        self.name = name
        self.newest = max(keepers, key=lambda volume: _seqno(volume, key))
        self.where = self.newest.place.where(self.newest.at, SECTOR, "LVM metadata")
        section = (self.newest.group or {})[key]
        self.text: Mapping[str, Node] = section if isinstance(section, Mapping) else {}
        self.extent = _number(self.text, "extent_size") * SECTOR
        self.id = str(self.text.get("id", ""))
        self.physical = _sections(self.text, "physical_volumes")
        self.logical = _sections(self.text, "logical_volumes")
        self.given = {volume.uuid: volume for volume in found}
        self.seqnos = {volume.uuid: _seqno(volume, key) for volume in found}
        self.parts_left = MOST_PARTS

    def volumes(self) -> Iterator[Volume | Mirror | Finding]:
        """The logical volumes that a user sees, and what is wrong with the group."""
        for name, section in self.physical.items():
            uuid = _uuid(section)
            if uuid not in self.given:
                yield Finding(f"{NAME}.{self.name}: the physical volume {name} is missing", self.where,
                              f"it was {section.get('device', 'somewhere')}, UUID {section.get('id', '')}", GIVE,
                              Severity.WARNING)
        for name, section in self.logical.items():
            status = section.get("status")
            if isinstance(status, list) and "VISIBLE" in status:
                try:
                    yield self._volume(name, section)
                except (Unreadable, ValueError) as error:
                    yield Finding(f"{NAME}.{self.name}/{name} cannot be read", self.where, str(error), GIVE,
                                  Severity.ERROR)

    def _volume(self, name: str, section: Mapping[str, Node]) -> Volume | Mirror:
        called = f"{NAME}.{self.name}/{name}"
        self.parts_left = MOST_PARTS
        origin = Origin(NAME, f"{self.name}/{name}", group=self.id)
        segments = self._segments(section)
        if len(segments) == 1 and (kind := str(segments[0].get("type"))) in MIRRORS:
            return self._mirror(called, origin, segments[0], _names(segments[0].get(MIRRORS[kind]), kind))
        piece = self._logical(name, called, ())
        if not piece.source.size:
            raise Unreadable("it has no length")
        return Volume(called, piece.source, piece.kind, piece.members, None, origin)

    def _mirror(self, called: str, origin: Origin, segment: Mapping[str, Node], images: Sequence[str]) -> Mirror:
        size = _number(segment, "extent_count") * self.extent
        legs, missing = [], []
        for image in images:
            try:
                piece = self._logical(image, f"{called} as {image} has it", ())
            except Unreadable as error:
                missing.append(f"the copy {image}: {error}")
                continue
            if len(piece.members) != 1:
                raise Unreadable(f"its copy {image} lies in {len(piece.members)} pieces")
            (member,) = piece.members
            legs.append(Leg(member.disk, piece.source, member, None, (piece.seqno,),
                            f"{image}, its disk was last seen at change {piece.seqno} of the volume group"))
        if not legs:
            raise Unreadable("; ".join(missing) or "it names no copies")
        return Mirror(called, size, tuple(legs), origin, tuple(missing))

    # -- extents

    def _segments(self, section: Mapping[str, Node]) -> list[Mapping[str, Node]]:
        found = [value for key, value in section.items() if key.startswith("segment") and isinstance(value, Mapping)]
        if not found:
            raise Unreadable("it has no segments")
        found.sort(key=lambda segment: _number(segment, "start_extent"))
        at = 0
        for segment in found:
            if _number(segment, "start_extent") != at:
                raise Unreadable(f"its segments do not meet at extent {at}")
            at += _number(segment, "extent_count")
        return found

    def _logical(self, name: str, called: str, path: Sequence[str]) -> Piece:
        """A logical volume's bytes. path: the volumes that it is a part of, so that no loop is followed."""
        if name in path or len(path) > MOST_DEEP:
            raise Unreadable(f"{name} is a part of itself" if name in path else "its parts have parts without end")
        if name not in self.logical:
            raise Unreadable(f"{name} is not described")
        pieces = [self._segment(segment, called, (*path, name)) for segment in self._segments(self.logical[name])]
        members = tuple(member for piece in pieces for member in piece.members)
        seqno = min(piece.seqno for piece in pieces)
        if len(pieces) == 1:
            return pieces[0]
        joined = _joined(members)
        return Piece(Linear([piece.source for piece in pieces], called), joined,
                     "simple" if len(joined) == 1 else "spanned", seqno)

    def _segment(self, segment: Mapping[str, Node], called: str, path: Sequence[str]) -> Piece:
        kind = segment.get("type")
        if kind not in ("striped", "linear"):
            raise Unreadable(f"a part of it is of the type {kind}, which is not read")
        areas, count = _pairs(segment.get("stripes")), _number(segment, "extent_count")
        if len(areas) != _number(segment, "stripe_count") or count % len(areas):
            raise Unreadable(f"{count} extents on {len(areas)} stripes")
        length = count // len(areas) * self.extent
        parts = [self._area(name, start * self.extent, length, called, path) for name, start in areas]
        if len(parts) == 1:
            return parts[0]
        members = tuple(member for part in parts for member in part.members)
        chunk = _number(segment, "stripe_size") * SECTOR
        return Piece(Striped([part.source for part in parts], chunk, called), members, "striped",
                     min(part.seqno for part in parts))

    def _area(self, name: str, offset: int, length: int, called: str, path: Sequence[str]) -> Piece:
        """length bytes of a physical (from its first extent on) or logical volume."""
        self.parts_left -= 1
        if self.parts_left < 0:
            raise Unreadable(f"it has more than {MOST_PARTS} parts")
        if name not in self.physical:
            whole = self._logical(name, called, path)
            return Piece(Window(whole.source, offset, length, called), _cut(whole.members, offset, length),
                         whole.kind, whole.seqno)
        section = self.physical[name]
        volume = self.given.get(_uuid(section))
        if volume is None:
            raise Unreadable(f"it needs the physical volume {name}, {section.get('device', '')}, which was not given")
        start = _number(section, "pe_start") * SECTOR + offset
        if start + length > volume.place.source.size:
            raise Unreadable(f"{volume.place.name} ends before it")
        return Piece(Window(volume.place.source, start, length, called),
                     (Member(volume.place.disk, volume.place.offset + start, length),), "simple",
                     self.seqnos[volume.uuid])


def _joined(members: Sequence[Member]) -> tuple[Member, ...]:
    """Members that follow each other on one disk are one."""
    found: list[Member] = []
    for member in members:
        if found and (found[-1].disk, found[-1].offset + found[-1].length) == (member.disk, member.offset):
            found[-1] = Member(member.disk, found[-1].offset, found[-1].length + member.length)
        else:
            found.append(member)
    return tuple(found)


def _cut(members: Sequence[Member], offset: int, length: int) -> tuple[Member, ...]:
    """What offset to offset + length of members in a row are."""
    found, at = [], 0
    for member in members:
        start, end = max(offset, at), min(offset + length, at + member.length)
        if start < end:
            found.append(Member(member.disk, member.offset + start - at, end - start))
        at += member.length
    return tuple(found)


# -- the text


def _seqno(volume: PhysicalVolume, group: str) -> int:
    section = (volume.group or {}).get(group)
    value = section.get("seqno") if isinstance(section, Mapping) else 0
    return value if isinstance(value, int) else 0


def _sections(text: Mapping[str, Node], name: str) -> dict[str, Mapping[str, Node]]:
    section = text.get(name)
    found = section if isinstance(section, Mapping) else {}
    return {key: value for key, value in found.items() if isinstance(value, Mapping)}


def _uuid(section: Mapping[str, Node]) -> str:
    return str(section.get("id", "")).replace("-", "")


def _number(section: Mapping[str, Node], name: str) -> int:
    value = section.get(name, 0)
    if not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise Unreadable(f"{name} is {value!r}")
    return value


def _pairs(value: Node | None) -> list[tuple[str, int]]:
    """(name, extent) of a list that has them in turn. Raises Unreadable."""
    if not isinstance(value, list) or len(value) % 2 or not value:
        raise Unreadable("a list of names and extents is not one")
    found = []
    for name, extent in zip(value[::2], value[1::2], strict=True):
        if not isinstance(name, str) or not isinstance(extent, int) or not 0 <= extent < 1 << 32:
            raise Unreadable(f"a part at {name!r}, {extent!r}")
        found.append((name, extent))
    return found


def _names(value: Node | None, kind: str) -> list[str]:
    """The copies of a mirror: name and extent in turn; of a raid1, metadata and data volume in turn."""
    if kind == "mirror":
        return [name for name, _ in _pairs(value)]
    names = value[1::2] if isinstance(value, list) else []
    return [name for name in names if isinstance(name, str)]
