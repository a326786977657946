"""KVM and QEMU through libvirt: machine pc (i440FX), PIIX3 IDE.

Source of the choices: knowledge of live runs and of QEMU's and SeaBIOS' code, gathered in the project's
notes on Windows guests (VM definitions, target NICs, CPU type); virt-xml-validate accepts the result.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from p2v.errors import Unsupported, Where
from p2v.model import SECTOR, GuestFacts, Machine, MachineDisk

NAME = "kvm"
CONTROLLERS: Sequence[str] = ("piix-ide",)
IDE_PLACES = 4

MIB = 1 << 20
# NT 4 stops with 0x7B above some 1.79 GB before SP3, and none of these servers had much.
MEMORY = {(4, 0): 256 * MIB, (5, 0): 512 * MIB, (5, 1): 1024 * MIB, (5, 2): 2048 * MIB}
MULTIPROCESSOR_HALS = ("halmacpi.dll", "halmps.dll")


def format_for(facts: GuestFacts) -> str:
    """NT 4's IDE driver never sends FLUSH CACHE: a growing image loses its tables when the host dies."""
    return "raw" if facts.version < (5, 0) else "qcow2"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size. Raises Unsupported for more disks than PIIX IDE has places."""
    if len(disks) > IDE_PLACES:
        raise Unsupported(
            f"{len(disks)} disks, and PIIX IDE has {IDE_PLACES} places",
            Where(item=", ".join(disk.file for disk in disks)),
            "it is the only controller for which these systems carry a driver",
            f"convert at most {IDE_PLACES} disks with the guest, the other data disks apart from it",
        )
    hal = facts.hal.original_name.lower() if facts.hal else ""
    return Machine(
        name=name,
        facts=facts,
        disks=tuple(disks),
        memory=MEMORY.get(facts.version, 1024 * MIB),
        cpus=2 if hal in MULTIPROCESSOR_HALS and facts.version >= (5, 0) else 1,
        nic=_nic(facts),
    )


def configure(machine: Machine) -> Mapping[str, str]:
    """NAME.xml, a libvirt domain."""
    domain = ET.Element("domain", type="kvm")
    ET.SubElement(domain, "name").text = machine.name
    ET.SubElement(domain, "description").text = machine.facts.name
    ET.SubElement(domain, "memory", unit="bytes").text = str(machine.memory)
    ET.SubElement(domain, "vcpu").text = str(machine.cpus)
    system = ET.SubElement(domain, "os")
    ET.SubElement(system, "type", arch="x86_64", machine="pc").text = "hvm"
    ET.SubElement(system, "boot", dev="hd")
    _features(domain, machine.facts)
    _clock(domain)
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(machine.disks):
        _disk(devices, index, disk, machine.facts)
    _others(devices, machine)
    ET.indent(domain)
    return {f"{machine.name}.xml": ET.tostring(domain, encoding="unicode") + "\n"}


def _nic(facts: GuestFacts) -> str:
    """The model with a driver in the box: pcnet for NT 4, e1000 for x64, rtl8139 for the others."""
    if facts.version < (5, 0):
        return "pcnet"
    return "e1000" if facts.architecture == "x64" else "rtl8139"


def _features(domain: ET.Element, facts: GuestFacts) -> None:
    """NT 4: no ACPI, and a CPU whose CPUID ends at leaf 3 or below (a larger count is STOP 0x3E)."""
    features = ET.SubElement(domain, "features")
    if facts.version >= (5, 0):
        ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact")
    models = {(4, 0): "pentium", (5, 0): "pentium3"}
    model = models.get(facts.version, "qemu64" if facts.architecture == "x64" else "qemu32")
    ET.SubElement(cpu, "model", fallback="allow").text = model


def _clock(domain: ET.Element) -> None:
    """These systems keep local time in the RTC and know no HPET."""
    clock = ET.SubElement(domain, "clock", offset="localtime")
    ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ET.SubElement(clock, "timer", name="hpet", present="no")


def _disk(devices: ET.Element, index: int, disk: MachineDisk, facts: GuestFacts) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    kind = "raw" if disk.format == "raw" else "qcow2"
    driver = ET.SubElement(element, "driver", name="qemu", type=kind)
    if facts.version < (5, 0) and kind != "raw":
        driver.set("cache", "writethrough")
    ET.SubElement(element, "source", file=disk.file)
    ET.SubElement(element, "target", dev="hd" + "abcd"[index], bus="ide")
    # LBA translation named outright: QEMU would guess it from the first entry's end CHS.
    cylinders = min(16383, max(1, disk.size // SECTOR // (16 * 63)))
    ET.SubElement(element, "geometry", cyls=str(cylinders), heads="16", secs="63", trans="lba")


def _others(devices: ET.Element, machine: Machine) -> None:
    old = machine.facts.version < (5, 0)
    if not old:
        ET.SubElement(devices, "controller", type="usb", model="piix3-uhci")
        ET.SubElement(devices, "input", type="tablet", bus="usb")
    interface = ET.SubElement(devices, "interface", type="network")
    ET.SubElement(interface, "source", network="default")
    ET.SubElement(interface, "model", type=machine.nic)
    ET.SubElement(devices, "graphics", type="vnc", autoport="yes")
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", type="vga" if old else "cirrus")
    ET.SubElement(devices, "memballoon", model="none")
