"""Every filesystem that is understood: free is free, and the same in every reader's eyes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2v.filesystem import examine, open_files
from p2v.model import Extent, FilesystemState, Range, read
from p2v.testing import FaultySource, MemorySource
from tests.conftest import absent

MIB = 1 << 20
SIZE = 20 * MIB


@dataclass(frozen=True)
class Kind:
    """One kind: how to make it, put a file in, and ask a checker that shares no code with us."""

    name: str
    make: tuple[str, ...]
    put: Callable[[Path, Path, str], list[str]]
    check: tuple[str, ...]
    backup: int  # where its last needed bytes may lie: counted from the end


def ntfscp(volume: Path, content: Path, name: str) -> list[str]:
    return ["ntfscp", "-q", "-f", str(volume), str(content), "/" + name]


def mcopy(volume: Path, content: Path, name: str) -> list[str]:
    return ["mcopy", "-i", str(volume), str(content), "::/" + name]


CHECK_NTFS, CHECK_FAT = ("ntfsresize", "-i", "-f", "-P"), ("fsck.fat", "-n")
KINDS = [
    *(Kind("ntfs", ("mkntfs", "-F", "-Q", "-q", "-c", cluster), ntfscp, CHECK_NTFS, 512)
      for cluster in ("512", "1024", "4096", "32768")),
    Kind("fat12", ("mkfs.fat", "-F", "12", "-s", "16"), mcopy, CHECK_FAT, 0),
    Kind("fat16", ("mkfs.fat", "-F", "16", "-s", "4"), mcopy, CHECK_FAT, 0),
    Kind("fat32", ("mkfs.fat", "-F", "32", "-s", "1"), mcopy, CHECK_FAT, 0),
]
CONTENT = {f"file{i}.bin": bytes([i + 1]) * (i * 97_001) for i in range(8)}
Made = tuple[Kind, bytes, Path]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join([kind.name, kind.make[-1]]))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind.name)
    volume, content = folder / "volume.img", folder / "content"
    if shutil.which(kind.make[0]) is None:
        absent(f"{kind.make[0]} is not installed")
    volume.write_bytes(bytes(2 * SIZE if kind.name == "fat32" else SIZE))
    subprocess.run([*kind.make, str(volume)], check=True, capture_output=True)
    for name, data in CONTENT.items():
        content.write_bytes(data)
        subprocess.run(kind.put(volume, content, name), check=True, capture_output=True)
    return kind, volume.read_bytes(), volume


def test_it_is_recognised(made: Made) -> None:
    kind, data, _ = made
    found = examine(MemorySource(data))
    assert (found.kind, found.state) == (kind.name, FilesystemState.CLEAN)
    assert found.cluster_size > 0 and bool(found.version) is (kind.name == "ntfs")


def test_free_ranges_are_ascending_clusters_inside(made: Made) -> None:
    kind, data, _ = made
    found = examine(MemorySource(data))
    assert sum(p.length for p in found.free) > len(data) // 2
    end = 0
    for piece in found.free:
        assert piece.offset > end, "ranges that touch are one"
        assert piece.length % found.cluster_size == 0
        end = piece.end
    assert end <= len(data) - kind.backup


def test_free_bytes_are_needed_by_nobody(made: Made, tmp_path: Path) -> None:
    kind, data, _ = made
    found, edited = examine(MemorySource(data)), bytearray(data)
    for piece in found.free:
        edited[piece.offset:piece.end] = b"\x99" * piece.length
    (tmp_path / "edited.img").write_bytes(edited)
    checked = subprocess.run([*kind.check, str(tmp_path / "edited.img")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    guest = open_files(MemorySource(edited), found)
    assert {name: guest.read(f"\\{name.upper()}") for name in guest.list("\\")} == CONTENT
    assert examine(MemorySource(edited)) == found


def test_bytes_that_are_not_free_do_not_change_the_answer_about_free(made: Made) -> None:
    """A tail past the filesystem belongs to nobody known, so it is data."""
    _, data, _ = made
    found = examine(MemorySource(data))
    assert examine(MemorySource(data + bytes(MIB))) == found


def test_nothing_is_free_where_the_volume_is_cut(made: Made) -> None:
    _, data, _ = made
    cut = examine(MemorySource(data[: len(data) // 2]))
    assert (cut.free, cut.droppable, cut.state) == ((), (), FilesystemState.UNKNOWN)


def test_the_answer_needs_few_bytes(made: Made) -> None:
    """The files' content and the free space are not read: all of the free space may be bad."""
    _, data, _ = made
    found = examine(MemorySource(data))
    source = FaultySource(MemorySource(data), [Range(p.offset, p.length) for p in found.free])
    assert examine(source) == found
    assert isinstance(next(iter(source.extents())), Extent) and read(source, 0, 512) == data[:512]
