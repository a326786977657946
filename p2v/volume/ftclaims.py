"""Which fault-tolerant sets the hives claim, compared with the tables of the disks before they are believed.

A description of a disk counts only where a disk with its signature was given and the table of that disk has
an entry for each partition of it: no real sample of the value is public, and a shifted field would not match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2v.errors import Finding, Severity, Where
from p2v.model import Partition
from p2v.volume.fthives import ToldByHive
from p2v.volume.ftregistry import KEY, VALUE, DiskRow, FtType, PartitionRow, SetState

NOT_GIVEN = "not given"
MOST_MEMBERS = 32  # that Disk Administrator puts together
WORDS = {FtType.MIRROR: "mirror", FtType.STRIPE: "stripe set", FtType.STRIPE_WITH_PARITY: "stripe set with parity",
         FtType.VOLUME_SET: "volume set"}

MemberKey = tuple[int, int]  # disk signature, byte offset on the disk


@dataclass(frozen=True, slots=True)
class ClaimedMember:
    """A member as one hive has it. partition: where it is; None and the trouble in words otherwise."""

    signature: int
    row: PartitionRow
    partition: Partition | None
    trouble: str = ""

    @property
    def key(self) -> MemberKey:
        """The same in what every hive says of this member."""
        return self.signature, self.row.offset

    def __str__(self) -> str:
        where = self.partition.disk if self.partition else f"the disk with signature {self.signature:#010x}"
        return f"member {self.row.ft_member} on {where}, {self.row.length} bytes at {self.row.offset:#x}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A set as one hive has it. members: by their number, from 0 on."""

    told: ToldByHive
    kind: FtType
    group: int
    members: tuple[ClaimedMember, ...]
    state: str

    @property
    def letter(self) -> str:
        """ "C:", "" for none."""
        return next((member.row.letter for member in self.members if member.row.letter), "")

    def member(self, key: MemberKey) -> ClaimedMember | None:
        """What it says of a member; None where it knows none such."""
        return next((member for member in self.members if member.key == key), None)

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} {self.group}{' ' if self.letter else ''}{self.letter}"


class Tables:
    """The partitions of the given disks, found by the disks' signatures."""

    def __init__(self, signatures: Mapping[str, int], partitions: Sequence[Partition]) -> None:
        self._disks = {signature: [disk for disk, own in signatures.items() if own == signature]
                       for signature in signatures.values()}
        self._partitions = {disk: {(p.offset, p.length): p for p in partitions if p.disk == disk}
                            for disk in signatures}

    def of(self, row: DiskRow) -> tuple[Mapping[tuple[int, int], Partition], str]:
        """(entries of the disk that a description is about, or why there are none)."""
        disks = self._disks.get(row.signature, [])
        if row.signature == 0:
            return {}, "its disk has signature 0, which names no disk"
        if not disks:
            return {}, NOT_GIVEN
        if len(disks) > 1:
            return {}, f"{' and '.join(disks)} have the same signature"
        entries = self._partitions[disks[0]]
        wrong = [p for p in row.partitions if p.length and (p.offset, p.length) not in entries]
        if wrong:
            return {}, (f"the table of {disks[0]} has no entry of {wrong[0].length} bytes "
                        f"at {wrong[0].offset:#x}, as the hive says")
        return entries, ""


def claims(told: ToldByHive, tables: Tables) -> Iterator[Claim | Finding]:
    """The sets that one hive describes. What contradicts itself or the disks is a finding."""
    rows = told.information.disks
    counted = Counter(row.signature for row in rows)
    sets: dict[tuple[int, int], list[ClaimedMember]] = {}
    known = 0
    for row in rows:
        entries, trouble = tables.of(row)
        if not trouble and counted[row.signature] > 1:
            entries, trouble = {}, "the hive describes its disk twice"
        known += not trouble
        if trouble and trouble != NOT_GIVEN:
            yield _refused(told, f"disk {row.signature:#010x}: {trouble}")
        for part in row.partitions:
            if part.is_member:
                member = ClaimedMember(row.signature, part, entries.get((part.offset, part.length)), trouble)
                sets.setdefault((part.ft_type, part.ft_group), []).append(member)
    if not known and rows:
        yield _refused(told, "none of the disks that it describes is here as it describes it")
        return
    for (kind, group), members in sorted(sets.items()):
        yield _claim(told, FtType(kind), group, members)


def _claim(told: ToldByHive, kind: FtType, group: int, members: list[ClaimedMember]) -> Claim | Finding:
    members = sorted(members, key=lambda member: member.row.ft_member)
    numbers = [member.row.ft_member for member in members]
    alone = len({member.key for member in members}) == len(members) and all(m.row.length for m in members)
    if numbers != list(range(len(members))) or not 2 <= len(members) <= MOST_MEMBERS or not alone:
        listed = ", ".join(map(str, numbers[:MOST_MEMBERS]))
        return _refused(told, f"{WORDS[kind]} {group} has {len(members)} members, numbered {listed}")
    return Claim(told, kind, group, tuple(members), _state(told, kind, {m.signature for m in members}, len(members)))


def _state(told: ToldByHive, kind: FtType, signatures: set[int], count: int) -> str:
    """What the list of sets says of the set with these disks; "" for nothing, or for that all is well."""
    states = {row.state for row in told.information.sets
              if row.type == kind and len(row.members) == count
              and {member.signature for member in row.members} == signatures}
    known = [SetState(state) for state in states if state in list(SetState)]
    words = [state.name.lower().replace("_", " ") for state in sorted(known) if state is not SetState.OK]
    return ", ".join(words)


def merged(found: Sequence[Claim]) -> list[list[Claim]]:
    """What several hives say of one set, together: claims that share a member."""
    groups: dict[int, list[Claim]] = {}
    home: dict[MemberKey, int] = {}
    for number, claim in enumerate(found):
        touching = sorted({home[member.key] for member in claim.members if member.key in home})
        groups[number] = [*(other for old in touching for other in groups.pop(old)), claim]
        home.update((member.key, number) for other in groups[number] for member in other.members)
    return list(groups.values())


def _refused(told: ToldByHive, why: str) -> Finding:
    return Finding(f"{told.disk}: a description of fault-tolerant sets does not fit the disks and is not used",
                   Where(told.disk, item=f"{told.path}, {KEY}\\{VALUE}"), why,
                   "give all disks of the server, and none of another one", Severity.WARNING)
