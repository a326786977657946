"""A thin overlay over each read-only source: opened for the guest's edits, then read back as a Source.

The source is lent out on a private NBD socket, so a mirror put together on the fly serves as well as a
disk. The overlay has 512-byte subclusters: a larger one copies the neighbours of an edit, and one bad
sector there loses live data in silence (tried: an MFT cluster, with every call returning success).
An overlay belongs to its run: the same edits made twice give other bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from p2v.errors import GuestError, MismatchError, MissingTool, Unsupported, Where, WriteError
from p2v.model import SECTOR, BytesChange, Range, Source
from p2v.source.nbd import QemuNbd, allocated, json_name, open_image
from p2v.source.nbdclient import libnbd
from p2v.source.overlaid import Overlaid
from p2v.source.private import PrivateFolder
from p2v.source.serve import Server

FORMAT = "qcow2"
LIMIT = 64 << 40  # bytes: the largest disk that an overlay with these clusters can stand for
_OPTIONS = "extended_l2=on,cluster_size=16k"
_CHECK_FAILED = "the overlay that holds the guest's edits is damaged"
_AGAIN = "delete it and run the command again: no image has been begun"


class Stage:
    """Sources lent out, an overlay on each, while the with block lasts.

    sources: by disk id. overlays: disk id → path; an overlay that exists is used further.
    Raises WriteError where an overlay cannot be made, MismatchError where an old one is of another disk,
    Unsupported past LIMIT, MissingTool without qemu-img.
    """

    def __init__(self, sources: Mapping[str, Source], overlays: Mapping[str, Path]) -> None:
        self._sources = {disk: sources[disk] for disk in overlays}
        self._overlays = dict(overlays)
        self._servers: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()

    @property
    def disks(self) -> list[tuple[str, str, str]]:
        """(disk id, path, format) of each overlay, to be opened for writing."""
        return [(disk, str(path), FORMAT) for disk, path in self._overlays.items()]

    def failed_reads(self) -> dict[str, list[Range]]:
        """What could not be read of each source while it was lent out."""
        return {disk: server.failed_reads for disk, server in self._servers.items()}

    def write_bytes(self, changes: Iterable[BytesChange]) -> None:
        """Raw bytes, before anything else opens the overlays; each place must hold its before.

        Not through the appliance: its kernel reads whole pages, and one bad sector beside the MBR would
        stand in the way. Raises GuestError where the overlay sees other bytes, WriteError.
        """
        by_disk: dict[str, list[BytesChange]] = {}
        for change in changes:
            by_disk.setdefault(change.disk, []).append(change)
        for disk, theirs in by_disk.items():
            with opened_for_writing(str(self._overlays[disk]), FORMAT) as image:
                for change in theirs:
                    if bytes(image.pread(len(change.before), change.offset)) != change.before:
                        raise GuestError("the overlay does not show the disk's bytes",
                                         Where(disk, change.offset, len(change.before)),
                                         "the disks may be mixed up; nothing was written there",
                                         "report this with the run's folder")
                    image.pwrite(change.after, change.offset)
                image.flush()

    def __enter__(self) -> Stage:
        with self._stack as stack:
            sockets = PrivateFolder("stage")
            stack.callback(sockets.remove)
            for number, (disk, path) in enumerate(self._overlays.items()):
                server = Server(self._sources[disk], os.path.join(sockets.path, str(number)))
                self._servers[disk] = stack.enter_context(server)
                _make(path.absolute(), server.uri, self._sources[disk].size)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def overlaid(source: Source, path: Path) -> Source:
    """The source with the overlay's changes in front of it, re-opened from disk.

    What the overlay does not hold is read from the source directly, not through NBD or qemu. Closing it
    leaves the source open. Raises MismatchError where the overlay is damaged or of another disk.
    """
    done = _qemu_img("check", _alone(path))
    if done.returncode != 0:
        raise MismatchError(_CHECK_FAILED, Where(item=str(path)), _said(done), _AGAIN)
    changed = allocated(str(path))
    top = open_image(str(path), FORMAT, backing=False)
    try:
        if top.size != _rounded(source.size):
            raise _of_another_disk(path, top.size, source.size)
        return _Staged(source, top, _within(changed, source.size))
    except BaseException:
        top.close()
        raise


@contextlib.contextmanager
def opened_for_writing(path: str, format: str) -> Iterator[Any]:
    """An image or overlay as a libnbd handle with pread, pwrite and flush, through a qemu-nbd of our own.

    Raises WriteError where qemu cannot open or write it.
    """
    nbd = libnbd()
    server = QemuNbd(json_name(path, format, backing=True), writable=True)
    try:
        ready = server.source(path, format)  # it answers; and it ends when its last client is gone
        handle = nbd.NBD()
        handle.connect_unix(server.socket)
        yield handle
        handle.shutdown()
        ready.close()
    except nbd.Error as error:
        raise WriteError("the image cannot be written", Where(item=path), str(error.string),
                         "see that nothing else uses it and that there is space, then run the same command again: "
                         "it goes on") from error
    finally:
        server.stop()


def digest(path: Path) -> str:
    """SHA-256 of an overlay's file, after it and its name were forced to the medium. Raises WriteError."""
    try:
        for name, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
            descriptor = os.open(name, flags)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WriteError("the overlay cannot be written to the disk", Where(item=str(path)),
                         error.strerror or str(error), _AGAIN) from error


class _Staged(Overlaid):
    """An overlaid source that owns its overlay and nothing else."""

    def __init__(self, base: Source, top: Source, changed: Sequence[Range]) -> None:
        super().__init__(base, top, changed)
        self._overlay = top

    def close(self) -> None:
        """Let the overlay go; the source stays open."""
        super().close()
        self._overlay.close()


def _make(path: Path, backing: str, size: int) -> None:
    """A new overlay, or an old one told where its source is lent out this time."""
    if size > LIMIT:
        raise Unsupported("this disk is too large to be edited on an overlay", Where(item=str(path)),
                          f"{size} bytes; an overlay holds at most {LIMIT}", "leave this disk out")
    if path.exists():
        done = _qemu_img("info", "--output=json", _alone(path))
        if done.returncode == 0 and (found := json.loads(done.stdout)["virtual-size"]) != _rounded(size):
            raise _of_another_disk(path, found, size)
        done = _qemu_img("rebase", "-u", "-f", FORMAT, "-b", backing, "-F", "raw", str(path))
    else:
        done = _qemu_img("create", "-q", "-f", FORMAT, "-o", _OPTIONS, "-b", backing, "-F", "raw",
                         str(path), str(size))
    if done.returncode != 0:
        raise WriteError("the overlay for the guest's edits cannot be made", Where(item=str(path)), _said(done),
                         "free space or choose another output folder; nothing was written elsewhere")


def _rounded(size: int) -> int:
    """What qemu makes of a size: it counts in sectors, and a truncated image may end within one."""
    return -(-size // SECTOR) * SECTOR


def _within(changed: Sequence[Range], size: int) -> list[Range]:
    """The changes without what qemu has rounded up."""
    return [Range(part.offset, min(part.end, size) - part.offset) for part in changed if part.offset < size]


def _of_another_disk(path: Path, found: int, expected: int) -> MismatchError:
    return MismatchError("the overlay is of another disk", Where(item=str(path)),
                         f"it stands for {found} bytes, the disk has {expected}", _AGAIN)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip()[-500:]


def _alone(path: Path) -> str:
    """The overlay without its source, whose socket is gone."""
    return "json:" + json.dumps(
        {"driver": FORMAT, "file": {"driver": "file", "filename": str(path.absolute())}, "backing": None})


def _qemu_img(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["qemu-img", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MissingTool("qemu-img is not installed", "qemu-utils", "edits are made on a qcow2 overlay",
                          "apt-get install qemu-utils") from error
