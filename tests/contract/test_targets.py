"""Every target in the list keeps the contract of model.Target, for every guest that p2v knows."""

from __future__ import annotations

import pytest

from p2v import drivers
from p2v.errors import Severity
from p2v.formats import FORMATS
from p2v.model import Family, Geometry, GuestFacts, MachineDisk
from p2v.target import TARGETS
from p2v.target.byhand import to_make
from p2v.target.nics import CARDS
from p2v.target.places import PLACES, too_many

GUESTS = [GuestFacts(Family.WINDOWS, f"Windows {version} {architecture}", version, architecture=architecture)
          for version, architecture in (((4, 0), "x86"), ((5, 0), "x86"), ((5, 1), "x86"), ((5, 2), "x86"),
                                        ((5, 2), "x64"))]


@pytest.mark.parametrize("name", TARGETS)
def test_the_list_calls_it_by_its_name_and_its_controllers_have_manifests(name: str) -> None:
    assert name == TARGETS[name].NAME
    assert TARGETS[name].CONTROLLERS
    for controller in TARGETS[name].CONTROLLERS:
        assert drivers.load(controller).name == controller
        assert controller in PLACES


@pytest.mark.parametrize("facts", GUESTS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("name", TARGETS)
def test_a_guest_sees_the_controllers_in_an_order_of_its_own_ide_among_them(name: str, facts: GuestFacts) -> None:
    target = TARGETS[name]
    assert sorted(target.controllers(facts)) == sorted(target.CONTROLLERS)
    assert "piix-ide" in [driver.manifest.name for driver in drivers.serving(target.controllers(facts), facts)]


@pytest.mark.parametrize("name", TARGETS)
def test_its_cards_are_known_and_have_names(name: str) -> None:
    assert TARGETS[name].NICS
    assert set(TARGETS[name].NICS) <= set(CARDS) and all(TARGETS[name].NICS.values())


@pytest.mark.parametrize("facts", GUESTS, ids=lambda facts: facts.name)
@pytest.mark.parametrize("name", TARGETS)
def test_every_guest_gets_a_format_and_a_definition(name: str, facts: GuestFacts) -> None:
    target = TARGETS[name]
    format = target.format_for(facts)
    assert format in FORMATS and format in target.TAKES and set(target.TAKES) <= set(FORMATS)
    disk = MachineDisk(f"/vm/disk0{FORMATS[format].SUFFIX}", format, 10 << 30, Geometry(255, 63))
    machine = target.machine("web01", facts, [disk])
    assert machine.disks == (disk,) and machine.memory >= 64 << 20 and machine.cpus >= 1
    assert machine.nic in target.NICS.values()
    files = target.configure(machine)
    for file, text in files.items():
        assert "/" not in file and "web01" in text and disk.file in text
    said = list(to_make(machine, target))
    assert bool(said) != bool(files), "what p2v does not write, it says how to make"
    for finding in said:
        assert finding.severity is Severity.WARNING and name in finding.what
        assert "disk0 on " in finding.next and machine.nic in finding.next
        assert f"{machine.cpus} processor(s), {machine.memory >> 20} MiB" in finding.next
        assert "{" not in finding.next


@pytest.mark.parametrize("name", TARGETS)
def test_disks_beyond_the_controllers_places_are_a_finding(name: str) -> None:
    target, disk = TARGETS[name], MachineDisk("/vm/a", "raw", 10 << 30, Geometry(255, 63))
    assert not list(too_many(target.machine("web01", GUESTS[2], [disk] * 4), target))
    finding, = too_many(target.machine("web01", GUESTS[2], [disk] * 5), target)
    assert finding.what == "5 disks, and Intel PIIX IDE takes 4" and "disk4" in str(finding.where) and finding.next
    stops = bool(target.configure(target.machine("web01", GUESTS[2], [disk])))
    assert finding.severity is (Severity.ERROR if stops else Severity.WARNING)
