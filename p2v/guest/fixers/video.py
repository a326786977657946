"""Windows must find a screen: plain VGA stays as what it falls back to when the old card is gone.

On NT 4 drivers of display cards start by themselves; one is switched off only where VgaSave is whole: without any
display driver NT 4 stops with C0000143. From 2000 on Plug and Play starts a card's driver only for its card.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.guest import images
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits
from p2v.model import Change, DWord, Family, Guest, Target

NAME = "video"
SYSTEM, DISABLED = 1, 4
VGA = ("VgaSave", "VgaStart")  # Start = 1 in the hives of NT 4 (both) and of XP (VgaSave)
CARDS = "video"  # the load order group of display cards' drivers
TOOLS = {"vmx_svga": "vmware"}  # service → the target whose display it drives


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """VGA starts with the system; NT 4's cards do not."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        for service in VGA:
            key = f"{control_set}\\Services\\{service}"
            if number(edits.tree, key, "Start") not in (None, 0, SYSTEM):
                yield from edits.value(key, "Start", DWord(SYSTEM), "the VM's screen is plain VGA until its own driver "
                                       "is installed; without it Windows has no display at all")
        if guest.facts.version < (5, 0) and not _broken(guest, control_set):
            yield from _cards(edits, target, control_set)
    control_set = guest.facts.default_control_set
    broken = _broken(guest, control_set)
    if broken:
        yield Finding("plain VGA is not whole", Where(item=f"{HIVE}\\{control_set}\\Services\\{VGA[0]}"),
                      f"{broken}; in the VM no other display driver may work",
                      "put vga.sys of this Windows into system32\\drivers on the server, or repair the system there",
                      Severity.WARNING, NAME)


def _broken(guest: Guest, control_set: str) -> str:
    """Why VgaSave cannot load; "" where it can."""
    if number(guest.hive(HIVE), f"{control_set}\\Services\\{VGA[0]}", "Start") is None:
        return f"the service {VGA[0]} is missing"
    found = images.look(guest, images.service_file(guest, control_set, VGA[0]))
    return found if isinstance(found, str) else ""


def _cards(edits: Edits, target: Target, control_set: str) -> Iterator[Change]:
    for service in edits.tree.subkeys(f"{control_set}\\Services"):
        key = f"{control_set}\\Services\\{service}"
        group = edits.tree.value(key, "Group")
        if group is None or group.text.lower() != CARDS or TOOLS.get(service.lower()) == target.NAME:
            continue
        if number(edits.tree, key, "Start") in (0, SYSTEM):
            yield from edits.value(key, "Start", DWord(DISABLED), f"{service} drives a display card that the VM does "
                                   "not have; NT 4 would start it all the same. VgaSave is whole and takes over")
