"""The streaming core: what is to be copied, one pass into an image, and the check of the image.

A digest is of a chunk as written: what is skipped or unreadable counts as zeroes. Nothing here knows
an image format; a healthy disk reaches the writer once, ascending.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from p2v.careful import Careful, fill
from p2v.checkpoint import Checkpoint, Keeper
from p2v.digests import ALGORITHM, Digests, digest_of
from p2v.errors import Cancelled, LayoutError, MismatchError, P2VError, ReadError, Unsupported, Where
from p2v.extents import Merger, append, check, overlap, union
from p2v.model import Cancel, Done, Extent, ImageWriter, Kind, Progress, Range, Source, no_progress
from p2v.ring import CHUNK, Item, Result, Stopped, after, in_order, in_steps, items
from p2v.scan import Scan, live

COUNTED = ("copied", "found_zero", "zero", "free", "bad")


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did.

    counts: bytes of the disk by what became of them, under the names in COUNTED; their sum is size.
    copied: read and stored; found_zero: read, and turned out zero; zero: the medium itself said so; free:
    skipped, nobody needs it; bad: unreadable, written as zeroes.
    bad: the unreadable ranges, merged. seconds: of wall time.
    """

    size: int
    digests: Digests = field(repr=False)
    counts: Mapping[str, int]
    bad: tuple[Extent, ...] = ()
    seconds: float = 0.0
    chunk_size: int = CHUNK
    algorithm: str = ALGORITHM

    def to_json(self) -> dict[str, Any]:
        """For the manifest; from_json() reads it back."""
        return {
            "size": self.size,
            "chunk_size": self.chunk_size,
            "algorithm": self.algorithm,
            "counts": dict(self.counts),
            "bad": [[extent.offset, extent.length] for extent in self.bad],
            "seconds": round(self.seconds, 3),
            "digests": self.digests.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CopyReport:
        """What to_json() wrote. Raises LayoutError for anything else, Unsupported for another algorithm."""
        try:
            if (data["algorithm"], data["chunk_size"]) != (ALGORITHM, CHUNK):
                raise Unsupported(f"digests of kind {data['algorithm']!r} per {data['chunk_size']!r} bytes",
                                  why="this p2v makes other ones", next="verify with the p2v that wrote them")
            size = int(data["size"])
            return cls(
                size,
                Digests.from_json(size, data["digests"]),
                {name: int(data["counts"][name]) for name in COUNTED},
                tuple(Extent(int(offset), int(length), Kind.BAD) for offset, length in data["bad"]),
                float(data["seconds"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LayoutError("the copy's record is damaged", why=repr(error),
                              next="take the manifest that the copy wrote") from error


def plan_copy(source: Source, free: Sequence[Range] = (), droppable: Sequence[Range] = ()) -> list[Extent]:
    """What to do with each byte of source: its own extents, with DATA in free or droppable ranges made FREE.

    ZERO stays ZERO and BAD stays BAD. Ascending, touching, from 0 to size, neighbours of one kind merged.
    free, droppable: bytes of the source, any order, overlaps allowed; what lies outside is ignored.
    """
    skipped = iter(union([*free, *droppable]))
    gap = next(skipped, None)
    plan = Merger()
    for extent in source.extents():
        if extent.kind is not Kind.DATA:
            plan.add(extent.offset, extent.end, extent.kind)
            continue
        at = extent.offset
        while at < extent.end:
            while gap is not None and gap.end <= at:
                gap = next(skipped, None)
            if gap is None or gap.offset >= extent.end:
                plan.add(at, extent.end, Kind.DATA)
                break
            plan.add(at, gap.offset, Kind.DATA)
            start, at = max(at, gap.offset), min(extent.end, gap.end)
            plan.add(start, at, Kind.FREE)
    found = plan.extents()
    check(found, source.size)
    return found


def run_copy(
    source: Source,
    extents: Sequence[Extent],
    writer: ImageWriter,
    *,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
    keeper: Keeper | None = None,
    resume: Checkpoint | None = None,
    careful: bool = True,
    known: Digests | None = None,
) -> CopyReport:
    """Copy source into writer in one ascending pass. Neither finishes nor aborts the writer.

    extents: from plan_copy(). A chunk that fails to read is read again down to one sector; what stays
    unreadable is written as zeroes and reported.
    keeper: is given checkpoints as they fall due, the last one when all is copied, or when the copy is
    stopped or the source fails. resume: one of them, whose state the writer was reopened from, of the same
    extents: the copy goes on from there. careful: without it the first unreadable chunk is a ReadError.
    known: what writer holds already: only chunks with another digest are written.
    Raises WriteError from the writer, ReadError when the device itself seems gone, Cancelled.
    No thread is left when it returns or raises.
    """
    check(extents, source.size)
    job = _Copy(source, writer, keeper, resume, careful, known, extents)
    try:
        _pass(source.size, extents, job, "copy", progress, cancel)
    except (Cancelled, KeyboardInterrupt, ReadError):
        with contextlib.suppress(P2VError):  # then the checkpoint before stands
            job.keep()
        raise
    job.keep()
    return job.report(extents)


def hand_over(writer: ImageWriter | None, item: Item, scan: Scan) -> int:
    """Write a chunk. Returns how many bytes of what was read turned out zero. writer: None to count only."""
    found = 0
    for start, end, lives in scan.runs():
        if not lives:
            span = Range(item.offset + start, end - start)
            found += overlap(item.pieces, span) - overlap(scan.bad, span)
        if writer is None:
            continue
        if lives:
            writer.write_at(item.offset + start, scan.buffer[start:end])
        else:
            writer.zero(item.offset + start, end - start)
    return found


def report_of(checkpoint: Checkpoint, extents: Sequence[Extent]) -> CopyReport:
    """The report of a copy whose last checkpoint this is. extents: what was copied."""
    known = [Range(e.offset, e.length) for e in extents if e.kind is Kind.BAD]
    bad = tuple(Extent(r.offset, r.length, Kind.BAD) for r in union([*known, *checkpoint.bad]))
    planned = dict.fromkeys(Kind, 0)
    for extent in extents:
        planned[extent.kind] += extent.length
    lost = sum(r.length for r in checkpoint.bad)
    counts = (planned[Kind.DATA] - lost - checkpoint.found_zero, checkpoint.found_zero, planned[Kind.ZERO],
              planned[Kind.FREE], planned[Kind.BAD] + lost)
    return CopyReport(checkpoint.digests.size, checkpoint.digests, dict(zip(COUNTED, counts, strict=True)), bad,
                      checkpoint.seconds)


def bad_in_any(*reports: CopyReport) -> list[Extent]:
    """What could not be read in one copy or another, merged."""
    found = union(Range(one.offset, one.length) for report in reports for one in report.bad)
    return [Extent(span.offset, span.length, Kind.BAD) for span in found]


def refuse_differing(again: CopyReport, report: CopyReport, name: str) -> None:
    """Is what was read again what was copied? Chunks that could not be read either time are left out.

    name: of the source. Raises MismatchError naming the first chunk that differs.
    """
    bad = bad_in_any(again, report)
    for index in again.digests.differing(report.digests):
        chunk = Range(index * again.chunk_size, again.chunk_size)
        if not any(one.offset < chunk.end and chunk.offset < one.end for one in bad):
            raise MismatchError("the source is not what was copied", Where(name, chunk.offset, chunk.length),
                                "it has changed since, or it answers differently from one read to the next",
                                "look at the disk's health; if the server has run since, copy it anew")


def verify_copy(
    source: Source, report: CopyReport, *, progress: Progress = no_progress, cancel: Cancel | None = None
) -> None:
    """Is the image's content what was copied? Every byte counts; what the image calls ZERO is not read.

    source: the image through a reader that shares no code with its writer. It may be larger than the
    disk was, by zeroes only.
    Raises MismatchError naming the first range that differs and how many do; ReadError; Cancelled.
    """
    if source.size < report.size:
        raise MismatchError(
            f"{source.name} is shorter than the disk that was copied",
            Where(source.name, source.size, report.size - source.size),
            f"it holds {source.size} bytes of {report.size}", "convert again")
    job = _Check(source, report)
    _pass(source.size, list(source.extents()), job, "verify", progress, cancel)
    if job.wrong:
        count = sum(-(-r.length // CHUNK) for r in job.wrong)
        first = job.wrong[0]
        raise MismatchError(
            f"{source.name} is not what was copied",
            Where(source.name, first.offset, first.length),
            f"{count} chunks of 1 MiB in {len(job.wrong)} places differ from the digests taken while "
            "copying; this is the first place",
            "if the VM has run since, that is expected; otherwise suspect the medium and convert again")


class _Copy:
    """run_copy's two halves: read() in any thread, hand_on() one at a time and ascending."""

    def __init__(
        self, source: Source, writer: ImageWriter, keeper: Keeper | None, resume: Checkpoint | None, careful: bool,
        known: Digests | None, extents: Sequence[Extent],
    ) -> None:
        self._tally = Tally(extents)
        self._source, self._writer, self._keeper = source, writer, keeper
        self._careful, self._is_careful, self._known = Careful(source), careful, known
        self._begun = time.monotonic() - (resume.seconds if resume else 0)
        self._digests = resume.digests if resume else Digests(source.size)
        self._found_zero = resume.found_zero if resume else 0
        self._bad = list(resume.bad) if resume else []
        self.done = self._kept = resume.at if resume else 0

    def read(self, item: Item, buffer: memoryview, stopped: Stopped) -> Scan | None:
        if not item.reads:
            return None
        try:
            fill(self._source, item, buffer)
        except ReadError:
            if not self._is_careful:
                raise
            return Scan(item, buffer, self._careful.fill(item, buffer, stopped))
        self._careful.note(item)
        return Scan(item, buffer)

    def hand_on(self, item: Item, result: Scan | None) -> None:
        if result is None:
            self._zero(item)
        else:
            self._write(item, result)
        self.done += item.length
        if self._keeper is not None and self._keeper.due(self.done):
            self.keep()

    def _zero(self, item: Item) -> None:
        if self._known is None:
            self._writer.zero(item.offset, item.length)
            return
        for index in self._known.not_zero(item.index, -(-item.length // CHUNK)):
            self._writer.zero(index * CHUNK, min(CHUNK, self._source.size - index * CHUNK))

    def _write(self, item: Item, scan: Scan) -> None:
        known = self._known
        same = known is not None and known.digest(item.index) == (scan.digest or known.zero(item.index))
        self._found_zero += hand_over(None if same else self._writer, item, scan)
        if scan.digest is not None:
            self._digests.put(item.index, scan.digest)
        for part in scan.bad:
            append(self._bad, part)

    def keep(self) -> None:
        """Have the image's checkpoint, then ours."""
        if self._keeper is None:
            return
        chunks = range(self._kept // CHUNK, -(-self.done // CHUNK))
        checkpoint = self._checkpoint(self._keeper.tie, self._writer.checkpoint())
        self._keeper.keep(checkpoint, self._digests.not_zero(chunks.start, len(chunks)), self.done)
        self._kept = self.done

    def told(self) -> int:
        """What has become of the bytes so far."""
        return self._tally.told(self.done, self._found_zero, sum(part.length for part in self._bad))

    def report(self, extents: Sequence[Extent]) -> CopyReport:
        """When all is copied."""
        return report_of(self._checkpoint("", b""), extents)

    def _checkpoint(self, tie: str, state: bytes) -> Checkpoint:
        return Checkpoint(tie, self.done, state, self._found_zero, tuple(self._bad),
                          time.monotonic() - self._begun, self._digests)


class Tally:
    """Counts for whoever watches: what was planned up to a place, and what came of it."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._left = iter(extents)
        self._sums = dict.fromkeys(Kind, 0)
        self._now = next(self._left, None)

    def told(self, done: int, found_zero: int, lost: int, left: int = 0) -> Done:
        """done: bytes of the disk, never fewer than the last time. left: of them, not read yet."""
        while self._now is not None and self._now.end <= done:
            self._sums[self._now.kind] += self._now.length
            self._now = next(self._left, None)
        sums = dict(self._sums)
        if self._now is not None:
            sums[self._now.kind] += max(0, done - self._now.offset)
        copied = max(0, sums[Kind.DATA] - found_zero - lost - left)
        return Done(done - left, dict(zip(COUNTED, (copied, found_zero, sums[Kind.ZERO], sums[Kind.FREE],
                                                    sums[Kind.BAD] + lost), strict=True)))


class _Check:
    """verify_copy's two halves."""

    def __init__(self, source: Source, report: CopyReport) -> None:
        self._source, self._report = source, report
        self.wrong: list[Range] = []
        self.done = 0

    def read(self, item: Item, buffer: memoryview, _stopped: Stopped) -> bool:
        """Is the chunk what it should be? A run of zeroes is judged in hand_on()."""
        if not item.reads:
            return True
        fill(self._source, item, buffer)
        size = self._report.size
        inside = max(0, min(size - item.offset, item.length))
        if inside and digest_of(buffer[:inside]) != self._report.digests.digest(item.index):
            return False
        if inside < item.length:  # past the disk's end: only zeroes
            buffer[:inside] = bytes(inside)
            return not any(live(buffer))
        return True

    def told(self) -> int:
        """How much is checked."""
        return self.done

    def hand_on(self, item: Item, result: bool) -> None:
        if not result:
            append(self.wrong, Range(item.offset, item.length))
        elif not item.reads and item.index < len(self._report.digests):
            count = min(-(-item.length // CHUNK), len(self._report.digests) - item.index)
            for index in self._report.digests.not_zero(item.index, count):
                at = index * CHUNK
                append(self.wrong, Range(at, min(CHUNK, self._source.size - at)))
        self.done += item.length


class _Job(Protocol[Result]):
    done: int

    def read(self, item: Item, buffer: memoryview, stopped: Stopped, /) -> Result: ...
    def hand_on(self, item: Item, result: Result) -> None: ...
    def told(self) -> int: ...


def _pass(
    size: int,
    extents: Iterable[Extent],
    job: _Job[Result],
    stage: str,
    progress: Progress,
    cancel: Cancel | None,
) -> None:
    """One pass over a source, with progress and cancellation."""

    def tick() -> None:
        progress(stage, job.told(), size)
        if cancel is not None and cancel.is_set() and job.done < size:
            raise Cancelled(f"the {stage} was stopped at {job.done} of {size} bytes",
                            why="you asked for it", next="start the same command again")

    tick()
    in_order(in_steps(after(items(extents, size), job.done)), job.read, job.hand_on, tick)
