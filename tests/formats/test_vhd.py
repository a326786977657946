"""VHD: the footer as Windows and VirtualBox write it, and images of other products, read right."""

from __future__ import annotations

import json
import lzma
import struct
import subprocess
from contextlib import closing

import pytest

from p2v.errors import Unsupported
from p2v.formats import vhd, vhd_fixed
from p2v.model import read
from p2v.testing import MemorySource

FIELDS = struct.Struct(">8sIIQI4sI4sQQHBBI")
NAMES = ("cookie", "features", "version", "data_offset", "time", "creator", "creator_version", "creator_os",
         "original_size", "current_size", "cylinders", "heads", "sectors", "type")


def unpacked(corpus, name):
    return lzma.decompress((corpus / "vdisks" / f"{name}.xz").read_bytes())


def put(tmp_path, data):
    path = tmp_path / "disk.vhd"
    path.write_bytes(data)
    return str(path)


def footer(data):
    fields = dict(zip(NAMES, FIELDS.unpack_from(data, len(data) - 512), strict=True))
    total = sum(data[-512:]) - sum(data[-448:-444])
    assert struct.unpack_from(">I", data, len(data) - 448)[0] == ~total & 0xFFFFFFFF
    del fields["time"]
    return fields


def ours(tmp_path, form, size, content=b""):
    path = tmp_path / "ours.vhd"
    writer = form.create(str(path), size)
    writer.write_at(0, memoryview(content))
    writer.finish()
    return path


@pytest.mark.parametrize(("form", "name"), [(vhd, "ntfs-dynamic"), (vhd_fixed, "ntfs-fixed")])
def test_footer_and_header_are_those_of_windows_10(form, name, corpus, tmp_path):
    """Every field of footer, header and BAT; time and identity are one's own."""
    theirs = unpacked(corpus, f"win10/{name}.vhd")
    data = ours(tmp_path, form, 4 << 20, b"x" * (4 << 20)).read_bytes()
    assert footer(data) == footer(theirs)
    assert not any(data[-512 + 84 :]) and data[-512 + 68 : -512 + 84] != theirs[-512 + 68 : -512 + 84]
    if form is vhd:
        assert data[:512] == data[-512:]
        assert data[512:1536] == theirs[512:1536]
        assert data[1536:2048] == theirs[1536:2048]  # the same blocks in the same places, data on 4 KiB
        assert data[0x1E00:0x2000] == theirs[0x1E00:0x2000] == b"\xff" * 512
        assert len(data) == 0x1000 + 2 * ((2 << 20) + 4096) + 512


def test_a_foot_of_virtualbox_differs_in_the_creator_only(corpus, tmp_path):
    theirs = footer(unpacked(corpus, "vbox/vbox-a-Fixed.vhd"))
    mine = footer(ours(tmp_path, vhd_fixed, 12584448).read_bytes())
    assert {k for k in mine if mine[k] != theirs[k]} == {"creator", "creator_version"}


@pytest.mark.parametrize(("name", "chs"), [
    ("vbox/vbox-a-Standard.vhd", None), ("win10/ntfs-dynamic.vhd", None), ("qemu/virtualpc-dynamic.vhd", None)])
def test_geometry_is_that_of_other_products(name, chs, corpus):
    theirs = footer(unpacked(corpus, name))
    want = (theirs["cylinders"], theirs["heads"], theirs["sectors"])
    if name.startswith("qemu"):  # Virtual PC rounded the size up afterwards
        assert abs(vhd.geometry(theirs["current_size"])[0] - want[0]) <= 1
        assert vhd.geometry(want[0] * want[1] * want[2] * 512) == want
    else:
        assert vhd.geometry(theirs["current_size"]) == want


@pytest.mark.parametrize("size", [512, 1 << 20, 504 << 20, (504 << 20) + 512, 1 << 30, 8 << 30, 127 << 30, 2040 << 30])
def test_geometry_is_that_of_qemu(size, tmp_path, needs):
    """Of qemu-img's image of the size that the geometry says; its own sizes have no other."""
    needs("qemu-img")
    cylinders, heads, sectors = vhd.geometry(size)
    exact = cylinders * heads * sectors * 512
    if not exact:
        pytest.skip("qemu-img makes no disk without a cylinder")
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", str(tmp_path / "q"), str(exact)], check=True)
    theirs = footer((tmp_path / "q").read_bytes())
    if exact < 127 << 30:
        assert (theirs["cylinders"], theirs["heads"], theirs["sectors"]) == vhd.geometry(exact)
    assert theirs["current_size"] >= exact


@pytest.mark.parametrize("size", [12584448, 4 << 20, (127 << 30) + 512, 2040 << 30])
def test_the_exact_size_is_believed(size, tmp_path, needs):
    """A creator that qemu did not trust would cost the end of the disk."""
    needs("qemu-img")
    path = ours(tmp_path, vhd, size)
    told = subprocess.run(["qemu-img", "info", "--output=json", "-f", "vpc", str(path)],
                          capture_output=True, check=True).stdout
    assert json.loads(told)["virtual-size"] == size


@pytest.mark.parametrize("name", ["vbox-a-Standard", "vbox-a-Fixed"])
def test_images_of_virtualbox_are_read_to_their_end(name, corpus, tmp_path, needs):
    needs("qemu-nbd")
    data = unpacked(corpus, f"vbox/{name}.vhd")
    form = vhd if "Standard" in name else vhd_fixed
    assert form.probe(MemorySource(data))
    with closing(form.read(put(tmp_path, data))) as image:
        assert read(image, 0, image.size) == unpacked(corpus, "vbox/pat-a.raw")


@pytest.mark.parametrize("name", ["win10/ntfs-dynamic.vhd", "win10/ntfs-fixed.vhd", "qemu/virtualpc-dynamic.vhd"])
def test_images_of_microsoft_are_read_as_libvhdi_reads_them(name, corpus, tmp_path, needs):
    needs("qemu-nbd")
    import pyvhdi

    path = put(tmp_path, unpacked(corpus, name))
    other = pyvhdi.open(path)
    with closing(vhd.read(path)) as image:
        assert image.size == other.get_media_size()
        head = min(image.size, 8 << 20)
        assert read(image, 0, head) == other.read_buffer_at_offset(head, 0)
    other.close()


def test_a_differencing_image_is_refused_before_qemu_shows_zeroes_for_it(corpus, tmp_path):
    path = put(tmp_path, unpacked(corpus, "win10/ntfs-differential.vhd"))
    with pytest.raises(Unsupported, match="differencing"):
        vhd.read(path)
    with pytest.raises(Unsupported, match="differencing"):
        vhd_fixed.read(path)
    assert not vhd.probe(MemorySource(unpacked(corpus, "win10/ntfs-differential.vhd")))
