"""Plan, diff, apply, verify, undo: one list of changes, told in one place.

A change is a place with a before, an after and a why. Seen against a guest it is pending, done or
drifted. A run does the pending ones, skips the done ones, and stops before the first write if any has
drifted, so it is safe to run again after a power cut. undo is a run of the inverses, last first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from p2v.errors import DriftError, GuestError, PlanError, Where
from p2v.model import (
    BytesChange,
    Change,
    FileChange,
    Guest,
    HivePlace,
    KeyChange,
    Recovery,
    State,
    ValueChange,
    WritingDoor,
)

HIVE_CHANGES = (ValueChange, KeyChange)


def state_of(change: Change, guest: Guest) -> State:
    """A change seen against a guest.

    A Recovery is DONE when nothing is left to replay; it never drifts.
    Raises GuestError where the place cannot be read.
    """
    now = guest.look(change)
    if isinstance(change, Recovery):
        return State.PENDING if now else State.DONE
    if now == change.after:
        return State.DONE
    return State.PENDING if now == change.before else State.DRIFTED


def inverses(changes: Sequence[Change]) -> list[Change]:
    """What undoes the changes: the inverses, last first, recoveries left out."""
    return [change.inverse() for change in reversed(changes) if not isinstance(change, Recovery)]


def joined(earlier: Change, later: Change) -> Change:
    """Two changes of one place, one after the other, as one. Raises ValueError for different kinds."""
    if isinstance(earlier, ValueChange) and isinstance(later, ValueChange):
        return replace(earlier, after=later.after, why=later.why)
    if isinstance(earlier, KeyChange) and isinstance(later, KeyChange):
        return replace(earlier, after=later.after, why=later.why)
    if isinstance(earlier, FileChange) and isinstance(later, FileChange):
        return replace(earlier, after=later.after, why=later.why)
    if isinstance(earlier, BytesChange) and isinstance(later, BytesChange):
        return replace(earlier, after=later.after, why=later.why)
    if isinstance(earlier, Recovery) and isinstance(later, Recovery):
        return later
    raise ValueError(f"two kinds of change in one place: {later.place}")


def merge(changes: Iterable[Change]) -> list[Change]:
    """One place, one change: the same wish of two fixers is kept once, in the order first asked.

    Raises PlanError naming both fixers when they want different things in one place.
    """
    by_place: dict[str, Change] = {}
    for change in changes:
        first = by_place.setdefault(change.place, change)
        if first is change or isinstance(first, Recovery) or isinstance(change, Recovery):
            continue
        if first.after != change.after:
            raise PlanError(
                f"two fixers want different things in one place: {first.fixer} and {change.fixer}",
                Where(item=change.place),
                f"{first.fixer}: {first.why}; {change.fixer}: {change.why}",
                "this is a bug in p2v: report it with the plan's JSON",
            )
    return list(by_place.values())


def pending(changes: Sequence[Change], guest: Guest) -> list[Change]:
    """The changes still to do. Raises DriftError naming every place that is neither before nor after."""
    seen = [(change, state_of(change, guest)) for change in changes]
    drifted = [change.place for change, state in seen if state is State.DRIFTED]
    if drifted:
        raise DriftError(
            f"{len(drifted)} place(s) in the guest are not what the plan was made from",
            Where(item="; ".join(drifted[:10]) + (" …" if len(drifted) > 10 else "")),
            "somebody changed the guest since; nothing has been written",
            "make a new plan",
        )
    return [change for change, state in seen if state is State.PENDING]


def perform(todo: Sequence[Change], hives: Mapping[str, HivePlace], door: WritingDoor) -> None:
    """Do changes that are known to be pending, through the writing door. hives: where each hive lies.

    Files first, then each hive once, replaced whole. Raw bytes and journals are not done here: they come
    before anything is mounted (stage.write_bytes, recover_journal). Raises GuestError where the door fails.
    """
    for change in todo:
        if isinstance(change, FileChange):
            _apply_file(change, door)
    for name, edits in by_hive(todo).items():
        if name not in hives:
            raise GuestError(f"the guest has no hive {name}", why="the plan edits it", next="make a new plan")
        _apply_hive(name, hives[name], edits, door)
    door.sync()


def by_hive(changes: Iterable[Change]) -> Mapping[str, list[ValueChange | KeyChange | Recovery]]:
    """The changes that a hive takes part in, by the hive's name, in order."""
    hives: dict[str, list[ValueChange | KeyChange | Recovery]] = {}
    for change in changes:
        if isinstance(change, HIVE_CHANGES) or (isinstance(change, Recovery) and change.hive):
            hives.setdefault(change.hive, []).append(change)
    return hives


def _apply_file(change: FileChange, door: WritingDoor) -> None:
    files = door.writable(change.volume)
    if change.after is None:
        files.remove(change.path)
    else:
        files.write(change.path, change.after.data, like=change.like)


def _apply_hive(
    name: str, place: HivePlace, edits: Sequence[ValueChange | KeyChange | Recovery], door: WritingDoor
) -> None:
    """Load a hive once, replay its log, edit, and replace it whole; SYSTEM.ALT is kept in step."""
    from p2v.registry import regf
    from p2v.registry.hive import HiveEditor

    files = door.writable(place.volume)
    log_path = place.path + ".LOG"
    log = files.read(log_path) if files.stat(log_path) else None
    recovered = regf.recover(files.read(place.path), log, name)
    editor = HiveEditor(recovered.data, name)
    for edit in edits:
        if isinstance(edit, ValueChange):
            if edit.after is None:
                editor.delete_value(edit.key, edit.value)
            else:
                editor.set_value(edit.key, edit.value, edit.after)
        elif isinstance(edit, KeyChange):
            (editor.create_key if edit.after else editor.delete_key)(edit.key)
    data = editor.commit()
    files.write(place.path, data)
    if recovered.replayed:  # the log is spent: Windows makes a new one
        files.write(log_path, b"")
    alternate = place.path + ".ALT"
    if files.stat(alternate):  # NT 4 and 2000 fall back to it: a stale one would bring old settings back
        files.write(alternate, regf.alternate(data))
