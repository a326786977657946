"""`p2v image`: disks into images as they are. Nothing is edited; what nobody needs is left out.

Run again with resume, it goes on where it was. A disk that fails to read in places is rescued as GNU ddrescue
does it; the map of that is kept beside the image, and ddrescue can go on with it where the image is raw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from p2v import places, planning, record, refresh
from p2v.arranging import KEEP, Arranged, arrange, decisions
from p2v.conversion import Result, spared
from p2v.copy import CopyReport, bad_in_any, plan_copy, refuse_differing, run_copy, verify_copy
from p2v.diskcopy import DiskCopy, Options, map_path
from p2v.errors import Finding, MismatchError, PlanError, Severity, Unsupported, Where
from p2v.folder import image_path, load_reports
from p2v.formats import FORMATS, STREAMS, raw_device
from p2v.formats.pipe import Pipe
from p2v.losses import look, losses, ranges
from p2v.model import Cancel, Progress, Source, no_progress
from p2v.outlets import Nowhere
from p2v.places import Place
from p2v.record import Work
from p2v.rundir import RunDir, load_json
from p2v.source.paced import Paced
from p2v.source.split import shortened

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
    outside: bool = False,
    layout: str = KEEP,
    legs: Mapping[str, str] | None = None,
    compare: bool = False,
) -> Result:
    """Copy disks into images.

    output: the image; with several sources the folder for disk0, disk1 and so on; a block device, which is
    overwritten; "null" to measure the source; "-" to send an image of one of STREAMS to the open file descriptor
    pipe. format: a name of FORMATS; without it the output's name says it, and raw is what no name says.
    run_folder: where progress is kept; else OUTPUT.p2v, for a device in the current folder.
    resume: go on with what was cut short; with options.retries also with the bad places of a finished rescue.
    force: replace what is there. since: the manifest of this very image: only what has changed since is written
    into it. outside: a source may name files outside its own folder. layout: "keep" copies each disk exactly,
    members of sets too; "collapse" makes plain disks of mirrors and sets; legs, compare: see planning.plan.
    Raises PlanError when the output is taken, Unsupported, ReadError (DeviceGone: go on when it is back),
    DriftError when resuming onto another disk, WriteError, Cancelled.
    """
    if str(output) in ("-", "null"):
        with opened(sources, source_format, outside) as given:
            arranged, said = arrange_for_image(given, layout, legs, compare=compare, progress=progress, cancel=cancel)
            return _stream(arranged.disks, said, str(output), format, options, progress, cancel, pipe)
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(opened(sources, source_format, outside))
        arranged, said = arrange_for_image(given, layout, legs, compare=compare, progress=progress, cancel=cancel)
        disks = arranged.disks
        run, images = places.find(len(disks), Path(output), run_folder, format)
        places.refuse(sources, images)
        if options.retries and images[0].form.SEQUENTIAL:
            raise places.sequential(images[0].kind, "the rescue of a failing disk writes in any order")
        stack.enter_context(places.held(run, images))
        files = tuple(str(place.path) for place in images)
        wanted = {"sources": [str(source) for source in sources], "images": list(files),
                  "formats": [place.kind for place in images], "everything": options.everything,
                  **({"legs": dict(arranged.built.legs)} if arranged.built else {})}
        jobs = {disk: place.job(run, disk, options.seconds) for disk, place in zip(disks, images, strict=True)}
        work = Work(disks, jobs, run, wanted, options, progress, cancel)
        places.refuse_sizes(sources, disks, images)
        if since is not None:
            record.refuse_other_legs(run, arranged)
            reports, findings = refresh.update(work, Path(since))
            return Result(str(run.folder), files, 0, reports, (*said, *findings))
        if places.claim(run, jobs, wanted, resume=resume, force=force):
            again = refresh.retry(work)
            if again is None:
                return Result(str(output), files, 0, load_reports(run), (), done_before=True)
            return Result(str(output), files, 0, again, tuple(_said(work, again)))
        record.save_inputs(run, sources, source_format, outside, arranged)
        reports, findings = _copy(work, images, check_room=not resume)
        return Result(str(output), files, 0, reports, (*said, *findings, *_from_other_legs(arranged)))


def arrange_for_image(
    given: Mapping[str, Source], layout: str, legs: Mapping[str, str] | None, *, compare: bool, progress: Progress,
    cancel: Cancel | None,
) -> tuple[Arranged, list[Finding]]:
    """The disks to copy: as they are, in the order given, or plain ones made of mirrors and sets.

    Raises PlanError where something of the sets stops the work: the plain disks would lack it in silence.
    """
    if layout == KEEP:
        return Arranged(given, given), []
    arranged, findings = arrange(given, legs, layout), []
    for finding in arranged.findings:
        if finding.severity is Severity.ERROR:
            raise PlanError(finding.what, finding.where, finding.why,
                            f"{finding.next}; --layout keep copies each disk as it is")
    if compare:
        from p2v.pairing import compare_mirrors
        from p2v.volume import find_volumes

        compared = compare_mirrors(find_volumes(given).mirrors, decisions(given, legs), progress=progress,
                                   cancel=cancel)
        findings = [said for one in compared for said in one.findings]
        if compared and all(one.in_step for one in compared):
            arranged = arrange(given, legs, layout, in_step=True)
    return arranged, [*arranged.findings, *findings]


def _from_other_legs(arranged: Arranged) -> list[Finding]:
    """What was read from another leg than the chosen one, and why."""
    if arranged.built is None:
        return []
    from p2v.pairing import helped

    return [finding for disk in arranged.built.disks.values() for finding in helped(disk)]


def _copy(
    work: Work, images: Sequence[Place], *, check_room: bool
) -> tuple[dict[str, CopyReport], list[Finding]]:
    """All disks, one after the other."""
    extents, findings = record.plans(work)
    if check_room:
        places.refuse_no_room(extents, images)
    reports = {disk: DiskCopy(source, extents[disk], work.jobs[disk], work.run, disk, work.options, work.progress,
                              work.cancel).run() for disk, source in work.disks.items()}
    record.finish(work, reports)
    return reports, [*findings, *_said(work, reports)]


def _said(work: Work, reports: Mapping[str, CopyReport]) -> Iterator[Finding]:
    """What is worth saying of finished images."""
    for disk, source in work.disks.items():
        job = work.jobs[disk]
        yield from losses(source, job, reports[disk], map_path(work.run, disk), disk)
        if job.device:
            yield raw_device.beyond(str(job.path), source.size, work.run.folder)


@contextlib.contextmanager
def opened(
    sources: Sequence[str | Path], format: str | None, outside: bool = False
) -> Iterator[dict[str, Source]]:
    """The sources by id, in the order given; closed at the end."""
    if not sources:
        raise PlanError("no disk was named", why="there is nothing to read", next="name the disks to copy")
    with contextlib.ExitStack() as stack:
        disks = {}
        for number, path in enumerate(sources):
            disks[f"disk{number}"] = source = planning.open_source(path, format, outside=outside)
            stack.callback(source.close)
        yield disks


def verify(
    output: str | Path, *, source: bool = False, progress: Progress = no_progress, cancel: Cancel | None = None
) -> Result:
    """Is the content of a run's images what was copied? output: OUTPUT.p2v, or the folder of several images.

    source: then read the disks again, and compare those too; what was free is left out, and what cannot be read
    is listed, not compared. Raises MismatchError, PlanError.
    """
    run = RunDir.of_output(output)
    document, reports = load_json(run.manifest), load_reports(run)
    if run.state().get("retrying"):
        raise PlanError("the retries of a rescue were cut short", Where(item=str(run.folder)),
                        "the image holds more than its manifest knows",
                        "p2v image … --resume, with the words of the first time, finishes that")
    files, findings = [], []
    for entry in document["disks"]:
        path = _image_path(entry, run)
        report = reports[entry["id"]]
        image = (raw_device if entry.get("device") else FORMATS[entry["format"]]).read(str(path))
        image = shortened(image, report.size) if entry.get("device") else image
        with contextlib.closing(image):
            verify_copy(image, report, progress=progress, cancel=cancel)
        files.append(str(path))
    if source:
        findings = _compare(run, reports, progress, cancel)
    return Result(str(output), tuple(files), 0, reports, tuple(findings))


def _image_path(entry: Mapping[str, object], run: RunDir) -> Path:
    """Where a manifest's image is. Raises PlanError."""
    if entry.get("format") not in FORMATS or "image" not in entry:
        raise PlanError("the manifest does not hold together", Where(item=str(run.manifest)),
                        "it does not name an image and a format that this p2v knows", "copy anew with --force")
    if not entry.get("device"):
        return image_path(str(entry["image"]), run)
    path = Path(str(entry["image"]))
    if not raw_device.is_device(path):
        raise PlanError(f"{path} is not there, or no block device", Where(item=str(path)),
                        "the disk was copied onto a device of this name", "connect it; p2v only reads it now")
    return path


def _compare(
    run: RunDir, reports: Mapping[str, CopyReport], progress: Progress, cancel: Cancel | None
) -> list[Finding]:
    """Raises MismatchError naming the first chunk of a disk that is not what was copied."""
    extents = record.load_extents(run, {disk: report.size for disk, report in reports.items()})
    findings: list[Finding] = []
    with record.inputs(run) as disks:
        for (disk, report), source in zip(reports.items(), disks, strict=True):
            if source.size != report.size:
                raise MismatchError(f"{source.name} has another size than when it was copied", Where(source.name),
                                    f"{source.size} bytes, then {report.size}", "name the disk that was copied")
            again = run_copy(source, extents[disk], Nowhere(), progress=progress, cancel=cancel)
            refuse_differing(again, report, source.name)
            findings += ranges(source, bad_in_any(again, report), "it was not compared")
    return findings


def _stream(
    disks: Mapping[str, Source], said: Sequence[Finding], output: str, format: str | None, options: Options,
    progress: Progress, cancel: Cancel | None, pipe: int,
) -> Result:
    """Into a pipe, or nowhere: nothing is kept, so nothing can be gone on with."""
    if output == "-" and len(disks) != 1:
        raise PlanError("a pipe takes one disk", why="its reader could not tell where the next begins",
                        next="name one source, or a folder as output")
    kind = format or "raw"
    if output == "-" and kind not in STREAMS:
        raise Unsupported(f"{kind} cannot be sent through a pipe", kind,
                          "it is not written from its first byte to its last, or is no format",
                          f"name a file, or one of --format {', '.join(STREAMS)}")
    reports: dict[str, CopyReport] = {}
    seen, findings = look(disks)
    for disk, source in disks.items():
        extents = plan_copy(source, () if options.everything else spared(disk, seen))
        writer = STREAMS[kind](Pipe(pipe), source.size) if output == "-" else Nowhere()
        try:
            reports[disk] = run_copy(Paced(source, options.rate) if options.rate else source, extents, writer,
                                     progress=progress, cancel=cancel)
            writer.finish()
        except BaseException:
            writer.abort()  # threads that pack end
            raise
        findings += ranges(source, reports[disk].bad, "")
    return Result(output, (), 0, reports, (*said, *findings))
