"""The only door to construct: a layout, a source and an offset become a dataclass, or an exact LayoutError.

A module declares its layout as a construct Struct of fixed size with the specification's field names,
and a frozen dataclass with the same names (those of the layout that it wants). What a dataclass refuses
with ValueError when it is made is damage as well, and says so in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import construct

from p2v.errors import LayoutError, Where
from p2v.model import Source, read

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def parse(layout: construct.Construct, source: Source, offset: int, into: type[T], what: str) -> T:
    """One structure of a source.

    offset: bytes from the start of the source. what: what the user would call it ("partition table").
    Raises LayoutError naming source, bytes and field; ReadError where the bytes cannot be read.
    """
    size = int(layout.sizeof())
    if not 0 <= offset <= source.size - size:
        raise LayoutError(f"{what} lies outside its medium", Where(source.name, max(offset, 0), size),
                          why=f"it needs {size} bytes at {offset:#x}, the medium has {source.size}",
                          next="give the whole disk; a shorter copy of it cannot be trusted")
    return parse_bytes(layout, read(source, offset, size), into, what, Where(source.name, offset, size))


def parse_bytes(layout: construct.Construct, data: bytes, into: type[T], what: str, where: Where) -> T:
    """The same for bytes already at hand (a record after its fixups).

    where: the bytes' place, for the error. Raises LayoutError naming it and the field.
    """
    try:
        parsed = layout.parse(data)
        return into(**_wanted(parsed, into))
    except construct.ConstructError as error:
        raise _damaged(what, where, _field(error), _reason(error)) from error
    except ValueError as error:
        raise _damaged(what, where, "", str(error)) from error


def _wanted(parsed: Mapping[str, Any], into: type[T]) -> dict[str, Any]:
    values = {field.name: parsed[field.name] for field in fields(into)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _field(error: construct.ConstructError) -> str:
    """construct says "(parsing) -> outer -> inner"; a bare "(parsing)" where it names nothing."""
    path = getattr(error, "path", None) or ""
    return ".".join(path.split(" -> ")[1:])


def _reason(error: construct.ConstructError) -> str:
    """construct puts the path in a first line of its own."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Error in path")]
    return lines[0] if lines else type(error).__name__


def _damaged(what: str, where: Where, field: str, why: str) -> LayoutError:
    place = Where(where.source, where.offset, where.length, field or where.item or what)
    return LayoutError(f"{what} cannot be trusted", place, why=why,
                       next="copy the disk again if it can be read elsewhere; otherwise it is damaged")
