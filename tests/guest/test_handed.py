"""What the user hands in: folders, CD images, diskettes, cabinets, one inside another."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from fixtures.cabs import cabinet
from p2v.errors import GuestError, PlanError, Where
from p2v.guest import handed
from p2v.guest.expand import SZDD
from p2v.guest.floppy import Floppy
from p2v.guest.handed import HandedIn, unused

ATAPI = b"a driver of the IDE channels"


@pytest.fixture
def found(tmp_path):
    """found(given): path below the folder → content of each copy of atapi.sys, and the problems."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def search(*given: Path, name: str = "atapi.sys"):
        handed_in = HandedIn([str(one) for one in given], scratch)
        copies = {copy.where.removeprefix(f"{tmp_path}/"): copy.data for copy in handed_in.copies(name)}
        handed_in.close()
        return copies, handed_in.problems

    return search


def put(path: Path, data: bytes = ATAPI) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def diskette(path: Path, files: dict[str, bytes], size: str = "1440") -> Path:
    """A diskette image with these files, made by mkfs.fat and mtools."""
    subprocess.run(["mkfs.fat", "-C", str(path), size], check=True, capture_output=True)
    made = set()
    for name, data in files.items():
        folder = name.rpartition("/")[0]
        if folder and folder not in made:
            made.add(folder)
            subprocess.run(["mmd", "-i", str(path), f"::{folder}"], check=True, capture_output=True)
        subprocess.run(["mcopy", "-i", str(path), "-", f"::{name}"], input=data, check=True, capture_output=True)
    return path


def disc(path: Path, folder: Path) -> Path:
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-J", "-R", "-o", str(path), str(folder)], check=True,
                   capture_output=True)
    return path


def test_plain_and_compressed_wherever_they_lie(found, needs, tmp_path):
    needs("gcab", "cabextract")
    folder = tmp_path / "given"
    put(folder / "ATAPI.SYS")
    put(folder / "I386" / "Atapi.sy_", cabinet({"atapi.sys": ATAPI + b"2"}))
    put(folder / "old" / "ATAPI.SY_", SZDD + b"AS" + struct.pack("<I", 3) + b"\xffxyz")
    put(folder / "Drivers.CAB", cabinet({"atapi.sys": ATAPI + b"3", "disk.sys": b"another"}))
    put(folder / "atapi.sys.txt")
    assert found(folder) == ({
        "given/ATAPI.SYS": ATAPI, "given/I386/Atapi.sy_": ATAPI + b"2", "given/old/ATAPI.SY_": b"xyz",
        "given/Drivers.CAB: atapi.sys": ATAPI + b"3"}, [])


def test_a_diskette(found, needs, tmp_path):
    """As vendors hand them out for F6: .flp, .vfd, .img, with txtsetup.oem."""
    needs("mkfs.fat", "mcopy")
    files = {"txtsetup.oem": b"[Disks]", "atapi.sys": ATAPI, "x64/ATAPI.SYS": b"64"}
    path = diskette(tmp_path / "vmscsi-1.2.0.4.flp", files)
    assert found(path) == ({"vmscsi-1.2.0.4.flp/atapi.sys": ATAPI, "vmscsi-1.2.0.4.flp/x64/ATAPI.SYS": b"64"}, [])
    big = diskette(tmp_path / "big.ima", files, "2880")
    assert len(found(big)[0]) == 2


def test_a_cd_with_cabinets_and_a_diskette_on_it(found, needs, tmp_path):
    needs("xorriso", "bsdtar", "gcab", "cabextract", "mkfs.fat", "mcopy")
    folder = tmp_path / "disc"
    put(folder / "I386" / "ATAPI.SY_", cabinet({"atapi.sys": b"1"}))
    put(folder / "I386" / "DRIVER.CAB", cabinet({"atapi.sys": b"2", "disk.sys": b"no"}))
    put(folder / "I386" / "SP3.CAB", cabinet({"ATAPI.SYS": b"3"}))
    diskette(folder / "virtio_x86.vfd", {"I386.CAB": cabinet({"atapi.sys": b"4"})})
    path = disc(tmp_path / "xp.iso", folder)
    copies, problems = found(path)
    assert not problems
    assert {name.lower(): data for name, data in copies.items()} == {
        "xp.iso/i386/atapi.sy_": b"1", "xp.iso/i386/driver.cab: atapi.sys": b"2",
        "xp.iso/i386/sp3.cab: atapi.sys": b"3", "xp.iso/virtio_x86.vfd/i386.cab: atapi.sys": b"4"}
    inside = tmp_path / "isos"
    inside.mkdir()
    path.rename(inside / "xp.iso")
    assert sorted(found(inside)[0].values()) == [b"1", b"2", b"3", b"4"]


def test_a_set_of_cabinets_on_a_cd(found, needs, corpus, tmp_path):
    needs("xorriso", "bsdtar", "cabextract")
    folder = tmp_path / "disc"
    for number in range(1, 6):
        put(folder / f"Split-{number}.CAB", (corpus / "inf" / "cab" / f"split-{number}.cab").read_bytes())
    whole, problems = found(disc(tmp_path / "set.iso", folder), name="medium2.bin")
    assert not problems and [(name.partition(": ")[0], len(data)) for name, data in whole.items()] == [
        ("set.iso/Split-1.CAB", 50000)]
    assert list(found(folder, name="medium2.bin")[0].values()) == list(whole.values())
    only = found(corpus / "inf" / "cab" / "split-1.cab", name="medium2.bin")[0]
    assert list(only.values()) == list(whole.values())


def test_one_cabinet_by_name_takes_nothing_from_beside_it(found, needs, tmp_path):
    needs("gcab", "cabextract")
    put(tmp_path / "atapi.sys", b"beside")
    path = put(tmp_path / "SP6I386.EXE", b"MZ" + bytes(600) + cabinet({"atapi.sys": ATAPI}))
    assert found(path) == ({"SP6I386.EXE: atapi.sys": ATAPI}, [])


@pytest.mark.parametrize(("name", "data"), [("a.cab", b"MSCF" + bytes(60)), ("a.flp", bytes(1474560)),
                                            ("a.vfd", b"\xeb\x3c\x90MSDOS5.0" + bytes(600)), ("ATAPI.SY_", SZDD)])
def test_what_cannot_be_read_is_a_problem_and_the_search_goes_on(found, needs, tmp_path, name, data):
    needs("cabextract")
    folder = tmp_path / "given"
    put(folder / name, data)
    put(folder / "z" / "atapi.sys")
    copies, problems = found(folder)
    assert copies == {"given/z/atapi.sys": ATAPI}
    assert len(problems) == 1 and name in problems[0]


def test_what_is_named_must_be_something(found, tmp_path):
    with pytest.raises(PlanError, match="is not there"):
        found(tmp_path / "nothing")
    with pytest.raises(PlanError, match="nothing that drivers come in"):
        found(put(tmp_path / "atapi.txt", b"x" * 40000))
    with pytest.raises(GuestError, match="a diskette image cannot be read"):
        found(put(tmp_path / "a.img", b"x" * 4096))


def test_bounds(found, needs, tmp_path, monkeypatch):
    needs("gcab", "cabextract", "xorriso", "bsdtar")
    folder = tmp_path / "given"
    put(folder / "atapi.sys", bytes(2000))
    put(folder / "a.cab", cabinet({"atapi.sys": bytes(2000)}))
    monkeypatch.setattr(handed, "FILE_LIMIT", 1000)
    copies, problems = found(folder)
    assert not copies and len(problems) == 2
    monkeypatch.setattr(handed, "SCRATCH_LIMIT", 10)
    assert "too many cabinets" in found(disc(tmp_path / "a.iso", folder))[1][0]
    monkeypatch.setattr(handed, "FOLDER_LIMIT", 1)
    with pytest.raises(PlanError, match="too many files"):
        found(folder)


def test_links_and_pipes_are_no_files(found, tmp_path):
    folder = tmp_path / "given"
    put(folder / "inner" / "atapi.sys")
    (folder / "loop").symlink_to(folder)
    (folder / "zero").mkdir()
    (folder / "zero" / "atapi.sys").symlink_to("/dev/zero")
    os.mkfifo(folder / "zero" / "ATAPI.SYS")
    assert found(folder) == ({"given/inner/atapi.sys": ATAPI}, [])


def test_names_of_others_stay_in_our_folder(tmp_path):
    for name in ("..", "../../x", "/etc/passwd", "a b.cab", "a_b.cab", "", "x" * 400, "\0"):
        path = unused(tmp_path, name)
        assert path.parent == tmp_path and not path.exists()
        path.write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 8


def test_a_diskette_whose_folders_lead_in_a_circle(needs, tmp_path):
    needs("mkfs.fat", "mcopy")
    path = diskette(tmp_path / "a.flp", {"loop/x.sys": b"x"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"LOOP       ")
    cluster = struct.unpack_from("<H", data, entry + 26)[0]
    inner = data.index(b"X       SYS", entry)
    data[inner : inner + 32] = data[entry : entry + 32]  # the folder's only entry is the folder itself
    assert struct.unpack_from("<H", data, inner + 26)[0] == cluster
    path.write_bytes(data)
    with pytest.raises(GuestError, match="a diskette image cannot be read"):
        Floppy(path, Where()).sizes()
