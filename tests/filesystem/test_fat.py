"""FAT12, FAT16 and FAT32: which clusters are free, and when that may be believed."""

from __future__ import annotations

import lzma
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from p2v.errors import Severity
from p2v.filesystem import examine, open_files
from p2v.model import Filesystem, FilesystemState, Range
from p2v.testing import FaultySource, MemorySource
from tests.filesystem.made_ntfs import MIB, bytes_of, run

State = FilesystemState
SHAPES = {"fat12": ("12", 8 * MIB, 8), "fat16": ("16", 32 * MIB, 4), "fat32": ("32", 48 * MIB, 1)}


def look(data: bytes | bytearray) -> Filesystem:
    return examine(MemorySource(data))


@pytest.fixture
def made(tmp_path: Path, needs: Callable[..., None]) -> Callable[..., Path]:
    needs("mkfs.fat", "fsck.fat", "mcopy", "mdel")
    return lambda kind, files=None: make(tmp_path, kind, files or {})


def make(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    bits, size, sectors = SHAPES[kind]
    volume = folder / "fat.img"
    volume.write_bytes(bytes(size))
    run("mkfs.fat", "-F", bits, "-s", str(sectors), volume)
    for name, content in files.items():
        (folder / "content").write_bytes(content)
        run("mcopy", "-i", volume, folder / "content", f"::/{name}")
    return volume


@pytest.mark.parametrize("kind", SHAPES)
def test_free_is_what_fsck_calls_unused(made: Callable[..., Path], kind: str) -> None:
    files = {f"file{i}.bin": bytes_of(str(i), 300_000) for i in range(6)}
    volume = made(kind, files)
    for gone in ("file1.bin", "file4.bin"):
        run("mdel", "-i", volume, f"::/{gone}")
        del files[gone]
    data = bytearray(volume.read_bytes())
    found = look(data)
    assert (found.kind, found.state, found.findings) == (kind, State.CLEAN, ())
    used, all_clusters = map(int, re.search(r"(\d+)/(\d+) clusters", run("fsck.fat", "-n", volume)).groups())
    assert sum(p.length for p in found.free) == (all_clusters - used) * found.cluster_size
    for piece in found.free:
        data[piece.offset:piece.end] = b"\x55" * piece.length
    volume.write_bytes(data)
    run("fsck.fat", "-n", volume)
    guest = open_files(MemorySource(data), found)
    for name, content in files.items():
        assert guest.read("\\" + name) == content
    assert guest.stat("\\file1.bin") is None


def test_a_volume_that_windows_xp_made(corpus: Path) -> None:
    data = lzma.decompress((corpus / "ntfs/fat32_xp_none.img.xz").read_bytes())
    found = look(data)
    assert (found.kind, found.cluster_size, found.state, len(found.free)) == ("fat32", 512, State.CLEAN, 1)
    assert found.free[0].end <= len(data) and not any(data[found.free[0].offset:found.free[0].end])


# What may be believed: FAT[1] of each copy, the boot sector's dirty byte; and both copies of the FAT.


def _entry(data: bytes, copy: int, cluster: int, width: int) -> int:
    per_fat = int.from_bytes(data[0x16:0x18], "little") or int.from_bytes(data[0x24:0x28], "little")
    return (int.from_bytes(data[0x0E:0x10], "little") + copy * per_fat) * 512 + cluster * width


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("kind, width, bit", [
    ("fat16", 2, 0x80), ("fat16", 2, 0x40), ("fat32", 4, 0x08), ("fat32", 4, 0x04)])
def test_a_clean_bit_that_is_missing(made: Callable[..., Path], kind: str, width: int, bit: int,
                                     copy: int) -> None:
    data = bytearray(made(kind, {"pagefile.sys": bytes(MIB)}).read_bytes())
    assert look(data).droppable
    data[_entry(data, copy, 1, width) + width - 1] &= ~bit
    found = look(data)
    assert (found.state, found.free, found.droppable) == (State.DIRTY, (), ())
    assert found.findings


@pytest.mark.parametrize("kind, place", [("fat12", 0x25), ("fat16", 0x25), ("fat32", 0x41)])
def test_the_dirty_byte_of_nt(made: Callable[..., Path], kind: str, place: int) -> None:
    data = bytearray(made(kind).read_bytes())
    data[place] |= 1
    assert look(data).state is State.DIRTY


@pytest.mark.parametrize("copy", [0, 1])
def test_a_cluster_used_in_one_copy_is_used(made: Callable[..., Path], copy: int) -> None:
    data = bytearray(made("fat16").read_bytes())
    (free,) = look(data).free
    middle = 8000
    data[_entry(data, copy, middle, 2) + 1] = 0xFF
    left, right = look(data).free
    assert right.offset - left.end == 2048 and (left.offset, right.end) == (free.offset, free.end)


def test_a_bad_cluster_stays_used(made: Callable[..., Path]) -> None:
    data = bytearray(made("fat16").read_bytes())
    for copy in (0, 1):
        at = _entry(data, copy, 8000, 2)
        data[at:at + 2] = b"\xf7\xff"
    assert len(look(data).free) == 2


def test_the_top_bits_of_fat32_do_not_count(made: Callable[..., Path]) -> None:
    data = bytearray(made("fat32").read_bytes())
    before = look(data).free
    data[_entry(data, 0, 50_000, 4) + 3] = 0xF0
    assert look(data).free == before


def test_a_root_folder_that_is_free_is_not_believed(made: Callable[..., Path]) -> None:
    data = bytearray(made("fat32").read_bytes())
    for copy in (0, 1):
        at = _entry(data, copy, 2, 4)
        data[at:at + 4] = bytes(4)
    found = look(data)
    assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings


@pytest.mark.parametrize("kind", SHAPES)
def test_hibernation(made: Callable[..., Path], kind: str) -> None:
    found = look(made(kind, {"HIBERFIL.SYS": b"hibr" + bytes(8192)}).read_bytes())
    assert (found.state, found.free) == (State.HIBERNATED, ())
    assert found.findings[0].severity is Severity.ERROR


# -- the page file


@pytest.mark.parametrize("kind", SHAPES)
def test_the_page_file_is_droppable(made: Callable[..., Path], kind: str) -> None:
    """In two pieces, because a file before it was removed; mtools writes it, libfsfat reads it back."""
    size = MIB + 700
    volume = made(kind, {"gone.bin": bytes(300_000), "kept.bin": bytes_of("kept", 300_000)})
    run("mdel", "-i", volume, "::/gone.bin")
    (volume.parent / "page").write_bytes(bytes_of("page", size))
    run("mcopy", "-i", volume, volume.parent / "page", "::/PAGEFILE.SYS")
    data = bytearray(volume.read_bytes())
    found = look(data)
    whole = size // found.cluster_size * found.cluster_size
    assert sum(piece.length for piece in found.droppable) == whole
    for piece in found.droppable:
        data[piece.offset:piece.end] = bytes(piece.length)
    guest = open_files(MemorySource(data), found)
    assert guest.read("\\pagefile.sys") == bytes(whole) + bytes_of("page", size)[whole:]
    assert guest.read("\\kept.bin") == bytes_of("kept", 300_000)


def test_a_crash_dump_is_kept(made: Callable[..., Path]) -> None:
    found = look(made("fat16", {"PAGEFILE.SYS": b"PAGEDUMP" + bytes(MIB)}).read_bytes())
    assert found.droppable == () and "crash dump" in found.findings[0].what


def test_a_page_file_whose_chain_loops_is_not_believed(made: Callable[..., Path]) -> None:
    data = bytearray(made("fat16", {"PAGEFILE.SYS": bytes_of("page", MIB)}).read_bytes())
    assert look(data).droppable
    for copy in (0, 1):  # the page file has clusters 2 to 513
        at = _entry(data, copy, 100, 2)
        data[at:at + 2] = (3).to_bytes(2, "little")
    found = look(data)
    assert (found.state, found.droppable, found.free) == (State.UNKNOWN, (), ())
    assert found.findings


# -- damage


@pytest.mark.parametrize("kind", SHAPES)
def test_flipped_bytes_of_the_boot_sector(made: Callable[..., Path], kind: str) -> None:
    data = bytearray(made(kind, {"PAGEFILE.SYS": bytes_of("page", 100_000)}).read_bytes())
    chance = random.Random(1)
    for place in range(0x5A):
        before = data[place]
        data[place] ^= chance.choice([0x01, 0x80, 0xFF])
        found = look(data)
        assert all(piece.end <= len(data) for piece in (*found.free, *found.droppable))
        assert found.state is State.CLEAN or not found.free
        data[place] = before


@pytest.mark.parametrize("kind", SHAPES)
def test_flipped_bytes_of_the_fat_and_the_root(made: Callable[..., Path], kind: str) -> None:
    data = bytearray(made(kind, {"PAGEFILE.SYS": bytes_of("page", 20_000)}).read_bytes())
    chance = random.Random(2)
    root = data.index(b"PAGEFILESYS")
    for place in [*range(_entry(data, 0, 0, 1), _entry(data, 0, 0, 1) + 40), *range(root, root + 32)]:
        before = data[place]
        data[place] ^= chance.choice([0x01, 0x80, 0xFF])
        found = look(data)
        assert all(piece.end <= len(data) for piece in (*found.free, *found.droppable))
        data[place] = before


def test_a_truncated_volume(made: Callable[..., Path]) -> None:
    data = made("fat16").read_bytes()
    for length in (512, 4096, MIB, len(data) - 512):
        found = look(data[:length])
        assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings


def test_an_unreadable_fat(made: Callable[..., Path]) -> None:
    data = made("fat16").read_bytes()
    found = examine(FaultySource(MemorySource(data), [Range(_entry(data, 1, 5000, 2), 512)]))
    assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings


@pytest.mark.parametrize("data", [bytes(4096), b"\x55" * 4096, b"\xeb\x3c\x90MSDOS5.0" + bytes(4000)])
def test_what_is_neither(data: bytes) -> None:
    assert look(data) == Filesystem("")


def test_fsck_is_a_witness_that_can_say_no(made: Callable[..., Path]) -> None:
    volume = made("fat16", {"A.BIN": bytes(100_000)})
    data = bytearray(volume.read_bytes())
    data[_entry(data, 0, 5, 2)] ^= 0xFF
    volume.write_bytes(data)
    assert subprocess.run(["fsck.fat", "-n", str(volume)], capture_output=True).returncode != 0
