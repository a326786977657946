"""Where a copy goes that makes no new file: an image that exists, or nowhere."""

from __future__ import annotations

from typing import Any

_STEP = 64 << 20  # bytes: NBD takes less than 4 GiB in one request


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


class Existing(Nowhere):
    """An image that exists, through the handle of stage.opened_for_writing, whose errors leave there."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def write_at(self, offset: int, data: memoryview) -> None:
        """Replace what was there."""
        self._handle.pwrite(bytes(data), offset)

    def zero(self, offset: int, length: int) -> None:
        """Replace what was there by a hole, where the format has such, else by zeroes."""
        for at in range(offset, offset + length, _STEP):
            self._handle.zero(min(_STEP, offset + length - at), at)

    def finish(self) -> None:
        """What was written is on the medium when this returns."""
        self._handle.flush()
