"""Where a driver file comes from: the guest's own caches, or the folders that the user handed in.

The rule. A file in system32\\drivers that fits stays. Else, of all copies that fit, the newest wins, so an
older one never takes the place of a newer; on a tie the place that is looked at first. A copy fits when

- it is a whole PE file for the guest's processor, of the native subsystem, not a checked build;
- major, minor and build are the kernel's (5.1.2600 for XP): a driver of another release may load and crash;
- its revision is not above the kernel's own. A service pack replaces the kernel and a hotfix only raises
  it, so a file of a later service pack is newer than the kernel, and files of the installed one are not.
  Ranges of revisions per service pack would say the same less well: hotfix branches overlap. The price: a
  hotfixed file newer than the kernel is passed over for the service pack's own. What is in system32\\drivers
  already is not held to it, and a manifest may lift it for one file (NT 4's atapi).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from p2v.drivers import DriverFile
from p2v.errors import Finding, GuestError, PlanError, Severity, Where
from p2v.guest import pe
from p2v.guest.cabinet import Cabinet
from p2v.model import Content, Guest

FILE_LIMIT = 16 << 20  # bytes; the largest driver of these systems has 2 MB
CABINET_LIMIT = 512 << 20  # bytes; driver.cab of 2003 has 80 MB
FOLDER_LIMIT = 50_000  # entries below the user's folders


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a file. where: for the user."""

    where: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """The copy to use. installed: it is in place already. content: its bytes."""

    where: str
    content: Content
    version: tuple[int, int, int, int]
    installed: bool


class Media:
    """All places where a driver file of this guest may lie. A context manager: cabinets need a folder."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._folder = tempfile.TemporaryDirectory(prefix="p2v-cabinets-")
        self._cabinets: dict[str, Cabinet] = {}
        self._given: list[Path] | None = None
        self._unreadable: list[str] = []
        self.findings: list[Finding] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def choose(self, wanted: DriverFile) -> Choice:
        """The copy of a driver file to use.

        Raises GuestError naming the file, all places that were looked at, and why each copy was refused.
        """
        refused: list[str] = []
        self._unreadable = []
        installed = self._installed(wanted.name)
        if installed is not None:
            why, version = self._judge(installed, wanted, installed=True)
            if version:
                return Choice(installed.where, Content(installed.data), version, True)
            refused.append(f"{installed.where}: {why}")
        best: Choice | None = None
        for copy in self._copies(wanted):
            why, version = self._judge(copy, wanted)
            if not version:
                refused.append(f"{copy.where}: {why}")
            elif best is None or version > best.version:
                best = Choice(copy.where, Content(copy.data), version, False)
        if best is None:
            raise self._nowhere(wanted, [*refused, *self._unreadable])
        if self._unreadable:
            self.findings.append(Finding(
                f"some places for {wanted.name} could not be looked at", Where(item=wanted.name),
                "; ".join(self._unreadable), f"{best.where} was taken; compare if in doubt",
                Severity.WARNING))
        return best

    # -- what fits

    def _judge(self, copy: Copy, wanted: DriverFile, *, installed: bool = False) -> \
            tuple[str, tuple[int, int, int, int] | None]:
        """("", version) of a copy that fits; (why not, None)."""
        try:
            program = pe.read_program(copy.data, copy.where)
        except GuestError as error:
            return f"no whole program file ({error.why})", None
        facts, kernel = program.facts, self._guest.facts.kernel
        if kernel is None or kernel.version is None:
            return "the guest's kernel does not say its version, so nothing can be compared", None
        if facts.machine != self._guest.facts.architecture:
            return f"it is for {facts.machine}, the guest is {self._guest.facts.architecture}", None
        if program.subsystem != pe.NATIVE:
            return "it is no driver: its subsystem is not native", None
        if program.checked:
            return "it is of a checked (debug) build", None
        if facts.version is None:
            return "it does not say its version", None
        if facts.version[:3] != kernel.version[:3]:
            return f"it is of {_dotted(facts.version)}, the kernel of {_dotted(kernel.version)}", None
        if not (installed or wanted.newer_than_kernel) and facts.version[3] > kernel.version[3]:
            return (f"{_dotted(facts.version)} is newer than the installed service pack: its kernel is "
                    f"{_dotted(kernel.version)}"), None
        return "", facts.version

    # -- where copies lie

    def _installed(self, name: str) -> Copy | None:
        return self._file(f"{self._guest.facts.system_root}\\system32\\drivers\\{name}")

    def _copies(self, wanted: DriverFile) -> Iterator[Copy]:
        if not wanted.given_only:
            root = self._guest.facts.system_root
            for kind in self._folders():
                found = self._file(f"{root}\\ServicePackFiles\\{kind}\\{wanted.name}")
                if found:
                    yield found
            for kind in self._folders():
                yield from self._cached(f"{root}\\Driver Cache\\{kind}", wanted.name)
        yield from self._handed_in(wanted.name)

    def _folders(self) -> tuple[str, ...]:
        return ("amd64", "i386") if self._guest.facts.architecture == "x64" else ("i386",)

    def _file(self, path: str) -> Copy | None:
        volume = self._guest.facts.boot_volume
        files = self._guest.files(volume)
        stat = files.stat(path)
        if stat is None or stat.is_folder:
            return None
        if stat.size > FILE_LIMIT:
            self._unreadable.append(f"{path}: {stat.size} bytes are too many for a driver")
            return None
        try:
            return Copy(path, files.read(path))
        except GuestError as error:
            self._unreadable.append(f"{path}: {error.what}")
            return None

    def _cached(self, folder: str, name: str) -> Iterator[Copy]:
        """Copies in a Driver Cache: plain, or in driver.cab and sp*.cab."""
        found = self._file(f"{folder}\\{name}")
        if found:
            yield found
        files = self._guest.files(self._guest.facts.boot_volume)
        cabinets = [one for one in files.list(folder) if re.fullmatch(r"(?i)(sp\d*|driver)\.cab", one)]
        for cabinet in sorted(cabinets, key=str.lower, reverse=True):
            path = f"{folder}\\{cabinet}"
            stat = files.stat(path)
            if stat is None or stat.is_folder or stat.size > CABINET_LIMIT:
                continue
            try:
                if path not in self._cabinets:
                    self._cabinets[path] = self._open(files.read(path), path)
                yield from self._member(self._cabinets[path], path, name)
            except GuestError as error:
                self._unreadable.append(f"{path}: {error.what} ({error.why})")

    def _open(self, data: bytes, where: str) -> Cabinet:
        copy = Path(self._folder.name) / f"{len(self._cabinets)}.cab"
        copy.write_bytes(data)
        return Cabinet(copy, Where(item=where))

    def _member(self, cabinet: Cabinet, where: str, name: str) -> Iterator[Copy]:
        data = cabinet.member(name, FILE_LIMIT)
        if data is not None:
            yield Copy(f"{where}: {name}", data)

    def _handed_in(self, name: str) -> Iterator[Copy]:
        """Copies in the user's folders: plain, or in any cabinet there."""
        if self._given is None:
            self._given = [path for folder in self._guest.drivers for path in _walk(folder)]
        for path in self._given:
            is_cabinet = path.suffix.lower() == ".cab"
            if path.name.lower() != name.lower() and not is_cabinet:
                continue
            try:
                if path.stat().st_size > (CABINET_LIMIT if is_cabinet else FILE_LIMIT):
                    self._unreadable.append(f"{path}: too large")
                elif is_cabinet:
                    cabinet = self._cabinets.setdefault(str(path), Cabinet(path, Where(item=str(path))))
                    yield from self._member(cabinet, str(path), name)
                else:
                    yield Copy(str(path), path.read_bytes())
            except OSError as error:
                self._unreadable.append(f"{path}: {error.strerror}")
            except GuestError as error:
                self._unreadable.append(f"{path}: {error.what} ({error.why})")

    def _nowhere(self, wanted: DriverFile, refused: list[str]) -> GuestError:
        root = self._guest.facts.system_root
        places = [f"{root}\\system32\\drivers"]
        if not wanted.given_only:
            for kind in self._folders():
                places += [f"{root}\\ServicePackFiles\\{kind}",
                           f"{root}\\Driver Cache\\{kind} (sp*.cab, driver.cab)"]
        places += [f"{folder} (--drivers)" for folder in self._guest.drivers]
        why = f"looked in {', '.join(places)}; "
        why += "refused " + "; ".join(refused) if refused else "it is in none of them"
        return GuestError(
            f"{wanted.name} is nowhere to be found",
            Where(self._guest.facts.boot_volume, item=wanted.name), why,
            f"take it from {wanted.medium}, put it into a folder, and give that with --drivers DIR")


def _walk(folder: str) -> Iterator[Path]:
    """The files below a folder of this machine, in a stable order; links to folders are not followed."""
    if not Path(folder).is_dir():
        raise PlanError("a drivers folder is not there", folder, "it was given with --drivers",
                        "check the path")
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > FOLDER_LIMIT:
                raise PlanError("a drivers folder holds too many files", folder,
                                f"more than {FOLDER_LIMIT}", "give the folder with the drivers itself")
            path = Path(parent, name)
            if path.is_file():  # no pipe or device
                yield path


def _dotted(version: tuple[int, int, int, int]) -> str:
    return ".".join(map(str, version))
