"""The volumes of one disk group, put together from the disks that were given.

The newest database of the group says where everything lies; each disk's own is asked whether it agrees. A stale
disk is no member of a RAID-5 volume that can be read without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from p2v.errors import Finding, LayoutError, Severity, Where
from p2v.model import Leg, Member, Mirror, Origin, Partition, Source, Volume
from p2v.source.linear import Linear
from p2v.source.window import Window
from p2v.volume.ldmdatabase import DynamicDisk
from p2v.volume.ldmrecords import (
    CONCATENATED,
    RAID5,
    SECTOR,
    STRIPED,
    ComponentRecord,
    Flag,
    PartitionRecord,
    VolumeRecord,
    printable,
)
from p2v.volume.ldmview import View

DYNAMIC = 0x42
LAYOUTS = {STRIPED: "striped", RAID5: "raid5"}
MOST_TOLD = 8
CHECK = "compare the volumes with what the machine showed"
GIVE = "give the missing disks, too; leave the disk out if the volume is not needed"


@dataclass(frozen=True, slots=True)
class Group:
    """The disks of one group that were given, and what the newest of their databases says.

    described_by: the disk whose database view is. views: each disk's own, by id. tables: their MBR's entries.
    prefix: what the names of its volumes begin with.
    """

    guid: str
    name: str
    disks: tuple[DynamicDisk, ...]
    described_by: DynamicDisk
    view: View
    views: Mapping[str, View]
    tables: Mapping[str, Sequence[Partition]]
    prefix: str

    def given(self, disk_id: int) -> DynamicDisk | None:
        """The disk of a record's number, if it was given."""
        record = self.view.disks.get(disk_id)
        if record is None:
            return None
        return next((disk for disk in self.disks if disk.guid == record.guid.lower()), None)

    def called(self, disk_id: int) -> str:
        """A disk as the metadata knows it."""
        record = self.view.disks.get(disk_id)
        return f"{printable(record.name)} ({printable(record.guid)})" if record else f"disk record {disk_id}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A partition record and the bytes of a disk that it means; trouble says why there are none."""

    record: PartitionRecord
    disk: DynamicDisk | None
    member: Member | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Component:
    """A component with its pieces by column."""

    record: ComponentRecord
    columns: tuple[tuple[Piece, ...], ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of them, column after column."""
        return tuple(chain.from_iterable(self.columns))

    @property
    def members(self) -> tuple[Member, ...]:
        """Where those that are there lie."""
        return tuple(piece.member for piece in self.pieces if piece.member)

    @property
    def pieces_given(self) -> bool:
        """Is any of it due on a disk that was given?"""
        return any(piece.disk for piece in self.pieces)

    @property
    def lost(self) -> tuple[str, ...]:
        """Why pieces are not there."""
        return tuple(dict.fromkeys(piece.trouble for piece in self.pieces if not piece.member))


def volumes_of(group: Group) -> Iterator[Volume | Mirror | Finding]:
    """Its volumes; those wholly on disks that were not given are named in one finding."""
    disputed = _overlaps(group)
    elsewhere: list[str] = []
    broken: list[tuple[VolumeRecord, LayoutError]] = []
    names = Counter(printable(volume.name) for volume in group.view.volumes)
    for volume in group.view.volumes:
        name = group.prefix + printable(volume.name)
        try:
            if volume.id in disputed:
                raise LayoutError(f"{disputed[volume.id]} claim the same bytes", Where(),
                                  "which of them is true cannot be told", CHECK)
            components = [_component(group, record) for record in group.view.components_of(volume)]
            if any(component.pieces_given for component in components):
                unique = name if names[printable(volume.name)] == 1 else f"{name}.{volume.id}"
                yield from _Making(group, volume, unique).made(components)
            else:
                elsewhere.append(printable(volume.name))
        except LayoutError as error:
            broken.append((volume, error))
    yield from _broken(group, broken)
    yield from _absent(group, elsewhere)


def _broken(group: Group, broken: Sequence[tuple[VolumeRecord, LayoutError]]) -> Iterator[Finding]:
    disk = group.described_by
    stored = {id(one.record): one for one in disk.database.stored} if disk.database else {}
    for volume, error in broken[:MOST_TOLD]:
        where = Where(disk.source.name)
        if disk.database and id(volume) in stored:
            where = disk.database.where(disk.source.name, stored[id(volume)])
        more = f"; {len(broken)} volumes of the group are like that" if len(broken) > MOST_TOLD else ""
        yield Finding(f"volume {group.prefix}{printable(volume.name)} cannot be read: {error.what}", where,
                      error.why + more, error.next, Severity.ERROR)


def _absent(group: Group, elsewhere: Sequence[str]) -> Iterator[Finding]:
    missing = [group.called(number) for number in group.view.disks if group.given(number) is None]
    if missing:
        volumes = f"volumes wholly on them: {some(elsewhere)}" if elsewhere else "no volume is wholly on them"
        yield Finding(f"disk group {printable(group.name)}: {len(missing)} of its {len(group.view.disks)} disks were "
                      "not given", group.described_by.where, f"{some(missing)}; {volumes}",
                      "nothing, if they are not needed; otherwise give them, too", Severity.WARNING)


def some(words: Sequence[str]) -> str:
    """As many of them as one reads."""
    return ", ".join(words[:MOST_TOLD]) + (f" and {len(words) - MOST_TOLD} more" if len(words) > MOST_TOLD else "")


def _component(group: Group, record: ComponentRecord) -> Component:
    return Component(record, tuple(tuple(_piece(group, one) for one in column)
                                   for column in group.view.columns_of(record)))


def _piece(group: Group, record: PartitionRecord) -> Piece:
    disk = group.given(record.disk_id)
    if disk is None:
        return Piece(record, None, None, f"{group.called(record.disk_id)} was not given")
    head = disk.head
    start = (head.public_start_sectors + record.start_sectors) * SECTOR
    length = record.sectors * SECTOR
    if record.start_sectors + record.sectors > head.public_sectors:
        return Piece(record, disk, None, f"{printable(record.name)} lies outside the public region of {disk.id}")
    if start + length > disk.source.size:
        return Piece(record, disk, None, f"{disk.id} is cut short: {printable(record.name)} lies at bytes {start:#x} "
                     f"to {start + length:#x}, the disk has {disk.source.size}")
    return Piece(record, disk, Member(disk.id, start, length))


def _overlaps(group: Group) -> dict[int, str]:
    """Volume numbers whose partition records share bytes with others, and those records."""
    owner = {component.id: parent for parent, found in group.view.components.items() for component in found}
    records = [record for found in group.view.partitions.values() for record in found]
    records.sort(key=lambda record: (record.disk_id, record.start_sectors))
    disputed: dict[int, str] = {}
    reaching: PartitionRecord | None = None
    for record in records:
        if reaching is None or reaching.disk_id != record.disk_id:
            reaching = record
            continue
        end = reaching.start_sectors + reaching.sectors
        if record.start_sectors < end:
            told = f"{printable(reaching.name)}, {printable(record.name)}"
            disputed |= {owner.get(one.parent_id, 0): told for one in (reaching, record)}
        if record.start_sectors + record.sectors > end:
            reaching = record
    return disputed


class _Making:
    """One volume while it is being put together."""

    def __init__(self, group: Group, volume: VolumeRecord, name: str) -> None:
        self.group = group
        self.record = volume
        self.name = name
        self.size = volume.sectors * SECTOR
        self.origin = _origin(group, volume)

    def made(self, components: Sequence[Component]) -> Iterator[Volume | Mirror | Finding]:
        """Raises LayoutError where the records do not add up to a volume."""
        if self.size <= 0:
            raise LayoutError("it has no length", Where(), "its record is damaged", GIVE)
        if len(components) > 1:
            yield from self._mirror(components)
            return
        (component,) = components
        bad = self._doubtful(component) if component.record.layout == RAID5 else ()
        source = self._source(component, self.name, bad)
        partition = self._partition(component)
        yield Volume(self.name, source, self._layout(component), self._members(component), partition, self.origin)
        against = self.group.view.against(self.record, component.record)
        told = [*component.lost, *against]
        if told:
            yield self._say(f"volume {self.name} is not whole" if component.lost else
                            f"volume {self.name} is in doubt", component, "; ".join(map(printable, told)),
                            "check its files once it has been copied")
        if bad:
            yield self._say(f"volume {self.name} is read without a member that is not current", component,
                            "its chunks are computed from the others", "check its files once it has been copied")

    # -- the parts

    def _layout(self, component: Component) -> str:
        if component.record.layout == CONCATENATED:
            return "simple" if len(component.pieces) == 1 else "spanned"
        return LAYOUTS[component.record.layout]

    def _members(self, component: Component) -> tuple[Member, ...]:
        """Where the volume's bytes lie; a lone range is cut to the volume's size."""
        members = component.members
        if len(component.pieces) == 1:
            return tuple(Member(member.disk, member.offset, min(member.length, self.size)) for member in members)
        return members

    def _partition(self, component: Component) -> Partition | None:
        """The table entry of a component that is one range: of type 42, starting exactly there."""
        if len(component.pieces) != 1 or not component.members:
            return None
        (member,) = component.members
        return next((partition for partition in self.group.tables.get(member.disk, ())
                     if partition.type == DYNAMIC and partition.offset == member.offset), None)

    def _source(self, component: Component, name: str, without: Sequence[int] = ()) -> Source:
        """Its bytes, as many as the volume has. Raises LayoutError where they are not all there."""
        columns = [None if number in without else self._column(column)
                   for number, column in enumerate(component.columns)]
        lost = sum(column is None for column in columns)
        if lost > (component.record.layout == RAID5):
            why = "; ".join(component.lost) or "members are not current"
            raise LayoutError(f"{lost} of its {len(columns)} members cannot be read" if len(columns) > 1
                              else "a part of it cannot be read", Where(), printable(why), GIVE)
        present = [column for column in columns if column is not None]
        try:
            if component.record.layout == CONCATENATED:
                return self._concatenated(component, name)
            if component.record.layout == STRIPED:
                from p2v.source.striped import Striped

                return Striped(present, self._chunk(component), name, size=self.size)
            from p2v.source.parity import Parity

            return Parity(columns, self._chunk(component), name, level=5, layout="left-symmetric", size=self.size)
        except ValueError as error:
            raise LayoutError("its parts do not fit", Where(), printable(str(error)), GIVE) from error

    def _chunk(self, component: Component) -> int:
        return (component.record.stripe_sectors or 0) * SECTOR

    def _column(self, pieces: Sequence[Piece]) -> Source | None:
        windows = [Window(piece.disk.source, piece.member.offset, piece.member.length)
                   for piece in pieces if piece.disk and piece.member]
        if len(windows) < len(pieces):
            return None
        return windows[0] if len(windows) == 1 else Linear(windows, f"{self.name}, one column")

    def _concatenated(self, component: Component, name: str) -> Source:
        """Raises ValueError where the parts are shorter than the volume."""
        (column,) = component.columns
        parts, left = [], self.size
        for piece in column:
            length = min(left, piece.member.length) if piece.member else 0
            if length and piece.disk and piece.member:
                parts.append(Window(piece.disk.source, piece.member.offset, length, name if len(column) == 1 else ""))
            left -= length
        if left:
            raise ValueError(f"{self.size} bytes are due, its parts have {self.size - left}")
        return parts[0] if len(column) == 1 else Linear(parts, name)

    def _doubtful(self, component: Component) -> tuple[int, ...]:
        """Of a RAID-5: the column that is not current. Raises LayoutError where more than one must be left out."""
        newest = max(piece.disk.generation for piece in component.pieces if piece.disk)
        out = [number for number, column in enumerate(component.columns)
               if any(not piece.member or self._not_current(piece, newest) for piece in column)]
        if len(out) > 1:
            raise LayoutError(f"{len(out)} of its {len(component.columns)} members are missing or not current", Where(),
                              "; ".join(component.lost) or "their databases are older than the newest one", GIVE)
        if out and self.record.state != "ACTIVE":
            raise LayoutError("a member is missing and its parity is not in step", Where(),
                              f"its state is {printable(self.record.state)}", GIVE)
        return tuple(number for number in out if all(piece.member for piece in component.columns[number]))

    def _not_current(self, piece: Piece, newest: tuple[int, ...]) -> bool:
        stale = piece.disk is not None and piece.disk.generation < newest
        return stale or bool(self.group.view.against_partition(piece.record))

    # -- mirrors

    def _mirror(self, components: Sequence[Component]) -> Iterator[Mirror | Finding]:
        legs: list[Leg] = []
        missing: list[str] = []
        told: list[str] = []
        for component in components:
            try:
                legs.append(self._leg(component))
            except LayoutError as error:
                missing.append(", ".join(component.lost) or error.what)
                told.append(f"{printable(component.record.name)}: {error.what}, {error.why}")
        if not legs:
            raise LayoutError("none of its copies can be read", Where(), "; ".join(told), GIVE)
        yield Mirror(self.name, self.size, tuple(legs), self.origin, tuple(missing))
        if missing:
            yield self._say(f"mirror {self.name}: {len(legs)} of its {len(components)} copies can be read",
                            components[0], "; ".join(told), "give the missing disk, too, if it can still be read")

    def _leg(self, component: Component) -> Leg:
        """Raises LayoutError where the copy is not all there."""
        if not component.members:
            raise LayoutError("no part of it is there", Where(), "; ".join(component.lost), GIVE)
        first = self._members(component)[0]
        bad = self._doubtful(component) if component.record.layout == RAID5 else ()
        source = self._source(component, f"{self.name} on {first.disk}", bad)
        disks = {piece.disk.id for piece in component.pieces if piece.disk}
        own = [disk for disk in self.group.disks if disk.id in disks]
        oldest = min(own, key=lambda disk: disk.generation)
        against = [*self.group.view.against(self.record, component.record), *self._own_words(component, own)]
        return Leg(first.disk, source, first, self._partition(component), oldest.generation,
                   oldest.database.history if oldest.database else "its LDM database cannot be read",
                   tuple(map(printable, against)), self._failed_by(own),
                   oldest.database.changed if oldest.database else None)

    def _own_words(self, component: Component, own: Sequence[DynamicDisk]) -> Iterator[str]:
        """Where the disks' own databases place the copy elsewhere, or know none."""
        for disk in own:
            view = self.group.views.get(disk.id)
            if view is None:
                yield f"the LDM database of {disk.id} cannot be read"
                continue
            shapes = [view.shape(one) for one in view.components_by_guid(self.record.guid)]
            if self.group.view.shape(component.record) not in shapes:
                yield f"the own database of {disk.id} does not place the copy there"

    def _failed_by(self, own: Sequence[DynamicDisk]) -> tuple[str, ...]:
        failed: set[str] = set()
        for disk in own:
            if disk.id in self.group.views:
                failed |= self.group.views[disk.id].fails(self.record.guid)
        return tuple(disk.id for disk in self.group.disks if disk.guid in failed)

    def _say(self, what: str, component: Component, why: str, next: str) -> Finding:
        places = [Where(piece.disk.source.name, piece.member.offset, piece.member.length)
                  for piece in component.pieces if piece.disk and piece.member]
        where = places[0] if places else self.group.described_by.where
        return Finding(what, where, why, next, Severity.WARNING)


def _origin(group: Group, volume: VolumeRecord) -> Origin:
    letter = volume.hint or ""
    return Origin("ldm", printable(volume.name), volume.guid,
                  letter.upper() if re.fullmatch("[A-Za-z]:", letter) else "", volume.partition_type, group.guid,
                  bool(volume.flags & Flag.VOLUME_SYSTEM), bool(volume.flags & Flag.VOLUME_BOOT))


