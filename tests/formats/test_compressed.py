"""Compressed qcow2 and what packs it: clean to qemu, identical, in order, bounded, and no thread left behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2v.copy import plan_copy, run_copy, verify_copy
from p2v.errors import PlanError, Unsupported, WriteError
from p2v.formats import packing, qcow2, qcow2_deflate, qcow2_packed, qcow2_zstd
from p2v.formats.packing import UNIT, Packer
from p2v.model import Extent, Kind
from p2v.source.device import open_disk
from p2v.testing import MemorySource, check_image

MIB = 1 << 20
FORMS = [qcow2_deflate, qcow2_zstd]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.NAME)


def qemu_img(*words):
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def text(size, seed=1):
    """What shrinks to about a half."""
    return noise(size, seed).translate(bytes(b & 0x0F for b in range(256)))


def mixed(units, seed=1):
    """A disk of clusters that shrink, do not shrink, or are zero, in any order."""
    chance = random.Random(seed)
    kinds = (text, noise, lambda size, _: bytes(size))
    return b"".join(chance.choice(kinds)(UNIT, number) for number in range(units))


def image(form, path, content):
    source = MemorySource(content)
    writer = form.create(str(path), source.size)
    report = run_copy(source, plan_copy(source), writer)
    writer.finish()
    return report


def witness(path, expected):
    """qemu-img finds no error, no leak and the same bytes; returns what it says of the image."""
    assert "No errors were found" in qemu_img("check", "-f", "qcow2", path)
    other = path.with_name("expected")
    other.write_bytes(expected)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", path, other)
    other.unlink()
    return json.loads(qemu_img("info", "--output=json", "-f", "qcow2", path))


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@forms
@pytest.mark.parametrize("size", [512, UNIT - 512, UNIT, 2 * MIB + 512, 5 * MIB + 70144])
@pytest.mark.parametrize("fill", [bytes, noise, text], ids=["empty", "incompressible", "text"])
def test_odd_sizes(form, size, fill, tmp_path, needs):
    needs("qemu-img")
    path = tmp_path / "disk"
    image(form, path, fill(size))
    told = witness(path, fill(size))
    assert told["virtual-size"] == size
    assert told["format-specific"]["data"]["compression-type"] == {"qcow2-deflate": "zlib"}.get(form.NAME, "zstd")
    tables = 6 * UNIT  # header, L1, L2, refcounts
    assert path.stat().st_size <= {bytes: 0, noise: size + UNIT, text: size * 0.7 + UNIT}[fill] + tables


@forms
def test_clusters_that_shrink_and_that_do_not(form, tmp_path, needs):
    needs("qemu-img", "qemu-nbd")
    content = mixed(700)
    path = tmp_path / "disk"
    image(form, path, content)
    witness(path, content)
    check_image(form, path, content)


def test_deflate_needs_no_window_beyond_4_kib(tmp_path):
    """Readers inflate with 12 bits of window; qemu-img itself would not notice more."""
    content = (noise(20_000) * 8)[: 2 * UNIT]  # repeats lie 20,000 bytes apart, out of such a window's reach
    path = tmp_path / "disk"
    content += text(30 * UNIT)
    image(qcow2_deflate, path, content)
    data = path.read_bytes()
    found = 0
    for cluster, entry in l2_entries(data):
        if entry >> 62 != 1:
            continue
        place, more = entry & (1 << qcow2_packed.SECTORS) - 1, (entry & ~(3 << 62)) >> qcow2_packed.SECTORS
        end = (place // 512 + 1 + more) * 512
        inflater = zlib.decompressobj(-12)
        got = b"".join(inflater.decompress(data[at : at + 100]) for at in range(place, end, 100))
        assert got == content[cluster * UNIT : (cluster + 1) * UNIT]
        found += 1
    assert found == 30


def l2_entries(data):
    """(cluster, entry) of a small image's one L2 table, by the specification."""
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ~(1 << 63)
    for number in range(qcow2.ENTRIES):
        entry = int.from_bytes(data[l2 + number * 8 : l2 + number * 8 + 8], "big")
        if entry:
            yield number, entry


def test_a_zstd_frame_says_its_size(tmp_path):
    import zstandard

    path = tmp_path / "disk"
    image(qcow2_zstd, path, text(3 * UNIT))
    data = path.read_bytes()
    for _, entry in l2_entries(data):
        place = entry & (1 << qcow2_packed.SECTORS) - 1
        assert zstandard.get_frame_parameters(data[place : place + 32]).content_size == UNIT


@forms
def test_qemu_writes_into_a_packed_image(form, tmp_path, needs):
    """EDITABLE: what is packed stays, what is written anew gets a place of its own."""
    needs("qemu-io", "qemu-img")
    content = bytearray(text(40 * UNIT))
    path = tmp_path / "disk"
    image(form, path, bytes(content))
    done = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 100000 200000", str(path)],
                          capture_output=True, check=False)
    assert done.returncode == 0, done
    content[100_000:300_000] = b"\7" * 200_000
    witness(path, bytes(content))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMS), st.lists(st.tuples(
    st.sampled_from(["text", "noise", "zero", "skip"]), st.sampled_from([1, 512, 65536, 65537, 200_000, MIB])),
    min_size=1, max_size=25), st.integers(0, 600))
def test_any_ascending_writes(tmp_path, needs, form, work, tail):
    needs("qemu-img")
    size = -(-(sum(length for _, length in work) + tail) // 512) * 512
    content, at = bytearray(size), 0
    path = tmp_path / "disk"
    path.unlink(missing_ok=True)
    writer = form.create(str(path), size)
    for number, (what, length) in enumerate(work):
        if what in ("text", "noise"):
            content[at : at + length] = {"text": text, "noise": noise}[what](length, number)
            writer.write_at(at, memoryview(content)[at : at + length])
        elif what == "zero":
            writer.zero(at, length)
        at += length
    writer.finish()
    witness(path, bytes(content))


@forms
def test_four_tebibytes_with_a_little_data(form, tmp_path, needs):
    needs("qemu-img", "qemu-nbd")
    size = 4 << 40
    disk, path = tmp_path / "disk.raw", tmp_path / "image"
    with open(disk, "wb") as file:
        file.truncate(size)
        for place in (0, size // 3 // MIB * MIB, size - MIB):
            os.pwrite(file.fileno(), text(MIB, place), place)
    source = open_disk(str(disk))
    tracemalloc.start()
    try:
        writer = form.create(str(path), size)
        report = run_copy(source, plan_copy(source), writer)
        writer.finish()
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    source.close()
    assert path.stat().st_blocks * 512 < 4 * MIB
    assert "No errors" in qemu_img("check", "-f", "qcow2", path)
    packed = form.read(str(path))
    verify_copy(packed, report)
    packed.close()


def test_the_counts_of_a_file_of_many_refcount_blocks(tmp_path, needs):
    """More than 32768 clusters of the file: a block of counts holds no more."""
    needs("qemu-img")
    path = tmp_path / "disk"
    size = 40_000 * UNIT
    writer = qcow2_packed.begin(str(path), size, "test", 0, lambda data: bytes(UNIT))  # nothing shrinks
    data = memoryview(b"\1" * MIB)
    for at in range(0, size - MIB, MIB):
        if at % (16 * MIB) == 0:
            writer.write_at(at, data)
    writer._packer.drain()
    writer._room(33_000 * UNIT)  # as if as much had been packed there, and then nobody used it
    writer.finish()
    assert "No errors" in qemu_img("check", "-f", "qcow2", path)


# --- one direction only


@forms
def test_going_back_is_refused_and_says_what_to_use(form, tmp_path):
    writer = form.create(str(tmp_path / "disk"), 4 * MIB)
    writer.write_at(MIB, memoryview(noise(MIB)))
    for call in (lambda: writer.write_at(MIB, memoryview(b"x")), lambda: writer.zero(0, 1)):
        with pytest.raises(PlanError, match="first byte") as caught:
            call()
        assert "use qcow2" in caught.value.next
    for call in (writer.checkpoint, lambda: form.reopen(str(tmp_path / "disk"), b"")):
        with pytest.raises(Unsupported, match="interrupted") as said:
            call()
        assert "qcow2" in said.value.next
    writer.abort()
    assert form.SEQUENTIAL and not list(tmp_path.iterdir())


@forms
def test_a_disk_beyond_the_limit_is_refused_before_a_file_exists(form, tmp_path):
    with pytest.raises(Unsupported):
        form.create(str(tmp_path / "disk"), form.LIMIT + 512)
    assert not list(tmp_path.iterdir())


@forms
def test_the_probe_tells_zstd_from_deflate(form, tmp_path):
    path = tmp_path / "disk"
    form.create(str(path), MIB).finish()
    head = MemorySource(path.read_bytes())
    assert [other for other in FORMS if other.probe(head)] == [form]
    for short in (b"", b"QFI\xfb\0\0\0\3", bytes(4096)):
        assert not form.probe(MemorySource(short))


# --- the packer itself


def slow_first(units):
    """The earlier a batch, the longer it takes: without care they come out in reverse."""
    time.sleep(0.02 if units[0][0] % 64 == 0 else 0)
    return [(number, bytes(data)) for number, data in units]


def test_what_is_packed_comes_out_in_order_and_padded():
    out = []
    packer = Packer("x", 40 * MIB + 5, "this", "that", slow_first, out.extend)
    content = noise(40 * MIB + 5)
    for at in range(0, len(content), 3 * MIB + 11):
        packer.write(at, memoryview(content)[at : at + 3 * MIB + 11])
    packer.drain()
    assert [number for number, _ in out] == list(range(641))
    assert b"".join(data for _, data in out) == content + bytes(UNIT - 5)


def test_memory_is_bounded_when_packing_is_slow():
    """The writer waits: no more batches are under way than the packer says."""
    under_way, most = 0, 0
    lock, gate = threading.Lock(), threading.Semaphore(0)

    def pack(units):
        gate.acquire()
        return len(units)

    def emit(count):
        nonlocal under_way
        with lock:
            under_way -= count

    packer = Packer("x", 1 << 30, "this", "that", pack, emit)
    limit = packer._most + 2

    def write():
        nonlocal under_way, most
        data = memoryview(bytes(MIB))
        for at in range(0, 64 * MIB, MIB):
            with lock:
                under_way += 16
                most = max(most, under_way)
            packer.write(at, data)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    assert writer.is_alive() and most <= limit * 16
    for _ in range(64):
        gate.release()
    writer.join()
    packer.drain()
    assert under_way == 0 and most <= limit * 16


def test_no_batch_reaches_across_groups():
    batches = []
    packer = Packer("x", 1 << 40, "this", "that", list, lambda units: batches.append([n for n, _ in units]))
    for number in (510, 511, 512, 513, 1500):
        packer.write(number * UNIT, memoryview(b"x" * UNIT))
    packer.drain()
    assert batches == [[510, 511], [512, 513], [1500]]
    assert packing.GROUP == 512


def test_an_error_while_packing_reaches_whoever_writes():
    def pack(units):
        raise MemoryError("no more")

    packer = Packer("x", 1 << 30, "this", "that", pack, print)
    with pytest.raises(MemoryError):
        for at in range(0, 64 * MIB, MIB):
            packer.write(at, memoryview(bytes(MIB)))
    packer.cancel()
    packer.cancel()


@forms
def test_a_full_disk_leaves_nothing(form, tmp_path, monkeypatch):
    real = os.pwrite

    def pwrite(fd, data, at):
        if at > MIB:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    source = MemorySource(noise(16 * MIB))
    writer = form.create(str(tmp_path / "disk"), source.size)
    with pytest.raises(WriteError, match="No space"):
        run_copy(source, [Extent(0, source.size, Kind.DATA)], writer)
        writer.finish()
    writer.abort()
    assert not list(tmp_path.iterdir())
