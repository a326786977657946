"""The loader's own files: where they were on a disk that is gone, they come from what the user hands in.

On a mirror the active partition with ntldr may never have been mirrored, and die with its disk (KB 167045). The
files must be of this Windows or a later one: an older ntldr does not know a newer filesystem.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2v.errors import Finding, Severity, Where
from p2v.guest import bootini
from p2v.guest.facts import spelled
from p2v.guest.fixers import boot_ini
from p2v.model import Change, Content, Family, FileChange, Guest, Target

NAME = "boot-files"
LIMIT = 4 << 20  # bytes; the largest ntldr has 300 KB
FILES = ("ntldr", "ntdetect.com")
MENU = "[boot loader]\r\ntimeout=30\r\ndefault={arc}\r\n[operating systems]\r\n{arc}=\"{title}\" /fastdetect\r\n"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Nothing where the loader is there."""
    if guest.facts.family is not Family.WINDOWS:
        return
    volume = guest.facts.system_volume
    files = guest.files(volume)
    missing = [name for name in FILES if spelled(files, "", name) is None]
    if spelled(files, "", "ntldr") is not None:
        return
    why = "the disk that the server started from is gone, and its loader with it"
    for name in missing:
        given = handed_in(guest.drivers, name)
        if given is None:
            yield Finding(f"{name} is nowhere on these disks", Where(volume, item=f"\\{name}"), why,
                          f"put {name} of {guest.facts.name} (its CD has it as \\I386\\{name.upper()}) into a folder, "
                          "and give that with --drivers DIR", Severity.ERROR, NAME)
        else:
            yield FileChange(volume, f"\\{name}", None, Content(given.read_bytes()), f"{why}: taken from {given}", NAME)
    if spelled(files, "", "boot.ini") is None:
        yield from _menu(guest, volume, why)


def _menu(guest: Guest, volume: str, why: str) -> Iterator[Change | Finding]:
    """boot.ini as it was given, or one that names this Windows."""
    given = handed_in(guest.drivers, "boot.ini")
    home = guest.volumes[guest.facts.boot_volume].partition
    if given is not None:
        ini, said, _ = boot_ini.resolved(guest, bootini.parse(given.read_bytes(), str(given)))
        yield from said
        yield FileChange(volume, "\\boot.ini", None, Content(ini.data), f"{why}: taken from {given}", NAME)
    elif home is not None:
        arc = bootini.arc_of(home, guest.disks, guest.facts.system_root)
        text = MENU.format(arc=arc, title=guest.facts.name.encode("ascii", "replace").decode())
        yield FileChange(volume, "\\boot.ini", None, Content(text.encode()), f"{why}: it names this Windows", NAME)


def handed_in(folders: Sequence[str], name: str) -> Path | None:
    """A plain file of that name in the user's folders, whatever its case; the first there is."""
    for folder in folders:
        for parent, inner, names in os.walk(folder):
            inner.sort()
            for found in sorted(names):
                path = Path(parent, found)
                if found.lower() == name.lower() and path.is_file() and path.stat().st_size <= LIMIT:
                    return path
    return None
