"""Folders of our own for sockets, in the system's temporary folder; those that killed processes left are removed.

Whoever made one holds a lock on a file in it, and the kernel lets go of that when the process ends, however it
ends. Process numbers would not do: they are used again, and mean others in a container.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path

PREFIX = "p2v-"
YOUNG = 60.0  # seconds: one that is younger may be on its way to its lock


class PrivateFolder:
    """A new folder that nobody else reaches, until remove(), or until this object is gone."""

    def __init__(self, what: str) -> None:
        clean(what)
        self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{what}-")  # 0700
        lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """With all that is in it. Safe to call twice."""
        self._end()


def clean(what: str) -> None:
    """Remove what processes have left that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}{what}-*"):
        with contextlib.suppress(OSError):  # somebody else's, in use, or gone meanwhile
            if time.time() - folder.lstat().st_mtime < YOUNG or folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _remove(path: str, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
