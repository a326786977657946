"""ext2, ext3 and ext4: which clusters are free, and when that may be believed. e2fsprogs made the volumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v.errors import Severity
from p2v.filesystem import examine
from p2v.filesystem.extsums import CRC16, CRC32C, checksum
from p2v.model import Filesystem, FilesystemState, Range
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource
from tests.filesystem.made_ntfs import MIB, bytes_of, run

State = FilesystemState
SHORTEST = 64 << 10  # bytes: shorter free ranges are not told apart from data
SHAPES = {  # type and options of mke2fs
    "ext2": "ext2", "ext2-every-super": "ext2 -b 1024 -g 512 -O ^sparse_super,^resize_inode",
    "ext2-revision-0": "ext2 -r 0", "ext3": "ext3", "ext3-4k": "ext3 -b 4096", "ext4": "ext4",
    "ext4-32-bit": "ext4 -O ^64bit", "ext4-uninit": "ext4 -O ^metadata_csum,uninit_bg",
    "ext4-uninit-32-bit": "ext4 -O ^metadata_csum,uninit_bg,^64bit", "ext4-seed": "ext4 -O metadata_csum_seed",
    "ext4-meta": "ext4 -b 1024 -O meta_bg,^resize_inode,^flex_bg", "ext4-meta-flex": "ext4 -O meta_bg,^resize_inode",
    "ext4-no-flex": "ext4 -O ^flex_bg -g 1024 -b 1024", "ext4-sparse2": "ext4 -O sparse_super2 -b 1024",
    "ext4-bigalloc": "ext4 -O bigalloc -C 16384", "ext4-bigalloc-1k": "ext4 -O bigalloc -b 1024 -C 8192",
    "ext4-2k": "ext4 -b 2048 -O ^has_journal", "ext4-small-flex": "ext4 -G 4 -b 1024",
    "ext4-plenty": "ext4 -O encrypt,large_dir,project",
}
CONTENT = {f"file{i}.bin": bytes_of(f"ext{i}", i * 97_001) for i in range(8)}
GONE = ("file3.bin", "file5.bin")


@pytest.fixture(autouse=True)
def tools(needs: Callable[..., None]) -> None:
    needs("mke2fs", "dumpe2fs", "debugfs", "e2fsck")


def make(folder: Path, shape: str, size: int = 48 * MIB + 7 * 512) -> Path:
    """A volume with files, two of them removed again."""
    files, volume = folder / "files", folder / "ext.img"
    files.mkdir()
    for name, data in CONTENT.items():
        (files / name).write_bytes(data)
    with open(volume, "wb") as file:
        file.truncate(size)
    kind, *options = shape.split()
    run("mke2fs", "-q", "-F", "-t", kind, *options, "-d", files, volume)
    for name in GONE:
        run("debugfs", "-w", "-R", f"rm {name}", volume)
    return volume


def look(volume: Path) -> Filesystem:
    disk = open_disk(str(volume))
    try:
        return examine(disk)
    finally:
        disk.close()


def told_free(volume: Path, found: Filesystem) -> list[tuple[int, int]]:
    """What dumpe2fs lists; of a cluster it names the first block."""
    told = run("dumpe2fs", volume)
    block = int(re.search(r"Block size: +(\d+)", told)[1])
    merged: list[tuple[int, int]] = []
    for line in re.findall(r"^ +Free blocks: (\S.*)$", told, re.MULTILINE):
        for part in line.split(", "):
            first, _, last = part.partition("-")
            start, end = int(first) * block, int(last or first) * block + found.cluster_size
            if merged and merged[-1][1] == start:
                start = merged.pop()[0]
            merged.append((start, end))
    return [(start, end) for start, end in merged if end - start >= SHORTEST]


def partclone_free(image: bytes) -> Iterator[tuple[int, int]]:
    """The runs of blocks that partclone leaves out."""
    total, block = int.from_bytes(image[0x3C:0x44], "little"), int.from_bytes(image[0x54:0x58], "little")
    bits = "".join(f"{byte:08b}"[::-1] for byte in image[110 : 110 + -(-total // 8)])[:total]
    return ((m.start() * block, m.end() * block) for m in re.finditer("0+", bits))


@pytest.mark.parametrize("shape", SHAPES)
def test_free_is_what_e2fsprogs_calls_free_and_nobody_needs_it(shape: str, tmp_path: Path) -> None:
    volume = make(tmp_path, SHAPES[shape])
    found = look(volume)
    assert (found.kind, found.state, found.findings) == (shape[:4], State.CLEAN, ())
    assert [(r.offset, r.end) for r in found.free] == told_free(volume, found)
    assert sum(r.length for r in found.free) > 20 * MIB
    with open(volume, "r+b") as file:
        for piece in found.free:
            file.seek(piece.offset)
            file.write(b"\x99" * piece.length)
    run("e2fsck", "-fn", volume)
    for name, data in CONTENT.items():
        if name not in GONE:
            run("debugfs", "-R", f"dump {name} {tmp_path / 'out'}", volume)
            assert (tmp_path / "out").read_bytes() == data
    assert look(volume) == found


@pytest.mark.parametrize("shape", ["ext3-4k", "ext4-uninit"])
def test_partclone_leaves_out_the_same(shape: str, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("partclone.extfs")
    volume = make(tmp_path, SHAPES[shape])
    run("partclone.extfs", "-q", "-c", "-s", volume, "-o", tmp_path / "image", "-L", tmp_path / "log")
    theirs = [run for run in partclone_free((tmp_path / "image").read_bytes()) if run[1] - run[0] >= SHORTEST]
    assert [(r.offset, r.end) for r in look(volume).free] == theirs


def test_the_answer_needs_few_bytes(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4").read_bytes()
    found = examine(MemorySource(data))
    assert found.free and examine(FaultySource(MemorySource(data), found.free)) == found


def test_a_tail_is_nobodys(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4", 16 * MIB).read_bytes()
    assert examine(MemorySource(data + bytes(MIB))).free == examine(MemorySource(data)).free


# -- what may be believed


@pytest.mark.parametrize("field, value, state", [
    ("state", "2", State.DIRTY), ("state", "0", State.DIRTY), ("state", "3", State.DIRTY),
    ("last_orphan", "12", State.DIRTY), ("feature_incompat", "0x2c6", State.UNCLEAN),
    ("feature_incompat", "0x2c3", State.UNKNOWN), ("feature_incompat", "0x12c2", State.UNKNOWN),
    ("feature_ro_compat", "0x846b", State.UNKNOWN), ("feature_ro_compat", "0x1046b", State.DIRTY),
    ("feature_ro_compat", "0x8000046b", State.UNKNOWN),
])
def test_a_superblock_that_says_no(field: str, value: str, state: State, tmp_path: Path) -> None:
    volume = make(tmp_path, "ext4 -b 1024", 16 * MIB)
    run("debugfs", "-w", "-R", f"set_super_value {field} {value}", volume)
    found = look(volume)
    if field == "feature_ro_compat" and value == "0x846b":  # verity: known
        assert found.state is State.CLEAN
        return
    assert (found.state, found.free) == (state, ()) and found.findings[0].severity is Severity.WARNING


def test_a_journal_that_is_not_replayed_though_the_flag_is_gone(tmp_path: Path) -> None:
    volume = make(tmp_path, "ext3 -b 1024", 16 * MIB)
    data = bytearray(volume.read_bytes())
    at = data.index(bytes.fromhex("c03b399800000004"))
    data[at + 0x1F] = 1  # s_start
    assert examine(MemorySource(data)).state is State.UNCLEAN
    data[at] = 0
    found = examine(MemorySource(data))
    assert (found.state, found.free) == (State.UNKNOWN, ())


def test_an_external_journal_is_no_filesystem(tmp_path: Path) -> None:
    with open(tmp_path / "journal", "wb") as file:
        file.truncate(8 * MIB)
    run("mke2fs", "-q", "-F", "-O", "journal_dev", tmp_path / "journal")
    found = look(tmp_path / "journal")
    assert (found.kind, found.free) == ("ext", ()) and "journal for another volume" in found.findings[0].why


def inside(free: tuple[Range, ...], known: tuple[Range, ...]) -> bool:
    return all(any(k.offset <= r.offset and r.end <= k.end for k in known) for r in free)


@pytest.mark.parametrize("shape", ["ext2 -b 1024", "ext4 -b 1024 -O ^metadata_csum,uninit_bg", "ext4 -b 1024"])
def test_every_byte_of_the_superblock_and_the_descriptors_may_be_damaged(shape: str, tmp_path: Path) -> None:
    """Never an exception, and never free what was not free."""
    data = bytearray(make(tmp_path, shape, 16 * MIB).read_bytes())
    known = examine(MemorySource(data)).free
    believed = 0
    for place in (*range(1024, 1024 + 0x178), *range(1024 + 0x240, 1024 + 0x280), *range(2040, 2048 + 2 * 64)):
        flip = (0xFF, 1, 0x80, 4)[place % 4]
        data[place] ^= flip
        found = examine(MemorySource(data))
        data[place] ^= flip
        assert inside(found.free, known), f"byte {place:#x}"
        believed += bool(found.free)
    assert "metadata_csum" in shape or shape.startswith("ext2") or believed == 0


@pytest.mark.parametrize("shape", ["ext2 -b 1024", "ext4 -b 1024"])
def test_a_bitmap_that_is_damaged(shape: str, tmp_path: Path) -> None:
    volume = make(tmp_path, shape, 16 * MIB)
    block = int(re.search(r"Block bitmap at (\d+)", run("dumpe2fs", volume))[1])
    data = bytearray(volume.read_bytes())
    for bit in (0, 77, 8191):
        data[block * 1024 + bit // 8] ^= 1 << bit % 8
        found = examine(MemorySource(data))
        data[block * 1024 + bit // 8] ^= 1 << bit % 8
        assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings
    assert examine(MemorySource(data)).free


def test_nothing_is_free_where_the_volume_is_cut(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4", 16 * MIB).read_bytes()
    for size in (2048, 4096, 512 * 1025, 8 * MIB, 16 * MIB - 512):
        found = examine(MemorySource(data[:size]))
        assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings
    assert examine(MemorySource(data[:1536])) == Filesystem("")


def test_what_cannot_be_read_is_data(tmp_path: Path) -> None:
    data = make(tmp_path, "ext4", 16 * MIB).read_bytes()
    for bad in (1024, 2048):
        found = examine(FaultySource(MemorySource(data), [Range(bad, 512)]))
        assert found.free == () and found.findings


def test_the_checksums() -> None:
    """The published check values of the two polynomials, without and with the last inversion."""
    assert checksum(CRC16, 0, b"123456789") == 0xBB3D
    assert checksum(CRC32C, 0xFFFFFFFF, b"123456789") ^ 0xFFFFFFFF == 0xE3069283
