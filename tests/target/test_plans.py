"""Whole servers planned for every target: what the VM needs is said, and the plan can be kept and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import p2v
from fixtures.servers import Server
from p2v import adaptation, folder, planfile
from p2v.errors import Finding, GuestError, PlanError, Severity, Where
from p2v.model import Content, FileChange
from p2v.rendering import render_inspection
from p2v.target import TARGETS

FORMATS = {  # XP, NT 4
    "kvm": ("qcow2", "raw"), "proxmox": ("qcow2", "raw"), "vmware": ("vmdk-esx", "vmdk-esx"),
    "hyperv": ("vhd", "vhd-fixed"), "virtualbox": ("vdi", "vdi-fixed"), "xen": ("vhd", "raw"),
}


def plan_of(server: Server, target: str, folder: Path) -> p2v.Plan:
    return p2v.plan(server.disks, target=target, output=folder / "web01",
                    drivers=[server.supplied] if server.supplied else [])


@pytest.mark.parametrize("target", TARGETS)
def test_xp_is_planned_for_it(target: str, xp_server: Server, tmp_path: Path) -> None:
    check(plan_of(xp_server, target, tmp_path), FORMATS[target][0])


@pytest.mark.parametrize("target", TARGETS)
def test_nt4_is_planned_for_it(target: str, nt4_fat_server: Server, tmp_path: Path) -> None:
    plan = plan_of(nt4_fat_server, target, tmp_path)
    check(plan, FORMATS[target][1])
    assert plan.machine.cpus == 1


class Seen(Exception):
    """Stops an adapt when its plan was shown."""


def test_adapt_plans_for_the_target_that_is_named(xp_server: Server, tmp_path: Path) -> None:
    shown: list[p2v.Plan] = []

    def show(plan: p2v.Plan) -> None:
        shown.append(plan)
        raise Seen

    with pytest.raises(Seen):
        p2v.adapt(xp_server.disks, target="hyperv", run_folder=tmp_path / "run", on_plan=show)
    plan, = shown
    assert plan.target == "hyperv" and plan.machine.name == "disk0"
    assert [disk.file for disk in plan.machine.disks] == [str(xp_server.disks[0])]
    assert [one.what for one in plan.findings if "hyperv" in one.what] == [
        "p2v does not write a VM definition for hyperv yet", "hyperv does not read images of format raw"]


def test_an_image_with_nothing_to_change_is_told_how_its_vm_must_be_all_the_same(
    xp_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = replace(p2v.plan(xp_server.disks, target="hyperv", output=tmp_path / "web01"), changes=())
    monkeypatch.setattr(adaptation, "_plan", lambda *_, **__: done)
    shown: list[p2v.Plan] = []
    _, result = p2v.adapt(xp_server.disks, target="hyperv", run_folder=tmp_path / "run", on_plan=shown.append)
    assert not result.changes and shown == [done]
    stop = Finding("it cannot start", Where(item="here"), "why", "mend it", Severity.ERROR)
    monkeypatch.setattr(adaptation, "_plan", lambda *_, **__: replace(done, findings=(stop,)))
    with pytest.raises(PlanError, match="it cannot start"):
        p2v.adapt(xp_server.disks, target="hyperv", run_folder=tmp_path / "run")


def test_all_that_is_missing_is_said_at_once(proliant_server: Server, tmp_path: Path) -> None:
    with pytest.raises(GuestError) as refused:
        p2v.plan(proliant_server.disks, output=tmp_path / "web01")
    assert "take atapi.sys, x86, version 4.0.1381.133" in refused.value.next
    assert "take hal.dll and ntoskrnl.exe, ntoskrnl.exe at version 4.0.1381.335" in refused.value.next


def test_a_driver_that_nobody_made_is_not_asked_for(nt4_fat_server: Server) -> None:
    lines = render_inspection(p2v.inspect(nt4_fat_server.disks)).splitlines()
    needed, = (line for line in lines if line.startswith("  needs drivers"))
    nobody, = (line for line in lines if line.startswith("  nobody made drivers for: "))
    assert "Intel PIIX IDE" in needed and "virtio" not in needed and "virtio block device" in nobody


def test_a_format_that_the_target_does_not_read_is_said(xp_server: Server, tmp_path: Path) -> None:
    plan = p2v.plan(xp_server.disks, target="vmware", format="qcow2", output=tmp_path / "web01")
    said, = (one for one in plan.findings if "does not read" in one.what)
    assert "qcow2" in said.what and "disk0.qcow2" in str(said.where) and "--format vmdk-esx" in said.next


def test_the_command_names_every_target() -> None:
    from click.testing import CliRunner

    from p2v.cli import main

    said = CliRunner().invoke(main, ["plan", "--help"]).output
    assert all(name in said for name in TARGETS)


def check(plan: p2v.Plan, format: str) -> None:
    assert [disk.format for disk in plan.disks] == [format]
    assert plan.machine.controller == "piix-ide"
    assert any(isinstance(change, FileChange) and change.path.endswith("atapi.sys") for change in plan.changes)
    by_hand = [finding for finding in plan.findings if "definition" in finding.what]
    assert len(by_hand) == (0 if folder.definitions(plan) else 1)
    for finding in by_hand:
        assert "disk0 on IDE 0:0" in finding.next
        assert finding.next.split("\n- ")[1] in p2v.render(plan).replace("\n           ", "\n")
    folder.refuse_errors(plan)
    contents = {one.digest: one.data for change in plan.changes if isinstance(change, FileChange)
                for one in (change.before, change.after) if isinstance(one, Content)}
    assert planfile.from_json(planfile.to_json(plan), contents.__getitem__) == plan
