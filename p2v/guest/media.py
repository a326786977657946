"""Where a driver file comes from: the guest's own caches, or what the user handed in.

The rule. A file in system32\\drivers that fits stays. Else, of all copies that fit, the newest wins, so an
older one never takes the place of a newer; on a tie the place that is looked at first: ServicePackFiles, Driver
Cache, what a service pack put aside for its removal, --drivers. A copy fits when

- it is a whole PE file for the guest's processor, of the native subsystem, not a checked build;
- of Microsoft's: major, minor and build are the kernel's (5.1.2600 for XP): a driver of another release may load
  and crash; and its revision is not above the kernel's own. A service pack replaces the kernel and a hotfix only
  raises it, so a file of a later service pack is newer than the kernel, and files of the installed one are not.
  A newer one is welcome all the same where its version text names the branch of hotfixes for the installed
  service pack ("xpsp_sp3_gdr"), and what is in system32\\drivers already is not held to it.
- of another vendor's, who counts as he likes: it is not built for a later Windows, lies in no folder that is
  named after another one (virtio-win: viostor/xp, viostor/2k3, viostor/w7 ...), and the setup text that was handed in
  beside it names the controller.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from p2v.drivers import DriverFile
from p2v.errors import Finding, GuestError, Severity, Where
from p2v.guest import inf, pe
from p2v.guest.caches import PUT_ASIDE, Caches
from p2v.guest.handed import Copy, HandedIn
from p2v.model import Content, Guest

Version = tuple[int, int, int, int]
BRANCH = re.compile(r"_sp(\d)_(?:gdr|qfe)\b")  # hotfixes for a service pack: srv03_sp2_gdr, xpsp_sp3_qfe

# What vendors call the folders for a Windows; virtio-win's names first.
FOLDERS: dict[tuple[int, int], frozenset[str]] = {
    (4, 0): frozenset({"nt4", "winnt4"}),
    (5, 0): frozenset({"2k", "w2k", "2000", "win2k", "win2000"}),
    (5, 1): frozenset({"xp", "wxp", "winxp"}),
    (5, 2): frozenset({"2k3", "w2k3", "2003", "win2003", "wnet"}),
    (6, 0): frozenset({"2k8", "vista", "wlh", "w2k8"}),
    (6, 1): frozenset({"w7", "2k8r2", "win7"}),
    (6, 2): frozenset({"w8", "2k12", "win8"}),
    (6, 3): frozenset({"w8.1", "2k12r2"}),
    (10, 0): frozenset({"w10", "w11", "2k16", "2k19", "2k22", "2k25", "win10"}),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The copy to use. installed: it is in place already. content: its bytes. imports: what it needs in turn.

    in_box: it is from the guest itself, not handed in.
    """

    where: str
    content: Content
    version: Version
    installed: bool
    imports: tuple[str, ...] = ()
    in_box: bool = True


class Media:
    """All places where a driver file of this guest may lie. A context manager: cabinets need a folder."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._folder = tempfile.TemporaryDirectory(prefix="p2v-cabinets-")
        self._unreadable: list[str] = []
        self._own = Caches(guest, Path(self._folder.name), self._unreadable)
        self._given: HandedIn | None = None
        self._chosen: dict[tuple[DriverFile, tuple[str, ...]], Choice | GuestError] = {}
        self._expected: frozenset[str] = frozenset()
        self.findings: list[Finding] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._given is not None:
            self._given.close()
        self._folder.cleanup()

    def expect(self, files: Iterable[DriverFile]) -> None:
        """These will be asked for: a cabinet is then unpacked once for all that are not in place."""
        self._expected |= {file.name for file in files if self.installed(file) is None}

    def choose(self, wanted: DriverFile, ids: tuple[str, ...] = ()) -> Choice:
        """The copy of a driver file to use.

        ids: CriticalDeviceDatabase keys of the controller that a vendor's file must serve; () for any.
        Raises GuestError naming the file, all places that were looked at, and why each copy was refused.
        """
        key = (wanted, ids)
        if key not in self._chosen:
            try:
                self._chosen[key] = self._search(wanted, ids)
            except GuestError as error:
                self._chosen[key] = error
        choice = self._chosen[key]
        if isinstance(choice, GuestError):
            raise choice
        return choice

    def installed(self, wanted: DriverFile) -> Choice | None:
        """The copy that is in place, if it fits."""
        copy = self._own.installed(wanted.name)
        choice = self._judge(copy, wanted, installed=True) if copy else None
        return choice if isinstance(choice, Choice) else None

    def has(self, name: str) -> bool:
        """Is a file in place where the loader looks for what a driver imports, whatever it is?"""
        files, root = self._guest.files(self._guest.facts.boot_volume), self._guest.facts.system_root
        return any(files.stat(f"{root}\\system32\\{folder}{name}") is not None for folder in ("drivers\\", ""))

    def copies(self, name: str) -> Iterator[tuple[Copy, bool]]:
        """(copy, it is the guest's own) of every file of that name, fitting or not."""
        yield from self._copies(DriverFile(name, "", ""))

    def _search(self, wanted: DriverFile, ids: tuple[str, ...]) -> Choice:
        refused: list[str] = []
        self._unreadable.clear()
        copy = self._own.installed(wanted.name)
        if copy is not None:
            choice = self._judge(copy, wanted, installed=True)
            if isinstance(choice, Choice):
                return choice
            refused.append(f"{copy.where}: {choice}")
        best: Choice | None = None
        for copy, in_box in self._copies(wanted):
            choice = self._judge(copy, wanted, in_box=in_box)
            if wanted.vendor and ids and isinstance(choice, Choice):
                choice = self._another_device(copy, ids) or choice
            if isinstance(choice, str):
                refused.append(f"{copy.where}: {choice}")
            elif best is None or choice.version > best.version:
                best = choice
        if best is None:
            raise self._nowhere(wanted, [*refused, *self._unreadable])
        self._doubt(wanted, best)
        return best

    def _doubt(self, wanted: DriverFile, best: Choice) -> None:
        """What is worth saying of a copy that was taken."""
        if self._unreadable:
            self.findings.append(Finding(
                f"some places for {wanted.name} could not be looked at", Where(item=wanted.name),
                "; ".join(self._unreadable), f"{best.where} was taken; compare if in doubt",
                Severity.WARNING))
        if PUT_ASIDE.lower() in best.where.lower():
            self.findings.append(Finding(
                f"{wanted.name} comes from what a service pack put aside", Where(item=best.where),
                f"version {dotted(best.version)} is older than the installed service pack's, which is nowhere",
                f"better: take it from {wanted.medium}, and give that with --drivers PATH", Severity.WARNING))

    # -- what fits

    def _judge(self, copy: Copy, wanted: DriverFile, *, installed: bool = False, in_box: bool = True) -> Choice | str:
        """The choice that a copy would be, or why it does not fit."""
        try:
            program = pe.read_program(copy.data, copy.where)
        except GuestError as error:
            return f"no whole program file ({error.why})"
        facts = program.facts
        if facts.machine != self._guest.facts.architecture:
            return f"it is for {facts.machine}, the guest is {self._guest.facts.architecture}"
        if program.subsystem != pe.NATIVE:
            return "it is no driver: its subsystem is not native"
        if program.checked:
            return "it is of a checked (debug) build"
        if wanted.vendor or "microsoft" not in facts.company.lower():
            why = self._another_system(program, copy, wanted)
        else:
            why = self._another_release(program, held=not (installed or wanted.newer_than_kernel))
        version = facts.version or (0, 0, 0, 0)
        return why or Choice(copy.where, Content(copy.data), version, installed, facts.imports, in_box)

    def _another_release(self, program: pe.Program, *, held: bool) -> str:
        """Why a file of Microsoft's is not of this Windows. held: to its service pack, too."""
        version, facts = program.facts.version, self._guest.facts
        if facts.kernel is None or facts.kernel.version is None:
            return "the guest's kernel does not say its version, so nothing can be compared"
        kernel = facts.kernel.version
        if version is None:
            return "it does not say its version"
        if version[:3] != kernel[:3]:
            return f"it is of {dotted(version)}, the kernel of {dotted(kernel)}"
        branch = BRANCH.search(program.version_text)
        hotfix = branch is not None and int(branch[1]) == facts.service_pack
        if held and version[3] > kernel[3] and not hotfix:
            return f"{dotted(version)} is newer than the installed service pack: its kernel is {dotted(kernel)}"
        return ""

    def _another_system(self, program: pe.Program, copy: Copy, wanted: DriverFile) -> str:
        """Why a vendor's file is for another Windows."""
        own = self._guest.facts.version
        if program.system > own:
            return f"it is built for Windows {program.system[0]}.{program.system[1]} and later"
        fitting = {*wanted.folders, *FOLDERS.get(own, ())}
        others = frozenset().union(*FOLDERS.values()) - fitting
        strange = [folder for folder in copy.folders if folder in others]
        if strange and not fitting.intersection(copy.folders):
            return f"it lies in {strange[0]}, the folder for another Windows"
        return ""

    def _another_device(self, copy: Copy, ids: tuple[str, ...]) -> str:
        """Why a vendor's file is for other controllers: the setup texts beside it say which."""
        named: dict[str, str] = {}
        for name, text in copy.texts().items():
            for id in inf.bindings(text, self._guest.facts.architecture):
                named.setdefault(id.replace("\\", "#"), name)
        others = [id for id in named if id.startswith("pci#ven_")]
        if not others or any(id.startswith(ids) for id in others):
            return ""
        listed = ", ".join(others[:3]) + (" ..." if others[3:] else "")
        return f"{named[others[0]]} beside it names {listed}, not {' or '.join(ids)}"

    # -- where copies lie

    def _copies(self, wanted: DriverFile) -> Iterator[tuple[Copy, bool]]:
        """(copy, it is the guest's own)."""
        if not wanted.given_only:
            yield from ((copy, True) for copy in self._own.copies(wanted.name, self._expected))
        if self._given is None:
            self._given = HandedIn(self._guest.drivers, Path(self._folder.name))
        yield from ((copy, False) for copy in self._given.copies(wanted.name))
        self._unreadable += self._given.problems

    # -- what is said

    def _nowhere(self, wanted: DriverFile, refused: list[str]) -> GuestError:
        root = self._guest.facts.system_root
        places = [f"{root}\\system32\\drivers"]
        if not wanted.given_only:
            for kind in self._own.kinds:
                places += [f"{root}\\ServicePackFiles\\{kind}",
                           f"{root}\\Driver Cache\\{kind} (sp*.cab, driver.cab)"]
            places.append(f"{root}\\{PUT_ASIDE}")
        places += [f"{one} (--drivers)" for one in self._guest.drivers]
        why = f"looked in {', '.join(places)}; "
        why += "refused " + "; ".join(refused) if refused else "it is in none of them"
        return GuestError(
            f"{wanted.name} is nowhere to be found",
            Where(self._guest.facts.boot_volume, item=wanted.name), why,
            f"take {wanted.name}{self._version_wanted(wanted)} from {wanted.medium}, and give the folder, ISO or "
            "cabinet that it lies in with --drivers PATH")

    def _version_wanted(self, wanted: DriverFile) -> str:
        """The versions that would do, in words."""
        facts = self._guest.facts
        if wanted.vendor or facts.kernel is None or facts.kernel.version is None:
            return f" for {facts.name}"
        major, minor, build, revision = facts.kernel.version
        upto = "" if wanted.newer_than_kernel else f" up to {dotted(facts.kernel.version)}"
        least = wanted.minimum_revision if wanted.newer_than_kernel or wanted.minimum_revision <= revision else 0
        return f", {facts.architecture}, version {major}.{minor}.{build}.{least}{upto or ' or later'}"


def dotted(version: Version) -> str:
    """5.1.2600.5512."""
    return ".".join(map(str, version))
