"""What a Windows program file says of itself: machine, version, imports. The one door to pefile."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2v.errors import GuestError, Where
from p2v.model import PEFacts

if TYPE_CHECKING:
    import pefile

LIMIT = 64 << 20  # bytes: no kernel, HAL or driver of these systems comes near
NATIVE = 1  # IMAGE_SUBSYSTEM_NATIVE: kernel, HAL, drivers
_MACHINES = {0x14C: "x86", 0x8664: "x64"}
_DEBUG = 1  # VS_FF_DEBUG: a checked build


@dataclass(frozen=True, slots=True)
class Program:
    """A program file. checked: built for debugging; such a driver asserts on a free kernel.

    system: the Windows version from which on it is meant to run, by its subsystem version.
    version_text: FileVersion of the resource: "5.1.2600.6055 (xpsp_sp3_gdr.101209-1647)".
    """

    facts: PEFacts
    subsystem: int
    checked: bool
    system: tuple[int, int] = (0, 0)
    version_text: str = ""


def read_program(data: bytes, name: str) -> Program:
    """What the file says of itself. Raises GuestError for anything but a whole PE file."""
    import pefile

    if len(data) > LIMIT:
        raise _no_program(name, f"it has {len(data)} bytes, more than any file of these systems")
    try:
        pe = pefile.PE(data=data, fast_load=True)  # holds no file; its close() is a gc.collect(), 10 ms
        _check_whole(pe, len(data))
        pe.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_IMPORT"],
                                   pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_RESOURCE"]])
        return _program(pe)
    # pefile trusts offsets of a damaged file and then raises whatever its arithmetic raises.
    except (pefile.PEFormatError, struct.error, ValueError, LookupError, AttributeError, TypeError,
            ArithmeticError) as error:
        raise _no_program(name, str(error)) from error


def _check_whole(pe: pefile.PE, size: int) -> None:
    if not pe.sections or len(pe.sections) != pe.FILE_HEADER.NumberOfSections:
        raise ValueError("its section table is cut off")
    for section in pe.sections:
        if section.SizeOfRawData and section.PointerToRawData + section.SizeOfRawData > size:
            raise ValueError("a section ends past the end of the file: it is cut off")


def _program(pe: pefile.PE) -> Program:
    machine = int(pe.FILE_HEADER.Machine)
    imports = tuple(sorted({entry.dll.decode("ascii", "replace").lower()
                            for entry in getattr(pe, "DIRECTORY_ENTRY_IMPORT", [])}))
    version, checked = _fixed(pe)
    strings = _strings(pe)
    facts = PEFacts(_MACHINES.get(machine, f"{machine:#x}"), version, strings.get("OriginalFilename", ""),
                    strings.get("CompanyName", ""), imports)
    header = pe.OPTIONAL_HEADER
    system = (int(header.MajorSubsystemVersion), int(header.MinorSubsystemVersion))
    return Program(facts, int(header.Subsystem), checked, system, strings.get("FileVersion", ""))


def _fixed(pe: pefile.PE) -> tuple[tuple[int, int, int, int] | None, bool]:
    """The four numbers of VS_FIXEDFILEINFO, and its debug flag."""
    for fixed in getattr(pe, "VS_FIXEDFILEINFO", [])[:1]:
        high, low = int(fixed.FileVersionMS), int(fixed.FileVersionLS)
        checked = bool(fixed.FileFlags & fixed.FileFlagsMask & _DEBUG)
        return (high >> 16, high & 0xFFFF, low >> 16, low & 0xFFFF), checked
    return None, False


def _strings(pe: pefile.PE) -> dict[str, str]:
    """The version resource's strings, of its first language."""
    found: dict[str, str] = {}
    for group in getattr(pe, "FileInfo", []):
        for info in group:
            for table in getattr(info, "StringTable", []):
                for key, value in table.entries.items():
                    found.setdefault(key.decode("utf-8", "replace"),
                                     value.decode("utf-8", "replace").rstrip("\0").strip())
    return found


def _no_program(name: str, why: str) -> GuestError:
    return GuestError("this is not a whole Windows program file", Where(item=name), why,
                      "take the file from another copy of the same medium")
