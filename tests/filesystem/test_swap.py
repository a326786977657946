"""Linux swap: the first page is kept, the rest is free, unless a machine sleeps in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2v.errors import Severity
from p2v.filesystem import examine
from p2v.filesystem.swap import OTHERS
from p2v.model import FilesystemState, Range
from p2v.testing import FaultySource, MemorySource
from tests.filesystem.made_ntfs import MIB, run

State = FilesystemState
SIZE = 4 * MIB + 3 * 512


@pytest.fixture
def area(tmp_path: Path, needs: Callable[..., None]) -> bytearray:
    needs("mkswap")
    (tmp_path / "swap").write_bytes(b"\xaa" * SIZE)
    run("mkswap", "-L", "swap0", tmp_path / "swap")
    return bytearray((tmp_path / "swap").read_bytes())


def test_all_but_the_first_page_is_free(area: bytearray, tmp_path: Path) -> None:
    found = examine(MemorySource(area))
    assert (found.kind, found.state, found.findings) == ("swap", State.CLEAN, ())
    assert found.free == (Range(4096, 4 * MIB - 4096),), "the tail is no page of it"
    (piece,) = found.free
    area[piece.offset:piece.end] = bytes(piece.length)
    (tmp_path / "swap").write_bytes(area)
    assert "LABEL=\"swap0\"" in run("blkid", "-p", tmp_path / "swap")


@pytest.mark.parametrize("page", [8192, 65536])
def test_larger_pages(page: int, tmp_path: Path, area: bytearray) -> None:
    (tmp_path / "swap").write_bytes(bytes(4 * MIB))
    run("mkswap", "-p", str(page), tmp_path / "swap")
    found = examine(MemorySource((tmp_path / "swap").read_bytes()))
    assert (found.cluster_size, found.free) == (page, (Range(page, 4 * MIB - page),))


@pytest.mark.parametrize("magic", [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"])
def test_a_suspended_machine(area: bytearray, magic: bytes) -> None:
    area[4086:4096] = magic
    found = examine(MemorySource(area))
    assert (found.state, found.free) == (State.HIBERNATED, ())
    assert found.findings[0].severity is Severity.ERROR


@pytest.mark.parametrize("place, value", [
    (1024, b"\2"), (1024, b"\0\0\0\1"), (1028, b"\xff\xff"), (1028, bytes(4)), (1100, b"x"),
    *OTHERS.items()])
def test_what_is_not_believed(area: bytearray, place: int, value: bytes) -> None:
    area[place:place + len(value)] = value
    found = examine(MemorySource(area))
    assert (found.state, found.free) == (State.UNKNOWN, ()) and found.findings


def test_the_old_kind_and_none(area: bytearray) -> None:
    area[4086:4096] = b"SWAP-SPACE"
    found = examine(MemorySource(area))
    assert (found.kind, found.free) == ("swap", ()) and found.findings[0].severity is Severity.INFO
    area[4086:4096] = bytes(10)
    assert examine(MemorySource(area)).kind == ""
    assert examine(MemorySource(area[:2048])).kind == ""


@pytest.mark.parametrize("bad", [1024, 3584])
def test_what_cannot_be_read_is_data(area: bytearray, bad: int) -> None:
    found = examine(FaultySource(MemorySource(area), [Range(bad, 512)]))
    assert found.free == () and found.findings
