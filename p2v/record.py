"""What `p2v image` keeps of a run: what to copy of each disk, where it comes from, and at the end the manifest.

    run/state.json      "inputs": the disks as they were opened; "fingerprints": what must not have moved
    run/extents.json    what to copy: made once, used again when the copy goes on

The manifest, OUTPUT.p2v/manifest.json, is a promise: these fields stay, others may come.

    format_version      1
    p2v                 the version that wrote it
    finished            when, ISO 8601 in UTC
    disks               one object for each image:
      id                "disk0", the first that was named (of a conversion: the boot disk)
      image             the image's file, seen from the manifest's folder; of a device its full name
      device            true where the image is a block device; else left out
      format            a name of p2v's formats
      size              bytes of the disk; an image may be longer, by zeroes
      source            what was copied
      copy              what the copy did:
        size            bytes of the disk
        chunk_size      bytes that each digest is of: 1048576; the last chunk may be shorter
        algorithm       "blake3", 32 bytes each
        counts          bytes of the disk by what became of them; their sum is size:
          copied        read and stored
          found_zero    read, and turned out zero
          zero          not read: the medium itself said zero (holes)
          free          not read: nobody needs it (a filesystem's free clusters, page files)
          bad           unreadable
        bad             [offset, length] of each unreadable range in bytes, ascending, merged
        seconds         of wall time, of all tries together
        digests         of the chunks as written (skipped and unreadable bytes are zeroes), in order: a number
                        stands for so many chunks of zeroes, a text for the digests of others in hex, end to end
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import p2v
from p2v import losses, planning
from p2v.arranging import Arranged, arrange
from p2v.conversion import spared
from p2v.copy import CopyReport, plan_copy
from p2v.diskcopy import Options
from p2v.errors import DriftError, Finding, P2VError, PlanError, Where
from p2v.extents import check
from p2v.keeping import Job
from p2v.model import Cancel, Extent, Kind, Progress, Source
from p2v.rundir import RunDir, load_json, save_json


@dataclass(frozen=True, slots=True)
class Work:
    """A run of `p2v image`: disks by id, where each goes, and how. wanted: what tells it from another run."""

    disks: Mapping[str, Source]
    jobs: Mapping[str, Job]
    run: RunDir
    wanted: Mapping[str, object]
    options: Options
    progress: Progress
    cancel: Cancel | None


def save_inputs(
    run: RunDir, sources: Sequence[str | Path], format: str | None, outside: bool, arranged: Arranged
) -> None:
    """How the disks were opened and arranged, for whoever reads them again."""
    if arranged.built is not None:
        run.save_state(collapsed={"legs": dict(arranged.built.legs), "in_step": arranged.in_step})
    run.save_state(inputs=[{"path": os.path.abspath(source), "format": format, "outside": outside}
                           for source in sources])


def refuse_other_legs(run: RunDir, arranged: Arranged) -> None:
    """Raises PlanError when an image would be brought up to date from other legs than it was made of."""
    made = run.state().get("collapsed")
    now = dict(arranged.built.legs) if arranged.built else None
    if (made or {}).get("legs") != now:
        raise PlanError("the image was made of other legs, or of disks as they are", Where(item=str(run.folder)),
                        f"then {(made or {}).get('legs') or 'none'}, now {now or 'none'}",
                        "name the legs and --layout of the first time, or copy anew with --force")


@contextlib.contextmanager
def inputs(run: RunDir) -> Iterator[list[Source]]:
    """The disks of a run once more, in the images' order. Raises PlanError and what open_source raises."""
    state = run.state()
    if not state.get("inputs"):
        raise PlanError("this run does not say which disks it copied", Where(item=str(run.run / "state.json")),
                        "it was made by an older p2v", "verify without --source, or copy anew with --force")
    with contextlib.ExitStack() as stack:
        given: dict[str, Source] = {}
        for one in state["inputs"]:
            source = planning.open_source(one["path"], one["format"], outside=bool(one["outside"]))
            given[f"disk{len(given)}"] = stack.enter_context(contextlib.closing(source))
        made = state.get("collapsed")
        disks = given if made is None else arrange(given, made["legs"], in_step=bool(made["in_step"])).disks
        yield list(disks.values())


def plans(work: Work) -> tuple[dict[str, list[Extent]], list[Finding]]:
    """What to copy of each disk: made once, kept, and used again when the copy goes on. Raises DriftError."""
    disks, run = work.disks, work.run
    seen, findings = losses.look(disks)
    now = {disk: fingerprint(disk, seen) for disk in disks}
    kept = run.state().get("fingerprints")
    if kept is not None:
        for disk, source in disks.items():
            if source.size != kept[disk][0] or (now[disk] and kept[disk][1] and now[disk] != kept[disk][1]):
                raise DriftError(f"{source.name} is not the disk that the copy began with", Where(source.name),
                                 "its size, tables, boot sectors or journals have changed since",
                                 "name the same disk; if it was in use meanwhile, begin anew with --force")
        return load_extents(run, {disk: source.size for disk, source in disks.items()}), findings
    extents = wanted_of(work, seen)
    save_extents(run, extents)
    run.save_state(fingerprints={disk: [source.size, now[disk]] for disk, source in disks.items()})
    return extents, findings


def wanted_of(work: Work, seen: planning.View) -> dict[str, list[Extent]]:
    """What to copy of each disk as it is now."""
    return {disk: plan_copy(source, () if work.options.everything else spared(disk, seen))
            for disk, source in work.disks.items()}


def fingerprint(disk: str, seen: planning.View) -> str:
    """What must not have moved when a copy goes on; "" where the disk hides it."""
    try:
        return planning.fingerprint(disk, seen)
    except P2VError:
        return ""


def save_extents(run: RunDir, extents: Mapping[str, Sequence[Extent]]) -> None:
    """Keep what to copy. Raises WriteError."""
    save_json(run.run / "extents.json", {
        disk: [[extent.offset, extent.length, extent.kind.value] for extent in found]
        for disk, found in extents.items()})


def load_extents(run: RunDir, sizes: Mapping[str, int]) -> dict[str, list[Extent]]:
    """What was kept. sizes: of the disks, bytes. Raises PlanError."""
    document = load_json(run.run / "extents.json")
    try:
        found = {disk: [Extent(int(offset), int(length), Kind(kind)) for offset, length, kind in document[disk]]
                 for disk in sizes}
        for disk, size in sizes.items():
            check(found[disk], size)
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError("the record of what to copy is damaged", Where(item=str(run.run / "extents.json")), str(error),
                        "begin anew with --force") from error
    return found


def finish(work: Work, reports: Mapping[str, CopyReport]) -> None:
    """The manifest; nothing is left to go on with. Raises WriteError."""
    save_json(work.run.manifest, {
        "format_version": 1,
        "p2v": p2v.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "disks": [_entry(disk, job, work, reports[disk]) for disk, job in work.jobs.items()],
    })
    work.run.save_state(finished=True, updating=None, retrying=None)
    for job in work.jobs.values():
        job.log.clear()


def _entry(disk: str, job: Job, work: Work, report: CopyReport) -> dict[str, object]:
    return {
        "id": disk,
        "image": str(job.path.absolute() if job.device else _relative(job.path, work.run)),
        **({"device": True} if job.device else {}),
        "format": job.form.NAME,
        "size": report.size,
        "source": work.disks[disk].name,
        "copy": report.to_json(),
    }


def _relative(path: Path, run: RunDir) -> Path:
    """The image's place seen from the run's folder, so that both can be moved together."""
    folder = run.folder.resolve()
    place = path.resolve()
    return Path("..") / place.name if place.parent == folder.parent else \
        Path(place.name) if place.parent == folder else place
