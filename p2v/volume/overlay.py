"""Disk managers that put themselves in front of a disk which the BIOS could not address: said, never guessed.

With a partition of type 54 or 55 the table says so itself (problems.OVERLAY); these are the signs without one.
Source: Large Disk HOWTO, section 8: old OnTrack Disk Managers are known by a mark in the MBR ("DM6:MBR"), EZ-Drive
keeps the true table in sector 1. The names are those that the products show at boot.
"""

from __future__ import annotations

from p2v.errors import ReadError
from p2v.model import SECTOR, Source, read

TRACK = 63 * SECTOR  # where such code lies: in front of the first partition
LAST_MARK = 430  # byte of the MBR
NAMES = (b"ontrack", b"ez-drive", b"ez-bios", b"dynamic drive overlay")
TABLE = slice(0x1BE, 0x1FE)


def sign(source: Source, first: int) -> str:
    """What shows an overlay in front of byte first, where the first partition begins; "" for nothing."""
    length = min(TRACK, first, source.size) // SECTOR * SECTOR
    if length < SECTOR:
        return ""
    try:
        track = read(source, 0, length)
    except ReadError:
        return ""  # nobody needs these sectors but an overlay or a boot manager
    lower = track.lower()
    for name in NAMES:
        if name in lower:
            return f"\"{name.decode()}\" at byte {lower.index(name):#x}"
    mark = int.from_bytes(track[2:4], "little")
    if mark <= LAST_MARK and track[mark:mark + 2] == b"\xaa\x55" and track[mark + 2] & 1:
        return f"OnTrack's mark at byte {mark:#x}"
    if _is_table(track[SECTOR:2 * SECTOR]) and track[SECTOR:2 * SECTOR][TABLE] != track[TABLE]:
        return "a second partition table in sector 1"
    return ""


def _is_table(sector: bytes) -> bool:
    """Does a sector look like an MBR with partitions?"""
    if sector[0x1FE:] != b"\x55\xaa":
        return False
    entries = [sector[at:at + 16] for at in range(TABLE.start, TABLE.stop, 16)]
    used = [entry for entry in entries if entry[4]]
    return bool(used) and all(entry[0] in (0, 0x80) for entry in entries) and all(any(entry[8:]) for entry in used)
