"""Windows must start on the VM's interrupt controllers: a HAL for another machine gets a standard one beside it.

The old pair is never touched: HAL and kernel from the installed service pack are new files, and a line of boot.ini
names them (/HAL= /KERNEL=). That line comes first only where the old HAL cannot run. ACPI HALs of 2000 and later
stay, and a HAL is never swapped for one of another family than the PnP tree shows: the devices differ, and
Windows stops with 0x7B (KB237556).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from p2v.errors import Finding, GuestError, Severity, Where
from p2v.guest import hal, pe
from p2v.guest.bootini import Line
from p2v.guest.hal import Family as HalFamily
from p2v.guest.hal import Hal
from p2v.guest.media import dotted
from p2v.guest.pair import Missing, Pair, Part, find, names_of
from p2v.guest.pe import read_program
from p2v.model import Change, Content, Family, FileChange, Guest, Target

NAME = "hal-kernel"
HAL_NAME, KERNEL_NAME = "halup{}.dll", "krnlup{}.exe"  # 8.3, as the loader wants them
MP_HAL_NAME, MP_KERNEL_NAME = "halmp{}.dll", "krnlmp{}.exe"
# These start ntkrnlpa.exe where the processor has NX, unless told otherwise: (version, service pack).
FIRST_WITH_NX = {(5, 1): 2, (5, 2): 1}
NX_OFF = b"/NOEXECUTE=ALWAYSOFF /NOPAE"
_DECIDED = re.compile(rb"(?i)/(PAE|NOPAE|EXECUTE|KERNEL=\S+|NOEXECUTE=ALWAYSOFF)(?=\s|$)")
_TO_GO = re.compile(rb"(?i)\s*/(PAE|NOPAE|EXECUTE|KERNEL=\S+|HAL=\S+|NOEXECUTE=\S+)(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Swap:
    """A pair for the VM. needed: the old HAL cannot run there. files: name in system32 → its source."""

    old: Hal
    needed: bool
    files: tuple[tuple[str, Part], ...]
    switches: bytes
    why: str


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """The pair's files; boot.ini is the boot-ini fixer's."""
    if guest.facts.family is not Family.WINDOWS:
        return
    yield from _doubts(guest)
    swap, said = decide(guest, target)
    yield from said
    if swap is None:
        return
    folder = f"{guest.facts.system_root}\\system32"
    volume = guest.facts.boot_volume
    for name, part in swap.files:
        path = f"{folder}\\{name}"
        if not _same(guest, path, part.content):
            yield FileChange(volume, path, None, part.content,
                             f"{swap.why}: version {dotted(part.version)} from {part.where}", NAME,
                             f"{folder}\\ntoskrnl.exe")


# ---------------------------------------------------------------------------------------------
# Which HAL runs where


def decide(guest: Guest, target: Target) -> tuple[Swap | None, list[Finding]]:
    """The pair that Windows starts with in the VM, None for the installed one; and what is worth saying."""
    old = hal.identify(guest.facts)
    place = _place(guest, "hal.dll")
    runs = _runs(old, target)
    if runs is None and old.family is HalFamily.ACPI:
        return None, [Finding(
            f"the HAL {old.title} needs a machine with ACPI", place, f"{target.NAME} offers none; Windows stops with "
            "0xA5 or 0x79, and a HAL without ACPI would find no device of its PnP tree (0x7B)",
            "choose a target with ACPI: --target kvm", Severity.ERROR, NAME)]
    if runs is None or (old.family is HalFamily.MPS and guest.facts.version < (5, 0)):
        return _swapped(guest, target, old, needed=runs is None)
    return None, list(_kept(guest, target, old, place))


def _runs(old: Hal, target: Target) -> bool | None:
    """True where it is known to run, None where it is not."""
    fits = {HalFamily.STANDARD: True, HalFamily.ACPI: target.HAS_ACPI, HalFamily.MPS: target.HAS_MP_TABLE,
            HalFamily.VENDOR: False, HalFamily.UNKNOWN: True}
    return True if fits[old.family] else None


def _kept(guest: Guest, target: Target, old: Hal, place: Where) -> Iterator[Finding]:
    if old.family is HalFamily.UNKNOWN:
        what = f"nobody knows the HAL {old.name}" if old.name else "the HAL does not say which one it is"
        yield Finding(what, place,
                      "whether it runs in a VM cannot be told; it is kept",
                      "if the VM stops at once, start the server's own HAL for a standard PC with /HAL=",
                      Severity.WARNING, NAME)
    elif old.family is HalFamily.STANDARD and guest.facts.version >= (5, 0):
        yield Finding("the HAL is that of a standard PC, and is kept", place,
                      "it knows no ACPI: one processor is used, and the VM does not switch itself off",
                      "switch the VM off by hand once Windows says that it is safe", fixer=NAME)
    elif old.family is HalFamily.MPS:
        yield Finding(f"the HAL {old.title} is kept", place,
                      f"it starts from an MP table, and {target.NAME}'s firmware builds one",
                      "leave the VM's I/O APIC on", fixer=NAME)


def _swapped(guest: Guest, target: Target, old: Hal, *, needed: bool) -> tuple[Swap | None, list[Finding]]:
    place = _place(guest, "hal.dll")
    wanted = _standard_for(guest)
    why = f"the HAL is made for {old.title}, which {target.NAME}'s VM is not" if old.family is HalFamily.VENDOR \
        else f"the HAL {old.title} starts from an MP table, which {target.NAME} is not known to have"
    if not needed:
        why = f"the HAL {old.title} may run in the VM; that of a standard PC runs for sure"
    if wanted is None:
        return None, [Finding(
            "no other HAL fits this Windows", place,
            f"{why}; and its PnP tree shows neither an ACPI nor a standard PC, so no HAL would find its devices",
            "repair Windows in the VM from its own CD (setup, then R), or image the disks only", _weight(old), NAME)]
    found = find(guest, wanted)
    if isinstance(found, Missing):
        return None, [_absent(guest, target, old, found, why, needed=needed)]
    swap = _placed(guest, old, found, wanted, why, needed=needed)
    first = "Windows starts with the HAL of a standard PC" if wanted == hal.STANDARD_HAL \
        else "Windows starts with the HAL of an ACPI PC"
    what = first if needed else "a second line of boot.ini starts with the HAL of a standard PC"
    return swap, [Finding(
        what, place, f"{why}; its files lie beside the old ones: {', '.join(name for name, _ in swap.files)}",
        "give the VM one processor" if wanted == hal.STANDARD_HAL
        else "give the VM ACPI and an I/O APIC; one processor is enough", fixer=NAME)]


def _standard_for(guest: Guest) -> str | None:
    """The HAL of the guest's own family that every VM can run; None where the PnP tree shows no family."""
    if guest.facts.version < (5, 0):  # no PnP: nothing depends on it
        return hal.STANDARD_HAL
    family = hal.device_family(guest.hive("SYSTEM"), guest.facts.default_control_set)
    return {HalFamily.ACPI: hal.ACPI_MP_HAL, HalFamily.STANDARD: hal.STANDARD_HAL}.get(family)


def _weight(old: Hal) -> Severity:
    """Nobody has seen a maker's HAL run in a VM; of the others it is not known that they cannot."""
    return Severity.ERROR if old.family is HalFamily.VENDOR else Severity.WARNING


def _absent(guest: Guest, target: Target, old: Hal, missing: Missing, why: str, *, needed: bool) -> Finding:
    facts = guest.facts
    version = dotted(facts.kernel.version) if facts.kernel and facts.kernel.version else "of the installed kernel"
    needs = names_of(missing.names)
    refused = f"; refused {'; '.join(missing.refused)}" if missing.refused else ""
    why += f"; {needs} of the installed service pack would do, and lie neither on the server nor in --drivers{refused}"
    after = f"{needs}, ntoskrnl.exe at version {version}" if hal.KERNEL in missing.names else \
        f"{needs}, of the service pack whose kernel has the version {version}"
    next = f"take {after} from {_medium(guest)}, put them into one folder, and give that with --drivers PATH"
    if not needed:
        return Finding(f"the HAL {old.title} is kept, with none to fall back on", _place(guest, "hal.dll"),
                       f"it starts from an MP table, and {target.NAME}'s firmware builds one",
                       f"should it fail: {next}", fixer=NAME)
    return Finding(f"the HAL for the VM is missing: {needs}", _place(guest, "hal.dll"), why, next, _weight(old), NAME)


def _medium(guest: Guest) -> str:
    facts = guest.facts
    pack = f"Service Pack {facts.service_pack}" if facts.service_pack else "the CD"
    if facts.version >= (5, 0):
        return f"{pack} for {facts.name}, unpacked with /x (driver.cab and sp{facts.service_pack or 1}.cab in its i386)"
    terminal = any(one.lower() == "terminal server" for one in facts.product_suite)
    edition = "Windows NT 4.0, Terminal Server Edition (its own; the ordinary one makes it unbootable)" if terminal \
        else "Windows NT 4.0, x86"
    return f"{pack} for {edition}, unpacked with /x, or its CD's \\I386"


def _placed(guest: Guest, old: Hal, pair: Pair, wanted: str, why: str, *, needed: bool) -> Swap:
    """Names for the files that are free, or hold these very files already; and the switches that load them."""
    standard = wanted == hal.STANDARD_HAL
    parts = [(HAL_NAME if standard else MP_HAL_NAME, pair.hal, b"/HAL=")]
    if pair.kernel:
        parts.append((KERNEL_NAME if standard else MP_KERNEL_NAME, pair.kernel, b"/KERNEL="))
    files = tuple((_free(guest, pattern, part.content), part) for pattern, part, _ in parts)
    switches = b" ".join(switch + name.encode() for (_, _, switch), (name, _) in zip(parts, files, strict=True))
    if pair.kernel and _has_nx(guest):
        switches += b" " + NX_OFF  # the pair's kernel has no PAE
    return Swap(old, needed, files, switches, why)


def _free(guest: Guest, pattern: str, content: Content) -> str:
    for number in ("", *map(str, range(2, 10))):
        name = pattern.format(number)
        path = f"{guest.facts.system_root}\\system32\\{name}"
        if guest.files(guest.facts.boot_volume).stat(path) is None or _same(guest, path, content):
            return name
    raise GuestError(f"there is no free name for {pattern.format('')}", _place(guest, pattern.format("")),
                     "nine such files of other content are there", "delete those that no line of boot.ini names")


def _same(guest: Guest, path: str, content: Content) -> bool:
    files = guest.files(guest.facts.boot_volume)
    stat = files.stat(path)
    return stat is not None and not stat.is_folder and stat.size == content.size and files.read(path) == content.data


def switched(switches: bytes, swap: Swap) -> bytes:
    """A line's switches with the pair's: those that chose another kernel, PAE or NX are left out."""
    kept = _TO_GO.sub(b"", switches) if b"/KERNEL=" in swap.switches else re.sub(rb"(?i)\s*/HAL=\S+", b"", switches)
    return b" ".join((*kept.split(), *swap.switches.split()))


def _place(guest: Guest, name: str) -> Where:
    return Where(guest.facts.boot_volume, item=f"{guest.facts.system_root}\\system32\\{name}")


# ---------------------------------------------------------------------------------------------
# What contradicts itself


def _doubts(guest: Guest) -> Iterator[Finding]:
    """Where HAL, kernel and PnP tree name different machines."""
    own, facts = hal.identify(guest.facts), guest.facts
    kernel = hal.processors(facts.kernel)
    # x64 has kernels for one and several processors under one HAL
    if kernel and own.processors and kernel != own.processors and facts.architecture == "x86":
        yield Finding("HAL and kernel do not belong together", _place(guest, "ntoskrnl.exe"),
                      f"the HAL is {own.name}, for {own.processors} processors, the kernel "
                      f"{facts.kernel.original_name if facts.kernel else ''}, for {kernel}: Windows stops with 0x79",
                      "check that the server starts, and that this is its system volume", Severity.WARNING, NAME)
    if facts.version < (5, 0) or own.family not in (HalFamily.ACPI, HalFamily.STANDARD):
        return
    tree, control_set = guest.hive("SYSTEM"), facts.default_control_set
    shown = hal.device_family(tree, control_set)
    if shown not in (own.family, HalFamily.UNKNOWN):
        yield Finding("HAL and PnP tree name different computers", _place(guest, "hal.dll"),
                      f"the file is {own.name} ({own.title}), the registry has "
                      f"{', '.join(hal.device_ids(tree, control_set)) or shown.value}; devices may be missing",
                      "check on the server that the Device Manager shows the computer without a mark",
                      Severity.WARNING, NAME)


# ---------------------------------------------------------------------------------------------
# PAE through NX


def _has_nx(guest: Guest) -> bool:
    """Does its loader look at the processor's NX?"""
    facts = guest.facts
    return facts.architecture == "x86" and facts.service_pack >= FIRST_WITH_NX.get(facts.version, 99)


def nx(guest: Guest, line: Line, fixer: str) -> Iterator[Finding]:
    """What is worth saying of a line that leaves it to the processor whether ntkrnlpa.exe starts."""
    if not _has_nx(guest) or _DECIDED.search(line.switches):
        return
    wrong = nx_problem(guest)
    if wrong:
        yield Finding("the kernel that a processor with NX gets cannot start", _place(guest, "ntkrnlpa.exe"),
                      f"{wrong}; the server's processor had no NX, a VM's may",
                      f"nothing: boot.ini's default line gets {NX_OFF.decode()}", Severity.WARNING, fixer)
    else:
        yield Finding("Windows may start with its PAE kernel", _place(guest, "ntkrnlpa.exe"),
                      "its loader takes ntkrnlpa.exe where the processor has NX, which the server's may not have had: "
                      "drivers of other makers never ran under it there",
                      "if the VM stops in such a driver, hide NX from it, or put "
                      f"{NX_OFF.decode()} on boot.ini's line", fixer=fixer)


def nx_problem(guest: Guest) -> str:
    """Why ntkrnlpa.exe, which the loader takes where the processor has NX, cannot start; "" where all is well."""
    kernel = guest.facts.kernel
    path = f"{guest.facts.system_root}\\system32\\ntkrnlpa.exe"
    files = guest.files(guest.facts.boot_volume)
    stat = files.stat(path)
    if kernel is None or stat is None or stat.is_folder or stat.size > pe.LIMIT:
        return "ntkrnlpa.exe is missing"
    try:
        extended = read_program(files.read(path), path).facts
    except GuestError as error:
        return f"ntkrnlpa.exe cannot be read ({error.why})"
    if extended.version != kernel.version:
        versions = [dotted(one.version) if one.version else "none" for one in (extended, kernel)]
        return f"ntkrnlpa.exe has version {versions[0]}, ntoskrnl.exe {versions[1]}"
    if hal.processors(extended) != hal.processors(kernel):
        return f"ntkrnlpa.exe is {extended.original_name}, ntoskrnl.exe is {kernel.original_name}"
    return ""


def without_nx(guest: Guest, line: Line) -> bytes | None:
    """A line's switches with NX off, where the kernel for it cannot start; None where they may stay."""
    if not _has_nx(guest) or _DECIDED.search(line.switches) or not nx_problem(guest):
        return None
    kept = re.sub(rb"(?i)\s*/NOEXECUTE=\S+", b"", line.switches)
    return b" ".join((*kept.split(), NX_OFF))
