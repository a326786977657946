"""Plan ↔ JSON: readable, stable, and a promise to whoever reads plan.json.

A file's content is in the JSON by digest and size; the bytes lie in the run folder and are handed in.
Registry data is hex, with a readable form beside it that reading ignores.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from p2v.errors import Finding, PlanError, Severity, Where
from p2v.model import (
    REG_DWORD,
    REG_EXPAND_SZ,
    REG_MULTI_SZ,
    REG_SZ,
    BytesChange,
    Change,
    Content,
    DiskPlan,
    Family,
    FileChange,
    FilesystemState,
    Geometry,
    GuestFacts,
    HivePlace,
    KeyChange,
    Machine,
    MachineDisk,
    Member,
    PEFacts,
    Piece,
    Plan,
    Recovery,
    SourceDisk,
    Value,
    ValueChange,
    VolumeFacts,
)

Json: TypeAlias = dict[str, Any]
FORMAT_VERSION = 1
CHANGES: Mapping[str, type] = {
    "value": ValueChange, "key": KeyChange, "file": FileChange, "bytes": BytesChange, "recovery": Recovery,
}
KINDS = {kind: name for name, kind in CHANGES.items()}
LARGEST = (1 << 64) - 1  # of any number in a plan


def contents(plan: Plan) -> Iterator[Content]:
    """Every file content that the plan carries, both ways."""
    for change in plan.changes:
        if isinstance(change, FileChange):
            yield from (content for content in (change.before, change.after) if content is not None)


def to_json(plan: Plan) -> Json:
    """A document for json.dumps."""
    document: Json = {"format_version": plan.format_version}
    for name in ("target", "output", "drivers", "copy_all", "sources", "legs", "in_step", "outside", "disks", "volumes",
                 "facts", "machine", "findings"):
        document[name] = plain(getattr(plan, name))
    document["changes"] = [change_to_json(change) for change in plan.changes]
    return document


def change_to_json(change: Change) -> Json:
    """One change, with its kind first."""
    fields = {field.name: plain(getattr(change, field.name)) for field in dataclasses.fields(change)}
    return {"kind": KINDS[type(change)], **fields}


def from_json(document: Json, content: Callable[[str], bytes]) -> Plan:
    """The plan again. content(digest) hands in a file's bytes, and raises what RunDir.get raises.

    Raises PlanError when the document is of another version or does not hold together.
    """
    if document.get("format_version") != FORMAT_VERSION:
        raise PlanError(
            f"the plan has format version {document.get('format_version')}",
            Where(item="plan.json, format_version"),
            f"this p2v reads version {FORMAT_VERSION}",
            "make a new plan with this p2v",
        )
    try:
        plan = Plan(
            target=document["target"],
            output=document["output"],
            disks=tuple(_disk(disk) for disk in document["disks"]),
            volumes=tuple(_volume(volume) for volume in document["volumes"]),
            facts=_facts(document["facts"]),
            machine=_machine(document["machine"], document["target"]),
            changes=tuple(_change(change, content) for change in document["changes"]),
            findings=tuple(_finding(finding) for finding in document["findings"]),
            drivers=tuple(document["drivers"]),
            copy_all=bool(document["copy_all"]),
            sources=tuple(_source(source) for source in document.get("sources", ())),
            legs={str(name): str(disk) for name, disk in document.get("legs", {}).items()},
            in_step=bool(document.get("in_step")),
            outside=bool(document.get("outside")),
            format_version=document["format_version"],
        )
        _check(plan)
        return plan
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlanError("the plan does not hold together", Where(item="plan.json"),
                        f"{type(error).__name__}: {error}", "make a new plan") from error


def _check(plan: Plan) -> None:
    """Raises ValueError where its parts are not what they should be, or do not fit each other."""
    for name, kind in _kinds(Plan).items():
        if not _fits(getattr(plan, name), kind):
            raise ValueError(f"something in {name} is of the wrong kind, or too large")
    for volume in plan.volumes:
        if not volume.members:
            raise ValueError(f"volume {volume.name} lies nowhere")
    for disk in plan.disks:
        if plan.sources and not disk.pieces:
            raise ValueError(f"{disk.id} is put together of nothing")
        if [piece.offset for piece in disk.pieces] != [0, *(piece.end for piece in disk.pieces)][:len(disk.pieces)]:
            raise ValueError(f"the pieces of {disk.id} leave a gap, or overlap")


def readable(value: Value) -> str:
    """A registry value as text, for people."""
    if value.type == REG_DWORD and len(value.data) == 4:
        return f"dword {value.number:#x}"
    if value.type in (REG_SZ, REG_EXPAND_SZ):
        return f'"{value.text}"'
    if value.type == REG_MULTI_SZ:
        return "[" + ", ".join(f'"{text}"' for text in value.texts) + "]"
    return f"type {value.type}, {len(value.data)} bytes {value.data[:16].hex(' ')}"


def plain(thing: Any) -> Any:
    """Anything of the model as lists, dicts, strings and numbers."""
    if isinstance(thing, Value):
        return {"type": thing.type, "data": thing.data.hex(), "reads": readable(thing)}
    if isinstance(thing, Content):
        return {"sha256": thing.digest, "size": thing.size}
    if isinstance(thing, bytes):
        return thing.hex()
    if isinstance(thing, enum.Enum):
        return thing.value
    if isinstance(thing, Mapping):
        return {key: plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [plain(item) for item in thing]
    if dataclasses.is_dataclass(thing):
        return {field.name: plain(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    return thing


def _source(document: Json) -> SourceDisk:
    source = SourceDisk(**document)
    if not re.fullmatch(r"disk\d{1,4}", source.id) or not all(
            isinstance(text, str) and text for text in (source.path, source.source_format)):
        raise ValueError(f"no source of a plan: {source.id!r}")
    return source


def _disk(document: Json) -> DiskPlan:
    pieces = tuple(Piece(**{**piece, "twins": tuple((disk, at) for disk, at in piece["twins"])})
                   for piece in document.get("pieces", ()))
    patches = tuple(BytesChange(**{**patch, "before": bytes.fromhex(patch["before"]),
                                   "after": bytes.fromhex(patch["after"])}) for patch in document.get("patches", ()))
    disk = DiskPlan(**{**document, "pieces": pieces, "patches": patches})
    if not re.fullmatch(r"disk\d{1,4}", disk.id) or not all(
            isinstance(text, str) and text for text in (disk.path, disk.format, disk.image, disk.source_format)):
        raise ValueError(f"no disk of a plan: {disk.id!r}")
    return disk


def _volume(document: Json) -> VolumeFacts:
    members = tuple(Member(**member) for member in document["members"])
    return VolumeFacts(**{**document, "members": members, "state": FilesystemState(document["state"])})


def _facts(document: Json) -> GuestFacts:
    """GuestFacts; lists become the tuples that they were."""
    fields: Json = {name: tuple(value) if isinstance(value, list) else value
                    for name, value in document.items()}
    fields["family"] = Family(document["family"])
    fields["hives"] = {name: HivePlace(**place) for name, place in document["hives"].items()}
    for name in ("hal", "kernel"):
        fields[name] = _program(document[name])
    return GuestFacts(**fields)


def _program(document: Json | None) -> PEFacts | None:
    if document is None:
        return None
    version = document["version"]
    return PEFacts(**{**document, "imports": tuple(document["imports"]),
                      "version": tuple(version) if version is not None else None})


def _machine(document: Json, target: str) -> Machine:
    from p2v.target import target_named

    disks = tuple(MachineDisk(**{**disk, "geometry": Geometry(**disk["geometry"])})
                  for disk in document["disks"])
    if "/" in document["name"] or document["name"].startswith("."):
        raise ValueError(f"no name of a VM: {document['name']!r}")
    machine = Machine(**{**document, "facts": _facts(document["facts"]), "disks": disks})
    if machine.controller not in target_named(target).CONTROLLERS:
        raise ValueError(f"{target} has no controller {machine.controller!r}")
    return machine


def _finding(document: Json) -> Finding:
    where = Where(**document["where"])
    return Finding(**{**document, "where": where, "severity": Severity(document["severity"])})


def _change(document: Json, content: Callable[[str], bytes]) -> Change:
    kind, fields = document["kind"], {key: value for key, value in document.items() if key != "kind"}
    for side in {"before", "after"} & fields.keys():
        if kind == "value":
            fields[side] = _value(fields[side])
        elif kind == "file":
            fields[side] = _content(fields[side], content)
        elif kind == "bytes":
            fields[side] = bytes.fromhex(fields[side])
    change: Change = CHANGES[kind](**fields)
    return change


def _value(document: Json | None) -> Value | None:
    return None if document is None else Value(document["type"], bytes.fromhex(document["data"]))


def _content(reference: Json | None, content: Callable[[str], bytes]) -> Content | None:
    if reference is None:
        return None
    return Content(content(reference["sha256"]), reference["sha256"], reference["size"])


@cache
def _kinds(of: type) -> Mapping[str, Any]:
    """A dataclass's fields and what each must be."""
    return get_type_hints(of)


def _fits(thing: Any, kind: Any) -> bool:
    """Is a value what an annotation of the model says, down to the last field? JSON has no types of its own."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer in (Union, UnionType):
        return any(_fits(thing, one) for one in inner)
    if outer is tuple:
        kinds = inner[:1] * len(thing) if inner[-1] is Ellipsis else inner
        return isinstance(thing, tuple) and len(kinds) == len(thing) and all(map(_fits, thing, kinds))
    if outer is not None:
        return all(_fits(key, inner[0]) and _fits(value, inner[1]) for key, value in thing.items())
    if isinstance(thing, int) and not isinstance(thing, enum.Enum):
        return type(thing) is kind and abs(thing) <= LARGEST
    if not dataclasses.is_dataclass(thing):
        return isinstance(thing, kind)
    return isinstance(thing, kind) and all(_fits(getattr(thing, name), of) for name, of in _kinds(kind).items())
