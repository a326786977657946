"""What is on these disks? Tells an owner what they are, which leg of a mirror is current, and what to type next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from p2v.arranging import Arranged, arrange, by_id, decisions
from p2v.errors import Finding, P2VError, PlanError, ReadError
from p2v.filesystem import examine
from p2v.model import (
    Cancel,
    Filesystem,
    FilesystemState,
    GuestFacts,
    Mirror,
    Piece,
    Progress,
    Source,
    Volume,
    VolumeFacts,
    no_progress,
)
from p2v.planning import View, in_bios_order, opened, second_opinion, view, volume_facts
from p2v.volume import Layout, find_volumes, holds_sets


@dataclass(frozen=True, slots=True)
class Controller:
    """A disk controller and this guest. verdict: "yes", "no" or "unknown". signs: why. needs: what to get for it."""

    name: str
    title: str
    verdict: str
    signs: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `p2v inspect` tells.

    paths, sizes: of the disks, the boot disk first; where they hold sets, in the order given. volumes: on the
    VM's disks. facts: of the guest where one is known. sets: mirrors and volumes over several disks, as the
    disks hold them. legs: of each mirror, the id of the disk whose leg is taken. pieces: by the id of each disk
    that the VM would get, what it is put together from; empty where each disk makes one image. compared: the legs
    of mirrors, drawn, where that was asked for. taken: of each mirror with a leg, why that one, in a few words.
    options: words to repeat in the next command: what the user said of legs. controllers: of each disk controller
    that p2v knows, whether this guest can drive it, and the evidence.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    volumes: tuple[VolumeFacts, ...]
    facts: GuestFacts | None
    findings: tuple[Finding, ...]
    sets: tuple[VolumeFacts, ...]
    legs: Mapping[str, str]
    pieces: Mapping[str, tuple[Piece, ...]]
    compared: tuple[str, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    controllers: tuple[Controller, ...] = ()


def inspect(
    paths: Sequence[str | Path], *, format: str | None = None, legs: Mapping[str, str] | None = None,
    outside: bool = False, compare: bool = False, progress: Progress = no_progress, cancel: Cancel | None = None,
) -> Inspection:
    """What is on these disks. An unknown guest, or a mirror whose leg cannot be chosen, is a finding.

    legs, outside: see planning.plan. compare: read all legs of mirrors, and tell where they differ.
    Raises ReadError, LayoutError, PlanError for what was named wrongly, Cancelled.
    """
    with opened(paths, format, outside) as given:
        layout = find_volumes(given)
        options = tuple(word for mirror, disk in (legs or {}).items()
                        for word in ("--leg", f"{mirror}={disk}" if mirror else disk))
        if not compare or not any(len(mirror.legs) > 1 for mirror in layout.mirrors):
            return replace(_inspected(given, layout, legs), options=options)
        from p2v.pairing import compare_mirrors

        compared = compare_mirrors(layout.mirrors, decisions(given, legs), progress=progress, cancel=cancel)
        found = _inspected(given, layout, legs, in_step=all(one.in_step for one in compared))
        return replace(found, compared=tuple(f"{one.volume}\n{one.drawing}" for one in compared), options=options,
                       findings=(*found.findings, *(said for one in compared for said in one.findings)))


def _inspected(
    given: Mapping[str, Source], layout: Layout, legs: Mapping[str, str] | None, *, in_step: bool = False
) -> Inspection:
    if not holds_sets(layout):
        disks = {f"disk{index}": given[name] for index, name in enumerate(in_bios_order(given))}
        return _told(disks, view(disks), Arranged(given, disks))
    from p2v.choosing import settle

    settled = settle(layout, by_id(given, legs or {}))
    taken = {name: decision.words for name, decision in settled.legs.items()}
    sets = (*(facts_of(volume) for volume in settled.layout.volumes if volume.origin is not None),
            *(_undecided(mirror) for mirror in settled.layout.mirrors))
    try:
        arranged = arrange(given, legs, in_step=in_step)
        return replace(_told(given, view(arranged.disks, (), given, arranged.collapsed), arranged, sets), taken=taken)
    except (PlanError, ReadError) as error:
        last = error.as_finding()
        if isinstance(error, ReadError) and not in_step and any(len(mirror.legs) > 1 for mirror in layout.mirrors):
            last = replace(last, next="p2v inspect --compare: where the legs of the mirror are in step, the other one "
                                      "gives what this one cannot")
        chosen = {name: decision.leg for name, decision in settled.legs.items()}
        said = _once((*layout.findings, *settled.findings, last))
        return Inspection(*_names(given), (), None, said, sets, chosen, {}, taken=taken)


def _told(
    disks: Mapping[str, Source], seen: View, arranged: Arranged, sets: tuple[VolumeFacts, ...] = (),
    said: Sequence[Finding] = (),
) -> Inspection:
    built = arranged.built
    return Inspection(
        *_names(disks),
        volumes=tuple(volume_facts(volume, seen) for volume in seen.layout.volumes),
        facts=seen.guest.facts if seen.guest else None,
        findings=_once((*said, *arranged.findings, *seen.findings, *second_opinion(seen))),
        sets=sets,
        legs=built.legs if built else {},
        pieces={id: disk.pieces for id, disk in built.disks.items()} if built else {},
        controllers=tuple(_controllers(seen)),
    )


def _controllers(seen: View) -> Iterator[Controller]:
    """What the guest can drive: read from its files, hives and setup texts."""
    from p2v.guest.controllers import available

    if seen.guest is not None:
        for manifest, evidence in available(seen.guest):
            yield Controller(manifest.name, manifest.title, evidence.verdict, evidence.signs, evidence.needs)


def _names(disks: Mapping[str, Source]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(source.name for source in disks.values()), tuple(source.size for source in disks.values())


def _once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(dict.fromkeys(findings))


def facts_of(volume: Volume) -> VolumeFacts:
    """What is told of a volume as the disks hold it."""
    filesystem = Filesystem("")
    with contextlib.suppress(P2VError):  # what cannot be read here is told where it matters
        filesystem = examine(volume.source)
    spared = sum(r.length for r in (*filesystem.free, *filesystem.droppable))
    return VolumeFacts(volume.name, volume.layout, volume.members, filesystem.kind, filesystem.version,
                       filesystem.state, volume.source.size - spared)


def _undecided(mirror: Mirror) -> VolumeFacts:
    """A mirror whose leg is not chosen: nothing of its content is told."""
    return VolumeFacts(mirror.name, "mirrored", tuple(leg.member for leg in mirror.legs), "", "",
                       FilesystemState.UNKNOWN, mirror.size)
