"""Real boot code reaches the NTLDR stand-in on disks whose boot sectors were set right, from IDE and from SCSI.

MBR and NTFS code of Windows 2003, FAT32 code of XP: the corpus's. Each server was laid out by a RAID BIOS that no
VM has, so none boots as it was.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from fixtures import boot
from fixtures.disks import FIRST, real_boot_code
from fixtures.qemu import boot_text
from fixtures.servers import Server, build_nt4_ntfs, build_xp
from p2v.guest.fixers import boot_sectors
from p2v.model import BytesChange, Geometry
from p2v.testing import DirGuest

BUSES = ("ide-hd", "lsi53c895a")


def fitted(changes: Iterable[object], disk: Path, copy: Path) -> Path:
    """A copy of the disk with the changes of its bytes made."""
    shutil.copyfile(disk, copy)
    with copy.open("r+b") as file:
        for change in changes:
            if isinstance(change, BytesChange):
                assert os.pread(file.fileno(), len(change.before), change.offset) == change.before
                os.pwrite(file.fileno(), change.after, change.offset)
    return copy


@pytest.fixture(scope="module")
def ntfs(request, tmp_path_factory, corpus) -> Server:
    """A disk of the RAID, with real boot code."""
    build = {"3.1": build_xp, "1.2": build_nt4_ntfs}[request.param]
    return build(tmp_path_factory.mktemp("chain"), corpus, real_boot_code=True)


@pytest.mark.qemu
@pytest.mark.parametrize("ntfs", ["3.1", "1.2"], indirect=True)
def test_ntfs(ntfs, see, needs, piix_target, tmp_path):
    needs("qemu-system-i386")
    disk = fitted(boot_sectors.plan(see(ntfs), piix_target), ntfs.disks[0], tmp_path / "fitted.img")
    for bus in BUSES:
        assert boot.LOADED in boot_text(disk, bus=bus)


@pytest.mark.qemu
def test_fat32(corpus, needs, xp_tree, piix_target, tmp_path):
    """A volume that XP formatted, 0xFF heads in its boot sector, moved behind an MBR."""
    needs("qemu-system-i386", "mcopy")
    volume = tmp_path / "volume"
    volume.write_bytes(lzma.decompress((corpus / "ntfs" / "fat32_xp_none.img.xz").read_bytes()))
    (tmp_path / "ntldr").write_bytes(boot.ntldr())
    subprocess.run(["mcopy", "-i", str(volume), str(tmp_path / "ntldr"), "::/NTLDR"], check=True,
                   env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})
    content = volume.read_bytes()
    entry = struct.pack("<B3sB3sII", 0x80, b"\1\1\0", 0x0B, b"\x3f\x20\x41", FIRST, len(content) // 512)
    first = real_boot_code(corpus).mbr[:440] + bytes(6) + entry + bytes(48) + b"\x55\xaa"
    old = bytearray(first.ljust(FIRST * 512, b"\0") + content + bytes(5000 * 512))
    (tmp_path / "old.img").write_bytes(old)
    assert boot.LOADED not in boot_text(tmp_path / "old.img", seconds=3)
    wishes = list(boot_sectors.plan(DirGuest({"disk0p1": xp_tree}, {"disk0": old}), piix_target))
    disk = fitted(wishes, tmp_path / "old.img", tmp_path / "fitted.img")
    for bus in BUSES:
        assert boot.LOADED in boot_text(disk, bus=bus)


@pytest.mark.qemu
def test_a_small_disk_of_64_heads_and_32_sectors(corpus, needs, see, piix_target, tmp_path):
    """What small SCSI disks of NT 4's time were laid out with."""
    needs("qemu-system-i386")
    server = build_xp(tmp_path / "small", corpus, geometry=Geometry(64, 32), real_boot_code=True)
    disk = fitted(boot_sectors.plan(see(server), piix_target), server.disks[0], tmp_path / "fitted.img")
    for bus in BUSES:
        assert boot.LOADED in boot_text(disk, bus=bus)
