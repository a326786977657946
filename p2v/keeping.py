"""A copy that never begins again: an image, and the record of how far it has come.

    run/disk0.copy      the last checkpoint: a small JSON document, replaced as a whole
    run/disk0.digests   the digests of the chunks before it, only ever appended to

Saving costs what was copied since the last time, whatever the size of the disk.
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2v.checkpoint import SECONDS, Checkpoint, Keeper
from p2v.copy import CopyReport, report_of, run_copy
from p2v.digests import DIGEST, Digests, digest_of
from p2v.errors import DriftError, LayoutError, P2VError, PlanError, ReadError, Where
from p2v.model import Cancel, Extent, ImageFormat, ImageWriter, Kind, Progress, Range, Source, no_progress, read
from p2v.ring import CHUNK
from p2v.rundir import cannot_write, save_json

LOOKS = 10  # chunks read again before a copy goes on
_RECORD = struct.Struct(f"<Q{DIGEST}s")  # a chunk's number and digest
_PIECE = 1 << 16  # records read at once


class CopyLog:
    """The checkpoints of one disk's copy, in a run's folder."""

    def __init__(self, folder: Path, disk: str) -> None:
        from blake3 import blake3

        self.path, self._digests = folder / f"{disk}.copy", folder / f"{disk}.digests"
        self._new = blake3
        self._hash, self._records = blake3(), 0

    @property
    def exists(self) -> bool:
        """Is there a checkpoint?"""
        return self.path.exists()

    def save(self, checkpoint: Checkpoint, chunks: Iterable[int]) -> None:
        """Keep a checkpoint and the digests of these chunks. Raises WriteError."""
        records = b"".join(_RECORD.pack(index, checkpoint.digests.digest(index)) for index in chunks)
        try:
            with open(self._digests, "r+b" if self._records else "wb") as file:
                file.truncate(self._records * _RECORD.size)
                file.seek(0, os.SEEK_END)
                file.write(records)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._digests, error) from error
        self._hash.update(records)
        self._records += len(records) // _RECORD.size
        save_json(self.path, {
            "size": checkpoint.digests.size, "at": checkpoint.at, "tie": checkpoint.tie,
            "found_zero": checkpoint.found_zero, "seconds": round(checkpoint.seconds, 3),
            "bad": [[r.offset, r.length] for r in checkpoint.bad],
            "records": self._records, "hash": self._hash.hexdigest(),
            "state": base64.b64encode(checkpoint.state).decode(), "map": checkpoint.map, "done": checkpoint.done,
        })

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None where none was kept. Raises LayoutError when it is damaged."""
        if not self.exists:
            return None
        try:
            facts = json.loads(self.path.read_bytes())
            return Checkpoint(
                str(facts["tie"]), int(facts["at"]), base64.b64decode(facts["state"], validate=True),
                int(facts["found_zero"]), tuple(Range(int(o), int(n)) for o, n in facts["bad"]),
                float(facts["seconds"]), self._load_digests(facts), str(facts["map"]), bool(facts["done"]))
        except (OSError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise LayoutError("the record of an interrupted copy is damaged", Where(item=str(self.path)), str(error),
                              "begin again: use --force") from error

    def _load_digests(self, facts: dict[str, Any]) -> Digests:
        """The digests before the checkpoint; later ones in the file are forgotten. Raises ValueError."""
        digests, left = Digests(int(facts["size"])), int(facts["records"])
        self._hash, self._records = self._new(), left
        with open(self._digests, "rb") as file:
            while left > 0:
                data = file.read(min(left, _PIECE) * _RECORD.size)
                if not data or len(data) % _RECORD.size:
                    raise ValueError(f"{self._digests.name} is too short")
                self._hash.update(data)
                for index, digest in _RECORD.iter_unpack(data):
                    digests.put(index, digest)
                left -= len(data) // _RECORD.size
        if self._hash.hexdigest() != facts["hash"]:
            raise ValueError(f"{self._digests.name} is not what was written")
        return digests

    def clear(self) -> None:
        """Forget every checkpoint."""
        for path in (self.path, self._digests):
            path.unlink(missing_ok=True)
        self._hash, self._records = self._new(), 0


def image_files(folder: Path, image: str) -> list[Path]:
    """What there is of an image: its file or files, and what an interrupted run left of them."""
    stem, suffix = os.path.splitext(image)
    mine = re.compile(re.escape(stem) + r"(-flat|-s\d{3,})?" + re.escape(suffix) + r"(\.part)?")
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if path.is_file()
                  and (path.name in (image, image + ".part") or (suffix == ".vmdk" and mine.fullmatch(path.name))))


@dataclass(frozen=True, slots=True)
class Job:
    """One disk's copy: where to, where its progress is kept, and what a checkpoint must belong to.

    seconds: between two checkpoints. device: path is a block device, which is there before and after.
    """

    form: ImageFormat
    path: Path
    log: CopyLog
    tie: str
    seconds: float = SECONDS
    device: bool = False

    @property
    def files(self) -> list[Path]:
        """What there is of the image; of a device nothing is ever removed."""
        return [] if self.device else image_files(self.path.parent, self.path.name)

    def keeper(self) -> Keeper | None:
        """None for a format that can only begin again."""
        return None if self.form.SEQUENTIAL else Keeper(self.log.save, self.tie, self.seconds)

    def give_up(self, writer: ImageWriter) -> None:
        """Remove an unfinished image, unless its copy can go on."""
        if not self.log.exists:
            writer.abort()


def copy_image(
    source: Source,
    extents: Sequence[Extent],
    job: Job,
    *,
    progress: Progress = no_progress,
    cancel: Cancel | None = None,
) -> tuple[CopyReport, ImageWriter | None]:
    """Copy a source into an image, or go on with a copy of the same tie that was cut short.

    Returns its writer, to be finished; None where the image was finished before. What another copy left at the
    path is replaced. Cut short, an image of a SEQUENTIAL format is removed; any other stays as PATH.part, and
    job.log knows how far it has come. Raises what run_copy and the format raise.
    """
    found = fitting(job.log, job.tie)
    if found is not None and found.at == source.size and job.path.exists():
        return report_of(found, extents), None
    writer = None if found is None or found.map else _reopened(job, found)
    if writer is not None and found is not None:
        refuse_another_disk(source, extents, found)
    if writer is None:
        found = None
        clear(job)
        writer = job.form.create(str(job.path), source.size)
    try:
        report = run_copy(source, extents, writer, progress=progress, cancel=cancel, keeper=job.keeper(), resume=found)
    except BaseException:
        job.give_up(writer)
        raise
    return report, writer


def refuse_another_disk(source: Source, extents: Sequence[Extent], found: Checkpoint) -> None:
    """Read some of what was copied again. Raises DriftError where it is not what it was.

    A fingerprint of tables and journals does not tell two data disks apart that were made alike.
    """
    bad = {index for one in found.bad for index in range(one.offset // CHUNK, -(-one.end // CHUNK))}
    copied = [index for index in found.digests.not_zero(0, found.at // CHUNK) if index not in bad]
    starts = [extent.offset for extent in extents]
    for index in _some(copied):
        at = index * CHUNK
        with contextlib.suppress(ReadError):  # it is dying: the rescue will tell
            if digest_of(_as_written(source, extents, starts, at)) != found.digests.digest(index):
                where = Where(source.name, at, CHUNK)
                raise DriftError(f"{source.name} is not the disk that the copy began with", where,
                                 "what was copied from there is not there any more",
                                 "name the same disk; if it was in use meanwhile, begin anew with --force")


def refuse_another_target(target: Source, found: Checkpoint) -> None:
    """Does a device hold what was copied onto it? Names of devices change from one start to the next.

    Its first chunk is not looked at: a copy under way holds some of it back. Raises DriftError, PlanError.
    """
    whole = min(target.size, found.digests.size) // CHUNK
    copied = list(found.digests.not_zero(1, max(whole - 1, 0)))
    for index in _some(copied):
        if digest_of(read(target, index * CHUNK, CHUNK)) != found.digests.digest(index):
            raise DriftError(f"{target.name} is not the device that the copy began on",
                             Where(target.name, index * CHUNK, CHUNK), "what was copied to there is not there",
                             "name the device by /dev/disk/by-id; if this is it, begin anew with --force")
    if not copied:
        raise PlanError(f"nothing on {target.name} tells that the copy began there", Where(target.name),
                        "so little was copied that any device might be meant", "begin anew with --force")


def _some(chunks: Sequence[int]) -> list[int]:
    """A few of them, from the first to the last."""
    return [chunks[look] for look in sorted(
        {number * (len(chunks) - 1) // (LOOKS - 1) for number in range(LOOKS)} if chunks else ())]


def _as_written(source: Source, extents: Sequence[Extent], starts: Sequence[int], at: int) -> bytes:
    """A chunk as a copy writes it: zeroes where nothing is read."""
    end = min(at + CHUNK, source.size)
    data = bytearray(end - at)
    for number in range(bisect.bisect_right(starts, at) - 1, len(extents)):
        extent = extents[number]
        if extent.offset >= end:
            break
        low, high = max(extent.offset, at), min(extent.end, end)
        if extent.kind is Kind.DATA and low < high:
            source.read_into(low, memoryview(data)[low - at : high - at])
    return bytes(data)


def clear(job: Job) -> None:
    """Forget the copy: its record, and what there is of its image."""
    job.log.clear()
    for leftover in job.files:
        leftover.unlink()


def fitting(log: CopyLog, tie: str) -> Checkpoint | None:
    """The checkpoint of a copy of this tie; None where there is none that can be trusted."""
    with contextlib.suppress(LayoutError):
        found = log.load()
        if found is not None and found.tie == tie:
            return found
    return None


def _reopened(job: Job, found: Checkpoint | None) -> ImageWriter | None:
    """The image as it was at the checkpoint; None where it is gone, or no longer what it was."""
    if found is None or job.form.SEQUENTIAL:
        return None
    try:
        return job.form.reopen(str(job.path), found.state)
    except P2VError:
        return None
