"""Imports point one way: a room sees the vocabulary and the rooms above it, never those below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import p2v

ROOT = Path(p2v.__file__).parent
VOCABULARY = ("p2v.model", "p2v.errors", "p2v.binary")
ROOMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # top first; each with the modules that are the room
    ("source", ("p2v.source",)),
    ("registry", ("p2v.registry",)),
    ("filesystem", ("p2v.filesystem",)),
    ("volume", ("p2v.volume",)),
    ("copy", ("p2v.copy", "p2v.ring", "p2v.careful", "p2v.digests", "p2v.extents", "p2v.mapfile", "p2v.rescue",
              "p2v.checkpoint", "p2v.scan", "p2v.salvage", "p2v.chunks",
              "p2v.comparing", "p2v.twolegs", "p2v.filling", "p2v.coarse")),
    ("formats", ("p2v.formats",)),
    ("drivers", ("p2v.drivers", "p2v.services", "p2v.tables")),
    ("guest", ("p2v.guest",)),
    ("changes", ("p2v.changes",)),
    ("stage", ("p2v.stage",)),
    ("target", ("p2v.target",)),
)
SEES_ALL = ("p2v", "p2v.planning", "p2v.editing", "p2v.conversion", "p2v.folder", "p2v.adaptation",
            "p2v.inplace", "p2v.cli", "p2v.planfile", "p2v.rendering", "p2v.rundir", "p2v.testing",
            "p2v.arranging", "p2v.collapse", "p2v.drawing", "p2v.inspecting", "p2v.newtable", "p2v.pairing",
            "p2v.keeping", "p2v.imaging", "p2v.diskcopy", "p2v.losses", "p2v.outlets", "p2v.owners",
            "p2v.matrix", "p2v.places", "p2v.record", "p2v.refresh", "p2v.choosing", "p2v.evidence")


def module_name(path: Path) -> str:
    parts = ["p2v", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def room_of(module: str) -> int | None:
    for index, (_, prefixes) in enumerate(ROOMS):
        if any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes):
            return index
    return None


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name == "p2v" or name.startswith("p2v.")}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_place(module: str) -> None:
    assert room_of(module) is not None or module in (*VOCABULARY, *SEES_ALL), \
        f"{module} is in no room: add it to its room here and in the contributors' guide"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room_of(m) is not None))
def test_arrows_point_upwards(module: str) -> None:
    own = room_of(module)
    assert own is not None
    for imported in imports_of(MODULES[module]):
        if imported in VOCABULARY:
            continue
        room = room_of(imported)
        assert room is not None and room <= own, f"{module} imports {imported}, which lies below it"


@pytest.mark.parametrize("module", VOCABULARY)
def test_the_vocabulary_imports_no_room(module: str) -> None:
    assert imports_of(MODULES[module]) <= set(VOCABULARY)
