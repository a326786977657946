"""The other legs of mirrors: compared before a plan, or beside the copy; they fill what the chosen leg cannot give.

The image holds the chosen leg alone. Another leg is only ever asked for what the chosen one cannot read, and only
where a comparison of all else says that the two are in step, or the user has said so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from p2v.checkpoint import Keeper
from p2v.choosing import Decision
from p2v.coarse import Coarse
from p2v.collapse import PlainDisk
from p2v.comparing import Comparison, compare, cut, data_of
from p2v.copy import CopyReport
from p2v.errors import Finding, ReadError, Severity, Where
from p2v.extents import intersection, union, without
from p2v.filesystem import examine
from p2v.filesystem.hit import MOST, files_in
from p2v.filesystem.reader import LIBRARY_ERRORS
from p2v.filling import Filled, Filling, Pair, fill
from p2v.model import (
    Cancel,
    Extent,
    Filesystem,
    ImageFormat,
    ImageWriter,
    Kind,
    Mirror,
    Piece,
    Progress,
    Range,
    Source,
    no_progress,
)
from p2v.owners import classify, draw, protected_ranges, told
from p2v.source.window import Window
from p2v.twolegs import Beside
from p2v.volume import find_volumes


@dataclass(frozen=True, slots=True)
class LegOptions:
    """What the user says of legs.

    single: read the chosen one alone. trust_equal: they are equal; read both at once, without comparing.
    from_stale: fill holes even from a leg that is not in step.
    """

    single: bool = False
    trust_equal: bool = False
    from_stale: bool = False


COMPARED = LegOptions()


@dataclass(frozen=True, slots=True)
class Compared:
    """The legs of one volume compared. drawing: as text. findings: the verdict, and what is unreadable."""

    volume: str
    in_step: bool
    drawing: str
    findings: tuple[Finding, ...]


# ---------------------------------------------------------------------------------------------
# Before a plan, or for inspect


def compare_mirrors(
    mirrors: Sequence[Mirror], decisions: Mapping[str, Decision], *, progress: Progress = no_progress,
    cancel: Cancel | None = None,
) -> list[Compared]:
    """Each mirror's legs against each other, all of them read at once. decisions: by mirror, as far as made.

    Legs whose metadata or filesystem differ in age are not in step, whatever the bytes say that both could read:
    what tells them apart may lie where one of them cannot be read.
    Raises Cancelled, DeviceGone when a leg goes away.
    """
    return [one for mirror in mirrors if len(mirror.legs) > 1
            for one in _compared(mirror, decisions.get(mirror.name), progress, cancel)]


def _compared(mirror: Mirror, decision: Decision | None, progress: Progress, cancel: Cancel | None) -> list[Compared]:
    chosen = decision.leg if decision else mirror.legs[0].disk
    legs = sorted(mirror.legs, key=lambda leg: leg.disk != chosen)
    sources = [Window(leg.source, 0, mirror.size, f"{mirror.name} on {leg.disk}") for leg in legs]
    alike = decision is not None and not decision.differing

    def said(_stage: str, done: int, total: int) -> None:
        progress(f"compare {mirror.name}", done, total)

    found = compare(sources, size=mirror.size, progress=said, cancel=cancel)
    return [_judged(cut(found, span), Window(sources[0], span.offset, span.length, name), name, alike=alike)
            for name, span in _volumes(mirror.name, sources[0])]


def _volumes(name: str, leg: Source) -> list[tuple[str, Range]]:
    """What lies on a leg: itself, or where it stands for a whole disk the volumes on that."""
    inner = [volume for volume in find_volumes({name: leg}).volumes if len(volume.members) == 1]
    return [(volume.name, Range(volume.members[0].offset, volume.members[0].length)) for volume in inner] \
        or [(name, Range(0, leg.size))]


def _judged(found: Comparison, source: Source, name: str, *, alike: bool) -> Compared:
    owners = classify(found, source, _examined(source))
    owners = replace(owners, in_step=owners.in_step and alike)
    return Compared(name, owners.in_step, draw(found, owners), tuple(told(found, owners, name)))


def _examined(source: Source) -> Filesystem:
    try:
        return examine(source)
    except ReadError:
        return Filesystem("")


# ---------------------------------------------------------------------------------------------
# Beside a copy


@dataclass(frozen=True, slots=True)
class Copying:
    """One disk's copy as it goes: where its bytes come from, and where they go.

    plain: how the disk is put together, None where it is the server's own. source: edits included. names: of
    the disks handed in, by id. keeper: of the copy's checkpoints; a filled image gets one more.
    """

    disk: str
    plain: PlainDisk | None
    source: Source
    extents: Sequence[Extent]
    form: ImageFormat
    names: Mapping[str, str]
    keeper: Keeper | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """report: of the copy, with what was filled. writer: of the image, not finished; None where it was finished."""

    report: CopyReport
    writer: ImageWriter | None
    findings: tuple[Finding, ...] = ()
    filled: tuple[Filled, ...] = ()


def short_names(sources: Mapping[str, Source]) -> dict[str, str]:
    """The file names of the disks handed in, where they tell them apart; else their paths."""
    names = {id: Path(source.name).name for id, source in sources.items()}
    if len(set(names.values())) < len(names):
        return {id: source.name for id, source in sources.items()}
    return names


def copy_both(
    copying: Copying, copy: Callable[[Source], tuple[CopyReport, ImageWriter | None]], options: LegOptions,
    progress: Progress, cancel: Cancel | None,
) -> Outcome:
    """Copy the chosen legs, compare the others on the way, and fill what could not be read.

    copy: makes the copy of a source. Raises what copy raises, Cancelled, WriteError. Whatever the other leg does,
    the copy is the chosen leg's and is finished. Bad places are left at once at first: what another leg in step has
    is never searched for on a failing disk; all else is read as a rescue does it, afterwards.
    """
    plain = copying.plain
    if plain is None or plain.twin is None or options.single or plain.helped:
        report, writer = copy(copying.source)
        return Outcome(report, writer, tuple(helped(plain)) if plain else ())
    coarse = not copying.form.SEQUENTIAL
    wanted = intersection([Range(e.offset, e.length) for e in copying.extents if e.kind is Kind.DATA],
                          union(Range(piece.offset, piece.length) for piece in plain.mirrored))
    with Beside(plain.twin, data_of(wanted, plain.twin.size)) as beside:
        report, writer = copy(Coarse(copying.source) if coarse else copying.source)
        if writer is None:  # the image was complete before this run, and was compared then
            return Outcome(report, writer)
        findings: list[Finding] = []
        filled: list[Filled] = []
        for piece in plain.mirrored:
            names = (copying.names[piece.source], copying.names[piece.twins[0][0]])
            found = beside.compare(report, plain.raw, within=Range(piece.offset, piece.length), names=names,
                                   progress=progress, cancel=cancel)
            judged = [(name, span, classify(cut(found, span), volume, _examined(volume)))
                      for name, span, volume in _placed(copying.disk, plain.source, piece)]
            if piece.offset in plain.apart:
                judged = [(name, span, replace(owners, in_step=False)) for name, span, owners in judged]
            pair = Pair(copying.source, plain.twin, names, all(owners.in_step for _, _, owners in judged),
                        Range(piece.offset, piece.length), coarse, options.from_stale,
                        _protected(plain.source, piece, report) if options.from_stale else ())
            filling = fill(report, copying.extents, writer, copying.form, pair, keeper=copying.keeper,
                           progress=progress, cancel=cancel)
            report, filled = filling.report, [*filled, *filling.filled]
            found = _looked_at_closely(found, piece, filling)
            findings += [finding for name, span, owners in judged for finding in told(cut(found, span), owners, name)]
            findings += [*filling.findings, *_old_content(copying.disk, plain.source, piece, filling.filled)]
        if coarse:
            report = _alone(copying, plain, report, writer, progress, cancel)
        return Outcome(report, writer, (*findings, *beside.findings, *_taken(filled)), tuple(filled))


def _alone(
    copying: Copying, plain: PlainDisk, report: CopyReport, writer: ImageWriter, progress: Progress,
    cancel: Cancel | None,
) -> CopyReport:
    """What was left beside the mirrors, read to its last sector: no other leg has that."""
    mirrored = union(Range(piece.offset, piece.length) for piece in plain.mirrored)
    for span in without([Range(0, plain.source.size)], mirrored):
        pair = Pair(copying.source, copying.source, ("", ""), False, span, True)
        report = fill(report, copying.extents, writer, copying.form, pair, keeper=copying.keeper,
                      progress=progress, cancel=cancel).report
    return report


def _looked_at_closely(found: Comparison, piece: Piece, filling: Filling) -> Comparison:
    """What the copied leg cannot give, after all was tried: the copy itself leaves bad places in whole blocks."""
    bad = union([*(Range(e.offset, e.length) for e in filling.report.bad),
                 *(one.range for one in filling.filled if not one.again)])
    inside = intersection(bad, [Range(piece.offset, piece.length)])
    return replace(found, unreadable=(tuple(Range(r.offset - piece.offset, r.length) for r in inside),
                                      *found.unreadable[1:]))


def _old_content(disk: str, source: Source, piece: Piece, filled: Sequence[Filled]) -> Iterator[Finding]:
    """The files that hold bytes of a stale leg now."""
    stale = union(one.range for one in filled if one.stale)
    for name, span, volume in _placed(disk, source, piece) if stale else ():
        start = piece.offset + span.offset
        inside = [Range(r.offset - start, r.length) for r in intersection(stale, [Range(start, span.length)])]
        files = files_in(volume, _examined(volume), inside) if inside else ()  # what has no files is never filled so
        try:
            for path, parts in itertools.islice(files, MOST):
                if parts:
                    yield Finding(f"{name}:{path} holds {sum(r.length for r in parts)} bytes of the stale leg",
                                  Where(name, item=path), "the current leg cannot be read there; these bytes are as "
                                  "old as the other leg, the rest is not", "restore this file from a backup",
                                  Severity.WARNING)
        except LIBRARY_ERRORS as error:
            yield Finding(f"which files of {name} hold bytes of the stale leg cannot be told", Where(name),
                          f"its files cannot be walked: {str(error).split('. ')[0]}",
                          "look at all files that matter in the VM", Severity.WARNING)


def _placed(disk: str, source: Source, piece: Piece) -> list[tuple[str, Range, Source]]:
    """The volumes of a piece, in bytes from its start; the piece itself where there is none."""
    found = [(v.name, Range(v.members[0].offset - piece.offset, v.members[0].length))
             for v in find_volumes({disk: source}).volumes
             if len(v.members) == 1 and piece.offset <= v.members[0].offset
             and v.members[0].offset + v.members[0].length <= piece.end]
    return [(name, span, Window(source, piece.offset + span.offset, span.length, name))
            for name, span in found or [(disk, Range(0, piece.length))]]


def _protected(source: Source, piece: Piece, report: CopyReport) -> tuple[Range, ...]:
    """What of the lost ranges never comes from a stale leg, in bytes of the disk."""
    volume = Window(source, piece.offset, piece.length, source.name)
    lost = [Range(r.offset - piece.offset, r.length) for r in intersection(
        [Range(e.offset, e.length) for e in report.bad], [Range(piece.offset, piece.length)])]
    return tuple(Range(piece.offset + r.offset, r.length) for r in protected_ranges(volume, _examined(volume), lost))


def helped(plain: PlainDisk) -> list[Finding]:
    """What came from another leg than the chosen one while legs that were compared before were read."""
    return _taken([Filled(Range(offset + one.range.offset, one.range.length), legs[one.leg], one.reason)
                   for mirrored, legs, offset in plain.helped for one in mirrored.taken])


def _taken(filled: Sequence[Filled]) -> list[Finding]:
    """What is from another leg, and what of that is old."""
    found = []
    for stale in (False, True):
        theirs = [one for one in filled if not one.again and one.stale is stale]
        places = [f"{one.range.offset:#x} to {one.range.end:#x} from {one.leg} ({one.reason})" for one in theirs[:8]]
        places += [f"and {len(theirs) - 8} more"] if len(theirs) > 8 else []
        what = f"{sum(one.range.length for one in theirs)} bytes in {len(theirs)} range(s) come from another leg"
        if theirs:
            found.append(Finding(
                what + (", which is stale" if stale else ""),
                Where(theirs[0].leg, theirs[0].range.offset, theirs[0].range.length), "; ".join(places),
                "look at the files that are named" if stale else
                "nothing: each byte of the image was read from one of the legs",
                Severity.WARNING if stale else Severity.INFO))
    return found
