"""Edit images that exist: adapt, and undo. Overlay, prove, then only the changed bytes go into the image.

The bytes before and after are kept in a journal and fsynced before the first one is written, so that a
power cut in the middle is finished by the next run, never guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from p2v import changes as changing
from p2v import conversion, editing, folder, inplace, planning
from p2v.errors import Cancelled, PlanError, Unsupported, Where
from p2v.formats import FORMATS, QEMU_DRIVERS
from p2v.model import Cancel, Change, DiskPlan, Plan, Progress, State, no_progress
from p2v.rundir import RunDir, load_json, save_json
from p2v.source.nbd import allocated
from p2v.target import target_named
from p2v.target.byhand import not_taken

STREAM_HEAD = 64 << 10  # bytes of a VMDK in which its descriptor lies


def adapt(
    images: Sequence[str | Path],
    *,
    target: str = "kvm",
    drivers: Sequence[str | Path] = (),
    source_format: str | None = None,
    run_folder: str | Path | None = None,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> tuple[Plan, conversion.Result]:
    """Plan and make, in images that exist, the changes that their guest needs on a target.

    run_folder: where plan, journal and undo are kept; FIRST_IMAGE.p2v by default. Adapted again, the undo
    goes back to the beginning. on_plan: is shown the plan before anything is made.
    Returns the plan and what the run came to. Raises what plan() and convert() raise, and Unsupported for a
    format that cannot be edited in place.
    """
    if not images:
        raise PlanError("no image was named", why="adapt edits a VM's images",
                        next="name the VM's images, the boot disk first")
    run = RunDir.of_output(run_folder or f"{images[0]}.p2v")
    paths = [Path(image).resolve() for image in images]
    for path in paths:
        if not path.is_file():
            raise PlanError("there is no such image", Where(item=str(path)),
                            "adapt edits image files; a disk is never written",
                            "name an image, or convert the disk")
    if not run.state().get("writing"):
        made = _plan(paths, run, target, drivers, source_format, progress)
        if not made.changes and _is_kept(made, run):
            return _nothing_to_do(made, run, on_plan)
    with run.locked(), run.logged("adapt", progress) as told:
        interrupted = finish_interrupted(run, told)
        if interrupted:
            _finish(folder.load_plan(run.folder), run)
        made = _plan(paths, run, target, drivers, source_format, told, holding=True)
        folder.refuse_errors(made)
        if not made.changes:
            return _only_defined(made, run, on_plan)
        if on_plan is not None:
            on_plan(made)
        check_cancelled(cancel)
        whole = _since_the_beginning(made, run)
        rewrite(made, made.changes, made.target, run, told, keep=whole)
        files = _finish(whole, run)
        return made, conversion.Result(str(run.folder), files, len(made.changes), {},
                                       tuple(conversion.appliance_finding(run)))


def _is_kept(made: Plan, run: RunDir) -> bool:
    """Was this guest adapted to this very target before, and is the VM defined?"""
    state = run.state()
    return bool(state.get("finished")) and not state.get("undone") and run.plan.exists() \
        and folder.load_plan(run.folder).target == made.target


def _only_defined(
    made: Plan, run: RunDir, on_plan: Callable[[Plan], None] | None
) -> tuple[Plan, conversion.Result]:
    """The guest fits the target as it is: the plan is kept, and the VM defined. The caller holds the run."""
    if _is_kept(made, run):
        return _nothing_to_do(made, run, on_plan)
    if on_plan is not None:
        on_plan(made)
    whole = _since_the_beginning(made, run)
    folder.save_plan(whole, run)
    run.save_state(plan=folder.plan_digest(whole))
    return made, conversion.Result(str(run.folder), _finish(whole, run), 0, {}, ())


def _nothing_to_do(
    made: Plan, run: RunDir, on_plan: Callable[[Plan], None] | None
) -> tuple[Plan, conversion.Result]:
    """All is adapted; what stops the VM, and how it must be made, is worth saying all the same."""
    folder.refuse_errors(made)
    if on_plan is not None:
        on_plan(made)
    return made, conversion.Result(str(run.folder), (), 0, {}, (), done_before=True)


def _since_the_beginning(made: Plan, run: RunDir) -> Plan:
    """The plan with the changes of earlier adapts in it, so that one undo takes all of them back."""
    state = run.state()
    if not state.get("finished") or state.get("undone") or not run.plan.exists():  # p2v image leaves no plan
        return made
    changes = {change.place: change for change in folder.load_plan(run.folder).changes}
    for change in made.changes:
        earlier = changes.get(change.place)
        changes[change.place] = change if earlier is None else changing.joined(earlier, change)
    return replace(made, changes=tuple(changes.values()))


def _finish(plan: Plan, run: RunDir) -> tuple[str, ...]:
    """The images are written: define the VM. Returns what the user takes away."""
    folder.define(plan, run)
    run.save_state(finished=True, undone=None)
    return (*(disk.image for disk in plan.disks), *(str(run.folder / name) for name in folder.definitions(plan)))


def undo(output: str | Path, *, progress: Progress = no_progress, cancel: Cancel | None = None) -> conversion.Result:
    """Take a run's changes back in its images: guest files byte for byte, hives content for content.

    output: what convert made, or an adapted image's IMAGE.p2v. A Recovery stays: it cannot be undone.
    Raises DriftError before the first write when the guest has changed since.
    """
    run = RunDir.of_output(output)
    plan = folder.load_plan(output)
    with run.locked(), run.logged("undo", progress) as told:
        finish_interrupted(run, told)
        back = changing.inverses(plan.changes)
        with folder.images(plan, run) as disks:
            guest = planning.view(disks).known_guest
            done = all(changing.state_of(change, guest) is State.DONE for change in back)
        if not done:
            check_cancelled(cancel)
            rewrite(plan, back, None, run, told, keep=plan)
        run.save_state(undone=True)
        return conversion.Result(str(run.folder), tuple(str(run.folder / disk.image) for disk in plan.disks),
                                 len(back), {}, (), done_before=done)


def check_cancelled(cancel: Cancel | None) -> None:
    """Raises Cancelled when the caller has asked to stop."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("stopped", why="you asked for it; no image has been touched",
                        next="run the same command again")


def rewrite(
    plan: Plan, changes: Sequence[Change], target: str | None, run: RunDir, progress: Progress, *, keep: Plan
) -> None:
    """Make changes in a run's images: overlay, proof, journal, then the images.

    target: what the proof must boot on; None for an undo. keep: the plan that the run has afterwards. Raises
    what editing raises; until the journal is complete no image has been touched.
    """
    _refuse_uneditable(plan.disks)
    with contextlib.ExitStack() as stack:
        disks = stack.enter_context(folder.images(plan, run))
        seen = planning.view(disks, plan.drivers)
        touched = editing.touched_disks(changes, seen)
        overlays = {disk: run.overlay(disk) for disk in touched}
        run.save_state(overlays=None)
        editing.make_overlays(changes, seen, overlays, run, progress)
        edited = stack.enter_context(editing.overlaid(seen, overlays))
        editing.prove(changes, target, planning.view(edited, plan.drivers), progress)
        for disk in touched:
            inplace.write_journal(_journal(run, disk), disks[disk], edited[disk], allocated(str(overlays[disk])))
    folder.save_plan(keep, run)
    run.save_state(writing=touched, plan=folder.plan_digest(keep))
    finish_interrupted(run, progress)
    for path in overlays.values():
        path.unlink()


def finish_interrupted(run: RunDir, progress: Progress = no_progress) -> bool:
    """Write what complete journals say, and refresh the manifest. Returns whether there was anything.

    Raises DriftError when an image holds neither the bytes before nor those after.
    """
    writing: Sequence[str] = run.state().get("writing", ())
    if not writing:
        return False
    by_id = {disk.id: disk for disk in folder.load_plan(run.folder).disks}
    for index, disk in enumerate(writing):
        if disk not in by_id:
            raise PlanError("the run's state does not fit its plan", Where(item=str(run.run / "state.json")),
                            f"it names {disk!r}, which the plan does not have", "restore the folder from a backup")
        progress("write", index, len(writing))
        image = folder.image_path(by_id[disk].image, run)
        inplace.replay(_journal(run, disk), str(image), QEMU_DRIVERS[FORMATS[by_id[disk].format].SUFFIX])
        _refresh_manifest(run, disk, inplace.ranges(_journal(run, disk)))
    run.save_state(writing=None)
    progress("write", len(writing), len(writing))
    for disk in writing:
        _journal(run, disk).unlink()
    return True


def _journal(run: RunDir, disk: str) -> Path:
    return run.run / f"{disk}.journal"


def _refresh_manifest(run: RunDir, disk: str, ranges: Sequence[tuple[int, int]]) -> None:
    """The digests of the chunks that were written, where the run has a manifest."""
    if not run.manifest.exists():
        return
    document = load_json(run.manifest)
    report = folder.load_reports(run)[disk]
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
    progress: Progress,
    holding: bool = False,
) -> Plan:
    """A plan whose images are the sources."""
    made = planning.plan(paths, target=target, output=run.folder, drivers=drivers, source_format=source_format,
                         progress=progress, holding=holding)
    if made.sources:
        raise Unsupported("images of mirrors or dynamic disks are not edited where they lie",
                          Where(item=", ".join(str(path) for path in paths)),
                          "the VM needs plain disks, which have to be put together from these",
                          f"convert them: p2v convert {' '.join(str(path) for path in paths)} -o FOLDER")
    disks = tuple(replace(disk, image=disk.path, format=disk.source_format) for disk in made.disks)
    machine = replace(made.machine, name=paths[0].stem, disks=tuple(planning.machine_disks(disks, run.folder)))
    findings = (*made.findings, *not_taken(machine, target_named(target)))
    return replace(made, disks=disks, machine=machine, findings=findings)


def _refuse_uneditable(disks: Sequence[DiskPlan]) -> None:
    """Raises Unsupported for an image whose content cannot be rewritten where it lies."""
    from p2v.source.split import parts_of

    for disk in disks:
        form = FORMATS.get(disk.format)
        if form is None or not form.EDITABLE or len(parts_of(disk.image)) > 1 or _is_stream(disk):
            raise Unsupported(f"a {disk.format} image of this kind cannot be edited in place", Where(item=disk.image),
                              "its content cannot be rewritten where it lies",
                              "convert it: p2v convert IMAGE -o FOLDER")


def _is_stream(disk: DiskPlan) -> bool:
    """A VMDK made for streaming is called *.vmdk as any other."""
    if disk.format != "vmdk":
        return False
    with open(disk.image, "rb") as file:
        return b'createType="streamOptimized"' in file.read(STREAM_HEAD)

