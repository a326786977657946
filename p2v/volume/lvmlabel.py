"""Physical volumes of LVM2: label, header, and the metadata area with the text of the volume group.

Source: LVM2's own description of its on-disk structures (label.h, format_text/layout.h); checked with
`pvck --dump headers` and `pvck --dump metadata`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError
from p2v.model import SECTOR
from p2v.volume import lvmtext
from p2v.volume.lvmtext import Node
from p2v.volume.members import Place, look

LABEL = b"LABELONE"
LABEL_SECTORS = 4
LARGEST_TEXT = 4 << 20  # bytes; LVM makes areas of 1 MiB
MDA_MAGIC = b" LVM2 x[5A%r0N*>"
MDA_HEADER = 512
IGNORED = 1  # a metadata area that is not in use
SEED = 0xF597A6CF  # of all of LVM's checksums

LABEL_LAYOUT = c.Struct("id" / c.Bytes(8), "sector" / c.Int64ul, "crc" / c.Int32ul, "offset" / c.Int32ul,
                        "type" / c.Bytes(8))
MDA_LAYOUT = c.Struct("crc" / c.Int32ul, "magic" / c.Bytes(16), "version" / c.Int32ul, "start" / c.Int64ul,
                      "size" / c.Int64ul, "offset" / c.Int64ul, "length" / c.Int64ul, "checksum" / c.Int32ul,
                      "flags" / c.Int32ul, c.Padding(448))


@dataclass(frozen=True, slots=True)
class Label:
    """The label's sector. sector: where it says that it lies; offset: of the header in it."""

    id: bytes
    sector: int
    crc: int
    offset: int
    type: bytes


@dataclass(frozen=True, slots=True)
class Area:
    """A metadata area's header with the first of its places of text: offset from start, bytes."""

    crc: int
    magic: bytes
    version: int
    start: int
    size: int
    offset: int
    length: int
    checksum: int
    flags: int


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A place that belongs to a volume group. uuid: 32 characters. at: byte of its label.

    group: the whole text of its group as this volume has it; None where it keeps no copy.
    """

    place: Place
    at: int
    uuid: str
    group: Mapping[str, Node] | None


def read_physical_volume(place: Place) -> PhysicalVolume | Finding | None:
    """None where there is no label. Raises LayoutError for one that cannot be trusted."""
    for at in range(0, LABEL_SECTORS * SECTOR, SECTOR):
        data = look(place, at, SECTOR, "a label of LVM")
        if isinstance(data, Finding):
            if at:
                return data
            continue  # of sector 0 the table's own reader tells
        if data.startswith(LABEL) and data[24:32] == b"LVM2 001":
            return _of_label(place, at, data)
    return None


def checksum(data: bytes) -> int:
    """As LVM computes it."""
    return zlib.crc32(data, SEED ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _of_label(place: Place, at: int, data: bytes) -> PhysicalVolume:
    where = place.where(at, SECTOR, "LVM label")
    label = parse_bytes(LABEL_LAYOUT, data[:32], Label, "the label of LVM", where)
    if checksum(data[20:]) != label.crc or not 32 <= label.offset <= SECTOR - 40:
        raise _broken(place, at, f"stored {label.crc:#010x}, computed {checksum(data[20:]):#010x}")
    uuid = data[label.offset:label.offset + 32].decode("ascii", "replace")
    group = None
    for start, size in _areas(data[label.offset + 40:]):
        group = group or _text(place, start, size)
    return PhysicalVolume(place, at, uuid, group)


def _areas(locations: bytes) -> list[tuple[int, int]]:
    """The metadata areas: data areas come first; a pair of zeroes ends each list."""
    found: list[tuple[int, int]] = []
    lists = 0
    for at in range(0, len(locations) - 15, 16):
        offset = int.from_bytes(locations[at:at + 8], "little")
        size = int.from_bytes(locations[at + 8:at + 16], "little")
        if not offset:
            lists += 1
            if lists == 2:
                break
        elif lists == 1:
            found.append((offset, size))
    return found


def _text(place: Place, start: int, size: int) -> Mapping[str, Node] | None:
    """The group's text in a metadata area; None for an area that is not in use."""
    data = look(place, start, MDA_HEADER, "metadata of LVM")
    if isinstance(data, Finding):
        raise LayoutError(data.what, data.where, data.why, data.next)
    if not data:
        raise _broken(place, start, "it lies outside its medium")
    area = parse_bytes(MDA_LAYOUT, data, Area, "the metadata of LVM", place.where(start, MDA_HEADER))
    if checksum(data[4:]) != area.crc or area.magic != MDA_MAGIC or area.start != start:
        raise _broken(place, start, f"stored {area.crc:#010x}, computed {checksum(data[4:]):#010x}")
    if not area.offset or area.flags & IGNORED:
        return None
    size = area.size
    if not 0 < area.length <= LARGEST_TEXT or not MDA_HEADER <= area.offset < size or area.length > size - MDA_HEADER:
        raise _broken(place, start, f"{area.length} bytes of text at {area.offset:#x} of {size}")
    first = min(area.length, size - area.offset)  # it goes round
    raw = b""
    for offset, length in ((area.offset, first), (MDA_HEADER, area.length - first)):
        part = look(place, start + offset, length, "metadata of LVM") if length else b""
        if isinstance(part, Finding):
            raise LayoutError(part.what, part.where, part.why, part.next)
        raw += part
    if len(raw) < area.length or checksum(raw) != area.checksum:
        raise _broken(place, start, f"its text: stored {area.checksum:#010x}, computed {checksum(raw):#010x}")
    try:
        return lvmtext.parse(raw.decode("utf-8", "replace"))
    except ValueError as error:
        raise _broken(place, start, f"its text: {error}") from error


def _broken(place: Place, at: int, why: str) -> LayoutError:
    return LayoutError(f"{place.name}: the metadata of LVM cannot be trusted", place.where(at, SECTOR, "LVM metadata"),
                       f"{why}; where the parts of its volumes lie cannot be told",
                       "restore it on an image of the disk (vgcfgrestore), or give the group's other disks")
