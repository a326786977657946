"""State, order, drift, merging: what holds for any list of changes, on a guest made of folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p2v import changes as changing
from p2v.errors import DriftError, GuestError, PlanError
from p2v.model import (
    BytesChange,
    Change,
    Content,
    DWord,
    FileChange,
    KeyChange,
    Recovery,
    State,
    Text,
    ValueChange,
)
from p2v.testing import DirGuest

SERVICES = "ControlSet001\\Services"
NEW = f"{SERVICES}\\p2vtest"
CHANGES: tuple[Change, ...] = (
    BytesChange("disk0", 0x1B8, b"p2v!", b"done", "raw bytes"),
    FileChange("disk0p1", "\\WINDOWS\\system32\\drivers\\new.sys", None, Content(b"new"), "a new file"),
    KeyChange("SYSTEM", NEW, False, True, "a new key"),
    ValueChange("SYSTEM", NEW, "Start", None, DWord(0), "a new value"),
    ValueChange("SYSTEM", f"{SERVICES}\\atapi", "Start", DWord(4), DWord(0), "another value"),
)


def states(guest: DirGuest) -> set[State]:
    return {changing.state_of(change, guest) for change in CHANGES}


def test_apply_then_undo_then_apply(xp_guest: DirGuest) -> None:
    assert states(xp_guest) == {State.PENDING}
    assert xp_guest.apply(CHANGES) == len(CHANGES)
    done = xp_guest.again()
    assert states(done) == {State.DONE}
    assert done.apply(CHANGES) == 0, "what is done is skipped"
    assert done.apply(changing.inverses(CHANGES)) == len(CHANGES)
    assert states(xp_guest.again()) == {State.PENDING}


def test_a_run_that_was_cut_off_is_finished_by_the_next(xp_guest: DirGuest) -> None:
    xp_guest.apply(CHANGES[:2])
    assert xp_guest.again().apply(CHANGES) == len(CHANGES) - 2
    assert states(xp_guest.again()) == {State.DONE}


@pytest.mark.parametrize("drifted", [
    replace(CHANGES[0], before=b"else"),
    replace(CHANGES[1], before=Content(b"old")),
    replace(CHANGES[4], before=DWord(3)),
    ValueChange("SYSTEM", f"{SERVICES}\\atapi", "Group", Text("x"), Text("y"), "why"),
])
def test_one_drifted_place_stops_everything_before_the_first_write(
    xp_guest: DirGuest, xp_tree: Path, drifted: Change
) -> None:
    hive = (xp_tree / "WINDOWS/system32/config/system").read_bytes()
    with pytest.raises(DriftError) as error:
        xp_guest.apply((*CHANGES[1:4], drifted))
    assert str(error.value.where).lower().endswith(drifted.place)
    assert (xp_tree / "WINDOWS/system32/config/system").read_bytes() == hive
    assert not (xp_tree / "WINDOWS/system32/drivers/new.sys").exists()


def test_an_unknown_hive_is_named(xp_guest: DirGuest) -> None:
    change = ValueChange("SAM", "SAM", "x", None, DWord(1), "why")
    with pytest.raises(GuestError, match="SAM"):
        xp_guest.apply([change])


def test_one_place_is_changed_once() -> None:
    first, same = replace(CHANGES[4], fixer="one"), replace(CHANGES[4], fixer="two", why="another reason")
    assert changing.merge([first, same]) == [first]
    other = replace(same, after=DWord(1))
    with pytest.raises(PlanError, match="one and two"):
        changing.merge([first, other])


def test_places_do_not_depend_on_case() -> None:
    assert CHANGES[4].place == replace(CHANGES[4], key=f"{SERVICES}\\ATAPI".upper()).place


def test_recoveries_are_not_undone() -> None:
    recovery = Recovery("hive-log", "disk0p1", "\\x", "ab", "why", hive="SYSTEM")
    assert changing.inverses([recovery, *CHANGES]) == [change.inverse() for change in reversed(CHANGES)]
    assert CHANGES[1].inverse().inverse().after == CHANGES[1].after


def test_bytes_are_replaced_by_as_many_bytes() -> None:
    with pytest.raises(ValueError, match="as many"):
        BytesChange("disk0", 0, b"ab", b"a", "why")
