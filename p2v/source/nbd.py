"""Images of any format qemu knows, as sources: a private qemu-nbd, read through libnbd."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from p2v.errors import LayoutError, MissingTool, P2VError, PlanError, ReadError, Unsupported, Where
from p2v.model import SECTOR, Extent, Kind, Range, Source
from p2v.source.bounds import check_read, salvage
from p2v.source.device import unreadable

_CONNECTIONS = 4
_MAX_READ = 4 << 20  # bytes per request; libnbd copies each into Python once
_STATUS_PAGE = 256 << 20  # bytes of disk per block status request
_START_SECONDS = 30
_QEMU_SECONDS = 600  # for qemu-img on an image that it reads through
_ZERO_FLAG = 2
_ALLOCATION = "base:allocation"


class NbdSource:
    """An NBD export, over a few connections that threads share.

    socket: path of a unix socket. on_close: called once, after the last connection was let go.
    Raises ReadError where nobody answers there.
    """

    def __init__(self, socket: str, name: str, *, on_close: Callable[[], object] = lambda: None) -> None:
        self._nbd = _libnbd()
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


def open_image(path: str, format: str, *, backing: bool = True) -> Source:
    """An image of any format that qemu knows, read-only.

    format: qemu's name for it ("qcow2", "vpc"); never guessed. backing=False: what the image does not
    hold itself reads as zero, and its backing file is not opened.
    Raises PlanError (nothing there), LayoutError (not such an image), Unsupported (a backing file of
    unnamed format), MissingTool.
    """
    _libnbd()
    image = _json_name(path, format, backing)
    if backing and format == "qcow2":
        _refuse_unnamed_backing(path)
    server = _QemuNbd(image)
    try:
        return server.source(path, format)
    except BaseException:
        server.stop()
        raise


def allocated(path: str) -> tuple[Range, ...]:
    """What a qcow2 overlay holds itself, and not its backing: ascending, none touching the next.

    Includes what it holds as zero. With extended_l2 the ranges are exact to a subcluster.
    Raises as open_image does.
    """
    found: list[Range] = []
    for entry in _qemu_img("map", path):
        if not entry["present"]:
            continue
        start, length = int(entry["start"]), int(entry["length"])
        if found and found[-1].end == start:
            start, length = found[-1].offset, found.pop().length + length
        found.append(Range(start, length))
    return tuple(found)


class _QemuNbd:
    """A qemu-nbd of our own, in a folder of our own. It ends with stop(), or with this object.

    It also ends when its last client is gone (no --persistent), so a killed p2v leaves none behind.
    """

    def __init__(self, image: str) -> None:
        program = _program("qemu-nbd")
        folder = tempfile.mkdtemp(prefix="p2v-nbd-")  # 0700: nobody else reaches the socket
        self.socket = os.path.join(folder, "socket")
        self._log = os.path.join(folder, "log")
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [program, "--read-only", "--shared=8", f"--socket={self.socket}", image],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_plain_environment(),
                start_new_session=True,  # Ctrl-C ends p2v, which ends it in order
            )
        self._end = weakref.finalize(self, _end, self._process, folder)

    def source(self, name: str, format: str) -> NbdSource:
        """Its export, as soon as it answers. Raises LayoutError where it gave up on the image."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            ended = self._process.poll() is not None
            try:
                return NbdSource(self.socket, name, on_close=self.stop)
            except ReadError:
                if ended:
                    raise _not_an_image(name, format, self._said()) from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def stop(self) -> None:
        """End it and remove its folder. Safe to call twice."""
        self._end()

    def _said(self) -> str:
        with open(self._log, encoding="utf-8", errors="replace") as log:
            return log.read(4096)


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _json_name(path: str, format: str, backing: bool) -> str:
    """The image as a json: filename: no comma, colon or protocol in a path means anything there."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise PlanError(f"{path} cannot be opened: {error.strerror}", path, "an image is read from here",
                        "check the spelling") from error
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise PlanError(f"{path!r}: the name is no UTF-8", path, "qemu could not be told this name",
                        "rename the file, or name a link to it") from error
    file = {"driver": "host_device" if stat.S_ISBLK(mode) else "file", "filename": os.path.abspath(path)}
    options: dict[str, object] = {"driver": format, "file": file}
    if not backing:
        options["backing"] = None
    return "json:" + json.dumps(options)


def _refuse_unnamed_backing(path: str) -> None:
    """qemu would guess the backing file's format from bytes that a guest has written."""
    info = _qemu_img("info", path)
    if info.get("backing-filename") and not info.get("backing-filename-format"):
        raise Unsupported(f"{path} does not say which format its backing file has", path,
                          "guessed from its content, a guest could make qemu read any file of this machine",
                          f"qemu-img rebase -u -F FORMAT -b {info['backing-filename']} IMAGE")


def _qemu_img(command: str, path: str) -> Any:
    """What qemu-img says of a qcow2 without its backing file, as parsed JSON."""
    program = _program("qemu-img")
    image = _json_name(path, "qcow2", backing=False)
    done = subprocess.run([program, command, "--output=json", image], capture_output=True, check=False,
                          stdin=subprocess.DEVNULL, env=_plain_environment(), timeout=_QEMU_SECONDS,
                          start_new_session=True)
    if done.returncode:
        raise _not_an_image(path, "qcow2", done.stderr.decode(errors="replace"))
    return json.loads(done.stdout)


def _not_an_image(path: str, format: str, said: str) -> P2VError:
    lines = said.strip().splitlines()
    return LayoutError(f"{path} cannot be opened as {format}", path,
                       lines[-1][:500] if lines else "qemu ended without a word",
                       "check the image (qemu-img check), its format, and that nothing else has it open")


def _plain_environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingTool(f"{name} is not installed", name, "images other than raw are read through it",
                          "apt-get install qemu-utils")
    return found


def _libnbd() -> ModuleType:
    try:
        import nbd
    except ImportError as error:
        raise MissingTool("the Python binding of libnbd is not installed", "python3-libnbd",
                          "images other than raw are read through it", "apt-get install python3-libnbd; "
                          "a virtual environment needs --system-site-packages to see it") from error
    module: ModuleType = nbd
    return module
