"""Every error and finding answers what, where or why, and what to do next: read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import p2v
import p2v.errors
from p2v.errors import Finding, GuestError, P2VError, Severity, Where

ROOT = Path(p2v.__file__).parent
NAMES = {name for name, cls in vars(p2v.errors).items()
         if isinstance(cls, type) and issubclass(cls, P2VError)} | {"Finding"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def answered(call: ast.Call) -> set[str]:
    given = {name for name, _ in zip(("what", "where", "why", "next"), call.args, strict=False)}
    given |= {keyword.arg or "**" for keyword in call.keywords}
    if any(isinstance(argument, ast.Starred) for argument in call.args) or "**" in given:
        given |= {"what", "where", "why", "next"}  # handed through from another finding
    return given


def test_every_error_says_where_or_why_and_what_next() -> None:
    lacking = []
    for place, call in calls():
        given = answered(call)
        if "next" not in given:
            lacking.append(f"{place} does not say what to do next")
        if not {"where", "why"} & given:
            lacking.append(f"{place} says neither where nor why")
    assert not lacking, "\n".join(lacking)


def test_an_error_and_its_finding_print_alike() -> None:
    error = GuestError("it is broken", Where("disk0", 0x200, 0x200, "MBR"), "it matters", "mend it")
    finding = error.as_finding()
    assert str(error) == str(finding) == (
        "it is broken\n  where: disk0, bytes 0x200 to 0x400, MBR\n  why:   it matters\n  next:  mend it")
    assert finding.severity is Severity.ERROR


def test_what_is_not_known_is_left_out() -> None:
    assert str(Finding("a note")) == "a note"
    assert str(Where("disk0", 7)) == "disk0, byte 0x7"
