"""VDI: the header as VirtualBox writes it, and its images, read right."""

from __future__ import annotations

import lzma
import struct
import uuid
from contextlib import closing

import pytest

from p2v.errors import LayoutError, Unsupported
from p2v.formats import vdi, vdi_fixed
from p2v.model import read
from p2v.testing import MemorySource
from p2v.volume.geometry import target_geometry


def unpacked(corpus, name):
    return lzma.decompress((corpus / "vdisks" / f"vbox/{name}.xz").read_bytes())


def ours(tmp_path, form, content):
    path = tmp_path / "ours.vdi"
    path.unlink(missing_ok=True)
    writer = form.create(str(path), len(content))
    writer.write_at(0, memoryview(content))
    writer.finish()
    return path


@pytest.mark.parametrize(("form", "name"), [(vdi, "vbox-a-Standard.vdi"), (vdi_fixed, "vbox-a-Fixed.vdi")])
def test_all_but_comment_identities_and_geometry_is_that_of_virtualbox(form, name, corpus, tmp_path):
    """Of the same disk, to the byte: header, map, where the data lies, and the length of the file."""
    theirs = bytearray(unpacked(corpus, name))
    mine = bytearray(ours(tmp_path, form, unpacked(corpus, "pat-a.raw")).read_bytes())
    assert mine[:392] != theirs[:392]  # the comment: what was converted
    for data in (mine, theirs):
        data[84:340] = bytes(256)
        data[392:424] = bytes(32)
        data[456:468] = bytes(12)
    assert mine == theirs


def test_identities_are_fresh(tmp_path):
    ids = set()
    for _ in range(2):
        data = ours(tmp_path, vdi, b"x").read_bytes()
        ids |= {uuid.UUID(bytes_le=data[at : at + 16]) for at in (392, 408)}
        assert not any(data[424:456])  # no parent
    assert len(ids) == 4 and {one.version for one in ids} == {4}


@pytest.mark.parametrize("size", [512, 12584448, 500 << 20, 2 << 30, 7 << 30, 9 << 30])
def test_the_geometry_is_what_the_bios_of_a_target_presents(size, tmp_path):
    writer = vdi.create(str(tmp_path / "disk"), size)
    writer.finish()
    cylinders, heads, sectors, sector = struct.unpack_from("<4I", (tmp_path / "disk").read_bytes()[:512], 456)
    want = target_geometry(size)
    assert (heads, sectors, sector) == (want.heads, want.sectors, 512)
    assert 1 <= cylinders <= 1024
    assert cylinders * heads * sectors * 512 <= max(size, heads * sectors * 512)
    assert cylinders == 1024 or (cylinders + 1) * heads * sectors * 512 > size


@pytest.mark.parametrize("name", ["vbox-a-Standard", "vbox-a-Fixed"])
def test_images_of_virtualbox_are_read_right(name, corpus, tmp_path, needs):
    needs("qemu-nbd")
    data = unpacked(corpus, f"{name}.vdi")
    form = vdi if "Standard" in name else vdi_fixed
    assert form.probe(MemorySource(data))
    path = tmp_path / "disk.vdi"
    path.write_bytes(data)
    with closing(form.read(str(path))) as image:
        assert read(image, 0, image.size) == unpacked(corpus, "pat-a.raw")


@pytest.mark.parametrize(("at", "value"), [(76, 3), (76, 4), (424, 7)])
def test_an_image_of_a_snapshot_is_refused(at, value, tmp_path):
    path = ours(tmp_path, vdi, b"x")
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)
    with pytest.raises(Unsupported, match="snapshot"):
        vdi.read(str(path))


def test_an_image_cut_short_is_refused_though_qemu_would_show_zeroes(tmp_path):
    path = ours(tmp_path, vdi, b"x" * (3 << 20))
    path.write_bytes(path.read_bytes()[: 4 << 20])
    with pytest.raises(LayoutError, match="outside the file"):
        vdi.read(str(path))
