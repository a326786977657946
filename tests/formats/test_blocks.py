"""VHD, VHDX and VDI, dynamic and fixed, with qemu-img and libvhdi as witnesses, also when things go wrong."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v.copy import plan_copy, run_copy, verify_copy
from p2v.errors import Cancelled, LayoutError, P2VError, PlanError, Unsupported, WriteError
from p2v.formats import FORMATS, blocks, raw
from p2v.formats.part import PartFile
from p2v.model import read
from p2v.source.device import open_disk
from p2v.testing import MemorySource, check_image

MIB = 1 << 20
TABLES = ["vhd", "vhdx", "vdi"]
FIXED = ["vhd-fixed", "vhdx-fixed", "vdi-fixed"]
ALL = [*TABLES, *FIXED]


def qemu(name):
    return {"vhd": "vpc"}.get(name.split("-")[0], name.split("-")[0])


def qemu_img(*words):
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def witness(name, path, expected):
    """qemu-img and libvhdi: nothing wrong, the size in whole sectors, the same bytes, then zeroes."""
    size = -(-len(expected) // 512) * 512
    told = json.loads(qemu_img("info", "--output=json", "-f", qemu(name), str(path)))
    assert told["virtual-size"] == size
    if qemu(name) != "vpc":  # which qemu-img cannot check
        assert "No errors were found" in qemu_img("check", "-f", qemu(name), str(path))
    other = path.with_name("expected")
    other.write_bytes(expected + bytes(size - len(expected)))
    qemu_img("compare", "-f", qemu(name), "-F", "raw", str(path), str(other))
    other.unlink()
    if not name.startswith("vdi"):
        import pyvhdi

        image = pyvhdi.open(str(path))
        assert image.get_media_size() == size
        assert image.read_buffer_at_offset(size, 0)[: len(expected)] == expected
        image.close()


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def fill(name, path, content):
    source = MemorySource(content)
    writer = FORMATS[name].create(str(path), len(content))
    report = run_copy(source, plan_copy(source), writer)
    writer.finish()
    return report


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [512, MIB, 2 * MIB + 512, 5 * MIB + 70144 + 77])
@pytest.mark.parametrize("full", [False, True])
def test_empty_and_full_disks_of_odd_sizes(name, size, full, tmp_path, needs):
    """A size that is no multiple of a sector is rounded up by zeroes, which verify takes."""
    needs("qemu-img", "qemu-nbd")
    content = noise(size) if full else bytes(size)
    path = tmp_path / "disk"
    report = fill(name, path, content)
    witness(name, path, content)
    assert [n for n in FORMATS if FORMATS[n].probe(MemorySource(path.read_bytes()))] == [name, "raw"]
    if full:
        with closing(FORMATS[name].read(str(path))) as image:
            verify_copy(image, report)
    else:
        assert path.stat().st_blocks * 512 <= 128 << 10
    if "vhdx" in name:
        assert path.stat().st_size % MIB == 0


steps = st.lists(st.tuples(
    st.sampled_from(["write", "zero"]), st.integers(0, 20), st.sampled_from([0, 1, 512, 65535, MIB - 1]),
    st.sampled_from([1, 512, 4096, 65537, MIB, 3 * MIB + 5])), max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ALL), st.integers(1, 20000), steps, st.integers(0, 20))
def test_any_writes_in_any_order_give_the_same_bytes(tmp_path, needs, name, sectors, work, pause):
    """Also across a checkpoint and a reopening somewhere on the way."""
    needs("qemu-img")
    size = sectors * 512
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content, path = bytearray(size), folder / "disk"
    writer = FORMATS[name].create(str(path), size)
    for number, (what, half, inner, length) in enumerate(work):
        at = (half * (MIB // 2) + inner) % size
        length = min(length, size - at)
        if number == pause:
            writer = FORMATS[name].reopen(str(path), writer.checkpoint())
        if what == "write":
            content[at : at + length] = noise(length, number)
            writer.write_at(at, memoryview(content)[at : at + length])
        else:
            content[at : at + length] = bytes(length)
            writer.zero(at, length)
    writer.finish()
    witness(name, path, bytes(content))


@pytest.mark.parametrize("name", ALL)
def test_a_large_sparse_disk_is_small_quick_and_right(name, tmp_path, needs):
    """2040 GiB, or 4 TiB, with a MiB at eight places: no memory for what is not there."""
    needs("qemu-nbd")
    size = min(4 << 40, FORMATS[name].LIMIT)
    disk = tmp_path / "disk.raw"
    places = [0, *(n * (size // 7) // MIB * MIB for n in range(1, 7)), size - MIB]
    with open(disk, "wb") as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), noise(MIB, place), place)
    path = tmp_path / "image"
    tracemalloc.start()
    try:
        with closing(open_disk(str(disk))) as source:
            writer = FORMATS[name].create(str(path), size)
            before = resident()
            report = run_copy(source, plan_copy(source), writer)
            writer = FORMATS[name].reopen(str(path), writer.checkpoint())
            writer.finish()
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
        assert resident() - before < 16 * MIB  # the tables, which are not Python's
    finally:
        tracemalloc.stop()
    table = 4 * size // (1 if name.startswith("vdi") else 2) // MIB  # VHD's and VDI's are never sparse
    assert path.stat().st_blocks * 512 < 8 * MIB + table + MIB
    with closing(FORMATS[name].read(str(path))) as image:
        assert image.size == size
        for place in (*places, MIB, size // 2, size - 2 * MIB):
            want = noise(MIB, place) if place in places else bytes(MIB)
            assert read(image, place, MIB) == want
        if name not in ("vhdx", "vhdx-fixed", "vdi-fixed"):  # qemu tells no extents of them, or 4 million
            verify_copy(image, report)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("name", ALL)
def test_the_largest_disk_is_taken_and_no_larger_one(name, tmp_path):
    form = FORMATS[name]
    with pytest.raises(Unsupported, match=r"holds no disk"):
        form.create(str(tmp_path / "disk"), form.LIMIT + 1)
    assert not list(tmp_path.iterdir())
    if name in TABLES[:2]:  # VDI's map of a largest disk has 2 GiB; no ext4 holds a fixed image of 64 TiB
        writer = form.create(str(tmp_path / "disk"), form.LIMIT)
        writer.write_at(form.LIMIT - MIB, memoryview(noise(MIB)))
        writer.zero(0, form.LIMIT - MIB)
        writer.finish()
        import pyvhdi

        image = pyvhdi.open(str(tmp_path / "disk"))
        assert image.get_media_size() == form.LIMIT
        assert image.read_buffer_at_offset(MIB, form.LIMIT - MIB) == noise(MIB)
        assert image.read_buffer_at_offset(MIB, form.LIMIT - 3 * MIB) == bytes(MIB)
        image.close()


@pytest.mark.parametrize("name", TABLES)
def test_neighbouring_blocks_are_written_at_once(name, tmp_path, monkeypatch):
    """A chunk is one write; with the sector bitmaps of VHD between them, one for each block."""
    sizes = []
    real = os.pwrite
    path = tmp_path / "disk"
    writer = FORMATS[name].create(str(path), 64 * MIB)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: sizes.append(len(data)) or real(fd, data, at))
    writer.write_at(8 * MIB, memoryview(noise(6 * MIB)))
    assert sorted(sizes) == ([4096] * 3 + [2 * MIB] * 3 if name == "vhd" else [6 * MIB])
    writer.abort()


# --- when things go wrong


@pytest.mark.parametrize("name", ALL)
def test_disk_full_says_so_and_leaves_nothing(name, tmp_path):
    """RLIMIT_FSIZE stands for a full disk. A fixed image says it at once, having its full size at once."""
    source = MemorySource(noise(8 * MIB))
    path = tmp_path / "disk"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, hard))
    try:
        with pytest.raises(WriteError, match="File too large") as caught:
            writer = FORMATS[name].create(str(path), source.size)
            assert name in TABLES
            try:
                run_copy(source, plan_copy(source), writer)
            finally:
                writer.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(word in str(caught.value) for word in ("where:", "why:", "next:"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_an_image_goes_on_when_the_full_file_system_has_space_again(name, tmp_path, needs):
    needs("qemu-img")
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        content = noise(8 * MIB)
        path = place / "disk"
        writer = FORMATS[name].create(str(path), len(content))
        writer.write_at(0, memoryview(content)[: 2 * MIB])
        with pytest.raises(WriteError, match="No space left"):
            for at in range(2 * MIB, 8 * MIB, MIB):
                writer.write_at(at, memoryview(content)[at : at + MIB])
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        writer = FORMATS[name].reopen(str(path), writer.checkpoint())
        writer.write_at(2 * MIB, memoryview(content)[2 * MIB :])
        writer.finish()
        witness(name, path, content)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", ALL)
def test_a_cancelled_copy_leaves_nothing_after_abort(name, tmp_path):
    source = MemorySource(noise(4 * MIB))
    cancel = threading.Event()
    cancel.set()
    writer = FORMATS[name].create(str(tmp_path / "disk"), source.size)
    with pytest.raises(Cancelled):
        run_copy(source, plan_copy(source), writer, cancel=cancel)
    writer.abort()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_an_output_that_appears_meanwhile_is_not_replaced(name, tmp_path):
    path = tmp_path / "disk"
    writer = FORMATS[name].create(str(path), MIB)
    path.write_bytes(b"precious")
    with pytest.raises(PlanError, match="exists"):
        writer.finish()
    writer.abort()
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from p2v.formats import FORMATS
for name in sys.argv[2:]:
    path = os.path.join(sys.argv[1], name)
    writer = FORMATS[name].create(path, 6 << 20)
    for mib in range(3):
        writer.write_at(mib << 20, memoryview(bytes([mib + 1]) * (1 << 20)))
    with open(path + ".state", "wb") as file:
        file.write(writer.checkpoint())
    for mib in (5, 3):
        writer.write_at(mib << 20, memoryview(b"lost" * (1 << 18)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_after_a_checkpoint(tmp_path, needs):
    needs("qemu-img", "qemu-nbd")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *ALL], check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(raw.__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
    for name in ALL:
        path = tmp_path / name
        assert not path.exists()
        state = Path(f"{path}.state").read_bytes()
        assert len(state) < 200
        writer = FORMATS[name].reopen(str(path), state)
        writer.zero(3 * MIB, MIB)
        writer.write_at(4 * MIB, memoryview(b"\x05" * MIB))
        writer.finish()
        content = b"".join(bytes([n]) * MIB for n in (1, 2, 3, 0, 5, 0))
        check_image(FORMATS[name], path, content)
        witness(name, path, content)


@pytest.mark.parametrize("name", ALL)
def test_cut_off_in_the_last_moment_a_checkpoint_is_still_good(name, tmp_path, monkeypatch, needs):
    """Tables, headers and footer are there already, the name is not: later blocks go, earlier ones stay."""
    needs("qemu-img")
    path = tmp_path / "disk"
    content = noise(9 * MIB)
    writer = FORMATS[name].create(str(path), len(content))
    writer.write_at(4 * MIB, memoryview(content)[4 * MIB : 7 * MIB])
    state = writer.checkpoint()
    writer.write_at(0, memoryview(b"x" * (2 * MIB)))
    with monkeypatch.context() as patch:
        patch.setattr(PartFile, "publish", lambda part: None)
        writer.finish()
    for _ in range(2):
        writer = FORMATS[name].reopen(str(path), state)
        writer.write_at(0, memoryview(content)[: 4 * MIB])
        state = writer.checkpoint()
    writer.write_at(7 * MIB, memoryview(content)[7 * MIB :])
    writer.finish()
    witness(name, path, content)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kept", ["old", "new", "torn"])
def test_after_a_power_cut_a_table_may_be_old_new_or_torn(name, kept, tmp_path, monkeypatch, needs):
    """Three checkpoints, the state of the first: what it does not know must not come back later."""
    needs("qemu-img")
    monkeypatch.setattr(blocks, "PAGE", 2048)  # 2 pages of VHD and VHDX, 4 of VDI, and VHDX's longest row
    size = 5 << 30
    path = tmp_path / "disk"
    part = Path(f"{path}.part")
    content = {at * MIB: noise(MIB, at) for at in (0, 3, 4500)}
    writer = FORMATS[name].create(str(path), size)
    for at, data in content.items():
        writer.write_at(at, memoryview(data))
    state = writer.checkpoint()
    old = os.open(part, os.O_RDONLY)
    table = os.pread(old, 64 << 10, shape(name).table)
    os.close(old)
    for later in (9, 2500, 4502, 4504):
        writer.write_at(later * MIB, memoryview(b"x" * MIB))
        writer.checkpoint()  # newer tables reach the file, the newer state does not reach the run
    with open(part, "r+b") as file:
        new = os.pread(file.fileno(), len(table), shape(name).table)
        mixed = {"old": table, "new": new, "torn": b"".join(
            (table if at // 512 % 2 else new)[at : at + 512] for at in range(0, len(table), 512))}[kept]
        os.pwrite(file.fileno(), mixed, shape(name).table)
    for at in (4090, 4600):
        writer = FORMATS[name].reopen(str(path), state)
        content[at * MIB] = noise(MIB, at)
        writer.write_at(at * MIB, memoryview(content[at * MIB]))
        state = writer.checkpoint()
    writer = FORMATS[name].reopen(str(path), state)
    writer.finish()
    same_places(name, path, content, (9, 2500, 4502, 4504, 4089))


def shape(name):
    from p2v.formats import vdi, vhd, vhdx

    return {"vhd": lambda: vhd._shape(5 << 30), "vhdx": lambda: vhdx.table("vhdx", 5 << 30, vhdx.BLOCK),
            "vdi": lambda: vdi.shape("vdi", 5 << 30)}[name]()


def same_places(name, path, content, empty):
    if name != "vhd":
        assert "No errors were found" in qemu_img("check", "-f", qemu(name), str(path))
    with closing(FORMATS[name].read(str(path))) as image:
        for at, data in content.items():
            assert read(image, at, len(data)) == data
        for at in empty:
            assert read(image, at * MIB, MIB) == bytes(MIB)


@pytest.mark.parametrize("name", ALL)
def test_reopening_something_else_is_refused(name, tmp_path):
    form, path = FORMATS[name], tmp_path / "disk"
    writer = form.create(str(path), 4 * MIB)
    writer.write_at(0, memoryview(noise(2 * MIB)))
    state = writer.checkpoint()
    far = state[:-8] + (1 << 40).to_bytes(8, "big")
    large = state[:16] + (form.LIMIT + 1).to_bytes(8, "big") + state[24:]
    for cut in (b"", state[:-1], b"x" + state[1:], state + bytes(8), far, large):
        with pytest.raises(LayoutError, match="no checkpoint"):
            form.reopen(str(path), cut)
    other = next(n for n in ALL if n != name)
    with pytest.raises(LayoutError, match="no checkpoint"):
        FORMATS[other].reopen(str(path), state)
    part = Path(f"{path}.part")
    os.truncate(part, 1024)
    with pytest.raises(LayoutError, match="shorter"):
        form.reopen(str(path), state)
    part.unlink()
    with pytest.raises(WriteError, match="No such file"):
        form.reopen(str(path), state)


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_refused(name, tmp_path):
    form, path = FORMATS[name], tmp_path / "disk"
    writer = form.create(str(path), 5 << 30)
    writer.write_at(0, memoryview(noise(5 * MIB)))
    state = writer.checkpoint()
    where = shape(name).table
    for spoilt in (bytes(64), b"\xff" * 64, b"\x55" * 64):
        with open(f"{path}.part", "r+b") as file:
            good = os.pread(file.fileno(), 64, where)
            os.pwrite(file.fileno(), spoilt, where)
            with pytest.raises(LayoutError, match="damaged block table"):
                form.reopen(str(path), state)
            os.pwrite(file.fileno(), good, where)
    form.reopen(str(path), state).abort()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_images_are_probed_without_harm(name, made, data):
    """Any byte of the headers changed, or the file cut short: an answer."""
    spoilt = bytearray(made[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from([0, 64 << 10, 192 << 10, 256 << 10, 2 * MIB, 2 * MIB + (64 << 10), -512]))
        spoilt[(place + data.draw(st.integers(0, 511))) % len(spoilt)] = data.draw(st.integers(0, 255))
    whole = MemorySource(bytes(spoilt[: data.draw(st.sampled_from([len(spoilt), 600, 100, 0, 200_000, 2_100_000]))]))
    for form in FORMATS.values():
        assert form.probe(whole) in (True, False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name in ALL:
        fill(name, folder / name, noise(MIB))
    return {name: (folder / name).read_bytes() for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_images_cut_short_are_refused_when_read(name, made, tmp_path, needs):
    needs("qemu-nbd")
    path = tmp_path / "disk"
    for length in (512, 1024):
        path.write_bytes(made[name][:length])
        with pytest.raises(P2VError), closing(FORMATS[name].read(str(path))) as image:
            read(image, 0, image.size)
    with pytest.raises(PlanError):
        FORMATS[name].read(str(tmp_path / "none"))
