"""The registry must be editable and loadable, and its spare copy must not bring old settings back."""

from __future__ import annotations

import re
from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.guest import images
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, hindrances
from p2v.model import Change, Family, Guest, Target

NAME = "hive-files"
MIB = 1 << 20
TOGETHER = 16 * MIB  # NT 4 and 2000: kernel, HAL, SYSTEM and boot drivers in low memory (Q306038, Q102721, Q122793)
ALONE = {"x86": 200 * MIB, "x64": 32 * MIB}  # SYSTEM of 2003; x64 without a hotfix (KB 919807)
NEAR = 64 << 10  # bytes: the edits may add this much


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Findings only: the hive is written when its changes are applied."""
    if guest.facts.family is not Family.WINDOWS:
        return
    place = guest.facts.hives[HIVE]
    for path in (place.path, place.path + ".LOG", place.path + ".ALT"):
        yield from hindrances(guest, place.volume, path, NAME)
    alternate = place.path + ".ALT"
    if guest.files(place.volume).stat(alternate) is not None:
        yield Finding("SYSTEM.ALT is kept in step with SYSTEM", Where(place.volume, item=alternate),
                      "the loader of NT 4 and 2000 falls back to it; an old copy would bring back the old "
                      "boot drivers", "nothing: it is written together with the hive", fixer=NAME)
    yield from _size(guest)
    yield from _select(guest)
    yield from _state(guest)


def _size(guest: Guest) -> Iterator[Finding]:
    """Does the loader have room for it? Where no source says how much, nothing is said."""
    place, facts = guest.facts.hives[HIVE], guest.facts
    size = _file_size(guest, place.volume, place.path)
    if facts.version < (5, 1):
        files = {f"{facts.system_root}\\system32\\ntoskrnl.exe", f"{facts.system_root}\\system32\\hal.dll"}
        files |= {path for name in facts.boot_drivers
                  if (path := images.service_file(guest, facts.default_control_set, name))}
        total, limit = size + sum(_file_size(guest, facts.boot_volume, path) for path in files), TOGETHER
        what = "kernel, HAL, boot drivers and SYSTEM together"
    elif facts.version == (5, 2):
        total, limit, what = size, ALONE[facts.architecture], "SYSTEM"
    else:
        return
    if total + NEAR > limit:
        yield Finding(
            "the SYSTEM hive is about as large as the loader can take", Where(place.volume, item=place.path),
            f"{what} have {total} bytes, of {limit} that there is room for; the loader then says that it lacks memory, "
            "or that the hive is missing or corrupt",
            "on the server remove devices that are not there any more (device manager, hidden devices), then save and "
            "reload the hive to make it smaller", Severity.WARNING, NAME)


def _file_size(guest: Guest, volume: str, path: str) -> int:
    stat = guest.files(volume).stat(path)
    return 0 if stat is None or stat.is_folder else stat.size


def _select(guest: Guest) -> Iterator[Finding]:
    """Which control set was started last, and is the one to fall back to there?"""
    tree, place = guest.hive(HIVE), Where(item=f"{HIVE}\\Select")
    default, current, failed, good = (number(tree, "Select", name) or 0
                                      for name in ("Default", "Current", "Failed", "LastKnownGood"))
    known = {int(found[1]) for name in guest.facts.control_sets if (found := re.search(r"(\d{3})$", name))}
    if current not in (0, default):
        yield Finding("the server last ran with another control set than the one that starts next", place,
                      f"Current is {current}, Default {default}; every set is fitted to the VM alike",
                      "nothing, or compare the two sets if the VM behaves unlike the server", fixer=NAME)
    if failed and failed == default:
        yield Finding("the last start with this control set failed", place,
                      f"Failed and Default are both {default}; the server may not have started either",
                      "start the server once more before it is copied, or choose Last Known Good in the VM",
                      Severity.WARNING, NAME)
    if good not in known:
        yield Finding("Last Known Good leads to no control set", place,
                      f"LastKnownGood is {good}, there are {', '.join(guest.facts.control_sets)}; after a failed start "
                      "there is nothing to fall back to", "nothing: a start that succeeds sets it anew",
                      Severity.WARNING, NAME)


def _state(guest: Guest) -> Iterator[Finding]:
    """What must not be stored, and a setup that is not over."""
    tree = guest.hive(HIVE)
    if tree.has("CurrentControlSet"):
        yield Finding("the hive has a stored key CurrentControlSet", Where(item=f"{HIVE}\\CurrentControlSet"),
                      "Windows makes that name itself when it starts, as a link; a tool that edited the hive offline "
                      "left this one, and its edits have no effect",
                      "nothing for the VM; repeat that tool's edits in the running Windows", Severity.WARNING, NAME)
    for name in ("SystemSetupInProgress", "SetupType"):
        if number(tree, "Setup", name):
            yield Finding("Windows' setup is not over", Where(item=f"{HIVE}\\Setup:{name}"),
                          f"{name} is {number(tree, 'Setup', name)}: the VM would start in setup, not in Windows",
                          "let setup finish on the server first, unless the image was made by sysprep on purpose",
                          Severity.WARNING, NAME)
            return
