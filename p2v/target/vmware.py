"""VMware ESX, Workstation and Player: PIIX4 IDE, LSI Logic parallel, BusLogic.

2003 has a driver for LSI Logic in the box, which VMware recommends; the others start on IDE, which ESX offers to disks
from version 4 on (virtual hardware 7). Source: the project's notes on Windows guests; nothing of it was tried on ESX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2v.model import GuestFacts, Machine, MachineDisk, Setting
from p2v.target.nics import NT4, W2000, W2003, XP
from p2v.target.sizes import sensible

NAME = "vmware"
CONTROLLERS: Sequence[str] = ("piix-ide", "lsi-53c1030", "buslogic", "uniata")
NICS: Mapping[str, str] = {"pcnet": "vlance", "82545em": "e1000"}
TAKES: Sequence[str] = ("vmdk-esx", "vmdk", "vmdk-flat", "vmdk-split", "vmdk-stream")
HAS_ACPI = True
HAS_MP_TABLE = False  # today's have one from memory; Workstation 3 had none

SETTINGS: Sequence[Setting] = (
    Setting('guest type Microsoft Windows NT (guestOS = "winnt")', (NT4[0],)),
    Setting('guest type Windows 2000 Server (guestOS = "win2000serv")', (W2000[0],)),
    Setting('guest type Windows XP Professional (guestOS = "winxppro")', (XP[0],)),
    Setting('guest type Windows Server 2003 (guestOS = "winnetstandard")', (W2003[0],), ("x86",)),
    Setting('guest type Windows Server 2003, 64 bits (guestOS = "winnetstandard-64")', (W2003[0],), ("x64",)),
    Setting('firmware BIOS, not EFI (firmware = "bios")'),
    Setting("virtual hardware version 7 or later, before which ESX has IDE for CD drives only",
            controllers=("piix-ide",)),
    Setting('SCSI controller LSI Logic Parallel (scsi0.virtualDev = "lsilogic"), and ddb.adapterType = "lsilogic" in '
            "each disk's .vmdk, where p2v has written ide", controllers=("lsi-53c1030",)),
    Setting('SCSI controller BusLogic (scsi0.virtualDev = "buslogic"), and ddb.adapterType = "buslogic" in each '
            "disk's .vmdk, where p2v has written ide", controllers=("buslogic",)),
    Setting("SATA controller (sata0)", controllers=("uniata",)),
    Setting('network card {nic} (ethernet0.virtualDev = "{nic}")'),
    Setting("a processor whose CPUID ends at leaf 3, else NT 4 stops with 0x3E: the guest type should see to it, "
            'cpuid.0.eax = "0000:0000:0000:0000:0000:0000:0000:0011" asks for it', (NT4[0],)),
    Setting("images of format vmdk-esx on ESX (upload both files of each disk), of format vmdk in Workstation and "
            "Player"),
)


def controllers(facts: GuestFacts) -> Sequence[str]:
    """LSI Logic first from 2003 on."""
    return sorted(CONTROLLERS, key=lambda name: facts.version >= W2003[0] and name != "lsi-53c1030")


def format_for(facts: GuestFacts) -> str:
    """The pair that every ESX runs from; being flat, it also suits NT 4, which never sends FLUSH CACHE."""
    del facts
    return "vmdk-esx"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size."""
    return sensible(name, facts, disks, NICS)


def configure(machine: Machine) -> Mapping[str, str]:
    """Nothing yet: see SETTINGS."""
    del machine
    return {}
