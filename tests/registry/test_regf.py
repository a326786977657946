"""Logs of half-written hives, list forms, SYSTEM.ALT, the structural check."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.registry.dirty import NT4, XP, dirty
from p2v.errors import GuestError, Severity, Unsupported
from p2v.model import DWord, Text
from p2v.registry import regf
from p2v.registry.cells import checksum
from p2v.registry.hive import HiveEditor
from tests.registry.hive_witness import leaf_kinds, stored, unpacked, walk

OLD, LOG, WINDOWS = "OldDirtyHive", "OldDirtyHive.LOG1", "RecoveredHive_Windows7"


def resealed(data: bytes | bytearray) -> bytes:
    """The same with a base block checksum that holds."""
    copy = bytearray(data)
    struct.pack_into("<I", copy, 508, checksum(copy))
    return bytes(copy)


def changed(data: bytes, at: int, number: int) -> bytes:
    """The same with one dword changed and the checksum made good."""
    copy = bytearray(data)
    struct.pack_into("<I", copy, at, number)
    return resealed(copy)


def differences(one: bytes, other: bytes) -> list[int]:
    assert len(one) == len(other)
    return [at for at in range(len(one)) if one[at] != other[at]]


def test_a_log_is_replayed_as_windows_does() -> None:
    log = stored(LOG)
    assert regf.is_dirty(stored(OLD))
    recovered = regf.recover(stored(OLD), log, "SYSTEM")
    assert recovered.replayed
    assert recovered.digest == hashlib.sha256(log).hexdigest()
    assert not regf.is_dirty(recovered.data)
    assert regf.check(recovered.data, "SYSTEM") == ()
    # Windows went on after its recovery: it wrote the hive twice (sequence numbers, times in the base block and
    # in the first bin), from another path (its file name), and made one key's longest value name 2 bytes.
    extra = {*range(4, 20), *range(48, 112), *range(508, 512), *range(4096 + 20, 4096 + 28), 0x6BDC8}
    assert set(differences(recovered.data, stored(WINDOWS))) <= extra
    assert len(differences(recovered.data, stored(OLD))) > 1000
    ours, windows = walk(recovered.data), walk(stored(WINDOWS))
    assert ours == windows


def test_a_base_block_is_taken_from_the_log() -> None:
    """Of the moment that the first bin names: Windows does not take another one either."""
    primary, log = dirty(*before_and_after("nt4-server-ee-sp3-SYSTEM"), XP, written=1)
    torn = bytearray(primary)
    torn[:100] = bytes(100)
    expected = regf.recover(primary, log, "SYSTEM").data
    recovered = regf.recover(bytes(torn), log, "SYSTEM")
    assert recovered.replayed
    assert recovered.data[4096:] == expected[4096:]
    assert set(differences(recovered.data, expected)) <= {*range(4, 12), *range(508, 512)}
    assert struct.unpack_from("<I", recovered.data, 28) == (0,)
    assert not regf.is_dirty(recovered.data)
    with pytest.raises(GuestError, match="another moment than its first bin"):
        regf.recover(bytes(torn[:4096]) + primary[4096:4116] + bytes(8) + primary[4124:], log, "SYSTEM")


def test_a_base_block_of_another_moment_is_refused(corpus: Path) -> None:
    """yarp's case: the first bin was not written yet, so that nothing says which moment the log is of."""
    folder = corpus / "hives/yarp/BadBaseBlockHive"
    with pytest.raises(GuestError, match="another moment than its first bin"):
        regf.recover(unpacked(folder / "BadBaseBlockHive.xz"), unpacked(folder / "BadBaseBlockHive.LOG1.xz"), "S")


def test_a_log_beside_a_clean_hive_is_left_alone(corpus: Path) -> None:
    """Primary 61/61, log 60/60, same time: it was written already."""
    folder = corpus / "hives/xp-x64-sp2-nt52-vbox"
    data = unpacked(folder / "SYSTEM.xz")
    recovered = regf.recover(data, (folder / "SYSTEM.LOG").read_bytes(), "SYSTEM")
    assert recovered == regf.Recovered(data, False, "")


def test_logs_of_newer_systems(corpus: Path) -> None:
    for hive, log in (("win10-dirty-newlog/SYSTEM.xz", "win10-dirty-newlog/SYSTEM.LOG1.xz"),
                      ("yarp/NewDirtyHive1/NewDirtyHive.xz", "yarp/NewDirtyHive1/NewDirtyHive.LOG1.xz")):
        with pytest.raises(Unsupported, match=r"Windows 8\.1") as caught:
            regf.recover(unpacked(corpus / "hives" / hive), unpacked(corpus / "hives" / log), "SYSTEM")
        assert caught.value.where.source == "SYSTEM.LOG"


def before_and_after(name: str, edits: int = 3) -> tuple[bytes, bytes]:
    """A hive and the same after edits."""
    clean = stored(name)
    editor = HiveEditor(clean, "S")
    for number in range(edits):
        editor.create_key(f"Probe\\key {number}")
        editor.set_value(f"Probe\\key {number}", "Text", Text("x" * 700 * number))
        editor.set_value(f"Probe\\key {number}", "Start", DWord(number))
    return clean, editor.commit()


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from([NT4, XP]), written=st.integers(0, 6), edits=st.integers(1, 9))
def test_power_lost_at_any_moment(kind: int, written: int, edits: int) -> None:
    clean, edited = before_and_after("minimal", edits)
    primary, log = dirty(clean, edited, kind, written)
    assert struct.unpack_from("<I", log, 28) == (kind,)
    assert regf.is_dirty(primary)
    recovered = regf.recover(primary, log, "SYSTEM")
    assert recovered.replayed
    assert walk(recovered.data) == walk(edited)
    assert set(differences(recovered.data, edited)) <= {*range(4, 20), *range(508, 512), *range(4116, 4124)}
    assert regf.recover(recovered.data, log, "SYSTEM") == regf.Recovered(recovered.data, False, "")
    assert regf.recover(primary[:len(clean)], log, "SYSTEM").data == recovered.data  # not grown yet


@pytest.mark.parametrize("kind", [NT4, XP])
def test_a_real_hive_half_written(kind: int) -> None:
    clean, edited = before_and_after("nt4-server-ee-sp3-SYSTEM")
    primary, log = dirty(clean, edited, kind)
    bitmap = log[516:516 + len(edited) // 4096]
    assert any(byte not in (0, 255) for byte in bitmap) == (kind == NT4)
    recovered = regf.recover(primary, log, "SYSTEM")
    assert walk(recovered.data) == walk(edited)
    assert walk(HiveEditor(recovered.data, "SYSTEM").commit()) == walk(edited)


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda log: None, "missing or empty"),
    (lambda log: b"", "missing or empty"),
    (lambda log: bytes(4096), "is no log"),
    (lambda log: log[:600], "is no log"),
    (lambda log: log[:-1], "truncated"),
    (lambda log: log[:1024], "truncated|no list"),
    (lambda log: changed(log, 28, 0), "has type 0"),
    (lambda log: log[:508] + b"\0\0\0\0" + log[512:], "checksum is wrong"),
    (lambda log: changed(log, 4, 77), "not written to its end either"),
    (lambda log: changed(log, 12, 77), "another moment"),
    (lambda log: changed(log, 40, 487424 + 4096), "disagree"),
    (lambda log: changed(log, 44, 3), "disagree"),
    (lambda log: log[:512] + b"DIRX" + log[516:], "no list of dirty pages"),
])
def test_a_log_that_does_not_fit_is_refused(spoil, says: str) -> None:
    with pytest.raises(GuestError, match=says) as caught:
        regf.recover(stored(OLD), spoil(stored(LOG)), "SYSTEM")
    error = caught.value
    assert error.where.source in ("SYSTEM", "SYSTEM.LOG")
    assert error.where.offset is not None
    assert error.why
    assert error.next


def test_a_log_whose_pages_are_no_bins_is_refused() -> None:
    log = bytearray(stored(LOG))
    log[-(-(516 + 487424 // 512 // 8) // 512) * 512] = 0  # the first page is the first bin's
    with pytest.raises(GuestError, match="no bin at 0x1000"):
        regf.recover(stored(OLD), bytes(log), "SYSTEM")


def test_absurd_logs_for_a_lost_base_block() -> None:
    """The log alone says how large the hive is then."""
    primary, log = dirty(*before_and_after("minimal"), XP, written=1)
    torn = bytes(4096) + primary[4096:]
    for size in (0x7FFFF000, 0xFFFFF000, 4096 * 1000, 0, 1):
        with pytest.raises(GuestError):
            regf.recover(torn, changed(log, 40, size), "SYSTEM")
    for cluster in (0, 3, 0xFFFFFFFF):
        with pytest.raises(GuestError, match="sectors"):
            regf.recover(torn, changed(log, 44, cluster), "SYSTEM")


@pytest.mark.parametrize("data", [b"", b"regf", bytes(8192), b"MZ" + bytes(9000), b"regf" + bytes(8188)])
def test_what_is_no_hive(data: bytes) -> None:
    with pytest.raises(GuestError, match="damaged"):
        regf.recover(data, None, "SYSTEM")
    assert regf.check(data, "SYSTEM")[0].severity is Severity.ERROR


def test_the_alternate_is_the_same_hive() -> None:
    data = stored("nt4-server-ee-sp3-SYSTEM")
    alternate = regf.alternate(data)
    assert struct.unpack_from("<I", alternate, 28) == (1,)
    assert set(differences(data, alternate)) <= {28, *range(508, 512)}
    assert not regf.is_dirty(alternate)
    assert regf.check(alternate, "SYSTEM.ALT") == ()


def test_hashes_become_hints(corpus: Path) -> None:
    """XP's lists in NT 4's form: what Windows itself wrote into the lf lists of real hives is the measure."""
    data = unpacked(corpus / "hives/xp-x64-sp2-nt52-vbox/userdiff.xz")
    assert "LHRecord" in leaf_kinds(data)
    converted = regf.lh_to_lf(data)
    assert leaf_kinds(converted) <= {"LFRecord", "RIRecord"}
    assert walk(converted) == walk(data)
    for name in ("nt4-server-ee-sp3-SYSTEM", "UnicodeHive"):
        windows = stored(name)
        spoiled = bytearray(windows)
        at = spoiled.find(b"lf", 4096)
        while at > 0:  # every list claims to be of hashes, its first hint is gone
            if at % 4 == 0 and spoiled[at - 4 + 3] == 0xFF:
                spoiled[at:at + 2] = b"lh"
                spoiled[at + 8:at + 12] = b"\x11\x22\x33\x44"
            at = spoiled.find(b"lf", at + 1)
        assert regf.lh_to_lf(bytes(spoiled)) == windows


@pytest.mark.parametrize("name", ["nt4-server-ee-sp3-SYSTEM", "nt4-server-ee-sp3-SOFTWARE", "xp-sp3-dell-SYSTEM",
                                  "minimal", "special", "BigDataHive", "StringValuesHive", "UnicodeHive",
                                  "EmptyHive"])
def test_good_hives_give_no_finding(name: str) -> None:
    """Not even an unreferenced cell: the walk accounts for every cell that Windows has in use."""
    assert regf.check(stored(name), name) == ()


@pytest.mark.parametrize(("name", "says"), [
    ("WrongOrderHive", "out of order: '2' is listed before '1'"), ("BadListHive", "listed twice"),
    ("TruncatedHive", "cut off"), (OLD, "sequence numbers are 5 and 4"),
])
def test_damage_is_found(name: str, says: str) -> None:
    findings = [finding for finding in regf.check(stored(name), name) if finding.severity is Severity.ERROR]
    assert any(says in finding.what for finding in findings), findings
    assert all(finding.where.offset is not None and finding.why and finding.next for finding in findings)


def test_forms_that_a_version_does_not_know() -> None:
    xp = changed(stored("xp-sp3-dell-SYSTEM"), 24, 3)
    findings = regf.check(xp, "SYSTEM")
    assert len(findings) == 1  # the root's list is one already: nothing below can be trusted
    assert "lh" in findings[0].what
    big = changed(stored("BigDataHive"), 24, 3)
    converted = regf.lh_to_lf(big)
    assert all("big data (db)" in finding.what for finding in regf.check(converted, "S"))
    assert len(regf.check(converted, "S")) == 2
