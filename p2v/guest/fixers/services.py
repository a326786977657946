"""Services of the old hardware stay off: processors, chipsets, makers' agents, watchdogs, other hypervisors' tools.

Disabled, never deleted: deleting the keys breaks the driver for good (virt-v2v did so until 2016).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from p2v import drivers
from p2v import services as known
from p2v.errors import Finding, Severity, Where
from p2v.guest import images
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits
from p2v.model import Change, DWord, Family, Guest, Target
from p2v.services import DISABLE, Rule

NAME = "services"
DISABLED = 4
AUTOMATIC = 2


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """Start = 4 in every control set; findings for what is only told, and for what could not be proven."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        for service, rule in unwanted(guest, target, control_set).items():
            yield from edits.value(f"{control_set}\\Services\\{service}", "Start", DWord(DISABLED),
                                   f"{rule.title}: {rule.why}")
    yield from _told(guest, target)


def unwanted(guest: Guest, target: Target, control_set: str) -> Mapping[str, Rule]:
    """The services of a control set that are on and are to be off, with the rule."""
    return {service: rule for service, rule in _met(guest, target, control_set)
            if rule.action == DISABLE and not _doubt(guest, control_set, service, rule)}


def kept(guest: Guest, target: Target) -> frozenset[str]:
    """Services, in lower case, that the target's controllers need: no rule and no filter list touches them."""
    return frozenset(name.lower() for driver in drivers.serving(target.CONTROLLERS, guest.facts)
                     for name in driver.service_names)


def _met(guest: Guest, target: Target, control_set: str) -> Iterator[tuple[str, Rule]]:
    """The services that are on and that a rule is about."""
    tree, spare = guest.hive(HIVE), kept(guest, target)
    rules = [rule for rule in known.rules() if target.NAME not in rule.keep_on]
    for service in tree.subkeys(f"{control_set}\\Services"):
        rule = next((rule for rule in rules if rule.serves(service, guest.facts.version)), None)
        if rule is None or service.lower() in spare:
            continue
        start = number(tree, f"{control_set}\\Services\\{service}", "Start")
        if start is not None and start != DISABLED:
            yield service, rule


def _doubt(guest: Guest, control_set: str, service: str, rule: Rule) -> str:
    """What the rule wants to see and does not; "" for nothing."""
    image = guest.hive(HIVE).value(f"{control_set}\\Services\\{service}", "ImagePath")
    if rule.path and not fnmatchcase(image.text.lower() if image else "", rule.path.lower()):
        return f"its path is not {rule.path}"
    if rule.device and not any(_is_there(guest, control_set, id) for id in rule.device):
        return "there is no sign of " + " or ".join(rule.device)
    if rule.company:
        found = images.look(guest, images.service_file(guest, control_set, service))
        if isinstance(found, str):
            return found
        if not any(company.lower() in found.company.lower() for company in rule.company):
            return f"its file is of {found.company or 'no company'}"
    return ""


def _is_there(guest: Guest, control_set: str, id: str) -> bool:
    """Does Enum know a device whose id begins so?"""
    bus, _, start = id.partition("\\")
    devices = guest.hive(HIVE).subkeys(f"{control_set}\\Enum\\{bus}")
    return any(device.lower().startswith(start.lower()) for device in devices)


def _told(guest: Guest, target: Target) -> Iterator[Finding]:
    """One finding for each rule and what is said of it, from the control set that the loader reads."""
    control_set = guest.facts.default_control_set
    said: dict[tuple[Rule, str], list[str]] = {}
    for service, rule in _met(guest, target, control_set):
        doubt = _doubt(guest, control_set, service, rule)
        start = number(guest.hive(HIVE), f"{control_set}\\Services\\{service}", "Start")
        started = start is not None and start <= AUTOMATIC
        if (rule.action == DISABLE and doubt) or (rule.action != DISABLE and started and not doubt):
            said.setdefault((rule, doubt), []).append(service)
    for (rule, doubt), services in said.items():
        names = ", ".join(sorted(services, key=str.lower))
        place = Where(item=f"{HIVE}\\{control_set}\\Services\\{sorted(services, key=str.lower)[0]}")
        if rule.action == DISABLE:
            yield Finding(f"{names}: may be {rule.title}, and is left on", place,
                          f"known by name only, and {doubt}; if it is: {rule.why}",
                          f"if it is, set it to disabled: sc config \"{services[0]}\" start= disabled", fixer=NAME)
        else:
            yield Finding(f"{names}: {rule.title}", place, rule.why, rule.next, Severity.WARNING, NAME)
