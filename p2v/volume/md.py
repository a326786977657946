"""Linux md: arrays found by their superblocks on whole disks and in partitions.

A RAID 1 becomes a Mirror whose legs are the members' data ranges; which one is current is not judged here.
Other levels become a Volume. A member is no volume by itself, nor are the partitions of a disk that is a member
as a whole: with superblocks at its end (0.90, 1.0) such a disk looks like an ordinary one with a valid table.
The array of whole disks is one Mirror or Volume for all of it; what lies inside is looked at once a leg is chosen,
by asking find_volumes about the array as a disk.

Source: md.4, Assemble.c and super1.c of mdadm; libblkid for superblocks that a partition table covers.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from p2v.errors import Finding, LayoutError, Severity, Where
from p2v.model import Leg, Member, Mirror, Origin, Range, Source, Volume
from p2v.volume import mdarrays, mdbitmap, mdsuper
from p2v.volume.mdsuper import FAULTY, JOURNAL, LEVELS, MIRROR, SPARE, Superblock
from p2v.volume.members import Place, look, places, window

NAME = "md"
IN_FRONT = ("1.1", "1.2")  # superblocks that lie in front of the data
RAID_TYPE = 0xFD  # a partition of this type is meant to be a member


@dataclass(frozen=True, slots=True)
class Device:
    """A member: where it lies, and what its superblock says."""

    place: Place
    sb: Superblock

    @property
    def where(self) -> Where:
        """Its superblock."""
        return self.place.where(self.sb.at, mdsuper.NEW_BYTES, "md superblock")


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Member | Finding]:
    """The arrays on these disks. disks: by id in the plan ("disk0"). A Member is what no other reader may read."""
    devices: list[Device] = []
    for place in places(disks):
        device, said = _device(place)
        yield from said
        if device:
            devices.append(device)
            yield place.claim
        elif said and any(f.severity is Severity.ERROR for f in said):
            yield place.claim
        elif place.partition is not None and place.partition.type == RAID_TYPE:
            yield _no_superblock(place)
            yield place.claim
    devices = [d for d in devices if not _inside_another(d, devices)]
    names: set[str] = set()
    for uuid, members in groupby(sorted(devices, key=lambda d: d.sb.uuid), lambda d: d.sb.uuid):
        yield from _array(uuid, list(members), names)


def is_member(place: Place) -> bool:
    """Does a place carry the superblock of an array?"""
    return _device(place)[0] is not None


def superblocks(source: Source) -> list[Range]:
    """Where md superblocks lie on a disk, those in its partitions included."""
    found = []
    for place in places({"disk": source}):
        for version, at in mdsuper.spots(place.source.size):
            data = look(place, at, mdsuper.NEW_BYTES, "an md superblock")
            if isinstance(data, bytes) and mdsuper.is_superblock(version, data):
                found.append(Range(place.offset + at, mdsuper.NEW_BYTES))
    return found


# -- one member


def _device(place: Place) -> tuple[Device | None, list[Finding]]:
    """The member that a place is, by the newest of its superblocks."""
    found: list[Superblock] = []
    said: list[Finding] = []
    for version, at in mdsuper.spots(place.source.size):
        head = look(place, at, 512, "a superblock of Linux md")
        if isinstance(head, Finding):
            said += [head] if at else []  # of sector 0 the table's own reader tells
            continue
        if not mdsuper.is_superblock(version, head):
            continue
        if _is_leftover(place, version, at):
            said += [_in_front_of_a_table(place, version, at)] if version in IN_FRONT else []
            continue
        data = look(place, at, mdsuper.NEW_BYTES, "a superblock of Linux md")
        if isinstance(data, Finding):
            said.append(data)
            continue
        try:
            found.append(mdsuper.parse(version, data, at, place.where(at, mdsuper.NEW_BYTES)))
        except LayoutError as error:
            said.append(error.as_finding())
    found.sort(key=lambda sb: (sb.ctime, sb.events))
    for old in found[:-1]:
        said.append(Finding(
            f"{place.name}: a second md superblock ({old.version}), of an older array, is left out of account",
            place.where(old.at, mdsuper.NEW_BYTES), f"array {old.uuid}, made {_time(old.ctime)}; "
            f"this one was made {_time(found[-1].ctime)}", "nothing, unless the array that is shown is not the one "
            "that was in use", Severity.WARNING))
    return (Device(place, found[-1]) if found else None), said


def _is_leftover(place: Place, version: str, at: int) -> bool:
    """Does this whole disk's own partition table give the superblock's bytes, or its data, to a partition?

    At the end it is then the partition's own, or older than the table (libblkid does the same). In front (1.1,
    1.2), where data would begin behind it, a table with partitions in sector 0 is none of the array's.
    """
    if version in IN_FRONT:
        return bool(place.covered)
    return place.in_a_partition(at, mdsuper.NEW_BYTES)


def _in_front_of_a_table(place: Place, version: str, at: int) -> Finding:
    return Finding(f"{place.name}: an md superblock ({version}) beside a partition table, it is left out of account",
                   place.where(at, mdsuper.NEW_BYTES, "md superblock"),
                   "a disk is a member as a whole or has partitions, not both: one of the two is a leftover, and the "
                   "table is taken for the current one", "check the partitions against what the machine showed; if the "
                   "array was in use, clear the table in an image of the disk", Severity.WARNING)


def _inside_another(device: Device, devices: Sequence[Device]) -> bool:
    """Is this a partition of a disk that is a member as a whole? Then its superblock belongs to what is inside."""
    return not device.place.whole and any(
        other.place.disk == device.place.disk and other.place.whole for other in devices)


def _no_superblock(place: Place) -> Finding:
    return Finding(f"{place.name}: a partition for Linux md (type {RAID_TYPE:#04x}) without a superblock",
                   Where(place.disk, place.offset, place.source.size),
                   "it was meant as a member of an array; as which, and how old it is, cannot be told",
                   "nothing: its bytes are copied whole, and no files are read from it", Severity.WARNING)


# -- one array


def _array(uuid: str, devices: list[Device], names: set[str]) -> Iterator[Volume | Mirror | Finding]:
    newest = max(devices, key=lambda d: (d.sb.events, d.sb.utime))
    name = f"{NAME}.{newest.sb.name or uuid[:8]}"
    name = name if name not in names else f"{name}.{uuid[:8]}"
    names.add(name)
    origin = Origin(NAME, newest.sb.name or uuid[:8], group=uuid)
    members, said = _belonging(name, newest, devices)
    yield from said
    if any(d.sb.reshape for d in members):
        yield _reshaping(name, newest)
    elif newest.sb.level == MIRROR:
        yield from _mirror(name, origin, newest, members)
    else:
        yield from mdarrays.assemble(name, origin, newest.sb, [(d.place, d.sb) for d in members])


def _belonging(name: str, newest: Device, devices: list[Device]) -> tuple[list[Device], list[Finding]]:
    """Those that speak of the same array as its newest member, by slot; the rest is said."""
    same: list[Device] = []
    said: list[Finding] = []
    for device in sorted(devices, key=lambda d: (d.sb.role < 0, d.sb.role, -d.sb.events)):
        sb = device.sb
        if sb.level != newest.sb.level or sb.version != newest.sb.version:
            said.append(Finding(
                f"{name}: {device.place.name} does not fit", device.where,
                f"it says {LEVELS[sb.level]} by a {sb.version} superblock; {newest.place.name}, which is newer, says "
                f"{LEVELS[newest.sb.level]} by {newest.sb.version}", "leave this disk out", Severity.ERROR))
        elif sb.role == JOURNAL:
            said.append(Finding(f"{name}: {device.place.name} is its journal, which is not replayed", device.where,
                                "the last writes may be in the journal alone",
                                "stop the array cleanly on the server, then take the disks", Severity.ERROR))
        elif sb.device and any(d.sb.device == sb.device and d.sb.events == sb.events for d in same):
            said.append(Finding(f"{name}: {device.place.name} is a copy of a member that is here already",
                                device.where, f"device {sb.device}", "leave one of the two out", Severity.WARNING))
        else:
            same.append(device)
    return same, said


def _reshaping(name: str, newest: Device) -> Finding:
    return Finding(f"{name}: the array is being reshaped; it is not read", newest.where,
                   "its data lies partly in the old and partly in the new layout",
                   "let the server finish it (mdadm --wait), then take the disks", Severity.ERROR)


# -- RAID 1


def _mirror(name: str, origin: Origin, newest: Device, devices: list[Device]) -> Iterator[Mirror | Finding]:
    size = newest.sb.size
    legs = []
    for device in devices:
        yield from _of_its_bitmap(device)
        part = window(device.place, device.sb.data_offset, size, f"{name} on {device.place.name}")
        if part is None:
            yield _too_short(name, device.place, device.where, size)
        else:
            legs.append(Leg(device.place.disk, part[0], part[1], device.place.partition, (device.sb.events,),
                            _history(device), tuple(_against(device, newest)),
                            tuple(dict.fromkeys(d.place.disk for d in devices if device.sb.gives_up(d.sb)))))
    missing = tuple(_missing(newest.sb, devices))
    if missing:
        yield Finding(f"{name}: {len(missing)} of its {newest.sb.raid_disks} copies not given", newest.where,
                      "; ".join(missing), "give all members, if they still exist; a single copy is read as it is",
                      Severity.WARNING)
    if newest.sb.resync is not None:
        yield Finding(f"{name}: it was not shut down cleanly", newest.where,
                      f"from byte {newest.sb.resync:#x} on its copies may differ where writes were under way",
                      "nothing: one copy is taken for all of it; compare them to see where they differ",
                      Severity.INFO)
    if legs:
        yield Mirror(name, size, tuple(legs), origin, missing)


def _of_its_bitmap(device: Device) -> Iterator[Finding]:
    said = mdbitmap.told(device.place, device.sb)
    if isinstance(said, Finding):
        yield said
    elif said:
        yield Finding(f"{device.place.name}: {said}", device.place.where(device.sb.bitmap or 0, mdbitmap.HEADER_BYTES,
                                                                         "bitmap"),
                      "chunks that are marked may differ between copies that are otherwise in step", "nothing")


def _too_short(name: str, place: Place, where: Where, size: int) -> Finding:
    return Finding(f"{name}: {place.name} is cut short, it is left out", where,
                   f"the array needs {size} bytes of it; it has {place.source.size}, metadata included",
                   "give the whole disk", Severity.ERROR)


def _history(device: Device) -> str:
    sb = device.sb
    parts = [f"events {sb.events}", f"updated {_time(sb.utime)}", "clean" if sb.resync is None else "not clean",
             _role(sb.role, sb.raid_disks)]
    parts += ["write-mostly"] if sb.write_mostly else []
    return ", ".join(parts)


def _role(role: int, slots: int) -> str:
    return {SPARE: "spare", FAULTY: "faulty", JOURNAL: "journal"}.get(role, f"slot {role} of {slots}")


def _against(device: Device, newest: Device) -> Iterator[str]:
    sb = device.sb
    if sb.role < 0:
        yield f"its own superblock calls it {_role(sb.role, sb.raid_disks)}: it holds no finished copy"
    elif not newest.sb.knows(sb):
        role = newest.sb.table.get(sb.number, SPARE)
        word = "faulty or removed" if role in (FAULTY, SPARE) else f"a member in slot {role}"
        yield f"the newest superblock (events {newest.sb.events}, on {newest.place.name}) calls it {word}"
    if sb.recovered is not None and sb.recovered < newest.sb.size:
        yield f"it was being rebuilt: only its first {sb.recovered} of {newest.sb.size} bytes are good"


def _missing(newest: Superblock, devices: Sequence[Device]) -> Iterator[str]:
    """The slots that nobody here holds, in words."""
    held = {d.sb.role for d in devices}
    for slot in range(newest.raid_disks):
        if slot not in held:
            yield f"the copy in slot {slot}, " + ("which the newest superblock counts as working"
                                                  if slot in newest.active else "which was failed or removed already")


def _time(seconds: int) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=min(seconds, 1 << 37))
    return moment.strftime("%Y-%m-%d %H:%M:%S") + " UTC"
