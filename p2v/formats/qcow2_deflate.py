"""qcow2 with deflated clusters: small, and read by every qemu since 2008. See qcow2_packed.py."""

from __future__ import annotations

from p2v.formats.packing import no_resume
from p2v.formats.qcow2 import EDITABLE, LIMIT, SUFFIX, probe_version, read
from p2v.formats.qcow2_packed import begin
from p2v.model import ImageWriter, Source
from p2v.model import read as read_bytes

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "qcow2-deflate"
SEQUENTIAL = True

_WINDOW_BITS = 12  # readers inflate with a window of 4 KiB; with a larger one they fail
_LEVEL = 1  # of igzip: 2 gains 0.3 %, 3 gains 1 % in almost three times the time


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    from isal import igzip_lib

    def compress(cluster: memoryview) -> bytes:
        return igzip_lib.compress(cluster, _LEVEL, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)

    return begin(path, size, NAME, 0, compress)


def reopen(path: str, state: bytes) -> ImageWriter:
    """Raises Unsupported: packed clusters have no fixed places to go on from."""
    del state
    raise no_resume(path, NAME, "qcow2")


def probe(source: Source) -> bool:
    """The magic, version 3, and deflate for whatever is compressed: plain images look the same."""
    return probe_version(source, 3) and source.size >= 80 and not read_bytes(source, 79, 1)[0] & 8
