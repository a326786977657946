"""What the guest runs before it logs on: a chkdsk that is scheduled there would run in the VM, on what was copied.

BootExecute is left as it is. A check repairs the system volume's small damage; where sectors were lost, or where
NT 4 checks a volume of a later Windows, it destroys for good what could still be saved.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.guest.fixers.edits import HIVE
from p2v.model import Change, Family, Guest, Target

NAME = "disk-checks"
USUAL = "autocheck autochk *"  # in the hives of NT 4 and XP: checks what is marked dirty
KEY = "Control\\Session Manager"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Findings only."""
    if guest.facts.family is not Family.WINDOWS:
        return
    key = f"{guest.facts.default_control_set}\\{KEY}"
    value = guest.hive(HIVE).value(key, "BootExecute")
    lines = [" ".join(text.split()) for text in value.texts] if value else []
    place = Where(item=f"{HIVE}\\{key}:BootExecute")
    forced = [line for line in lines if "autochk" in line.lower() and line.lower() != USUAL]
    if forced:
        yield Finding(
            "a check of the disks is scheduled for the next start", place,
            f"{'; '.join(forced)}: the VM would run it on its copy first; where sectors could not be read, or on a "
            "volume that a later Windows wrote, it deletes what could still be saved",
            "on the server run chkntfs /d, or let the check run there before the copy", Severity.WARNING, NAME)
    if not any("autochk" in line.lower() for line in lines):
        yield Finding("Windows does not check its disks when it starts", place,
                      "the copied system volume is not checked in the VM, even where it is marked dirty",
                      "in the VM run chkdsk on the system volume once, without /f first", fixer=NAME)
