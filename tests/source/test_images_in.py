"""Images as sources: every product's reads right, and what is unsafe, cut or contradictory is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v import adaptation
from p2v.errors import LayoutError, P2VError, PlanError, ReadError, Unsupported
from p2v.model import DiskPlan, Kind, Source, read
from p2v.planning import open_source
from p2v.source.blockimage import BlockIndex
from p2v.source.images import INPUTS, name_of, open_input
from p2v.source.ntfsclone import open_ntfsclone
from p2v.source.partclone import open_partclone
from p2v.testing import check_source, numbered_sectors
from tests.conftest import absent

MIB = 1 << 20
DATA = numbered_sectors("disk0", 3 * MIB + 512)
QEMU = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}


@pytest.fixture(autouse=True)
def tools(needs: Callable[..., None]) -> None:
    needs("qemu-img", "qemu-nbd")


def run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def opened(path: Path, name: str | None = None, outside: bool = False) -> Iterator[Source]:
    with contextlib.closing(open_source(path, name, outside=outside)) as source:
        yield source


def content(path: Path, name: str | None = None) -> bytes:
    with opened(path, name) as source:
        return read(source, 0, source.size)


def convert(data: bytes, path: Path, form: str, *options: str) -> Path:
    base = path.with_name("base.raw")
    base.write_bytes(data)
    run("qemu-img", "convert", "-f", "raw", "-O", form, *options, base, path)
    return path


def unpack(corpus: Path, name: str, folder: Path) -> Path:
    packed = corpus / "vdisks" / name
    path = folder / Path(name).name.removesuffix(".xz")
    path.write_bytes(lzma.decompress(packed.read_bytes()) if name.endswith(".xz") else packed.read_bytes())
    return path


def flipped(path: Path, data: bytes, places: Iterable[int], bits: int) -> Iterator[int]:
    """The file with one byte after the other damaged."""
    path.write_bytes(data)
    with open(path, "r+b", buffering=0) as file:
        for place in places:
            for value in (data[place] ^ bits, data[place]):
                file.seek(place)
                file.write(bytes([value]))
                if value != data[place]:
                    yield place


# -- what real products wrote


@pytest.mark.parametrize("name", [
    "vbox-a-Standard.vdi.xz", "vbox-a-Fixed.vdi.xz", "vbox-a-Standard.vmdk.xz", "vbox-a-Stream.vmdk.xz",
    "vbox-a-Standard.vhd.xz", "vbox-a-Fixed.vhd.xz", "vbox-a-Fixed.vmdk", "vbox-a-ESX.vmdk", "openvmdk-a-stream.vmdk",
])
def test_images_of_virtualbox_and_open_vmdk(name: str, corpus: Path, tmp_path: Path) -> None:
    """All of them hold pat-a.raw, whose odd size the headers of some round up and the geometry of others cuts."""
    expected = unpack(corpus, "vbox/pat-a.raw.xz", tmp_path).read_bytes()
    path = unpack(corpus, f"vbox/{name}", tmp_path)
    if name in ("vbox-a-Fixed.vmdk", "vbox-a-ESX.vmdk"):
        (tmp_path / f"{path.stem}-flat.vmdk").write_bytes(expected)
    assert content(path) == expected


@pytest.mark.parametrize("name", ["ntfs-dynamic.vhd", "ntfs-fixed.vhd", "ntfs-parent.vhd", "ntfs-dynamic.vhdx"])
def test_images_of_windows(name: str, corpus: Path, tmp_path: Path) -> None:
    path = unpack(corpus, f"win10/{name}.xz", tmp_path)
    run("qemu-img", "convert", "-f", "vhdx" if name.endswith("x") else "vpc", "-O", "raw", path, tmp_path / "raw")
    found = content(path)
    assert found == (tmp_path / "raw").read_bytes() and found[510:512] == b"\x55\xaa" and len(found) == 4 * MIB


def test_images_without_parents_or_with_absurd_grains_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="differencing VHD"):
        open_source(unpack(corpus, "win10/ntfs-differential.vhd.xz", tmp_path))
    with pytest.raises(LayoutError, match="VMDK extent"):
        open_source(unpack(corpus, "qemu/afl9.vmdk.xz", tmp_path))


def test_large_images_have_the_footers_size(corpus: Path, tmp_path: Path) -> None:
    with opened(unpack(corpus, "qemu/virtualpc-dynamic.vhd.xz", tmp_path)) as source:
        assert source.size == 136365211648 and read(source, source.size - 512, 512) == bytes(512)
    with opened(unpack(corpus, "qemu/iotest-version3.vmdk.xz", tmp_path)) as source:
        assert source.size == 16 << 30


# -- every format: right, and refused when cut


@pytest.mark.parametrize("form, options", [
    *((form, ()) for form in QEMU), ("vmdk", ("subformat=streamOptimized",)),
    ("vmdk", ("subformat=twoGbMaxExtentSparse",)), ("vmdk", ("subformat=twoGbMaxExtentFlat",)),
    ("vmdk", ("subformat=monolithicFlat",)), ("vhd", ("subformat=fixed,force_size=on",)),
    ("qcow2", ("cluster_size=512",)), ("qcow2", ("extended_l2=on,cluster_size=16k",)), ("qcow2", ("compat=0.10",)),
])
def test_what_qemu_writes(form: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = convert(DATA, tmp_path / f"disk.{form}", QEMU[form], *(("-o", *options) if options else ()))
    assert content(path)[: len(DATA)] == DATA
    data = next((f for f in tmp_path.glob("disk-*.vmdk")), path)  # the extent that holds the bytes
    os.truncate(data, data.stat().st_size // 1024 * 512)
    with pytest.raises(LayoutError):
        open_source(path)


def test_a_compressed_qcow2(tmp_path: Path) -> None:
    assert content(convert(DATA, tmp_path / "disk.qcow2", "qcow2", "-c")) == DATA


def test_a_table_entry_outside_the_file(tmp_path: Path) -> None:
    """VHD and VHDX are qemu's to refuse; the place of the entry in each is that of qemu's own images."""
    for form, at, entry in (("vhd", 1536, b"\x10\0\0\0"), ("vhdx", 3 * MIB, struct.pack("<Q", 0x700 << 20 | 6)),
                            ("vdi", 512, b"\0\1\0\0"), ("vdi", 516, b"\0\0\0\0")):
        path = convert(DATA, tmp_path / f"disk.{form}", QEMU[form])
        with open(path, "r+b") as file:
            file.seek(at)
            before = file.read(len(entry))
            assert before.strip(b"\xff"), form
            file.seek(at)
            file.write(entry)
        with pytest.raises(LayoutError):
            open_source(path)


@pytest.mark.parametrize("form", [*QEMU, "cowd", "descriptor"])
def test_every_byte_of_the_header_may_be_damaged(form: str, tmp_path: Path) -> None:
    """A P2VError, or a disk whose bytes are right as far as they go. Every eighth survivor is read through qemu."""
    if form == "cowd":
        path, name = cowd(tmp_path / "disk.vmdk", DATA), "vmdk"
    elif form == "descriptor":
        path, name = convert(DATA, tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=monolithicFlat"), "vmdk"
    else:
        path, name = convert(DATA, tmp_path / f"disk.{form}", QEMU[form]), form
    places = range(300 if form == "descriptor" else 112) if form != "vdi" else range(64, 512, 2)
    good, survivors = bytearray(path.read_bytes()), 0
    for place in flipped(path, good, places, 0xFF):
        survivors += survives(path, name, place % 8 == 0)
    assert survivors < len(places)


def survives(path: Path, name: str, in_full: bool) -> bool:
    """Did it open? Without in_full only our own look at it runs."""
    try:
        if in_full:
            found = content(path, name)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("p2v.source.nbd.open_image", _not_now)
                found = content(path, name)
    except LayoutError as error:
        return str(error) == "not now"
    except P2VError as error:
        assert isinstance(error, Unsupported | ReadError), error
        return False
    known = min(len(found), len(DATA))
    assert found[:known] in (DATA[:known], bytes(known)) or DATA.startswith(found.rstrip(b"\0"))
    return True


def _not_now(*words: object, **options: object) -> Source:
    raise LayoutError("not now")


# -- VMDK of old


def cowd(path: Path, data: bytes, flags: int = 3, version: int = 1) -> Path:
    """As ESX 2 wrote it: grains of a sector, tables of 4096, every third grain a hole where it is zero."""
    sectors = len(data) // 512
    tables = -(-sectors // 4096)
    directory = np.arange(tables, dtype="<u4") * 32 + 5
    grains = np.frombuffer(data, np.uint8).reshape(-1, 512)
    used = grains.any(axis=1)
    entries = np.zeros(tables * 4096, "<u4")
    entries[:sectors][used] = 5 + tables * 32 + np.arange(used.sum())
    head = struct.pack("<4s7I", b"COWD", version, flags, sectors, 1, 4, tables, 5 + tables * 32 + int(used.sum()))
    path.write_bytes(head.ljust(2048, b"\0") + directory.tobytes().ljust(512, b"\0") + entries.tobytes()
                     + grains[used].tobytes())
    return path


def test_cowd(tmp_path: Path) -> None:
    data = DATA[:MIB] + bytes(MIB) + DATA[2 * MIB :]
    path = cowd(tmp_path / "esx.vmdk", data)
    assert content(path) == data
    (tmp_path / "described.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="vmfsSparse"\n'
        f'RW {len(data) // 512} VMFSSPARSE "esx.vmdk"\n')
    assert content(tmp_path / "described.vmdk") == data
    os.truncate(path, path.stat().st_size - 512)
    with pytest.raises(LayoutError, match="a grain lies outside"):
        open_source(path)
    with pytest.raises(Unsupported, match="snapshot"):
        open_source(cowd(path, data, flags=2))
    with pytest.raises(Unsupported, match="Workstation 3"):
        open_source(cowd(path, data, version=3))


def test_the_flat_disk_of_esx_2(tmp_path: Path) -> None:
    path = tmp_path / "server.vmdk"
    path.write_bytes(DATA)
    with pytest.raises(LayoutError, match="is called vmdk") as caught:
        open_source(path)
    assert "--source-format raw" in caught.value.next
    assert content(path, "raw") == DATA


def describe(folder: Path, *extents: str, more: str = "") -> Path:
    path = folder / "disk.vmdk"
    path.write_text("# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
                    'createType="monolithicFlat"\n' + more + "\n".join(extents) + "\n")
    return path


def test_flat_extents_behind_one_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"#" * 1024 + DATA[:MIB])
    (tmp_path / "b").write_bytes(DATA[MIB:])
    path = describe(tmp_path, 'RW 2048 FLAT "a" 2', f'RW {(len(DATA) - MIB) // 512} FLAT "b" 0')
    with opened(path) as source:
        check_source(source, DATA, [MIB])


@pytest.mark.parametrize("extent, more", [
    ('RW 8 FLAT "/etc/passwd" 0', ""), ('RW 8 FLAT "../outside" 0', ""), ('RW 8 FLAT "nbd:unix:x" 0', ""),
    ('RW 8 FLAT "link" 0', ""), ('RW 8 SPARSE "json:{}"', ""), ('RW 8 VMFSRDM "inside"', ""), ("RW 8 ZERO", ""),
    ('RW 8 FLAT "inside" 0', 'parentFileNameHint="inside"\n'), ('RW 8 FLAT "inside" 0', "parentCID=00000001\n"),
])
def test_a_descriptor_that_reaches_out(extent: str, more: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").write_bytes(bytes(4096))
    (tmp_path / "folder/inside").write_bytes(bytes(4096))
    (tmp_path / "folder/link").symlink_to("../outside")
    with pytest.raises(Unsupported) as caught:
        open_source(describe(tmp_path / "folder", extent, more=more))
    assert caught.value.why or caught.value.next or caught.value.where.item


def test_extents_outside_the_folder_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").write_bytes(DATA[:4096])
    path = describe(tmp_path / "folder", 'RW 8 FLAT "../outside" 0')
    with opened(path, outside=True) as source:
        assert read(source, 0, source.size) == DATA[:4096]


@pytest.mark.parametrize("extent", ['RW 8 FLAT "none" 0', 'RW 9 FLAT "inside" 0', 'RW 8 FLAT "inside" 1',
                                    'RW 8 SPARSE "inside"', "", 'RW 0 FLAT "inside" 0'])
def test_a_descriptor_that_is_wrong(extent: str, tmp_path: Path) -> None:
    (tmp_path / "inside").write_bytes(bytes(4096))
    with pytest.raises((LayoutError, PlanError)):
        open_source(describe(tmp_path, extent))


def test_an_extent_is_not_the_disk(tmp_path: Path) -> None:
    convert(DATA, tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
    with pytest.raises(Unsupported, match="one extent"):
        open_source(tmp_path / "disk-s001.vmdk")


# -- qcow2's backing files


def overlay(base: Path | str, path: Path, form: str = "raw") -> Path:
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", form, "-b", base, path, str(len(DATA)))
    return path


def test_backing_files(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(DATA)
    overlay("base", tmp_path / "one.qcow2")
    assert content(overlay("one.qcow2", tmp_path / "two.qcow2", "qcow2")) == DATA


def test_backing_files_that_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(DATA)
    (folder / "link").symlink_to("../secret")
    for base in ("../secret", tmp_path / "secret", "link", "nbd:unix:/x:y", "json:{}"):
        with pytest.raises(Unsupported):
            open_source(overlay(base, folder / "disk.qcow2"))
    with opened(overlay("../secret", folder / "disk.qcow2"), outside=True) as source:
        assert read(source, 0, 512) == DATA[:512]
    overlay("disk.qcow2", folder / "top.qcow2", "qcow2")
    with pytest.raises(Unsupported, match="outside its folder"):
        open_source(folder / "top.qcow2")
    with pytest.raises(LayoutError, match="missing"):
        open_source(overlay("none", folder / "disk.qcow2"))
    with pytest.raises(Unsupported, match="too many"):
        open_source(overlay("disk.qcow2", folder / "disk.qcow2", "qcow2"))


# -- names


def test_names() -> None:
    assert {name: name_of(name) for name in ("a.img", "a", "/dev/sda", "a.001", "a.img.aa", "a.dd")} \
        == dict.fromkeys(("a.img", "a", "/dev/sda", "a.001", "a.img.aa", "a.dd"), "raw")
    assert [name_of(f"A.{form.upper()}") for form in QEMU] == list(QEMU)
    assert [name_of(name) for name in ("sda1.ntfs-ptcl-img", "sda1.ext3-ptcl-img.aa", "sda1.ntfs-img.aa")] \
        == ["partclone", "partclone", "ntfsclone"]
    with pytest.raises(Unsupported, match="compressed") as caught:
        name_of("sda1.ntfs-ptcl-img.gz.aa")
    assert "cat sda1.ntfs-ptcl-img.gz.* | gunzip -c > IMAGE" in caught.value.next
    with pytest.raises(Unsupported):
        name_of("disk.img.zst")


@pytest.mark.parametrize("form", QEMU)
def test_content_contradicts_a_name(form: str, tmp_path: Path) -> None:
    path = convert(DATA, tmp_path / "disk.img", QEMU[form])
    with pytest.raises(PlanError, match=f"begins like an image of {form}") as caught:
        open_source(path)
    assert f"--source-format {form}" in caught.value.next
    assert content(path, form)[: len(DATA)] == DATA
    assert len(content(path, "raw")) == path.stat().st_size or form == "qcow2"
    other = next(name for name in QEMU if name != form)
    path.rename(tmp_path / f"disk.{other}")
    with pytest.raises(LayoutError, match=f"is called {other}, and is {form}"):
        open_source(tmp_path / f"disk.{other}")
    with pytest.raises((LayoutError, Unsupported)):
        open_source(tmp_path / f"disk.{other}", other)


def test_a_name_of_an_output_format_is_understood(tmp_path: Path) -> None:
    assert content(convert(DATA, tmp_path / "disk.img", "qcow2"), "qcow2-v2") == DATA
    with pytest.raises(PlanError, match="no format is called"):
        open_source(tmp_path / "disk.img", "tar")


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "raw"])
@pytest.mark.parametrize("data", [b"x", b"x" * 100, b"\xff" * 5000, bytes(100_000)])
def test_rubbish(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(data)
    with pytest.raises(LayoutError):
        open_input(str(tmp_path / "rubbish"), name)
    with pytest.raises(PlanError):
        open_input(str(tmp_path / "none"), name)


# -- files in parts


@pytest.mark.parametrize("marks", ["001 002 003 004", "aa ab ac ad", "000 001 002 003"], ids=str.split)
def test_split_raw(marks: str, tmp_path: Path) -> None:
    marks = marks.split()
    for number, mark in enumerate(marks):
        (tmp_path / f"disk.img.{mark}").write_bytes(DATA[number * MIB : (number + 1) * MIB])
    first = tmp_path / f"disk.img.{marks[0]}"
    with opened(first) as source:
        check_source(source, DATA, [MIB, 2 * MIB, 3 * MIB])
    os.truncate(tmp_path / f"disk.img.{marks[3]}", 100)
    with pytest.raises(LayoutError, match="cut off inside a sector"):
        open_source(first)
    os.truncate(tmp_path / f"disk.img.{marks[1]}", 4096)
    with pytest.raises(LayoutError, match="another size"):
        open_source(first)
    (tmp_path / f"disk.img.{marks[2]}").unlink()
    with pytest.raises(LayoutError, match="is missing") as caught:
        open_source(first)
    assert caught.value.where.source == f"{tmp_path}/disk.img.{marks[2]}"


def test_parts_are_not_edited_in_place(tmp_path: Path) -> None:
    for mark in ("001", "002"):
        (tmp_path / f"disk.{mark}").write_bytes(DATA[:MIB])
    disk = DiskPlan("disk0", str(tmp_path / "disk.001"), 2 * MIB, 512, "", "raw", str(tmp_path / "disk.001"))
    with pytest.raises(Unsupported, match="edited in place"):
        adaptation._refuse_uneditable([disk])
    with pytest.raises(Unsupported, match="a partclone image"):
        adaptation._refuse_uneditable([dataclasses.replace(disk, format="partclone")])


def test_other_images_are_not_read_in_parts(tmp_path: Path) -> None:
    path = convert(DATA, tmp_path / "disk.qcow2", "qcow2")
    run("split", "-b", "1M", path, f"{path}.")
    with pytest.raises(Unsupported, match="part of an image"):
        open_source(Path(f"{path}.aa"))


# -- partclone and ntfsclone


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An NTFS volume of an odd number of sectors, with files all over it."""
    if not all(map(shutil.which, ("mkntfs", "ntfscp"))):
        absent("mkntfs and ntfscp are not installed")
    path = tmp_path_factory.mktemp("volume") / "ntfs.img"
    with open(path, "wb") as file:
        file.truncate(12 * MIB + 5 * 512)
    run("mkntfs", "-F", "-Q", "-q", "-s", "512", "-c", "4096", path)
    (path.parent / "content").write_bytes(DATA[: MIB + 700])
    for name in range(3):
        run("ntfscp", "-q", "-f", path, path.parent / "content", f"/file{name}")
    return path


@pytest.fixture(scope="module")
def cloned(volume: Path) -> tuple[Path, bytes]:
    """partclone's image, and what partclone makes of it; each takes it two seconds."""
    if not all(map(shutil.which, ("partclone.ntfs", "partclone.restore"))):
        absent("partclone is not installed")
    image, back, log = (volume.parent / name for name in ("sda1.ntfs-ptcl-img", "back", "log"))
    run("partclone.ntfs", "-q", "-c", "-s", volume, "-o", image, "-L", log)
    with open(back, "wb") as file:
        file.truncate(volume.stat().st_size)
    run("partclone.restore", "-q", "-C", "-s", image, "-O", back, "-L", log)
    return image, back.read_bytes()


def test_partclone(cloned: tuple[Path, bytes], tmp_path: Path) -> None:
    image, back = cloned
    with opened(image) as source:
        check_source(source, back[: source.size])
        assert not any(back[source.size :]) and source.size > len(back) - 4096
        assert {extent.kind for extent in source.extents()} == {Kind.DATA, Kind.ZERO}
    run("split", "-b", "700K", image, tmp_path / "sda1.ntfs-ptcl-img.")
    with opened(tmp_path / "sda1.ntfs-ptcl-img.aa") as source:
        assert read(source, 0, source.size) == back[: source.size]


def test_partclone_damaged(cloned: tuple[Path, bytes], tmp_path: Path) -> None:
    image, data = tmp_path / "damaged", bytearray(cloned[0].read_bytes())
    for _ in flipped(image, data, range(110 + 3072 // 8 + 4), 0x10):
        with pytest.raises((LayoutError, Unsupported)):
            open_partclone(str(image))
    data[-100] ^= 1  # in the last blocks
    image.write_bytes(data)
    with contextlib.closing(open_partclone(str(image))) as source:
        assert read(source, 0, 4096) == cloned[1][:4096]
        with pytest.raises(ReadError, match="checksum of these blocks") as caught:
            read(source, 0, source.size)
        assert caught.value.where.source == str(image) and caught.value.where.length
    for size in (len(data) - 1, len(data) // 2, 1000, 110, 50):
        image.write_bytes(data[:size])
        with pytest.raises(LayoutError):
            open_partclone(str(image))


@pytest.mark.parametrize("place, value", [(0x60, 0x40), (0x68, 0)], ids=["another checksum", "not reseeded"])
def test_partclone_that_cannot_be_verified(place: int, value: int, cloned: tuple[Path, bytes], tmp_path: Path) -> None:
    head = bytearray(cloned[0].read_bytes())
    head[place] = value
    head[106:110] = (zlib.crc32(head[:106]) ^ 0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "image").write_bytes(head)
    with pytest.raises(Unsupported, match="cannot verify") as caught:
        open_partclone(str(tmp_path / "image"))
    assert "partclone.restore" in caught.value.next


def test_partclone_without_checksums(cloned: tuple[Path, bytes], tmp_path: Path) -> None:
    """As -a0 writes it: the strips without what lies behind them."""
    data = cloned[0].read_bytes()
    head = bytearray(data[:106])
    head[0x60:0x68] = bytes(8)
    head += (zlib.crc32(head) ^ 0xFFFFFFFF).to_bytes(4, "little")
    start, strip = 110 + 3072 // 8 + 4, 256 * 4096
    blocks = b"".join(data[at : at + strip + 4][:-4] for at in range(start, len(data), strip + 4))
    (tmp_path / "image").write_bytes(head + data[110:start] + blocks)
    with opened(tmp_path / "image", "partclone") as source:
        assert read(source, 0, source.size) == cloned[1][: source.size]


def test_ntfsclone(volume: Path, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("ntfsclone")
    image = tmp_path / "sda1.ntfs-img"
    run("ntfsclone", "-q", "-s", "-o", image, volume)
    run("ntfsclone", "-q", "-r", "-O", tmp_path / "back", image)
    expected = (tmp_path / "back").read_bytes().ljust(volume.stat().st_size, b"\0")
    with opened(image) as source:
        assert source.size == int.from_bytes(image.read_bytes()[22:30], "little")
        check_source(source, expected[: source.size])
        assert read(source, 0, source.size) == volume.read_bytes()[: source.size], "the backup boot sector too"
    data = bytearray(image.read_bytes())
    gap = 56
    while data[gap]:
        gap += 4097
    for place in flipped(image, data, (*range(56), gap, gap + 1, gap + 8), 0x81):
        try:
            with contextlib.closing(open_ntfsclone(str(image))) as source:
                assert read(source, 0, source.size) == expected[: source.size]
        except (LayoutError, Unsupported):
            continue
        assert place in (17, *range(50, 56)), "the minor version, and what pads the head"
    for size in (len(data) - 1, len(data) - 4097, len(data) // 2, 56, 30):
        image.write_bytes(data[:size])
        with pytest.raises(LayoutError):
            open_ntfsclone(str(image))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), min_size=1, max_size=12))
def test_the_index_counts_right(runs: list[tuple[bool, int]]) -> None:
    bits = np.concatenate([np.full(length, used) for used, length in runs])
    index = BlockIndex(np.packbits(bits, bitorder="little"), len(bits))
    begun = bits & ~np.concatenate(([False], bits[:-1]))
    ranks, starts = np.cumsum(bits), np.cumsum(begun)
    assert index.total == bits.sum()
    for block in {0, 1, 7, 8, 1023, 1024, 1025, len(bits) // 2, len(bits) - 1, len(bits)}:
        if block <= len(bits):
            assert index.rank(block) == (ranks[block - 1] if block else 0)
            assert index.runs_before(block) == (starts[block - 1] if block else 0)
    back = np.concatenate([np.full(count, used) for _, count, used in index.pieces(0, len(bits))])
    assert (back == bits).all()


@pytest.mark.parametrize("access", ["RW", "RDONLY", "NOACCESS"])
@pytest.mark.parametrize("kind", ["FLAT", "VMFS", "SPARSE"])
def test_a_vmdk_cannot_name_a_strangers_file_whatever_it_calls_its_access(
    tmp_path: Path, access: str, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 4096)
    image = tmp_path / "folder" / "disk.vmdk"
    image.parent.mkdir()
    offset = " 0" if kind == "FLAT" else ""
    image.write_text(f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
                     f'{access} 8 {kind} "{secret}"{offset}\n')
    with pytest.raises(Unsupported):
        open_input(str(image), "vmdk")


# -- small files that speak of large disks


def hostile_ntfsclone(inuse: int) -> bytes:
    clusters = 8 << 30
    head = struct.pack("<16sBBIQqQI", b"\0ntfsclone-image", 10, 1, 512, 512 * clusters, clusters, inuse, 50)
    return head + struct.pack("<Bq", 0, clusters)


def hostile_vmdk() -> bytes:
    head = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, (64 << 40) // 512, 8, 1, 2, 512, 0, 3, 10, 0, b"\n \r\n", 0)
    return head.ljust(512, b"\0") + b"# Disk DescriptorFile\n".ljust(1024, b"\0")


def hostile_vdi() -> bytes:
    blocks = 64 << 20
    head = struct.pack("<64s5I256s7IQ4I16s16s16s16s4I40x", b"<<<", 0xBEDA107F, 0x10001, 400, 1, 0, b"", 1 << 20,
                       257 << 20, 0, 0, 0, 512, 0, blocks << 20, 1 << 20, 0, blocks, 0, *[bytes(16)] * 4, 0, 0, 0, 512)
    return head.ljust(512, b"\0")


MEASURE = """
import resource, sys
from p2v.errors import P2VError
from p2v.source.images import open_input
import numpy, construct, p2v.source.ntfsclone, p2v.source.vmdkimage, p2v.source.vdiimage
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_input(sys.argv[1], sys.argv[2])
    print("opened")
except P2VError as error:
    print(error.what)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("name", "data", "size"), [
    ("ntfsclone", hostile_ntfsclone(0), 0), ("ntfsclone", hostile_ntfsclone(1 << 30), 0),
    ("vmdk", hostile_vmdk(), 200 << 20), ("vdi", hostile_vdi(), 257 << 20),
])
def test_a_small_file_costs_little_whatever_it_claims(name: str, data: bytes, size: int, tmp_path: Path) -> None:
    """A file of 4 KiB on the medium, sparse where it has to seem longer."""
    path = tmp_path / "image"
    path.write_bytes(data)
    if size:
        os.truncate(path, size)
    done = subprocess.run([sys.executable, "-c", MEASURE, path, name], capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert said != "opened" and int(grown) < 60, f"{said}: {grown} MiB"


def test_grain_tables_do_not_overlap(tmp_path: Path) -> None:
    path = convert(DATA, tmp_path / "disk.vmdk", "vmdk")
    image = bytearray(path.read_bytes())
    directory = int.from_bytes(image[56:64], "little") * 512
    table = int.from_bytes(image[directory : directory + 4], "little")
    image[12:20] = struct.pack("<Q", 128 * 512 * 2)  # two tables
    image[directory + 4 : directory + 8] = struct.pack("<I", table + 1)
    path.write_bytes(image)
    with pytest.raises(LayoutError, match="overlap"):
        open_input(str(path), "vmdk")
