"""SNIA DDF: the metadata that RAID controllers of several makers (and mdadm) keep at the end of each disk.

Source: the structures of mdadm's super-ddf.c; checked on members that mdadm made and with `mdadm --examine`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import construct as c

from p2v.binary import T, parse_bytes
from p2v.errors import Finding, LayoutError, Where
from p2v.model import SECTOR
from p2v.volume.members import Place, look

MAGIC, VIRTUAL, CONFIG, PHYSICAL, OWN = (
    bytes.fromhex(text) for text in ("de11de11", "dddddddd", "eeeeeeee", "22222222", "33333333"))
ANCHORS = (1, 257)  # sectors from the end
PRIMARY, SECONDARY = 1, 2
MOST_SECTION = 4096  # sectors of one section that are looked at: 4095 physical disks take 512
ONLINE, FAILED, REBUILDING, MISSING = 1, 2, 4, 64  # a physical disk's state
INCONSISTENT = 0x10
STATES = {0: "optimal", 1: "degraded", 2: "deleted", 3: "missing", 4: "failed", 5: "partially optimal"}
RAID1 = 1
LEVELS = {0: "RAID 0", 1: "RAID 1", 3: "RAID 3", 4: "RAID 4", 5: "RAID 5", 6: "RAID 6", 0x0F: "single disks",
          0x11: "RAID 1E", 0x15: "RAID 5E", 0x1F: "a span", 0x25: "RAID 5EE"}

HEADER_LAYOUT = c.Struct(
    "magic" / c.Bytes(4), "crc" / c.Int32ub, "guid" / c.Bytes(24), "revision" / c.Bytes(8), "seq" / c.Int32ub,
    "timestamp" / c.Int32ub, "openflag" / c.Int8ub, c.Padding(47), "primary_lba" / c.Int64ub,
    "secondary_lba" / c.Int64ub, "type" / c.Int8ub, c.Padding(15), "max_pd_entries" / c.Int16ub,
    "max_vd_entries" / c.Int16ub, "max_partitions" / c.Int16ub, "config_record_len" / c.Int16ub,
    "max_primary_element_entries" / c.Int16ub, c.Padding(54), "sections" / c.Array(16, c.Int32ub), c.Padding(256),
)
PHYSICAL_LAYOUT = c.Struct("guid" / c.Bytes(24), "refnum" / c.Int32ub, "type" / c.Int16ub, "state" / c.Int16ub,
                           c.Padding(32))
VIRTUAL_LAYOUT = c.Struct("guid" / c.Bytes(24), c.Padding(8), "state" / c.Int8ub, "init_state" / c.Int8ub,
                          c.Padding(14), "name" / c.Bytes(16))
CONFIG_LAYOUT = c.Struct(
    "magic" / c.Bytes(4), "crc" / c.Int32ub, "guid" / c.Bytes(24), "timestamp" / c.Int32ub, "seqnum" / c.Int32ub,
    c.Padding(24), "prim_elmnt_count" / c.Int16ub, "chunk_shift" / c.Int8ub, "prl" / c.Int8ub, "rlq" / c.Int8ub,
    "sec_elmnt_count" / c.Int8ub, "sec_elmnt_seq" / c.Int8ub, "srl" / c.Int8ub, "blocks" / c.Int64ub,
    "array_blocks" / c.Int64ub, c.Padding(424),
)


@dataclass(frozen=True, slots=True)
class Header:
    """Anchor, primary or secondary header. sections: (offset, length) pairs in sectors from the header."""

    magic: bytes
    guid: bytes
    seq: int
    openflag: int
    primary_lba: int
    secondary_lba: int
    type: int
    config_record_len: int
    max_primary_element_entries: int
    sections: tuple[int, ...]

    def section(self, number: int) -> tuple[int, int]:
        """(offset, length) in sectors: 0 controller, 1 physical, 2 virtual, 3 config, 4 data."""
        return self.sections[2 * number], self.sections[2 * number + 1]


@dataclass(frozen=True, slots=True)
class PhysicalDisk:
    """A disk of the group. refnum: what configurations call it."""

    refnum: int
    state: int


@dataclass(frozen=True, slots=True)
class VirtualDisk:
    """A RAID volume, as it is doing."""

    guid: bytes
    state: int
    init_state: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Config:
    """A RAID volume, as it is laid out. Sizes in sectors."""

    guid: bytes
    seqnum: int
    prim_elmnt_count: int
    prl: int
    sec_elmnt_count: int
    blocks: int
    array_blocks: int


@dataclass(frozen=True, slots=True)
class Set:
    """A RAID volume on this disk. members: refnums in order. starts: byte offset on each member. size: bytes."""

    guid: bytes
    name: str
    level: int
    simple: bool
    size: int
    members: tuple[int, ...]
    starts: tuple[int, ...]
    state: str
    clean: bool


@dataclass(frozen=True, slots=True)
class Metadata:
    """What one disk carries. at: byte offset of its anchor. own: its refnum. disks: refnum → state."""

    at: int
    seq: int
    own: int
    disks: Mapping[int, int]
    sets: tuple[Set, ...]


def read_metadata(place: Place) -> Metadata | Finding | None:
    """A disk's metadata; None where there is none. Raises LayoutError for one that cannot be trusted."""
    for sectors in ANCHORS:
        at = (place.source.size // SECTOR - sectors) * SECTOR
        data = look(place, at, SECTOR, "a DDF anchor")
        if isinstance(data, Finding):
            return data
        if data.startswith(MAGIC):
            return _Reader(place, at, data).metadata()
    return None


class _Reader:
    """One disk's metadata, section by section. Raises LayoutError throughout."""

    def __init__(self, place: Place, at: int, anchor: bytes) -> None:
        self.place, self.at = place, at
        self.anchor = self._header(anchor, at)

    def metadata(self) -> Metadata:
        """All that is wanted of it, by the newer of its two headers."""
        found, problems = [], []
        for lba, type in ((self.anchor.primary_lba, PRIMARY), (self.anchor.secondary_lba, SECONDARY)):
            try:
                header = self._header(self._read(lba, 1, "header"), lba * SECTOR)
                if header.type == type and header.guid == self.anchor.guid:
                    # openflag: while it is set, this header is being written
                    found.append((not header.openflag, header.seq, -type, lba, header))
            except LayoutError as error:
                problems.append(error)
        if not found:
            raise problems[0] if problems else self._broken(self.at, "neither of its headers is the anchor's")
        *_, base, header = max(found, key=lambda entry: entry[:3])
        own = self._section(base, header, 4, OWN, "data")
        disks = {disk.refnum: disk.state for disk in self._entries(base, header, 1, PHYSICAL, PHYSICAL_LAYOUT,
                                                                   PhysicalDisk)}
        virtual = {disk.guid: disk for disk in self._entries(base, header, 2, VIRTUAL, VIRTUAL_LAYOUT, VirtualDisk)}
        return Metadata(self.at, header.seq, int.from_bytes(own[32:36], "big"), disks,
                        tuple(self._sets(base, header, virtual)))

    def _sets(self, base: int, header: Header, virtual: Mapping[bytes, VirtualDisk]) -> list[Set]:
        start, length = header.section(3)
        step, most = header.config_record_len, header.max_primary_element_entries
        if not 1 <= step <= 512 or not 1 <= most <= 4096 or 512 + 12 * most > step * SECTOR:
            raise self._broken(self.at, f"configuration records of {step} sectors for {most} disks")
        data = self._read(base + start, length, "configuration records")
        found = []
        for at in range(0, len(data) - step * SECTOR + 1, step * SECTOR):
            raw = data[at:at + step * SECTOR]
            if raw.startswith(CONFIG):
                self._check(raw, (base + start) * SECTOR + at)
                found.append(self._set(raw, most, virtual, (base + start) * SECTOR + at))
        return found

    def _set(self, raw: bytes, most: int, virtual: Mapping[bytes, VirtualDisk], at: int) -> Set:
        config = parse_bytes(CONFIG_LAYOUT, raw[:512], Config, "a DDF configuration record",
                             self.place.where(at, len(raw)))
        count = config.prim_elmnt_count
        if not 1 <= count <= most:
            raise self._broken(at, f"{count} disks in a record with room for {most}")
        refs = tuple(int.from_bytes(raw[512 + 4 * i:516 + 4 * i], "big") for i in range(count))
        first = 512 + 4 * most
        starts = tuple(int.from_bytes(raw[first + 8 * i:first + 8 * i + 8], "big") * SECTOR for i in range(count))
        state = virtual.get(config.guid)
        name = _text(state.name) if state else ""
        return Set(config.guid, name or config.guid.hex()[:8], config.prl, config.sec_elmnt_count <= 1,
                   config.array_blocks * SECTOR, refs, starts,
                   STATES.get(state.state & 7, "unknown") if state else "unknown",
                   not (state and state.state & INCONSISTENT))

    # -- bytes

    def _header(self, data: bytes, at: int) -> Header:
        self._check(data, at)
        header = parse_bytes(HEADER_LAYOUT, data, Header, "a DDF header", self.place.where(at, SECTOR))
        if header.magic != MAGIC:
            raise self._broken(at, "no DDF header lies where the anchor says")
        return header

    def _section(self, base: int, header: Header, number: int, magic: bytes, what: str) -> bytes:
        start, length = header.section(number)
        data = self._read(base + start, length, what)
        if not data.startswith(magic):
            raise self._broken((base + start) * SECTOR, f"the section of {what} does not begin as it should")
        self._check(data, (base + start) * SECTOR)
        return data

    def _entries(self, base: int, header: Header, number: int, magic: bytes, layout: c.Construct,
                 into: type[T]) -> list[T]:
        data = self._section(base, header, number, magic, "disks")
        where = self.place.where((base + header.section(number)[0]) * SECTOR, len(data))
        raws = (data[at:at + 64] for at in range(64, len(data) - 63, 64))
        return [parse_bytes(layout, raw, into, "a DDF record", where) for raw in raws if raw.strip(b"\xff\0")]

    def _read(self, lba: int, sectors: int, what: str) -> bytes:
        if not 1 <= sectors <= MOST_SECTION:
            raise self._broken(self.at, f"{sectors} sectors of {what}")
        data = look(self.place, lba * SECTOR, sectors * SECTOR, f"DDF {what}")
        if isinstance(data, Finding):
            raise LayoutError(data.what, data.where, data.why, data.next)
        if not data:
            raise self._broken(self.at, f"its {what} lie outside the disk, at sector {lba}")
        return data

    def _check(self, data: bytes, at: int) -> None:
        stored = int.from_bytes(data[4:8], "big")
        blank = data[:4] + b"\xff" * 4 + data[8:]
        computed = zlib.crc32(blank, 0xFFFFFFFF) ^ 0xFFFFFFFF  # begins with 0 and is not inverted
        if stored not in (computed, zlib.crc32(blank)):
            raise self._broken(at, f"stored CRC {stored:#010x}, computed {computed:#010x}")

    def _broken(self, at: int, why: str) -> LayoutError:
        where: Where = self.place.where(at, SECTOR, "DDF metadata")
        return LayoutError(f"{self.place.name}: DDF metadata cannot be trusted", where,
                           f"{why}; what this disk is a member of cannot be told",
                           "give the other members of the set without this one")


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace").strip()
    return "".join(char if char.isalnum() or char in "-_.:+" else "_" for char in text)
