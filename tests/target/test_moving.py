"""Guests that are VMs already move to another target: real hives of VMware and VirtualBox, and then once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures import guests, hives, trees
from p2v import changes as changing
from p2v.errors import Finding, Severity
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import FIXERS
from p2v.model import Change, FileChange, KeyChange, ValueChange
from p2v.planning import boot_controller
from p2v.target import TARGETS
from p2v.testing import DirGuest

XP = hives.Edition("Microsoft Windows XP", "5.1", "2600", "Service Pack 3", "C:\\WINDOWS")
X64 = hives.Edition("Microsoft Windows XP", "5.2", "3790", "Service Pack 2", "C:\\WINDOWS")


@dataclass(frozen=True)
class VM:
    """A VM's SYSTEM hive as it was, and what its tree is made of; ide: the IDE files lie in place."""

    hive: str
    system: trees.System
    edition: hives.Edition | None
    ide: Sequence[str]
    arc: str


VMS = {
    "nt4 on VMware BusLogic": VM("nt4-server-ee-sp3-vmware/SYSTEM", trees.NT4, None, ("atapi.sys",), "scsi"),
    "xp on VMware BusLogic": VM("xp-sp3-vmware-buslogic-m57jean/SYSTEM", trees.XP, XP,
                                ("atapi.sys", "intelide.sys", "pciidex.sys"), "multi"),  # of its CD drive
    "x64 on VirtualBox": VM("xp-x64-sp2-nt52-vbox/SYSTEM", trees.XP_X64, X64, trees.IDE_FILES, "multi"),
}


def guest_of(vm: VM, corpus: Path, folder: Path, drivers: Sequence[str] = ()) -> DirGuest:
    system = hives.from_corpus(corpus, vm.hive)
    software = (hives.software(vm.edition) if vm.edition
                else hives.from_corpus(corpus, vm.hive.replace("SYSTEM", "SOFTWARE")))
    parts = trees.Hives(system, hives.boot_files(system), software, hives.stored("minimal"))
    root = vm.system.root
    ini = trees.boot_ini(f"{vm.arc}(0)disk(0)rdisk(0)partition(1)", root, "Windows", "")
    files = [*trees.boot_files_of_root(ini), *trees.windows_tree(vm.system, parts)]
    files += [trees.TreeFile(f"\\{root}\\system32\\drivers\\{name}", vm.system.file(name)) for name in vm.ide]
    return DirGuest({"disk0p1": guests.unpack(files, folder)}, drivers=drivers)


def planned(guest: DirGuest, target: str) -> tuple[list[Change], list[Finding]]:
    wishes = [wish for fixer in FIXERS for wish in fixer.plan(guest, TARGETS[target])]
    return (changing.merge(wish for wish in wishes if not isinstance(wish, Finding)),
            [wish for wish in wishes if isinstance(wish, Finding)])


def services_of(changes: Sequence[Change]) -> set[str]:
    return {change.key.split("\\Services\\")[1].split("\\")[0].lower() for change in changes
            if isinstance(change, (KeyChange, ValueChange)) and "\\Services\\" in change.key}


@pytest.mark.parametrize("name", VMS)
def test_a_vm_moves_from_target_to_target_and_a_second_plan_is_empty(name: str, corpus: Path, tmp_path: Path) -> None:
    guest = guest_of(VMS[name], corpus, tmp_path)
    for target in ("kvm", "vmware", "hyperv"):  # most controllers, another order, fewest
        changes, findings = planned(guest, target)
        stops = [one for one in findings if one.severity is Severity.ERROR and one.fixer != "boot-sectors"]
        assert not stops, "apart from the made-up disk, which has no boot code"
        guest.apply(changes)
        guest = guest.again()
        assert boot_closure(guest, TARGETS[target]) == ()
        assert planned(guest, target)[0] == []


def test_nt4_leaves_the_buslogic_of_its_vm(corpus: Path, tmp_path: Path) -> None:
    """NT 4 would start every boot driver; atapi was there already, for the CD drive."""
    guest = guest_of(VMS["nt4 on VMware BusLogic"], corpus, tmp_path)
    changes, _ = planned(guest, "kvm")
    starts = {(change.key.split("\\")[-1].lower(), change.after.number) for change in changes
              if isinstance(change, ValueChange) and change.value == "Start" and change.fixer == "windows-boot-storage"}
    assert starts == {("buslogic", 4)}
    assert "atapi" not in services_of(changes)


def test_xp_keeps_the_vmscsi_of_its_vm_and_gets_ide(corpus: Path, tmp_path: Path) -> None:
    guest = guest_of(VMS["xp on VMware BusLogic"], corpus, tmp_path)
    changes, _ = planned(guest, "hyperv")
    storage = [change for change in changes if change.fixer == "windows-boot-storage"]
    assert services_of(storage) == {"pciide"}, "atapi and intelide ran the CD drive"
    rows = {change.key.rpartition("\\")[2] for change in storage if isinstance(change, KeyChange)}
    assert "pci#ven_8086&dev_7010" in rows and "pci#ven_8086&dev_7111" not in rows
    placed = {change.path.rpartition("\\")[2] for change in storage if isinstance(change, FileChange)}
    assert placed == {"pciide.sys"}


def test_another_target_after_an_adapt_plans_only_the_difference(corpus: Path, tmp_path: Path) -> None:
    """From VirtualBox to Hyper-V, then to VMware with LSI Logic's driver at hand, then back."""
    vm = VMS["x64 on VirtualBox"]
    given = tmp_path / "given"
    given.mkdir()
    (given / "symmpi.sys").write_bytes(vm.system.file("symmpi.sys"))
    guest = guest_of(vm, corpus, tmp_path / "guest", [str(given)])
    guest.apply(planned(guest, "hyperv")[0])
    changes, findings = planned(guest.again(), "vmware")
    assert services_of(changes) == {"symmpi"}
    assert {change.fixer for change in changes} == {"windows-boot-storage"}
    assert [change.path for change in changes if isinstance(change, FileChange)] == [
        "\\WINDOWS\\system32\\drivers\\symmpi.sys"]
    assert not [one for one in findings if "disks must be on" in one.what]
    guest.again().apply(changes)
    assert boot_closure(guest.again(), TARGETS["vmware"]) == ()
    for target in ("hyperv", "vmware"):
        assert planned(guest.again(), target)[0] == [], "what is there besides lies idle elsewhere"


def test_lsi_logic_without_its_driver_is_said_and_ide_is_taken(corpus: Path, tmp_path: Path) -> None:
    guest = guest_of(VMS["x64 on VirtualBox"], corpus, tmp_path)
    said = [one for one in planned(guest, "vmware")[1] if "disks must be on Intel PIIX IDE" in one.what]
    assert len(said) == 1 and "LSI Logic" in said[0].why
    assert boot_controller(guest, TARGETS["vmware"]) == "piix-ide"
    given = tmp_path / "given"
    given.mkdir()
    (given / "symmpi.sys").write_bytes(VMS["x64 on VirtualBox"].system.file("symmpi.sys"))
    guest = guest_of(VMS["x64 on VirtualBox"], corpus, tmp_path / "again", [str(given)])
    assert boot_controller(guest, TARGETS["vmware"]) == "lsi-53c1030"


def test_nt4_is_content_with_the_buslogic_it_has_where_atapi_is_nowhere(corpus: Path, tmp_path: Path) -> None:
    vm = replace(VMS["nt4 on VMware BusLogic"], ide=())
    guest = guest_of(vm, corpus, tmp_path)
    changes, findings = planned(guest, "vmware")
    assert any("disks must be on BusLogic" in one.what for one in findings)
    assert "buslogic" not in services_of(changes)
    assert boot_controller(guest, TARGETS["vmware"]) == "buslogic"
