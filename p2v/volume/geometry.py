"""What a BIOS tells boot code of a disk, and how partition tables write it: cylinder, head, sector.

Boot code of NT 4 and 2000 reads by CHS. The VM's BIOS, the CHS fields of all table entries and the boot
sectors must agree, or the boot ends in "A disk read error occurred".
"""

from __future__ import annotations

from p2v.model import SECTOR, Geometry

FILLER = b"\xfe\xff\xff"  # head 254, sector 63, cylinder 1023: "no CHS can say it, use the LBA"
CYLINDERS = 1024  # what ten bits can count
TRACK = 63  # sectors per track of every LBA translation


def target_geometry(size: int) -> Geometry:
    """What SeaBIOS presents for a disk of size bytes under LBA translation; 255 x 63 past 8 GiB.

    Source: SeaBIOS src/block.c, translation LBA.
    """
    steps = size // SECTOR // TRACK // CYLINDERS  # heads that 1024 cylinders would need
    heads = next((heads for heads in (16, 32, 64, 128) if steps <= heads), 255)
    return Geometry(heads, TRACK)


def start_chs(lba: int, geometry: Geometry) -> bytes:
    """The three bytes that say where an entry starts; the filler past cylinder 1023."""
    cylinder, head, sector = _split(lba, geometry)
    return _pack(cylinder, head, sector) if cylinder < CYLINDERS else FILLER


def end_chs(last_lba: int, geometry: Geometry) -> bytes:
    """The three bytes that say where an entry ends: true on the last sector of a cylinder, else filler.

    QEMU takes heads and sectors of the disk from the end of the first entry; a true end inside a cylinder
    misleads it ("A disk read error occurred", 2003 boot code under SeaBIOS, end at head 9: it assumed 10
    heads). Source: QEMU hw/block/hd-geometry.c, tried with 50 MB and 4 GiB disks.
    """
    cylinder, head, sector = _split(last_lba, geometry)
    on_end = head == geometry.heads - 1 and sector == geometry.sectors
    return _pack(cylinder, head, sector) if on_end and cylinder < CYLINDERS else FILLER


def unpack(chs: bytes) -> tuple[int, int, int]:
    """(cylinder, head, sector) of an entry's three bytes; sectors count from 1."""
    head, sector, cylinder = chs
    return cylinder | (sector & 0xC0) << 2, head, sector & 0x3F


def _split(lba: int, geometry: Geometry) -> tuple[int, int, int]:
    if lba < 0:
        raise ValueError(f"no sector number: {lba}")
    track, sector = divmod(lba, geometry.sectors)
    cylinder, head = divmod(track, geometry.heads)
    return cylinder, head, sector + 1


def _pack(cylinder: int, head: int, sector: int) -> bytes:
    return bytes((head, sector | cylinder >> 8 << 6, cylinder & 0xFF))
