"""Do the tables of an image stay inside its file? qemu reads what lies behind a file's end as zero, in silence.

Tried with qemu 7.2 on images cut in half: qcow2, VDI and VMDK open and lose data; VHD and VHDX are refused.
So the tables of those three are looked at before qemu opens them, each as one array.
"""

from __future__ import annotations

from p2v.errors import LayoutError, Where
from p2v.model import SECTOR, Source

LARGEST = 64 << 40  # bytes: the largest disk of VHDX, and of any product that writes these formats
STEP = 1 << 21  # table entries looked at at once


def cut_off(file: Source, what: str, offset: int) -> LayoutError:
    """The error for a table that points outside its file."""
    return LayoutError(f"{file.name}: {what} lies outside the file", Where(file.name, offset, SECTOR),
                       f"the file has {file.size} bytes: it is cut off, or the table is damaged",
                       "copy the image again, and all files that belong to it")


def check_size(size: int) -> bool:
    """Is this the size of a disk?"""
    return 0 < size <= LARGEST
