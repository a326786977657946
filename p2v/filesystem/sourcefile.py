"""A Source as the file object that libfsntfs and libfsfat want, with a few large blocks kept."""

from __future__ import annotations

import os
from collections import OrderedDict

from p2v.errors import ReadError
from p2v.model import Source, read

BLOCK = 16 << 10  # bytes: the libraries ask for one sector or record at a time, and seldom for its neighbours
BLOCKS = 512  # kept: 8 MiB


class SourceFile:
    """A file object with a cursor. Not for two threads at once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.failure: ReadError | None = None  # the libraries forget what their file object raised

    def get_size(self) -> int:
        """Bytes."""
        return self._source.size

    def tell(self) -> int:
        """The cursor."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the cursor; past the end is allowed. Raises OSError before the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError(f"no such place: {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Up to size bytes, fewer at the end. Raises OSError, and keeps the ReadError behind it."""
        left = max(self._source.size - self._position, 0)
        length = left if size < 0 else min(size, left)
        try:
            data = self._fetch(self._position, length)
        except ReadError as error:
            self.failure = error
            raise OSError(str(error)) from error
        self._position += length
        return data

    def _fetch(self, offset: int, length: int) -> bytes:
        first = offset // BLOCK
        if length > BLOCK:
            return read(self._source, offset, length)
        try:
            data = self._block(first)
            if offset + length > (first + 1) * BLOCK:
                data += self._block(first + 1)
        except ReadError:  # a neighbour is bad: ask for these bytes alone
            return read(self._source, offset, length)
        start = offset - first * BLOCK
        return data[start:start + length]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK
            self._blocks[number] = read(self._source, start, min(BLOCK, self._source.size - start))
            if len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]
