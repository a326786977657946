"""Fault-tolerant sets of NT 4: what the hives say against the tables, what is left without them, what is refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import fttiny, hives
from fixtures.ft import Row, information
from fixtures.ftdata import FtData, build_data
from p2v.choosing import settle
from p2v.errors import Finding, Severity
from p2v.filesystem import examine, open_files
from p2v.model import SECTOR, Member, Mirror, Range, Source, Volume, read
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource
from p2v.volume import find_volumes, ftdisk
from p2v.volume.ftregistry import FtState, FtType

START, LENGTH = fttiny.SYSTEM_START * SECTOR, fttiny.SYSTEM_SECTORS * SECTOR
FIRST, SECOND, THIRD = 0x11111111, 0x22222222, 0x33333333
States = tuple[FtState, FtState]
HEALTHY = (FtState.HEALTHY, FtState.HEALTHY)
OTHER_LOST = (FtState.HEALTHY, FtState.ORPHANED)
Found = list[Volume | Mirror | Member | Finding]


def mirror_value(states: States = HEALTHY, signatures: Sequence[int] = (FIRST, SECOND), dirty: bool = False) -> bytes:
    return information([(signature, [Row(START, LENGTH, "C", FtType.MIRROR, 0, member, states[member])])
                        for member, signature in enumerate(signatures)], dirty)


def leg(value: bytes | None, signature: int, kind: int = 0x86, members: Sequence[fttiny.TableRow] = ()) -> bytearray:
    """A disk with one leg: a FAT volume whose hive has this value."""
    return fttiny.disk(fttiny.hive(value) if value else hives.stored("minimal"), members, signature=signature,
                       system_type=kind)


def find(*disks: bytes | bytearray | Source) -> Found:
    return list(ftdisk.find(sources(*disks)))


def sources(*disks: bytes | bytearray | Source) -> dict[str, Source]:
    return {f"disk{n}": MemorySource(disk, f"disk{n}") if isinstance(disk, bytes | bytearray) else disk
            for n, disk in enumerate(disks)}


def only_mirror(found: Found) -> Mirror:
    (mirror,) = [f for f in found if isinstance(f, Mirror)]
    assert not [f for f in found if isinstance(f, Volume)]
    return mirror


def findings(found: Found, words: str = "") -> list[Finding]:
    return [f for f in found if isinstance(f, Finding) and words in str(f)]


def errors(found: Found) -> list[Finding]:
    return [f for f in findings(found) if f.severity is Severity.ERROR]


# -- mirrors with their hives


def test_a_mirror_in_step() -> None:
    disks = leg(mirror_value(), FIRST), leg(mirror_value(dirty=True), SECOND)
    found = find(*disks)
    mirror = only_mirror(found)
    assert not findings(found)
    assert (mirror.name, mirror.size, mirror.missing) == ("ft.mirror0", LENGTH, ())
    assert (mirror.origin.manager, mirror.origin.name, mirror.origin.letter, mirror.origin.type) == (
        "ft", "mirror 0", "C:", 6)
    for number, (copy, disk) in enumerate(zip(mirror.legs, disks, strict=True)):
        assert (copy.disk, copy.generation, copy.against, copy.fails) == (f"disk{number}", (), (), ())
        assert copy.changed is None  # nothing was detached at any time
        assert copy.member == Member(f"disk{number}", START, LENGTH)
        assert copy.partition and copy.partition.number == 1 and copy.partition.type == 0x86
        assert read(copy.source, 0, LENGTH) == disk[START:START + LENGTH]
        assert "member 0 healthy, member 1 healthy" in copy.history and "SYSTEM" in copy.history.upper()
    assert "not shut down cleanly" in mirror.legs[1].history
    assert "not shut down cleanly" not in mirror.legs[0].history


def test_the_partitions_are_listed_and_no_plain_volume_is_made() -> None:
    layout = find_volumes(sources(leg(mirror_value(), FIRST), leg(mirror_value(), SECOND)))
    assert [(p.disk, p.type, p.number) for p in layout.partitions] == [("disk0", 0x86, 1), ("disk1", 0x86, 1)]
    assert not layout.volumes and len(layout.mirrors) == 1 and not layout.findings


def test_the_order_of_the_disks_does_not_matter() -> None:
    mirror = only_mirror(find(leg(mirror_value(), SECOND), leg(mirror_value(), FIRST)))
    assert [copy.disk for copy in mirror.legs] == ["disk1", "disk0"]  # member 0 first


def test_the_orphan_is_known_from_the_other_hive() -> None:
    current, orphan = only_mirror(find(leg(mirror_value(OTHER_LOST), FIRST), leg(mirror_value(), SECOND))).legs
    assert (current.against, current.fails) == ((), ("disk1",))
    assert orphan.fails == () and len(orphan.against) == 1
    assert "disk0 calls it orphaned" in orphan.against[0]
    assert "member 1 orphaned; the set: has orphan" in current.history and "member 1 healthy" in orphan.history


def test_split_brain() -> None:
    lost_first = (FtState.ORPHANED, FtState.HEALTHY)
    one, two = only_mirror(find(leg(mirror_value(OTHER_LOST), FIRST), leg(mirror_value(lost_first), SECOND))).legs
    assert (one.fails, two.fails) == (("disk1",), ("disk0",))
    assert one.against and two.against


@pytest.mark.parametrize("state", [FtState.REGENERATING, FtState.INITIALIZING, FtState.SYNC_COPY])
def test_a_copy_that_was_being_written_is_no_candidate(state: FtState) -> None:
    value = bytearray(mirror_value())
    struct.pack_into("<I", value, 44 + 4 + 8 + 52 + 8 + 4, state)  # of the second disk's partition
    value = bytes(value)
    one, two = only_mirror(find(leg(value, FIRST), leg(value, SECOND))).legs
    assert not one.against and str(state) in two.against[0] and str(state) in two.history
    assert (one.fails, two.fails) == (("disk1",), ())


def test_a_member_that_nt_marked_bad() -> None:
    one, two = only_mirror(find(leg(mirror_value(), FIRST), leg(mirror_value(), SECOND, 0xC6))).legs
    assert not one.against and "0xc6" in two.against[0]
    assert only_mirror(find(leg(mirror_value(), FIRST), leg(mirror_value(), SECOND, 0xC6))).origin.type == 6


@pytest.mark.parametrize(("signature", "gone"), [(FIRST, "0x22222222"), (SECOND, "0x11111111")])
def test_a_survivor_works_and_is_said(signature: int, gone: str) -> None:
    found = find(leg(mirror_value(), signature))
    mirror = only_mirror(found)
    assert [copy.disk for copy in mirror.legs] == ["disk0"] and not mirror.legs[0].against
    assert len(mirror.missing) == 1 and gone in mirror.missing[0] and "not given" in mirror.missing[0]
    (said,) = findings(found)
    assert said.severity is Severity.WARNING and gone in said.why


def test_a_survivor_that_its_own_hive_calls_orphaned() -> None:
    (copy,) = only_mirror(find(leg(mirror_value(OTHER_LOST), SECOND))).legs
    assert "orphaned" in copy.against[0] and copy.fails == ()


def test_the_mirror_was_broken_on_the_first_disk() -> None:
    found = find_volumes(sources(leg(None, FIRST, kind=6), leg(mirror_value(), SECOND)))
    (mirror,) = found.mirrors
    assert [copy.disk for copy in mirror.legs] == ["disk1"]
    assert "plain partition now, type 0x06" in mirror.missing[0]
    assert [volume.name for volume in found.volumes] == ["disk0p1"]


def test_another_place_and_a_longer_partition_on_the_shadow() -> None:
    at, longer = 200 * SECTOR, LENGTH + 90 * SECTOR
    rows = [(FIRST, [Row(START, LENGTH, "C", FtType.MIRROR)]),
            (SECOND, [Row(100 * SECTOR, 50 * SECTOR), Row(at, longer, "C", FtType.MIRROR, 0, 1)])]
    shadow = fttiny.disk(b"", [(0x12, 100, 50), (0x86, 200, longer // SECTOR)], signature=SECOND)
    shadow[at:at + LENGTH] = leg(information(rows), FIRST)[START:START + LENGTH]
    one, two = only_mirror(find(leg(information(rows), FIRST), shadow)).legs
    assert two.partition and (two.partition.number, two.partition.length) == (2, longer)
    assert two.source.size == one.source.size == LENGTH
    assert read(one.source, 0, LENGTH) == read(two.source, 0, LENGTH)
    assert "own hive" in two.history


def test_two_hives_that_name_different_shadows() -> None:
    """disk1 was replaced by disk2, and came back."""
    newer = mirror_value(signatures=(FIRST, THIRD))
    found = find(leg(newer, FIRST), leg(mirror_value(), SECOND), leg(newer, THIRD))
    legs = {copy.disk: copy for copy in only_mirror(found).legs}
    assert (legs["disk0"].against, legs["disk0"].fails) == ((), ("disk1",))
    assert any("does not count it" in word for word in legs["disk1"].against)
    assert any("disk1 does not count it" in word for word in legs["disk2"].against)


# -- without hives, or with hives of no use


def test_without_a_hive_a_survivor_is_read_and_said() -> None:
    found = find(leg(None, FIRST))
    mirror = only_mirror(found)
    assert mirror.name == "ft.mirror-2003-0501" and mirror.missing and not mirror.legs[0].against
    (said,) = findings(found)
    assert said.severity is Severity.WARNING and "half of a mirror" in said.what and "FAT" in said.what


def test_without_a_hive_a_pair_waits_for_the_user() -> None:
    found = find(leg(None, FIRST), leg(None, SECOND))
    mirror = only_mirror(found)
    assert [copy.disk for copy in mirror.legs] == ["disk0", "disk1"] and all(copy.against for copy in mirror.legs)
    assert "--leg" in findings(found, "two halves")[0].next and not errors(found)
    layout = find_volumes(sources(leg(None, FIRST), leg(None, SECOND)))
    assert [f.severity for f in settle(layout).findings] == [Severity.ERROR]
    settled = settle(layout, {"": "disk1"})
    assert settled.legs[mirror.name].leg == "disk1" and settled.layout.volumes[0].layout == "mirrored"
    assert not [f for f in settled.findings if f.severity is Severity.ERROR]


def test_without_a_hive_three_copies_are_not_guessed_at() -> None:
    found = find(*(leg(None, signature) for signature in (FIRST, SECOND, THIRD)))
    assert len(errors(found)) == 3 and not [f for f in found if isinstance(f, Mirror)]


def test_without_a_hive_a_part_of_a_stripe_set_is_an_error() -> None:
    larger = leg(None, FIRST)
    struct.pack_into("<H", larger, START + 0x13, 1800)  # sectors, in the boot sector: twice what is here
    for disk in (larger, fttiny.disk(b"", [(0x87, 63, 900)], signature=FIRST)):
        (said,) = errors(find(disk))
        assert "no hive describes" in said.what and said.where.offset == 0x1BE and said.next


def test_a_foreign_hive() -> None:
    found = find(leg(mirror_value(signatures=(0x77777777, 0x88888888)), FIRST))
    assert findings(found, "none of the disks that it describes") and only_mirror(found).name.startswith("ft.mirror-")


def test_a_description_that_does_not_match_the_table() -> None:
    value = information([(FIRST, [Row(START, LENGTH + SECTOR, "C", FtType.MIRROR)]),
                         (SECOND, [Row(START, LENGTH, "C", FtType.MIRROR, 0, 1)])])
    (said,) = findings(find(leg(value, FIRST), fttiny.disk(b"", [], signature=SECOND)), "none of the disks")
    assert "DISK\\Information" in said.where.item
    found = find(leg(value, FIRST), leg(value, SECOND))
    assert findings(found, f"no entry of {LENGTH + SECTOR} bytes at {START:#x}")


def test_a_value_that_is_cut_short_names_hive_and_bytes() -> None:
    (said, *_) = findings(find(leg(mirror_value()[:100], FIRST)), "cannot be trusted")
    assert said.where.source.lower() == "disk0, \\winnt\\system32\\config\\system, disk\\information"
    assert said.where.offset is not None and said.severity is Severity.WARNING


def test_a_hive_in_a_bad_sector_is_read_on_the_other_copy() -> None:
    faulty = FaultySource(MemorySource(leg(mirror_value(), FIRST), "disk0"),
                          [Range((fttiny.HIVE_SECTOR + 1) * SECTOR, SECTOR)])
    found = find(faulty, leg(mirror_value(), SECOND))
    one, two = only_mirror(found).legs
    assert "no hive on this disk" in one.history and "own hive" in two.history
    assert findings(found, "cannot be read, so what it says")


def test_a_boot_sector_that_cannot_be_read() -> None:
    faulty = FaultySource(MemorySource(leg(mirror_value(), FIRST), "disk0"), [Range(START, SECTOR)])
    assert len(only_mirror(find(faulty, leg(mirror_value(), SECOND))).legs) == 2
    assert errors(find(faulty))


def test_a_half_written_hive_without_its_log() -> None:
    hive = bytearray(fttiny.hive(mirror_value()))
    struct.pack_into("<I", hive, 4, struct.unpack_from("<I", hive, 4)[0] + 1)
    disk = fttiny.disk(bytes(hive), [], signature=FIRST, system_type=0x86)
    assert findings(find(disk), "the hive \\WINNT")


@pytest.mark.parametrize(("signatures", "words"), [
    ((0, 0), "its signature is 0"), ((FIRST, FIRST), "shares its signature")])
def test_signatures_that_name_no_disk(signatures: tuple[int, int], words: str) -> None:
    found = find(*(leg(mirror_value(signatures=(FIRST, SECOND)), signature) for signature in signatures))
    assert len([f for f in errors(found) if words in f.what]) == 2


def test_no_leg_is_taken_from_one_of_two_disks_with_one_signature() -> None:
    found = find(leg(mirror_value(), FIRST), leg(mirror_value(), FIRST), leg(mirror_value(), SECOND))
    (mirror,) = [f for f in found if isinstance(f, Mirror) and f.name == "ft.mirror0"]
    assert [copy.disk for copy in mirror.legs] == ["disk2"]
    assert "disk0 and disk1 have the same signature" in mirror.missing[0] and len(errors(found)) == 2


def test_the_same_disk_described_twice() -> None:
    value = mirror_value(signatures=(FIRST, FIRST))
    found = find(leg(value, FIRST))
    assert findings(found, "twice") and findings(found, "none of the disks that it describes")


def test_hives_that_contradict_each_other() -> None:
    stripe = information([(signature, [Row(START, LENGTH, "C", FtType.STRIPE, 0, member)])
                          for member, signature in enumerate((FIRST, SECOND))])
    found = find(leg(mirror_value(), FIRST), leg(stripe, SECOND))
    (said,) = errors(found)
    assert "contradict" in said.what and "mirror 0 C:" in said.why and "stripe set 0 C:" in said.why


@pytest.mark.parametrize("numbers", [(0, 2), (1, 2), (0, 0)])
def test_members_that_do_not_count_from_0(numbers: tuple[int, int]) -> None:
    value = information([(signature, [Row(START, LENGTH, "C", FtType.MIRROR, 0, number)])
                         for number, signature in zip(numbers, (FIRST, SECOND), strict=True)])
    assert findings(find(leg(value, FIRST), leg(value, SECOND)), f"has 2 members, numbered {numbers[0]}, {numbers[1]}")


def test_a_leg_on_a_disk_that_is_cut_short() -> None:
    found = find(leg(mirror_value(), FIRST), leg(mirror_value(), SECOND)[:500 * SECTOR])
    mirror = only_mirror(found)
    assert [copy.disk for copy in mirror.legs] == ["disk0"] and "disk1 ends before it" in mirror.missing[0]


def test_a_leg_whose_bytes_another_partition_claims() -> None:
    found = find(leg(mirror_value(), FIRST, members=[(7, 500, 1000)]), leg(mirror_value(), SECOND))
    assert "claims the same bytes" in only_mirror(found).missing[0]


def test_nothing_is_searched_on_plain_disks() -> None:
    assert find(leg(mirror_value(), FIRST, kind=6), leg(None, SECOND, kind=7)) == []


# -- several sets, logical drives


def test_sets_on_logical_drives_and_several_on_a_disk() -> None:
    rows = []
    for signature, number in ((FIRST, 0), (SECOND, 1)):
        rows.append((signature, [
            Row(START, LENGTH, "C", FtType.MIRROR, 0, number), Row(1000 * SECTOR, 2000 * SECTOR),
            Row(1063 * SECTOR, 400 * SECTOR, "D", FtType.STRIPE, 0, number),
            Row(1600 * SECTOR, 300 * SECTOR, "E", FtType.MIRROR, 1, number)]))
    disks = []
    for signature in (FIRST, SECOND):
        disk = leg(information(rows), signature, members=[(5, 1000, 2000)])
        for place, entries in ((1000, [(0x87, 63, 400), (5, 537, 400)]), (1537, [(0x86, 63, 300)])):
            table = b"".join(struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), start, length)
                             for kind, start, length in entries)
            disk[place * SECTOR + 446:(place + 1) * SECTOR] = table.ljust(64, b"\0") + b"\x55\xaa"
        disks.append(disk)
    found = find(*disks)
    assert not errors(found)
    mirrors = [f for f in found if isinstance(f, Mirror)]
    (stripe,) = [f for f in found if isinstance(f, Volume)]
    assert [(m.name, m.origin.letter) for m in mirrors] == [("ft.mirror0", "C:"), ("ft.mirror1", "E:")]
    second = mirrors[1].legs[1]
    assert second.partition and second.partition.logical and second.partition.number == 3
    assert second.member == Member("disk1", 1600 * SECTOR, 300 * SECTOR) and "own hive" in second.history
    assert (stripe.name, stripe.layout, stripe.origin and stripe.origin.letter) == ("ft.stripe0", "striped", "D:")
    assert stripe.source.size == 2 * (400 * SECTOR // ftdisk.CHUNK * ftdisk.CHUNK)


def test_each_mirror_is_judged_by_itself() -> None:
    """C: is current on the first disk, D: on the second, and the hive of the older C: knows nothing of it."""
    def value(c_lost: FtState, d_lost: FtState) -> bytes:
        return information([(signature, [
            Row(START, LENGTH, "C", FtType.MIRROR, 0, number, c_lost if number else FtState.HEALTHY),
            Row(1000 * SECTOR, 900 * SECTOR, "D", FtType.MIRROR, 1, number, FtState.HEALTHY if number else d_lost)])
            for number, signature in enumerate((FIRST, SECOND))])

    members = [(0x86, 1000, 900)]
    found = find(leg(value(FtState.ORPHANED, FtState.ORPHANED), FIRST, members=members),
                 leg(value(*HEALTHY), SECOND, members=members))
    c, d = (f for f in found if isinstance(f, Mirror))
    assert [bool(copy.against) for copy in c.legs] == [False, True] and c.legs[0].fails == ("disk1",)
    assert [bool(copy.against) for copy in d.legs] == [True, False] and d.legs[0].fails == d.legs[1].fails == ()
    assert "member 0 orphaned, member 1 healthy" in d.legs[0].history


def test_the_same_group_twice_has_two_names() -> None:
    """Disks of two servers given together."""
    other = mirror_value(signatures=(THIRD, 0x44444444))
    found = find(leg(mirror_value(), FIRST), leg(mirror_value(), SECOND), leg(other, THIRD), leg(other, 0x44444444))
    assert sorted(f.name for f in found if isinstance(f, Mirror)) == ["ft.mirror0", "ft.mirror0-1"]


# -- data on stripe sets, parity and volume sets


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FtData:
    return build_data(tmp_path_factory.mktemp("sets"))


def volumes_of(found: Found) -> dict[str, Volume]:
    return {f.name: f for f in found if isinstance(f, Volume)}


def hashes(volume: Volume, expected: dict[str, str]) -> dict[str, str]:
    files = open_files(volume.source, examine(volume.source))
    return {path: hashlib.sha256(files.read(path)).hexdigest() for path in expected}


def opened(data: FtData, *numbers: int) -> list[Source]:
    return [open_disk(str(data.server.disks[number])) for number in numbers]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_all_files_of_all_sets(data: FtData, order: Sequence[int]) -> None:
    found = find(*opened(data, *order))
    assert not findings(found)
    volumes = volumes_of(found)
    for name, layout, letter, key in (("ft.stripe0", "striped", "D:", "stripe"),
                                      ("ft.parity0", "raid5", "E:", "stripe_with_parity"),
                                      ("ft.set0", "spanned", "F:", "volume_set")):
        volume = volumes[name]
        assert volume.layout == layout and volume.origin and volume.origin.letter == letter and len(volume.members) == 3
        assert hashes(volume, data.files[key]) == data.files[key]


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_parity_stands_in_for_one_disk_and_the_others_say_what_they_lack(data: FtData, missing: int) -> None:
    found = find(*opened(data, *(number for number in range(4) if number != missing)))
    (volume,) = volumes_of(found).values()
    assert volume.layout == "raid5" and hashes(volume, data.files["stripe_with_parity"]) == data.files[
        "stripe_with_parity"]
    signature = f"0x4441543{missing}"
    assert [signature in f.why for f in errors(found)] == [True, True]
    (warning,) = [f for f in findings(found) if f.severity is Severity.WARNING]
    assert signature in warning.why


def test_sets_that_were_left_out_are_told_and_stop_nothing(data: FtData) -> None:
    assert find(*opened(data, 0)) == []  # without a member there is no search
    found = find(*opened(data, 1))
    assert len(errors(found)) == 3 and not volumes_of(found)


def changed(data: FtData, edit: dict[int, FtState]) -> Found:
    """The sets with other states of the parity set's members: the system disk is one in memory."""
    system = [(fttiny.SIGNATURE, [Row(START, LENGTH, "C")])]
    sets = [(0x44415431 + disk, [Row(START, 16 << 20, "D", FtType.STRIPE, 0, disk),
                                 Row(START + (16 << 20), 16 << 20, "E", FtType.STRIPE_WITH_PARITY, 0, disk,
                                     edit.get(disk, FtState.HEALTHY))]) for disk in range(3)]
    value = information([*system, *sets])
    return find(fttiny.disk(fttiny.hive(value), []), *opened(data, 1, 2, 3))


@pytest.mark.parametrize("state", [FtState.ORPHANED, FtState.REGENERATING])
def test_a_stale_member_is_computed_from_the_others(data: FtData, state: FtState) -> None:
    found = changed(data, {1: state})
    volume = volumes_of(found)["ft.parity0"]
    assert {member.disk for member in volume.members} == {"disk1", "disk3"}
    assert hashes(volume, data.files["stripe_with_parity"]) == data.files["stripe_with_parity"]
    assert str(state) in findings(found, "ft.parity0")[0].why


def test_two_stale_members_are_too_many(data: FtData) -> None:
    found = changed(data, {0: FtState.ORPHANED, 1: FtState.REGENERATING})
    assert "ft.parity0" not in volumes_of(found) and errors(found)[0].what.startswith("ft.parity0")


def test_parity_that_was_never_completed_stands_in_for_nothing(data: FtData) -> None:
    found = changed(data, dict.fromkeys(range(3), FtState.INITIALIZING))
    volume = volumes_of(found)["ft.parity0"]
    assert hashes(volume, data.files["stripe_with_parity"]) == data.files["stripe_with_parity"]
    assert findings(found, "never completed")
    found = changed(data, {0: FtState.ORPHANED, 1: FtState.INITIALIZING})
    assert "ft.parity0" not in volumes_of(found) and errors(found)


def test_a_wrong_order_of_members_is_noticed(data: FtData) -> None:
    sets = [(0x44415431 + disk, [Row(START, 16 << 20, "D", FtType.STRIPE, 0, (disk + 1) % 3)]) for disk in range(3)]
    value = information([(fttiny.SIGNATURE, [Row(START, LENGTH, "C")]), *sets])
    found = find(fttiny.disk(fttiny.hive(value), []), *opened(data, 1, 2, 3))
    assert findings(found, "looks wrong")


# -- hostile input


SMALL = fttiny.disk(fttiny.hive(fttiny.described(
    [Row(1100 * SECTOR, 500 * SECTOR, "D", FtType.MIRROR, 0, 0), Row(2100 * SECTOR, 500 * SECTOR, "D", FtType.MIRROR,
                                                                      0, 1)])), [(0x86, 1100, 500), (0x86, 2100, 500)])
VALUE_AT = SMALL.index(fttiny.described([Row(1100 * SECTOR, 500 * SECTOR, "D", FtType.MIRROR, 0, 0),
                                         Row(2100 * SECTOR, 500 * SECTOR, "D", FtType.MIRROR, 0, 1)]))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from([0x1B8, START, fttiny.HIVE_SECTOR * SECTOR, VALUE_AT, VALUE_AT]),
                          st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=6),
       st.sampled_from([len(SMALL), 2200 * SECTOR, 1000 * SECTOR]))
def test_damage_is_a_finding_and_nothing_leaves_the_disk(changes: list[tuple[int, int, int]], size: int) -> None:
    disk = bytearray(SMALL)
    for base, at, byte in changes:
        if base != 0x1B8 or at < 72:
            disk[base + at] = byte
    for found in find(disk[:size]):
        assert isinstance(found, Volume | Mirror | Member | Finding)
        if isinstance(found, Mirror):
            assert all(copy.member.offset + copy.member.length <= size for copy in found.legs)
            assert all(read(copy.source, copy.source.size - 1, 1) is not None for copy in found.legs)


def test_a_description_of_everything_imaginable_is_bounded() -> None:
    described = [(FIRST, [Row(START, LENGTH, "C", FtType.MIRROR)]),
                 *((disk, [Row(at * SECTOR, SECTOR, "", FtType.MIRROR, at, disk) for at in range(100)])
                   for disk in range(1, 41))]
    found = find(leg(information(described), FIRST))
    assert len(found) < 5000 and findings(found)

