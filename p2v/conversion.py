"""The whole run, told in the order it happens: edit on an overlay, prove, copy, define, check.

What can fail, fails before one byte of output exists. Run again, it goes on where it was: an overlay whose
digest is known is reused, never made again, because the same edits made twice give other bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import p2v
from p2v import editing, planfile, planning
from p2v.copy import CopyReport, plan_copy, run_copy, verify_copy
from p2v.errors import (
    DriftError,
    Finding,
    MismatchError,
    PlanError,
    Severity,
    Where,
    WriteError,
)
from p2v.formats import FORMATS
from p2v.model import (
    Cancel,
    DiskPlan,
    Extent,
    Plan,
    Progress,
    Range,
    Source,
    no_progress,
)
from p2v.rundir import RunDir, load_json, save_bytes, save_json
from p2v.target import target_named

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
) -> Result:
    """Run a plan: its output folder holds the images, the VM, the plan and the manifest afterwards.

    force: replace what another run left in the output folder.
    Raises PlanError when the plan has errors or the output is taken, DriftError when a source has moved,
    GuestError when the edits fail, WriteError when the output cannot be written, MismatchError when the
    output is not what was planned, Cancelled. Whatever fails, the sources are untouched and no image is
    left that looks finished.
    """
    refuse_errors(plan)
    _refuse_foreign_images(plan)
    run = RunDir.of_output(plan.output)
    with contextlib.ExitStack() as stack:
        if run.state().get("plan") == plan_digest(plan) and _is_done(run, plan):
            return _result(run, plan, load_reports(run), done_before=True)
        seen = check_sources(plan, stack.enter_context(_sources(plan)))
        preflight(plan, run)
        stack.enter_context(run.locked())
        claim(plan, run, force=force)
        for disk in plan.disks:  # a copy that was cut short begins anew, from the same overlay
            for leftover in (disk.image, disk.image + ".part"):
                (run.folder / leftover).unlink(missing_ok=True)
        edited = stack.enter_context(_edited(plan, seen, run, progress))
        reports = {disk.id: _copy(disk, seen, edited, run.folder, progress, cancel) for disk in plan.disks}
        _define(plan, run)
        save_json(run.manifest, manifest(plan, reports))
        verify_changes(plan, run, progress)
        run.save_state(finished=True, undone=None)
        return _result(run, plan, reports)


@contextlib.contextmanager
def _edited(
    plan: Plan, seen: planning.View, run: RunDir, progress: Progress
) -> Iterator[Mapping[str, Source]]:
    """The disks with the changes made, proven: from overlays that are kept until the run is finished."""
    touched = editing.touched_disks(plan.changes, seen)
    overlays = {disk: run.overlay(disk) for disk in touched}
    known = run.state().get("overlays")
    if touched and (known is None or known != editing.digests(overlays)):
        run.save_state(overlays=None)
        editing.make_overlays(plan.changes, seen, overlays, run, progress)
        run.save_state(overlays=editing.digests(overlays))
    with editing.overlaid(seen, overlays) as disks:
        editing.prove(plan.changes, plan.target, planning.view(disks, plan.drivers), progress)
        yield disks


def _result(run: RunDir, plan: Plan, reports: Mapping[str, CopyReport], done_before: bool = False) -> Result:
    return Result(str(run.folder), _files(run, plan), 0 if done_before else len(plan.changes), reports,
                  (*bad_findings(plan, reports), *appliance_finding(run)), done_before)


def resume(folder: str | Path, **keywords: object) -> Result:
    """Go on with the run in a folder, or find that all is done. Takes convert's keywords."""
    return convert(load_plan(folder), **keywords)  # type: ignore[arg-type]  # convert's own keywords


def load_plan(folder: str | Path) -> Plan:
    """The plan that a folder holds. Raises PlanError."""
    run = RunDir.of_output(folder)
    plan = planfile.from_json(load_json(run.plan), run.get)
    machine = replace(plan.machine, disks=tuple(planning.machine_disks(plan.disks, folder)))
    return replace(plan, output=str(folder), machine=machine)  # the folder may have been moved


def save_plan(plan: Plan, run: RunDir) -> None:
    """Keep the plan and every file content that it carries. Raises WriteError."""
    for content in planfile.contents(plan):
        run.put(content.data)
    save_json(run.plan, planfile.to_json(plan))


# ---------------------------------------------------------------------------------------------
# Before the first write


def refuse_errors(plan: Plan) -> None:
    """Raises PlanError when findings stop the plan."""
    errors = planning.errors_of(plan)
    if errors:
        raise PlanError(f"the plan cannot be run: {errors[0].what}", errors[0].where, errors[0].why,
                        errors[0].next or "mend this, then make a new plan")


@contextlib.contextmanager
def _sources(plan: Plan) -> Iterator[Mapping[str, Source]]:
    """The plan's sources, by the plan's own ids and order."""
    with contextlib.ExitStack() as stack:
        disks = {}
        for disk in plan.disks:
            disks[disk.id] = source = planning.open_source(disk.path)
            stack.callback(source.close)
        yield disks


def check_sources(plan: Plan, disks: Mapping[str, Source]) -> planning.View:
    """Raises DriftError when a source is not what the plan was made from."""
    seen = planning.view(disks, plan.drivers)
    for disk in plan.disks:
        now = planning.fingerprint(disk.id, seen)
        if now != disk.fingerprint:
            raise DriftError(
                f"{disk.path} is not what the plan was made from",
                Where(disk.path),
                "its size, tables, boot sectors or hives have changed since",
                "shut the server down for good, then make a new plan",
            )
    return seen


def preflight(plan: Plan, run: RunDir) -> None:
    """Raises WriteError when the output cannot fit: images, overlay and kept bytes."""
    folder = run.folder.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        raise PlanError("the output is not a folder", Where(item=str(existing)),
                        next="name a folder, or a place where one can be made")
    need = MARGIN + sum(volume.used for volume in plan.volumes)
    need += sum(content.size for content in planfile.contents(plan))
    there = sum(path.stat().st_blocks * 512 for path in run.folder.glob("*") if path.is_file())
    free = shutil.disk_usage(existing).free + there
    if free < need:
        raise WriteError(
            "not enough space for the images",
            Where(item=str(existing)),
            f"up to {need >> 20} MiB are needed and {free >> 20} MiB are free; nothing has been written",
            "free space, or choose another output folder",
        )


def claim(plan: Plan, run: RunDir, *, force: bool = False) -> None:
    """Make the run's folder this plan's, and keep the plan there.

    What belongs to the same plan stays and is used further. Raises PlanError when the folder holds another
    plan's images, or files that p2v did not make, and force is not given; force removes that plan's images.
    """
    digest = plan_digest(plan)
    if run.state().get("plan") != digest:
        ours = {"plan.json", "manifest.json", *run.state().get("images", ())}
        there = {path.name for path in run.folder.iterdir() if path != run.run}
        if (there - {"plan.json"} and not force) or run.state().get("writing"):
            raise PlanError(
                "the output folder is in use",
                Where(item=f"{run.folder}: {', '.join(sorted(there)[:5])}"),
                "it holds the images of another plan, or files that p2v did not make",
                "choose another output, or say --force to replace them",
            )
        for name in ours & there:
            (run.folder / name).unlink()
        recovered = run.state().get("recovered")  # a journal that was replayed for this plan is kept
        for overlay in run.run.glob("*.overlay.qcow2") if not recovered else ():
            overlay.unlink()
        (run.run / "state.json").unlink(missing_ok=True)
        run.save_state(plan=digest, images=[*_definitions(plan), *(disk.image for disk in plan.disks)],
                       recovered=recovered)
    save_plan(plan, run)


def plan_digest(plan: Plan) -> str:
    """What tells one plan from another, wherever its folder is moved to. SHA-256."""
    document = planfile.to_json(plan)
    document["output"] = document["machine"] = ""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _refuse_foreign_images(plan: Plan) -> None:
    """Images are made in the output folder and nowhere else, whatever plan.json says."""
    for disk in plan.disks:
        if disk.image != Path(disk.image).name or not disk.image:
            raise PlanError("this plan's image does not lie in its output folder", Where(item=disk.image),
                            "it is the plan of an image that was adapted in place, or it was tampered with",
                            "use p2v adapt for the image, or make a plan for another output folder")


def _is_done(run: RunDir, plan: Plan) -> bool:
    state = run.state()
    images = all((run.folder / disk.image).exists() for disk in plan.disks)
    return images and bool(state.get("finished")) and not state.get("undone")


# ---------------------------------------------------------------------------------------------
# Copy, define, check


def _copy(
    disk: DiskPlan,
    seen: planning.View,
    edited: Mapping[str, Source],
    folder: Path,
    progress: Progress,
    cancel: Cancel | None,
) -> CopyReport:
    """One disk's overlaid source, streamed once into its image."""
    source = edited[disk.id]
    extents = copy_extents(disk.id, seen, edited)

    def told(_stage: str, done: int, total: int) -> None:
        progress(f"copy {disk.id}", done, total)

    writer = FORMATS[disk.format].create(str(folder / disk.image), disk.size)
    try:
        report = run_copy(source, extents, writer, progress=told, cancel=cancel)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    return report


def copy_extents(disk: str, seen: planning.View, edited: Mapping[str, Source]) -> list[Extent]:
    """What to copy of a disk. Free is what is free before and after the edits."""
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


def intersection(one: Sequence[Range], two: Sequence[Range]) -> list[Range]:
    """What lies in both. Each is ascending."""
    result = []
    i = j = 0
    while i < len(one) and j < len(two):
        start, end = max(one[i].offset, two[j].offset), min(one[i].end, two[j].end)
        if start < end:
            result.append(Range(start, end - start))
        if one[i].end <= two[j].end:
            i += 1
        else:
            j += 1
    return result


def _definitions(plan: Plan) -> Mapping[str, str]:
    return target_named(plan.target).configure(plan.machine)


def _define(plan: Plan, run: RunDir) -> None:
    for name, text in _definitions(plan).items():
        save_bytes(run.folder / name, text.encode())


def manifest(plan: Plan, reports: Mapping[str, CopyReport]) -> dict[str, object]:
    """What was copied: digests, counts, times."""
    return {
        "format_version": 1,
        "p2v": p2v.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "disks": [
            {"id": disk.id, "image": disk.image, "format": disk.format, "size": disk.size,
             "source": disk.path, "copy": reports[disk.id].to_json()}
            for disk in plan.disks
        ],
    }


def _files(run: RunDir, plan: Plan) -> tuple[str, ...]:
    return (*(str(run.folder / disk.image) for disk in plan.disks),
            *(str(run.folder / name) for name in _definitions(plan)))


def appliance_finding(run: RunDir) -> Iterator[Finding]:
    """How the guest was edited: without KVM that takes some ten seconds longer."""
    backend = run.state().get("appliance")
    if backend:
        how = "on KVM" if backend == "kvm" else "without KVM (TCG): slower to start, the same result"
        yield Finding(f"the guest was edited in the libguestfs appliance, {how}")


def load_reports(run: RunDir) -> dict[str, CopyReport]:
    """The copy reports of a manifest, by disk. Raises PlanError."""
    document = load_json(run.manifest)
    try:
        return {disk["id"]: CopyReport.from_json(disk["copy"]) for disk in document["disks"]}
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError("the manifest does not hold together", Where(item=str(run.manifest)), repr(error),
                        "convert again with --force") from error


def bad_findings(plan: Plan, reports: Mapping[str, CopyReport]) -> tuple[Finding, ...]:
    """What could not be read of the sources and is zeroes in the images."""
    return tuple(
        Finding(
            f"{sum(bad.length for bad in report.bad)} bytes in {len(report.bad)} range(s) are unreadable",
            Where(disk.path, report.bad[0].offset, report.bad[0].length),
            "they are zeroes in the image: files or free space there have lost that content",
            planning.RESCUE_FIRST,
            Severity.WARNING,
        )
        for disk in plan.disks
        if (report := reports[disk.id]).bad
    )


def verify_changes(plan: Plan, run: RunDir, progress: Progress = no_progress) -> None:
    """Is every planned change in the output? Read through the reading door. Raises MismatchError."""
    progress("check", 0, len(plan.changes))
    with images(plan, run) as disks:
        editing.prove(plan.changes, plan.target, planning.view(disks, plan.drivers))
    progress("check", len(plan.changes), len(plan.changes))


def verify(folder: str | Path, *, progress: Progress = no_progress, cancel: Cancel | None = None) -> Result:
    """Check a folder's images: are the changes there, and is the content what was copied.

    Raises MismatchError; a VM that has run since fails on content, and may pass on the changes.
    """
    run = RunDir.of_output(folder)
    plan = load_plan(folder)
    if run.state().get("undone"):
        raise MismatchError("the changes of this run were undone", Where(item=str(run.folder)),
                            "p2v undo has put the guest back as it was on the server",
                            "convert or adapt it again, then verify")
    verify_changes(plan, run, progress)
    reports = load_reports(run)
    with images(plan, run) as disks:
        for disk in plan.disks:
            verify_copy(disks[disk.id], reports[disk.id], progress=progress, cancel=cancel)
    return _result(run, plan, reports)


@contextlib.contextmanager
def images(plan: Plan, run: RunDir) -> Iterator[dict[str, Source]]:
    """A run's images as sources, through each format's independent reader."""
    with contextlib.ExitStack() as stack:
        disks = {}
        for disk in plan.disks:
            path = run.folder / disk.image
            if not path.exists():
                raise PlanError(f"{disk.image} is not there", Where(item=str(path)),
                                "the conversion has not finished, or the image was moved",
                                f"run p2v convert {run.folder}")
            disks[disk.id] = source = FORMATS[disk.format].read(str(path))
            stack.callback(source.close)
        yield disks

