"""A hive's structure, checked whole: damage becomes findings, never an exception."""

from __future__ import annotations

import dataclasses
from collections import Counter

from p2v.errors import Finding, GuestError, Severity, Unsupported, Where
from p2v.registry.cells import BINS, NOWHERE, REPAIR, SEGMENT, Cells, Key, Security, checksum_holds, sort_key

MOST = 100  # findings of one hive; the rest says nothing new


class _Enough(Exception):
    """MOST findings are there."""


def check(data: bytes, name: str) -> tuple[Finding, ...]:
    """Bins, cells, keys, lists and values of a hive.

    ERROR: the tree cannot be trusted, or this version of the format does not know the form.
    WARNING: one value is damaged, or the order of names outside ASCII looks wrong.
    INFO: space that is in use but that nothing refers to. Bounded: each cell is visited once.
    """
    try:
        cells = Cells(data, name)
    except (GuestError, Unsupported) as error:
        return (error.as_finding(),)
    walk = _Check(cells)
    try:
        walk.base()
        walk.tree()
        walk.security_counts()
        walk.unreferenced()
    except _Enough:
        pass
    return tuple(walk.findings)


class _Check:
    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.name = cells.name
        self.findings: list[Finding] = []
        self.used: set[int] = set()
        self.spare: set[int] = set()  # cells that a key still names and no longer needs
        self.descriptors: dict[int, Security] = {}
        self.owners: Counter[int] = Counter()  # offset of a security descriptor → keys that refer to it

    def say(self, error: GuestError, severity: Severity = Severity.ERROR, item: str = "") -> None:
        where = dataclasses.replace(error.where, item=item) if item else error.where
        self.findings.append(Finding(error.what, where, error.why, error.next, severity))
        if len(self.findings) >= MOST:
            raise _Enough

    def base(self) -> None:
        base = self.cells.base
        if not checksum_holds(self.cells.data):
            self.say(self.cells.bad("the base block's checksum is wrong", 508))
        if base.sequence1 != base.sequence2:
            self.say(self.cells.bad(f"its sequence numbers are {base.sequence1} and {base.sequence2}: "
                                        "Windows was writing it when it stopped", 4))

    def tree(self) -> None:
        """Every key once, from the root."""
        root = self.cells.base.root
        todo: list[tuple[int, int, str]] = [(root, NOWHERE, "")]
        self.used.add(root)
        while todo:
            offset, parent, path = todo.pop()
            try:
                key = self.cells.key(offset)
                if parent != NOWHERE and key.parent != parent:
                    raise self.cells.bad("a key is listed below a key that is not its parent", offset + BINS)
                todo += [(child, offset, f"{path}\\{name}" if path else name)
                         for child, name in self.subkeys(key)]
                self.security(key, offset)
                if key.class_cell != NOWHERE:
                    self.cells.content(key.class_cell, key.class_length, "a key's class name")
                    self.claim(key.class_cell, "a key's class name")
            except GuestError as error:
                self.say(error, item=path)
                continue
            self.values(key, path)

    def claim(self, offset: int, what: str) -> None:
        """A cell belongs to one owner: hivex frees what it replaces."""
        if offset in self.used:
            self.say(self.cells.bad(f"{what} lies in a cell that something else has too", offset + BINS))
        self.used.add(offset)

    def subkeys(self, key: Key) -> list[tuple[int, str]]:
        """A key's subkeys with their names, each listed once in the hive, in order."""
        cells, used = self.cells, self.used
        if key.subkeys == 0:
            self.spare.add(key.subkey_list)  # hivex leaves an empty list behind the last deleted subkey
            return []
        offsets = cells.subkeys(key)
        leaves = list(cells.leaves(key))
        if leaves[0].offset != key.subkey_list:
            self.claim(key.subkey_list, "an index root")
        for leaf in leaves:
            self.claim(leaf.offset, "a list of subkeys")
            if leaf.signature == b"lh" and cells.base.minor < 5:
                raise cells.bad(f"a list of hashes (lh) in a hive of version 1.{cells.base.minor}, "
                                "which does not know it", leaf.offset + BINS)
        found = []
        for offset in offsets:
            if offset in used:
                raise self.cells.bad("a key is listed twice", offset + BINS)
            used.add(offset)
            name = cells.key_name(offset, cells.key(offset))
            if not name or "\\" in name:
                raise cells.bad(f"a key is called {name!r}", offset + BINS)
            found.append((offset, name))
        self.order([name for _, name in found], key.subkey_list)
        return found

    def order(self, names: list[str], offset: int) -> None:
        """Names must rise in upper case: Windows finds them by halving."""
        keys = [sort_key(name) for name in names]
        for number in range(1, len(names)):
            if keys[number - 1] < keys[number]:
                continue
            before, after = names[number - 1], names[number]
            same = keys[number - 1] == keys[number]
            self.say(self.cells.bad(f"subkeys are out of order: {before!r} is listed before {after!r}",
                                    offset + BINS),
                     Severity.ERROR if same or (before + after).isascii() else Severity.WARNING)

    def security(self, key: Key, offset: int) -> None:
        """A key's security descriptor: in a ring with all others, counting its keys."""
        if key.security == NOWHERE:
            raise self.cells.bad("a key has no security descriptor", offset + BINS)
        self.owners[key.security] += 1
        if key.security in self.descriptors:
            return
        security = self.cells.security(key.security)
        for neighbour in (security.next, security.previous):
            self.cells.security(neighbour)
        self.claim(key.security, "a security descriptor")
        self.descriptors[key.security] = security

    def security_counts(self) -> None:
        """Windows frees a descriptor whose count falls to zero."""
        for offset, security in self.descriptors.items():
            if security.references != self.owners[offset]:
                self.say(self.cells.bad(f"a security descriptor counts {security.references} keys and has "
                                        f"{self.owners[offset]}", offset + BINS), Severity.WARNING)

    def values(self, key: Key, path: str) -> None:
        """Values: each stands alone, so damage here does not make the tree untrue."""
        cells = self.cells
        try:
            offsets = cells.values(key)
        except GuestError as error:
            self.say(error, Severity.WARNING, path)
            return
        if offsets:
            self.claim(key.value_list, "a list of values")
        for offset in offsets:
            try:
                self.value(offset)
            except GuestError as error:
                self.say(error, Severity.WARNING, path)

    def value(self, offset: int) -> None:
        self.claim(offset, "a value")
        value = self.cells.value(offset)
        held = self.cells.value_cells(offset, value)
        for cell in held:
            self.claim(cell, "a value's data")
        minor = self.cells.base.minor
        if len(held) > 1 and minor < 4:
            raise self.cells.bad(f"big data (db) in a hive of version 1.{minor}", offset + BINS)
        if len(held) == 1 and value.size > SEGMENT and minor >= 4:
            raise self.cells.bad(f"a value of {value.size} bytes is not stored as big data", offset + BINS)

    def unreferenced(self) -> None:
        """Cells in use that nothing refers to: wasted, not wrong. Says nothing of a damaged tree."""
        if any(finding.severity is Severity.ERROR for finding in self.findings):
            return
        lost = self.cells.sizes.keys() - self.used - self.spare
        if lost:
            amount = sum(self.cells.sizes[offset] + 4 for offset in lost)
            self.findings.append(Finding(
                f"the hive {self.name} has {len(lost)} cells in use that nothing refers to",
                Where(self.name, min(lost) + BINS), f"{amount} bytes are wasted; nothing is lost",
                "nothing"))


def refuse_damage(data: bytes, name: str, doing: str) -> None:
    """Raise GuestError with the first ERROR that check() finds.

    doing: what was about to happen, or had happened, as "before the edit".
    """
    for finding in check(data, name):
        if finding.severity is Severity.ERROR:
            raise GuestError(f"{finding.what} ({doing})", finding.where, finding.why, finding.next or REPAIR)
