"""Which files does a VMDK name? qemu opens each of them, so a look must come first.

A descriptor, also one inside an extent that claims to hold nothing, names files to open by path; a
parentFileNameHint names one more. Source: QEMU's block/vmdk.c (vmdk_open_desc_file, vmdk_parse_extents,
vmdk_parent_open).
"""

from __future__ import annotations

import os
import re
import struct

from p2v.errors import LayoutError, PlanError, Unsupported, Where

_SECTOR = 512
_TEXT = 1 << 20  # bytes: qemu reads no more of a descriptor
_MAGIC = b"KDMV"
_FIELDS = struct.Struct("<12xQ8xQ")  # capacity, descriptorOffset
# Wherever qemu could see an extent: every "RW" with the next quoted word, overlaps included.
_NAMED = re.compile(rb'(?=RW[^"]*"([^"\r\n]*)"?)')
_PARENT = re.compile(rb"parentFileNameHint", re.IGNORECASE)


def refuse_strangers(path: str) -> None:
    """Raises Unsupported where opening the VMDK at path would open files outside its folder, or a parent.

    Raises PlanError where there is no file, LayoutError where a file that it names is none.
    """
    text, nested = _descriptor(path)
    if nested:
        raise Unsupported(f"{path} is a descriptor dressed as a disk", Where(path, 0, _SECTOR, "capacity"),
                          "an extent without capacity would be read as a list of other files",
                          "convert it with the product that made it")
    if _PARENT.search(text):
        raise Unsupported(f"{path} is a snapshot: it holds only what differs from its parent", Where(path),
                          "its parent's file is named in it, and that name is not to be trusted",
                          "consolidate it (vmware-vdiskmanager -r, vmkfstools -i), then give the result")
    if text.startswith(_MAGIC):
        return
    folder = os.path.dirname(os.path.abspath(path))
    for name in {match.group(1) for match in _NAMED.finditer(text)}:
        _refuse_outside(path, folder, os.fsdecode(name))


def _refuse_outside(path: str, folder: str, name: str) -> None:
    place = os.path.join(folder, name)
    inside = os.path.dirname(os.path.realpath(place)) == os.path.realpath(folder)
    if "/" in name or ":" in name or "\0" in name or not inside:
        raise Unsupported(f"{path} names a file outside its folder", Where(path, item=name),
                          "an image must not make p2v read other files of this machine",
                          "put all files of the image into one folder, and only their names into its descriptor")
    if os.path.exists(place) and not os.path.isfile(place):
        raise LayoutError(f"{name} is no file", Where(path, item=name), "extents of an image are files")
    if os.path.isfile(place) and _descriptor(place)[1]:
        raise Unsupported(f"{name} is a descriptor dressed as an extent", Where(place, 0, _SECTOR, "capacity"),
                          "an extent without capacity would be read as a list of other files",
                          "convert it with the product that made it")


def _descriptor(path: str) -> tuple[bytes, bool]:
    """What may be read as a descriptor: the text, or what an extent carries after its magic.

    Also says whether an extent has no capacity: then its descriptor is all it is.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_TEXT)
            if not head.startswith(_MAGIC):
                return head, False
            capacity, place = _FIELDS.unpack_from(head.ljust(_FIELDS.size, b"\0"))
            file.seek(min(place * _SECTOR, 1 << 62))
            return _MAGIC + file.read(_TEXT), capacity == 0
    except OSError as error:
        raise PlanError(f"{path} cannot be opened: {error.strerror}", path, "an image is read from here",
                        "check the spelling") from error
