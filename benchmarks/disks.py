"""The disks that the benchmarks copy.

synthetic: a third data, a third zeroes that were written, a third holes, in runs of 64 KiB to 16 MiB.
server: an MBR and NTFS from sector 63 to the end, a third of it in use by many small files and a page file, and
what was deleted (a seventh of the disk) left in free clusters. A file's data is a third noise and the rest
programs and libraries of this machine, so that packing has something to do.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fixtures.disks import FIRST, Entry, make_disk, make_ntfs, place
from fixtures.ntfs import NtfsVolume
from p2v.model import SECTOR
from p2v.volume.geometry import target_geometry

MIB = 1 << 20
FILE = 62 << 10  # bytes of a file on average: 35,577 files in 2,226 MiB on the disk of the 8 GiB run
_SPARE = 4096  # sectors behind the partition


@dataclass(frozen=True, slots=True)
class Disks:
    """Their files. volume: the server's partition alone. solid: the server's disk without holes, as a device is."""

    synthetic: Path
    server: Path
    solid: Path
    volume: Path


def make_all(folder: Path, size: int) -> Disks:
    """All disks, each of size bytes, in a folder."""
    disks = Disks(*(folder / f"{name}.raw" for name in ("synthetic", "server", "solid", "volume")))
    make_synthetic(disks.synthetic, size)
    make_server(disks.server, disks.volume, size)
    subprocess.run(["cp", "--sparse=never", str(disks.server), str(disks.solid)], check=True)
    for path in (disks.synthetic, disks.server, disks.solid, disks.volume):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            while file.read(MIB):  # into the page cache
                pass
    return disks


def make_synthetic(path: Path, size: int) -> None:
    """Runs of data, written zeroes and holes in turn."""
    chance = random.Random(7)
    at = 0
    with open(path, "wb") as file:
        file.truncate(size)
        while at < size:
            kind = chance.choice("dzh")
            length = min(chance.choice((1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)), size - at)
            if kind != "h":
                os.pwrite(file.fileno(), content(chance, length) if kind == "d" else bytes(length), at)
            at += length


def make_server(disk: Path, volume: Path, size: int) -> None:
    """The server's disk, and its partition in a file of its own."""
    geometry = target_geometry(size)
    sectors = size // SECTOR - FIRST - _SPARE
    make_disk(disk, size // SECTOR, 0x5EED1234, [Entry(0x07, FIRST, sectors, True)], geometry)
    scratch = volume.with_suffix(".new")
    make_ntfs(scratch, sectors, geometry, "SYSTEM")
    fill_server(scratch, size)
    subprocess.run(["cp", "--sparse=always", str(scratch), str(volume)], check=True)
    place(scratch, disk, FIRST * SECTOR)


def fill_server(volume: Path, size: int) -> None:
    """A page file of a sixteenth, files up to a third of size, a seventh that is deleted at the end.

    Half of what is deleted lies among the other files, one by one; half lies together, as old folders leave it.
    """
    chance = random.Random(11)
    page_file, in_use, deleted = size // 16, size // 3, size // 7
    left, number, removed = in_use - page_file, 0, []
    lost = deleted * FILE // left  # deleted bytes for each file that stays
    with NtfsVolume(volume) as files:

        def leave(name: str, length: int) -> None:
            removed.append(name)
            files.write(name, content(chance, length))

        while left > 0:
            if number % 500 == 0:
                folder = f"/folder{number // 500:03}"
                files.make_folder(folder)
                leave(f"{folder}/old.dat", 250 * lost)
            if number == 1000:
                files.write("/pagefile.sys", content(chance, page_file), attributes=0x26)
            length = min(left, int(chance.expovariate(1 / FILE)) + 1)
            files.write(f"{folder}/file{number:06}.dat", content(chance, length))
            left -= length
            number += 1
            if number % 5 == 0:
                leave(f"{folder}/old{number:06}.dat", int(2.5 * lost * chance.uniform(0.2, 1.8)) + 1)
        for path in removed:
            files.delete(path)


@cache
def programs() -> bytes:
    """64 MiB of what lies in /usr/bin and /usr/lib."""
    found = bytearray()
    for path in sorted(Path("/usr").glob("bin/*")) + sorted(Path("/usr/lib").glob("*/*.so*")):
        if len(found) < 64 << 20 and path.is_file() and not path.is_symlink():
            found += path.read_bytes()
    return bytes(found[: 64 << 20])


def content(chance: random.Random, length: int) -> bytes:
    """Noise or programs."""
    if chance.random() < 1 / 3:
        return chance.randbytes(length)
    start = chance.randrange(max(1, len(programs()) - length))
    piece = programs()[start : start + length]
    return piece * (length // len(piece)) + piece[: length % len(piece)]


def room(folder: Path) -> int:
    """Free bytes there."""
    return shutil.disk_usage(folder).free
