"""What the user handed in with --drivers: folders, CD images, diskette images, cabinets; plain or compressed files.

A folder may hold any of the others, a CD image cabinets and diskettes. A file is found by its name wherever it
lies, as ATAPI.SYS or ATAPI.SY_; which of several copies fits is for media.py to say. What cannot be read is kept
in problems, and the search goes on.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from p2v.errors import GuestError, MissingTool, P2VError, PlanError, Where
from p2v.guest import inf
from p2v.guest.cabinet import HEAD, Cabinet, begins, with_parts
from p2v.guest.expand import compressed_name, expand
from p2v.guest.floppy import LARGEST, Floppy
from p2v.guest.iso import Iso, is_iso

FILE_LIMIT = 16 << 20  # bytes; the largest driver of these systems has 2 MB
CABINET_LIMIT = 256 << 20  # bytes; driver.cab of 2003 has 80 MB
SCRATCH_LIMIT = 1 << 30  # bytes of cabinets and diskettes that are copied out of images, all together
FOLDER_LIMIT = 50_000  # entries below the user's folders
TEXTS = 16  # setup texts beside a file
DEEPEST = 3  # a cabinet on a diskette on a CD in a folder
FLOPPIES = (".flp", ".vfd", ".img", ".ima")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a file. where: for the user. folders: the names of those it lies in, in lower case.

    texts: the setup texts (INF, txtsetup.oem) that lie beside it, by name; read when they are asked for.
    """

    where: str
    data: bytes
    folders: tuple[str, ...] = ()
    texts: Callable[[], Mapping[str, bytes]] = dict


class Shelf(Protocol):
    """What holds files by path: a folder, a CD image, a diskette."""

    def sizes(self) -> Mapping[str, int]:
        """Path, with / between folders → bytes."""

    def read(self, path: str, limit: int) -> bytes:
        """A file. Raises GuestError."""


@dataclass(slots=True)
class _Opened:
    """A shelf, and what is inside. where: what the user knows it by. paths: name in lower case → paths."""

    shelf: Shelf
    where: str
    depth: int
    paths: dict[str, list[str]] = field(default_factory=dict)
    inner: list[_Opened] = field(default_factory=list)
    cabinets: list[tuple[str, Cabinet]] = field(default_factory=list)


class HandedIn:
    """All that was named with --drivers. scratch: a folder of ours, for what must be copied out of images.

    Raises PlanError for a path that is not there, or is none of these things.
    """

    def __init__(self, given: Sequence[str], scratch: Path) -> None:
        self._scratch = scratch
        self._copied = 0
        self._count = 0
        self._files: dict[tuple[int, str], Path] = {}
        self.problems: list[str] = []
        self._opened: list[_Opened] = []
        for one in given:
            self._opened.append(self._top(Path(one)))

    def copies(self, name: str) -> Iterator[Copy]:
        """Every copy of a file of that name, in a stable order."""
        for opened in self._opened:
            yield from self._copies(opened, name.lower())

    def close(self) -> None:
        """Let go of the images."""
        todo = list(self._opened)
        while todo:
            opened = todo.pop()
            todo += opened.inner
            if isinstance(opened.shelf, Floppy):
                opened.shelf.close()

    def _copies(self, opened: _Opened, name: str) -> Iterator[Copy]:
        for spelling in (name, compressed_name(name)):
            for path in opened.paths.get(spelling, []):
                where = f"{opened.where}/{path}"
                data = self._tried(where, partial(_unpacked, opened.shelf, path, where))
                if data is not None:
                    folders = tuple(path.lower().split("/")[:-1])
                    yield Copy(where, data, folders, partial(self._texts, opened.shelf, path))
        for where, cabinet in opened.cabinets:
            for path, data in self._tried(where, partial(_members, cabinet, name)) or ():
                yield Copy(f"{where}: {path}", data, tuple(path.split("/")[:-1]))
        for inner in opened.inner:
            yield from self._copies(inner, name)

    def _texts(self, shelf: Shelf, path: str) -> Mapping[str, bytes]:
        """In the file's own folder; where there are none, a diskette's txtsetup.oem at the top."""
        folder = path.rpartition("/")[0]
        sizes = shelf.sizes()
        beside = [one for one in sizes if one.rpartition("/")[0] == folder and one.lower().endswith((".inf", ".oem"))]
        beside = beside or [one for one in sizes if one.lower() == "txtsetup.oem"]
        found: dict[str, bytes] = {}
        for one in beside[:TEXTS]:
            data = self._tried(one, partial(shelf.read, one, inf.LIMIT))
            if data is not None:
                found[one.rpartition("/")[2]] = data
        return found

    # -- opening

    def _top(self, path: Path) -> _Opened:
        if path.is_dir():
            return self._filled(_Opened(_Folder(path), str(path), 0))
        if not path.is_file():
            raise PlanError("what was given with --drivers is not there", str(path), next="check the path")
        if path.suffix.lower() in (".cab", ".exe"):  # a service pack's .exe is a cabinet behind a program
            beside = _Folder(path.parent, deep=False)
            opened = _Opened(beside, str(path.parent), 0)
            opened.cabinets.append((str(path), self._cabinet(beside, path.name, str(path))))
            return opened
        image = self._image(path, str(path), 0)
        if image is None:
            raise PlanError("what was given with --drivers is nothing that drivers come in", str(path),
                            "neither a folder nor an ISO 9660 image, a cabinet, or a diskette's image",
                            "name the folder with the files")
        return image

    def _image(self, path: Path, where: str, depth: int) -> _Opened | None:
        """A CD's or diskette's image; None for anything else."""
        if path.suffix.lower() in FLOPPIES and path.stat().st_size <= LARGEST:
            return self._filled(_Opened(Floppy(path, Where(item=where)), where, depth))
        if is_iso(path):
            return self._filled(_Opened(Iso(path, Where(item=where)), where, depth))
        return None

    def _filled(self, opened: _Opened) -> _Opened:
        """With an index of its names, and what is inside opened, too."""
        sizes = opened.shelf.sizes()
        self._count += len(sizes)
        if self._count > FOLDER_LIMIT:
            raise PlanError("what was given with --drivers holds too many files", opened.where,
                            f"more than {FOLDER_LIMIT}", "give the folder with the drivers itself")
        for path in sizes:
            opened.paths.setdefault(path.rpartition("/")[2].lower(), []).append(path)
        if opened.depth < DEEPEST:
            for path, size in sizes.items():
                self._tried(f"{opened.where}/{path}", partial(self._inside, opened, path, size))
        return opened

    def _inside(self, opened: _Opened, path: str, size: int) -> None:
        """A cabinet or image that lies on a shelf."""
        suffix = path[path.rfind("."):].lower()
        where = f"{opened.where}/{path}"
        if suffix == ".cab" and 0 < size <= CABINET_LIMIT:
            folder = path.rpartition("/")[0]
            names = [one.rpartition("/")[2] for one in opened.shelf.sizes() if one.rpartition("/")[0] == folder]
            file = self._file(opened.shelf, path)
            with file.open("rb") as start:
                first = begins(start.read(HEAD), names)
            if first:
                opened.cabinets.append((where, self._cabinet(opened.shelf, path, where)))
        elif (suffix in FLOPPIES and 0 < size <= LARGEST) or (suffix == ".iso" and isinstance(opened.shelf, _Folder)):
            image = self._image(self._file(opened.shelf, path), where, opened.depth + 1)
            if image:
                opened.inner.append(image)

    def _cabinet(self, shelf: Shelf, path: str, where: str) -> Cabinet:
        folder, _, first = path.rpartition("/")
        beside = {one.rpartition("/")[2].lower(): one for one in shelf.sizes() if one.rpartition("/")[0] == folder}

        def place(name: str) -> Path | None:
            known = beside.get(name.lower())
            return self._file(shelf, known) if known else None

        return with_parts(first, place, Where(item=where))

    def _file(self, shelf: Shelf, path: str) -> Path:
        """What lies on a shelf, as a file of ours: where it is a plain file already, that."""
        if isinstance(shelf, _Folder):
            return shelf.path(path)
        if (id(shelf), path) in self._files:
            return self._files[id(shelf), path]
        data = shelf.read(path, CABINET_LIMIT)
        self._copied += len(data)
        if self._copied > SCRATCH_LIMIT:
            raise GuestError("there are too many cabinets in the images", Where(item=path),
                             f"more than {SCRATCH_LIMIT >> 20} MiB would have to be unpacked",
                             "copy the driver files into a folder, and give that with --drivers DIR")
        folder = self._scratch / hashlib.sha256(f"{id(shelf)} {path.rpartition('/')[0]}".encode()).hexdigest()
        folder.mkdir(exist_ok=True)  # parts of a set know each other by name
        copy = unused(folder, path.rpartition("/")[2])
        copy.write_bytes(data)
        self._files[id(shelf), path] = copy
        return copy

    def _tried(self, where: str, work: Callable[[], T]) -> T | None:
        """What the work gives; None, and a problem more, where something there cannot be read."""
        try:
            return work()
        except (PlanError, MissingTool):
            raise
        except P2VError as error:
            self.problems.append(f"{where}: {error.what} ({error.why})")
        except OSError as error:
            self.problems.append(f"{where}: {error.strerror}")
        return None


def unused(folder: Path, name: str) -> Path:
    """A place in a folder of ours for a file of that name: as it is where that is safe and free."""
    plain = re.sub(r"[^a-z0-9._$-]", "_", name.lower())[-100:]
    path = folder / (plain if plain.strip(".") else "_")
    return folder / f"{len(list(folder.iterdir()))}_{path.name}" if path.exists() else path


def _unpacked(shelf: Shelf, path: str, where: str) -> bytes:
    return expand(shelf.read(path, FILE_LIMIT), where, FILE_LIMIT)


def _members(cabinet: Cabinet, name: str) -> list[tuple[str, bytes]]:
    return list(cabinet.members(name, FILE_LIMIT))


class _Folder:
    """A folder of this machine. Links to folders are not followed; pipes and devices are no files."""

    def __init__(self, folder: Path, *, deep: bool = True) -> None:
        self._folder = folder
        self._deep = deep
        self._sizes: dict[str, int] | None = None

    def sizes(self) -> Mapping[str, int]:
        if self._sizes is None:
            self._sizes = {}
            for parent, folders, names in os.walk(self._folder):
                folders.sort()
                if not self._deep:
                    folders.clear()
                for name in sorted(names):
                    path = Path(parent, name)
                    if path.is_file():
                        self._sizes[path.relative_to(self._folder).as_posix()] = path.stat().st_size
                if len(self._sizes) > FOLDER_LIMIT:
                    break
        return self._sizes

    def read(self, path: str, limit: int) -> bytes:
        file = self.path(path)
        size = file.stat().st_size
        if size > limit:
            raise GuestError("a file that was handed in is too large", Where(item=str(file)),
                             f"{size} bytes, {limit} are allowed", "leave it out of the folder")
        return file.read_bytes()

    def path(self, path: str) -> Path:
        """The file itself."""
        return self._folder / path
