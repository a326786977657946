"""CD images, written by xorriso and read through bsdtar."""

from __future__ import annotations

import os
import subprocess

import pytest

from p2v.errors import GuestError, MissingTool, Where
from p2v.guest.iso import SIGNATURE_AT, Iso, is_iso

MIB = 1 << 20
FILES = {"I386/ATAPI.SY_": b"packed", "I386/DRIVER.CAB": b"cab" * 9000, "viostor/xp/x86/viostor.sys": b"x86" * 700,
         "viostor/2k3/amd64/viostor.sys": b"x64", "a [1]*?{x}.sys": b"strange", "empty.sys": b""}


@pytest.fixture
def image(needs, tmp_path):
    """image(files, *options): a CD image of these files."""
    needs("xorriso", "bsdtar")

    def made(files=FILES, *options):
        folder = tmp_path / "disc"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        path = tmp_path / "made.iso"
        command = ["xorriso", "-as", "mkisofs", "-quiet", *(options or ("-J", "-R")), "-o", str(path), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return path

    return made


def test_every_file_by_its_path(image):
    path = image()
    iso = Iso(path, Where())
    assert is_iso(path) and dict(iso.sizes()) == {name: len(data) for name, data in FILES.items()}
    for name, data in FILES.items():
        assert iso.read(name, MIB) == data


def test_a_disc_of_short_names_only(image):
    """As Windows' own: ISO 9660 level 1, upper case."""
    iso = Iso(image({"i386/atapi.sy_": b"packed"}, "-iso-level", "1", "-no-pad"), Where())
    assert {name.upper(): iso.read(name, MIB) for name in iso.sizes()} == {"I386/ATAPI.SY_": b"packed"}


def test_one_content_under_two_names(needs, tmp_path):
    """virtio-win's ISO stores equal drivers once."""
    needs("xorriso", "bsdtar")
    folder, path = tmp_path / "disc", tmp_path / "made.iso"
    for name in ("xp", "2k3"):
        (folder / name).mkdir(parents=True)
    (folder / "xp" / "a.sys").write_bytes(b"the same")
    os.link(folder / "xp" / "a.sys", folder / "2k3" / "a.sys")
    subprocess.run(["xorriso", "-hardlinks", "on", "-outdev", str(path), "-map", str(folder), "/"], check=True,
                   capture_output=True)
    iso = Iso(path, Where())
    assert dict(iso.sizes()) == {"xp/a.sys": 8, "2k3/a.sys": 8}
    assert {iso.read(name, MIB) for name in iso.sizes()} == {b"the same"}


def test_a_file_past_the_limit_is_not_read(image):
    with pytest.raises(GuestError, match="a CD image cannot be read") as error:
        Iso(image(), Where()).read("I386/DRIVER.CAB", 1000)
    assert "27000 bytes" in error.value.why


@pytest.mark.parametrize("length", [0, 100, SIGNATURE_AT + 4, 40960])
def test_an_image_that_is_cut_off(image, length):
    path = image()
    os.truncate(path, length)
    with pytest.raises(GuestError, match="a CD image cannot be read"):
        iso = Iso(path, Where())
        for name in iso.sizes():
            iso.read(name, MIB)
        raise GuestError("a CD image cannot be read")  # nothing left to list: as good


def test_a_folder_inside_itself(image):
    """The entry of a folder leads to the root: bsdtar ends, with what it has or with an error."""
    path = image({"loop/x.sys": b"x"}, "-no-pad")
    data = bytearray(path.read_bytes())
    root = data[0x8000 + 156 + 2 : 0x8000 + 156 + 18]  # extent and size of the root, both endians
    at = data.index(b"\x04LOOP") - 30
    data[at : at + 16] = root
    path.write_bytes(data)
    try:
        names = list(Iso(path, Where()).sizes())
        assert len(names) < 10
    except GuestError as error:
        assert "bsdtar" in error.why


def test_flipped_bytes(image):
    """Damage in the descriptors and folders gives an error or files of the size they claim."""
    path = image({"i386/atapi.sys": b"x" * 3000})
    data = bytearray(path.read_bytes())
    for at in (*range(0x8000, 0x8100, 41), *range(0x9800, len(data), 1567)):
        data[at] ^= 0xFF
        path.write_bytes(data)
        try:
            iso = Iso(path, Where())
            for name, size in iso.sizes().items():
                assert len(iso.read(name, MIB)) == size
        except GuestError as error:
            assert error.next
        data[at] ^= 0xFF


def test_bsdtar_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool, match="bsdtar") as error:
        Iso(tmp_path / "none.iso", Where()).sizes()
    assert "libarchive-tools" in error.value.next
