"""An NBD export as a source, over libnbd."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from p2v.errors import MissingTool, ReadError, Where
from p2v.model import SECTOR, Extent, Kind
from p2v.source.bounds import check_read, salvage
from p2v.source.device import unreadable

_CONNECTIONS = 4
_MAX_READ = 4 << 20  # bytes per request; libnbd copies each into Python once
_STATUS_PAGE = 256 << 20  # bytes of disk per block status request
_ZERO_FLAG = 2
_ALLOCATION = "base:allocation"


class NbdSource:
    """An NBD export, over a few connections that threads share.

    socket: path of a unix socket. on_close: called once, after the last connection was let go.
    Raises ReadError where nobody answers there.
    """

    def __init__(self, socket: str, name: str, *, on_close: Callable[[], object] = lambda: None) -> None:
        self._nbd = libnbd()
        self._socket = socket
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._idle: list[Any] = []
        self._closed = False
        self._on_close = on_close
        self.name = name
        try:
            handle = self._connect()
        except self._nbd.Error as error:
            raise ReadError(f"{name}: the NBD server does not answer", name, str(error),
                            "run p2v again; if it stays so, report it with this message") from error
        self._idle.append(handle)
        self.size = int(handle.get_size())
        self.sector_size = SECTOR

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ReadError naming the bad sectors, ValueError past the end."""
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        for done in range(0, len(buffer), _MAX_READ):
            piece = buffer[done : done + _MAX_READ]
            if not self._try(offset + done, piece):
                bad = salvage(self._try, offset + done, piece, self.sector_size, self.size)
                if bad is not None:
                    raise unreadable(self.name, bad)

    def attempt(self, offset: int, buffer: memoryview, direct: bool = True) -> int:
        """One try of at most 4 MiB: the bytes at the start of buffer that are good. NBD tells all or nothing.

        direct: makes no difference here.
        """
        check_read(self.name, self.size, offset, len(buffer), self._closed)
        del direct
        piece = buffer[:_MAX_READ]
        return len(piece) if self._try(offset, piece) else 0

    def extents(self) -> Iterator[Extent]:
        """What the server says of its allocation: ZERO where it reads as zero, else DATA."""
        check_read(self.name, self.size, 0, 0, self._closed)
        start, kind, at = 0, Kind.DATA, 0
        while at < self.size:
            for length, flags in self._status(at, min(_STATUS_PAGE, self.size - at)):
                now = Kind.ZERO if flags & _ZERO_FLAG else Kind.DATA
                if now is not kind and at > start:
                    yield Extent(start, at - start, kind)
                    start = at
                kind = now
                at += length
        if at > start:
            yield Extent(start, at - start, kind)

    def close(self) -> None:
        """Let the connections go."""
        if not self._closed:
            self._closed = True
            while self._idle:
                with contextlib.suppress(self._nbd.Error):  # the server may be gone already
                    self._idle.pop().shutdown()
            self._on_close()

    def _connect(self) -> Any:
        handle = self._nbd.NBD()
        handle.add_meta_context(_ALLOCATION)
        handle.connect_unix(self._socket)
        return handle

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection for one request; one that failed half-way is not used again."""
        with self._slots:
            try:
                handle = self._idle.pop()
            except IndexError:
                handle = self._connect()
            healthy = False
            try:
                yield handle
                healthy = True
            except self._nbd.Error:
                healthy = bool(handle.aio_is_ready())
                raise
            finally:
                if healthy and not self._closed:
                    self._idle.append(handle)

    def _try(self, offset: int, piece: memoryview) -> bool:
        """Read piece; False where the server says that its medium is bad. Raises ReadError."""
        try:
            with self._connection() as handle:
                piece[:] = handle.pread(len(piece), offset)
        except self._nbd.Error as error:
            if error.errno == "EIO":
                return False
            raise self._failed(error, offset, len(piece)) from error
        return True

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, flags) pairs from offset on, at least one, none past offset + length."""
        found: list[int] = []

        def take(context: str, _offset: int, entries: list[int], _error: object) -> int:
            if context == _ALLOCATION:
                found.extend(entries)
            return 0

        try:
            with self._connection() as handle:
                if not handle.can_meta_context(_ALLOCATION):
                    return [(length, 0)]
                handle.block_status(length, offset, take)
        except self._nbd.Error as error:
            raise self._failed(error, offset, length) from error
        pairs, left = [], length
        for size, flags in zip(found[::2], found[1::2], strict=False):
            if left > 0 and size:
                pairs.append((min(size, left), flags))
                left -= min(size, left)
        return pairs or [(length, 0)]

    def _failed(self, error: Any, offset: int, length: int) -> ReadError:
        return ReadError(f"{self.name} cannot be read: {error.string}", Where(self.name, offset, length),
                         f"its NBD server answered {error.errno or 'nothing'}",
                         "run p2v again; if it stays so, report it with this message")


def libnbd() -> ModuleType:
    """Debian's binding. Raises MissingTool."""
    try:
        import nbd
    except ImportError as error:
        raise MissingTool("the Python binding of libnbd is not installed", "python3-libnbd",
                          "images other than raw are read through it", "apt-get install python3-libnbd; "
                          "a virtual environment needs --system-site-packages to see it") from error
    module: ModuleType = nbd
    return module
