"""The reading door: files of NTFS and FAT volumes through libfsntfs and libfsfat."""

from __future__ import annotations

import hashlib
import lzma
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2v.errors import GuestError, Unsupported
from p2v.filesystem import examine, open_files
from p2v.filesystem.reader import VolumeFiles
from p2v.filesystem.sourcefile import SourceFile
from p2v.model import FileStat, Filesystem, Range
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from tests.filesystem.made_ntfs import MIB, attribute_place, bytes_of, make, record_place, run, stream_place
from tests.filesystem.made_ntfs import put as put_ntfs

NTFS, FAT16 = Filesystem("ntfs"), Filesystem("fat16")


def files_of(data: bytes | bytearray, filesystem: Filesystem = NTFS) -> VolumeFiles:
    opened = open_files(MemorySource(data), filesystem)
    assert isinstance(opened, VolumeFiles)
    return opened


@contextmanager
def mounted(volume: Path) -> Iterator[Path]:
    """The volume under ntfs-3g; skipped where FUSE does not work."""
    folder = volume.with_name("mnt")
    folder.mkdir()
    done = subprocess.run(["ntfs-3g", str(volume), str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no FUSE here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# -- NTFS


def test_a_volume_of_nt_4_read_back_whole(corpus: Path) -> None:
    """268 files with the digests that its maker listed: compressed folder, holes, streams, long names."""
    guest = files_of(lzma.decompress((corpus / "ntfs/ntfs12-files-64m.img.xz").read_bytes()))
    listed = [line.split(" ", 2) for line in guest.read("\\SHA256.TXT").decode().splitlines()]
    assert len(listed) == 268
    for digest, size, name in listed:
        path = "\\" + name.replace("/", "\\")
        assert hashlib.sha256(guest.read(path.lower())).hexdigest() == digest
        assert guest.stat(path) == guest.stat(path.lower()) == FileStat(int(size), False)
    assert guest.stat("\\comp").compressed and guest.stat("\\comp").is_folder
    assert "$MFT" not in guest.list("\\") and "WINNT" in guest.list("\\")


def test_a_deep_tree_with_short_names(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkntfs", "ntfs-3g")
    volume = make(tmp_path, {})
    with mounted(volume) as root:
        deep = root / "WINDOWS" / "system32" / "config" / "a" / "b" / "c"
        deep.mkdir(parents=True)
        (deep / "End.txt").write_bytes(b"end")
        long = root / "WINDOWS" / "Long File Name.text"
        long.write_bytes(bytes_of("long", 200_000))
        os.setxattr(long, "system.ntfs_dos_name", b"LONGFI~1.TEX")
        (root / "WINDOWS" / "Größe.txt").write_bytes(b"umlaut")
        for index in range(700):
            (root / "WINDOWS" / "system32" / f"driver{index}.sys").write_bytes(str(index).encode())
        os.close(os.open(os.fsencode(root) + b"/\xed\xa0\x80lone", os.O_CREAT | os.O_WRONLY))
    guest = files_of(volume.read_bytes())
    assert guest.read("\\windows\\SYSTEM32\\Config\\a/B\\c\\end.TXT") == b"end"
    assert guest.read("\\windows\\longfi~1.tex") == guest.read("\\WINDOWS\\LONG FILE NAME.TEXT") \
        == bytes_of("long", 200_000)
    assert guest.read("\\windows\\GRÖSSE.TXT".replace("SS", "ß")) == b"umlaut"
    assert sorted(guest.list("\\windows")) == ["Größe.txt", "Long File Name.text", "system32"]
    assert len(guest.list("\\Windows\\System32")) == 701
    assert guest.read("\\windows\\system32\\DRIVER699.SYS") == b"699"
    assert sorted(guest.list("")) == ["WINDOWS", "\ud800lone"]


def test_what_is_not_there(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkntfs", "ntfscp")
    guest = files_of(make(tmp_path, {"file.txt": b"x", "empty": b""}).read_bytes())
    for path in ("\\nope", "\\nope\\x", "\\file.txt\\x", "\\a name that is too long for 8.3.txt", "\\x" * 2000):
        assert guest.stat(path) is None and guest.list(path) == []
        with pytest.raises(GuestError) as caught:
            guest.read(path)
        assert path in str(caught.value)
    assert guest.list("\\file.txt") == []
    assert guest.stat("\\") == FileStat(0, True)
    assert guest.stat("\\FILE.TXT") == FileStat(1, False)
    assert guest.read("\\empty") == b""
    with pytest.raises(GuestError, match="a folder"):
        guest.read("\\")


def _root_file(data: bytes, name: str) -> int:
    number = files_of(data).record_number("\\" + name)
    assert number is not None
    return number


@pytest.mark.parametrize("size", [1 << 62, 9 * MIB])
def test_a_size_beyond_the_volume_is_an_error(tmp_path: Path, needs: Callable[..., None], size: int) -> None:
    needs("mkntfs", "ntfscp")
    data = bytearray(make(tmp_path, {"big.bin": bytes_of("big", MIB)}, size=8 * MIB).read_bytes())
    place = attribute_place(data, _root_file(data, "big.bin"), 0x80)
    for field in (0x28, 0x30, 0x38):
        data[place + field:place + field + 8] = size.to_bytes(8, "little")
    guest = files_of(data)
    for call in (guest.stat, guest.read):
        with pytest.raises(GuestError) as caught:
            call("\\big.bin")
        assert caught.value.where.item == "\\big.bin"


def test_an_encrypted_file_is_refused(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkntfs", "ntfscp")
    data = bytearray(make(tmp_path, {"secret.bin": bytes_of("secret", MIB)}).read_bytes())
    place = attribute_place(data, _root_file(data, "secret.bin"), 0x10) + 0x18 + 0x20
    data[place + 1] |= 0x40
    guest = files_of(data)
    assert guest.stat("\\secret.bin").encrypted
    with pytest.raises(GuestError, match="encrypted"):
        guest.read("\\secret.bin")


def test_an_unreadable_sector_is_named(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkntfs", "ntfscp")
    data = make(tmp_path, {"a.bin": bytes_of("a", MIB), "b.bin": b"fine"}).read_bytes()
    bad = stream_place(data, _root_file(data, "a.bin")) + 70_000
    guest = open_files(FaultySource(MemorySource(data), [Range(bad, 512)]), NTFS)
    assert guest.read("\\b.bin") == b"fine"
    with pytest.raises(GuestError) as caught:
        guest.read("\\a.bin")
    assert caught.value.where.item == "\\a.bin" and f"{bad:#x}" in str(caught.value)


def test_threads_share_a_volume(corpus: Path) -> None:
    guest = files_of(lzma.decompress((corpus / "ntfs/ntfs12-files-64m.img.xz").read_bytes()))
    expected, seen = guest.read("\\frag-a.bin"), []
    threads = [threading.Thread(target=lambda: seen.append(guest.read("\\frag-a.bin"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 8


# -- FAT


def test_fat_with_long_and_short_names(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkfs.fat", "mmd", "mcopy")
    volume, content = tmp_path / "fat.img", tmp_path / "content"
    volume.write_bytes(bytes(32 * MIB))
    run("mkfs.fat", "-F", "16", "-n", "SYSTEM", volume)
    run("mmd", "-i", volume, "::/WINNT", "::/WINNT/system32", "::/Program Files")
    for name, data in {"WINNT/system32/ntoskrnl.exe": bytes_of("nt", MIB + 3), "boot.ini": b"[boot loader]",
                       "Program Files/A rather long name.txt": b"long"}.items():
        content.write_bytes(data)
        run("mcopy", "-i", volume, content, f"::/{name}")
    guest = files_of(volume.read_bytes(), FAT16)
    assert sorted(guest.list("\\")) == ["Program Files", "WINNT", "boot.ini"]
    assert guest.list("\\WinNT") == ["system32"]
    assert guest.read("\\winnt\\SYSTEM32\\NTOSKRNL.EXE") == bytes_of("nt", MIB + 3)
    for path in ("\\program files\\a RATHER long name.TXT", "\\PROGRA~1\\arathe~1.txt"):
        assert guest.read(path) == b"long"
    assert guest.stat("\\PROGRA~1") == FileStat(0, True)
    assert guest.stat("\\") == FileStat(0, True)
    assert guest.stat("\\SYSTEM") is None, "the label is no file"
    assert guest.stat("\\boot.ini\\x") is None and guest.list("\\boot.ini") == []


@pytest.mark.parametrize("filesystem", [NTFS, FAT16, Filesystem("fat32")])
def test_garbage_is_a_guest_error(filesystem: Filesystem) -> None:
    for data in (b"", bytes(4096), numbered_sectors("disk0", MIB)):
        with pytest.raises(GuestError):
            open_files(MemorySource(data), filesystem)


def test_a_filesystem_that_nobody_knows() -> None:
    with pytest.raises(Unsupported):
        open_files(MemorySource(bytes(4096)), Filesystem(""))


# -- damage: an answer or a GuestError, whatever is flipped


def _use(guest: VolumeFiles) -> None:
    for path in ("\\", "\\Folder"):
        for name in guest.list(path):
            stat = guest.stat(f"{path}\\{name}")
            if stat and not stat.is_folder:
                guest.read(f"{path}\\{name}")


def _flip(data: bytearray, places: list[int], filesystem: Filesystem) -> None:
    chance = random.Random(3)
    for place in places:
        before = data[place]
        data[place] ^= chance.choice([0x01, 0x10, 0x80, 0xFF])
        try:
            _use(files_of(data, filesystem))
        except GuestError as error:
            assert error.where.item
        data[place] = before


def test_flipped_bytes_of_ntfs(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkntfs", "ntfscp")
    volume = make(tmp_path, {"a.bin": bytes_of("a", 10_000)}, size=4 * MIB)
    put_ntfs(volume, {f"a rather long name {i}.txt": b"x" for i in range(20)})
    data = bytearray(volume.read_bytes())
    number = _root_file(data, "a.bin")
    index = data.index(b"INDX")
    places = [place for start, length in ((0, 0x54), (record_place(data, 0), 400), (record_place(data, 5), 500),
                                          (record_place(data, number), 400), (index, 700))
              for place in range(start, start + length, 4)]
    _flip(data, places, NTFS)


def test_flipped_bytes_of_fat(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("mkfs.fat", "mcopy", "mmd")
    volume, content = tmp_path / "fat.img", tmp_path / "content"
    volume.write_bytes(bytes(16 * MIB))
    content.write_bytes(bytes_of("a", 10_000))
    run("mkfs.fat", "-F", "16", volume)
    run("mmd", "-i", volume, "::/Folder")
    run("mcopy", "-i", volume, content, "::/Folder/a rather long name.txt")
    data = bytearray(volume.read_bytes())
    fat, folder = int.from_bytes(data[0x0E:0x10], "little") * 512, data.index(b"FOLDER ")
    names = data.index(b"ARATHE~1") - 96
    _flip(data, [*range(0x40), *range(fat, fat + 20), *range(folder, folder + 32), *range(names, names + 128)],
          FAT16)


def test_examine_and_the_door_agree_on_the_kind(corpus: Path) -> None:
    data = lzma.decompress((corpus / "ntfs/fat32_xp_none.img.xz").read_bytes())
    assert files_of(data, examine(MemorySource(data))).list("\\") == []


# -- the file object that the libraries get


def test_the_file_object_has_a_cursor_and_an_end() -> None:
    data = numbered_sectors("disk0", 300_000 // 512 * 512)
    file = SourceFile(MemorySource(data))
    assert file.get_size() == len(data)
    for offset, length in ((0, 1), (65_535, 2), (65_536, 65_536), (100, 65_536), (10, 200_000),
                           (len(data) - 5, 10)):
        assert file.seek(offset) == offset
        assert file.read(length) == data[offset:offset + length]
        assert file.tell() == min(offset + length, len(data))
    assert file.seek(-3, os.SEEK_END) == len(data) - 3
    assert file.read() == data[-3:] and file.read(10) == b""
    assert file.seek(len(data) + 99) and file.read(1) == b""
    with pytest.raises(OSError, match="no such place"):
        file.seek(-1)
