"""A device that was switched off once stays off: the controllers that the VM starts from are switched on again.

Windows keeps the switch with each instance in Enum (ConfigFlags) and with each hardware profile (CSConfigFlags). It
trusts an instance that was installed once and does not ask the CriticalDeviceDatabase for it: 0x7B with a perfect
database. NT 4 skips a driver that a profile turns off in spite of Start = 0 (Q166238).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2v import drivers
from p2v.drivers import Driver
from p2v.errors import Finding
from p2v.guest import controllers, devices
from p2v.guest.facts import number
from p2v.guest.fixers.edits import Edits
from p2v.guest.media import Media
from p2v.model import Change, DWord, Family, Guest, Target, Text

NAME = "device-instances"
BOOT = 0
WHY = "the VM starts from this device, and it was switched off here: 0x7B"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """Instances of the target's controllers, of IDE channels where it has any, of NT 4's drivers."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    serving = tuple(drivers.serving(target.CONTROLLERS, guest.facts))
    places = tuple(seat for driver in serving for seat in devices.seats(driver))
    fitted: tuple[Driver, ...] | None = None
    for control_set in guest.facts.control_sets:
        for key, name, flags, profile in devices.switched_off(edits.tree, control_set, places):
            why = f"{WHY}, in the hardware profile {profile}" if profile else WHY
            yield from edits.value(key, name, DWord(flags & ~devices.OFF), why)
        if fitted is None and _lost(edits, control_set, serving):
            fitted = _fitted(guest, target)
        yield from _bound(edits, control_set, fitted or ())


# ---------------------------------------------------------------------------------------------
# Instances that another driver had


def _fitted(guest: Guest, target: Target) -> tuple[Driver, ...]:
    """The controllers that boot storage fits under Plug and Play: those whose drivers are complete."""
    with Media(guest) as media:
        return tuple(option.driver for option in controllers.options(target.CONTROLLERS, guest, media)
                     if option.driver.plug_and_play)


def _lost(edits: Edits, control_set: str, serving: Sequence[Driver]) -> bool:
    """Is there an installed instance of a controller whose service would not start?"""
    return any(not _starts(edits, control_set, key, serving) for driver in serving
               if driver.plug_and_play for key in _installed(edits, control_set, driver))


def _installed(edits: Edits, control_set: str, driver: Driver) -> Iterator[str]:
    for key in devices.instances(edits.tree, f"{control_set}\\Enum", tuple(devices.controller_seats(driver))):
        if edits.tree.value(key, "ClassGUID") is not None:
            yield key


def _starts(edits: Edits, control_set: str, key: str, fitted: Sequence[Driver]) -> bool:
    value = edits.tree.value(key, "Service")
    service = value.text.lower() if value else ""
    ours = {name.lower() for driver in fitted for name in driver.service_names}
    key = f"{control_set}\\Services\\{service}"
    return service in ours or (bool(service) and number(edits.tree, key, "Start") == BOOT)


def _bound(edits: Edits, control_set: str, fitted: Sequence[Driver]) -> Iterator[Change]:
    """Such an instance gets the service and class that the database has for it, as the kernel would write them."""
    for driver in fitted:
        rows = {row.id: row for row in driver.generation.device}
        for key in _installed(edits, control_set, driver):
            if _starts(edits, control_set, key, fitted):
                continue
            id = key.split("\\")[3].lower()
            row = next((row for each, row in rows.items() if each.startswith("pci#")
                        and id.startswith(each.removeprefix("pci#"))), None)
            row = row or next((row for each, row in rows.items() if each.startswith("pci#cc_")), None)
            if row is None:
                continue
            why = (f"{driver.manifest.title} was installed here with another driver, which does not start now; Windows "
                   "trusts the instance and does not ask the database: 0x7B")
            yield from edits.value(key, "Service", Text(row.service), why)
            guid = edits.tree.value(key, "ClassGUID")
            if guid is None or guid.text.lower() != row.class_guid.lower():
                yield from edits.value(key, "ClassGUID", Text(row.class_guid), why)
