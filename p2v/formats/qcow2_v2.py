"""qcow2, version 2 ("compat=0.10"): for qemu before 1.7 and old readers; written like version 3."""

from __future__ import annotations

from p2v.formats.qcow2 import EDITABLE, LIMIT, SEQUENTIAL, SUFFIX, create_version, probe_version, read, reopen
from p2v.model import ImageWriter, Source

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "qcow2-v2"


def create(path: str, size: int) -> ImageWriter:
    """Begin PATH.part. Raises PlanError where it or PATH exists, Unsupported past LIMIT, WriteError."""
    return create_version(path, size, 2)


def probe(source: Source) -> bool:
    """The magic and version 2."""
    return probe_version(source, 2)
