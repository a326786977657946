"""A disk in use is refused: the tables of /proc and /sys, made up, as no test machine has these disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2v.errors import PlanError
from p2v.source.in_use import Mount, check_unused, parse_mounts, parse_swaps, users

QUIET = "36 35 253:9 / /mnt rw,noatime shared:1 - ext4 /dev/vda9 rw\n"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


class Machine:
    """A disk sda (8:0) with two partitions beside a disk sdb (8:16), in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "self").mkdir(parents=True)
        (self.sys / "dev" / "block").mkdir(parents=True)
        self.mounts(QUIET)
        self.swaps("")
        self.numbers = {"/dev/sda": self._disk("sda", "8:0"), "/dev/sdb": self._disk("sdb", "8:16")}
        for index in (1, 2):
            self.numbers[f"/dev/sda{index}"] = self._disk(f"sda/sda{index}", f"8:{index}", index)

    def _disk(self, path: str, number: str, partition: int = 0) -> str:
        home = self.sys / "devices" / "pci0" / path
        (home / "holders").mkdir(parents=True)
        (home / "queue").mkdir()
        (home / "dev").write_text(number + "\n")
        if partition:
            (home / "partition").write_text(f"{partition}\n")
        (self.sys / "dev" / "block" / number).symlink_to(home)
        return number

    def mounts(self, text: str) -> None:
        (self.proc / "self" / "mountinfo").write_text(text)

    def swaps(self, text: str) -> None:
        (self.proc / "swaps").write_text(SWAPS + text)

    def hold(self, path: str, holder: str) -> None:
        (self.sys / "devices" / "pci0" / path / "holders" / holder).symlink_to(self.sys)

    def users(self, device: str) -> list[str]:
        return users(device, proc=self.proc, sys=self.sys, number_of=self.numbers.get)

    def check(self, device: str) -> None:
        check_unused("/dev/disk/by-id/ata-X", device, proc=self.proc, sys=self.sys, number_of=self.numbers.get)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_unused(machine: Machine) -> None:
    for device in ("8:0", "8:1", "8:2", "8:16"):
        assert machine.users(device) == []
        machine.check(device)


def test_mounted(machine: Machine) -> None:
    machine.mounts(QUIET + "40 35 8:2 / /srv/my\\040data rw,relatime - ntfs3 /dev/sda2 rw,uid=0\n")
    assert machine.users("8:0") == ["sda2 is mounted read-write on /srv/my data"]
    assert machine.users("8:2") == ["sda2 is mounted read-write on /srv/my data"]
    assert machine.users("8:1") == machine.users("8:16") == []
    with pytest.raises(PlanError, match="sda2 is mounted read-write") as caught:
        machine.check("8:0")
    assert str(caught.value.where) == "/dev/disk/by-id/ata-X"
    assert caught.value.why and caught.value.next


def test_mounted_read_only(machine: Machine) -> None:
    machine.mounts("40 35 8:2 / /srv ro,relatime - ext4 /dev/sda2 ro\n")
    assert machine.users("8:0") == []


def test_a_read_only_mount_of_a_writable_filesystem(machine: Machine) -> None:
    machine.mounts("40 35 8:2 / /srv ro,relatime - ext4 /dev/sda2 rw\n")
    assert machine.users("8:0") == ["sda2 is mounted read-write on /srv"]


def test_mounted_under_a_number_of_its_own(machine: Machine) -> None:
    machine.mounts("40 35 0:50 /@ /home rw - btrfs /dev/sda1 rw,subvol=/@\n")
    assert machine.users("8:0") == ["sda1 is mounted read-write on /home"]


def test_swap(machine: Machine) -> None:
    machine.swaps("/dev/sda1               partition\t1000\t\t0\t\t-2\n/swap\\040file file 1 0 -3\n")
    assert machine.users("8:0") == ["sda1 is swap"]
    assert machine.users("8:2") == []


@pytest.mark.parametrize(("path", "says"), [("sda", "sda is held by md0"), ("sda/sda2", "sda2 is held by md0")])
def test_held(path: str, says: str, machine: Machine) -> None:
    machine.hold(path, "md0")
    assert machine.users("8:0") == [says]


def test_all_at_once_names_each(machine: Machine) -> None:
    machine.hold("sda/sda2", "dm-0")
    machine.swaps("/dev/sda1 partition 1 0 -2\n")
    with pytest.raises(PlanError, match="sda1 is swap") as caught:
        machine.check("8:0")
    assert "sda2 is held by dm-0" in caught.value.why


def test_no_tables_no_reading(machine: Machine) -> None:
    (machine.proc / "swaps").unlink()
    with pytest.raises(PlanError, match="cannot tell"):
        machine.check("8:0")
    with pytest.raises(PlanError, match="cannot tell"):
        machine.check("9:9")


def test_parsing() -> None:
    assert list(parse_mounts(QUIET)) == [Mount("253:9", "/dev/vda9", "/mnt", True)]
    assert list(parse_mounts("36 35 8:1 / /a\\134b ro - fuseblk /dev/x rw")) == [
        Mount("8:1", "/dev/x", "/a\\b", True)]
    for nonsense in ("", "\n\n", "36 35", " - ", "1 2 3 4 5 6", "1 2 3 4 5 - ext4 a rw", "a b c d e f - g"):
        assert list(parse_mounts(nonsense)) == []
    assert parse_swaps("") == parse_swaps(SWAPS) == parse_swaps(SWAPS + "\n") == []
    assert parse_swaps(SWAPS + "/dev/sda1 partition 1 2 3") == ["/dev/sda1"]


def test_this_machine_can_tell() -> None:
    folder = Path("/sys/dev/block")
    numbers = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if not numbers:
        pytest.skip("this machine has no block devices")
    mounted = {m.device for m in parse_mounts(Path("/proc/self/mountinfo").read_text()) if m.writable}
    for number in numbers:
        found = users(number, proc=Path("/proc"), sys=Path("/sys"))
        assert any("mounted read-write" in line for line in found) or number not in mounted
