"""Editing a hive: only the named places change, and readers that share no code with hivex agree."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.registry.dirty import dirty
from p2v.errors import GuestError, MissingTool, Severity, Unsupported
from p2v.model import REG_BINARY, DWord, ExpandText, MultiText, Text, Value
from p2v.registry import regf
from p2v.registry.hive import HiveEditor
from p2v.registry.reader import open_hive
from tests.registry.hive_witness import Seen, leaf_kinds, stored, unpacked, walk

REAL = ("nt4-server-ee-sp3-SYSTEM", "xp-sp3-dell-SYSTEM")
CORPUS = ("xp-x64-sp2-nt52-vbox/SYSTEM", "xp-x64-sp2-nt52-vbox/userdiff", "xp-sp3-dell-physical-m57pat/SAM",
          "xp-sp3-dell-physical-m57pat/SECURITY", "xp-joe/NTUSER.DAT", "nt4-server-ee-sp3-vmware/SOFTWARE",
          "yarp/ManySubkeysHive")


def renumbered(data: bytes, minor: int) -> bytes:
    """The same bytes with another minor version."""
    copy = bytearray(data)
    struct.pack_into("<I", copy, 24, minor)
    struct.pack_into("<I", copy, 28, 1)
    copy = bytearray(regf.alternate(bytes(copy)))  # for its checksum
    struct.pack_into("<I", copy, 28, 0)
    struct.pack_into("<I", copy, 508, struct.unpack_from("<I", copy, 508)[0] ^ 1)
    return bytes(copy)


def assert_written_well(data: bytes) -> None:
    """Sequence numbers, checksum and structure of a committed hive."""
    assert not regf.is_dirty(data)
    assert [f for f in regf.check(data, "S") if f.severity is Severity.ERROR] == []
    if struct.unpack_from("<I", data, 24)[0] < 5:
        assert not leaf_kinds(data) & {"LHRecord", "DBRecord"}


def assert_only(before: dict[str, Seen], after: dict[str, Seen], touched: set[str], new: set[str],
                gone: frozenset[str] = frozenset()) -> None:
    """Nothing but the values of touched keys differs: not a class name, descriptor, flag or timestamp."""
    assert after.keys() - before.keys() == new
    assert before.keys() - after.keys() == gone
    for path in before.keys() & after.keys():
        if path in touched:
            assert dataclasses.replace(before[path], values=()) == dataclasses.replace(after[path], values=())
        else:
            assert before[path] == after[path], path
    for path in new:  # hivex gives a new key what its parent has
        parent = after[path.rpartition("\\")[0]]
        assert (after[path].security, after[path].timestamp) == (parent.security, parent.timestamp)


@pytest.mark.parametrize("name", REAL)
def test_real_edits_lose_nothing(name: str) -> None:
    data = stored(name)
    editor = HiveEditor(data, "SYSTEM")
    service = "ControlSet001\\Services\\p2vprobe"
    editor.create_key("controlset001\\SERVICES\\p2vprobe\\Parameters")
    editor.set_value(service.upper(), "Start", DWord(0))
    editor.set_value(service, "ImagePath", ExpandText("System32\\DRIVERS\\p2vprobe.sys"))
    editor.set_value("ControlSet001\\Services\\Atapi", "START", DWord(4))
    editor.delete_value("ControlSet001\\Services\\Disk", "Group")
    rows = "ControlSet001\\Control\\CriticalDeviceDatabase"
    tree = open_hive(data, "SYSTEM")
    touched = {tree.spelling(f"ControlSet001\\Services\\{name}") or "" for name in ("atapi", "disk")}
    new = {service, f"{service}\\Parameters"}
    if tree.has(rows):
        editor.create_key(f"{rows}\\pci#ven_8086&dev_7111")
        editor.set_value(f"{rows}\\pci#ven_8086&dev_7111", "Service", Text("intelide"))
        new.add(f"{rows}\\pci#ven_8086&dev_7111")
    edited = editor.commit()

    assert_written_well(edited)
    before, after = walk(data), walk(edited)
    assert_only(before, after, touched, new)
    tree = open_hive(edited, "SYSTEM")
    assert tree.value("controlset001\\services\\ATAPI", "start") == DWord(4)
    assert tree.value(service, "Start") == DWord(0)
    disk = tree.spelling("controlset001\\services\\disk") or ""
    assert [value for value in before[disk].values if value[0] != "Group"] == list(after[disk].values)
    assert len(edited) - len(data) <= 2 * 4096  # hivex adds bins of 4 KiB, and all of this fits into one or two


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_edits_lose_nothing(corpus: Path, name: str) -> None:
    data = unpacked(corpus / "hives" / f"{name}.xz")
    before = walk(data)
    parent = min(path for path in before if path.count("\\") <= 1 and path)
    editor = HiveEditor(data, name)
    editor.create_key(f"{parent}\\a new key")
    editor.set_value(f"{parent}\\A NEW KEY", "", Value(REG_BINARY, b"\1\2\3"))
    edited = editor.commit()
    assert_written_well(edited)
    assert_only(before, walk(edited), set(), {f"{parent}\\a new key"})


def test_first_subkey_of_an_old_hive_is_listed_by_hint() -> None:
    """hivex makes an lh list there whatever the version is; NT 4 does not know that form."""
    data = stored("nt4-server-ee-sp3-SYSTEM")
    editor = HiveEditor(data, "SYSTEM")
    editor.create_key("ControlSet001\\Services\\p2vprobe\\Parameters\\Device0")
    edited = editor.commit()
    assert leaf_kinds(edited) == {"LFRecord"}
    at = edited.rindex(b"lf\1\0")
    assert edited[at + 8:at + 12] in (b"Devi", b"Para")
    assert HiveEditor(edited, "SYSTEM").commit() != b""  # and hivex reads it again


def test_a_real_edit_seen_by_reged_and_reglookup(tmp_path: Path, needs) -> None:
    needs("reged", "reglookup")
    editor = HiveEditor(stored("nt4-server-ee-sp3-SYSTEM"), "SYSTEM")
    editor.create_key("ControlSet001\\Services\\p2vprobe\\Parameters")
    editor.set_value("ControlSet001\\Services\\p2vprobe", "Start", DWord(0x1234))
    editor.set_value("ControlSet001\\Services\\p2vprobe", "Group", Text("SCSI miniport"))
    path = tmp_path / "SYSTEM"
    path.write_bytes(editor.commit())
    subprocess.run(["reged", "-x", path, "HKLM\\SYSTEM", "ControlSet001\\Services\\p2vprobe",
                    tmp_path / "out.reg"], check=True, capture_output=True)
    text = (tmp_path / "out.reg").read_bytes().decode("utf-8", "replace")
    assert "p2vprobe\\Parameters]" in text
    assert '"Start"=dword:00001234' in text
    assert '"Group"="SCSI miniport"' in text
    seen = subprocess.run(["reglookup", "-p", "/ControlSet001/Services/p2vprobe", path], check=True,
                          capture_output=True, text=True).stdout
    assert "/ControlSet001/Services/p2vprobe/Start,DWORD,0x00001234," in seen
    assert "/ControlSet001/Services/p2vprobe/Parameters,KEY," in seen


@pytest.mark.parametrize("minor", [3, 4, 5])
def test_values_of_every_kind_survive_their_neighbour(minor: int) -> None:
    """hivex writes all values of a key anew when one changes."""
    values = {"": Text("default"), "empty": Value(REG_BINARY, b""), "three": Value(REG_BINARY, b"\1\2\3"),
              "Größe": DWord(7),
              "имя": MultiText("a", "b"), "\x81\x9f": Value(0, b"x"), "odd": Value(0xFFFF0012, b"12345"),
              "long": Value(REG_BINARY, bytes(16344)), "number": Value(11, b"12345678"),
              "short number": Value(4, b"\1\2")}
    editor = HiveEditor(renumbered(stored("minimal"), minor), "S")
    editor.create_key("A\\B")
    for name, value in values.items():
        editor.set_value("A\\B", name, value)
    first = editor.commit()
    again = HiveEditor(first, "S")
    again.set_value("a\\b", "THREE", Value(REG_BINARY, b"\4"))
    data = again.commit()
    assert open_hive(data, "S").values("A\\B") == {**values, "three": Value(REG_BINARY, b"\4")}
    assert list(open_hive(data, "S").values("A\\B")) == list(values)
    assert_written_well(data)


def test_the_same_value_again_changes_no_cell() -> None:
    data = stored("nt4-server-ee-sp3-SYSTEM")
    start = open_hive(data, "S").value("ControlSet001\\Services\\atapi", "Start")
    assert start is not None
    editor = HiveEditor(data, "S")
    editor.set_value("ControlSet001\\Services\\atapi", "start", start)
    editor.create_key("controlset001\\services\\ATAPI")
    assert editor.commit()[4096:] == data[4096:]


def test_many_edits_grow_a_hive_once_per_key() -> None:
    data = stored("nt4-server-ee-sp3-SYSTEM")
    editor = HiveEditor(data, "S")
    for number in range(200):
        editor.set_value("ControlSet001\\Services\\atapi", "Start", DWord(number + 5))
    assert len(editor.commit()) - len(data) <= 4096


def test_keys_go_when_they_are_empty() -> None:
    editor = HiveEditor(stored("minimal"), "S")
    editor.create_key("A\\B\\C")
    editor.set_value("A\\B\\C", "v", DWord(1))
    with pytest.raises(GuestError, match="not empty: 0 subkeys, 1 values"):
        editor.delete_key("A\\B\\C")
    with pytest.raises(GuestError, match="not empty: 1 subkeys, 0 values"):
        editor.delete_key("A\\B")
    editor.delete_value("a\\b\\c", "V")
    editor.delete_key("a\\B\\c")
    editor.create_key("A\\B\\D\\E")
    editor.set_value("A\\B\\D\\E", "v", DWord(1))
    editor.delete_key("A\\B\\D", recursive=True)
    data = editor.commit()
    assert walk(data).keys() == {"", "A", "A\\B"}
    assert_written_well(data)
    assert walk(HiveEditor(data, "S").commit()) == walk(data)


def test_what_is_not_there_is_said() -> None:
    editor = HiveEditor(stored("minimal"), "SOFTWARE")
    for act in (lambda: editor.set_value("A", "v", DWord(1)), lambda: editor.delete_value("A", "v"),
                lambda: editor.delete_value("", "v"), lambda: editor.delete_key("A\\B")):
        with pytest.raises(GuestError, match="there is no such") as caught:
            act()
        assert caught.value.where.source == "SOFTWARE"
        assert caught.value.next
    for bad in (lambda: editor.create_key("A\\Größe"), lambda: editor.create_key("A" * 256),
                lambda: editor.set_value("", "a\0b", DWord(1)), lambda: editor.delete_key("")):
        with pytest.raises(ValueError, match=r"no name|cannot be removed"):
            bad()


def test_names_outside_ascii_keep_their_place() -> None:
    """A key beside them is sorted as Windows sorts."""
    data = stored("special")
    editor = HiveEditor(data, "S")
    for name in ("zz", "abcd_", "ABCD", "weird"):
        editor.create_key(name)
    edited = editor.commit()
    assert_written_well(edited)
    assert_only(walk(data), walk(edited), set(), {"zz", "abcd_", "ABCD", "weird"})
    with pytest.raises(GuestError, match="NUL"):
        editor.set_value("zero\0key", "v", DWord(1))


def test_big_data_is_refused_not_rewritten() -> None:
    data = stored("xp-sp3-dell-SYSTEM")
    key = "ControlSet001\\Control\\Session Manager\\AppCompatibility"
    editor = HiveEditor(data, "SYSTEM")
    with pytest.raises(Unsupported, match="big data") as caught:
        editor.set_value(key, "new", DWord(1))
    assert "AppCompatCache" in str(caught.value.where)
    with pytest.raises(Unsupported, match="16345 bytes"):
        editor.set_value("Select", "new", Value(REG_BINARY, bytes(16345)))
    editor.set_value("ControlSet001\\Control\\Session Manager", "new", DWord(1))  # its parent has none
    assert walk(editor.commit())[key] == walk(data)[key]


def test_hives_that_must_not_be_edited() -> None:
    data = stored("minimal")
    for minor in (2, 6):
        with pytest.raises(Unsupported, match=f"format 1.{minor}"):
            HiveEditor(renumbered(data, minor), "S")
    half, _ = dirty(data, data)
    with pytest.raises(GuestError, match="dirty"):
        HiveEditor(half, "S")
    for name in ("WrongOrderHive", "BadListHive", "TruncatedHive"):
        with pytest.raises(GuestError, match="damaged") as caught:
            HiveEditor(stored(name), name)
        assert caught.value.where.offset is not None


def test_a_missing_binding_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hivex", None)
    with pytest.raises(MissingTool, match="hivex") as caught:
        HiveEditor(stored("minimal"), "S")
    assert "python3-hivex" in str(caught.value)


KEYS = st.sampled_from(["A", "a\\b", "A\\C", "B", "B\\b\\c", "_x", "Z\\1", "Z\\10", "Z\\2", "Y\\a b\\q"])
NAMES = st.sampled_from(["", "Start", "START2", "Größe", "n"])
VALUES = st.builds(Value, st.sampled_from([0, 1, 2, 3, 4, 7, 11]), st.binary(max_size=40))


@settings(max_examples=60, deadline=None)
@given(minor=st.sampled_from([3, 5]), edits=st.lists(st.tuples(KEYS, NAMES, VALUES), min_size=1, max_size=12))
def test_random_edits_undone_give_the_same_tree(minor: int, edits: list[tuple[str, str, Value]]) -> None:
    base = HiveEditor(renumbered(stored("minimal"), minor), "S")
    base.create_key("A\\B")
    base.set_value("A\\B", "Start", DWord(3))
    start = base.commit()
    before = open_hive(start, "S")
    editor, made, expected = HiveEditor(start, "S"), [], {}
    for key, name, value in edits:
        parts = key.split("\\")
        for depth in range(1, len(parts) + 1):
            part = "\\".join(parts[:depth]).lower()
            if not before.has(part) and part not in made:
                editor.create_key(part)
                made.append(part)
        editor.set_value(key, name, value)
        expected[key.lower(), name.lower()] = value
    edited = editor.commit()
    assert_written_well(edited)
    tree = open_hive(edited, "S")
    for (key, name), value in expected.items():
        assert tree.value(key, name) == value
    back = HiveEditor(edited, "S")
    for key, name in expected:
        old = before.value(key, name)
        if old is None:
            back.delete_value(key, name)
        else:
            back.set_value(key, name, old)
    for key in reversed(made):
        back.delete_key(key)
    undone = back.commit()
    assert_written_well(undone)
    assert walk(undone) == walk(start)
