"""libparted as a second reader of a partition table, for tests and for doubts.

It opens what it is given for writing, so it never sees a source: only the table sectors are copied, into a
sparse temporary file of the disk's size, and it reads those.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from p2v.errors import Finding, MissingTool, Severity, Where
from p2v.model import SECTOR, Partition, Source, read
from p2v.volume.mbr import CONTAINERS

GPT_PROTECTIVE = 0xEE


def compare(disk: str, source: Source, partitions: Sequence[Partition]) -> tuple[Finding, ...]:
    """Where libparted sees other partitions than these, by start and length; types do not matter.

    disk: its id in the plan. partitions: of that disk, as find_volumes() gave them. Nothing is compared on
    a disk without a table or with a GPT, or with sectors of 4096 bytes. Raises MissingTool, ReadError.
    """
    ours = {(p.offset, p.length) for p in partitions if not (p.logical and p.type in CONTAINERS)}
    if not ours or source.sector_size != SECTOR or any(p.type == GPT_PROTECTIVE for p in partitions):
        return ()
    theirs, trouble = _seen_by_libparted(source, {p.entry_offset // SECTOR * SECTOR for p in partitions}, ours)
    if trouble:
        return (_finding(disk, source, "libparted does not accept the partition table", trouble),)
    return tuple(
        _finding(disk, source, f"{who} sees a partition of {length} bytes at {offset:#x}, {other} does not",
                 "two readers of one table disagree")
        for who, other, places in (("p2v", "libparted", ours - theirs), ("libparted", "p2v", theirs - ours))
        for offset, length in sorted(places))


def _seen_by_libparted(
    source: Source, tables: set[int], places: set[tuple[int, int]]
) -> tuple[set[tuple[int, int]], str]:
    """((offset, length) of all partitions, or why there are none). places: the answer where it cannot be asked."""
    parted = _binding()
    raised = parted._ped  # the C module below: its exceptions have no other name
    with tempfile.NamedTemporaryFile(prefix="p2v-table-") as copy:
        try:
            copy.truncate(source.size)
        except OSError:  # larger than any file here may be: no second opinion is to be had
            return places, ""
        for offset in sorted(tables):
            copy.seek(offset)
            copy.write(read(source, offset, SECTOR))
        copy.flush()
        try:
            table = parted.newDisk(parted.getDevice(copy.name))
            unit = table.device.sectorSize
            return {(p.geometry.start * unit, p.geometry.length * unit) for p in table.partitions}, ""
        except (raised.DiskException, raised.IOException, raised.DeviceException, raised.GeometryException,
                raised.PartitionException) as error:
            return set(), str(error).replace(copy.name, source.name)


def _binding() -> Any:
    try:
        import parted
    except ImportError as error:
        raise MissingTool("the Python binding of libparted is not installed",
                          why="it is asked for a second opinion on partition tables",
                          next="apt-get install python3-parted; a virtual environment needs --system-site-packages "
                               "to see it") from error
    return parted


def _finding(disk: str, source: Source, what: str, why: str) -> Finding:
    return Finding(f"{disk}: {what}", Where(source.name, 0, SECTOR), why,
                   "compare both with what the machine shows", Severity.WARNING)
