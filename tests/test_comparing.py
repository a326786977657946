"""The legs of a mirror, compared: what differs, what is unreadable, whose it is, and how it is told."""

from __future__ import annotations

import lzma
import random
import threading
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.ntfs import NtfsVolume
from p2v.comparing import Bounded, Comparison, compare, cut, data_of
from p2v.errors import Cancelled, Severity
from p2v.extents import union, without
from p2v.filesystem import examine
from p2v.filesystem.hit import file_extents
from p2v.model import Extent, Filesystem, FilesystemState, Kind, Range, read
from p2v.owners import Owner, classify, draw, protected_ranges, told
from p2v.source.device import DeviceGone
from p2v.testing import FaultySource, MemorySource
from p2v.volume import find_volumes
from tests.filesystem.made_ntfs import make, run, stream_place

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
    """The content with one byte another at each place."""
    other = bytearray(content)
    for at in places:
        other[at] ^= 0xFF
    return other


class Endless:
    """As large as it says, counts what is read, and may hang."""

    sector_size = 512

    def __init__(self, name, size, value=7, hangs_at=None):
        self.name, self.size, self.value, self.hangs_at = name, size, value, hangs_at
        self.read, self.go_on = 0, threading.Event()

    def read_into(self, offset, buffer):
        if self.hangs_at is not None and offset >= self.hangs_at:
            self.go_on.wait(20)
        self.read += len(buffer)
        buffer[:] = bytes([self.value]) * len(buffer)

    def extents(self):
        return [Extent(0, self.size, Kind.DATA)]

    def close(self):
        pass


# --- reading


def test_equal_legs_are_equal():
    content = noise(3 * MIB + 700)
    found = compare([leg(content), leg(content)], names=("disk0", "disk1"))
    assert found == Comparison(len(content), ("disk0", "disk1"), len(content), (), 0, ((), ()))
    assert found.equal


def test_differences_are_told_to_the_sector():
    content = noise(3 * MIB + 700)
    places = [0, 511, 512 * 9, MIB - 1, MIB, 2 * MIB + 5000, len(content) - 1]
    found = compare([leg(content), leg(changed(content, *places))])
    assert found.differences == (Range(0, 512), Range(9 * 512, 512), Range(MIB - 512, 1024),
                                 Range(2 * MIB + 9 * 512, 512), Range(3 * MIB + 512, 188))
    assert found.different == sum(r.length for r in found.differences)
    assert not found.equal


def test_what_is_unreadable_is_no_difference_and_told_for_each_leg():
    content = noise(2 * MIB)
    one = leg(content, (4096, 1024), (MIB, 512))
    two = leg(changed(content, 4096, 8192, 9000), (8192, 512), (MIB, 1024))
    found = compare([one, two])
    assert found.unreadable == ((Range(4096, 1024), Range(MIB, 512)), (Range(8192, 512), Range(MIB, 1024)))
    assert found.differences == (Range(8704, 512),)
    assert found.compared == 2 * MIB - 1024 - 512 - 1024
    assert found.in_none == (Range(MIB, 512),)


def test_of_three_legs_any_two_that_can_be_read_are_compared():
    content = noise(MIB)
    found = compare([leg(content, (0, 1024)), leg(changed(content, 0)), leg(content, (512, 512))])
    assert found.differences == (Range(0, 512),), "the first leg is silent there, the others are not"
    assert found.compared == MIB - 512


def test_only_what_is_wanted_is_read():
    extents = [Extent(0, MIB, Kind.FREE), Extent(MIB, 4096, Kind.DATA), Extent(MIB + 4096, 3 * MIB - 4096, Kind.ZERO)]
    legs = [Endless("one", 4 * MIB), Endless("two", 4 * MIB, 8)]
    found = compare(legs, extents=extents)
    assert found.differences == (Range(MIB, 4096),)
    assert [one.read for one in legs] == [4096, 4096]
    assert found.compared == 4096


def test_what_is_a_hole_in_every_leg_is_not_read():
    holes = [Extent(0, MIB, Kind.ZERO), Extent(MIB, MIB, Kind.DATA)]
    content = bytes(MIB) + noise(MIB)
    half, whole = MemorySource(content, extents=holes), MemorySource(content)
    assert compare([half, half]).compared == MIB
    assert compare([half, whole]).compared == 2 * MIB


def test_a_longer_leg_is_compared_as_far_as_the_volume_goes():
    content = noise(MIB + 512)
    found = compare([leg(content), leg(content + noise(MIB))], size=len(content))
    assert found.equal and found.size == len(content)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 999), max_size=30), st.sets(st.integers(0, 999), max_size=10),
       st.sets(st.integers(0, 999), max_size=10))
def test_each_sector_is_judged_rightly(differ, bad_one, bad_two):
    size = 1000 * 512
    content = noise(size)
    one = leg(content, *((n * 512, 512) for n in bad_one))
    two = leg(changed(content, *(n * 512 + 77 for n in differ)), *((n * 512, 512) for n in bad_two))
    found = compare([one, two])

    def sectors(ranges):
        return {n for r in ranges for n in range(r.offset // 512, r.end // 512)}

    assert sectors(found.differences) == differ - bad_one - bad_two
    assert [sectors(ranges) for ranges in found.unreadable] == [bad_one, bad_two]
    assert found.compared == (1000 - len(bad_one | bad_two)) * 512


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 20))
def test_a_list_of_ranges_stays_short_and_loses_none(gaps, most):
    bounded, at, wanted = Bounded(most), 0, []
    for gap in gaps:
        at += gap * 512
        wanted.append(Range(at, 512))
        bounded.add(wanted[-1])
        at += 512
    assert len(bounded.ranges) <= most
    assert bounded.ranges == union(bounded.ranges)
    assert without(wanted, bounded.ranges) == []
    assert (bounded.grain == 0) == (len(union(wanted)) <= most or bounded.ranges == union(wanted))


def test_memory_does_not_grow_with_the_size():
    def peak(size):
        tracemalloc.start()
        found = compare([Endless("one", size), Endless("two", size, 8)])
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.differences == (Range(0, size),)
        return result

    peak(4 * MIB)  # imports
    assert peak(256 * MIB) < peak(32 * MIB) + MIB


def test_legs_are_read_at_the_same_time():
    begun = [threading.Event(), threading.Event()]

    class Meeting(MemorySource):
        number = 0

        def read_into(self, offset, buffer):
            begun[self.number].set()
            assert begun[1 - self.number].wait(10), "the other leg is not being read"
            super().read_into(offset, buffer)

    content = noise(8 * MIB)
    one, two = Meeting(content), Meeting(content)
    two.number = 1
    assert compare([one, two]).equal


def test_progress_and_cancel():
    told_, cancel = [], threading.Event()

    def progress(stage, done, total):
        told_.append((stage, done, total))
        if done >= 3 * MIB:
            cancel.set()

    with pytest.raises(Cancelled) as caught:
        compare([Endless("one", 64 * MIB), Endless("two", 64 * MIB)], progress=progress, cancel=cancel)
    assert told_[0] == ("compare", 0, 64 * MIB) and told_[-1][1] == 3 * MIB
    assert caught.value.next


def test_a_leg_that_hangs_can_be_left():
    cancel, hanging = threading.Event(), Endless("two", 64 * MIB, hangs_at=2 * MIB)
    threading.Timer(0.2, cancel.set).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        compare([Endless("one", 64 * MIB), hanging], cancel=cancel)
    with pytest.raises(DeviceGone):
        compare([Endless("one", 64 * MIB), hanging], patience=0.2)
    assert time.monotonic() - begun < 4
    hanging.go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("p2v-chunks"):
            thread.join()


def test_a_leg_that_is_gone_is_said():
    content = noise(16 * MIB)
    with pytest.raises(DeviceGone, match="gone"):
        compare([leg(content), leg(content, (0, len(content)))])


def test_one_leg_is_no_mirror():
    with pytest.raises(ValueError, match="one leg"):
        compare([leg(bytes(512))])


def test_a_part_in_its_own_bytes():
    found = Comparison(100 * 512, ("a", "b"), 90 * 512, (Range(0, 1024), Range(20 * 512, 512)), 1536,
                       ((Range(512 * 9, 1024),), ()), 0, (Range(40 * 512, 60 * 512),))
    assert cut(found, Range(10 * 512, 20 * 512)) == Comparison(
        20 * 512, ("a", "b"), 20 * 512, (Range(10 * 512, 512),), 512, ((Range(0, 512),), ()), 0, ())


def test_a_real_mirror_of_windows_2003_is_equal_and_named_when_it_is_not(corpus):
    """Two disks of a real LDM mirror: cmp finds other bytes in the MBR and the private region alone."""
    disks = [bytearray(lzma.decompress((corpus / "ldm" / f"ldm-2003r2-mirrored-{n}.img.xz").read_bytes()))
             for n in (1, 2)]
    sources = {f"disk{n}": MemorySource(disk, f"disk{n}") for n, disk in enumerate(disks)}
    (mirror,) = find_volumes(sources).mirrors
    legs = [one.source for one in mirror.legs]
    found = compare(legs, size=mirror.size, names=[one.disk for one in mirror.legs])
    filesystem = examine(legs[0])
    assert found.equal and found.compared == mirror.size and filesystem.kind == "ntfs"
    bitmap = next(places[0] for path, places in file_extents(legs[0], filesystem) if path == "\\$Bitmap")
    second = mirror.legs[1]
    disks[int(second.disk[-1])][second.member.offset + bitmap.offset] ^= 1
    found = compare(legs, size=mirror.size)
    owners = classify(found, legs[0], filesystem)
    assert found.differences == (Range(bitmap.offset, 512),) and owners.metadata == (("\\$Bitmap", 512),)


# --- owners


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A clean NTFS volume with files, a page file, and a hive."""
    path = make(tmp_path_factory.mktemp("volume"), {"pagefile.sys": noise(MIB, 2), "letters.doc": noise(MIB, 3)},
                size=16 * MIB)
    with NtfsVolume(path) as ntfs:
        ntfs.make_folder("/WINDOWS")
        ntfs.make_folder("/WINDOWS/system32")
        ntfs.make_folder("/WINDOWS/system32/config")
        ntfs.write("/WINDOWS/system32/config/SYSTEM", noise(65536, 4))
        ntfs.write("/WINDOWS/system32/config/SysEvent.Evt", noise(65536, 5))
        for number in range(60):  # a folder that needs an index of its own
            ntfs.write(f"/WINDOWS/system32/a file called {number}.dll", noise(4096, number))
    return path.read_bytes()


def places(content):
    """Where each file lies."""
    source = MemorySource(content)
    return {path: extents for path, extents in file_extents(source, examine(source)) if extents}


def classified(content, *at, one_bad=(), two_bad=()):
    source = MemorySource(content, "disk0")
    found = compare([leg(content, *one_bad), leg(changed(content, *at), *two_bad)], names=("disk0", "disk1"))
    return found, classify(found, source, examine(source))


def test_free_space_and_page_file_are_in_step(volume):
    where, free = places(volume), examine(MemorySource(volume)).free[-1]
    found, owners = classified(volume, free.offset, where["\\pagefile.sys"][0].offset)
    assert owners.in_step and not found.equal and not owners.weighty
    assert (owners.amounts[Owner.FREE], owners.amounts[Owner.PAGING]) == (512, 512)
    assert sum(owners.amounts.values()) == 1024
    (said,) = told(found, owners, "C:")
    assert "in step" in said.what and "free space" in said.why and said.severity is Severity.INFO


def test_a_files_difference_names_it(volume):
    where = places(volume)
    found, owners = classified(volume, where["\\letters.doc"][0].offset + 4096, where["\\$MFT"][0].offset + 9000)
    assert not owners.in_step
    assert owners.files == (("\\letters.doc", 512),) and owners.metadata == (("\\$MFT", 512),)
    (said,) = told(found, owners, "C:")
    assert "\\letters.doc" in said.why and "$MFT" in said.why and "1.0 KiB" in said.what
    assert said.severity is Severity.WARNING and said.next and said.where.offset == owners.weighty[0].offset


def test_folders_and_the_backup_boot_sector_have_a_class(volume):
    free = examine(MemorySource(volume)).free
    taken = union([*(r for extents in places(volume).values() for r in extents), *free])
    folder = without([Range(0, 16 * MIB - 4096)], taken)[0]
    found, owners = classified(volume, folder.offset, len(volume) - 1)
    assert owners.metadata == (("folders and other structures", 512),)
    assert owners.amounts[Owner.OUTSIDE] == 512 and not owners.in_step and found.different == 1024


def test_an_unclean_volume_has_no_free_space_but_a_page_file(volume, tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(volume)
    with NtfsVolume(path) as ntfs:
        ntfs.mark_dirty()
    dirty = path.read_bytes()
    free, where = examine(MemorySource(volume)).free[-1], places(dirty)
    assert classified(dirty, where["\\pagefile.sys"][0].offset)[1].in_step
    assert not classified(dirty, free.offset)[1].in_step, "its bitmap cannot be trusted"


def test_where_files_cannot_be_walked_it_is_said(volume):
    torn = bytearray(volume)
    at = stream_place(volume, 0)
    torn[at : at + 4] = b"BAAD"  # $MFT's own record
    source = MemorySource(torn)
    found = compare([leg(torn), leg(changed(torn, places(volume)["\\letters.doc"][0].offset))])
    owners = classify(found, source, Filesystem("ntfs", "3.1"))
    assert not owners.in_step and owners.untold and owners.amounts[Owner.METADATA] == 512
    assert protected_ranges(source, Filesystem("ntfs", "3.1")) == (Range(0, len(torn)),)


def test_without_a_filesystem_all_counts():
    content = noise(MIB)
    found = compare([leg(content), leg(changed(content, 5))])
    owners = classify(found, MemorySource(content), Filesystem(""))
    assert owners.amounts[Owner.OUTSIDE] == 512 and not owners.in_step


def test_nothing_compared_is_not_in_step(volume):
    source = MemorySource(volume)
    found = compare([source, source], extents=data_of([], len(volume)))
    assert not found.equal and not classify(found, source, examine(source)).in_step
    partly = Comparison(len(volume), ("a", "b"), MIB, (), 0, ((), ()), 0, (Range(MIB, MIB),))
    owners = classify(partly, source, examine(source))
    assert not owners.in_step and "not known" in told(partly, owners, "C:")[0].what


def test_unreadable_ranges_are_told_for_each_leg(volume):
    found, owners = classified(volume, one_bad=[(8 * MIB, 1024)], two_bad=[(8 * MIB + 512, 512)])
    _, one, two = told(found, owners, "C:")
    assert "disk0" in one.what and "512 bytes of it on no leg" in one.why and "taken from there" in one.next
    assert "512 bytes on disk1" in two.what


def test_what_a_stale_leg_must_not_give(volume):
    source, where = MemorySource(volume), places(volume)
    kept = protected_ranges(source, examine(source))
    for path in ("\\$MFT", "\\$LogFile", "\\$Bitmap", "\\$Boot", "\\WINDOWS\\system32\\config\\SYSTEM"):
        assert without(where[path], kept) == [], path
    for path in ("\\letters.doc", "\\WINDOWS\\system32\\config\\SysEvent.Evt"):
        assert without(where[path], kept) == where[path], path
    among = [where["\\letters.doc"][0], where["\\$MFT"][0]]
    assert protected_ranges(source, examine(source), sorted(among, key=lambda r: r.offset)) == (where["\\$MFT"][0],)


def test_damaged_volumes_are_classed_all_the_same(volume):
    """Bytes of the boot sector, the MFT and folders flipped: an answer that adds up, never an exception."""
    chance, where = random.Random(9), places(volume)
    areas = [range(512), *(range(r.offset, min(r.end, r.offset + 65536)) for r in where["\\$MFT"])]
    letter, mft = where["\\letters.doc"][0].offset, where["\\$MFT"][0].offset
    for _ in range(40):
        torn = changed(volume, *(chance.choice(chance.choice(areas)) for _ in range(chance.randrange(1, 6))))
        source = MemorySource(torn)
        filesystem = examine(source)
        found = compare([leg(torn), leg(changed(torn, letter, mft + 100))], extents=data_of(
            [Range(mft, 4096), Range(letter, 4096)] if mft < letter else [Range(letter, 4096), Range(mft, 4096)],
            len(torn)))
        owners = classify(found, source, filesystem)
        assert not owners.in_step and sum(owners.amounts.values()) >= 1024 and told(found, owners, "C:")
        kept = protected_ranges(source, filesystem, [Range(mft, 512)])
        assert kept == (Range(mft, 512),) or filesystem.state is not FilesystemState.CLEAN


def test_a_fat_volume(needs, tmp_path):
    needs("mkfs.fat", "mcopy")
    image = tmp_path / "fat"
    image.write_bytes(bytes(32 * MIB))
    (tmp_path / "LETTER.DOC").write_bytes(noise(300_000, 3))
    run("mkfs.fat", "-F", "16", "-s", "4", image)
    run("mcopy", "-i", image, tmp_path / "LETTER.DOC", "::")
    content = image.read_bytes()
    letter = places(content)["\\LETTER.DOC"][0].offset
    _, owners = classified(content, letter, 1024, len(content) - 1)
    assert owners.files == (("\\LETTER.DOC", 512),) and not owners.in_step
    assert owners.metadata == (("folders and other structures", 512),) and owners.amounts[Owner.FREE] == 512
    source = MemorySource(content)
    assert protected_ranges(source, examine(source), [Range(1024, 512), Range(letter, 512)]) == (Range(1024, 512),)


# --- the map


def test_the_map_shows_where():
    found = Comparison(64 * MIB, ("disk0", "disk12"), 50 * MIB, (Range(0, 512), Range(8 * MIB, 512)), 1024,
                       ((Range(16 * MIB, MIB),), ()), 0, (Range(60 * MIB, 4 * MIB),))
    source = MemorySource(bytes(512))
    owners = classify(found, source, Filesystem("ext4", free=(Range(0, MIB),)))
    one, two, legend = draw(found, owners).splitlines()
    assert one == "disk0  [~" + "." * 7 + "#" + "." * 7 + "x" + "." * 43 + "----]"
    assert two == "disk12 [~" + "." * 7 + "#" + "." * 51 + "----]"
    assert all(words in legend for words in ("~ differs, not in use", "x unreadable", "1.0 MiB"))
    assert "#" in draw(found) and "~" not in draw(found)


def test_a_small_volume_fills_its_map():
    content = noise(4 * 512)
    found = compare([leg(content), leg(changed(content, 600))])
    assert draw(found, width=8).splitlines()[0] == "leg [..##....]"
    assert read(MemorySource(content), 600, 1) != bytes([content[600] ^ 0xFF])
