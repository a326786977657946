"""Which leg of a mirror is read: hand-made mirrors over a real NTFS volume, patched to be older or newer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures import ft, md, mirrors
from fixtures.disks import Entry, make_disk
from p2v.choosing import Settled, settle
from p2v.errors import Finding, PlanError, Severity
from p2v.model import Geometry, Leg, Member, Mirror, Origin, Partition, Range, Source, Volume, read
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource
from p2v.volume import Layout, find_volumes
from tests.filesystem.made_age import CONFIG, FILES, HIVES, LSN, NOON, WRITES, aged, ntfs, wiped

START = 63 * 512
LATER = NOON + timedelta(days=70)
OLD, NEW = (7, 3), (9, 1)  # generations
SECTORS = 8192  # of the volume

Leg_ = Callable[..., Leg]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ntfs(tmp_path_factory.mktemp("choosing"))


@pytest.fixture(scope="module")
def newer(volume: bytes) -> bytes:
    """The same volume, ten weeks later."""
    return aged(volume, LSN + 4096, {"\\": LATER, CONFIG: LATER, FILES[2]: LATER},
                dict.fromkeys(HIVES, (WRITES + 90, LATER)))


def leg(disk: str, data: bytes | Source, generation: tuple[int, ...] = NEW, **more: object) -> Leg:
    source = MemorySource(data, disk) if isinstance(data, bytes) else data
    return Leg(disk, source, Member(disk, START, source.size), None, generation,
               f"committed {'.'.join(map(str, generation))}" if generation else "", **more)  # type: ignore[arg-type]


def mirror(*legs: Leg, name: str = "ldm.Volume1", letter: str = "", manager: str = "ldm",
           missing: tuple[str, ...] = ()) -> Mirror:
    return Mirror(name, min(leg.source.size for leg in legs), legs,
                  Origin(manager, name.partition(".")[2], letter=letter), missing)


def settled(*mirrors: Mirror, chosen: dict[str, str] | None = None) -> Settled:
    return settle(Layout((), (), (), mirrors), chosen)


def only(result: Settled) -> Finding:
    (finding,) = result.findings
    return finding


def is_undecided(result: Settled, *words: str) -> bool:
    """An error with both histories and both options, and nothing chosen."""
    finding = only(result)
    assert finding.severity is Severity.ERROR and not result.legs and not result.layout.volumes
    assert len(result.layout.mirrors) == 1
    for disk in ("disk0", "disk1"):
        assert f"{disk}: " in finding.why and f"--leg {disk}" in finding.next
        assert disk in str(finding.where)
    for word in words:
        assert word in str(finding), f"{word!r} is not in\n{finding}"
    return True


# -- decided by evidence


@pytest.mark.parametrize("swapped", [False, True])
def test_the_leg_that_is_newest_by_everything_is_read(volume: bytes, newer: bytes, swapped: bool) -> None:
    current, stale = leg("disk1", newer), leg("disk0", volume, OLD)
    result = settled(mirror(*((stale, current) if swapped else (current, stale))))
    decision = result.legs["ldm.Volume1"]
    assert (decision.leg, decision.others, decision.by) == ("disk1", ("disk0",), "evidence")
    (found,) = result.layout.volumes
    assert (found.name, found.layout, found.origin and found.origin.name) == ("ldm.Volume1", "mirrored", "Volume1")
    assert found.members == (current.member, stale.member) and result.layout.mirrors == ()
    assert read(found.source, 0, found.source.size) == newer
    finding = only(result)
    assert finding.severity is Severity.INFO
    assert "disk1, whose copy is the current one; disk0's is not" in finding.what
    for word in ("disk0: committed 7.3", "disk1: committed 9.1", f"{LSN:#x}", f"{LSN + 4096:#x}", "write 4711",
                 "write 4801", "the metadata speaks for disk1: higher generation",
                 "the filesystem on disk1 is newer: log sequence number; number of writes to the registry"):
        assert word in finding.why, finding.why
    assert finding.next == "nothing; to read the other one all the same: --leg disk0"
    assert str(finding.where).startswith("disk1, bytes 0x7e00 to ") and "disk0, bytes 0x7e00" in str(finding.where)


def test_equal_everything_takes_the_first_and_claims_no_equality(volume: bytes) -> None:
    result = settled(mirror(leg("disk1", volume), leg("disk0", volume)))
    assert result.legs["ldm.Volume1"].leg == "disk1"
    finding = only(result)
    assert finding.severity is Severity.INFO
    assert "looks just the same" in finding.what and "only a comparison tells" in finding.why
    assert "inspect --compare" in finding.next


def test_a_volume_that_nobody_wrote_since_does_not_contradict_the_metadata(volume: bytes) -> None:
    assert settled(mirror(leg("disk0", volume, OLD), leg("disk1", volume))).legs["ldm.Volume1"].leg == "disk1"


def test_what_the_metadata_holds_against_a_leg_decides(volume: bytes, newer: bytes) -> None:
    bad = leg("disk0", volume, against=("its plex is in state IOFAIL",))
    result = settled(mirror(bad, leg("disk1", newer)))
    assert result.legs["ldm.Volume1"].leg == "disk1"
    assert "against it: its plex is in state IOFAIL" in only(result).why


def test_sets_of_nt4_have_no_generation_so_the_filesystem_decides(volume: bytes, newer: bytes) -> None:
    legs = leg("disk0", volume, ()), leg("disk1", newer, ())
    result = settled(mirror(*legs, name="ft.0", manager="ft"))
    assert result.legs["ft.0"].leg == "disk1"
    assert "the metadata of disk0 and disk1 tells nothing that can be compared" in only(result).why
    same = settled(mirror(leg("disk0", volume, ()), leg("disk1", volume, ()), name="ft.0", manager="ft"))
    assert same.legs["ft.0"].leg == "disk0" and "only a comparison tells" in only(same).why


def test_an_evidence_that_is_unknown_leaves_the_others(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", wiped(newer)), leg("disk1", volume, OLD)))
    assert result.legs["ldm.Volume1"].leg == "disk0"
    why = only(result).why
    assert "not known: the log's sequence number" in why and "number of writes to the registry" in why
    boot = FaultySource(MemorySource(newer, "disk0"), [Range(0, 512)])
    result = settled(mirror(leg("disk0", boot), leg("disk1", volume, OLD)))
    assert result.legs["ldm.Volume1"].leg == "disk0"
    assert "not known: the boot sector" in only(result).why
    assert "the filesystem of disk0 and disk1 tells nothing that can be compared" in only(result).why


def test_each_volume_is_chosen_on_its_own(volume: bytes, newer: bytes) -> None:
    c = mirror(leg("disk0", newer), leg("disk1", volume, OLD), name="ldm.Volume1", letter="C:")
    d = mirror(leg("disk0", volume, OLD), leg("disk1", newer), name="ldm.Volume2", letter="D:")
    result = settled(c, d)
    assert {name: decision.leg for name, decision in result.legs.items()} == {
        "ldm.Volume1": "disk0", "ldm.Volume2": "disk1"}
    assert [finding.what[:16] for finding in result.findings] == ["C: (ldm.Volume1)", "D: (ldm.Volume2)"]
    assert result.findings[0].next.endswith("--leg C:=disk1")


def test_three_legs(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", volume, OLD), leg("disk1", newer), leg("disk2", newer)))
    assert result.legs["ldm.Volume1"].leg == "disk1"
    assert "disk1, whose copy is a current one; disk2 looks just the same, disk0's is not" in only(result).what


def test_a_longer_partition_is_cut_to_the_volume(volume: bytes) -> None:
    short = Mirror("ldm.Volume1", SECTORS * 512, (leg("disk0", volume + bytes(4096)), leg("disk1", volume)),
                   Origin("ldm", "Volume1"))
    (found,) = settled(short).layout.volumes
    assert found.source.size == SECTORS * 512


def test_an_older_generation_with_a_newer_filesystem_lived_on_alone(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", newer, OLD), leg("disk1", volume)))
    assert is_undecided(result, "split brain", "disk0 lived on alone", "the metadata speaks for disk1",
                        "the filesystem on disk0 is newer: log")


def test_legs_that_fail_each_other_are_a_split_brain(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", newer, fails=("disk1",)), leg("disk1", volume, OLD, fails=("disk0",))))
    assert is_undecided(result, "split brain: disk0 and disk1 call each other failed", "it calls disk1 failed",
                        "it calls disk0 failed")


def test_an_older_leg_that_calls_the_newer_failed(volume: bytes) -> None:
    result = settled(mirror(leg("disk0", volume), leg("disk1", volume, OLD, fails=("disk0",))))
    assert is_undecided(result, "split brain: the metadata of disk0 and disk1 does not agree")


def test_each_filesystem_holds_something_newer(volume: bytes, newer: bytes) -> None:
    other = aged(volume, times={HIVES[0]: LATER})
    assert is_undecided(settled(mirror(leg("disk0", newer), leg("disk1", other, OLD))), "each hold something newer")


def test_the_older_leg_was_written_after_it_was_detached(volume: bytes, newer: bytes) -> None:
    """Both went on, the newer one longer: only the time of the newer one's metadata gives it away."""
    detached = NOON - timedelta(days=3)
    result = settled(mirror(leg("disk0", newer, changed=detached), leg("disk1", volume, OLD)))
    assert is_undecided(result, "disk1 was written at 2009-03-02 12:00:00 UTC, after it was detached")
    fine = settled(mirror(leg("disk0", newer, changed=NOON), leg("disk1", volume, OLD)))
    assert fine.legs["ldm.Volume1"].leg == "disk0"


def test_a_time_that_both_legs_know_was_written_before_they_parted(volume: bytes, newer: bytes) -> None:
    """A clock that was years ahead for a day, while both legs were written."""
    ahead = {HIVES[1]: (WRITES, LATER + timedelta(days=900))}
    current, stale = leg("disk0", aged(newer, hives=ahead), changed=NOON), leg("disk1", aged(volume, hives=ahead), OLD)
    assert settled(mirror(current, stale)).legs["ldm.Volume1"].leg == "disk0"


def test_equal_generations_with_filesystems_of_different_age(volume: bytes, newer: bytes) -> None:
    assert is_undecided(settled(mirror(leg("disk0", newer), leg("disk1", volume))),
                        "the metadata calls disk0 and disk1 equal, but the filesystem on disk0 is newer")


@pytest.mark.parametrize("change", ["lsn", "hive", "time"])
def test_any_evidence_alone_is_enough_to_doubt(volume: bytes, change: str) -> None:
    twin = {"lsn": lambda: aged(volume, LSN + 8),
            "hive": lambda: aged(volume, hives={HIVES[1]: (WRITES + 1, NOON)}),
            "time": lambda: aged(volume, times={FILES[2]: NOON + timedelta(seconds=1)})}[change]()
    result = settled(mirror(leg("disk0", volume), leg("disk1", twin)))
    assert is_undecided(result, "but the filesystem on disk1 is newer")


def test_something_against_every_leg(volume: bytes) -> None:
    bad = [leg(disk, volume, against=("failing",)) for disk in ("disk0", "disk1")]
    assert is_undecided(settled(mirror(*bad)), "the metadata holds something against every copy")


def test_nothing_known_of_either(volume: bytes) -> None:
    nothing = [leg(disk, bytes(1 << 16), ()) for disk in ("disk0", "disk1")]
    assert is_undecided(settled(mirror(*nothing)), "nothing on the disks tells which copy is current")
    by_metadata = settled(mirror(leg("disk0", bytes(1 << 16), OLD), leg("disk1", bytes(1 << 16))))
    assert by_metadata.legs["ldm.Volume1"].leg == "disk1"


def test_copies_of_different_volumes_are_no_copies(volume: bytes) -> None:
    other = bytearray(volume)
    other[0x48] ^= 1
    result = settled(mirror(leg("disk0", volume), leg("disk1", bytes(other), OLD)))
    assert is_undecided(result, "different serial numbers")


# -- one leg


def test_a_single_survivor_is_used_and_said(volume: bytes) -> None:
    result = settled(mirror(leg("disk0", volume, OLD), missing=("Disk2 (4b7d…)",)))
    assert result.legs["ldm.Volume1"].by == "only one" and len(result.layout.volumes) == 1
    finding = only(result)
    assert finding.severity is Severity.WARNING and "only the copy on disk0" in finding.what
    assert "Disk2 (4b7d…)" in finding.why and "nothing can vouch" in finding.why and "2009-03-02" in finding.why


def test_a_single_leg_that_its_own_metadata_speaks_against(volume: bytes) -> None:
    bad = mirror(leg("disk0", volume, against=("orphaned",)), missing=("the shadow",))
    finding = only(settled(bad))
    assert finding.severity is Severity.ERROR and "--leg disk0" in finding.next and "orphaned" in finding.why
    result = settled(bad, chosen={"": "disk0"})
    assert result.legs["ldm.Volume1"].by == "user" and only(result).severity is Severity.WARNING


def test_a_third_leg_that_was_not_given_is_said(volume: bytes, newer: bytes) -> None:
    finding = only(settled(mirror(leg("disk0", newer), leg("disk1", volume, OLD), missing=("slot 2",))))
    assert finding.severity is Severity.WARNING and "a further copy is missing: slot 2" in finding.why


# -- the user's word


@pytest.mark.parametrize("key", ["", "C:", "c:", "ldm.Volume1"])
def test_the_user_decides(volume: bytes, newer: bytes, key: str) -> None:
    doubtful = mirror(leg("disk0", newer, OLD), leg("disk1", volume), letter="C:")
    result = settled(doubtful, chosen={key: "disk0"})
    assert result.legs["ldm.Volume1"].by == "user" and result.layout.volumes[0].members[0].disk == "disk0"
    finding = only(result)
    assert finding.severity is Severity.WARNING and "said so; the evidence does not decide" in finding.what
    assert "split brain" in finding.why and "disk1: committed 9.1" in finding.why


def test_the_user_may_agree_with_the_evidence(volume: bytes, newer: bytes) -> None:
    finding = only(settled(mirror(leg("disk0", newer), leg("disk1", volume, OLD)), chosen={"": "disk0"}))
    assert finding.severity is Severity.INFO and "the evidence agrees" in finding.what


def test_of_legs_that_look_the_same_the_evidence_agrees_with_either(volume: bytes) -> None:
    result = settled(mirror(leg("disk0", volume), leg("disk1", volume)), chosen={"": "disk1"})
    assert only(result).severity is Severity.INFO and "the evidence agrees" in only(result).what
    assert not result.legs["ldm.Volume1"].differing


def test_the_user_may_ask_for_the_stale_leg_and_is_warned(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", newer), leg("disk1", volume, OLD)), chosen={"": "disk1"})
    assert result.legs["ldm.Volume1"].leg == "disk1" and only(result).severity is Severity.WARNING
    assert "said so; the evidence speaks for disk0" in only(result).what
    assert result.legs["ldm.Volume1"].differing == ("disk0",)


def test_a_name_weighs_more_than_a_letter_and_that_more_than_all(volume: bytes) -> None:
    pair = leg("disk0", volume), leg("disk1", volume)
    result = settled(mirror(*pair, letter="C:"), mirror(*pair, name="ldm.Volume2"), mirror(*pair, name="ldm.Volume3"),
                     chosen={"ldm.Volume1": "disk1", "C:": "disk0", "ldm.Volume3": "disk0", "": "disk1"})
    assert [decision.leg for decision in result.legs.values()] == ["disk1", "disk1", "disk0"]


def test_all_means_every_mirror_with_a_leg_there(volume: bytes) -> None:
    result = settled(mirror(leg("disk0", volume), leg("disk1", volume)),
                     mirror(leg("disk2", volume), leg("disk3", volume), name="ldm.Volume2"), chosen={"": "disk1"})
    assert [(d.leg, d.by) for d in result.legs.values()] == [("disk1", "user"), ("disk2", "evidence")]


@pytest.mark.parametrize(("key", "disk"), [("", "disk7"), ("D:", "disk0"), ("ldm.Volume1", "disk2"), ("C:", "disk2")])
def test_a_word_that_fits_nothing_names_what_is_there(volume: bytes, key: str, disk: str) -> None:
    pair = mirror(leg("disk0", volume), leg("disk1", volume), letter="C:")
    with pytest.raises(PlanError, match="there is no such leg") as caught:
        settled(pair, chosen={key: disk})
    assert "C: (ldm.Volume1): legs on disk0, disk1" in caught.value.why
    with pytest.raises(PlanError) as caught:
        settled(chosen={key: disk})
    assert "no volume of these disks is a mirror" in caught.value.why


def test_a_letter_that_two_groups_use_needs_the_disk_in_both(volume: bytes) -> None:
    first = mirror(leg("disk0", volume), leg("disk1", volume), letter="C:")
    second = mirror(leg("disk2", volume), leg("disk3", volume), name="ldm.Volume2", letter="C:")
    with pytest.raises(PlanError, match="there is no such leg"):
        settled(first, second, chosen={"C:": "disk0"})
    assert settled(first, second, chosen={"ldm.Volume1": "disk1"}).legs["ldm.Volume1"].leg == "disk1"


def test_options_name_the_volume_where_letters_are_not_clear(volume: bytes, newer: bytes) -> None:
    pair = leg("disk0", newer), leg("disk1", volume)
    result = settled(mirror(*pair, letter="C:"), mirror(*pair, name="ldm.Volume2", letter="C:"))
    assert result.findings[1].next.endswith("--leg ldm.Volume2=disk0 or --leg ldm.Volume2=disk1")


# -- mirrors of whole disks, and what is no mirror


def whole_disk(folder: Path, name: str, data: bytes) -> bytes:
    path = folder / f"{name}.img"
    make_disk(path, 63 + SECTORS + 100, 0x1234, [Entry(7, 63, SECTORS, True)], Geometry(255, 63))
    image = bytearray(path.read_bytes())
    image[63 * 512:63 * 512 + len(data)] = data
    return bytes(image)


@pytest.mark.parametrize("manager", ["md", "imsm", "ddf"])
def test_the_partitions_of_mirrored_disks_are_looked_into(
        tmp_path: Path, volume: bytes, newer: bytes, manager: str) -> None:
    legs = (leg("disk0", whole_disk(tmp_path, "a", volume), OLD), leg("disk1", whole_disk(tmp_path, "b", newer)))
    result = settled(mirror(*legs, name=f"{manager}.0", manager=manager))
    assert result.legs[f"{manager}.0"].leg == "disk1"
    assert "p1: NTFS, last change seen: 2009-05-11" in only(result).why
    assert "the filesystem on disk1 is newer: log sequence number" in only(result).why
    assert is_undecided(settled(mirror(leg("disk0", legs[1].source, OLD), leg("disk1", legs[0].source),
                                       name=f"{manager}.0", manager=manager)), "split brain")


def test_a_mirror_of_one_filesystem_needs_no_table(volume: bytes, newer: bytes) -> None:
    result = settled(mirror(leg("disk0", volume, OLD), leg("disk1", newer), name="md.web:0", manager="md"))
    assert result.legs["md.web:0"].leg == "disk1"
    assert "\n  NTFS, last change seen: 2009-05-11" in only(result).why


def test_a_disk_without_a_readable_table_leaves_the_metadata(tmp_path: Path, newer: bytes) -> None:
    good = whole_disk(tmp_path, "a", newer)
    bad = FaultySource(MemorySource(good, "disk1"), [Range(0, 512)])
    result = settled(mirror(leg("disk0", good), leg("disk1", bad, OLD), name="md.0", manager="md"))
    assert result.legs["md.0"].leg == "disk0"


def test_what_is_no_mirror_stays_as_it_is(volume: bytes) -> None:
    plain = Volume("disk0p1", MemorySource(volume), "basic", (Member("disk0", 0, len(volume)),))
    part = Partition("disk0", 0x1BE, 1, 7, True, False, START, len(volume))
    layout = Layout((plain,), (part,), (Finding("a note"),))
    result = settle(layout)
    assert (result.layout, result.legs, result.findings) == (layout, {}, ())


# -- with a real reader


@pytest.mark.parametrize("whole", [True, False])
def test_mirrors_of_linux_md(tmp_path: Path, whole: bool) -> None:
    """By the reader, over disks as mdadm would write them."""
    content = md.make_content(tmp_path, whole=whole)
    chosen = {}
    for case in md.CASES:
        paths = md.build_mirror(tmp_path, content, "1.2", case)
        disks = {f"disk{n}": open_disk(str(path)) for n, path in enumerate(paths)}
        result = settle(find_volumes(disks))
        chosen[case] = [(decision.leg, decision.by) for decision in result.legs.values()]
        if case != "split":
            (volume,) = result.layout.volumes
            assert read(volume.source, 0, content.size) == content.now.read_bytes()
    assert chosen == {"split": [], "missing": [("disk0", "only one")]} | {
        case: [("disk0", "evidence")] for case in md.CASES if case not in ("split", "missing")}


@pytest.mark.parametrize(("case", "current"), [
    ({}, {"ldm.Volume1": "disk0"}), ({"stale": "C"}, {"ldm.Volume1": "disk0"}),
    ({"stale": "C", "current_leg": 1}, {"ldm.Volume1": "disk1"}),
    ({"stale": "C", "unmarked": True, "holes": True}, {"ldm.Volume1": "disk0"}),
    ({"mixed": True}, {"ldm.Volume1": "disk0", "ldm.Volume2": "disk1"}), ({"split_brain": True}, {})])
def test_mirrors_of_windows_2003(tmp_path: Path, case: dict[str, Any], current: dict[str, str]) -> None:
    server = mirrors.build_mirror_2003(tmp_path, **case)
    disks = [FaultySource(open_disk(str(path)), server.bad.get(path, ())) for path in server.disks]
    result = settle(find_volumes({f"disk{n}": disk for n, disk in enumerate(disks)}))
    assert {name: decision.leg for name, decision in result.legs.items()} == current
    assert all(finding.severity is (Severity.INFO if current else Severity.ERROR) for finding in result.findings)


@pytest.mark.parametrize("orphan", [None, 0, 1])
def test_mirrors_of_nt4(tmp_path: Path, orphan: int | None) -> None:
    server = ft.build_mirror(tmp_path, orphan=orphan)
    result = settle(find_volumes({f"disk{n}": open_disk(str(path)) for n, path in enumerate(server.disks)}))
    assert [decision.leg for decision in result.legs.values()] == [f"disk{server.current}"]
