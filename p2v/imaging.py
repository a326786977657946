"""`p2v image`: disks into images as they are. Nothing is edited; what nobody needs is left out.

Run again with resume, it goes on where it was. A disk that fails to read in places is rescued as GNU ddrescue
does it; the map of that is kept beside the image, and ddrescue can go on with it where the image is raw.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import p2v
from p2v import planning
from p2v.checkpoint import Checkpoint, Keeper, tie
from p2v.conversion import Result, spared
from p2v.copy import CopyReport, plan_copy, report_of, run_copy, verify_copy
from p2v.errors import (
    Cancelled,
    DriftError,
    Finding,
    P2VError,
    PlanError,
    ReadError,
    Severity,
    Unsupported,
    Where,
    WriteError,
)
from p2v.extents import check
from p2v.folder import image_path, load_reports
from p2v.formats import FORMATS
from p2v.keeping import CopyLog, Job, clear, image_files
from p2v.model import Cancel, Extent, ImageFormat, ImageWriter, Kind, Progress, Range, Source, no_progress
from p2v.outlets import Existing, Nowhere, Pipe
from p2v.rescue import Once
from p2v.rundir import RunDir, load_json, save_bytes, save_json
from p2v.salvage import Salvage
from p2v.source.device import DeviceGone
from p2v.source.paced import Paced
from p2v.volume import Layout

SECONDS = 20.0  # between two checkpoints
DRIVERS = {".raw": "raw", ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhd": "vpc", ".vhdx": "vhdx", ".vdi": "vdi"}
"""The suffix of a format → what qemu calls it."""
RANGES = 40  # that could not be read and are told one by one


@dataclass(frozen=True, slots=True)
class Options:
    """How to copy. everything: also what a filesystem calls free. rate: bytes a second, 0 for any.

    retries: of sectors that stay unreadable. seconds: between two checkpoints.
    """

    everything: bool = False
    rate: int = 0
    retries: int = 0
    seconds: float = SECONDS


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
    options: Options = Options(),
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
        if _claim(run, jobs, wanted, resume=resume, force=force):
            reports = load_reports(run)
            return Result(str(output), files, 0, reports, (), done_before=True)
        extents, findings = _plans(disks, run, options)
        reports = {}
        for disk, source in disks.items():
            reports[disk] = _Imaging(source, extents[disk], jobs[disk], run, disk, options, progress, cancel).run()
        _finish(run, jobs, disks, reports)
        findings += [said for disk in disks for said in _losses(disks[disk], jobs[disk], reports[disk], run, disk)]
        return Result(str(output), files, 0, reports, tuple(findings))


# ---------------------------------------------------------------------------------------------
# Where things go


def _places(
    sources: Sequence[str | Path], output: Path, run_folder: str | Path | None, format: str | None
) -> tuple[RunDir, list[tuple[Path, str]]]:
    """The run, and each source's image with its format."""
    if format is not None and format not in FORMATS:
        raise PlanError(f"no format is called {format}", next="choose one of: " + ", ".join(FORMATS))
    for source in sources:
        if Path(source).resolve() in (output.resolve(), output.resolve() / Path(source).name):
            raise PlanError("the output is the source", Where(item=str(output)), "a source is never written",
                            "choose another output")
    if len(sources) > 1:
        kind = format or "raw"
        images = [(output / f"disk{number}{FORMATS[kind].SUFFIX}", kind) for number in range(len(sources))]
        return RunDir.of_output(run_folder or output), images
    return RunDir.of_output(run_folder or f"{output}.p2v"), [(output, format or _format_of(output))]


def _format_of(output: Path) -> str:
    """The format that an image's name says: the first one with its suffix; raw where none has it."""
    return next((name for name, form in FORMATS.items() if output.suffix.lower() == form.SUFFIX), "raw")


@contextlib.contextmanager
def opened(sources: Sequence[str | Path], format: str | None) -> Iterator[dict[str, Source]]:
    """The sources by id, in the order given; closed at the end."""
    if not sources:
        raise PlanError("no disk was named", next="name the disks to copy")
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
    seen, findings = _view(disks)
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


def _view(disks: Mapping[str, Source]) -> tuple[planning.View, list[Finding]]:
    """Volumes and filesystems, as far as they can be read: a disk that hides them is copied whole."""
    from p2v.filesystem import examine
    from p2v.volume import find_volumes

    try:
        layout = find_volumes(disks)
        filesystems = {volume.name: examine(volume.source) for volume in layout.volumes}
    except P2VError as error:
        said = Finding("everything is copied, used or not", error.where, f"{error.what}; {error.why}",
                       "nothing, if the image is all that matters", Severity.WARNING)
        return planning.View(disks, Layout((), (), ()), {}, None, None), [said]
    seen = planning.View(disks, layout, filesystems, None, None)
    return seen, [said for said in seen.findings if said.severity is not Severity.INFO]


def _fingerprint(disk: str, seen: planning.View) -> str:
    """What must not have moved when a copy goes on; "" where the disk hides it."""
    try:
        return planning.fingerprint(disk, seen)
    except P2VError:
        return ""


# ---------------------------------------------------------------------------------------------
# Copy


@dataclass(frozen=True, slots=True)
class _Imaging:
    """One disk into its image."""

    source: Source
    extents: Sequence[Extent]
    job: Job
    run_dir: RunDir
    disk: str
    options: Options
    progress: Progress
    cancel: Cancel | None

    def run(self) -> CopyReport:
        """Copy, rescue where the disk fails, finish. Raises what image() raises."""
        size, form = self.source.size, self.job.form
        if size > form.LIMIT:
            raise Unsupported(f"{form.NAME} holds at most {form.LIMIT} bytes", Where(self.source.name),
                              f"the disk has {size}", "choose another --format")
        found = self._found()
        if found is not None and found.at == size and self.job.path.exists():
            return report_of(found, self.extents)
        if found is None:
            clear(self.job)
        path = str(self.job.path)
        writer = form.create(path, size) if found is None else form.reopen(path, found.state)
        try:
            report = self._copy(writer, found)
            writer.finish()
        except BaseException as error:
            self.job.give_up(writer)
            if self.job.log.exists:
                self._suspend(error)
            raise
        return report

    @property
    def _tie(self) -> str:
        return tie(self.extents, self.job.form.NAME)

    def _found(self) -> Checkpoint | None:
        found = None if self.job.form.SEQUENTIAL else self.job.log.load()
        if found is not None and found.tie != self._tie:
            raise DriftError("the copy that was cut short is of something else", Where(item=str(self.job.log.path)),
                             "the record of what to copy has changed since", "begin anew with --force")
        return found

    def _copy(self, writer: ImageWriter, found: Checkpoint | None) -> CopyReport:
        form, tell = self.job.form, self._tell
        paced = Paced(self.source, self.options.rate) if self.options.rate else None
        if form.SEQUENTIAL:
            return run_copy(paced or self.source, self.extents, writer, progress=tell, cancel=self.cancel)
        keeper = Keeper(self._save, self._tie, self.options.seconds)
        if found is None or not found.map:
            once = Once(self.source)
            with contextlib.suppress(_Failing):
                return self._healthy(Paced(once, self.options.rate) if paced else once, writer, keeper, found)
            found = self.job.log.load()
            assert found is not None, "the copy keeps a checkpoint before it gives up"
        if found.done:
            return report_of(found, self.extents)
        return Salvage(self.source, self.extents, writer, found, self.run_dir.run / f"{self.disk}.spool", keeper,
                       retries=self.options.retries, progress=tell, cancel=self.cancel,
                       pause=paced.pause if paced else int).run()

    def _healthy(self, source: Source, writer: ImageWriter, keeper: Keeper, found: Checkpoint | None) -> CopyReport:
        """One pass up to the first failure. Raises _Failing there."""
        try:
            return run_copy(source, self.extents, writer, progress=self._tell, cancel=self.cancel, keeper=keeper,
                            resume=found, careful=False)
        except DeviceGone:
            raise
        except ReadError as error:
            raise _Failing from error

    def _tell(self, stage: str, done: int, total: int) -> None:
        self.progress(f"{stage} {self.disk}" if stage == "copy" else f"{self.disk} {stage}", done, total)

    def _save(self, checkpoint: Checkpoint, chunks: Iterable[int]) -> None:
        self.job.log.save(checkpoint, chunks)
        if checkpoint.map:
            save_bytes(map_path(self.run_dir, self.disk), checkpoint.map.encode())

    def _suspend(self, error: BaseException) -> None:
        """Say how to go on: what was read is safe."""
        safe = f"what was read is safe in {self.job.path}.part"
        if isinstance(error, DeviceGone):
            raise DeviceGone(error.what, error.where, f"{error.why}; {safe}", "switch the disk off and on, let it "
                             "cool down, then give the same command with --resume") from error
        if isinstance(error, (KeyboardInterrupt, Cancelled)):
            raise Cancelled("the copy was stopped", Where(self.source.name), safe,
                            "to go on, give the same command with --resume") from error
        if isinstance(error, WriteError):
            raise WriteError(error.what, error.where, f"{error.why}; {safe}",
                             f"{error.next}; with --resume it goes on") from error


class _Failing(Exception):
    """The disk has a bad place. Never leaves the module."""


def map_path(run: RunDir, disk: str) -> Path:
    """The map of a rescue, in GNU ddrescue's form."""
    return run.folder / f"{disk}.map"


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
    seen, findings = _view(disks)
    halfway = bool(run.state().get("updating"))
    run.save_state(updating=True, finished=None)
    reports = {}
    for disk, source in disks.items():
        extents = plan_copy(source, () if options.everything else spared(disk, seen))
        with opened_for_writing(str(jobs[disk].path), DRIVERS[jobs[disk].form.SUFFIX]) as handle:
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
        if not job.form.EDITABLE or job.form.SUFFIX not in DRIVERS:
            raise Unsupported(f"a {job.form.NAME} image cannot be written where it lies", str(job.path),
                              "its content has no place to be replaced", "copy again with --force")
    state = run.state()
    if state.get("image") != wanted or not all(job.path.exists() for job in jobs.values()) \
            or not (state.get("finished") or state.get("updating")):
        raise PlanError("there is no finished copy to bring up to date", Where(item=str(run.folder)),
                        "--since writes into the image of the same sources, format and options",
                        "give the words of the first copy, or copy anew")
    known = load_reports(RunDir(since.parent, run.run)) if since.name == run.manifest.name else {}
    if set(known) != set(disks):
        raise PlanError("this is not the manifest of these images", Where(item=str(since)),
                        "it must be called manifest.json, and know the same disks", f"name {run.manifest}")
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
        raise PlanError("a pipe takes one disk", next="name one source, or a folder as output")
    if output == "-" and format not in (None, "raw"):
        raise Unsupported(f"{format} cannot be sent through a pipe", str(format),
                          "only raw is written from its first byte to its last",
                          "use --format raw, or name a file")
    reports: dict[str, CopyReport] = {}
    with opened(sources, source_format) as disks:
        seen, findings = _view(disks)
        for disk, source in disks.items():
            extents = plan_copy(source, () if options.everything else spared(disk, seen))
            writer = Pipe(pipe) if output == "-" else Nowhere()
            reports[disk] = run_copy(Paced(source, options.rate) if options.rate else source, extents, writer,
                                     progress=progress, cancel=cancel)
            findings += _ranges(source, reports[disk].bad, "")
    return Result(output, (), 0, reports, tuple(findings))


# ---------------------------------------------------------------------------------------------
# What was lost


def _losses(source: Source, job: Job, report: CopyReport, run: RunDir, disk: str) -> Iterator[Finding]:
    """Each range that could not be read, and whose it was."""
    if not report.bad:
        return
    chart = map_path(run, disk)
    again = f"to try again: ddrescue -d -r3 {source.name} {job.path} {chart}" if job.form.NAME == "raw" \
        and chart.exists() else "to try again: the same command with --force --retries 3"
    yield from _ranges(source, report.bad, again)
    yield from _files_hit(job.form, job.path, [Range(e.offset, e.length) for e in report.bad], disk)


def _ranges(source: Source, bad: Sequence[Extent], again: str) -> Iterator[Finding]:
    for extent in bad[:RANGES]:
        yield Finding(f"{extent.length} bytes cannot be read", Where(source.name, extent.offset, extent.length),
                      "they are zeroes in the image", again, Severity.WARNING)
    if len(bad) > RANGES:
        lost = sum(extent.length for extent in bad[RANGES:])
        yield Finding(f"{lost} bytes in {len(bad) - RANGES} more ranges cannot be read", Where(source.name),
                      "they are zeroes in the image; the manifest lists them all", again, Severity.WARNING)


def _files_hit(form: ImageFormat, path: Path, bad: Sequence[Range], disk: str) -> Iterator[Finding]:
    """The files that have lost content, by the image itself: the failing disk is left in peace."""
    from p2v.filesystem.hit import files_hit

    source = form.read(str(path))
    try:
        seen, _ = _view({disk: source})
        for volume in seen.layout.volumes:
            member = volume.members[0]
            inside = [Range(max(r.offset, member.offset) - member.offset,
                            min(r.end, member.offset + member.length) - max(r.offset, member.offset))
                      for r in bad if r.offset < member.offset + member.length and member.offset < r.end]
            if inside:
                yield from files_hit(volume.name, volume.source, seen.filesystems[volume.name], inside)
    finally:
        source.close()
