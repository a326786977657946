"""The streaming core: what is to be copied, one pass into an image, and the check of the image.

A digest is of a chunk as written: what is skipped or unreadable counts as zeroes. Nothing here knows
an image format; a healthy disk reaches the writer once, ascending.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from p2v.careful import Rescue, fill
from p2v.digests import ALGORITHM, Digests, digest_of
from p2v.errors import Cancelled, LayoutError, MismatchError, ReadError, Unsupported, Where
from p2v.extents import Merger, append, check, overlap, union
from p2v.model import Cancel, Extent, ImageWriter, Kind, Progress, Range, Source, no_progress
from p2v.ring import CHUNK, GRAIN, Item, Result, Stopped, in_order, items

if TYPE_CHECKING:
    import numpy.typing


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
                                  next="verify with the p2v that wrote them")
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
) -> CopyReport:
    """Copy source into writer in one ascending pass. Neither finishes nor aborts the writer.

    extents: from plan_copy(). A chunk that fails to read is read again down to one sector; what stays
    unreadable is written as zeroes and reported.
    Raises WriteError from the writer, ReadError when the device itself seems gone, Cancelled.
    No thread is left when it returns or raises.
    """
    check(extents, source.size)
    begun = time.monotonic()
    job = _Copy(source, writer)
    _pass(source.size, extents, job, "copy", progress, cancel)
    return CopyReport(source.size, job.digests, job.counts(extents), job.all_bad(extents),
                      time.monotonic() - begun)


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


class _Scan:
    """A chunk in memory: which of its grains hold anything, and its digest. digest None: all is zero."""

    __slots__ = ("bad", "buffer", "digest", "length", "live")

    def __init__(self, item: Item, buffer: memoryview, bad: Sequence[Range] = ()) -> None:
        self.buffer, self.length, self.bad = buffer, item.length, bad
        self.live = _live(buffer)
        self.digest = digest_of(buffer[: item.length]) if any(self.live) else None

    def runs(self) -> Iterator[tuple[int, int, bool]]:
        """(start, end, live), ascending: bytes of the chunk in whole grains, the last one cut short."""
        if all(self.live):
            yield 0, self.length, True
            return
        start = 0
        for grain in range(1, -(-self.length // GRAIN)):
            if self.live[grain] != self.live[grain - 1]:
                yield start, grain * GRAIN, self.live[grain - 1]
                start = grain * GRAIN
        yield start, self.length, self.live[(self.length - 1) // GRAIN]


def _live(buffer: memoryview) -> list[bool]:
    """For each grain of a full chunk's buffer: is any byte not zero?"""
    import numpy as np

    words: numpy.typing.NDArray[numpy.uint64]
    words = np.frombuffer(buffer, np.uint64).reshape(CHUNK // GRAIN, -1)
    largest = words[:, ::512].max(axis=1)  # sixteen looks each: enough for most data
    if not largest.all():
        largest = words.max(axis=1)  # at memory speed; any() is half as fast on u64
    return [bool(word) for word in largest.tolist()]


class _Copy:
    """run_copy's two halves: read() in any thread, hand_on() one at a time and ascending."""

    def __init__(self, source: Source, writer: ImageWriter) -> None:
        self._source, self._writer = source, writer
        self._rescue = Rescue(source)
        self.digests = Digests(source.size)
        self._found_zero = 0
        self._bad: list[Range] = []
        self.done = 0

    def read(self, item: Item, buffer: memoryview, stopped: Stopped) -> _Scan | None:
        if not item.reads:
            return None
        try:
            fill(self._source, item, buffer)
        except ReadError:
            return _Scan(item, buffer, self._rescue.fill(item, buffer, stopped))
        self._rescue.note(item)
        return _Scan(item, buffer)

    def hand_on(self, item: Item, result: _Scan | None) -> None:
        if result is None:
            self._writer.zero(item.offset, item.length)
        else:
            self._write(item, result)
        self.done += item.length

    def _write(self, item: Item, scan: _Scan) -> None:
        for start, end, live in scan.runs():
            if live:
                self._writer.write_at(item.offset + start, scan.buffer[start:end])
                continue
            self._writer.zero(item.offset + start, end - start)
            span = Range(item.offset + start, end - start)
            self._found_zero += overlap(item.pieces, span) - overlap(scan.bad, span)
        if scan.digest is not None:
            self.digests.put(item.index, scan.digest)
        for part in scan.bad:
            append(self._bad, part)

    def all_bad(self, extents: Iterable[Extent]) -> tuple[Extent, ...]:
        """What could not be read now, and what the plan already called BAD."""
        known = [Range(e.offset, e.length) for e in extents if e.kind is Kind.BAD]
        return tuple(Extent(r.offset, r.length, Kind.BAD) for r in union([*known, *self._bad]))

    def counts(self, extents: Iterable[Extent]) -> dict[str, int]:
        """By the names in COUNTED."""
        planned = dict.fromkeys(Kind, 0)
        for extent in extents:
            planned[extent.kind] += extent.length
        lost = sum(r.length for r in self._bad)
        copied = planned[Kind.DATA] - lost - self._found_zero
        return dict(zip(COUNTED, (copied, self._found_zero, planned[Kind.ZERO], planned[Kind.FREE],
                                  planned[Kind.BAD] + lost), strict=True))


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
            return not any(_live(buffer))
        return True

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
        progress(stage, job.done, size)
        if cancel is not None and cancel.is_set() and job.done < size:
            raise Cancelled(f"the {stage} was stopped at {job.done} of {size} bytes",
                            next="start the same command again")

    tick()
    in_order(items(extents, size), job.read, job.hand_on, tick)
