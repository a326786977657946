"""A run's folder and the plan that it belongs to: one plan at a time, and nothing of another is taken for its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import p2v
from p2v import planfile, planning
from p2v.copy import CopyReport
from p2v.errors import LayoutError, PlanError, Where
from p2v.filling import Filled
from p2v.formats import FORMATS
from p2v.keeping import image_files
from p2v.model import Plan, Recovery, Source
from p2v.rundir import RunDir, load_json, save_bytes, save_json
from p2v.target import target_named


def load_plan(output: str | Path) -> Plan:
    """The plan that a folder holds. Raises PlanError."""
    if Path(output).is_file():
        raise PlanError("this is a file, not the folder of a run", Where(item=str(output)),
                        "a plan lies in the folder that p2v plan, convert or adapt has made",
                        f"name that folder; an image that was adapted has its run in {output}.p2v")
    run = RunDir.of_output(output)
    plan = planfile.from_json(load_json(run.plan), run.get)
    machine = replace(plan.machine, disks=tuple(planning.machine_disks(plan.disks, output)))
    return replace(plan, output=str(output), machine=machine)  # the folder may have been moved


def save_plan(plan: Plan, run: RunDir) -> None:
    """Keep the plan and every file content that it carries. Raises WriteError."""
    for content in planfile.contents(plan):
        run.put(content.data)
    save_json(run.plan, planfile.to_json(plan))


def plan_digest(plan: Plan) -> str:
    """What tells one plan from another, wherever its folder is moved to. SHA-256."""
    document = planfile.to_json(plan)
    document["output"] = document["machine"] = ""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def claim(plan: Plan, run: RunDir, *, force: bool = False) -> None:
    """Make the run's folder this plan's, and keep the plan there. The caller holds the run.

    What belongs to the same plan stays and is used further. Raises PlanError when the folder holds another
    plan's images, files that p2v did not make, or images whose changes were undone, and force is not given.
    """
    state, digest = run.state(), plan_digest(plan)
    there = {path.name for path in run.folder.iterdir() if path != run.run}
    taken = there - {"plan.json"} if "plan" in state else there
    same = state.get("plan") == digest and not state.get("undone")
    if state.get("writing") or (taken and not same and not force):
        raise PlanError(
            "the output folder is in use",
            Where(item=f"{run.folder}: {', '.join(sorted(there)[:5])}"),
            "it holds the images of another plan, images that were undone, or files that p2v did not make",
            "choose another output folder, or say --force to replace what p2v made there",
        )
    if not same:
        journals = _replayed_for(plan, state)
        if not journals:
            for overlay in run.run.glob("*.overlay.qcow2"):
                overlay.unlink()
        images = [*definitions(plan), *(disk.image for disk in plan.disks)]
        old = [*state.get("images", ()), *state.get("old", ())]
        forget_copies(run)
        (run.run / "state.json").unlink(missing_ok=True)
        run.save_state(plan=digest, images=images, old=old or None, recovered=journals)
    save_plan(plan, run)


def _replayed_for(plan: Plan, state: Mapping[str, object]) -> object:
    """What the state says of replayed journals, where this plan was made from it."""
    recovered = state.get("recovered")
    if not isinstance(recovered, dict) or not any(isinstance(c, Recovery) and not c.hive for c in plan.changes):
        return None
    sources = {disk.id: disk.fingerprint for disk in plan.disks}
    return recovered if recovered.get("sources", {}).items() <= sources.items() else None


def remove_images(plan: Plan, run: RunDir, kept: Collection[Path] = ()) -> None:
    """Make room for the copy: what an earlier try of this plan, or a plan that --force replaces, has left.

    kept: images whose copy goes on.
    """
    old = {Path(str(name)).name for name in run.state().get("old", ())}
    names = {"manifest.json", *definitions(plan), *(disk.image for disk in plan.disks), *old} - {""}
    going_on = {path for image in kept for path in image_files(run.folder, image.name)}
    for name in names:
        for path in {run.folder / name, *image_files(run.folder, name)} - going_on:
            path.unlink(missing_ok=True)
    run.save_state(old=None, finished=None)


def forget_copies(run: RunDir) -> None:
    """Drop the checkpoints of copies."""
    for path in (*run.run.glob("*.copy"), *run.run.glob("*.digests")):
        path.unlink()


def unfinish(plan: Plan, run: RunDir) -> None:
    """Images that are complete and yet not to be trusted, or not all there: none may look finished."""
    for disk in plan.disks:
        with contextlib.suppress(FileNotFoundError):
            (run.folder / disk.image).rename(run.folder / f"{disk.image}.part")


def is_done(plan: Plan, run: RunDir) -> bool:
    """Has this very plan been run to its end?"""
    state = run.state()
    images = all((run.folder / disk.image).exists() for disk in plan.disks)
    finished = bool(state.get("finished")) and not state.get("undone")
    return images and finished and state.get("plan") == plan_digest(plan)


def is_in_place(plan: Plan) -> bool:
    """Is it the plan of images that are edited where they lie?"""
    return all(Path(disk.image).is_absolute() for disk in plan.disks)


def refuse_errors(plan: Plan) -> None:
    """Raises PlanError when findings stop the plan."""
    errors = planning.errors_of(plan)
    if errors:
        raise PlanError(f"the plan cannot be run: {errors[0].what}", errors[0].where, errors[0].why,
                        errors[0].next or "mend this, then make a new plan")


def refuse_foreign_images(plan: Plan) -> None:
    """Images are made in the output folder and nowhere else, whatever plan.json says. Raises PlanError."""
    for disk in plan.disks:
        if disk.image != Path(disk.image).name or not disk.image:
            raise PlanError("this plan's image does not lie in its output folder", Where(item=disk.image),
                            "it is the plan of an image that was adapted in place, or it was tampered with",
                            "use p2v adapt for the image, or make a plan for another output folder")


def refuse_own_sources(plan: Plan, run: RunDir) -> None:
    """No source may lie in the output folder, where images are replaced. Raises PlanError."""
    for disk in plan.sources or plan.disks:
        if Path(disk.path).resolve().parent == run.folder.resolve():
            raise PlanError("a source lies in the output folder", Where(item=disk.path),
                            "files there are replaced by the images; the source must never be",
                            "choose another output folder, or p2v adapt to edit an image where it lies")


def definitions(plan: Plan) -> Mapping[str, str]:
    """The VM's files, by name."""
    return target_named(plan.target).configure(plan.machine)


def define(plan: Plan, run: RunDir) -> None:
    """Write the VM's files. Raises WriteError."""
    for name, text in definitions(plan).items():
        save_bytes(run.folder / name, text.encode())


def manifest(
    plan: Plan, reports: Mapping[str, CopyReport], filled: Mapping[str, Sequence[Filled]]
) -> dict[str, object]:
    """What was copied: digests, counts, times. filled: what came from another leg of a mirror, by disk."""
    return {
        "format_version": 1,
        "p2v": p2v.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "disks": [
            {"id": disk.id, "image": disk.image, "format": disk.format, "size": disk.size,
             "source": disk.path, "copy": reports[disk.id].to_json(),
             **({"from_other_leg": [[one.range.offset, one.range.length, one.leg, one.reason]
                                    for one in filled[disk.id]]} if filled.get(disk.id) else {})}
            for disk in plan.disks
        ],
    }


def load_reports(run: RunDir) -> dict[str, CopyReport]:
    """The copy reports of a manifest, by disk. Raises PlanError."""
    document = load_json(run.manifest)
    try:
        return {disk["id"]: CopyReport.from_json(disk["copy"]) for disk in document["disks"]}
    except (KeyError, TypeError, ValueError, LayoutError) as error:
        raise PlanError("the manifest does not hold together", Where(item=str(run.manifest)), repr(error),
                        "convert again with --force") from error


@contextlib.contextmanager
def images(plan: Plan, run: RunDir) -> Iterator[dict[str, Source]]:
    """A run's images as sources, through each format's independent reader.

    They lie in the run's folder, or, adapted in place, beside it. Raises PlanError for one that does not.
    """
    with contextlib.ExitStack() as stack:
        disks = {}
        for disk in plan.disks:
            disks[disk.id] = source = FORMATS[disk.format].read(str(image_path(disk.image, run)))
            stack.callback(source.close)
        yield disks


def image_path(image: str, run: RunDir) -> Path:
    """Where an image of the run lies. Raises PlanError where it is gone, or where no run has its images."""
    path = run.folder / image
    if path.resolve().parent not in (run.folder.resolve(), run.folder.resolve().parent):
        raise PlanError("this run's image lies somewhere else", Where(item=str(path)),
                        "a run's images lie in its folder or beside it; plan.json may have been tampered with",
                        "move the run's folder beside the image")
    if not path.is_file():
        raise PlanError(f"{image} is not there", Where(item=str(path)),
                        "the conversion has not finished, or the image was moved",
                        f"run p2v convert {run.folder}")
    return path
