"""Members of fault-tolerant sets that no hive describes: a survivor of a mirror can be told, the rest cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from p2v.errors import Finding, ReadError, Severity, Where
from p2v.model import Leg, Member, Mirror, Origin, Partition, Source
from p2v.volume.fthives import Looks, ToldByHive, base_type, is_disputed, looks, window
from p2v.volume.mbr import ENTRY_BYTES
from p2v.volume.problems import FT_TYPES


def undescribed(disks: Mapping[str, Source], strays: Sequence[Partition], partitions: Sequence[Partition],
                told: Sequence[ToldByHive]) -> Iterator[Mirror | Finding]:
    """What can be made of partitions (strays) that may be members of sets and that no hive describes.

    A filesystem that fits into its partition can only be half of a mirror; all else is a part of a set.
    partitions: all of these disks. told: the hives that there are.
    """
    looked = "no hive with a description of sets was found on these disks" if not told \
        else f"{', '.join(map(str, told))} says nothing of it that fits"
    alike: dict[tuple[int, Looks], list[Partition]] = {}
    for partition in strays:
        if partition.type in FT_TYPES:
            seen = _looks(disks, partition)
            if seen and not is_disputed(partition, partitions):
                alike.setdefault((base_type(partition), seen), []).append(partition)
            else:
                yield _unknown(disks, partition, seen, looked)
    for (_, seen), copies in alike.items():
        if len(copies) > 2 or len({copy.disk for copy in copies}) < len(copies):
            yield from (_unknown(disks, copy, seen, looked) for copy in copies)
        else:
            yield _mirror(disks, seen, copies)
            yield _said(disks, seen, copies, looked)


def _looks(disks: Mapping[str, Source], partition: Partition) -> Looks | None:
    """The filesystem that lies in this partition as a whole."""
    source = window(disks, partition)
    try:
        seen = looks(source) if source else None
    except ReadError:
        return None  # it is a member that tells nothing, and that is said
    return seen if seen and 0 < seen.size <= partition.length else None


def _mirror(disks: Mapping[str, Source], seen: Looks, copies: Sequence[Partition]) -> Mirror:
    name = f"mirror-{seen.serial}"
    size = min(copy.length for copy in copies)
    missing = () if len(copies) > 1 else ("the other copy: no hive says on which disk it is",)
    legs = []
    for copy in copies:
        source = window(disks, copy, size, f"ft.{name} on {copy.disk}")
        assert source is not None  # _looks() has read there
        against = ["no hive says which copy is the newer one"] if len(copies) > 1 else []
        against += marked_bad(copy)
        legs.append(Leg(copy.disk, source, Member(copy.disk, copy.offset, size), copy, (),
                        f"no hive tells of the mirror; {seen}", tuple(against)))
    return Mirror(f"ft.{name}", size, tuple(legs), Origin("ft", name, type=base_type(copies[0])), missing)


def marked_bad(partition: Partition) -> list[str]:
    """What the type holds against a member; empty for nothing."""
    bad = partition.type & 0xC0 == 0xC0
    return [f"its partition's type {partition.type:#04x} says that NT marked it bad"] if bad else []


def _said(disks: Mapping[str, Source], seen: Looks, copies: Sequence[Partition], looked: str) -> Finding:
    where = Where(disks[copies[0].disk].name, copies[0].entry_offset, ENTRY_BYTES)
    on = " and ".join(copy.disk for copy in copies)
    if len(copies) > 1:
        return Finding(f"{on}: two halves of a mirror ({seen}), and no hive that describes it", where,
                       f"{looked}; which of them is newer is not known",
                       "compare both (p2v inspect --compare), then choose with --leg", Severity.WARNING)
    return Finding(f"{on}: half of a mirror ({seen}); the other half is not here", where,
                   f"{looked}; this copy is read as it is, and may be the older one",
                   "give the disk with the other half, too, if there is one", Severity.WARNING)


def _unknown(disks: Mapping[str, Source], partition: Partition, seen: Looks | None, looked: str) -> Finding:
    holds = f"it holds {seen}" if seen else "no whole filesystem lies in it"
    return Finding(
        f"{partition.disk}: member of a fault-tolerant set (type {partition.type:#04x}, {partition.length} bytes) "
        "that no hive describes",
        Where(disks[partition.disk].name, partition.entry_offset, ENTRY_BYTES),
        f"{holds}; {looked}; without HKLM\\SYSTEM\\DISK, Information nobody knows its set",
        "give the disk with the system that used the set, whose registry describes it", Severity.ERROR)
