"""Linux md: every superblock version, every state of a RAID 1, and every way in which members lie."""

from __future__ import annotations

import lzma
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import md as made
from fixtures.disks import FIRST, Entry, make_disk
from p2v.errors import Finding, LayoutError, Severity, Where
from p2v.filesystem import examine, open_files
from p2v.model import Mirror, Range, Source, read
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from p2v.volume import Layout, find_volumes, md, mdsuper, metadata_ranges
from tests.volume.made_tables import disk as table_disk
from tests.volume.made_tables import gpt as make_gpt
from tests.volume.made_tables import sector as table_sector

MIB = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> made.Content:
    return made.make_content(tmp_path_factory.mktemp("whole"), whole=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> made.Content:
    return made.make_content(tmp_path_factory.mktemp("bare"), whole=False)


def layout(*paths: Path) -> Layout:
    return find_volumes({f"disk{index}": open_disk(str(path)) for index, path in enumerate(paths)})


def one_mirror(found: Layout) -> Mirror:
    (mirror,) = found.mirrors
    assert found.volumes == ()
    return mirror


def said(found: Layout, words: str) -> list[Finding]:
    return [finding for finding in found.findings if words in finding.what]


def files_of(source: Source) -> list[str]:
    return sorted(open_files(source, examine(source)).list("\\"))


# -- RAID 1


@pytest.mark.parametrize("version", made.VERSIONS)
@pytest.mark.parametrize("partition", [False, True])
def test_a_mirror_of_every_version(version: str, partition: bool, whole: made.Content, bare: made.Content,
                                   tmp_path: Path) -> None:
    content = bare if partition else whole
    found = layout(*made.build_mirror(tmp_path, content, version, partition=partition))
    mirror = one_mirror(found)
    assert found.findings == () and mirror.missing == () and mirror.size == content.size
    assert mirror.name == ("md.md0" if "0.90" in version else "md.web:0") and mirror.origin.manager == "md"
    assert [leg.disk for leg in mirror.legs] == ["disk0", "disk1"]
    for leg in mirror.legs:
        assert (leg.generation, leg.against, leg.fails) == ((40,), (), ())
        assert read(leg.source, 0, mirror.size) == content.now.read_bytes()
        assert leg.member.offset == (FIRST * 512 if partition else 0) + made.data_offset(version)
        assert (leg.partition is not None) == partition


def test_what_is_inside_is_read_once_a_leg_is_chosen(whole: made.Content, tmp_path: Path) -> None:
    mirror = one_mirror(layout(*made.build_mirror(tmp_path, whole, "1.0", "stale")))
    inside = [find_volumes({"disk0": leg.source}).volumes for leg in mirror.legs]
    assert [[v.name for v in volumes] for volumes in inside] == [["disk0p1"]] * 2
    assert ["new.txt" in files_of(volumes[0].source) for volumes in inside] == [True, False]
    assert all("old.txt" in files_of(volumes[0].source) for volumes in inside)


@pytest.mark.parametrize("version", made.VERSIONS)
@pytest.mark.parametrize("case, generations, against, fails", [
    ("missing", [40], [""], [()]),
    ("stale", [40, 12], ["", "faulty or removed"], [("disk1",), ()]),
    ("faulty", [40, 12], ["", "faulty or removed"], [("disk1",), ()]),
    ("dirty", [40, 40], ["", ""], [(), ()]),
    ("split", [40, 39], ["", "faulty or removed"], [("disk1",), ("disk0",)]),
])
def test_what_the_superblocks_hold_against_a_leg(
        version: str, case: str, generations: list[int], against: list[str], fails: list[tuple[str, ...]],
        whole: made.Content, tmp_path: Path) -> None:
    found = layout(*made.build_mirror(tmp_path, whole, version, case))
    mirror = one_mirror(found)
    assert [leg.generation for leg in mirror.legs] == [(events,) for events in generations]
    for leg, words in zip(mirror.legs, against, strict=True):
        assert (words in "".join(leg.against)) if words else not leg.against
    assert [leg.fails for leg in mirror.legs] == fails
    assert all(f.where.source and f.why and f.next for f in found.findings)


@pytest.mark.parametrize("version", made.VERSIONS)
def test_a_member_that_was_being_rebuilt(version: str, whole: made.Content, tmp_path: Path) -> None:
    first, second = one_mirror(layout(*made.build_mirror(tmp_path, whole, version, "recovering"))).legs
    words = "its own superblock calls it spare" if "0.90" in version else f"first {whole.size // 2} of {whole.size}"
    assert not first.against and words in second.against[0]


def test_missing_members_are_named_by_slot(whole: made.Content, tmp_path: Path) -> None:
    first, second = made.build_mirror(tmp_path, whole, "1.2", "stale")
    alone = layout(first)
    assert one_mirror(alone).missing == ("the copy in slot 1, which was failed or removed already",)
    (finding,) = said(alone, "1 of its 2 copies not given")
    assert finding.severity is Severity.WARNING
    assert one_mirror(layout(second)).missing == ("the copy in slot 0, which the newest superblock counts as working",)


def test_the_bitmap_is_told(whole: made.Content, tmp_path: Path) -> None:
    for version in made.VERSIONS:
        found = layout(*made.build_mirror(tmp_path, whole, version, "dirty"))
        assert len(said(found, "marks 3 of 97 chunks of 64 KiB")) == 2, version
        assert len(said(found, "not shut down cleanly")) == 1


def test_a_write_mostly_member_says_so(whole: made.Content, tmp_path: Path) -> None:
    for version in made.VERSIONS:
        path = tmp_path / "member"
        path.write_bytes(bytes(made.device_size(version, MIB)))
        made.write_member(path, made.Array(version, MIB), made.Disk(1, write_mostly=True))
        (leg,) = one_mirror(layout(path)).legs
        assert leg.history.endswith("slot 1 of 2, write-mostly")


def test_the_same_member_twice(whole: made.Content, tmp_path: Path) -> None:
    first, second = made.build_mirror(tmp_path, whole, "1.2")
    found = layout(first, second, first)
    assert [leg.disk for leg in one_mirror(found).legs] == ["disk0", "disk1"]
    assert said(found, "a copy of a member that is here already")


def test_two_arrays_of_one_name_and_a_member_of_another_kind(tmp_path: Path) -> None:
    paths = []
    for index, changes in enumerate(({}, {"uuid": bytes(16)}, {"level": 0, "chunk": 65536, "events": 7})):
        path = tmp_path / str(index)
        path.write_bytes(bytes(made.device_size("1.2", MIB)))
        made.write_member(path, replace(made.Array("1.2", MIB), **changes), made.Disk(index % 2))
        paths.append(path)
    found = layout(*paths)
    assert len({mirror.name for mirror in found.mirrors}) == 2
    (finding,) = said(found, "disk2 does not fit")
    assert finding.severity is Severity.ERROR


def test_a_reshape_is_not_read(tmp_path: Path) -> None:
    for version in ("0.90", "1.2"):
        path = tmp_path / version
        path.write_bytes(bytes(made.device_size(version, MIB)))
        made.write_member(path, made.Array(version, MIB, reshape=True), made.Disk(0))
        found = layout(path)
        assert not found.mirrors and not found.volumes
        assert said(found, "being reshaped")[0].severity is Severity.ERROR


# -- whole disks, partitions, leftovers


def test_the_end_of_the_disk_that_is_the_end_of_its_last_partition(tmp_path: Path) -> None:
    """The partition's superblock lies where one of the whole disk would."""
    path = tmp_path / "disk"
    sectors, start = 8 * MIB // 512, 128
    make_disk(path, sectors, 1, [Entry(0xFD, start, sectors - start)], made.GEOMETRY)
    device = (sectors - start) * 512
    assert made.superblock_at("0.90", 8 * MIB) == start * 512 + made.superblock_at("0.90", device)
    made.write_member(path, made.Array("0.90", 4 * MIB), made.Disk(0), start=start * 512, device=device)
    (leg,) = one_mirror(layout(path)).legs
    assert leg.partition is not None and leg.member.offset == start * 512


def test_a_leftover_in_front_of_a_table_is_no_member(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make_disk(path, 8 * MIB // 512, 1, [Entry(7, FIRST, 4096)], made.GEOMETRY)
    made.write_member(path, made.Array("1.2", 2 * MIB), made.Disk(0))
    found = layout(path)
    assert [v.name for v in found.volumes] == ["disk0p1"] and not found.mirrors
    assert said(found, "beside a partition table")[0].severity is Severity.WARNING


def test_a_member_in_a_gpt_partition(tmp_path: Path) -> None:
    path = tmp_path / "member"
    path.write_bytes(numbered_sectors("member", MIB) + bytes(1 << 17))
    made.write_member(path, made.Array("1.0", MIB), made.Disk(0))
    data = bytearray(4 * MIB)
    sectors = path.stat().st_size // 512
    make_gpt(data, [("a19d880f-05fc-4d3b-a006-743f0f84911e", 2048, 2048 + sectors - 1)])
    data[MIB:MIB + path.stat().st_size] = path.read_bytes()
    found = find_volumes({"disk0": MemorySource(data)})
    (leg,) = one_mirror(found).legs
    assert leg.member.offset == MIB and read(leg.source, 0, MIB) == numbered_sectors("member", MIB)


def test_a_spare_is_no_candidate(whole: made.Content, tmp_path: Path) -> None:
    array = made.Array("1.2", whole.size, roles=(0, 1, made.SPARE))
    paths = [made.place_member(tmp_path / str(number), array, made.Disk(number), whole.now) for number in range(3)]
    found = layout(*paths)
    *working, spare = one_mirror(found).legs
    assert spare.disk == "disk2" and "calls it spare" in spare.against[0]
    assert all(leg.against == leg.fails == () for leg in working) and found.findings == ()


def test_a_partition_that_should_be_a_member_is_no_volume() -> None:
    found = find_volumes({"disk0": MemorySource(bytes(table_disk(4096, {0: table_sector([(0xFD, 63, 2000)])})))})
    assert found.volumes == () and said(found, "without a superblock")


def test_of_two_superblocks_the_younger_array_counts(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * MIB))
    made.write_member(path, made.Array("1.2", 2 * MIB, uuid=bytes(16)), made.Disk(0))
    data = bytearray(path.read_bytes())
    at = 4096
    struct.pack_into("<Q", data, at + 64, 1)  # made in 1970
    (stored,) = struct.unpack_from("<I", data, at + 216)
    struct.pack_into("<I", data, at + 216, (stored - made.MADE + 1) & 0xFFFFFFFF)
    path.write_bytes(data)
    made.write_member(path, made.Array("1.0", 2 * MIB), made.Disk(0))
    found = layout(path)
    assert one_mirror(found).origin.group == "10111213:14151617:18191a1b:1c1d1e1f"
    assert said(found, "a second md superblock (1.2)")


def test_superblocks_are_metadata_to_wipe(whole: made.Content, tmp_path: Path) -> None:
    for partition in (False, True):
        (path,) = made.build_mirror(tmp_path, whole, "1.0", "missing", partition=partition)
        source = open_disk(str(path))
        (found,) = metadata_ranges(source)
        assert read(source, found.offset, 4) == made.MAGIC.to_bytes(4, "little") and found.length == 4096


# -- other levels


def members(folder: Path, array: made.Array, numbers: list[int], events: dict[int, int] | None = None) -> list[Path]:
    paths = []
    for number in numbers:
        path = folder / f"member{number}"
        data = numbered_sectors(f"member{number}", array.size)
        path.write_bytes(bytes(made.data_offset(array.version)) + data + bytes(1 << 17))
        mine = replace(array, events=(events or {}).get(number, array.events))
        made.write_member(path, mine, made.Disk(number))
        paths.append(path)
    return paths


def first_sector(number: int, sector: int) -> bytes:
    return numbered_sectors(f"member{number}", MIB)[sector * 512:sector * 512 + 512]


@pytest.mark.parametrize("version", made.VERSIONS)
@pytest.mark.parametrize("level, chunk, size, second", [(-1, 0, 2 * MIB, (0, 128)), (0, 65536, 2 * MIB, (1, 0))])
def test_stripes_and_spans_in_slot_order(version: str, level: int, chunk: int, size: int, second: tuple[int, int],
                                         tmp_path: Path) -> None:
    array = made.Array(version, MIB, level=level, chunk=chunk)
    (volume,) = layout(*members(tmp_path, array, [1, 0])).volumes
    assert volume.layout == {-1: "spanned", 0: "striped"}[level]
    assert [m.disk for m in volume.members] == ["disk1", "disk0"]
    assert read(volume.source, 0, 512) == first_sector(0, 0)
    assert read(volume.source, 65536, 512) == first_sector(*second)
    assert volume.source.size == sum(m.length for m in volume.members) >= size


@pytest.mark.parametrize("level, layout_code, roles, name, first", [
    (4, 0, 3, "raid4", 0), (5, 2, 3, "raid5", 0), (6, 2, 4, "raid6", 1), (10, 0x102, 4, "raid10", 0)])
def test_sets_that_bear_a_loss(level: int, layout_code: int, roles: int, name: str, first: int,
                               tmp_path: Path) -> None:
    array = made.Array("1.2", MIB, level=level, layout=layout_code, chunk=65536, raid_disks=roles,
                       roles=tuple(range(roles)))
    everyone = list(range(roles))
    (volume,) = layout(*members(tmp_path, array, everyone)).volumes
    assert volume.layout == name and read(volume.source, 0, 512) == first_sector(first, 0)
    fewer = layout(*members(tmp_path, array, everyone[:-1]))
    assert len(fewer.volumes) == 1
    assert said(fewer, f"1 of its {roles} members missing, slot {roles - 1}")[0].severity is Severity.WARNING
    none = layout(*members(tmp_path, array, everyone[:1]))
    assert not none.volumes and any(f.severity is Severity.ERROR for f in none.findings)


def test_a_stale_member_of_a_parity_set_is_left_out(tmp_path: Path) -> None:
    array = made.Array("1.2", MIB, level=5, layout=2, chunk=65536, raid_disks=3, roles=(0, 1, 2))
    found = layout(*members(tmp_path, array, [0, 1, 2], {1: 38}))
    assert [m.disk for m in found.volumes[0].members] == ["disk0", "disk2"]
    (finding,) = said(found, "disk1 is left out")
    assert "38 events" in finding.why
    assert not said(layout(*members(tmp_path, array, [0, 1, 2], {1: 39})), "left out")


def test_a_stripe_set_without_a_member_is_not_read(tmp_path: Path) -> None:
    found = layout(*members(tmp_path, made.Array("1.2", MIB, level=0, chunk=65536), [0]))
    assert not found.volumes and said(found, "slot 1")[0].severity is Severity.ERROR


def test_two_disks_for_one_slot(tmp_path: Path) -> None:
    array = made.Array("0.90", MIB, level=0, chunk=65536)
    first, second = members(tmp_path, array, [0, 1])
    twin = tmp_path / "twin"
    twin.write_bytes(first.read_bytes())
    found = layout(first, twin, second)
    assert not found.volumes and said(found, "two disks claim slot 0")


def test_a_crash_without_a_member_leaves_parity_in_doubt(tmp_path: Path) -> None:
    array = made.Array("1.2", MIB, level=5, layout=2, chunk=65536, raid_disks=3, roles=(0, 1, 2), clean=False)
    assert said(layout(*members(tmp_path, array, [0, 1])), "not shut down cleanly, and lacks a member")


# -- real members, and mdadm as the witness

REAL = ("md-90-1", "md-90-2", "md-raid1-1", "md-raid1-2", "md-raid0-1", "md-raid0-2", "md-raid0-3", "md-raid5-1",
        "md-raid5-2", "md-raid5-3", "md-linear-1", "md-linear-2", "ul-mdraid")


def real(corpus: Path, name: str) -> MemorySource:
    path = next((corpus / "md").glob(f"{name}.*"))
    return MemorySource(lzma.decompress(path.read_bytes()), name)


def test_real_arrays(corpus: Path) -> None:
    def volumes(*names: str) -> Layout:
        return find_volumes({f"disk{i}": real(corpus, name) for i, name in enumerate(names)})

    for names, size in ((("md-90-1", "md-90-2"), 5056 << 10), (("md-raid1-1", "md-raid1-2"), 2 << 20)):
        found = volumes(*names)
        first, second = one_mirror(found).legs
        assert found.findings == () and one_mirror(found).size == size
        assert read(first.source, 0, size) == read(second.source, 0, size)
    for names, size, name in ((("md-raid0-1", "md-raid0-2", "md-raid0-3"), 5 << 20, "striped"),
                              (("md-raid5-1", "md-raid5-2", "md-raid5-3"), 4 << 20, "raid5"),
                              (("md-linear-1", "md-linear-2"), 2 << 20, "spanned")):
        found = volumes(*names)
        assert found.findings == ()
        assert [(v.layout, v.source.size) for v in found.volumes] == [(name, size)]
    whole, without = volumes("md-raid5-1", "md-raid5-2", "md-raid5-3"), volumes("md-raid5-1", "md-raid5-3")
    assert read(whole.volumes[0].source, 0, 4 << 20) == read(without.volumes[0].source, 0, 4 << 20)


def examined(path: Path, *more: str) -> dict[str, str]:
    """What mdadm --examine says, by its own labels."""
    text = subprocess.run(["mdadm", "--examine", *more, str(path)], check=True, capture_output=True, text=True).stdout
    return {m[1].strip(): m[2].strip() for m in re.finditer(r"^\s*([A-Za-z ]+?) : (.*)$", text, re.MULTILINE)}


def same_as_mdadm(path: Path, sb: mdsuper.Superblock, *more: str) -> None:
    told = examined(path, *more)
    assert told["Checksum"].endswith("correct")
    assert told["Version"].startswith(sb.version)
    assert told.get("Array UUID", told.get("UUID")) == sb.uuid
    assert int(told["Events"]) == sb.events
    assert told["Raid Level"] == mdsuper.LEVELS[sb.level] and int(told["Raid Devices"]) == sb.raid_disks
    assert (told["State"] == "clean") == (sb.resync is None)
    if "Device Role" in told:
        assert told["Device Role"] == {mdsuper.SPARE: "spare"}.get(sb.role, f"Active device {sb.role}")
        assert int(told.get("Data Offset", "0").split()[0]) * 512 == sb.data_offset
        state = told["Array State"].split()[0]
        assert [char == "A" for char in state] == [slot in sb.active for slot in range(sb.raid_disks)]


def superblock(source: Source) -> mdsuper.Superblock:
    (device,) = [md._device(place)[0] for place in md.places({"disk0": source}) if place.partition is None]
    assert device is not None
    return device.sb


@pytest.mark.parametrize("name", REAL)
def test_mdadm_reads_real_members_alike(name: str, corpus: Path, tmp_path: Path, needs) -> None:
    needs("mdadm")
    source = real(corpus, name)
    path = tmp_path / name
    path.write_bytes(read(source, 0, source.size))
    same_as_mdadm(path, superblock(source))


@pytest.mark.parametrize("version", made.VERSIONS)
def test_mdadm_reads_our_members_alike(version: str, whole: made.Content, tmp_path: Path, needs) -> None:
    needs("mdadm")
    swapped = "big" in version  # mdadm does not look for the bitmap of a swapped superblock, and clears its bit
    for case in (case for case in made.CASES if not (swapped and case == "dirty")):
        for path in made.build_mirror(tmp_path, whole, version, case):
            same_as_mdadm(path, superblock(open_disk(str(path))), *(["-e", "0.swap"] if swapped else []))


# -- damage


@pytest.mark.parametrize("version", made.VERSIONS)
def test_every_flipped_byte_gives_an_answer(version: str) -> None:
    size = made.device_size(version, 65536)
    at = made.superblock_at(version, size)
    good = made.superblock(made.Array(version, 65536), made.Disk(0, dirty=(1,)), size)
    told = mdsuper.parse(version[:4].strip(), good, at, Where("disk0"))
    for place in [*range(264), *range(264, 4096, 37)]:
        damaged = bytearray(good)
        damaged[place] ^= 0x81
        if not mdsuper.is_superblock(version[:4].strip(), bytes(damaged)):
            continue
        try:
            assert mdsuper.parse(version[:4].strip(), bytes(damaged), at, Where("disk0")) == told, place
        except LayoutError as error:
            assert error.next and error.why


def test_a_broken_superblock_is_no_plain_disk(whole: made.Content, tmp_path: Path) -> None:
    for version in ("0.90", "1.0"):
        (path,) = made.build_mirror(tmp_path, whole, version, "missing")
        data = bytearray(path.read_bytes())
        data[made.superblock_at(version, len(data)) + 100] ^= 1
        found = find_volumes({"disk0": MemorySource(data)})
        assert found.volumes == () and found.mirrors == ()
        assert said(found, "cannot be trusted")[0].severity is Severity.ERROR


def resummed(data: bytearray) -> bytes:
    """A 1.x superblock with its checksum put right."""
    struct.pack_into("<I", data, 216, 0)
    length = 256 + 2 * struct.unpack_from("<I", data, 220)[0]
    total = sum(struct.unpack_from(f"<{min(length, 4096) // 4}I", data))
    struct.pack_into("<I", data, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    return bytes(data)


@pytest.mark.parametrize("at, form, value", [
    (92, "<I", 1 << 31), (92, "<I", 0), (220, "<I", 65535), (88, "<I", 0xFFFFFFFF), (80, "<Q", 1 << 63), (80, "<Q", 0),
    (128, "<Q", 1 << 63), (136, "<Q", (1 << 64) - 1), (160, "<I", 0xFFFFFFFF), (72, "<i", 77), (96, "<i", -(1 << 31)),
    (152, "<Q", (1 << 64) - 1), (200, "<Q", (1 << 64) - 1), (192, "<Q", (1 << 64) - 1), (76, "<I", 0xFFFFFFFF)])
@pytest.mark.parametrize("level", [-1, 0, 1, 5, 10])
def test_absurd_numbers_with_a_good_checksum(at: int, form: str, value: int, level: int) -> None:
    data = bytearray(2 * MIB)
    array = made.Array("1.1", 65536, level=level, layout=2, chunk=4096 * (level != 1))
    sector = bytearray(made.superblock(array, made.Disk(0, dirty=(1,)), len(data)))
    struct.pack_into(form, sector, at, value)
    data[:4096] = resummed(sector)
    found = find_volumes({"disk0": MemorySource(data)})
    assert found.findings or found.mirrors or found.volumes
    assert all(leg.member.offset + leg.member.length <= len(data) for m in found.mirrors for leg in m.legs)


def test_members_that_are_cut_short(whole: made.Content, tmp_path: Path) -> None:
    path, _ = made.build_mirror(tmp_path, whole, "1.2")
    data = path.read_bytes()
    for size in (0, 512, 4096, 8192, made.NEW_DATA, made.NEW_DATA + 4096, len(data) // 2):
        found = find_volumes({"disk0": MemorySource(data[:size])})
        assert not found.mirrors and found.findings


def test_a_bitmap_that_makes_no_sense_is_told(whole: made.Content, tmp_path: Path) -> None:
    path, _ = made.build_mirror(tmp_path, whole, "1.2", "dirty")
    good = path.read_bytes()
    for at, value in ((52, 0), (40, 1 << 60), (48, 2), (24, 7), (0, 0)):
        data = bytearray(good)
        struct.pack_into("<Q" if at in (24, 40) else "<I", data, 8192 + at, value)
        found = find_volumes({"disk0": MemorySource(data)})
        assert found.mirrors and (said(found, "out of date") or said(found, "bitmap of md"))


def test_what_cannot_be_read_is_said(whole: made.Content, tmp_path: Path) -> None:
    path, _ = made.build_mirror(tmp_path, whole, "1.0")
    data = path.read_bytes()
    spot = made.superblock_at("1.0", len(data))
    found = find_volumes({"disk0": FaultySource(MemorySource(data), [Range(spot, 512)])})
    assert said(found, "nobody can tell whether a superblock of Linux md is here")


@settings(deadline=None, max_examples=80)
@given(st.binary(min_size=512, max_size=512), st.sampled_from(["0.90", "1.0", "1.1", "1.2"]))
def test_any_bytes_behind_the_magic_number(tail: bytes, version: str) -> None:
    data = bytearray(1 << 18)
    at = made.superblock_at(version, len(data))
    data[at:at + 512] = struct.pack("<II", made.MAGIC, version != "0.90") + tail[8:]
    found = find_volumes({"disk0": MemorySource(data)})
    assert found.volumes == () and any(f.severity is Severity.ERROR for f in found.findings)
