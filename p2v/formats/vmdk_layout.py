"""What all VMDK formats share: the descriptor, the header of a sparse extent, and what tells them apart.

Sources: VMware's "Virtual Disk Format 5.0", open-vmdk's vmdk/sparse.c, and files by VirtualBox 7.2 and
open-vmdk 0.3.13, with which ours are compared in the tests.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from p2v.errors import Unsupported, Where
from p2v.model import SECTOR, Source
from p2v.model import read as read_bytes
from p2v.volume.geometry import CYLINDERS, TRACK, target_geometry

SUFFIX = ".vmdk"
MAGIC = b"KDMV"
GRAIN_SECTORS = 128
GRAIN = GRAIN_SECTORS * SECTOR  # bytes
TABLE_ENTRIES = 512  # of a grain table: 32 MiB of disk
DESCRIPTOR_SECTORS = 20  # room for an embedded one
END = (1 << 64) - 1  # as gdOffset: the directory is named by the footer

FLAG_NEWLINES, FLAG_REDUNDANT, FLAG_COMPRESSED, FLAG_MARKERS = 1, 2, 1 << 16, 1 << 17

# magicNumber version flags capacity grainSize descriptorOffset descriptorSize numGTEsPerGT rgdOffset gdOffset
# overHead uncleanShutdown singleEndLineChar.. compressAlgorithm; all offsets and sizes in sectors
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_IDE_HEADS, _IDE_CYLINDERS = 16, 16383  # ATA: what IDENTIFY DEVICE can say

ExtentLine: TypeAlias = tuple[str, int, str, str]  # access, sectors, type, file name


@dataclass(frozen=True, slots=True)
class Header:
    """A sparse extent's header. All numbers but version, flags and compression count sectors."""

    capacity: int
    directory: int
    overhead: int
    redundant: int = 0  # the second directory
    descriptor: int = 0  # sectors of the embedded descriptor at sector 1; 0 for none
    version: int = 1
    flags: int = FLAG_NEWLINES | FLAG_REDUNDANT
    compression: int = 0

    def pack(self) -> bytes:
        """The 512 bytes."""
        return _HEADER.pack(
            MAGIC, self.version, self.flags, self.capacity, GRAIN_SECTORS, int(self.descriptor > 0),
            self.descriptor, TABLE_ENTRIES, self.redundant, self.directory, self.overhead, 0, b"\n \r\n",
            self.compression)


def whole_grains(size: int) -> int:
    """Sectors of a disk of size bytes, rounded up to whole grains: VMware's own are, some readers need it."""
    return -(-size // GRAIN) * GRAIN_SECTORS


def check_size(path: str, size: int, limit: int, kind: str, why: str) -> None:
    """Raises Unsupported past a format's limit."""
    if size <= 0:
        raise ValueError(f"no disk has {size} bytes")
    if size > limit:
        raise Unsupported(f"{kind} holds no disk of {size} bytes", Where(path), why, "use raw, qcow2 or vmdk-esx")


def descriptor(kind: str, size: int, extents: Sequence[ExtentLine]) -> bytes:
    """The text that describes a disk of size bytes. kind: its createType.

    The adapter is IDE, which every legacy Windows has a driver for. geometry is what the drive says of
    itself; the bios lines are what INT 13h must present, the same as everywhere in p2v. CID is random, and
    never ffffffff ("none") or fffffffe. Hardware version 4 is opened by all products since Workstation 4.5,
    GSX 3 and ESX 3.
    """
    sectors = -(-size // SECTOR)
    bios = target_geometry(size)
    cid = f"{secrets.randbelow(0xFFFFFFFE):08x}"
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid}",
        "parentCID=ffffffff",
        f'createType="{kind}"',
        "",
        "# Extent description",
        *(f'{access} {count} {extent} "{name}"' + (" 0" if extent == "FLAT" else "")
          for access, count, extent, name in extents),
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.virtualHWVersion = "4"',
        'ddb.adapterType = "ide"',
        f'ddb.geometry.cylinders = "{_cylinders(sectors, _IDE_HEADS, _IDE_CYLINDERS)}"',
        f'ddb.geometry.heads = "{_IDE_HEADS}"',
        f'ddb.geometry.sectors = "{TRACK}"',
        f'ddb.geometry.biosCylinders = "{_cylinders(sectors, bios.heads, CYLINDERS)}"',
        f'ddb.geometry.biosHeads = "{bios.heads}"',
        f'ddb.geometry.biosSectors = "{bios.sectors}"',
        f'ddb.longContentID = "{secrets.token_hex(12)}{cid}"',
        f'ddb.uuid.image = "{uuid.uuid4()}"',
        f'ddb.uuid.modification = "{uuid.uuid4()}"',
        f'ddb.uuid.parent = "{uuid.UUID(int=0)}"',
        f'ddb.uuid.parentmodification = "{uuid.UUID(int=0)}"',
        "",
    ]
    return "\n".join(lines).encode()


def embedded(text: bytes) -> bytes:
    """A descriptor padded to the room that it has inside an extent."""
    return text.ljust(DESCRIPTOR_SECTORS * SECTOR, b"\0")


def own_name(path: str) -> str:
    """An embedded descriptor's name for its own file; nobody opens it by that name."""
    return Path(path).name if _plain(Path(path).name) else "disk.vmdk"


def sibling(path: str, tail: str) -> str:
    """The path of an extent beside the descriptor: disk0.vmdk, "-flat" → disk0-flat.vmdk.

    Raises Unsupported for a name that no descriptor can hold.
    """
    name = Path(path).name
    if not _plain(name):
        raise Unsupported(f"{name!r} cannot be the name of a VMDK of several files", Where(path),
                          "its descriptor must name the others, and quotes, colons and line ends cannot be named",
                          "choose another name")
    stem = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    return os.path.join(os.path.dirname(path), f"{stem}{tail}{SUFFIX}")


def _plain(name: str) -> bool:
    return name.isprintable() and not set(name) & set('":\\')


def _cylinders(sectors: int, heads: int, most: int) -> int:
    return max(1, min(most, sectors // (heads * TRACK)))


def create_type(source: Source) -> str:
    """The createType of an image's first bytes, lower case; "" where they are no VMDK."""
    head = read_bytes(source, 0, min(source.size, (1 + DESCRIPTOR_SECTORS) * SECTOR))
    if not head.startswith((MAGIC, b"# Disk Descriptor")):
        return ""
    found = re.search(rb'^\s*createType\s*=\s*"([^"\r\n]*)"', head, re.IGNORECASE | re.MULTILINE)
    return found.group(1).decode("ascii", "replace").lower() if found else ""


def read(path: str) -> Source:
    """The disk inside, through qemu-nbd, after a look at which files the image names.

    Raises Unsupported where it names any outside its own folder, or a parent.
    """
    from p2v.source.nbd import open_image
    from p2v.source.vmdkfiles import refuse_strangers

    refuse_strangers(path)
    return open_image(path, "vmdk")
