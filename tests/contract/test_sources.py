"""Every kind of source keeps the contract of model.Source: p2v.testing.check_source over all of them."""

from __future__ import annotations

import contextlib
import pkgutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import p2v.source
from p2v.model import Extent, Kind, Range, Source
from p2v.source.assembled import Assembled, Part
from p2v.source.cowd import CowdDisk
from p2v.source.device import open_disk
from p2v.source.linear import Linear
from p2v.source.mirrored import Mirrored
from p2v.source.nbd import open_image
from p2v.source.nbdclient import NbdSource
from p2v.source.ntfsclone import open_ntfsclone
from p2v.source.overlaid import Overlaid
from p2v.source.paced import Paced
from p2v.source.parity import Parity
from p2v.source.raid10 import Raid10
from p2v.source.serve import Server
from p2v.source.split import open_file, open_parts
from p2v.source.striped import Striped
from p2v.source.watched import Watched
from p2v.source.window import Window
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

MIB = 1 << 20
HOLES = [(256 * 1024, 512 * 1024), (MIB, MIB + 64 * 1024)]
DISK = bytearray(numbered_sectors("disk0", 2 * MIB + 512))
for _start, _end in HOLES:
    DISK[_start:_end] = bytes(_end - _start)
DISK = bytes(DISK)
OTHER = numbered_sectors("disk1", 70_000 // 512 * 512)

CHUNK = 64 * 1024
EDGES = list(range(CHUNK, 30 * CHUNK, CHUNK))

Case = tuple[Source, bytes, list[int]]


def sparse(folder: Path) -> Path:
    path = folder / "disk, with:holes.img"
    with open(path, "wb") as file:
        file.truncate(len(DISK))
        at = 0
        for start, end in [*HOLES, (len(DISK), len(DISK))]:
            file.seek(at)
            file.write(DISK[at:start])
            at = end
    return path


@contextlib.contextmanager
def memory(folder: Path) -> Iterator[Case]:
    yield MemorySource(DISK), DISK, []


@contextlib.contextmanager
def device(folder: Path) -> Iterator[Case]:
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        assert [(e.offset, e.end) for e in disk.extents() if e.kind is Kind.ZERO] == HOLES
        yield disk, DISK, []


@contextlib.contextmanager
def window(folder: Path) -> Iterator[Case]:
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        yield Window(disk, 300_000, 900_001), DISK[300_000:1_200_001], []


@contextlib.contextmanager
def linear(folder: Path) -> Iterator[Case]:
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        parts = [MemorySource(OTHER), Window(disk, 63 * 512, MIB), MemorySource(b"z" * 512), disk]
        data = OTHER + DISK[63 * 512 : 63 * 512 + MIB] + b"z" * 512 + DISK
        yield Linear(parts, "volume"), data, [len(OTHER), len(OTHER) + MIB, len(OTHER) + MIB + 512]


@contextlib.contextmanager
def overlaid(folder: Path) -> Iterator[Case]:
    top = numbered_sectors("overlay", len(DISK))
    changed = [Range(len(DISK) - 512, 512), Range(0, 512), Range(300_000, 512), Range(300_512, 1),
               Range(500_000, 600_000), Range(MIB + 63 * 1024, 2048)]
    expected = bytearray(DISK)
    for part in changed:
        expected[part.offset : part.end] = top[part.offset : part.end]
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        yield (Overlaid(disk, MemorySource(top), changed), bytes(expected),
               [edge for part in changed for edge in (part.offset, part.end)])


@contextlib.contextmanager
def paced(folder: Path) -> Iterator[Case]:
    data = numbered_sectors("disk0", 1 << 16)
    yield Paced(MemorySource(data), 1 << 40), data, ()


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Case]:
    data = numbered_sectors("disk0", 1 << 16)
    yield Watched(MemorySource(data)), data, ()


@contextlib.contextmanager
def faulty(folder: Path) -> Iterator[Case]:
    disk = FaultySource(MemorySource(DISK), [Range(MIB, 512)])
    yield Linear([Window(disk, 0, MIB), Window(disk, MIB + 512, MIB)], "the good parts"), \
        DISK[:MIB] + DISK[MIB + 512 :], [MIB]


@contextlib.contextmanager
def nbd_raw(folder: Path) -> Iterator[Case]:
    with contextlib.closing(open_image(str(sparse(folder)), "raw")) as image:
        yield image, DISK, []


@contextlib.contextmanager
def nbd_qcow2(folder: Path) -> Iterator[Case]:
    path = folder / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(sparse(folder)), str(path)], check=True)
    with contextlib.closing(open_image(str(path), "qcow2")) as image:
        assert any(e.kind is Kind.ZERO for e in image.extents())
        yield image, DISK, []


@contextlib.contextmanager
def nbd_own_server(folder: Path) -> Iterator[Case]:
    with (contextlib.closing(open_disk(str(sparse(folder)))) as disk, Server(disk, f"{folder}/socket"),
          contextlib.closing(NbdSource(f"{folder}/socket", "lent")) as lent):
        assert joined(lent.extents()) == joined(disk.extents())
        yield lent, DISK, []


def joined(extents: Iterator[Extent]) -> list[tuple[int, Kind]]:
    found: list[tuple[int, Kind]] = []
    for extent in extents:
        if not found or found[-1][1] is not extent.kind:
            found.append((extent.offset, extent.kind))
    return found


@contextlib.contextmanager
def split(folder: Path) -> Iterator[Case]:
    for number, start in enumerate(range(0, len(DISK), 700 * 1024)):
        (folder / f"disk.00{number}").write_bytes(DISK[start : start + 700 * 1024])
    with contextlib.closing(open_parts(f"{folder}/disk.000")) as joined_parts:
        yield joined_parts, DISK, [700 * 1024, 1400 * 1024]


@contextlib.contextmanager
def block_image(folder: Path) -> Iterator[Case]:
    """An image of ntfsclone's: its holes are a gap each, and its last cluster is short."""
    cluster, used = 4096, [any(DISK[at : at + 4096]) for at in range(0, len(DISK), 4096)]
    head = struct.pack("<16sBBIQqQI", b"\0ntfsclone-image", 10, 1, cluster, len(DISK), len(DISK) // cluster,
                       sum(used[: len(DISK) // cluster]), 56).ljust(56, b"\0")
    body, gap = [], 0
    for number, there in enumerate(used):
        if there:
            body += [b"\0" + struct.pack("<q", gap)] if gap else []
            body.append(b"\1" + DISK[number * cluster : (number + 1) * cluster])
        gap = 0 if there else gap + 1
    (folder / "image").write_bytes(head + b"".join(body))
    with contextlib.closing(open_ntfsclone(f"{folder}/image")) as volume:
        assert joined(volume.extents())
        yield volume, DISK, []


@contextlib.contextmanager
def cowd(folder: Path) -> Iterator[Case]:
    """Grains of two sectors, an odd number of sectors, one table."""
    grains = [DISK[at : at + 1024] for at in range(0, len(DISK), 1024)]
    used = [number for number, grain in enumerate(grains) if any(grain)]
    first = 4 + 1 + 32
    table = [0] * 4096
    for place, number in enumerate(used):
        table[number] = first + 2 * place
    head = struct.pack("<4s7I", b"COWD", 1, 3, len(DISK) // 512, 2, 4, 1, 0).ljust(2048, b"\0")
    (folder / "image").write_bytes(head + struct.pack("<I508x", 5) + struct.pack("<4096I", *table)
                                   + b"".join(grains[number].ljust(1024, b"\0") for number in used))
    with contextlib.closing(CowdDisk(open_file(f"{folder}/image"))) as disk:
        yield disk, DISK, []


def rows(count: int) -> list[list[bytes]]:
    """DISK's first chunks of 64 KiB, so many in each row."""
    chunks = [DISK[at : at + CHUNK] for at in range(0, 30 * CHUNK, CHUNK)]
    return [chunks[at : at + count] for at in range(0, 30, count)]


@contextlib.contextmanager
def striped(folder: Path) -> Iterator[Case]:
    members: list[Source] = []
    for column in range(3):
        (folder / f"{column}").write_bytes(b"".join(row[column] for row in rows(3)) + b"tail" * 128)
        members.append(open_disk(f"{folder}/{column}"))
    yield Striped(members, CHUNK, "stripe", size=29 * CHUNK + 512), DISK[: 29 * CHUNK + 512], EDGES


@contextlib.contextmanager
def parity(folder: Path) -> Iterator[Case]:
    """RAID 5, left-symmetric; member 1 of three is missing."""
    disks = [bytearray(), bytearray(), bytearray()]
    for number, row in enumerate(rows(2)):
        p = 2 - number % 3
        xored = (int.from_bytes(row[0], "big") ^ int.from_bytes(row[1], "big")).to_bytes(CHUNK, "big")
        for step, chunk in enumerate((xored, *row)):
            disks[(p + step) % 3] += chunk
    members = [MemorySource(disks[0]), None, MemorySource(disks[2])]
    yield (Parity(members, CHUNK, "raid", level=5, layout="left-symmetric", size=30 * CHUNK), DISK[: 30 * CHUNK], EDGES)


@contextlib.contextmanager
def raid10(folder: Path) -> Iterator[Case]:
    one, two = (b"".join(row[column] for row in rows(2)) for column in (0, 1))
    members = [None, MemorySource(one), MemorySource(two), None]
    yield Raid10(members, CHUNK, "raid"), DISK[: 30 * CHUNK], EDGES


@contextlib.contextmanager
def mirrored(folder: Path) -> Iterator[Case]:
    """Legs in step with bad sectors in different places, read ahead by both, the first one a file with holes."""
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        legs = [FaultySource(disk, [Range(4096, 512), Range(MIB + 70_000 // 512 * 512, 1024)]),
                FaultySource(MemorySource(DISK + b"more"), [Range(4608, 512), Range(len(DISK) - 512, 512)])]
        yield Mirrored(legs, "mirror", size=len(DISK), in_step=True, shared=True), DISK, [4096, 4608, 5120]


@contextlib.contextmanager
def assembled(folder: Path) -> Iterator[Case]:
    with contextlib.closing(open_disk(str(sparse(folder)))) as disk:
        parts = [Part(0, 512, None), Part(512, MIB, disk, 63 * 512), Part(512 + MIB, 70_001, None),
                 Part(512 + MIB + 70_001, len(OTHER), MemorySource(OTHER))]
        patches = [(440, b"signature"), (510, b"\x55\xaaover the edge"), (300_000, b"x" * 5000)]
        data = bytearray(bytes(512) + DISK[63 * 512 : 63 * 512 + MIB] + bytes(70_001) + OTHER)
        for offset, patch in patches:
            data[offset : offset + len(patch)] = patch
        edges = [edge for offset, patch in patches for edge in (offset, offset + len(patch))]
        yield Assembled(parts, "disk0", size=len(data), patches=patches), bytes(data), [512, 512 + MIB, *edges]


KINDS: dict[str, tuple[Callable[[Path], contextlib.AbstractContextManager[Case]], tuple[str, ...]]] = {
    "memory": (memory, ()),
    "device": (device, ()),
    "window": (window, ()),
    "linear": (linear, ()),
    "overlaid": (overlaid, ()),
    "faulty": (faulty, ()),
    "watched": (watched, ()),
    "paced": (paced, ()),
    "nbd raw": (nbd_raw, ("qemu-nbd",)),
    "nbd qcow2": (nbd_qcow2, ("qemu-nbd", "qemu-img")),
    "split": (split, ()),
    "blockimage ntfsclone": (block_image, ()),
    "cowd": (cowd, ()),
    "striped": (striped, ()),
    "parity": (parity, ()),
    "raid10": (raid10, ()),
    "mirrored": (mirrored, ()),
    "assembled": (assembled, ()),
    "nbdclient serve": (nbd_own_server, ("nbdinfo",)),
}
NO_SOURCES = {  # modules of the room that hold none; partclone's needs partclone: tests/source/test_images_in.py
    "bounds", "in_use", "nbdsession", "images", "tables", "vmdkfiles", "vmdktables", "vmdkimage", "vhdimage",
    "vdiimage", "qcow2image", "partclone", "ways", "ahead", "private",
}


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str, tmp_path: Path, needs: Callable[..., None]) -> None:
    make, programs = KINDS[kind]
    needs(*programs)
    with make(tmp_path) as (source, expected, edges):
        check_source(source, expected, edges)
        source.close()
        with pytest.raises(ValueError):
            source.read_into(0, memoryview(bytearray(1)))


def test_every_module_is_here() -> None:
    modules = {module.name for module in pkgutil.iter_modules(p2v.source.__path__)} - NO_SOURCES
    assert modules <= {word for kind in KINDS for word in kind.split()}, "add the new source to KINDS"


@pytest.mark.parametrize("wrong", [
    pytest.param(lambda d: (MemorySource(d[:-512]), d), id="size"),
    pytest.param(lambda d: (MemorySource(d[:512] + b"?" + d[513:]), d), id="a byte"),
    pytest.param(lambda d: (MemorySource(d, extents=[Extent(0, 512, Kind.DATA)]), d), id="extents stop early"),
    pytest.param(lambda d: (MemorySource(d, extents=[Extent(0, len(d), Kind.ZERO)]), d), id="no zeroes"),
    pytest.param(lambda d: (MemorySource(d, extents=[Extent(512, len(d) - 512, Kind.DATA)]), d), id="a gap"),
    pytest.param(lambda d: (MemorySource(d, sector_size=520), d), id="sector size"),
    pytest.param(lambda d: (MemorySource(d, name=""), d), id="no name"),
])
def test_the_check_finds(wrong: Callable[[bytes], tuple[Source, bytes]]) -> None:
    source, expected = wrong(numbered_sectors("disk", 8192))
    with pytest.raises(AssertionError):
        check_source(source, expected)
