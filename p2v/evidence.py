"""Which of two copies of a mirrored volume is the newer one, by all that both disks tell.

Two witnesses, always both: the volume manager's metadata (generation, what it holds against a copy, whom it
calls failed) and the filesystem itself (age.py). Neither outvotes the other: where they disagree, nobody has
decided. Source of the rules: the Linux mdadm's Assemble.c for disks that call each other failed; the LDM
on-disk notes; fault-tolerant sets of NT 4 keep no generation, so there the filesystem decides.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from p2v.filesystem.age import Age, Clue, age_of, compare, short
from p2v.model import Leg, Mirror, Volume
from p2v.source.window import Window
from p2v.volume import mbr

WHOLE_DISKS = frozenset({"md", "imsm", "ddf"})  # managers whose mirrors can hold a partition table
MOST_PARTITIONS = 16  # looked into
MOST_NAMED = 3  # files in one reason
SPEAKS = {"metadata": "the metadata speaks for {}", "filesystem": "the filesystem on {} is newer"}
SLACK = timedelta(minutes=1)  # between a metadata's clock and a filesystem's, on one machine


@dataclass(frozen=True, slots=True)
class History:
    """What one copy tells of itself. ages: of the volume (""), or of the partitions in it ("p1")."""

    leg: Leg
    ages: Mapping[str, Age]

    @property
    def words(self) -> str:
        """For the user: a line of metadata, a line for each filesystem."""
        leg = self.leg
        metadata = [leg.history or "its metadata keeps no history"]
        metadata += [f"against it: {'; '.join(leg.against)}"] if leg.against else []
        others = [disk for disk in leg.fails if disk != leg.disk]
        metadata += [f"it calls {', '.join(others)} failed"] if others else []
        lines = [f"{leg.disk}: {'; '.join(metadata)}"]
        lines += [f"  {name + ': ' if name else ''}{age.words}" for name, age in self.ages.items()]
        return "\n".join(lines)


class Judgement(enum.Enum):
    """Of two copies."""

    FIRST = "first"  # is the newer one, or at least as new
    SECOND = "second"
    SAME = "same"  # nothing seen differs
    CONTRADICTION = "contradiction"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """reasons: each kind of evidence in words. contradiction: what speaks against any choice, "" for nothing."""

    judgement: Judgement
    reasons: tuple[str, ...]
    contradiction: str = ""


def history_of(mirror: Mirror, leg: Leg) -> History:
    """Reads little, and bears bad sectors: what cannot be read is unknown."""
    source = Window(leg.source, 0, mirror.size, leg.disk)
    age = age_of(source)
    if age.kind or mirror.origin.manager not in WHOLE_DISKS:
        return History(leg, {"": age})
    volumes = [found for found in mbr.find({"": source}) if isinstance(found, Volume)]
    return History(leg, {v.name: age_of(v.source) for v in volumes[:MOST_PARTITIONS]} or {"": age})


def weigh(first: History, second: History) -> Verdict:
    """Which copy is newer, by everything."""
    names = (first.leg.disk, second.leg.disk)
    metadata = list(_metadata(first.leg, second.leg))
    files = [clue for name in first.ages if name in second.ages
             for clue in compare(first.ages[name], second.ages[name])]
    told, seen = _judge(metadata), _judge(files)
    reasons = (*_reasons("metadata", metadata, names), *_reasons("filesystem", files, names))
    against = "; ".join([*_other_volume(first, second), *_contradiction(told, seen, metadata, names),
                         *_lived_on(told, first, second)])
    return Verdict(Judgement.CONTRADICTION if against else _joined(told, seen), reasons, against)


def _metadata(first: Leg, second: Leg) -> Iterator[Clue]:
    if first.generation and second.generation:
        yield Clue("higher generation", *(("it",) if a > b else () for a, b in (
            (first.generation, second.generation), (second.generation, first.generation))))
    fails = [(f"it calls {b.disk} failed",) if b.disk in a.fails else () for a, b in ((first, second), (second, first))]
    if any(fails):
        yield Clue("", *fails)
    if bool(first.against) != bool(second.against):
        held = [(f"something is held against {b.disk}",) if b.against else () for b in (second, first)]
        yield Clue("", *held)


def _judge(clues: Sequence[Clue]) -> Judgement:
    """Of one witness: an equal clue yields to one that differs, two that differ in both ways to nobody."""
    ahead = (any(clue.first for clue in clues), any(clue.second for clue in clues))
    if not clues:
        return Judgement.UNKNOWN
    return {(False, False): Judgement.SAME, (True, False): Judgement.FIRST, (False, True): Judgement.SECOND,
            (True, True): Judgement.CONTRADICTION}[ahead]


def _joined(told: Judgement, seen: Judgement) -> Judgement:
    """Of two witnesses that do not contradict each other."""
    if told is Judgement.UNKNOWN:
        return seen
    return told


def _other_volume(first: History, second: History) -> Iterator[str]:
    """Copies that hold different filesystems are no copies."""
    a, b = first.leg.disk, second.leg.disk
    if first.ages.keys() != second.ages.keys():
        if "" not in (*first.ages, *second.ages):
            yield f"{a} and {b} hold different partitions"
        return
    for name, age in first.ages.items():
        other = second.ages[name]
        for what, one, two in (("filesystems", age.kind, other.kind), ("serial numbers", age.identity, other.identity)):
            if one and two and one != two:
                yield f"{name + ': ' if name else ''}{a} and {b} hold different {what} ({one}, {two})"


def _contradiction(told: Judgement, seen: Judgement, metadata: Sequence[Clue],
                   names: tuple[str, str]) -> Iterator[str]:
    a, b = names
    ordered = (Judgement.FIRST, Judgement.SECOND)
    if any(clue.first and clue.second for clue in metadata):
        yield f"split brain: {a} and {b} call each other failed, so each ran without the other"
    elif told is Judgement.CONTRADICTION:
        yield f"split brain: the metadata of {a} and {b} does not agree about which copy is current"
    if seen is Judgement.CONTRADICTION:
        yield f"split brain: {a} and {b} each hold something newer than the other, so both were written on their own"
    if told in ordered and seen in ordered and told is not seen:
        newer, older = names if told is Judgement.FIRST else (b, a)
        yield (f"split brain: the metadata speaks for {newer}, but the filesystem on {older} was written later, so "
               f"{older} lived on alone")
    if told is Judgement.SAME and seen in ordered:
        yield (f"the metadata calls {a} and {b} equal, but the filesystem on "
               f"{a if seen is Judgement.FIRST else b} is newer")


def _lived_on(told: Judgement, first: History, second: History) -> Iterator[str]:
    """Was the older copy written after the newer one's metadata was changed for the last time?"""
    if told not in (Judgement.FIRST, Judgement.SECOND):
        return
    newer, older = (first, second) if told is Judgement.FIRST else (second, first)
    shared = {moment for age in newer.ages.values() for moment in age.known}  # of before they parted
    times = [moment.time for age in older.ages.values() for moment in age.known if moment not in shared]
    last = max((time for time in times if time), default=None)
    changed = newer.leg.changed
    if changed and last and last > changed + SLACK:
        yield (f"split brain: {older.leg.disk} was written at {last:%Y-%m-%d %H:%M:%S} UTC, after it was detached "
               f"({newer.leg.disk}'s metadata changed last at {changed:%Y-%m-%d %H:%M:%S})")


def _reasons(witness: str, clues: Sequence[Clue], names: tuple[str, str]) -> Iterator[str]:
    """One line for each disk that is ahead, one for what is the same."""
    for disk, ahead in zip(names, ([(c.kind, c.first) for c in clues], [(c.kind, c.second) for c in clues]),
                           strict=True):
        kinds = [_named(kind, what) for kind, what in ahead if what]
        if kinds:
            yield f"{SPEAKS[witness].format(disk)}: {'; '.join(kinds)}"
    same = [clue.kind.removeprefix("higher ") for clue in clues if not clue.first and not clue.second]
    if same:
        yield f"the same in the {witness} of {names[0]} and {names[1]}: {', '.join(dict.fromkeys(same))}"
    if not clues:
        yield f"the {witness} of {names[0]} and {names[1]} tells nothing that can be compared"


def _named(kind: str, what: Iterable[str]) -> str:
    """A kind of evidence with a few of the files that show it; a clue without a kind says it all itself."""
    words = [short(word) for word in what if word not in ("it", "the log")]
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    named = ", ".join(words[:MOST_NAMED]) + more
    return f"{kind} ({named})" if kind and named else kind or named
