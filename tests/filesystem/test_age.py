"""How old a filesystem is by its own word: NTFS, FAT, ext; damaged and unreadable ones; and comparing two."""

from __future__ import annotations

import lzma
import re
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v.errors import LayoutError, ReadError, Where
from p2v.filesystem import open_files
from p2v.filesystem.age import Age, Clue, age_of, compare
from p2v.filesystem.folders import Folder, find_path
from p2v.filesystem.glance import dos_time, filetime
from p2v.filesystem.mft import Mft
from p2v.model import Filesystem, Range
from p2v.source.window import Window
from p2v.testing import FaultySource, MemorySource
from tests.filesystem.made_age import (
    CONFIG,
    FILES,
    HIVES,
    LSN,
    NOON,
    PAGE,
    RESTART_AREA,
    WRITES,
    aged,
    hive_place,
    ntfs,
    wiped,
)
from tests.filesystem.made_ntfs import MIB, attribute_place, record_place, run, stream_place

LATER = NOON + timedelta(days=70)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ntfs(tmp_path_factory.mktemp("age"))


def look(data: bytes | bytearray) -> Age:
    return age_of(MemorySource(data))


def with_holes(data: bytes, *holes: Range) -> Age:
    return age_of(FaultySource(MemorySource(data), holes))


# -- NTFS


def test_ntfs_tells_its_log_its_hives_its_files_and_its_flag(volume: bytes) -> None:
    age = look(volume)
    assert (age.kind, age.lsn, age.dirty, age.unknown) == ("ntfs", LSN, False, ())
    assert age.identity == volume[0x48:0x50].hex()
    assert {m.what.lower(): (m.sequence, m.time) for m in age.hives} == {path.lower(): (WRITES, NOON) for path in HIVES}
    names = {"the root folder", CONFIG.lower(), *(path.lower() for path in FILES)}
    assert {m.what.lower(): m.time for m in age.moments} == dict.fromkeys(names, NOON)
    assert age.known == (*age.hives, *age.moments)
    assert "2009-03-02 12:00:00 UTC (SYSTEM, write 4711)" in age.words and f"{LSN:#x}" in age.words


def test_the_log_is_read_as_ntfsrecover_reads_it(volume: bytes, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("ntfsrecover")
    (tmp_path / "v.img").write_bytes(volume)
    said = run("ntfsrecover", "-n", "-v", "-r0", tmp_path / "v.img")
    assert look(volume).lsn == int(re.search(r"current_lsn +([0-9a-f]{16})", said)[1], 16)


def test_the_newer_restart_page_counts_and_a_torn_one_does_not(volume: bytes) -> None:
    copy = bytearray(volume)
    second = stream_place(volume, 2) + PAGE
    struct.pack_into("<Q", copy, second + RESTART_AREA, LSN + 64)
    assert look(copy).lsn == LSN + 64
    copy[second + 510] ^= 0xFF
    assert look(copy).lsn == LSN


def test_a_bad_sector_in_one_restart_page_leaves_the_other(volume: bytes) -> None:
    place = stream_place(volume, 2)
    assert with_holes(volume, Range(place + 1024, 512)).lsn == LSN
    assert with_holes(volume, Range(place + PAGE, 512)).lsn == LSN
    age = with_holes(volume, Range(place, 2 * PAGE))
    assert age.lsn is None and age.hives and any("log's sequence number" in word for word in age.unknown)


def test_a_wiped_log_says_nothing(volume: bytes) -> None:
    age = look(wiped(volume))
    assert age.lsn is None and len(age.hives) == 2
    assert any("Linux wiped the log" in word for word in age.unknown)


def test_the_dirty_flag(volume: bytes) -> None:
    copy = bytearray(volume)
    copy[attribute_place(volume, 3, 0x70) + 0x18 + 10] |= 1
    assert look(copy).dirty is True and "left in use" in look(copy).words


def test_a_hive_with_a_wrong_checksum_is_unknown(volume: bytes) -> None:
    copy = bytearray(volume)
    copy[hive_place(volume, HIVES[0]) + 5] ^= 1
    age = look(copy)
    assert [m.what for m in age.hives] == [f"{CONFIG}\\SOFTWARE"]
    assert any("SYSTEM's header" in word and "checksum" in word for word in age.unknown)


@pytest.mark.parametrize("place", ["boot", "mft", "root", "config", "hive", "volume"])
def test_bad_sectors_cost_what_lies_in_them(volume: bytes, place: str) -> None:
    files = open_files(MemorySource(volume), Filesystem("ntfs", "3.1"))
    config, system = files.record_number(CONFIG), files.record_number(HIVES[0])
    assert config and system
    holes = {"boot": 0, "mft": record_place(volume, 0), "root": record_place(volume, 5),
             "config": record_place(volume, config), "hive": hive_place(volume, HIVES[0]),
             "volume": record_place(volume, 3)}
    age = with_holes(volume, Range(holes[place], 512))
    assert age.unknown and "not known: " in age.words
    assert age.kind == ("" if place == "boot" else "ntfs")
    assert (age.lsn == LSN) == (place not in ("boot", "mft"))
    assert len(age.hives) == {"hive": 1, "volume": 2}.get(place, 0)
    assert (age.dirty is None) == (place in ("boot", "mft", "volume"))


def test_a_system_in_a_folder_of_any_name_is_found(tmp_path: Path, volume: bytes) -> None:
    from fixtures.ntfs import NtfsVolume
    from tests.filesystem.made_age import hive

    path = tmp_path / "v.img"
    path.write_bytes(wiped(volume))  # libntfs-3g mounts no volume whose log is in use
    with NtfsVolume(path) as open_volume:
        for root in ("/MYNT", "/Deep", "/Deep/NT4"):
            open_volume.make_folder(root)
        for root in ("/MYNT", "/Deep/NT4"):
            for folder in ("/system32", "/system32/config"):
                open_volume.make_folder(root + folder)
            open_volume.write(f"{root}/system32/config/system", hive(3, NOON, "system"))
        open_volume.write("/boot.ini", b"[operating systems]\r\n"
                          b"multi(0)disk(0)rdisk(0)partition(1)\\Deep\\NT4=\"NT\" /sos\r\n")
    age = look(path.read_bytes())
    assert {m.what.lower() for m in age.hives} == {
        "\\mynt\\system32\\config\\system", "\\deep\\nt4\\system32\\config\\system", *(p.lower() for p in HIVES)}


def test_real_copies_of_a_mirror_are_of_one_age(corpus: Path) -> None:
    """Windows 2003 R2's own mirror: the volume begins at sector 63 of both disks and has 0x2effe00 bytes + 1 sector."""
    ages = []
    for number in (1, 2):
        data = lzma.decompress((corpus / "ldm" / f"ldm-2003r2-mirrored-{number}.img.xz").read_bytes())
        length = 512 * (int.from_bytes(data[63 * 512 + 0x28:63 * 512 + 0x30], "little") + 1)
        ages.append(age_of(Window(MemorySource(data), 63 * 512, length)))
    assert ages[0].lsn == 0x102721 and ages[0].moments and ages[0].dirty is False
    assert compare(*ages) == (Clue("log sequence number"), Clue("times of files"))


def test_folders_are_found_as_libfsntfs_finds_them(volume: bytes, corpus: Path) -> None:
    nt = lzma.decompress((corpus / "ntfs" / "ntfs12-files-64m.img.xz").read_bytes())
    for data, paths in ((volume, ("\\", "\\WINNT", "\\WINNT\\system32")), (nt, ("\\", "\\WINNT", "\\WINNT\\system32"))):
        source = MemorySource(data)
        mft, files = Mft(source), open_files(source, Filesystem("ntfs"))
        for path in paths:
            number = find_path(mft, path)
            assert number is not None
            names = {entry.name: entry.record for entry in Folder(mft, number).names()}
            listed = files.list(path)
            assert listed and set(listed) <= set(names)
            for name in listed:
                below = f"{path.rstrip(chr(92))}\\{name}"
                assert find_path(mft, below.upper()) == names[name] == files.record_number(below)
            assert find_path(mft, f"{path}\\no such file") is None
        assert find_path(mft, "\\no\\such\\path") is None
    assert find_path(Mft(MemorySource(volume)), HIVES[0] + "\\below a file") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_borne(volume: bytes, data: st.DataObject) -> None:
    """Bytes of the structures that are followed, changed at random: another answer, never another exception."""
    copy = bytearray(volume)
    files = open_files(MemorySource(volume), Filesystem("ntfs", "3.1"))
    spots = [0, stream_place(volume, 2), stream_place(volume, 2) + PAGE, hive_place(volume, HIVES[0])]
    spots += [record_place(volume, number) for number in (0, 2, 3, 5, files.record_number("\\WINNT\\system32") or 0,
                                                          files.record_number(CONFIG) or 0)]
    spots += [found.start() for found in re.finditer(b"INDX", volume)]
    for spot in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=3)):
        for _ in range(data.draw(st.integers(1, 4))):
            copy[spot + data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    started = time.monotonic()
    assert isinstance(look(copy).words, str)
    assert time.monotonic() - started < 5


def test_a_loop_in_an_index_ends(volume: bytes) -> None:
    """A block whose entries lead back to itself."""
    mft = Mft(MemorySource(volume))
    number = find_path(mft, "\\WINNT\\system32")
    assert number is not None
    copy = bytearray(volume)
    for found in re.finditer(b"INDX", volume):  # each block: nothing but a last entry that leads to block 0
        block = found.start()
        struct.pack_into("<II", copy, block + 0x18, 0x28, 0x40)
        struct.pack_into("<QHHHHQ", copy, block + 0x18 + 0x28, 0, 24, 0, 3, 0, 0)
    folder = Folder(Mft(MemorySource(copy)), number)
    with pytest.raises(LayoutError) as caught:
        list(folder.names())
    assert "loop" in caught.value.why
    with pytest.raises(LayoutError) as caught:
        folder.find("zzz")
    assert "deeper" in caught.value.why


# -- FAT and ext


@pytest.mark.parametrize(("bits", "size", "dirty_at"), [("16", 16, 0x25), ("32", 40, 0x41)])
def test_fat_tells_its_hives_and_the_times_of_its_entries(
        tmp_path: Path, needs: Callable[..., None], bits: str, size: int, dirty_at: int) -> None:
    needs("mkfs.fat", "mcopy", "mmd")
    from tests.filesystem.made_age import hive

    path = tmp_path / "fat.img"
    path.write_bytes(bytes(size * MIB))
    run("mkfs.fat", "-F", bits, "-s", "1", "-i", "1234ABCD", path)
    run("mmd", "-i", path, "::/WINNT", "::/WINNT/system32", "::/WINNT/system32/config")
    (tmp_path / "SYSTEM").write_bytes(hive(9, NOON, "SYSTEM"))
    run("mcopy", "-i", path, tmp_path / "SYSTEM", "::/WINNT/system32/config/SYSTEM")
    data = bytearray(path.read_bytes())
    place = data.index(b"SYSTEM     ")
    struct.pack_into("<HH", data, place + 22, 13 << 11 | 5 << 5 | 2, 29 << 9 | 6 << 5 | 7)  # 2009-06-07 13:05:04
    age = look(data)
    assert (age.kind, age.identity, age.lsn, age.dirty, age.unknown) == (f"fat{bits}", "cdab3412", None, False, ())
    assert [(m.what, m.sequence, m.time) for m in age.hives] == [(f"{CONFIG}\\SYSTEM", 9, NOON)]
    written = {m.what: m.time for m in age.moments if m.local}
    assert written[CONFIG] == written[f"{CONFIG}\\SYSTEM"] == datetime(2009, 6, 7, 13, 5, 4, tzinfo=UTC)
    assert written["the root folder"] is not None and age.known == age.hives  # local times have no known zone
    data[dirty_at] |= 1
    assert look(data).dirty is True
    cut = age_of(Window(MemorySource(data), 0, MIB))
    assert cut.unknown and not cut.hives


def test_ext_tells_the_times_of_its_superblock(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mke2fs")
    path = tmp_path / "ext.img"
    path.write_bytes(bytes(2 * MIB))
    run("mke2fs", "-q", "-F", "-t", "ext3", "-U", "00112233-4455-6677-8899-aabbccddeeff", path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, 1024 + 0x2C, 1236000000, 1236009600)
    age = look(data)
    assert (age.kind, age.identity, age.dirty) == ("ext", "00112233445566778899aabbccddeeff", False)
    assert [(m.what, int(m.time.timestamp()) if m.time else 0) for m in age.moments] == [
        ("mounted", 1236000000), ("written", 1236009600)]
    data[1024 + 0x3A] = 0
    assert look(data).dirty is True
    assert with_holes(bytes(data), Range(1024, 512)).unknown


def test_nothing_known_is_said() -> None:
    assert look(b"").kind == look(bytes(4096)).kind == ""
    assert "no filesystem that p2v knows" in look(bytes(4096)).words


# -- comparing


def test_copies_are_compared_kind_by_kind(volume: bytes) -> None:
    old = look(volume)
    new = look(aged(volume, LSN + 800, {FILES[2]: LATER}, {HIVES[0]: (WRITES + 5, LATER)}))
    system = f"{CONFIG}\\SYSTEM"
    clues = compare(new, old)
    assert clues == (
        Clue("log sequence number", ("the log",)), Clue("number of writes to the registry", (system,)),
        Clue("time of the registry's last write", (system,)), Clue("times of files", (FILES[2],)))
    assert compare(old, new) == tuple(Clue(clue.kind, clue.second, clue.first) for clue in clues)
    assert all(not clue.first and not clue.second for clue in compare(old, old))
    assert [clue.kind for clue in compare(old, look(wiped(volume)))] == [clue.kind for clue in clues][1:]
    assert compare(old, Age("")) == ()


def test_times_that_are_none() -> None:
    assert filetime(0) is None and filetime((1 << 64) - 1) is None
    assert filetime(128804688000000000) == NOON  # 1235995200 s since 1970, as date(1) has it
    assert dos_time(0, 0) is None and dos_time(29 << 9 | 2 << 5 | 30, 0) is None


def test_an_unreadable_volume_is_an_answer(volume: bytes) -> None:
    class Dead(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise ReadError("the disk does not answer", Where(self.name, offset, len(buffer)), next="power it on")

    assert age_of(Dead(volume)).unknown == ("the boot sector (the disk does not answer)",)
