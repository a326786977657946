"""How many disks a controller takes, and what its places are called, in BIOS order.

Sources: four ATA drives on two channels; SCSI ids 0 to 7 or 15, of which the adapter has 7 for itself; six ports of
ICH9's AHCI. A virtio disk takes a PCI slot of its own, of which QEMU's pc machine has some twenty free; virtio-scsi
takes more than anybody has, and the alphabet names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from p2v import drivers
from p2v.errors import Finding, Severity, Where
from p2v.model import Machine, Target

_IDE = ("IDE 0:0 (primary master)", "IDE 0:1 (primary slave)", "IDE 1:0 (secondary master)",
        "IDE 1:1 (secondary slave)")
_NARROW = tuple(f"SCSI id {id}" for id in range(7))
_WIDE = tuple(f"SCSI id {id}" for id in range(16) if id != 7)

PLACES: Mapping[str, tuple[str, ...]] = {  # by manifest
    "piix-ide": _IDE,
    "lsi-53c895a": _NARROW,
    "am53c974": _NARROW,
    "lsi-53c1030": _WIDE,
    "buslogic": _WIDE,
    "virtio-blk": tuple(f"virtio disk {number}" for number in range(20)),
    "virtio-scsi": tuple(f"SCSI id {id}" for id in range(26)),
    "uniata": tuple(f"SATA port {port}" for port in range(6)),
}


def too_many(machine: Machine, target: Target) -> Iterator[Finding]:
    """A finding where the guest has more disks than its controller takes.

    It stops the plan where p2v would write the VM's definition; by hand, the rest can get another controller.
    """
    most = len(PLACES[machine.controller])
    if len(machine.disks) > most:
        title = drivers.load(machine.controller).title
        yield Finding(
            f"{len(machine.disks)} disks, and {title} takes {most}", Where(item=f"{target.NAME}: disk{most} and above"),
            "the others need another controller, and Windows reaches that one only with a driver for it",
            f"convert the first {most} disks with the guest and image the other data disks apart (p2v image); give "
            "them a second controller once Windows has run and has its driver",
            Severity.WARNING if target.SETTINGS else Severity.ERROR)
