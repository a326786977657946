"""Plans that somebody wrote by hand, and damaged filesystems that are asked how old they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import fttiny
from p2v.errors import PlanError
from p2v.evidence import history_of, weigh
from p2v.filesystem import examine
from p2v.filesystem.age import Age, age_of
from p2v.model import SECTOR, BytesChange, DiskPlan, Leg, Member, Mirror, Origin, Piece, SourceDisk
from p2v.planfile import from_json, to_json
from p2v.rendering import render_plan
from p2v.testing import MemorySource
from tests.filesystem.made_age import FILES, hive_place, ntfs
from tests.filesystem.made_ntfs import record_place, stream_place
from tests.fuzz.bounds import bounded, damaged, fuzz, many
from tests.test_planfile import a_plan

pytestmark = fuzz


# -- plans


def document() -> dict[str, Any]:
    """A plan of two sources, with pieces and patches."""
    pieces = (Piece(0, SECTOR, ""), Piece(SECTOR, 7 * SECTOR, "disk1", 99, (("disk0", 99),)),
              Piece(4096, 4096, "ldm.V"))
    patch = BytesChange("disk0", 446, b"ab", b"cd", "why", "collapse")
    disk = DiskPlan("disk0", "/a", 8192, 512, "ab", "qcow2", "disk0.qcow2", "raw", pieces, (patch,))
    sources = tuple(SourceDisk(f"disk{n}", f"/{n}", 8192, 512, "ab") for n in (0, 1))
    plan = replace(a_plan([patch]), disks=(disk,), sources=sources, legs={"ldm.V": "disk1"}, in_step=True)
    return json.loads(json.dumps(to_json(plan)))


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


JSON = st.recursive(st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats() | st.text(max_size=9)
                    | st.sampled_from(["disk0", "disk1", "..", "/", "", "ff", "zz"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@many
@given(st.data())
def test_any_plan_is_read_or_refused(data: st.DataObject) -> None:
    changed = document()
    for _ in range(data.draw(st.integers(1, 3))):
        node, key = data.draw(st.sampled_from(list(places(changed))))
        if data.draw(st.integers(0, 3)):
            node[key] = data.draw(JSON)
        else:
            del node[key]
    with bounded():
        try:
            plan = from_json(changed, {}.__getitem__)
        except PlanError as error:
            assert error.why and error.next
            return
        assert isinstance(json.dumps(to_json(plan)), str)
        render_plan(plan)


# -- filesystems


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An NTFS volume with a Windows tree."""
    return ntfs(tmp_path_factory.mktemp("age"))


def judged(whole: bytes, copy: bytearray) -> None:
    """Damaged against whole, as two legs of a mirror."""
    with bounded():
        assert isinstance(age_of(MemorySource(copy)), Age)
        examine(MemorySource(copy))
        legs = tuple(Leg(f"disk{n}", MemorySource(side, f"disk{n}"), Member(f"disk{n}", 0, len(whole)))
                     for n, side in enumerate((whole, copy)))
        mirror = Mirror("ft.0", len(whole), legs, Origin("ft", "0"))
        verdict = weigh(*(history_of(mirror, leg) for leg in legs))
        assert verdict.reasons


def spans_of(data: bytes, *sectors: int) -> list[tuple[int, int]]:
    return [(place, 1024) for place in sectors if place + 1024 <= len(data)]


@many
@given(st.data())
def test_ntfs_of_any_age(volume: bytes, data: st.DataObject) -> None:
    spots = [0, stream_place(volume, 2), stream_place(volume, 2) + 4096, hive_place(volume, FILES[0])]
    spots += [record_place(volume, number) for number in range(12)]
    at = -1
    while (at := volume.find(b"INDX", at + 1)) >= 0:
        spots.append(at)
    judged(volume, data.draw(damaged(volume, spans_of(volume, *spots))))


@many
@given(st.data())
def test_fat_of_any_age(data: st.DataObject) -> None:
    whole = fttiny.system_volume(fttiny.hive(fttiny.described([])))
    judged(whole, data.draw(damaged(whole, [(0, SECTOR), (0, 64), (SECTOR, 3 * SECTOR), (4 * SECTOR, 6 * SECTOR)])))
