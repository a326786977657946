"""VMDK: qemu and libvmdk as witnesses, other products' files beside ours, and safe when things go wrong."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import pyvmdk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v.copy import plan_copy, run_copy
from p2v.errors import LayoutError, P2VError, PlanError, Unsupported, WriteError
from p2v.formats import raw, vmdk_esx, vmdk_extent, vmdk_flat, vmdk_layout, vmdk_sparse, vmdk_split, vmdk_stream
from p2v.formats.vmdk_layout import GRAIN
from p2v.model import Extent, Kind
from p2v.model import read as read_bytes
from p2v.source.device import open_disk
from p2v.source.vmdkfiles import refuse_strangers
from p2v.testing import MemorySource, check_image
from p2v.volume.geometry import target_geometry

MIB = 1 << 20
TABLE = 512 * GRAIN  # bytes of disk that a grain table maps
FORMS = [vmdk_sparse, vmdk_stream, vmdk_flat, vmdk_esx, vmdk_split]
ANY_ORDER = [form for form in FORMS if not form.SEQUENTIAL]
SPARSE = [vmdk_sparse, vmdk_stream, vmdk_split]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.NAME)
any_order = pytest.mark.parametrize("form", ANY_ORDER, ids=lambda form: form.NAME)
HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
FIELDS = ["magic", "version", "flags", "capacity", "grain", "descriptor", "descriptor_size", "entries", "redundant",
          "directory", "overhead", "unclean", "newlines", "compression"]


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def qemu_img(*words):
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def padded(form, content):
    """What the image holds: whole grains for the sparse kinds."""
    return content + bytes(-len(content) % (GRAIN if form in SPARSE else 512))


def witness(form, path, content):
    """qemu-img: no errors, this size, these bytes. libvmdk: the same."""
    expected = padded(form, content)
    assert json.loads(qemu_img("info", "--output=json", "-f", "vmdk", path))["virtual-size"] == len(expected)
    if form in SPARSE:
        assert "No errors were found" in qemu_img("check", "-f", "vmdk", path)
    other = path.with_name("expected")
    other.write_bytes(expected)
    assert "identical" in qemu_img("compare", "-f", "vmdk", "-F", "raw", path, other)
    other.unlink()
    handle = pyvmdk.handle()
    handle.open(str(path))
    handle.open_extent_data_files()
    assert handle.get_media_size() == len(expected)
    assert handle.read(len(expected)) == expected
    handle.close()


def image(form, path, content, extents=None):
    source = MemorySource(content)
    writer = form.create(str(path), source.size)
    report = run_copy(source, extents or plan_copy(source), writer)
    writer.finish()
    return report


def header(path):
    with open(path, "rb") as file:
        return dict(zip(FIELDS, HEADER.unpack(file.read(HEADER.size)), strict=True))


def described(path):
    """The keys of a descriptor, as text; a sparse file's embedded one."""
    with open(path, "rb") as file:
        data = file.read(21 * 512)
    text = (data[512:] if data.startswith(b"KDMV") else data).split(b"\0")[0].decode()
    return text, dict(re.findall(r'^([\w.]+)\s*=\s*"?([^"\n]*?)"?$', text, re.MULTILINE))


# --- the bytes


@forms
@pytest.mark.parametrize("size", [512, GRAIN + 512, 5 * MIB + 70144, 33 * MIB])
@pytest.mark.parametrize("fill", [bytes, noise], ids=["empty", "full"])
def test_odd_sizes(form, size, fill, tmp_path, needs):
    needs("qemu-img")
    path = tmp_path / "disk.vmdk"
    image(form, path, fill(size))
    witness(form, path, fill(size))
    used = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    assert used <= (size * 1.01 if fill is noise else 0) + 3 * GRAIN


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ANY_ORDER), st.integers(1, 5000), st.lists(st.tuples(
    st.sampled_from(["write", "zero"]), st.integers(0, 40), st.sampled_from([0, 1, 511, 512, 65535]),
    st.sampled_from([1, 512, 4096, 65536, 65537, 200_000, MIB])), max_size=25), st.integers(0, 25))
def test_any_writes_in_any_order_give_the_same_bytes(tmp_path, needs, form, sectors, work, pause):
    """Also across a checkpoint and a reopening somewhere on the way; split in extents of 1 MiB."""
    needs("qemu-img")
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    size = sectors * 512
    content, path = bytearray(size), folder / "disk.vmdk"
    with pytest.MonkeyPatch.context() as patch:
        small_extents(patch)
        writer = form.create(str(path), size)
        for number, (what, grain, inside, length) in enumerate(work):
            at = (grain * GRAIN + inside) % size
            length = min(length, size - at)
            if number == pause:
                writer = form.reopen(str(path), writer.checkpoint())
            if what == "write":
                content[at : at + length] = noise(length, number)
                writer.write_at(at, memoryview(content)[at : at + length])
            else:
                content[at : at + length] = bytes(length)
                writer.zero(at, length)
        writer.finish()
    witness(form, path, bytes(content))


def small_extents(patch, sectors=2048, most=2):
    patch.setattr(vmdk_split, "EXTENT_SECTORS", sectors)
    patch.setattr(vmdk_split, "EXTENT", sectors * 512)
    patch.setattr(vmdk_split, "OPEN", most)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["text", "noise", "zero", "skip"]),
                          st.sampled_from([1, 512, 65536, 65537, 200_000, MIB, 33 * MIB])), min_size=1, max_size=15))
def test_any_ascending_stream(tmp_path, needs, work):
    needs("qemu-img")
    work = [(what if length < 2 * MIB else "skip", length) for what, length in work]
    size = min(-(-sum(length for _, length in work) // 512) * 512, 100 * MIB)
    path = tmp_path / "disk.vmdk"
    path.unlink(missing_ok=True)
    content, at = bytearray(size), 0
    writer = vmdk_stream.create(str(path), size)
    for number, (what, length) in enumerate(work):
        length = min(length, size - at)
        if what in ("text", "noise"):
            content[at : at + length] = noise(length, number) if what == "noise" else bytes([number + 1]) * length
            writer.write_at(at, memoryview(content)[at : at + length])
        elif what == "zero":
            writer.zero(at, length)
        at += length
    writer.finish()
    walk_stream(path, bytes(content))
    if size < 8 * MIB:
        witness(vmdk_stream, path, bytes(content))


def walk_stream(path, content):
    """Our own walk through a stream, forward only, as importers do: by the specification, not by the writer."""
    data = path.read_bytes()
    first = header(path)
    assert (first["directory"], first["redundant"]) == (0xFFFFFFFFFFFFFFFF, 0)
    at, last, group, tables, found = first["overhead"] * 512, -1, {}, {}, {}
    while True:
        value, size, kind = struct.unpack_from("<QII", data, at)
        if size:
            assert value > last and value % 128 == 0, "grains ascend"
            grain = zlib.decompress(data[at + 12 : at + 12 + size])
            assert len(grain) == GRAIN
            group[value // 128] = at // 512
            found[value // 128] = grain
            last, at = value, at + -(-(12 + size) // 512) * 512
            continue
        body = data[at + 512 : at + 512 + value * 512]
        if kind == 1:
            assert value == 4 and group, "an empty table is left out"
            entries = struct.unpack("<512I", body)
            number = min(group) // 512
            assert {number * 512 + n: sector for n, sector in enumerate(entries) if sector} == group
            tables[number], group = at // 512 + 1, {}
        elif kind == 2:
            assert not group
            entries = struct.unpack(f"<{len(body) // 4}I", body)
            assert {n: sector for n, sector in enumerate(entries) if sector} == tables
            directory = at // 512 + 1
        elif kind == 3:
            footer = dict(zip(FIELDS, HEADER.unpack_from(body), strict=True))
            assert footer == {**first, "directory": directory}
        else:
            assert (value, kind) == (0, 0) and data[at:] == bytes(512), "the end, and nothing after it"
            break
        at += 512 + value * 512
    whole = content + bytes(-len(content) % GRAIN)
    for number in range(len(whole) // GRAIN):
        assert found.get(number, bytes(GRAIN)) == whole[number * GRAIN : (number + 1) * GRAIN]


def test_a_stream_with_empty_tables_and_grains_that_do_not_shrink(tmp_path, needs):
    needs("qemu-img")
    path = tmp_path / "disk.vmdk"
    content = bytearray(2 * TABLE + 5 * MIB + 512)
    content[TABLE : TABLE + 3 * MIB] = noise(3 * MIB)
    content[-MIB:] = b"x" * MIB
    image(vmdk_stream, path, bytes(content))
    walk_stream(path, bytes(content))
    witness(vmdk_stream, path, bytes(content))


def test_both_copies_of_the_tables_are_identical_and_lie_where_the_header_says(tmp_path):
    path = tmp_path / "disk.vmdk"
    image(vmdk_sparse, path, noise(TABLE + 9 * MIB))
    data, head = path.read_bytes(), header(path)
    found = []
    for start in (head["redundant"], head["directory"]):
        directory = struct.unpack_from("<2I", data, start * 512)
        found.append([struct.unpack_from("<512I", data, place * 512) for place in directory])
    assert found[0] == found[1]
    grains = [sector for table in found[0] for sector in table if sector]
    assert grains == list(range(head["overhead"], len(data) // 512, 128)) and len(grains) == 656


# --- beside other products


CORPUS = "vdisks/vbox"


@pytest.fixture
def samples(corpus, tmp_path):
    """The corpus's VMDKs of one disk, unpacked, and the disk."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for file in (corpus / CORPUS).glob("*vmdk*"):
        packed = file.suffix == ".xz"
        data = lzma.decompress(file.read_bytes()) if packed else file.read_bytes()
        (folder / (file.stem if packed else file.name)).write_bytes(data)
    disk = lzma.decompress((corpus / CORPUS / "pat-a.raw.xz").read_bytes())
    for name in ("vbox-a-Fixed-flat.vmdk", "vbox-a-ESX-flat.vmdk"):
        (folder / name).write_bytes(disk)
    return folder, disk


@pytest.mark.parametrize("name", ["vbox-a-Standard", "vbox-a-Stream", "vbox-a-Fixed", "vbox-a-ESX",
                                  "openvmdk-a-stream"])
def test_images_of_other_products_read_right(name, samples, needs):
    needs("qemu-nbd")
    folder, disk = samples
    path = folder / f"{name}.vmdk"
    form = {"Standard": vmdk_sparse, "stream": vmdk_stream, "fixed": vmdk_flat, "ESX": vmdk_esx}.get(
        name.split("-")[-1], vmdk_stream if "tream" in name else vmdk_flat)
    check_image(form, path, disk)


@pytest.mark.parametrize(("form", "peer"), [(vmdk_sparse, "vbox-a-Standard"), (vmdk_stream, "vbox-a-Stream"),
                                            (vmdk_stream, "openvmdk-a-stream")])
def test_headers_beside_those_of_other_products(form, peer, samples, tmp_path):
    """Field by field; what differs does so on purpose."""
    folder, disk = samples
    path = tmp_path / "disk.vmdk"
    image(form, path, disk)
    ours, theirs = header(path), header(folder / f"{peer}.vmdk")
    differing = {field for field in FIELDS if ours[field] != theirs[field]}
    assert differing == {
        "vbox-a-Standard": set(),
        "vbox-a-Stream": {"descriptor_size"},  # VirtualBox leaves no room in it
        "openvmdk-a-stream": {"capacity", "directory", "overhead"},  # exact; tables in front
    }[peer]
    assert ours["capacity"] == 24704 and ours["unclean"] == 0  # 24579 sectors, in whole grains


def test_a_vmware_stream_and_ours_have_the_same_header(corpus, tmp_path):
    peer = tmp_path / "peer.vmdk"
    peer.write_bytes(lzma.decompress((corpus / "vdisks/qemu/iotest-version3.vmdk.xz").read_bytes()))
    path = tmp_path / "disk.vmdk"
    vmdk_stream.create(str(path), 16 << 30).finish()
    ours, theirs = header(path), header(peer)
    assert {f for f in FIELDS if ours[f] != theirs[f]} == {"descriptor_size"}
    image = vmdk_stream.read(str(peer))
    assert image.size == 16 << 30
    assert read_bytes(image, 0, 512) is not None
    image.close()


@pytest.mark.parametrize(("form", "peer"), [(vmdk_flat, "vbox-a-Fixed"), (vmdk_esx, "vbox-a-ESX"),
                                            (vmdk_sparse, "vbox-a-Standard"), (vmdk_stream, "openvmdk-a-stream")])
def test_descriptors_beside_those_of_other_products(form, peer, samples, tmp_path):
    folder, disk = samples
    path = tmp_path / f"{peer}.vmdk"
    image(form, path, disk)
    (our_text, ours), (their_text, theirs) = described(path), described(folder / f"{peer}.vmdk")
    assert our_text.split("\n")[0] == their_text.split("\n")[0] == "# Disk DescriptorFile"
    lines = [re.search(r"^R.*$", text, re.MULTILINE).group() for text in (our_text, their_text)]
    if form in (vmdk_flat, vmdk_esx):
        assert lines[0] == lines[1]
    for key in ("version", "parentCID", "createType", "ddb.virtualHWVersion"):
        assert ours[key] == theirs[key]
    if "vbox" in peer and form is not vmdk_esx:
        for key in ("ddb.adapterType", "ddb.geometry.cylinders", "ddb.geometry.heads", "ddb.geometry.sectors"):
            assert ours[key] == theirs[key]
    assert set(theirs) - set(ours) <= {"ddb.comment", "ddb.toolsInstallType", "ddb.toolsVersion"}


def test_absurd_images_are_refused(corpus, tmp_path, needs):
    needs("qemu-nbd")
    path = tmp_path / "afl9.vmdk"
    path.write_bytes(lzma.decompress((corpus / "vdisks/qemu/afl9.vmdk.xz").read_bytes()))
    with pytest.raises(P2VError):
        vmdk_sparse.read(str(path))


# --- the descriptor


@pytest.mark.parametrize("size", [512, 500 * MIB, 5 << 30, 40 << 30, 500 << 30])
def test_the_geometry_is_the_one_that_the_guest_will_see(size):
    text = vmdk_layout.descriptor("x", size, []).decode()
    told = {key: int(value) for key, value in re.findall(r'ddb\.geometry\.(\w+) = "(\d+)"', text)}
    bios = target_geometry(size)
    assert (told["biosHeads"], told["biosSectors"], told["heads"], told["sectors"]) == (bios.heads, 63, 16, 63)
    assert told["cylinders"] == max(1, min(16383, size // 512 // (16 * 63)))
    assert told["biosCylinders"] == max(1, min(1024, size // 512 // (bios.heads * 63)))
    assert 'ddb.adapterType = "ide"' in text and len(text) < 20 * 512


def test_ids_are_fresh_and_never_reserved(monkeypatch):
    texts = [vmdk_layout.descriptor("x", 512, []).decode() for _ in range(50)]
    for pattern in (r"^CID=(\w{8})$", r'uuid.image = "([0-9a-f-]{36})"', r'longContentID = "(\w{32})"'):
        assert len({re.search(pattern, text, re.MULTILINE).group(1) for text in texts}) == 50
    asked = []
    monkeypatch.setattr(vmdk_layout.secrets, "randbelow", lambda most: asked.append(most) or most - 1)
    assert b"\nCID=fffffffd\n" in vmdk_layout.descriptor("x", 512, [])
    assert asked == [0xFFFFFFFE]


@pytest.mark.parametrize("form", [vmdk_flat, vmdk_esx, vmdk_split], ids=lambda form: form.NAME)
@pytest.mark.parametrize("name", ['a"b.vmdk', "a:b.vmdk", "a\nb.vmdk", "a\udcffb.vmdk"])
def test_names_that_no_descriptor_can_hold(form, name, tmp_path):
    with pytest.raises(Unsupported, match="cannot be the name"):
        form.create(str(tmp_path / name), MIB)
    assert not list(tmp_path.iterdir())


@forms
@pytest.mark.parametrize("name", ["Büro 2 (alt), 100%.vmdk", "noend"])
def test_names_that_it_can(form, name, tmp_path, needs):
    needs("qemu-nbd")
    image(form, tmp_path / name, noise(MIB))
    check_image(form, tmp_path / name, noise(MIB))


def test_one_file_may_be_called_anything(tmp_path, needs):
    needs("qemu-nbd")
    for form in (vmdk_sparse, vmdk_stream):
        path = tmp_path / f'{form.NAME}:"x"'
        image(form, path, noise(MIB))
        assert '"disk.vmdk"' in described(path)[0]
        check_image(form, path, noise(MIB))


def test_each_kind_knows_its_own(tmp_path):
    for form in FORMS:
        path = tmp_path / f"{form.NAME}.vmdk"
        form.create(str(path), MIB).finish()
        head = MemorySource(path.read_bytes())
        assert [other for other in FORMS if other.probe(head)] == [form]
    for data in (b"", b"KDMV", b"# Disk DescriptorFile\n", b'createType="vmfs"', bytes(512)):
        assert not any(form.probe(MemorySource(data)) for form in FORMS)


# --- large


@pytest.mark.parametrize(("form", "size"), [(vmdk_sparse, vmdk_sparse.LIMIT), (vmdk_stream, vmdk_stream.LIMIT),
                                            (vmdk_flat, 4 << 40), (vmdk_esx, 4 << 40), (vmdk_split, 100 << 30)],
                         ids=lambda value: getattr(value, "NAME", ""))
def test_a_large_sparse_disk_is_small_and_right(form, size, tmp_path, needs):
    """Up to the limit: no memory and no file space for what is not there."""
    needs("qemu-img", "qemu-nbd")
    disk, path = tmp_path / "disk.raw", tmp_path / "image.vmdk"
    places = (0, size // 3 // MIB * MIB, size - MIB)
    with open(disk, "wb") as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), noise(MIB, place), place)
    source = open_disk(str(disk))
    tracemalloc.start()
    try:
        writer = form.create(str(path), size)
        run_copy(source, plan_copy(source), writer)
        writer.finish()
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    source.close()
    disk.unlink()
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 16 * MIB
    made = form.read(str(path))
    assert made.size == size
    for place in places:
        assert read_bytes(made, place, MIB) == noise(MIB, place)
        assert not any(read_bytes(made, (place + 4 * MIB) % size, MIB))
    made.close()


@forms
def test_beyond_the_limit(form, tmp_path):
    with pytest.raises(Unsupported):
        form.create(str(tmp_path / "disk.vmdk"), form.LIMIT + 512)
    assert not list(tmp_path.iterdir())


def test_all_of_a_full_disk_at_the_limit_has_a_sector_number():
    """The sparse kinds count a file's sectors in 32 bits; nothing of a full disk may lie beyond."""
    tables = -(-vmdk_sparse.LIMIT // TABLE)
    assert vmdk_sparse.LIMIT + 2 * (tables * 2048 + tables * 4) + 2 * MIB <= 1 << 41
    grains = vmdk_stream.LIMIT // GRAIN
    stored = -(-(12 + len(zlib.compress(noise(GRAIN), 0))) // 512)
    assert grains * stored + -(-grains // 512) * 5 + 2 * MIB // 512 <= 1 << 32


def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch, needs):
    """More pages of tables than are kept: they go to their place in the file and come back."""
    needs("qemu-img")
    monkeypatch.setattr(vmdk_extent, "KEPT", 2)
    monkeypatch.setattr(vmdk_extent, "PAGE", 512)
    path = tmp_path / "disk.vmdk"
    content = bytearray(5 * TABLE)
    writer = vmdk_sparse.create(str(path), len(content))
    for turn in range(3):
        for table in (0, 3, 2, 4, 1):
            at = table * TABLE + turn * 3 * GRAIN
            content[at : at + GRAIN] = noise(GRAIN, at)
            writer.write_at(at, memoryview(content)[at : at + GRAIN])
    assert len(writer.extent._kept) == 2
    writer.finish()
    witness(vmdk_sparse, path, bytes(content))


# --- several files


def test_a_split_disk_has_a_file_per_extent(tmp_path, monkeypatch, needs):
    needs("qemu-img")
    small_extents(monkeypatch)
    path = tmp_path / "disk.vmdk"
    content = bytearray(10 * MIB + 512)
    content[3 * MIB - 70_000 : 3 * MIB + 70_000] = noise(140_000)
    image(vmdk_split, path, bytes(content))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"disk-s{n:03d}.vmdk" for n in range(1, 12)), "disk.vmdk"]
    assert len(re.findall(r'^RW 2048 SPARSE "disk-s\d{3}.vmdk"$', path.read_text(), re.MULTILINE)) == 10
    assert 'RW 128 SPARSE "disk-s011.vmdk"' in path.read_text()
    assert header(tmp_path / "disk-s011.vmdk")["descriptor"] == 0
    witness(vmdk_split, path, bytes(content))


@pytest.mark.parametrize(("form", "name"), [(vmdk_flat, "disk-flat.vmdk"), (vmdk_esx, "disk-flat.vmdk"),
                                            (vmdk_split, "disk-s002.vmdk")])
@pytest.mark.parametrize("end", ["", ".part"])
def test_no_extent_is_overwritten(form, name, end, tmp_path, monkeypatch):
    small_extents(monkeypatch)
    (tmp_path / f"{name}{end}").write_bytes(b"precious")
    with pytest.raises(PlanError, match="exists"):
        form.create(str(tmp_path / "disk.vmdk"), 4 * MIB)
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}{end}"]


@any_order
@pytest.mark.parametrize("renames", range(4))
def test_a_finish_cut_short_between_renames_can_be_gone_on_with(form, renames, tmp_path, monkeypatch, needs):
    """The descriptor comes last; until then the disk is unfinished, and stays resumable."""
    needs("qemu-img")
    small_extents(monkeypatch)
    content = noise(2 * MIB) + bytes(MIB)  # three extents when split, one without a grain
    path = tmp_path / "disk.vmdk"
    writer = form.create(str(path), len(content))
    writer.write_at(0, memoryview(content)[: 2 * MIB])
    state = writer.checkpoint()
    real, done = os.rename, []

    def rename(old, new):
        if len(done) == renames:
            raise KeyboardInterrupt  # as good as a power cut: nothing runs after it
        done.append(new)
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    try:
        writer.finish()
    except KeyboardInterrupt:
        assert not path.exists()
        del writer
        monkeypatch.setattr(os, "rename", real)
        form.reopen(str(path), state).finish()
    else:
        assert done[-1] == path, "the descriptor comes last"
    witness(form, path, content)
    assert not list(tmp_path.glob("*.part"))


# --- when things go wrong


KILLED = """
import importlib, os, signal, sys
form = importlib.import_module(sys.argv[1])
form.EXTENT_SECTORS, form.EXTENT = 2048, 2048 * 512  # for the split one
writer = form.create(sys.argv[2], 6 << 20)
for mib in range(3):
    writer.write_at(mib << 20, memoryview(bytes([mib + 1]) * (1 << 20)))
with open(sys.argv[2] + ".state", "wb") as file:
    file.write(writer.checkpoint())
for mib in (5, 3):
    writer.write_at(mib << 20, memoryview(b"lost" * (1 << 18)))
writer.checkpoint()
os.kill(os.getpid(), signal.SIGKILL)
"""


@any_order
def test_killed_after_a_checkpoint(form, tmp_path, monkeypatch, needs):
    needs("qemu-img")
    small_extents(monkeypatch)
    path = tmp_path / "disk.vmdk"
    done = subprocess.run([sys.executable, "-c", KILLED, form.__name__, str(path)], check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(raw.__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    writer = form.reopen(str(path), Path(f"{path}.state").read_bytes())
    writer.zero(3 * MIB, MIB)
    writer.write_at(4 * MIB, memoryview(b"\x05" * MIB))
    writer.finish()
    witness(form, path, b"".join(bytes([n]) * MIB for n in (1, 2, 3, 0, 5, 0)))


def test_after_a_power_cut_a_table_may_be_old_new_or_torn_in_either_copy(tmp_path, needs):
    needs("qemu-img")
    size = TABLE
    for kept in ("old", "new", "torn", "one old, one new"):
        path = tmp_path / f"{kept}.vmdk"
        writer = vmdk_sparse.create(str(path), size)
        content = bytearray(size)
        content[: 9 * GRAIN] = noise(9 * GRAIN)
        writer.write_at(0, memoryview(content)[: 9 * GRAIN])
        state = writer.checkpoint()
        part = Path(f"{path}.part")
        old = part.read_bytes()
        writer.write_at(20 * GRAIN, memoryview(b"x" * (300 * GRAIN)))
        writer.checkpoint()  # newer tables reach the file, the newer state does not reach the run
        mixed = bytearray(part.read_bytes())
        end = 128 * 512
        if kept == "old":
            mixed[:end] = old[:end]
        elif kept == "torn":
            for at in range(0, end, 1024):
                mixed[at : at + 512] = old[at : at + 512]
        elif kept == "one old, one new":
            mixed[: 26 * 512] = old[: 26 * 512]  # the redundant directory and its table
        part.write_bytes(mixed)
        writer = vmdk_sparse.reopen(str(path), state)
        content[25 * GRAIN : 26 * GRAIN] = noise(GRAIN)
        writer.write_at(25 * GRAIN, memoryview(content)[25 * GRAIN : 26 * GRAIN])
        writer.finish()
        witness(vmdk_sparse, path, bytes(content))
        data = path.read_bytes()
        assert data[22 * 512 : 26 * 512] == data[27 * 512 : 31 * 512]


@pytest.mark.parametrize("form", [vmdk_sparse, vmdk_split], ids=lambda form: form.NAME)
def test_reopening_something_else_is_refused(form, tmp_path):
    path = tmp_path / "disk.vmdk"
    writer = form.create(str(path), 40 * MIB)
    writer.write_at(0, memoryview(noise(MIB)))
    state = writer.checkpoint()
    for cut in (b"", state[:-1], b"x" + state[1:], state + bytes(8), state[:8] + b"\xff" * 8 + state[16:]):
        with pytest.raises(LayoutError, match="no checkpoint"):
            form.reopen(str(path), cut)
    part = Path(f"{path}.part") if form is vmdk_sparse else tmp_path / "disk-s001.vmdk.part"
    whole = part.read_bytes()
    table = whole.rindex(struct.pack("<2I", 128, 256))
    part.write_bytes(whole[:table] + b"\7\0\0\0" + whole[table + 4 :])
    with pytest.raises(LayoutError, match="damaged grain table"):
        form.reopen(str(path), state)
    part.write_bytes(whole[: 128 * 512])
    with pytest.raises(LayoutError, match="shorter"):
        form.reopen(str(path), state)


@forms
def test_disk_full_says_so_and_leaves_nothing(form, tmp_path, monkeypatch):
    small_extents(monkeypatch, 4096 * 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = MemorySource(noise(8 * MIB))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, hard))
    try:
        writer = form.create(str(tmp_path / "disk.vmdk"), source.size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
        with pytest.raises(WriteError, match="File too large"):
            run_copy(source, plan_copy(source), writer)
            writer.finish()
        writer.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@forms
def test_an_output_that_appears_meanwhile_is_not_replaced(form, tmp_path):
    path = tmp_path / "disk.vmdk"
    writer = form.create(str(path), MIB)
    writer.write_at(0, memoryview(noise(MIB)))
    path.write_bytes(b"precious")
    with pytest.raises(PlanError, match="exists"):
        writer.finish()
    writer.abort()
    writer.abort()
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_a_stream_has_one_direction(tmp_path):
    writer = vmdk_stream.create(str(tmp_path / "disk.vmdk"), 4 * MIB)
    writer.write_at(MIB, memoryview(noise(MIB)))
    with pytest.raises(PlanError, match="first byte") as caught:
        writer.write_at(MIB, memoryview(b"x"))
    assert "use vmdk," in caught.value.next
    for call in (writer.checkpoint, lambda: vmdk_stream.reopen("x", b"")):
        with pytest.raises(Unsupported, match="interrupted"):
            call()
    writer.abort()
    assert vmdk_stream.SEQUENTIAL and not vmdk_stream.EDITABLE and not list(tmp_path.iterdir())


# --- files that a stranger has written


def descriptor(*lines):
    return "\n".join(["# Disk DescriptorFile", "version=1", "CID=12345678", "parentCID=ffffffff",
                      'createType="monolithicFlat"', *lines, ""])


@pytest.mark.parametrize("line", [
    'RW 8 FLAT "/etc/passwd" 0', 'RW 8 FLAT "../secret" 0', 'RW 8 FLAT "sub/secret" 0', 'RW 8 FLAT "link" 0',
    'RW 8 FLAT "nbd:host:1" 0', 'RW 8 FLAT "." 0', '  RW\t8\tFLAT   "/etc/passwd"', 'RW 8 SPARSE "/etc/passwd',
    '# RW "quoted"\nRW 8 FLAT "/etc/passwd" 0', 'RW 8 FLAT "ok" 0\r\nRW 8 VMFS "../secret"', 'RW 8 FLAT "a\0/b" 0',
])
def test_files_outside_the_folder_are_not_read(line, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    (folder / "ok").write_bytes(bytes(4096))
    (folder / "link").symlink_to(tmp_path / "secret")
    path = folder / "disk.vmdk"
    path.write_text(descriptor(line))
    with pytest.raises((Unsupported, LayoutError)) as caught:
        vmdk_flat.read(str(path))
    assert caught.value.why and caught.value.where


def test_a_snapshot_is_refused(tmp_path):
    path = tmp_path / "disk.vmdk"
    (tmp_path / "disk-flat.vmdk").write_bytes(bytes(4096))
    path.write_text(descriptor('parentFileNameHint="/etc/passwd"', 'RW 8 FLAT "disk-flat.vmdk" 0'))
    with pytest.raises(Unsupported, match="snapshot"):
        vmdk_flat.read(str(path))
    image(vmdk_sparse, path.with_name("b.vmdk"), noise(MIB))
    data = path.with_name("b.vmdk").read_bytes()
    path.with_name("b.vmdk").write_bytes(data.replace(b"ddb.longContentID = ", b"parentfilenamehint= "))
    with pytest.raises(Unsupported, match="snapshot"):
        vmdk_sparse.read(str(path.with_name("b.vmdk")))


def test_a_descriptor_inside_an_extent_is_no_way_round(tmp_path):
    """qemu reads an extent of capacity 0 as a descriptor, also one that a descriptor names."""
    inner = tmp_path / "inner.vmdk"
    hidden = descriptor('RW 8 FLAT "/etc/passwd" 0').encode()
    inner.write_bytes(vmdk_layout.Header(0, 0, 128, descriptor=20).pack() + vmdk_layout.embedded(hidden))
    with pytest.raises(Unsupported, match="dressed"):
        vmdk_sparse.read(str(inner))
    path = tmp_path / "disk.vmdk"
    path.write_text(descriptor('RW 8 SPARSE "inner.vmdk"'))
    with pytest.raises(Unsupported, match="dressed"):
        vmdk_split.read(str(path))


def test_guest_data_is_no_descriptor(tmp_path, needs):
    """What the guest holds may look like one: it is not searched for names."""
    needs("qemu-nbd")
    content = descriptor('parentFileNameHint="/x"', 'RW 8 FLAT "/etc/passwd" 0').encode().ljust(MIB, b"\n")
    for form in FORMS:
        path = tmp_path / f"{form.NAME}.vmdk"
        image(form, path, content)
        check_image(form, path, content)


def test_a_long_hostile_text_is_searched_in_no_time(tmp_path):
    for text in (b"RW" * 500_000, b'RW"' * 300_000, b'RW "' + b"a" * 1_000_000):
        path = tmp_path / "disk.vmdk"
        path.write_bytes(b"# Disk DescriptorFile\n" + text)
        begun = time.process_time()
        with contextlib.suppress(P2VError):
            refuse_strangers(str(path))
        assert time.process_time() - begun < 2


def test_what_is_skipped_is_not_in_the_image(tmp_path, needs):
    needs("qemu-nbd")
    for form in FORMS:
        path = tmp_path / f"{form.NAME}.vmdk"
        image(form, path, noise(8 * MIB), [Extent(0, MIB, Kind.DATA), Extent(MIB, 7 * MIB, Kind.FREE)])
        made = form.read(str(path))
        kinds = [(e.offset, e.kind) for e in made.extents()]
        made.close()
        assert kinds == [(0, Kind.DATA), (MIB, Kind.ZERO)], form.NAME
