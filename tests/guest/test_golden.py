"""The changes planned for each server on each target equal the list that was written by hand.

A target that is new needs a word in each expected.json: what differs there from the common lists, {} for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.servers import build_nt4_ntfs
from p2v.errors import Finding
from p2v.guest import pe
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS
from p2v.guest.guest import ReadingGuest
from p2v.model import BytesChange, Content, FileChange, KeyChange, Value, ValueChange
from p2v.target import TARGETS
from tests.guest.conftest import opened

CASES = Path(__file__).parents[2] / "fixtures" / "guest"
SERVERS = {"xp-dell": "xp_server", "xp-x64": "x64_server", "nt4-ntfs": "nt4_server",
           "nt4-fat16": "nt4_fat_server", "nt4-proliant": "proliant_server",
           "w2000-poweredge-synthesised": "poweredge_server", "w2003-xseries": "xseries_server",
           "xp-fat32": "fat32_server"}


@pytest.fixture(scope="module", params=SERVERS)
def case(request) -> Iterator[tuple[str, ReadingGuest]]:
    """A server's name, and its disks through the reading door."""
    server = request.getfixturevalue(SERVERS[request.param])
    with ExitStack() as stack:
        yield request.param, opened(server, stack)


@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_equals_the_list(case, target):
    name, guest = case
    expected = expectation(name, target)
    wishes = {fixer.NAME: list(fixer.plan(guest, TARGETS[target])) for fixer in FIXERS}
    for fixer, all_wishes in wishes.items():
        lines = sorted(line(wish) for wish in all_wishes if not isinstance(wish, Finding))
        assert lines == sorted(wanted(expected, fixer)), fixer
    findings = [f"{fixer} {wish.severity.value}: {wish.what}" for fixer, all_wishes in wishes.items()
                for wish in all_wishes if isinstance(wish, Finding)]
    assert findings == expected["findings"]
    ini = next(wish for wish in wishes["boot-ini"] if isinstance(wish, FileChange))
    assert ini.after.data == "".join(text + "\r\n" for text in expected["boot.ini"]).encode()


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_as_it_was_cannot_boot_on_the_target(case, target):
    findings = boot_closure(case[1], TARGETS[target])
    assert any(finding.severity.value == "error" for finding in findings)


@pytest.mark.parametrize("target", TARGETS)
def test_compressed_files_of_nt4_are_said_before_anything_is_edited(target, compressed_server, see):
    """The writing door cannot open them on NTFS 1.2; both are read through the reading door."""
    guest = see(compressed_server)
    said = [wish.what for fixer in FIXERS for wish in fixer.plan(guest, TARGETS[target])
            if isinstance(wish, Finding) and wish.severity.value == "error"]
    assert said == ["\\boot.ini is compressed by NTFS",
                    "\\WINNT\\system32\\drivers\\atapi.sys is compressed by NTFS"]


@pytest.fixture(scope="module")
def compressed_server(tmp_path_factory, corpus):
    return build_nt4_ntfs(tmp_path_factory.mktemp("compressed"), corpus, compressed_boot_ini=True,
                          compressed_driver=True)


@pytest.mark.parametrize("name", SERVERS)
def test_each_list_names_no_fixer_that_there_is_not(name):
    assert set(json.loads((CASES / name / "expected.json").read_text())["changes"]) <= {f.NAME for f in FIXERS}


def expectation(name: str, target: str) -> dict:
    """The lists of a case, with what differs on this target in their place."""
    common = json.loads((CASES / name / "expected.json").read_text())
    assert target in common["targets"], f"fixtures/guest/{name}/expected.json says nothing of the target {target}"
    own = common["targets"][target]
    return {**common, **own, "changes": {**common["changes"], **own.get("changes", {})}}


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
