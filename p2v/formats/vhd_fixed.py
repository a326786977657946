"""VHD, fixed: the disk's bytes, then the footer. What is zero is a hole in the file while it is with us."""

from __future__ import annotations

from p2v.formats import blocks, flat
from p2v.formats.part import PartFile
from p2v.formats.pipe import Pipe, Streamed
from p2v.formats.vhd import EDITABLE, FIXED, LIMIT, SEQUENTIAL, SUFFIX, footer, probe_fixed, read
from p2v.model import ImageWriter

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen", "stream"]

NAME = "vhd-fixed"
probe = probe_fixed


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "vhdx-fixed, vdi-fixed or raw")
    return flat.create(path, NAME, size, 0, blocks.sectors(size), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, end = blocks.parse_state(path, state, NAME, LIMIT)
    return flat.reopen(path, NAME, size, end, 0, blocks.sectors(size), _finish)


def stream(pipe: Pipe, size: int) -> ImageWriter:
    """Send one through a pipe."""
    blocks.check_size("-", NAME, size, LIMIT, "vhdx-fixed, vdi-fixed or raw")
    return Streamed(pipe, size, 0, blocks.sectors(size), _finish)


def _finish(part: PartFile, size: int) -> None:
    part.write(blocks.sectors(size), footer(size, FIXED))
