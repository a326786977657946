"""HAL and kernel for a VM, out of the installed service pack's own files: what fits, and why the rest does not.

The two travel together. A HAL for one processor under a kernel for several, or the reverse, is STOP 0x79; a kernel
of another service pack than the rest of the system is STOP 0x9A or worse (Q174228). So the kernel must have the
very version of the installed one, and a HAL that was handed in must lie beside such a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2v.errors import GuestError
from p2v.guest import hal, pe
from p2v.guest.media import Media, dotted
from p2v.model import Content, Guest

Version = tuple[int, int, int, int]
_KIND = {hal.STANDARD_HAL: hal.KERNEL, hal.ACPI_MP_HAL: hal.KERNEL_MP}  # HAL → the kernel that goes with it


@dataclass(frozen=True, slots=True)
class Part:
    """One of the two files. where: for the user."""

    where: str
    content: Content
    version: Version
    given: bool

    @property
    def shelf(self) -> str:
        """The folder or cabinet that it lies in."""
        text = self.where.replace("\\", "/")
        return text[:max(text.rfind("/"), text.rfind(": "))]


@dataclass(frozen=True, slots=True)
class Pair:
    """What Windows can start with. kernel: None where the installed one is right."""

    hal: Part
    kernel: Part | None


@dataclass(frozen=True, slots=True)
class Missing:
    """No pair. refused: copies that were there, and why each did not fit."""

    names: tuple[str, ...]
    refused: tuple[str, ...]


def find(guest: Guest, name: str) -> Pair | Missing:
    """The HAL of that name on the CD (hal.STANDARD_HAL, hal.ACPI_MP_HAL), and its kernel where another is installed."""
    wanted = _KIND[name]
    own = guest.facts.kernel
    kernel_fits = own is not None and own.original_name.lower() == wanted
    refused: list[str] = []
    with Media(guest) as media:
        kernels = list(_fitting(guest, media, wanted, refused, exact=True))
        hals = list(_fitting(guest, media, name, refused, exact=False))
    if kernel_fits:
        return Pair(max(hals, key=_version), None) if hals else Missing((name,), tuple(refused))
    best: Pair | None = None
    for kernel in kernels:
        for one in hals:
            if one.given and one.shelf != kernel.shelf:
                refused.append(f"{one.where}: it lies apart from {wanted}, so nothing says that they belong together")
            elif best is None or one.version > best.hal.version:
                best = Pair(one, kernel)
    absent = tuple(need for need, found in ((name, hals), (wanted, kernels)) if not found)
    return best or Missing(absent or (name, wanted), tuple(dict.fromkeys(refused)))


def _version(part: Part) -> Version:
    return part.version


def _fitting(guest: Guest, media: Media, name: str, refused: list[str], *, exact: bool) -> Iterator[Part]:
    for copy, in_box in media.copies(name):
        try:
            program = pe.read_program(copy.data, copy.where)
        except GuestError as error:
            refused.append(f"{copy.where}: no whole program file ({error.why})")
            continue
        why = _against(guest, program, name, exact=exact)
        if why:
            refused.append(f"{copy.where}: {why}")
        else:
            yield Part(copy.where, Content(copy.data), program.facts.version or (0, 0, 0, 0), not in_box)


def _against(guest: Guest, program: pe.Program, name: str, *, exact: bool) -> str:
    """Why a file is not the one, "" where it is. exact: its version must be the kernel's."""
    facts, kernel = program.facts, guest.facts.kernel
    if facts.original_name.lower() != name:
        return f"it is {facts.original_name or 'of no name'}, not {name}"
    if facts.machine != guest.facts.architecture:
        return f"it is for {facts.machine}, the guest is {guest.facts.architecture}"
    if program.checked:
        return "it is of a checked (debug) build"
    if kernel is None or kernel.version is None or facts.version is None:
        return "its version, or the installed kernel's, is not known"
    if exact and facts.version != kernel.version:
        return f"its version is {dotted(facts.version)}, the installed kernel's {dotted(kernel.version)}"
    if facts.version[:3] != kernel.version[:3] or facts.version > kernel.version:
        return f"its version {dotted(facts.version)} is of another service pack than {dotted(kernel.version)}"
    return ""


def names_of(pair: Sequence[str]) -> str:
    """hal.dll and ntoskrnl.exe."""
    return " and ".join(pair)
