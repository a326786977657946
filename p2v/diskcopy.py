"""One disk into one image: a healthy pass, and a rescue from the first bad place on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2v.checkpoint import Checkpoint, Keeper, tie
from p2v.copy import CopyReport, report_of, run_copy
from p2v.errors import Cancelled, DriftError, ReadError, Unsupported, Where, WriteError
from p2v.keeping import Job, clear, refuse_another_disk, refuse_another_target
from p2v.model import Cancel, Extent, ImageWriter, Progress, Source
from p2v.rescue import Once
from p2v.rundir import RunDir, save_bytes
from p2v.salvage import Salvage
from p2v.source.device import DeviceGone
from p2v.source.paced import Paced

SECONDS = 20.0  # between two checkpoints


@dataclass(frozen=True, slots=True)
class Options:
    """How to copy. everything: also what a filesystem calls free. rate: bytes a second, 0 for any.

    retries: of sectors that stay unreadable. seconds: between two checkpoints.
    """

    everything: bool = False
    rate: int = 0
    retries: int = 0
    seconds: float = SECONDS


@dataclass(frozen=True, slots=True)
class DiskCopy:
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
        if found is not None and found.at == size and self.job.path.exists() and not self.job.device:
            return report_of(found, self.extents)
        if found is None:
            clear(self.job)
        elif not found.map:  # a failing disk is not read for this
            refuse_another_disk(self.source, self.extents, found)
        if found is not None and self.job.device:
            with contextlib.closing(form.read(str(self.job.path))) as target:
                refuse_another_target(target, found)
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
        safe = f"what was read is safe on {self.job.path}" if self.job.device else \
            f"what was read is safe in {self.job.path}.part"
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
