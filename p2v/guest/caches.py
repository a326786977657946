"""Copies of driver files that a guest keeps itself, in the order in which they are looked at.

In place; ServicePackFiles; Driver Cache, plain or in cabinets, a set of several parts being one cabinet; and what a
service pack put aside for its removal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from p2v.errors import GuestError, Where
from p2v.guest.cabinet import HEAD, Cabinet, begins, with_parts
from p2v.guest.handed import CABINET_LIMIT, FILE_LIMIT, Copy, unused
from p2v.model import Guest

PUT_ASIDE = "$NtServicePackUninstall$"  # what the service pack replaced, so older than what it brought


class Caches:
    """A guest's own copies. scratch: a folder of ours. problems: where what cannot be read is added."""

    def __init__(self, guest: Guest, scratch: Path, problems: list[str]) -> None:
        self._guest = guest
        self._scratch = scratch
        self._problems = problems
        self._cabinets: dict[str, list[tuple[str, Cabinet]]] = {}
        self.kinds = ("amd64", "i386") if guest.facts.architecture == "x64" else ("i386",)

    def installed(self, name: str) -> Copy | None:
        """The file in place."""
        return self._file(f"{self._guest.facts.system_root}\\system32\\drivers\\{name}")

    def copies(self, name: str, expected: Collection[str]) -> Iterator[Copy]:
        """All others. expected: names that will be asked for, too."""
        root = self._guest.facts.system_root
        for kind in self.kinds:
            yield from self._plain(f"{root}\\ServicePackFiles\\{kind}\\{name}")
        for kind in self.kinds:
            yield from self.cached(f"{root}\\Driver Cache\\{kind}", name, expected)
        yield from self._plain(f"{root}\\{PUT_ASIDE}\\{name}")

    def _plain(self, path: str) -> Iterator[Copy]:
        found = self._file(path)
        if found:
            yield found

    def _file(self, path: str) -> Copy | None:
        files = self._guest.files(self._guest.facts.boot_volume)
        try:
            stat = files.stat(path)
            if stat is None or stat.is_folder:
                return None
            if stat.size > FILE_LIMIT:
                self._problems.append(f"{path}: {stat.size} bytes are too many for a driver")
                return None
            return Copy(path, files.read(path))
        except GuestError as error:
            self._problems.append(f"{path}: {error.what}")
            return None

    def cached(self, folder: str, name: str, expected: Collection[str] = ()) -> Iterator[Copy]:
        """Copies in a Driver Cache: plain, or in driver.cab, sp*.cab and whatever else lies there."""
        yield from self._plain(f"{folder}\\{name}")
        if folder not in self._cabinets:
            self._cabinets[folder] = list(self._open(folder))
        for where, cabinet in self._cabinets[folder]:
            try:
                cabinet.expect(expected, FILE_LIMIT)
                for path, data in cabinet.members(name, FILE_LIMIT):
                    yield Copy(f"{where}: {path}", data)
            except GuestError as error:
                self._problems.append(f"{where}: {error.what} ({error.why})")

    def _open(self, folder: str) -> Iterator[tuple[str, Cabinet]]:
        """The cabinets of a folder of the guest: service packs' first, the newest of them first."""
        files = self._guest.files(self._guest.facts.boot_volume)
        names = [name for name in files.list(folder) if name.lower().endswith(".cab")]
        packs = [name for name in names if name.lower().startswith("sp")]
        others = sorted(set(names) - set(packs), key=str.lower)
        copies: dict[str, Path | None] = {}
        home = Path(tempfile.mkdtemp(dir=self._scratch))  # parts of a set know each other by name

        def place(name: str) -> Path | None:
            """The guest's file as one of ours."""
            key = name.lower()
            if key not in copies:
                known = next((one for one in names if one.lower() == key), None)
                copies[key] = self._copied(f"{folder}\\{known}", unused(home, key)) if known else None
            return copies[key]

        for name in (*sorted(packs, key=str.lower, reverse=True), *others):
            where = f"{folder}\\{name}"
            try:
                part = place(name)
                if part is None:
                    continue
                with part.open("rb") as start:
                    first = begins(start.read(HEAD), names)
                if first:
                    yield where, with_parts(name, place, Where(item=where))
            except GuestError as error:
                self._problems.append(f"{where}: {error.what} ({error.why})")

    def _copied(self, path: str, copy: Path) -> Path | None:
        files = self._guest.files(self._guest.facts.boot_volume)
        stat = files.stat(path)
        if stat is None or stat.is_folder:
            return None
        if stat.size > CABINET_LIMIT:
            self._problems.append(f"{path}: {stat.size} bytes are too many for a cabinet")
            return None
        copy.write_bytes(files.read(path))
        return copy
