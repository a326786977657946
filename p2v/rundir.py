"""What a run keeps on disk, and where.

    web01/                    what the user takes away (an adapted image's IMAGE.p2v has the same shape)
      disk0.qcow2  web01.xml  the images, in BIOS order, and the VM
      plan.json               what is changed and why
      manifest.json           what was copied
      run/                    locked while in use: overlays, file contents by digest, state, journal, log

Whatever is saved here is written to a temporary name, fsynced, and renamed: a power cut leaves the old one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import p2v
from p2v.errors import MismatchError, PlanError, Where, WriteError
from p2v.model import Progress


@dataclass(frozen=True, slots=True)
class RunDir:
    """folder: what the user takes away. run: what the run keeps for itself."""

    folder: Path
    run: Path

    @classmethod
    def of_output(cls, output: str | Path) -> RunDir:
        """The run of an output folder."""
        return cls(Path(output), Path(output) / "run")

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.folder / "plan.json"

    @property
    def manifest(self) -> Path:
        """What was copied."""
        return self.folder / "manifest.json"

    def overlay(self, disk: str) -> Path:
        """A disk's overlay."""
        return self.run / f"{disk}.overlay.qcow2"

    def make(self) -> None:
        """Make the folders. Raises WriteError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.run.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.run, error) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises PlanError when another process holds it."""
        self.make()
        with open(self.run / "lock", "a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise PlanError(
                    "another p2v is working on this run",
                    Where(item=str(self.run / "lock")),
                    "two runs in one folder would overwrite each other's work",
                    "wait for it, or choose another output folder",
                ) from error
            yield

    @contextlib.contextmanager
    def logged(self, what: str, progress: Progress) -> Iterator[Progress]:
        """progress, which also writes a line at each stage, and at an error, into run/log."""
        last = ""

        def told(stage: str, done: int, total: int) -> None:
            nonlocal last
            if stage != last:
                last = stage
                self.note(f"{what}: {stage}")
            progress(stage, done, total)

        self.note(f"{what}: begins, p2v {p2v.__version__}")
        try:
            yield told
        except BaseException as error:
            self.note(f"{what}: ended in {last or 'its beginning'}\n{''.join(traceback.format_exception(error))}")
            raise
        self.note(f"{what}: done")

    def note(self, text: str) -> None:
        """Append to run/log. A log that cannot be written is no reason to stop a run."""
        with contextlib.suppress(OSError), open(self.run / "log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n")

    # state: small facts that outlive a power cut

    def state(self) -> dict[str, Any]:
        """What the run has come to; empty at its beginning."""
        return load_json(self.run / "state.json") if (self.run / "state.json").exists() else {}

    def save_state(self, **facts: Any) -> None:
        """Add facts to the state. None takes one away."""
        state = self.state() | facts
        save_json(self.run / "state.json", {key: value for key, value in state.items() if value is not None})

    # contents: files before and after, by digest

    def put(self, data: bytes) -> str:
        """Keep the content of a file. Returns its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.run / "contents" / digest
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_bytes(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """A kept content. Raises MismatchError when it is not what its digest says, PlanError when gone."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise PlanError("a file's content has no digest", Where(item=digest[:80]), "plan.json is damaged",
                            "make a new plan")
        path = self.run / "contents" / digest
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PlanError(
                "a file's content that the plan needs is not beside it",
                Where(item=str(path)),
                f"{error.strerror}; plan.json travels together with its run folder",
                "copy the whole folder, or make a new plan",
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise MismatchError(
                "a kept file content is not what its digest says",
                Where(item=str(path)),
                "it was changed or damaged after the plan was made",
                "make a new plan",
            )
        return data


def save_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a power cut leaves the old one or the new one. Raises WriteError."""
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would keep the user's own tools out
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """A readable, stable JSON document. Raises WriteError."""
    save_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def load_json(path: Path) -> dict[str, Any]:
    """Raises PlanError when there is none or it is none of ours."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read {path.name}", Where(item=str(path)), error.strerror or "",
                        "name a folder that p2v plan or p2v convert has made") from error
    except ValueError as error:
        raise PlanError(f"{path.name} is damaged", Where(item=str(path)), str(error),
                        "make a new plan") from error
    if not isinstance(document, dict):
        raise PlanError(f"{path.name} is not a p2v document", Where(item=str(path)), "", "make a new plan")
    return document


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it outlives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The four answers for an output that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return WriteError(f"cannot write {path.name}", Where(item=str(path)), error.strerror or str(error),
                      "free space there, then run the same command again" if full
                      else "choose a place that you may write to, or have it made writable")


def _umask() -> int:
    """The process's umask, read without changing it (os.umask would race with other threads)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
