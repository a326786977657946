"""Diskette images, as vendors hand out drivers for setup's F6: a FAT12 volume without a partition table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from p2v.errors import GuestError, P2VError, Where
from p2v.filesystem import examine, open_files
from p2v.model import GuestFiles
from p2v.source.device import open_disk

LARGEST = 3 << 20  # bytes; 2.88 MB is the largest diskette there was
FILES = 4096  # in a diskette's folders
DEEPEST = 8


class Floppy:
    """A diskette image in a file of ours. Raises GuestError for one that holds no FAT."""

    def __init__(self, path: Path, where: Where) -> None:
        self._where = where
        try:
            self._source = open_disk(str(path))
            self._files: GuestFiles = open_files(self._source, examine(self._source))
        except P2VError as error:
            raise self._bad(f"{error.what} ({error.why})") from error

    def sizes(self) -> Mapping[str, int]:
        """Path of each file, with / between folders → its bytes. Raises GuestError for endless folders."""
        found: dict[str, int] = {}
        for path, size in self._walk("", 0):
            found[path] = size
            if len(found) > FILES:
                raise self._bad(f"more than {FILES} files")
        return found

    def read(self, path: str, limit: int) -> bytes:
        """A file. limit: bytes. Raises GuestError."""
        inside = "\\" + path.replace("/", "\\")
        stat = self._files.stat(inside)
        if stat is None or stat.size > limit:
            raise self._bad(f"{path} is not there or has more than {limit} bytes")
        return self._files.read(inside)

    def close(self) -> None:
        """Let go of the image."""
        self._source.close()

    def _walk(self, folder: str, depth: int) -> Iterator[tuple[str, int]]:
        if depth > DEEPEST:
            raise self._bad(f"folders in folders, {depth} deep")
        for name in self._files.list("\\" + folder.replace("/", "\\")):
            path = f"{folder}/{name}" if folder else name
            stat = self._files.stat("\\" + path.replace("/", "\\"))
            if stat is None or name in (".", ".."):
                continue
            if stat.is_folder:
                yield from self._walk(path, depth + 1)
            else:
                yield path, stat.size

    def _bad(self, why: str) -> GuestError:
        return GuestError("a diskette image cannot be read", self._where, why,
                          "copy the driver files out of it into a folder, and give that with --drivers DIR")
