"""Edit images that exist: adapt, and undo. Overlay, prove, then only the changed bytes go into the image.

The bytes before and after are kept in a journal and fsynced before the first one is written, so that a
power cut in the middle is finished by the next run, never guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from p2v import changes as changing
from p2v import conversion, editing, inplace, planning
from p2v.errors import PlanError, Unsupported, Where
from p2v.formats import FORMATS
from p2v.model import Change, DiskPlan, Plan, Progress, State, no_progress
from p2v.rundir import RunDir, load_json, save_bytes, save_json
from p2v.source.nbd import allocated
from p2v.target import target_named


def adapt(
    images: Sequence[str | Path],
    *,
    target: str = "kvm",
    drivers: Sequence[str | Path] = (),
    source_format: str | None = None,
    run_folder: str | Path | None = None,
    progress: Progress = no_progress,
) -> tuple[Plan, conversion.Result]:
    """Plan and make, in images that exist, the changes that their guest needs on a target.

    run_folder: where plan, journal and undo are kept; FIRST_IMAGE.p2v by default.
    Returns the plan and what the run came to. Raises what plan() and convert() raise, and Unsupported for a
    format that cannot be edited in place.
    """
    if not images:
        raise PlanError("no image was named", next="name the VM's images, the boot disk first")
    run = RunDir.of_output(run_folder or f"{images[0]}.p2v")
    paths = [Path(image).resolve() for image in images]
    for path in paths:
        if not path.is_file():
            raise PlanError("there is no such image", Where(item=str(path)),
                            "adapt edits image files; a disk is never written",
                            "name an image, or convert the disk")
    if not run.state().get("writing"):
        made = _plan(paths, run, target, drivers, source_format)
        if not made.changes:
            return made, conversion.Result(str(run.folder), (), 0, {}, (), done_before=True)
    with run.locked():
        finish_interrupted(run, progress)
        made = _plan(paths, run, target, drivers, source_format)
        conversion.refuse_errors(made)
        if not made.changes:
            return made, conversion.Result(str(run.folder), (), 0, {}, (), done_before=True)
        conversion.save_plan(made, run)
        run.save_state(undone=None, plan=conversion.plan_digest(made))
        rewrite(made, made.changes, made.target, run, progress)
        definitions = target_named(target).configure(made.machine)
        for name, text in definitions.items():
            save_bytes(run.folder / name, text.encode())
        run.save_state(finished=True)
        files = (*(str(path) for path in paths), *(str(run.folder / name) for name in definitions))
        return made, conversion.Result(str(run.folder), files, len(made.changes), {},
                                       tuple(conversion.appliance_finding(run)))


def undo(folder: str | Path, *, progress: Progress = no_progress) -> conversion.Result:
    """Take a run's changes back in its images: guest files byte for byte, hives content for content.

    folder: the output of a convert, or an adapted image's IMAGE.p2v. A Recovery stays: it cannot be undone.
    Raises DriftError before the first write when the guest has changed since.
    """
    run = RunDir.of_output(folder)
    plan = conversion.load_plan(folder)
    with run.locked():
        finish_interrupted(run, progress)
        back = changing.inverses(plan.changes)
        with conversion.images(plan, run) as disks:
            guest = planning.view(disks).known_guest
            done = all(changing.state_of(change, guest) is State.DONE for change in back)
        if not done:
            rewrite(plan, back, None, run, progress)
        run.save_state(undone=True)
        return conversion.Result(str(run.folder), tuple(str(run.folder / disk.image) for disk in plan.disks),
                                 len(back), {}, (), done_before=done)


def rewrite(plan: Plan, changes: Sequence[Change], target: str | None, run: RunDir, progress: Progress) -> None:
    """Make changes in a run's images: overlay, proof, journal, then the images.

    target: what the proof must boot on; None for an undo. Raises what editing raises; until the journal is
    complete no image has been touched.
    """
    _refuse_uneditable(plan.disks)
    with contextlib.ExitStack() as stack:
        disks = stack.enter_context(conversion.images(plan, run))
        seen = planning.view(disks, plan.drivers)
        touched = editing.touched_disks(changes, seen)
        overlays = {disk: run.overlay(disk) for disk in touched}
        run.save_state(overlays=None)
        editing.make_overlays(changes, seen, overlays, run, progress)
        edited = stack.enter_context(editing.overlaid(seen, overlays))
        editing.prove(changes, target, planning.view(edited, plan.drivers), progress)
        for disk in touched:
            inplace.write_journal(run.run / f"{disk}.journal", disks[disk], edited[disk],
                                  allocated(str(overlays[disk])))
    by_id = {disk.id: disk for disk in plan.disks}
    run.save_state(writing={disk: [by_id[disk].image, by_id[disk].format] for disk in touched})
    finish_interrupted(run, progress)
    for path in overlays.values():
        path.unlink()


def finish_interrupted(run: RunDir, progress: Progress = no_progress) -> None:
    """Write what complete journals say, and refresh the manifest. Nothing to do in most runs.

    Raises DriftError when an image holds neither the bytes before nor those after.
    """
    writing: Mapping[str, Sequence[str]] = run.state().get("writing", {})
    for index, (disk, (image, format)) in enumerate(writing.items()):
        progress("write", index, len(writing))
        journal = run.run / f"{disk}.journal"
        inplace.replay(journal, str(run.folder / image), format)
        _refresh_manifest(run, disk, inplace.ranges(journal))
    if writing:
        run.save_state(writing=None)
        progress("write", len(writing), len(writing))
    for disk in writing:
        (run.run / f"{disk}.journal").unlink()


def _refresh_manifest(run: RunDir, disk: str, ranges: Sequence[tuple[int, int]]) -> None:
    """The digests of the chunks that were written, where the run has a manifest."""
    if not run.manifest.exists():
        return
    document = load_json(run.manifest)
    report = conversion.load_reports(run)[disk]
    entry = next(entry for entry in document["disks"] if entry["id"] == disk)
    source = FORMATS[entry["format"]].read(str(run.folder / entry["image"]))
    try:
        inplace.refresh(report, source, ranges)
    finally:
        source.close()
    entry["copy"] = report.to_json()
    save_json(run.manifest, document)


def _plan(
    paths: Sequence[Path],
    run: RunDir,
    target: str,
    drivers: Sequence[str | Path],
    source_format: str | None,
) -> Plan:
    """A plan whose images are the sources."""
    made = planning.plan(paths, target=target, output=run.folder, drivers=drivers, source_format=source_format)
    disks = tuple(replace(disk, image=disk.path, format=source_format or planning.format_by_name(disk.path))
                  for disk in made.disks)
    machine = target_named(target).machine(paths[0].stem, made.facts, planning.machine_disks(disks, run.folder))
    return replace(made, disks=disks, machine=machine)


def _refuse_uneditable(disks: Sequence[DiskPlan]) -> None:
    for disk in disks:
        if not FORMATS[disk.format].EDITABLE:
            raise Unsupported(f"a {disk.format} image cannot be edited in place", Where(item=disk.image),
                              "its content cannot be rewritten where it lies",
                              "convert it: p2v convert IMAGE -o FOLDER")
