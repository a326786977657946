"""Lends any Source out, read-only, over NBD on a unix socket: qemu then sees what Python put together.

One thread per connection; whatever a client gets wrong costs it its own connection and nothing else.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from p2v.errors import PlanError
from p2v.model import Kind, Range, Source
from p2v.source.nbdsession import Hangup, Session

_MAX_CLIENTS = 32
_MAX_EXTENTS = 1 << 20  # of the allocation map; a source in more pieces is all data from there on


class Server:
    """A source on a socket while the with block lasts; on exit all threads end and the socket is gone.

    socket: a path that does not exist yet, in a folder that is nobody else's, at most 107 bytes long.
    Raises PlanError on entry where the socket cannot be made there.
    """

    def __init__(self, source: Source, socket: str) -> None:
        self.source = source
        self.socket = os.path.abspath(socket)
        self._listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self._lock = threading.Lock()
        self._map_lock = threading.Lock()
        self._map: tuple[array[int], bytearray] | None = None
        self._failed: set[Range] = set()
        self._clients: dict[sockets.socket, threading.Thread] = {}
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="p2v-nbd-accept", daemon=True)

    @property
    def uri(self) -> str:
        """What libnbd and qemu call it."""
        return "nbd+unix:///?socket=" + quote(self.socket)

    @property
    def failed_reads(self) -> list[Range]:
        """The unreadable ranges that clients have run into so far, ascending, each once."""
        with self._lock:
            return sorted(self._failed, key=lambda r: (r.offset, r.length))

    def __enter__(self) -> Server:
        try:
            self._listener.bind(self.socket)
            os.chmod(self.socket, 0o600)  # before listen(): nobody can have connected
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise PlanError(f"the socket cannot be made: {error.strerror or error}", self.socket,
                            "the source is lent to qemu over it; a socket's path has at most 107 bytes",
                            "choose another, shorter folder for the run") from error
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._listener.shutdown(sockets.SHUT_RDWR)  # wakes accept(); close() alone does not
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for client in self._clients:
                if client.fileno() >= 0:  # its thread may have closed it
                    client.shutdown(sockets.SHUT_RDWR)
        for thread in self._clients.values():
            thread.join()
        Path(self.socket).unlink(missing_ok=True)

    def record(self, failed: Range) -> None:
        """Remember a range that could not be read."""
        with self._lock:
            self._failed.add(failed)

    def allocation(self, offset: int, length: int, limit: int) -> Iterator[tuple[int, int]]:
        """(length, flags of base:allocation) for the range, at most limit of them. Raises P2VError."""
        with self._map_lock:
            if self._map is None:
                self._map = _allocation_map(self.source)
        starts, flags = self._map
        index = bisect_right(starts, offset) - 1
        end = offset + length
        while offset < end and limit:
            stop = min(starts[index + 1] if index + 1 < len(starts) else self.source.size, end)
            yield stop - offset, flags[index]
            offset, index, limit = stop, index + 1, limit - 1

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._closing.wait(0.05)  # being closed, or out of descriptors: others may give some back
                continue
            thread = threading.Thread(target=self._serve, args=(client,), name="p2v-nbd", daemon=True)
            with self._lock:
                self._clients = {c: t for c, t in self._clients.items() if t.is_alive()}
                if self._closing.is_set() or len(self._clients) >= _MAX_CLIENTS:
                    client.close()
                    continue
                self._clients[client] = thread
                thread.start()

    def _serve(self, client: sockets.socket) -> None:
        try:
            session = Session(self.source, client, self.record, self.allocation)
            session.handshake()
            session.transmission()
        except (Hangup, ConnectionError):
            pass  # the ordinary end of a connection
        finally:
            with self._lock:
                client.close()


def _allocation_map(source: Source) -> tuple[array[int], bytearray]:
    """Where base:allocation changes, and its flags from there on: HOLE and ZERO (3) or data (0)."""
    starts, flags = array("Q", [0]), bytearray([0])
    for extent in source.extents():
        flag = 3 if extent.kind is Kind.ZERO else 0
        if extent.offset == 0:
            flags[0] = flag
        elif flag != flags[-1]:
            if len(starts) == _MAX_EXTENTS:
                flags[-1] = 0
                break
            starts.append(extent.offset)
            flags.append(flag)
    return starts, flags
