"""The reading door: a volume's files over libfsntfs and libfsfat, through any Source.

No root, no mount, and no line of code shared with the door that writes (libguestfs). The libraries' own
exceptions are caught here and leave as GuestError with the path on them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2v.errors import GuestError, MissingTool, ReadError, Unsupported, Where
from p2v.filesystem.sourcefile import SourceFile
from p2v.model import FileStat, Filesystem, Range, Source, read

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, MemoryError, OverflowError, SystemError, TypeError)
"""What the bindings raise on damage; tried by flipping bytes of boot sectors, records and indexes."""

PIECE = 4 << 20  # bytes read from a file at once
LARGEST = 1 << 30  # bytes: no file that a conversion reads whole is larger
FOLDERS = 64  # whose names are kept
DEEPEST = 512  # folders in one path

FOLDER, LABEL, SPARSE, COMPRESSED, ENCRYPTED = 0x10, 0x08, 0x200, 0x800, 0x4000  # file attributes
LONGEST_SHORT = 12  # letters of an 8.3 name
HOLE = 1  # flag of an extent that takes no space
FIRST_USER_RECORD = 16  # NTFS: the files below are $MFT and its kin
RECORD_NUMBER = (1 << 48) - 1  # of a file reference


def open_files(source: Source, filesystem: Filesystem) -> VolumeFiles:
    """The files of a volume whose filesystem examine() has recognised.

    Raises Unsupported for a filesystem that nobody here reads, GuestError for one too damaged to open.
    """
    if filesystem.kind == "ntfs":
        return VolumeFiles(source, _ntfs_volume(), _ntfs_shape)
    if filesystem.kind.startswith("fat"):
        return VolumeFiles(source, _fat_volume(), _fat_shape)
    raise Unsupported("the files of this volume cannot be read", Where(source.name),
                      why="its filesystem is neither NTFS nor FAT, or its boot sector is gone",
                      next="name a disk whose Windows volume is NTFS or FAT")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the two libraries differ.

    names: of one entry, the long one first; none where it is no file of the guest.
    finds_short: does the library's own path lookup know 8.3 names?
    """

    is_folder: Callable[[Any], bool]
    names: Callable[[Any, bool], Sequence[str]]
    finds_short: bool


@dataclass(frozen=True, slots=True)
class _Folder:
    """An opened folder. names: folded name → (index of the entry, its long name)."""

    entry: Any
    names: dict[str, tuple[int, str]]


class VolumeFiles:
    """A GuestFiles over one of the two libraries. Threads may share it; one reads at a time."""

    def __init__(self, source: Source, volume: Any, shape: Callable[[Source], _Shape]) -> None:
        self._source = source
        self._file = SourceFile(source)
        self._volume = volume
        self._shape = shape(source)
        self._lock = threading.RLock()
        self._folders: OrderedDict[tuple[str, ...], _Folder] = OrderedDict()
        with self._library("\\"):
            volume.open_file_object(self._file)
            self._root = volume.get_root_directory()

    def read(self, path: str) -> bytes:
        """A whole file. Raises GuestError where there is none, it is encrypted, or it cannot be read."""
        with self._library(path):
            entry = self._find(_parts(path))
            if entry is None or self._shape.is_folder(entry):
                raise self._error(path, "no such file" if entry is None else "a folder, not a file", "")
            if entry.file_attribute_flags & ENCRYPTED:
                raise self._error(path, "the file is encrypted", "only its owner's key opens it")
            size = self._size(entry, path)
            if size > min(LARGEST, self._source.size):
                raise self._error(path, "the file is too large to be read whole", f"it claims {size} bytes")
            return self._content(entry, path, size)

    def stat(self, path: str) -> FileStat | None:
        """None where there is nothing. Raises GuestError where the volume is damaged there."""
        with self._library(path):
            entry = self._find(_parts(path))
            if entry is None:
                return None
            flags, folder = entry.file_attribute_flags or 0, self._shape.is_folder(entry)
            return FileStat(0 if folder else self._size(entry, path), folder, bool(flags & COMPRESSED),
                            bool(flags & ENCRYPTED), bool(flags & SPARSE))

    def list(self, path: str) -> Sequence[str]:
        """Long names, as the guest spells them; the filesystem's own files ($MFT …) are left out."""
        with self._library(path):
            parts = _parts(path)
            entry = self._find(parts)
            folder = None if entry is None else self._folder(parts, entry)
            return [] if folder is None else list(dict.fromkeys(name for _, name in folder.names.values()))

    def record_number(self, path: str) -> int | None:
        """NTFS: the number of a file's record in the MFT; FAT: the byte offset of its directory entry."""
        with self._library(path):
            entry = self._find(_parts(path))
            if entry is None:
                return None
            if hasattr(entry, "identifier"):
                return int(entry.identifier)
            return int(entry.file_reference) & RECORD_NUMBER

    def places(self, path: str) -> Sequence[Range]:
        """Where a file's content lies, in bytes of the volume; none for what NTFS keeps in the MFT itself."""
        with self._library(path):
            entry = self._find(_parts(path))
            if entry is None:
                return []
            found = [entry.get_extent(index) for index in range(entry.number_of_extents)]
            return [Range(offset, length) for offset, length, flags in found
                    if not flags & HOLE and offset >= 0 and length > 0]

    def head(self, path: str, length: int) -> bytes:
        """The first bytes of a file, at most length and at most as many as it has."""
        with self._library(path):
            entry = self._find(_parts(path))
            if entry is None:
                raise self._error(path, "no such file", "")
            return self._content(entry, path, min(length, self._size(entry, path)))

    def _find(self, parts: tuple[str, ...]) -> Any:
        """The entry at a path, None where there is none."""
        entry = self._root
        for depth in range(len(parts) if len(parts) <= DEEPEST else 0):
            folder = self._folder(parts[:depth], entry)
            if folder is None:
                return None
            part = parts[depth]
            known = folder.names.get(_fold(part))
            if known is not None:
                entry = self._inside(folder, known[0], parts[: depth + 1])
            elif self._shape.finds_short and len(part) <= LONGEST_SHORT:
                entry = self._volume.get_file_entry_by_path("\\" + "\\".join(parts[: depth + 1]))
            else:
                return None
            if entry is None:
                return None
        return entry if len(parts) <= DEEPEST else None

    def _inside(self, folder: _Folder, index: int, parts: tuple[str, ...]) -> Any:
        known = self._folders.get(_key(parts))
        return known.entry if known else folder.entry.get_sub_file_entry(index)

    def _folder(self, parts: tuple[str, ...], entry: Any) -> _Folder | None:
        """The names in a folder; None for a file."""
        key = _key(parts)
        if key not in self._folders:
            if not self._shape.is_folder(entry):
                return None
            names: dict[str, tuple[int, str]] = {}
            for index in range(entry.number_of_sub_file_entries):
                spelled = self._shape.names(entry.get_sub_file_entry(index), not parts)
                for name in spelled:
                    names.setdefault(_fold(name), (index, spelled[0]))
            self._folders[key] = _Folder(entry, names)
            if len(self._folders) > FOLDERS:
                self._folders.popitem(last=False)
        self._folders.move_to_end(key)
        return self._folders[key]

    def _size(self, entry: Any, path: str) -> int:
        size = int(entry.size or 0)
        if size > self._source.size and not (entry.file_attribute_flags or 0) & SPARSE:
            raise self._error(path, "the file claims to be larger than its volume", f"it claims {size} bytes")
        return size

    def _content(self, entry: Any, path: str, size: int) -> bytes:
        pieces = []
        for offset in range(0, size, PIECE):
            wanted = min(PIECE, size - offset)
            piece = entry.read_buffer_at_offset(wanted, offset)
            if len(piece) != wanted:
                raise self._error(path, "the file ends early", f"{offset + len(piece)} of {size} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _library(self, path: str) -> AbstractContextManager[None]:
        return _caught(self._lock, self._file,
                       lambda why: self._error(path, "the volume cannot be read here", why))

    def _error(self, path: str, what: str, why: str) -> GuestError:
        return GuestError(f"{path}: {what}", Where(self._source.name, item=path), why=why,
                          next="check the volume on the machine (chkdsk), or copy the disk again"
                          if why else "check the name")


@contextmanager
def _caught(lock: threading.RLock, file: SourceFile, error: Callable[[str], GuestError]) -> Iterator[None]:
    """One call into a library: alone, and its exceptions as GuestError."""
    with lock:
        file.failure = None
        try:
            yield
        except (ReadError, *LIBRARY_ERRORS) as raised:
            # The library's text is a chain of its C functions: the first two say it all.
            why = str(file.failure) if file.failure else ". ".join(str(raised).split(". ")[:2])
            raise error(why) from (file.failure or raised)


def _ntfs_volume() -> Any:
    try:
        import pyfsntfs
    except ImportError as error:
        raise _missing("libfsntfs-python") from error
    return pyfsntfs.volume()


def _fat_volume() -> Any:
    try:
        import pyfsfat
    except ImportError as error:
        raise _missing("libfsfat-python") from error
    return pyfsfat.volume()


def _missing(package: str) -> MissingTool:
    return MissingTool(f"the Python package {package} is not installed", why="it reads the guest's files",
                       next=f"pip install {package}")


def _ntfs_shape(_: Source) -> _Shape:
    def names(entry: Any, in_root: bool) -> Sequence[str]:
        own = in_root and int(entry.get_i30_file_reference()) & RECORD_NUMBER < FIRST_USER_RECORD
        return [] if own or not entry.name else [_whole(entry.name)]

    return _Shape(lambda entry: bool(entry.has_directory_entries_index()), names, finds_short=True)


def _fat_shape(source: Source) -> _Shape:
    def is_folder(entry: Any) -> bool:
        flags = entry.file_attribute_flags
        return flags is None or bool(flags & FOLDER)  # the root has no directory entry, so no flags

    def names(entry: Any, _: bool) -> Sequence[str]:
        if not entry.name or entry.name in (".", "..") or (entry.file_attribute_flags or 0) & LABEL:
            return []
        return [_whole(entry.name), _short_name(read(source, int(entry.identifier), 11))]

    return _Shape(is_folder, names, finds_short=False)


def _short_name(raw: bytes) -> str:
    """A directory entry's 8.3 name; 05 stands for E5. OEM letters are read as code page 850."""
    stem = (b"\xe5" + raw[1:8] if raw[0] == 0x05 else raw[:8]).decode("cp850").rstrip(" ")
    extension = raw[8:11].decode("cp850").rstrip(" ")
    return f"{stem}.{extension}" if extension else stem


def _whole(name: str) -> str:
    """A name with a lone surrogate comes out of libfsntfs as a str that equals no other: make it anew."""
    return name if name.isascii() else \
        name.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.replace("/", "\\").split("\\") if part)


def _key(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_fold(part) for part in parts)


def _fold(name: str) -> str:
    """Upper case letter by letter, as $UpCase has it: no letter becomes two."""
    return "".join(up if len(up := letter.upper()) == 1 else letter for letter in name)
