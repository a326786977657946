"""Drivers of the old processor and chipset must stay off: they touch registers that the VM does not have.

Disabled, never deleted: deleting the keys breaks the driver for good (virt-v2v did so until 2016).
"""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding
from p2v.guest.facts import number
from p2v.guest.fixers.edits import Edits
from p2v.model import Change, DWord, Family, Guest, Target

NAME = "processor-services"
DISABLED = 4

PROCESSOR = ("it sets power registers of the old processor; on another one or in a VM Windows stops with "
             "0x7E or 0xCE")  # KB 953356
CHIPSET = "it drives the AGP bridge of the old chipset; in a VM the boot hangs after agp440.sys or its like"

SERVICES = {  # the driver's service → why
    **dict.fromkeys(("intelppm", "processr", "processor", "p3", "gv3", "amdk6", "amdk7", "amdk8", "amdppm",
                     "crusoe"), PROCESSOR),
    **dict.fromkeys(("agp440", "agpcpq", "alim1541", "amdagp", "sisagp", "viaagp", "gagp30kx", "uagp35",
                     "nv_agp"), CHIPSET),
}


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Start = 4 for those that are there."""
    if guest.facts.family is not Family.WINDOWS:
        return
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        for service, why in SERVICES.items():
            key = f"{control_set}\\Services\\{service}"
            if number(edits.tree, key, "Start") is not None:
                yield from edits.value(key, "Start", DWord(DISABLED), why)
