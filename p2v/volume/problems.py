"""What a partition table can have wrong, in words: what, why it matters, what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from p2v.errors import Finding, Severity, Where


@dataclass(frozen=True, slots=True)
class Problem:
    """The part of a finding that does not depend on the disk. what and why are format strings."""

    what: str
    why: str
    next: str
    severity: Severity = Severity.WARNING

    def at(self, disk: str, where: Where, **values: object) -> Finding:
        """The finding for one disk (its id in the plan) and place."""
        what = f"{disk}: {self.what.format(**values)}"
        return Finding(what, where, self.why.format(**values), self.next, self.severity)


COMPARE = "compare the list of partitions with what the machine shows"
COPIED_WHOLE = "nothing: its bytes are copied whole"

NO_TABLE = Problem(
    "no partition table: sector 0 has no 55 AA at its end",
    "neither a BIOS nor Windows sees partitions on it; it is copied whole",
    "nothing, if the disk is empty; otherwise check that this is a disk, not a partition or a file")
SUPERFLOPPY = Problem(
    "no partition table: a filesystem starts at sector 0",
    "Windows does not boot from such a disk; its files are read all the same",
    "nothing, if this is a data disk; a copy of one partition is no disk: give the whole disk")
TWO_ACTIVE = Problem(
    "more than one partition is active",
    "the MBR's code stops with \"Invalid partition table\"",
    "find out which one booted the machine")
ODD_FLAG = Problem(
    "a partition entry is neither active nor inactive: {flag:#04x}",
    "the MBR's code stops with \"Invalid partition table\"",
    "check the boot flags of this disk")
TWO_CONTAINERS = Problem(
    "a second extended partition is not followed",
    "Windows makes one only; logical partitions in this one are not looked for",
    COPIED_WHOLE)
LOOP = Problem(
    "the chain of logical partitions is a loop",
    "logical partitions past this link cannot be found",
    "repair the table with the tool that made it", Severity.ERROR)
TOO_LONG = Problem(
    "the chain of logical partitions has more than {limit} links",
    "logical partitions past this link are not looked for",
    "repair the table with the tool that made it", Severity.ERROR)
CHAIN_LEAVES_DISK = Problem(
    "the chain of logical partitions leaves the disk",
    "the disk has {size} bytes: it is cut short, or its table is another disk's",
    "give the whole disk", Severity.ERROR)
CHAIN_LEAVES_CONTAINER = Problem(
    "a link of the chain of logical partitions lies outside the extended partition",
    "it is followed all the same",
    COMPARE)
CHAIN_ENDS = Problem(
    "a link of the chain of logical partitions has no 55 AA",
    "logical partitions past this link cannot be found",
    "nothing, if the extended partition is empty")
TWO_LINKS = Problem(
    "a table of a logical partition has two links",
    "the second is not followed",
    COPIED_WHOLE)
ODD_SLOT = Problem(
    "a table of a logical partition uses its third or fourth entry",
    "Windows leaves them empty",
    COMPARE)
EMPTY = Problem(
    "a partition entry has a type but no length",
    "Windows counts it in partition(N); nothing is read from it",
    "nothing")
OVERLAP = Problem(
    "two partitions, or a partition and a table, claim the same bytes",
    "which of them is true cannot be told from the table",
    "correct the table on a copy of the disk; until then neither is read", Severity.ERROR)
OVER_CONTAINER = Problem(
    "a primary partition reaches into the extended partition",
    "logical partitions made there later would overwrite it",
    COMPARE)
PAST_THE_END = Problem(
    "a partition goes past the end of the disk",
    "the disk has {size} bytes: it is cut short, or its table is another disk's",
    "give the whole disk", Severity.ERROR)
OVERLAY = Problem(
    "a disk manager's overlay (type {type:#04x}, OnTrack or EZ-Drive)",
    "it may shift every sector number by 63 once its code has run",
    COMPARE)
OVERLAY_CODE = Problem(
    "a disk manager's overlay (OnTrack or EZ-Drive) without a partition of its type: {sign}",
    "it may shift every sector number by 63, or keep the true partition table in sector 1, once its code has run",
    COMPARE)
LINUX_CONTAINER = Problem(
    "an extended partition of Linux (type {type:#04x})",
    "Windows counts it as one partition and does not see the logical partitions in it",
    "nothing")

DYNAMIC, PROTECTIVE = 0x42, 0xEE  # what lies in them is told by ldm.py and gpt.py

BY_TYPE = {
    0x54: OVERLAY, 0x55: OVERLAY, 0x85: LINUX_CONTAINER,
}
"""Partition types that are worth a finding of their own."""

FT_TYPES = frozenset({0x86, 0x87, 0x8B, 0x8C, 0xC6, 0xC7, 0xCB, 0xCC})
"""Members of fault-tolerant sets (ftdisk.py): 0x80 more than the plain type, 0xC0 where NT marked one bad."""
FT_DOUBTFUL = frozenset({0x81, 0x84, 0xC1, 0xC4, 0xCE})
"""The same of types that others use, too (Minix, hibernation, DR-DOS): members where a hive says so. 8E is LVM's."""

NOT_READ = frozenset({DYNAMIC, PROTECTIVE}) | FT_TYPES
"""Types whose bytes are no volume by themselves."""
