"""Which leg of each mirror is read: the one that is newest by everything, or the one that the user names.

Metadata and filesystem evidence are always both looked at, for each mirror on its own (C: may be current on
one disk and D: on the other), and shown as one finding. Where they disagree, or two copies both lived on, the
finding is an error with both histories, until the user has named a leg. A stale leg is never read silently,
and that two legs are equal is never claimed here: only a compare can know.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from p2v.errors import Finding, PlanError, Severity, Where
from p2v.evidence import History, Judgement, Verdict, history_of, weigh
from p2v.model import Leg, Mirror, Volume
from p2v.source.window import Window
from p2v.volume import Layout

UNDECIDED = "nothing on the disks tells which copy is current"


@dataclass(frozen=True, slots=True)
class Decision:
    """The leg of a mirror that is read. by: "evidence", "user" or "only one".

    volume: the mirror's name. leg: id of its disk; others: of the other legs' disks.
    reasons: what was seen, in words. differing: disks of the others that do not look just the same.
    """

    volume: str
    leg: str
    others: tuple[str, ...]
    reasons: tuple[str, ...]
    by: str
    differing: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Why this leg, in a few words."""
        known = "the current one" if self.differing else "a current one"
        return {"user": "as you said", "only one": "the only one here"}.get(self.by, known)


@dataclass(frozen=True, slots=True)
class Settled:
    """layout: with a volume "mirrored" for each mirror that is decided; its mirrors are the undecided ones.

    legs: by name of the mirror. findings: one for each mirror, of severity ERROR where nobody has decided.
    """

    layout: Layout
    legs: Mapping[str, Decision]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Opinion:
    """What the evidence says of one mirror. leg: None where it does not say. problems: why it does not.

    alike: disks of the other legs that look just as new.
    """

    leg: Leg | None
    histories: tuple[History, ...]
    reasons: tuple[str, ...]
    problems: tuple[str, ...]
    alike: tuple[str, ...] = ()

    @property
    def same(self) -> tuple[str, ...]:
        """The disks of all legs that look as new as the one that the evidence takes, that one included."""
        return (self.leg.disk, *self.alike) if self.leg else ()


def settle(layout: Layout, chosen: Mapping[str, str] | None = None) -> Settled:
    """Choose a leg for each mirror.

    chosen: what the user says: a volume's name, its letter ("C:") or "" for every mirror with a leg there → disk
    id.
    Raises PlanError where chosen names what is not there.
    """
    wishes = _wishes(layout.mirrors, chosen or {})
    volumes, undecided, findings = [], [], []
    legs: dict[str, Decision] = {}
    for mirror in layout.mirrors:
        opinion = _opinion(mirror)
        wish = next((leg for leg in mirror.legs if leg.disk == wishes.get(mirror.name)), None)
        leg = wish or opinion.leg
        findings.append(_finding(layout.mirrors, mirror, opinion, wish))
        if leg is None:
            undecided.append(mirror)
            continue
        others = [other for other in mirror.legs if other is not leg]
        by = "user" if wish else "evidence" if others else "only one"
        names = tuple(other.disk for other in others)
        same = opinion.same if leg.disk in opinion.same else ()
        legs[mirror.name] = Decision(mirror.name, leg.disk, names, opinion.reasons, by,
                                     tuple(disk for disk in names if disk not in same))
        members = (leg.member, *(other.member for other in others))
        volumes.append(Volume(mirror.name, Window(leg.source, 0, mirror.size, mirror.name), "mirrored", members,
                              leg.partition, mirror.origin))
    return Settled(replace(layout, volumes=(*layout.volumes, *volumes), mirrors=tuple(undecided)), legs,
                   tuple(findings))


# -- what the user says


def _wishes(mirrors: Sequence[Mirror], chosen: Mapping[str, str]) -> dict[str, str]:
    """Name of a mirror → disk id: a name weighs more than a letter, a letter more than no name."""
    wishes: dict[int, dict[str, str]] = {0: {}, 1: {}, 2: {}}
    for key, disk in chosen.items():
        weight, meant = _meant(mirrors, key)
        fit = [mirror for mirror in meant if any(leg.disk == disk for leg in mirror.legs)]
        if not fit or (key and len(fit) < len(meant)):
            raise PlanError(f"--leg {key + '=' if key else ''}{disk}: there is no such leg",
                            Where(item=f"--leg {key}"), _what_is_there(mirrors), "name one of these volumes and disks")
        wishes[weight] |= {mirror.name: disk for mirror in fit}
    return wishes[0] | wishes[1] | wishes[2]


def _meant(mirrors: Sequence[Mirror], key: str) -> tuple[int, list[Mirror]]:
    """The mirrors that a key means, and how exactly it means them."""
    if not key:
        return 0, list(mirrors)
    named = [mirror for mirror in mirrors if mirror.name == key]
    lettered = [mirror for mirror in mirrors if mirror.origin.letter and mirror.origin.letter.lower() == key.lower()]
    return (2, named) if named else (1, lettered)


def _what_is_there(mirrors: Sequence[Mirror]) -> str:
    lines = [f"{_label(mirror)}: legs on {', '.join(leg.disk for leg in mirror.legs)}" for mirror in mirrors]
    return "; ".join(lines) or "no volume of these disks is a mirror"


# -- what the evidence says


def _opinion(mirror: Mirror) -> _Opinion:
    histories = tuple(history_of(mirror, leg) for leg in mirror.legs)
    if len(histories) == 1:
        leg = mirror.legs[0]
        held = tuple(f"the metadata holds against it: {word}" for word in leg.against)
        return _Opinion(None if held else leg, histories, held, held)
    verdicts = {(a, b): weigh(histories[a], histories[b])
                for a, b in itertools.combinations(range(len(histories)), 2)}
    reasons = tuple(dict.fromkeys(reason for verdict in verdicts.values() for reason in verdict.reasons))
    problems = tuple(dict.fromkeys(v.contradiction for v in verdicts.values() if v.contradiction))
    if all(leg.against for leg in mirror.legs):
        problems += ("the metadata holds something against every copy",)
    if problems:
        return _Opinion(None, histories, reasons, problems)
    for index, leg in enumerate(mirror.legs):
        seen = {other.disk: _seen_from(index, verdicts, number) for number, other in enumerate(mirror.legs)
                if number != index}
        if all(judgement in (Judgement.FIRST, Judgement.SAME) for judgement in seen.values()):
            alike = tuple(disk for disk, judgement in seen.items() if judgement is Judgement.SAME)
            return _Opinion(leg, histories, reasons, (), alike)
    return _Opinion(None, histories, reasons, (UNDECIDED,))


def _seen_from(index: int, verdicts: Mapping[tuple[int, int], Verdict], other: int) -> Judgement:
    """The verdict on two legs, with index as the first."""
    if index < other:
        return verdicts[index, other].judgement
    judgement = verdicts[other, index].judgement
    return {Judgement.FIRST: Judgement.SECOND, Judgement.SECOND: Judgement.FIRST}.get(judgement, judgement)


# -- what is said


def _finding(mirrors: Sequence[Mirror], mirror: Mirror, opinion: _Opinion, wish: Leg | None) -> Finding:
    """One for each mirror: what its legs are, how old, who says so."""
    leg = wish or opinion.leg
    what, severity, next = _said(mirrors, mirror, opinion, wish)
    first = [leg] if leg else []
    legs = [*first, *(other for other in mirror.legs if other is not leg)]
    place = Where(legs[0].disk, legs[0].member.offset, legs[0].member.length,
                  "; ".join(_place(other) for other in legs[1:]))
    return Finding(f"{_label(mirror)}: {what}", place, "\n".join(_why(mirror, opinion)), next, severity)


def _said(mirrors: Sequence[Mirror], mirror: Mirror, opinion: _Opinion,
          wish: Leg | None) -> tuple[str, Severity, str]:
    """what, severity and next."""
    options = [_option(mirrors, mirror, leg) for leg in mirror.legs]
    if wish and (wish.disk in opinion.same or len(mirror.legs) == 1):
        agrees = wish.disk in opinion.same and len(mirror.legs) > 1
        return (f"the copy on {wish.disk} is read, as you said" + (", and the evidence agrees" if agrees else ""),
                Severity.INFO if agrees else Severity.WARNING, "nothing")
    if wish:
        evidence = f"speaks for {opinion.leg.disk}" if opinion.leg else "does not decide"
        return (f"the copy on {wish.disk} is read because you said so; the evidence {evidence}",
                Severity.WARNING, "check in the VM that its newest data is what you expect")
    if opinion.leg is None and len(mirror.legs) == 1:
        return (f"only the copy on {mirror.legs[0].disk} is here, and it is not current", Severity.ERROR,
                f"give the disk with the other copy, too; or read this one all the same: {options[0]}")
    if opinion.leg is None:
        return ("which copy of this mirror is current is not clear", Severity.ERROR,
                f"compare both histories with what the server last did, then name the copy to read: "
                f"{' or '.join(options)}")
    if len(mirror.legs) == 1:
        return (f"only the copy on {opinion.leg.disk} of this mirror is here", Severity.WARNING,
                "give the disk with the other copy, too, if it still exists; else check that the dates above are "
                "those of the server's last days")
    return _decided(mirrors, mirror, opinion, opinion.leg)


def _decided(mirrors: Sequence[Mirror], mirror: Mirror, opinion: _Opinion, leg: Leg) -> tuple[str, Severity, str]:
    others = [other.disk for other in mirror.legs if other is not leg]
    behind = [f"{disk}'s is not" for disk in others if disk not in opinion.alike]
    severity = Severity.WARNING if mirror.missing else Severity.INFO
    if not opinion.alike:
        other = next(other for other in mirror.legs if other is not leg)
        return (f"this mirror is read from {leg.disk}, whose copy is the current one; {', '.join(behind)}", severity,
                f"nothing; to read the other one all the same: {_option(mirrors, mirror, other)}")
    rest = ", ".join([f"{', '.join(opinion.alike)} looks just the same", *behind])
    return (f"this mirror is read from {leg.disk}, whose copy is a current one; {rest}", severity,
            "nothing; p2v inspect --compare tells whether they are equal")


def _why(mirror: Mirror, opinion: _Opinion) -> Iterator[str]:
    yield from opinion.problems
    yield from (history.words for history in opinion.histories)
    yield from (reason for reason in opinion.reasons if reason not in opinion.problems)
    if len(mirror.legs) == 1:
        yield f"its other copy is missing: {', '.join(mirror.missing) or 'its disk was not given'}"
        yield "beyond its own metadata nothing can vouch that this copy is current"
    elif mirror.missing:
        yield f"a further copy is missing: {', '.join(mirror.missing)}"
    if opinion.alike:
        yield "whether they are equal, only a comparison tells"


def _label(mirror: Mirror) -> str:
    return f"{mirror.origin.letter} ({mirror.name})" if mirror.origin.letter else mirror.name


def _place(leg: Leg) -> str:
    return str(Where(leg.disk, leg.member.offset, leg.member.length))


def _option(mirrors: Sequence[Mirror], mirror: Mirror, leg: Leg) -> str:
    """What to type for a leg: as short as it is clear."""
    letter = mirror.origin.letter
    alone = letter and sum(other.origin.letter.lower() == letter.lower() for other in mirrors) == 1
    key = "" if len(mirrors) == 1 else f"{letter if alone else mirror.name}="
    return f"--leg {shlex.quote(key + leg.disk)}"
