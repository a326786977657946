"""Files in a volume's root that decide what may be left out: hiberfil.sys and pagefile.sys."""

from __future__ import annotations

from p2v.errors import Finding, Severity, Where
from p2v.filesystem.reader import VolumeFiles

HIBERFIL = "\\hiberfil.sys"
PAGEFILE = "\\pagefile.sys"
HIBERNATED = (b"hibr", b"HIBR")
WHOLE_HEADER = 4096  # bytes: a shorter file is one that ntfs-3g takes for a hibernated system as well
DUMPS = (b"PAGEDUMP", b"PAGEDU64")


def hibernated(files: VolumeFiles, volume: str) -> Finding | None:
    """A finding where the system on this volume sleeps. Raises GuestError where that cannot be read.

    Source: ntfs-3g volume.c; "wake" and zeroes are what a system that runs leaves there.
    """
    stat = files.stat(HIBERFIL)
    if stat is None or stat.is_folder:
        return None
    if stat.size >= WHOLE_HEADER and files.head(HIBERFIL, 4) not in HIBERNATED:
        return None
    return Finding("Windows is hibernated on this volume", Where(volume, item=HIBERFIL),
                   "its memory, with open files and unwritten data, is in hiberfil.sys: an edit would corrupt it",
                   "start the machine, shut it down, and copy again", Severity.ERROR)


def droppable_page_file(files: VolumeFiles, volume: str) -> tuple[bool, Finding | None]:
    """Is there a page file with nothing in it to keep? A crash dump is kept, with a finding."""
    stat = files.stat(PAGEFILE)
    if stat is None or stat.is_folder or stat.compressed or stat.encrypted or stat.sparse:
        return False, None
    if files.head(PAGEFILE, 8) not in DUMPS:
        return True, None
    return False, Finding("the page file holds a crash dump and is copied", Where(volume, item=PAGEFILE),
                          "Windows saves it to memory.dmp at its next start",
                          "nothing, or let the machine save it first", Severity.INFO)
