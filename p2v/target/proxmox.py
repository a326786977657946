"""Proxmox VE: the hardware of kvm, as far as its own tools offer it (no AMD 53C974).

Source: the project's notes on Windows guests and Proxmox' manual of qm; nothing of it was tried on Proxmox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2v.model import GuestFacts, Machine, MachineDisk, Setting
from p2v.target import kvm
from p2v.target.nics import NT4, W2000, W2003, XP
from p2v.target.sizes import sensible

NAME = "proxmox"
CONTROLLERS: Sequence[str] = tuple(name for name in kvm.CONTROLLERS if name != "am53c974")
NICS: Mapping[str, str] = kvm.NICS
TAKES: Sequence[str] = kvm.TAKES  # qm importdisk converts what is not its own
HAS_ACPI = True
HAS_MP_TABLE = True  # SeaBIOS builds it
format_for = kvm.format_for

SETTINGS: Sequence[Setting] = (
    Setting("firmware SeaBIOS and machine i440fx: qm create ID --name NAME --bios seabios --machine pc"),
    Setting("import each disk (qm importdisk ID FILE STORAGE), then put it on its place: ide0 to ide3",
            controllers=("piix-ide",)),
    Setting("import each disk (qm importdisk ID FILE STORAGE), then put it on scsi0, scsi1 …, with --scsihw lsi",
            controllers=("lsi-53c895a",)),
    Setting("import each disk (qm importdisk ID FILE STORAGE), then put it on virtio0, virtio1 …",
            controllers=("virtio-blk",)),
    Setting("import each disk (qm importdisk ID FILE STORAGE), then put it on scsi0, scsi1 …, with "
            "--scsihw virtio-scsi-pci", controllers=("virtio-scsi",)),
    Setting("import each disk (qm importdisk ID FILE STORAGE), then put it on sata0, sata1 …",
            controllers=("uniata",)),
    Setting("--ostype other --acpi 0 --cpu pentium: with a CPUID beyond leaf 3 NT 4 stops with 0x3E", (NT4[0],)),
    Setting("--ostype w2k --cpu pentium3", (W2000[0],)),
    Setting("--ostype wxp --cpu qemu32", (XP[0],)),
    Setting("--ostype w2k3 --cpu qemu32", (W2003[0],), ("x86",)),
    Setting("--ostype w2k3 --cpu qemu64", (W2003[0],), ("x64",)),
    Setting("no storage that holds the disk as qcow2 without cache=writethrough: NT 4's IDE driver never sends FLUSH "
            "CACHE", (NT4[0],)),
    Setting("network card {nic}: --net0 {nic},bridge=vmbr0"),
    Setting("--localtime 1 --balloon 0 --agent 0"),
)


def controllers(facts: GuestFacts) -> Sequence[str]:
    """IDE first for all."""
    del facts
    return CONTROLLERS


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size."""
    return sensible(name, facts, disks, NICS)


def configure(machine: Machine) -> Mapping[str, str]:
    """Nothing yet: see SETTINGS."""
    del machine
    return {}
