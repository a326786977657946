"""Linux swap: its first page (label, UUID) is kept, the rest is free; a suspended machine's is not touched.

Source: util-linux include/swapheader.h; checked with mkswap. The old kind (SWAP-SPACE, before Linux 2.2, at
most 128 MiB) says nothing of its length, so it is all data.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import Finding, LayoutError, ReadError, Severity, Where
from p2v.model import Filesystem, FilesystemState, Range, Source, read

PAGES = (4096, 8192, 16384, 32768, 65536)  # bytes: the machine's page, x86 has the first
NEW, OLD = b"SWAPSPACE2", b"SWAP-SPACE"
SUSPENDED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", bytes.fromhex("edc302e99856e50c"))
HEADER = 1024  # bytes from the start: boot code may lie before
OTHERS = {  # a filesystem made over a swap area leaves the first page as it was: (byte, its magic)
    0x438: b"\x53\xef", 4096: b"\xfc\x4e\x2b\xa9", 8192: b"\x49\xe8\x95\xf9", 8192 + 0x55C: b"\x19\x01\x54\x19",
    0x8000: b"JFS1", 0x8001: b"CD001", 0x10034: b"ReIsEr", 0x10040: b"_BHRfS_M", 65536 + 0x55C: b"\x19\x01\x54\x19",
}

LAYOUT = c.Struct(
    "version" / c.Int32ul,
    "last_page" / c.Int32ul,
    "nr_badpages" / c.Int32ul,
    "uuid" / c.Bytes(16),
    "volume_name" / c.Bytes(16),
    "padding" / c.Bytes(4 * 117),
)


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    last_page: int
    padding: bytes

    def __post_init__(self) -> None:
        if self.version != 1 or self.last_page < 1 or any(self.padding):
            raise ValueError(f"version {self.version}, last page {self.last_page}, or something in the padding")


def examine(source: Source) -> Filesystem | None:
    """None where there is no signature. Never raises for what the volume holds."""
    try:
        page, signature = _signature(source)
        if any(signature.startswith(magic) for magic in SUSPENDED):
            return Filesystem("swap", "", page, FilesystemState.HIBERNATED, findings=(_suspended(source, page),))
        if signature == OLD:
            return Filesystem("swap", "", page, findings=(Finding(
                "swap of an old kind is copied as it is", Where(source.name, page - 10, 10),
                "it does not say how long it is", "nothing: it is 128 MiB at most", Severity.INFO),))
        if signature != NEW:
            return None
        free = _free(source, page)
    except (LayoutError, ReadError) as error:
        return Filesystem("swap", findings=(Finding(
            f"swap cannot be trusted: {error.what}", error.where,
            f"{error.why}; every byte of the volume is copied", "nothing", Severity.WARNING),))
    return Filesystem("swap", "", page, FilesystemState.CLEAN, free)


def _signature(source: Source) -> tuple[int, bytes]:
    """The size of a page, and what ends the first; (0, b"") where nothing of swap does."""
    for page in PAGES:
        if page > source.size:
            break
        signature = read(source, page - 10, 10)
        if signature in (NEW, OLD) or any(signature.startswith(magic) for magic in SUSPENDED):
            return page, signature
    return 0, b""


def _suspended(source: Source, page: int) -> Finding:
    return Finding("Linux is suspended to this swap area", Where(source.name, page - 10, 10),
                   "its memory, with open files and unwritten data, is in here: an edit of its disks corrupts them",
                   "start the machine, shut it down, and copy again", Severity.ERROR)


def _free(source: Source, page: int) -> tuple[Range, ...]:
    where = Where(source.name, HEADER, LAYOUT.sizeof())
    header = parse_bytes(LAYOUT, read(source, HEADER, LAYOUT.sizeof()), _Header, "the swap header", where)
    end = (header.last_page + 1) * page
    if end > source.size:
        raise LayoutError("the swap area is longer than its partition", where,
                          f"it needs {end} bytes, there are {source.size}", "give the whole disk")
    for offset, magic in OTHERS.items():
        if offset + len(magic) <= source.size and read(source, offset, len(magic)) == magic:
            raise LayoutError("something else was made over this swap area", Where(source.name, offset, len(magic)),
                              f"its signature {magic!r} is there", "nothing: it is copied whole")
    return (Range(page, end - page),)
