"""Reads the other leg of a mirror beside a copy of the chosen one, and says where the two differ.

The twin is digested as the copy digests what it writes, at its own device's pace; only chunks whose digests
differ are read again, leg against leg. A twin that goes away ends the comparison, never the copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
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
        done = Range(0, self._at) if self._at else None
        data = [Range(e.offset, e.length) for e in self._extents if e.kind is Kind.DATA]
        data = intersection(data, [span])
        seen = intersection(data, [done]) if done else []
        bad = (union(Range(e.offset, e.length) for e in report.bad), list(self._bad.ranges))
        places = [Range(index * CHUNK, CHUNK) for index in report.digests.differing(self._digests)]
        doubtful = without(intersection(seen, union(places)), union([*bad[0], *bad[1]]))
        again = self._again(doubtful, primary, progress, cancel)
        left = [*without(data, seen), *(doubtful if again is None else ())]
        unreadable = tuple(tuple(union([*one, *more])) for one, more in
                           zip(bad, again.unreadable if again else ((), ()), strict=True))
        lost = union([*unreadable[0], *unreadable[1]])
        compared = sum(part.length for part in without(without(seen, union(left)), lost))
        found = Comparison(
            self._twin.size, tuple(names) or (primary.name, self._twin.name), compared,
            again.differences if again else (), again.different if again else 0, unreadable,
            max(self._bad.grain, again.grain if again else 0), tuple(union(left)))
        return cut(found, span)

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
        """Leg against leg, where the digests differ; None where that cannot be had."""
        size = self._twin.size
        if not doubtful:
            return Comparison(size, ("", ""), 0, (), 0, ((), ()))
        if self._failed is not None:
            return None
        try:
            # gaps as BAD: nothing is read along, for it may be unreadable
            return compare([primary, self._twin], size=size, extents=data_of(doubtful, size, Kind.BAD),
                           progress=progress, cancel=cancel, patience=self._patience)
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


class _Over(Exception):
    """Nobody waits any more. Never leaves the module."""
