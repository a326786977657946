"""Partition tables: how NT counts them, and every way in which they lie."""

from __future__ import annotations

import importlib.util
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.errors import Finding, Severity
from p2v.model import Partition, Range
from p2v.testing import FaultySource, MemorySource
from p2v.volume import Layout, find_volumes, parted
from tests.conftest import absent
from tests.volume.made_tables import chain, disk, sector


def layout(data: bytes) -> Layout:
    return find_volumes({"disk0": MemorySource(bytes(data))})


def unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def said(found: Layout, words: str) -> list[Finding]:
    return [finding for finding in found.findings if words in finding.what]


def numbers(found: Layout) -> list[tuple[int, int]]:
    return [(p.type, p.number) for p in found.partitions]


def usual() -> bytearray:
    """Vendor partition, gap in the table, container, a primary after it; three logicals."""
    data = disk(8192, {0: sector([(0x12, 63, 100), (0, 0, 0), (0x0F, 1000, 4000), (7, 6000, 2192)], active=3)})
    chain(data, 1000, [500, 600, 700])
    return data


def test_numbers_of_arc_paths_and_of_volumes() -> None:
    found = layout(usual())
    assert numbers(found) == [(0x12, 1), (0x0F, 0), (7, 2), (7, 3), (5, 0), (7, 4), (5, 0), (7, 5)]
    assert [v.name for v in found.volumes] == ["disk0p1", "disk0p4", "disk0p5", "disk0p6", "disk0p7"]
    assert [v.partition.number for v in found.volumes if v.partition] == [1, 2, 3, 4, 5]
    assert [p.active for p in found.partitions].index(True) == 2
    assert found.findings == ()


def test_where_entries_and_volumes_lie() -> None:
    data = usual()
    found = layout(data)
    for partition in found.partitions:
        _, start, type, end, _, count = struct.unpack_from("<B3sB3sII", data, partition.entry_offset)
        assert (type, start, end, count * 512) == (
            partition.type, partition.start_chs, partition.end_chs, partition.length)
    second = found.volumes[3]
    assert second.members[0].offset == second.partition.offset == (1000 + 563 + 63) * 512
    assert second.source.size == 600 * 512


def test_a_linux_container_counts_for_windows_and_its_logicals_do_not() -> None:
    data = disk(8192, {0: sector([(0x85, 100, 4000), (7, 5000, 100)])})
    chain(data, 100, [500])
    found = layout(data)
    assert numbers(found) == [(0x85, 1), (7, 2), (7, 0)]
    assert [v.name for v in found.volumes] == ["disk0p2", "disk0p5"]
    assert said(found, "extended partition of Linux")


@pytest.mark.parametrize("rows, words, severity, volumes", [
    ([(7, 63, 100), (7, 100, 100)], "claim the same bytes", Severity.ERROR, 0),
    ([(7, 0, 100)], "claim the same bytes", Severity.ERROR, 0),
    ([(7, 63, 9000)], "past the end of the disk", Severity.ERROR, 1),
    ([(7, 9000, 100)], "past the end of the disk", Severity.ERROR, 0),
    ([(0x42, 63, 1000)], "dynamic disk", Severity.ERROR, 0),
    ([(0x87, 63, 1000), (6, 2000, 10)], "that no hive describes", Severity.ERROR, 1),
    ([(0xC6, 63, 1000)], "that no hive describes", Severity.ERROR, 0),
    ([(0xEE, 1, 8191)], "GPT cannot be read", Severity.ERROR, 0),
    ([(0x55, 63, 100)], "overlay", Severity.WARNING, 1),
    ([(7, 63, 0), (7, 100, 10)], "no length", Severity.WARNING, 1),
    ([(5, 100, 1000), (0x0F, 2000, 100)], "second extended", Severity.WARNING, 0),
    ([(5, 100, 1000), (7, 1090, 100)], "reaches into", Severity.WARNING, 1),
    ([(5, 100, 1000)], "has no 55 AA", Severity.WARNING, 0),
    ([(5, 9000, 1000)], "leaves the disk", Severity.ERROR, 0),
])
def test_what_is_wrong_is_said(rows: list[tuple[int, int, int]], words: str, severity: Severity,
                               volumes: int) -> None:
    found = layout(disk(8192, {0: sector(rows)}))
    assert [finding.severity for finding in said(found, words)] == [severity]
    assert len(found.volumes) == volumes
    assert all(f.where.source and f.where.offset is not None and f.why and f.next for f in found.findings)


def test_an_empty_entry_still_counts() -> None:
    assert numbers(layout(disk(8192, {0: sector([(7, 63, 0), (7, 100, 10)])}))) == [(7, 2)]


def test_a_partition_past_the_end_is_cut_to_the_disk() -> None:
    (volume,) = layout(disk(8192, {0: sector([(7, 63, 9000)])})).volumes
    assert volume.source.size == (8192 - 63) * 512


@pytest.mark.parametrize("links", [[0], [500, 0], [500, 500]])
def test_a_chain_that_loops_ends(links: list[int]) -> None:
    data = disk(8192, {0: sector([(5, 1000, 4000)])})
    for place, to in zip([0, *links], links, strict=False):
        data[(1000 + place) * 512:(1001 + place) * 512] = sector([(7, 63, 100), (5, to, 200)])
    found = layout(data)
    assert len(said(found, "is a loop")) == 1
    assert len(found.volumes) == len(set(links) | {0})


def test_a_chain_without_end_ends() -> None:
    data = disk(8192, {0: sector([(5, 1000, 7000)])})
    for link in range(1000):
        data[(1000 + 2 * link) * 512:(1001 + 2 * link) * 512] = sector([(7, 1, 1), (5, 2 * link + 2, 2)])
    found = layout(data)
    assert len(said(found, "more than 256 links")) == 1
    assert len(found.volumes) == 256


def test_a_link_out_of_the_container_and_odd_entries() -> None:
    data = disk(8192, {0: sector([(5, 1000, 500)])})
    data[1000 * 512:1001 * 512] = sector([(7, 1, 100), (5, 1000, 100), (7, 200, 10), (5, 50, 10)])
    data[2000 * 512:2001 * 512] = sector([(7, 1, 10)])
    found = layout(data)
    for words in ("outside the extended partition", "third or fourth entry", "two links"):
        assert len(said(found, words)) == 1, words
    assert [v.name for v in found.volumes] == ["disk0p5", "disk0p6", "disk0p7"]


def test_no_table() -> None:
    for data in (bytes(1 << 20), bytes(disk(64, {0: sector([(7, 1, 10)], signature=b"\0\0")}))):
        found = layout(data)
        assert said(found, "no partition table") and not found.partitions and not found.volumes


def test_a_disk_shorter_than_a_sector_is_a_finding() -> None:
    (finding,) = layout(b"short").findings
    assert finding.severity is Severity.ERROR and "5" in finding.why


def test_flags() -> None:
    data = disk(8192, {0: sector([(7, 63, 100), (7, 200, 100)], active=0)})
    data[446 + 16] = 0x80
    assert said(layout(data), "more than one partition is active")
    data[446 + 16] = 0x81
    assert said(layout(data), "neither active nor inactive: 0x81")


def test_a_superfloppy_is_a_volume_without_a_partition(corpus: Path) -> None:
    data = unpacked(corpus / "ntfs/fat32_xp_none.img.xz")
    found = layout(data)
    assert [(v.name, v.partition, v.source.size) for v in found.volumes] == [("disk0", None, len(data))]
    assert said(found, "a filesystem starts at sector 0")


def test_a_bad_link_costs_the_rest_of_the_chain_only() -> None:
    source = FaultySource(MemorySource(bytes(usual())), [Range((1000 + 563) * 512, 512)])
    found = find_volumes({"disk0": source})
    assert [v.name for v in found.volumes] == ["disk0p1", "disk0p4", "disk0p5"]
    assert [f.severity for f in found.findings] == [Severity.ERROR]


def test_an_unreadable_table_is_a_finding_and_other_disks_are_read() -> None:
    bad = FaultySource(MemorySource(bytes(8192)), [Range(0, 512)])
    found = find_volumes({"disk0": bad, "disk1": MemorySource(bytes(usual()))})
    assert [f.severity for f in found.findings] == [Severity.ERROR]
    assert found.volumes[0].name == "disk1p1"


def test_a_table_that_windows_10_made(corpus: Path) -> None:
    data = unpacked(corpus / "ntfs/mbr-win10-extended.raw.xz")
    source = MemorySource(data)
    found = find_volumes({"disk0": source})
    assert [p.number for p in found.partitions if p.number] == [1, 2, 3, 4, 5, 6, 7]
    assert [v.name[-2:] for v in found.volumes] == ["p1", "p2", "p3", "p5", "p6", "p7", "p8"]
    assert found.findings == ()
    assert libparted(source, found.partitions) == ()


def test_a_dynamic_disk_that_windows_2003_made(corpus: Path) -> None:
    found = layout(unpacked(corpus / "ldm/ldm-2003r2-simple-1.img.xz"))
    assert [(p.type, p.offset, p.length) for p in found.partitions] == [(0x42, 63 * 512, 96327 * 512)]
    assert [v.name for v in found.volumes] == ["ldm.Volume1"]
    assert [f.severity for f in found.findings] == [Severity.WARNING]  # nine disks of the group were not given


# -- libparted as the witness


def libparted(source: MemorySource, partitions: tuple[Partition, ...]) -> tuple[Finding, ...]:
    if importlib.util.find_spec("parted") is None:
        absent("python3-parted is not installed")
    return parted.compare("disk0", source, partitions)


@settings(deadline=None, max_examples=50)
@given(primaries=st.lists(st.integers(1, 500), max_size=3),
       logicals=st.lists(st.integers(1, 500), max_size=12), gap=st.integers(1, 70))
def test_libparted_sees_the_same_partitions(primaries: list[int], logicals: list[int], gap: int) -> None:
    rows, start = [], 100
    for length in primaries:
        rows.append((7, start, length))
        start += length + 10
    if logicals:
        rows.append((0x0F, start, sum(logicals) + gap * len(logicals)))
    data = disk(16384, {0: sector(rows)})
    chain(data, start, logicals, gap)
    source = MemorySource(bytes(data))
    found = find_volumes({"disk0": source})
    assert len(found.volumes) == len(primaries) + len(logicals) and not found.findings
    assert libparted(source, found.partitions) == ()


def test_libparted_disagrees_where_it_should() -> None:
    source = MemorySource(bytes(usual()))
    found = find_volumes({"disk0": source})
    assert libparted(source, found.partitions) == ()
    fewer = libparted(source, found.partitions[1:])
    assert ["libparted sees a partition of 51200 bytes at 0x7e00, p2v does not" in f.what for f in fewer] == [True]
    overlapping = MemorySource(bytes(disk(8192, {0: sector([(7, 63, 100), (7, 100, 100)])})))
    partitions = find_volumes({"disk0": overlapping}).partitions
    assert "does not accept" in libparted(overlapping, partitions)[0].what


# -- overlays


@pytest.mark.parametrize("at, content, words", [
    (5 * 512, b"Ontrack Data International", "ontrack"), (0x20, b"EZ-BIOS: Hold the CTRL key", "ez-bios"),
    (2, b"\x40\x01", "mark at byte 0x140"), (512, sector([(7, 63, 100)]), "a second partition table in sector 1")])
def test_an_overlay_without_its_type_is_said(at: int, content: bytes, words: str) -> None:
    plain = disk(8192, {0: sector([(7, 63, 1000)])})
    plain[0x140:0x143] = b"\xaa\x55\x01"  # a mark alone, that nothing points at
    assert layout(plain).findings == ()
    plain[at:at + len(content)] = content
    found = layout(plain)
    (finding,) = said(found, "disk manager's overlay")
    assert words in finding.what and finding.severity is Severity.WARNING
    assert [v.name for v in found.volumes] == ["disk0p1"]


def test_no_overlay_where_there_is_none() -> None:
    plain = disk(8192, {0: sector([(7, 63, 1000)]), 1: sector([(7, 63, 1000)]), 100: b"OnTrack".ljust(512)})
    assert layout(plain).findings == ()  # a copy of the table; a file
    shown = disk(8192, {0: sector([(0x55, 63, 1000)]), 5: b"EZ-Drive".ljust(512)})
    assert len(layout(shown).findings) == 1
    unreadable = FaultySource(MemorySource(bytes(plain)), [Range(512, 512)])
    assert find_volumes({"disk0": unreadable}).volumes


# -- damage


@pytest.mark.parametrize("table", [0, 1000, 1563])
def test_every_flipped_byte_gives_an_answer(table: int) -> None:
    data = usual()
    for place in range(table * 512 + 440, table * 512 + 512):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= flip
            for volume in layout(damaged).volumes:
                assert 0 < volume.source.size <= len(data)


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=66, max_size=66), st.binary(min_size=66, max_size=66))
def test_any_table_gives_an_answer(first: bytes, second: bytes) -> None:
    data = disk(4096, {0: bytes(446) + first[:64] + b"\x55\xaa", 9: bytes(446) + second})
    data[450:462] = struct.pack("<B3sII", 5, bytes(3), 9, 4000)
    found = layout(data)
    assert all(v.source.size <= len(data) for v in found.volumes)
