"""A device whose filter cannot load does not start: dead names leave the filter lists of the device classes.

Multipath drivers, backup programs and other hypervisors put their services into UpperFilters and LowerFilters; what
is missing or off there stops every disk with 0x7B, or every keyboard.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding
from p2v.guest import images
from p2v.guest.facts import number
from p2v.guest.fixers import input_devices, services
from p2v.guest.fixers.edits import Edits
from p2v.model import REG_MULTI_SZ, Change, Family, Guest, MultiText, Target

NAME = "class-filters"
DISABLED = 4
_TAIL = "-E325-11CE-BFC1-08002BE10318}"
CLASSES = {  # what a boot and a logon need; KB 324764 and its like treat them one by one
    "{4D36E965" + _TAIL: "CD drives",
    "{4D36E967" + _TAIL: "disks",
    "{4D36E96A" + _TAIL: "IDE controllers",
    "{4D36E96B" + _TAIL: "keyboards",
    "{4D36E96F" + _TAIL: "mice",
    "{4D36E97B" + _TAIL: "SCSI and RAID controllers",
    "{4D36E97D" + _TAIL: "system devices",
    "{71A27CDD-812A-11D0-BEC7-08002BE2092F}": "volumes",
}
LISTS = ("upperfilters", "lowerfilters")


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """Each list without its dead names; a list of which nothing is left goes."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        off = {service.lower() for service in services.unwanted(guest, target, control_set)}
        sure = services.kept(guest, target) | {one.lower() for one in input_devices.SERVICES}
        for guid, what in CLASSES.items():
            key = f"{control_set}\\Control\\Class\\{guid}"
            for name, value in edits.tree.values(key).items():
                if name.lower() not in LISTS or value.type != REG_MULTI_SZ:
                    continue
                dead = {one: _dead(guest, control_set, one, off) for one in value.texts if one.lower() not in sure}
                left = [one for one in value.texts if not dead.get(one)]
                if len(left) == len(value.texts):
                    continue
                why = f"a filter that cannot load stops all {what}: " + "; ".join(
                    f"{one}, {reason}" for one, reason in dead.items() if reason)
                if left:
                    yield from edits.value(key, name, MultiText(*left), why)
                else:
                    yield from edits.without_value(key, name, why)


def _dead(guest: Guest, control_set: str, service: str, off: set[str]) -> str:
    """Why the filter cannot load; "" where it can."""
    start = number(guest.hive("SYSTEM"), f"{control_set}\\Services\\{service}", "Start")
    if start is None:
        return "there is no such service"
    if start == DISABLED:
        return "the service is off"
    if service.lower() in off:
        return "the service is not for this VM"
    if images.elsewhere(guest, control_set, service):  # nothing says that it cannot load
        return ""
    path = images.service_file(guest, control_set, service)
    found = images.look(guest, path)
    if isinstance(found, str):
        return found if images.is_missing(guest, path) else ""
    if found.machine != guest.facts.architecture:
        return f"its file is for {found.machine}"
    return ""
