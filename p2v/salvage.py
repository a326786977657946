"""A failing disk into an image: what the rescue reads, put together to chunks, written, and remembered.

A chunk is handed to the image when all that is wanted of it is read, or when the rescue is over. Until then
it waits in memory, or in the spool: a sparse file of the run as long as the disk, of which only such chunks
take space. So each chunk has one digest, of what was written.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from p2v.checkpoint import Checkpoint, Keeper
from p2v.copy import CopyReport, Tally, hand_over, report_of
from p2v.errors import Cancelled, P2VError, ReadError, WriteError
from p2v.extents import append
from p2v.mapfile import Mapfile, Status, from_text
from p2v.model import Cancel, Extent, ImageWriter, Kind, Progress, Range, Source, no_progress
from p2v.rescue import Rescue
from p2v.ring import CHUNK, Item
from p2v.scan import Scan

OPEN = 32  # chunks in memory that wait for their rest
TELL = 0.5  # seconds between two looks at progress: counting what is left takes time


class Salvage:
    """One disk's rescue. begun: the checkpoint that it goes on from; its map is empty when it begins.

    writer: in the state of that checkpoint. spool: a path in the run. retries: of what stays bad. pause: called
    with the bytes of each read, and may wait.
    """

    def __init__(
        self, source: Source, extents: Sequence[Extent], writer: ImageWriter, begun: Checkpoint, spool: Path,
        keeper: Keeper, *, retries: int = 0, progress: Progress = no_progress, cancel: Cancel | None = None,
        pause: Callable[[int], object] = int,
    ) -> None:
        self._source, self._extents, self._writer = source, extents, writer
        self._begun, self._keeper = begun, keeper
        self._progress, self._cancel, self._pause = progress, cancel, pause
        self._when = time.monotonic() - begun.seconds
        self._told = self._read = 0.0
        self._found_zero = begun.found_zero
        self._digests = begun.digests
        self._new: set[int] = set()  # chunks with a digest that no checkpoint has
        self._domain = [Range(max(e.offset, begun.at), e.end - max(e.offset, begun.at))
                        for e in extents if e.kind is Kind.DATA and e.end > begun.at]
        self._tally = Tally(extents)
        self._ends = [span.end for span in self._domain]
        self._chart = from_text(begun.map, source.size) if begun.map else self._first_map()
        self._spool = _Spool(spool, source.size, keep=bool(begun.map))
        self._open: dict[int, bytearray] = {}
        self._waiting = set(self._half()) if begun.map else set()  # in the spool
        self._rescue = Rescue(source, self._domain, self._chart, self._take, retries=retries, tick=self._tick)

    def run(self) -> CopyReport:
        """All phases, once. Raises DeviceGone, Cancelled, WriteError; the last checkpoint is saved before."""
        try:
            return self._run()
        finally:
            self._spool.close()

    def _run(self) -> CopyReport:
        try:
            self._rescue.run()
        except (Cancelled, KeyboardInterrupt, ReadError):
            with contextlib.suppress(P2VError):  # then the checkpoint before stands
                self._keep()
            raise
        for index in sorted({*self._open, *self._waiting}):
            self._settle(index, self._chunk(index))
        for span in self._lost():
            self._writer.zero(span.offset, span.length)
        self._keep(done=True)
        self._spool.remove()
        return report_of(self._checkpoint(b"", done=True), self._extents)

    # -- chunks

    def _take(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            index, at = divmod(offset + done, CHUNK)
            step = min(CHUNK - at, len(data) - done)
            chunk = self._chunk(index)
            chunk[at : at + step] = data[done : done + step]
            done += step
            if not any(True for _ in self._missing(index)):
                self._settle(index, chunk)
        while len(self._open) > OPEN:
            self._put_away(next(iter(self._open)))

    def _chunk(self, index: int) -> bytearray:
        """A chunk in memory."""
        chunk = self._open.pop(index, None)
        if chunk is None:
            chunk = self._spool.read(index) if index in self._waiting else bytearray(CHUNK)
        self._open[index] = chunk
        return chunk

    def _put_away(self, index: int) -> None:
        """Into the spool, and what there is of it into the image: ddrescue may go on with that."""
        chunk = self._open.pop(index)
        self._waiting.add(index)
        self._spool.write(index, chunk)
        hand_over(self._writer, self._item(index), self._scan(index, bytearray(chunk)))

    def _settle(self, index: int, chunk: bytearray) -> None:
        """All that can be had of the chunk is here."""
        scan = self._scan(index, chunk)
        self._found_zero += hand_over(self._writer, self._item(index), scan)
        if scan.digest is not None:
            self._digests.put(index, scan.digest)
            self._new.add(index)
        self._open.pop(index, None)
        self._waiting.discard(index)

    def _scan(self, index: int, chunk: bytearray) -> Scan:
        """The chunk as it is written: only what is wanted, and was read."""
        item = self._item(index)
        at = item.offset
        wanted = [*item.reads, Range(item.offset + CHUNK, 1)]
        missing = list(self._missing(index))
        for span in wanted:
            if span.offset > at:
                chunk[at - item.offset : span.offset - item.offset] = bytes(span.offset - at)
            at = span.end
        for span in missing:
            chunk[span.offset - item.offset : span.end - item.offset] = bytes(span.length)
        return Scan(item, memoryview(chunk)[:CHUNK], missing)

    def _item(self, index: int) -> Item:
        start, end = index * CHUNK, min((index + 1) * CHUNK, self._source.size)
        return Item(start, end - start, tuple(self._wanted(start, end)))

    def _wanted(self, start: int, end: int) -> Iterator[Range]:
        """The domain between two places."""
        for number in range(bisect.bisect_right(self._ends, start), len(self._domain)):
            span = self._domain[number]
            low, high = max(span.offset, start), min(span.end, end)
            if low >= high:
                return
            yield Range(low, high - low)

    def _missing(self, index: int) -> Iterator[Range]:
        """What is wanted of a chunk and not read."""
        for span in self._wanted(index * CHUNK, (index + 1) * CHUNK):
            for block in self._chart.blocks(span.offset, span.end):
                if block.status is not Status.FINISHED:
                    yield Range(block.offset, block.length)

    def _half(self) -> Iterator[int]:
        """The chunks of which something is read and something is not."""
        edges = {index for span in self._domain for block in self._chart.blocks(span.offset, span.end)
                 if block.status is not Status.FINISHED
                 for index in (block.offset // CHUNK, (block.end - 1) // CHUNK)}
        for index in edges:
            wanted = sum(span.length for span in self._wanted(index * CHUNK, (index + 1) * CHUNK))
            if sum(span.length for span in self._missing(index)) < wanted:
                yield index

    # -- progress

    def _first_map(self) -> Mapfile:
        """What is copied or zero is finished; what nobody needs is left for ddrescue."""
        chart = Mapfile(self._source.size)
        for extent in self._extents:
            if extent.kind is Kind.BAD:
                chart.set(extent.offset, extent.length, Status.BAD)
            elif extent.kind is Kind.ZERO:
                chart.set(extent.offset, extent.length, Status.FINISHED)
            elif extent.kind is Kind.DATA and extent.offset < self._begun.at:
                chart.set(extent.offset, min(extent.end, self._begun.at) - extent.offset, Status.FINISHED)
            if extent.kind is not Kind.DATA and extent.end > self._begun.at:
                self._writer.zero(extent.offset, extent.length)
        for span in self._begun.bad:
            chart.set(span.offset, span.length, Status.BAD)
        return chart

    def _tick(self) -> None:
        """Before each read."""
        self._pause(CHUNK // 16)
        self._read += CHUNK // 16
        now = time.monotonic()
        if now - self._told >= TELL:
            self._told = now
            lost, left = self._rescue.lost() + sum(part.length for part in self._begun.bad), self._rescue.left()
            told = self._tally.told(self._source.size, self._found_zero, lost, left)
            self._progress(self._rescue.stage, told, self._source.size)
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled("the rescue was stopped", why="you asked for it; its map is kept",
                                next="start the same command again with --resume")
        if self._keeper.due(int(self._read)):
            self._keep()

    def _keep(self, done: bool = False) -> None:
        for index in list(self._open):
            self._put_away(index)
        self._spool.sync()
        checkpoint = self._checkpoint(self._writer.checkpoint(), done)
        self._keeper.keep(checkpoint, sorted(self._new), int(self._read))
        self._new.clear()

    def _checkpoint(self, state: bytes, done: bool) -> Checkpoint:
        size = self._source.size
        known = self._begun.bad
        return Checkpoint(self._keeper.tie, size if done else self._begun.at, state, self._found_zero,
                          (*known, *self._lost()) if done else known, time.monotonic() - self._when, self._digests,
                          self._chart.to_text(["Rescue by p2v"]), done)

    def _lost(self) -> list[Range]:
        """What is wanted and could not be read."""
        lost: list[Range] = []
        for span in self._domain:
            for block in self._chart.blocks(span.offset, span.end):
                if block.status is not Status.FINISHED:
                    append(lost, Range(block.offset, block.length))
        return lost


class _Spool:
    """A sparse file as long as the disk. keep: go on with the one that is there."""

    def __init__(self, path: Path, size: int, *, keep: bool) -> None:
        self._path = path
        try:
            self._file = open(path, "r+b" if keep else "w+b", buffering=0)  # noqa: SIM115 -- closed by close()
            os.truncate(path, -(-size // CHUNK) * CHUNK)
        except OSError as error:
            raise self._failed(error) from error

    def read(self, index: int) -> bytearray:
        """A chunk."""
        chunk = bytearray(CHUNK)
        try:
            os.preadv(self._file.fileno(), [chunk], index * CHUNK)
        except OSError as error:
            raise self._failed(error) from error
        return chunk

    def write(self, index: int, chunk: bytearray) -> None:
        """Keep a chunk."""
        try:
            os.pwrite(self._file.fileno(), chunk, index * CHUNK)
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """What was written is on the medium when this returns."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def remove(self) -> None:
        """It has served."""
        self._path.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(f"cannot keep what was read: {error.strerror}", str(self._path),
                          "chunks of which a part is unreadable wait there",
                          "free some space there, then go on with --resume")
