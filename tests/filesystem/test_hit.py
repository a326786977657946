"""Whose bytes are these: the files of a volume by where they lie."""

from __future__ import annotations

import itertools
import lzma
from pathlib import Path

import pytest

from p2v.filesystem import examine
from p2v.filesystem.hit import file_extents, files_hit
from p2v.model import Range
from p2v.testing import MemorySource


@pytest.mark.parametrize("image", ["ntfs12-files-64m"])
def test_a_byte_belongs_to_one_file(image: str, corpus: Path) -> None:
    """The hole of $BadClus, which an NTFS of NT 4 writes out, is nobody's bytes."""
    source = MemorySource(lzma.decompress((corpus / f"ntfs/{image}.img.xz").read_bytes()))
    filesystem = examine(source)
    held = sorted((extent.offset, extent.end, path) for path, extents in file_extents(source, filesystem)
                  for extent in extents or ())
    for (_, end, before), (start, _, path) in itertools.pairwise(held):
        assert end <= start, f"{before} and {path}"
    free = max(filesystem.free, key=lambda span: span.length)
    (said,) = files_hit("disk0p1", source, filesystem, [Range(free.offset, 4096)])
    assert said.what == "4096 lost bytes of disk0p1 belong to no file"
