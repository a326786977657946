"""The reading door of hives: a HiveTree over python-registry, which shares no code with hivex.

python-registry follows offsets without looking and decodes values; here each cell is checked before it is
followed, and types and data come out raw, as the hive holds them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from p2v.errors import GuestError, Where
from p2v.model import HiveTree, Value
from p2v.registry.cells import BINS, SEGMENT, SMALL, damaged, fold, readable_base, walk_bins

_T = TypeVar("_T")
_LONGEST = 1 << 24  # bytes of one value; hivex stops at 8,000,000


def open_hive(data: bytes, name: str) -> HiveTree:
    """A hive to read. data: the whole file, its log already replayed; name: as "SYSTEM", for messages.

    Raises GuestError for what is no hive or has broken bins, Unsupported for a format p2v does not know.
    The tree's methods raise GuestError where they meet damage.
    """
    return _Hive(data, name)


@dataclass(frozen=True, slots=True)
class _Found:
    """A key: its path as spelled and its record. offset: counted from the first bin."""

    path: str
    offset: int
    record: Any


class _Hive:
    def __init__(self, data: bytes, name: str) -> None:
        base = readable_base(data, name)
        for _ in walk_bins(data, base.size, name):
            pass
        self._data = data
        self._name = name
        self._end = BINS + base.size
        self._root = base.root
        self._keys: dict[str, _Found | None] = {}
        self._children: dict[int, dict[str, tuple[str, int]]] = {}
        self._values: dict[int, dict[str, tuple[str, Value]]] = {}
        from Registry import Registry, RegistryParse  # heavy: only when a hive is opened
        self._parse = RegistryParse
        self._bin = self._guarded("", lambda: next(Registry.Registry(io.BytesIO(data))._regf.hbins()))
        self._keys[""] = _Found("", base.root, self._guarded("", lambda: self._key(base.root)))

    def has(self, key: str) -> bool:
        """Is there such a key?"""
        return self._find(key) is not None

    def spelling(self, key: str) -> str | None:
        """The key as the hive spells it; None where there is none."""
        found = self._find(key)
        return None if found is None else found.path

    def subkeys(self, key: str) -> Sequence[str]:
        """Names of the keys below; empty where there is no such key."""
        found = self._find(key)
        return () if found is None else tuple(name for name, _ in self._children_of(found).values())

    def value(self, key: str, name: str) -> Value | None:
        """One value ("" is the default value); None where there is none."""
        found = self._find(key)
        if found is None:
            return None
        entry = self._values_of(found).get(fold(name))
        return None if entry is None else entry[1]

    def values(self, key: str) -> Mapping[str, Value]:
        """All values of a key by their name as spelled; empty where there is no such key."""
        found = self._find(key)
        return {} if found is None else dict(self._values_of(found).values())

    def _find(self, key: str) -> _Found | None:
        folded = fold(key.strip("\\"))
        if folded in self._keys:
            return self._keys[folded]
        above, _, last = folded.rpartition("\\")
        parent = self._find(above) if folded.count("\\") < 600 else None  # Windows allows 512 levels
        child = None if parent is None else self._children_of(parent).get(last)
        found = None
        if parent is not None and child is not None:
            path = f"{parent.path}\\{child[0]}" if parent.path else child[0]
            found = _Found(path, child[1], self._guarded(path, lambda: self._child(child[1], parent.offset)))
        self._keys[folded] = found
        return found

    def _children_of(self, key: _Found) -> dict[str, tuple[str, int]]:
        if key.offset not in self._children:
            self._children[key.offset] = self._guarded(key.path, lambda: self._read_children(key))
        return self._children[key.offset]

    def _values_of(self, key: _Found) -> dict[str, tuple[str, Value]]:
        if key.offset not in self._values:
            self._values[key.offset] = self._guarded(key.path, lambda: self._read_values(key))
        return self._values[key.offset]

    def _guarded(self, path: str, work: Callable[[], _T]) -> _T:
        """Whatever python-registry throws at damage leaves as a GuestError that names the key."""
        try:
            return work()
        except GuestError as error:
            where = Where(error.where.source, error.where.offset, error.where.length, path)
            raise GuestError(error.what, where, error.why, error.next) from error
        except (self._parse.RegistryException, struct.error, LookupError, ArithmeticError, ValueError,
                TypeError, AttributeError, RecursionError) as error:
            what = f"it cannot be read ({type(error).__name__}: {error})"
            raise damaged(self._name, what, item=path) from error

    def _bad(self, what: str, offset: int) -> GuestError:
        return damaged(self._name, what, offset)

    def _content(self, offset: int, least: int, what: str) -> int:
        """File offset of a cell's content, which is in use and has at least so many bytes."""
        at = offset + BINS
        if at + 4 > self._end or offset % 4:
            raise self._bad(f"{what} is said to be at {at:#x}, outside the bins", at)
        size = -struct.unpack_from("<i", self._data, at)[0]
        if size < 4 + least or at + size > self._end:
            raise self._bad(f"{what} needs {least} bytes; its cell is free, too small or cut off", at)
        return at + 4

    def _key(self, offset: int) -> Any:
        record = self._parse.NKRecord(self._data, self._content(offset, 76, "a key"), self._bin)
        self._content(offset, 76 + record.unpack_word(0x48), "a key with its name")
        return record

    def _child(self, offset: int, parent: int) -> Any:
        """A key in a list: its own word on its parent keeps a damaged list from leading in circles."""
        record = self._key(offset)
        if offset == self._root or record.unpack_dword(0x10) != parent:
            raise self._bad("a key is listed below a key that is not its parent", offset + BINS)
        return record

    def _read_children(self, key: _Found) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for offset in self._listed(key.record):
            record = self._child(offset, key.offset)
            name = self._decode(record.unpack_string(0x4C, record.unpack_word(0x48)), record.has_ascii_name())
            if not name or "\\" in name or found.setdefault(fold(name), (name, offset))[1] != offset:
                raise self._bad(f"a key is called {name!r}, which is no name or another key's", offset + BINS)
        return found

    def _listed(self, record: Any) -> list[int]:
        """Offsets of a key's subkeys. Bounded by what the bins could hold."""
        count = record.subkey_number()
        offsets: list[int] = []
        if count:
            for leaf, step in self._leaves(record.unpack_dword(0x1C)):
                entries = leaf._keys_len()
                self._content(leaf.offset() - 4 - BINS, 4 + 4 * step * entries, "a list of subkeys")
                offsets += struct.unpack_from(f"<{step * entries}I", self._data, leaf.offset() + 4)[::step]
                if len(offsets) > count:
                    break
        if len(offsets) != count:
            raise self._bad(f"a key claims {count} subkeys and lists {len(offsets)}", record.offset())
        return offsets

    def _leaves(self, offset: int, below_root: bool = False) -> Iterator[tuple[Any, int]]:
        """The lists below a key, with the dwords that each element takes."""
        at = self._content(offset, 4, "a list of subkeys")
        signature = self._data[at:at + 2]
        if signature in (b"lf", b"lh", b"li"):
            yield self._parse.DirectSubkeyList(self._data, at, self._bin), 1 if signature == b"li" else 2
        elif signature == b"ri" and not below_root:
            (entries,) = struct.unpack_from("<H", self._data, at + 2)
            self._content(offset, 4 + 4 * entries, "an index root")
            for leaf in struct.unpack_from(f"<{entries}I", self._data, at + 4):
                yield from self._leaves(leaf, True)
        else:
            raise self._bad(f"{bytes(signature)!r} where subkeys should be listed", at - 4)

    def _read_values(self, key: _Found) -> dict[str, tuple[str, Value]]:
        count = key.record.values_number()
        found: dict[str, tuple[str, Value]] = {}
        if not count:
            return found
        at = self._content(key.record.unpack_dword(0x28), 4 * count, f"a list of {count} values")
        for offset in struct.unpack_from(f"<{count}I", self._data, at):
            record = self._parse.VKRecord(self._data, self._content(offset, 20, "a value"), self._bin)
            length = record.unpack_word(0x2)
            self._content(offset, 20 + length, "a value with its name")
            name = self._decode(record.unpack_string(0x14, length), record.has_ascii_name())
            value = Value(record.unpack_dword(0xC), self._raw(record, offset))
            found.setdefault(fold(name), (name, value))
        return found

    def _raw(self, record: Any, offset: int) -> bytes:
        """A value's data, of whatever type: python-registry's raw_data() makes DWORDs 4 bytes, and more."""
        size = record.raw_data_length()
        if size & SMALL:
            if size & ~SMALL > 4:
                raise self._bad(f"a value claims {size & ~SMALL} bytes in a field of 4", offset + BINS)
            return bytes(record.unpack_binary(0x8, size & ~SMALL))
        if size == 0:
            return b""
        if size > _LONGEST:
            raise self._bad(f"a value claims {size} bytes", offset + BINS)
        where = record.unpack_dword(0x8)
        at = self._content(where, 4, "a value's data")
        if size > SEGMENT and self._data[at:at + 2] == b"db":
            return self._big(self._parse.DBRecord(self._data, at, self._bin), where, size)
        self._content(where, size, "a value's data")
        return self._data[at:at + size]

    def _big(self, record: Any, offset: int, size: int) -> bytes:
        self._content(offset, 8, "big data")
        segments = -(-size // SEGMENT)
        if record.unpack_word(0x2) < segments:
            raise self._bad(f"big data of {size} bytes has {record.unpack_word(0x2)} segments",
                          offset + BINS)
        at = self._content(record.unpack_dword(0x4), 4 * segments, "the list of a big value's segments")
        left = size
        for segment in struct.unpack_from(f"<{segments}I", self._data, at):
            self._content(segment, min(left, SEGMENT), "a segment of big data")
            left -= SEGMENT
        return bytes(record.large_data(size))

    @staticmethod
    def _decode(raw: bytes, compressed: bool) -> str:
        """python-registry takes windows-1252 for one-byte names; they are the low bytes of UTF-16 units."""
        return raw.decode("latin-1") if compressed else raw[: len(raw) & ~1].decode("utf-16-le", "replace")
