"""GPT disks: both tables, their damage, and what no table may make the reader do."""

from __future__ import annotations

import json
import lzma
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.errors import Finding, Severity
from p2v.model import Range, Volume, read
from p2v.testing import FaultySource, MemorySource, numbered_sectors
from p2v.volume import find_volumes, gpt
from tests.volume.ldmdisks import Ldm
from tests.volume.made_tables import gpt as make_gpt
from tests.volume.made_tables import gpt_header, sector

SIZE = 4096 * 512
LAST = 4095
BASIC = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
RESERVED = str(gpt.MICROSOFT_RESERVED)
ROWS = [(RESERVED, 34, 99), (BASIC, 100, 1099), (LINUX, 1100, 1199)]


def disk(rows: list[tuple[str, int, int]] = ROWS, unit: int = 512) -> bytearray:
    data = bytearray(numbered_sectors("disk0", SIZE * unit // 512))
    make_gpt(data, rows, unit)
    return data


def find(data: bytes) -> tuple[list[Volume], list[Finding]]:
    found = list(gpt.find({"disk0": MemorySource(data)}))
    findings = [f for f in found if isinstance(f, Finding)]
    assert all(f.what and f.why and f.next and f.where.source and f.where.offset is not None for f in findings)
    return [v for v in found if isinstance(v, Volume)], findings


def test_data_partitions_are_volumes() -> None:
    data = disk()
    volumes, (seen,) = find(data)
    assert [(v.name, v.layout, v.members[0].offset, v.source.size) for v in volumes] == [
        ("gpt.disk0p2", "basic", 100 * 512, 1000 * 512), ("gpt.disk0p3", "basic", 1100 * 512, 100 * 512)]
    assert volumes[0].origin and (volumes[0].origin.manager, volumes[0].origin.name) == ("gpt", "part 1")
    assert read(volumes[0].source, 0, 512) == data[51200:51712]
    assert seen.severity is Severity.INFO and seen.why == "none of these guests boots from it"
    assert "Microsoft reserved" in seen.what and "basic data" in seen.what


def test_sectors_of_4096_bytes() -> None:
    data = disk(unit=4096)
    (volume, _) = (v for v in gpt.find({"disk0": MemorySource(data, sector_size=4096)}) if isinstance(v, Volume))
    assert (volume.members[0].offset, volume.source.size) == (100 * 4096, 1000 * 4096)


def test_a_member_of_a_dynamic_group_has_no_volume_of_its_own() -> None:
    (seen,) = gpt.find({"disk0": Ldm("2008r2-mirrored-2")})
    assert isinstance(seen, Finding) and seen.what == "disk0: GPT disk: LDM data, LDM metadata, Microsoft reserved"


@pytest.mark.parametrize("place, words, offset", [
    (512 + 60, "primary header", 512), (2 * 512 + 200, "primary header or array", 1024),
    (LAST * 512 + 60, "backup header", LAST * 512),
    ((LAST - 32) * 512 + 5, "backup header or array", (LAST - 32) * 512)])
def test_one_damaged_table_is_a_warning(place: int, words: str, offset: int) -> None:
    data = disk()
    data[place] ^= 0xFF
    volumes, findings = find(data)
    assert len(volumes) == 2
    (warning,) = [f for f in findings if f.severity is Severity.WARNING]
    assert words in warning.what and warning.where.offset == offset


def test_both_damaged_is_an_error() -> None:
    data = disk()
    data[512 + 60] ^= 1
    data[LAST * 512 + 60] ^= 1
    volumes, (lost,) = find(data)
    assert not volumes and lost.severity is Severity.ERROR and "GPT cannot be read" in lost.what


def test_tables_that_differ_are_said() -> None:
    data = disk()
    array = bytearray(data[1024:1024 + 128 * 128])
    array[128 + 32] += 1
    data[1024:1024 + len(array)] = array
    data[512:512 + 92] = gpt_header(1, LAST, 2, zlib.crc32(array), LAST)
    volumes, findings = find(data)
    assert volumes[0].members[0].offset == 101 * 512 and any("arrays of its GPT differ" in f.what for f in findings)


@pytest.mark.parametrize("rows, words", [
    ([(BASIC, 100, 5000)], "outside the disk"), ([(BASIC, 200, 100)], "outside the disk"),
    ([(BASIC, 2 ** 64 - 1, 2 ** 64 - 1)], "outside the disk"),
    ([(BASIC, 100, 300), (LINUX, 300, 400)], "claim the same bytes"),
    ([(BASIC, 100, 300), (LINUX, 150, 160), (LINUX, 200, 210)], "claim the same bytes")])
def test_entries_that_cannot_be(rows: list[tuple[str, int, int]], words: str) -> None:
    volumes, findings = find(disk(rows))
    assert not volumes and any(words in f.what and f.severity is Severity.ERROR for f in findings)


@pytest.mark.parametrize("values", [{"count": 2 ** 32 - 1}, {"size": 0}, {"size": 2 ** 31}, {"array": 2 ** 60}])
def test_absurd_headers(values: dict[str, int]) -> None:
    data = disk()
    usual = {"own": 1, "other": LAST, "array": 2, "array_crc": 0, "last": LAST}
    data[512:512 + 92] = gpt_header(**(usual | values))
    volumes, findings = find(data)
    assert len(volumes) == 2 and findings[0].severity is Severity.WARNING


def test_a_table_counts_only_under_a_protective_entry() -> None:
    data = disk()
    data[:512] = sector([(7, 63, 500)])
    volumes, (remains,) = find(data)
    assert not volumes and "remains of a GPT" in remains.what and remains.severity is Severity.INFO
    data[:512] = sector([(0xEE, 1, 33), (7, 100, 1000)])
    assert any("beside the one that protects" in f.what for f in find(data)[1])
    assert {v.name for v in find_volumes({"disk0": MemorySource(data)}).volumes} == {
        "disk0p2", "gpt.disk0p2", "gpt.disk0p3"}


def test_sectors_that_cannot_be_read() -> None:
    for bad, volumes in (([1], 2), ([2], 2), ([LAST], 2), ([1, LAST], 0)):
        source = FaultySource(MemorySource(disk()), [Range(number * 512, 512) for number in bad])
        found = list(gpt.find({"disk0": source}))
        assert sum(isinstance(one, Volume) for one in found) == volumes
        assert any(isinstance(one, Finding) and one.severity is not Severity.INFO for one in found)


def test_real_tables_of_others(corpus: Path) -> None:
    for name in ("gpt", "gpt_hybrid"):
        head = lzma.decompress((corpus / f"ntfs/{name}.bin.xz").read_bytes())
        found = list(gpt.find({"disk0": MemorySource(head)}))  # the first 32 KiB alone: no entry fits, no backup
        assert not [one for one in found if isinstance(one, Volume)]
        assert any(isinstance(one, Finding) and "outside the disk" in one.what for one in found)


def test_sfdisk_sees_the_same(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("sfdisk")
    image = tmp_path / "disk"
    image.write_bytes(disk())
    shown = json.loads(subprocess.run(["sfdisk", "--json", str(image)], capture_output=True, check=True).stdout)
    table = gpt.read_table("disk0", MemorySource(disk()))
    assert [(p["start"] * 512, p["size"] * 512, p["type"].lower(), p["name"])
            for p in shown["partitiontable"]["partitions"]] == [
        (p.offset, p.length, str(p.type), p.name) for p in table.partitions]


BASE = disk()


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from([0, 512, 1024, LAST * 512, (LAST - 32) * 512]), st.integers(0, 511),
                          st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_never_changes_what_is_found_in_silence(flips: list[tuple[int, int, int]]) -> None:
    data = bytearray(BASE)
    for start, inside, value in flips:
        data[start + inside] = value
    volumes, findings = find(data)
    whole, _ = find(BASE)
    assert ([v.members for v in volumes] == [v.members for v in whole]
            or any(f.severity is not Severity.INFO for f in findings) or data[:512] != BASE[:512])
