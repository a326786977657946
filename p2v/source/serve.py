"""Lends any Source out, read-only, over NBD on a unix socket: qemu then sees what Python put together.

Fixed newstyle handshake, one thread per connection, simple and structured replies, base:allocation.
Writes get EPERM. Whatever a client gets wrong costs it its own connection and nothing else.
Source: NetworkBlockDevice/nbd, doc/proto.md; checked with libnbd, nbdcopy, qemu-img and qemu-io.
"""

from __future__ import annotations

import errno
import os
import socket as sockets
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from p2v.errors import P2VError, PlanError, ReadError
from p2v.model import Kind, Range, Source
from p2v.source.bounds import failed_range

MAX_PAYLOAD = 32 << 20  # bytes: what every NBD client may rely on
_MAX_CLIENTS = 32
_MAX_OPTION = 64 << 10  # bytes of an option's data
_MAX_EXTENTS = 1 << 20  # of the allocation map; a source in more pieces is all data from there on
_MAX_STATUS = 4096  # extents in one reply

_IHAVEOPT = 0x49484156454F5054
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _LIST, _INFO, _GO, _STRUCTURED, _LIST_META, _SET_META = 1, 2, 3, 6, 7, 8, 9, 10
_ACK, _REP_SERVER, _REP_INFO, _REP_META = 1, 2, 3, 4
_ERR_UNSUP, _ERR_INVALID, _ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
_READ, _WRITE, _DISC, _TRIM, _WRITE_ZEROES, _BLOCK_STATUS = 0, 1, 2, 4, 6, 7
_DF, _REQ_ONE = 4, 8
_ALLOCATION = b"base:allocation"
_CONTEXT_ID = 1


class _Hangup(Exception):
    """This client has left, or sends what is no NBD: its connection ends."""


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
            connection = _Connection(self, client)
            connection.handshake()
            connection.transmission()
        except (_Hangup, ConnectionError):
            pass  # the ordinary end of a connection
        finally:
            with self._lock:
                client.close()


class _Connection:
    def __init__(self, server: Server, client: sockets.socket) -> None:
        self.server = server
        self.source = server.source
        self.client = client
        self.structured = False
        self.context = False
        self.no_zeroes = False

    # -- handshake

    def handshake(self) -> None:
        """Until the client has chosen the export. Raises _Hangup."""
        self.client.sendall(struct.pack(">8sQH", b"NBDMAGIC", _IHAVEOPT, _FIXED_NEWSTYLE | _NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        if flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            raise _Hangup
        self.no_zeroes = bool(flags & _NO_ZEROES)
        while True:
            magic, option, length = struct.unpack(">QII", self._receive(16))
            if magic != _IHAVEOPT or length > _MAX_OPTION:
                raise _Hangup
            if self._option(option, self._receive(length)):
                return

    def _option(self, option: int, data: bytes) -> bool:
        """Answer an option; True when transmission begins."""
        if option == _EXPORT_NAME:
            return self._export_name(data)
        if option == _ABORT:
            self._answer(option, _ACK)
            raise _Hangup
        if option in (_INFO, _GO):
            return self._info(option, data)
        if option in (_LIST, _STRUCTURED):
            self._list_or_structured(option, data)
        elif option in (_LIST_META, _SET_META):
            self._meta_context(option, data)
        else:
            self._answer(option, _ERR_UNSUP)
        return False

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self.client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

    @property
    def _export(self) -> bytes:
        """Size and transmission flags: HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN, and SEND_DF if structured."""
        return struct.pack(">QH", self.source.size, 0x103 | (0x80 if self.structured else 0))

    def _export_name(self, name: bytes) -> bool:
        if name:
            raise _Hangup  # this option has no way to say no
        self.client.sendall(self._export + (b"" if self.no_zeroes else b"\0" * 124))
        return True

    def _list_or_structured(self, option: int, data: bytes) -> None:
        if data:
            self._answer(option, _ERR_INVALID)
            return
        if option == _STRUCTURED:
            self.structured = True
        else:
            self._answer(option, _REP_SERVER, struct.pack(">I", 0))  # one export, with the empty name
        self._answer(option, _ACK)

    def _info(self, option: int, data: bytes) -> bool:
        name, rest = _name(data)
        if name is None or len(rest) < 2 or len(rest) != 2 + 2 * struct.unpack_from(">H", rest)[0]:
            self._answer(option, _ERR_INVALID)
            return False
        if name:
            self._answer(option, _ERR_UNKNOWN)
            return False
        self._answer(option, _REP_INFO, struct.pack(">H", 0) + self._export)
        if 3 in struct.unpack_from(f">{len(rest) // 2 - 1}H", rest, 2):
            self._answer(option, _REP_INFO, struct.pack(">HIII", 3, 1, 4096, MAX_PAYLOAD))
        self._answer(option, _ACK)
        return option == _GO

    def _meta_context(self, option: int, data: bytes) -> None:
        """Agree on base:allocation, the one context there is."""
        name, rest = _name(data)
        queries = _queries(rest)
        if name is None or queries is None or not self.structured:
            self._answer(option, _ERR_INVALID)
            return
        if name:
            self._answer(option, _ERR_UNKNOWN)
            return
        listing = option == _LIST_META
        wanted = _ALLOCATION in queries or (listing and (not queries or b"base:" in queries))
        if not listing:
            self.context = wanted
        if wanted:
            self._answer(option, _REP_META, struct.pack(">I", 0 if listing else _CONTEXT_ID) + _ALLOCATION)
        self._answer(option, _ACK)

    # -- transmission

    def transmission(self) -> None:
        """Answer requests until the client leaves. Raises _Hangup."""
        while True:
            magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
            if magic != 0x25609513 or kind == _DISC:
                raise _Hangup
            if kind == _WRITE:
                self._discard(length)
            if kind in (_WRITE, _TRIM, _WRITE_ZEROES):
                self._error(cookie, errno.EPERM)
            elif not self._sane(flags, kind, offset, length):
                self._error(cookie, errno.EINVAL)
            elif kind == _READ:
                self._read(cookie, offset, length)
            else:
                self._block_status(cookie, offset, length, one=bool(flags & _REQ_ONE))

    def _sane(self, flags: int, kind: int, offset: int, length: int) -> bool:
        """Is this a request that can be answered?"""
        if kind == _BLOCK_STATUS:
            known, largest = _REQ_ONE if self.context else -1, self.source.size
        else:
            known, largest = _DF if self.structured else 0, MAX_PAYLOAD
        return (kind in (_READ, _BLOCK_STATUS) and known >= 0 and not flags & ~known
                and 0 < length <= largest and offset + length <= self.source.size)

    def _read(self, cookie: int, offset: int, length: int) -> None:
        buffer = memoryview(bytearray(length))
        try:
            self.source.read_into(offset, buffer)
        except P2VError as error:
            failed = Range(offset, length)
            if isinstance(error, ReadError):
                failed = failed_range(error, offset, length)
            self.server.record(failed)
            self._error(cookie, errno.EIO)
            return
        if self.structured:
            self.client.sendall(_chunk(1, cookie, length + 8) + struct.pack(">Q", offset))
        else:
            self.client.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie))
        self.client.sendall(buffer)

    def _block_status(self, cookie: int, offset: int, length: int, *, one: bool) -> None:
        try:
            extents = list(self.server.allocation(offset, length, 1 if one else _MAX_STATUS))
        except P2VError:
            self._error(cookie, errno.EIO)
            return
        data = struct.pack(">I", _CONTEXT_ID) + b"".join(struct.pack(">II", *extent) for extent in extents)
        self.client.sendall(_chunk(5, cookie, len(data)) + data)

    def _error(self, cookie: int, code: int) -> None:
        if self.structured:
            self.client.sendall(_chunk(0x8001, cookie, 6) + struct.pack(">IH", code, 0))
        else:
            self.client.sendall(struct.pack(">IIQ", 0x67446698, code, cookie))

    # -- bytes

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            count = self.client.recv_into(view[done:])
            if not count:
                raise _Hangup
            done += count
        return bytes(data)

    def _discard(self, length: int) -> None:
        """Take a payload off the line, to refuse it. Raises _Hangup where it is larger than allowed."""
        if length > MAX_PAYLOAD:
            raise _Hangup
        while length:
            length -= len(self._receive(min(length, 1 << 16)))


def _chunk(kind: int, cookie: int, length: int) -> bytes:
    """The head of a structured reply of one chunk."""
    return struct.pack(">IHHQI", 0x668E33EF, 1, kind, cookie, length)


def _name(data: bytes) -> tuple[bytes | None, bytes]:
    """An export name with its length before it, and what follows; None where there is no such thing."""
    if len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
        return None, b""
    end = 4 + struct.unpack_from(">I", data)[0]
    return data[4:end], data[end:]


def _queries(data: bytes) -> list[bytes] | None:
    """The metadata queries of an option; None where they are not what their count says."""
    if len(data) < 4:
        return None
    count, rest = struct.unpack_from(">I", data)[0], data[4:]
    queries: list[bytes] = []
    while rest and len(queries) < count:
        query, rest = _name(rest)
        if query is None:
            return None
        queries.append(query)
    return queries if len(queries) == count and not rest else None


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
