"""Disks → volumes. A volume reader is a module with NAME and find(disks), and one entry in READERS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2v.errors import Finding
from p2v.model import Mirror, Partition, Source, Volume
from p2v.volume import mbr


class VolumeReader(Protocol):
    """A module in volume/: one way to put volumes on disks."""

    NAME: str

    def find(self, disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Partition | Finding]:
        """What these disks hold. Damage is a finding, never an exception."""


READERS: Sequence[VolumeReader] = (mbr,)


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
    for reader in READERS:
        for found in reader.find(disks):
            if isinstance(found, Volume):
                volumes.append(found)
            elif isinstance(found, Mirror):
                mirrors.append(found)
            elif isinstance(found, Partition):
                partitions.append(found)
            else:
                findings.append(found)
    return Layout(tuple(volumes), tuple(partitions), tuple(findings), tuple(mirrors))
