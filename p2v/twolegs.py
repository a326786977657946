"""Reads the other leg of a mirror beside a copy of the chosen one, and says where the two differ.

The twin is digested as the copy digests what it writes, at its own device's pace; only chunks whose digests
differ are read again, leg against leg. A twin that goes away ends the comparison, never the copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from p2v.chunks import ChunkReader
from p2v.comparing import Bounded, Comparison, compare, cut, data_of, hanging
from p2v.copy import CopyReport
from p2v.digests import Digests
from p2v.errors import Cancelled, Finding, ReadError, Severity, Where
from p2v.extents import intersection, union, without
from p2v.model import Cancel, Extent, Kind, Progress, Range, Source, no_progress
from p2v.ring import CHUNK, TICK, items
from p2v.scan import Scan

SAMPLE = 2048  # chunks that are looked at closely before anything else is known of a difference
PATIENCE = 120.0  # seconds without a chunk after which a twin is given up, once nothing else is to do


class Beside:
    """Digests twin in a thread of its own for as long as the context lasts.

    twin: as long as what is copied, the other leg where that has the chosen one. extents: those of the copy.
    """

    def __init__(self, twin: Source, extents: Sequence[Extent], *, patience: float = PATIENCE) -> None:
        self._twin, self._extents, self._patience = twin, extents, patience
        self._digests = Digests(twin.size)
        self._bad = Bounded()
        self._at, self._beat = 0, time.monotonic()  # all before byte _at is digested; when that was
        self._ended = False
        self._failed: ReadError | None = None
        self._thread = threading.Thread(target=self._run, name=f"p2v-beside {twin.name}", daemon=True)

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._ended = True
        self._thread.join()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Why the comparison ended early, if it did."""
        if self._failed is None:
            return ()
        return (Finding(
            f"the comparison with {self._twin.name} ended early", self._failed.where,
            f"{self._failed.what}: {self._failed.why}; the image is the chosen leg's and lacks nothing by that, but "
            "nobody knows whether the legs are equal",
            "check that disk if it is still needed; --single-leg leaves it alone", Severity.WARNING),)

    def compare(
        self, report: CopyReport, primary: Source, *, within: Range | None = None, names: Sequence[str] = (),
        progress: Progress = no_progress, cancel: Cancel | None = None,
    ) -> Comparison:
        """What comes of it when the copy is done. Waits for the twin as long as something is read of it.

        report: of the copy. primary: the chosen leg where twin has the other one, without any edits. within: the
        bytes to tell about: a volume's place on the disk; the comparison is in the volume's own bytes then.
        Raises Cancelled. A leg that fails now ends the comparison, too: see findings.
        """
        self._wait(cancel)
        span = within or Range(0, self._twin.size)
        data = intersection([Range(e.offset, e.length) for e in self._extents if e.kind is Kind.DATA], [span])
        seen = intersection(data, [Range(0, self._at)]) if self._at else []
        bad = (union(Range(e.offset, e.length) for e in report.bad), self._bad.ranges)
        good = without(seen, union([*bad[0], *bad[1]]))
        differ = [index for index in report.digests.differing(self._digests)
                  if span.offset < (index + 1) * CHUNK and index * CHUNK < span.end]
        found, left = self._closely(differ, good, primary, progress, cancel)
        left = union([*without(data, seen), *left])
        unreadable = tuple(tuple(union([*one, *more])) for one, more in zip(bad, found.unreadable, strict=True))
        lost = union([*unreadable[0], *unreadable[1]])
        return cut(replace(
            found, names=tuple(names) or (primary.name, self._twin.name), unreadable=unreadable, left=tuple(left),
            compared=sum(part.length for part in without(without(seen, left), lost)),
            grain=max(self._bad.grain, found.grain)), span)

    def _closely(
        self, differ: Sequence[int], good: Sequence[Range], primary: Source, progress: Progress,
        cancel: Cancel | None,
    ) -> tuple[Comparison, list[Range]]:
        """Leg against leg in chunks whose digests differ, and what is left of them.

        A twin detached long ago differs everywhere: then SAMPLE chunks from all over the disk must do.
        """
        step = max(1, -(-len(differ) // SAMPLE))
        found = Comparison(self._twin.size, ("", ""), 0, (), 0, ((), ()))
        left: list[Range] = []
        for some in (differ[::step], [index for at, index in enumerate(differ) if at % step]):
            doubtful = intersection(good, union(Range(index * CHUNK, CHUNK) for index in some))
            again = self._again(doubtful, primary, progress, cancel) if doubtful and not found.differences else None
            if again is None:
                left += doubtful
            else:
                found = _both(found, again)
        return found, left

    def _wait(self, cancel: Cancel | None) -> None:
        """Until the twin is through, gone, or given up."""
        begun = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(TICK)
            if cancel is not None and cancel.is_set():
                raise Cancelled("the comparison of the legs was stopped", Where(self._twin.name),
                                f"you asked for it; it had come to byte {self._at:#x}", "start the same command again")
            if time.monotonic() - max(self._beat, begun) > self._patience:
                self._failed = hanging(self._twin.name, self._patience)
                self._ended = True
                return

    def _again(
        self, doubtful: Sequence[Range], primary: Source, progress: Progress, cancel: Cancel | None
    ) -> Comparison | None:
        """None where that cannot be had."""
        if self._failed is not None:
            return None
        try:
            # gaps as BAD: nothing is read along, for it may be unreadable
            return compare([primary, self._twin], size=self._twin.size, progress=progress, cancel=cancel,
                           extents=data_of(doubtful, self._twin.size, Kind.BAD), patience=self._patience)
        except ReadError as error:
            self._failed = error
            return None

    def _run(self) -> None:
        reader = ChunkReader(self._twin, items(self._extents, self._twin.size))
        try:
            while (chunk := reader.take(self._tick)) is not None:
                scan = Scan(chunk.item, chunk.buffer, chunk.bad)
                if scan.digest is not None:
                    self._digests.put(chunk.item.index, scan.digest)
                for part in chunk.bad:
                    self._bad.add(part)
                self._at, self._beat = chunk.item.offset + chunk.item.length, time.monotonic()
                reader.give_back(chunk)
                self._tick()
            self._at = self._twin.size
        except _Over:
            pass
        except ReadError as error:
            self._failed = error
        finally:
            reader.stop()

    def _tick(self) -> None:
        if self._ended:
            raise _Over


def _both(one: Comparison, two: Comparison) -> Comparison:
    """Of other chunks of the same legs."""
    return replace(
        one, differences=tuple(union([*one.differences, *two.differences])), different=one.different + two.different,
        unreadable=tuple(tuple(union([*a, *b])) for a, b in zip(one.unreadable, two.unreadable, strict=True)),
        grain=max(one.grain, two.grain))


class _Over(Exception):
    """Nobody waits any more. Never leaves the module."""
