"""VHD and VHDX: fixed VHD is read by us, the rest by qemu, after a look at the footer and for a parent.

qemu 7.2 opens a differencing VHD as if it had no parent, and takes the geometry for the size of some
creators' images: both are decided here.
"""

from __future__ import annotations

from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.split import Joined, open_whole, shortened
from p2v.source.window import Window


def open_vhd(path: str) -> Source:
    """The footer's size is the disk's: qemu's geometry product loses the tail of VirtualBox's images."""
    from p2v.source.nbd import open_image

    file = open_whole(path)
    keep = False
    try:
        kind, size = _vhd_footer(file)
        if kind == 4:
            raise _differencing(path, "VHD")
        if kind == 2:
            if size > file.size - SECTOR:
                raise LayoutError(f"{path} is shorter than its footer says", Where(path, file.size),
                                  f"a disk of {size} bytes", "copy the image again")
            keep = True
            return Joined([Window(file, 0, size)], path, [file])
    finally:
        if not keep:
            file.close()
    image = open_image(path, "vpc", options={"force_size_calc": "current_size"})
    return image if image.size == size else shortened(image, size)


def _vhd_footer(file: Source) -> tuple[int, int]:
    """Type and size of the disk, from the footer or, where that is damaged, its copy at the front."""
    for place in (file.size - SECTOR, 0):
        raw = read(file, place, SECTOR) if place >= 0 and file.size >= SECTOR else b""
        total = ~(sum(raw) - sum(raw[64:68])) & 0xFFFFFFFF
        if raw[:8] == b"conectix" and total == int.from_bytes(raw[64:68], "big"):
            size, kind = int.from_bytes(raw[48:56], "big"), int.from_bytes(raw[60:64], "big")
            if kind in (2, 3, 4) and 0 < size <= 2040 << 30 and size % SECTOR == 0:
                return kind, size
            raise LayoutError("the VHD footer cannot be trusted", Where(file.name, place, SECTOR),
                              f"type {kind}, a disk of {size} bytes", "copy the image again")
    raise LayoutError("the VHD footer is missing or damaged", Where(file.name, max(file.size - SECTOR, 0), SECTOR),
                      "it says what the file holds; its checksum is wrong in both copies",
                      "copy the image again: it may be cut off")


def open_vhdx(path: str) -> Source:
    """qemu checks its checksums and tables, and refuses one whose log must be replayed."""
    from p2v.source.nbd import open_image

    file = open_whole(path)
    try:
        if _vhdx_has_parent(file):
            raise _differencing(path, "VHDX")
    finally:
        file.close()
    return open_image(path, "vhdx")


def _vhdx_has_parent(file: Source) -> bool:
    """Bit 1 of the file parameters' flags, found through the region table and the metadata table."""
    table = read(file, 192 << 10, 64 << 10) if file.size >= 256 << 10 else b""
    region = table.find(bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e"))
    if region < 0:
        return False  # qemu will say what is wrong
    start = int.from_bytes(table[region + 16 : region + 24], "little")
    if start + (64 << 10) > file.size:
        return False
    entries = read(file, start, 64 << 10)
    item = entries.find(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"))
    place = start + int.from_bytes(entries[item + 16 : item + 20], "little") if item >= 0 else file.size
    return place + 8 <= file.size and bool(read(file, place + 4, 1)[0] & 2)


def _differencing(path: str, kind: str) -> Unsupported:
    return Unsupported(f"{path} is a differencing {kind}", Where(path),
                       "what did not change since the snapshot lies in its parent",
                       "merge it first (Hyper-V: Merge-VHD), or give the parent")
