"""Where a copy goes that makes no new file: an image that exists, a pipe, or nowhere."""

from __future__ import annotations

import os
from typing import Any

from p2v.errors import WriteError

_ZEROES = memoryview(bytes(1 << 20))


class Nowhere:
    """Takes everything and keeps nothing: the source is measured."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Forget it."""

    def zero(self, offset: int, length: int) -> None:
        """Forget it."""

    def checkpoint(self) -> bytes:
        """There is nothing to go on from."""
        return b""

    def finish(self) -> None:
        """Nothing is left to do."""

    def abort(self) -> None:
        """Nothing is there to remove."""


class Pipe(Nowhere):
    """The raw disk, from its first byte to its last, into an open file descriptor; zeroes are sent."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at = fd, 0

    def write_at(self, offset: int, data: memoryview) -> None:
        """Send data, which follows what was sent before. Raises WriteError."""
        if offset != self._at:
            raise ValueError(f"a pipe is at {self._at:#x}, not at {offset:#x}")
        self._at += len(data)
        try:
            while len(data):
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise WriteError(f"cannot write to the pipe: {error.strerror}", f"byte {offset:#x} of the disk",
                             "whoever reads from it has gone, or its medium is full",
                             "begin again: what was sent cannot be gone on with") from error

    def zero(self, offset: int, length: int) -> None:
        """Send zeroes."""
        for at in range(offset, offset + length, len(_ZEROES)):
            self.write_at(at, _ZEROES[: min(len(_ZEROES), offset + length - at)])


class Existing(Nowhere):
    """An image that exists, through the handle of stage.opened_for_writing, whose errors leave there."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def write_at(self, offset: int, data: memoryview) -> None:
        """Replace what was there."""
        self._handle.pwrite(bytes(data), offset)

    def zero(self, offset: int, length: int) -> None:
        """Replace what was there by zeroes."""
        for at in range(offset, offset + length, len(_ZEROES)):
            self._handle.pwrite(bytes(_ZEROES[: min(len(_ZEROES), offset + length - at)]), at)

    def finish(self) -> None:
        """What was written is on the medium when this returns."""
        self._handle.flush()
