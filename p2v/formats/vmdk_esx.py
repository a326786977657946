"""VMDK for ESX 2.5 to 8: NAME-flat.vmdk and a descriptor of type vmfs, both uploaded to a datastore as they are."""

from __future__ import annotations

from p2v.formats.vmdk_flat import EDITABLE, LIMIT, SEQUENTIAL, create_type_of, reopen_type_of
from p2v.formats.vmdk_layout import SUFFIX, create_type, read
from p2v.model import ImageWriter, Source

__all__ = ["EDITABLE", "LIMIT", "NAME", "SEQUENTIAL", "SUFFIX", "create", "probe", "read", "reopen"]

NAME = "vmdk-esx"


def create(path: str, size: int) -> ImageWriter:
    """Begin both files. Raises PlanError where one exists, Unsupported past LIMIT, WriteError."""
    return create_type_of(path, size, "vmfs", "VMFS")


def reopen(path: str, state: bytes) -> ImageWriter:
    """Go on from a checkpoint; what was written past its last byte is forgotten."""
    return reopen_type_of(path, state, "vmfs", "VMFS")


def probe(source: Source) -> bool:
    """By the type in its descriptor."""
    return create_type(source) in ("vmfs", "vmfsthin", "vmfspreallocated", "vmfseagerzeroedthick")
