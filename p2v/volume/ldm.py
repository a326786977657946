"""Dynamic disks (LDM) of Windows 2000 to 2008 R2: which disks belong together, and what the newest of them says.

Every disk carries the database of its whole group. Where the given disks' databases are of unequal generation
the newest one describes the group, each leg of a mirror keeps its own disk's generation, and nothing is chosen
here. Where equal ones differ, one of them is damaged, and that is an error: no checksum covers their records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from p2v.errors import Finding, LayoutError, ReadError, Severity
from p2v.model import SECTOR, Mirror, Partition, Range, Source, Volume
from p2v.volume import gpt, mbr
from p2v.volume.ldmdatabase import (
    LARGEST_REGION,
    DynamicDisk,
    read_disk,
    records_of,
)
from p2v.volume.ldmhead import FIRST_COPY
from p2v.volume.ldmrecords import Stored, printable
from p2v.volume.ldmview import View, view_of
from p2v.volume.ldmvolumes import DYNAMIC, Group, volumes_of

NAME = "ldm"
MOST_TOLD = 8
COMPARE = "compare the volumes with what the machine showed; leave out the disk that is wrong"


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Finding]:
    """What the databases of these disks say. disks: by id in the plan ("disk0")."""
    tables: dict[str, Sequence[Partition]] = {}
    groups: dict[str, list[DynamicDisk]] = {}
    for disk, source in disks.items():
        seen = _look(disk, source, tables)
        if isinstance(seen, DynamicDisk):
            yield from _one_of_a_kind(seen, groups.setdefault(seen.head.group_guid.lower(), []))
        elif seen is not None:
            yield seen
    if len(groups) > 1:
        yield _mixed(groups)
    made = [group for members in groups.values() for group in _group(members, tables)]
    for found in made:
        if isinstance(found, Group):
            yield from _told(found)
            yield from volumes_of(replace(found, prefix=_prefix(found, made)))
        else:
            yield found


def private_bytes(source: Source) -> Iterator[Range]:
    """What LDM keeps for itself on a disk: a PRIVHEAD behind the MBR, and the private region."""
    disk = _look("", source, {})
    if not isinstance(disk, DynamicDisk):
        return
    if disk.has_first_copy:
        yield Range(FIRST_COPY * SECTOR, SECTOR)
    start = disk.head.private_start_sectors * SECTOR
    length = min(disk.head.private_sectors * SECTOR, LARGEST_REGION, source.size - start)
    if length > 0:
        yield Range(start, length)


# -- one disk


def _look(disk: str, source: Source, tables: dict[str, Sequence[Partition]]) -> DynamicDisk | Finding | None:
    """A dynamic disk, or why one cannot be read; None for any other disk."""
    seen = list(mbr.find({disk: source}))
    tables[disk] = [found for found in seen if isinstance(found, Partition)]
    metadata = next(((partition.offset, partition.length) for partition in gpt.read_table(disk, source).partitions
                     if partition.type == gpt.LDM_METADATA), None)
    named = metadata is not None or any(partition.type == DYNAMIC for partition in tables[disk])
    basic = bool(tables[disk]) or any(isinstance(found, Volume) for found in seen)
    try:
        found = read_disk(disk, source, metadata)
    except (LayoutError, ReadError) as error:
        if not named:
            return None
        return Finding(f"{disk}: dynamic disk (LDM) whose header cannot be read: {error.what}", error.where,
                       f"{error.why}; its volumes are described in a database that only the header finds",
                       "copy the disk again if it can be read elsewhere", Severity.ERROR)
    if named:
        return found
    if basic:
        return Finding(f"{disk}: remains of a dynamic disk (LDM) under a basic partition table", found.where,
                       "no entry is of type 42, so Windows takes it for a basic disk, and so does p2v", "nothing")
    lost = Finding(f"{disk}: dynamic disk (LDM) without an entry of type 42 in its partition table", found.where,
                   "its database is read all the same; Windows would not know the disk", COMPARE, Severity.WARNING)
    return replace(found, findings=(lost, *found.findings))


def _one_of_a_kind(disk: DynamicDisk, members: list[DynamicDisk]) -> Iterator[Finding]:
    """Add a disk to its group, unless it is there already."""
    twin = next((one for one in members if one.guid == disk.guid), None)
    if twin is None:
        members.append(disk)
        return
    yield Finding(f"{twin.id} and {disk.id} are the same dynamic disk", disk.where,
                  f"both say that they are disk {printable(disk.guid)}; one is a copy of the other, and which is newer "
                  "cannot be told", "give one of the two", Severity.ERROR)


# -- one group


def _group(members: Sequence[DynamicDisk], tables: Mapping[str, Sequence[Partition]]) -> Iterator[Group | Finding]:
    newest = max(members, key=lambda disk: (disk.generation, not (disk.database and disk.database.damaged)))
    for disk in members:
        yield from _disk_findings(disk, newest)
    if newest.database is None:
        return
    views = {disk.id: view_of(records_of(disk.database)) for disk in members if disk.database}
    head = newest.head
    yield Group(head.group_guid, head.group_name, tuple(members), newest, views[newest.id], views, tables, "")


def _disk_findings(disk: DynamicDisk, newest: DynamicDisk) -> Iterator[Finding]:
    """Damage weighs less where another disk's database of the same generation, or a newer one, is whole."""
    spared = disk is not newest
    for finding in disk.findings:
        yield replace(finding, severity=Severity.WARNING) if spared and finding.severity is Severity.ERROR else finding
    if disk.trouble:
        why = f"{disk.trouble.what}: {disk.trouble.why}"
        what = "dynamic disk (LDM) whose database cannot be read"
        if newest.database:
            yield Finding(f"{disk.id}: {what}", disk.trouble.where, f"{why}; that of {newest.id} is used",
                          "copy the disk again if it can be read elsewhere", Severity.WARNING)
        else:
            yield Finding(f"{disk.id}: {what}", disk.trouble.where, why, disk.trouble.next, Severity.ERROR)


def _told(group: Group) -> Iterator[Finding]:
    """What the databases of the given disks say of each other."""
    newest = group.described_by
    if len({disk.generation for disk in group.disks}) > 1:
        words = "; ".join(f"{disk.id} {disk.database.history if disk.database else 'cannot be read'}"
                          for disk in group.disks)
        yield Finding(f"disk group {printable(group.name)}: the databases of its disks are not of one generation",
                      newest.database_where, f"{words}; {newest.id} describes the group",
                      "the older disks were absent, or failed, while the others changed", Severity.WARNING)
    for disk in group.disks:
        if not group.view.knows(disk.guid):
            yield Finding(f"{disk.id}: the newest database of its group does not know this disk", disk.where,
                          f"it is disk {printable(disk.guid)}; {newest.id} describes the group, and nothing of "
                          f"{disk.id} is read", "leave it out, or give it alone to see what it holds", Severity.WARNING)
        if disk is not newest and disk.id in group.views:
            same = disk.generation == newest.generation
            yield from _differences(group, disk) if same else _elsewhere(group, disk, group.views[disk.id])


def _differences(group: Group, disk: DynamicDisk) -> Iterator[Finding]:
    """Records that two databases of one generation do not have alike."""
    newest = group.described_by
    assert newest.database and disk.database
    ours, theirs = _by_number(newest.database.stored), _by_number(disk.database.stored)
    differing = [number for number in ours if number in theirs and ours[number].record != theirs[number].record]
    for number in differing[:MOST_TOLD]:
        place = newest.database.where(newest.source.name, ours[number])
        yield Finding(f"{newest.id} and {disk.id} disagree on {printable(ours[number].record.name)}",
                      disk.database.where(disk.source.name, theirs[number]),
                      f"their databases are of one generation ({newest.database.history}), so one of them is damaged "
                      f"(the other: {place}); {newest.id} is used", COMPARE, Severity.ERROR)
    if set(ours) != set(theirs) and not (disk.database.damaged or newest.database.damaged):
        yield Finding(f"the databases of {newest.id} and {disk.id} do not hold the same records",
                      disk.database_where, f"they are of one generation ({newest.database.history})",
                      COMPARE, Severity.ERROR)


def _by_number(stored: Sequence[Stored]) -> dict[tuple[int, int], Stored]:
    return {(one.record.kind & 0x0F, one.record.id): one for one in stored}


def _elsewhere(group: Group, disk: DynamicDisk, own: View) -> Iterator[Finding]:
    """Volumes that an older database has, and the newest one has not, or places elsewhere."""
    told = []
    for volume in own.volumes:
        shapes, current = ({str(view.shape(one)) for one in view.components_by_guid(volume.guid)}
                           for view in (own, group.view))
        if volume.guid not in group.view.by_guid:
            told.append(f"{printable(volume.name)} is in it alone")
        elif shapes != current:
            told.append(f"{printable(volume.name)} is put together in another way")
    if told:
        yield Finding(f"{disk.id}: its older database describes other volumes than that of {group.described_by.id}",
                      disk.database_where, "; ".join(told[:MOST_TOLD]),
                      "nothing, if the volumes were changed while this disk was away", Severity.WARNING)


# -- several groups


def _mixed(groups: Mapping[str, Sequence[DynamicDisk]]) -> Finding:
    told = "; ".join(f"{printable(members[0].head.group_name)}: {', '.join(disk.id for disk in members)}"
                     for members in groups.values())
    first = next(iter(groups.values()))[0]
    return Finding(f"the disks are of {len(groups)} disk groups", first.where,
                   f"{told}; each group is read by itself", "nothing, if one machine had them all", Severity.WARNING)


def _prefix(group: Group, made: Sequence[Group | Finding]) -> str:
    """What its volumes' names begin with: more than "ldm." where another group has the same names."""
    own = {volume.name for volume in group.view.volumes}
    others = [other for other in made if isinstance(other, Group) and other.guid != group.guid]
    shared = any(volume.name in own for other in others for volume in other.view.volumes)
    return f"{NAME}.{printable(group.guid)[:8]}." if shared else f"{NAME}."
