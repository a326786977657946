"""Which reader an image gets, by name or by its user's word, after a look at whether it is safe and whole.

- raw, split raw: our own files, joined (device.py, split.py).
- VMDK whose extents are flat: the flat files, joined; qemu would read the same bytes, slower.
- fixed VHD: the file without its footer; qemu guesses such a file's format from its content.
- other VMDK (sparse, stream, split, COWD), dynamic VHD, VHDX, VDI, qcow2: qemu, through libnbd. It is the most
  used reader of all of them, and shares no code with our writers.
- partclone, ntfsclone: ours; qemu does not know them.
Content never chooses a reader; it only contradicts a name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p2v.errors import LayoutError, PlanError, ReadError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.split import inner_name, open_file, open_parts, parts_of

DESCRIPTOR = (b"# disk descriptorfile", b"# disk descriptor file")
COMPRESSED = {  # suffix: what unpacks it
    ".gz": "gunzip -c", ".zst": "zstd -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc", ".lz4": "lz4 -dc",
    ".lzo": "lzop -dc", ".lzma": "xz -dc", ".zip": "unzip -p",
}


@dataclass(frozen=True, slots=True)
class Input:
    """A format that is read. open(path, outside) gives the disk inside; begins: what its files begin with."""

    open: Callable[[str, bool], Source]
    suffixes: tuple[str, ...]
    begins: tuple[tuple[int, bytes], ...]


def open_input(path: str, name: str, *, outside: bool = False) -> Source:
    """The disk, or partition, in an image. name: one of INPUTS.

    outside: the image may name files outside its own folder.
    Raises LayoutError, Unsupported, PlanError, ReadError, MissingTool.
    """
    return INPUTS[name].open(path, outside)


def name_of(path: str) -> str:
    """The format that a file's name speaks of: one of INPUTS, raw for any name that says nothing.

    Raises Unsupported for a compressed file.
    """
    inner = inner_name(path).lower()
    for suffix, unpack in COMPRESSED.items():
        if inner.endswith(suffix):
            pieces = f"cat {inner_name(path)}.* | {unpack}" if inner_name(path) != path else f"{unpack} {path}"
            raise Unsupported(f"{path} is compressed", Where(path), "an image is read at any place, and more than once",
                              f"unpack it first: {pieces} > IMAGE")
    for name, form in INPUTS.items():
        if inner.endswith(form.suffixes) and form.suffixes:
            return name
    return "raw"


def contradiction(path: str, name: str) -> PlanError | LayoutError | None:
    """What to raise where a file's content is not what its name says; None where nothing speaks against it."""
    if not os.path.isfile(path):
        return None
    try:
        found = _content(path)
    except ReadError:  # what cannot be read contradicts nothing; whoever needs it will say so
        return None
    if found == name or (name == "raw" and not found):
        return None
    if name == "raw":
        return PlanError(f"{path} begins like an image of {found}, but its name does not say so",
                         Where(path, 0, SECTOR), "a raw disk may begin like anything, so the content never decides",
                         f"--source-format {found}, or --source-format raw where it is the disk itself")
    advice = f"--source-format {found or 'raw'}"
    if name == "vmdk" and not found:
        advice += ", where this is the raw disk of ESX 2 or a flat extent, and not a descriptor"
    return LayoutError(f"{path} is called {name}, and is {found or 'nothing like it'}", Where(path, 0, SECTOR),
                       "name and content contradict each other", f"rename it, or say {advice}")


def _content(path: str) -> str | None:
    """The format that a file looks like."""
    if not os.path.getsize(path):
        return None
    file = open_file(path)
    try:
        head = read(file, 0, min(SECTOR, file.size))
        tail = read(file, file.size - len(head), len(head))
    finally:
        file.close()
    if head.lower().startswith(DESCRIPTOR):
        return "vmdk"
    for name, form in INPUTS.items():
        if any(head[at : at + len(magic)] == magic for at, magic in form.begins):
            return name
    return "vhd" if tail.startswith(b"conectix") else None


# -- raw


def _raw(path: str, _outside: bool) -> Source:
    """A disk, a raw file, or a raw file in parts."""
    from p2v.source.device import open_disk

    if len(parts_of(path)) == 1:
        return open_disk(path)
    source = open_parts(path)
    if source.size % SECTOR:
        source.close()
        raise LayoutError(f"{path} and its parts are cut off inside a sector",
                          Where(path, source.size - source.size % SECTOR, source.size % SECTOR),
                          "no disk has such a size: the last part is incomplete", "copy the last part again")
    return source


def _vmdk(path: str, outside: bool) -> Source:
    from p2v.source.vmdkimage import open_vmdk

    return open_vmdk(path, outside)


def _vhd(path: str, _outside: bool) -> Source:
    from p2v.source.vhdimage import open_vhd

    return open_vhd(path)


def _vhdx(path: str, _outside: bool) -> Source:
    from p2v.source.vhdimage import open_vhdx

    return open_vhdx(path)


def _vdi(path: str, _outside: bool) -> Source:
    from p2v.source.vdiimage import open_vdi

    return open_vdi(path)


def _qcow2(path: str, outside: bool) -> Source:
    from p2v.source.qcow2image import open_qcow2

    return open_qcow2(path, outside)


def _partclone(path: str, _outside: bool) -> Source:
    from p2v.source.partclone import open_partclone

    return open_partclone(path)


def _ntfsclone(path: str, _outside: bool) -> Source:
    from p2v.source.ntfsclone import open_ntfsclone

    return open_ntfsclone(path)


INPUTS: Mapping[str, Input] = {
    "qcow2": Input(_qcow2, (".qcow2",), ((0, b"QFI\xfb"),)),
    "vmdk": Input(_vmdk, (".vmdk",), ((0, b"KDMV"), (0, b"COWD"))),
    "vhdx": Input(_vhdx, (".vhdx",), ((0, b"vhdxfile"),)),
    "vhd": Input(_vhd, (".vhd",), ((0, b"conectix"),)),
    "vdi": Input(_vdi, (".vdi",), ((64, b"\x7f\x10\xda\xbe"),)),
    "partclone": Input(_partclone, ("-ptcl-img", ".partclone", ".pcl"), ((0, b"partclone-image"),)),
    "ntfsclone": Input(_ntfsclone, ("-ntfs-img", ".ntfs-img", ".ntfsclone"), ((0, b"\0ntfsclone-image"),)),
    "raw": Input(_raw, (), ()),
}
