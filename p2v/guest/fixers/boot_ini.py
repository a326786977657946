"""NTLDR must find the Windows folder through the VM's BIOS: boot.ini's paths become multi().

scsi() and signature() paths make NTLDR load ntbootdd.sys, a copy of the old controller's driver; in the VM
it ends in "computer disk hardware configuration problem". A diagnostic line is added once. Every other
byte of the file stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from p2v.errors import Finding, GuestError, Severity, Where
from p2v.guest import bootini, facts
from p2v.guest.bootini import ArcPath, BootIni, Line
from p2v.guest.fixers import hal_kernel
from p2v.guest.fixers.edits import hindrances
from p2v.guest.fixers.hal_kernel import Swap
from p2v.model import Change, Content, Family, FileChange, Guest, Target

NAME = "boot-ini"
MARK = b"[VM diagnostic]"
PAIR = b"[VM HAL]"
MENU_LIMIT = 10  # lines that NTLDR's menu shows [from memory]
PLACE = "\\boot.ini"
DEBUGGER = re.compile(rb"(?i)/(debug|debugport|baudrate|crashdebug|nodebug)(=\S+)?(?=\s|$)")


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """One change of boot.ini, or none."""
    if guest.facts.family is not Family.WINDOWS:
        return
    volume = guest.facts.system_volume
    files = guest.files(volume)
    name = facts.spelled(files, "", "boot.ini")
    if name is None:  # said when the system was recognised; ntldr's own default needs no file
        return
    path = "\\" + name
    before = files.read(path)
    old = bootini.parse(before, path)
    new, said, reasons = resolved(guest, old)
    yield from said
    line = _ours(guest, new)
    if line is not None:
        yield from hal_kernel.nx(guest, line, NAME)
    swap, _ = hal_kernel.decide(guest, target)  # its findings are the other fixer's
    new, reasons = _started(guest, new, swap, reasons)
    new, reasons = _diagnostic(guest, new, swap, reasons)
    if facts.spelled(files, "", "ntbootdd.sys"):
        yield Finding("ntbootdd.sys is left where it is", Where(volume, item="\\ntbootdd.sys"),
                      "it is the old controller's driver for scsi() paths; with multi() it is not loaded",
                      "delete it when the VM has proven itself", fixer=NAME)
    if new.data != before:
        blocked = list(hindrances(guest, volume, path, NAME))
        yield from blocked
        if not blocked:
            yield FileChange(volume, path, Content(before), Content(new.data), "; ".join(reasons), NAME)


def resolved(guest: Guest, ini: BootIni) -> tuple[BootIni, list[Finding], list[str]]:
    """Every path that the VM's BIOS cannot follow becomes multi(); what leads nowhere; the reasons."""
    said: list[Finding] = []
    reasons: list[str] = []
    default = ini.default_line
    places = [(line.number, line.path) for line in ini.systems]
    if ini.default_number is not None:
        places.append((ini.default_number, ini.default))
    for number, path in places:
        arc = bootini.parse_arc(path.decode("latin-1"))
        if arc is None:
            continue
        starts = default is not None and path.strip().lower() == default.path.strip().lower()
        wanted = _wanted(guest, arc, starts=starts)
        if wanted is None:
            said.append(_lost(guest, arc, starts=starts))
        elif wanted != arc:
            ini = ini.with_path(number, path, wanted)
            reason = f"{arc} → {wanted}: {_why(guest, arc)}"
            reasons += [] if reason in reasons else [reason]
    return ini, said, reasons


def _wanted(guest: Guest, arc: ArcPath, *, starts: bool) -> ArcPath | None:
    """The path for the VM; None where it leads nowhere."""
    home = guest.volumes[guest.facts.boot_volume].partition
    possible = facts.meant(guest, arc)
    if starts and home in possible:  # where the Windows was found that this line starts
        possible = (home,)
    for partition in possible:
        volume = facts.volume_of(guest.volumes, partition)
        if volume and _has_folder(guest, volume, arc.directory):
            new = bootini.arc_of(partition, guest.disks, arc.directory)
            places = (arc.kind, arc.first, arc.disk, arc.rdisk, arc.partition)
            return arc if places == ("multi", 0, 0, new.rdisk, new.partition) else new
    if starts and home is not None and home.number:
        return bootini.arc_of(home, guest.disks, guest.facts.system_root)
    return None


def _has_folder(guest: Guest, volume: str, directory: str) -> bool:
    try:
        stat = guest.files(volume).stat(directory) if directory else None
    except GuestError:  # no filesystem that can be read: no Windows folder either
        return False
    return stat is not None and stat.is_folder


def _why(guest: Guest, arc: ArcPath) -> str:
    if arc.kind == "multi" and guest.collapsed:
        return "the partitions count otherwise on the plain disks that the VM gets"
    if arc.kind == "multi":
        return "the old path leads to no Windows folder (hal.dll or ntoskrnl.exe would be missing)"
    return ("the VM's BIOS serves the disk by INT 13h; with the old path NTLDR loads ntbootdd.sys and ends "
            "with a disk hardware configuration problem")


def _lost(guest: Guest, arc: ArcPath, *, starts: bool) -> Finding:
    severity = Severity.ERROR if starts else Severity.WARNING
    return Finding(f"a path of boot.ini leads nowhere: {arc}", Where(guest.facts.system_volume, item=PLACE),
                   "no partition of that number holds the folder",
                   "give all disks of the server in BIOS order, or mend the line", severity, NAME)


def _started(guest: Guest, ini: BootIni, swap: Swap | None, reasons: list[str]) -> tuple[BootIni, list[str]]:
    """The line that starts by itself: with NX off where it must be, and the pair for the VM before it."""
    line = _ours(guest, ini)
    if line is None:
        return ini, reasons
    switches = hal_kernel.without_nx(guest, line) if line.number >= 0 else None
    if switches is not None:
        ini = ini.with_switches(line, switches)
        reasons = [*reasons, f"NX off: {hal_kernel.nx_problem(guest)}, and the loader would start it where the "
                             "VM's processor has NX"]
    if swap is None or not swap.needed:
        return ini, reasons
    text = _line(guest, line, PAIR, hal_kernel.switched(line.switches, swap))
    return ini.with_line(text, line if line.number >= 0 else None), [
        *reasons, f"a line before the old one, which NTLDR takes in its place, with {swap.switches.decode()}: "
                  f"{swap.why}"]


def _ours(guest: Guest, ini: BootIni) -> Line | None:
    """The line that starts this Windows: the default one, or the first with its folder where that starts another."""
    default, root = ini.default_line, guest.facts.system_root.lower()
    lines = ([default] if default else []) + list(ini.systems)
    return next((line for line in lines if line.arc and line.arc.directory.lower() == root), None)


def _line(guest: Guest, like: Line, mark: bytes, switches: bytes) -> bytes:
    return like.path.strip() + b'="' + _title(guest, like) + b" " + mark + b'" ' + switches


def _diagnostic(guest: Guest, ini: BootIni, swap: Swap | None, reasons: list[str]) -> tuple[BootIni, list[str]]:
    """Add the diagnostic line after the last system, unless one is there or the menu is full.

    It starts with the pair for the VM where there is one, be it needed or not.
    """
    default = ini.default_line
    full = len(ini.systems) >= MENU_LIMIT
    if default is None or default.arc is None or full or any(_serves(line, swap) for line in ini.systems):
        return ini, reasons
    switches = default.switches if swap is None or swap.needed else hal_kernel.switched(default.switches, swap)
    text = _line(guest, replace(default, title=default.title.replace(PAIR, b"")), MARK, _switches(switches))
    reasons = [*reasons, "a second line that names each driver as it loads (/SOS) and uses plain VGA (/BASEVIDEO), "
                         "for a first boot that fails"]
    if swap is not None and not swap.needed:
        reasons.append(f"it has {swap.switches.decode()}: {swap.why}")
    return ini.with_line(text), reasons


def _serves(line: Line, swap: Swap | None) -> bool:
    """Is this the diagnostic line, with the pair where there is one?"""
    return MARK.lower() in line.title.lower() and (swap is None or all(
        one in line.switches for one in swap.switches.split()))


def _title(guest: Guest, line: Line) -> bytes:
    plain = guest.facts.name.partition(" Service Pack")[0].partition(" (")[0]
    return line.title.strip() or plain.encode("ascii", "replace")


def _switches(switches: bytes) -> bytes:
    kept = b" ".join(DEBUGGER.sub(b"", switches).split())
    for switch in (b"/SOS", b"/BASEVIDEO"):
        if switch.lower() not in kept.lower().split():
            kept += b" " + switch
    return kept.strip()
