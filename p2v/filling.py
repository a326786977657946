"""Fills what a copy of one leg could not read from the other leg, in the image that is still open.

Only from a twin that is in step: one that was detached months ago would fill the holes with what was there then,
and nobody would notice. Chunk by chunk: what the twin gives at once first, then ddrescue's phases on both legs.
Before a chunk is touched, all else of it is read again and must have the digest that the copy took.
"""

from __future__ import annotations

import bisect
import copy
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2v.careful import blank
from p2v.checkpoint import Checkpoint, Keeper
from p2v.copy import CopyReport, hand_over
from p2v.errors import Cancelled, Finding, ReadError, Severity, Where
from p2v.extents import append, intersection, union, without
from p2v.mapfile import Mapfile
from p2v.model import Cancel, Extent, ImageFormat, ImageWriter, Kind, Progress, Range, Source, no_progress
from p2v.rescue import Once, Rescue
from p2v.ring import CHUNK, Item
from p2v.scan import Scan
from p2v.source.device import DeviceGone


@dataclass(frozen=True, slots=True)
class Filled:
    """A range that one leg could not read, which leg it is from instead, and why from there.

    again: it is from the same leg after all. stale: it is from a leg that is not in step, by the user's word.
    """

    range: Range
    leg: str
    reason: str
    again: bool = False
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Filling:
    """report: of the copy, with what was filled. filled: ascending."""

    report: CopyReport
    filled: tuple[Filled, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two legs of a mirror as two disks that are alike outside of it.

    primary: what was copied, edits included. twin: the same with the other leg. names: of the legs. in_step: does a
    comparison say that they hold the same? within: the mirror's place on the disk; None for all of it.
    coarse: primary was copied through coarse.Coarse, so that what is BAD may be readable in part: where the twin must
    not help, or cannot, it is read as a rescue does.
    stale_too: the user's word that a twin that is not in step may fill, but for what lies in except_in.
    """

    primary: Source
    twin: Source
    names: tuple[str, str]
    in_step: bool
    within: Range | None = None
    coarse: bool = False
    stale_too: bool = False
    except_in: tuple[Range, ...] = ()


def fill(
    report: CopyReport, extents: Sequence[Extent], writer: ImageWriter, form: ImageFormat, pair: Pair, *,
    retries: int = 0, keeper: Keeper | None = None, progress: Progress = no_progress, cancel: Cancel | None = None,
) -> Filling:
    """Fill the BAD ranges of a copy.

    report, extents: of the copy. writer: of the image, all copied, not finished; form: its format. retries: of what
    neither leg gives. keeper: is given a checkpoint when something was filled, for the digests are others then; cut
    short before, the same filling can be done again.
    Raises WriteError, Cancelled; ValueError for a coarse copy into a SEQUENTIAL format. A leg that goes away leaves
    what is not filled yet, with a finding.
    """
    bad = [Range(extent.offset, extent.length) for extent in report.bad]
    wanted = intersection(bad, [pair.within]) if pair.within else bad
    if not wanted:
        return Filling(report)
    if form.SEQUENTIAL and pair.coarse:
        raise ValueError(f"{form.NAME} cannot be filled: copy it with care")
    refusal = _refusal(wanted, form, pair)
    if refusal is not None and not pair.coarse:
        return Filling(report, (), (refusal,))
    done = _Fill(report, extents, writer, pair, bad, wanted, retries).run(progress, cancel)
    if keeper is not None and done.filled:
        chunks = {index for one in done.filled for index in chunks_of(one.range)}
        keeper.keep(_checkpoint(done.report, extents, keeper.tie, writer.checkpoint()), sorted(chunks), report.size)
    left = intersection([Range(extent.offset, extent.length) for extent in done.report.bad], wanted)
    refusal = _refusal(left, form, pair) if left else None
    return replace(done, findings=(*done.findings, refusal)) if refusal is not None else done


def chunks_of(span: Range) -> range:
    """The numbers of the chunks that a range touches."""
    return range(span.offset // CHUNK, -(-span.end // CHUNK))


def _checkpoint(report: CopyReport, extents: Sequence[Extent], tie: str, state: bytes) -> Checkpoint:
    """Of a copy that is through. What extents call BAD is not repeated in it."""
    known = [Range(extent.offset, extent.length) for extent in extents if extent.kind is Kind.BAD]
    bad = without([Range(extent.offset, extent.length) for extent in report.bad], known)
    return Checkpoint(tie, report.size, state, report.counts["found_zero"], tuple(bad), report.seconds, report.digests)


def _refusal(wanted: Sequence[Range], form: ImageFormat, pair: Pair) -> Finding | None:
    amount = sum(span.length for span in wanted)
    where = Where(pair.names[0], wanted[0].offset, wanted[0].length)
    if form.SEQUENTIAL:
        return Finding(f"{amount} unreadable bytes are not taken from {pair.names[1]}", where,
                       f"{form.NAME} is written from its first byte to its last: nothing can be put in afterwards",
                       "choose another --format, for example qcow2, and convert again", Severity.WARNING)
    if not pair.in_step and not pair.stale_too:
        return Finding(f"{amount} unreadable bytes are not taken from {pair.names[1]}", where,
                       f"it is not known to hold the same as {pair.names[0]}: what is there now may be months old, and "
                       "would be mixed into newer files in silence; they are zeroes in the image",
                       "restore the files that are named from a backup; if old content is better than none, use "
                       "--rescue-from-stale", Severity.WARNING)
    return None


class _Fill:
    """One filling, in two rounds over the chunks."""

    def __init__(self, report: CopyReport, extents: Sequence[Extent], writer: ImageWriter, pair: Pair,
                 bad: Sequence[Range], wanted: Sequence[Range], retries: int) -> None:
        self._report, self._writer, self._pair, self._retries = report, writer, pair, retries
        self._bad, self._wanted = _Ranges(bad), _Ranges(wanted)
        stale = without(wanted, union(pair.except_in)) if pair.stale_too else []
        self._allowed = _Ranges(wanted if pair.in_step else stale)  # from the twin
        self._needed = _Ranges(union(Range(e.offset, e.length) for e in extents if e.kind in (Kind.DATA, Kind.BAD)))
        self._digests = copy.deepcopy(report.digests)
        self._found_zero = 0  # more than the copy found
        self._filled: list[Filled] = []
        self._moved: list[int] = []  # chunks that are not what was copied
        self._gone: dict[int, DeviceGone] = {}  # by the number of the leg
        self._buffer = memoryview(mmap.mmap(-1, CHUNK))

    def run(self, progress: Progress, cancel: Cancel | None) -> Filling:
        begun = time.monotonic()
        todo = sorted({index for span in self._wanted.ranges for index in chunks_of(span)})
        total, careful = len(todo), False
        for careful in (False, True):
            later = []
            for number, index in enumerate(todo):
                progress("fill from the other leg", total - len(todo) + number, total)
                if cancel is not None and cancel.is_set():
                    raise Cancelled("the filling from the other leg was stopped", Where(self._pair.names[1]),
                                    "you asked for it", "start the same command again")
                if not self._chunk(index, careful):
                    later.append(index)
            todo = later
        return Filling(self._new_report(time.monotonic() - begun), tuple(_merged(self._filled)),
                       tuple(self._findings()))

    # -- one chunk

    def _chunk(self, index: int, careful: bool) -> bool:
        """Fill what can be had of a chunk; False to try again with care."""
        span = Range(index * CHUNK, min(CHUNK, self._report.size - index * CHUNK))
        item = Item(span.offset, span.length, tuple(self._needed.inside(span)))
        bad = self._bad.inside(span)
        before = self._as_written(item, bad)
        if before is None:
            self._moved.append(index)
            return True
        got = self._carefully(span) if careful else self._at_once(span)
        if got is None:
            return False
        if got:
            taken = sorted(got, key=lambda one: one.range.offset)
            self._put(item, before, without(bad, union(one.range for one in taken)))
            self._filled += taken
        return True

    def _as_written(self, item: Item, bad: Sequence[Range]) -> Scan | None:
        """Into the buffer: the chunk as the copy wrote it; None where no leg has that any more.

        The twin is asked first: around a bad place the chosen leg is better left in peace.
        """
        legs = [self._pair.twin, self._pair.primary] if self._pair.in_step else [self._pair.primary]
        known = self._digests.digest(item.index)
        for leg in legs:
            blank(self._buffer, 0, CHUNK)
            try:
                for part in without(item.reads, bad):
                    Once(leg).read_into(part.offset, self._place(part))
            except ReadError:
                continue
            scan = Scan(item, self._buffer, bad)
            if (scan.digest or self._digests.zero(item.index)) == known:
                return scan
        return None

    def _at_once(self, span: Range) -> list[Filled] | None:
        """All that is wanted of a chunk from the twin, one try each; None where one fails, or the twin is stale."""
        allowed = self._wanted.inside(span)
        if 1 in self._gone or not self._pair.in_step:
            return None
        try:
            for part in allowed:
                Once(self._pair.twin).read_into(part.offset, self._place(part))
        except DeviceGone as error:
            self._gone[1] = error
            return None
        except ReadError:
            return None
        return [self._from(1, part) for part in allowed]

    def _carefully(self, span: Range) -> list[Filled]:
        """As much as both legs give; the one first whose bytes are better."""
        got: list[Filled] = []
        left = self._wanted.inside(span)
        for number in (1, 0) if self._pair.in_step else (0, 1):
            domain = left if number == 0 else intersection(left, self._allowed.inside(span))
            if domain and number not in self._gone:
                taken = self._rescued(number, domain)
                got += [self._from(number, part) for part in taken]
                left = without(left, taken)
        return got

    def _rescued(self, number: int, domain: Sequence[Range]) -> list[Range]:
        """What one leg gives of a chunk's ranges, into the buffer."""
        leg = (self._pair.primary, self._pair.twin)[number]
        taken: list[Range] = []

        def take(offset: int, data: memoryview) -> None:
            for part in intersection(domain, [Range(offset, len(data))]):
                self._place(part)[:] = data[part.offset - offset : part.end - offset]
                taken.append(part)

        try:
            Rescue(leg, domain, Mapfile(leg.size), take, retries=self._retries).run()
        except DeviceGone as error:
            self._gone[number] = error
        return union(taken)

    def _put(self, item: Item, before: Scan, bad: Sequence[Range]) -> None:
        """Write the chunk, and what it counts."""
        after = Scan(item, self._buffer, bad)
        self._found_zero += hand_over(self._writer, item, after) - hand_over(None, item, before)
        self._digests.put(item.index, after.digest or self._digests.zero(item.index))

    def _place(self, part: Range) -> memoryview:
        """Its place in the buffer."""
        at = part.offset % CHUNK
        return self._buffer[at : at + part.length]

    def _from(self, number: int, part: Range) -> Filled:
        first, second = self._pair.names
        if number == 0:
            return Filled(part, first, f"{first} could be read after all, " + (
                "looked at closely" if self._pair.coarse else "at another try"), again=True)
        if self._pair.in_step:
            return Filled(part, second, f"{first} cannot be read there; {second} can, and the two are in step")
        return Filled(part, second, f"{first} cannot be read there; {second} is stale, but you said to take it",
                      stale=True)

    # -- what came of it

    def _new_report(self, seconds: float) -> CopyReport:
        self._filled.sort(key=lambda one: one.range.offset)
        got: list[Range] = []
        for one in self._filled:
            append(got, one.range)
        amount = sum(part.length for part in got)
        counts = dict(self._report.counts)
        counts["bad"] -= amount
        counts["found_zero"] += self._found_zero
        counts["copied"] += amount - self._found_zero
        bad = tuple(Extent(part.offset, part.length, Kind.BAD) for part in without(self._bad.ranges, got))
        return replace(self._report, digests=self._digests, counts=counts, bad=bad,
                       seconds=self._report.seconds + seconds)

    def _findings(self) -> list[Finding]:
        found = [Finding(
            f"{self._pair.names[number]} went away while holes were filled", error.where,
            f"{error.what}: {error.why}; what could not be filled stays zeroes in the image",
            "check the disk and convert again", Severity.WARNING) for number, error in sorted(self._gone.items())]
        if self._moved:
            found.append(Finding(
                f"{len(self._moved)} chunks of 1 MiB with unreadable places were not filled",
                Where(self._pair.names[0], self._moved[0] * CHUNK, CHUNK),
                "what else they hold could not be read again as it was copied, so nobody could vouch for them",
                "convert again; if it happens again, rescue the disk with p2v image first", Severity.WARNING))
        return found


def _merged(filled: Sequence[Filled]) -> list[Filled]:
    """Touching ranges of one leg and reason as one."""
    found: list[Filled] = []
    for one in filled:
        last = found[-1] if found else None
        if last is not None and last.range.end == one.range.offset and last.reason == one.reason:
            found[-1] = replace(last, range=Range(last.range.offset, last.range.length + one.range.length))
        else:
            found.append(one)
    return found


class _Ranges:
    """Ascending ranges, of which those in one place are found quickly."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.ranges = list(ranges)
        self._ends = [part.end for part in self.ranges]

    def inside(self, span: Range) -> list[Range]:
        """What lies in span."""
        first = bisect.bisect_right(self._ends, span.offset)
        last = bisect.bisect_left(self._ends, span.end, first) + 1
        return intersection(self.ranges[first:last], [span])
