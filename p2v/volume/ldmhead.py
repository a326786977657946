"""PRIVHEAD: the sector that makes a disk dynamic. It has three copies on a disk with an MBR, two with a GPT.

None is trusted for lying where it should: of the good copies the one with the highest sequence counts.
Source: the LDM documentation of Linux-NTFS; checked on the disks of libldm's test data.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Severity, Where
from p2v.model import Source, read
from p2v.volume import ldmrecords as records
from p2v.volume.ldmrecords import NEXT, SECTOR, PrivHead, printable

FIRST_COPY = 6  # LBA of PRIVHEAD on a disk with an MBR
SECONDARY = 1856  # sectors from the start of a private region to its second PRIVHEAD
PRIVATE_SECTORS = 2048  # of a private region, on all disks seen
MOST_COPIES = 16  # of PRIVHEAD: 3 on a healthy disk


def read_head(disk: str, source: Source, metadata: tuple[int, int] | None) -> tuple[int, PrivHead, list[Finding]]:
    """The PRIVHEAD in force, the byte at which it lies, and what is wrong with the other copies.

    disk: its id in the plan. metadata: offset and length of the LDM metadata partition of a GPT disk; None with
    an MBR. Raises LayoutError where no copy can be trusted, ReadError where none can be read.
    """
    copies: dict[int, PrivHead] = {}
    places = list(_first_places(source, metadata))
    trouble: LayoutError | ReadError | None = None
    for place in places:  # grows: a copy that can be read says where the others are
        try:
            copies[place] = _head(source, place)
        except (LayoutError, ReadError) as error:
            trouble = trouble or error
            continue
        places += [due for due in _due(copies[place]) if due not in places and len(places) < MOST_COPIES]
    if not copies:
        raise trouble or LayoutError("no LDM header", Where(source.name), "the disk is too small", NEXT)
    place = max(copies, key=lambda place: (copies[place].sequence, copies[place].updated))
    head = copies[place]
    due = {*_due(head), *([] if metadata else [FIRST_COPY * SECTOR])}
    findings = [_said(disk, source, place, "a copy of the LDM header is damaged, missing or cannot be read",
                      "another copy is used", "nothing") for place in sorted(due & set(places) - set(copies))]
    findings += [_said(disk, source, place,
                       f"copies of the LDM header differ: sequence {copy.sequence}, in force is {head.sequence}",
                       printable(f"it says disk {copy.disk_guid} of group {copy.group_guid}; "
                                 f"used is disk {head.disk_guid} of group {head.group_guid}"),
                       "nothing, if the disk was cloned or moved")
                 for place, copy in sorted(copies.items()) if copy != head]
    return place, head, findings


def _said(disk: str, source: Source, place: int, what: str, why: str, next: str) -> Finding:
    return Finding(f"{disk}: {what}", Where(source.name, place, SECTOR, "PRIVHEAD"), why, next, Severity.WARNING)


def _first_places(source: Source, metadata: tuple[int, int] | None) -> Iterator[int]:
    """Where the first PRIVHEAD is looked for, as bytes."""
    if metadata is not None:
        offset, length = metadata
        yield offset + length - SECTOR
        yield offset + SECONDARY * SECTOR
        return
    yield FIRST_COPY * SECTOR
    sectors = source.size // SECTOR
    if sectors > PRIVATE_SECTORS:  # the private region lies at the end
        yield (sectors - 1) * SECTOR
        yield (sectors - PRIVATE_SECTORS + SECONDARY) * SECTOR


def _due(head: PrivHead) -> tuple[int, int]:
    """Where its two copies in the private region lie, as bytes of the disk."""
    private = head.private_start_sectors
    return (private + head.primary_sector) * SECTOR, (private + head.secondary_sector) * SECTOR


def _head(source: Source, offset: int) -> PrivHead:
    raw = checked(source, offset, "PRIVHEAD")
    where = Where(source.name, offset, SECTOR, "PRIVHEAD")
    return parse_bytes(records.PRIVHEAD_LAYOUT, raw, PrivHead, "the LDM header", where)


def checked(source: Source, offset: int, magic: str) -> bytes:
    """A sector whose mark and checksum are good. Raises LayoutError, ReadError."""
    where = Where(source.name, max(offset, 0), SECTOR, magic)
    if not 0 <= offset <= source.size - SECTOR:
        raise LayoutError(f"{magic} lies outside the disk", where, f"the disk has {source.size} bytes", NEXT)
    raw = read(source, offset, SECTOR)
    if raw[:8] != magic.encode():
        raise LayoutError(f"no {magic} where one is due", where, "its mark is missing", NEXT)
    stored = int.from_bytes(raw[records.CHECKSUM:records.CHECKSUM + 4], "big")
    if records.checksum(raw) != stored:
        raise LayoutError(f"{magic} cannot be trusted", where,
                          f"stored checksum {stored:#x}, computed {records.checksum(raw):#x}", NEXT)
    return raw
