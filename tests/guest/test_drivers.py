"""Manifests: what is in the tree is right, and a wrong one names the place."""

from __future__ import annotations

import pytest

from p2v import drivers
from p2v.errors import PlanError
from p2v.model import Family, GuestFacts

TEXT = (drivers.folder() / "piix-ide.toml").read_text()
SUPPLIED = (drivers.folder() / "virtio-blk.toml").read_text()


def facts(version, architecture="x86") -> GuestFacts:
    return GuestFacts(Family.WINDOWS, "a test", version=version, architecture=architecture)


@pytest.mark.parametrize("name", drivers.names())
def test_every_manifest_loads_and_says_where_its_facts_are_from(name):
    manifest = drivers.load(name)
    assert manifest.name == name and manifest.pci
    for generation in manifest.generation:
        for fact in (generation, *generation.service, *generation.device, *generation.file, *generation.needed,
                     *generation.rival, *(one for service in generation.service for one in service.parameter)):
            assert fact.known_from


# What there is a driver for, service by service: typed from the knowledge of the manifests, not read from them.
SERVED = {
    "piix-ide": {"4.0 x86": "atapi", "5.0 x86": "atapi", "5.1 x86": "atapi", "5.2 x86": "atapi", "5.2 x64": "atapi"},
    "lsi-53c895a": {"4.0 x86": "sym_hi", "5.0 x86": "sym_hi", "5.1 x86": "sym_hi", "5.2 x86": "sym_hi",
                    "5.2 x64": "sym_hi"},
    "lsi-53c1030": {"5.0 x86": "symmpi", "5.1 x86": "symmpi", "5.2 x86": "symmpi", "5.2 x64": "symmpi"},
    "buslogic": {"4.0 x86": "BusLogic", "5.0 x86": "vmscsi", "5.1 x86": "vmscsi", "5.2 x86": "vmscsi"},
    "am53c974": {"4.0 x86": "amsint", "5.0 x86": "amsint", "5.1 x86": "amsint", "5.2 x86": "amsint"},
    "virtio-blk": {"5.1 x86": "viostor", "5.2 x86": "viostor", "5.2 x64": "viostor"},
    "virtio-scsi": {"5.2 x86": "vioscsi", "5.2 x64": "vioscsi"},
    "uniata": {"4.0 x86": "UniATA", "5.0 x86": "UniATA", "5.1 x86": "UniATA", "5.2 x86": "UniATA"},
}


@pytest.mark.parametrize("name", drivers.names())
def test_what_is_served(name):
    """Never vioscsi for XP, never virtio for 2000, never BusLogic for x64."""
    served = {}
    for version in ((3, 51), (4, 0), (5, 0), (5, 1), (5, 2), (6, 0)):
        for architecture in ("x86", "x64"):
            for driver in drivers.serving((name,), facts(version, architecture)):
                served[f"{version[0]}.{version[1]} {architecture}"] = driver.generation.service[0].name
    if name == "piix-ide":
        del served["5.0 x64"]  # such a Windows does not exist
    if name in ("piix-ide", "lsi-53c895a"):
        del served["5.1 x64"]
    assert served == SERVED[name]


def test_the_target_s_order_is_kept():
    order = ("virtio-blk", "piix-ide", "virtio-scsi", "am53c974")
    assert [driver.manifest.name for driver in drivers.serving(order, facts((5, 1)))] == [
        "virtio-blk", "piix-ide", "am53c974"]
    driver = next(drivers.serving(("piix-ide",), facts((5, 2), "x64")))
    assert driver.device_ids == ("pci#ven_8086&dev_7010", "pci#ven_8086&dev_7111") and driver.plug_and_play
    assert not next(drivers.serving(("piix-ide",), facts((4, 0)))).plug_and_play


@pytest.mark.parametrize("name", drivers.names())
def test_every_controller_has_its_rows(name):
    """Under Plug and Play each PCI id has a row of its own, or one of its class."""
    for generation in drivers.load(name).generation:
        driver = drivers.Driver(drivers.load(name), generation)
        rows = {row.id for row in generation.device}
        if driver.plug_and_play:
            assert set(driver.device_ids) <= rows or any(row.startswith("pci#cc_") for row in rows)
        assert driver.plug_and_play == ("4.0" not in generation.versions)


def test_the_corpus_s_hives_agree(corpus):
    """Service values of the manifests against real hives of XP, NT 5.2 x64 and NT 4."""
    import lzma

    from p2v.registry.reader import open_hive

    checked = 0
    for folder, version, architecture in (("nt4-server-ee-sp3-vmware", (4, 0), "x86"),
                                          ("xp-sp3-dell-physical-m57pat", (5, 1), "x86"),
                                          ("xp-sp3-vmware-buslogic-m57jean", (5, 1), "x86"),
                                          ("xp-x64-sp2-nt52-vbox", (5, 2), "x64")):
        tree = open_hive(lzma.decompress((corpus / "hives" / folder / "SYSTEM.xz").read_bytes()), folder)
        for driver in drivers.serving(drivers.names(), facts(version, architecture)):
            for service in driver.generation.service:
                key = f"ControlSet001\\Services\\{service.name}"
                if not tree.has(key):
                    continue
                wanted = {"Type": service.type, "ErrorControl": service.error_control} | (
                    {"Tag": service.tag} if service.tag else {})
                assert {name: tree.value(key, name).number for name in wanted} == wanted, f"{folder}, {service.name}"
                assert tree.value(key, "Group").text.lower() == service.group.lower()
                for parameter in service.parameter:
                    real = tree.value(f"{key}\\{parameter.key}", parameter.name)
                    assert real is None or real.number == parameter.number
                checked += 1
    assert checked >= 15


def test_no_such_manifest():
    with pytest.raises(PlanError, match="no driver manifest for ahci"):
        list(drivers.serving(("ahci",), facts((5, 1))))


@pytest.mark.parametrize(("old", "new", "place"), [
    ('name = "atapi"', 'nmae = "atapi"', "nmae"),
    ("tag = 25", 'tag = "25"', "service 1 atapi, tag"),
    ("tag = 25", "tag = -1", "service atapi"),
    ('error_control = 1', "", "service 1 atapi, error_control"),
    ('in_box = "yes"', 'in_box = "maybe"', "generation Windows 2000"),
    ('in_box = "yes"', "", "in_box"),
    ('in_box = "yes"', 'in_box = "yes"\nsupplied = true', "generation Windows 2000"),
    ('versions = ["4.0"]', 'versions = ["4.0", "5.1"]', "generation Windows NT 4.0"),
    ('id = "gendisk"', 'id = "GenDisk"', "generation Windows 2000"),
    ('retire_group = "SCSI miniport"', 'retire_group = "SCSI miniport"\nspare = ["a b"]', "generation Windows NT 4.0"),
    ('name = "atapi.sys"', 'name = "atapi.sys"\nfolders = ["xp"]', "file atapi.sys"),
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


@pytest.mark.parametrize(("old", "new", "place"), [
    ("number = 1", 'number = "1"', "parameter 1 5, number"),
    ("number = 1", "number = -1", r"service viostor, parameter Parameters\PnpInterface"),
    ("number = 1", "number = 0x100000000", "service viostor, parameter"),
    (r"key = 'Parameters\PnpInterface'", r"key = '..\other'", "service viostor, parameter"),
    (r"key = 'Parameters\PnpInterface'", r"key = '\Parameters'", "service viostor, parameter"),
    ('name = "5"', 'name = ""', "service viostor, parameter"),
    ("supplied = true", "", "generation Windows XP"),
    ("vendor = true", "vendor = false", "generation Windows XP"),
    ('in_box = "no"', 'in_box = "yes"', "generation Windows XP"),
    ('folders = ["xp"]', 'folders = ["../xp"]', "generation Windows XP"),
])
def test_a_wrong_supplied_driver_names_its_place(old, new, place):
    assert old in SUPPLIED
    with pytest.raises(PlanError, match="a driver manifest is wrong") as error:
        drivers.parse(SUPPLIED.replace(old, new, 1), "virtio-blk.toml")
    assert place in str(error.value.where)


def test_a_manifest_without_a_generation():
    with pytest.raises(PlanError, match="wrong"):
        drivers.parse('name = "x"\ntitle = "x"\npci = []\ngeneration = []\n', "x.toml")
