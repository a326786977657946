"""Each server to each target, through the appliance: convert, verify, nothing to do, undo. Half an hour in all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import p2v
from p2v.model import Recovery
from p2v.target import TARGETS

SERVERS = ("xp_server", "x64_server", "nt4_server", "nt4_fat_server", "proliant_server", "poweredge_server",
           "xseries_server", "fat32_server")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.appliance
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SERVERS)
def test_there_and_back(name: str, target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    before, out = [digest(disk) for disk in server.disks], tmp_path / "vm"
    drivers = [str(server.supplied)] if server.supplied else []
    plan = p2v.plan(server.disks, target=target, output=out, drivers=drivers)
    result = p2v.convert(plan)
    assert result.changes == len(plan.changes) > 0
    p2v.verify(out, source=True)
    assert p2v.convert(p2v.load_plan(out)).done_before
    assert p2v.undo(out).changes
    images = [out / disk.image for disk in plan.disks]
    if all(image.suffix in (".raw", ".qcow2") for image in images):  # planned afresh, it is as it was
        again = p2v.plan(images, target=target, output=tmp_path / "again", drivers=drivers)
        assert {change.place for change in again.changes} == {
            change.place for change in plan.changes if not isinstance(change, Recovery)}
    assert [digest(disk) for disk in server.disks] == before
