"""Firmware RAID of which p2v reads nothing but that it is there: whose, which level, which member.

Source: the headers of dmraid's lib/format/ataraid and of libblkid; checked on real members of Promise, VIA, LSI and
Adaptec sets; `blkid -p` agrees on what the tests make of the others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from p2v.errors import Finding
from p2v.model import SECTOR
from p2v.volume.members import Place, look

MIRROR = "RAID 1"


@dataclass(frozen=True, slots=True)
class Sign:
    """What was recognised. at: byte of the disk. level: "RAID 1" …, or "level not known".

    plain: the disk by itself is what the server saw. about: which member, and its state, in words.
    doubt: why it should not be trusted, in words that go on after a sentence.
    """

    maker: str
    at: int
    level: str
    plain: bool
    about: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """A maker's metadata. spots: sectors from the front (>= 0) or the end (< 0) of the disk; length: bytes."""

    maker: str
    spots: Sequence[int]
    length: int
    recognise: Callable[[bytes], tuple[str, str, str] | None]  # level, about, doubt

    def sign(self, place: Place, seen: dict[tuple[int, int], bytes | Finding]) -> Sign | Finding | None:
        """The first of its spots that carries it.

        seen: what was read, by offset and length: several makers use the last sector, which may be a bad one.
        """
        sectors = place.source.size // SECTOR
        for spot in self.spots:
            at = (spot if spot >= 0 else sectors + spot) * SECTOR
            if at <= 0:  # a disk so small is no member of anything
                continue
            if (at, self.length) not in seen:
                seen[at, self.length] = look(place, at, self.length, "the metadata of a RAID")
            data = seen[at, self.length]
            if isinstance(data, Finding):
                return data
            found = self.recognise(data) if data else None
            if found:
                level, about, doubt = found
                shifted = doubt.startswith("its data")
                return Sign(self.maker, at, level, level in (MIRROR, UNKNOWN) and not shifted, about, doubt)
        return None


UNKNOWN = "level not known"


def recognise(place: Place) -> Sign | Finding | None:
    """The set that a whole disk belongs to; a finding where its metadata's place cannot be read."""
    unreadable = None
    seen: dict[tuple[int, int], bytes | Finding] = {}
    for form in FORMATS:
        found = form.sign(place, seen)
        if isinstance(found, Sign):
            return found
        unreadable = unreadable or found
    return unreadable


def _member(number: int, count: int = 0) -> str:
    return f", disk {number + 1}" + (f" of {count}" if count else "")


def _promise(data: bytes) -> tuple[str, str, str] | None:
    if not data.startswith(b"Promise Technology, Inc."):
        return None
    levels = {0: "RAID 0", 1: MIRROR, 8: "a span"}
    return levels.get(data[0x21F], UNKNOWN), _member(data[0x205], data[0x220]), ""


def _hpt37x(data: bytes) -> tuple[str, str, str] | None:
    magic, = struct.unpack_from("<I", data, 0x20)
    if magic not in (0x5A7816F0, 0x5A7816FD):
        return None
    levels = {0: "RAID 0", 1: MIRROR, 2: "RAID 0+1", 3: "a span", 4: "RAID 3", 5: "RAID 5", 6: "a single disk",
              7: "RAID 0+1"}
    disks, level, number = data[0x30], data[0x32], data[0x33]
    broken = "; the controller had marked it as broken" if magic == 0x5A7816FD else ""
    shifted = "its data begins at sector 10: as a plain disk it would be read wrongly" if number else ""
    return levels.get(level, UNKNOWN), _member(number, disks), shifted or broken


def _hpt45x(data: bytes) -> tuple[str, str, str] | None:
    magic, = struct.unpack_from("<I", data)
    if magic not in (0x5A7816F3, 0x5A7816FD):
        return None
    levels = {4: "a span", 5: "RAID 0", 6: MIRROR}
    broken = "; the controller had marked it as broken" if magic == 0x5A7816FD else ""
    return levels.get(data[0x10], UNKNOWN), _member(data[0x12], data[0x11]), broken


def _nvidia(data: bytes) -> tuple[str, str, str] | None:
    size, = struct.unpack_from("<I", data, 8)
    if not data.startswith(b"NVIDIA") or not 30 <= size <= SECTOR // 4:
        return None
    if sum(struct.unpack_from(f"<{size}I", data)) & 0xFFFFFFFF:
        return UNKNOWN, "", "; its checksum is wrong"
    levels = {0x80: "RAID 0", 0x81: MIRROR, 0x83: "RAID 3", 0x85: "RAID 5", 0x95: "RAID 5", 0x8A: "RAID 10",
              0x8180: "RAID 0+1", 0xFF: "a span"}
    level, flags = struct.unpack_from("<I", data, 0x4C)[0], struct.unpack_from("<I", data, 0x74)[0]
    job = {3: "; it was being rebuilt", 5: "; it was being synchronised"}.get(data[0x48], "")
    return levels.get(level, UNKNOWN), _member(data[0x12], data[0x4A]), job + ("; degraded" if flags & 2 else "")


def _silicon_image(data: bytes) -> tuple[str, str, str] | None:
    magic, = struct.unpack_from("<I", data, 0x60)
    total, = struct.unpack_from("<H", data, 0x13E)
    if magic & 0x3FFFFFF != 0x3000000 or -sum(struct.unpack_from("<159H", data)) & 0xFFFF != total:
        return None
    levels = {0: "RAID 0", 1: MIRROR, 2: "RAID 10", 16: "RAID 5", 3: "a spare", 255: "single disks"}
    doubt = "; the copies were not in step" if data[0x117] == 1 and data[0x129] == 1 else ""
    generation, = struct.unpack_from("<I", data, 0x124)
    return levels.get(data[0x117], UNKNOWN), f"{_member(data[0x116])}, generation {generation}", doubt


def _via(data: bytes) -> tuple[str, str, str] | None:
    if not data.startswith(b"\x55\xaa") or data[2] > 2 or sum(data[:50]) & 0xFF != data[50] or not any(data[2:50]):
        return None
    bits, = struct.unpack_from("<H", data, 3)
    levels = {0: "RAID 0", 1: MIRROR, 8: "a span", 9: "RAID 0+1"}
    level, info = levels.get(bits >> 3 & 0xF, UNKNOWN), bits >> 10 & 0x1F
    if level != MIRROR:
        return level, "", ""
    role = {0: ", the source", 1: ", a spare", 2: ", the copy"}.get(info & 3, "")
    return level, role, "; its copies were not in step" if info & 4 else ""


def _lsi(data: bytes) -> tuple[str, str, str] | None:
    if not data.startswith(b"$XIDE$"):
        return None
    return {1: "RAID 0", 2: MIRROR, 3: "RAID 10"}.get(data[0x10], UNKNOWN), _member(data[0x1F0]), ""


def _jmicron(data: bytes) -> tuple[str, str, str] | None:
    if not data.startswith(b"JM") or sum(struct.unpack_from("<64H", data)) & 0xFFFF > 1:
        return None
    levels: Mapping[int, str] = {0: "RAID 0", 1: MIRROR, 2: "RAID 0+1", 3: "single disks", 5: "RAID 5"}
    return levels.get(data[0x30], UNKNOWN), "", ""


def _adaptec(data: bytes) -> tuple[str, str, str] | None:
    """The reserved block is the last sector; the RAID table, 16 sectors in front of it, names the volume first."""
    reserved = data[16 * SECTOR:]
    if reserved[:4] != bytes.fromhex("37fc4d1e") or reserved[0x100:0x104] != b"DPTM":
        return None
    if data[:4] != bytes.fromhex("900765c4"):
        return UNKNOWN, "", ""
    levels = {0: "RAID 0", 1: MIRROR, 4: "RAID 4", 5: "RAID 5", 0xFE: "a spare"}
    count, = struct.unpack_from(">H", data, 0x40)
    return levels.get(data[0x49], UNKNOWN), f", one of {count}", ""


FORMATS: Sequence[Format] = (
    Format("Promise FastTrak", tuple(-n for n in (63, 255, 256, 16, 399, 591, 675, 735, 911, 951, 974, 991, 3087)),
           0x400, _promise),
    Format("HighPoint 37x", (9,), SECTOR, _hpt37x),
    Format("HighPoint 45x", (-11,), SECTOR, _hpt45x),
    Format("NVIDIA", (-2,), SECTOR, _nvidia),
    Format("Silicon Image", (-1, -513, -1025, -1537), SECTOR, _silicon_image),
    Format("VIA", (-1,), SECTOR, _via),
    Format("LSI", (-1,), SECTOR, _lsi),
    Format("JMicron", (-1,), SECTOR, _jmicron),
    Format("Adaptec HostRAID", (-17,), 17 * SECTOR, _adaptec),
)
"""Sectors from the end are negative."""
