"""Services, filters, keyboards, screens, instances: what is spoilt in a guest, and what the fixers make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import guests, hives, trees
from fixtures.pe import pe_file
from p2v.errors import Finding, Severity
from p2v.guest import images, reach
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS, class_filters, disk_checks, hive_files, input_devices, instances, services, video
from p2v.model import DWord, ExpandText, MultiText, Text, Value, ValueChange
from p2v.registry.regf import lh_to_lf
from p2v.testing import DirFiles, DirGuest, check_fixer

SET = "ControlSet001\\"
SERVICES, ENUM, CLASSES = SET + "Services\\", SET + "Enum\\", SET + "Control\\Class\\"
DISKS = CLASSES + "{4D36E967-E325-11CE-BFC1-08002BE10318}"
KEYBOARDS = CLASSES + "{4D36E96B-E325-11CE-BFC1-08002BE10318}"
PIIX = ENUM + "PCI\\VEN_8086&DEV_7111&SUBSYS_00000000&REV_01\\3&267a616a&0&39"


class VMwareTarget(guests.PiixTarget):
    NAME = "vmware"


def edited(tree: Path, edit, **rest) -> DirGuest:
    """The guest after edit(hive) of its SYSTEM."""
    path = next(tree.glob("WIN*")) / "system32" / "config" / "system"
    hive = hives.Hive(path.read_bytes())
    edit(hive)
    data = hive.finish()
    path.write_bytes(lh_to_lf(data) if tree.joinpath("WINNT").exists() else data)  # hivex writes lh for everybody
    return DirGuest({"disk0p1": tree}, **rest)


def put(tree: Path, name: str, company: str, machine: int = trees.XP.machine) -> None:
    """A driver of somebody's in system32\\drivers."""
    stand_in = replace(trees.XP.stand_in(name), company=company, machine=machine)
    (next(tree.glob("WIN*")) / "system32" / "drivers" / name).write_bytes(pe_file(stand_in))


def service(hive, name: str, start: int, **rest: Value) -> None:
    hive.set(SERVICES + name, **{"Type": DWord(1), "ErrorControl": DWord(1), "Start": DWord(start), **rest})


def values(wishes) -> dict[str, object]:
    """What changes in the first control set."""
    return {f"{wish.key}:{wish.value}": wish.after for wish in wishes
            if isinstance(wish, ValueChange) and wish.key.startswith(SET)}


def said(wishes) -> list[str]:
    return [wish.what for wish in wishes if isinstance(wish, Finding)]


# -- services


def test_services_that_are_there_and_on(xp_tree, piix_target):
    def edit(hive):
        service(hive, "AmdK8", 3)
        service(hive, "P3", 4)
        hive.set(SERVICES + "gv3", DisplayName=Text("no driver here"))

    found = values(check_fixer(services, edited(xp_tree, edit), piix_target))
    assert found == {SERVICES + name + ":Start": DWord(4) for name in ("AmdK8", "intelppm", "agp440")}


@pytest.mark.parametrize(("company", "off"), [("Compaq Computer Corporation", True), ("Somebody", False), ("", False)])
def test_a_name_from_memory_needs_the_maker_in_the_file(xp_tree, piix_target, company, off):
    put(xp_tree, "cpqasm.sys", company)
    wishes = list(services.plan(edited(xp_tree, lambda hive: service(hive, "cpqasm", 2)), piix_target))
    assert (SERVICES + "cpqasm:Start" in values(wishes)) == off
    heard = "cpqasm: may be Compaq's and HP's automatic server recovery, and is left on"
    assert said(wishes) == ([] if off else [heard])


def test_a_name_from_memory_without_its_file(xp_tree, piix_target):
    wishes = list(services.plan(edited(xp_tree, lambda hive: service(hive, "ibmspw", 2)), piix_target))
    assert said(wishes) == ["ibmspw: may be IBM's automatic server restart, and is left on"]
    assert "ibmspw.sys is not there" in next(wish for wish in wishes if isinstance(wish, Finding)).why


def test_the_tools_of_another_hypervisor(xp_tree, piix_target):
    def edit(hive):
        service(hive, "VMTools", 2, Type=DWord(0x10))
        service(hive, "VBoxGuest", 0)

    guest = edited(xp_tree, edit)
    both = {SERVICES + "VMTools:Start", SERVICES + "VBoxGuest:Start"}
    assert both <= set(values(services.plan(guest, piix_target)))
    assert both & set(values(services.plan(guest, VMwareTarget()))) == {SERVICES + "VBoxGuest:Start"}


def test_hardware_that_a_vm_lacks_is_told_not_touched(xp_tree, piix_target):
    def edit(hive):
        service(hive, "Hardlock", 2)
        service(hive, "HASPNT", 1)
        service(hive, "Moxa1", 3)  # not started by itself

    wishes = list(services.plan(edited(xp_tree, edit), piix_target))
    told = [wish for wish in wishes if isinstance(wish, Finding)]
    assert said(told) == ["Hardlock, HASPNT: copy protection dongle"] and told[0].severity is Severity.WARNING
    assert set(values(wishes)) == {SERVICES + "intelppm:Start", SERVICES + "agp440:Start"}


@pytest.mark.parametrize(("image", "path"), [
    (None, "\\WINDOWS\\system32\\drivers\\x.sys"), ("System32\\DRIVERS\\y.sys", "\\WINDOWS\\System32\\DRIVERS\\y.sys"),
    ("\\SystemRoot\\a.sys", "\\WINDOWS\\a.sys"), ("%SystemRoot%\\a b.exe -k x", "\\WINDOWS\\a b.exe"),
    ('"C:\\Program Files\\a b\\c.exe" /x', "\\Program Files\\a b\\c.exe"), ("\\??\\C:\\d.sys", "\\d.sys"),
    ("C:\\PROGRA~1\\e.exe /f", "\\PROGRA~1\\e.exe"), ("\\Device\\x.sys", None), ("%Other%\\x.exe", None)])
def test_image_paths(xp_tree, image, path):
    rest = {} if image is None else {"ImagePath": ExpandText(image)}
    guest = edited(xp_tree, lambda hive: service(hive, "x", 3, **rest))
    assert images.service_file(guest, "ControlSet001", "x") == path


@pytest.mark.parametrize("image", [None, "System32\\drivers\\disk.sys", "\\SystemRoot\\System32\\drivers\\disk.sys"])
def test_the_loader_reads_a_boot_driver_by_each_form_of_its_path(nt4_tree, image):
    def edit(hive):
        service(hive, "Disk", 0, **({"ImagePath": ExpandText(image)} if image else {}))

    wanted = reach._wanted(edited(nt4_tree, edit))["disk0p1"]
    assert "\\winnt\\system32\\drivers\\disk.sys" in [path.lower() for path in wanted]


# -- class filters


def test_dead_filters_leave_and_the_others_keep_their_order(xp_tree, piix_target):
    def edit(hive):
        service(hive, "snap", 0)
        service(hive, "off", 4)
        service(hive, "nofile", 0)
        service(hive, "wrong", 0)
        service(hive, "prl_strg", 0)
        hive.set(DISKS, UpperFilters=MultiText("PartMgr", "gone", "snap", "off", "prl_strg"),
                 LowerFilters=MultiText("nofile", "wrong"))
        hive.set(SET + "Control\\Class\\{6BDD1FC5-810F-11D0-BEC7-08002BE2092F}", UpperFilters=MultiText("gone"))

    put(xp_tree, "snap.sys", "Acronis")
    put(xp_tree, "off.sys", "x")
    put(xp_tree, "prl_strg.sys", "Parallels")
    put(xp_tree, "wrong.sys", "x", trees.XP_X64.machine)
    wishes = check_fixer(class_filters, edited(xp_tree, edit), piix_target)
    assert values(wishes) == {f"{DISKS}:UpperFilters": MultiText("PartMgr", "snap"), f"{DISKS}:LowerFilters": None}
    upper, lower = (wish.why for wish in wishes if wish.key == DISKS)
    assert "gone, there is no such service; off, the service is off; prl_strg, the service is not for this VM" in upper
    assert "nofile.sys is not there" in lower and "wrong, its file is for x64" in lower


@pytest.mark.parametrize(("image", "stays"), [
    ("\\Device\\HarddiskVolume2\\x.sys", True), ("%Vendor%\\x.sys", True), ("\\??\\D:\\Tools\\x.sys", True),
    ("\\??\\C:\\Tools\\x.sys", False), ("system32\\x.sys", False)])
def test_a_filter_that_may_lie_elsewhere_is_not_called_dead(xp_tree, piix_target, image, stays):
    def edit(hive):
        service(hive, "x", 1, ImagePath=ExpandText(image))
        hive.set(DISKS, UpperFilters=MultiText("PartMgr", "x"))

    guest = edited(xp_tree, edit)
    wanted = {} if stays else {f"{DISKS}:UpperFilters": MultiText("PartMgr")}
    assert values(class_filters.plan(guest, piix_target)) == wanted
    (found,) = [one for one in boot_closure(guest, piix_target) if "class filter x" in one.what]
    assert found.severity is (Severity.WARNING if stays else Severity.ERROR), "what is not known refuses nothing"


def test_the_class_drivers_stay_in_their_lists(xp_tree, piix_target):
    def edit(hive):
        hive.set(SERVICES + "kbdclass", Start=DWord(4))
        hive.set(SERVICES + "PartMgr", Start=DWord(4))
        hive.set(KEYBOARDS, UpperFilters=MultiText("SynTP", "kbdclass"))

    assert values(class_filters.plan(edited(xp_tree, edit), piix_target)) == {
        f"{KEYBOARDS}:UpperFilters": MultiText("kbdclass")}


# -- keyboard, mouse, screen


def test_ps2_keyboard_and_mouse(xp_tree, piix_target):
    database = SET + "Control\\CriticalDeviceDatabase\\"

    def edit(hive):
        hive.set(SERVICES + "i8042prt", Start=DWord(4))
        hive.set(SERVICES + "mouclass", Start=DWord(3))  # Plug and Play starts it
        hive.delete(database + "*pnp0303")
        hive.set(database + "*pnp0f13", Service=Text("theirs"))

    wishes = check_fixer(input_devices, edited(xp_tree, edit), piix_target)
    assert said(wishes) == []
    assert values(wishes) == {
        SERVICES + "i8042prt:Start": DWord(1), database + "*pnp0303:Service": Text("i8042prt"),
        database + "*pnp0303:ClassGUID": Text("{4D36E96B-E325-11CE-BFC1-08002BE10318}")}


def test_nt4_starts_its_keyboard_itself(nt4_tree, piix_target):
    guest = edited(nt4_tree, lambda hive: hive.set(SERVICES + "mouclass", Start=DWord(3)))
    assert values(check_fixer(input_devices, guest, piix_target)) == {SERVICES + "Mouclass:Start": DWord(1)}


def test_keyboards_that_are_missing_are_said(xp_tree, piix_target):
    (xp_tree / "WINDOWS/system32/drivers/kbdclass.sys").unlink()
    guest = edited(xp_tree, lambda hive: hive.delete(SERVICES + "i8042prt"))
    wishes = list(input_devices.plan(guest, piix_target))
    assert said(wishes) == ["the service i8042prt is missing", "the driver kbdclass cannot load"]
    assert not values(wishes)


def test_nt4_falls_back_to_vga(nt4_tree, piix_target):
    def edit(hive):
        hive.set(SERVICES + "ati", Start=DWord(1))
        hive.set(SERVICES + "VgaStart", Start=DWord(4))
        service(hive, "vmx_svga", 1, Group=Text("Video"))

    guest = edited(nt4_tree, edit)
    start = {SERVICES + "ati:Start": DWord(4), SERVICES + "VgaStart:Start": DWord(1)}
    assert values(check_fixer(video, guest, piix_target)) == {**start, SERVICES + "vmx_svga:Start": DWord(4)}
    assert values(video.plan(guest, VMwareTarget())) == start


def test_nt4_without_vga_keeps_its_card(nt4_tree, piix_target):
    (nt4_tree / "WINNT/system32/drivers/vga.sys").unlink()
    wishes = list(video.plan(edited(nt4_tree, lambda hive: hive.set(SERVICES + "ati", Start=DWord(1))), piix_target))
    assert not values(wishes) and said(wishes) == ["plain VGA is not whole"]


def test_plug_and_play_starts_no_card_that_is_not_there(xp_tree, piix_target):
    guest = edited(xp_tree, lambda hive: (hive.set(SERVICES + "ialm", Start=DWord(1)),
                                          hive.set(SERVICES + "VgaSave", Start=DWord(4))))
    assert values(check_fixer(video, guest, piix_target)) == {SERVICES + "VgaSave:Start": DWord(1)}


# -- instances


def all_fixed(guest: DirGuest, target, but=None) -> DirGuest:
    fixers = [fixer for fixer in FIXERS if fixer is not but]
    guest.apply([wish for fixer in fixers for wish in fixer.plan(guest, target) if not isinstance(wish, Finding)])
    return guest.again()


def test_a_controller_that_was_switched_off(xp_tree, piix_target):
    channel = ENUM + "PCIIDE\\IDEChannel\\4&1f2b0e6c&0&0"
    profile = SET + "Hardware Profiles\\0001\\System\\CurrentControlSet\\Enum\\"

    def edit(hive):
        hive.set(PIIX, ClassGUID=Text("{4D36E96A-E325-11CE-BFC1-08002BE10318}"), Service=Text("intelide"),
                 ConfigFlags=DWord(0x21))
        hive.set(channel, Service=Text("atapi"), ConfigFlags=DWord(1))
        hive.set(profile + PIIX.removeprefix(ENUM), CSConfigFlags=DWord(1))
        hive.set(ENUM + "PCI\\VEN_1234&DEV_5678\\0", ConfigFlags=DWord(1))  # not what the VM starts from

    guest = edited(xp_tree, edit)
    left = boot_closure(all_fixed(guest, piix_target, but=instances), piix_target)
    assert {finding.where.item for finding in left} == {
        f"SYSTEM\\{key}" for key in (PIIX, channel, profile + PIIX.removeprefix(ENUM))}
    assert values(check_fixer(instances, guest.again(), piix_target)) == {
        f"{PIIX}:ConfigFlags": DWord(0x20), f"{channel}:ConfigFlags": DWord(0),
        f"{profile}{PIIX.removeprefix(ENUM)}:CSConfigFlags": DWord(0)}
    assert boot_closure(all_fixed(guest.again(), piix_target), piix_target) == ()


def test_a_controller_that_had_another_driver(xp_tree, piix_target):
    """The kernel trusts the instance; the closure says so before, and is content after."""
    guest = edited(xp_tree, lambda hive: hive.set(PIIX, ClassGUID=Text("{x}"), Service=Text("IdeBusDr")))
    assert any("was installed here before" in finding.what for finding in boot_closure(guest, piix_target))
    assert values(check_fixer(instances, guest, piix_target)) == {
        f"{PIIX}:Service": Text("intelide"), f"{PIIX}:ClassGUID": Text("{4D36E96A-E325-11CE-BFC1-08002BE10318}")}
    assert boot_closure(all_fixed(guest, piix_target), piix_target) == ()


def test_a_profile_of_nt4_that_turns_the_driver_off(nt4_tree, atapi_folder, piix_target):
    key = SET + "Hardware Profiles\\0001\\System\\CurrentControlSet\\Enum\\ROOT\\LEGACY_ATAPI\\0000"
    guest = edited(nt4_tree, lambda hive: hive.set(key, CSConfigFlags=DWord(1)), drivers=[atapi_folder])
    assert values(check_fixer(instances, guest, piix_target)) == {f"{key}:CSConfigFlags": DWord(0)}
    assert boot_closure(all_fixed(guest, piix_target), piix_target) == ()


# -- the hive itself


def hive_said(guest, target) -> list[str]:
    return [what for what in said(hive_files.plan(guest, target)) if not what.startswith("SYSTEM.ALT")]


@pytest.mark.parametrize(("key", "numbers", "what"), [
    ("Select", {"LastKnownGood": 7}, "Last Known Good leads to no control set"),
    ("Select", {"Failed": 1}, "the last start with this control set failed"),
    ("Select", {"Current": 2}, "the server last ran with another control set than the one that starts next"),
    ("CurrentControlSet", {"x": 1}, "the hive has a stored key CurrentControlSet"),
    ("Setup", {"SetupType": 2}, "Windows' setup is not over")])
def test_what_a_hive_must_not_say(xp_tree, piix_target, key, numbers, what):
    assert hive_said(DirGuest({"disk0p1": xp_tree}), piix_target) == []
    guest = edited(xp_tree, lambda hive: hive.set(key, **{name: DWord(number) for name, number in numbers.items()}))
    assert hive_said(guest, piix_target) == [what]


@pytest.mark.parametrize(("tree", "size", "heard"), [
    ("nt4_tree", 13 << 20, False), ("nt4_tree", 17 << 20, True), ("xp_tree", 90 << 20, False)])
def test_a_hive_too_large_for_the_loader(tree, size, heard, request, monkeypatch, piix_target):
    guest, plain = DirGuest({"disk0p1": request.getfixturevalue(tree)}), DirFiles.stat

    def stat(files, path):
        found = plain(files, path)
        return replace(found, size=size) if found and path.lower().endswith("config\\system") else found

    monkeypatch.setattr(DirFiles, "stat", stat)
    assert any("as large as the loader" in what for what in hive_said(guest, piix_target)) == heard


@pytest.mark.parametrize(("lines", "what"), [
    (["autocheck autochk *"], []),
    (["autocheck autochk /r \\??\\C:"], ["a check of the disks is scheduled for the next start"]),
    (["autocheck  autochk *", "lsdelete"], []), ([], ["Windows does not check its disks when it starts"])])
def test_checks_at_the_next_start(xp_tree, piix_target, lines, what):
    key = SET + "Control\\Session Manager"
    guest = edited(xp_tree, lambda hive: hive.set(key, BootExecute=MultiText(*lines)))
    wishes = list(disk_checks.plan(guest, piix_target))
    assert said(wishes) == what and len(wishes) == len(what)
