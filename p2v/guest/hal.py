"""Which HAL and kernel a Windows runs on, and what hardware such a HAL wants.

The installed name is always hal.dll and ntoskrnl.exe; what they were on the CD is in their version resources
(OriginalFilename). From 2000 on the PnP tree names the HAL, too: Enum\\Root\\ACPI_HAL, PCI_HAL, ISA_HAL with a
HardwareID such as acpiapic_up, and the class of computers with the same as MatchingDeviceId.
Sources: Q156358, Q124541 and Q235373 for the files of NT 4; KB309283 and KB237556 for 2000 and XP; a physical
XP's hive for the PnP names.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from p2v.model import GuestFacts, HiveTree, PEFacts

COMPUTERS = "{4D36E966-E325-11CE-BFC1-08002BE10318}"  # the class of computers
STANDARD_HAL, ACPI_MP_HAL = "hal.dll", "halmacpi.dll"
KERNEL, KERNEL_MP = "ntoskrnl.exe", "ntkrnlmp.exe"


class Family(enum.Enum):
    """What a HAL wants of the machine."""

    STANDARD = "standard"  # a PC's interrupt controllers and timer: every VM has them
    ACPI = "acpi"
    MPS = "mps"  # Intel's multiprocessor table, and an I/O APIC
    VENDOR = "vendor"  # one maker's machine
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Hal:
    """A HAL. name: as on the CD. processors: "one", "many", "" where nobody knows."""

    family: Family
    name: str
    title: str
    processors: str = ""


HALS = {hal.name: hal for hal in (
    Hal(Family.STANDARD, STANDARD_HAL, "Standard PC", "one"),
    Hal(Family.ACPI, "halacpi.dll", "ACPI PC", "one"),
    Hal(Family.ACPI, "halaacpi.dll", "ACPI Uniprocessor PC", "one"),
    Hal(Family.ACPI, ACPI_MP_HAL, "ACPI Multiprocessor PC", "many"),
    Hal(Family.MPS, "halapic.dll", "MPS Uniprocessor PC", "one"),
    Hal(Family.MPS, "halmps.dll", "MPS Multiprocessor PC", "many"),
    Hal(Family.VENDOR, "hal486c.dll", "486 C-step PC", "one"),
    Hal(Family.VENDOR, "halsp.dll", "Compaq SystemPro", "many"),
    Hal(Family.VENDOR, "halcbus.dll", "Corollary C-bus", "many"),
    Hal(Family.VENDOR, "halcbusm.dll", "Corollary C-bus with MicroChannel", "many"),
    Hal(Family.VENDOR, "halmca.dll", "MicroChannel PC", "one"),
    Hal(Family.VENDOR, "halmpsm.dll", "MPS with MicroChannel", "many"),
    Hal(Family.VENDOR, "halncr.dll", "NCR", "many"),
    Hal(Family.VENDOR, "haloli.dll", "Olivetti", "many"),
    Hal(Family.VENDOR, "halwyse7.dll", "Wyse", "many"),
    Hal(Family.VENDOR, "halast.dll", "AST", "many"),
)}
DEVICES = {"acpi_hal": Family.ACPI, "pci_hal": Family.STANDARD, "isa_hal": Family.STANDARD}
_PROCESSORS = {KERNEL: "one", "ntkrnlpa.exe": "one", KERNEL_MP: "many", "ntkrpamp.exe": "many"}


def identify(facts: GuestFacts) -> Hal:
    """The HAL that the default line of boot.ini loads, by what its file says of itself."""
    if facts.hal is None:
        return Hal(Family.UNKNOWN, "", "unknown")
    if facts.architecture == "x64":  # there is one only, and it is shipped as hal.dll
        return Hal(Family.ACPI, facts.hal.original_name.lower(), "ACPI x64-based PC", "many")
    name, company = facts.hal.original_name.lower(), facts.hal.company
    known = HALS.get(name)
    if "compaq" in company.lower():  # its Support Software brings own builds of halmps and halsp (Q151883)
        return Hal(Family.VENDOR, name, f"{company}'s own {name}", known.processors if known else "")
    if known:
        return known
    if not name:
        return Hal(Family.UNKNOWN, "", "unknown: its file does not say")
    if company.lower().startswith("microsoft"):  # one that the table lacks: nothing says that it is a maker's
        return Hal(Family.UNKNOWN, name, f"unknown: {name}")
    return Hal(Family.VENDOR, name, f"{name} of {company or 'an unnamed maker'}")


def device_family(tree: HiveTree, control_set: str) -> Family:
    """The family that the PnP tree of 2000 and later shows; UNKNOWN where it shows none, or contradicts itself."""
    shown = set()
    for name, family in DEVICES.items():
        if tree.subkeys(f"{control_set}\\Enum\\Root\\{name}"):
            shown.add(family)
    return shown.pop() if len(shown) == 1 else Family.UNKNOWN


def device_ids(tree: HiveTree, control_set: str) -> tuple[str, ...]:
    """What the PnP tree calls the computer, lower case: acpiapic_mp, acpiapic_up, mps_up, e_isa_up …"""
    found: list[str] = []
    for name in DEVICES:
        for instance in tree.subkeys(f"{control_set}\\Enum\\Root\\{name}"):
            value = tree.value(f"{control_set}\\Enum\\Root\\{name}\\{instance}", "HardwareID")
            found += value.texts if value else ()
    classes = f"{control_set}\\Control\\Class\\{COMPUTERS}"
    for instance in tree.subkeys(classes):
        value = tree.value(f"{classes}\\{instance}", "MatchingDeviceId")
        found += [value.text] if value else []
    return tuple(dict.fromkeys(one.lower() for one in found))


def processors(kernel: PEFacts | None) -> str:
    """For how many processors a kernel was built: "one", "many", "" where its file does not say."""
    return _PROCESSORS.get(kernel.original_name.lower(), "") if kernel else ""
