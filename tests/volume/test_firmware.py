"""RAID that firmware makes: Intel's and DDF's RAID 1 are read, others are said, none is taken for a plain disk."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import firmware as made
from fixtures import md
from p2v.errors import Finding, Severity
from p2v.model import Mirror, Range, read
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource
from p2v.volume import Layout, find_volumes, firmware, metadata_ranges
from tests.conftest import absent
from tests.volume.made_tables import disk as table_disk
from tests.volume.made_tables import sector as table_sector

Metadata = Callable[[int], Mapping[int, bytes]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> md.Content:
    return md.make_content(tmp_path_factory.mktemp("whole"), whole=True)


def members(folder: Path, whole: md.Content, *metadata: Metadata) -> list[Path]:
    contents = [whole.now, whole.before]
    return [made.member(folder / f"m{i}", contents[i % 2], each) for i, each in enumerate(metadata)]


def layout(*paths: Path) -> Layout:
    return find_volumes({f"disk{index}": open_disk(str(path)) for index, path in enumerate(paths)})


def one_mirror(found: Layout) -> Mirror:
    (mirror,) = found.mirrors
    assert found.volumes == () and found.partitions == ()
    return mirror


def said(found: Layout, words: str) -> list[Finding]:
    return [finding for finding in found.findings if words in finding.what]


# -- Intel and DDF, RAID 1


def test_an_intel_mirror(whole: md.Content, tmp_path: Path) -> None:
    found = layout(*members(tmp_path, whole, made.imsm(whole.size), made.imsm(whole.size, generation=12)))
    mirror = one_mirror(found)
    assert (mirror.name, mirror.size, mirror.origin.manager, mirror.missing) == ("imsm.Boot", whole.size, "imsm", ())
    assert [leg.generation for leg in mirror.legs] == [(20,), (12,)] and found.findings == ()
    assert read(mirror.legs[0].source, 0, mirror.size) == whole.now.read_bytes()
    assert [v.name for v in find_volumes({"disk0": mirror.legs[1].source}).volumes] == ["disk0p1"]


def test_an_intel_mirror_that_is_being_rebuilt(whole: md.Content, tmp_path: Path) -> None:
    """Which disk is the new one stands on neither: both are in doubt."""
    rebuilding = made.imsm(whole.size, state=2, order=(0, 1 | 1 << 24))
    mirror = one_mirror(layout(*members(tmp_path, whole, rebuilding, rebuilding)))
    assert all(f"serial {made.SERIALS[1]}" in leg.against[0] for leg in mirror.legs)


def test_an_intel_mirror_with_a_dead_disk(whole: md.Content, tmp_path: Path) -> None:
    found = layout(*members(tmp_path, whole, made.imsm(whole.size, state=2, statuses=(0x3A, 0x3E), dirty=True)))
    mirror = one_mirror(found)
    assert len(mirror.legs) == 1 and all(serial in mirror.missing[0] for serial in made.SERIALS)
    assert f"degraded, dirty, failed: serial {made.SERIALS[1]}" in mirror.legs[0].history
    assert said(found, "1 of its 2 copies not given") and said(found, "not shut down cleanly")


def test_an_intel_stripe_set_is_said(whole: md.Content, tmp_path: Path) -> None:
    for level, name in ((0, "RAID 0"), (5, "RAID 5"), (10, "RAID 10"), (77, "unknown level")):
        found = layout(*members(tmp_path, whole, made.imsm(whole.size, level=level)))
        assert not found.volumes and not found.mirrors
        assert said(found, f"RAID by Intel, {name}")[0].severity is Severity.ERROR


def test_a_real_ddf_mirror(corpus: Path) -> None:
    def disk(number: int) -> MemorySource:
        return MemorySource(lzma.decompress((corpus / f"md/ddf-raid1-{number}.bin.xz").read_bytes()))

    found = find_volumes({"disk0": disk(1), "disk1": disk(2)})
    mirror = one_mirror(found)
    assert (mirror.name, mirror.size, mirror.missing, found.findings) == ("ddf.ddf-raid1", 4 << 20, (), ())
    assert [(leg.disk, leg.generation, leg.against) for leg in mirror.legs] == [
        ("disk1", (10,), ()), ("disk0", (10,), ())]
    assert read(mirror.legs[0].source, 0, mirror.size) == read(mirror.legs[1].source, 0, mirror.size)
    assert one_mirror(find_volumes({"disk0": disk(2)})).missing == ("the disk that it calls aa206983",)


@pytest.mark.parametrize("first, second, generations, against, fails", [
    ({}, {}, [10, 10], ["", ""], [(), ()]),
    ({"states": (1, 2)}, {"seq": 4}, [10, 4], ["", "calls it failed or missing"], [("disk1",), ()]),
    ({"states": (1, 5)}, {"states": (1, 5)}, [10, 10], ["", "being rebuilt"], [(), ()]),
    ({"states": (1, 2)}, {"states": (2, 1), "seq": 9}, [10, 9], ["", "calls it failed"], [("disk1",), ("disk0",)]),
])
def test_what_ddf_holds_against_a_leg(first: dict[str, int], second: dict[str, int], generations: list[int],
                                      against: list[str], fails: list[tuple[str, ...]], whole: md.Content,
                                      tmp_path: Path) -> None:
    found = layout(*members(tmp_path, whole, made.ddf(whole.size, 0, **first), made.ddf(whole.size, 1, **second)))
    mirror = one_mirror(found)
    assert mirror.name == "ddf.Boot" and [leg.generation for leg in mirror.legs] == [(g,) for g in generations]
    for leg, words in zip(mirror.legs, against, strict=True):
        assert words in "".join(leg.against) if words else not leg.against
    assert [leg.fails for leg in mirror.legs] == fails
    assert read(mirror.legs[0].source, 0, mirror.size) == whole.now.read_bytes()


def test_other_ddf_sets_are_said(whole: md.Content, tmp_path: Path) -> None:
    found = layout(*members(tmp_path, whole, made.ddf(whole.size, 0, level=5)))
    assert not found.mirrors and said(found, "RAID by DDF, RAID 5")[0].severity is Severity.ERROR
    inconsistent = layout(*members(tmp_path, whole, made.ddf(whole.size, 0, volume_state=0x11)))
    assert said(inconsistent, "not shut down cleanly")


def test_anchors_are_metadata_to_wipe(whole: md.Content, tmp_path: Path) -> None:
    for index, metadata in enumerate((made.imsm(whole.size), made.ddf(whole.size, 0))):
        (path,) = members(tmp_path, whole, metadata)
        sectors = path.stat().st_size // 512
        assert metadata_ranges(open_disk(str(path))) == (Range((sectors - 2 + index) * 512, 512),)


def test_old_metadata_inside_a_partition_is_left_out_of_account() -> None:
    for metadata in (made.imsm(1 << 20), made.ddf(1 << 20, 0)):
        data = table_disk(8192, {0: table_sector([(7, 63, 8192 - 63)])})
        for sector, content in metadata(8192).items():
            data[sector * 512:sector * 512 + len(content)] = content
        found = find_volumes({"disk0": MemorySource(data)})
        assert [v.name for v in found.volumes] == ["disk0p1"] and not found.mirrors
        assert said(found, "lies inside a partition")


# -- the others


def with_sector(sector: int, content: bytes, sectors: int = 8192) -> bytearray:
    data = table_disk(sectors, {0: table_sector([(7, 63, 4000)])})
    at = (sector if sector >= 0 else sectors + sector) * 512
    data[at:at + len(content)] = content
    return data


@pytest.mark.parametrize("sector, words, plain", [
    (made.highpoint_37x(), "HighPoint 37x, RAID 1, disk 1 of 2", True),
    (made.highpoint_37x(number=1), "HighPoint 37x, RAID 1, disk 2 of 2", False),
    (made.highpoint_37x(level=0), "HighPoint 37x, RAID 0", False),
    (made.highpoint_45x(), "HighPoint 45x, RAID 1", True),
    (made.highpoint_45x(level=5), "HighPoint 45x, RAID 0", False),
    (made.nvidia(), "NVIDIA, RAID 1, disk 2 of 2", True),
    (made.nvidia(level=0x85), "NVIDIA, RAID 5", False),
    (made.silicon_image(), "Silicon Image, RAID 1, disk 2, generation 9", True),
    (made.silicon_image(level=0), "Silicon Image, RAID 0", False),
    (made.jmicron(), "JMicron, RAID 1", True),
    (made.jmicron(level=0), "JMicron, RAID 0", False),
    (made.via(info=2), "VIA, RAID 1, the copy", True),
    (made.via(level=8), "VIA, a span", False),
])
def test_other_makers_are_recognised(sector: tuple[int, bytes], words: str, plain: bool) -> None:
    found = find_volumes({"disk0": MemorySource(with_sector(*sector))})
    (finding,) = found.findings
    assert words in finding.what and finding.why and finding.next
    assert finding.severity is (Severity.WARNING if plain else Severity.ERROR)
    assert [v.name for v in found.volumes] == (["disk0p1"] if plain else [])


def test_what_speaks_against_a_copy_is_said() -> None:
    for sector, words in ((made.nvidia(job=3), "being rebuilt"), (made.silicon_image(state=1), "not in step"),
                          (made.via(info=6), "not in step"), (made.highpoint_37x(number=1), "sector 10")):
        (finding,) = find_volumes({"disk0": MemorySource(with_sector(*sector))}).findings
        assert words in finding.why


def test_a_name_over_a_wrong_sum_is_said_all_the_same() -> None:
    sector, content = made.nvidia(level=0x80)
    found = find_volumes({"disk0": MemorySource(with_sector(sector, content[:0x20] + b"x" + content[0x21:]))})
    assert said(found, "NVIDIA, level not known") and "checksum is wrong" in found.findings[0].why


@pytest.mark.parametrize("name, words", [
    ("isw", "RAID by Intel, RAID 0 \"RAID_Volume1\""), ("promise", "Promise FastTrak, RAID 0, disk 1 of 1"),
    ("lsi", "LSI, RAID 0, disk 1"), ("via", "VIA, RAID 0"), ("adaptec", "Adaptec HostRAID, RAID 0, one of 4")])
def test_real_members(name: str, words: str, corpus: Path) -> None:
    data = lzma.decompress((corpus / f"md/ul-{name}-raid.img.xz").read_bytes())
    found = find_volumes({"disk0": MemorySource(data)})
    (finding,) = found.findings
    assert words in finding.what and finding.severity is Severity.ERROR and not found.volumes


# -- witnesses


BLKID = {"hpt37x": made.highpoint_37x(), "hpt45x": made.highpoint_45x(), "nvidia": made.nvidia(),
         "silicon_medley": made.silicon_image(), "jmicron": made.jmicron(), "via": made.via()}


@pytest.mark.parametrize("name", BLKID)
def test_blkid_knows_our_metadata(name: str, tmp_path: Path) -> None:
    tool = shutil.which("blkid") or shutil.which("blkid", path="/usr/sbin:/sbin")
    if tool is None:
        absent("blkid is not installed")
    sector, content = BLKID[name]
    data = bytearray(8192 * 512)
    at = (sector if sector >= 0 else 8192 + sector) * 512
    data[at:at + 512] = content
    path = tmp_path / "disk"
    path.write_bytes(data)
    text = subprocess.run([tool, "-p", "-o", "value", "-s", "TYPE", str(path)], capture_output=True, text=True,
                          check=False).stdout
    assert text.strip() == f"{name}_raid_member"


def test_blkid_and_mdadm_know_our_mirrors(tmp_path: Path, needs) -> None:
    needs("mdadm", "blkid")
    empty = tmp_path / "empty"  # of a disk with an MBR, mdadm shows the MBR
    with open(empty, "wb") as file:
        file.truncate(40 << 20)  # it does not look for DDF on smaller ones
    intel = made.member(tmp_path / "intel", empty, made.imsm(1 << 20))
    other = made.member(tmp_path / "ddf", empty, made.ddf(1 << 20, 1))
    for path, kind in ((intel, "isw_raid_member"), (other, "ddf_raid_member")):
        text = subprocess.run(["blkid", "-p", str(path)], capture_output=True, text=True, check=False).stdout
        assert f'TYPE="{kind}"' in text
    told = subprocess.run(["mdadm", "--examine", str(other)], capture_output=True, text=True, check=True).stdout
    for words in ("Redundant hdr", "Name[0] : Boot", "Raid Level[0] : RAID1", "state[0] : Optimal, Consistent",
                  "Array Size[0] : 1024", "aa206983", "eee5cb14", "Seq : 0000000a"):
        assert words in told


# -- damage


@pytest.mark.parametrize("kind", ["imsm", "ddf"])
def test_every_flipped_byte_gives_an_answer(kind: str) -> None:
    metadata = (made.imsm(1 << 20) if kind == "imsm" else made.ddf(1 << 20, 0))(8192)
    good = bytearray(8192 * 512)
    for sector, content in metadata.items():
        good[sector * 512:sector * 512 + len(content)] = content
    (mirror,) = [m for m in firmware.find({"disk0": MemorySource(good)}) if isinstance(m, Mirror)]
    for sector, content in metadata.items():
        for place in [*range(0, len(content), 13), 32, 33, 36, 37, 56, 57]:
            damaged = bytearray(good)
            damaged[sector * 512 + place] ^= 0xFF
            found = list(firmware.find({"disk0": MemorySource(damaged)}))
            mirrors = [m for m in found if isinstance(m, Mirror)]
            assert not found or any(isinstance(f, Finding) for f in found) or \
                [(m.name, m.size) for m in mirrors] == [(mirror.name, mirror.size)]


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=512, max_size=512), st.integers(0, 3))
def test_any_bytes_behind_a_signature(tail: bytes, which: int) -> None:
    start, sector = [(b"Intel Raid ISM Cfg Sig. ", -2), (b"\xde\x11\xde\x11", -1), (b"\xde\x11\xde\x11", -257),
                     (b"Promise Technology, Inc.", -63)][which]
    found = find_volumes({"disk0": MemorySource(with_sector(sector, start + tail[len(start):]))})
    assert found.findings and not found.mirrors


def test_sums_that_are_good_over_nonsense() -> None:
    for change in ({"order": (0, 7)}, {"state": 9}):
        found = find_volumes({"disk0": MemorySource(table_disk(8192, dict(made.imsm(1 << 20, **change)(8192))))})
        assert said(found, "cannot be trusted")[0].severity is Severity.ERROR and not found.mirrors
    for size in (1 << 60, 0):
        found = find_volumes({"disk0": MemorySource(with_sector(-1, b""))})
        data = with_sector(-1, b"")
        for sector, content in made.ddf(size, 0)(8192).items():
            data[sector * 512:sector * 512 + len(content)] = content
        found = find_volumes({"disk0": MemorySource(data)})
        assert said(found, "cut short") and not found.mirrors


def test_an_end_that_cannot_be_read_is_said() -> None:
    data = with_sector(-1, b"")
    found = find_volumes({"disk0": FaultySource(MemorySource(data), [Range(len(data) - 1024, 1024)])})
    assert said(found, "nobody can tell whether") and found.volumes
