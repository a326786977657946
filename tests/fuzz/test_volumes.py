"""Every volume reader, and all that is built on what it says, on disks whose metadata lies under good checksums."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import fttiny
from fixtures.ft import Row, information
from p2v.arranging import arrange, fingerprint
from p2v.errors import LayoutError, P2VError, ReadError
from p2v.filesystem import examine
from p2v.model import SECTOR, Source, read
from p2v.testing import MemorySource
from p2v.volume import find_volumes, ftregistry
from p2v.volume.ftregistry import FtType
from tests.fuzz import sets
from tests.fuzz.bounds import NUMBERS, bounded, damaged, fuzz, many

pytestmark = fuzz
MOST_EXTENTS = 1000


@cache
def case(name: str) -> sets.Case:
    return sets.CASES[name]()


def look(disks: Mapping[str, Source]) -> None:
    """All that is done before the first byte is written: find, judge the legs, put plain disks together."""
    with bounded():
        found = find_volumes(disks)
        assert all(finding.what and finding.why and finding.next for finding in found.findings)
        for volume in found.volumes:
            assert all(0 <= m.offset <= m.offset + m.length <= disks[m.disk].size for m in volume.members)
            examine(volume.source)
            probe(volume.source)
        for mirror in found.mirrors:
            for leg in mirror.legs:
                probe(leg.source)
        try:
            arranged = arrange(disks)
        except P2VError as error:
            assert error.why and error.next, error.what
        else:
            for source in arranged.disks.values():
                probe(source)
            for source in disks.values() if arranged.built else ():
                fingerprint(source)


def probe(source: Source) -> None:
    """Both ends can be read, or say why not; extents come in order."""
    for offset in {0, max(source.size - SECTOR, 0)} if source.size >= SECTOR else set():
        try:
            read(source, offset, SECTOR)
        except ReadError as error:
            assert error.why
    end = 0
    for extent in islice(source.extents(), MOST_EXTENTS):
        assert extent.offset == end
        end += extent.length


@pytest.mark.parametrize("name", sets.CASES)
def test_metadata_that_lies(name: str) -> None:
    look({f"disk{number}": MemorySource(data) for number, data in enumerate(case(name).disks)})

    @many
    @given(st.data())
    def lie(data: st.DataObject) -> None:
        known = case(name)
        disks = {}
        for number, whole in enumerate(known.disks):
            copy = bytearray(whole) if number and data.draw(st.booleans()) else data.draw(damaged(whole, known.spans))
            if data.draw(st.integers(0, 3)):
                known.seal(copy)
            kept = len(copy) - (data.draw(st.integers(0, len(copy))) if not data.draw(st.integers(0, 9)) else 0)
            disks[f"disk{number}"] = MemorySource(copy[:kept], f"disk{number}")
        look(disks)

    lie()


@many
@given(st.data())
def test_disks_of_several_kinds(data: st.DataObject) -> None:
    """Members of different sets, twice the same disk, any order."""
    names = data.draw(st.lists(st.sampled_from(list(sets.CASES)), min_size=1, max_size=3))
    every = [disk for name in names for disk in case(name).disks] * data.draw(st.integers(1, 2))
    chosen = data.draw(st.permutations(every))[:5]
    look({f"disk{number}": MemorySource(disk, f"disk{number}") for number, disk in enumerate(chosen)})


TOKENS = st.sampled_from(['"', "{", "}", "[", "]", "=", ",", "#", "\n", " ", "-1", "0", "65536", "99999999999999999999",
                          '"pv0"', '"root"', '"safe"', '"striped"', '"mirror"', '"raid5"', "segment1", "stripes"])


@many
@given(st.data())
def test_any_text_of_a_volume_group(data: st.DataObject) -> None:
    words = sets.lvm_text().replace("\n", " \n ").split(" ")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at:at + data.draw(st.integers(0, 2))] = data.draw(st.lists(TOKENS | st.sampled_from(words), max_size=2))
    text = " ".join(words)
    look({f"disk{n}": MemorySource(disk, f"disk{n}") for n, disk in enumerate(sets.physical(text))})


NUMBER = st.sampled_from([number for number in NUMBERS if number < 1 << 63]) | st.integers(0, 1 << 22)
ROWS = st.builds(Row, NUMBER, NUMBER, st.sampled_from(["", "C", "D"]), st.sampled_from(list(FtType)),
                 st.integers(0, 3), st.integers(0, 9))
SIGNATURES = st.integers(0, (1 << 32) - 1) | st.just(fttiny.SIGNATURE)


@many
@given(st.lists(st.tuples(SIGNATURES, st.lists(ROWS, max_size=5)), max_size=5))
def test_any_description_in_a_hive(described: list[tuple[int, list[Row]]]) -> None:
    rows = [(0x86, 1100, 500), (0x87, 1700, 500), (0x87, 2300, 500)]
    look({"disk0": MemorySource(fttiny.disk(fttiny.hive(information(described)), rows))})


@many
@given(st.data())
def test_any_value_of_disk_information(data: st.DataObject) -> None:
    value = information([(disk, [Row(0x7E00, 1 << 30, "C", FtType.MIRROR, 0, disk)]) for disk in (0, 1)])
    copy = bytes(data.draw(damaged(value, [(0, len(value))])))
    copy = copy[:data.draw(st.integers(0, len(value)) | st.just(len(value)))]
    with bounded():
        try:
            found = ftregistry.parse(copy, "hive")
        except LayoutError as error:
            assert error.why
            return
        assert ftregistry.serialise(found) == copy
