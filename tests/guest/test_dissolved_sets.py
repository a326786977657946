"""Letters, disk groups and fault-tolerant sets: the registry names plain partitions afterwards."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fixtures import ft, guests, hives
from fixtures.guests import PiixTarget
from p2v.errors import Finding
from p2v.guest.fixers import dissolved_sets
from p2v.guest.fixers.dissolved_sets import MOUNTED
from p2v.model import Change, Collapsed, KeyChange, Text, Value, ValueChange
from p2v.testing import DirGuest, check_fixer
from p2v.volume import ftregistry
from p2v.volume.ftregistry import FtType

GUID = bytes(range(16))
HOME = b"p2v!" + struct.pack("<Q", 63 * 512)  # of the only partition of a DirGuest


def collapsed(*managers: str, letters: dict[str, str] | None = None, second: bool = False) -> Collapsed:
    names = {b"DMIO:ID:" + GUID: "disk0p1", struct.pack("<IQ", 0x11111111, 32256): "disk0p1",
             struct.pack("<IQ", 0x22222222, 32256): "disk0p1"}
    if second:
        names[struct.pack("<IQ", 0x11111111, 999 * 512)] = "disk0p2"
    return Collapsed(({1: "disk0p1"},), (0x11111111,), names, letters or {}, frozenset(managers))


def with_hive(folder: Path, root: str, edit: hives.Hive) -> None:
    place = folder / root / "system32" / "config"
    (place / "system").unlink(missing_ok=True)
    for name in list(place.iterdir()):
        if name.name.lower() in ("system", "system.log", "system.alt"):
            name.unlink()
    (place / "system").write_bytes(edit.finish())


def of(folder: Path, root: str) -> hives.Hive:
    place = folder / root / "system32" / "config"
    return hives.Hive(next(p for p in place.iterdir() if p.name.lower() == "system").read_bytes())


@pytest.fixture
def xp(tmp_path: Path) -> Path:
    folder = guests.unpack(guests.xp_files(), tmp_path / "xp")
    hive = of(folder, "WINDOWS")
    hive.set(MOUNTED, **{"\\DosDevices\\C:": Value(3, b"DMIO:ID:" + GUID),
                         "\\??\\Volume{one}": Value(3, b"DMIO:ID:" + GUID),
                         "\\DosDevices\\E:": Value(3, b"other device")})
    for control_set in hive.control_sets():
        hive.set(f"{control_set}\\Services\\dmio\\Boot Info\\Primary Disk Group", Name=Text("WebDg0"))
    hive.set("Setup", SystemPartition=Text("\\Device\\HarddiskDmVolumes\\WebDg0\\Volume1"))
    with_hive(folder, "WINDOWS", hive)
    return folder


def changed(wishes: list[Change | Finding]) -> dict[str, Value | bool | None]:
    return {f"{w.key}:{w.value}" if isinstance(w, ValueChange) else w.key: w.after
            for w in wishes if isinstance(w, (ValueChange, KeyChange))}


def test_dynamic_volumes_keep_their_letters(xp: Path) -> None:
    guest = DirGuest({"disk0p1": xp}, collapsed=collapsed("ldm"))
    wishes = check_fixer(dissolved_sets, guest, PiixTarget())
    found = changed(wishes)
    assert found[f"{MOUNTED}:\\DosDevices\\C:"] == Value(3, HOME)
    assert found[f"{MOUNTED}:\\??\\Volume{{one}}"] == Value(3, HOME)
    assert f"{MOUNTED}:\\DosDevices\\E:" not in found
    assert found["Setup:SystemPartition"] == Text("\\Device\\HarddiskVolume1")
    group = "Services\\dmio\\Boot Info\\Primary Disk Group"
    assert found[f"ControlSet001\\{group}:Name"] is None and found[f"ControlSet001\\{group}"] is False
    assert not any("Boot ID" in key for key in found)


def test_a_letter_that_only_the_database_knew_gets_its_entry(xp: Path) -> None:
    hive = of(xp, "WINDOWS")
    hive.delete(MOUNTED)
    hive.set(MOUNTED, **{"\\DosDevices\\D:": Value(3, b"a CD drive's path")})
    with_hive(xp, "WINDOWS", hive)
    guest = DirGuest({"disk0p1": xp}, collapsed=collapsed("ldm", letters={"disk0p1": "C:"}))
    found = changed(check_fixer(dissolved_sets, guest, PiixTarget()))
    assert found[f"{MOUNTED}:\\DosDevices\\C:"] == Value(3, HOME)
    taken = DirGuest({"disk0p1": xp}, collapsed=collapsed("ldm", letters={"disk0p1": "D:"}))
    assert not any(MOUNTED in key for key in changed(check_fixer(dissolved_sets, taken, PiixTarget())))


def test_a_plain_server_is_left_alone(xp: Path) -> None:
    assert check_fixer(dissolved_sets, DirGuest({"disk0p1": xp}), PiixTarget()) == []


def nt4(folder: Path, value: bytes) -> Path:
    guests.unpack(guests.nt4_files(), folder)
    hive = of(folder, "WINNT")
    hive.set(ftregistry.KEY, **{"Information": Value(3, value), "\\device\\CdRom0": Text("G:")})
    for control_set in hive.control_sets():
        hive.set(f"{control_set}\\Services\\Ftdisk", Start=Value(4, b"\0\0\0\0"))
    with_hive(folder, "WINNT", hive)
    return folder


def mirror(letter: str = "C", *more: ft.Row) -> bytes:
    first = ft.Row(32256, 32 * 512, letter, FtType.MIRROR, 0, 0)
    shadow = ft.Row(32256, 32 * 512, letter, FtType.MIRROR, 0, 1)
    return ft.information([(0x11111111, (first, *more)), (0x22222222, (shadow,))])


def test_sets_go_where_the_letters_stay_the_same(tmp_path: Path) -> None:
    guest = DirGuest({"disk0p1": nt4(tmp_path, mirror())}, collapsed=collapsed("ft"))
    found = changed(check_fixer(dissolved_sets, guest, PiixTarget()))
    assert found["DISK:Information"] is None and "DISK:\\device\\CdRom0" not in found
    assert found["ControlSet001\\Services\\Ftdisk:Start"] == Value(4, b"\4\0\0\0")


def test_other_letters_are_kept_in_a_rewritten_value(tmp_path: Path) -> None:
    plain = ft.Row(999 * 512, 100 * 512, "X")
    folder = nt4(tmp_path, mirror("C", plain))
    (tmp_path / "data").mkdir()
    known = collapsed("ft", second=True)
    guest = DirGuest({"disk0p1": folder, "disk0p2": tmp_path / "data"}, collapsed=known)
    wishes = check_fixer(dissolved_sets, guest, PiixTarget())
    rewritten = changed(wishes)["DISK:Information"]
    assert isinstance(rewritten, Value)
    said = ftregistry.parse(rewritten.data, "DISK")
    assert said.sets == () and not any(row.is_member for disk in said.disks for row in disk.partitions)
    assert [disk.signature for disk in said.disks] == [int.from_bytes(b"p2v!", "little")]
    assert [(row.offset, row.letter) for row in said.disks[0].partitions] == [(63 * 512, "C:"), (95 * 512, "X:")]
    assert any(isinstance(wish, Finding) and "letters" in wish.what for wish in wishes)


def test_a_value_that_cannot_be_read_goes_with_a_warning(tmp_path: Path) -> None:
    guest = DirGuest({"disk0p1": nt4(tmp_path, b"nonsense")}, collapsed=collapsed("ft"))
    wishes = check_fixer(dissolved_sets, guest, PiixTarget())
    assert changed(wishes)["DISK:Information"] is None
    assert any(isinstance(wish, Finding) and "cannot be read" in wish.what for wish in wishes)
