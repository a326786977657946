"""Dynamic disks as the Linux kernel's own parser (block/partitions/ldm.c) sees them: a full Debian kernel under QEMU.

It reads MBR disks only, and wants equal PRIVHEADs at the disk's LBA 6 and the private region's 1856, and a clean VMDB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from fixtures.mirrors import BUILDERS
from p2v.model import SECTOR, Mirror, Source, Volume
from p2v.source.device import open_disk
from p2v.volume import ldm
from tests.volume.ldmdisks import Ldm, names

pytestmark = [pytest.mark.slow, pytest.mark.qemu]

MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
INIT = """#!/busybox sh
/busybox mount -t sysfs sysfs /sys
for module in {modules}; do /busybox insmod /$module.ko; done
for disk in /sys/block/vd*; do
    for part in $disk/vd*; do
        [ -d $part ] && echo part $(/busybox cat $disk/serial) $(/busybox cat $part/start $part/size)
    done
done
echo "that is all"
/busybox reboot -f
"""
Lies = set[tuple[int, int]]  # start and size in sectors


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A kernel that knows LDM, and an initramfs that lists what it sees on virtio disks."""
    root = Path(os.environ.get("P2V_KERNEL", "/"))
    able = [path for path in sorted(root.glob("boot/config-*")) if "CONFIG_LDM_PARTITION=y\n" in path.read_text()]
    if not able:
        pytest.skip(f"no kernel with LDM_PARTITION=y below {root}; P2V_KERNEL names an unpacked linux-image-*-amd64")
    busybox = next((path for path in (root / "bin/busybox", root / "usr/bin/busybox", Path("/bin/busybox"))
                    if path.exists() and b"/ld-linux" not in path.read_bytes()), None)
    if busybox is None:
        pytest.skip(f"no static busybox in {root} or /bin: unpack busybox-static")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    release = able[-1].name.removeprefix("config-")
    modules = {name: next((root / "lib/modules" / release).rglob(f"{name}.ko")) for name in MODULES}
    files = {f"{name}.ko": path.read_bytes() for name, path in modules.items()}
    files["init"] = INIT.format(modules=" ".join(modules)).encode()
    image = tmp_path_factory.mktemp("kernel") / "initramfs"
    image.write_bytes(cpio(["sys", "dev"], files | {"busybox": busybox.read_bytes()}))
    return root / "boot" / f"vmlinuz-{release}", image


def cpio(folders: Iterable[str], files: Mapping[str, bytes]) -> bytes:
    """An archive in the form that the kernel unpacks (newc: Documentation/driver-api/early-userspace)."""
    entries = [(name, 0o040755, b"") for name in folders] + [(name, 0o100755, data) for name, data in files.items()]
    packed = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + data + bytes(-len(data) % 4)
    return bytes(packed)


def seen_by(kernel: tuple[Path, Path], disks: Mapping[str, Path]) -> dict[str, Lies]:
    """What the kernel says lies on each of these disks. None of them is written."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", "stdio", "-kernel", str(kernel[0]), "-initrd", str(kernel[1]), "-snapshot",
               "-append", "console=ttyS0 quiet panic=-1"]
    for name, path in disks.items():
        command += ["-drive", f"file={path},format=raw,if=none,id=d{name}",
                    "-device", f"virtio-blk-pci,drive=d{name},serial={name}"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.split() for line in said.stdout.splitlines()]
    assert ["that", "is", "all"] in lines, said.stdout
    return {name: {(int(line[2]), int(line[3])) for line in lines if line[:2] == ["part", name]} for name in disks}


def told(disks: Mapping[str, Source]) -> dict[str, Lies]:
    """What p2v says lies on each disk."""
    found: dict[str, Lies] = {disk: set() for disk in disks}
    for one in ldm.find(disks):
        legs = [leg.member for leg in one.legs] if isinstance(one, Mirror) else []
        for member in one.members if isinstance(one, Volume) else legs:
            found[member.disk].add((member.offset // SECTOR, member.length // SECTOR))
    return found


def test_the_kernel_sees_the_partitions_of_windows_own_disks(kernel: tuple[Path, Path], tmp_path: Path) -> None:
    disks = {name: Ldm(name) for name in names()}
    known = told(disks)
    files = {name: tmp_path / name for name, disk in disks.items() if not disk.gpt}
    for name, path in files.items():
        with open(path, "wb") as file:
            file.truncate(disks[name].size)
            for offset, data in disks[name].pieces.items():
                file.seek(offset)
                file.write(data)
    assert len(files) == 14
    assert seen_by(kernel, files) == {name: known[name] for name in files}
    assert all(known.values())


def test_the_kernel_sees_the_partitions_of_made_disks(kernel: tuple[Path, Path], tmp_path: Path) -> None:
    files, known = {}, {}
    for name in ("ldm-mirror-data", "ldm-mirror-filler", "ldm-mirror-stale", "ldm-raid5", "ldm-spanned", "ldm-apart"):
        (tmp_path / name).mkdir()
        paths = {f"{name[4:]}-{path.stem}": path for path in BUILDERS[name](tmp_path / name).disks}
        files |= paths
        known |= told({disk: open_disk(path) for disk, path in paths.items()})
    assert seen_by(kernel, files) == known
    assert all(known.values())
