"""Small disks of every kind that a volume reader knows, where their metadata lies, and how its sums are made good."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fixtures import firmware, fttiny, ldm, ldmgroup, lvm, md
from fixtures.ft import Row, information
from p2v.model import SECTOR
from p2v.testing import numbered_sectors
from p2v.volume.ftregistry import FtType
from p2v.volume.ldmrecords import checksum
from tests.volume.made_tables import chain, gpt, sector

Span = tuple[int, int]
Seal = Callable[[bytearray], None]
SECTORS = 4096
PRIVATE = 2048  # sector where the private region of a dynamic disk begins


@dataclass(frozen=True, slots=True)
class Case:
    """disks: in the order given. spans: (first byte, length) of metadata on each. seal: makes their sums good."""

    disks: Sequence[bytes]
    spans: Sequence[Span]
    seal: Seal = lambda data: None


def _at(*sectors: int) -> list[Span]:
    return [(number * SECTOR, SECTOR) for number in sectors]


def _system(sectors: int = SECTORS) -> bytes:
    """A disk with a FAT volume and its hive."""
    return bytes(fttiny.disk(fttiny.hive(fttiny.described([])), [], sectors))


def mbr() -> Case:
    """A primary, and three logical drives."""
    data = bytearray(_system())
    data[446 + 16:SECTOR] = sector([(7, 1000, 100), (0x0F, 1200, 2800)])[446:494] + b"\x55\xaa"
    chain(data, 1200, [300, 300, 300])
    return Case([bytes(data)], [(440, 72), *[(n * SECTOR + 446, 66) for n in (1200, 1563, 1926)], *_at(63)])


def guid_table() -> Case:
    """Two partitions."""
    data = bytearray(numbered_sectors("disk0", SECTORS * SECTOR))
    gpt(data, [("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", 100, 1099),
               ("e6d6d379-f507-44c2-a23c-238f2a3df928", 1100, 1999)])

    def seal(data: bytearray) -> None:
        for header, array in ((1, 2), (SECTORS - 1, SECTORS - 33)):
            struct.pack_into("<I", data, header * SECTOR + 88, zlib.crc32(data[array * SECTOR:(array + 32) * SECTOR]))
            data[header * SECTOR + 16:header * SECTOR + 20] = bytes(4)
            crc = zlib.crc32(data[header * SECTOR:header * SECTOR + 92])
            struct.pack_into("<I", data, header * SECTOR + 16, crc)

    return Case([bytes(data)], [*_at(0, 2), (SECTOR, 92), ((SECTORS - 1) * SECTOR, 92), ((SECTORS - 33) * SECTOR, 512)],
                seal)


def dynamic() -> Case:
    """Two disks with a mirror, a spanned and a striped volume."""
    parts = {"Volume1": (900, [[("Disk1", 0, 900, 0)], [("Disk2", 0, 900, 0)]]),
             "Volume2": (400, [[("Disk1", 900, 200, 0), ("Disk2", 900, 200, 200)]])}
    volumes = tuple(ldmgroup.Volume(name, size, ldmgroup.guid(name), tuple(
        ldmgroup.Component(tuple(ldmgroup.Run(*run) for run in runs)) for runs in legs))
        for name, (size, legs) in parts.items())
    members = tuple(ldmgroup.Disk(name, ldmgroup.guid(name)) for name in ("Disk1", "Disk2"))
    group = ldmgroup.Group("Dg0", ldmgroup.guid("group"), members, volumes)
    disks = []
    for member in members:
        data = bytearray(_system())
        data[446:SECTOR] = sector([(0x42, 63, 1985)])[446:]
        made = ldmgroup.database(group, member.name, ldmgroup.Place(63, 1985, 2048))
        data[6 * SECTOR:7 * SECTOR] = ldm.head_sector(made.head)
        data[PRIVATE * SECTOR:] = ldm.private_region(made)
        disks.append(bytes(data))
    used = disks[0][(PRIVATE + 18) * SECTOR:].find(bytes(4 * SECTOR))

    def seal(data: bytearray) -> None:
        for number in (6, *(PRIVATE + n for n in (1, 2, 1856, 2045, 2046, 2047))):
            place = number * SECTOR
            if data[place:place + 4] in (b"PRIV", b"TOCB"):
                struct.pack_into(">I", data, place + 8, checksum(bytes(data[place:place + SECTOR])))

    records = ((PRIVATE + 18) * SECTOR, max(used, 16 * 128))
    return Case(disks, [*_at(6, *(PRIVATE + n for n in (1, 2, 17, 1498, 1856, 2045, 2046, 2047))), records, records,
                        records, (446, 66)], seal)


def linux(version: str, level: int = 1) -> Case:
    """Two members of an array."""
    content = _system(1920)
    array = md.Array(version, len(content), level, chunk=0 if level == 1 else 65536)
    device = md.device_size(version, array.size)
    at = md.superblock_at(version, device)
    disks = []
    for number in range(2):
        data = bytearray(device)
        start = md.data_offset(version)
        data[start:start + len(content)] = content
        data[at:at + 4096] = md.superblock(array, md.Disk(number), device)
        disks.append(bytes(data))

    def seal(data: bytearray) -> None:
        old = version.startswith("0.90")
        order = ">" if "big" in version else "<"
        place, words = (at + 152, 1024) if old else (at + 216, 128)
        data[place:place + 4] = bytes(4)
        total = sum(struct.unpack_from(f"{order}{words}I", data, at))
        struct.pack_into(order + "I", data, place, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)

    return Case(disks, [(at, 256), (at, 256), (at, 512)], seal)


def intel() -> Case:
    """Two members of a RAID 1."""
    made = firmware.imsm(1 << 20)
    disks = _behind([made, made])
    first = (SECTORS - 2) * SECTOR

    def seal(data: bytearray) -> None:
        whole = bytearray(data[first:first + SECTOR] + data[first - SECTOR:first])
        size = min(int.from_bytes(whole[0x24:0x28], "little"), len(whole))
        whole[0x20:0x24] = bytes(4)
        total = sum(struct.unpack_from(f"<{size // 4}I", whole)) & 0xFFFFFFFF
        struct.pack_into("<I", data, first + 0x20, total)

    return Case(disks, [(first, 256), (first, SECTOR), (first - SECTOR, 256)], seal)


def industry() -> Case:
    """Two members of a DDF RAID 1."""
    base = SECTORS - 257
    sections = [(base, 1), (base + 1, 1), (base + 2, 2), (base + 4, 2), (base + 6, 2), (base + 10, 1), (SECTORS - 1, 1)]

    def seal(data: bytearray) -> None:
        for number, count in sections:
            place, end = number * SECTOR, (number + count) * SECTOR
            data[place + 4:place + 8] = b"\xff" * 4
            struct.pack_into(">I", data, place + 4, zlib.crc32(data[place:end]))

    return Case(_behind([firmware.ddf(1 << 20, 0), firmware.ddf(1 << 20, 1)]),
                [(number * SECTOR, 256) for number, _ in sections], seal)


def _behind(made: Sequence[Callable[[int], dict[int, bytes]]]) -> list[bytes]:
    disks = []
    for each in made:
        data = bytearray(_system())
        for number, content in each(SECTORS).items():
            data[number * SECTOR:number * SECTOR + len(content)] = content
        disks.append(bytes(data))
    return disks


def nt4() -> Case:
    """Two legs of a mirror, each with the hive that describes them; the value lies in one piece."""
    start, length = fttiny.SYSTEM_START * SECTOR, fttiny.SYSTEM_SECTORS * SECTOR
    value = information([(0x11111111 * (leg + 1), [Row(start, length, "C", FtType.MIRROR, 0, leg)]) for leg in (0, 1)])
    disks = [bytes(fttiny.disk(fttiny.hive(value), [], signature=0x11111111 * (leg + 1), system_type=0x86))
             for leg in (0, 1)]
    at = disks[0].index(value)
    return Case(disks, [(at, len(value)), (at, len(value)), (440, 72), *_at(63, 64, 67, fttiny.HIVE_SECTOR)])


def lvm_text() -> str:
    """Of a group with every kind of segment."""
    return lvm.group({
        "root": lvm.volume(lvm.striped(0, 4, [("pv0", 2)]), lvm.striped(4, 3, [("pv1", 2)])),
        "fast": lvm.volume(lvm.striped(0, 4, [("pv0", 12), ("pv1", 12)], 16384)),
        "safe": lvm.volume(lvm.raid1(1, ["safe_rimage_0", "safe_rimage_1"])),
        "safe_rimage_0": lvm.volume(lvm.striped(0, 1, [("pv0", 15)]), visible=False),
        "safe_rimage_1": lvm.volume(lvm.striped(0, 1, [("pv1", 15)]), visible=False)})


def physical(text: str) -> list[bytes]:
    """Two devices with this text."""
    return [lvm.physical_volume(number, text, numbered_sectors(f"pv{number}", 16 * lvm.EXTENT)) for number in (0, 1)]


def physical_volumes() -> Case:
    """Their labels and headers."""
    def seal(data: bytearray) -> None:
        struct.pack_into("<I", data, SECTOR + 16, lvm.checksum(bytes(data[SECTOR + 20:2 * SECTOR])))
        struct.pack_into("<I", data, lvm.AREA, lvm.checksum(bytes(data[lvm.AREA + 4:lvm.AREA + SECTOR])))

    return Case(physical(lvm_text()), [(SECTOR, 160), (lvm.AREA, 96), (lvm.AREA + SECTOR, 1024)], seal)


CASES: dict[str, Callable[[], Case]] = {
    "mbr": mbr, "gpt": guid_table, "ldm": dynamic, "imsm": intel, "ddf": industry, "ft": nt4, "lvm": physical_volumes,
    **{f"md {version}": lambda version=version: linux(version) for version in md.VERSIONS},  # type: ignore[misc]
    "md raid 5": lambda: linux("1.2", 5), "md raid 10": lambda: linux("0.90", 10),
    "md linear": lambda: linux("1.0", -1),
}
