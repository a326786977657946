"""VDI, fixed: every block is there, in the disk's order. What is zero is a hole in the file."""

from __future__ import annotations

from p2v.formats import blocks, flat
from p2v.formats.part import PartFile
from p2v.formats.pipe import Pipe, Streamed
from p2v.formats.vdi import EDITABLE, FIXED, LIMIT, SEQUENTIAL, SUFFIX, header, probe_fixed, read, shape
from p2v.model import ImageWriter

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen", "stream"]

NAME = "vdi-fixed"
probe = probe_fixed


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "raw")
    image = shape(NAME, size)
    return flat.create(path, NAME, size, image.data, image.end(image.entries), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, end = blocks.parse_state(path, state, NAME, LIMIT)
    image = shape(NAME, size)
    return flat.reopen(path, NAME, size, end, image.data, image.end(image.entries), _finish)


def stream(pipe: Pipe, size: int) -> ImageWriter:
    """Send one through a pipe."""
    blocks.check_size("-", NAME, size, LIMIT, "raw")
    image = shape(NAME, size)
    return Streamed(pipe, size, image.data, image.end(image.entries), _finish)


def _finish(part: PartFile, size: int) -> None:
    image = shape(NAME, size)
    flat.write_table(part, image)
    part.write(0, header(image, FIXED, image.entries))
