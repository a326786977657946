"""Fault-tolerant sets of NT 3.1 to 4.0, which 2000 still mounts: mirror, stripe set, parity, volume set.

On disk a member is known by bit 0x80 of its partition's type alone; all else stands in the registry, in the
SYSTEM hive of each copy (fthives.py, ftclaims.py). NT mirrors partitions, not disks. Stripes have chunks of
64 KiB, parity goes around left-symmetrically: from memory of those who read such sets, so what is put
together is looked at before it is called good.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from p2v import filesystem
from p2v.errors import Finding, ReadError, Severity, Where
from p2v.model import SECTOR, FilesystemState, Leg, Member, Mirror, Origin, Partition, Source, Volume, read
from p2v.source.linear import Linear
from p2v.source.parity import Parity
from p2v.source.striped import Striped
from p2v.volume import mbr
from p2v.volume.ftclaims import NOT_GIVEN, Claim, ClaimedMember, MemberKey, Tables, claims, merged
from p2v.volume.fthives import ToldByHive, base_type, find_hives, in_words, is_disputed, looks, window
from p2v.volume.ftregistry import KEY, VALUE, FtState, FtType
from p2v.volume.ftstrays import marked_bad, undescribed
from p2v.volume.problems import FT_DOUBTFUL, FT_TYPES

NAME = "ftdisk"

CHUNK = 64 << 10  # bytes
DISK_SIGNATURE = 0x1B8
LAYOUTS = {FtType.STRIPE: "striped", FtType.STRIPE_WITH_PARITY: "raid5", FtType.VOLUME_SET: "spanned"}
SHORT = {FtType.MIRROR: "mirror", FtType.STRIPE: "stripe", FtType.STRIPE_WITH_PARITY: "parity",
         FtType.VOLUME_SET: "set"}


def find(disks: Mapping[str, Source]) -> Iterator[Volume | Mirror | Member | Finding]:
    """The sets whose members have a partition on these disks. disks: by id in the plan ("disk0")."""
    partitions = [found for found in mbr.find(disks) if isinstance(found, Partition)]
    if any(_is_marked(partition) for partition in partitions):
        yield from _Search(disks, partitions).found()


def _is_marked(partition: Partition) -> bool:
    return partition.type in FT_TYPES | FT_DOUBTFUL


class _Search:
    """One look at all disks together."""

    def __init__(self, disks: Mapping[str, Source], partitions: Sequence[Partition]) -> None:
        self.disks = disks
        self.partitions = partitions
        self.told: list[ToldByHive] = []
        self.used: set[tuple[str, int]] = set()  # (disk, entry_offset) of members that a hive describes
        self.names: set[str] = set()

    def found(self) -> Iterator[Volume | Mirror | Member | Finding]:
        signatures = {disk: _signature(self.disks[disk]) for disk in {p.disk: 0 for p in self.partitions}}
        yield from self._doubtful(signatures)
        known: list[Claim] = []
        for told in find_hives(self.disks, self.partitions):
            if isinstance(told, Finding):
                yield told
                continue
            self.told.append(told)
            for claim in claims(told, Tables(signatures, self.partitions)):
                if isinstance(claim, Finding):
                    yield claim
                else:
                    known.append(claim)
        for group in merged(known):
            yield from self._set(group)
        yield from undescribed(self.disks, [p for p in self.partitions if (p.disk, p.entry_offset) not in self.used],
                               self.partitions, self.told)

    def _doubtful(self, signatures: Mapping[str, int]) -> Iterator[Finding]:
        """Disks with members that no hive can name for certain."""
        for disk in dict.fromkeys(p.disk for p in self.partitions if p.type in FT_TYPES):
            own = signatures[disk]
            twins = [other for other, signature in signatures.items() if signature == own and other != disk]
            if own == 0 or twins:
                what = f"it shares its signature {own:#010x} with {', '.join(twins)}" if own else "its signature is 0"
                yield Finding(
                    f"{disk}: member of a fault-tolerant set, and {what}",
                    Where(self.disks[disk].name, DISK_SIGNATURE, 4, "disk signature"),
                    "the registry knows the disks of a set by their signatures alone",
                    "leave out copies of a disk; where a signature was lost, give the disk alone",
                    Severity.ERROR if len(self.disks) > 1 else Severity.WARNING)

    # -- what hives describe

    def _set(self, group: list[Claim]) -> Iterator[Volume | Mirror | Member | Finding]:
        for partition in (member.partition for claim in group for member in claim.members):
            place = (partition.disk, partition.entry_offset) if partition else None
            if partition and place and place not in self.used and _is_marked(partition):
                self.used.add(place)
                yield Member(partition.disk, partition.offset, partition.length)
        kinds = {claim.kind for claim in group}
        if len(kinds) > 1 or (FtType.MIRROR not in kinds and len({_keys(claim) for claim in group}) > 1):
            yield _contradiction(group)
        elif FtType.MIRROR in kinds:
            yield from self._mirror(group)
        else:
            yield from self._assembled(group)

    def _mirror(self, group: list[Claim]) -> Iterator[Mirror | Finding]:
        name = self._name(group[0])
        members: dict[MemberKey, ClaimedMember] = {}
        for member in (member for claim in group for member in claim.members):
            if members.setdefault(member.key, member).partition is None:
                members[member.key] = member
        lengths = [m.row.length for m in members.values() if m.partition and _is_marked(m.partition)]
        size = min(lengths, default=0)  # a shadow's partition may be longer than the volume
        troubles = {key: self._trouble(member, size) for key, member in members.items()}
        present = {key: member.partition for key, member in members.items()
                   if member.partition and not troubles[key]}
        lost = [(members[key], trouble) for key, trouble in troubles.items() if trouble]
        legs = [self._leg(name, key, partition, size, group, present) for key, partition in present.items()]
        if legs:
            yield Mirror(name, size, tuple(legs), _origin(group, list(present.values())), _in_words(lost))
        if lost:
            yield _incomplete(name, group, lost, len(members), can_be_read=bool(legs))

    def _leg(self, name: str, key: MemberKey, partition: Partition, size: int, group: list[Claim],
             present: Mapping[MemberKey, Partition]) -> Leg:
        """One copy, with what its own disk's hives and all others say of it."""
        against = marked_bad(partition)
        against += [words for claim in group if (words := _held_against(claim, key))]
        own = [claim for claim in group if claim.told.disk == partition.disk]
        fails = [other.disk for claim in own for at, other in present.items()
                 if other.disk != partition.disk and _held_against(claim, at)]
        history = "; ".join(_history(claim) for claim in own) or "no hive on this disk tells of the mirror"
        source = window(self.disks, partition, size, f"{name} on {partition.disk}")
        assert source is not None  # _trouble() has looked
        changed = max((claim.told.changed for claim in own if fails and claim.told.changed), default=None)
        return Leg(partition.disk, source, Member(partition.disk, partition.offset, size), partition, (), history,
                   tuple(dict.fromkeys(against)), tuple(dict.fromkeys(fails)), changed)

    def _assembled(self, group: list[Claim]) -> Iterator[Volume | Finding]:
        first, name = group[0], self._name(group[0])
        striped = first.kind is not FtType.VOLUME_SET
        size = min(member.row.length for member in first.members) // CHUNK * CHUNK
        parts: list[Source | None] = []
        lost: list[tuple[ClaimedMember, str]] = []
        places = []
        for member in first.members:
            length = size if striped else member.row.length
            trouble = self._trouble(member, length) or _not_to_be_read(group, member)
            trouble = trouble or ("" if length else "it has less than one chunk of 64 KiB")
            partition = member.partition
            part = window(self.disks, partition, length) if partition and not trouble else None
            if partition and part:
                places.append(Member(partition.disk, partition.offset, length))
            else:
                lost.append((member, trouble))
            parts.append(part)
        unready = any(m.row.ft_state == FtState.INITIALIZING for claim in group for m in claim.members)
        enough = not lost or (first.kind is FtType.STRIPE_WITH_PARITY and len(lost) == 1 and not unready)
        if lost:
            yield _incomplete(name, group, lost, len(parts), can_be_read=enough)
        if enough:
            source = _put_together(first.kind, name, parts)
            yield Volume(name, source, LAYOUTS[first.kind], tuple(places), None,
                         _origin(group, [m.partition for m in first.members if m.partition]))
            yield from _examined(name, source, first)
            if unready and first.kind is FtType.STRIPE_WITH_PARITY:
                yield Finding(f"{name}: the parity of {first} was never completed", _place(first),
                              f"{first.told} calls a member {FtState.INITIALIZING}; its data is read, and nothing "
                              "stands in for a bad sector", "nothing", Severity.WARNING)

    def _trouble(self, member: ClaimedMember, length: int) -> str:
        """Why a member's bytes cannot be taken, in words; "" for none."""
        partition = member.partition
        if partition is None:
            return member.trouble
        if not _is_marked(partition):
            return f"it is a plain partition now, type {partition.type:#04x}: the set was broken on {partition.disk}"
        if is_disputed(partition, self.partitions):
            return "another partition claims the same bytes"
        if self.disks[partition.disk].sector_size != SECTOR:
            return f"{partition.disk} has sectors of {self.disks[partition.disk].sector_size} bytes: unknown to NT"
        if window(self.disks, partition, length) is None:
            return f"{partition.disk} ends before it"
        return ""

    def _name(self, claim: Claim) -> str:
        """Two servers' disks given together may both have a mirror 0."""
        name = plain = f"ft.{SHORT[claim.kind]}{claim.group}"
        while name in self.names:
            name = f"{plain}-{len(self.names)}"
        self.names.add(name)
        return name


def _keys(claim: Claim) -> tuple[MemberKey, ...]:
    return tuple(member.key for member in claim.members)


def _signature(disk: Source) -> int:
    try:
        return int(struct.unpack("<I", read(disk, DISK_SIGNATURE, 4))[0])
    except ReadError:
        return 0  # with its table, which lies in the same sector, so nothing on it is a member


def _held_against(claim: Claim, key: MemberKey) -> str:
    """What one hive holds against a copy; "" for nothing."""
    member = claim.member(key)
    if member is None:
        return f"{claim.told} does not count it into {claim}"
    state = FtState(member.row.ft_state)
    return f"{claim.told} calls it {state}" if state is not FtState.HEALTHY else ""


def _history(claim: Claim) -> str:
    members = ", ".join(f"member {m.row.ft_member} {FtState(m.row.ft_state)}" for m in claim.members)
    more = f"; the set: {claim.state}" if claim.state else ""
    more += "; not shut down cleanly" if claim.told.information.header.dirty_shutdown else ""
    return (f"its own hive ({claim.told.path}) says: {members}{more}; this changed {in_words(claim.told.changed)}, "
            f"the hive was written {in_words(claim.told.written)}")


def _not_to_be_read(group: Sequence[Claim], member: ClaimedMember) -> str:
    """A member of a stripe set with parity that the other members must stand in for."""
    if member.partition is None or group[0].kind is not FtType.STRIPE_WITH_PARITY:
        return ""
    if bad := marked_bad(member.partition):
        return bad[0]
    stale = (FtState.ORPHANED, FtState.REGENERATING, FtState.SYNC_COPY)
    return "; ".join(f"{claim.told} calls it {FtState(said.row.ft_state)}" for claim in group
                     if (said := claim.member(member.key)) and said.row.ft_state in stale)


def _put_together(kind: FtType, name: str, parts: Sequence[Source | None]) -> Source:
    if kind is FtType.STRIPE_WITH_PARITY:
        size = next(part.size for part in parts if part) * (len(parts) - 1)
        return Parity(parts, CHUNK, name, level=5, layout="left-symmetric", size=size)
    present = [part for part in parts if part]
    return Striped(present, CHUNK, name) if kind is FtType.STRIPE else Linear(present, name)


def _origin(group: Sequence[Claim], partitions: Sequence[Partition]) -> Origin:
    letter = next((claim.letter for claim in group if claim.letter), "")
    kind = base_type(partitions[0]) if partitions else 0
    return Origin("ft", f"{SHORT[group[0].kind]} {group[0].group}", letter=letter, type=kind)


def _place(claim: Claim) -> Where:
    return Where(claim.told.disk, item=f"{claim.told.path}, {KEY}\\{VALUE}")


def _contradiction(group: Sequence[Claim]) -> Finding:
    said = "; ".join(f"{claim.told} (written {in_words(claim.told.written)}): {claim} of "
                     f"{', '.join(map(str, claim.members))}" for claim in group)
    return Finding(f"{group[0].told.disk}: hives contradict each other about a fault-tolerant set",
                   Where(group[0].told.disk, item=" and ".join(str(claim.told) for claim in group)),
                   f"{said}; put together wrongly, its volume would be noise",
                   "leave out the disk with the older system", Severity.ERROR)


def _in_words(lost: Sequence[tuple[ClaimedMember, str]]) -> tuple[str, ...]:
    return tuple(f"{member} ({trouble})" for member, trouble in lost)


def _incomplete(name: str, group: Sequence[Claim], lost: Sequence[tuple[ClaimedMember, str]], members: int, *,
                can_be_read: bool) -> Finding:
    """A set of which nothing was given may have been left out on purpose."""
    left_out = len(lost) == members and all(trouble == NOT_GIVEN for _, trouble in lost)
    rest = "What is left holds all its data, and nothing stands in for a bad sector" if can_be_read \
        else "Its volume cannot be read"
    severity = Severity.WARNING if can_be_read or left_out else Severity.ERROR
    return Finding(f"{name}: {group[0]} is not complete", _place(group[0]),
                   f"missing: {'; '.join(_in_words(lost))}. {rest}",
                   "give the missing disks, too, if they can still be read", severity)


def _examined(name: str, source: Source, claim: Claim) -> Iterator[Finding]:
    """Does a filesystem read from end to end through the layout that was put together?"""
    why = ""
    try:
        seen = looks(source)
        if seen is None or seen.size > source.size:
            why = f"it should hold a filesystem: {seen or 'there is none'}"
        elif filesystem.examine(source).state is FilesystemState.UNKNOWN:
            why = f"its filesystem ({seen}) cannot be followed"
    except ReadError as error:
        why = error.what
    if why:
        yield Finding(f"{name}: {claim} was put together, and what came out looks wrong",
                      Where(name, 0, source.size), f"{why}; chunks of 64 KiB and the order of the parity are what "
                      "such sets are known to have, not what this one says of itself",
                      "check its files before they are relied on", Severity.WARNING)
