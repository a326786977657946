"""`p2v image`: disks into images as they are. Nothing is edited; what nobody needs is left out.

Run again with resume, it goes on where it was. A disk that fails to read in places is rescued as GNU ddrescue
does it; the map of that is kept beside the image, and ddrescue can go on with it where the image is raw.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import p2v
from p2v import planning
from p2v.conversion import Result, spared
from p2v.copy import CopyReport, plan_copy, run_copy, verify_copy
from p2v.diskcopy import DiskCopy, Options, map_path
from p2v.errors import (
    DriftError,
    Finding,
    P2VError,
    PlanError,
    Unsupported,
    Where,
)
from p2v.extents import check
from p2v.folder import image_path, load_reports
from p2v.formats import FORMATS, QEMU_DRIVERS
from p2v.keeping import CopyLog, Job, clear, image_files
from p2v.losses import look, losses, ranges
from p2v.model import Cancel, Extent, Kind, Progress, Source, no_progress
from p2v.outlets import Existing, Nowhere, Pipe
from p2v.rundir import RunDir, load_json, save_json
from p2v.source.paced import Paced
from p2v.source.split import parts_of

ANY = Options()


def image(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    format: str | None = None,
    source_format: str | None = None,
    run_folder: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    since: str | Path | None = None,
    options: Options = ANY,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
    pipe: int = 1,
) -> Result:
    """Copy disks into images.

    output: the image; with several sources the folder for disk0, disk1 and so on; "null" to measure the
    source; "-" to send a raw image to the open file descriptor pipe. format: a name of FORMATS; without it the
    output's name says it, and raw is what no name says. run_folder: where progress is kept, OUTPUT.p2v else.
    resume: go on with what was cut short. force: replace what is there. since: the manifest of this very image:
    only what has changed since is written into it.
    Raises PlanError when the output is taken, Unsupported, ReadError (DeviceGone: go on when it is back),
    DriftError when resuming onto another disk, WriteError, Cancelled.
    """
    if str(output) in ("-", "null"):
        return _stream(sources, str(output), format, source_format, options, progress, cancel, pipe)
    run, images = _places(sources, Path(output), run_folder, format)
    _refuse_own_sources(sources, images)
    _refuse_places(images)
    if options.retries and any(FORMATS[kind].SEQUENTIAL for _, kind in images):
        raise _sequential(images[0][1], "the rescue of a failing disk writes in any order")
    with opened(sources, source_format) as disks, _held(run, images):
        files = tuple(str(path) for path, _ in images)
        wanted = {"sources": [str(source) for source in sources], "images": list(files),
                  "formats": [kind for _, kind in images], "everything": options.everything}
        jobs = {disk: Job(FORMATS[kind], path, CopyLog(run.run, disk), "", options.seconds)
                for disk, (path, kind) in zip(disks, images, strict=True)}
        if since is not None:
            return _update(disks, jobs, run, wanted, Path(since), options, progress, cancel)
        for disk, (path, kind) in zip(disks, images, strict=True):  # before --force takes anything away
            if disks[disk].size > FORMATS[kind].LIMIT:
                raise Unsupported(f"{kind} holds at most {FORMATS[kind].LIMIT} bytes", Where(item=str(path)),
                                  f"the disk has {disks[disk].size}", "choose another --format")
        if _claim(run, jobs, wanted, resume=resume, force=force):
            reports = load_reports(run)
            return Result(str(output), files, 0, reports, (), done_before=True)
        extents, findings = _plans(disks, run, options)
        reports = {}
        for disk, source in disks.items():
            reports[disk] = DiskCopy(source, extents[disk], jobs[disk], run, disk, options, progress, cancel).run()
        _finish(run, jobs, disks, reports)
        findings += [said for disk in disks for said in losses(
            disks[disk], jobs[disk].form, jobs[disk].path, reports[disk], map_path(run, disk), disk)]
        return Result(str(output), files, 0, reports, tuple(findings))


# ---------------------------------------------------------------------------------------------
# Where things go


def _places(
    sources: Sequence[str | Path], output: Path, run_folder: str | Path | None, format: str | None
) -> tuple[RunDir, list[tuple[Path, str]]]:
    """The run, and each source's image with its format."""
    if format is not None and format not in FORMATS:
        raise PlanError(f"no format is called {format}", "--format", next="choose one of: " + ", ".join(FORMATS))
    if len(sources) > 1:
        kind = format or "raw"
        images = [(output / f"disk{number}{FORMATS[kind].SUFFIX}", kind) for number in range(len(sources))]
        return RunDir.of_output(run_folder or output), images
    return RunDir.of_output(run_folder or f"{output}.p2v"), [(output, format or _format_of(output))]


def _refuse_own_sources(sources: Sequence[str | Path], images: Sequence[tuple[Path, str]]) -> None:
    """No source may be what an image replaces, or a part of it. Raises PlanError."""
    replaced = [one for path, _ in images for one in (path, *image_files(path.parent, path.name)) if one.exists()]
    taken = {one.resolve() for path, _ in images for one in (path, *image_files(path.parent, path.name))}
    for source in map(Path, sources):
        # Of an image in several files, or with a backing file, any neighbour may be a part.
        parts = planning.format_by_name(source) != "raw" or len(parts_of(str(source))) > 1
        near = parts and any(one.resolve().parent == source.resolve().parent for one in replaced)
        same = source.exists() and any(os.path.samefile(source, one) for one in replaced)
        if source.resolve() in taken or near or same:
            raise PlanError("the output is the source, or may be a file of it", Where(item=str(source)),
                            "files of the output are replaced; a source never is",
                            "choose another output, in another folder")


def _refuse_places(images: Sequence[tuple[Path, str]]) -> None:
    """Raises PlanError where something lies that is no file: a device, a pipe, a folder."""
    for path, _ in images:
        if path.exists() and not path.is_file():
            raise PlanError("the output is not a file", Where(item=str(path)),
                            "p2v writes images into files, not onto devices, pipes or folders",
                            "name a file; write it onto a device afterwards, with dd for example")


def _format_of(output: Path) -> str:
    """The format that an image's name says: the first one with its suffix; raw where none has it."""
    return next((name for name, form in FORMATS.items() if output.suffix.lower() == form.SUFFIX), "raw")


@contextlib.contextmanager
def opened(sources: Sequence[str | Path], format: str | None) -> Iterator[dict[str, Source]]:
    """The sources by id, in the order given; closed at the end."""
    if not sources:
        raise PlanError("no disk was named", why="there is nothing to read", next="name the disks to copy")
    with contextlib.ExitStack() as stack:
        disks = {}
        for number, path in enumerate(sources):
            disks[f"disk{number}"] = source = planning.open_source(path, format)
            stack.callback(source.close)
        yield disks


@contextlib.contextmanager
def _held(run: RunDir, images: Sequence[tuple[Path, str]]) -> Iterator[None]:
    """The run's folders, locked, where the images can be made."""
    for path, _ in images:
        if not path.parent.is_dir() and path.parent != run.folder:
            raise PlanError("there is no such folder", Where(item=str(path.parent)), "the image is put into it",
                            "make the folder first, or choose another output")
    with run.locked():
        yield


def _claim(run: RunDir, jobs: Mapping[str, Job], wanted: Mapping[str, object], *, resume: bool, force: bool) -> bool:
    """Make the run this copy's. True where it is finished already. Raises PlanError, Unsupported."""
    state = run.state()
    there = [path for job in jobs.values() for path in image_files(job.path.parent, job.path.name)]
    same = state.get("image") == wanted
    if state.get("updating") and not force:
        raise PlanError("the image was being brought up to date when that was cut short", Where(item=str(run.folder)),
                        "it is partly old and partly new", f"give --since {run.manifest} again: it finishes that")
    if resume and same:
        if state.get("finished") and all(job.path.exists() for job in jobs.values()):
            return True
        for job in jobs.values():
            if job.form.SEQUENTIAL and not job.path.exists():
                raise _sequential(job.form.NAME, "what was written of it cannot be gone on with")
        return False
    if (there or state) and not force:
        raise PlanError(
            "the output is there already" if not resume else "what is there is another copy",
            Where(item=", ".join(str(path) for path in there[:5]) or str(run.run)),
            "an image is never overwritten unasked, and a copy goes on with the same sources and options only",
            "--resume goes on with a copy that was cut short, --force begins anew",
        )
    for job in jobs.values():
        clear(job)
    for name in ("manifest.json", "extents.json"):
        (run.folder / name).unlink(missing_ok=True)
    (run.run / "state.json").unlink(missing_ok=True)
    run.save_state(image=dict(wanted))
    return False


def _sequential(name: str, why: str) -> Unsupported:
    fit = ", ".join(kind for kind, form in FORMATS.items() if not form.SEQUENTIAL)
    return Unsupported(f"{name} is written from its beginning to its end only", name, why,
                       f"begin again with --force, or choose a format that goes on: {fit}")


# ---------------------------------------------------------------------------------------------
# What to copy


def _plans(
    disks: Mapping[str, Source], run: RunDir, options: Options
) -> tuple[dict[str, list[Extent]], list[Finding]]:
    """What to copy of each disk: made once, kept, and used again when the copy goes on."""
    seen, findings = look(disks)
    now = {disk: _fingerprint(disk, seen) for disk in disks}
    kept = run.state().get("fingerprints")
    if kept is not None:
        for disk, source in disks.items():
            if source.size != kept[disk][0] or (now[disk] and kept[disk][1] and now[disk] != kept[disk][1]):
                raise DriftError(f"{source.name} is not the disk that the copy began with", Where(source.name),
                                 "its size, tables, boot sectors or journals have changed since",
                                 "name the same disk; if it was in use meanwhile, begin anew with --force")
        return _load_extents(run, disks), findings
    extents = {disk: plan_copy(source, () if options.everything else spared(disk, seen))
               for disk, source in disks.items()}
    save_json(run.run / "extents.json", {
        disk: [[extent.offset, extent.length, extent.kind.value] for extent in found]
        for disk, found in extents.items()})
    run.save_state(fingerprints={disk: [source.size, now[disk]] for disk, source in disks.items()})
    return extents, findings


def _load_extents(run: RunDir, disks: Mapping[str, Source]) -> dict[str, list[Extent]]:
    """What _plans() kept. Raises PlanError."""
    document = load_json(run.run / "extents.json")
    try:
        found = {disk: [Extent(int(offset), int(length), Kind(kind)) for offset, length, kind in document[disk]]
                 for disk in disks}
        for disk, source in disks.items():
            check(found[disk], source.size)
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError("the record of what to copy is damaged", Where(item=str(run.run / "extents.json")), str(error),
                        "begin anew with --force") from error
    return found


def _fingerprint(disk: str, seen: planning.View) -> str:
    """What must not have moved when a copy goes on; "" where the disk hides it."""
    try:
        return planning.fingerprint(disk, seen)
    except P2VError:
        return ""


# ---------------------------------------------------------------------------------------------
# The end


def _finish(
    run: RunDir, jobs: Mapping[str, Job], disks: Mapping[str, Source], reports: Mapping[str, CopyReport]
) -> None:
    save_json(run.manifest, {
        "format_version": 1,
        "p2v": p2v.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "disks": [{"id": disk, "image": str(_relative(job.path, run)), "format": job.form.NAME,
                   "size": reports[disk].size, "source": disks[disk].name, "copy": reports[disk].to_json()}
                  for disk, job in jobs.items()],
    })
    run.save_state(finished=True)
    for job in jobs.values():
        job.log.clear()


def _update(
    disks: Mapping[str, Source], jobs: Mapping[str, Job], run: RunDir, wanted: Mapping[str, object], since: Path,
    options: Options, progress: Progress, cancel: Cancel | None,
) -> Result:
    """Write into finished images what has changed on their disks. Cut short, the next time everything is written."""
    from p2v.stage import opened_for_writing

    known = _known(disks, jobs, run, wanted, since)
    seen, findings = look(disks)
    halfway = bool(run.state().get("updating"))
    for disk in disks if not halfway else ():  # what is skipped later must be what the manifest says
        image = jobs[disk].form.read(str(jobs[disk].path))
        try:
            verify_copy(image, known[disk], progress=progress, cancel=cancel)
        finally:
            image.close()
    run.save_state(updating=True, finished=None)
    reports = {}
    for disk, source in disks.items():
        extents = plan_copy(source, () if options.everything else spared(disk, seen))
        with opened_for_writing(str(jobs[disk].path), QEMU_DRIVERS[jobs[disk].form.SUFFIX]) as handle:
            writer = Existing(handle)
            reports[disk] = run_copy(Paced(source, options.rate) if options.rate else source, extents, writer,
                                     progress=progress, cancel=cancel, careful=False,
                                     known=None if halfway else known[disk].digests)
            writer.finish()
    _finish(run, jobs, disks, reports)
    run.save_state(updating=None, fingerprints=None)
    files = tuple(str(job.path) for job in jobs.values())
    return Result(str(run.folder), files, 0, reports, tuple(findings))


def _known(
    disks: Mapping[str, Source], jobs: Mapping[str, Job], run: RunDir, wanted: Mapping[str, object], since: Path
) -> dict[str, CopyReport]:
    """What the images hold. Raises PlanError, Unsupported, DriftError where they cannot be brought up to date."""
    for job in jobs.values():
        if not job.form.EDITABLE or job.form.SUFFIX not in QEMU_DRIVERS:
            raise Unsupported(f"a {job.form.NAME} image cannot be written where it lies", str(job.path),
                              "its content has no place to be replaced", "copy again with --force")
    state = run.state()
    if state.get("image") != wanted or not all(job.path.exists() for job in jobs.values()) \
            or not (state.get("finished") or state.get("updating")):
        raise PlanError("there is no finished copy to bring up to date", Where(item=str(run.folder)),
                        "--since writes into the image of the same sources, format and options",
                        "give the words of the first copy, or copy anew")
    if "plan" in state:
        raise PlanError("the guest in this image was edited since it was copied", Where(item=str(run.folder)),
                        "bringing it up to date would take the edits away", "copy the disk into another image")
    own = since.exists() and since.resolve() == run.manifest.resolve()
    known = load_reports(run) if own else {}
    if set(known) != set(disks):
        raise PlanError("this is not the manifest of these images", Where(item=str(since)),
                        "what the images hold is known from their own manifest alone", f"name {run.manifest}")
    for disk, source in disks.items():
        if known[disk].size != source.size:
            raise DriftError(f"{source.name} has another size than when it was copied", Where(source.name),
                             f"{source.size} bytes, then {known[disk].size}", "copy it anew with --force")
    return known


def _relative(path: Path, run: RunDir) -> Path:
    """The image's place seen from the run's folder, so that both can be moved together."""
    folder = run.folder.resolve()
    place = path.resolve()
    return Path("..") / place.name if place.parent == folder.parent else \
        Path(place.name) if place.parent == folder else place


def verify(output: str | Path, *, progress: Progress = no_progress, cancel: Cancel | None = None) -> Result:
    """Is the content of a run's images what was copied? output: OUTPUT.p2v, or the folder of several images.

    Raises MismatchError, PlanError.
    """
    run = RunDir.of_output(output)
    document, reports = load_json(run.manifest), load_reports(run)
    files = []
    for entry in document["disks"]:
        if entry.get("format") not in FORMATS or "image" not in entry:
            raise PlanError("the manifest does not hold together", Where(item=str(run.manifest)),
                            "it does not name an image and a format that this p2v knows", "copy anew with --force")
        path = image_path(str(entry["image"]), run)
        source = FORMATS[entry["format"]].read(str(path))
        try:
            verify_copy(source, reports[entry["id"]], progress=progress, cancel=cancel)
        finally:
            source.close()
        files.append(str(path))
    return Result(str(output), tuple(files), 0, reports, ())


def _stream(
    sources: Sequence[str | Path], output: str, format: str | None, source_format: str | None, options: Options,
    progress: Progress, cancel: Cancel | None, pipe: int,
) -> Result:
    """Into a pipe, or nowhere: nothing is kept, so nothing can be gone on with."""
    if output == "-" and len(sources) != 1:
        raise PlanError("a pipe takes one disk", why="its reader could not tell where the next begins",
                        next="name one source, or a folder as output")
    if output == "-" and format not in (None, "raw"):
        raise Unsupported(f"{format} cannot be sent through a pipe", str(format),
                          "only raw is written from its first byte to its last",
                          "use --format raw, or name a file")
    reports: dict[str, CopyReport] = {}
    with opened(sources, source_format) as disks:
        seen, findings = look(disks)
        for disk, source in disks.items():
            extents = plan_copy(source, () if options.everything else spared(disk, seen))
            writer = Pipe(pipe) if output == "-" else Nowhere()
            reports[disk] = run_copy(Paced(source, options.rate) if options.rate else source, extents, writer,
                                     progress=progress, cancel=cancel)
            findings += ranges(source, reports[disk].bad, "")
    return Result(output, (), 0, reports, tuple(findings))
