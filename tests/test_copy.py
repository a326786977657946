"""The streaming core: plans, one pass, what it says about bad places, and the check afterwards."""

from __future__ import annotations

import errno
import random
import threading
import time
import tracemalloc
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.copy import COUNTED, CopyReport, plan_copy, run_copy, verify_copy
from p2v.digests import Digests
from p2v.errors import Cancelled, LayoutError, MismatchError, ReadError, Unsupported, WriteError
from p2v.model import Extent, Kind, Range
from p2v.source.device import DeviceGone
from p2v.testing import FaultySource, MemorySource

MIB = 1 << 20
DATA, ZERO, FREE, BAD = Kind.DATA, Kind.ZERO, Kind.FREE, Kind.BAD


class MemoryWriter:
    """An image in memory that insists on ascending, touching writes; fails at a byte when told to."""

    def __init__(self, size, fail_at=None, error=None):
        self.content = bytearray(b"\xee") * size
        self.at = 0
        self.calls = []
        self.fail_at, self.error = fail_at, error
        self.threads = set()

    def write_at(self, offset, data):
        self._next(offset, len(data), "write")
        self.content[offset : offset + len(data)] = data

    def zero(self, offset, length):
        self._next(offset, length, "zero")
        self.content[offset : offset + length] = bytes(length)

    def _next(self, offset, length, what):
        assert offset == self.at and length > 0
        self.at += length
        self.calls.append((what, offset, length))
        if self.fail_at is not None and self.at > self.fail_at:
            raise self.error


class Sparse:
    """A huge source that is zero but for some pages, and counts what is read of it."""

    name, sector_size = "sparse", 512

    def __init__(self, size, extents):
        self.size, self._extents, self.read = size, extents, 0

    def read_into(self, offset, buffer):
        self.read += len(buffer)
        buffer[:] = b"\x77" * len(buffer)

    def extents(self):
        return self._extents

    def close(self):
        pass


class NoWriter:
    """Takes everything, keeps nothing."""

    def write_at(self, offset, data): ...
    def zero(self, offset, length): ...


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def copied(source, extents=None):
    writer = MemoryWriter(source.size)
    report = run_copy(source, plan_copy(source) if extents is None else extents, writer)
    assert writer.at == source.size
    assert sum(report.counts.values()) == source.size == report.size
    return report, bytes(writer.content)


def digests_of(content):
    return [blake3(content[at : at + MIB]).digest() for at in range(0, len(content), MIB)]


# --- planning


def test_plan_turns_only_data_free():
    extents = [Extent(0, 300, DATA), Extent(300, 300, ZERO), Extent(600, 400, DATA)]
    free, droppable = [Range(200, 200), Range(990, 500)], [Range(700, 100), Range(750, 100)]
    assert plan_copy(MemorySource(bytes(1000), extents=extents), free, droppable) == [
        Extent(0, 200, DATA), Extent(200, 100, FREE), Extent(300, 300, ZERO), Extent(600, 100, DATA),
        Extent(700, 150, FREE), Extent(850, 140, DATA), Extent(990, 10, FREE)]


kinds = st.sampled_from(list(Kind))


@st.composite
def disks(draw, most=40):
    """Extents that run from 0 to some size."""
    extents, at = [], 0
    for length, kind in draw(st.lists(st.tuples(st.integers(1, 300), kinds), min_size=1, max_size=most)):
        extents.append(Extent(at, length, kind))
        at += length
    return extents


ranges = st.lists(st.builds(Range, st.integers(0, 6000), st.integers(1, 500)), max_size=20)


@given(disks(), ranges, ranges)
def test_plan_says_of_each_byte_what_it_must(extents, free, droppable):
    size = extents[-1].end
    expected = [kind for e in extents for kind in [e.kind] * e.length]
    for gap in (*free, *droppable):
        for at in range(gap.offset, min(gap.end, size)):
            expected[at] = FREE if expected[at] is DATA else expected[at]
    plan = plan_copy(MemorySource(bytes(size), extents=extents), free, droppable)
    assert [kind for e in plan for kind in [e.kind] * e.length] == expected
    assert all(a.end == b.offset and a.kind is not b.kind for a, b in pairwise(plan))


@pytest.mark.parametrize("extents", [
    [Extent(0, 10, DATA)], [Extent(0, 5, DATA), Extent(6, 14, DATA)], [Extent(0, 21, DATA)], []])
def test_extents_that_do_not_fit_are_a_bug(extents):
    with pytest.raises(ValueError):
        run_copy(MemorySource(bytes(20)), extents, MemoryWriter(20))


# --- one pass


@pytest.mark.parametrize("size", [512, MIB - 512, MIB, MIB + 512, 9 * MIB + 5 * 512])
def test_whole_disk(size):
    content = noise(size)
    report, image = copied(MemorySource(content))
    assert image == content
    assert list(report.digests) == digests_of(content)
    assert dict(report.counts) == {"copied": size, "found_zero": 0, "zero": 0, "free": 0, "bad": 0}
    verify_copy(MemorySource(image), report)


def test_zero_grains_are_found_and_not_written():
    content = bytearray(noise(3 * MIB))
    content[65536 : 3 * 65536] = bytes(2 * 65536)
    content[MIB : 2 * MIB] = bytes(MIB)
    content[-65536:] = bytes(65535) + b"x"  # one byte is enough, wherever it is
    writer = MemoryWriter(len(content))
    source = MemorySource(content)
    report = run_copy(source, plan_copy(source), writer)
    assert writer.content == content
    assert [call for call in writer.calls if call[0] == "zero"] == [("zero", 65536, 2 * 65536), ("zero", MIB, MIB)]
    assert report.counts["found_zero"] == 2 * 65536 + MIB


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([512, 4096, 65536, 70144, MIB, 3 * MIB]), kinds), min_size=1, max_size=12),
    st.integers(0, 3))
def test_any_extents_arrive_as_written(parts, seed):
    extents, at = [], 0
    for length, kind in parts:
        extents.append(Extent(at, length, kind))
        at += length
    content = bytearray(noise(at, seed))
    for extent in extents:
        if extent.kind is ZERO:
            content[extent.offset : extent.end] = bytes(extent.length)
    expected = bytearray(content)
    for extent in extents:
        if extent.kind in (FREE, BAD):
            expected[extent.offset : extent.end] = bytes(extent.length)
    unread = [Range(e.offset, e.length) for e in extents if e.kind is BAD]
    source = FaultySource(MemorySource(bytes(content), extents=extents), unread)
    report, image = copied(source)
    assert image == expected
    assert list(report.digests) == digests_of(expected)
    assert not source.failed  # what is known to be bad is not tried
    assert report.counts["bad"] == sum(r.length for r in unread) == sum(e.length for e in report.bad)
    verify_copy(MemorySource(image, extents=extents), report)


def test_zeroes_cost_no_read_no_memory_and_hardly_time():
    size = 1 << 50
    source = Sparse(size, [Extent(0, 3 << 40, ZERO), Extent(3 << 40, 2 * MIB, DATA),
                           Extent((3 << 40) + 2 * MIB, size - (3 << 40) - 2 * MIB, FREE)])
    import numpy  # noqa: F401  # its import is no cost of the copy

    tracemalloc.start()
    try:
        report = run_copy(source, plan_copy(source), NoWriter())
        assert len(report.to_json()["digests"]) == 3
        verify_copy(Sparse(size, source.extents()), report)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()
    assert source.read == 2 * MIB
    assert report.digests.digest(0) == blake3(bytes(MIB)).digest() != report.digests.digest(3 << 20)
    assert CopyReport.from_json(report.to_json()).digests == report.digests


def test_progress_counts_everything_and_comes_from_the_caller():
    source = MemorySource(noise(5 * MIB), extents=[Extent(0, MIB, FREE), Extent(MIB, 4 * MIB, DATA)])
    seen = []

    def progress(*now):
        seen.append((threading.current_thread(), now))

    run_copy(source, plan_copy(source), NoWriter(), progress=progress)
    assert {thread for thread, _ in seen} == {threading.current_thread()}
    amounts = [now for _, now in seen]
    assert amounts[0] == ("copy", 0, 5 * MIB) and amounts[-1] == ("copy", 5 * MIB, 5 * MIB)
    assert amounts == sorted(amounts)


# --- stopping


class Slow(MemorySource):
    """Takes a tenth of a second per read."""

    def read_into(self, offset, buffer):
        time.sleep(0.1)
        super().read_into(offset, buffer)


def test_cancel():
    cancel = threading.Event()
    source = Slow(noise(40 * MIB))

    def progress(stage, done, total):
        if done:
            cancel.set()

    writer = MemoryWriter(source.size)
    with pytest.raises(Cancelled) as caught:
        run_copy(source, plan_copy(source), writer, progress=progress, cancel=cancel)
    assert 0 < writer.at < source.size and writer.at % MIB == 0
    assert "next:" in str(caught.value)


@pytest.mark.parametrize("error", [WriteError("disk full"), KeyboardInterrupt(), OSError(errno.EIO, "odd")])
def test_what_the_writer_raises_comes_out(error):
    source = MemorySource(noise(20 * MIB))
    writer = MemoryWriter(source.size, fail_at=5 * MIB, error=error)
    with pytest.raises(type(error)):
        run_copy(source, plan_copy(source), writer)
    assert writer.at == 6 * MIB  # nothing was handed on after it


def test_what_progress_raises_comes_out():
    source = Slow(noise(30 * MIB))

    def progress(stage, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_copy(source, plan_copy(source), NoWriter(), progress=progress)


# --- bad places


def test_bad_sectors_are_zeroes_and_named_and_the_rest_survives():
    content = noise(4 * MIB)
    bad = [Range(512, 512), Range(MIB - 1024, 2048), Range(3 * MIB + 4096, 70_144)]
    expected = bytearray(content)
    for spot in bad:
        expected[spot.offset : spot.end] = bytes(spot.length)
    report, image = copied(FaultySource(MemorySource(content), bad))
    assert image == expected
    assert report.bad == tuple(Extent(r.offset, r.length, BAD) for r in bad)
    assert report.counts["bad"] == sum(r.length for r in bad)
    assert list(report.digests) == digests_of(expected)
    verify_copy(MemorySource(image), report)


class Vague(MemorySource):
    """Fails whole reads without saying where, and counts the tries."""

    def __init__(self, data, bad, **more):
        super().__init__(data, **more)
        self.bad, self.tries = bad, 0

    def read_into(self, offset, buffer):
        if any(r.offset < offset + len(buffer) and offset < r.end for r in self.bad):
            self.tries += 1
            raise ReadError("something cannot be read")
        super().read_into(offset, buffer)


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_source_that_does_not_say_where_is_halved_down_to_a_sector(sector):
    content = noise(2 * MIB)
    bad = [Range(sector * 7, sector), Range(MIB + 5 * sector, sector)]
    source = Vague(content, bad, sector_size=sector)
    report, image = copied(source)
    assert [Range(e.offset, e.length) for e in report.bad] == bad
    assert image[: bad[0].offset] == content[: bad[0].offset] and image[bad[1].end :] == content[bad[1].end :]
    assert source.tries < 30


def test_bad_places_in_gaps_that_nobody_needs_are_no_loss():
    content = noise(MIB)
    extents = [Extent(0, 4096, DATA), Extent(4096, 4096, FREE), Extent(8192, MIB - 8192, DATA)]
    report, image = copied(FaultySource(MemorySource(content, extents=extents), [Range(5000, 512)]))
    assert report.bad == () and report.counts["bad"] == 0
    assert image == content[:4096] + bytes(4096) + content[8192:]


def test_a_disk_that_vanishes_stops_the_copy():
    content = noise(64 * MIB)

    class Vanishing(MemorySource):
        tries = 0

        def read_into(self, offset, buffer):
            if self.tries or offset >= 8 * MIB:
                self.tries += 1
                raise ReadError("no answer")
            super().read_into(offset, buffer)

    source = Vanishing(content)
    writer = MemoryWriter(source.size)
    with pytest.raises(ReadError, match="seems gone"):
        run_copy(source, plan_copy(source), writer)
    assert writer.at < 32 * MIB


def test_a_long_bad_place_is_no_vanished_disk():
    content = noise(30 * MIB)
    report, image = copied(FaultySource(MemorySource(content), [Range(2 * MIB, 20 * MIB)]))
    assert report.bad == (Extent(2 * MIB, 20 * MIB, BAD),)
    assert image == content[: 2 * MIB] + bytes(20 * MIB) + content[22 * MIB :]


def test_the_kernel_says_gone():
    class Gone(MemorySource):
        tries = 0

        def read_into(self, offset, buffer):
            self.tries += 1
            raise DeviceGone("the disk is gone")

    source = Gone(noise(8 * MIB))
    with pytest.raises(DeviceGone):
        run_copy(source, plan_copy(source), NoWriter())
    assert source.tries < 10


# --- the check


def test_verify_names_the_first_difference_and_counts():
    content = bytearray(noise(6 * MIB))
    report, _ = copied(MemorySource(bytes(content)))
    content[MIB + 5] ^= 1
    content[2 * MIB] ^= 1
    content[4 * MIB] ^= 1
    with pytest.raises(MismatchError, match="not what was copied") as caught:
        verify_copy(MemorySource(content, "img"), report)
    assert "img, bytes 0x100000 to 0x300000" in str(caught.value) and "3 chunks" in str(caught.value)


def test_verify_does_not_take_zeroes_for_data_nor_data_for_zeroes():
    content = noise(MIB) + bytes(MIB)
    report, _ = copied(MemorySource(content))
    hole = [Extent(0, 2 * MIB, ZERO)]
    with pytest.raises(MismatchError, match="not what") as caught:
        verify_copy(MemorySource(bytes(2 * MIB), extents=hole), report)
    assert "bytes 0x0 to 0x100000" in str(caught.value)
    with pytest.raises(MismatchError, match="not what"):
        verify_copy(MemorySource(noise(MIB) + bytes(MIB - 1) + b"x"), report)


@pytest.mark.parametrize("more", [512, MIB - 512, 3 * MIB])
def test_verify_takes_larger_images_of_zeroes_only(more):
    content = noise(MIB + 512)
    report, _ = copied(MemorySource(content))
    size = len(content) + more
    verify_copy(MemorySource(content + bytes(more)), report)
    verify_copy(MemorySource(content + bytes(more), extents=[
        Extent(0, len(content), DATA), Extent(len(content), more, ZERO)]), report)
    with pytest.raises(MismatchError):
        verify_copy(MemorySource(content + bytes(more - 1) + b"x"), report)
    with pytest.raises(MismatchError, match="shorter"):
        verify_copy(MemorySource(content[:-512]), report)
    assert size > report.size


def test_verify_can_be_cancelled():
    content = noise(30 * MIB)
    report, _ = copied(MemorySource(content))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        verify_copy(MemorySource(content), report, cancel=cancel)


# --- the record


def test_report_survives_json():
    extents = [Extent(0, 3 * MIB, DATA), Extent(3 * MIB, 1997 * MIB, ZERO), Extent(2000 * MIB, 512, BAD)]
    report = run_copy(Sparse(2000 * MIB + 512, extents), extents, NoWriter())
    again = CopyReport.from_json(report.to_json())
    assert again.digests == report.digests and again.counts == report.counts and again.bad == report.bad
    assert tuple(again.counts) == COUNTED
    assert again.digests.digest(2000) == blake3(bytes(512)).digest()


@given(st.sets(st.integers(0, 2999)), st.integers(1, MIB))
@settings(deadline=None, max_examples=30)
def test_digests_survive_json(put, tail):
    digests = Digests(2999 * MIB + tail)
    for index in put:
        digests.put(index, blake3(str(index).encode()).digest())
    again = Digests.from_json(digests.size, digests.to_json())
    assert again == digests and list(again) == list(digests)
    assert list(again.not_zero(0, 3000)) == sorted(put)
    assert list(again.not_zero(1000, 1024)) == sorted(i for i in put if 1000 <= i < 2024)


@pytest.mark.parametrize("damage", [
    {"digests": []}, {"digests": [3]}, {"digests": ["zz"]}, {"digests": ["00" * 31, 1]}, {"digests": [-1, 3]},
    {"digests": ["00" * 96]}, {"digests": [True, 1]}, {"digests": 5}, {"digests": [10**30]}, {"size": 0},
    {"size": "x"}, {"bad": [[0]]}, {"bad": [[5, -5]]}, {"counts": {}}, {"seconds": None}])
def test_a_damaged_record_is_a_layout_error(damage):
    report, _ = copied(MemorySource(noise(2 * MIB)))
    with pytest.raises(LayoutError):
        CopyReport.from_json({**report.to_json(), **damage})
    with pytest.raises(Unsupported):
        CopyReport.from_json({**report.to_json(), "algorithm": "md5"})


def test_the_first_checkpoint_comes_early(monkeypatch):
    from p2v import checkpoint

    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    keeper = checkpoint.Keeper(lambda found, chunks: None, "tie", _when=0.0)
    seen = []
    for now[0] in range(50):
        if keeper.due(0):
            keeper.keep(None, (), 0)
            seen.append(now[0])
    assert seen == [2, 22, 42]
    assert checkpoint.Keeper(lambda found, chunks: None, "tie", seconds=0.0, _when=0.0).due(0)
