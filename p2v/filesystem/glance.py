"""A few files of a volume with their times, by small reads: what age.py looks at.

NTFS goes by the folders' own indexes; FAT through libfsfat, whose folders are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from p2v.errors import Where
from p2v.filesystem.folders import ROOT, Folder, find_path
from p2v.filesystem.mft import Mft
from p2v.filesystem.reader import open_files
from p2v.filesystem.records import DATA, IN_USE, Record, damaged
from p2v.model import Filesystem, Source, read

STANDARD_INFORMATION = 0x10
MODIFIED_AT = 8  # bytes from its start: a FILETIME
MOST_NAMES = 512  # of a FAT folder whose times are read
ENTRY_BYTES = 32


class DatedFiles(Protocol):
    """As much of a volume as is looked at. All raise LayoutError, ReadError or GuestError for damage."""

    LOCAL: bool  # are its times the guest's local ones?

    def folders(self, most: int) -> Sequence[str]:
        """Names in the root, at most so many."""

    def has(self, path: str) -> bool:
        """Is there such a file or folder?"""

    def changed(self, path: str) -> datetime | None:
        """When a file, or a folder's list of files, was last changed; None where there is none."""

    def head(self, path: str, length: int) -> bytes:
        """A file's first bytes."""


class NtfsFiles:
    """NTFS, by its MFT."""

    LOCAL = False

    def __init__(self, mft: Mft) -> None:
        self._mft = mft
        self._records: dict[str, int | None] = {}

    def folders(self, most: int) -> Sequence[str]:
        """Of the root, in the order of its index."""
        names = Folder(self._mft, ROOT).names()
        return [entry.name for entry, _ in zip(names, range(most), strict=False)]

    def has(self, path: str) -> bool:
        """Is there such a file or folder?"""
        return self._record(path) is not None

    def changed(self, path: str) -> datetime | None:
        """Of $STANDARD_INFORMATION."""
        record = self._record(path)
        information = self._mft.attribute(record, STANDARD_INFORMATION) if record else None
        if information is None or information.value is None:
            return None
        return filetime(int.from_bytes(information.value[MODIFIED_AT:MODIFIED_AT + 8], "little"))

    def head(self, path: str, length: int) -> bytes:
        """As it lies on the disk: no compressed file is made plain."""
        record = self._record(path)
        data = self._mft.attribute(record, DATA) if record else None
        if data is None:
            raise damaged(Where(self._mft.source.name, item=path), f"{path} has no content", "it is no file")
        return self._mft.read(data, 0, min(length, data.size))

    def _record(self, path: str) -> Record | None:
        key = path.lower()
        if key not in self._records:
            self._records[key] = find_path(self._mft, path)
        number = self._records[key]
        if number is None:
            return None
        record = self._mft.record(number)
        if not record.flags & IN_USE:
            raise damaged(Where(self._mft.source.name, item=path), f"{path} was removed", "its folder still names it")
        return record


class FatFiles:
    """FAT12, FAT16 and FAT32. Raises GuestError where it cannot be opened."""

    LOCAL = True

    def __init__(self, source: Source, kind: str) -> None:
        self._source = source
        self._files = open_files(source, Filesystem(kind))

    def folders(self, most: int) -> Sequence[str]:
        """Of the root."""
        return self._files.list("\\")[:most]

    def has(self, path: str) -> bool:
        """Is there such a file or folder?"""
        return self._files.stat(path) is not None

    def changed(self, path: str) -> datetime | None:
        """Of a folder: the newest of its entries, because FAT keeps no time of the root."""
        stat = self._files.stat(path)
        if stat is None:
            return None
        if not stat.is_folder:
            return self._entry_time(path)
        below = (self._entry_time(f"{path.rstrip(chr(92))}\\{name}") for name in self._files.list(path)[:MOST_NAMES])
        return max((time for time in below if time), default=None)

    def head(self, path: str, length: int) -> bytes:
        """Through libfsfat."""
        return self._files.head(path, length)

    def _entry_time(self, path: str) -> datetime | None:
        place = self._files.record_number(path)
        if place is None or not 0 <= place <= self._source.size - ENTRY_BYTES:
            return None
        entry = read(self._source, place, ENTRY_BYTES)
        return dos_time(int.from_bytes(entry[24:26], "little"), int.from_bytes(entry[22:24], "little"))


def filetime(ticks: int) -> datetime | None:
    """100 ns since 1601; None for what is no time of a system that runs."""
    try:
        return datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=ticks // 10) if ticks else None
    except OverflowError:
        return None


def dos_time(date: int, time: int) -> datetime | None:
    """A FAT entry's local time, as if it were UTC; None for what is no time. In steps of two seconds."""
    try:
        return datetime(1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, 2 * (time & 31),
                        tzinfo=UTC)
    except ValueError:
        return None
