"""LVM2: volumes in one piece, in pieces, in stripes and in copies, and texts that lie about them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import lvm as made
from fixtures import md
from p2v.errors import Finding, Severity
from p2v.model import Range, read
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from p2v.volume import Layout, find_volumes, lvmtext
from tests.volume.made_tables import disk as table_disk
from tests.volume.made_tables import sector as table_sector

EXTENT = made.EXTENT
DATA = [numbered_sectors(f"pv{i}", 16 * EXTENT) for i in range(3)]

VOLUMES = {
    "root": made.volume(made.striped(0, 4, [("pv0", 2)])),
    "home": made.volume(made.striped(0, 2, [("pv1", 0)]), made.striped(2, 3, [("pv0", 8)])),
    "fast": made.volume(made.striped(0, 4, [("pv0", 12), ("pv1", 4)], 16384)),
    "twin": made.volume(made.mirror(2, ["twin_mimage_0", "twin_mimage_1"])),
    "twin_mimage_0": made.volume(made.striped(0, 2, [("pv0", 0)]), visible=False),
    "twin_mimage_1": made.volume(made.striped(0, 1, [("pv1", 8)]), made.striped(1, 1, [("pv1", 9)]), visible=False),
    "safe": made.volume(made.raid1(1, ["safe_rimage_0", "safe_rimage_1"])),
    "safe_rimage_0": made.volume(made.striped(0, 1, [("pv0", 15)]), visible=False),
    "safe_rimage_1": made.volume(made.striped(0, 1, [("pv1", 15)]), visible=False),
}


def layout(*devices: bytes) -> Layout:
    return find_volumes({f"disk{index}": MemorySource(device) for index, device in enumerate(devices)})


def devices(text: str, count: int = 2) -> list[bytes]:
    return [made.physical_volume(number, text, DATA[number]) for number in range(count)]


def said(found: Layout, words: str) -> list[Finding]:
    return [finding for finding in found.findings if words in str(finding)]


def extents(number: int, first: int, count: int = 1) -> bytes:
    return DATA[number][first * EXTENT:(first + count) * EXTENT]


def test_every_kind_of_volume() -> None:
    found = layout(*devices(made.group(VOLUMES)))
    assert found.findings == ()
    volumes = {v.name: v for v in found.volumes}
    assert {name: v.layout for name, v in volumes.items()} == {
        "lvm.vg0/root": "simple", "lvm.vg0/home": "spanned", "lvm.vg0/fast": "striped"}
    content = {name: read(v.source, 0, v.source.size) for name, v in volumes.items()}
    assert content["lvm.vg0/root"] == extents(0, 2, 4)
    assert content["lvm.vg0/home"] == extents(1, 0, 2) + extents(0, 8, 3)
    chunks = [extents(number, first, 2)[at:at + 16384]
              for at in range(0, 2 * EXTENT, 16384) for number, first in ((0, 12), (1, 4))]
    assert content["lvm.vg0/fast"] == b"".join(chunks)
    assert all(v.source.size == sum(m.length for m in v.members) for v in volumes.values())
    assert volumes["lvm.vg0/root"].members[0].offset == made.DATA + 2 * EXTENT
    assert volumes["lvm.vg0/root"].origin is not None and volumes["lvm.vg0/root"].origin.manager == "lvm"


def test_both_kinds_of_mirror() -> None:
    old, new = sorted(layout(*devices(made.group(VOLUMES))).mirrors, key=lambda mirror: -mirror.size)
    assert (old.name, old.size, new.name, new.size) == ("lvm.vg0/twin", 2 * EXTENT, "lvm.vg0/safe", EXTENT)
    assert [read(leg.source, 0, old.size) for leg in old.legs] == [extents(0, 0, 2), extents(1, 8, 2)]
    assert [read(leg.source, 0, new.size) for leg in new.legs] == [extents(0, 15), extents(1, 15)]
    assert [leg.generation for leg in old.legs] == [(3,), (3,)]


def test_a_disk_that_was_away_has_the_older_text() -> None:
    first, _ = devices(made.group(VOLUMES, seqno=9))
    _, second = devices(made.group(VOLUMES, seqno=3))
    (old, _) = layout(first, second).mirrors
    assert [leg.generation for leg in old.legs] == [(9,), (3,)]


def test_a_missing_disk_is_named() -> None:
    first, _ = devices(made.group(VOLUMES))
    found = layout(first)
    assert [v.name for v in found.volumes] == ["lvm.vg0/root"]
    assert said(found, "the physical volume pv1 is missing") and said(found, "it was /dev/sdb")
    assert [f.severity for f in said(found, "home cannot be read")] == [Severity.ERROR]
    assert [len(mirror.legs) for mirror in found.mirrors] == [1, 1]
    assert "twin_mimage_1" in found.mirrors[0].missing[0]


def test_in_a_partition_and_on_a_whole_disk() -> None:
    text = made.group({"root": VOLUMES["root"]}, physical=1)
    (device,) = devices(text, 1)
    sectors = len(device) // 512
    whole = table_disk(63 + sectors, {0: table_sector([(0x8E, 63, sectors)])})
    whole[63 * 512:] = device
    for data, start in ((bytes(whole), 63 * 512), (device, 0)):
        found = layout(data)
        assert [v.name for v in found.volumes] == ["lvm.vg0/root"] and found.findings == ()
        assert found.volumes[0].members[0].offset == start + made.DATA + 2 * EXTENT


def test_inside_an_md_member_it_is_the_arrays(tmp_path: Path) -> None:
    (device,) = devices(made.group({"root": VOLUMES["root"]}, physical=1), 1)
    path = tmp_path / "member"
    path.write_bytes(device + bytes(1 << 17))
    md.write_member(path, md.Array("1.0", len(device)), md.Disk(0))
    found = layout(path.read_bytes())
    assert not found.volumes
    (mirror,) = found.mirrors
    assert [v.name for v in find_volumes({"disk0": mirror.legs[0].source}).volumes] == ["lvm.vg0/root"]


def test_text_that_goes_round() -> None:
    text = made.group(VOLUMES)
    size = made.DATA - made.AREA
    (first, second) = (made.physical_volume(n, text, DATA[n], offset=size - 512) for n in (0, 1))
    assert len(layout(first, second).volumes) == 3


def test_two_groups_of_one_name() -> None:
    one = made.physical_volume(0, made.group({"root": VOLUMES["root"]}, physical=1), DATA[0])
    text = made.group({"root": VOLUMES["root"]}, physical=1, number=901).replace(
        made.dashed(made.uuid(0)), made.dashed(made.uuid(7)))
    two = made.physical_volume(7, text, DATA[1])
    assert [v.name for v in layout(one, two).volumes] == ["lvm.vg0/root", "lvm.vg0-2/root"]


@pytest.mark.parametrize("volumes, words", [
    ({"a": made.volume(made.striped(0, 2, [("a", 0)]))}, "a is a part of itself"),
    ({"a": made.volume(made.striped(0, 1, [("b", 0)])), "b": made.volume(made.striped(0, 1, [("a", 0)]))},
     "is a part of itself"),
    ({"a": made.volume(made.striped(0, 1, [("nobody", 0)]))}, "nobody is not described"),
    ({"a": made.volume(made.striped(0, 4, [("pv0", 14)]))}, "ends before it"),
    ({"a": made.volume(made.striped(1, 4, [("pv0", 0)]))}, "do not meet at extent 0"),
    ({"a": made.volume(made.striped(0, 3, [("pv0", 0), ("pv1", 0)], 4096))}, "3 extents on 2 stripes"),
    ({"a": made.volume(made.striped(0, 4, [("pv0", 0), ("pv1", 0)]))}, "chunks of 0 bytes"),
    ({"a": made.volume(made.striped(0, 0, [("pv0", 0)]))}, "no length"),
    ({"a": made.volume(made.striped(0, 1 << 50, [("pv0", 0)]))}, "extent_count is"),
    ({"a": made.volume(made.striped(0, 1, [("pv0", 1 << 40)]))}, "a part at"),
    ({"a": made.volume(made.striped(0, 1, [("pv0", 0)]).replace("striped", "thin-pool"))}, "the type thin-pool"),
    ({"a": made.volume()}, "no segments"),
    ({"a": made.volume(made.mirror(2, ["b", "b"])), "b": made.volume(made.striped(0, 1, [("pv0", 0)]), visible=False)},
     "no mirror"),
    ({"a": made.volume(made.mirror(2, ["b"])),
      "b": made.volume(made.striped(0, 1, [("pv0", 0)]), made.striped(1, 1, [("pv1", 0)]), visible=False)},
     "lies in 2 pieces"),
])
def test_texts_that_make_no_sense(volumes: dict[str, str], words: str) -> None:
    found = layout(*devices(made.group(volumes)))
    assert not found.volumes and not found.mirrors and said(found, words)


def test_parts_of_parts_without_end() -> None:
    """Each volume names the next one many times: without a limit, this would take years."""
    volumes = {f"v{i}": made.volume(made.striped(0, 16, [(f"v{i + 1}", 0)] * 16, 4096)) for i in range(30)}
    found = layout(*devices(made.group(volumes)))
    assert not found.volumes and len(found.findings) == 30


@pytest.mark.parametrize("text", [
    "a", "a {", "a }", "}", "a = [", "a = [1, {]", "a = {", 'a = "', "a = 1 2 =", "= 1", "a { b = 1 } }", "\x01",
    "a {" * 100, "a = " + "9" * 30])
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        lvmtext.parse(text)
    assert said(layout(made.physical_volume(0, text, DATA[0])), "the metadata of LVM cannot be trusted")


def test_syntax() -> None:
    assert lvmtext.parse('a { # note\n b = [ "x}", -1, ]\n c-d.e = "q\\"" 1f { } } z = 3') == {
        "a": {"b": ["x}", -1], "c-d.e": 'q\\"', "1f": {}}, "z": 3}


@pytest.mark.parametrize("at", [*range(512, 640, 7), *range(made.AREA, made.AREA + 80, 5), made.AREA + 600])
def test_every_flipped_byte_gives_an_answer(at: int) -> None:
    first, second = devices(made.group(VOLUMES))
    damaged = bytearray(first)
    damaged[at] ^= 0x41
    found = layout(bytes(damaged), second)
    assert found.findings or len(found.volumes) == 3
    assert all(f.why and f.next for f in found.findings)


def test_members_that_are_cut_short() -> None:
    first, _ = devices(made.group({"root": VOLUMES["root"]}, physical=1))
    for size in (512, 1024, made.AREA, made.AREA + 600, made.DATA, made.DATA + EXTENT):
        found = layout(first[:size])
        assert not found.volumes and found.findings


def test_absurd_numbers_with_good_checksums() -> None:
    (first,) = devices(made.group({"root": VOLUMES["root"]}, physical=1), 1)
    for at, value in ((24, 1 << 63), (32, 0), (32, 1024), (40, 1 << 62), (40, 0), (48, 1 << 60), (48, 0)):
        damaged = bytearray(first)
        struct.pack_into("<Q", damaged, made.AREA + at, value)
        struct.pack_into("<I", damaged, made.AREA, made.checksum(bytes(damaged[made.AREA + 4:made.AREA + 512])))
        found = layout(bytes(damaged))
        assert not found.volumes


def test_what_cannot_be_read_is_said() -> None:
    (first,) = devices(made.group({"root": VOLUMES["root"]}, physical=1), 1)
    for spot in (512, made.AREA, made.AREA + 512):
        found = find_volumes({"disk0": FaultySource(MemorySource(first), [Range(spot, 512)])})
        assert said(found, "nobody can tell") and not found.volumes


@settings(deadline=None, max_examples=80)
@given(st.text(alphabet='ab1 "{}=[],#\n\\-', max_size=60))
def test_any_text_gives_an_answer(text: str) -> None:
    try:
        lvmtext.parse(text)
    except ValueError as error:
        assert str(error)


def test_pvck_reads_our_volumes(tmp_path: Path, needs) -> None:
    needs("pvck")
    text = made.group(VOLUMES)
    for path in made.write(tmp_path, devices(text)):
        told = subprocess.run(["pvck", "--dump", "metadata", str(path)], capture_output=True, text=True, check=False)
        assert "CHECK" not in told.stdout + told.stderr, told
        assert text.strip() in told.stdout
