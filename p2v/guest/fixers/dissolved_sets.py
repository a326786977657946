"""Where mirrors and dynamic volumes became plain partitions, the registry must name those: letters and sets.

2000 and later know volumes by MountedDevices, NT 4 by DISK\\Information. Letters must stay, or Windows cannot
log on (KB 249321); a set in the registry without its members ends in STOP C000021A (Q139843).
Sources: KB 249321, Q139820, Q139843, KB 824207, KB 236086; the LDM on-disk notes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

from p2v.errors import Finding, LayoutError, Severity, Where
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits
from p2v.model import (
    REG_BINARY,
    Change,
    Collapsed,
    DWord,
    Family,
    Guest,
    Partition,
    Target,
    Text,
    Value,
)
from p2v.volume import ftregistry
from p2v.volume.ftregistry import DiskRow, FtState, FtType, Information, PartitionRow
from p2v.volume.mbr import CONTAINERS

NAME = "dissolved-sets"
MOUNTED = "MountedDevices"
LETTER = re.compile(r"[C-Z]:")
DISABLED = 4
SIGNATURE = slice(0x1B8, 0x1BC)


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Nothing for a guest whose disks are the server's own."""
    collapsed = guest.collapsed
    if guest.facts.family is not Family.WINDOWS or collapsed is None:
        return
    edits = Edits(guest, NAME)
    yield from _mounted(guest, edits, collapsed)
    if "ldm" in collapsed.managers:
        yield from _disk_groups(guest, edits)
    if guest.facts.version == (4, 0):
        yield from _ft_sets(guest, edits, collapsed)
    yield from _system_partition(guest, edits)


def identity(guest: Guest, volume: str) -> bytes:
    """The 12 bytes by which MountedDevices knows a basic partition: disk signature, then its offset in bytes."""
    place = guest.volumes[volume].members[0]
    return guest.read_bytes(place.disk, SIGNATURE.start, 4) + struct.pack("<Q", place.offset)


# ---------------------------------------------------------------------------------------------
# 2000 and later


def _mounted(guest: Guest, edits: Edits, collapsed: Collapsed) -> Iterator[Change]:
    """Letters and volume names keep their volumes; a letter that only the database knew gets its entry."""
    if not edits.tree.has(MOUNTED):
        return
    lettered = set()
    for name, value in edits.tree.values(MOUNTED).items():
        volume = collapsed.identities.get(value.data)
        if volume in guest.volumes:
            wanted = Value(value.type, identity(guest, str(volume)))
            if name.upper().startswith("\\DOSDEVICES\\"):
                lettered.add(str(volume))
            yield from edits.value(MOUNTED, name, wanted,
                                   f"{_device(name)} is now a plain partition: known by disk signature and offset")
    taken = {name.upper() for name in edits.tree.values(MOUNTED)}
    for volume, letter in collapsed.letters.items():
        name = f"\\DosDevices\\{letter}"
        known = volume in lettered or name.upper() in taken
        if volume in guest.volumes and not known and LETTER.fullmatch(letter):
            yield from edits.value(MOUNTED, name, Value(REG_BINARY, identity(guest, volume)),
                                   f"the disk group's database called this volume {letter}; it keeps its letter")


def _device(name: str) -> str:
    return name.rpartition("\\")[2]


def _disk_groups(guest: Guest, edits: Edits) -> Iterator[Change]:
    """No dynamic disk is left: what names the group that Windows started from goes, the drivers may stay."""
    why = "no dynamic disk is left; a named disk group that is not there ends in 0x7B (KB 824207)"
    for control_set in guest.facts.control_sets:
        key = f"{control_set}\\Services\\dmio\\Boot Info"
        yield from edits.without_key(f"{key}\\Primary Disk Group", why)
        yield from edits.without_value(key, "Primary Disk Group", why)


def _system_partition(guest: Guest, edits: Edits) -> Iterator[Change]:
    """Setup\\SystemPartition names the system volume by number; service packs look there."""
    before = edits.tree.value("Setup", "SystemPartition")
    partition = guest.volumes[guest.facts.system_volume].partition
    if before is None or partition is None:
        return
    if guest.facts.version == (4, 0):
        disk = list(guest.disks).index(partition.disk)
        wanted = f"\\Device\\Harddisk{disk}\\Partition{partition.number}"
    else:
        places = [p for p in guest.partitions if p.type not in CONTAINERS]
        wanted = f"\\Device\\HarddiskVolume{places.index(partition) + 1}"
    if before.text.lower() != wanted.lower():
        yield from edits.value("Setup", "SystemPartition", replace(Text(wanted), type=before.type),
                               "service packs and Setup look for the loader's files there")


# ---------------------------------------------------------------------------------------------
# NT 4


def _ft_sets(guest: Guest, edits: Edits, collapsed: Collapsed) -> Iterator[Change | Finding]:
    """DISK\\Information goes where NT's own letters are the same; else it is rewritten without sets."""
    value = edits.tree.value(ftregistry.KEY, ftregistry.VALUE)
    if value is not None:
        place = f"{HIVE}\\{ftregistry.KEY}:{ftregistry.VALUE}"
        try:
            information = ftregistry.parse(value.data, place)
        except LayoutError as error:
            yield Finding("drive letters may change: DISK\\Information cannot be read", error.where, error.why,
                          "note the letters that the server uses; set them in Disk Administrator after the first start",
                          Severity.WARNING, NAME)
            yield from edits.without_value(ftregistry.KEY, ftregistry.VALUE, _GONE)
        else:
            yield from _letters(guest, edits, collapsed, information, value)
    for control_set in guest.facts.control_sets:
        key = f"{control_set}\\Services\\Ftdisk"
        if number(edits.tree, key, "Start") is not None:
            yield from edits.value(key, "Start", DWord(DISABLED),
                                   "no fault-tolerant set is left: its driver stays off, as on a server without sets "
                                   "(Q139820)")


_GONE = ("no set is left: Windows NT makes this anew from the partition tables (Q139820); with sets in it whose "
         "members are plain partitions it would stop with C000021A")


def _letters(
    guest: Guest, edits: Edits, collapsed: Collapsed, information: Information, value: Value
) -> Iterator[Change | Finding]:
    if not information.sets and not any(row.is_member for disk in information.disks for row in disk.partitions):
        return
    known = dict(_known_letters(information, collapsed))
    automatic = _default_letters(guest)
    differing = {volume: letter for volume, letter in known.items() if automatic.get(volume) != letter}
    if not differing:
        yield from edits.without_value(ftregistry.KEY, ftregistry.VALUE, _GONE)
        return
    said = ", ".join(f"{letter} (Windows NT would choose {automatic.get(volume) or 'none'})"
                     for volume, letter in sorted(differing.items()))
    yield Finding("drive letters are kept in a rewritten DISK\\Information", Where(item=f"{HIVE}\\DISK:Information"),
                  f"the server uses {said}; this layout has never been seen in a real sample",
                  "look at the letters after the first start; Disk Administrator corrects them", Severity.WARNING, NAME)
    data = ftregistry.serialise(_without_sets(guest, information, collapsed))
    yield from edits.value(ftregistry.KEY, ftregistry.VALUE, replace(value, data=data),
                           "members of sets are plain partitions now, and keep their letters")


def _known_letters(information: Information, collapsed: Collapsed) -> Iterator[tuple[str, str]]:
    """(Volume.name now, its letter) of every partition that Disk Administrator has given one."""
    for disk in information.disks:
        for row in disk.partitions:
            volume = collapsed.identities.get(struct.pack("<IQ", disk.signature, row.offset))
            if volume and row.letter:
                yield volume, row.letter


def _default_letters(guest: Guest) -> Mapping[str, str]:
    """What NT 4 assigns by itself: each disk's first primary, then logical drives, then the other primaries."""
    def rank(partition: Partition) -> tuple[int, int]:
        first = next((p for p in guest.partitions if p.disk == partition.disk and not p.logical
                      and p.type not in CONTAINERS and (p.active or not _has_active(guest, p.disk))), None)
        if partition == first:
            return 0, list(guest.disks).index(partition.disk)
        return (1 if partition.logical else 2), list(guest.disks).index(partition.disk)

    volumes = {v.partition: name for name, v in guest.volumes.items() if v.partition}
    ordered = sorted((p for p in guest.partitions if p in volumes and p.number), key=rank)
    return {volumes[partition]: f"{chr(ord('C') + index)}:" for index, partition in enumerate(ordered[:24])}


def _has_active(guest: Guest, disk: str) -> bool:
    return any(p.active and not p.logical for p in guest.partitions if p.disk == disk)


def _without_sets(guest: Guest, information: Information, collapsed: Collapsed) -> Information:
    """The same value for the disks that there are now, every partition a plain one at its place."""
    plain = next((row for disk in information.disks for row in disk.partitions if not row.is_member), None)
    rows: dict[str, PartitionRow] = {}
    for disk in information.disks:
        for row in disk.partitions:
            volume = collapsed.identities.get(struct.pack("<IQ", disk.signature, row.offset))
            if volume in guest.volumes:
                rows.setdefault(str(volume), row)
    disks = []
    for id in guest.disks:
        theirs = [replace(
            row, ft_type=int(FtType.NOT_A_MEMBER), ft_state=int(FtState.HEALTHY), ft_length=0,
            ft_group=plain.ft_group if plain else 0, ft_member=plain.ft_member if plain else 0,
            offset=guest.volumes[volume].members[0].offset, length=guest.volumes[volume].members[0].length)
            for volume, row in rows.items() if guest.volumes[volume].members[0].disk == id]
        signature = int.from_bytes(guest.read_bytes(id, SIGNATURE.start, 4), "little")
        disks.append(DiskRow(signature, tuple(sorted(theirs, key=lambda row: row.offset))))
    header = replace(information.header, dirty_shutdown=0, sets_size=0)
    return replace(information, header=header, disks=tuple(disks), sets=())
