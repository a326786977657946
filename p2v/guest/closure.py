"""The boot closure: is everything there that the loader and the kernel need until the disk works?

Fails on a server that still has its old controller, passes on one that was fitted to the VM. Checks E-01 to
E-09 of the boot drivers, C-05 of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from p2v.drivers import Driver
from p2v.errors import Finding, GuestError, Severity, Where
from p2v.guest import controllers, devices, images, pe, reach
from p2v.guest.facts import number
from p2v.guest.pe import Program
from p2v.model import SECTOR, Guest, Target, read

BOOT, DISABLED = 0, 4
DRIVER_TYPES = (1, 2)  # kernel driver, file system
SEVERE = 2  # ErrorControl from which a missing file stops the loader
NAME = "boot-closure"
_NO_FIX = "convert the server with p2v, or put the file back"


def boot_closure(guest: Guest, target: Target) -> tuple[Finding, ...]:
    """What is missing for a boot on the target's controller. Severity ERROR stops the boot."""
    driver = controllers.in_place(target.controllers(guest.facts), guest)
    walk = _Walk(guest, driver)
    far = (finding for finding in reach.beyond(guest) if finding.severity is not Severity.INFO)
    return (*walk.loader(), *walk.services(), *walk.controller(), *far)


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    program: Program


class _Walk:
    """One guest's files, each read once."""

    def __init__(self, guest: Guest, driver: Driver) -> None:
        self.guest = guest
        self.facts = guest.facts
        self.driver = driver
        self.hive = guest.hive("SYSTEM")
        self.files = guest.files(guest.facts.boot_volume)
        self.set = f"{guest.facts.default_control_set}\\"
        self.seen: dict[str, _File | str] = {}  # path → the file, or what is wrong with it
        self.said: set[tuple[str, Severity]] = set()  # many drivers import one kernel
        generation = driver.generation
        self.vital = {one.name.lower() for one in generation.service}
        self.vital |= {one.name.lower() for one in generation.needed}

    # -- kernel and HAL

    def loader(self) -> Iterator[Finding]:
        """Kernel, HAL, the boot file system, and what they import."""
        root = self.facts.system_root
        for name in reach.programs(self.guest):
            yield from self._needs(f"{root}\\system32\\{name}", "the loader", Severity.ERROR)
        volume = self.guest.volumes[self.facts.boot_volume].source
        ntfs = volume.size >= SECTOR and read(volume, 3, 8) == b"NTFS    "
        name = "ntfs.sys" if ntfs else "fastfat.sys"
        yield from self._needs(f"{root}\\system32\\drivers\\{name}", "the loader", Severity.ERROR)

    # -- services

    def services(self) -> Iterator[Finding]:
        """Every boot-start driver of the default control set."""
        for name in self.facts.boot_drivers:
            key = f"{self.set}Services\\{name}"
            if number(self.hive, key, "Type") not in DRIVER_TYPES:
                continue
            severe = (number(self.hive, key, "ErrorControl") or 0) >= SEVERE or name.lower() in self.vital
            path = self._image(key, name)
            if path is None:
                yield self._finding(f"the boot driver {name} has a path that the loader cannot follow", key,
                                    "only paths below the system folder work for Start = 0", severe=severe)
            else:
                yield from self._needs(path, f"the service {name}",
                                       Severity.ERROR if severe else Severity.WARNING)

    def _image(self, key: str, name: str) -> str | None:
        """The driver's file: ImagePath below the system root, or drivers\\NAME.sys."""
        value = self.hive.value(key, "ImagePath")
        text = value.text.strip() if value else ""
        root = self.facts.system_root
        if not text:
            return f"{root}\\system32\\drivers\\{name}.sys"
        for prefix in ("\\SystemRoot\\", "%SystemRoot%\\"):
            if text.lower().startswith(prefix.lower()):
                return f"{root}\\{text[len(prefix):]}"
        return None if text.startswith(("\\", "%")) or ":" in text else f"{root}\\{text}"

    # -- files

    def _needs(self, path: str, who: str, severity: Severity) -> Iterator[Finding]:
        """The file and all that it imports, in turn."""
        todo = [(path, who)]
        asked: set[str] = set()
        while todo:
            path, who = todo.pop()
            if path.lower() in asked:
                continue
            asked.add(path.lower())
            found = self._look(path)
            if isinstance(found, str):
                if {(path.lower(), severity), (path.lower(), Severity.ERROR)} & self.said:
                    continue
                self.said.add((path.lower(), severity))
                yield Finding(f"{who} needs {path.rpartition(chr(92))[2]}: {found}",
                              Where(self.facts.boot_volume, item=path),
                              "the loader says that the file is missing or corrupt, or Windows stops with 0x7B",
                              _NO_FIX, severity, NAME)
                continue
            todo += [(self._import(name), path) for name in found.program.facts.imports]

    def _import(self, name: str) -> str:
        """Where a DLL or driver that is imported by name lies."""
        system = f"{self.facts.system_root}\\system32"
        if self.files.stat(f"{system}\\drivers\\{name}") is not None:
            return f"{system}\\drivers\\{name}"
        return f"{system}\\{name}"

    def _look(self, path: str) -> _File | str:
        if path.lower() not in self.seen:
            self.seen[path.lower()] = self._examine(path)
        return self.seen[path.lower()]

    def _examine(self, path: str) -> _File | str:
        stat = self.files.stat(path)
        if stat is None or stat.is_folder:
            return "it is not there"
        if stat.size > pe.LIMIT:
            return f"it is no driver: {stat.size} bytes"
        try:
            program = pe.read_program(self.files.read(path), path)
        except GuestError as error:
            return f"{error.what} ({error.why})"
        facts, kernel = program.facts, self.facts.kernel
        if facts.machine != self.facts.architecture:
            return f"it is for {facts.machine}, the guest is {self.facts.architecture}"
        theirs = "microsoft" in facts.company.lower()  # others count their versions as they like
        if theirs and kernel and kernel.version and facts.version and facts.version[:2] != kernel.version[:2]:
            return f"it is of Windows {facts.version[0]}.{facts.version[1]}"
        return _File(path, program)

    # -- the target's controller

    def controller(self) -> Iterator[Finding]:
        """Is there a way from the target's controller to the disk?"""
        for needed in self.driver.generation.needed:
            if not self._starts(needed.name):
                yield self._finding(f"{needed.name} does not start at boot",
                                    f"{self.set}Services\\{needed.name}", needed.why)
        if self.driver.generation.device:
            yield from self._plug_and_play()
        else:
            yield from self._by_ports()
        yield from self._filters()

    def _plug_and_play(self) -> Iterator[Finding]:
        """5.x: each PCI id, or the class code, has a row whose service starts at boot; so have channels."""
        database = f"{self.set}Control\\CriticalDeviceDatabase"
        rows = {row.id: row for row in self.driver.generation.device}
        generic = [id for id in rows if id.startswith("pci#cc_")]
        for id in self.driver.device_ids:
            if not any(self._row_starts(f"{database}\\{one}") for one in (id, *generic)):
                yield self._finding(f"nothing drives the target's controller {id}", f"{database}\\{id}",
                                    "no row of the database names a service for it that starts at boot: 0x7B")
        for id, row in rows.items():
            if not id.startswith("pci#") and not id.startswith("*") and not self._row_starts(f"{database}\\{id}"):
                yield self._finding(f"no boot-start service is bound to {id}", f"{database}\\{id}", row.why)
        said = set()
        for finding in self._instances():
            said.add(finding.where.item)
            yield finding
        yield from (finding for finding in self._switched_off() if finding.where.item not in said)

    def _row_starts(self, key: str) -> bool:
        service = self.hive.value(key, "Service")
        return service is not None and self._starts(service.text)

    def _starts(self, service: str) -> bool:
        key = f"{self.set}Services\\{service}"
        return number(self.hive, key, "Start") == BOOT and number(self.hive, key, "Type") in DRIVER_TYPES

    def _instances(self) -> Iterator[Finding]:
        """An instance that Windows installed once keeps its service; the database is not asked then."""
        pci = f"{self.set}Enum\\PCI"
        ours = tuple(id.removeprefix("pci#").upper() for id in self.driver.device_ids)
        for device in self.hive.subkeys(pci):
            if not device.upper().startswith(ours):
                continue
            for instance in self.hive.subkeys(f"{pci}\\{device}"):
                key = f"{pci}\\{device}\\{instance}"
                service = self.hive.value(key, "Service")
                installed = self.hive.value(key, "ClassGUID") is not None
                disabled = (number(self.hive, key, "ConfigFlags") or 0) & 1
                if installed and (disabled or service is None or not self._starts(service.text)):
                    yield self._finding(
                        "the target's controller was installed here before, and is off", key,
                        "Windows trusts this instance and does not ask the database: 0x7B")

    def _switched_off(self) -> Iterator[Finding]:
        """Controllers and IDE channels whose instance is off, in Enum or in a hardware profile."""
        places = tuple(devices.seats(self.driver))
        for key, name, _, profile in devices.switched_off(self.hive, self.set.rstrip("\\"), places):
            place = f"the hardware profile {profile}" if profile else "Enum"
            yield self._finding(f"a device that the VM starts from is off in {place}", key,
                                f"bit 0 of {name} is set: Windows does not start it, 0x7B")

    def _by_ports(self) -> Iterator[Finding]:
        """NT 4: the driver finds its ports by itself; nothing else may claim them."""
        for service in self.driver.generation.service:
            if not self._starts(service.name):
                yield self._finding(f"{service.name} does not start at boot",
                                    f"{self.set}Services\\{service.name}", service.why)
        for rival in self.driver.generation.rival:
            if self._starts(rival.name):
                yield self._finding(f"{rival.name} starts at boot", f"{self.set}Services\\{rival.name}",
                                    rival.why)
        profiles = f"{self.set}Hardware Profiles"
        for profile in self.hive.subkeys(profiles):
            for service in self.driver.generation.service:
                key = (f"{profiles}\\{profile}\\System\\CurrentControlSet\\Enum\\ROOT\\"
                       f"LEGACY_{service.name.upper()}\\0000")
                if (number(self.hive, key, "CSConfigFlags") or 0) & 1:
                    yield self._finding(f"a hardware profile turns {service.name} off", key,
                                        "the loader then skips the driver in spite of Start = 0 (Q166238)")

    def _filters(self) -> Iterator[Finding]:
        """Class filters of disks and controllers load with every device of the class."""
        classes = sorted({row.class_guid for row in self.driver.generation.device})
        for guid in classes:
            key = f"{self.set}Control\\Class\\{guid}"
            for name in ("UpperFilters", "LowerFilters"):
                value = self.hive.value(key, name)
                for filter in value.texts if value else ():
                    yield from self._filter(filter, f"{key}:{name}")

    def _filter(self, name: str, place: str) -> Iterator[Finding]:
        """A filter whose file may lie on another drive is no proof that Windows stops."""
        control_set = self.set.rstrip("\\")
        start = number(self.hive, f"{self.set}Services\\{name}", "Start")
        path = images.service_file(self.guest, control_set, name)
        if start is None or start == DISABLED or path is None or isinstance(self._look(path), str):
            unsure = start not in (None, DISABLED) and images.elsewhere(self.guest, control_set, name)
            yield self._finding(f"the class filter {name} {'may not' if unsure else 'cannot'} load", place,
                                "a device whose filter fails does not start: 0x7B", severe=not unsure)

    def _finding(self, what: str, key: str, why: str, *, severe: bool = True) -> Finding:
        return Finding(what, Where(item=f"SYSTEM\\{key}"), why, "convert the server with p2v",
                       Severity.ERROR if severe else Severity.WARNING, NAME)
