"""$LogFile of NTFS: was everything in it replayed when the volume was last let go?

Two restart pages begin it. The volume is clean where no client uses the log, or the restart area says so.
Source: ntfs-3g logfile.c; offsets checked on a Windows 2003 volume (restart area at 0x30, flags 2).
A log of nothing but FF was written by mkntfs, or by the first read-write mount of ntfs-3g.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import construct as c
import numpy as np

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, ReadError, Where
from p2v.filesystem.mft import Mft
from p2v.filesystem.records import DATA, Attribute, fix_up

PAGES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)  # bytes: where the second restart page can lie
HEAD = 2 * PAGES[-1]
CHUNK = 1 << 20  # bytes
LONGEST = 256 << 20  # bytes of a log; Windows makes 64 MiB at most by itself
NO_CLIENT = 0xFFFF
VOLUME_CLEAN = 2

MAGICS = (b"RSTR", b"CHKD")  # CHKD: chkdsk looked through it

PAGE_LAYOUT = c.Struct(
    "magic" / c.OneOf(c.Bytes(4), MAGICS),
    "usa_offset" / c.Int16ul,
    "usa_count" / c.Int16ul,
    "chkdsk_lsn" / c.Int64ul,
    "system_page_size" / c.Int32ul,
    "log_page_size" / c.Int32ul,
    "restart_area_offset" / c.Int16ul,
)
AREA_LAYOUT = c.Struct(
    "current_lsn" / c.Int64sl,
    "log_clients" / c.Int16ul,
    "client_free_list" / c.Int16ul,
    "client_in_use_list" / c.Int16ul,
    "flags" / c.Int16ul,
)


@dataclass(frozen=True, slots=True)
class _Page:
    usa_offset: int
    usa_count: int
    system_page_size: int
    restart_area_offset: int

    def __post_init__(self) -> None:
        if self.system_page_size not in PAGES:
            raise ValueError(f"a system page of {self.system_page_size} bytes")


@dataclass(frozen=True, slots=True)
class _Area:
    current_lsn: int
    client_in_use_list: int
    flags: int

    @property
    def clean(self) -> bool:
        return self.client_in_use_list == NO_CLIENT or bool(self.flags & VOLUME_CLEAN)


class Log(enum.Enum):
    """What a log says of its volume."""

    CLEAN = "clean"
    WIPED = "wiped"  # all FF
    IN_USE = "in use"  # something is not replayed
    DAMAGED = "damaged"


def judge(mft: Mft) -> Log:
    """Reads $LogFile. Raises LayoutError where its record is damaged, ReadError."""
    log = mft.attribute(mft.record(2), DATA)
    if log is None or log.value is not None or not 0 < log.size <= LONGEST:
        return Log.DAMAGED
    head = mft.read(log, 0, min(HEAD, log.size))
    if head[:4] == b"\xff\xff\xff\xff":
        return Log.WIPED if _all_ff(mft, log) else Log.DAMAGED
    areas = [area for offset in (0, *PAGES) if (area := _restart_area(head, offset))]
    if not areas:
        return Log.DAMAGED
    newest = max(area.current_lsn for area in areas)
    return Log.CLEAN if all(area.clean for area in areas if area.current_lsn == newest) else Log.IN_USE


def newest_lsn(mft: Mft) -> int | None:
    """The sequence number of the newest whole restart page; None where the log is wiped (FF) or neither is whole.

    A page that cannot be read is left out. Raises LayoutError where $LogFile's record is damaged, ReadError
    where that record cannot be read.
    """
    log = mft.attribute(mft.record(2), DATA)
    if log is None or log.value is not None or not 0 < log.size <= LONGEST:
        return None
    areas = [_restart_area(page, 0) for page in _pages(mft, log)]
    return max((area.current_lsn for area in areas if area), default=None)


def _pages(mft: Mft, log: Attribute) -> Iterator[bytes]:
    """The restart pages, wherever one can begin; a bad sector costs the page that it lies in."""
    for offset in (0, *PAGES):
        if offset + PAGES[0] > log.size:
            continue
        try:
            head = mft.read(log, offset, PAGES[0])
            length = int.from_bytes(head[16:20], "little")
            if head[:4] in MAGICS and length in PAGES and offset + length <= log.size:
                yield mft.read(log, offset, length)
        except ReadError:
            continue


def _restart_area(head: bytes, offset: int) -> _Area | None:
    """The restart area of the page at offset; None where there is no whole one."""
    try:
        page = parse_bytes(PAGE_LAYOUT, head[offset:], _Page, "a restart page", Where())
        data = fix_up(head[offset:offset + page.system_page_size], page.usa_offset, page.usa_count)
        if data is None:
            return None
        return parse_bytes(AREA_LAYOUT, data[page.restart_area_offset:], _Area, "a restart area", Where())
    except LayoutError:
        return None  # one of the two pages may be torn; judge() says so where both are


def _all_ff(mft: Mft, log: Attribute) -> bool:
    for offset in range(0, log.size, CHUNK):
        if not bool((np.frombuffer(mft.read(log, offset, min(CHUNK, log.size - offset)), np.uint8) == 0xFF).all()):
            return False
    return True
