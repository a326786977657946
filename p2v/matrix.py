"""What each guest gets on each target, as two tables: boot disk, network card, HAL, what the user hands in.

Made from the manifests, the targets and their cards, so that README cannot say anything else:
`python -m p2v.matrix` writes them to standard output, and tests/test_matrix.py compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from p2v import drivers
from p2v.drivers import Driver
from p2v.model import Family, GuestFacts, Target
from p2v.target import TARGETS, nics

GUESTS: Mapping[str, nics.System] = {
    "NT 4": nics.NT4, "2000": nics.W2000, "XP": nics.XP, "2003": nics.W2003, "XP x64, 2003 x64": nics.X64,
}
IN_BOX = {"yes": "in the box", "no": "no", "unknown": "unknown"}


def markdown() -> str:
    """Both tables."""
    return f"{_table(_guests())}\n{_table(_controllers())}"


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def _guests() -> Iterator[Sequence[str]]:
    yield ("guest", *TARGETS, "HAL", "hand in")
    for guest in GUESTS:
        facts = _facts(guest)
        yield (guest, *(_cell(facts, target) for target in TARGETS.values()), _hal(facts), _handed_in(facts))


def _cell(facts: GuestFacts, target: Target) -> str:
    """The best controller that this Windows ships a driver for, and the card: with a "?" where that is unknown."""
    found = [one for one in _serving(facts, target) if one.generation.in_box == "yes"]
    card = nics.best(target.NICS, facts)
    doubt = {"yes": "", "no": " (driver supplied)"}.get(_in_box(card, facts), "?")
    return f"{found[0].manifest.name}, {target.NICS[card]}{doubt}"


def _hal(facts: GuestFacts) -> str:
    """What becomes of the HAL, by its kind."""
    if facts.architecture == "x64":
        return "stays"
    with_table = ", ".join(target.NAME for target in TARGETS.values() if target.HAS_MP_TABLE)
    if facts.version < nics.W2000[0]:
        return f"Standard PC stays, MPS on {with_table}, too; any other: Standard PC beside it"
    return f"ACPI and Standard PC stay, MPS on {with_table}, too; any other: one of its family beside it"


def _handed_in(facts: GuestFacts) -> str:
    """What is not on the guest's own disk: NT 4 keeps no copies of its drivers, and some cards came later."""
    wanted: dict[str, list[str]] = {}
    for target in TARGETS.values():
        first = next(one for one in _serving(facts, target) if one.generation.in_box == "yes").generation
        for file in first.file[:1]:
            if file.given_only:
                wanted.setdefault(f"{file.name} where the server has none: {file.medium}", []).append(target.NAME)
        card = nics.best(target.NICS, facts)
        if _in_box(card, facts) == "no":
            supplied = nics.CARDS[card].supplied.get((facts.version, facts.architecture), "the card's driver")
            wanted.setdefault(supplied, []).append(target.NAME)
    if facts.version < nics.W2000[0]:
        wanted["for another HAL, hal.dll and ntoskrnl.exe of the installed service pack"] = [*TARGETS]
    return "; ".join(text if len(names) == len(TARGETS) else f"{text} ({', '.join(names)})"
                     for text, names in wanted.items()) or "nothing"


def _controllers() -> Iterator[Sequence[str]]:
    """Which Windows has a driver for which controller, and which targets offer it."""
    yield ("controller", "offered by", *GUESTS, "driver")
    for name in sorted({name for target in TARGETS.values() for name in target.CONTROLLERS}):
        manifest = drivers.load(name)
        offered = ", ".join(target.NAME for target in TARGETS.values() if name in target.CONTROLLERS)
        files = dict.fromkeys(one.file[0].name for one in manifest.generation)
        yield (f"`{name}`: {manifest.title}", offered, *(_origin(name, guest) for guest in GUESTS), ", ".join(files))


def _origin(name: str, guest: str) -> str:
    driver = next(drivers.serving((name,), _facts(guest)), None)
    if driver is None:
        return "none"
    in_box = IN_BOX[driver.generation.in_box]
    if driver.generation.supplied:
        return "handed in" if in_box == "no" else f"{in_box}, or handed in"
    return in_box


def _facts(guest: str) -> GuestFacts:
    version, architecture = GUESTS[guest]
    return GuestFacts(Family.WINDOWS, guest, version, architecture=architecture)


def _serving(facts: GuestFacts, target: Target) -> Iterator[Driver]:
    return drivers.serving(target.controllers(facts), facts)


def _in_box(card: str, facts: GuestFacts) -> str:
    known = nics.CARDS[card].in_box[facts.version, facts.architecture]
    return "unknown" if known in nics.UNKNOWN else known


if __name__ == "__main__":
    sys.stdout.write(markdown())
