"""The loader that died with its disk: named, and taken from what the user hands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import guests
from fixtures.guests import PiixTarget
from p2v.errors import Finding, Severity, Unsupported
from p2v.guest.fixers import boot_files
from p2v.model import Collapsed, FileChange
from p2v.testing import DirGuest, check_fixer

COLLAPSED = Collapsed(({2: "disk0p1"},), (7,), {}, {}, frozenset({"ldm"}))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """XP whose active partition was on another disk."""
    folder = guests.unpack(guests.xp_files(), tmp_path / "xp")
    for name in ("ntldr", "ntdetect.com", "boot.ini"):
        next(path for path in folder.iterdir() if path.name.lower() == name).unlink()
    return folder


def test_what_is_missing_is_named(bare: Path) -> None:
    wishes = check_fixer(boot_files, DirGuest({"disk0p1": bare}, collapsed=COLLAPSED), PiixTarget())
    stops = [wish for wish in wishes if isinstance(wish, Finding)]
    assert [stop.what.split()[0] for stop in stops] == ["ntldr", "ntdetect.com"]
    assert all(stop.severity is Severity.ERROR and "--drivers" in stop.next for stop in stops)
    (menu,) = [wish for wish in wishes if isinstance(wish, FileChange)]
    assert b"default=multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS\r\n" in menu.after.data


def test_it_is_taken_from_the_users_folder(bare: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "NTLDR").write_bytes(b"loader")
    (given / "ntdetect.com").write_bytes(b"detector")
    (given / "boot.ini").write_bytes(
        b"[boot loader]\r\ndefault=multi(0)disk(0)rdisk(0)partition(2)\\WINDOWS\r\n[operating systems]\r\n"
        b'multi(0)disk(0)rdisk(0)partition(2)\\WINDOWS="Ours" /3GB\r\n')
    guest = DirGuest({"disk0p1": bare}, drivers=[str(given)], collapsed=COLLAPSED)
    wishes = check_fixer(boot_files, guest, PiixTarget())
    made = {wish.path: wish.after.data for wish in wishes if isinstance(wish, FileChange)}
    assert made["\\ntldr"] == b"loader" and made["\\ntdetect.com"] == b"detector"
    assert b'partition(1)\\WINDOWS="Ours" /3GB' in made["\\boot.ini"]


def test_a_plain_server_without_loader_is_no_server(bare: Path) -> None:
    with pytest.raises(Unsupported):
        DirGuest({"disk0p1": bare})


def test_a_server_with_its_loader_is_left_alone(tmp_path: Path) -> None:
    guest = DirGuest({"disk0p1": guests.unpack(guests.xp_files(), tmp_path / "xp")}, collapsed=COLLAPSED)
    assert check_fixer(boot_files, guest, PiixTarget()) == []
