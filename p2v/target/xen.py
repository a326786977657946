"""Xen, fully virtualised (HVM): XenServer, XCP-ng, xl. PIIX3 IDE; paravirtual disks need drivers that come later.

Source: the project's notes on Windows guests and xl.cfg(5); nothing of it was tried on Xen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2v.model import GuestFacts, Machine, MachineDisk, Setting
from p2v.target.nics import NT4, W2000, W2003, XP
from p2v.target.sizes import sensible

NAME = "xen"
CONTROLLERS: Sequence[str] = ("piix-ide",)
NICS: Mapping[str, str] = {"rtl8139": "rtl8139", "82540em": "e1000"}
TAKES: Sequence[str] = ("raw", "vhd", "vhd-fixed", "qcow2", "qcow2-v2")
HAS_ACPI = True
HAS_MP_TABLE = True

SETTINGS: Sequence[Setting] = (
    Setting('type = "hvm", with a BIOS and not UEFI (bios = "seabios" or "rombios")'),
    Setting("the disks as hda, hdb, hdc, hdd: disk = [ 'format=raw,vdev=hda,target=FILE', … ], or format=vhd"),
    Setting("acpi = 0", (NT4[0],)),
    Setting("acpi = 1, apic = 1", (W2000[0], XP[0], W2003[0])),
    Setting("cpuid limited to leaf 3 (leaf 0, eax), else NT 4 stops with 0x3E", (NT4[0],)),
    Setting("viridian = 0, localtime = 1, xen_platform_pci = 0"),
    Setting("network card {nic}: vif = [ 'model={nic},bridge=xenbr0' ]"),
    Setting("NT 4 has no driver for it in the box: hand in Realtek's 5.611 for NT 4, or choose kvm", (NT4[0],)),
)


def controllers(facts: GuestFacts) -> Sequence[str]:
    """The one that there is."""
    del facts
    return CONTROLLERS


def format_for(facts: GuestFacts) -> str:
    """VHD, which XenServer and xl take; raw for NT 4, whose IDE driver never sends FLUSH CACHE."""
    return "raw" if facts.version < W2000[0] else "vhd"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size."""
    return sensible(name, facts, disks, NICS)


def configure(machine: Machine) -> Mapping[str, str]:
    """Nothing yet: see SETTINGS."""
    del machine
    return {}
