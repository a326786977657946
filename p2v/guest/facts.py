"""Which system is this? Found through the boot chain: active volume, boot.ini, system root, hives, kernel.

The chain is what NTLDR follows, so a Windows in a folder of any name is found, and of several the one
that starts by itself. Trees that boot.ini does not name are looked for besides, as a cross-check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from p2v.errors import Finding, GuestError, Severity, Unsupported, Where
from p2v.guest import bootini
from p2v.guest.names import NAMES, SIGNS, TYPES, name_of, other_windows
from p2v.guest.pe import LIMIT, read_program
from p2v.model import (
    Collapsed,
    Family,
    GuestFacts,
    GuestFiles,
    HivePlace,
    HiveTree,
    Partition,
    PEFacts,
    Source,
    Volume,
)

SYSTEM_HIVE = "\\system32\\config\\SYSTEM"
SOFTWARE_HIVE = "\\system32\\config\\SOFTWARE"
VERSION_KEY = "Microsoft\\Windows NT\\CurrentVersion"
SP6A = f"{VERSION_KEY}\\Hotfix\\Q246009"  # Service Pack 6a calls itself 6, and leaves this [from memory]
KNOWN = {(4, 0): 1381, (5, 0): 2195, (5, 1): 2600, (5, 2): 3790}  # version → build of its release
_ROOT_LIMIT = 4096  # names looked at in a volume's root

BOOT_INI_LIMIT = 64 << 10  # bytes; a boot.ini of ten systems has two thousand


class Disks(Protocol):
    """What recognising needs of a guest that has no facts yet."""

    @property
    def disks(self) -> Mapping[str, Source]:
        """By id, in BIOS order."""

    @property
    def partitions(self) -> Sequence[Partition]:
        """Of all disks."""

    @property
    def volumes(self) -> Mapping[str, Volume]:
        """By name."""

    @property
    def collapsed(self) -> Collapsed | None:
        """What the disks were put together from."""

    def files(self, volume: str) -> GuestFiles:
        """A volume's files."""


@dataclass(frozen=True, slots=True)
class System:
    """Where the Windows lies that starts by itself. line: of boot.ini, None without one."""

    system_volume: str
    boot_volume: str
    root: str
    line: bootini.Line | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def hives(self) -> dict[str, HivePlace]:
        """Its hives by name."""
        return {"SYSTEM": HivePlace(self.boot_volume, self.root + SYSTEM_HIVE),
                "SOFTWARE": HivePlace(self.boot_volume, self.root + SOFTWARE_HIVE)}


def find_system(guest: Disks) -> System:
    """Follow the boot chain to the default Windows. Raises Unsupported, GuestError."""
    readable, findings = _readable(guest)
    system_volume = _system_volume(guest, readable)
    trees = [(name, root) for name, files in readable.items() for root in windows_folders(files)]
    if not system_volume:
        found = _without_loader(guest, readable, trees)
        return replace(found, findings=(*findings, *found.findings))
    files = readable[system_volume]
    ini_name = spelled(files, "", "boot.ini")
    if ini_name is None:
        found = _without_ini(system_volume, trees)
    else:
        ini = bootini.parse(_boot_ini(files, system_volume, ini_name))
        found = _from_ini(guest, readable, system_volume, ini, trees)
    others = [tree for tree in trees
              if (tree[0], tree[1].lower()) != (found.boot_volume, found.root.lower())]
    return replace(found, findings=(*findings, *found.findings, *_others(readable, found, others)))


def _boot_ini(files: GuestFiles, volume: str, name: str) -> bytes:
    """The text. Raises GuestError for one that no NTLDR would take."""
    stat = files.stat("\\" + name)
    if stat is None or stat.is_folder or stat.size > BOOT_INI_LIMIT:
        raise GuestError("boot.ini is no text file of its size", Where(volume, item="\\" + name),
                         f"it may have {BOOT_INI_LIMIT} bytes at the most; the boot loader reads its system from it",
                         "restore it from a backup on the server, then try again")
    return files.read("\\" + name)


def _readable(guest: Disks) -> tuple[dict[str, GuestFiles], list[Finding]]:
    """The volumes whose files can be read; one that cannot be is only worth a finding if it should be."""
    readable: dict[str, GuestFiles] = {}
    findings: list[Finding] = []
    for name, volume in guest.volumes.items():
        try:
            files = guest.files(name)
            files.list("\\")
        except GuestError as error:
            active = volume.partition is not None and volume.partition.active
            severity = Severity.WARNING if active else Severity.INFO
            findings.append(replace(error.as_finding(), severity=severity))
        else:
            readable[name] = files
    return readable, findings


def _system_volume(guest: Disks, readable: Mapping[str, GuestFiles]) -> str:
    """The volume that the BIOS starts: active, on the first disk, with ntldr; "" where none has ntldr."""
    first = next(iter(guest.disks), "")

    def rank(name: str) -> tuple[bool, bool, bool]:
        partition = guest.volumes[name].partition
        return (partition is not None and partition.disk == first,
                partition is not None and partition.active,
                spelled(readable[name], "", "boot.ini") is not None)

    loaders = [name for name in readable if spelled(readable[name], "", "ntldr")]
    return max(loaders, key=rank, default="")


def windows_folders(files: GuestFiles) -> Iterator[str]:
    """Folders of the root that hold a Windows."""
    for name in list(files.list("\\"))[:_ROOT_LIMIT]:
        if files.stat(f"\\{name}{SYSTEM_HIVE}") is not None:
            yield "\\" + name


def _nothing(guest: Disks, readable: Mapping[str, GuestFiles], trees: Sequence[tuple[str, str]]) -> Unsupported:
    """No ntldr anywhere: say what is there instead."""
    seen = [f"{name} looks like {what}" for name, files in readable.items()
            for sign, what in SIGNS.items() if spelled(files, "", sign)]
    seen += [f"{name} looks like Windows 9x" for name, files in readable.items()
             if files.stat("\\windows\\system.dat") is not None]
    seen += [f"{name} holds a Windows in {root}, but no volume has ntldr" for name, root in trees]
    others = {TYPES[one.type]: f"{one.disk} has a partition of {TYPES[one.type]} (type {one.type:02x})"
              for one in guest.partitions if one.type in TYPES}
    seen += others.values()
    seen = list(dict.fromkeys(seen)) or [f"no sign of a system on {', '.join(readable) or 'any volume'}"]
    return Unsupported("no Windows NT 4, 2000, XP or 2003 was found", Where(item=", ".join(readable)),
                       "; ".join(seen), "give all disks of the server, its boot disk first; "
                       "other systems are imaged only: p2v image DISK -o FILE")


def _without_loader(guest: Disks, readable: Mapping[str, GuestFiles], trees: Sequence[tuple[str, str]]) -> System:
    """A mirror whose other disk died with the active partition: the one Windows there is; the loader must be given.

    Raises Unsupported for anything else.
    """
    if guest.collapsed is None or len(trees) != 1:
        raise _nothing(guest, readable, trees)
    volume, root = trees[0]
    gone = Finding("the loader's files (ntldr, ntdetect.com, boot.ini) are on none of these disks", Where(volume),
                   f"the disk that the server started from is missing; the VM will start from {volume}",
                   "have ntldr and ntdetect.com of this Windows at hand: give their folder with --drivers DIR",
                   Severity.WARNING)
    return System(volume, volume, root, None, (gone,))


def _without_ini(system_volume: str, trees: Sequence[tuple[str, str]]) -> System:
    """NTLDR without boot.ini starts its default folder on the first partition [memory]."""
    here = [tree for tree in trees if tree[0] == system_volume] or list(trees)
    if not here:
        raise Unsupported("ntldr is there, but neither boot.ini nor a Windows", Where(system_volume),
                          "no folder of any readable volume has system32\\config\\SYSTEM",
                          "give all disks of the server, its boot disk first")
    note = Finding("boot.ini is missing", Where(system_volume, item="\\boot.ini"),
                   "ntldr then tries its default folder on the first partition only",
                   f"taken to mean {here[0][1]} on {here[0][0]}", Severity.WARNING)
    return System(system_volume, here[0][0], here[0][1], None, (note,))


def _from_ini(guest: Disks, readable: Mapping[str, GuestFiles], system_volume: str, ini: bootini.BootIni,
              trees: Sequence[tuple[str, str]]) -> System:
    """The Windows of the default line; else of the first line that leads to one; else the only one."""
    default = ini.default_line
    lines = ([default] if default else []) + [line for line in ini.systems if line != default]
    for line in lines:
        place = resolve(guest, readable, line.arc)
        if place:
            findings = () if line is lines[0] and default else (_not_default(system_volume, ini, line),)
            return System(system_volume, place[0], place[1], line, findings)
    if len(trees) == 1:
        note = Finding("no line of boot.ini leads to a Windows", Where(system_volume, item="\\boot.ini"),
                       "ntldr would say that hal.dll or ntoskrnl.exe is missing",
                       f"taken to mean {trees[0][1]} on {trees[0][0]}, the only one", Severity.WARNING)
        return System(system_volume, trees[0][0], trees[0][1], default, (note,))
    raise GuestError("no line of boot.ini leads to a Windows", Where(system_volume, item="\\boot.ini"),
                     f"its default is {ini.default.decode('latin-1')!r}; folders with a Windows: "
                     + (", ".join(f"{root} on {name}" for name, root in trees) or "none"),
                     "give all disks of the server in the order of its BIOS, or mend boot.ini")


def resolve(guest: Disks, readable: Mapping[str, GuestFiles],
            arc: bootini.ArcPath | None) -> tuple[str, str] | None:
    """(volume, folder as spelled there) of the Windows that an ARC path leads to."""
    if arc is None or not arc.directory:
        return None
    for partition in meant(guest, arc):
        volume = volume_of(guest.volumes, partition)
        if volume in readable and readable[volume].stat(arc.directory + SYSTEM_HIVE) is not None:
            return volume, spell_path(readable[volume], arc.directory)
    return None


def meant(guest: Disks, arc: bootini.ArcPath) -> tuple[Partition, ...]:
    """The partitions that an ARC path of boot.ini may mean, best first: as the server's own disks counted them."""
    old = bootini.before_collapse(arc, guest.collapsed) if guest.collapsed else ()
    places = [guest.volumes[name].partition for name in old if name in guest.volumes]
    found = tuple(dict.fromkeys(place for place in places if place is not None))
    return found or bootini.candidates(arc, guest.disks, guest.partitions)


def volume_of(volumes: Mapping[str, Volume], partition: Partition) -> str:
    """The volume that lies in a partition, "" for none."""
    for name, volume in volumes.items():
        inside = volume.partition
        if inside and (inside.disk, inside.offset) == (partition.disk, partition.offset):
            return name
    return ""


def spelled(files: GuestFiles, folder: str, name: str) -> str | None:
    """A name as the guest spells it in a folder; None where there is none."""
    if files.stat(f"{folder}\\{name}") is None:
        return None
    return next((own for own in files.list(folder or "\\") if own.lower() == name.lower()), name)


def spell_path(files: GuestFiles, path: str) -> str:
    """A path as the guest spells it, as far as it exists."""
    done = ""
    for part in path.strip("\\").split("\\"):
        done += "\\" + (spelled(files, done, part) or part)
    return done


def _not_default(volume: str, ini: bootini.BootIni, line: bootini.Line) -> Finding:
    return Finding("boot.ini starts something else by default", Where(volume, item="\\boot.ini"),
                   f"its default {ini.default.decode('latin-1')!r} leads to no Windows here",
                   f"the line {line.path.decode('latin-1')!r} was taken", Severity.WARNING)


def _others(readable: Mapping[str, GuestFiles], found: System,
            others: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    for volume, root in others:
        what = _installed(readable[volume], root)
        yield Finding(f"there is another Windows, which is left as it is: {what}", Where(volume, item=root),
                      f"boot.ini starts {found.root} on {found.boot_volume}; only that one is fitted",
                      "make the other one the default in boot.ini first, if that is the one to keep")


def _installed(files: GuestFiles, root: str) -> str:
    """What lies in a system root, by its kernel; "of unknown version" where that cannot be read."""
    path = f"{root}\\system32\\ntoskrnl.exe"
    stat = files.stat(path)
    try:
        version = read_program(files.read(path), path).facts.version if stat and stat.size <= LIMIT else None
    except GuestError:
        version = None
    if version is None:
        return "of unknown version"
    return NAMES.get(version[:2], f"Windows NT {version[0]}.{version[1]}")


# ---------------------------------------------------------------------------------------------
# From the place to the facts


def describe(guest: Disks, found: System, system: HiveTree, software: HiveTree) -> GuestFacts:
    """The facts of the Windows at this place. Raises GuestError (damaged), Unsupported (not ours)."""
    version, build, pack = _version(found, software)
    sets, default = control_sets(system, found)
    files = guest.files(found.boot_volume)
    line = found.line
    kernel = _program(files, found, (line.switch("KERNEL") if line else "") or "ntoskrnl.exe")
    hal = _program(files, found, (line.switch("HAL") if line else "") or "hal.dll")
    options = f"{default}\\Control\\ProductOptions"
    product = system.value(options, "ProductType")
    suite = system.value(options, "ProductSuite")
    paging = system.value(f"{default}\\Control\\Session Manager\\Memory Management", "PagingFiles")
    facts = GuestFacts(
        Family.WINDOWS, "", version, build, pack, kernel.machine, product.text if product else "",
        suite.texts if suite else (), found.root, found.boot_volume, found.system_volume, hal, kernel, sets,
        default, tuple(boot_services(system, default)), paging.texts if paging else (), found.hives)
    product_name = software.value(VERSION_KEY, "ProductName")
    again = (version, pack) == ((4, 0), 6) and software.has(SP6A)
    return replace(facts, name=name_of(facts, product_name.text if product_name else "", again=again))


def _version(found: System, software: HiveTree) -> tuple[tuple[int, int], int, int]:
    """Version, build and service pack out of SOFTWARE."""
    def text(name: str) -> str:
        value = software.value(VERSION_KEY, name)
        return value.text.strip() if value else ""

    place = Where(found.boot_volume, item=f"SOFTWARE\\{VERSION_KEY}")
    numbers = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", text("CurrentVersion"))
    if not numbers:
        raise GuestError("the registry does not say which Windows this is", place,
                         f"CurrentVersion is {text('CurrentVersion')!r}",
                         "check the SOFTWARE hive: it may be damaged or another system's")
    version = (int(numbers[1]), int(numbers[2]))
    if version not in KNOWN:
        newer = "; virt-v2v fits newer systems" if version >= (6, 0) else ""
        raise Unsupported(
            f"{other_windows(version)} is not one that p2v fits to a VM", place,
            "it knows NT 4.0, 2000 (5.0), XP (5.1) and XP x64 / Server 2003 (5.2)",
            f"image the disks only: p2v image DISK -o FILE{newer}")
    build = text("CurrentBuildNumber") or str(KNOWN[version])
    pack = re.search(r"Service Pack (\d{1,2})", text("CSDVersion"), re.IGNORECASE)
    return version, int(build) if build.isascii() and build.isdigit() else 0, int(pack[1]) if pack else 0


def control_sets(system: HiveTree, found: System) -> tuple[tuple[str, ...], str]:
    """Every ControlSetNNN, and the one that the loader reads: Select\\Default, not Current."""
    sets = tuple(name for name in system.subkeys("") if re.fullmatch(r"(?i)ControlSet\d{3}", name))
    value = system.value("Select", "Default")
    try:
        number = value.number if value else 0
    except ValueError:
        number = 0
    for name in sets:
        if name.lower() == f"controlset{number:03d}":
            return sets, name
    raise GuestError("the registry names no control set to start",
                     Where(found.boot_volume, item="SYSTEM\\Select"),
                     f"Default is {number}; there are {', '.join(sets) or 'none'}",
                     "check the SYSTEM hive: Windows would not start from it either")


def boot_services(system: HiveTree, control_set: str) -> Iterator[str]:
    """The services with Start = 0."""
    for name in system.subkeys(f"{control_set}\\Services"):
        if number(system, f"{control_set}\\Services\\{name}", "Start") == 0:
            yield name


def number(tree: HiveTree, key: str, name: str) -> int | None:
    """A DWORD of a key; None where there is none, or it is no DWORD."""
    value = tree.value(key, name)
    try:
        return value.number if value else None
    except ValueError:
        return None


def _program(files: GuestFiles, found: System, name: str) -> PEFacts:
    path = f"{found.root}\\system32\\{name}"
    stat = files.stat(path)
    if stat is None or stat.is_folder or stat.size > LIMIT:
        raise GuestError(f"{name} is missing or no program", Where(found.boot_volume, item=path),
                         "Windows cannot start without it", "check that this is the whole system volume")
    facts = read_program(files.read(path), path).facts
    if facts.machine not in ("x86", "x64"):
        raise Unsupported(f"{name} is a program for another processor", Where(found.boot_volume, item=path),
                          f"machine type {facts.machine}; a VM here has an x86 or x64 processor",
                          "image the disks only; this system needs another kind of machine")
    return facts


def doubts(facts: GuestFacts) -> Iterator[Finding]:
    """Where the registry and the files contradict each other."""
    kernel, hal = facts.kernel, facts.hal
    if kernel and kernel.version and kernel.version[:3] != (*facts.version, facts.build):
        yield Finding("the registry and the kernel name different systems",
                      Where(facts.boot_volume, item=f"{facts.system_root}\\system32\\ntoskrnl.exe"),
                      f"registry {facts.version[0]}.{facts.version[1]}.{facts.build}, kernel "
                      + ".".join(map(str, kernel.version)),
                      "check that the system was not half upgraded", Severity.WARNING)
    if kernel and hal and kernel.machine != hal.machine:
        yield Finding("kernel and HAL are for different processors",
                      Where(facts.boot_volume, item=f"{facts.system_root}\\system32\\hal.dll"),
                      f"kernel {kernel.machine}, HAL {hal.machine}; Windows stops with 0x79",
                      "put back the HAL that belongs to this system", Severity.ERROR)
