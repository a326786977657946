"""The used-block map of NTFS 1.2, 3.0 and 3.1, and whether it can be trusted.

Only unions: a cluster is free where $Bitmap says so, on a volume whose log and flags are clean, and no
fixed part of the volume lies there. Bytes that no cluster holds (the tail with the backup boot sector)
are never free. Damage makes the volume one block of data with a finding, not an error.
"""

from __future__ import annotations

import numpy as np

from p2v.errors import Finding, GuestError, LayoutError, ReadError, Severity, Where
from p2v.filesystem.freemap import FreeRanges, overlap
from p2v.filesystem.journal import Log, judge
from p2v.filesystem.mft import Mft
from p2v.filesystem.reader import open_files
from p2v.filesystem.records import (
    COMPRESSED,
    DATA,
    DIRECTORY,
    ENCRYPTED,
    IN_USE,
    SPARSE,
    VOLUME_INFORMATION,
    Attribute,
    Run,
    damaged,
)
from p2v.filesystem.sleeping import PAGEFILE, droppable_page_file, hibernated
from p2v.model import SECTOR, Filesystem, FilesystemState, Range, Source

OEM = b"NTFS    "
MFTMIRR, LOGFILE, VOLUME, BITMAP = 1, 2, 3, 6  # record numbers
DIRTY_FLAGS = 0x4001  # dirty; chkdsk underway
BOOT_BYTES = 16 * SECTOR
CHUNK = 1 << 20  # bytes of $Bitmap at a time: 8 Mi clusters
BEFORE_3 = ("1.1", "1.2")


def examine(source: Source, head: bytes) -> Filesystem | None:
    """None where the boot sector (head) is not NTFS's. Never raises for what the volume holds."""
    if head[3:11] != OEM:
        return None
    version, cluster_size = "", 0
    try:
        mft = Mft(source)
        cluster_size = mft.boot.cluster_size
        version, flags = _volume_information(mft)
        state, findings = _state(mft, version, flags)
        if state is not FilesystemState.CLEAN:
            return Filesystem("ntfs", version, cluster_size, state, findings=tuple(findings))
        free = _free(mft, version)
        droppable, more = _page_file(mft, version, free)
    except (LayoutError, ReadError, GuestError) as error:
        return Filesystem("ntfs", version, cluster_size, findings=(_all_data(error),))
    return Filesystem("ntfs", version, cluster_size, state, free, droppable, (*findings, *more))


def _all_data(error: LayoutError | ReadError | GuestError) -> Finding:
    why = f"{error.why}; " if error.why else ""
    return Finding(f"NTFS cannot be trusted: {error.what}", error.where,
                   f"{why}every byte of the volume is copied, free space too", error.next, Severity.WARNING)


def _volume_information(mft: Mft) -> tuple[str, int]:
    """$Volume: ("3.1", flags)."""
    information = mft.attribute(mft.record(VOLUME), VOLUME_INFORMATION)
    if information is None or information.value is None or len(information.value) < 12:
        raise damaged(Where(mft.source.name), "$Volume has no version", "its $VOLUME_INFORMATION is missing")
    value = information.value
    return f"{value[8]}.{value[9]}", int.from_bytes(value[10:12], "little")


# -- state


def _state(mft: Mft, version: str, flags: int) -> tuple[FilesystemState, list[Finding]]:
    """Asleep weighs more than an unreplayed log, and that more than the dirty flag."""
    name = mft.source.name
    asleep = hibernated(open_files(mft.source, Filesystem("ntfs", version)), name)
    if asleep:
        return FilesystemState.HIBERNATED, [asleep]
    log = judge(mft)
    if log is Log.IN_USE:
        return FilesystemState.UNCLEAN, [Finding(
            "the volume's journal is not replayed", Where(name, item="$LogFile"),
            "Windows was not shut down, or the copy was made while it ran; free space is copied too",
            "nothing: p2v replays it where it edits the volume, Windows everywhere else", Severity.WARNING)]
    if log is Log.DAMAGED:
        return FilesystemState.UNKNOWN, [Finding(
            "the volume's journal is damaged", Where(name, item="$LogFile"),
            "neither of its restart pages is whole, so nobody knows what was lost; free space is copied too",
            "run chkdsk on the machine", Severity.WARNING)]
    if flags & DIRTY_FLAGS:
        return FilesystemState.DIRTY, [Finding(
            "the volume is marked dirty", Where(name, item="$Volume"),
            f"Windows wants to run chkdsk (flags {flags:#06x}); free space is copied too",
            "nothing, or run chkdsk on the machine first", Severity.WARNING)]
    return FilesystemState.CLEAN, [] if log is Log.CLEAN else [Finding(
        "the volume's journal is empty (all FF)", Where(name, item="$LogFile"),
        "mkntfs or ntfs-3g wrote it last: if that was no clean shutdown of Windows, the traces are gone",
        "nothing, if the disk was made or mounted by Linux", Severity.INFO)]


# -- free clusters


def _free(mft: Mft, version: str) -> tuple[Range, ...]:
    bitmap = _bitmap(mft)
    boot = mft.boot
    known = min(boot.clusters, 8 * bitmap.initialized)  # past it nothing is proven
    # NT 3.51 and older keep the backup boot sector in the middle of the volume.
    middle = boot.total_sectors // 2 // boot.cluster_sectors if version in BEFORE_3 else -1
    ranges = FreeRanges(0, boot.cluster_size)
    for first in range(0, known, 8 * CHUNK):
        count = min(8 * CHUNK, known - first)
        data = mft.read(bitmap, first // 8, (count + 7) // 8)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")
        if first <= middle < first + count:
            bits[middle - first] = 1
        ranges.add(bits == 0)
    free = ranges.finish()
    claimed = overlap(free, _fixed(mft, bitmap))
    if claimed:
        raise damaged(Where(mft.source.name, claimed.offset, claimed.length, "$Bitmap"),
                      "$Bitmap calls clusters free that the filesystem itself lies in",
                      "it is another volume's, or damaged")
    return free


def _bitmap(mft: Mft) -> Attribute:
    bitmap = mft.attribute(mft.record(BITMAP), DATA)
    if bitmap is None or any(run.lcn is None for run in bitmap.runs) or bitmap.flags & (COMPRESSED | SPARSE):
        raise damaged(Where(mft.source.name), "$Bitmap has no whole data attribute",
                      "it is missing, sparse or compressed")
    if bitmap.value is None and _allocated(mft, bitmap.runs) < bitmap.initialized:
        raise damaged(Where(mft.source.name), "$Bitmap is shorter than its size", f"{bitmap.initialized} bytes")
    return bitmap


def _fixed(mft: Mft, bitmap: Attribute) -> list[Range]:
    """Where the filesystem itself lies."""
    parts = [*mft.runs, *bitmap.runs]
    for number in (MFTMIRR, LOGFILE):
        attribute = mft.attribute(mft.record(number), DATA)
        parts += attribute.runs if attribute else ()
    return [Range(0, BOOT_BYTES), *_ranges(mft, tuple(parts))]


def _ranges(mft: Mft, runs: tuple[Run, ...]) -> list[Range]:
    size = mft.boot.cluster_size
    return [Range(run.lcn * size, run.length * size) for run in runs if run.lcn is not None]


def _allocated(mft: Mft, runs: tuple[Run, ...]) -> int:
    return sum(run.length for run in runs) * mft.boot.cluster_size


# -- the page file


def _page_file(mft: Mft, version: str, free: tuple[Range, ...]) -> tuple[tuple[Range, ...], list[Finding]]:
    """Whole clusters of \\pagefile.sys below its initialized size; its place stays allocated."""
    files = open_files(mft.source, Filesystem("ntfs", version))
    wanted, finding = droppable_page_file(files, mft.source.name)
    number = files.record_number(PAGEFILE) if wanted else None
    if number is None:
        return (), [finding] if finding else []
    record = mft.record(number)
    data = mft.attribute(record, DATA)
    plain = data is not None and data.value is None and not data.flags & (COMPRESSED | ENCRYPTED | SPARSE) \
        and all(run.lcn is not None for run in data.runs)
    if data is None or not plain or record.has_list or record.flags & (IN_USE | DIRECTORY) != IN_USE:
        return (), []
    left = data.initialized // mft.boot.cluster_size * mft.boot.cluster_size
    ranges = []
    for place in _ranges(mft, data.runs):
        if left:
            ranges.append(Range(place.offset, min(place.length, left)))
            left -= ranges[-1].length
    if overlap(free, ranges) or overlap(tuple(sorted(ranges, key=lambda r: r.offset)), _fixed(mft, _bitmap(mft))):
        raise damaged(Where(mft.source.name, item=PAGEFILE), "the page file lies where other things are",
                      "its clusters are free or the filesystem's own")
    return tuple(sorted(ranges, key=lambda r: r.offset)), []
