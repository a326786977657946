"""Dynamic disks for tests: the metadata of libldm's 19 disks, as sources whose records can be changed."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from p2v.errors import Where
from p2v.model import Extent, Kind
from p2v.volume import ldmrecords as ldm
from p2v.volume.ldmrecords import PrivHead, Record, TocBlock, Vmdb

ARCHIVE = Path(__file__).parents[2] / "fixtures/volume/ldm/libldm-metadata.tar.xz"
SIZE = 52428800  # bytes of each disk
SECTOR = 512
CONFIG = 17 * SECTOR  # where the VMDB lies in the private region
SLOT = 128
FIRST_SLOT = 4


@functools.cache
def _pieces() -> dict[str, dict[int, bytes]]:
    found: dict[str, dict[int, bytes]] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            disk, _, offset = member.name.removeprefix("ldm-").partition("/")
            content = archive.extractfile(member)
            assert content is not None
            found.setdefault(disk, {})[int(offset, 16)] = content.read()
    return found


def names() -> tuple[str, ...]:
    """All 19: "2003r2-mirrored-1" …"""
    return tuple(sorted(_pieces()))


class Sparse:
    """A disk of a few pieces, zeroes between them. bad: offsets of sectors that cannot be read."""

    def __init__(self, name: str, size: int, pieces: dict[int, bytearray]) -> None:
        self.name, self.size, self.sector_size = name, size, SECTOR
        self.pieces = pieces

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not 0 <= offset <= offset + len(buffer) <= self.size:
            raise ValueError(f"{self.name}: no bytes {offset} to {offset + len(buffer)}")
        buffer[:] = bytes(len(buffer))
        for start, data in self.pieces.items():
            first, last = max(start, offset), min(start + len(data), offset + len(buffer))
            if first < last:
                buffer[first - offset:last - offset] = data[first - start:last - start]

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, Kind.DATA)

    def close(self) -> None:
        """Nothing is open."""

    def patch(self, offset: int, data: bytes) -> None:
        """Change bytes inside one piece."""
        start, piece = next((start, piece) for start, piece in self.pieces.items()
                            if start <= offset and offset + len(data) <= start + len(piece))
        piece[offset - start:offset - start + len(data)] = data

    def bytes_at(self, offset: int, length: int) -> bytes:
        """For tests."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)


class Ldm(Sparse):
    """One of the disks. private: the byte at which its private region starts."""

    def __init__(self, disk: str) -> None:
        super().__init__(disk, SIZE, {offset: bytearray(data) for offset, data in _pieces()[disk].items()})
        self.private = 34 * SECTOR if self.bytes_at(450, 1) == b"\xee" else SIZE - 2048 * SECTOR
        self.gpt = self.private == 34 * SECTOR

    def head_places(self) -> tuple[int, ...]:
        """Of all PRIVHEADs, as bytes."""
        inside = (self.private + 1856 * SECTOR, self.private + 2047 * SECTOR)
        return inside if self.gpt else (6 * SECTOR, *inside)

    def change_heads(self, **values: object) -> None:
        """Other values in every PRIVHEAD, with good checksums."""
        for place in self.head_places():
            raw = ldm.PRIVHEAD_LAYOUT.parse(self.bytes_at(place, SECTOR))
            head = replace(PrivHead(**{name: raw[name] for name in PrivHead.__slots__}), **values)
            self.patch(place, summed(ldm.PRIVHEAD_LAYOUT.build(_values(head))))

    def change_toc(self, sector: int, **values: object) -> None:
        """Other values in one TOCBLOCK, with a good checksum."""
        place = self.private + sector * SECTOR
        raw = ldm.TOCBLOCK_LAYOUT.parse(self.bytes_at(place, SECTOR))
        fields = {name: raw[name] for name in TocBlock.__slots__} | {"regions": tuple(raw["regions"])}
        self.patch(place, summed(ldm.TOCBLOCK_LAYOUT.build(_values(replace(TocBlock(**fields), **values)))))

    def change_vmdb(self, **values: object) -> None:
        """Other values in the VMDB."""
        place = self.private + CONFIG
        raw = ldm.VMDB_LAYOUT.parse(self.bytes_at(place, SECTOR))
        vmdb = replace(Vmdb(**{name: raw[name] for name in Vmdb.__slots__}), **values)
        self.patch(place, ldm.VMDB_LAYOUT.build(_values(vmdb)))

    def slots(self) -> Iterator[tuple[int, bytes]]:
        """Byte and content of each VBLK in use."""
        place = self.private + CONFIG
        data = self.bytes_at(place, 5924 * SLOT)
        for number in range(FIRST_SLOT, 5924):
            slot = data[number * SLOT:(number + 1) * SLOT]
            if slot[14:16] != b"\0\0":
                yield place + number * SLOT, slot

    def records(self) -> dict[str, tuple[Record, tuple[int, ...]]]:
        """All records by name, with the bytes at which their slots lie."""
        groups: dict[bytes, list[tuple[int, int, bytes]]] = {}
        for place, slot in self.slots():
            groups.setdefault(slot[8:12], []).append((int.from_bytes(slot[12:14], "big"), place, slot[16:]))
        found = {}
        for pieces in groups.values():
            pieces.sort()
            record = ldm.parse_record(b"".join(piece[2] for piece in pieces), Where(self.name))
            found[record.name] = (record, tuple(piece[1] for piece in pieces))
        return found

    def change(self, name: str, **values: object) -> None:
        """Other values in a record that still fits its slots."""
        record, places = self.records()[name]
        self.store(replace(record, **values), places)

    def delete(self, *records: str) -> None:
        """Free the slots of records, and count them no more."""
        known = self.records()
        raw = ldm.VMDB_LAYOUT.parse(self.bytes_at(self.private + CONFIG, SECTOR))
        counts = raw["committed"]
        for name in records:
            record, places = known[name]
            for place in places:
                self.patch(place + 8, bytes(SLOT - 8))
            field = {1: "volumes", 2: "components", 3: "partitions", 4: "disks"}[record.kind & 0x0F]
            counts = replace(counts, **{field: getattr(counts, field) - 1})
        self.change_vmdb(committed=counts, pending=counts)

    def store(self, record: Record, places: tuple[int, ...]) -> None:
        """Put a record into these slots."""
        data = ldm.KINDS[record.kind][0].build(_values(record) | {"length": 0})
        data = data[:4] + (len(data) - 8).to_bytes(4, "big") + data[8:]
        assert len(data) <= 112 * len(places), "the record no longer fits its slots"
        data = data.ljust(112 * len(places), b"\0")
        for index, place in enumerate(places):
            self.patch(place + 16, data[index * 112:(index + 1) * 112])


def _values(made: object) -> dict[str, object]:
    return {name: getattr(made, name) for name in type(made).__slots__}


def summed(sector: bytes) -> bytes:
    """A PRIVHEAD or TOCBLOCK with its checksum."""
    return sector[:8] + ldm.checksum(sector).to_bytes(4, "big") + sector[12:]


def disks(*wanted: str, change: Callable[[dict[str, Ldm]], None] | None = None) -> dict[str, Ldm]:
    """By id in the plan; change is called with them."""
    found = {f"disk{index}": Ldm(name) for index, name in enumerate(wanted)}
    if change:
        change(found)
    return found
