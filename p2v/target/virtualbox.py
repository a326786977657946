"""Oracle VirtualBox: PIIX4 IDE; LSI Logic and BusLogic as VMware has them.

Source: the project's notes on Windows guests, which have read VirtualBox' manual and comments; nothing of it was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2v.model import GuestFacts, Machine, MachineDisk, Setting
from p2v.target.nics import NT4, W2000, W2003, XP
from p2v.target.sizes import sensible

NAME = "virtualbox"
CONTROLLERS: Sequence[str] = ("piix-ide", "lsi-53c1030", "buslogic", "uniata")
NICS: Mapping[str, str] = {"pcnet": "Am79C973", "82540em": "82540EM"}
TAKES: Sequence[str] = ("vdi", "vdi-fixed", "vmdk", "vmdk-flat", "vmdk-split", "vmdk-stream", "vhd", "vhd-fixed",
                        "vhdx", "vhdx-fixed")
HAS_ACPI = True
HAS_MP_TABLE = False  # with --ioapic on there is one, from memory

_LATER = (W2000[0], XP[0], W2003[0])
SETTINGS: Sequence[Setting] = (
    Setting("type WindowsNT4 (VBoxManage createvm --name NAME --ostype WindowsNT4): it keeps CPUID below the leaf "
            "at which NT 4 stops with 0x3E", (NT4[0],)),
    Setting("type Windows2000 (VBoxManage createvm --name NAME --ostype Windows2000)", (W2000[0],)),
    Setting("type WindowsXP (VBoxManage createvm --name NAME --ostype WindowsXP)", (XP[0],)),
    Setting("type Windows2003 (VBoxManage createvm --name NAME --ostype Windows2003)", (W2003[0],), ("x86",)),
    Setting("type Windows2003_64 (VBoxManage createvm --name NAME --ostype Windows2003_64)", (W2003[0],), ("x64",)),
    Setting("firmware BIOS, ACPI off, I/O APIC on: VBoxManage modifyvm NAME --firmware bios --acpi off --ioapic on",
            (NT4[0],)),
    Setting("firmware BIOS, ACPI and I/O APIC on: VBoxManage modifyvm NAME --firmware bios --acpi on --ioapic on",
            _LATER),
    Setting("the clock in local time: VBoxManage modifyvm NAME --rtcuseutc off"),
    Setting("an IDE controller of type PIIX4: VBoxManage storagectl NAME --name IDE --add ide --controller PIIX4",
            controllers=("piix-ide",)),
    Setting("a SCSI controller of type LsiLogic: VBoxManage storagectl NAME --name SCSI --add scsi "
            "--controller LsiLogic", controllers=("lsi-53c1030",)),
    Setting("a SCSI controller of type BusLogic: VBoxManage storagectl NAME --name SCSI --add scsi "
            "--controller BusLogic", controllers=("buslogic",)),
    Setting("a SATA controller: VBoxManage storagectl NAME --name SATA --add sata --controller IntelAhci",
            controllers=("uniata",)),
    Setting("network card {nic}: VBoxManage modifyvm NAME --nictype1 {nic}"),
)


def controllers(facts: GuestFacts) -> Sequence[str]:
    """IDE first for all."""
    del facts
    return CONTROLLERS


def format_for(facts: GuestFacts) -> str:
    """VDI; fixed for NT 4, whose IDE driver never sends FLUSH CACHE."""
    return "vdi-fixed" if facts.version < W2000[0] else "vdi"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size."""
    return sensible(name, facts, disks, NICS)


def configure(machine: Machine) -> Mapping[str, str]:
    """Nothing yet: see SETTINGS."""
    del machine
    return {}
