"""Services of hardware and software that the VM does not have: loads and checks the files in services/.

A file is data: names, what to do, why, where each fact is known from, and what must be seen on the guest before
a service is switched off. A fact from memory never switches anything off by the name alone.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from p2v import tables
from p2v.errors import PlanError

DISABLE, TELL = "disable", "tell"
MEMORY = "[mem]"
KINDS = ("cpu", "chipset", "storage-filter", "vendor-agent", "raid-monitor", "nic-teaming", "watchdog",
         "hypervisor-tools", "missing-hardware")
VERSIONS = ("4.0", "5.0", "5.1", "5.2")


@dataclass(frozen=True, slots=True)
class Rule:
    """Services that are treated alike.

    title: what they are, in words. names: of services; * stands for any text. action: "disable", or "tell" to only
    say that they are there. versions: of Windows; () for all. company: one of these stands in the CompanyName of the
    service's file, or it is left on and told. path: what its ImagePath must look like (* for any text). device: one of
    these is how an id in Enum begins (PCI\\VEN_114F). keep_on: targets (by NAME) where it belongs. next: what the user
    can do about it; of a rule that tells.
    """

    title: str
    names: tuple[str, ...]
    action: str
    why: str
    known_from: str
    versions: tuple[str, ...] = ()
    company: tuple[str, ...] = ()
    path: str = ""
    device: tuple[str, ...] = ()
    keep_on: tuple[str, ...] = ()
    next: str = ""

    def serves(self, service: str, version: tuple[int, int]) -> bool:
        """Is the rule about this service of this Windows?"""
        if self.versions and "{}.{}".format(*version) not in self.versions:
            return False
        return any(fnmatch.fnmatchcase(service.lower(), name.lower()) for name in self.names)


@dataclass(frozen=True, slots=True)
class Group:
    """One file: rules of one kind."""

    kind: str
    rule: tuple[Rule, ...]


@functools.cache
def rules() -> tuple[Rule, ...]:
    """All rules, by the names of their files. Raises PlanError where a file is wrong."""
    found: list[Rule] = []
    for path in sorted(tables.folder("services").glob("*.toml")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(path.name, str(error)) from error
        found += parse(text, path.name).rule
    check_together(found)
    return tuple(found)


def parse(text: str, place: str) -> Group:
    """A file's rules. Raises PlanError with the place of what is wrong in it."""
    group = tables.parse(Group, text, place, _wrong)
    if group.kind not in KINDS:
        raise _wrong(f"{place}, kind", f"{group.kind!r} is none of {', '.join(KINDS)}")
    if not group.rule:
        raise _wrong(place, "a file needs a rule")
    for rule in group.rule:
        for wrong in _faults(rule):
            raise _wrong(f"{place}, rule {rule.title}", wrong)
    check_together(group.rule)
    return group


def check_together(found: list[Rule] | tuple[Rule, ...]) -> None:
    """No service is in two rules for one Windows. Raises PlanError."""
    owners: dict[tuple[str, str], Rule] = {}
    for rule in found:
        for name in rule.names:
            for version in rule.versions or VERSIONS:
                other = owners.setdefault((name.lower(), version), rule)
                if other is not rule:
                    raise _wrong(f"rule {rule.title}, names", f"{name} is in the rule {other.title}, too")


def _faults(rule: Rule) -> Iterator[str]:
    """What types alone do not say."""
    names = [name for name in rule.names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]+\*?", name)]
    if names or not rule.names:
        yield f"{names or 'nothing'} is no name of a service, nor a pattern of one"
    if unknown := [version for version in rule.versions if version not in VERSIONS]:
        yield f"{unknown} is none of {', '.join(VERSIONS)}"
    if rule.action not in (DISABLE, TELL):
        yield f"action is {DISABLE} or {TELL}"
    if not (rule.why and rule.known_from):
        yield "why and known_from must say something"
    if rule.action == DISABLE and rule.known_from.startswith(MEMORY) and not rule.company:
        yield "what is known from memory is disabled only where the file's company agrees: give company, or tell"
    if rule.action == TELL and not rule.next:
        yield "a rule that tells says in next what to do"


def _wrong(place: str, why: str) -> PlanError:
    return PlanError("a file of services is wrong", place, why, "mend the file; CONTRIBUTING says what it holds")
