"""One NBD client's connection, server side: fixed newstyle handshake, then requests. Read-only.

Simple and structured replies, base:allocation. Writes get EPERM. Every length is checked before it is
believed; what is no NBD ends the connection.
Source: NetworkBlockDevice/nbd, doc/proto.md; checked with libnbd, nbdcopy, qemu-img and qemu-io.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from socket import socket

from p2v.errors import P2VError, ReadError
from p2v.model import Range, Source
from p2v.source.bounds import failed_range

MAX_PAYLOAD = 32 << 20  # bytes: what every NBD client may rely on
_MAX_OPTION = 64 << 10  # bytes of an option's data
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


class Hangup(Exception):
    """This client has left, or sends what is no NBD: its connection ends."""


class Session:
    """handshake(), then transmission(). client is its connected socket; the caller closes it.

    record: told of each range that could not be read. allocation(offset, length, limit): at most limit
    (length, flags) pairs of base:allocation.
    """

    def __init__(
        self, source: Source, client: socket, record: Callable[[Range], None],
        allocation: Callable[[int, int, int], Iterable[tuple[int, int]]],
    ) -> None:
        self.source = source
        self.client = client
        self.record = record
        self.allocation = allocation
        self.structured = False
        self.context = False
        self.no_zeroes = False

    # -- handshake

    def handshake(self) -> None:
        """Until the client has chosen the export. Raises Hangup."""
        self.client.sendall(struct.pack(">8sQH", b"NBDMAGIC", _IHAVEOPT, _FIXED_NEWSTYLE | _NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        if flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            raise Hangup
        self.no_zeroes = bool(flags & _NO_ZEROES)
        while True:
            magic, option, length = struct.unpack(">QII", self._receive(16))
            if magic != _IHAVEOPT or length > _MAX_OPTION:
                raise Hangup
            if self._option(option, self._receive(length)):
                return

    def _option(self, option: int, data: bytes) -> bool:
        """Answer an option; True when transmission begins."""
        if option == _EXPORT_NAME:
            return self._export_name(data)
        if option == _ABORT:
            self._answer(option, _ACK)
            raise Hangup
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
            raise Hangup  # this option has no way to say no
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
        """Answer requests until the client leaves. Raises Hangup."""
        while True:
            magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
            if magic != 0x25609513 or kind == _DISC:
                raise Hangup
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
            self.record(failed)
            self._error(cookie, errno.EIO)
            return
        if self.structured:
            self.client.sendall(_chunk(1, cookie, length + 8) + struct.pack(">Q", offset))
        else:
            self.client.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie))
        self.client.sendall(buffer)

    def _block_status(self, cookie: int, offset: int, length: int, *, one: bool) -> None:
        try:
            extents = list(self.allocation(offset, length, 1 if one else _MAX_STATUS))
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
                raise Hangup
            done += count
        return bytes(data)

    def _discard(self, length: int) -> None:
        """Take a payload off the line, to refuse it. Raises Hangup where it is larger than allowed."""
        if length > MAX_PAYLOAD:
            raise Hangup
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
