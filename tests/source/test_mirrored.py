"""Mirrors: which leg is read, what comes from another one, that a failing leg is spared, and two at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from p2v.errors import ReadError, Where
from p2v.model import Extent, Kind, Range, Source, read
from p2v.source.ahead import RUN, UNIT
from p2v.source.device import DeviceGone
from p2v.source.mirrored import Mirrored, Taken
from p2v.source.paced import Paced
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

MIB = 1 << 20
DATA = numbered_sectors("disk0", 64 * 512)
BIG = numbered_sectors("disk0", 40 * MIB)


class Vague(FaultySource):
    """Says that a read failed, and not where: a driver, or an NBD server. asked: how many reads there were."""

    asked = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.asked += 1
        try:
            super().read_into(offset, buffer)
        except ReadError as error:
            raise ReadError(error.what, self.name, "it did not say where", "nothing") from error


class Noting(MemorySource):
    """Notes what is read of it."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data, name)
        self.reads: list[Range] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append(Range(offset, len(buffer)))
        super().read_into(offset, buffer)


class Gone(MemorySource):
    """A disk that has vanished. asked: how often it was tried."""

    asked = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.asked += 1
        raise DeviceGone(f"{self.name} is gone", Where(self.name, offset, len(buffer)), "a test said so", "nothing")


def sectors(*numbers: int) -> list[Range]:
    return [Range(number * 512, 512) for number in numbers]


def test_only_the_chosen_leg_is_read() -> None:
    other = Noting(bytes(len(DATA)), "sdb")
    mirror = Mirrored([FaultySource(MemorySource(DATA, "sda"), sectors(9)), other], "C:", size=len(DATA) - 512)
    assert read(mirror, 0, 9 * 512) == DATA[: 9 * 512]
    with pytest.raises(ReadError) as caught:
        read(mirror, 100, 9000)
    assert caught.value.where == Where("C:", 9 * 512, 512) and "sda" in caught.value.why
    assert other.reads == [] and mirror.taken == []


bad = some.sets(some.integers(0, 63), max_size=20)


@example(first={0}, second={1}, third={0}, alone=set(), vague=[True, True, False], legs=3, shared=False, span=(0, 513))
@given(first=bad, second=bad, third=bad, alone=some.sets(some.integers(0, 63), max_size=5),
       vague=some.lists(some.booleans(), min_size=3, max_size=3), legs=some.integers(1, 3), shared=some.booleans(),
       span=some.tuples(some.integers(0, len(DATA) - 1), some.integers(1, len(DATA))))
def test_any_bad_sectors(first: set[int], second: set[int], third: set[int], alone: set[int], vague: list[bool],
                         legs: int, shared: bool, span: tuple[int, int]) -> None:
    """Each sector that a leg may give and can read is read; of the others the first that was met is named."""
    spots = [first, second, third][:legs]
    disks = [(Vague if v else FaultySource)(MemorySource(DATA, f"sd{n}"), sectors(*s))
             for n, (s, v) in enumerate(zip(spots, vague, strict=False))]
    mirror = Mirrored(disks, "C:", size=len(DATA), in_step=True, except_in=sectors(*alone), shared=shared)
    offset, length = span[0], min(span[1], len(DATA) - span[0])
    asked = set(range(offset // 512, (offset + length - 1) // 512 + 1))
    lost = asked & (set.intersection(*spots) | (alone & first))
    if lost:
        with pytest.raises(ReadError) as caught:
            read(mirror, offset, length)
        where = caught.value.where
        assert where.source == "C:" and where.offset is not None and where.length is not None
        named = set(range(where.offset // 512, (where.offset + where.length - 1) // 512 + 1))
        assert named & lost
        if not any(vague) or (legs > 1 and not alone):
            assert named <= lost
    else:
        assert read(mirror, offset, length) == DATA[offset : offset + length]
        told = {number for taken in mirror.taken if taken.leg
                for number in range(taken.range.offset // 512, (taken.range.end - 1) // 512 + 1)}
        assert asked & first <= told and not told & alone
    assert all(a.range.end <= b.range.offset for a, b in zip(mirror.taken, mirror.taken[1:], strict=False))
    mirror.close()


def test_what_was_taken_is_told_once() -> None:
    one = FaultySource(MemorySource(DATA, "sda"), sectors(3, 4, 20))
    two = FaultySource(MemorySource(DATA, "sdb"), sectors(5))
    mirror = Mirrored([one, two], "C:", size=len(DATA), in_step=True)
    for _ in range(3):
        assert read(mirror, 0, len(DATA)) == DATA
    assert mirror.taken == [Taken(Range(1536, 1024), 1, "sda: 512 bytes cannot be read"),
                            Taken(Range(10240, 512), 1, "sda: 512 bytes cannot be read")]
    assert len(one.failed) == 3  # a bad sector is tried once, not at each read


def test_two_bad_sectors_in_one_big_read_cost_few_reads() -> None:
    one, two = (Vague(MemorySource(BIG, name), sectors(spot)) for name, spot in (("sda", 700), ("sdb", 701)))
    mirror = Mirrored([one, two], "C:", size=len(BIG), in_step=True)
    assert read(mirror, 0, MIB) == BIG[:MIB]
    assert one.asked + two.asked < 60


def test_both_fail() -> None:
    legs = [FaultySource(MemorySource(DATA, name), sectors(7)) for name in ("sda", "sdb")]
    mirror = Mirrored(legs, "C:", size=len(DATA), in_step=True)
    with pytest.raises(ReadError) as caught:
        read(mirror, 0, len(DATA))
    assert caught.value.where == Where("C:", 3584, 512)
    assert "sda" in caught.value.why and "sdb" in caught.value.why


def test_a_run_that_both_lack_is_named_at_once_and_tried_once() -> None:
    """A disk names a run of up to 64 sectors; each further try of such a run may cost half an hour."""
    legs = [FaultySource(MemorySource(DATA, name), [Range(5 * 512, 20 * 512)]) for name in ("sda", "sdb")]
    mirror = Mirrored(legs, "C:", size=len(DATA), in_step=True)
    with pytest.raises(ReadError) as caught:
        read(mirror, 0, len(DATA))
    assert caught.value.where == Where("C:", 5 * 512, 20 * 512)
    assert [len(leg.failed) for leg in legs] == [1, 1]
    assert "sda" in caught.value.why and "sdb" in caught.value.why


def test_a_long_bad_stretch_is_not_tried_sector_by_sector() -> None:
    one = FaultySource(MemorySource(BIG, "sda"), sectors(*range(4096, 4096 + 16384)))
    mirror = Mirrored([one, MemorySource(BIG, "sdb")], "C:", size=len(BIG), in_step=True)
    for at in range(0, 20 * MIB, MIB):
        assert read(mirror, at, MIB) == BIG[at : at + MIB]
    assert len(one.failed) < 16  # of 16384
    assert sum(taken.range.length for taken in mirror.taken) < 17 * MIB
    assert read(mirror, 39 * MIB, MIB) == BIG[39 * MIB :]
    assert mirror.taken[-1].range.end < 39 * MIB  # the good end comes from the chosen leg again


def test_a_leg_that_vanishes_and_one_that_is_alone() -> None:
    gone = Gone(DATA, "sda")
    mirror = Mirrored([gone, MemorySource(DATA, "sdb")], "C:", size=len(DATA), in_step=True)
    assert read(mirror, 0, 4096) == DATA[:4096] and read(mirror, 8192, 4096) == DATA[8192:12288]
    assert gone.asked == 1
    assert [(t.range, t.leg) for t in mirror.taken] == [(Range(0, 4096), 1), (Range(8192, 4096), 1)]
    for legs in ([Gone(DATA, "sda"), Gone(DATA, "sdb")], [Gone(DATA, "sda")]):
        with pytest.raises(DeviceGone):
            read(Mirrored(legs, "C:", size=len(DATA), in_step=True), 0, 512)


def test_nonsense() -> None:
    for legs, size, in_step, shared in [([], 0, False, False), ([MemorySource(DATA)], len(DATA) + 1, False, False),
                                        ([MemorySource(DATA)] * 2, 512, False, True),
                                        ([MemorySource(DATA), MemorySource(DATA, sector_size=4096)], 512, True, False)]:
        with pytest.raises(ValueError):
            Mirrored(legs, "C:", size=size, in_step=in_step, shared=shared)


def test_extents_are_the_chosen_legs() -> None:
    holes = [Extent(0, 512, Kind.DATA), Extent(512, 1024, Kind.ZERO)]
    legs = [MemorySource(b"d" * 512 + bytes(1024), extents=holes), MemorySource(bytes(2048))]
    assert list(Mirrored(legs, "C:", size=1024).extents()) == [holes[0], Extent(512, 512, Kind.ZERO)]


def test_shared_reading_is_nearly_twice_as_fast_and_in_long_runs() -> None:
    """Legs of 40 MB/s each, read as a copy does: chunks of 1 MiB, ascending, two at a time. Longer runs gain more."""
    disks = [Noting(BIG, "sda"), Noting(BIG, "sdb")]
    legs = [Paced(disk, 40_000_000) for disk in disks]
    mirror = Mirrored(legs, "C:", size=len(BIG), in_step=True, shared=True)
    threads = threading.active_count()
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda at: read(mirror, at, MIB), range(0, len(BIG), MIB)))
    seconds = time.monotonic() - began
    assert b"".join(found) == BIG
    mirror.close()
    assert threading.active_count() == threads
    assert len(BIG) / 40_000_000 / seconds > 1.5
    assert mirror.taken == []
    for disk in disks:
        ordered = sorted(disk.reads, key=lambda r: r.offset)
        assert sum(r.length for r in ordered) <= len(BIG) / 2 + RUN * UNIT / 2  # nothing is read by both
        jumps = sum(a.end != b.offset for a, b in zip(disk.reads, disk.reads[1:], strict=False))
        assert jumps <= len(BIG) / UNIT / RUN / 2 + 3


def test_shared_reading_with_a_failing_leg() -> None:
    legs = [FaultySource(MemorySource(BIG, "sda"), sectors(5, 20000)), FaultySource(MemorySource(BIG, "sdb"),
                                                                                  sectors(20001, 40000))]
    mirror = Mirrored(legs, "C:", size=len(BIG), in_step=True, shared=True)
    for at in range(0, len(BIG), MIB):
        assert read(mirror, at, MIB) == BIG[at : at + MIB]
    assert {t.leg for t in mirror.taken} <= {0, 1} and sum(t.range.length for t in mirror.taken) <= 4 * 512
    mirror.close()


def test_shared_reading_jumps_and_large_reads() -> None:
    legs = [MemorySource(BIG, "sda"), MemorySource(BIG, "sdb")]
    mirror = Mirrored(legs, "C:", size=len(BIG), in_step=True, shared=True)
    assert read(mirror, 0, len(BIG)) == BIG
    for at in (30 * MIB + 5, 3 * MIB - 1, 3 * MIB + 500_000, 39 * MIB, 100):
        assert read(mirror, at, 700_000) == BIG[at : at + 700_000]
    mirror.close()
    short = Mirrored(legs, "C:", size=9 * MIB + 700, in_step=True, shared=True)
    check_source(short, BIG[: 9 * MIB + 700], [RUN * UNIT, UNIT])
    short.close()
    with pytest.raises(ValueError):
        read(mirror, 0, 1)


def test_shared_reading_names_what_no_leg_has() -> None:
    legs: list[Source] = [FaultySource(MemorySource(BIG, name), sectors(6000)) for name in ("sda", "sdb")]
    mirror = Mirrored(legs, "C:", size=len(BIG), in_step=True, shared=True)
    failed = []
    for at in range(0, 8 * MIB, MIB):
        try:
            read(mirror, at, MIB)
        except ReadError as error:
            failed.append(error.where)
    assert failed == [Where("C:", 6000 * 512, 512)]
    mirror.close()
