"""A volume → which of its ranges are free, and its files to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2v.errors import Finding, ReadError, Severity
from p2v.model import SECTOR, Filesystem, Source, read

if TYPE_CHECKING:
    from p2v.filesystem.reader import VolumeFiles


def examine(source: Source) -> Filesystem:
    """What a volume holds, judged without mounting it. source: the volume, from its first byte.

    Never raises for what the volume holds: damage is a finding, with state UNKNOWN and nothing free.
    """
    from p2v.filesystem import ext, fat, ntfs, swap

    if source.size < SECTOR:
        return Filesystem("")
    try:
        head = read(source, 0, SECTOR)
    except ReadError as error:
        return Filesystem("", findings=(Finding(
            "the boot sector of the volume cannot be read", error.where, error.why,
            "make a rescue copy of the disk first (GNU ddrescue)", Severity.ERROR),))
    found = ntfs.examine(source, head) or fat.examine(source, head)
    return found or ext.examine(source) or swap.examine(source) or Filesystem("")


def open_files(source: Source, filesystem: Filesystem) -> VolumeFiles:
    """The files of a volume that examine() has recognised.

    Raises Unsupported for a filesystem that nobody here reads, GuestError for one too damaged to open.
    """
    from p2v.filesystem import reader

    return reader.open_files(source, filesystem)
