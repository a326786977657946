"""Two legs of a mirror in one run: compared beside the copy, and the holes of one filled from the other."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.coarse import Coarse
from p2v.comparing import compare
from p2v.copy import plan_copy, report_of, run_copy, verify_copy
from p2v.errors import Cancelled, ReadError, Where
from p2v.extents import intersection, union, without
from p2v.filesystem import examine
from p2v.filesystem.hit import file_extents
from p2v.filling import Pair, fill
from p2v.formats import FORMATS
from p2v.keeping import CopyLog, Job, copy_image
from p2v.model import Extent, Kind, Range
from p2v.outlets import Nowhere
from p2v.owners import classify, protected_ranges
from p2v.source.device import DeviceGone, open_disk
from p2v.testing import FaultySource, MemorySource
from p2v.twolegs import Beside
from tests.filesystem.made_ntfs import make

MIB = 1 << 20


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setattr("p2v.chunks.PATIENCE", 0.2)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def leg(content, *bad, name="leg"):
    return FaultySource(MemorySource(content, name), [Range(at, n) for at, n in bad])


def changed(content, *places):
    other = bytearray(content)
    for at in places:
        other[at] ^= 0xFF
    return bytes(other)


class Image(Nowhere):
    """An image in memory that may be written in any order."""

    def __init__(self, size):
        self.content = bytearray(b"\xee") * size

    def write_at(self, offset, data):
        self.content[offset : offset + len(data)] = data

    def zero(self, offset, length):
        self.content[offset : offset + length] = bytes(length)


class Vanishing(MemorySource):
    """Goes away at a byte, or after so many reads; or hangs there until told."""

    def __init__(self, content, at, *, hangs=False, error=DeviceGone):
        super().__init__(content, "twin")
        self.at, self.hangs, self.error = at, hangs, error
        self.go_on = threading.Event()

    def read_into(self, offset, buffer):
        if offset + len(buffer) > self.at:
            if self.hangs:
                self.go_on.wait(20)
            raise self.error("gone", Where(self.name, offset, len(buffer)), "a test said so", "nothing")
        super().read_into(offset, buffer)


class Stuck:
    """Reads nothing before it is let."""

    def __init__(self, source):
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self.extents, self.close = source.extents, source.close
        self.source, self.go_on = source, threading.Event()

    def read_into(self, offset, buffer):
        self.go_on.wait(20)
        self.source.read_into(offset, buffer)


def copied(primary, twin, *, extents=None, raw=None, **more):
    """A copy with a twin beside: the image, the report, the comparison, and what was found."""
    extents = plan_copy(primary) if extents is None else extents
    image = Image(primary.size)
    with Beside(twin, extents, patience=0.3) as beside:
        report = run_copy(primary, extents, image)
        found = beside.compare(report, raw or primary, **more)
    return image, report, found, beside.findings


RAW = FORMATS["raw"]


def filled(primary, twin, *, in_step=True, **more):
    """A copy of primary, then filled from the twin: the image and the filling."""
    extents = more.pop("extents", None) or plan_copy(primary)
    options = {key: more.pop(key) for key in ("retries", "progress", "cancel") if key in more}
    image = Image(primary.size)
    report = run_copy(Coarse(primary) if more.get("coarse") else primary, extents, image)
    pair = Pair(primary, twin, ("disk0", "disk1"), in_step, **more)
    filling = fill(report, extents, image, RAW, pair, **options)
    return bytes(image.content), report, filling


# --- beside a copy


def test_equal_legs_beside_a_copy():
    content = noise(5 * MIB + 1000)
    image, report, found, findings = copied(MemorySource(content), MemorySource(content), names=("disk0", "disk1"))
    assert found.equal and found.names == ("disk0", "disk1") and found.compared == len(content)
    assert not findings and bytes(image.content) == content and not report.bad


def test_differences_and_unreadable_sectors_are_what_compare_says():
    content = noise(6 * MIB + 1000)
    primary = leg(content, (0, 512), (2 * MIB, 3 * MIB))
    twin = leg(changed(content, 100, 5000, 3 * MIB, 5 * MIB + 700, len(content) - 1), (5 * MIB, 1024))
    _, report, found, findings = copied(primary, twin)
    again = compare([leg(content, (0, 512), (2 * MIB, 3 * MIB)), twin])
    assert (found.differences, found.unreadable, found.compared, found.left) == \
        (again.differences, again.unreadable, again.compared, ())
    assert not findings and report.bad == (Extent(0, 512, Kind.BAD), Extent(2 * MIB, 3 * MIB, Kind.BAD))


def test_what_is_known_to_be_bad_is_not_read_again():
    content = noise(4 * MIB)
    primary, twin = leg(content, (MIB + 4096, 4096)), leg(content, (MIB + 65536, 512))
    extents = plan_copy(primary)
    with Beside(twin, extents) as beside:
        report = run_copy(primary, extents, Image(len(content)))
        while beside._thread.is_alive():
            time.sleep(0.01)
        before = len(primary.failed), len(twin.failed)
        found = beside.compare(report, primary)
    assert (len(primary.failed), len(twin.failed)) == before
    assert found.compared == 4 * MIB - 4096 - 512 and not found.differences


def test_edits_of_the_image_are_no_differences():
    content = noise(4 * MIB)
    edited = MemorySource(changed(content, 10, MIB + 5, 2 * MIB))
    _, _, found, _ = copied(edited, MemorySource(changed(content, MIB + 4096)), raw=MemorySource(content))
    assert found.differences == (Range(MIB + 4096, 512),)


def test_a_part_of_the_disk_in_its_own_bytes():
    content = noise(6 * MIB)
    twin = MemorySource(changed(content, 100, 3 * MIB + 512, 5 * MIB))
    _, _, found, _ = copied(MemorySource(content), twin, within=Range(2 * MIB, 2 * MIB + 700))
    assert found.size == found.compared == 2 * MIB + 700
    assert found.differences == (Range(MIB + 512, 512),)


def test_free_space_is_neither_read_nor_compared():
    content = noise(4 * MIB)
    source = MemorySource(content)
    extents = plan_copy(source, [Range(MIB + 512, MIB)])
    _, _, found, _ = copied(source, MemorySource(changed(content, MIB + 600, 2 * MIB + 4096)), extents=extents)
    assert found.differences == (Range(2 * MIB + 4096, 512),) and found.compared == 3 * MIB


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 5999), max_size=12), st.sets(st.integers(0, 5999), max_size=12),
       st.sets(st.integers(0, 5999), max_size=12), st.lists(st.tuples(st.integers(0, 5999), st.integers(1, 900)),
                                                            max_size=4))
def test_beside_says_what_compare_says(differ, bad_one, bad_two, free):
    content = noise(6000 * 512)
    primary = leg(content, *((n * 512, 512) for n in bad_one))
    twin = leg(changed(content, *(n * 512 for n in differ)), *((n * 512, 512) for n in bad_two))
    extents = plan_copy(primary, [Range(at * 512, n * 512) for at, n in free])
    _, _, found, _ = copied(primary, twin, extents=extents)
    again = compare([primary, twin], extents=extents)
    assert (found.differences, found.different, found.unreadable, found.compared) == \
        (again.differences, again.different, again.unreadable, again.compared)


@pytest.mark.parametrize("error", [DeviceGone, ReadError])
def test_a_twin_that_goes_away_ends_the_comparison_not_the_copy(error):
    content = noise(24 * MIB)
    image, report, found, findings = copied(
        MemorySource(content), Vanishing(content, 6 * MIB if error is DeviceGone else 0, error=error))
    assert bytes(image.content) == content and not report.bad
    seen = sum(r.length for r in found.unreadable[1])  # until it was noticed that nothing can be read
    assert found.left == (Range(found.compared + seen, 24 * MIB - found.compared - seen),) and not found.equal
    assert found.compared == (6 * MIB if error is DeviceGone else 0)
    assert seen == 0 if error is DeviceGone else seen <= 8 * MIB  # the threads do not fail quite in order
    (said,) = findings
    assert said.next and "ended early" in said.what


def test_of_a_twin_that_differs_everywhere_a_part_is_read_again(monkeypatch):
    monkeypatch.setattr("p2v.twolegs.SAMPLE", 4)
    content, other = noise(11 * MIB), noise(11 * MIB, 2)
    _, _, found, findings = copied(MemorySource(content), MemorySource(other))
    assert found.differences == tuple(Range(at * MIB, MIB) for at in (0, 3, 6, 9))
    assert without([Range(0, 11 * MIB)], found.left) == list(found.differences)
    assert found.compared == 4 * MIB and not findings
    edited = changed(content, *range(0, 11 * MIB, MIB))  # what only the edits differ in is no difference: all is read
    twin = MemorySource(changed(content, 5 * MIB + 9))
    _, _, found, _ = copied(MemorySource(edited), twin, raw=MemorySource(content))
    assert found.differences == (Range(5 * MIB, 512),) and found.compared == 11 * MIB and not found.left


def test_a_twin_that_goes_away_leaves_doubtful_chunks_uncompared():
    content = noise(4 * MIB)
    found = copied(MemorySource(content), Vanishing(changed(content, 5), 2 * MIB))[2]
    assert found.left == (Range(0, MIB), Range(2 * MIB, 2 * MIB)) and found.compared == MIB
    assert not found.differences


def test_a_hanging_twin_is_given_up_when_the_copy_is_done():
    content = noise(8 * MIB)
    twin = Vanishing(content, 3 * MIB, hangs=True)
    begun = time.monotonic()
    image, _, found, findings = copied(MemorySource(content), twin)
    assert time.monotonic() - begun < 4
    assert bytes(image.content) == content and found.compared == 3 * MIB and len(findings) == 1
    twin.go_on.set()
    left_over()


def test_a_hanging_twin_does_not_hold_up_a_copy_that_fails_or_is_stopped():
    content = noise(8 * MIB)
    twin = Stuck(MemorySource(content))
    source, cancel = MemorySource(content), threading.Event()
    begun = time.monotonic()
    with pytest.raises(ReadError), Beside(twin, plan_copy(source)):
        raise ReadError("the copy fails")
    with pytest.raises(Cancelled), Beside(twin, plan_copy(source)) as beside:
        report = run_copy(source, plan_copy(source), Image(len(content)))
        threading.Timer(0.1, cancel.set).start()
        beside.compare(report, source, cancel=cancel)
    assert time.monotonic() - begun < 4
    twin.go_on.set()
    left_over()


def left_over():
    """Wait for reads that were left to themselves."""
    for thread in threading.enumerate():
        if thread.name.startswith("p2v-chunks"):
            thread.join()


def test_memory_beside_a_copy_is_a_few_buffers():
    class Same:
        name, sector_size, size = "same", 512, 256 * MIB

        def read_into(self, offset, buffer):
            buffer[:] = b"\x07" * len(buffer)

        def extents(self):
            return [Extent(0, self.size, Kind.DATA)]

    extents = list(Same().extents())
    tracemalloc.start()
    with Beside(Same(), extents) as beside:
        assert beside.compare(run_copy(Same(), extents, Nowhere()), Same()).equal
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()


# --- filling


def test_legs_in_step_with_different_bad_sectors_give_a_perfect_image(tmp_path):
    """On a real volume, through real formats, checked by their independent readers."""
    volume = make(tmp_path, {"letters.doc": noise(2 * MIB, 3)}, size=16 * MIB)
    content = volume.read_bytes()
    source = MemorySource(content)
    extents = plan_copy(source, examine(source).free)
    data = [Range(e.offset, e.length) for e in extents if e.kind is Kind.DATA]
    chance = random.Random(5)
    places = [(n * 4096, 512 * chance.randrange(1, 40)) for n in chance.sample(range(4000), 60)]
    one = leg(content, *places[:30])
    two = leg(content, *((p.offset, p.length) for p in without(
        union(Range(*place) for place in places[30:]), union(Range(*place) for place in places[:30]))
        if p.end <= len(content)))
    for name in ("raw", "qcow2", "vhdx", "vmdk", "vdi", "vhd"):
        form, path = FORMATS[name], str(tmp_path / f"image.{name}")
        writer = form.create(path, len(content))
        with Beside(two, extents) as beside:
            report = run_copy(one, extents, writer)
            found = beside.compare(report, one)
        assert report.bad and classify(found, source, examine(source)).in_step and not found.in_none
        filling = fill(report, extents, writer, form, Pair(one, two, ("disk0", "disk1"), True))
        writer.finish()
        assert not filling.report.bad and filling.report.counts["bad"] == 0 and not filling.findings
        assert sum(filling.report.counts.values()) == len(content)
        assert filling.report.digests == run_copy(source, extents, Nowhere()).digests
        assert filling.report.counts == run_copy(source, extents, Nowhere()).counts
        assert union(f.range for f in filling.filled) == union(Range(e.offset, e.length) for e in report.bad)
        assert {f.leg for f in filling.filled} == {"disk1"} and "in step" in filling.filled[0].reason
        image = form.read(path)
        verify_copy(image, filling.report)
        whole = bytearray(len(content))
        image.read_into(0, memoryview(whole))
        assert all(whole[part.offset : part.end] == content[part.offset : part.end] for part in data)
        image.close()


def test_a_stale_twin_fills_nothing():
    content = noise(4 * MIB)
    image, report, filling = filled(leg(content, (MIB, 4096)), MemorySource(noise(4 * MIB, 2)), in_step=False)
    assert filling.report is report and not filling.filled
    assert image[MIB : MIB + 4096] == bytes(4096)
    (said,) = filling.findings
    assert "--rescue-from-stale" in said.next and said.where == Where("disk0", MIB, 4096) and said.why


def test_a_stale_twin_by_the_users_word_but_not_in_the_filesystem(tmp_path):
    volume = make(tmp_path, {"letters.doc": noise(MIB, 3)}, size=16 * MIB)
    content = volume.read_bytes()
    source = MemorySource(content)
    where = dict(file_extents(source, examine(source)))
    letter, mft = where["\\letters.doc"][0].offset + 8192, where["\\$MFT"][0].offset + 8192
    old = changed(content, *range(letter, letter + 512), *range(mft, mft + 512), 512)
    bad = [Range(part.offset, part.length) for part in (Range(letter, 512), Range(mft, 512))]
    kept = protected_ranges(source, examine(source), sorted(bad, key=lambda r: r.offset))
    image, _, filling = filled(leg(content, (letter, 512), (mft, 512)), MemorySource(old), in_step=False,
                               stale_too=True, except_in=kept)
    assert image[letter : letter + 512] == old[letter : letter + 512]
    assert filling.report.bad == (Extent(mft, 512, Kind.BAD),) and image[mft : mft + 512] == bytes(512)
    (one,) = filling.filled
    assert one.range == Range(letter, 512) and "stale" in one.reason


def test_what_is_bad_on_both_legs_stays_bad():
    content = noise(3 * MIB)
    image, _, filling = filled(leg(content, (5 * 512, 512 * 8)), leg(content, (7 * 512, 512), (9 * 512, 512)))
    assert filling.report.bad == (Extent(7 * 512, 512, Kind.BAD), Extent(9 * 512, 512, Kind.BAD))
    assert filling.report.counts["bad"] == 1024
    assert image == changed_to_zero(content, (7 * 512, 512), (9 * 512, 512))
    assert [f.range for f in filling.filled] == [Range(5 * 512, 1024), Range(8 * 512, 512), Range(10 * 512, 1536)]
    verify_copy(MemorySource(image), filling.report)


def changed_to_zero(content, *places):
    other = bytearray(content)
    for at, length in places:
        other[at : at + length] = bytes(length)
    return bytes(other)


class Moody(FaultySource):
    """Its bad sectors can be read from the third try on."""

    def read_into(self, offset, buffer):
        hit = [r for r in self.bad if r.offset < offset + len(buffer) and offset < r.end]
        if hit and all(sum(f.offset < r.end and r.offset < f.end for f in self.failed) >= 3 for r in hit):
            self._source.read_into(offset, buffer)
        else:
            super().read_into(offset, buffer)


def test_the_first_leg_is_tried_once_more_where_the_other_fails():
    content = noise(2 * MIB)
    primary = Moody(MemorySource(content), [Range(4096, 512)])
    image, report, filling = filled(primary, leg(content, (4096, 512)), retries=2)
    assert report.bad and not filling.report.bad and image == content
    assert [f.leg for f in filling.filled] == ["disk0"] and "another try" in filling.filled[0].reason


def test_only_within_the_mirror():
    content = noise(3 * MIB)
    image, _, filling = filled(leg(content, (0, 512), (MIB - 512, 1024), (2 * MIB, 512)), MemorySource(content),
                               within=Range(MIB, MIB))
    assert filling.report.bad == (Extent(0, 512, Kind.BAD), Extent(MIB - 512, 512, Kind.BAD),
                                  Extent(2 * MIB, 512, Kind.BAD))
    assert image == changed_to_zero(content, (0, 512), (MIB - 512, 512), (2 * MIB, 512))


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.SEQUENTIAL])
def test_a_format_that_streams_is_refused(name):
    content = noise(2 * MIB)
    primary = leg(content, (0, 512))
    report = run_copy(primary, plan_copy(primary), Nowhere())
    filling = fill(report, plan_copy(primary), Nowhere(), FORMATS[name],
                   Pair(primary, MemorySource(content), ("disk0", "disk1"), True))
    assert filling.report is report and "--format" in filling.findings[0].next


def test_a_chunk_that_is_not_what_was_copied_is_left_alone():
    content = bytearray(noise(2 * MIB))
    primary = leg(content, (0, 512), (MIB, 512))
    image = Image(2 * MIB)
    report = run_copy(primary, plan_copy(primary), image)
    content[600] ^= 1  # the disk is in use after all, and the twin has another first chunk besides
    filling = fill(report, plan_copy(primary), image, RAW,
                   Pair(primary, MemorySource(bytes(content)), ("disk0", "disk1"), True))
    assert filling.report.bad == (Extent(0, 512, Kind.BAD),)
    (said,) = filling.findings
    assert said.where == Where("disk0", 0, MIB) and said.next


def test_around_a_hole_the_twin_is_read_not_the_failing_leg():
    content = noise(2 * MIB)
    primary = leg(content, (4096, 512))
    extents = plan_copy(primary)
    image = Image(2 * MIB)
    report = run_copy(primary, extents, image)
    silent = Vanishing(content, 0)
    fill(report, extents, image, RAW, Pair(silent, MemorySource(content), ("disk0", "disk1"), True))
    assert image.content == content


def test_edits_around_a_hole_stay():
    content = noise(2 * MIB)
    edited = changed(content, 9000)
    image, _, filling = filled(leg(edited, (4096, 512)), MemorySource(content))
    assert image == edited and not filling.report.bad


@pytest.mark.parametrize("gone", ["primary", "twin"])
def test_a_leg_that_goes_away_leaves_the_rest_bad(gone):
    content = noise(4 * MIB)
    primary = leg(content, (4096, 512), (3 * MIB, 1024))
    extents, image = plan_copy(primary), Image(4 * MIB)
    report = run_copy(primary, extents, image)
    twin = Vanishing(content, 2 * MIB) if gone == "twin" else leg(content, (3 * MIB, 512))
    filling = fill(report, extents, image, RAW,
                   Pair(Vanishing(content, 0) if gone == "primary" else primary, twin, ("disk0", "disk1"), True))
    assert filling.report.bad[-1].offset == 3 * MIB
    assert any("went away" in said.what for said in filling.findings)
    assert image.content[4096 : 4096 + 512] == content[4096 : 4096 + 512]


def test_what_was_filled_is_kept_and_the_same_filling_may_be_done_again(tmp_path):
    content = noise(4 * MIB)
    primary, twin = leg(content, (MIB + 4096, 1024), (3 * MIB, 512)), leg(content, (MIB + 4096, 512))
    extents, pair = plan_copy(primary), Pair(primary, twin, ("disk0", "disk1"), True)
    job = Job(RAW, tmp_path / "image", CopyLog(tmp_path, "disk0"), "tie")
    report, writer = copy_image(primary, extents, job)
    once = fill(report, extents, writer, RAW, pair, keeper=job.keeper())
    saved = report_of(job.log.load(), extents)
    assert (saved.digests, saved.counts, saved.bad) == (once.report.digests, once.report.counts, once.report.bad)
    again = fill(report, extents, writer, RAW, pair)
    assert (again.filled, again.report.digests) == (once.filled, once.report.digests)
    writer.finish()
    image = RAW.read(str(tmp_path / "image"))
    verify_copy(image, saved)
    image.close()


def test_filling_can_be_stopped():
    content = noise(4 * MIB)
    cancel, seen = threading.Event(), []

    def progress(stage, done, total):
        seen.append((done, total))
        if done == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        filled(leg(content, (0, 4 * MIB)), MemorySource(content), cancel=cancel, progress=progress)
    assert seen == [(0, 4), (1, 4), (2, 4)]


@settings(max_examples=40, deadline=None)
@given(*[st.lists(st.tuples(st.integers(0, 5999), st.integers(1, 700)), max_size=5) for _ in range(3)],
       st.booleans())
def test_all_that_any_leg_has_is_in_the_image(bad_one, bad_two, free, coarse):
    size = 6000 * 512
    content = noise(size // 2) + bytes(size // 2)  # half of it zero: it is counted as found, not copied

    def ranges(pairs):
        return union(Range(at * 512, min(n * 512, size - at * 512)) for at, n in pairs)

    one, two = (leg(content, *((r.offset, r.length) for r in ranges(bad))) for bad in (bad_one, bad_two))
    extents = plan_copy(one, ranges(free))
    image, _, filling = filled(one, two, extents=extents, coarse=coarse)
    needed = without([Range(0, size)], ranges(free))
    lost = intersection(intersection(ranges(bad_one), ranges(bad_two)), needed)
    assert [Range(e.offset, e.length) for e in filling.report.bad] == lost
    blank = union([*lost, *ranges(free)])
    assert image == changed_to_zero(content, *((r.offset, r.length) for r in blank))
    verify_copy(MemorySource(image), filling.report)
    both = FaultySource(MemorySource(content), lost)
    assert filling.report.counts == run_copy(both, extents, Nowhere()).counts


def test_what_the_medium_itself_calls_bad_is_filled_too():
    content = noise(2 * MIB)
    known = [Extent(0, MIB, Kind.DATA), Extent(MIB, 4096, Kind.BAD), Extent(MIB + 4096, MIB - 4096, Kind.DATA)]
    primary = MemorySource(content, extents=known)
    image, report, filling = filled(primary, MemorySource(content))
    assert report.counts["bad"] == 4096 and filling.report.counts["bad"] == 0 and image == content


def test_memory_does_not_grow_with_the_hole(tmp_path):
    def peak(size):
        (tmp_path / "disk").write_bytes(noise(size))
        twin = open_disk(str(tmp_path / "disk"))
        extents = [Extent(0, size, Kind.BAD)]
        report = run_copy(twin, extents, Nowhere())
        tracemalloc.start()
        filling = fill(report, extents, Nowhere(), RAW, Pair(twin, twin, ("disk0", "disk1"), True))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not filling.report.bad
        twin.close()
        return result

    peak(MIB)
    assert peak(24 * MIB) < peak(8 * MIB) + MIB // 4


# --- leaving bad places at once


class Counting(FaultySource):
    """Names no sectors when it fails, as a device does that is asked once; counts."""

    reads = 0

    def read_into(self, offset, buffer):
        self.reads += 1
        try:
            super().read_into(offset, buffer)
        except ReadError:
            raise ReadError("bad", Where(self.name, offset, len(buffer))) from None

    @property
    def tries(self):
        return self.reads, len(self.failed)


def test_a_coarse_copy_leaves_a_bad_place_after_two_reads():
    content = noise(2 * MIB)
    source = Counting(MemorySource(content), [Range(4096, 512)])
    report = run_copy(Coarse(source), plan_copy(source), Image(2 * MIB))
    assert report.bad == (Extent(0, 65536, Kind.BAD),)
    assert source.tries[1] == 2 and source.tries[0] < 24


def test_a_coarse_copy_leaps_over_large_bad_areas():
    content = noise(24 * MIB)
    source = Counting(MemorySource(content), [Range(4 * MIB, 8 * MIB)])
    report = run_copy(Coarse(source), plan_copy(source), Image(24 * MIB))
    (bad,) = report.bad
    assert bad.offset == 4 * MIB and 12 * MIB <= bad.end <= 20 * MIB
    assert source.tries[1] < 30


def test_a_stale_twin_beside_a_coarse_copy_gives_nothing_but_the_leg_is_read_to_its_last_sector():
    content = noise(4 * MIB)
    primary = leg(content, (MIB + 5 * 512, 1024), (3 * MIB, 512))
    image, report, filling = filled(primary, MemorySource(noise(4 * MIB, 2)), in_step=False, coarse=True)
    assert [e.length for e in report.bad] == [65536, 65536]
    assert filling.report.bad == (Extent(MIB + 5 * 512, 1024, Kind.BAD), Extent(3 * MIB, 512, Kind.BAD))
    assert image == changed_to_zero(content, (MIB + 5 * 512, 1024), (3 * MIB, 512))
    assert {f.leg for f in filling.filled} == {"disk0"} and "looked at closely" in filling.filled[0].reason
    (said,) = filling.findings
    assert said.what.startswith("1536 ") and "--rescue-from-stale" in said.next


def test_a_coarse_copy_cannot_be_filled_in_a_format_that_streams():
    content = noise(MIB)
    primary = leg(content, (0, 512))
    report = run_copy(primary, plan_copy(primary), Nowhere())
    form = next(form for form in FORMATS.values() if form.SEQUENTIAL)
    with pytest.raises(ValueError, match="with care"):
        fill(report, plan_copy(primary), Nowhere(), form, Pair(primary, primary, ("a", "b"), True, coarse=True))


def test_a_coarse_leg_that_is_gone_is_noticed():
    content = noise(24 * MIB)
    source = Vanishing(content, 0, error=ReadError)
    with pytest.raises(DeviceGone):
        run_copy(Coarse(source), plan_copy(source), Nowhere())


def test_two_legs_lose_nothing_in_fewer_reads_than_ddrescue_needs_for_one(needs):
    needs("ddrescue")
    from benchmarks.twolegs import rescue

    lost, reads, failed = rescue()
    assert lost.value == 0
    assert reads.value < reads.limit / 2 and failed.value < failed.limit / 2
