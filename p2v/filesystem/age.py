"""When a filesystem was last written, by its own word: what tells a current leg of a mirror from a stale one.

Nothing is mounted and little is read: the newest sequence number of $LogFile, the headers of the registry's
hives, the times of a few files that a Windows writes all day, the superblock of ext. What is damaged or cannot
be read is unknown, and said so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from p2v.binary import parse_bytes
from p2v.errors import GuestError, LayoutError, P2VError, ReadError, Unsupported, Where
from p2v.filesystem import fat
from p2v.filesystem.extlayout import MAGIC as EXT_MAGIC
from p2v.filesystem.extlayout import SUPERBLOCK
from p2v.filesystem.glance import DatedFiles, FatFiles, NtfsFiles, filetime
from p2v.filesystem.journal import newest_lsn
from p2v.filesystem.mft import Mft
from p2v.filesystem.records import VOLUME_INFORMATION
from p2v.model import SECTOR, Source, read
from p2v.registry.cells import base_block, checksum_holds

T = TypeVar("T")
V = TypeVar("V", int, datetime)

NTFS_OEM = b"NTFS    "
VOLUME = 3  # number of the MFT record
DIRTY_FLAGS = 0x4001  # of $Volume: dirty; chkdsk underway
EXT_VALID, EXT_ERRORS = 1, 2  # of a superblock's state

USUAL_ROOTS = ("\\WINNT", "\\WINDOWS", "\\WTSRV")  # the last: Terminal Server of NT 4
BOOT_INI, BOOT_INI_LIMIT = "\\boot.ini", 64 << 10  # bytes
FOLDER = re.compile(rb"\)(\\[^\"=\r\n]{1,200})")  # of an ARC path
CONFIG = "\\system32\\config"
HIVES = ("SYSTEM", "SOFTWARE", "SAM", "SECURITY", "DEFAULT")
EVENT_LOGS = ("SysEvent.Evt", "AppEvent.Evt", "SecEvent.Evt")
MOST_ROOTS = 16  # systems on one volume
MOST_FOLDERS = 256  # of the root looked into for a system
BASE_BLOCK = 512  # bytes of a hive
DAMAGE = (LayoutError, ReadError, GuestError, Unsupported)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time that the filesystem knows. what: of which file.

    sequence: of a hive, how often it had been written. local: the time is the guest's local one (FAT), given
    as if it were UTC.
    """

    what: str
    time: datetime | None
    sequence: int | None = None
    local: bool = False

    def __str__(self) -> str:
        when = "at no known time" if self.time is None else f"{self.time:%Y-%m-%d %H:%M:%S}"
        zone = "" if self.time is None else " local time" if self.local else " UTC"
        count = "" if self.sequence is None else f", write {self.sequence}"
        return f"{when}{zone} ({short(self.what)}{count})"


@dataclass(frozen=True, slots=True)
class Age:
    """What one copy of a filesystem says of when it was last written.

    kind: "ntfs", "fat16", "ext", "" where nobody knows it. identity: its serial number or UUID, in hex.
    lsn: the newest sequence number of $LogFile; None where it has none (wiped by Linux) or it cannot be read.
    hives: headers of the registry's hives. moments: times of files, or of a superblock.
    dirty: was it left in use? None where that cannot be read. unknown: what cannot be read, in words.
    """

    kind: str
    identity: str = ""
    lsn: int | None = None
    hives: tuple[Moment, ...] = ()
    moments: tuple[Moment, ...] = ()
    dirty: bool | None = None
    unknown: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[Moment, ...]:
        """All that has a time of a known zone."""
        return tuple(moment for moment in (*self.hives, *self.moments) if moment.time and not moment.local)

    @property
    def words(self) -> str:
        """All of it in one line, for the user."""
        kind = self.kind.upper() or "no filesystem that p2v knows"
        parts = [f"{kind}, last change seen: {_last(self.moments)}" if self.moments else kind]
        parts += [f"registry last written: {_last(self.hives)}"] if self.hives else []
        parts += [f"log sequence number {self.lsn:#x}"] if self.lsn is not None else []
        parts += ["left in use (dirty)"] if self.dirty else []
        parts += [f"not known: {', '.join(self.unknown)}"] if self.unknown else []
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Clue:
    """One kind of evidence about two copies. first, second: what is newer there, in words; both empty: the same."""

    kind: str
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()


def age_of(source: Source) -> Age:
    """How old a volume is. Never raises for what it holds, nor for bytes that cannot be read."""
    if source.size < SECTOR:
        return Age("")
    try:
        head = read(source, 0, SECTOR)
    except ReadError as error:
        return Age("", unknown=(f"the boot sector ({error.what})",))
    if head[3:11] == NTFS_OEM:
        return _ntfs(source, head)
    return _fat(source, head) or _ext(source) or Age("")


def compare(first: Age, second: Age) -> tuple[Clue, ...]:
    """What can be compared of two copies, weightiest first; nothing where either has nothing to say."""
    clues = []
    if first.lsn is not None and second.lsn is not None:
        clues.append(_clue("log sequence number", [("the log", first.lsn, second.lsn)]))
    hives = _pairs(first.hives, second.hives)
    counts = [(a.what, a.sequence, b.sequence) for a, b in hives if a.sequence is not None and b.sequence is not None]
    clues += [_clue("number of writes to the registry", counts)] if counts else []
    for kind, pairs in (("time of the registry's last write", hives),
                        ("times of files", _pairs(first.moments, second.moments))):
        times = [(a.what, a.time, b.time) for a, b in pairs if a.time and b.time]
        clues += [_clue(kind, times)] if times else []
    return tuple(clues)


def _pairs(first: Iterable[Moment], second: Iterable[Moment]) -> list[tuple[Moment, Moment]]:
    others = {moment.what.lower(): moment for moment in second}
    return [(moment, others[moment.what.lower()]) for moment in first if moment.what.lower() in others]


def _clue(kind: str, values: list[tuple[str, V, V]]) -> Clue:
    return Clue(kind, tuple(what for what, a, b in values if a > b), tuple(what for what, a, b in values if a < b))


def _last(moments: Iterable[Moment]) -> str:
    """The newest of them."""
    return str(max(moments, key=lambda m: (m.time is not None, m.time or datetime.min.replace(tzinfo=UTC))))


def short(path: str) -> str:
    """A file's own name, for a line that names several."""
    return path.rpartition("\\")[2] or path


# -- the files of a Windows


class _Gathering:
    """What the files say; what cannot be read is kept in words."""

    def __init__(self, files: DatedFiles) -> None:
        self.files = files
        self.hives: list[Moment] = []
        self.moments: list[Moment] = []
        self.unknown: list[str] = []
        self._moment("\\")
        for root in self._roots():
            self._system(root + CONFIG)

    def tried(self, what: str, look: Callable[[], T]) -> T | None:
        """What look gives; None, and a word about it, where the bytes are damaged."""
        try:
            return look()
        except DAMAGE as error:
            self.unknown.append(f"{what} ({_brief(error)})")
            return None

    def _roots(self) -> list[str]:
        """Folders with a Windows; the likely ones first, which need no list of the root."""
        named = self.tried(BOOT_INI, self._named) or []
        found = self.tried("the list of the root folder", partial(self.files.folders, MOST_FOLDERS)) or []
        names = {root.lower(): root for root in (*named, *USUAL_ROOTS, *("\\" + name for name in found))}
        there = [root for root in names.values() if self.tried(root, partial(self.files.has, root + CONFIG))]
        return there[:MOST_ROOTS]

    def _named(self) -> list[str]:
        """The folders that boot.ini names."""
        text = self.files.head(BOOT_INI, BOOT_INI_LIMIT) if self.files.has(BOOT_INI) else b""
        return [folder.decode("latin-1").rstrip("\\ ") for folder in FOLDER.findall(text)[:MOST_ROOTS]]

    def _system(self, config: str) -> None:
        self._moment(config)
        for name in (*HIVES, *EVENT_LOGS):
            self._moment(f"{config}\\{name}")
        for name in HIVES:
            path = f"{config}\\{name}"
            hive = self.tried(f"{path}'s header", partial(self._hive, path))
            self.hives += [hive] if hive else []

    def _moment(self, path: str) -> None:
        time = self.tried(path, partial(self.files.changed, path))
        name = "the root folder" if path == "\\" else path
        self.moments += [Moment(name, time, local=self.files.LOCAL)] if time else []

    def _hive(self, path: str) -> Moment | None:
        if not self.files.has(path):
            return None
        data = self.files.head(path, BASE_BLOCK)
        base = base_block(data, path)
        if not checksum_holds(data):
            raise GuestError("its checksum is wrong", path, next="nothing: its log completes it")
        return Moment(path, filetime(base.timestamp), base.sequence1)


def _brief(error: P2VError) -> str:
    return error.why if isinstance(error, GuestError) and error.why else error.what


# -- one filesystem each


def _ntfs(source: Source, head: bytes) -> Age:
    identity = head[0x48:0x50].hex()
    try:
        mft = Mft(source)
    except DAMAGE as error:
        return Age("ntfs", identity, unknown=(f"the MFT ({_brief(error)})",))
    found = _Gathering(NtfsFiles(mft))
    lsn = found.tried("$LogFile", partial(newest_lsn, mft))
    if lsn is None and not any(word.startswith("$LogFile") for word in found.unknown):
        found.unknown.append("the log's sequence number (Linux wiped the log, or both of its heads are damaged)")
    dirty = found.tried("$Volume", partial(_dirty_flag, mft))
    return Age("ntfs", identity, lsn, tuple(found.hives), tuple(found.moments), dirty, tuple(found.unknown))


def _dirty_flag(mft: Mft) -> bool | None:
    information = mft.attribute(mft.record(VOLUME), VOLUME_INFORMATION)
    if information is None or information.value is None or len(information.value) < 12:
        return None
    return bool(int.from_bytes(information.value[10:12], "little") & DIRTY_FLAGS)


def _fat(source: Source, head: bytes) -> Age | None:
    """None where the boot sector is not FAT's."""
    try:
        boot = parse_bytes(fat.BOOT_LAYOUT, head, fat.Boot, "the FAT boot sector", Where(source.name, 0, len(head)))
    except LayoutError:
        return None
    place = 0x43 if boot.is_wide else 0x27
    kind, identity = f"fat{boot.bits}", head[place:place + 4].hex()
    if boot.total_sectors * boot.bytes_per_sector > source.size:
        return Age(kind, identity, unknown=("all of it (it is longer than its place on the disk)",))
    try:
        files = FatFiles(source, kind)
    except DAMAGE as error:
        return Age(kind, identity, unknown=(f"the files ({_brief(error)})",))
    found = _Gathering(files)
    dirty = found.tried("the FAT", partial(fat.left_in_use, source, boot, head))
    return Age(kind, identity, None, tuple(found.hives), tuple(found.moments), dirty, tuple(found.unknown))


def _ext(source: Source) -> Age | None:
    """None where there is no superblock. s_mtime: mounted last; s_wtime: written last."""
    if source.size < 2 * SUPERBLOCK:
        return None
    try:
        head = read(source, SUPERBLOCK, SUPERBLOCK)
    except ReadError as error:
        return Age("", unknown=(f"a superblock ({error.what})",))
    if int.from_bytes(head[0x38:0x3A], "little") != EXT_MAGIC:
        return None
    times = [(what, int.from_bytes(head[at:at + 4], "little")) for what, at in (("mounted", 0x2C), ("written", 0x30))]
    moments = tuple(Moment(what, datetime.fromtimestamp(time, UTC)) for what, time in times if time)
    state = int.from_bytes(head[0x3A:0x3C], "little")
    return Age("ext", head[0x68:0x78].hex(), None, (), moments, state & (EXT_VALID | EXT_ERRORS) != EXT_VALID)
