"""The files of one volume mounted in the libguestfs appliance, by ntfs-3g or Linux's vfat.

Windows' view of them: paths without case, a replaced file keeps inode, owner, ACL, attributes and short
name, a new one gets those of a neighbour. ntfs-3g alone would not: it marks a rewritten file for
archiving, gives new files "Everyone: full control", and names that DOS cannot see.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Sequence
from typing import Any

from p2v.errors import GuestError, Where
from p2v.model import FileStat

LARGEST = 512 << 20  # bytes: no file that p2v reads or writes through this door is larger
_COMPRESSED, _ENCRYPTED, _SPARSE = 0x800, 0x4000, 0x200  # FILE_ATTRIBUTE_*
_ACL, _ATTRIBUTES, _SHORT_NAME = "system.ntfs_acl", "system.ntfs_attrib_be", "system.ntfs_dos_name"
_IS_SHORT = re.compile(r"[A-Z0-9!#$%&'()@^_`{}~-]{1,8}(\.[A-Z0-9!#$%&'()@^_`{}~-]{1,3})?")
_NOT_SHORT = re.compile(r"[^A-Z0-9!#$%&'()@^_`{}~-]")
_LOOK_AT = 32  # neighbours with long names, to see whether this volume makes short ones
_NEXT = (
    ("No space left", "free space on the guest's volume, or start with a larger disk"),
    ("Read-only file system", "the filesystem is damaged: run chkdsk /f on the old server, then plan again"),
    ("Input/output error", "the disk or its filesystem cannot be read here: run chkdsk /f on the old server, "
                           "or make a rescue copy of the disk first (ddrescue)"),
)


class Calls:
    """Calls of a libguestfs handle, whose errors leave as GuestErrors with what was tried, and where."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __call__(self, tried: str, where: Where, name: str, *arguments: object, **options: object) -> Any:
        """One call. tried: completes "the appliance could not …". Raises GuestError."""
        try:
            return getattr(self._handle, name)(*arguments, **options)
        except (RuntimeError, UnicodeError) as error:  # UnicodeError: a file name with half a surrogate pair
            said = str(error)
            raise GuestError(f"the appliance could not {tried}", where, said, _hint(said)) from error

    def shell(self, tried: str, where: Where, command: str) -> str:
        """A command run in the appliance, for what libguestfs has no call for; its output.

        debug("sh") joins its arguments for /bin/sh, which knows no pipefail; it fails where the command does.
        """
        return str(self(tried, where, "debug", "sh", ["exec", "bash", "-c", shlex.quote(command)]))


class MountedFiles:
    """A volume's files, to read and write. Paths as the guest spells them.

    root: where it is mounted in the appliance. version: of NTFS, None for FAT.
    calls: the running appliance. mount: sees to it that the volume is mounted.
    """

    def __init__(
        self,
        volume: str,
        root: str,
        version: tuple[int, int] | None,
        calls: Callable[[], Calls],
        mount: Callable[[], None],
    ) -> None:
        self.volume = volume
        self.root = root
        self.version = version
        self._calls = calls
        self._mount = mount
        self._names: dict[str, tuple[str, ...]] = {}  # by folder in the appliance; we are the only writer

    def read(self, path: str) -> bytes:
        """A whole file. Raises GuestError where there is none, it is too large, or cannot be read."""
        where, place = self._where(path), self._file(path)
        size = int(self._stat(place, where)["st_size"])
        if size > LARGEST:
            raise GuestError("the file is too large to be read whole", where, f"{size} bytes", "make a new plan")
        memory = os.memfd_create("p2v-download")
        try:
            self._calls()("read the file", where, "download", place, f"/proc/self/fd/{memory}")
            return os.pread(memory, size + 1, 0)
        finally:
            os.close(memory)

    def stat(self, path: str) -> FileStat | None:
        """None where there is nothing."""
        place, where = self._find(path), self._where(path)
        if place is None:
            return None
        found = self._stat(place, where)
        bits = self._attributes(place, where)
        return FileStat(
            size=int(found["st_size"]), is_folder=stat.S_ISDIR(found["st_mode"]),
            compressed=bool(bits & _COMPRESSED), encrypted=bool(bits & _ENCRYPTED), sparse=bool(bits & _SPARSE))

    def list(self, path: str) -> Sequence[str]:
        """The names in a folder as the guest spells them; empty where there is no such folder."""
        place = self._find(path)
        return () if place is None else tuple(self._entries(place))

    def write(self, path: str, data: bytes, like: str | None = None) -> None:
        """Replace or make a file; a replaced one keeps inode, owner, ACL, attributes and short name.

        like: a neighbour whose owner and ACL a new file gets. Parent folders must exist.
        On FAT a replaced file gets its archive bit set, as Windows itself would.
        Raises GuestError; before anything is written where the file is NTFS-compressed on an NTFS older
        than 3.0 (ntfs-3g cannot open it) or encrypted.
        """
        where = self._where(path)
        if len(data) > LARGEST:
            raise GuestError("the content is too large for this door", where, f"{len(data)} bytes", "")
        if self._find(path) is None:
            self._create(path, data, like)
        else:
            self._replace(self._file(path), data, where)

    def remove(self, path: str) -> None:
        """Remove a file. Raises GuestError where there is none, or it is a folder."""
        place = self._file(path)
        self._calls()("remove the file", self._where(path), "rm", place)
        self._names.pop(_parent(place), None)

    # -- writing

    def _replace(self, place: str, data: bytes, where: Where) -> None:
        before = self._attributes(place, where)
        if before & _COMPRESSED and self.version is not None and self.version < (3, 0):
            raise GuestError("a compressed file cannot be edited on this NTFS", where,
                             f"ntfs-3g opens none on version {'.'.join(map(str, self.version))}; "
                             "nothing was written",
                             "uncompress it on the old server (compact /u FILE), then plan again")
        if before & _ENCRYPTED:
            raise GuestError("an encrypted file cannot be edited", where, "EFS keys are not at hand",
                             "decrypt it on the old server (cipher /d), then plan again")
        self._upload(place, data, where)
        if self._attributes(place, where) != before:  # ntfs-3g sets the archive attribute
            self._set(place, _ATTRIBUTES, before.to_bytes(4, "big"), where)

    def _create(self, path: str, data: bytes, like: str | None) -> None:
        where, parts = self._where(path), _parts(path)
        folder = self._walk(parts[:-1]) if parts else None
        if folder is None or not self._is_folder(folder):
            raise GuestError("the file's folder does not exist", where, "p2v makes no folders in a guest",
                             "make a new plan")
        neighbour = None if like is None else self._file(like)
        place = f"{folder}/{parts[-1]}"
        self._upload(place, data, where)
        self._names.pop(folder, None)
        if self.version is None:
            return
        if neighbour is not None:
            acl = self._get(neighbour, _ACL, where)
            if acl is None:
                raise GuestError("the neighbour's ACL cannot be read", self._where(like or ""), "", "")
            self._set(place, _ACL, acl, where)
        self._give_short_name(folder, parts[-1], where)

    def _upload(self, place: str, data: bytes, where: Where) -> None:
        memory = os.memfd_create("p2v-upload")
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(data)
            self._calls()("write the file", where, "upload", f"/proc/self/fd/{memory}", place)
        finally:
            os.close(memory)
        written = int(self._stat(place, where)["st_size"])
        if written != len(data):
            raise GuestError("the file is not as long as what was written", where,
                             f"{written} of {len(data)} bytes", "report this with the run's log")

    def _give_short_name(self, folder: str, name: str, where: Where) -> None:
        """ntfs-3g names a file for POSIX alone; with a short name it has what Windows would give it."""
        if _IS_SHORT.fullmatch(name.upper()):
            self._set(f"{folder}/{name}", _SHORT_NAME, name.upper().encode(), where)  # one name, Win32 & DOS
            return
        if not self._makes_short_names(folder, name, where):
            return
        stem, dot, extension = _upper(name).rpartition(".")
        stem, extension = (stem, extension) if dot and stem else (_upper(name), "")
        stem = _NOT_SHORT.sub("", stem)[:6] or "_"
        extension = _NOT_SHORT.sub("", extension)[:3]
        for number in range(1, 100):
            tail = f"~{number}"
            short = stem[: 8 - len(tail)] + tail + (f".{extension}" if extension else "")
            if not self._taken(folder, short, where):
                self._set(f"{folder}/{name}", _SHORT_NAME, short.encode(), where)
                return
        raise GuestError("no short name is free for the new file", where, f"{stem}~1 to ~99 are taken", "")

    def _makes_short_names(self, folder: str, new: str, where: Where) -> bool:
        """Do long names here have short ones? Yes, unless all that are looked at have none."""
        long = [name for name in self._entries(folder) if name != new and not _IS_SHORT.fullmatch(name.upper())]
        seen = [self._get(f"{folder}/{name}", _SHORT_NAME, where) for name in long[:_LOOK_AT]]
        return not seen or any(short is not None for short in seen)

    def _taken(self, folder: str, short: str, where: Where) -> bool:
        return any(_same(short, name) for name in self._entries(folder)) or bool(
            self._calls()("look for a name", where, "exists", f"{folder}/{short}"))

    # -- paths

    def _where(self, path: str) -> Where:
        return Where(self.volume, item=path)

    def _file(self, path: str) -> str:
        """Where a file is. Raises GuestError where there is none, or something else is."""
        place, where = self._find(path), self._where(path)
        if place is None:
            raise GuestError("there is no such file", where, "looked for without regard to case",
                             "make a new plan")
        if not stat.S_ISREG(self._stat(place, where)["st_mode"]):
            raise GuestError("this is no file", where, "it is a folder or a link", "make a new plan")
        return place

    def _find(self, path: str) -> str | None:
        return self._walk(_parts(path))

    def _walk(self, parts: Sequence[str]) -> str | None:
        """The place of a path whatever its case, by long or short names; None where there is nothing."""
        self._mount()
        place = self.root
        for part in parts:
            names = self._entries(place)
            found = part if part in names else next((name for name in names if _same(part, name)), None)
            if found is None and _IS_SHORT.fullmatch(part.upper()) and names:
                where = self._where(part)
                known = self._calls()("look for a name", where, "exists", f"{place}/{part.upper()}")
                found = part.upper() if known else None
            if found is None:
                return None
            place = f"{place}/{found}"
        return place

    def _entries(self, folder: str) -> Sequence[str]:
        if folder not in self._names:
            where = self._where(folder.removeprefix(self.root).replace("/", "\\") or "\\")
            self._names[folder] = (
                tuple(self._calls()("list the folder", where, "ls", folder)) if self._is_folder(folder) else ())
        return self._names[folder]

    def _is_folder(self, place: str) -> bool:
        return bool(self._calls()("look at a folder", self._where(place), "is_dir", place))

    # -- what NTFS keeps beside the content

    def _stat(self, place: str, where: Where) -> dict[str, int]:
        found: dict[str, int] = self._calls()("look at the file", where, "lstatns", place)
        return found

    def _attributes(self, place: str, where: Where) -> int:
        """FILE_ATTRIBUTE_*; 0 on FAT."""
        return int.from_bytes(self._get(place, _ATTRIBUTES, where) or b"", "big")

    def _get(self, place: str, name: str, where: Where) -> bytes | None:
        """One of ntfs-3g's system attributes; None where the file has none."""
        if self.version is None:
            return None
        try:
            return bytes(self._calls()(f"read {name}", where, "lgetxattr", place, name))
        except GuestError as error:
            if "No data available" in error.why:
                return None
            raise

    def _set(self, place: str, name: str, value: bytes, where: Where) -> None:
        """libguestfs's own lsetxattr takes text only, so setfattr does it."""
        self._calls().shell(f"set {name}", where,
                            f"setfattr -h -n {name} -v 0x{value.hex()} {shlex.quote('/sysroot' + place)}")


def _parts(path: str) -> list[str]:
    """A guest's path in pieces. Raises GuestError for what is none."""
    parts = [part for part in path.split("\\") if part]
    if any(part in (".", "..") or "/" in part or "\0" in part for part in parts):
        raise GuestError("this is no path in a guest", Where(item=repr(path)), "", "make a new plan")
    return parts


def _parent(place: str) -> str:
    return place.rpartition("/")[0]


def _same(first: str, second: str) -> bool:
    """Are these one name to Windows? It compares letter by letter, so "ß" is not "SS"."""
    return len(first) == len(second) and _upper(first) == _upper(second)


def _upper(name: str) -> str:
    return "".join(big if len(big := letter.upper()) == 1 else letter for letter in name)


def _hint(said: str) -> str:
    return next((hint for text, hint in _NEXT if text in said), "report this with the run's log")
