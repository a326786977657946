"""VHDX, fixed: every block is present, in the disk's order. What is zero is a hole in the file."""

from __future__ import annotations

from p2v.formats import blocks, flat
from p2v.formats.part import PartFile
from p2v.formats.pipe import Pipe, Streamed
from p2v.formats.vhdx import (
    BLOCK,
    EDITABLE,
    KEEP,
    LIMIT,
    MIB,
    SEQUENTIAL,
    SUFFIX,
    Table,
    probe_fixed,
    read,
    table,
    write_headers,
)
from p2v.model import ImageWriter

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen", "stream"]

NAME = "vhdx-fixed"
probe = probe_fixed


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    blocks.check_size(path, NAME, size, LIMIT, "vdi-fixed or raw")
    shape = _shape(size)
    return flat.create(path, NAME, size, shape.data, shape.end(shape.entries), _finish)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written after it is forgotten."""
    size, end = blocks.parse_state(path, state, NAME, LIMIT)
    shape = _shape(size)
    return flat.reopen(path, NAME, size, end, shape.data, shape.end(shape.entries), _finish)


def stream(pipe: Pipe, size: int) -> ImageWriter:
    """Send one through a pipe."""
    blocks.check_size("-", NAME, size, LIMIT, "vdi-fixed or raw")
    shape = _shape(size)
    return Streamed(pipe, size, shape.data, shape.end(shape.entries), _finish)


def _shape(size: int) -> Table:
    """In the smallest blocks of at least 2 MiB whose BAT is about a MiB; 256 MiB are the format's largest."""
    block = BLOCK
    while block < 256 * MIB and -(-size // block) > 1 << 17:
        block *= 2
    return table(NAME, size, block)


def _finish(part: PartFile, size: int) -> None:
    shape = _shape(size)
    flat.write_table(part, shape)
    write_headers(part, shape, KEEP)
