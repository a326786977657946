"""Rescue of failing disks: GNU ddrescue's bytes in no more reads, on disks that fail in all sorts of places."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.errors import ReadError
from p2v.mapfile import Activity, Block, Mapfile, Status, from_text
from p2v.model import Range
from p2v.rescue import BLOCK, Rescue, attempt
from p2v.source.device import DeviceGone
from p2v.testing import MemorySource

MIB = 1 << 20


class Failing(MemorySource):
    """Fails single tries where it is bad, and counts them."""

    def __init__(self, data, bad, **more):
        super().__init__(data, **more)
        self.bad, self.tries, self.failed, self.probes = bad, [], 0, 0

    def attempt(self, offset, buffer, direct=True):
        self.tries.append((offset, len(buffer)))
        if any(r.offset < offset + len(buffer) and offset < r.end for r in self.bad):
            self.failed += 1
            return 0
        MemorySource.read_into(self, offset, buffer)
        return len(buffer)

    def read_into(self, offset, buffer):
        self.probes += 1
        if any(r.offset < offset + len(buffer) and offset < r.end for r in self.bad):
            raise ReadError("bad")
        super().read_into(offset, buffer)


class Answering(Failing):
    """Is there, however bad, when it is asked."""

    def read_into(self, offset, buffer):
        MemorySource.read_into(self, offset, buffer)


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def rescued(source, domain=None, chart=None, **more):
    chart = chart or Mapfile(source.size)
    image = bytearray(source.size)
    taken = []

    def take(offset, data):
        taken.append(Range(offset, len(data)))
        image[offset : offset + len(data)] = data

    rescue = Rescue(source, domain or [Range(0, source.size)], chart, take, **more)
    rescue.run()
    return chart, bytes(image), taken


def poor_disk(size, count, longest, seed):
    """A map of good and bad sectors, and its bad ranges."""
    draw = random.Random(seed)
    chart = Mapfile(size)
    chart.set(0, size, Status.FINISHED)
    for _ in range(count):
        first = draw.randrange(size // 1024)  # not at the end, where ddrescue's simulation looks no closer
        length = min(draw.choice([1, 2, 8, longest]), size // 512 - 256 - first)
        chart.set(first * 512, length * 512, Status.BAD)
    return chart, [Range(b.offset, b.length) for b in chart.blocks() if b.status is Status.BAD]


def test_ddrescues_bytes_in_no_more_reads(tmp_path, needs):
    """Against ddrescue's own simulation of a poor disk, read by read."""
    needs("ddrescue")
    size = 16 * MIB
    ours = theirs = ours_failed = theirs_failed = 0
    for seed, (count, longest) in enumerate([(1, 1), (3, 300), (10, 3000), (40, 20), (60, 2)]):
        poor, bad = poor_disk(size, count, longest, seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "poor").write_text(poor.to_text())
        with open(folder / "disk", "wb") as file:
            file.truncate(size)
        subprocess.run(["ddrescue", "-q", "-H", "poor", "--log-reads=log", "disk", "image", "map"], cwd=folder,
                       check=True)
        reads = [line.split() for line in (folder / "log").read_text().splitlines() if line and line[0] != "#"]
        source = Failing(bytes(size), bad)
        chart, _, taken = rescued(source)
        assert list(chart.blocks()) == list(poor.blocks()), "everything that is good is rescued"
        assert sum(r.length for r in taken) == from_text((folder / "map").read_text(), size).sum(Status.FINISHED)
        ours, theirs = ours + len(source.tries) + source.probes, theirs + len(reads)
        ours_failed += source.failed
        theirs_failed += sum(words[3] != "0" for words in reads)
    assert ours <= theirs
    assert ours_failed <= theirs_failed


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 399), st.integers(1, 200)), max_size=8),
       st.lists(st.tuples(st.integers(0, 399), st.integers(1, 300)), min_size=1, max_size=5),
       st.sampled_from([512, 4096]), st.integers(0, 3))
def test_all_that_is_good_and_wanted_arrives_once(bad, wanted, sector, retries):
    size = 400 * 512 // sector * sector
    content = noise(size)
    spots = [Range(at * 512, min(n * 512, size - at * 512)) for at, n in bad if at * 512 < size]
    domain = [Range(at * 512, min(n * 512, size - at * 512)) for at, n in wanted if at * 512 < size]
    if not domain:
        return
    source = Answering(content, spots, sector_size=sector)
    chart, image, taken = rescued(source, domain, retries=retries)
    asked = {at // sector for r in domain for at in range(r.offset, r.end, 512)}
    dead = {at // sector for r in spots for at in range(r.offset, r.end, 512)}
    said = {number: block.status for block in chart.blocks()
            for number in range(block.offset // sector, block.end // sector)}
    assert said == {number: Status.NON_TRIED if number not in asked else
                    Status.BAD if number in dead else Status.FINISHED for number in range(size // sector)}
    assert image == b"".join(content[n * sector : (n + 1) * sector] if n in asked - dead else bytes(sector)
                             for n in range(size // sector))
    assert sum(r.length for r in taken) == len(set(asked) - dead) * sector, "each place once"
    alone = [at for at, length in source.tries if length <= sector]
    assert all(alone.count(at) <= 1 + retries for at in set(alone)), "each sector at most once alone, and the retries"


def test_a_bad_area_is_left_at_once_and_closed_in_from_behind():
    source = Failing(noise(8 * MIB), [Range(2 * MIB, 1 * MIB)])
    seen = []
    chart = Mapfile(source.size)
    rescue = Rescue(source, [Range(0, source.size)], chart, lambda offset, data: None,
                    tick=lambda: seen.append(chart.activity))
    rescue.run()
    copying = [at for at, activity in zip(source.tries, seen, strict=False) if activity is Activity.COPYING]
    first = next(i for i, (at, n) in enumerate(copying) if at == 2 * MIB)
    assert sum(2 * MIB <= at < 3 * MIB for at, _ in copying[first : first + 8]) <= 8
    assert list(dict.fromkeys(seen)) == [Activity.COPYING, Activity.TRIMMING, Activity.SCRAPING]
    assert chart.sum(Status.BAD) == MIB and chart.activity is Activity.DONE


def test_a_slow_area_is_left_for_later():
    class Clocked(Failing):
        now = 0.0

        def attempt(self, offset, buffer, direct=True):
            self.now += 5.0 if MIB <= offset < 9 * MIB else 0.01
            return super().attempt(offset, buffer)

    source = Clocked(noise(64 * MIB), [])
    _, image, _ = rescued(source, clock=lambda: source.now)
    assert image == noise(64 * MIB)
    order = [at for at, _ in source.tries]
    slow = [i for i, at in enumerate(order) if MIB <= at < 9 * MIB]
    fast = [i for i, at in enumerate(order) if not MIB <= at < 9 * MIB]
    assert sum(i < max(fast) for i in slow) < len(slow) / 2, "most of it is read after all that is fast"


def test_a_device_that_is_gone_stops_at_once_and_nothing_more_is_called_bad():
    class Vanishing(Failing):
        def attempt(self, offset, buffer, direct=True):
            if len(self.tries) > 20:
                raise DeviceGone("gone")
            return super().attempt(offset, buffer)

    source = Vanishing(noise(8 * MIB), [])
    chart = Mapfile(source.size)
    with pytest.raises(DeviceGone):
        rescued(source, chart=chart)
    assert chart.sum(Status.FINISHED) == 21 * BLOCK and chart.sum(Status.NON_TRIED) == source.size - 21 * BLOCK
    again, image, taken = rescued(Failing(noise(8 * MIB), []), chart=from_text(chart.to_text(), source.size))
    assert list(again.blocks()) == [Block(0, source.size, Status.FINISHED)]
    assert image[21 * BLOCK :] == noise(8 * MIB)[21 * BLOCK :] and taken[0].offset == 21 * BLOCK


def test_a_disk_that_answers_nothing_any_more_is_gone_too():
    class Mute(Failing):
        def attempt(self, offset, buffer, direct=True):
            if len(self.tries) > 20:
                self.bad = [Range(0, self.size)]
            return super().attempt(offset, buffer)

    with pytest.raises(DeviceGone, match="seems gone"):
        rescued(Mute(noise(64 * MIB), []))


def test_what_comes_before_the_bad_sector_of_a_try_is_kept():
    class Prefixed(Failing):
        def attempt(self, offset, buffer, direct=True):
            self.tries.append((offset, len(buffer)))
            end = offset + len(buffer)
            good = min((max(r.offset - offset, 0) for r in self.bad if offset < r.end and r.offset < end),
                       default=len(buffer))
            MemorySource.read_into(self, offset, buffer[:good])
            return good

    content = noise(MIB)
    source = Prefixed(content, [Range(5 * 512, 512)])
    chart, image, _ = rescued(source)
    assert image == content[: 5 * 512] + bytes(512) + content[6 * 512 :]
    assert chart.sum(Status.BAD) == 512
    assert (0, 512) not in source.tries


def test_sources_that_cannot_be_asked_for_one_try():
    class Plain(MemorySource):
        def read_into(self, offset, buffer):
            if offset < 512:
                raise ReadError("bad")
            super().read_into(offset, buffer)

    buffer = memoryview(bytearray(512))
    assert attempt(Plain(bytes(1024)), 0, buffer) == 0 and attempt(Plain(bytes(1024)), 512, buffer) == 512


@contextlib.contextmanager
def nbdkit(*arguments, socket):
    server = subprocess.Popen(["nbdkit", "-f", "-U", socket, *arguments])
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait()


def test_over_nbd_with_a_filter_that_makes_errors(tmp_path, needs):
    """nbdkit's ddrescue filter answers EIO where a mapfile says so."""
    needs("nbdkit")
    pytest.importorskip("nbd")
    from p2v.source.nbdclient import NbdSource

    content = noise(4 * MIB)
    poor, _ = poor_disk(len(content), 12, 100, 7)
    (tmp_path / "disk").write_bytes(content)
    (tmp_path / "poor").write_text(poor.to_text())
    with nbdkit("--filter=ddrescue", "file", tmp_path / "disk", f"ddrescue-mapfile={tmp_path / 'poor'}",
                socket=tmp_path / "nbd"):
        source = NbdSource(str(tmp_path / "nbd"), "nbd")
        try:
            chart, image, _ = rescued(source)
        finally:
            source.close()
    assert list(chart.blocks()) == list(poor.blocks())
    for block in poor.blocks():
        expected = content[block.offset : block.end] if block.status is Status.FINISHED else bytes(block.length)
        assert image[block.offset : block.end] == expected
