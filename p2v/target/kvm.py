"""KVM and QEMU through libvirt: machine pc (i440FX), PIIX3 IDE; SCSI, virtio and AHCI where the guest has a driver.

Source of the choices: knowledge of live runs and of QEMU's and SeaBIOS' code, gathered in the project's
notes on Windows guests (VM definitions, target NICs, CPU type); virt-xml-validate accepts the result.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from p2v.formats import FORMATS, QEMU_DRIVERS
from p2v.model import SECTOR, GuestFacts, Machine, MachineDisk, Setting
from p2v.target.sizes import sensible

NAME = "kvm"
CONTROLLERS: Sequence[str] = ("piix-ide", "lsi-53c895a", "am53c974", "virtio-blk", "virtio-scsi", "uniata")
NICS: Mapping[str, str] = {"rtl8139": "rtl8139", "pcnet": "pcnet", "82540em": "e1000"}
TAKES: Sequence[str] = tuple(FORMATS)
HAS_ACPI = True
HAS_MP_TABLE = True  # SeaBIOS builds one, with ACPI or without
SETTINGS: Sequence[Setting] = ()


@dataclass(frozen=True, slots=True)
class Bus:
    """How libvirt attaches the disks of a manifest's controller: the bus, the first letters of a disk's name, the
    controller's type and model where one must be named."""

    name: str
    prefix: str
    type: str = ""
    model: str = ""


BUSES: Mapping[str, Bus] = {
    "piix-ide": Bus("ide", "hd"),
    "lsi-53c895a": Bus("scsi", "sd", "scsi", "lsilogic"),  # libvirt's name for QEMU's lsi53c895a
    "am53c974": Bus("scsi", "sd", "scsi", "am53c974"),
    "virtio-blk": Bus("virtio", "vd"),
    "virtio-scsi": Bus("scsi", "sd", "scsi", "virtio-transitional"),
    "uniata": Bus("sata", "sd", "sata"),
}


def controllers(facts: GuestFacts) -> Sequence[str]:
    """IDE first for all."""
    del facts
    return CONTROLLERS


def format_for(facts: GuestFacts) -> str:
    """NT 4's IDE driver never sends FLUSH CACHE: a growing image loses its tables when the host dies."""
    return "raw" if facts.version < (5, 0) else "qcow2"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size."""
    return sensible(name, facts, disks, NICS)


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
    bus = BUSES[machine.controller]
    for index, disk in enumerate(machine.disks):
        _disk(devices, f"{bus.prefix}{_letters(index)}", bus, disk, machine.facts)
    if bus.type:
        controller = ET.SubElement(devices, "controller", type=bus.type, index="0")
        if bus.model:
            controller.set("model", bus.model)
    _others(devices, machine)
    ET.indent(domain)
    return {f"{machine.name}.xml": ET.tostring(domain, encoding="unicode") + "\n"}


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


def _letters(index: int) -> str:
    """a to z, then aa, ab … as Linux counts disks."""
    more, last = divmod(index, 26)
    return (_letters(more - 1) if more else "") + ascii_lowercase[last]


def _disk(devices: ET.Element, name: str, bus: Bus, disk: MachineDisk, facts: GuestFacts) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    kind = QEMU_DRIVERS[FORMATS[disk.format].SUFFIX]
    driver = ET.SubElement(element, "driver", name="qemu", type=kind)
    if facts.version < (5, 0) and kind != "raw":
        driver.set("cache", "writethrough")
    ET.SubElement(element, "source", file=disk.file)
    ET.SubElement(element, "target", dev=name, bus=bus.name)
    if bus.name == "ide":
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
