"""The disks handed in → the disks of the VM: each as it is, or plain ones put together from mirrors and sets.

Made anew for planning, converting and checking: what is put together is never stored, only how (plan.json).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2v.errors import DriftError, Finding, PlanError, ReadError, Where
from p2v.model import SECTOR, Collapsed, Plan, Range, Source, read
from p2v.volume import find_volumes, holds_sets, metadata_ranges

if TYPE_CHECKING:
    from p2v.choosing import Decision
    from p2v.collapse import Built

COLLAPSE, KEEP = "collapse", "keep"
LAYOUTS = (COLLAPSE, KEEP)
PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True, slots=True)
class Arranged:
    """sources: the disks handed in, by id in the order given. built: None where each makes one image as it is.

    has_sets: they hold mirrors, dynamic disks or volumes over several disks. in_step: see arrange.
    """

    sources: Mapping[str, Source]
    disks: Mapping[str, Source]
    built: Built | None = None
    has_sets: bool = False
    in_step: bool = False

    @property
    def collapsed(self) -> Collapsed | None:
        """What the guest's settings still name."""
        return self.built.collapsed if self.built else None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was said of mirrors and legs."""
        return self.built.findings if self.built else ()


def arrange(
    given: Mapping[str, Source], legs: Mapping[str, str] | None = None, layout: str = COLLAPSE, *,
    in_step: bool = False, shared: bool = False,
) -> Arranged:
    """The VM's disks, in BIOS order. legs: the user's choices, by mirror, letter, or "" for all.

    in_step: the legs were compared and are equal, so that any of them may be read. shared: the user says so.
    Raises PlanError where a leg cannot be chosen; it shows both histories.
    """
    from p2v.planning import in_bios_order

    if layout not in LAYOUTS:
        raise PlanError(f"no layout is called {layout}", "--layout", next="choose one of: " + ", ".join(LAYOUTS))
    found = find_volumes(given)
    if layout == COLLAPSE and holds_sets(found):
        from p2v.collapse import collapse

        built = collapse(given, found, by_id(given, legs or {}), in_step=in_step, shared=shared)
        return Arranged(given, built.sources, built, has_sets=True, in_step=in_step)
    if legs and not found.mirrors:
        raise PlanError("there is no mirror here to choose a leg of", "--leg", "these disks hold none that p2v knows",
                        "leave --leg out")
    disks = {f"disk{number}": given[id] for number, id in enumerate(in_bios_order(given))}
    return Arranged(given, disks, has_sets=holds_sets(found))


def decisions(given: Mapping[str, Source], legs: Mapping[str, str] | None) -> Mapping[str, Decision]:
    """Of each mirror whose leg is decided, which and why."""
    from p2v.choosing import settle

    return settle(find_volumes(given), by_id(given, legs or {})).legs


def by_id(given: Mapping[str, Source], legs: Mapping[str, str]) -> dict[str, str]:
    """The user's legs with the ids of disks, where paths were named. Raises PlanError for neither."""
    paths = {os.path.realpath(source.name): id for id, source in given.items()}
    chosen = {}
    for mirror, disk in legs.items():
        id = disk if disk in given else paths.get(os.path.realpath(disk))
        if id is None:
            raise PlanError(f"no disk is called {disk}", "--leg", "a leg is named by its disk",
                            "choose one of: " + ", ".join(f"{id} ({source.name})" for id, source in given.items()))
        chosen[mirror] = id
    return chosen


def arranged_again(plan: Plan, given: Mapping[str, Source], *, shared: bool = False) -> Arranged:
    """The disks as the plan has them. Raises DriftError where the same disks do not make the same any more."""
    if not plan.sources:
        return Arranged(given, given)
    for source in plan.sources:
        if source.fingerprint != fingerprint(given[source.id]):
            raise moved(source.path)
    made = arrange(given, plan.legs, in_step=plan.in_step, shared=shared)
    theirs = {disk.id: disk.pieces for disk in plan.disks}
    ours = {id: disk.pieces for id, disk in made.built.disks.items()} if made.built else {}
    if theirs != ours:
        raise moved(", ".join(source.path for source in plan.sources))
    return made


def moved(path: str) -> DriftError:
    """A source is not what the plan was made from."""
    return DriftError(f"{path} is not what the plan was made from", Where(path),
                      "its size, tables, sets or boot sectors have changed since",
                      "shut the server down for good, then make a new plan")


def fingerprint(source: Source) -> str:
    """What must not have moved of a disk in a set: size, table, and all that the set's manager wrote. SHA-256."""
    digest = hashlib.sha256(f"{source.size}:{source.sector_size}:".encode())
    for part in (Range(0, min(SECTOR, source.size)), *metadata_ranges(source)):
        for offset in range(part.offset, part.end, PIECE):
            digest.update(_seen(source, offset, min(PIECE, part.end - offset)))
    return digest.hexdigest()


def _seen(source: Source, offset: int, length: int) -> bytes:
    """The bytes; what cannot be read counts as the message."""
    try:
        return read(source, offset, length)
    except ReadError as error:
        return error.what.encode()
