"""The reading door: raw values as the hive holds them, damage named, never a hang."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from p2v.errors import GuestError, LayoutError, Unsupported
from p2v.model import DWord, HiveTree, Value
from p2v.registry.hive import HiveEditor
from p2v.registry.reader import open_hive
from tests.registry.hive_witness import stored, unpacked


def everything(tree: HiveTree, most: int = 100_000) -> dict[str, dict[str, Value]]:
    """All keys and values; fails where a damaged hive never ends."""
    found: dict[str, dict[str, Value]] = {}
    todo = [""]
    while todo:
        key = todo.pop()
        found[key] = dict(tree.values(key))
        assert len(found) < most
        todo += [f"{key}\\{name}" if key else name for name in tree.subkeys(key)]
    return found


def by_hivex(data: bytes) -> dict[str, list[tuple[str, int, bytes]]]:
    """The same through hivex, which shares no code with python-registry."""
    import hivex
    with open(os.memfd_create("hive"), "wb") as file:
        file.write(data)
        file.flush()
        handle = hivex.Hivex(f"/proc/self/fd/{file.fileno()}")
        found: dict[str, list[tuple[str, int, bytes]]] = {}
        todo = [("", handle.root())]
        while todo:
            path, node = todo.pop()
            found[path] = [(handle.value_key(value), *handle.value_value(value))
                           for value in handle.node_values(node)]
            todo += [(f"{path}\\{handle.node_name(child)}".lstrip("\\"), child)
                     for child in handle.node_children(node)]
    return found


@pytest.mark.parametrize("name", ["nt4-server-ee-sp3-SYSTEM", "nt4-server-ee-sp3-SOFTWARE", "BigDataHive",
                                  "StringValuesHive", "UnicodeHive", "EmptyHive", "minimal"])
def test_every_value_is_what_hivex_reads(name: str) -> None:
    data = stored(name)
    ours = {key: [(value, each.type, each.data) for value, each in values.items()]
            for key, values in everything(open_hive(data, name)).items()}
    assert ours == by_hivex(data)


def test_every_value_of_the_xp_systems(corpus: Path) -> None:
    for name in ("xp-x64-sp2-nt52-vbox/SYSTEM.xz", "xp-joe/NTUSER.DAT.xz"):
        data = unpacked(corpus / "hives" / name)
        ours = {key: [(value, each.type & 0xFFFFFFFF, each.data) for value, each in values.items()]
                for key, values in everything(open_hive(data, name)).items()}
        assert ours == by_hivex(data)


def test_known_facts_of_a_known_hive() -> None:
    """What FACTS.md says of the NT 4 server: BusLogic is its boot driver."""
    tree = open_hive(stored("nt4-server-ee-sp3-SYSTEM"), "SYSTEM")
    assert list(tree.subkeys("")) == ["ControlSet001", "ControlSet002", "Select", "Setup"]
    assert tree.value("select", "DEFAULT") == DWord(1)
    assert tree.spelling("CONTROLSET001\\services\\buslogic") == "ControlSet001\\Services\\BusLogic"
    assert tree.spelling("") == ""
    values = tree.values("ControlSet001\\Services\\buslogic")
    assert values["Start"] == DWord(0)
    assert values["ImagePath"].text == "System32\\DRIVERS\\buslogic.sys"
    group = tree.value("ControlSet001\\Control\\ProductOptions", "producttype")
    assert group is not None
    assert group.text == "LanmanNT"


def test_what_is_not_there() -> None:
    tree = open_hive(stored("minimal"), "SOFTWARE")
    assert not tree.has("A\\B")
    assert tree.spelling("A") is None
    assert list(tree.subkeys("A")) == []
    assert tree.value("A", "") is None
    assert tree.value("", "x") is None
    assert dict(tree.values("A\\B")) == {}
    assert not tree.has("a\\" * 5000)


def test_names_are_units_not_windows_1252() -> None:
    tree = open_hive(stored("special"), "S")
    assert sorted(tree.subkeys("")) == ["abcd_äöüß", "weird™", "zero\0key"]
    assert tree.has("ABCD_ÄÖÜß")
    editor = HiveEditor(stored("minimal"), "S")
    editor.set_value("", "\x81\x8d", DWord(1))  # bytes that windows-1252 does not have
    assert list(open_hive(editor.commit(), "S").values("")) == ["\x81\x8d"]


def test_every_hive_of_the_corpus_opens_or_is_refused(corpus: Path) -> None:
    refused = {}
    for path in sorted(corpus.joinpath("hives").rglob("*")):
        if path.is_dir() or path.stat().st_size > 700_000:
            continue
        try:
            name = path.name.removesuffix(".xz")
            everything(open_hive(unpacked(path), name))
        except (GuestError, Unsupported) as error:
            assert error.where.source == name
            refused[name] = error.what
    assert {name for name in refused if "LOG" not in name} == {
        "BadBaseBlockHive", "BadListHive", "InvalidParentHive", "TruncatedHive"}
    assert "1.1" in refused["BadBaseBlockHive"]
    assert "491520 bytes are needed, 12288 are there" in refused["TruncatedHive"]
    assert "not its parent" in refused["InvalidParentHive"]


def sample() -> bytes:
    """A hive of 8 to 12 KiB with a bit of everything."""
    editor = HiveEditor(stored("minimal"), "S")
    for number in range(6):
        editor.create_key(f"A\\key {number}\\deep")
        editor.set_value(f"A\\key {number}", "Start", DWord(number))
        editor.set_value(f"A\\key {number}", "Data", Value(3, bytes(20 * number)))
    return editor.commit()


def find(data: bytes, signature: bytes, which: int = 0) -> int:
    """File offset of the which-th cell content with a signature."""
    at = 4096
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return at


def test_a_list_that_leads_back_to_the_root() -> None:
    data = bytearray(sample())
    at = find(data, b"lh")  # any list: its first element now names the root
    root = struct.unpack_from("<I", data, 36)[0]
    while at > 0:
        struct.pack_into("<I", data, at + 4, root)
        at = data.find(b"lh", at + 1)
    with pytest.raises(GuestError, match="not its parent"):
        everything(open_hive(bytes(data), "S"), 100)


@pytest.mark.parametrize(("signature", "field", "number"), [
    (b"nk", 20, 0xFFFFFFF0), (b"nk", 28, 0x7FFFFFF8), (b"nk", 36, 0x40000000), (b"nk", 40, 0xFFFFFFF8),
    (b"nk", 72, 0xFFFF), (b"vk", 2, 0xFFFF), (b"vk", 4, 0x7FFFFFFF), (b"vk", 4, 0x80000005),
    (b"vk", 8, 0x7FFFFFF0), (b"lh", 2, 0xFFFF), (b"lh", 4, 0xFFFFFFFF),
])
def test_absurd_numbers_are_refused_at_once(signature: bytes, field: int, number: int) -> None:
    data = sample()
    seen = 0
    for which in range(data.count(signature, 4096)):
        copy = bytearray(data)
        struct.pack_into("<H" if number == 0xFFFF else "<I", copy, find(data, signature, which) + field, number)
        try:
            everything(open_hive(bytes(copy), "S"), 200)
        except (GuestError, LayoutError) as error:
            assert error.where.source == "S"
            seen += 1
    assert seen


def test_an_index_root_of_itself_is_refused() -> None:
    """python-registry would follow it until the stack ends."""
    data = bytearray(sample())
    at = find(data, b"lh")
    data[at:at + 2] = b"ri"
    struct.pack_into("<I", data, at + 4, at - 4 - 4096)
    with pytest.raises(GuestError, match="'ri'"):
        everything(open_hive(bytes(data), "S"), 100)
