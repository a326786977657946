"""Boot storage, hive files, services: what is spoilt in a guest, and what the fixers make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import hives, trees
from p2v.errors import Finding, GuestError, Severity
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import boot_ini, boot_storage, crash_control, hive_files
from p2v.model import DWord, ExpandText, FileChange, KeyChange, MultiText, Text, ValueChange
from p2v.testing import DirFiles, DirGuest, check_fixer

SERVICES, DATABASE = "ControlSet001\\Services\\", "ControlSet001\\Control\\CriticalDeviceDatabase\\"


@pytest.fixture
def edited(request):
    """edited(tree, edit): the guest after edit(hive) of its SYSTEM."""
    def made(tree: Path, edit, **rest) -> DirGuest:
        path = next(tree.glob("WIN*")) / "system32" / "config" / "system"
        hive = hives.Hive(path.read_bytes())
        edit(hive)
        path.write_bytes(hive.finish())
        return DirGuest({"disk0p1": tree}, **rest)

    return made


def plan(fixer, guest, target) -> list:
    return list(fixer.plan(guest, target))


def values(wishes) -> dict[str, object]:
    return {f"{wish.key}:{wish.value}": wish.after for wish in wishes if isinstance(wish, ValueChange)}


def test_a_service_that_is_gone_is_made_whole(xp_tree, edited, piix_target):
    guest = edited(xp_tree, lambda hive: hive.delete(SERVICES + "IntelIde"))
    wishes = check_fixer(boot_storage, guest, piix_target)
    made = {name: after for name, after in values(wishes).items() if name.startswith(SERVICES + "IntelIde:")}
    assert {name.rpartition(":")[2]: after for name, after in made.items()} == {
        "Start": DWord(0), "Type": DWord(1), "ErrorControl": DWord(1), "Group": Text("System Bus Extender"),
        "Tag": DWord(4), "ImagePath": ExpandText("system32\\DRIVERS\\intelide.sys")}
    assert any(isinstance(wish, KeyChange) and wish.key == SERVICES + "IntelIde" for wish in wishes)


def test_in_an_existing_service_only_start_changes(xp_tree, edited, piix_target):
    guest = edited(xp_tree, lambda hive: hive.set(SERVICES + "atapi", Tag=DWord(99), Group=Text("mine")))
    changed = [name for name in values(boot_storage.plan(guest, piix_target)) if name.startswith(SERVICES + "atapi:")]
    assert changed == [SERVICES + "atapi:Start"]


def test_no_database_at_all(xp_tree, edited, piix_target):
    guest = edited(xp_tree, lambda hive: hive.delete(DATABASE.rstrip("\\")))
    wishes = check_fixer(boot_storage, guest, piix_target)
    keys = [wish.key for wish in wishes if isinstance(wish, KeyChange) and wish.key.startswith("ControlSet001")]
    assert keys[0] == DATABASE.rstrip("\\") and len(keys) == 9
    assert values(wishes)[DATABASE + "gendisk:Service"] == Text("disk")


def test_rows_of_others(xp_tree, edited, piix_target):
    """A row of the controller itself is ours; an existing generic one is somebody's choice."""
    def edit(hive):
        hive.set(DATABASE + "pci#ven_8086&dev_7111", Service=Text("uniata"), ClassGUID=Text("{x}"))
        hive.set(DATABASE + "pci#cc_0101", Service=Text("uniata"), ClassGUID=Text("{x}"))
        hive.set(DATABASE + "PRIMARY_IDE_CHANNEL", Service=Text("ATAPI"),
                 ClassGUID=Text("{4d36e96a-e325-11ce-bfc1-08002be10318}"))

    found = values(boot_storage.plan(edited(xp_tree, edit), piix_target))
    assert found[DATABASE + "pci#ven_8086&dev_7111:Service"] == Text("intelide")
    assert not [name for name in found if name.lower().startswith((DATABASE + "pci#cc_0101").lower())]
    assert not [name for name in found if name.lower().startswith((DATABASE + "primary_ide").lower())]


def test_a_needed_service(xp_tree, edited, piix_target):
    def edit(hive):
        hive.set(SERVICES + "PartMgr", Start=DWord(3))
        hive.delete(SERVICES + "MountMgr")

    guest = edited(xp_tree, edit)
    wishes = list(boot_storage.plan(guest, piix_target))
    assert values(wishes)[SERVICES + "PartMgr:Start"] == DWord(0)
    assert [(wish.what, wish.severity) for wish in wishes if isinstance(wish, Finding)] == [
        ("the service mountmgr is missing", Severity.ERROR)]
    assert {"partmgr does not start at boot", "mountmgr does not start at boot"} <= {
        finding.what for finding in boot_closure(guest, piix_target)}


def test_control_sets_need_not_be_1_and_2(xp_tree, edited, piix_target):
    guest = edited(xp_tree, lambda hive: hive.set("ControlSet007\\Control", x=DWord(1)))
    assert guest.facts.control_sets == ("ControlSet001", "ControlSet002", "ControlSet007")
    wishes = plan(crash_control, guest, piix_target)
    assert values(wishes)["ControlSet007\\Control\\CrashControl:AutoReboot"] == DWord(0)
    assert [wish.key for wish in wishes if isinstance(wish, KeyChange)] == ["ControlSet007\\Control\\CrashControl"]


def test_files_come_from_the_right_cabinet_like_a_neighbour(xp_guest, piix_target):
    files = [wish for wish in boot_storage.plan(xp_guest, piix_target) if isinstance(wish, FileChange)]
    assert all("5.1.2600.5512" in change.why for change in files)
    assert [change.path.rpartition("\\")[2] for change in files if "sp3.cab" in change.why] == [
        "atapi.sys", "intelide.sys", "pciide.sys"]
    assert {change.like for change in files} == {"\\WINDOWS\\system32\\drivers\\disk.sys"}


def test_a_file_that_does_not_fit_is_replaced_and_keeps_its_owner(xp_tree, piix_target):
    path = xp_tree / "WINDOWS/system32/drivers/atapi.sys"
    path.write_bytes(trees.XP_X64.file("atapi.sys"))
    wishes = plan(boot_storage, DirGuest({"disk0p1": xp_tree}), piix_target)
    change = next(wish for wish in wishes if isinstance(wish, FileChange) and wish.path.endswith("atapi.sys"))
    assert change.before is not None and change.like is None


def test_no_file_anywhere(nt4_tree, piix_target):
    with pytest.raises(GuestError, match=r"atapi\.sys is nowhere") as error:
        list(boot_storage.plan(DirGuest({"disk0p1": nt4_tree}), piix_target))
    assert "Service Pack 4 to 6a" in error.value.next and "system32\\drivers" in error.value.why


@pytest.mark.parametrize(("revision", "size", "severity"), [
    (4, 1 << 20, Severity.WARNING), (132, 9 << 30, Severity.ERROR), (133, 9 << 30, None)])
def test_nt4_atapi_before_sp4(nt4_tree, piix_target, revision, size, severity):
    (nt4_tree / "WINNT/system32/drivers/atapi.sys").write_bytes(
        trees.NT4.file("atapi.sys", version=(4, 0, 1381, revision)))
    guest = DirGuest({"disk0p1": nt4_tree})
    guest.disks["disk0"].size = size
    said = [wish.severity for wish in boot_storage.plan(guest, piix_target) if isinstance(wish, Finding)]
    assert said == ([severity] if severity else [])


def test_nt4_rivals_and_old_miniports(nt4_tree, atapi_folder, edited, piix_target):
    def edit(hive):
        hive.set(SERVICES + "Atdisk", Start=DWord(0))
        hive.set(SERVICES + "aic78xx", Start=DWord(0))
        hive.set(SERVICES + "mine", Type=DWord(1), Start=DWord(0), Group=Text("Base"))

    guest = edited(nt4_tree, edit, drivers=[atapi_folder])
    found = values(check_fixer(boot_storage, guest, piix_target))
    off = {name for name, after in found.items() if after == DWord(4) and name.startswith("ControlSet001")}
    assert off == {SERVICES + name + ":Start" for name in ("Atdisk", "aic78xx", "Cpqarray")}


@pytest.mark.parametrize(("generation", "flags", "said"), [
    ("nt4_guest", {"compressed": True}, "compressed by NTFS"), ("nt4_guest", {"encrypted": True}, "encrypted"),
    ("xp_guest", {"compressed": True}, None), ("xp_guest", {"encrypted": True}, "encrypted")])
def test_files_that_cannot_be_edited(generation, flags, said, request, monkeypatch, piix_target):
    """The writing door reads no compressed file of NTFS 1.2, and nobody an encrypted one."""
    guest, plain = request.getfixturevalue(generation), DirFiles.stat
    monkeypatch.setattr(DirFiles, "stat", lambda files, path: (stat := plain(files, path)) and replace(stat, **flags))
    for fixer in (boot_ini, hive_files):
        errors = [wish for wish in fixer.plan(guest, piix_target)
                  if isinstance(wish, Finding) and wish.severity is Severity.ERROR]
        assert bool(errors) == (said is not None)
        assert all(said in finding.what for finding in errors)
    assert any(isinstance(wish, FileChange) for wish in boot_ini.plan(guest, piix_target)) == (said is None)


# -- the boot closure beside what fixers mend


def test_the_fitted_server_is_closed(fitted, piix_target):
    assert boot_closure(DirGuest({"disk0p1": fitted}), piix_target) == ()


@pytest.mark.parametrize(("file", "spoil", "severity"), [
    ("drivers/isapnp.sys", None, "error"),  # ErrorControl 3
    ("drivers/KSecDD.sys", None, "warning"),  # ErrorControl 1
    ("drivers/atapi.sys", None, "error"),  # ErrorControl 1, and the way to the disk
    ("drivers/pciidex.sys", None, "error"),  # imported by intelide
    ("drivers/classpnp.sys", None, "error"),  # imported by disk
    ("drivers/ntfs.sys", "fastfat.sys", "error"),  # loaded whatever its Start
    ("bootvid.dll", None, "error"),
    ("kdcom.dll", trees.XP_X64.file("kdcom.dll"), "error"),
    ("drivers/disk.sys", trees.XP.file("disk.sys", version=(5, 2, 3790, 0)), "error"),
    ("drivers/disk.sys", b"MZ", "error"),
])
def test_what_is_missing_is_found(fitted_tree, piix_target, file, spoil, severity):
    path = next(one for one in (fitted_tree / "WINDOWS/system32").rglob("*")
                if str(one).lower().endswith(f"system32/{file.lower()}"))
    if spoil == "fastfat.sys":  # DirGuest's volume has no boot sector of NTFS
        path = path.with_name("fastfat.sys")
    path.unlink()
    if isinstance(spoil, bytes):
        path.write_bytes(spoil)
    found = boot_closure(DirGuest({"disk0p1": fitted_tree}), piix_target)
    assert [finding.severity.value for finding in found] == [severity]


def test_an_instance_that_was_turned_off_hides_the_database(fitted_tree, piix_target, edited):
    key = "ControlSet001\\Enum\\PCI\\VEN_8086&DEV_7010&SUBSYS_00000000&REV_00\\3&1"
    guest = edited(fitted_tree, lambda hive: hive.set(key, ClassGUID=Text("{x}"), Service=Text("intelide"),
                                                  ConfigFlags=DWord(1)))
    assert [finding.what for finding in boot_closure(guest, piix_target)] == [
        "the target's controller was installed here before, and is off"]


def test_a_class_filter_without_its_driver(fitted_tree, piix_target, edited):
    key = "ControlSet001\\Control\\Class\\{4D36E967-E325-11CE-BFC1-08002BE10318}"
    guest = edited(fitted_tree, lambda hive: hive.set(key, LowerFilters=MultiText("snapman")))
    assert [finding.what for finding in boot_closure(guest, piix_target)] == ["the class filter snapman cannot load"]


@pytest.mark.parametrize("path", ["\\??\\C:\\drivers\\mraid35x.sys", "C:\\x.sys", "%ProgramFiles%\\x.sys"])
def test_a_path_that_the_loader_cannot_follow(fitted_tree, piix_target, edited, path):
    guest = edited(fitted_tree, lambda hive: hive.set(SERVICES + "mraid35x", ImagePath=ExpandText(path)))
    found = boot_closure(guest, piix_target)
    assert len(found) == 1 and "cannot follow" in found[0].what


def test_nt4_profile_that_turns_atapi_off(nt4_tree, atapi_folder, piix_target, edited):
    key = ("ControlSet001\\Hardware Profiles\\0001\\System\\CurrentControlSet\\Enum\\ROOT\\LEGACY_ATAPI\\0000")
    guest = edited(nt4_tree, lambda hive: hive.set(key, CSConfigFlags=DWord(1)), drivers=[atapi_folder])
    assert "a hardware profile turns atapi off" in [finding.what for finding in boot_closure(guest, piix_target)]
