"""A VM of sensible size: what every target begins from.

Source: VM definitions known to work, in the project's notes on Windows guests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2v.model import GuestFacts, Machine, MachineDisk
from p2v.target import nics

MIB = 1 << 20
# NT 4 stops with 0x7B above some 1.79 GB before SP3, and none of these servers had much.
MEMORY = {(4, 0): 256 * MIB, (5, 0): 512 * MIB, (5, 1): 1024 * MIB, (5, 2): 2048 * MIB}
MULTIPROCESSOR_HALS = ("halmacpi.dll", "halmps.dll")


def sensible(name: str, facts: GuestFacts, disks: Sequence[MachineDisk], cards: Mapping[str, str]) -> Machine:
    """Memory and processors for a guest, and the card that it most likely has a driver for.

    cards: the target's NICS. NT 4 gets one processor, whatever HAL it has.
    """
    hal = facts.hal.original_name.lower() if facts.hal else ""
    return Machine(
        name=name,
        facts=facts,
        disks=tuple(disks),
        memory=MEMORY.get(facts.version, 1024 * MIB),
        cpus=2 if hal in MULTIPROCESSOR_HALS and facts.version >= (5, 0) else 1,
        nic=cards.get(nics.best(cards, facts), ""),
    )
