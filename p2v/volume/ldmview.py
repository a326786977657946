"""What one LDM database says, its records linked: volumes of components of partition records on disks.

The records were read one by one and may contradict each other: whatever does not add up is a LayoutError for
its volume alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from p2v.errors import LayoutError, Where
from p2v.volume.ldmrecords import (
    CONCATENATED,
    RAID5,
    STRIPED,
    ComponentRecord,
    DiskRecord,
    DiskRecord4,
    Flag,
    PartitionRecord,
    Record,
    VolumeRecord,
)

ACTIVE = "ACTIVE"
MOST_COLUMNS = 1024  # 32 for Windows
NEXT = "compare the volumes with what the machine showed"

AnyDisk: TypeAlias = DiskRecord | DiskRecord4

VOLUME_FLAGS = {Flag.VOLUME_CRASHED: "crashed", Flag.VOLUME_KDETACH: "detached by the kernel",
                Flag.VOLUME_PENDING: "pending"}
COMPONENT_FLAGS = {Flag.COMPONENT_RECOVER: "to be recovered", Flag.COMPONENT_IOFAIL: "marked for I/O errors",
                   Flag.COMPONENT_PENDING: "pending"}
PARTITION_FLAGS = {Flag.PARTITION_RECOVER: "to be recovered", Flag.PARTITION_KDETACH: "detached by the kernel"}
DISK_FLAGS = {Flag.DISK_FAILING: "failing", Flag.DISK_MERGE_REQUIRED: "to be merged", Flag.DISK_REMOVED: "removed",
              Flag.DISK_DETACHED: "detached"}
FAILED_DISK = Flag.DISK_FAILING | Flag.DISK_REMOVED | Flag.DISK_DETACHED


@dataclass(frozen=True, slots=True)
class View:
    """One database: its records by what they belong to. Each list is in the order of the records' numbers."""

    volumes: tuple[VolumeRecord, ...]
    by_guid: dict[bytes, VolumeRecord]
    components: dict[int, list[ComponentRecord]]
    partitions: dict[int, list[PartitionRecord]]
    disks: dict[int, AnyDisk]

    def components_by_guid(self, guid: bytes) -> list[ComponentRecord]:
        """Those of the volume of that GUID; none where there is no such volume."""
        return self.components.get(self.by_guid[guid].id, []) if guid in self.by_guid else []

    def knows(self, guid: str) -> bool:
        """Is there a disk of that GUID (lower case)?"""
        return any(disk.guid.lower() == guid for disk in self.disks.values())

    def components_of(self, volume: VolumeRecord) -> list[ComponentRecord]:
        """All of them. Raises LayoutError where the volume counts others."""
        found = self.components.get(volume.id, [])
        if len(found) != volume.components or not found:
            raise _contradiction(f"volume {volume.name} has {volume.components} components",
                                 f"{len(found)} are there")
        return found

    def columns_of(self, component: ComponentRecord) -> list[list[PartitionRecord]]:
        """Its partition records by column, each column from its start on without a gap.

        Raises LayoutError where they do not add up.
        """
        found = self.partitions.get(component.id, [])
        if len(found) != component.partitions or not found:
            raise _contradiction(f"component {component.name} has {component.partitions} partition records",
                                 f"{len(found)} are there")
        count = 1 if component.layout == CONCATENATED else component.columns or 0
        if component.layout not in (STRIPED, CONCATENATED, RAID5) or not 1 <= count <= MOST_COLUMNS:
            raise _contradiction(f"component {component.name} is of layout {component.layout} with {count} columns",
                                 "nobody knows how to read it")
        columns: list[list[PartitionRecord]] = [[] for _ in range(count)]
        for record in found:
            if not 0 <= (record.column or 0) < count:
                raise _contradiction(f"{record.name} is of column {record.column}",
                                     f"component {component.name} has {count}")
            columns[record.column or 0].append(record)
        for number, column in enumerate(columns):
            column.sort(key=lambda record: record.offset_sectors)
            _without_gap(component, number, column)
        return columns

    def shape(self, component: ComponentRecord) -> tuple[object, ...]:
        """Where its bytes lie, so that two databases can be compared."""
        return component.layout, component.stripe_sectors, component.columns, tuple(
            (record.column or 0, record.offset_sectors, record.start_sectors, record.sectors,
             self.disks[record.disk_id].guid.lower() if record.disk_id in self.disks else "")
            for record in sorted(self.partitions.get(component.id, []),
                                 key=lambda record: (record.column or 0, record.offset_sectors, record.id)))

    def against(self, volume: VolumeRecord, component: ComponentRecord) -> tuple[str, ...]:
        """What this database holds against a component, in words. A state that nobody knows is a bad one."""
        told = [f"volume {volume.name} is {_state(volume.state)}"] if volume.state != ACTIVE else []
        told += _flags(f"volume {volume.name}", volume.flags, VOLUME_FLAGS)
        told += [f"component {component.name} is {_state(component.state)}"] if component.state != ACTIVE else []
        told += _flags(f"component {component.name}", component.flags, COMPONENT_FLAGS)
        for record in self.partitions.get(component.id, []):
            told += self.against_partition(record)
        return tuple(dict.fromkeys(told))

    def against_partition(self, record: PartitionRecord) -> list[str]:
        """What it holds against one partition record and its disk."""
        told = _flags(f"partition {record.name}", record.flags, PARTITION_FLAGS)
        disk = self.disks.get(record.disk_id)
        return told + (_flags(f"disk {disk.name}", disk.flags, DISK_FLAGS) if disk else [])

    def fails(self, guid: bytes) -> set[str]:
        """GUIDs, lower case, of the disks under a volume that this database calls failed, detached or gone."""
        failed = set()
        for component in self.components_by_guid(guid):
            for record in self.partitions.get(component.id, []):
                disk = self.disks.get(record.disk_id)
                if disk and (disk.flags & FAILED_DISK or record.flags & Flag.PARTITION_KDETACH
                             or component.flags & Flag.COMPONENT_IOFAIL):
                    failed.add(disk.guid.lower())
        return failed


def view_of(records: Iterable[Record]) -> View:
    """The records of one database, linked."""
    ordered = sorted(records, key=lambda record: record.id)
    components: dict[int, list[ComponentRecord]] = {}
    partitions: dict[int, list[PartitionRecord]] = {}
    for record in ordered:
        if isinstance(record, ComponentRecord):
            components.setdefault(record.parent_id, []).append(record)
        elif isinstance(record, PartitionRecord):
            partitions.setdefault(record.parent_id, []).append(record)
    volumes = tuple(record for record in ordered if isinstance(record, VolumeRecord))
    return View(volumes, {volume.guid: volume for volume in volumes}, components, partitions,
                {record.id: record for record in ordered if isinstance(record, DiskRecord | DiskRecord4)})


def _without_gap(component: ComponentRecord, number: int, column: list[PartitionRecord]) -> None:
    end = 0
    for record in column:
        if record.offset_sectors != end or record.sectors <= 0:
            raise _contradiction(f"{record.name} lies at sector {record.offset_sectors} of its column",
                                 f"the one before it in component {component.name} ends at {end}")
        end += record.sectors
    if not column:
        raise _contradiction(f"column {number} of component {component.name} has no partition record",
                             "its bytes lie nowhere")


def _contradiction(what: str, why: str) -> LayoutError:
    return LayoutError(what, Where(item="LDM database"), why, NEXT)


def _state(state: str) -> str:
    return "".join(letter for letter in state if letter.isprintable()) or "in no state"


def _flags(name: str, flags: int, words: dict[int, str]) -> list[str]:
    return [f"{name} is {word}" for flag, word in words.items() if flags & flag]
