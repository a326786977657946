"""NT 4's loader reads below cylinder 1024: files past it are named, on the disk that they lie on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures import boot, disks, guests
from fixtures.disks import Entry
from fixtures.servers import RAID_GEOMETRY, Server, VolumeExpectation
from p2v.errors import Severity
from p2v.guest.fixers import boot_reach
from p2v.model import SECTOR

LIMIT = 1024 * 255 * 63 * SECTOR  # bytes: disks of more than 8 GiB
LENGTH = 24 << 11  # sectors: 24 MiB


def server(folder: Path, start_sectors: int) -> Server:
    """NT 4 on a FAT16 volume that begins there, on a sparse disk of 9 GB."""
    folder.mkdir()
    volume, disk = folder / "volume", folder / "disk.img"
    disks.make_fat16(volume, LENGTH, RAID_GEOMETRY, "NT4")
    disks.fill_fat(volume, guests.nt4_files())
    disks.make_disk(disk, 9_000_000_000 // SECTOR, 0x4E543434, [Entry(6, start_sectors, LENGTH, active=True)],
                    RAID_GEOMETRY)
    disks.place(volume, disk, start_sectors * SECTOR)
    found = VolumeExpectation(0, start_sectors * SECTOR, LENGTH * SECTOR, "fat16")
    return Server("nt4-far", (disk,), None, "\\WINNT", (4, 0), 3, "x86", "cpqarray", RAID_GEOMETRY, 1, (found,))


@pytest.fixture(scope="module")
def far(tmp_path_factory) -> Server:
    """The volume's second megabyte and the rest lie past the limit."""
    return server(tmp_path_factory.mktemp("far") / "it", (LIMIT - (1 << 20)) // SECTOR)


def test_what_lies_past_the_limit_is_named(far, see, piix_target):
    findings = list(boot_reach.plan(see(far), piix_target))
    assert findings and {finding.severity for finding in findings} == {Severity.WARNING}
    assert "\\WINNT\\system32\\config\\SYSTEM" in " ".join(finding.where.item for finding in findings)
    start = far.volumes[0].offset
    for finding in findings:
        assert start + finding.where.offset >= LIMIT and f"{start + finding.where.offset:#x}" in finding.where.item


def test_a_loader_that_is_known_to_be_nt4s(far, see, piix_target):
    """The stand-in for ntldr with the words that NT 4's prints."""
    with far.disks[0].open("r+b") as file:
        start = far.volumes[0].offset
        data = os.pread(file.fileno(), LENGTH * SECTOR, start)
        at = data.index(boot.LOADED.encode())
        old = data[at:at + 12]
        os.pwrite(file.fileno(), b"OS Loader V4", start + at)
        try:
            severities = {finding.severity for finding in boot_reach.plan(see(far), piix_target)}
        finally:
            os.pwrite(file.fileno(), old, start + at)
    assert severities == {Severity.ERROR}


def test_a_volume_that_only_reaches_past_it(see, piix_target, tmp_path):
    built = server(tmp_path / "it", (LIMIT - (LENGTH - 16) * SECTOR) // SECTOR)
    findings = list(boot_reach.plan(see(built), piix_target))
    assert [(finding.severity, finding.what) for finding in findings] == [
        (Severity.INFO, "NT 4's volume goes past what its loader can read")]


def test_small_disks_and_later_systems_are_not_asked(nt4_guest, xp_guest, piix_target):
    assert list(boot_reach.plan(nt4_guest, piix_target)) == []
    assert list(boot_reach.plan(xp_guest, piix_target)) == []
