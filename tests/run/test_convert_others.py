"""Every other server, the whole way: NT 4 on FAT16, NT 5.2 with a bad sector, two disks after a crash.

One appliance start each; the crashed one needs a second, because its journal is replayed before the plan.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

import p2v
from fixtures import hives
from fixtures.servers import Server, build_two_disk, build_x64
from p2v import changes as changing
from p2v import planning
from p2v.errors import Severity
from p2v.folder import images
from p2v.guest.closure import boot_closure
from p2v.model import FilesystemState, Plan, Range, Recovery, State
from p2v.registry import regf
from p2v.rundir import RunDir
from p2v.target import target_named
from p2v.testing import FaultySource
from tests.run import walk

pytestmark = pytest.mark.appliance
HIVE = "\\system32\\config\\SYSTEM"


def converted(server: Server, folder: Path, **words: object) -> tuple[Plan, p2v.Result]:
    before = [hashlib.sha256(disk.read_bytes()).hexdigest() for disk in server.disks]
    drivers = [server.supplied] if server.supplied else []
    plan = p2v.plan(server.disks, output=folder, drivers=drivers, **words)  # type: ignore[arg-type]
    result = p2v.convert(plan)
    assert [hashlib.sha256(disk.read_bytes()).hexdigest() for disk in server.disks] == before
    return plan, result


def check(plan: Plan, folder: Path) -> None:
    """The source could not boot in the VM, the output can; every change is there; verify is content."""
    with planning.opened([disk.path for disk in plan.disks]) as disks:
        source = planning.view(disks, plan.drivers)
        if source.guest:
            found = boot_closure(source.guest, target_named("kvm"))
            assert any(finding.severity is Severity.ERROR for finding in found)
    with images(plan, RunDir.of_output(folder)) as disks:
        guest = planning.view(disks, plan.drivers).known_guest
        assert {changing.state_of(change, guest) for change in plan.changes} == {State.DONE}
        found = boot_closure(guest, target_named("kvm"))
        assert [finding.what for finding in found if finding.severity is Severity.ERROR] == []
    p2v.verify(folder)


def test_nt4_on_fat16(nt4_fat_server: Server, tmp_path: Path) -> None:
    plan, _ = converted(nt4_fat_server, tmp_path / "nt4")
    check(plan, tmp_path / "nt4")
    assert plan.disks[0].format == "raw", "NT 4 never flushes its IDE disk"
    image = tmp_path / "nt4" / "disk0.raw"
    assert image.stat().st_size == nt4_fat_server.disks[0].stat().st_size
    volume = walk.extract(image, "raw", nt4_fat_server.volumes[0], tmp_path / "volume")
    subprocess.run(["fsck.fat", "-n", volume], check=True, capture_output=True)
    with images(plan, RunDir.of_output(tmp_path / "nt4")) as disks:
        files = planning.view(disks).known_guest.files("disk0p1")
        system, alternate = files.read(f"\\WINNT{HIVE}"), files.read(f"\\WINNT{HIVE}.ALT")
        assert not [f for f in regf.check(system, "SYSTEM") if f.severity is Severity.ERROR]
        assert alternate == regf.alternate(system), "a stale SYSTEM.ALT would bring the old settings back"
        assert b"lh" not in {system[at + 4:at + 6] for at in range(4096, len(system) - 8, 8)
                             if system[at + 4:at + 6] == b"lh" and system[at + 3] == 0xFF}


def test_nt52_with_a_bad_sector_beside_the_edits(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LBA 5 lies in the MBR gap: no edit needs it. It is lost in the image, said, and nothing else is."""
    server = build_x64(tmp_path / "server", corpus)
    honest = planning.open_source
    bad = Range(5 * 512, 512)

    def failing(path: str | Path, format: str | None = None, **words: bool) -> planning.Source:
        source = honest(path, format, **words)
        return FaultySource(source, [bad]) if Path(path) == server.disks[0] else source

    monkeypatch.setattr(planning, "open_source", failing)
    plan, result = converted(server, tmp_path / "x64", format="qcow2-v2")
    assert [(extent.offset, extent.length) for extent in result.reports["disk0"].bad] == [(bad.offset, bad.length)]
    assert "unreadable" in result.findings[0].what and "ddrescue" in result.findings[0].next
    monkeypatch.undo()
    check(plan, tmp_path / "x64")
    said = subprocess.run(["qemu-img", "info", tmp_path / "x64" / "disk0.qcow2"], check=True, capture_output=True,
                          text=True).stdout
    assert "compat: 0.10" in said


def test_two_disks_after_a_crash(tmp_path: Path) -> None:
    """The journal is not replayed and the hive is half written; the data disk comes along untouched."""
    server = build_two_disk(tmp_path / "server", unclean_volume=True, system_hive=hives.half_written)
    plan, _ = converted(server, tmp_path / "two")
    assert [(change.what, change.hive) for change in plan.changes if isinstance(change, Recovery)] == [
        ("journal", ""), ("hive-log", "SYSTEM")]
    states = {volume.name: volume.state for volume in plan.volumes}
    assert states == {"disk0p1": FilesystemState.UNCLEAN, "disk1p1": FilesystemState.CLEAN}
    system = next(volume for volume in plan.volumes if volume.name == "disk0p1")
    assert system.used == system.members[0].length, "nothing is skipped on an unclean volume"
    check(plan, tmp_path / "two")
    with planning.opened(server.disks) as sources, images(plan, RunDir.of_output(tmp_path / "two")) as out:
        before, after = planning.view(sources), planning.view(out)
        assert after.filesystems["disk0p1"].state is FilesystemState.CLEAN
        assert after.guest is not None and not after.guest.recovered("SYSTEM").replayed
        data = walk.files_of(before, "disk1p1")
        assert data and walk.files_of(after, "disk1p1") == data
    undone = p2v.plan([tmp_path / "two" / disk.image for disk in plan.disks], output=tmp_path / "again")
    assert undone.changes == ()
