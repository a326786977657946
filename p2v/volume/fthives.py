"""What the SYSTEM hives on these disks say of fault-tolerant sets: every hive that can be reached, each told apart.

A half of a mirror is a whole filesystem by itself, so its hive is read through a plain window. Each copy has
a hive of its own, and the hive of an orphaned copy is older: none is taken for the truth here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from p2v import filesystem
from p2v.errors import Finding, GuestError, LayoutError, P2VError, ReadError, Severity, Where
from p2v.model import SECTOR, Filesystem, GuestFiles, Partition, Source, read
from p2v.source.window import Window
from p2v.volume import ftregistry
from p2v.volume.ftregistry import KEY, VALUE, Information
from p2v.volume.mbr import CONTAINERS

HIVE = "\\system32\\config\\system"
HIVE_LIMIT = 64 << 20  # bytes; hives of NT 4 and 2000 have 1 to 13 MB
HIVES_LIMIT = 16  # Windows side by side on one volume
ROOT_LIMIT = 512  # folders of a root that are looked into
INI_LIMIT = 1 << 16
PLAIN = frozenset({0x01, 0x04, 0x06, 0x07, 0x0B, 0x0C, 0x0E})
"""Types of partitions with FAT or NTFS: what winioctl.h calls recognised. A member of a set has 0x80 more, a
member that NT marked bad 0xC0 more (PARTITION_NTFT, VALID_NTFT)."""
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
_DIRECTORY = re.compile(rb"partition\(\d{1,3}\)(\\[^=\"\r\n]{1,200})")


@dataclass(frozen=True, slots=True)
class Looks:
    """A filesystem as its boot sector describes it. size: bytes; serial: as Windows prints it."""

    kind: str
    size: int
    serial: str

    def __str__(self) -> str:
        return f"{self.kind}, serial {self.serial}, {self.size} bytes"


@dataclass(frozen=True, slots=True)
class ToldByHive:
    """A hive with a description of disks.

    partition: on which it lies; path: of the hive. written: when the hive was, for the last time; changed: when
    the description was. None where the hive does not say.
    """

    partition: Partition
    path: str
    written: datetime | None
    changed: datetime | None
    information: Information

    @property
    def disk(self) -> str:
        """On which it lies ("disk0")."""
        return self.partition.disk

    def __str__(self) -> str:
        return f"the hive {self.path} on {self.disk}"


def base_type(partition: Partition) -> int:
    """A partition's type without the bits of a fault-tolerant set."""
    return partition.type & 0x3F if partition.type & 0x80 else partition.type


def window(disks: Mapping[str, Source], partition: Partition, length: int = 0, name: str = "") -> Window | None:
    """A partition's bytes, length of them where given; None where the disk ends before."""
    length = length or partition.length
    disk = disks[partition.disk]
    if length <= 0 or partition.offset + length > disk.size:
        return None
    return Window(disk, partition.offset, length, name or f"{partition.disk} at {partition.offset:#x}")


def is_disputed(partition: Partition, partitions: Sequence[Partition]) -> bool:
    """Does another partition claim some of its bytes? mbr.py has said so."""
    return any(other.disk == partition.disk and other.entry_offset != partition.entry_offset
               and other.type not in CONTAINERS and other.offset < partition.offset + partition.length
               and partition.offset < other.offset + other.length for other in partitions)


def looks(source: Source) -> Looks | None:
    """The filesystem that begins here; None for none. Raises ReadError."""
    if source.size < SECTOR:
        return None
    head = read(source, 0, SECTOR)
    (unit,) = struct.unpack_from("<H", head, 11)
    if head[3:11] == b"NTFS    ":
        total, serial = struct.unpack_from("<Q", head, 0x28)[0], struct.unpack_from("<Q", head, 0x48)[0]
        return Looks("NTFS", (total + 1) * unit, f"{serial:016X}")  # the last sector keeps the backup
    if head[0] not in (0xE9, 0xEB) or head[510:] != b"\x55\xaa":
        return None
    for name, place in (("FAT32", 0x43), ("FAT", 0x27)):
        if head[place + 15:place + 15 + len(name)] == name.encode():
            total = struct.unpack_from("<H", head, 0x13)[0] or struct.unpack_from("<I", head, 0x20)[0]
            low, high = struct.unpack_from("<HH", head, place)
            return Looks(name, total * unit, f"{high:04X}-{low:04X}")
    return None


def find_hives(disks: Mapping[str, Source], partitions: Sequence[Partition]) -> Iterator[ToldByHive | Finding]:
    """Every hive that describes fault-tolerant sets, in the order of the partitions.

    One that is there and cannot be read is a finding.
    """
    for partition in partitions:
        source = window(disks, partition) if base_type(partition) in PLAIN else None
        if source is None:
            continue
        try:
            seen = looks(source)
            if seen is None or not 0 < seen.size <= source.size:
                continue  # no filesystem, or one that goes on elsewhere: the first part of a stripe or volume set
            known = filesystem.examine(source)
            files = _open(source, known)
            paths = list(_paths(files)) if files else []
        except (GuestError, ReadError) as error:
            yield _unread(partition, "the filesystem", error)
            continue
        for path in paths if files else ():
            told = list(_told(partition, files, path)) if files else []
            yield from told
            if files and any(isinstance(one, Finding) for one in told):
                yield from _alternate(partition, files, path + ".ALT")


def _open(source: Source, known: Filesystem) -> GuestFiles | None:
    return filesystem.open_files(source, known) if known.kind == "ntfs" or known.kind.startswith("fat") else None


def _paths(files: GuestFiles) -> Iterator[str]:
    """Hives below any folder of the root, and below what boot.ini names."""
    roots = {f"\\{name}".lower(): f"\\{name}" for name in list(files.list("\\"))[:ROOT_LIMIT]}
    found = 0
    ini = files.stat("\\boot.ini")
    if ini and not ini.is_folder and ini.size <= INI_LIMIT:
        for match in _DIRECTORY.finditer(files.read("\\boot.ini")):
            root = match[1].decode("latin-1").rstrip("\\ ")
            roots.setdefault(root.lower(), root)
    for root in roots.values():
        stat = files.stat(root + HIVE)
        if stat and not stat.is_folder and found < HIVES_LIMIT:
            found += 1
            yield root + HIVE


def _alternate(partition: Partition, files: GuestFiles, path: str) -> Iterator[ToldByHive | Finding]:
    """What NT 4 and 2000 load when SYSTEM itself does not load."""
    try:
        there = files.stat(path) is not None
    except GuestError as error:
        yield _unread(partition, f"the hive {path}", error)
        return
    if there:
        yield from _told(partition, files, path)


def _told(partition: Partition, files: GuestFiles, path: str) -> Iterator[ToldByHive | Finding]:
    from p2v.registry.cells import base_block
    from p2v.registry.reader import open_hive
    from p2v.registry.regf import recover

    name = f"{partition.disk}, {path}"
    try:
        data, log = _bounded(files, path, name), files.stat(path + ".LOG")
        data = recover(data, _bounded(files, path + ".LOG", name) if log and not log.is_folder else None, name).data
        value = open_hive(data, name).value(KEY, VALUE)
        if value is None:
            return
        information = ftregistry.parse(value.data, f"{name}, {KEY}\\{VALUE}")
        yield ToldByHive(partition, path, _date(base_block(data, name).timestamp), _changed(data, name), information)
    except LayoutError as error:
        yield replace(error.as_finding(), severity=Severity.WARNING)
    except P2VError as error:
        yield _unread(partition, f"the hive {path}", error)


def _bounded(files: GuestFiles, path: str, name: str) -> bytes:
    stat = files.stat(path)
    if stat is None or stat.size > HIVE_LIMIT:
        raise GuestError("the hive is too large to be one of NT 4 or 2000", Where(name, item=path),
                         f"at most {HIVE_LIMIT} bytes are read", "leave this disk out, or restore the hive")
    return files.read(path)


def _unread(partition: Partition, what: str, error: P2VError) -> Finding:
    return Finding(f"{partition.disk}: {what} cannot be read, so what it says of fault-tolerant sets is unknown",
                   error.where, f"{error.what}; {error.why}" if error.why else error.what,
                   "nothing, if another copy's hive can be read; otherwise choose with --leg", Severity.WARNING)


def _changed(data: bytes, name: str) -> datetime | None:
    """When the key with the description was written."""
    from p2v.registry.cells import Cells, fold

    try:
        cells = Cells(data, name)
        for offset in cells.subkeys(cells.key(cells.base.root)):
            key = cells.key(offset)
            if fold(cells.key_name(offset, key)) == fold(KEY):
                return _date(key.timestamp)
    except GuestError:
        return None  # the value was read: a cell that is damaged elsewhere takes no more than its date
    return None


def _date(filetime: int) -> datetime | None:
    """A FILETIME; None for none, and for what no calendar has."""
    try:
        return _EPOCH + timedelta(microseconds=filetime // 10) if filetime else None
    except OverflowError:
        return None


def in_words(moment: datetime | None) -> str:
    """As "2003-05-02 11:20 UTC"."""
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "at an unknown time"
