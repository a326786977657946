"""Which files does a VMDK name? qemu opens each of them, so a look must come first.

A descriptor, also one inside an extent that claims to hold nothing, names files to open by path; a
parentFileNameHint names one more. Source: QEMU's block/vmdk.c (vmdk_open_desc_file, vmdk_parse_extents,
vmdk_parent_open).
"""

from __future__ import annotations

import os
import re
from itertools import pairwise

from p2v.errors import LayoutError, PlanError, Unsupported, Where

_SECTOR = 512
_TEXT = 1 << 20  # bytes: qemu reads no more of a descriptor
_EMBEDDED = slice(_SECTOR, 21 * _SECTOR)  # where qemu looks for a parent in an extent, whatever its header says
_SPARSE = (b"KDMV", b"COWD")
_CAPACITY = slice(12, 20)  # its place in the header
_PARENT = re.compile(rb"parentFileNameHint", re.IGNORECASE)
_ACCESS = (b"RW", b"RDONLY", b"NOACCESS")


def refuse_strangers(path: str) -> None:
    """Raises Unsupported where opening the VMDK at path would open files outside its folder, or a parent.

    Raises PlanError where there is no file, LayoutError where it names a folder or device.
    """
    head = _head(path)
    sparse = head.startswith(_SPARSE)
    _refuse_nested(path, head)
    if _PARENT.search(head[_EMBEDDED] if sparse else head):
        raise Unsupported(f"{path} is a snapshot: it holds only what differs from its parent", Where(path),
                          "its parent's file is named in it, and that name is not to be trusted",
                          "consolidate it (vmware-vdiskmanager -r, vmkfstools -i), then give the result")
    folder = os.path.dirname(os.path.abspath(path))
    for name in _named(head) if not sparse else ():
        _refuse_outside(path, folder, os.fsdecode(name))


def _named(text: bytes) -> set[bytes]:
    """What a reader could take for the file of an extent: whatever follows an access word and the next quote."""
    pieces = text.split(b'"')
    return {re.split(rb"[\r\n]", name, maxsplit=1)[0] for before, name in pairwise(pieces)
            if any(word in before for word in _ACCESS)}


def _refuse_outside(path: str, folder: str, name: str) -> None:
    place = os.path.join(folder, name)
    strange = set(name) & set("/:\0")  # a colon makes it a protocol or a drive
    if strange or os.path.dirname(os.path.realpath(place)) != os.path.realpath(folder):
        raise Unsupported(f"{path} names a file outside its folder", Where(path, item=name),
                          "an image must not make p2v read other files of this machine",
                          "put all files of the image into one folder, and only their names into its descriptor")
    if os.path.exists(place) and not os.path.isfile(place):
        raise LayoutError(f"{name} is no file", Where(path, item=name), "extents of an image are files",
                          "put the image's files beside its descriptor")
    if os.path.isfile(place):
        _refuse_nested(place, _head(place))


def _refuse_nested(path: str, head: bytes) -> None:
    if head.startswith(b"KDMV") and not any(head[_CAPACITY]):
        raise Unsupported(f"{path} is a descriptor dressed as a disk", Where(path, 0, _SECTOR, "capacity"),
                          "an extent without capacity would be read as a list of other files",
                          "convert it with the product that made it")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_TEXT)
    except OSError as error:
        raise PlanError(f"{path} cannot be opened: {error.strerror}", path, "an image is read from here",
                        "check the spelling") from error
