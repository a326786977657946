"""The images themselves, with qemu-img as the witness: clean, identical, small, and safe when things go wrong."""

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
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v.copy import plan_copy, run_copy, verify_copy
from p2v.errors import Cancelled, LayoutError, PlanError, Unsupported, WriteError
from p2v.formats import FORMATS, qcow2, qcow2_v2, raw
from p2v.formats.part import PartFile
from p2v.model import Extent, Kind
from p2v.source.device import open_disk
from p2v.testing import MemorySource, check_image

MIB = 1 << 20
CLUSTER = qcow2.CLUSTER
QCOW2 = ["qcow2", "qcow2-v2"]
PLAIN = [*QCOW2, "raw"]  # the others have test modules of their own


def qemu(name):
    return name.split("-")[0]


def qemu_img(*words):
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def witness(name, path, expected):
    """qemu-img finds nothing wrong, nothing leaked, the same size and the same bytes."""
    told = json.loads(qemu_img("info", "--output=json", "-f", qemu(name), str(path)))
    assert (told["format"], told["virtual-size"]) == (qemu(name), len(expected))
    if name in QCOW2:
        out = qemu_img("check", "-f", "qcow2", str(path))
        assert "No errors were found" in out
    other = path.with_name("expected")
    other.write_bytes(expected)
    qemu_img("compare", "-f", qemu(name), "-F", "raw", str(path), str(other))
    other.unlink()


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("size", [512, CLUSTER - 512, CLUSTER, 2 * MIB + 512, 5 * MIB + 70144])
@pytest.mark.parametrize("full", [False, True])
def test_empty_and_full_disks_of_odd_sizes(name, size, full, tmp_path, needs):
    needs("qemu-img")
    content = noise(size) if full else bytes(size)
    source = MemorySource(content)
    path = tmp_path / "disk"
    writer = FORMATS[name].create(str(path), size)
    run_copy(source, plan_copy(source), writer)
    writer.finish()
    witness(name, path, content)
    if not full:
        assert path.stat().st_blocks * 512 <= 5 * CLUSTER


@pytest.mark.parametrize(("name", "said"), [("qcow2", "1.1"), ("qcow2-v2", "0.10")])
def test_version(name, said, tmp_path, needs):
    needs("qemu-img")
    path = tmp_path / "disk"
    FORMATS[name].create(str(path), MIB).finish()
    assert f"compat: {said}" in qemu_img("info", "-f", "qcow2", str(path))
    head = MemorySource(path.read_bytes())
    assert [n for n in PLAIN if FORMATS[n].probe(head)] == [name, "raw"]


def test_short_and_strange_files_are_no_qcow2():
    for data in (b"", b"QFI", b"QFI\xfb\0\0\0\x04" + bytes(504), bytes(512)):
        assert not qcow2.probe(MemorySource(data)) and not qcow2_v2.probe(MemorySource(data))


steps = st.lists(st.tuples(
    st.sampled_from(["write", "zero"]), st.integers(0, 40), st.sampled_from([0, 1, 511, 512, 65535]),
    st.sampled_from([1, 512, 4096, 65536, 65537, 200_000, MIB])), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLAIN), st.integers(1, 5000), steps, st.integers(0, 25))
def test_any_writes_in_any_order_give_the_same_bytes(tmp_path, needs, name, sectors, work, pause):
    """Also across a checkpoint and a reopening somewhere on the way."""
    needs("qemu-img")
    size = sectors * 512
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content, path = bytearray(size), folder / "disk"
    writer = FORMATS[name].create(str(path), size)
    for number, (what, cluster, inside, length) in enumerate(work):
        at = (cluster * CLUSTER + inside) % size
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


@pytest.mark.parametrize("name", PLAIN)
def test_a_large_sparse_disk_is_small_quick_and_right(name, tmp_path, needs):
    """1 TiB with a MiB at eight places: no memory and no file space for what is not there."""
    needs("qemu-img", "qemu-nbd")
    size = 1 << 40
    disk = tmp_path / "disk.raw"
    places = [0, *(n * (size // 7) // MIB * MIB for n in range(1, 7)), size - MIB]
    with open(disk, "wb") as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), noise(MIB, place), place)
    source = open_disk(str(disk))
    path = tmp_path / "image"
    tracemalloc.start()
    try:
        writer = FORMATS[name].create(str(path), size)
        report = run_copy(source, plan_copy(source), writer)
        writer.finish()
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    source.close()
    assert path.stat().st_blocks * 512 < 12 * MIB
    if name in QCOW2:
        assert "No errors" in qemu_img("check", "-f", "qcow2", str(path))
    image = FORMATS[name].read(str(path))
    verify_copy(image, report)
    image.close()
    qemu_img("compare", "-f", qemu(name), "-F", "raw", str(path), str(disk))


def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch, needs):
    """More L2 tables than are kept: they go to their place in the file and come back."""
    needs("qemu-img")
    monkeypatch.setattr(qcow2, "KEPT", 2)
    reach = CLUSTER * qcow2.ENTRIES
    path = tmp_path / "disk"
    writer = qcow2.create(str(path), 8 * reach)
    assert isinstance(writer, qcow2.Writer)
    want = {}
    for turn in range(3):
        for table in (0, 5, 2, 7, 1, 6):
            at = table * reach + turn * 3 * CLUSTER
            want[at] = noise(CLUSTER, at)
            writer.write_at(at, memoryview(want[at]))
    assert len(writer._kept) == 2
    writer.finish()
    assert "No errors" in qemu_img("check", "-f", "qcow2", str(path))
    image = qcow2.read(str(path))
    for at, data in want.items():
        buffer = bytearray(CLUSTER)
        image.read_into(at, memoryview(buffer))
        assert buffer == data
    image.close()


def test_a_run_is_one_piece_in_the_file(tmp_path, needs):
    needs("qemu-img")
    path = tmp_path / "disk"
    source = MemorySource(noise(20 * MIB))
    writer = qcow2.create(str(path), source.size)
    run_copy(source, plan_copy(source), writer)
    writer.finish()
    assert "0.00% fragmented" in qemu_img("check", "-f", "qcow2", str(path))


# --- when things go wrong


@pytest.mark.parametrize("name", PLAIN)
def test_disk_full_says_so_and_leaves_nothing(name, tmp_path):
    """RLIMIT_FSIZE stands for a full disk: the write fails in the middle of the copy."""
    source = MemorySource(noise(8 * MIB))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "disk"
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB if name == "raw" else 3 * MIB, hard))
    try:
        writer = FORMATS[name].create(str(path), source.size)
        if name == "raw":  # a raw file has its full size from the start
            resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, hard))
        with pytest.raises(WriteError) as caught:
            run_copy(source, plan_copy(source), writer)
        writer.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = str(caught.value)
    assert "disk.part: File too large" in said
    assert all(word in said for word in ("where:", "why:", "next:"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PLAIN)
def test_a_full_file_system(name, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        source = MemorySource(noise(8 * MIB))
        writer = FORMATS[name].create(str(place / "disk"), source.size)
        with pytest.raises(WriteError, match="No space left") as caught:
            run_copy(source, plan_copy(source), writer)
        assert "free some space" in caught.value.next
        writer.abort()
        assert not list(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", PLAIN)
def test_a_cancelled_copy_leaves_nothing_after_abort(name, tmp_path):
    source = MemorySource(noise(8 * MIB))
    cancel = threading.Event()
    cancel.set()
    writer = FORMATS[name].create(str(tmp_path / "disk"), source.size)
    with pytest.raises(Cancelled):
        run_copy(source, plan_copy(source), writer, cancel=cancel)
    writer.abort()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PLAIN)
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
writer = FORMATS[sys.argv[1]].create(sys.argv[2], 6 << 20)
for mib in range(3):
    writer.write_at(mib << 20, memoryview(bytes([mib + 1]) * (1 << 20)))
with open(sys.argv[2] + ".state", "wb") as file:
    file.write(writer.checkpoint())
for mib in (5, 3):
    writer.write_at(mib << 20, memoryview(b"lost" * (1 << 18)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", PLAIN)
def test_killed_after_a_checkpoint(name, tmp_path, needs):
    needs("qemu-img", "qemu-nbd")
    path = tmp_path / "disk"
    done = subprocess.run([sys.executable, "-c", KILLED, name, str(path)], check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(raw.__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
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


@pytest.mark.parametrize("name", QCOW2)
def test_after_a_power_cut_an_l2_table_may_be_old_new_or_torn(name, tmp_path, needs):
    needs("qemu-img")
    size = 1024 * CLUSTER
    for kept in ("old", "new", "torn"):
        path = tmp_path / kept
        writer = FORMATS[name].create(str(path), size)
        content = bytearray(size)
        content[: 9 * CLUSTER : 3] = b"a" * (3 * CLUSTER)
        writer.write_at(0, memoryview(content)[: 9 * CLUSTER])
        state = writer.checkpoint()
        part = Path(f"{path}.part")
        old = part.read_bytes()
        writer.write_at(500 * CLUSTER, memoryview(b"x" * (100 * CLUSTER)))
        writer.write_at(20 * CLUSTER, memoryview(b"x" * (10 * CLUSTER)))
        writer.checkpoint()  # newer tables reach the file, the newer state does not reach the run
        new = part.read_bytes()
        if kept == "old":
            part.write_bytes(old)
        elif kept == "torn":
            table = CLUSTER  # the first L2 table is the file's second cluster
            mixed = bytearray(new)
            for at in range(table, table + CLUSTER, 1024):
                mixed[at : at + 512] = old[at : at + 512]
            part.write_bytes(mixed)
        writer = FORMATS[name].reopen(str(path), state)
        content[25 * CLUSTER : 26 * CLUSTER] = noise(CLUSTER)
        writer.write_at(25 * CLUSTER, memoryview(content)[25 * CLUSTER : 26 * CLUSTER])
        writer.finish()
        witness(name, path, bytes(content))


def test_reopening_something_else_is_refused(tmp_path):
    path = tmp_path / "disk"
    writer = qcow2.create(str(path), 4 * MIB)
    writer.write_at(0, memoryview(noise(MIB)))
    state = writer.checkpoint()
    part = Path(f"{path}.part")
    for cut in (b"", state[:-1], b"x" + state[1:], state + bytes(16), state[:8] + b"\xff" * 8 + state[16:]):
        with pytest.raises(LayoutError, match="no checkpoint"):
            qcow2.reopen(str(path), cut)
    whole = part.read_bytes()
    part.write_bytes(whole[:CLUSTER] + b"\xff" * CLUSTER + whole[2 * CLUSTER :])
    with pytest.raises(LayoutError, match="damaged L2"):
        qcow2.reopen(str(path), state)
    part.write_bytes(whole[:CLUSTER])
    with pytest.raises(LayoutError, match="shorter"):
        qcow2.reopen(str(path), state)
    part.unlink()
    with pytest.raises(WriteError, match="No such file"):
        qcow2.reopen(str(path), state)
    with pytest.raises(LayoutError, match="no checkpoint"):
        raw.reopen(str(path), state)


@pytest.mark.parametrize("name", QCOW2)
def test_the_largest_disk(name, tmp_path, needs):
    """LIMIT itself is taken, and qemu opens it; one sector more is refused before a file exists."""
    needs("qemu-img")
    path = tmp_path / "disk"
    with pytest.raises(Unsupported):
        FORMATS[name].create(str(path), qcow2.LIMIT + 512)
    assert not list(tmp_path.iterdir())
    writer = FORMATS[name].create(str(path), qcow2.LIMIT)
    writer.write_at(qcow2.LIMIT - MIB, memoryview(noise(MIB)))
    writer.finish()
    assert "No errors" in qemu_img("check", "-f", "qcow2", str(path))


def test_a_part_file_writes_all_even_when_the_system_writes_less(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    part = PartFile(str(tmp_path / "x"))
    data = noise(10_500)
    part.write(7, memoryview(data))
    assert part.read(7, 20_000) == data
    part.discard()


def test_extents_of_an_image_spare_the_reading(tmp_path, needs):
    """What was skipped is a hole in the image, for whoever reads it next."""
    needs("qemu-nbd")
    source = MemorySource(noise(8 * MIB))
    path = tmp_path / "disk"
    writer = qcow2.create(str(path), source.size)
    run_copy(source, [Extent(0, MIB, Kind.DATA), Extent(MIB, 7 * MIB, Kind.FREE)], writer)
    writer.finish()
    image = qcow2.read(str(path))
    assert [(e.offset, e.kind) for e in image.extents()] == [(0, Kind.DATA), (MIB, Kind.ZERO)]
    image.close()
