"""Finished images, brought up to date: what has changed on a disk since, and what a failing disk still gives."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from p2v import losses, record
from p2v.copy import COUNTED, CopyReport, run_copy, verify_copy
from p2v.digests import Digests, digest_of
from p2v.diskcopy import map_path
from p2v.errors import Cancelled, DriftError, Finding, PlanError, Unsupported, Where
from p2v.extents import Merger
from p2v.folder import load_reports
from p2v.formats import QEMU_DRIVERS
from p2v.keeping import Job
from p2v.mapfile import Mapfile, Status, from_text
from p2v.model import Extent, Kind, Range, Source, read
from p2v.outlets import Existing
from p2v.record import Work
from p2v.rescue import Rescue
from p2v.ring import CHUNK
from p2v.rundir import save_bytes
from p2v.source.paced import Paced
from p2v.source.split import shortened

# -- what has changed


def update(work: Work, since: Path) -> tuple[dict[str, CopyReport], list[Finding]]:
    """Write into finished images what has changed on their disks. Cut short, the next time everything is written.

    Raises PlanError, Unsupported, DriftError where they cannot be brought up to date, MismatchError.
    """
    known = _known(work, since)
    seen, findings = losses.look(work.disks)
    halfway = bool(work.run.state().get("updating"))
    for disk, job in work.jobs.items() if not halfway else ():  # what is skipped must be what the manifest says
        with contextlib.closing(image_of(job, known[disk].size)) as image:
            verify_copy(image, known[disk], progress=work.progress, cancel=work.cancel)
    work.run.save_state(updating=True, finished=None)
    reports, extents = {}, record.wanted_of(work, seen)
    for disk, source in work.disks.items():
        with _writable(work.jobs[disk]) as handle:
            writer = Existing(handle)
            rate = work.options.rate
            reports[disk] = run_copy(Paced(source, rate) if rate else source, extents[disk], writer,
                                     progress=work.progress, cancel=work.cancel, careful=False,
                                     known=None if halfway else known[disk].digests)
            writer.finish()
    record.save_extents(work.run, extents)
    record.finish(work, reports)
    work.run.save_state(fingerprints=None)
    return reports, findings


def _known(work: Work, since: Path) -> dict[str, CopyReport]:
    """What the images hold."""
    run = work.run
    for job in work.jobs.values():
        _refuse_packed(job)
    state = run.state()
    if state.get("image") != work.wanted or not all(job.path.exists() for job in work.jobs.values()) \
            or not (state.get("finished") or state.get("updating")):
        raise PlanError("there is no finished copy to bring up to date", Where(item=str(run.folder)),
                        "--since writes into the image of the same sources, format and options",
                        "give the words of the first copy, or copy anew")
    _refuse_edited(work)
    own = since.exists() and since.resolve() == run.manifest.resolve()
    known = load_reports(run) if own else {}
    if set(known) != set(work.disks):
        raise PlanError("this is not the manifest of these images", Where(item=str(since)),
                        "what the images hold is known from their own manifest alone", f"name {run.manifest}")
    for disk, source in work.disks.items():
        if known[disk].size != source.size:
            raise DriftError(f"{source.name} has another size than when it was copied", Where(source.name),
                             f"{source.size} bytes, then {known[disk].size}", "copy it anew with --force")
    return known


def _refuse_packed(job: Job) -> None:
    if not job.form.EDITABLE:
        raise Unsupported(f"a {job.form.NAME} image cannot be written where it lies", str(job.path),
                          "its content has no place to be replaced", "copy again with --force")


def _refuse_edited(work: Work) -> None:
    if "plan" in work.run.state():
        raise PlanError("the guest in this image was edited since it was copied", Where(item=str(work.run.folder)),
                        "bringing it up to date would take the edits away", "copy the disk into another image")


# -- what a failing disk still gives


def retry(work: Work) -> dict[str, CopyReport] | None:
    """A finished rescue, gone on with: bad ranges are tried again, and what ddrescue has added is taken in.

    Returns the reports; None where there is nothing to do: nothing is bad or wanted, and no map has moved on.
    Raises PlanError, Unsupported; DeviceGone and Cancelled after what was read was kept.
    """
    reports = load_reports(work.run)
    kept = record.load_extents(work.run, {disk: report.size for disk, report in reports.items()})
    rescues = [rescue for disk in work.disks if map_path(work.run, disk).exists() and not
               work.jobs[disk].form.SEQUENTIAL for rescue in [_Again(work, disk, reports[disk], kept[disk])]]
    todo = [rescue for rescue in rescues if rescue.due]
    if not todo:
        return None
    _refuse_edited(work)
    for rescue in todo:
        if work.options.retries:
            work.run.save_state(retrying=True)
            rescue.read()
        reports[rescue.disk] = rescue.report()
        kept[rescue.disk] = rescue.extents()
    record.save_extents(work.run, kept)
    record.finish(work, reports)
    return reports


class _Again:
    """One disk's finished rescue."""

    def __init__(self, work: Work, disk: str, report: CopyReport, extents: Sequence[Extent]) -> None:
        self.disk, self._work, self._job, self._report, self._extents = disk, work, work.jobs[disk], report, extents
        self._path = map_path(work.run, disk)
        self._chart = from_text(self._path.read_text(), report.size, str(self._path))
        self._bad = [Range(extent.offset, extent.length) for extent in report.bad]
        self._free = [Range(extent.offset, extent.length) for extent in extents if extent.kind is Kind.FREE]

    @property
    def due(self) -> bool:
        """Is there anything to do?"""
        moved = next(_finished(self._chart, [*self._bad, *self._free]), None) is not None
        halfway = bool(self._work.run.state().get("retrying"))
        return moved or bool(self._bad and (self._work.options.retries or halfway))

    def read(self) -> None:
        """Try what is bad again; what comes is written into the image, and then marked in the map."""
        _refuse_packed(self._job)
        source = self._work.disks[self.disk]
        with _writable(self._job) as handle:
            saved = time.monotonic()

            def save() -> None:
                handle.flush()
                save_bytes(self._path, self._chart.to_text(["Rescue by p2v"]).encode())

            def tick() -> None:
                nonlocal saved
                self._work.progress(f"{self.disk} {rescue.stage}", source.size - rescue.lost(), source.size)
                if self._work.cancel is not None and self._work.cancel.is_set():
                    raise Cancelled("the rescue was stopped", Where(source.name), "you asked for it; its map is kept",
                                    "to go on, give the same command with --resume")
                if time.monotonic() - saved >= self._work.options.seconds:
                    save()
                    saved = time.monotonic()

            rescue = Rescue(source, self._bad, self._chart, lambda at, data: handle.pwrite(bytes(data), at),
                            retries=self._work.options.retries, tick=tick)
            try:
                rescue.run()
            finally:
                save()

    def report(self) -> CopyReport:
        """As the image is now: the digests of what may have changed are taken again."""
        report, chart = self._report, self._chart
        digests = Digests.from_json(report.size, report.digests.to_json())
        free = list(_finished(chart, self._free))
        with contextlib.closing(image_of(self._job, report.size)) as image:
            for index in sorted({index for span in (*self._bad, *free)
                                 for index in range(span.offset // CHUNK, -(-span.end // CHUNK))}):
                length = min(CHUNK, report.size - index * CHUNK)
                digests.put(index, digest_of(read(image, index * CHUNK, length)))
        saved = list(_finished(chart, self._bad))
        left = [part for span in self._bad for part in _without(span, saved)]
        found, added = sum(span.length for span in saved), sum(span.length for span in free)
        change = dict(zip(COUNTED, (found + added, 0, 0, -added, -found), strict=True))
        return CopyReport(report.size, digests, {name: report.counts[name] + change[name] for name in COUNTED},
                          tuple(Extent(span.offset, span.length, Kind.BAD) for span in left), report.seconds)

    def extents(self) -> list[Extent]:
        """What was copied, with what ddrescue has added."""
        added = list(_finished(self._chart, self._free))
        merger = Merger()
        for extent in self._extents:
            at = extent.offset
            for span in added if extent.kind is Kind.FREE else ():
                low, high = max(span.offset, extent.offset), min(span.end, extent.end)
                if low < high:
                    merger.add(at, low, Kind.FREE)
                    merger.add(low, high, Kind.DATA)
                    at = high
            merger.add(at, extent.end, extent.kind)
        return merger.extents()


def _finished(chart: Mapfile, spans: Sequence[Range]) -> Iterator[Range]:
    """What of these is read by now."""
    for span in spans:
        for block in chart.blocks(span.offset, span.end):
            if block.status is Status.FINISHED:
                yield Range(block.offset, block.length)


def _without(span: Range, gone: Sequence[Range]) -> Iterator[Range]:
    """What is left of a range. gone: ascending."""
    at = span.offset
    for part in gone:
        low, high = max(part.offset, span.offset), min(part.end, span.end)
        if low < high:
            if at < low:
                yield Range(at, low - at)
            at = high
    if at < span.end:
        yield Range(at, span.end - at)


# -- images


def image_of(job: Job, size: int) -> Source:
    """The disk in an image, through the format's own reader; of a device what was written there."""
    image = job.form.read(str(job.path))
    return shortened(image, size) if job.device else image


@contextlib.contextmanager
def _writable(job: Job) -> Iterator[Any]:
    from p2v.stage import opened_for_writing

    with opened_for_writing(str(job.path), QEMU_DRIVERS.get(job.form.SUFFIX, "raw")) as handle:
        yield handle
