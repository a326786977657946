"""Copies of one small Windows volume, of any age: made once by mkntfs and libntfs-3g, then only patched."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import xor
from pathlib import Path

from fixtures.ntfs import NtfsVolume, parents
from p2v.filesystem import open_files
from p2v.model import Filesystem
from p2v.testing import MemorySource
from tests.filesystem.made_ntfs import MIB, attribute_place, stream_place

CONFIG = "\\WINNT\\system32\\config"
HIVES = (f"{CONFIG}\\SYSTEM", f"{CONFIG}\\software")
FILES = (*HIVES, f"{CONFIG}\\SysEvent.Evt")
RESTART_AREA, PAGE = 0x30, 4096  # bytes: in a restart page; between the two
LSN = 0x105000
WRITES = 4711
NOON = datetime(2009, 3, 2, 12, 0, tzinfo=UTC)


def ntfs(folder: Path) -> bytes:
    """4 MiB with a system in \\WINNT, everything written at NOON, and a log in use."""
    path = folder / "volume.img"
    path.write_bytes(bytes(4 * MIB))
    subprocess.run(["mkntfs", "-F", "-Q", "-q", "-s", "512", "-c", "1024", "-p", "63", "-H", "255", "-S", "63", path],
                   check=True, capture_output=True)
    names = [name.replace("\\", "/") for name in FILES]
    with NtfsVolume(path) as volume:
        for name in parents(names):
            volume.make_folder(name)
        for number in range(300):  # the index of system32 gets blocks of its own, more than one deep
            volume.write(f"/WINNT/system32/file{number:03}.dll", b"")
        for name in names:
            volume.write(name, b"LfLe" * 512 if name.endswith("Evt") else hive(WRITES, NOON, name))
        volume.leave_unclean()
    data = path.read_bytes()
    return aged(data, lsn=LSN, times=dict.fromkeys(("\\", CONFIG, *FILES), NOON))


def hive(writes: int, time: datetime, name: str) -> bytes:
    """The head of a hive: no more of it is looked at here."""
    ticks = (time - datetime(1601, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 10
    head = struct.pack("<4sIIQ7I", b"regf", writes, writes, ticks, 1, 3, 0, 1, 32, 4096, 1)
    head = (head + name.rpartition("/")[2].encode("utf-16-le")).ljust(508, b"\0")
    return (head + struct.pack("<I", reduce(xor, struct.unpack("<127I", head)))).ljust(4096, b"\0")


def aged(data: bytes, lsn: int | None = None, times: Mapping[str, datetime] | None = None,
         hives: Mapping[str, tuple[int, datetime]] | None = None) -> bytes:
    """The same volume, written at another time. times: by path; hives: path → (writes, time)."""
    copy = bytearray(data)
    if lsn is not None:
        for page in (0, PAGE):
            struct.pack_into("<Q", copy, stream_place(data, 2) + page + RESTART_AREA, lsn)
    files = open_files(MemorySource(data), Filesystem("ntfs", "3.1"))
    for path, time in (times or {}).items():
        number = 5 if path == "\\" else files.record_number(path)
        assert number is not None
        ticks = (time - datetime(1601, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 10
        struct.pack_into("<Q", copy, attribute_place(data, number, 0x10) + 0x18 + 8, ticks)
    for path, (writes, time) in (hives or {}).items():
        place = hive_place(data, path)
        copy[place:place + 512] = hive(writes, time, path.replace("\\", "/"))[:512]
    return bytes(copy)


def hive_place(data: bytes, path: str) -> int:
    """The byte where a hive begins."""
    number = open_files(MemorySource(data), Filesystem("ntfs", "3.1")).record_number(path)
    assert number is not None
    return stream_place(data, number)


def wiped(data: bytes) -> bytes:
    """The same volume after Linux had mounted it: no log."""
    place = stream_place(data, 2)
    return data[:place] + b"\xff" * (256 << 10) + data[place + (256 << 10):]
