"""The libvirt definition: what each guest must have, and that libvirt's own schema takes it."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from p2v.errors import PlanError
from p2v.model import Family, Geometry, GuestFacts, MachineDisk, PEFacts
from p2v.target import target_named
from p2v.target.kvm import BUSES
from p2v.target.places import PLACES

KVM = target_named("kvm")
NT4 = GuestFacts(Family.WINDOWS, "Windows NT 4.0", (4, 0), 1381, 3, "x86")
XP = GuestFacts(Family.WINDOWS, "Windows XP <SP3> & more", (5, 1), 2600, 3, "x86")
X64 = GuestFacts(Family.WINDOWS, "Windows XP x64", (5, 2), 3790, 2, "x64")
GUESTS = {"nt4": NT4, "xp": XP, "x64": X64}


def disk(format: str = "qcow2", name: str = "/vm/disk0 <a>.qcow2") -> MachineDisk:
    return MachineDisk(name, format, 40 << 30, Geometry(255, 63))


def domain(facts: GuestFacts, *disks: MachineDisk) -> ET.Element:
    machine = KVM.machine("web01", facts, disks or (disk(),))
    (name, text), = KVM.configure(machine).items()
    assert name == "web01.xml"
    return ET.fromstring(text)


@pytest.mark.parametrize("guest", GUESTS)
def test_libvirt_accepts_it(guest: str, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("virt-xml-validate", "xmllint")
    path = tmp_path / "web01.xml"
    machine = KVM.machine("web01", GUESTS[guest], (disk(), disk("raw", "/vm/disk1.img")))
    path.write_text(next(iter(KVM.configure(machine).values())))
    done = subprocess.run(["virt-xml-validate", str(path), "domain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nt4_gets_an_old_cpu_no_acpi_one_cpu_and_pcnet() -> None:
    xml = domain(NT4)
    assert xml.findtext("cpu/model") == "pentium"
    assert xml.find("features/acpi") is None
    assert xml.findtext("vcpu") == "1"
    assert xml.find("devices/interface/model").get("type") == "pcnet"
    assert xml.find("devices/controller") is None and xml.find("devices/input") is None


def test_nt4_never_loses_its_tables_in_a_growing_image() -> None:
    assert KVM.format_for(NT4) == "raw"
    assert domain(NT4, disk("qcow2")).find("devices/disk/driver").get("cache") == "writethrough"
    assert domain(NT4, disk("raw")).find("devices/disk/driver").get("cache") is None
    assert domain(XP).find("devices/disk/driver").get("cache") is None


@pytest.mark.parametrize(("guest", "nic"), [("nt4", "pcnet"), ("xp", "rtl8139"), ("x64", "e1000")])
def test_the_nic_has_a_driver_in_the_box(guest: str, nic: str) -> None:
    assert domain(GUESTS[guest]).find("devices/interface/model").get("type") == nic


def test_disks_are_ide_in_bios_order_with_lba_translation() -> None:
    found = domain(XP, disk(), disk(name="/vm/b"), disk(name="/vm/c")).findall("devices/disk")
    assert [d.find("target").get("dev") for d in found] == ["hda", "hdb", "hdc"]
    assert {d.find("target").get("bus") for d in found} == {"ide"}
    assert {d.find("geometry").get("trans") for d in found} == {"lba"}


def test_a_multiprocessor_hal_gets_two_cpus_from_2000_on() -> None:
    def with_hal(facts: GuestFacts, name: str) -> GuestFacts:
        hal = PEFacts("x86", None, name, "", ())
        return GuestFacts(facts.family, facts.name, facts.version, hal=hal)

    assert KVM.machine("a", with_hal(XP, "HALMACPI.DLL"), ()).cpus == 2
    assert KVM.machine("a", with_hal(XP, "halaacpi.dll"), ()).cpus == 1
    assert KVM.machine("a", with_hal(NT4, "halmps.dll"), ()).cpus == 1


@pytest.mark.parametrize("controller", BUSES)
def test_every_controller_is_defined_as_libvirt_knows_it(
    controller: str, tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs("virt-xml-validate", "xmllint")
    machine = replace(KVM.machine("web01", XP, (disk(), disk(name="/vm/b"))), controller=controller)
    (text,) = KVM.configure(machine).values()
    (tmp_path / "web01.xml").write_text(text)
    done = subprocess.run(["virt-xml-validate", str(tmp_path / "web01.xml"), "domain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    xml = ET.fromstring(text)
    assert {one.get("bus") for one in xml.findall("devices/disk/target")} == {BUSES[controller].name}
    assert len({one.get("dev") for one in xml.findall("devices/disk/target")}) == 2
    assert (xml.find("devices/disk/geometry") is None) == (controller != "piix-ide")


def test_the_definition_reaches_every_disk_that_a_controller_takes() -> None:
    for controller in BUSES:
        most = len(PLACES[controller])
        machine = replace(KVM.machine("web01", XP, [disk()] * most), controller=controller)
        (text,) = KVM.configure(machine).values()
        names = [one.get("dev") for one in ET.fromstring(text).findall("devices/disk/target")]
        assert len(set(names)) == most, controller


@pytest.mark.parametrize(("format", "driver"), [("vmdk-esx", "vmdk"), ("vhd", "vpc"), ("vdi", "vdi"), ("raw", "raw")])
def test_an_adapted_image_is_attached_as_what_it_is(format: str, driver: str) -> None:
    assert domain(XP, disk(format)).find("devices/disk/driver").get("type") == driver


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(PlanError) as error:
        target_named("vax")
    assert "kvm" in error.value.next
