"""Every target in the list keeps the contract of model.Target, for every guest that p2v knows."""

from __future__ import annotations

import pytest

from p2v import drivers
from p2v.formats import FORMATS
from p2v.model import Family, Geometry, GuestFacts, MachineDisk
from p2v.target import TARGETS

GUESTS = [GuestFacts(Family.WINDOWS, f"Windows {version} {architecture}", version, architecture=architecture)
          for version, architecture in (((4, 0), "x86"), ((5, 0), "x86"), ((5, 1), "x86"), ((5, 2), "x86"),
                                        ((5, 2), "x64"))]


@pytest.mark.parametrize("name", TARGETS)
def test_the_list_calls_it_by_its_name_and_its_controllers_have_manifests(name: str) -> None:
    assert name == TARGETS[name].NAME
    assert TARGETS[name].CONTROLLERS
    for controller in TARGETS[name].CONTROLLERS:
        assert drivers.load(controller).name == controller


@pytest.mark.parametrize("facts", GUESTS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("name", TARGETS)
def test_every_guest_gets_a_format_and_a_definition(name: str, facts: GuestFacts) -> None:
    target = TARGETS[name]
    format = target.format_for(facts)
    assert format in FORMATS
    disk = MachineDisk(f"/vm/disk0{FORMATS[format].SUFFIX}", format, 10 << 30, Geometry(255, 63))
    machine = target.machine("web01", facts, [disk])
    assert machine.disks == (disk,) and machine.memory >= 64 << 20 and machine.cpus >= 1
    for file, text in target.configure(machine).items():
        assert "/" not in file and "web01" in text and disk.file in text
