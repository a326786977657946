"""The files of services: what is in the tree is right, and a wrong one names the place."""

from __future__ import annotations

import pytest

from p2v import services, tables
from p2v.errors import PlanError
from p2v.services import DISABLE, MEMORY

FILES = sorted(tables.folder("services").glob("*.toml"))
TEXT = (tables.folder("services") / "watchdogs.toml").read_text()


def test_every_file_loads_and_kinds_differ():
    kinds = [services.parse(path.read_text(), path.name).kind for path in FILES]
    assert sorted(kinds) == sorted(services.KINDS)


def test_nothing_known_from_memory_alone_is_disabled_by_its_name():
    risky = [rule for rule in services.rules() if rule.action == DISABLE and rule.known_from.startswith(MEMORY)]
    assert len(risky) > 5 and all(rule.company for rule in risky)


@pytest.mark.parametrize(("name", "version", "served"), [
    ("INTELPPM", (4, 0), True), ("prl_strg", (5, 1), True), ("prl", (5, 1), False), ("DSM SA Events", (5, 2), True),
    ("atapi", (5, 1), False), ("Disk", (4, 0), False), ("mraid35x", (5, 1), False)])
def test_which_services_are_served(name, version, served):
    assert any(rule.serves(name, version) for rule in services.rules()) == served


def test_a_rule_of_some_versions():
    rule = services.parse(TEXT.replace('title = "C', 'versions = ["5.0"]\ntitle = "C', 1), "x.toml").rule[0]
    assert rule.serves("CpqAsm", (5, 0)) and not rule.serves("CpqAsm", (5, 1))


def test_the_services_that_windows_needs_are_in_no_rule():
    """Typed from the hives of NT 4 and XP: what starts at boot or with the kernel, and is Microsoft's own."""
    for name in ("acpi", "pci", "isapnp", "disk", "partmgr", "ftdisk", "mountmgr", "dmio", "dmload", "volsnap", "ndis",
                 "tcpip", "netbt", "afd", "i8042prt", "kbdclass", "mouclass", "vgasave", "npfs", "msfs", "null", "beep",
                 "fs_rec", "cdrom", "rdbss", "mrxsmb", "rpcss", "eventlog", "plugplay", "samss", "lanmanserver"):
        assert not [rule.title for rule in services.rules() for version in ((4, 0), (5, 0), (5, 1), (5, 2))
                    if rule.serves(name, version)], name


@pytest.mark.parametrize(("old", "new", "place", "why"), [
    ('kind = "watchdog"', 'kind = "dog"', "x.toml, kind", "'dog' is none of"),
    ('kind = "watchdog"', 'kind = 7', "x.toml, kind", "str is wanted"),
    ('kind = "watchdog"', "", "x.toml, kind", "missing"),
    ("[[rule]]", "[[rules]]", "x.toml, rules", "not known"),
    ('names = ["cpqasm"', 'names = ["*"', "recovery", "no name of a service"),
    ('names = ["cpqasm"', 'names = ["cpqasm", "a\\\\b"', "recovery", "no name of a service"),
    ('names = ["cpqasm"', 'names = ["ibmspw"', "rule", "is in the rule"),
    ('action = "disable"', 'action = "delete"', "recovery", "disable or tell"),
    ('action = "disable"', 'action = "tell"', "recovery", "says in next"),
    ('company = ["Compaq", "Hewlett-Packard"]', "", "recovery", "known from memory"),
    ('company = ["Compaq", "Hewlett-Packard"]', 'versions = ["6.0"]\ncompany = ["Compaq"]', "recovery", "6.0"),
    ('known_from = "[mem] names of Compaq', 'known_from = ""\nnext = "', "recovery", "must say something"),
    ("[[rule]]", "[[rule", "x.toml", "line")])
def test_a_wrong_file_is_refused_with_its_place(old, new, place, why):
    assert old in TEXT
    with pytest.raises(PlanError) as caught:
        services.parse(TEXT.replace(old, new, 1 if "rules" not in new else -1), "x.toml")
    assert place in str(caught.value.where) and why in caught.value.why and caught.value.next
