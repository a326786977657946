"""VHDX: headers and metadata as Hyper-V writes them, its rows of the BAT, and images of Microsoft, read right."""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import uuid
from contextlib import closing

import pytest

from p2v.errors import Unsupported
from p2v.formats import vhdx, vhdx_fixed
from p2v.model import read
from p2v.testing import MemorySource

MIB = 1 << 20


def unpacked(corpus, name):
    return lzma.decompress((corpus / "vdisks" / f"{name}.xz").read_bytes())


def ours(tmp_path, form, size, content=b""):
    path = tmp_path / "ours.vhdx"
    writer = form.create(str(path), size)
    writer.write_at(0, memoryview(content))
    writer.finish()
    return path


def metadata(data):
    """GUID → (flags, value), in order."""
    count, = struct.unpack_from("<H", data, 2 * MIB + 10)
    assert data[2 * MIB :].startswith(b"metadata")
    found = {}
    for number in range(count):
        guid, offset, length, flags = struct.unpack_from("<16sIII", data, 2 * MIB + 32 + 32 * number)
        found[uuid.UUID(bytes_le=guid)] = flags, data[2 * MIB + offset : 2 * MIB + offset + length]
    return found


def test_crc32c():
    """The check value of the catalogue of CRCs, and RFC 3720's example of zeroes."""
    assert vhdx.crc32c(b"123456789") == 0xE3069283
    assert vhdx.crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("name", ["win10/ntfs-dynamic.vhdx", "win10/swap.vhdx", "qemu/iotest-dynamic-1G.vhdx"])
def test_fields_are_those_of_hyper_v(name, corpus, tmp_path):
    """What differs: creator, sequence, identities, block size, sector size, and checksums of all that."""
    theirs, mine = unpacked(corpus, name), ours(tmp_path, vhdx, 4 * MIB, b"x").read_bytes()
    assert mine[:8] == theirs[:8]
    for place in (64 << 10, 128 << 10):
        head, other = mine[place : place + 4096], theirs[place : place + 4096]
        assert (head[:4], head[48:80]) == (other[:4], other[48:80])  # signature; LogGuid 0, versions, log
        assert not any(head[80:]) and any(head[16:32]) and any(head[32:48])
        assert struct.unpack_from("<I", head, 4)[0] == vhdx.crc32c(head[:4] + bytes(4) + head[8:])
    sequences = [struct.unpack_from("<Q", mine, place + 8)[0] for place in (64 << 10, 128 << 10)]
    assert sequences[1] == sequences[0] + 1
    assert mine[192 << 10 : 320 << 10] == theirs[192 << 10 : 320 << 10]  # both region tables, to the byte
    assert [(guid, flags) for guid, (flags, _) in metadata(mine).items()] \
        == [(guid, flags) for guid, (flags, _) in metadata(theirs).items()]
    assert mine[2 * MIB : 2 * MIB + 192] == theirs[2 * MIB : 2 * MIB + 192]  # past its five entries theirs is stale
    assert not any(mine[MIB : 2 * MIB])  # the log


def test_metadata_of_a_fixed_image(tmp_path):
    found = [value for _, value in metadata(ours(tmp_path, vhdx_fixed, 12584448).read_bytes()).values()]
    assert found[:4] == [struct.pack("<II", 2 * MIB, 1), struct.pack("<Q", 12584448)] + [struct.pack("<I", 512)] * 2
    assert any(found[4])


def test_the_rows_of_the_bat_end_in_the_place_of_sector_bitmaps(tmp_path, needs):
    """Blocks on both sides of the first two such entries, and a page of our table further."""
    needs("qemu-img", "qemu-nbd")
    import pyvhdi

    numbers = (0, 2047, 2048, 4095, 4096, 16383, 16384, 16400)
    size = 16401 * 2 * MIB - 512
    path = tmp_path / "disk"
    writer = vhdx.create(str(path), size)
    for number in reversed(numbers):
        writer.write_at(number * 2 * MIB, memoryview(bytes([number % 251 + 1]) * 4096))
    writer.finish()
    other = pyvhdi.open(str(path))
    with closing(vhdx.read(str(path))) as image:
        assert image.size == size == other.get_media_size()
        for number in numbers:
            want = bytes([number % 251 + 1]) * 4096
            assert read(image, number * 2 * MIB, 4096) == want
            assert other.read_buffer_at_offset(4096, number * 2 * MIB) == want
            assert read(image, number * 2 * MIB + 4096, 4096) == bytes(4096)
    other.close()
    done = subprocess.run(["qemu-img", "check", "-f", "vhdx", str(path)], capture_output=True, text=True)
    assert "No errors were found" in done.stdout
    with open(path, "rb") as file:
        bat = struct.unpack("<2049Q", os.pread(file.fileno(), 2049 * 8, vhdx.TABLE))
    assert bat[2048] == 0 and bat[2047] & 0xFFFFF == bat[0] & 0xFFFFF == 6


@pytest.mark.parametrize(("size", "block"), [
    (512, 2), (256 << 30, 2), ((256 << 30) + 512, 4), (2 << 40, 16), (32 << 40, 256), (64 << 40, 256)])
def test_fixed_images_take_larger_blocks_to_keep_their_bat_small(size, block):
    shape = vhdx_fixed._shape(size)
    assert shape.block == block * MIB
    assert shape.data % MIB == 0 and shape.data <= vhdx.TABLE + 3 * MIB
    assert shape.span(0, shape.entries)[1] <= shape.data - shape.table


@pytest.mark.parametrize("name", ["win10/ntfs-dynamic.vhdx", "qemu/iotest-dynamic-1G.vhdx", "win10/swap.vhdx"])
def test_images_of_microsoft_are_read_as_libvhdi_reads_them(name, corpus, tmp_path, needs):
    needs("qemu-nbd")
    import pyvhdi

    data = unpacked(corpus, name)
    assert vhdx.probe(MemorySource(data)) and not vhdx_fixed.probe(MemorySource(data))
    path = tmp_path / "disk.vhdx"
    path.write_bytes(data)
    other = pyvhdi.open(str(path))
    with closing(vhdx.read(str(path))) as image:
        assert image.size == other.get_media_size()
        for at in range(0, min(image.size, 96 * MIB), 4 * MIB):
            length = min(4 * MIB, image.size - at)
            assert read(image, at, length) == other.read_buffer_at_offset(length, at)
    other.close()


def test_a_differencing_image_is_refused(tmp_path):
    path = ours(tmp_path, vhdx, MIB)
    data = bytearray(path.read_bytes())
    data[2 * MIB + (64 << 10) + 4] |= vhdx.PARENT
    path.write_bytes(data)
    with pytest.raises(Unsupported, match="differencing"):
        vhdx.read(str(path))
    assert not vhdx.probe(MemorySource(bytes(data)))
