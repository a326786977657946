"""Images of any format qemu knows, as sources: a private qemu-nbd, read through libnbd."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
import weakref
from collections.abc import Mapping
from typing import Any

from p2v.errors import LayoutError, MissingTool, P2VError, PlanError, ReadError, Unsupported
from p2v.model import Range, Source
from p2v.source.nbdclient import NbdSource, libnbd
from p2v.source.private import PrivateFolder

_START_SECONDS = 30
_QEMU_SECONDS = 600  # for qemu-img on an image that it reads through


def open_image(
    path: str, format: str, *, backing: bool = True, options: Mapping[str, str] | None = None
) -> Source:
    """An image of any format that qemu knows, read-only.

    format: qemu's name for it ("qcow2", "vpc"); never guessed. backing=False: what the image does not
    hold itself reads as zero, and its backing file is not opened. options: of qemu's driver.
    Raises PlanError (nothing there), LayoutError (not such an image), Unsupported (a backing file of
    unnamed format), MissingTool.
    """
    libnbd()
    image = json_name(path, format, backing, options)
    if backing and format == "qcow2":
        _refuse_unnamed_backing(path)
    server = QemuNbd(image)
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


class QemuNbd:
    """A qemu-nbd of our own, in a folder of our own. It ends with stop(), or with this object.

    It also ends when its last client is gone (no --persistent), so a killed p2v leaves none behind.
    writable: for images that are edited in place; every source is opened without it.
    """

    def __init__(self, image: str, *, writable: bool = False) -> None:
        program = _program("qemu-nbd")
        folder = PrivateFolder("nbd")
        self.socket = os.path.join(folder.path, "socket")
        self._log = os.path.join(folder.path, "log")
        mode = "--discard=unmap" if writable else "--read-only"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [program, mode, "--shared=8", f"--socket={self.socket}", image],
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


def _end(process: subprocess.Popen[bytes], folder: PrivateFolder) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    folder.remove()


def json_name(path: str, format: str, backing: bool, more: Mapping[str, str] | None = None) -> str:
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
    options: dict[str, object] = {**(more or {}), "driver": format, "file": file}
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
    image = json_name(path, "qcow2", backing=False)
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
