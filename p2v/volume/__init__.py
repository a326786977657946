"""Disks → volumes. A volume reader is a module with NAME and find(disks), and one entry in READERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2v.errors import Finding
from p2v.model import Member, Mirror, Partition, Range, Source, Volume
from p2v.volume import firmware, ftdisk, gpt, ldm, lvm, mbr, md


class VolumeReader(Protocol):
    """A module in volume/: one way to put volumes on disks."""

    NAME: str

    def find(self, disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Partition | Member | Finding]:
        """What these disks hold. Damage is a finding, never an exception.

        A Member says that these bytes, a whole disk or a partition, are part of a set and no volume by themselves.
        """


READERS: Sequence[VolumeReader] = (md, firmware, lvm, mbr, gpt, ldm, ftdisk)
"""Those whose sets can take whole disks come first: what they claim, the others do not see."""
METADATA: Sequence[Callable[[Source], Iterable[Range]]] = (md.superblocks, firmware.metadata, ldm.private_bytes)
"""Each finds its manager's own bytes on a disk."""
DISSOLVED = frozenset({"ldm", "ft", "md", "imsm", "ddf"})  # managers whose sets become plain disks in a VM


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of the disks: in the order of the disks, then of their tables.

    mirrors: of which a leg must be chosen before anything is read from them.
    """

    volumes: tuple[Volume, ...]
    partitions: tuple[Partition, ...]
    findings: tuple[Finding, ...]
    mirrors: tuple[Mirror, ...] = ()


def find_volumes(disks: Mapping[str, Source]) -> Layout:
    """Ask every reader. disks: by id in the plan, in BIOS order ("disk0" is the boot disk).

    Reads metadata only. What cannot be read or contradicts itself is a finding of severity ERROR.
    """
    volumes: list[Volume] = []
    partitions: list[Partition] = []
    findings: list[Finding] = []
    mirrors: list[Mirror] = []
    claimed: list[Member] = []
    left = dict(disks)
    for reader in READERS:
        for found in reader.find(left):
            if isinstance(found, Volume):
                volumes.append(found)
            elif isinstance(found, Mirror):
                mirrors.append(found)
            elif isinstance(found, Partition):
                partitions.append(found)
            elif isinstance(found, Member):
                claimed.append(found)
            else:
                findings.append(found)
        left = {id: source for id, source in left.items() if Member(id, 0, source.size) not in claimed}
    plain = [volume for volume in volumes if volume.layout != "basic" or not _is_claimed(volume, claimed)]
    return Layout(tuple(plain), tuple(partitions), tuple(findings), tuple(mirrors))


def _is_claimed(volume: Volume, claimed: Sequence[Member]) -> bool:
    """Do any of its bytes belong to a set?"""
    return any(member.disk == claim.disk and member.offset < claim.offset + claim.length
               and claim.offset < member.offset + member.length for member in volume.members for claim in claimed)


def metadata_ranges(disk: Source) -> tuple[Range, ...]:
    """The bytes of a disk that volume managers keep for themselves, ascending: wiped where sets are dissolved."""
    found = {part for ranges in METADATA for part in ranges(disk)}
    return tuple(sorted(found, key=lambda part: part.offset))


def is_dissolved(volume: Volume) -> bool:
    """Does a volume belong to a manager whose sets become plain partitions?"""
    return volume.origin is not None and volume.origin.manager in DISSOLVED


def holds_sets(layout: Layout) -> bool:
    """Is there anything that a plain copy of each disk would not make a working VM of?"""
    return bool(layout.mirrors) or any(is_dissolved(volume) for volume in layout.volumes)
