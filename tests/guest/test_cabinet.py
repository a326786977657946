"""One file out of a cabinet, and cabinets that lie."""

from __future__ import annotations

import random
import subprocess

import pytest

from fixtures.cabs import cabinet
from p2v.errors import GuestError, MissingTool, Where
from p2v.guest import piped as room
from p2v.guest.cabinet import Cabinet, begins, neighbours, with_parts

MIB = 1 << 20


def member(cab: Cabinet, name: str, limit: int = MIB) -> bytes | None:
    """The one member of that name, None where there is none."""
    found = [data for _, data in cab.members(name, limit)]
    assert len(found) < 2
    return found[0] if found else None


@pytest.fixture
def opened(needs, tmp_path):
    needs("cabextract")

    def made(data: bytes) -> Cabinet:
        path = tmp_path / "some.cab"
        path.write_bytes(data)
        return Cabinet([path], Where(item="Driver Cache\\some.cab"))

    return made


def test_a_member_is_found_in_any_case(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"ATAPI.SYS": b"one", "disk.sys": b"two" * 1000}))
    assert member(cab, "atapi.sys") == b"one"
    assert member(cab, "disk.sys") == b"two" * 1000
    assert member(cab, "pciide.sys") is None


def test_a_bomb_is_not_unpacked(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"atapi.sys": bytes(8 * MIB)}))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        member(cab, "atapi.sys")


def test_a_size_that_lies(opened, needs, monkeypatch):
    """The listing says less than comes: not one byte more is read."""
    needs("gcab")
    cab = opened(cabinet({"atapi.sys": bytes(MIB)}))
    monkeypatch.setattr(cab, "listing", lambda: {"atapi.sys": [1000]})
    with pytest.raises(GuestError, match="a cabinet cannot be used") as error:
        member(cab, "atapi.sys")
    assert "should have 1000 bytes and has 1001" in error.value.why


def test_paths_inside_lead_nowhere(opened, needs, tmp_path):
    needs("gcab")
    data = cabinet({"atapi_sys": b"evil"}).replace(b"atapi_sys", b"../../pwn")
    cab = opened(data)
    before = set(tmp_path.iterdir())
    assert dict(cab.members("pwn", MIB)) == {"xx/xx/pwn": b"evil"}  # from a pipe; nothing is unpacked
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("spoil", [lambda data: data[:60], lambda data: b"MSCF" + bytes(200), lambda data: b"",
                                   lambda data: data[:-20]], ids=["cut", "zeroes", "empty", "tail"])
def test_damaged_cabinets(opened, needs, spoil):
    needs("gcab")
    cab = opened(spoil(cabinet({"atapi.sys": bytes(range(256)) * 400})))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        member(cab, "atapi.sys")


def test_a_program_that_hangs_is_killed(opened, monkeypatch):
    cab = opened(b"")
    real = subprocess.Popen
    monkeypatch.setattr(room, "SECONDS", 0.1)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real(["sleep", "60"], **rest))
    with pytest.raises(GuestError, match="a cabinet cannot be used"):
        member(cab, "atapi.sys")


def test_cabextract_is_missing(opened, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool, match="cabextract"):
        member(opened(b""), "atapi.sys")


def test_several_members_in_one_go(opened, needs, monkeypatch):
    needs("gcab")
    files = {f"f{number}.sys": bytes([number]) * (number * 1000) for number in range(60)}
    cab = opened(cabinet(files))
    cab.expect({"f59.sys", "f7.sys", "f8.sys", "f0.sys", "none.sys"}, MIB)
    monkeypatch.setenv("PATH", "")  # nothing is unpacked a second time
    for number in (59, 7, 8, 0):
        assert member(cab, f"f{number}.sys") == files[f"f{number}.sys"]
    with pytest.raises(MissingTool):
        member(cab, "f9.sys")


def test_a_damaged_member_moves_nothing(opened, needs):
    """What comes behind a member that cannot be unpacked is not taken for what it is not."""
    needs("gcab")
    noise = random.Random(1)
    files = {f"f{number}.sys": noise.randbytes(50000) for number in range(4)}
    data = bytearray(cabinet(files))
    data[90000] ^= 0xFF
    cab = opened(bytes(data))
    cab.expect(set(files), MIB)
    for name, whole in files.items():
        try:
            assert member(cab, name) == whole
        except GuestError as error:
            assert "cabinet cannot be used" in error.what


def test_members_in_folders(opened, needs):
    """A vendor's cabinet may hold one name for several systems; each is read by its path."""
    needs("gcab")
    data = cabinet({"a12viostor.sys": b"for x86", "b12viostor.sys": b"for x64"})
    for sign in (b"a", b"b"):
        data = data.replace(sign + b"12viostor.sys", sign + b"1\\viostor.sys")
    cab = opened(data)
    assert dict(cab.members("VIOSTOR.SYS", MIB)) == {"a1/viostor.sys": b"for x86", "b1/viostor.sys": b"for x64"}
    assert not list(cab.members("b1/viostor.sys", MIB))


def test_a_name_that_looks_like_a_pattern(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"at[a]pi.sys": b"one", "atapi.sys": b"two"}))
    assert member(cab, "at[a]pi.sys") == b"one" and member(cab, "atapi.sys") == b"two"


def test_one_path_twice(opened, needs):
    needs("gcab")
    cab = opened(cabinet({"atapi.sys": b"one", "atapj.sys": b"two"}).replace(b"atapj.sys", b"ATAPI.SYS"))
    with pytest.raises(GuestError, match="a cabinet cannot be used") as error:
        member(cab, "atapi.sys")
    assert "there 2 times" in error.value.why


def test_real_cabinets(corpus, needs):
    """One is stored; one has a folder packed with MSZIP, one with LZX as in driver.cab, one with Quantum."""
    needs("cabextract")
    sizes = {"simple.cab": {"hello.c": 77, "welcome.c": 74},
             "mixed.cab": {"mszip.txt": 57, "lzx.txt": 187, "qtm.txt": 59}}
    for name, expected in sizes.items():
        cab = Cabinet([corpus / "inf" / "cab" / name], Where())
        for inside, size in expected.items():
            data = member(cab, inside)
            assert data is not None and len(data) == size
            assert data.isascii() and b"\0" not in data


def test_lzx_gives_what_libgcab_gives(corpus, needs, tmp_path):
    needs("cabextract", "gcab")
    path = corpus / "inf" / "cab" / "mixed.cab"
    subprocess.run(["gcab", "-x", "-C", str(tmp_path), str(path)], check=False, capture_output=True)  # no Quantum there
    assert member(Cabinet([path], Where()), "lzx.txt") == (tmp_path / "lzx.txt").read_bytes()


# -- sets in several parts

SPLIT = {"small1.bin": 2000, "small2.bin": 8000, "medium1.bin": 40000, "medium2.bin": 50000, "small3.bin": 128,
         "medium3.bin": 40000}


def split(corpus, parts=range(1, 6)):
    folder = corpus / "inf" / "cab"
    known = {f"split-{number}.cab": folder / f"split-{number}.cab" for number in parts}
    return lambda name: known.get(name.lower())


def test_a_set_is_one_cabinet(corpus, needs):
    needs("cabextract")
    cab = with_parts("split-1.cab", split(corpus), Where())
    assert cab.listing() == {name: [size] for name, size in SPLIT.items()}
    for name, size in SPLIT.items():
        assert len(member(cab, name) or b"") == size


def test_a_part_that_is_not_there_is_named(corpus, needs):
    needs("cabextract")
    cab = with_parts("split-1.cab", split(corpus, (1, 2)), Where())
    assert len(member(cab, "small1.bin") or b"") == 2000
    with pytest.raises(GuestError) as error:
        member(cab, "medium2.bin")
    assert "Split-3.CAB" in error.value.why


def test_only_the_first_part_begins(corpus):
    names = [f"Split-{number}.CAB" for number in range(1, 6)]
    heads = [(corpus / "inf" / "cab" / name.lower()).read_bytes()[:4096] for name in names]
    assert [begins(head, names) for head in heads] == [True, False, False, False, False]
    assert begins(heads[2], ["split-3.cab", "split-4.cab"])
    assert neighbours(heads[1]) == ("Split-1.CAB", "Split-3.CAB")


def head_with_next(name: bytes) -> bytes:
    return b"MSCF" + bytes(26) + b"\2\0" + bytes(4) + name + b"\0disk\0"


@pytest.mark.parametrize("name", [b"a.cab", b"../a.cab", b"c:\\a.cab", b".."])
def test_sets_that_run_in_a_circle_or_out_of_their_folder(tmp_path, name):
    path = tmp_path / "a.cab"
    path.write_bytes(head_with_next(name))
    with pytest.raises(GuestError, match="a circle"):
        with_parts("A.CAB", lambda name: path, Where())


def test_a_set_without_end(tmp_path):
    def place(name):
        number = int(name.partition(".")[0]) + 1
        path = tmp_path / name
        path.write_bytes(head_with_next(f"{number}.cab".encode()))
        return path

    with pytest.raises(GuestError, match="too many"):
        with_parts("0.cab", place, Where())


@pytest.mark.parametrize("head", [b"", b"MSCF", b"MSCF" + bytes(26) + b"\7\0" + bytes(4), b"MZ" * 40,
                                  b"MSCF" + bytes(26) + b"\7\0" + bytes(4) + b"\xff\xff\0\0"])
def test_heads_that_are_cut_off(head):
    assert neighbours(head) == ("", "") and begins(head, [])
