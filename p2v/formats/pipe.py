"""An image into a pipe: from its first byte to its last, nothing is ever gone back to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from p2v.errors import WriteError
from p2v.formats.blocks import inside
from p2v.formats.part import PartFile
from p2v.model import ImageWriter

_ZEROES = memoryview(bytes(1 << 20))


class Pipe(PartFile):
    """An open file descriptor in place of OUT.part; closing it is its owner's affair."""

    def __init__(self, fd: int) -> None:
        self.path = self.part = Path("-")
        self._fd, self._to, self._at = -1, fd, 0

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Send data; what lies between it and what was sent before is zero. Raises WriteError."""
        if offset < self._at:
            raise ValueError(f"a pipe is at {self._at:#x}, not at {offset:#x}")
        while self._at < offset:
            self._send(_ZEROES[: min(len(_ZEROES), offset - self._at)])
        self._send(memoryview(data))

    @property
    def sent(self) -> int:
        """Bytes so far."""
        return self._at

    def publish(self) -> None:
        """All was sent already."""

    def discard(self) -> None:
        """What was sent cannot be taken back."""

    def _send(self, data: memoryview) -> None:
        try:
            while len(data):
                sent = os.write(self._to, data)
                data, self._at = data[sent:], self._at + sent
        except OSError as error:
            raise WriteError(f"cannot write to the pipe: {error.strerror}", f"byte {self._at:#x} of the image",
                             "whoever reads from it has gone, or its medium is full",
                             "begin again: what was sent cannot be gone on with") from error


class Streamed:
    """An image that holds the disk's bytes in one piece, sent as it is made: headers, the bytes, the tail.

    base: where the disk's bytes begin in the image. total: its size when the bytes are there. finish: what the
    format writes into a file at the end; all of it is known at the beginning.
    """

    def __init__(
        self, pipe: Pipe, size: int, base: int, total: int, finish: Callable[[PartFile, int], None]
    ) -> None:
        self._pipe, self._size, self._base, self._total = pipe, size, base, total
        notes = _Notes()
        finish(notes, size)
        self._tail = sorted(note for note in notes.made if note[0] >= base + size)
        for offset, data in sorted(note for note in notes.made if note[0] < base):
            pipe.write(offset, data)

    def write_at(self, offset: int, data: memoryview) -> None:
        inside(self._size, offset, len(data))
        self._pipe.write(self._base + offset, data)

    def zero(self, offset: int, length: int) -> None:
        inside(self._size, offset, length)
        if length:
            self._pipe.write(self._base + offset + length, b"")

    def checkpoint(self) -> bytes:
        """There is nothing to go on from."""
        return b""

    def finish(self) -> None:
        for offset, data in self._tail:
            self._pipe.write(offset, data)
        if self._pipe.sent < self._total:
            self._pipe.write(self._total, b"")

    def abort(self) -> None:
        """What was sent cannot be taken back."""


class _Notes(PartFile):
    """Remembers what is written, in place of a file."""

    def __init__(self) -> None:
        self._fd = -1
        self.made: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: memoryview | bytes) -> None:
        self.made.append((offset, bytes(data)))


def raw(pipe: Pipe, size: int) -> ImageWriter:
    """The disk's bytes as they are."""
    return Streamed(pipe, size, 0, size, lambda _part, _size: None)
