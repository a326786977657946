"""NT 4's loader reads by cylinder, head and sector: what it loads must lie below cylinder 1024, some 7.8 GB.

The server's BIOS may have counted otherwise than the VM's, volumes move when sets are dissolved, and a file that is
written anew may land anywhere on a large volume. Sources: Q224526, Q317050, Q272395 ("AA55 not found", "Disk I/O
error: Status=00000001").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from p2v.errors import Finding, GuestError, Severity, Where
from p2v.guest import bootini, images
from p2v.guest.facts import BOOT_INI_LIMIT, spelled
from p2v.model import SECTOR, Filesystem, Guest, Volume, read
from p2v.volume.geometry import CYLINDERS, target_geometry

NAME = "boot-reach"
NT4_LOADER = b"OS Loader V4"  # what it prints [from memory]; without it the loader may be a later one
PAGES = "Control\\Nls\\CodePage"


def beyond(guest: Guest) -> Iterator[Finding]:
    """Each boot file of an NT 4 that its loader cannot read on the VM's disk; nothing for later systems."""
    if guest.facts.version >= (5, 0):
        return
    for name, paths in _wanted(guest).items():
        volume = guest.volumes[name]
        partition = volume.partition
        if partition is None:
            continue
        limit = _limit(guest.disks[partition.disk].size)
        if partition.offset + partition.length > limit:
            yield from _files(guest, volume, partition.offset, limit, paths)


def _limit(size: int) -> int:
    """Bytes of a disk of that size that cylinder, head and sector can name in the VM."""
    geometry = target_geometry(size)
    return CYLINDERS * geometry.heads * geometry.sectors * SECTOR


def _files(guest: Guest, volume: Volume, start: int, limit: int, paths: list[str]) -> Iterator[Finding]:
    from p2v.filesystem import open_files

    kind = "ntfs" if read(volume.source, 3, 8) == b"NTFS    " else "fat16"
    try:
        files = open_files(volume.source, Filesystem(kind))
        places = {path: max((place.end for place in files.places(path)), default=0) for path in paths}
    except GuestError as error:
        yield Finding("whether NT 4's loader reaches its files cannot be told", Where(volume.name), error.what,
                      "if the VM says AA55 not found, or Disk I/O error, move Windows below 7.8 GB",
                      Severity.WARNING, NAME)
        return
    known = _is_nt4_loader(guest)
    for path, end in places.items():
        if start + end > limit:
            yield Finding(
                f"NT 4's loader cannot read {path}",
                Where(volume.name, end - 1, item=f"{path}, byte {start + end - 1:#x} of the disk"),
                f"it reads below byte {limit:#x} only (cylinder 1024)"
                + ("" if known else "; whether this ntldr is NT 4's own is not known: a later one reads further"),
                "copy the file within the volume until it lies lower, or put ntldr and ntdetect.com of your 2000 or XP "
                "on the server", Severity.ERROR if known else Severity.WARNING, NAME)
    if all(start + end <= limit for end in places.values()):
        yield Finding("NT 4's volume goes past what its loader can read", Where(volume.name),
                      f"it reads below byte {limit:#x} only (cylinder 1024); all that it loads lies there now",
                      "after a service pack, or if the VM says AA55 not found, plan again: p2v names the file",
                      fixer=NAME)


def _is_nt4_loader(guest: Guest) -> bool:
    files = guest.files(guest.facts.system_volume)
    stat = files.stat("\\ntldr")
    return stat is not None and stat.size <= 4 << 20 and NT4_LOADER in files.read("\\ntldr")


def _wanted(guest: Guest) -> Mapping[str, list[str]]:
    """Volume → the files there that are read before Windows has drivers."""
    facts = guest.facts
    wanted: dict[str, list[str]] = {}
    start = wanted.setdefault(facts.system_volume, [])
    start += [f"\\{name}" for name in ("ntldr", "ntdetect.com", "boot.ini", "bootfont.bin")]
    home = wanted.setdefault(facts.boot_volume, [])
    home += [f"{facts.system_root}\\system32\\{name}" for name in (*programs(guest), *_pages(guest))]
    home.append(facts.hives["SYSTEM"].path)
    home += [path for name in facts.boot_drivers
             if (path := images.service_file(guest, facts.default_control_set, name))]
    for name, paths in wanted.items():
        files = guest.files(name)
        wanted[name] = [path for path in dict.fromkeys(paths) if files.stat(path) is not None]
    return wanted


def programs(guest: Guest) -> list[str]:
    """Kernel and HAL in system32: those that boot.ini's default line names, else the usual ones."""
    files = guest.files(guest.facts.system_volume)
    stat = files.stat("\\boot.ini")
    line = None
    if spelled(files, "", "boot.ini") and stat and stat.size <= BOOT_INI_LIMIT:
        line = bootini.parse(files.read("\\boot.ini")).default_line
    return [(line.switch(switch) if line else "") or name
            for switch, name in (("KERNEL", "ntoskrnl.exe"), ("HAL", "hal.dll"))]


def _pages(guest: Guest) -> list[str]:
    """The code pages that the loader reads."""
    tree, key = guest.hive("SYSTEM"), f"{guest.facts.default_control_set}\\{PAGES}"
    names = []
    for which in ("ACP", "OEMCP"):
        number = tree.value(key, which)
        file = tree.value(key, number.text) if number else None
        names += [file.text] if file and file.text else []
    return names
