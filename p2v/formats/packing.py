"""Compressed images: ascending writes are cut into units, packed by a few threads, and handed on in order.

Whoever writes waits only when the threads are behind, so memory stays bounded; what is packed comes out
in the order in which it went in, in the writing thread. A unit that is nowhere written never comes out.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeAlias, TypeVar

from p2v.errors import PlanError, Unsupported, Where

UNIT = 64 << 10  # bytes: a qcow2 cluster, a VMDK grain
BATCH = 16  # units packed in one go: a future costs as much as packing half a unit
GROUP = 512  # units; no batch reaches across two groups: a VMDK grain table maps one

Unit: TypeAlias = tuple[int, memoryview]  # its number on the disk, and its UNIT bytes
Packed = TypeVar("Packed")


class Packer(Generic[Packed]):
    """pack() runs in threads, emit() in whichever thread writes, one at a time and ascending.

    path: for messages. size: of the disk, bytes. kind, instead: this format, and one that takes any order.
    """

    def __init__(
        self,
        path: str,
        size: int,
        kind: str,
        instead: str,
        pack: Callable[[Sequence[Unit]], Packed],
        emit: Callable[[Packed], None],
    ) -> None:
        self._path, self._size, self._kind, self._instead = path, size, kind, instead
        self._pack, self._emit = pack, emit
        threads = max(2, min(16, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(threads, "p2v-pack")
        self._most = 2 * threads  # batches under way
        self._under_way: deque[Future[Packed]] = deque()
        self._batch: list[Unit] = []
        self._open: tuple[int, bytearray] | None = None  # a unit of which only a part has been written
        self._next = 0  # nothing before this byte of the disk may be written any more

    def write(self, offset: int, data: memoryview) -> None:
        """Take data at byte offset. Raises PlanError where it is not ascending, what emit() raises."""
        self._ascend(offset, len(data))
        done = 0
        while done < len(data):
            index, inside = divmod(offset + done, UNIT)
            whole = (len(data) - done) // UNIT
            if not inside and whole:
                self._close()
                units = memoryview(bytes(data[done : done + whole * UNIT]))
                for number in range(whole):
                    self._add(index + number, units[number * UNIT : (number + 1) * UNIT])
                done += whole * UNIT
            else:
                step = min(UNIT - inside, len(data) - done)
                self._opened(index)[inside : inside + step] = data[done : done + step]
                done += step

    def zero(self, offset: int, length: int) -> None:
        """What is not written is zero. Raises PlanError where it is not ascending."""
        self._ascend(offset, length)

    def drain(self) -> None:
        """All that was written has been handed on when this returns, and no thread is left."""
        self._close()
        self._submit()
        while self._under_way:
            self._emit(self._under_way.popleft().result())
        self._pool.shutdown()

    def cancel(self) -> None:
        """Forget what is under way; no thread is left. Safe to call at any time."""
        self._pool.shutdown(cancel_futures=True)
        self._under_way.clear()
        self._batch.clear()

    def _ascend(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} of a disk of {self._size:#x}")
        if offset < self._next:
            raise PlanError(f"{self._kind} is written from the first byte of a disk to the last",
                            Where(self._path, offset, length or None),
                            f"all before byte {self._next:#x} is packed already",
                            f"use {self._instead}, which can be written in any order")
        self._next = offset + length

    def _opened(self, index: int) -> bytearray:
        if self._open is not None and self._open[0] == index:
            return self._open[1]
        self._close()
        self._open = index, bytearray(UNIT)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._add(self._open[0], memoryview(self._open[1]))
            self._open = None

    def _add(self, index: int, data: memoryview) -> None:
        batch = self._batch
        if batch and (len(batch) == BATCH or batch[0][0] // GROUP != index // GROUP):
            self._submit()
        self._batch.append((index, data))

    def _submit(self) -> None:
        if self._batch:
            self._under_way.append(self._pool.submit(self._pack, self._batch))
            self._batch = []
        while self._under_way and (len(self._under_way) > self._most or self._under_way[0].done()):
            self._emit(self._under_way.popleft().result())


def no_resume(path: str, kind: str, instead: str) -> Unsupported:
    """Why a format of this kind has no checkpoint."""
    return Unsupported(f"an interrupted {kind} image cannot be gone on with", Where(path),
                       "it is packed from the first byte to the last",
                       f"begin again, or use {instead}, which can be resumed")
