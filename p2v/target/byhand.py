"""What a user must set in a VM that p2v writes no definition of: a target's SETTINGS, for one machine."""

from __future__ import annotations

from collections.abc import Iterator

from p2v import drivers
from p2v.errors import Finding, Severity, Where
from p2v.model import Machine, Setting, Target
from p2v.target.places import PLACES

MIB = 1 << 20
ALWAYS = (
    Setting("{cpus} processor(s), {memory} MiB of memory"),
    Setting("no ballooning, no virtio or other paravirtual device and no sound card before Windows has its driver"),
    Setting("Windows keeps local time in the machine's clock, not UTC"),
)


def settings(machine: Machine, target: Target) -> Iterator[str]:
    """The lines of a list for the user: the disks and their places, then all else. Empty where p2v writes it."""
    if not target.SETTINGS:
        return
    places = PLACES[machine.controller][: len(machine.disks)]
    disks = ", ".join(f"disk{number} on {place}" for number, place in enumerate(places))
    yield f"disks on {drivers.load(machine.controller).title}: {disks}"
    for setting in (*target.SETTINGS, *ALWAYS):
        if setting.fits(machine):
            yield setting.text.format(nic=machine.nic, cpus=machine.cpus, memory=machine.memory // MIB)


def to_make(machine: Machine, target: Target) -> Iterator[Finding]:
    """A finding that says how to make the VM, where p2v does not write its definition."""
    lines = list(settings(machine, target))
    if lines:
        yield Finding(
            f"p2v does not write a VM definition for {target.NAME} yet", Where(item=f"--target {target.NAME}"),
            "in a VM of other hardware than the plan was made for, Windows stops with 0x7B or 0x3E, or does not start",
            "\n".join(("create a VM by hand with", *(f"- {line}" for line in lines))), Severity.WARNING)


def not_taken(machine: Machine, target: Target) -> Iterator[Finding]:
    """A finding for images of a format that the target does not read."""
    others = [disk for disk in machine.disks if disk.format not in target.TAKES]
    if others:
        best = target.format_for(machine.facts)
        yield Finding(
            f"{target.NAME} does not read images of format {others[0].format}",
            Where(item=", ".join(disk.file for disk in others)), f"it takes {', '.join(target.TAKES)}",
            f"convert with --format {best}; of an image that is adapted where it lies, make one afterwards: "
            f"p2v image IMAGE --format {best} -o NEW", Severity.WARNING)
