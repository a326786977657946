"""The whole run, told in the order it happens: edit on an overlay, prove, copy, define, check.

What can fail, fails before one byte of output exists. Run again, it goes on where it was: an overlay whose
digest is known is reused, never made again, because the same edits made twice give other bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from p2v import editing, folder, planfile, planning
from p2v.arranging import Arranged, arranged_again, moved
from p2v.checkpoint import tie
from p2v.copy import CopyReport, plan_copy, refuse_differing, run_copy, verify_copy
from p2v.errors import (
    DriftError,
    Finding,
    MismatchError,
    PlanError,
    Severity,
    Where,
    WriteError,
)
from p2v.extents import intersection
from p2v.formats import FORMATS
from p2v.keeping import CopyLog, Job, copy_image
from p2v.losses import files_lost
from p2v.model import (
    Cancel,
    DiskPlan,
    Extent,
    ImageWriter,
    Kind,
    Plan,
    Progress,
    Range,
    Source,
    no_progress,
)
from p2v.outlets import Nowhere
from p2v.pairing import Copying, LegOptions, Outcome, copy_both, short_names
from p2v.rundir import RunDir, save_json
from p2v.target import target_named
from p2v.target.byhand import to_make

Copied: TypeAlias = tuple[CopyReport, ImageWriter | None]
RESTORE = ("restore the files that are named from a backup; to try harder, copy that disk with GNU ddrescue first "
           "(ddrescue -d DISK rescued.img rescued.map), then convert with the copy in its place")
MARGIN = 64 << 20  # bytes of free space to leave: tables, the overlay, the log


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. files: what the user takes away. done_before: there was nothing left to do."""

    folder: str
    files: tuple[str, ...]
    changes: int
    reports: Mapping[str, CopyReport]
    findings: tuple[Finding, ...]
    done_before: bool = False


def convert(
    plan: Plan,
    *,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
    force: bool = False,
    legs: LegOptions | None = None,
) -> Result:
    """Run a plan: its output folder holds the images, the VM, the plan and the manifest afterwards.

    force: replace what another run left in the output folder. legs: what the user says of mirrors' legs; by
    default the other leg is read along and compared.
    Raises PlanError when the plan has errors or the output is taken, DriftError when a source has moved,
    GuestError when the edits fail, WriteError when the output cannot be written, MismatchError when the
    output is not what was planned, Cancelled. Whatever fails, the sources are untouched and no image is
    left that looks finished.
    """
    folder.refuse_errors(plan)
    folder.refuse_foreign_images(plan)
    run = RunDir.of_output(plan.output)
    if folder.is_done(plan, run) and not force:
        return _result(run, plan, folder.load_reports(run), done_before=True)
    with contextlib.ExitStack() as stack:
        legs = legs or LegOptions()
        arranged = stack.enter_context(_sources(plan, shared=legs.trust_equal))
        seen = check_sources(plan, arranged)
        folder.refuse_own_sources(plan, run)
        preflight(plan, seen, run)
        stack.enter_context(run.locked())
        folder.claim(plan, run, force=force)
        progress = stack.enter_context(run.logged("convert", progress))
        edited = stack.enter_context(_edited(plan, seen, run, progress))
        outcomes = _copy_all(plan, arranged, seen, edited, run, legs, progress, cancel)
        reports = {disk: outcome.report for disk, outcome in outcomes.items()}
        try:
            verify_changes(plan, run, progress)
        except BaseException as error:
            folder.unfinish(plan, run)
            if isinstance(error, MismatchError):  # then the copy is not to be gone on with
                folder.forget_copies(run)
            raise
        folder.define(plan, run)
        save_json(run.manifest, folder.manifest(plan, reports, {id: one.filled for id, one in outcomes.items()}))
        run.save_state(finished=True, undone=None)
        folder.forget_copies(run)
        said = [finding for outcome in outcomes.values() for finding in outcome.findings]
        said += [*files_of_bad(plan, run, reports), *to_make(plan.machine, target_named(plan.target))]
        return _result(run, plan, reports, said=said)


@contextlib.contextmanager
def _edited(
    plan: Plan, seen: planning.View, run: RunDir, progress: Progress
) -> Iterator[Mapping[str, Source]]:
    """The disks with the changes made, proven: from overlays that are kept until the run is finished."""
    touched = editing.touched_disks(plan.changes, seen)
    overlays = {disk: run.overlay(disk) for disk in touched}
    known = run.state().get("overlays")
    if touched and (known is None or known != editing.digests(overlays, seen)):
        run.save_state(overlays=None)
        editing.make_overlays(plan.changes, seen, overlays, run, progress)
        run.save_state(overlays=editing.digests(overlays, seen))
    with editing.overlaid(seen, overlays) as disks:
        editing.prove(plan.changes, plan.target, planning.view(disks, plan.drivers), progress)
        yield disks


def _result(run: RunDir, plan: Plan, reports: Mapping[str, CopyReport], done_before: bool = False,
            said: Sequence[Finding] = ()) -> Result:
    return Result(str(run.folder), _files(run, plan), 0 if done_before else len(plan.changes), reports,
                  (*bad_findings(plan, reports), *said, *appliance_finding(run)), done_before)


# ---------------------------------------------------------------------------------------------
# Before the first write


@contextlib.contextmanager
def _sources(plan: Plan, *, shared: bool = False) -> Iterator[Arranged]:
    """The disks of the plan, by its own ids and order, as they are or put together from its sources.

    shared: see arranging.arrange.
    """
    with contextlib.ExitStack() as stack:
        given = {}
        for disk in plan.sources or plan.disks:
            given[disk.id] = source = planning.open_source(disk.path, disk.source_format, outside=plan.outside)
            stack.callback(source.close)
        yield arranged_again(plan, given, shared=shared)


def check_sources(plan: Plan, arranged: Arranged) -> planning.View:
    """Raises DriftError when a source is not what the plan was made from."""
    seen = planning.view(arranged.disks, plan.drivers, arranged.sources, arranged.collapsed)
    for disk in plan.disks:
        if planning.fingerprint(disk.id, seen) != disk.fingerprint:
            raise moved(disk.path)
    return seen


def preflight(plan: Plan, seen: planning.View, run: RunDir) -> None:
    """Raises WriteError when the output cannot fit: images, overlay and kept bytes."""
    place = run.folder.absolute()
    existing = next(one for one in (place, *place.parents) if one.exists())
    if not existing.is_dir():
        raise PlanError("the output is not a folder", Where(item=str(existing)), "the images are put into one",
                        "name a folder, or a place where one can be made")
    need = MARGIN + sum(content.size for content in planfile.contents(plan))
    for disk in plan.disks:
        extents = plan_copy(seen.disks[disk.id], free=() if plan.copy_all else spared(disk.id, seen))
        need += sum(extent.length for extent in extents if extent.kind is Kind.DATA)
    there = sum(path.stat().st_blocks * 512 for path in place.glob("disk*") if path.is_file())
    free = shutil.disk_usage(existing).free + there
    if free < need:
        raise WriteError(
            "not enough space for the images",
            Where(item=str(existing)),
            f"up to {need >> 20} MiB are needed and {free >> 20} MiB are free; nothing has been written",
            "free space, or choose another output folder",
        )


# ---------------------------------------------------------------------------------------------
# Copy, define, check


def _copy_all(
    plan: Plan,
    arranged: Arranged,
    seen: planning.View,
    edited: Mapping[str, Source],
    run: RunDir,
    legs: LegOptions,
    progress: Progress,
    cancel: Cancel | None,
) -> dict[str, Outcome]:
    """Each overlaid source, streamed once; of mirrors, the other leg is read along.

    The images get their names when the last one is complete.

    A copy that was cut short goes on from its last checkpoint, which is tied to the plan, the overlay and the
    extents: of anything else it is worth nothing.
    """
    jobs = {disk.id: _job(disk, plan, seen, edited, run) for disk in plan.disks}
    folder.remove_images(plan, run, [job.path for _, job in jobs.values() if job.log.exists])
    names = short_names(arranged.sources)
    outcomes: dict[str, Outcome] = {}
    with contextlib.ExitStack() as undo:
        writers = []
        for disk, (extents, job) in jobs.items():

            def copy(source: Source, disk: str = disk, extents: list[Extent] = extents, job: Job = job) -> Copied:
                def told(_stage: str, done: int, total: int) -> None:
                    progress(f"copy {disk}", done, total)

                copied = copy_image(source, extents, job, progress=told, cancel=cancel)
                if copied[1] is not None:
                    undo.callback(job.give_up, copied[1])
                return copied

            plain = arranged.built.disks[disk] if arranged.built else None
            copying = Copying(disk, plain, edited[disk], extents, job.form, names, job.keeper())
            outcomes[disk] = copy_both(copying, copy, legs, progress, cancel)
            if (writer := outcomes[disk].writer) is not None:
                writers.append(writer)
        undo.callback(folder.unfinish, plan, run)
        for writer in writers:
            writer.finish()
        undo.pop_all()
    return outcomes


def _job(
    disk: DiskPlan, plan: Plan, seen: planning.View, edited: Mapping[str, Source], run: RunDir
) -> tuple[list[Extent], Job]:
    extents, state = copy_extents(disk.id, seen, edited, plan.copy_all), run.state()
    overlay = json.dumps((state.get("overlays") or {}).get(disk.id))
    return extents, Job(FORMATS[disk.format], run.folder / disk.image, CopyLog(run.run, disk.id),
                        tie(extents, str(state.get("plan")), overlay, disk.format))


def copy_extents(
    disk: str, seen: planning.View, edited: Mapping[str, Source], copy_all: bool = False
) -> list[Extent]:
    """What to copy of a disk. Free is what is free before and after the edits; nothing is with copy_all."""
    if copy_all:
        return plan_copy(edited[disk])
    before = spared(disk, seen)
    if edited[disk] is seen.disks[disk]:
        return plan_copy(edited[disk], free=before)
    after = spared(disk, planning.view(edited))
    return plan_copy(edited[disk], free=intersection(before, after))


def spared(disk: str, seen: planning.View) -> list[Range]:
    """The ranges of a disk that need no copy: free or droppable in a volume's own bitmap, ascending."""
    ranges = []
    for volume in seen.layout.volumes:
        if len(volume.members) == 1 and volume.members[0].disk == disk:
            start = volume.members[0].offset
            filesystem = seen.filesystems[volume.name]
            ranges += [Range(start + r.offset, r.length) for r in (*filesystem.free, *filesystem.droppable)]
    return sorted(ranges, key=lambda r: r.offset)


def _files(run: RunDir, plan: Plan) -> tuple[str, ...]:
    return (*(str(run.folder / disk.image) for disk in plan.disks),
            *(str(run.folder / name) for name in folder.definitions(plan)))


def appliance_finding(run: RunDir) -> Iterator[Finding]:
    """How the guest was edited: without KVM that takes some ten seconds longer."""
    backend = run.state().get("appliance")
    if backend:
        how = "on KVM" if backend == "kvm" else "without KVM (TCG): slower to start, the same result"
        yield Finding(f"the guest was edited in the libguestfs appliance, {how}", Where(item=str(run.run / "log")),
                      next="nothing")


def files_of_bad(plan: Plan, run: RunDir, reports: Mapping[str, CopyReport]) -> list[Finding]:
    """Whose the bytes are that could not be read, by the images."""
    return [finding for disk in plan.disks if reports[disk.id].bad for finding in files_lost(
        FORMATS[disk.format], run.folder / disk.image, [Range(e.offset, e.length) for e in reports[disk.id].bad],
        disk.id)]


def bad_findings(plan: Plan, reports: Mapping[str, CopyReport]) -> tuple[Finding, ...]:
    """What could not be read of the sources and is zeroes in the images."""
    return tuple(
        Finding(
            f"{sum(bad.length for bad in report.bad)} bytes in {len(report.bad)} range(s) are unreadable",
            _origin(plan, disk, report.bad[0]),
            "they are zeroes in the image: files or free space there have lost that content",
            RESTORE if disk.pieces else planning.RESCUE_FIRST,
            Severity.WARNING,
        )
        for disk in plan.disks
        if (report := reports[disk.id]).bad
    )


def _origin(plan: Plan, disk: DiskPlan, bad: Extent) -> Where:
    """Where bytes of an image lie on the server's disks: what is put together has them at other places."""
    paths = {source.id: source.path for source in plan.sources}
    for piece in disk.pieces:
        if piece.source and piece.offset <= bad.offset < piece.end:
            return Where(paths.get(piece.source, piece.source), piece.at + bad.offset - piece.offset, bad.length)
    return Where(disk.path, bad.offset, bad.length)


def verify_changes(plan: Plan, run: RunDir, progress: Progress = no_progress) -> None:
    """Is every planned change in the output? Read through the reading door. Raises MismatchError."""
    progress("check", 0, len(plan.changes))
    with folder.images(plan, run) as disks:
        editing.prove(plan.changes, plan.target, planning.view(disks, plan.drivers))
    progress("check", len(plan.changes), len(plan.changes))


def verify(
    output: str | Path,
    *,
    source: bool = False,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
) -> Result:
    """Check a run's images: are the changes there, and is the content what was copied.

    source: then read the sources again, with the run's edits in front of them, and compare those too; what
    was free is left out, and what cannot be read there is not compared.
    output: what convert made, or an adapted image's IMAGE.p2v; that has no manifest, so the content is not
    checked, and the result says so. Raises MismatchError; a VM that has run since fails on content, and may
    pass on the changes. What p2v image made has content only.
    """
    run = RunDir.of_output(output)
    if not run.plan.exists() and "image" in run.state():
        from p2v import imaging

        return imaging.verify(output, source=source, progress=progress, cancel=cancel)
    plan = folder.load_plan(output)
    if run.state().get("undone"):
        raise MismatchError("the changes of this run were undone", Where(item=str(run.folder)),
                            "p2v undo has put the guest back as it was on the server",
                            "p2v convert FOLDER --force makes the images anew, p2v adapt IMAGE edits them again")
    verify_changes(plan, run, progress)
    if not run.manifest.exists() and folder.is_in_place(plan):
        said = Finding("the changes are there; the content was not checked", Where(item=str(run.folder)),
                       "an image that was adapted has no manifest of a copy to compare with",
                       "nothing, if the image was sound before")
        return Result(str(run.folder), _files(run, plan), len(plan.changes), {}, (said,))
    reports = folder.load_reports(run)
    with folder.images(plan, run) as disks:
        for disk in plan.disks:
            verify_copy(disks[disk.id], reports[disk.id], progress=progress, cancel=cancel)
    if source:
        _compare_with_sources(plan, run, reports, progress, cancel)
    return _result(run, plan, reports)


def _compare_with_sources(
    plan: Plan, run: RunDir, reports: Mapping[str, CopyReport], progress: Progress, cancel: Cancel | None
) -> None:
    """Raises MismatchError naming the first chunk of a source that is not what was copied."""
    with contextlib.ExitStack() as stack:
        seen = check_sources(plan, stack.enter_context(_sources(plan)))
        overlays = {disk: run.overlay(disk) for disk in editing.touched_disks(plan.changes, seen)}
        if run.state().get("overlays", {}) != (editing.digests(overlays, seen) or {}):
            raise DriftError("the run's overlay is not what the images were made from", Where(item=str(run.run)),
                             "without it the sources cannot be compared with the images",
                             "verify without --source; the digests still tell whether an image has changed")
        edited = stack.enter_context(editing.overlaid(seen, overlays))
        for disk in plan.disks:
            extents = copy_extents(disk.id, seen, edited, plan.copy_all)
            again = run_copy(edited[disk.id], extents, Nowhere(), progress=progress, cancel=cancel)
            refuse_differing(again, reports[disk.id], disk.path)
