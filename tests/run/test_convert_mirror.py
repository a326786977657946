"""Servers on mirrors become VMs: both legs failing in places, or the shadow alone; and their boot code runs.

Two appliance starts. Every other built server is booted from its plain disk with the boot sectors' changes in it,
which needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

import p2v
from fixtures import boot, ft, mirrors
from fixtures.failing import failing
from fixtures.ldmserver import LdmServer
from fixtures.qemu import boot_text
from p2v import arranging, planning
from p2v.filesystem import examine, open_files
from p2v.guest.fixers import boot_sectors
from p2v.model import BytesChange, Source, read
from p2v.source.device import open_disk
from p2v.source.nbd import open_image
from p2v.target import kvm
from p2v.volume import find_volumes


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.appliance
def test_a_mirror_whose_legs_both_fail_becomes_a_perfect_vm(tmp_path: Path, corpus: Path, needs) -> None:
    needs("qemu-system-i386")
    server = mirrors.build_mirror_2003(tmp_path / "server", corpus, bad_sectors=(0, 1), data=True,
                                       filler_before=True, real_boot_code=True)
    before, out = [digest(disk) for disk in server.disks], tmp_path / "web01"
    with failing(server.bad):
        result = p2v.convert(p2v.plan(server.disks[::-1], output=out))
    assert not any(report.bad for report in result.reports.values())
    assert any("come from another leg" in finding.what for finding in result.findings)
    assert [digest(disk) for disk in server.disks] == before
    p2v.verify(out)
    assert p2v.convert(p2v.load_plan(out)).done_before
    image = open_image(str(out / "disk0.qcow2"), "qcow2")
    try:
        for assembly, volume in zip(server.assemblies, find_volumes({"disk0": image}).volumes, strict=True):
            assert volume.partition is not None and volume.partition.type == 7
            files = open_files(volume.source, examine(volume.source))
            for path, wanted in assembly.files[0].items():
                assert hashlib.sha256(files.read(path)).hexdigest() == wanted, path
    finally:
        image.close()
    assert boot.LOADED in boot_text(out / "disk0.qcow2", "qcow2")


@pytest.mark.appliance
def test_the_shadow_alone_becomes_a_vm(tmp_path: Path, corpus: Path, needs) -> None:
    """The disk with boot code and active partition is gone; the shadow lies elsewhere and has neither."""
    needs("qemu-system-i386")
    mirror = ft.build_mirror(tmp_path / "server", corpus, ntfs=True, other_place=True, missing=0, real_boot_code=True)
    out = tmp_path / "nt01"
    plan = p2v.plan(mirror.server.disks, output=out, drivers=[str(mirror.server.supplied)])
    assert any("no boot code" in patch.why for patch in plan.disks[0].patches)
    p2v.convert(plan)
    p2v.verify(out)
    assert boot.LOADED in boot_text(out / plan.disks[0].image, plan.disks[0].format)


def booted(disks: Sequence[Path], image: Path) -> str:
    """What the plain disk of these says when it starts, with the boot sectors' changes in it and no other."""
    with ExitStack() as stack:
        given: dict[str, Source] = {}
        for number, path in enumerate(disks):
            given[f"disk{number}"] = source = open_disk(str(path))
            stack.callback(source.close)
        made = arranging.arrange(given)
        seen = planning.view(made.disks, (), given, made.collapsed)
        first = next(iter(made.disks.values()))
        image.write_bytes(read(first, 0, first.size))
        with open(image, "r+b") as file:
            for change in boot_sectors.plan(seen.known_guest, kvm):
                if isinstance(change, BytesChange) and change.disk == "disk0":
                    file.seek(change.offset)
                    file.write(change.after)
    return boot_text(image)


SOME = ("ldm-mirror-bare", "ldm-mirror-renumbered", "ldm-2000-retained")
MORE = sorted(name for name in mirrors.BUILDERS if name.startswith("ldm-mirror") and "split" not in name)
MORE = [name for name in MORE if name not in SOME]


@pytest.mark.qemu
@pytest.mark.parametrize("name", [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_real_boot_code_starts_every_plain_disk(name: str, tmp_path: Path, corpus: Path, needs) -> None:
    needs("qemu-system-i386")
    build = mirrors.BUILDERS[name]
    server: LdmServer = build(tmp_path / "server", corpus, real_boot_code=True)
    disks = server.disks
    if name == "ldm-mirror-bare":  # its shadow alone
        disks = server.disks[1:]
    assert boot.LOADED in booted(disks, tmp_path / "image")
