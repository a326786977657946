"""Microsoft Hyper-V, generation 1: PIIX4 IDE alone starts these systems, its SCSI is synthetic.

Source: the project's notes on Windows guests; nothing of it was tried on Hyper-V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from p2v.model import GuestFacts, Machine, MachineDisk, Setting
from p2v.target.nics import NT4, W2000, X64
from p2v.target.sizes import sensible

NAME = "hyperv"
CONTROLLERS: Sequence[str] = ("piix-ide",)
NICS: Mapping[str, str] = {"dc21140": "legacy network adapter"}
TAKES: Sequence[str] = ("vhd", "vhd-fixed", "vhdx", "vhdx-fixed")
HAS_ACPI = True
HAS_MP_TABLE = False  # unknown

SETTINGS: Sequence[Setting] = (
    Setting("generation 1: New-VM -Name NAME -Generation 1; generation 2 has UEFI, which starts none of these"),
    Setting("the disks by Add-VMHardDiskDrive -VMName NAME -ControllerType IDE, on the places named above"),
    Setting("image files without NTFS's sparse attribute, which Hyper-V refuses: copy them with robocopy or scp, or "
            "clear it with fsutil sparse setflag FILE 0"),
    Setting("network card: a {nic} (Add-VMNetworkAdapter -IsLegacy $true)"),
    Setting("whether this Windows has a driver for the legacy network adapter is not known", (X64[0],), ("x64",)),
    Setting('"migrate to older operating systems such as NT 4": Set-VMProcessor NAME '
            "-CompatibilityForOlderOperatingSystemsEnabled $true, else NT 4 stops with 0x3E", (NT4[0],)),
    Setting("no integration services", (NT4[0], W2000[0])),
)


def controllers(facts: GuestFacts) -> Sequence[str]:
    """The one that there is."""
    del facts
    return CONTROLLERS


def format_for(facts: GuestFacts) -> str:
    """VHD, which every Hyper-V reads; fixed for NT 4, whose IDE driver never sends FLUSH CACHE."""
    return "vhd-fixed" if facts.version < W2000[0] else "vhd"


def machine(name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
    """A VM of sensible size; 2000 runs with one processor only here, as was seen."""
    made = sensible(name, facts, disks, NICS)
    return replace(made, cpus=1) if facts.version <= W2000[0] else made


def configure(machine: Machine) -> Mapping[str, str]:
    """Nothing yet: see SETTINGS."""
    del machine
    return {}
