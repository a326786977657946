"""Manifests: what is in the tree is right, and a wrong one names the place."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from p2v import drivers
from p2v.errors import PlanError, Unsupported
from p2v.model import Family, GuestFacts

TEXT = (drivers.folder() / "piix-ide.toml").read_text()


@dataclass
class Known:
    facts: GuestFacts


def guest(version, architecture="x86") -> Known:
    return Known(GuestFacts(Family.WINDOWS, "a test", version=version, architecture=architecture))


@pytest.mark.parametrize("name", drivers.names())
def test_every_manifest_loads_and_says_where_its_facts_are_from(name):
    manifest = drivers.load(name)
    assert manifest.name == name and manifest.pci
    for generation in manifest.generation:
        for fact in (generation, *generation.service, *generation.device, *generation.file, *generation.needed,
                     *generation.rival):
            assert fact.known_from


@pytest.mark.parametrize(("version", "architecture", "title"), [
    ((4, 0), "x86", "Windows NT 4.0"), ((5, 0), "x86", "Windows 2000, XP and Server 2003"),
    ((5, 1), "x86", "Windows 2000, XP and Server 2003"), ((5, 2), "x64", "Windows 2000, XP and Server 2003")])
def test_the_generation_that_fits(version, architecture, title):
    driver = drivers.choose(("piix-ide",), guest(version, architecture))
    assert driver.generation.title == title
    assert driver.device_ids == ("pci#ven_8086&dev_7010", "pci#ven_8086&dev_7111")


@pytest.mark.parametrize(("version", "architecture"), [((4, 0), "x64"), ((3, 51), "x86"), ((6, 0), "x86")])
def test_none_fits(version, architecture):
    with pytest.raises(Unsupported, match="no controller"):
        drivers.choose(("piix-ide",), guest(version, architecture))


def test_no_such_manifest():
    with pytest.raises(PlanError, match="no driver manifest for ahci"):
        drivers.choose(("ahci",), guest((5, 1)))


@pytest.mark.parametrize(("old", "new", "place"), [
    ('name = "atapi"', 'nmae = "atapi"', "nmae"),
    ("tag = 25", 'tag = "25"', "service 1 atapi, tag"),
    ("tag = 25", "", "service 1 atapi, tag"),
    ("type = 1", "type = true", "service 1 atapi, type"),
    ("8086:7010", "8086-7010", "piix-ide.toml"),
    ("start = 0", "start = 7", "service atapi"),
    ('service = "intelide"', 'service = "inteldie"', "device pci#ven_8086&dev_7010"),
    ('name = "atapi.sys"', r'name = "..\\atapi.sys"', "generation Windows 2000"),
    ('name = "atapi.sys"', 'name = "*.sys"', "generation Windows 2000"),
    ('versions = ["5.0", "5.1", "5.2"]', "versions = 5", "versions"),
    ("[[generation]]", "[generation", "piix-ide.toml"),
    ("{4D36E96A-", "4D36E96A-", "generation Windows 2000"),
])
def test_a_wrong_manifest_names_its_place(old, new, place):
    assert old in TEXT
    with pytest.raises(PlanError, match="a driver manifest is wrong") as error:
        drivers.parse(TEXT.replace(old, new, 1), "piix-ide.toml")
    assert place in str(error.value.where)


def test_a_manifest_without_a_generation():
    with pytest.raises(PlanError, match="wrong"):
        drivers.parse('name = "x"\ntitle = "x"\npci = []\ngeneration = []\n', "x.toml")
