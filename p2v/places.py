"""Where `p2v image` puts things: the run, the images; what may be there already, and what must not be."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2v import planning
from p2v.errors import PlanError, Unsupported, Where, WriteError
from p2v.formats import FORMATS, raw_device
from p2v.keeping import CopyLog, Job, clear, image_files
from p2v.model import Extent, ImageFormat, Kind, Source
from p2v.rundir import RunDir
from p2v.source.split import parts_of

MARGIN = 8 << 20  # bytes beside the images: tables, digests, the run's records


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image goes, and its format. device: a block device, which is overwritten."""

    path: Path
    kind: str
    device: bool = False

    @property
    def form(self) -> ImageFormat:
        """What writes it."""
        return raw_device if self.device else FORMATS[self.kind]

    @property
    def files(self) -> list[Path]:
        """What there is of an image: none of a device's neighbours."""
        return [] if self.device else image_files(self.path.parent, self.path.name)

    def job(self, run: RunDir, disk: str, seconds: float) -> Job:
        """The copy into it."""
        return Job(self.form, self.path, CopyLog(run.run, disk), "", seconds, self.device)


def find(
    count: int, output: Path, run_folder: str | Path | None, format: str | None
) -> tuple[RunDir, list[Place]]:
    """The run, and the place of each of count images. Raises PlanError, Unsupported."""
    if format is not None and format not in FORMATS:
        raise PlanError(f"no format is called {format}", "--format", next="choose one of: " + ", ".join(FORMATS))
    if raw_device.is_device(output):
        return _device(count, output, run_folder, format)
    if count > 1:
        kind = format or "raw"
        images = [Place(output / f"disk{number}{FORMATS[kind].SUFFIX}", kind) for number in range(count)]
        return RunDir.of_output(run_folder or output), images
    return RunDir.of_output(run_folder or f"{output}.p2v"), [Place(output, format or _format_of(output))]


def _device(
    count: int, output: Path, run_folder: str | Path | None, format: str | None
) -> tuple[RunDir, list[Place]]:
    """Its run lies in the current folder: nothing stays in /dev."""
    if count != 1:
        raise PlanError("a device takes one disk", Where(item=str(output)), "several were named",
                        "name one source for each device")
    if format not in (None, "raw"):
        raise Unsupported(f"{format} is not written onto a device", Where(item=str(output)),
                          "only the disk itself, raw, is of use there", "leave --format out, or name a file")
    return RunDir.of_output(run_folder or Path.cwd() / f"{output.name}.p2v"), [Place(output, "raw", device=True)]


def _format_of(output: Path) -> str:
    """The format that an image's name says: the first one with its suffix; raw where none has it."""
    return next((name for name, form in FORMATS.items() if output.suffix.lower() == form.SUFFIX), "raw")


def refuse(sources: Sequence[str | Path], places: Sequence[Place]) -> None:
    """No source may be what an image replaces, or a part of it; and only files and devices are outputs.

    Raises PlanError.
    """
    replaced = [one for place in places for one in (place.path, *place.files) if one.exists()]
    taken = {one.resolve() for place in places for one in (place.path, *place.files)}
    for source in map(Path, sources):
        # Of an image in several files, or with a backing file, any neighbour may be a part.
        parts = planning.format_by_name(source) != "raw" or len(parts_of(str(source))) > 1
        near = parts and any(one.resolve().parent == source.resolve().parent for one in replaced)
        same = source.exists() and any(os.path.samefile(source, one) for one in replaced)
        if source.resolve() in taken or near or same:
            raise PlanError("the output is the source, or may be a file of it", Where(item=str(source)),
                            "files of the output are replaced; a source never is",
                            "choose another output, in another folder")
    for place in places:
        if place.path.exists() and not place.path.is_file() and not place.device:
            raise PlanError("the output is not a file", Where(item=str(place.path)),
                            "p2v writes images into files and onto block devices, not into pipes or folders",
                            "name a file; -o - sends an image through a pipe")


def refuse_sizes(sources: Sequence[str | Path], disks: Mapping[str, Source], places: Sequence[Place]) -> None:
    """Raises Unsupported past a format's limit, PlanError for a device that cannot be taken."""
    for source, place in zip(disks.values(), places, strict=True):  # before --force takes anything away
        if source.size > place.form.LIMIT:
            raise Unsupported(f"{place.kind} holds at most {place.form.LIMIT} bytes", Where(item=str(place.path)),
                              f"the disk has {source.size}", "choose another --format")
        if place.device:
            raw_device.refuse(str(place.path), source.size, [str(one) for one in sources])


def refuse_no_room(extents: Mapping[str, Sequence[Extent]], places: Sequence[Place]) -> None:
    """Raises WriteError where the images cannot fit: once, before the first byte.

    What packs may need less than is asked for here, so a packed image is taken at a tenth.
    """
    need: dict[Path, int] = {}
    for found, place in zip(extents.values(), places, strict=True):
        data = sum(extent.length for extent in found if extent.kind is Kind.DATA)
        if not place.device:
            packed = place.form.SEQUENTIAL
            need[place.path.parent] = need.get(place.path.parent, MARGIN) + (data // 10 if packed else data)
    for folder, amount in need.items():
        free = shutil.disk_usage(folder).free
        if free < amount:
            raise WriteError("not enough space for the image", Where(item=str(folder)),
                             f"up to {amount >> 20} MiB are needed and {free >> 20} MiB are free; nothing has been "
                             "written", "free space there, or choose another folder or a packed format (qcow2-zstd); "
                             "--resume begins without asking again, where much of the disk is zero")


@contextlib.contextmanager
def held(run: RunDir, places: Sequence[Place]) -> Iterator[None]:
    """The run's folders, locked, where the images can be made."""
    for place in places:
        if not place.path.parent.is_dir() and place.path.parent != run.folder:
            raise PlanError("there is no such folder", Where(item=str(place.path.parent)), "the image is put into it",
                            "make the folder first, or choose another output")
    with run.locked():
        yield


def claim(run: RunDir, jobs: Mapping[str, Job], wanted: Mapping[str, object], *, resume: bool, force: bool) -> bool:
    """Make the run this copy's. True where it is finished already. Raises PlanError, Unsupported."""
    state = run.state()
    there = [path for job in jobs.values() for path in job.files]
    if state.get("updating") and not force:
        raise PlanError("the image was being brought up to date when that was cut short", Where(item=str(run.folder)),
                        "it is partly old and partly new", f"give --since {run.manifest} again: it finishes that")
    if resume and state.get("image") == wanted:
        finished = bool(state.get("finished")) and all(job.path.exists() for job in jobs.values())
        for job in jobs.values() if not finished else ():
            _refuse_resuming(job)
        return finished
    if (there or state) and not force:
        raise PlanError(
            "the output is there already" if not resume else "what is there is another copy",
            Where(item=", ".join(str(path) for path in there[:5]) or str(run.run)),
            "an image is never overwritten unasked, and a copy goes on with the same sources and options only",
            "--resume goes on with a copy that was cut short, --force begins anew",
        )
    for job in jobs.values():
        if not force:
            _refuse_unconfirmed(job)
        clear(job)
    for path in (run.manifest, run.run / "extents.json", run.run / "state.json", *run.folder.glob("disk*.map")):
        path.unlink(missing_ok=True)
    run.save_state(image=dict(wanted))
    return False


def _refuse_resuming(job: Job) -> None:
    if job.form.SEQUENTIAL and not job.path.exists():
        raise sequential(job.form.NAME, "what was written of it cannot be gone on with")
    if not job.log.exists:
        _refuse_unconfirmed(job)


def _refuse_unconfirmed(job: Job) -> None:
    if job.device:
        raise PlanError(f"all that is on {job.path} would be overwritten", Where(item=str(job.path)),
                        "a device is never overwritten unasked",
                        f"look at it first (lsblk -f {job.path}); --force does it")


def sequential(name: str, why: str) -> Unsupported:
    """What a format of one direction cannot do."""
    fit = ", ".join(kind for kind, form in FORMATS.items() if not form.SEQUENTIAL)
    return Unsupported(f"{name} is written from its beginning to its end only", name, why,
                       f"begin again with --force, or choose a format that goes on: {fit}")
