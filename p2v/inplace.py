"""Write changed bytes into an image, so that a power cut in the middle can be finished.

The journal holds every changed piece, before and after, and is complete and fsynced (its name says so)
before the image is touched. Replaying it is safe any number of times.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2v.copy import CopyReport
from p2v.digests import digest_of
from p2v.errors import DriftError, MismatchError, Where
from p2v.model import SECTOR, Range, Source, read
from p2v.ring import CHUNK
from p2v.rundir import cannot_write, sync_folder
from p2v.stage import opened_for_writing

MAGIC = b"p2v journal 1\n\0\0"
HEAD = struct.Struct("<QQ")  # offset, length; then length bytes before and length bytes after
PIECE = 64 << 10  # bytes: what is compared, and kept when it differs


def write_journal(path: Path, before: Source, after: Source, changed: Sequence[Range]) -> None:
    """Keep what differs between two sources within the changed ranges. Raises WriteError, ReadError."""
    part = path.with_suffix(".part")
    try:
        digest = hashlib.sha256(MAGIC)
        with open(part, "wb") as file:
            file.write(MAGIC)
            for offset, old, new in _differences(before, after, changed):
                for data in (HEAD.pack(offset, len(old)), old, new):
                    file.write(data)
                    digest.update(data)
            file.write(HEAD.pack(0, 0) + digest.digest())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def _differences(
    before: Source, after: Source, changed: Sequence[Range]
) -> Iterator[tuple[int, bytes, bytes]]:
    for area in changed:
        for offset in range(area.offset, area.end, PIECE):
            length = min(PIECE, area.end - offset)
            old, new = read(before, offset, length), read(after, offset, length)
            if old != new:
                yield offset, old, new


def _entries(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """The journal's pieces. Raises MismatchError when it is damaged, before the last piece is used."""
    _check(path)
    with open(path, "rb") as file:
        file.seek(len(MAGIC))
        while True:
            offset, length = HEAD.unpack(file.read(HEAD.size))
            if length == 0:
                return
            yield offset, file.read(length), file.read(length)


def _check(path: Path) -> None:
    """Raises MismatchError when the journal is not what was written."""
    digest, size = hashlib.sha256(), path.stat().st_size
    end = size - HEAD.size - digest.digest_size
    with open(path, "rb") as file:
        left = end
        while left > 0 and (data := file.read(min(left, CHUNK))):
            digest.update(data)
            left -= len(data)
        if end < len(MAGIC) or left or file.read() != HEAD.pack(0, 0) + digest.digest():
            raise MismatchError(
                "the journal of an interrupted edit is damaged",
                Where(item=str(path)),
                "the image may be half edited, and the bytes before are not to be trusted",
                "take the image from your backup, or convert the source again",
            )


def ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) of every piece of a journal."""
    return [(offset, len(old)) for offset, old, _new in _entries(path)]


def replay(path: Path, image: str, format: str) -> None:
    """Bring every piece of the journal into the image, durably.

    Raises DriftError when a piece holds neither what was before nor what is to be, before writing any.
    """
    with opened_for_writing(image, format) as disk:
        for offset, old, new in _entries(path):
            if not _is_mixture(bytes(disk.pread(len(old), offset)), old, new):
                raise DriftError(
                    "the image has changed while it was being edited",
                    Where(image, offset, len(old)),
                    "it holds neither the bytes from before nor the planned ones; nothing more was written",
                    f"the bytes before are kept in {path}",
                )
        for offset, _old, new in _entries(path):
            disk.pwrite(new, offset)
        disk.flush()


def _is_mixture(now: bytes, old: bytes, new: bytes) -> bool:
    """Is each sector from before or from after? A power cut may come in the middle of a piece."""
    return all(now[at:at + SECTOR] in (old[at:at + SECTOR], new[at:at + SECTOR]) for at in range(0, len(now), SECTOR))


def refresh(report: CopyReport, source: Source, written: Sequence[tuple[int, int]]) -> None:
    """Take the digests of the written chunks anew from the image."""
    chunks = {index for offset, length in written
              for index in range(offset // CHUNK, -(-(offset + length) // CHUNK))}
    for index in sorted(chunks):
        start = index * CHUNK
        report.digests.put(index, digest_of(read(source, start, min(CHUNK, report.size - start))))
