"""One file out of a cabinet, and cabinets that lie."""

from __future__ import annotations

import subprocess

import pytest

from fixtures.cabs import cabinet
from p2v.errors import GuestError, MissingTool, Where
from p2v.guest import cabinet as room
from p2v.guest.cabinet import Cabinet

MIB = 1 << 20


@pytest.fixture
def opened(needs, tmp_path):
    needs("cabextract")

    def made(data: bytes) -> Cabinet:
        path = tmp_path / "some.cab"
        path.write_bytes(data)
        return Cabinet(path, Where(item="Driver Cache\\some.cab"))

    return made


def test_a_member_is_found_in_any_case(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"ATAPI.SYS": b"one", "disk.sys": b"two" * 1000}))
    assert cab.member("atapi.sys", MIB) == b"one"
    assert cab.member("disk.sys", MIB) == b"two" * 1000
    assert cab.member("pciide.sys", MIB) is None


def test_a_bomb_is_not_unpacked(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"atapi.sys": bytes(8 * MIB)}))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        cab.member("atapi.sys", MIB)


def test_a_size_that_lies(opened, needs, monkeypatch):
    """The listing says less than comes: not one byte more is read."""
    needs("gcab")
    cab = opened(cabinet({"atapi.sys": bytes(MIB)}))
    monkeypatch.setattr(cab, "_listing", lambda: {"atapi.sys": [1000]})
    with pytest.raises(GuestError, match="a cabinet cannot be used") as error:
        cab.member("atapi.sys", MIB)
    assert "should have 1000 bytes and has 1001" in error.value.why


def test_paths_inside_lead_nowhere(opened, needs, tmp_path):
    needs("gcab")
    data = cabinet({"atapi_sys": b"evil"}).replace(b"atapi_sys", b"../../pwn")
    cab = opened(data)
    before = set(tmp_path.iterdir())
    assert cab.member("pwn", MIB) is None
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("spoil", [lambda data: data[:60], lambda data: b"MSCF" + bytes(200), lambda data: b"",
                                   lambda data: data[:-20]], ids=["cut", "zeroes", "empty", "tail"])
def test_damaged_cabinets(opened, needs, spoil):
    needs("gcab")
    cab = opened(spoil(cabinet({"atapi.sys": bytes(range(256)) * 400})))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        cab.member("atapi.sys", MIB)


def test_a_program_that_hangs_is_killed(opened, monkeypatch):
    cab = opened(b"")
    real = subprocess.Popen
    monkeypatch.setattr(room, "SECONDS", 0.1)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real(["sleep", "60"], **rest))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        cab.member("atapi.sys", MIB)


def test_cabextract_is_missing(opened, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool, match="cabextract"):
        opened(b"").member("atapi.sys", MIB)


def test_real_cabinets(corpus, needs):
    needs("cabextract")
    cab = Cabinet(corpus / "inf" / "cab" / "simple.cab", Where())
    names = list(cab._listing())
    assert names
    for name in names:
        data = cab.member(name, MIB)
        assert data is not None and len(data) == cab._listing()[name][0]
