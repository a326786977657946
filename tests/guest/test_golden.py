"""The changes planned for each server equal the list that was written by hand, and a second plan is empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2v.errors import Finding
from p2v.guest import pe
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS
from p2v.model import BytesChange, Content, FileChange, KeyChange, Value, ValueChange

CASES = Path(__file__).parents[2] / "fixtures" / "guest"
SERVERS = {"xp-dell": "xp_server", "xp-x64": "x64_server", "nt4-ntfs": "nt4_server",
           "nt4-fat16": "nt4_fat_server"}


@pytest.mark.parametrize("case", SERVERS)
def test_the_plan_equals_the_list(case, request, see, piix_target):
    guest = see(request.getfixturevalue(SERVERS[case]))
    expected = json.loads((CASES / case / "expected.json").read_text())
    wishes = {fixer.NAME: list(fixer.plan(guest, piix_target)) for fixer in FIXERS}
    for name, all_wishes in wishes.items():
        lines = sorted(line(wish) for wish in all_wishes if not isinstance(wish, Finding))
        assert lines == sorted(wanted(expected, name)), name
    findings = [f"{name} {wish.severity.value}: {wish.what}" for name, all_wishes in wishes.items()
                for wish in all_wishes if isinstance(wish, Finding)]
    assert findings == expected["findings"]
    ini = next(wish for wish in wishes["boot-ini"] if isinstance(wish, FileChange))
    assert ini.after.data == "".join(text + "\r\n" for text in expected["boot.ini"]).encode()


@pytest.mark.parametrize("case", SERVERS)
def test_the_server_as_it_was_cannot_boot_on_the_target(case, request, see, piix_target):
    guest = see(request.getfixturevalue(SERVERS[case]))
    findings = boot_closure(guest, piix_target)
    assert any(finding.severity.value == "error" for finding in findings)


def wanted(expected: dict, fixer: str) -> list[str]:
    return [text.replace("{set}", name) for text in expected["changes"].get(fixer, [])
            for name in (expected["control_sets"] if "{set}" in text else [""])]


def line(change) -> str:
    if isinstance(change, ValueChange):
        return f"{change.hive}\\{change.key}:{change.value} | {value(change.before)} | {value(change.after)}"
    if isinstance(change, KeyChange):
        return f"{change.hive}\\{change.key} | {present(change.before)} | {present(change.after)}"
    if isinstance(change, BytesChange):
        return f"{change.disk}@{change.offset:#x} | {change.before.hex()} | {change.after.hex()}"
    assert isinstance(change, FileChange)
    return f"{change.volume}:{change.path} | {content(change.before)} | {content(change.after)}"


def value(one: Value | None) -> str:
    if one is None:
        return "none"
    assert one.type in (1, 4)
    return f"dword:{one.number}" if one.type == 4 else f"sz:{one.text}"


def present(there: bool) -> str:
    return "present" if there else "absent"


def content(one: Content | None) -> str:
    if one is None:
        return "none"
    if not one.data.startswith(b"MZ"):
        return "text"
    return ".".join(map(str, pe.read_program(one.data, "").facts.version))
