"""Edits of a hive over hivex: bytes in, bytes out.

hivex 1.3.23 allocates at the end and moves nothing: keys that are not edited keep their bytes. It changes no
timestamps, gives a new key its parent's timestamp and security descriptor, and sets both sequence numbers one
higher (all measured in tests/registry/test_hive.py). It trusts the hive it is given and may abort the process
on a damaged one, so a damaged hive never reaches it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from p2v.errors import GuestError, MissingTool, Unsupported, Where
from p2v.model import Value
from p2v.registry.cells import SEGMENT, damaged, fold, readable_base
from p2v.registry.check import refuse_damage
from p2v.registry.regf import is_dirty, lh_to_lf

_Values = list[tuple[str, Value]]
_VALUE_HEADER = 24  # hivex counts a value node's header as 24 bytes (value_key_len raises for empty names)
_LONGEST = 999_000  # bytes of one value: hivex refuses cells past 1,000,000


class HiveEditor:
    """A hive being edited. Keys are paths below the root, "" is the root; case is ignored.

    data: the whole file, its log already replayed. Nothing is written: commit() gives the new bytes.
    Raises GuestError for a dirty or damaged hive, Unsupported for formats other than 1.3 to 1.5
    (NT 4 to 2003), MissingTool without hivex.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        self._minor = readable_base(data, name).minor
        if self._minor not in (3, 4, 5):
            raise Unsupported(f"the hive {name} has format 1.{self._minor} and is not edited",
                              Where(name, 24, 4, "base block, minor version"),
                              "p2v edits hives of NT 4, 2000, XP and 2003 (1.3 to 1.5)",
                              "convert this guest with tools of its own generation")
        if is_dirty(data, name):
            raise GuestError(f"the hive {name} is dirty", Where(name, 4),
                             "hivex would lose what its log holds", "replay its log first")
        refuse_damage(data, name, "found before the edit")
        self._hivex = self._open(data)
        self._pending: dict[int, _Values] = {}  # node → its values as they will be

    def set_value(self, key: str, name: str, value: Value) -> None:
        """Set or add one value ("" is the default value); a replaced one keeps its place and spelling.

        Raises GuestError where there is no such key.
        """
        _plain(name)
        node = self._existing(key)
        if len(value.data) > (SEGMENT if self._minor >= 4 else _LONGEST):
            raise Unsupported(f"a value of {len(value.data)} bytes cannot be written", self._where(key, name),
                              "hivex does not write big data", "keep values below 16 KiB")
        values = self._values(node, key)
        index = _index(values, name)
        if index is None:
            values = [*values, (name, value)]
        elif values[index][1] == value:
            return
        else:
            values = [*values[:index], (values[index][0], value), *values[index + 1:]]
        self._change(node, key, values)

    def delete_value(self, key: str, name: str) -> None:
        """Remove one value; the others keep types, data and order. Raises GuestError where there is none."""
        node = self._existing(key)
        values = self._values(node, key)
        index = _index(values, name)
        if index is None:
            raise GuestError("there is no such value to remove", self._where(key, name),
                             "the hive is not what the plan was made from", "make a new plan")
        self._change(node, key, values[:index] + values[index + 1:])

    def create_key(self, key: str) -> None:
        """Make a key and what is missing above it; existing parts keep their spelling.

        Raises ValueError for names outside ASCII: hivex sorts those differently from Windows.
        """
        node = self._root()
        for part in _parts(key):
            child = self._child(node, part, key)
            if child is None:
                if not part.isascii() or len(part) > 255:
                    raise ValueError(f"no name for a new key: {part!r}")
                child = int(self._call(key, self._hivex.node_add_child, node, part))
            node = child

    def delete_key(self, key: str, *, recursive: bool = False) -> None:
        """Remove a key. Raises GuestError where it is missing, or (unless recursive) not empty."""
        self._flush()
        node = self._existing(key)
        if node == self._root():
            raise ValueError("the root of a hive cannot be removed")
        subkeys = len(self._call(key, self._hivex.node_children, node))
        values = len(self._call(key, self._hivex.node_values, node))
        if (subkeys or values) and not recursive:
            raise GuestError(f"the key is not empty: {subkeys} subkeys, {values} values", self._where(key),
                             "only what was planned is removed", "remove what is in it first")
        self._prove_deletable(node, key)
        self._call(key, self._hivex.node_delete_child, node)

    def commit(self) -> bytes:
        """The hive with all edits, checked whole. More edits may follow. Raises GuestError."""
        self._flush()
        with open(os.memfd_create(f"p2v-{self._name}"), "rb") as file:
            self._call("", self._hivex.commit, f"/proc/self/fd/{file.fileno()}")
            data = file.read()
        if self._minor < 5:
            data = lh_to_lf(data, self._name)
        refuse_damage(data, self._name, "found after the edit; nothing was written")
        return data

    def _open(self, data: bytes) -> Any:
        try:
            import hivex
        except ImportError as error:
            raise MissingTool("the Python binding of hivex is missing", "python3-hivex",
                              "hives are edited through it", "apt-get install python3-hivex") from error
        with open(os.memfd_create(f"p2v-{self._name}"), "wb") as file:  # hivex takes paths only
            file.write(data)
            file.flush()
            return self._call("", partial(hivex.Hivex, write=True), f"/proc/self/fd/{file.fileno()}")

    def _call(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """hivex reports errors as RuntimeError with the text of errno, names as UnicodeError."""
        try:
            return function(*arguments)
        except (RuntimeError, OSError, UnicodeError) as error:
            raise GuestError(f"hivex cannot edit the hive {self._name}: {error}", self._where(key),
                             "the hive holds something that hivex does not handle; nothing was written",
                             "report this with the hive; HIVEX_DEBUG=1 says more") from error

    def _where(self, key: str, value: str | None = None) -> Where:
        return Where(self._name, item=key if value is None else f"{key}:{value}")

    def _root(self) -> int:
        return int(self._call("", self._hivex.root))

    def _child(self, node: int, part: str, key: str) -> int | None:
        if "\0" in part:
            raise GuestError("hivex does not reach a key with a NUL in its name", self._where(key),
                             "the key was made by a program that hides it", "leave this key as it is")
        found = self._call(key, self._hivex.node_get_child, node, part)
        return None if not found else int(found)

    def _existing(self, key: str) -> int:
        node: int | None = self._root()
        for part in _parts(key):
            node = None if node is None else self._child(node, part, key)
        if node is None:
            raise GuestError("there is no such key", self._where(key),
                             "the hive is not what the plan was made from", "make a new plan")
        return node

    def _values(self, node: int, key: str) -> _Values:
        if node not in self._pending:
            return [self._call(key, self._value, each)
                    for each in self._call(key, self._hivex.node_values, node)]
        return self._pending[node]

    def _value(self, handle: int) -> tuple[str, Value]:
        """A value as hivex sees it, refused where hivex could not write it again or would abort."""
        name = self._hivex.value_key(handle)
        if len(name.encode()) != self._hivex.value_struct_length(handle) - _VALUE_HEADER:
            raise damaged(self._name, f"a value's name holds a NUL ({name!r} and more)")
        kind, data = self._hivex.value_value(handle)
        if not data and self._hivex.value_data_cell_offset(handle) != (0, 0):
            raise damaged(self._name, f"the empty value {name!r} refers to a cell")
        return name, Value(kind & 0xFFFFFFFF, data)

    def _change(self, node: int, key: str, values: _Values) -> None:
        """hivex rewrites all values of a key, so all must be of a kind that it can write."""
        big = [name for name, value in values if len(value.data) > SEGMENT]
        if big and self._minor >= 4:
            raise Unsupported("a key with big data cannot be edited", self._where(key, big[0]),
                              "hivex would write all its values anew, and values of more than "
                              f"{SEGMENT} bytes in a form that XP and 2003 do not read",
                              "make this edit inside the running guest")
        self._pending[node] = values

    def _flush(self) -> None:
        for node, values in self._pending.items():
            entries = [{"key": name, "t": value.type, "value": value.data} for name, value in values]
            self._call("", self._hivex.node_set_values, node, entries)
        self._pending.clear()

    def _prove_deletable(self, node: int, key: str) -> None:
        """hivex frees what values refer to without looking: look first."""
        todo = [node]
        while todo:
            node = todo.pop()
            self._values(node, key)
            todo += self._call(key, self._hivex.node_children, node)


def _parts(key: str) -> list[str]:
    return [part for part in key.split("\\") if part]


def _plain(name: str) -> None:
    if "\0" in name:
        raise ValueError(f"no name in a hive: {name!r}")


def _index(values: _Values, name: str) -> int | None:
    folded = fold(name)
    return next((index for index, (each, _) in enumerate(values) if fold(each) == folded), None)
