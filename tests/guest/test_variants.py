"""Every variant on every target: after all fixers the boot closure holds, a second plan is empty, an undo is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fixtures import variants
from fixtures.variants import VARIANTS
from p2v import changes
from p2v.errors import Finding, GuestError, Severity
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS
from p2v.model import Change, DWord, MultiText, Recovery, Target, ValueChange
from p2v.target import TARGETS
from p2v.testing import DirGuest

FITTING = [name for name, variant in VARIANTS.items() if not variant.stops]
STOPPING = [name for name, variant in VARIANTS.items() if variant.stops]


def wishes(guest: DirGuest, target: Target) -> tuple[list[Change], list[Finding]]:
    found = [wish for fixer in FIXERS for wish in fixer.plan(guest, target)]
    return (changes.merge(one for one in found if not isinstance(one, Finding)),
            [one for one in found if isinstance(one, Finding)])


def errors(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.what for finding in findings if finding.severity is Severity.ERROR]


def digests(folder: Path) -> dict[str, str]:
    """Of every file but those that the registry's own upkeep rewrites."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "config"}


@pytest.mark.parametrize("name", FITTING)
def test_a_variant_boots_after_the_fixers_and_comes_back(name, tmp_path):
    variant = VARIANTS[name]
    guest = variants.make(variant, tmp_path)
    before = digests(tmp_path)
    assert errors(boot_closure(guest, TARGETS["kvm"]))
    for wanted, targets in alike(guest):
        guest.apply(wanted)
        after = guest.again()
        for target in {tuple(one.CONTROLLERS): one for one in targets}.values():
            assert not errors(boot_closure(after, target)), target.NAME
        assert not wishes(after, targets[0])[0]
        after.apply(changes.inverses(wanted))
        back = after.again()
        assert all(back.look(one) == one.before for one in wanted if not isinstance(one, Recovery))
        assert digests(tmp_path) == before


def alike(guest: DirGuest) -> list[tuple[list[Change], list[Target]]]:
    """The targets, those together that want the same changes."""
    groups: list[tuple[list[Change], list[Target]]] = []
    for target in TARGETS.values():
        wanted, _ = wishes(guest, target)
        same = next((targets for seen, targets in groups if seen == wanted), None)
        if same is None:
            groups.append((wanted, [target]))
        else:
            same.append(target)
    return groups


HDC_ENUM = "{set}\\Enum\\PCIIDE\\IDEChannel\\4&2617aeae&0&0"
PROFILE = "{set}\\Hardware Profiles\\0001\\System\\CurrentControlSet\\Enum"
DISKS = "{set}\\Control\\Class\\{4D36E967-E325-11CE-BFC1-08002BE10318}"


@pytest.mark.parametrize(("name", "key", "value", "after"), [
    ("xp-controller-off", "{set}\\Enum\\PCI\\VEN_8086&DEV_7111&SUBSYS_11001AF4&REV_01\\3&13c0b0c5&0&09",
     "ConfigFlags", DWord(0)),
    ("xp-channel-off", HDC_ENUM, "ConfigFlags", DWord(0)),
    ("xp-profile", PROFILE + "\\PCIIDE\\IDECHANNEL\\4&2617AEAE&0&0", "CSConfigFlags", DWord(0)),
    ("nt4-profile", PROFILE + "\\ROOT\\LEGACY_ATAPI\\0000", "CSConfigFlags", DWord(0)),
    ("xp-dead-filters", DISKS, "UpperFilters", MultiText("PartMgr")),
    ("xp-dead-filters", DISKS, "LowerFilters", None),
    ("nt4-teaming", "{set}\\Services\\cpqasm", "Start", DWord(4)),
    ("nt4-teaming", "{set}\\Services\\CpqTeam", "Start", DWord(4)),
    ("xp-teaming", "{set}\\Services\\Blfp", "Start", DWord(4)),
    ("xp-teaming", "{set}\\Services\\iANSMiniport", "Start", DWord(4)),
    ("xp-teaming", "{set}\\Services\\ibmspw", "Start", DWord(4)),
    ("xp-teaming", "{set}\\Services\\Tcpip", "Start", DWord(1)),
])
def test_what_was_special_is_mended_in_every_control_set(name, key, value, after, tmp_path):
    guest = variants.make(VARIANTS[name], tmp_path)
    final = {(change.key.lower(), change.value.lower()): change.after for change in wishes(guest, TARGETS["kvm"])[0]
             if isinstance(change, ValueChange)}
    for control_set in guest.facts.control_sets:
        place = key.replace("{set}", control_set)
        now = guest.hive("SYSTEM").value(place, value)
        assert now is not None
        assert final.get((place.lower(), value.lower()), now) == after


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STOPPING)
def test_what_is_missing_is_named(name, target, tmp_path):
    variant = VARIANTS[name]
    guest = variants.make(variant, tmp_path)
    try:
        said = [one for one in wishes(guest, TARGETS[target])[1] if one.severity is Severity.ERROR]
        texts = [" ".join((one.what, one.why, one.next)) for one in said]
    except GuestError as error:
        texts = [" ".join((error.what, error.why, error.next))]
    assert any(variant.stops in text for text in texts)


@pytest.mark.parametrize(("name", "root"), [
    ("nt4-sbs-root", "\\WINNT.SBS"), ("nt4-terminal-server", "\\WTSRV"), ("three-windows", "\\WINDOWS")])
def test_the_right_folder_is_found(name, root, tmp_path):
    facts = variants.make(VARIANTS[name], tmp_path).facts
    assert facts.system_root == root
    assert ("Terminal Server Edition" in facts.name) == (name == "nt4-terminal-server")


@pytest.mark.parametrize(("name", "default"), [
    ("xp-default-not-current", "ControlSet002"), ("nt4-three-sets", "ControlSet003")])
def test_the_set_that_the_loader_reads(name, default, tmp_path):
    facts = variants.make(VARIANTS[name], tmp_path).facts
    assert facts.default_control_set == default
    assert len(facts.control_sets) == (3 if name == "nt4-three-sets" else 2)


@pytest.mark.parametrize("name", ["nt4-dirty-hive", "w2000-dirty-hive", "xp-dirty-hive"])
def test_a_half_written_hive_is_read_with_its_log(name, tmp_path):
    guest = variants.make(VARIANTS[name], tmp_path)
    value = guest.hive("SYSTEM").value("Select", "p2v-fixture")
    assert value is not None and value.text == "only the log is sure to have this"


def test_the_other_windows_are_left_alone(tmp_path):
    guest = variants.make(VARIANTS["three-windows"], tmp_path)
    wanted, findings = wishes(guest, TARGETS["kvm"])
    text = "".join(str(change.place) for change in wanted)
    assert "WINNT" not in text and "WIN2000" not in text
    assert [one for one in findings if "another Windows" in one.what] == []
    assert [one.where.item for one in guest.findings if "another Windows" in one.what] == ["\\WIN2000", "\\WINNT"]
