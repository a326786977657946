"""A TOML table becomes a dataclass: each key must be a field, of the field's type. For the data files of p2v."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from p2v.errors import PlanError

T = TypeVar("T")
Refusal = Callable[[str, str], PlanError]  # (the place of what is wrong, why) → the error to raise


def parse(kind: type[T], text: str, place: str, refuse: Refusal, spelled: Mapping[str, str] | None = None) -> T:
    """The dataclass out of TOML. spelled: key in the file → field, where they differ. Raises what refuse makes."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise refuse(place, str(error)) from error
    return _Builder(refuse, spelled or {}).build(kind, table, place)


def folder(name: str) -> Path:
    """Where a folder of data files lies: inside the installed package, or at the root of the source tree."""
    here = Path(__file__).resolve().parent
    installed = here / f"_{name}"
    return installed if installed.is_dir() else here.parent / name


@dataclasses.dataclass(frozen=True, slots=True)
class _Builder:
    refuse: Refusal
    spelled: Mapping[str, str]

    def build(self, kind: type[T], table: Mapping[str, Any], place: str) -> T:
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        for key, value in table.items():
            field = self.spelled.get(key, key)
            if field not in hints or key in self.spelled.values():
                raise self.refuse(f"{place}, {key}", "this key is not known here")
            values[field] = self.value(hints[field], value, f"{place}, {key}")
        for field_ in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is one of our dataclasses
            if field_.default is dataclasses.MISSING and field_.name not in values:
                raise self.refuse(f"{place}, {field_.name}", "this key is missing")
        return kind(**values)

    def value(self, hint: Any, value: Any, place: str) -> Any:
        if isinstance(hint, types.GenericAlias):
            if not isinstance(value, list):
                raise self.refuse(place, "a list is wanted")
            item = typing.get_args(hint)[0]
            return tuple(self.value(item, one, f"{place} {number}") for number, one in enumerate(value, 1))
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise self.refuse(place, "a table is wanted")
            label = value.get("name") or value.get("id") or value.get("title") or ""
            return self.build(typing.cast(type[Any], hint), value, f"{place} {label}".rstrip())
        if type(value) is not hint:
            raise self.refuse(place, f"{hint.__name__} is wanted, not {value!r}")
        return value
