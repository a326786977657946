"""Network cards that targets offer, and which of our Windows have a driver for them in the box.

What is in the box is known from: the XP SP1 setup list (its file names), SYSTEM hives of VMs (an NT 4 with AMDPCN,
an XP with pcntpci5), live runs of NT 4 under QEMU, and lists of drivers that were made for these guests. What nobody
has re-read is "perhaps" or "doubtful": it orders the cards, and is shown as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2v.model import GuestFacts

System = tuple[tuple[int, int], str]  # version and architecture

NT4: System = ((4, 0), "x86")
W2000: System = ((5, 0), "x86")
XP: System = ((5, 1), "x86")
W2003: System = ((5, 2), "x86")
X64: System = ((5, 2), "x64")

RANKS = ("yes", "perhaps", "doubtful", "no")  # in the box, best first
UNKNOWN = ("perhaps", "doubtful")


@dataclass(frozen=True, slots=True)
class Card:
    """A network card. pci: "vendor:device" in hex. in_box: one of RANKS for each system.

    supplied: where a driver that is not in the box is known to come from.
    """

    title: str
    pci: str
    in_box: Mapping[System, str]
    supplied: Mapping[System, str]


CARDS: Mapping[str, Card] = {
    "pcnet": Card("AMD PCnet", "1022:2000",
                  {NT4: "yes", W2000: "perhaps", XP: "yes", W2003: "perhaps", X64: "doubtful"}, {}),
    "rtl8139": Card("Realtek 8139", "10ec:8139",
                    {NT4: "no", W2000: "perhaps", XP: "yes", W2003: "perhaps", X64: "doubtful"},
                    {NT4: "Realtek's driver 5.611 for NT 4"}),
    "82540em": Card("Intel PRO/1000 MT (82540EM)", "8086:100e",
                    {NT4: "no", W2000: "no", XP: "no", W2003: "perhaps", X64: "perhaps"},
                    {NT4: "Intel's PRO/1000 driver 6.4.3", W2000: "Intel's PRO/1000 driver 8.10.3",
                     XP: "Intel's PRO/1000 driver for XP"}),
    "82545em": Card("Intel PRO/1000 MT (82545EM)", "8086:100f",
                    {NT4: "no", W2000: "no", XP: "no", W2003: "doubtful", X64: "perhaps"},
                    {XP: "Intel's PRO/1000 driver for XP"}),
    "dc21140": Card("DEC 21140", "1011:0009",
                    {NT4: "perhaps", W2000: "perhaps", XP: "yes", W2003: "perhaps", X64: "doubtful"}, {}),
}


def best(offered: Mapping[str, str], facts: GuestFacts) -> str:
    """The card of those that a target offers which this guest most likely has a driver for; "" for none.

    offered: a target's NICS, whose order decides between equals.
    """
    def rank(name: str) -> int:
        return RANKS.index(CARDS[name].in_box.get((facts.version, facts.architecture), "doubtful"))

    return min(offered, key=rank, default="")
