"""The partition table of a disk that is put together: entries kept, dropped, retyped and made, as patches.

A patch is a BytesChange against the disk as its pieces lie; the plan carries them, and they are laid over
the pieces before anybody looks at the disk. Bytes that are right already are left alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from p2v.errors import PlanError, Where
from p2v.guest.fixers.boot_sectors import boot_sector_kind
from p2v.model import SECTOR, BytesChange, Partition, Source, read
from p2v.volume.geometry import end_chs, start_chs, target_geometry

NAME = "collapse"
CODE = slice(0, 0x1B8)
SIGNATURE_AT, TABLE, ENTRY_BYTES, SLOTS = 0x1B8, 0x1BE, 16, 4
LIMIT = (1 << 32) - 1  # sectors
TYPES = {"ntfs": (0x07,), "fat16": (0x06, 0x04, 0x0E, 0x01), "fat32": (0x0C, 0x0B)}  # the first one is written


@dataclass(frozen=True, slots=True)
class Seat:
    """A volume's place on a new disk: bytes from its start. partition: its entry there so far, None for none.

    type: of the entry to come. active: the BIOS is to start it. what: the volume, for the reasons.
    """

    what: str
    offset: int
    length: int
    type: int
    active: bool = False
    partition: Partition | None = None


def fitting_type(sector: bytes, said: int) -> int:
    """The type byte of a basic partition: what its boot sector is, if the manager says nothing that fits."""
    types = TYPES.get(boot_sector_kind(sector), ())
    return said if said in types or not types else types[0]


def patches(
    raw: Source, disk: str, partitions: Sequence[Partition], seats: Sequence[Seat], gone: Collection[int],
    *, starts: bool, code: bytes, taken: Collection[int], seed: bytes = b"",
) -> Iterator[BytesChange]:
    """All patches that make one plain basic disk.

    raw: the disk as its pieces lie. disk: its id. partitions: the entries of its table. gone: entry_offset of
    those to drop. starts: the VM boots from it; then exactly one entry is active. code: boot code for a disk
    that has none. taken: disk signatures of the other disks. seed: what a new signature is made of.
    Raises PlanError for a volume that no entry of this table can describe.
    """
    for one in seats:
        if (one.offset + one.length) // SECTOR > LIMIT:
            raise PlanError(f"{one.what} does not fit into a basic disk's table",
                            Where(disk, one.offset, one.length), "its entries count 32 bits of sectors: 2 TiB",
                            "copy the disks as they are (p2v image … --layout keep), and its files by other means")
    sector = read(raw, 0, SECTOR)
    table = _Table(raw, disk, sector)
    by_entry = {seat.partition.entry_offset: seat for seat in seats if seat.partition}
    primaries = [seat.partition.entry_offset for seat in seats if seat.partition and not seat.partition.logical]
    free = table.free(gone, after=max(primaries, default=0))
    made = [(next(free), seat) for seat in seats if seat.partition is None]
    reused = {place for place, _ in made}
    for partition in partitions:
        seat = by_entry.get(partition.entry_offset)
        if partition.entry_offset in gone and partition.entry_offset not in reused:
            yield from table.entry(partition.entry_offset, bytes(ENTRY_BYTES),
                                   "what it described is not on this disk any more, or was only a filler")
        elif seat is not None:
            others = [one.offset for one in seats if one is not seat]
            others += [one.offset for one in partitions
                       if one.entry_offset not in gone and one.entry_offset != partition.entry_offset
                       and one.logical == partition.logical]
            room = min((at for at in others if at > seat.offset), default=raw.size) - seat.offset
            yield from table.retyped(partition, seat, room, starts=starts)
        elif starts and partition.active and not partition.logical and partition.entry_offset not in gone:
            yield from table.entry(partition.entry_offset, b"\0", "only the system volume is active")
    for place, seat in made:
        yield from table.made(place, seat, starts=starts)
    yield from _head(table, sector, starts=starts, code=code, taken=taken, seed=seed or sector)
    for seat in seats:
        if seat.partition is None or not seat.partition.logical:
            yield from _hidden(table, seat)


def free_slots(partitions: Sequence[Partition], gone: Collection[int]) -> int:
    """How many primaries a table has room for, once the entries in gone are dropped."""
    return SLOTS - sum(not p.logical and p.entry_offset not in gone for p in partitions)


class _Table:
    def __init__(self, raw: Source, disk: str, sector: bytes) -> None:
        self.raw, self.disk, self.sector = raw, disk, sector
        self.geometry = target_geometry(raw.size)

    def entry(self, offset: int, wanted: bytes, why: str) -> Iterator[BytesChange]:
        """wanted instead of what is there, where it is not there already."""
        before = read(self.raw, offset, len(wanted))
        if before != wanted:
            yield BytesChange(self.disk, offset, before, wanted, why, NAME)

    def retyped(self, partition: Partition, seat: Seat, room: int, *, starts: bool) -> Iterator[BytesChange]:
        """An entry that stays: type and flag, and start and length where it does not fit the volume.

        room: bytes from the volume's start to the next one: a dynamic disk's entry may stand for all of it.
        """
        place = partition.entry_offset
        yield from self.entry(place + 4, bytes((seat.type,)),
                              f"{seat.what} becomes a plain partition; the type names its filesystem again")
        if starts and not partition.logical:
            yield from self.entry(place, b"\x80" if seat.active else b"\0", "the BIOS starts the system volume")
        base = place // SECTOR if partition.logical else 0  # a logical one counts from its own table
        if seat.offset != partition.offset or not seat.length <= partition.length <= room:
            why = f"the entry says where {seat.what} lies, and nothing of its neighbours"
            start, count = seat.offset // SECTOR, seat.length // SECTOR
            yield from self.entry(place + 8, struct.pack("<II", start - base, count), why)
            yield from self.entry(place + 1, start_chs(start, self.geometry), why)
            yield from self.entry(place + 5, end_chs(start + count - 1, self.geometry), why)

    def free(self, gone: Collection[int], after: int) -> Iterator[int]:
        """Places of unused primary entries, those behind the kept ones first: numbers of the others then stay."""
        places = [TABLE + ENTRY_BYTES * slot for slot in range(SLOTS)]
        unused = [place for place in places if not self.sector[place + 4] or place in gone]
        return iter(sorted(unused, key=lambda place: (place < after, place)))

    def made(self, place: int, seat: Seat, *, starts: bool) -> Iterator[BytesChange]:
        """A new primary."""
        start, count = seat.offset // SECTOR, seat.length // SECTOR
        entry = struct.pack("<B3sB3sII", 0x80 if starts and seat.active else 0, start_chs(start, self.geometry),
                            seat.type, end_chs(start + count - 1, self.geometry), start, count)
        yield from self.entry(place, entry, f"{seat.what} had no entry in the table; a basic disk needs one")


def _head(table: _Table, sector: bytes, *, starts: bool, code: bytes, taken: Collection[int],
          seed: bytes) -> Iterator[BytesChange]:
    """Boot code, disk signature and 55 AA, where they are missing."""
    if starts and not any(sector[CODE]):
        yield from table.entry(0, code[CODE], "this disk's leg carries no boot code; the VM starts from it")
    signature = int.from_bytes(sector[SIGNATURE_AT:SIGNATURE_AT + 4], "little")
    if not signature or signature in taken:
        yield from table.entry(SIGNATURE_AT, new_signature(seed, taken),
                               "Windows knows disks by their signatures: each must have one of its own")
    yield from table.entry(SECTOR - 2, b"\x55\xaa", "the BIOS and Windows look for a table only before 55 AA")


def new_signature(seed: bytes, taken: Collection[int]) -> bytes:
    """Four bytes that are no zero and no other disk's signature; the same for the same disks."""
    for number in range(256):
        found = hashlib.sha256(seed + bytes((number,))).digest()[:4]
        if any(found) and int.from_bytes(found, "little") not in taken:
            return found
    raise ValueError("no signature is free")  # 256 tries among 2^32


def _hidden(table: _Table, seat: Seat) -> Iterator[BytesChange]:
    """Hidden sectors in the boot sector and its backup: where the volume starts on this disk."""
    sector = read(table.raw, seat.offset, SECTOR) if seat.length >= SECTOR else b""
    kind = boot_sector_kind(sector)
    places = [seat.offset] if kind else []
    number = 0
    if kind == "ntfs":
        number = int(struct.unpack_from("<Q", sector, 0x28)[0])
    elif kind == "fat32":
        number = int(struct.unpack_from("<H", sector, 0x32)[0])
    backup = seat.offset + number * SECTOR
    if number > 0 and backup + SECTOR <= min(seat.offset + seat.length, table.raw.size) \
            and boot_sector_kind(read(table.raw, backup, SECTOR)) == kind:
        places.append(backup)
    for place in places:
        yield from table.entry(place + 0x1C, struct.pack("<I", seat.offset // SECTOR),
                               f"{seat.what} starts at another sector than on the disk that its boot sector knew")


def standard_code() -> bytes:
    """Free master boot code, 440 bytes (bootcode/ORIGIN.md)."""
    return resources.files("p2v").joinpath("bootcode", "mbr.bin").read_bytes()
