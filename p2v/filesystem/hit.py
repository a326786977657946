"""Whose bytes are these? The files of a volume that lie in given ranges: what was lost, or differs.

Read through libfsntfs and libfsfat. What was lost is asked of the image: the failing disk is left in peace. What
is zero there may be the list of files itself; what cannot be walked is said.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

from p2v.errors import Finding, Severity, Where
from p2v.filesystem.reader import LIBRARY_ERRORS, _fat_volume, _ntfs_volume
from p2v.filesystem.sourcefile import SourceFile
from p2v.model import Filesystem, Range, Source

MOST = 200  # files that are named
DEEPEST = 128  # folders in one path
_LARGEST = 5_000_000  # entries that are looked at
_HOLE = 1  # flag of an extent that takes no space
_NOBODYS = "\\$BadClus"  # bad clusters hold nothing; on NTFS 1.2 libfsntfs takes its hole for the volume's bytes


def files_hit(volume: str, source: Source, filesystem: Filesystem, lost: Sequence[Range]) -> Iterator[Finding]:
    """A finding for each file that has lost content, and one for what cannot be told.

    volume: its name in the plan. source: the volume in the image. lost: its ranges, ascending, not touching.
    """
    if not has_files(filesystem):
        yield _unknown(volume, "p2v reads the files of NTFS and FAT volumes")
        return
    total, count, unread = 0, 0, ""
    try:
        for path, parts in files_in(source, filesystem, lost):
            if parts is None:
                unread = unread or path
                continue
            bytes_lost = sum(part.length for part in parts)
            count, total = count + 1, total + bytes_lost
            if count <= MOST:
                yield Finding(f"{volume}:{path} has lost {bytes_lost} bytes", Where(volume, item=path),
                              "they could not be read and are zeroes in the image", _next(path), Severity.WARNING)
    except LIBRARY_ERRORS as error:
        yield _unknown(volume, f"its files cannot be walked: {str(error).split('. ')[0]}")
        return
    if count > MOST:
        yield Finding(f"{count - MOST} more files of {volume} have lost content", Where(volume), "as those before",
                      "restore them from a backup", Severity.WARNING)
    if unread:
        yield _unknown(volume, f"{unread} cannot be read, so files below it are not known")
    everything = sum(span.length for span in lost)
    if total < everything and not unread:
        yield Finding(f"{everything - total} lost bytes of {volume} belong to no file", Where(volume),
                      "free space, or structures of the filesystem that no file holds",
                      "have Windows check the volume in the VM (chkdsk)")


def _next(path: str) -> str:
    if path.startswith("\\$"):
        return "this file is the filesystem itself: have the VM's volume checked (chkdsk), and look at what is gone"
    return "restore this file from a backup"


def _unknown(volume: str, why: str) -> Finding:
    return Finding(f"which files of {volume} have lost content cannot be told", Where(volume), why,
                   "have Windows check the volume in the VM (chkdsk)", Severity.WARNING)


def has_files(filesystem: Filesystem) -> bool:
    """Can its files be told here?"""
    return filesystem.kind == "ntfs" or filesystem.kind.startswith("fat")


def files_in(
    source: Source, filesystem: Filesystem, ranges: Sequence[Range]
) -> Iterator[tuple[str, Sequence[Range] | None]]:
    """(path, what of ranges lies in it) of each file that has any; (path, None) of what cannot be read.

    ranges: of the volume, ascending, not touching. Raises LIBRARY_ERRORS where there is no list of files at all.
    """
    ends = [span.end for span in ranges]
    for path, extents in file_extents(source, filesystem):
        if extents is None:
            yield path, None
        elif parts := [part for extent in extents for part in _inside(extent, ranges, ends)]:
            yield path, parts


def file_extents(
    source: Source, filesystem: Filesystem
) -> Iterator[tuple[str, Sequence[Range] | None]]:
    """(path, where its content lies) of each file and folder of a volume; (path, None) of what cannot be read.

    The filesystem's own files are among them (\\$MFT); folders lie in no extents. Raises LIBRARY_ERRORS
    where there is no list of files at all.
    """
    library = _ntfs_volume() if filesystem.kind == "ntfs" else _fat_volume()
    library.open_file_object(SourceFile(source))
    todo: list[tuple[str, Any, int]] = [("", library.get_root_directory(), 0)]
    left = _LARGEST
    while todo:
        path, entry, depth = todo.pop()
        try:
            # libfsfat has no extents for its root
            yield path or "\\", list(_extents(entry)) if path not in ("", _NOBODYS) else []
            count = entry.number_of_sub_file_entries if depth < DEEPEST else 0
        except LIBRARY_ERRORS:
            yield path or "\\", None
            continue
        for index in range(count):
            left -= 1
            if left < 0:
                yield path or "\\", None
                return
            try:
                below = entry.get_sub_file_entry(index)
                name = below.name
            except LIBRARY_ERRORS:
                yield f"{path}\\?", None
                continue
            if name and name not in (".", ".."):
                todo.append((f"{path}\\{name}", below, depth + 1))


def _extents(entry: Any) -> Iterator[Range]:
    """All that a file holds, its named streams too; holes are left out."""
    for index in range(entry.number_of_extents):
        yield from _placed(*entry.get_extent(index))
    for number in range(getattr(entry, "number_of_alternate_data_streams", 0)):
        stream = entry.get_alternate_data_stream(number)
        for index in range(stream.number_of_extents):
            yield from _placed(*stream.get_extent(index))


def _placed(offset: int, length: int, flags: int) -> Iterator[Range]:
    if not flags & _HOLE and offset >= 0 and length > 0:
        yield Range(offset, length)


def _inside(extent: Range, ranges: Sequence[Range], ends: Sequence[int]) -> Iterator[Range]:
    """What of ranges lies in extent."""
    for number in range(bisect.bisect_right(ends, extent.offset), len(ranges)):
        span = ranges[number]
        if span.offset >= extent.end:
            break
        start = max(span.offset, extent.offset)
        yield Range(start, min(span.end, extent.end) - start)
