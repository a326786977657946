"""NTFS volumes for tests: made by mkntfs, filled by ntfscp; and holes knocked into them."""

from __future__ import annotations

import lzma
import random
import subprocess
from pathlib import Path

from p2v.filesystem.mft import Mft
from p2v.testing import MemorySource

MIB = 1 << 20


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def unpack_sparse(packed: Path, to: Path) -> None:
    """A sample of the corpus, with holes where it is zero."""
    with lzma.open(packed) as source, open(to, "wb") as file:
        while piece := source.read(MIB):
            if piece.count(0) == len(piece):
                file.seek(len(piece), 1)
            else:
                file.write(piece)
        file.truncate()


def bytes_of(name: str, size: int) -> bytes:
    """Content that no other file has."""
    return random.Random(name).randbytes(size)


def make(folder: Path, files: dict[str, bytes], cluster: int = 4096, size: int = 24 * MIB) -> Path:
    """A volume whose unused clusters are full of AA, with these files in its root."""
    volume = folder / "volume.img"
    with open(volume, "wb") as file:
        for _ in range(size // MIB):
            file.write(b"\xaa" * MIB)
        file.write(b"\xaa" * (size % MIB))
    run("mkntfs", "-F", "-Q", "-q", "-s", "512", "-c", str(cluster), "-p", "63", "-H", "255", "-S", "63", volume)
    put(volume, files)
    return volume


def put(volume: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (volume.parent / "content").write_bytes(content)
        run("ntfscp", "-q", "-f", volume, volume.parent / "content", "/" + name)


def record_place(data: bytes, number: int) -> int:
    """The byte where an MFT record lies (in the MFT's first run)."""
    mft = Mft(MemorySource(data))
    lcn = mft.runs[0].lcn
    assert lcn is not None
    return lcn * mft.boot.cluster_size + number * mft.boot.record_size


def attribute_place(data: bytes, number: int, type: int) -> int:
    """The byte where an attribute of a record begins."""
    place = record_place(data, number)
    place += int.from_bytes(data[place + 0x14:place + 0x16], "little")
    while data[place:place + 4] != type.to_bytes(4, "little"):
        assert data[place:place + 4] != b"\xff\xff\xff\xff", f"record {number} has no attribute {type:#x}"
        place += int.from_bytes(data[place + 4:place + 8], "little")
    return place


def stream_place(data: bytes, number: int) -> int:
    """The byte where the unnamed data of a record begins."""
    mft = Mft(MemorySource(data))
    attribute = mft.attribute(mft.record(number), 0x80)
    assert attribute is not None and attribute.runs[0].lcn is not None
    return attribute.runs[0].lcn * mft.boot.cluster_size
