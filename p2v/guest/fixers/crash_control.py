"""A stop must stay on the screen: a VM that restarts by itself hides what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding
from p2v.guest.fixers.edits import Edits
from p2v.model import Change, DWord, Family, Guest, Target

NAME = "crash-control"
WHY = "without it a STOP at the first boot is a restart loop that nobody can read"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """AutoReboot = 0 in every control set."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        key = f"{control_set}\\Control\\CrashControl"
        yield from edits.key(key, WHY)
        yield from edits.value(key, "AutoReboot", DWord(0), WHY)
