"""VMDK in: flat extents and COWD are read by us, all others by qemu, after a look at names, headers and tables.

Flat files behind one another are what qemu would give too, slower; COWD has its own reader (cowd.py). qemu is
never shown a descriptor whose extents were not looked at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.cowd import CowdDisk
from p2v.source.images import DESCRIPTOR
from p2v.source.split import Joined, open_file, open_whole, shortened
from p2v.source.vmdkfiles import refuse_strangers
from p2v.source.vmdktables import check_sparse
from p2v.source.window import Window

_EXTENT = re.compile(r'^\s*(RW|RDONLY|NOACCESS)\s+(\d{1,12})\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d{1,12}))?)?', re.M)
_FLAT, _COWD = ("FLAT", "VMFS"), "VMFSSPARSE"
_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


def open_vmdk(path: str, outside: bool) -> Source:
    """The disk in a VMDK of any kind. Raises LayoutError, Unsupported, PlanError."""

    file = open_whole(path)
    keep = False
    try:
        head = read(file, 0, min(SECTOR, file.size))
        if head.startswith(b"COWD"):
            keep = True
            return CowdDisk(file)
        if head.startswith(b"KDMV"):
            return _sparse(path, file)
        if head.lower().startswith(DESCRIPTOR):
            return _described(path, read(file, 0, min(file.size, 1 << 20)), outside)
    finally:
        if not keep:
            file.close()
    raise LayoutError(f"{path} is no VMDK", Where(path, 0, SECTOR), "it is neither a descriptor nor an extent",
                      "a disk of ESX 2 without a descriptor is raw: --source-format raw")


def _sparse(path: str, file: Source) -> Source:
    """One file with its descriptor inside. Its header may round the disk up to a grain; the descriptor does not."""
    from p2v.source.nbd import open_image

    refuse_strangers(path)
    head = check_sparse(file)
    start, length = head.descriptor_offset * SECTOR, min(head.descriptor_size * SECTOR, 1 << 20)
    if start + length > file.size:
        raise LayoutError(f"{path}: the descriptor lies outside the file", Where(path, start, length),
                          "the file is cut off, or its header is damaged", "copy the image again")
    told = sum(int(extent[1]) for extent in _EXTENT.findall(read(file, start, length).decode("latin-1")))
    if not told:
        raise Unsupported(f"{path} is one extent of a VMDK", Where(path, start, length),
                          "the disk's other extents, and their order, are in its descriptor",
                          "name the descriptor, the small .vmdk file beside it")
    if not head.capacity - head.grain_size < told <= head.capacity:
        raise LayoutError(f"{path}: header and descriptor speak of two disks", Where(path, start, length),
                          f"{head.capacity} and {told} sectors", "copy the image again")
    image = open_image(path, "vmdk")
    return image if image.size == told * SECTOR else shortened(image, told * SECTOR)


def _described(path: str, data: bytes, outside: bool) -> Source:
    """A descriptor and its extents."""
    from p2v.source.nbd import open_image

    if not outside:
        refuse_strangers(path)
    text = data.decode("latin-1")
    if re.search(r"^\s*parentFileNameHint", text, re.M | re.I) or \
            re.search(r"^\s*parentCID\s*=\s*(?!ffffffff)", text, re.M | re.I):
        raise Unsupported(f"{path} is a snapshot: it holds only what differs from its parent", Where(path),
                          "the parent's file is named in it, and that name is not to be trusted",
                          "consolidate it (vmware-vdiskmanager -r, vmkfstools -i), then give the result")
    extents = _EXTENT.findall(text)
    if not extents:
        raise LayoutError(f"{path} describes no extent", Where(path), "a descriptor lists the files of a disk",
                          "take an undamaged copy of the image")
    if all(kind.upper() in (*_FLAT, _COWD) for _, _, kind, _, _ in extents):
        return _joined(path, [_Extent(kind.upper(), name, int(sectors), int(offset or 0))
                              for _, sectors, kind, name, offset in extents])
    for _, sectors, kind, name, _ in extents:
        _check_extent(path, kind.upper(), name, int(sectors))
    return open_image(path, "vmdk")


@dataclass(frozen=True, slots=True)
class _Extent:
    """A line of a descriptor. offset: where its sectors begin in the file, in sectors; for flat ones."""

    kind: str
    name: str
    sectors: int
    offset: int


def _joined(path: str, extents: list[_Extent]) -> Source:
    """Flat and COWD extents behind one another."""
    parts: list[Source] = []
    files: list[Source] = []
    try:
        for extent in extents:
            files.append(_extent_file(path, extent.name))
            if extent.kind == _COWD:
                files.append(CowdDisk(files.pop()))
            offset = extent.offset if extent.kind != _COWD else 0
            if not extent.sectors or (offset + extent.sectors) * SECTOR > files[-1].size:
                raise LayoutError(f"{files[-1].name} is shorter than its descriptor says",
                                  Where(files[-1].name, files[-1].size),
                                  f"{path} counts {extent.sectors} sectors in it, from sector {offset}",
                                  "copy the extent again")
            parts.append(Window(files[-1], offset * SECTOR, extent.sectors * SECTOR))
        return Joined(parts, path, files)
    except BaseException:
        for file in files:
            file.close()
        raise


def _check_extent(path: str, kind: str, name: str, sectors: int) -> None:
    """A sparse or flat extent of a disk that qemu will put together."""
    if kind not in (*_FLAT, "SPARSE"):
        raise Unsupported(f"{path} has an extent of type {kind}", Where(path, item=name),
                          "p2v reads FLAT, VMFS and SPARSE, and VMFSSPARSE without SPARSE beside it",
                          "convert it with the product that made it")
    file = _extent_file(path, name)
    try:
        if kind == "SPARSE" and check_sparse(file).capacity < sectors:
            raise LayoutError(f"{name} is smaller than its descriptor says", Where(file.name, 12, 8),
                              f"{sectors} sectors are counted in it", "copy the extent again")
        if kind in _FLAT and file.size < sectors * SECTOR:
            raise LayoutError(f"{name} is shorter than its descriptor says", Where(file.name, file.size),
                              f"{sectors} sectors are counted in it", "copy the extent again")
    finally:
        file.close()


def _extent_file(path: str, name: str) -> Source:
    if not name or _PROTOCOL.match(name):
        raise Unsupported(f"{path} names an extent that is no file", Where(path, item=name),
                          next="give an image whose extents are files beside it")
    place = os.path.join(os.path.dirname(path), name)
    if not os.path.isfile(place):
        raise LayoutError(f"an extent of {path} is missing", Where(place), "the descriptor only says where the disk is",
                          "copy all files of the image into one folder")
    return open_file(place)
