"""Linux md arrays that are no mirrors: their members in order, those that must not be read left out, as a Volume.

Source: md.4 and Assemble.c of mdadm (members whose event count is more than one behind are not used).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from p2v.errors import Finding, Severity
from p2v.model import Member, Origin, Source, Volume
from p2v.source import parity
from p2v.source.linear import Linear
from p2v.source.raid10 import Raid10
from p2v.source.striped import Striped
from p2v.volume.mdsuper import LEVELS, NEW_BYTES, Superblock
from p2v.volume.members import Place, window

MARGIN = 1  # events that a member may be behind
LAYOUTS = {-1: "spanned", 0: "striped", 4: "raid4", 5: "raid5", 6: "raid6", 10: "raid10"}
SPARED = {4: 1, 5: 1, 6: 2}  # members that may be missing; of raid10 it depends on which
Part = tuple[Source, Member]
Given = tuple[Place, Superblock]


def assemble(name: str, origin: Origin, newest: Superblock, devices: Sequence[Given]) -> Iterator[Volume | Finding]:
    """The array's Volume, or the ERROR finding that says why there is none."""
    parts: dict[int, Part] = {}
    for place, sb in devices:
        where = place.where(sb.at, NEW_BYTES, "md superblock")
        reason = _unfit(newest, sb)
        part = window(place, sb.data_offset, sb.used, f"{name} on {place.name}")
        if reason:
            yield Finding(f"{name}: {place.name} is left out", where, reason,
                          "give the current member in its place, if there is one", Severity.WARNING)
        elif part is None:
            yield Finding(f"{name}: {place.name} is cut short, it is left out", where,
                          f"the array needs {sb.used} bytes of it; it has {place.source.size}, metadata included",
                          "give the whole disk", Severity.ERROR)
        elif sb.role in parts:
            yield Finding(f"{name}: two disks claim slot {sb.role}", where,
                          f"{place.name} and {parts[sb.role][1].disk}, with the same event count {sb.events}: "
                          "which of them is true cannot be told", "leave one of the two out", Severity.ERROR)
            return
        else:
            parts[sb.role] = part
    missing = [slot for slot in range(newest.raid_disks) if slot not in parts]
    yield from _losses(name, newest, devices, missing)
    if not parts or (len(missing) > SPARED.get(newest.level, 0) and newest.level != 10):
        return
    try:
        source = _source(name, newest, parts)
    except ValueError as error:
        place, sb = devices[0]
        yield Finding(f"{name}: this {LEVELS[newest.level]} cannot be put together",
                      place.where(sb.at, NEW_BYTES, "md superblock"), str(error),
                      "give all members, each as a whole disk", Severity.ERROR)
        return
    yield Volume(name, source, LAYOUTS[newest.level], tuple(parts[slot][1] for slot in sorted(parts)), None, origin)


def _unfit(newest: Superblock, sb: Superblock) -> str:
    """Why a member must not be read; "" for one that may."""
    if sb.role < 0:
        return "it is a spare or faulty: it holds no part of the array"
    if sb.events < newest.events - MARGIN:
        return f"it is old: it has {sb.events} events, the newest member {newest.events}"
    if not newest.knows(sb):
        return "the newest superblock calls it faulty, removed or replaced"
    if sb.recovered is not None and sb.recovered < newest.size:
        return f"it was being rebuilt: only its first {sb.recovered} of {newest.size} bytes are good"
    shapes = [(s.layout, s.chunk, s.raid_disks, s.size) for s in (sb, newest)]
    return "" if shapes[0] == shapes[1] else f"its (layout, chunk, disks, size) are {shapes[0]}, not {shapes[1]}"


def _losses(name: str, newest: Superblock, devices: Sequence[Given], missing: Sequence[int]) -> Iterator[Finding]:
    if not missing:
        return
    place, sb = devices[0]
    where = place.where(sb.at, NEW_BYTES, "md superblock")
    slots = ", ".join(str(slot) for slot in missing[:16]) + (" and more" if len(missing) > 16 else "")
    lost = len(missing) > SPARED.get(newest.level, 0) and newest.level != 10
    yield Finding(f"{name}: {len(missing)} of its {newest.raid_disks} members missing, slot {slots}", where,
                  f"a {LEVELS[newest.level]} cannot be read without " + ("them" if lost else "loss of its safety: "
                  "a bad sector of another member now costs data"),
                  "give all members" + ("" if lost else ", if they still exist"),
                  Severity.ERROR if lost else Severity.WARNING)
    if not lost and newest.resync is not None and newest.level in SPARED:
        yield Finding(f"{name}: it was not shut down cleanly, and lacks a member", where,
                      "what was being written may not agree with its parity: the missing member's part of those "
                      "stripes comes out wrong", "give the missing member, or check the files after the conversion",
                      Severity.WARNING)


def _source(name: str, newest: Superblock, parts: Mapping[int, Part]) -> Source:
    """Raises ValueError."""
    if newest.level == -1:
        return Linear([parts[slot][0] for slot in sorted(parts)], name)
    if newest.level == 0:
        return _striped(name, newest, [parts[slot][0] for slot in sorted(parts)])
    if newest.level == -1:
        return Linear([parts[slot][0] for slot in sorted(parts)], name)
    if newest.level == 0:
        return _striped(name, newest, [parts[slot][0] for slot in sorted(parts)])
    members = [parts[slot][0] if slot in parts else None for slot in range(newest.raid_disks)]
    return (_raid10 if newest.level == 10 else _parity)(name, newest, members)


def _striped(name: str, newest: Superblock, members: list[Source]) -> Source:
    if newest.layout not in (1, 2) and len({member.size for member in members}) > 1:
        raise ValueError("its members differ in size, and it does not say whether a kernel before or since 3.14 "
                         "laid it out")
    return Striped(members, newest.chunk, name, zones="alternate" if newest.layout == 2 else "original")


def _parity(name: str, newest: Superblock, members: list[Source | None]) -> Source:
    if newest.level != 4 and newest.layout >= len(parity.LAYOUTS):
        raise ValueError(f"layout {newest.layout:#x} is not known")
    layout = "parity-last" if newest.level == 4 else parity.LAYOUTS[newest.layout]
    size = newest.size // newest.chunk * newest.chunk * (newest.raid_disks - SPARED[newest.level])
    return parity.Parity(members, newest.chunk, name, level=newest.level, layout=layout, size=size)


def _raid10(name: str, newest: Superblock, members: list[Source | None]) -> Source:
    near, far, offset = newest.layout & 0xFF, newest.layout >> 8 & 0xFF, bool(newest.layout >> 16 & 1)
    if newest.layout >> 17:
        raise ValueError(f"layout {newest.layout:#x} is not known")
    return Raid10(members, newest.chunk, name, near=near, far=far, offset=offset)
