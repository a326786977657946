"""NTFS: which clusters are free, when that may be believed, and what of the page file may be left out."""

from __future__ import annotations

import contextlib
import lzma
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from p2v.errors import Severity
from p2v.filesystem import examine, open_files
from p2v.filesystem.mft import Mft
from p2v.model import Filesystem, FilesystemState, Range, read
from p2v.source.device import open_disk
from p2v.source.window import Window
from p2v.testing import FaultySource, MemorySource
from tests.filesystem.made_ntfs import (
    MIB,
    attribute_place,
    bytes_of,
    make,
    put,
    record_place,
    run,
    stream_place,
    unpack_sparse,
)

TOOLS = ("mkntfs", "ntfscp", "ntfsclone", "ntfsresize", "ntfscat")
State = FilesystemState


def look(data: bytes | bytearray) -> Filesystem:
    return examine(MemorySource(data))


@pytest.fixture
def made(tmp_path: Path, needs: Callable[..., None]) -> Callable[..., Path]:
    needs(*TOOLS)
    return lambda files=None, **more: make(tmp_path, files or {}, **more)


@pytest.fixture(scope="session")
def windows_2003(corpus: Path) -> bytes:
    """A volume that Windows 2003 made and let go cleanly; of a dynamic disk, at LBA 63."""
    disk = lzma.decompress((corpus / "ldm/ldm-2003r2-simple-1.img.xz").read_bytes())
    return disk[63 * 512:(63 + 96256) * 512]


# -- free clusters


@pytest.mark.parametrize("cluster", [512, 2048, 4096, 65536])
def test_ntfsclone_leaves_out_the_same_clusters(made: Callable[..., Path], cluster: int) -> None:
    """ntfsclone builds its own map from all inodes. What it leaves out is a hole in its copy, AA in ours."""
    volume = made({"kept.bin": bytes_of("kept", 3 * MIB), "small.txt": b"resident"}, cluster=cluster,
                  size=24 * MIB + 512 * 7)
    clone = volume.with_name("clone.img")
    run("ntfsclone", "-q", "--overwrite", clone, volume)
    data, theirs = volume.read_bytes(), clone.read_bytes()
    found = look(data)
    assert found.state is State.CLEAN and found.cluster_size == cluster and found.version == "3.1"
    assert found.free
    for piece in found.free:
        assert not any(theirs[piece.offset:piece.end]), "ntfsclone needs bytes that we call free"
        assert piece.offset % cluster == piece.length % cluster == 0
    left_out = sum(1 for at in range(0, 24 * MIB // cluster * cluster, cluster)
                   if not any(theirs[at:at + cluster]) and data[at:at + cluster] == b"\xaa" * cluster)
    ours = sum(piece.length for piece in found.free) // cluster
    assert ours <= left_out <= ours + 8 * (65536 // cluster), "only short ranges are copied though free"


@pytest.mark.parametrize("cluster", [512, 4096])
def test_nothing_is_missed_when_free_bytes_are_overwritten(made: Callable[..., Path], cluster: int) -> None:
    files = {f"file{i}.bin": bytes_of(str(i), i * 40_000) for i in range(12)}
    volume = made(files, cluster=cluster)
    data = bytearray(volume.read_bytes())
    for piece in look(data).free:
        data[piece.offset:piece.end] = b"\x55" * piece.length
    volume.write_bytes(data)
    run("ntfsresize", "-i", "-f", "-P", volume)
    guest = open_files(MemorySource(data), look(data))
    for name, content in files.items():
        assert guest.read("\\" + name.upper()) == content
        run("ntfscat", volume, name)


@pytest.mark.parametrize("image, version", [("ntfs12-files-64m", "1.2"), ("ntfs30-512m", "3.0")])
def test_older_versions(corpus: Path, tmp_path: Path, needs: Callable[..., None],
                        image: str, version: str) -> None:
    needs("ntfsresize")
    volume = tmp_path / "volume.img"
    unpack_sparse(corpus / f"ntfs/{image}.img.xz", volume)
    with contextlib.closing(open_disk(str(volume))) as source:
        found = examine(source)
        sectors = int.from_bytes(read(source, 0x28, 8), "little")
        assert sum(piece.length for piece in found.free) > source.size * 0.9
    assert (found.kind, found.version, found.state) == ("ntfs", version, State.CLEAN)
    middle = sectors // 2 * 512  # NT 3.51 keeps the backup boot sector there
    assert version == "3.0" or not any(p.offset <= middle < p.end for p in found.free)
    with open(volume, "r+b") as file:
        for piece in found.free:
            file.seek(piece.offset)
            file.write(b"\x55" * min(piece.length, MIB))
    run("ntfsresize", "-i", "-f", "-P", volume)


def test_a_volume_that_windows_2003_made(windows_2003: bytes) -> None:
    found = look(windows_2003)
    assert (found.version, found.cluster_size, found.state, found.findings) == ("3.1", 512, State.CLEAN, ())
    assert max(piece.end for piece in found.free) <= len(windows_2003) - 512, "the backup boot sector is kept"
    assert windows_2003[:3] == windows_2003[-512:-509]


def test_a_volume_that_windows_10_made(corpus: Path) -> None:
    """Its free space was filled with PTRN before the format: what else is in a free range was deleted."""
    disk = lzma.decompress((corpus / "ntfs/ntfs-lastaccess.raw.xz").read_bytes())
    start, count = struct.unpack_from("<II", disk, 0x1BE + 8)
    found = examine(Window(MemorySource(disk), start * 512, count * 512))
    assert found.state is State.CLEAN and not found.findings
    free = b"".join(disk[start * 512 + p.offset:start * 512 + p.end] for p in found.free)
    assert len(free) > 0.9 * count * 512
    assert free.count(b"PTRN") * 4 > 0.99 * len(free)


def test_padding_bits_and_the_tail_are_never_free(made: Callable[..., Path]) -> None:
    volume = made(size=8 * MIB + 512 * 5)
    data = bytearray(volume.read_bytes())
    bitmap = stream_place(data, 6)
    clusters = int.from_bytes(data[0x28:0x30], "little") // 8
    data[bitmap + clusters // 8:bitmap + clusters // 8 + 8] = bytes(8)  # the padding says free, too
    found = look(data)
    assert found.free and found.free[-1].end <= clusters * 4096


def test_what_the_bitmap_does_not_hold_is_data(made: Callable[..., Path]) -> None:
    data = bytearray(made().read_bytes())
    place = attribute_place(data, 6, 0x80)
    half = int.from_bytes(data[place + 0x30:place + 0x38], "little") // 2
    data[place + 0x38:place + 0x40] = half.to_bytes(8, "little")
    assert look(data).free[-1].end <= half * 8 * 4096


def test_a_bitmap_that_frees_the_mft_is_not_believed(made: Callable[..., Path]) -> None:
    data = bytearray(made().read_bytes())
    bitmap = stream_place(data, 6)
    data[bitmap:bitmap + 64] = bytes(64)
    found = look(data)
    assert (found.state, found.free) == (State.UNKNOWN, ())
    assert [f.severity for f in found.findings] == [Severity.WARNING] and "$Bitmap" in found.findings[0].what


def test_a_bitmap_spread_over_records_is_followed(made: Callable[..., Path]) -> None:
    """$Bitmap in two extension records, written by hand; libfsntfs is the witness that it is NTFS."""
    data = bytearray(made({"kept.bin": bytes_of("kept", MIB)}, cluster=512, size=20 * MIB).read_bytes())
    before = look(data)
    _spread_bitmap(data)
    after = look(data)
    assert after.state is State.CLEAN and after.free == before.free
    import pyfsntfs

    volume = pyfsntfs.volume()
    from p2v.filesystem.sourcefile import SourceFile
    volume.open_file_object(SourceFile(MemorySource(data)))
    mft = Mft(MemorySource(data))
    bitmap = mft.attribute(mft.record(6), 0x80)
    assert bitmap is not None and len(bitmap.runs) == 2
    assert volume.get_file_entry(6).read_buffer_at_offset(bitmap.size, 0) == mft.read(bitmap, 0, bitmap.size)


def _spread_bitmap(data: bytearray) -> None:
    mft = Mft(MemorySource(data))
    (run_,) = mft.attribute(mft.record(6), 0x80).runs
    assert run_.lcn is not None and run_.length > 2
    place = attribute_place(data, 6, 0x80)
    length = int.from_bytes(data[place + 4:place + 8], "little")
    whole = bytes(data[place:place + length])
    rest = bytes(data[place + length:record_place(data, 7)])
    entries = b""
    for number, (vcn, count) in {14: (0, 1), 15: (1, run_.length - 1)}.items():
        piece = bytearray(whole[:0x40] + bytes(16))
        piece[4:8] = len(piece).to_bytes(4, "little")
        piece[0x10:0x20] = struct.pack("<QQ", vcn, vcn + count - 1)
        runs = struct.pack("<BHI", 0x42, count, run_.lcn + vcn)
        piece[0x40:0x40 + len(runs)] = runs
        extension = record_place(data, number)
        sequence = int.from_bytes(data[extension + 0x10:extension + 0x12], "little")
        base = int.from_bytes(data[record_place(data, 6) + 0x10:record_place(data, 6) + 0x12], "little")
        data[extension + 0x20:extension + 0x28] = struct.pack("<Q", 6 | base << 48)
        at = extension + int.from_bytes(data[extension + 0x14:extension + 0x16], "little")
        data[at:at + len(piece) + 8] = bytes(piece) + b"\xff\xff\xff\xff" + bytes(4)
        data[extension + 0x18:extension + 0x1c] = (at + len(piece) + 8 - extension).to_bytes(4, "little")
        entries += struct.pack("<IHBBQQH6x", 0x80, 32, 0, 26, vcn, number | sequence << 48, 0)
    listed = struct.pack("<IIBBHHHIHH", 0x20, 0x18 + len(entries), 0, 0, 0, 0, 9, len(entries), 0x18, 0) + entries
    new = record_place(data, 6)
    first = new + int.from_bytes(data[new + 0x14:new + 0x16], "little")
    standard = int.from_bytes(data[first + 4:first + 8], "little")
    body = bytes(data[first:first + standard]) + listed + bytes(data[first + standard:place]) + rest
    size = 1024 - (first - new)
    ends = [data[new + 510:new + 512], data[new + 1022:new + 1024]]
    data[first:new + 1024] = body[:size]
    for end, value in zip((510, 1022), ends, strict=True):
        assert not any(data[new + end:new + end + 2]) or end == 1022, "the crafted record reaches a stride's end"
        data[new + end:new + end + 2] = value
    data[new + 0x18:new + 0x1c] = (1016).to_bytes(4, "little")


# -- state


def _restart_pages(data: bytes) -> list[int]:
    log = stream_place(data, 2)
    return [log, log + 4096]


def _in_use(data: bytearray) -> None:
    for page in _restart_pages(data):
        data[page + 0x30 + 0x0C:page + 0x30 + 0x10] = b"\0\0\0\0"  # a client, and no clean flag


def test_an_unreplayed_journal(windows_2003: bytes) -> None:
    data = bytearray(windows_2003)
    _in_use(data)
    found = look(data)
    assert (found.state, found.free, found.droppable) == (State.UNCLEAN, (), ())
    assert "journal" in found.findings[0].what


@pytest.mark.parametrize("torn, state", [((0,), State.CLEAN), ((1,), State.CLEAN), ((0, 1), State.UNKNOWN)])
def test_one_restart_page_is_enough(windows_2003: bytes, torn: tuple[int, ...], state: State) -> None:
    data = bytearray(windows_2003)
    for page in torn:
        data[_restart_pages(data)[page] + 510] ^= 0xFF
    found = look(data)
    assert found.state is state and bool(found.free) is (state is State.CLEAN)


def test_the_newer_restart_page_decides(windows_2003: bytes) -> None:
    data = bytearray(windows_2003)
    _in_use(data)
    first, second = _restart_pages(data)
    lsn = int.from_bytes(data[first + 0x30:first + 0x38], "little")
    data[second + 0x30:second + 0x38] = (lsn + 10).to_bytes(8, "little")
    data[second + 0x3E] = 2
    assert look(data).state is State.CLEAN
    data[first + 0x30:first + 0x38] = (lsn + 20).to_bytes(8, "little")
    assert look(data).state is State.UNCLEAN


def test_a_wiped_journal_is_clean_and_said(made: Callable[..., Path]) -> None:
    data = bytearray(made().read_bytes())
    found = look(data)
    assert found.state is State.CLEAN and ["all FF" in f.what for f in found.findings] == [True]
    data[stream_place(data, 2) + 100_000] = 0
    assert look(data).state is State.UNKNOWN


@pytest.mark.parametrize("flags, state", [
    (0x0001, State.DIRTY), (0x4000, State.DIRTY), (0x8000, State.CLEAN), (0x0004, State.CLEAN)])
def test_flags_of_the_volume(windows_2003: bytes, flags: int, state: State) -> None:
    data = bytearray(windows_2003)
    place = attribute_place(data, 3, 0x70) + 0x18 + 10
    data[place:place + 2] = flags.to_bytes(2, "little")
    found = look(data)
    assert found.state is state and bool(found.free) is (state is State.CLEAN)
    _in_use(data)
    assert look(data).state is State.UNCLEAN, "the journal weighs more than the flag"


@pytest.mark.parametrize("head, size, state", [
    (b"hibr", 8192, State.HIBERNATED), (b"HIBR", 8192, State.HIBERNATED), (b"", 100, State.HIBERNATED),
    (b"wake", 8192, State.CLEAN), (b"\0\0\0\0", 8192, State.CLEAN)])
def test_hibernation(made: Callable[..., Path], head: bytes, size: int, state: State) -> None:
    found = look(made({"hiberfil.sys": head.ljust(size, b"\0")}).read_bytes())
    assert found.state is state and bool(found.free) is (state is State.CLEAN)
    assert any(f.severity is Severity.ERROR for f in found.findings) is (state is State.HIBERNATED)


# -- the page file


def _total(ranges: tuple[Range, ...]) -> int:
    return sum(piece.length for piece in ranges)


def test_the_page_file_is_droppable(made: Callable[..., Path]) -> None:
    size = 2 * MIB + 1000
    volume = made({"a.bin": bytes_of("a", MIB), "PageFile.Sys": bytes_of("page", size),
                   "b.bin": bytes_of("b", MIB)})
    data = bytearray(volume.read_bytes())
    found = look(data)
    assert _total(found.droppable) == 2 * MIB, "whole clusters only"
    for piece in found.droppable:
        data[piece.offset:piece.end] = bytes(piece.length)
    guest = open_files(MemorySource(data), found)
    assert guest.read("\\pagefile.sys") == bytes(2 * MIB) + bytes_of("page", size)[2 * MIB:]
    assert guest.read("\\a.bin") == bytes_of("a", MIB) and guest.read("\\b.bin") == bytes_of("b", MIB)


@pytest.mark.parametrize("content", [b"PAGEDUMP".ljust(MIB, b"x"), b"PAGEDU64".ljust(MIB, b"x"), b"resident", b""])
def test_a_dump_or_a_resident_page_file_is_kept(made: Callable[..., Path], content: bytes) -> None:
    found = look(made({"pagefile.sys": content}).read_bytes())
    assert found.state is State.CLEAN and found.droppable == ()
    assert any("crash dump" in f.what for f in found.findings) is content.startswith(b"PAGEDU")


@pytest.mark.parametrize("field, value, droppable", [
    (0x38, (MIB // 2 + 5).to_bytes(8, "little"), MIB // 2),  # initialized size
    (0x0C, b"\x01\x00", 0), (0x0C, b"\x00\x40", 0), (0x0C, b"\x00\x80", 0),  # compressed, encrypted, sparse
])
def test_page_files_that_are_odd(made: Callable[..., Path], field: int, value: bytes, droppable: int) -> None:
    volume = made({"pagefile.sys": bytes_of("page", MIB)})
    data = bytearray(volume.read_bytes())
    number = open_files(MemorySource(data), look(data)).record_number("\\pagefile.sys")
    place = attribute_place(data, number, 0x80)
    data[place + field:place + field + len(value)] = value
    assert _total(look(data).droppable) == droppable


def test_nothing_is_dropped_unless_clean(made: Callable[..., Path]) -> None:
    data = bytearray(made({"pagefile.sys": bytes_of("page", MIB)}).read_bytes())
    assert look(data).droppable
    data[attribute_place(data, 3, 0x70) + 0x18 + 10] |= 1
    assert look(data).droppable == ()


def test_a_page_file_over_the_mft_is_not_believed(made: Callable[..., Path]) -> None:
    data = bytearray(made({"pagefile.sys": bytes_of("page", MIB)}).read_bytes())
    mft = Mft(MemorySource(data))
    number = open_files(MemorySource(data), look(data)).record_number("\\pagefile.sys")
    place = attribute_place(data, number, 0x80)
    runs = place + int.from_bytes(data[place + 0x20:place + 0x22], "little")
    data[runs:runs + 6] = struct.pack("<BHBB", 0x22, 256, mft.boot.mft_lcn & 0xFF, mft.boot.mft_lcn >> 8) + b"\0"
    found = look(data)
    assert (found.state, found.droppable, found.free) == (State.UNKNOWN, (), ())


# -- damage


def _answers(data: bytearray) -> None:
    found = look(data)
    for piece in (*found.free, *found.droppable):
        assert piece.end <= len(data)
    if found.state is not State.CLEAN:
        assert not found.free and not found.droppable
        assert found.findings or found.kind == ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    volume = make(folder, {"pagefile.sys": bytes_of("page", 100_000)}, size=4 * MIB)
    put(volume, {f"a rather long name {i}.txt": b"x" for i in range(30)})
    return volume.read_bytes()


def _flip_each(data: bytearray, places: Iterable[int], flips: Sequence[int]) -> None:
    chance = random.Random(1)
    for place in places:
        before = data[place]
        data[place] ^= chance.choice(flips)
        _answers(data)
        data[place] = before


def test_every_flipped_byte_of_the_boot_sector(needs: Callable[..., None], small: bytes) -> None:
    _flip_each(bytearray(small), range(512), [0xFF])
    _flip_each(bytearray(small), range(0x54), [0x01, 0x80])


@pytest.mark.parametrize("number", [0, 2, 3, 5, 6])
def test_flipped_bytes_of_records(needs: Callable[..., None], small: bytes, number: int) -> None:
    start = record_place(small, number)
    used = int.from_bytes(small[start + 0x18:start + 0x1C], "little")
    _flip_each(bytearray(small), range(start, start + used, 3), [0x01, 0x80, 0xFF])


def test_flipped_bytes_of_the_journal(windows_2003: bytes) -> None:
    data = bytearray(windows_2003)
    for page in _restart_pages(data):
        _flip_each(data, range(page, page + 0x90), [0x01, 0xFF])


@pytest.mark.parametrize("length", [0, 100, 512, 4096, 40_000, MIB, 4 * MIB - 1024])
def test_a_truncated_volume(needs: Callable[..., None], small: bytes, length: int) -> None:
    found = look(small[:length])
    assert found.free == () and found.state is State.UNKNOWN


@pytest.mark.parametrize("number", [0, 2, 3, 5, 6])
def test_unreadable_records(needs: Callable[..., None], small: bytes, number: int) -> None:
    source = FaultySource(MemorySource(small), [Range(record_place(small, number), 512)])
    found = examine(source)
    assert (found.kind, found.state, found.free) == ("ntfs", State.UNKNOWN, ())
    assert found.findings[0].why


def test_an_unreadable_boot_sector() -> None:
    found = examine(FaultySource(MemorySource(bytes(8192)), [Range(0, 512)]))
    assert found.kind == "" and found.findings[0].severity is Severity.ERROR
