"""Instances of the devices that a VM starts from, in Enum and hardware profiles, and the bit that turns one off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2v.drivers import Driver
from p2v.guest.facts import number
from p2v.model import HiveTree

OFF = 1  # bit of ConfigFlags (an instance) and of CSConfigFlags (an instance in one hardware profile)
PROFILES = "Hardware Profiles"
Seat = tuple[str, str]  # (bus, how the device's id begins, in lower case); on the bus Root the whole id


def seats(driver: Driver) -> Iterator[Seat]:
    """Where instances of the controller, of its IDE channels and of its driver lie below Enum."""
    yield from controller_seats(driver)
    for service in driver.generation.service:
        yield "Root", f"legacy_{service.name.lower()}"
    if any(row.id.endswith("_ide_channel") for row in driver.generation.device):
        yield "PCIIDE", "idechannel"


def controller_seats(driver: Driver) -> Iterator[Seat]:
    """Those of the controller alone."""
    for id in driver.device_ids:
        yield "PCI", id.removeprefix("pci#")


def instances(tree: HiveTree, enum: str, places: Sequence[Seat]) -> Iterator[str]:
    """Keys of the instances below an Enum, each once."""
    for bus in dict.fromkeys(bus for bus, _ in places):
        starts = tuple(start for each, start in places if each == bus)
        for device in tree.subkeys(f"{enum}\\{bus}"):
            name = device.lower()
            if name in starts or (bus != "Root" and name.startswith(starts)):
                for instance in tree.subkeys(f"{enum}\\{bus}\\{device}"):
                    yield f"{enum}\\{bus}\\{device}\\{instance}"


def switched_off(tree: HiveTree, control_set: str, places: Sequence[Seat]) -> Iterator[tuple[str, str, int, str]]:
    """(key, value, its number, hardware profile or "") of each instance that is off."""
    enums = [(f"{control_set}\\Enum", "ConfigFlags", "")]
    enums += [(f"{control_set}\\{PROFILES}\\{profile}\\System\\CurrentControlSet\\Enum", "CSConfigFlags", profile)
              for profile in tree.subkeys(f"{control_set}\\{PROFILES}")]
    for enum, name, profile in enums:
        for key in instances(tree, enum, places):
            flags = number(tree, key, name)
            if flags is not None and flags & OFF:
                yield key, name, flags, profile
