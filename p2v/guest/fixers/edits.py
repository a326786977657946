"""What fixers share: registry wishes with their before read from the guest, and what cannot be edited."""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding, Severity, Where
from p2v.model import Guest, KeyChange, Value, ValueChange

HIVE = "SYSTEM"


class Edits:
    """Changes to the SYSTEM hive that one fixer wishes."""

    def __init__(self, guest: Guest, fixer: str) -> None:
        self.tree = guest.hive(HIVE)
        self._fixer = fixer
        self._made: set[str] = set()

    def key(self, path: str, why: str) -> Iterator[KeyChange]:
        """The key comes to be, its missing parents first; nothing where it is there."""
        parts = path.split("\\")
        for depth in range(1, len(parts) + 1):
            part = "\\".join(parts[:depth])
            if part.lower() in self._made or self.tree.has(part):
                continue
            self._made.add(part.lower())
            yield KeyChange(HIVE, self.spelled(part), False, True, why, self._fixer)

    def value(self, path: str, name: str, wanted: Value, why: str) -> Iterator[ValueChange]:
        """The value becomes this one; nothing where it is that already."""
        before = self.tree.value(path, name)
        if before != wanted:
            own = next((one for one in self.tree.values(path) if one.lower() == name.lower()), name)
            yield ValueChange(HIVE, self.spelled(path), own, before, wanted, why, self._fixer)

    def without_value(self, path: str, name: str, why: str) -> Iterator[ValueChange]:
        """The value goes; nothing where it is not there."""
        for own, before in self.tree.values(path).items():
            if own.lower() == name.lower():
                yield ValueChange(HIVE, self.spelled(path), own, before, None, why, self._fixer)

    def without_key(self, path: str, why: str) -> Iterator[ValueChange | KeyChange]:
        """The key goes with all that is below it, so that an undo can bring everything back."""
        if not self.tree.has(path):
            return
        for below in self.tree.subkeys(path):
            yield from self.without_key(f"{path}\\{below}", why)
        for name in self.tree.values(path):
            yield from self.without_value(path, name, why)
        yield KeyChange(HIVE, self.spelled(path), True, False, why, self._fixer)

    def spelled(self, path: str) -> str:
        """The path as the hive spells it, as far as it exists."""
        known = self.tree.spelling(path)
        if known is not None:
            return known
        parent, _, last = path.rpartition("\\")
        return f"{self.spelled(parent)}\\{last}" if parent else last


def hindrances(guest: Guest, volume: str, path: str, fixer: str) -> Iterator[Finding]:
    """Why a file that must be edited cannot be: severity ERROR. Nothing for a plain one."""
    stat = guest.files(volume).stat(path)
    if stat is None:
        return
    if stat.encrypted:
        yield Finding(f"{path} is encrypted", Where(volume, item=path),
                      "only the server's own keys open it, and it must be edited",
                      f"on the server run: cipher /d {path}", Severity.ERROR, fixer)
    elif stat.compressed and guest.facts.version == (4, 0):
        yield Finding(f"{path} is compressed by NTFS", Where(volume, item=path),
                      "ntfs-3g cannot open compressed files on NTFS 1.2, and it must be edited",
                      f"on the server run: compact /u {path}", Severity.ERROR, fixer)
