"""The VM has a PS/2 keyboard and mouse: their drivers must start, or the first logon cannot be clicked.

A server that only knew USB or its maker's remote console may have them off.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.guest import images
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits
from p2v.model import Change, DWord, Family, Guest, Target, Text

NAME = "input-devices"
SYSTEM, DEMAND, DISABLED = 1, 3, 4
SERVICES = ("i8042prt", "kbdclass", "mouclass")  # Start = 1 in the hives of NT 4 and XP (corpus)
DATABASE = "Control\\CriticalDeviceDatabase"
KEYBOARD, MOUSE = "{4D36E96B-E325-11CE-BFC1-08002BE10318}", "{4D36E96F-E325-11CE-BFC1-08002BE10318}"
ROWS = {"*pnp0303": KEYBOARD, "*pnp0f03": MOUSE, "*pnp0f13": MOUSE}  # rows of XP's own hives; ids of the VMs' firmware
WHY = "the VM's keyboard and mouse are PS/2; without this driver nobody can log on at the console"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Start values, and from 2000 on the rows by which the kernel finds the driver before the first logon."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        for service in SERVICES:
            yield from _started(edits, guest, f"{control_set}\\Services\\{service}")
        if guest.facts.version >= (5, 0) and edits.tree.has(f"{control_set}\\{DATABASE}"):
            yield from _rows(edits, control_set)
    for service in SERVICES:
        yield from _missing(guest, service)


def _started(edits: Edits, guest: Guest, key: str) -> Iterator[Change]:
    """NT 4 starts them itself; Plug and Play starts them on demand, too, unless they are off."""
    start = number(edits.tree, key, "Start")
    late = (DISABLED,) if guest.facts.version >= (5, 0) else (2, DEMAND, DISABLED)
    if start in late:
        yield from edits.value(key, "Start", DWord(SYSTEM), WHY)


def _rows(edits: Edits, control_set: str) -> Iterator[Change]:
    if number(edits.tree, f"{control_set}\\Services\\i8042prt", "Start") is None:
        return
    for id, guid in ROWS.items():
        key = f"{control_set}\\{DATABASE}\\{id}"
        if edits.tree.value(key, "Service") is None:  # a row that is there is somebody's choice
            yield from edits.key(key, WHY)
            yield from edits.value(key, "Service", Text("i8042prt"), WHY)
            if edits.tree.value(key, "ClassGUID") is None:
                yield from edits.value(key, "ClassGUID", Text(guid), WHY)


def _missing(guest: Guest, service: str) -> Iterator[Finding]:
    """The service or its file is not there: said, not made up."""
    control_set = guest.facts.default_control_set
    place = Where(item=f"{HIVE}\\{control_set}\\Services\\{service}")
    if number(guest.hive(HIVE), f"{control_set}\\Services\\{service}", "Start") is None:
        yield Finding(f"the service {service} is missing", place, WHY,
                      "plug a PS/2 keyboard and mouse into the server and start it once, or use the VM over the "
                      "network", Severity.WARNING, NAME)
        return
    found = images.look(guest, images.service_file(guest, control_set, service))
    if isinstance(found, str):
        yield Finding(f"the driver {service} cannot load", place, f"{found}; {WHY}",
                      f"put {service}.sys of this Windows into system32\\drivers on the server: its CD has it, or "
                      "DRIVER.CAB or SPn.CAB there", Severity.WARNING, NAME)
