"""RAID that a controller's firmware and its driver make: members of such sets, by the metadata on each disk.

RAID 1 of Intel (IMSM) and of DDF is read: a Mirror of whole disks, one leg for each member, chosen elsewhere;
what lies inside is looked at once a leg is chosen, by asking find_volumes about it as a disk. All other sets are
recognised and said. A disk that by itself is not what the server saw (striped, or shifted) is claimed whole: no
volumes of it are shown. A mirror's member of the other makers is such a disk as it stands, and is read as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2v.errors import Finding, LayoutError, Severity, Where
from p2v.model import SECTOR, Leg, Member, Mirror, Origin, Range, Source, Volume
from p2v.volume import ddf, fakeraid, imsm
from p2v.volume.fakeraid import Sign
from p2v.volume.members import Place, places, window

NAME = "firmware"
KEEP = ("image each member as it is (--layout keep), or copy the files on a machine with that controller; when the "
        "metadata is a leftover, clear it in an image of the disk")
IMSM_LEVELS = {0: "RAID 0", 1: "RAID 1", 5: "RAID 5", 10: "RAID 10"}


@dataclass(frozen=True, slots=True)
class Copy:
    """A member of a RAID 1 on a disk that was given. generation: higher is newer. key: of its set."""

    place: Place
    where: Where
    key: tuple[str, str, str]  # manager, group, name
    start: int
    size: int
    generation: int
    history: str
    against: tuple[str, ...]
    fails: frozenset[int]  # refnums
    own: int
    slots: tuple[str, ...]  # the members, in words
    slot: int | None
    clean: bool


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Member | Finding]:
    """The sets on these disks. A Member is a disk that no other reader may read."""
    copies: list[Copy] = []
    for place in places(disks):
        if not place.whole:
            continue
        for found in _look_at(place):
            if isinstance(found, Copy):
                copies.append(found)
                yield place.claim
            else:
                yield found
    names: set[str] = set()
    for key in dict.fromkeys(copy.key for copy in copies):
        yield from _mirror(key, [copy for copy in copies if copy.key == key], names)


def metadata(source: Source) -> list[Range]:
    """The anchors of Intel's and DDF's metadata on a disk."""
    place = Place("disk", source, 0)
    found = []
    for read_metadata in (imsm.read_metadata, ddf.read_metadata):
        try:
            there = read_metadata(place)
        except LayoutError:
            continue  # told by find(): without a good checksum no controller takes it for its own
        if there is not None and not isinstance(there, Finding):
            found.append(Range(there.at, SECTOR))
    return found


def _look_at(place: Place) -> Iterator[Copy | Member | Finding]:
    for read_sets in (_imsm, _ddf):
        try:
            yield from read_sets(place)
        except LayoutError as error:
            yield place.claim
            yield error.as_finding()
    sign = fakeraid.recognise(place)
    if isinstance(sign, Finding):
        yield sign
    elif sign:
        yield from _other(place, sign)


# -- only recognised


def _other(place: Place, sign: Sign) -> Iterator[Member | Finding]:
    where = place.where(sign.at, SECTOR, f"{sign.maker} metadata")
    what = f"{place.name}: a member of a RAID by {sign.maker}, {sign.level}{sign.about}"
    if sign.plain:
        yield Finding(what, where, "it is read as a plain disk; whether it is the current copy cannot be told from "
                      "this one" + sign.doubt, "give one disk of the set only, the one that the controller's setup "
                      "calls current, or compare the copies first", Severity.WARNING)
    else:
        yield place.claim
        yield Finding(what, where, sign.doubt or "one member holds only some of the data", KEEP, Severity.ERROR)


def _unread(place: Place, at: int, maker: str, level: str, name: str) -> Iterator[Member | Finding]:
    yield place.claim
    yield Finding(f"{place.name}: a member of a RAID by {maker}, {level} \"{name}\", which is not read",
                  place.where(at, SECTOR), "one member holds only some of the data", KEEP, Severity.ERROR)


def _leftover(place: Place, at: int, maker: str) -> Finding:
    return Finding(f"{place.name}: {maker} metadata of a RAID lies inside a partition, it is left out of account",
                   place.where(at, SECTOR), "the set's controller keeps its data in front of it: it is older than the "
                   "partition table", "nothing, unless the disk was a member until the end", Severity.WARNING)


# -- Intel


def _imsm(place: Place) -> Iterator[Copy | Member | Finding]:
    found = imsm.read_metadata(place)
    if found is None or isinstance(found, Finding):
        yield from [found] if found else []
    elif place.in_a_partition(found.at, SECTOR) and all(s.level == 1 for s in found.sets):
        yield _leftover(place, found.at, "Intel")
    elif not found.sets:
        yield Finding(f"{place.name}: a spare disk of an Intel RAID", place.where(found.at, SECTOR, "IMSM metadata"),
                      "it holds no volume of the set", "leave it out", Severity.WARNING)
    else:
        for each in found.sets:
            if each.level != 1:
                yield from _unread(place, found.at, "Intel", IMSM_LEVELS.get(each.level, "unknown level"), each.name)
            else:
                yield _imsm_copy(place, found, each)


def _imsm_copy(place: Place, found: imsm.Metadata, each: imsm.Set) -> Copy:
    """Which entry of the table of disks this one is cannot be told; a size that only one has is no proof either."""
    serials = tuple(found.disks[number].name for number in each.members)
    failed = [found.disks[number].name for number in each.members if found.disks[number].status & imsm.FAILED]
    against = [f"one of the copies is being rebuilt (serial {found.disks[number].name}); which disk that is stands on "
               "none of them" for number in each.rebuilt]
    against += ["the set is changing its shape"] if each.migrating and not each.rebuilt else []
    history = f"generation {found.generation}, {each.state}, " + ("dirty" if each.dirty else "clean")
    history += f", failed: serial {', '.join(failed)}" if failed else ""
    return Copy(place, place.where(found.at, SECTOR, "IMSM metadata"), ("imsm", f"{found.family:08x}", each.name),
                each.start, min(each.size, each.length), found.generation, history, tuple(against), frozenset(), 0,
                tuple(f"the disk of serial {serial}" for serial in serials), None, not each.dirty)


# -- DDF


def _ddf(place: Place) -> Iterator[Copy | Member | Finding]:
    found = ddf.read_metadata(place)
    if found is None or isinstance(found, Finding):
        yield from [found] if found else []
    elif place.in_a_partition(found.at, SECTOR) and all(s.level == ddf.RAID1 for s in found.sets):
        yield _leftover(place, found.at, "DDF")
    elif not any(found.own in each.members for each in found.sets):
        yield Finding(f"{place.name}: a spare or unused disk of a DDF group",
                      place.where(found.at, SECTOR, "DDF metadata"), "it holds no volume of the group",
                      "leave it out", Severity.WARNING)
    else:
        for each in found.sets:
            if found.own not in each.members:
                continue
            if each.level != ddf.RAID1 or not each.simple:
                level = ddf.LEVELS.get(each.level, "unknown level") if each.simple else "RAID 10 or the like"
                yield from _unread(place, found.at, "DDF", level, each.name)
            else:
                yield _ddf_copy(place, found, each)


def _ddf_copy(place: Place, found: ddf.Metadata, each: ddf.Set) -> Copy:
    slot = each.members.index(found.own)
    state = found.disks.get(found.own, 0)
    words = [word for bit, word in ((ddf.FAILED, "failed"), (ddf.REBUILDING, "being rebuilt"),
                                    (ddf.MISSING, "missing")) if state & bit]
    against = tuple(f"its own metadata calls it {word}" for word in words)
    fails = frozenset(ref for ref in each.members if found.disks.get(ref, 0) & (ddf.FAILED | ddf.MISSING)
                      or not found.disks.get(ref, 0) & ddf.ONLINE)
    return Copy(place, place.where(found.at, SECTOR, "DDF metadata"), ("ddf", each.guid.hex(), each.name),
                each.starts[slot], each.size, found.seq,
                f"sequence {found.seq}, {each.state}, " + ("consistent" if each.clean else "not consistent"), against,
                fails, found.own, tuple(f"the disk that it calls {ref:08x}" for ref in each.members), slot, each.clean)


# -- a RAID 1 from its copies


def _mirror(key: tuple[str, str, str], copies: Sequence[Copy], names: set[str]) -> Iterator[Mirror | Finding]:
    manager, group, called = key
    name = f"{manager}.{called or group[:8]}"
    name = name if name not in names else f"{name}.{group[:8]}"
    names.add(name)
    newest = max(copies, key=lambda copy: copy.generation)
    size = newest.size
    legs = []
    for copy in sorted(copies, key=lambda copy: copy.slot or 0):
        part = window(copy.place, copy.start, size, f"{name} on {copy.place.name}")
        if part is None:
            yield Finding(f"{name}: {copy.place.name} is cut short, it is left out", copy.where,
                          f"the set needs {size} bytes of it from byte {copy.start:#x} on; it has "
                          f"{copy.place.source.size}", "give the whole disk", Severity.ERROR)
            continue
        fails = tuple(c.place.disk for c in copies if c.own in copy.fails and c is not copy)
        legs.append(Leg(copy.place.disk, *part, None, (copy.generation,), copy.history,
                        (*copy.against, *_by_the_newest(copy, newest)), fails))
    missing = _missing(copies, newest)
    if missing:
        yield Finding(f"{name}: {len(missing)} of its {len(newest.slots)} copies not given", newest.where,
                      "; ".join(missing), "give all members, if they still exist; a single copy is read as it is",
                      Severity.WARNING)
    if not newest.clean:
        yield Finding(f"{name}: it was not shut down cleanly", newest.where,
                      "its copies may differ where writes were under way",
                      "nothing: one copy is taken for all of it; compare them to see where they differ", Severity.INFO)
    if legs and size > 0:
        yield Mirror(name, size, tuple(legs), Origin(manager, called or group[:8], group=group), missing)


def _by_the_newest(copy: Copy, newest: Copy) -> Iterator[str]:
    if copy is not newest and copy.own in newest.fails:
        yield f"the newest metadata ({newest.history}, on {newest.place.name}) calls it failed or missing"


def _missing(copies: Sequence[Copy], newest: Copy) -> tuple[str, ...]:
    """The copies that were not given. Intel's members do not say which they are: then all are named."""
    if newest.slot is not None:
        held = {copy.slot for copy in copies}
        return tuple(words for slot, words in enumerate(newest.slots) if slot not in held)
    count = len(newest.slots) - len(copies)
    return tuple(f"one of: {', '.join(newest.slots)}" for _ in range(max(count, 0)))
