"""boot.ini: which Windows the loader starts, as lines of bytes that stay what they are.

The text is in the guest's own code page, so titles are never decoded: lines are bytes, and only the ARC
path and the switches, which are ASCII, are read as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from p2v.errors import GuestError, Where
from p2v.model import Collapsed, Partition, Source, read

LIMIT = 64 << 10  # bytes; a real one has a few hundred

_ARC = re.compile(
    r"(?P<kind>multi|scsi|signature)\((?P<first>[0-9a-f]{0,8})\)disk\((?P<disk>\d{0,3})\)"
    r"rdisk\((?P<rdisk>\d{0,3})\)partition\((?P<partition>\d{1,3})\)(?P<directory>\\[^\"=]*)?",
    re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ArcPath:
    """multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS and its relatives.

    kind: "multi", "scsi" or "signature". first: the number in its brackets (hexadecimal for a signature).
    directory: with its backslash, "" for none.
    """

    kind: str
    first: int
    disk: int
    rdisk: int
    partition: int
    directory: str

    def __str__(self) -> str:
        first = f"{self.first:x}" if self.kind == "signature" else str(self.first)
        return (f"{self.kind}({first})disk({self.disk})rdisk({self.rdisk})"
                f"partition({self.partition}){self.directory}")


def parse_arc(text: str) -> ArcPath | None:
    """An ARC path, or None for anything else (C:\\ = another system's boot sector)."""
    found = _ARC.fullmatch(text.strip())
    if not found:
        return None
    kind = found["kind"].lower()
    first = found["first"] or "0"
    if kind != "signature" and not first.isdigit():
        return None
    return ArcPath(kind, int(first, 16 if kind == "signature" else 10), int(found["disk"] or 0),
                   int(found["rdisk"] or 0), int(found["partition"]),
                   (found["directory"] or "").rstrip("\\ "))


@dataclass(frozen=True, slots=True)
class Line:
    """A line that names a system. number: its index in the file. title: bytes between the quotes."""

    number: int
    path: bytes
    title: bytes
    switches: bytes

    @property
    def arc(self) -> ArcPath | None:
        """Its ARC path, None for a line like C:\\="Windows 98"."""
        return parse_arc(self.path.decode("latin-1"))

    def switch(self, name: str) -> str:
        """The value of /NAME=value, "" where it is not there."""
        found = re.search(rf"/{name}=(\S+)", self.switches.decode("latin-1"), re.IGNORECASE)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class BootIni:
    """A boot.ini. lines: with their ends, joined they are the file again."""

    lines: tuple[bytes, ...]
    default: bytes
    default_number: int | None
    timeout: int | None
    systems: tuple[Line, ...]

    @property
    def default_line(self) -> Line | None:
        """The line that starts when nobody presses a key: the first with the default's path."""
        wanted = self.default.strip().lower()
        for line in self.systems:
            if line.path.strip().lower() == wanted:
                return line
        if parse_arc(self.default.decode("latin-1")):
            return Line(-1, self.default, b"", b"")
        return None

    def with_path(self, number: int, old: bytes, new: ArcPath) -> BootIni:
        """The same file with one path of line number replaced, every other byte kept."""
        lines = list(self.lines)
        lines[number] = lines[number].replace(old.strip(), str(new).encode("latin-1"), 1)
        return parse(b"".join(lines))

    def with_switches(self, line: Line, switches: bytes) -> BootIni:
        """The same file with other switches on a line, which are those it has plus or minus some."""
        raw = self.lines[line.number]
        text = raw.rstrip(b" \t\r\n\0\x1a")
        end = raw[len(text):]
        kept = text[:len(text) - len(line.switches)].rstrip() if line.switches else text
        lines = list(self.lines)
        lines[line.number] = kept + b" " + switches + end.lstrip(b" \t")
        return parse(b"".join(lines))

    def with_line(self, text: bytes, before: Line | None = None) -> BootIni:
        """The same file with one more system, after the last one, or before the one given."""
        last = max((line.number for line in self.systems), default=len(self.lines) - 1)
        last = before.number - 1 if before else last
        end = b"\r\n" if any(line.endswith(b"\r\n") for line in self.lines) else b"\n"
        lines = list(self.lines)
        if not lines[last].endswith((b"\n", b"\r")):
            lines[last] += end
        lines.insert(last + 1, text + end)
        return parse(b"".join(lines))

    @property
    def data(self) -> bytes:
        """The file's content."""
        return b"".join(self.lines)


def parse(data: bytes, name: str = "boot.ini") -> BootIni:
    """A boot.ini out of its bytes. Raises GuestError for what cannot be one."""
    if len(data) > LIMIT:
        raise GuestError("this is no boot.ini", Where(item=name), f"it has {len(data)} bytes",
                         "replace it by one that names this Windows")
    ini = BootIni(tuple(data.splitlines(keepends=True)), b"", None, None, ())
    section = b""
    for number, raw in enumerate(ini.lines):
        line = raw.strip(b" \t\r\n\0\x1a")
        if line.startswith(b"["):
            section = line.lower()
        elif line and not line.startswith(b";"):
            ini = _with_setting(ini, section, number, line)
    return ini


def _with_setting(ini: BootIni, section: bytes, number: int, line: bytes) -> BootIni:
    if section == b"[operating systems]":
        path, _, rest = line.partition(b"=")
        title, switches = _title(rest)
        return replace(ini, systems=(*ini.systems, Line(number, path.strip(), title, switches)))
    key, _, value = line.partition(b"=")
    if section not in (b"[boot loader]", b"[flexboot]"):
        return ini
    if key.strip().lower() == b"default" and ini.default_number is None:
        return replace(ini, default=value.strip(), default_number=number)
    if key.strip().lower() == b"timeout" and re.fullmatch(rb"-?\d{1,9}", value.strip()):
        return replace(ini, timeout=int(value))
    return ini


def _title(rest: bytes) -> tuple[bytes, bytes]:
    found = re.match(rb'\s*"([^"]*)"?(.*)', rest, re.DOTALL)
    if found:
        return found[1], found[2].strip()
    title, _, switches = rest.strip().partition(b" /")
    return title, b"/" + switches if switches else b""


def candidates(arc: ArcPath, disks: Mapping[str, Source],
               partitions: Sequence[Partition]) -> tuple[Partition, ...]:
    """The partitions that an ARC path may mean, best first.

    multi(): exactly the disk that the BIOS counts as rdisk. signature(): the disk with that signature in
    its MBR. scsi(): a SCSI id, which no image keeps, so every disk, in BIOS order.
    """
    order = list(disks)
    if arc.kind == "multi":
        chosen = order[arc.rdisk:arc.rdisk + 1]
    elif arc.kind == "signature":
        chosen = [disk for disk in order if signature(disks[disk]) == arc.first] or order
    else:
        chosen = order
    return tuple(part for disk in chosen for part in partitions
                 if part.disk == disk and part.number == arc.partition)


def before_collapse(arc: ArcPath, collapsed: Collapsed) -> tuple[str, ...]:
    """The volumes that an ARC path may mean, by the numbers of the disks that the server had; best first.

    The order of the server's disks in its BIOS is not known for sure: multi() rdisk(0) is the boot disk, so
    the likely one comes first there, and last for any other rdisk. Any leg of a mirror leads to its volume.
    """
    arcs, signatures = list(collapsed.arcs), collapsed.signatures
    if arc.kind == "signature":
        arcs = [arcs[i] for i, one in enumerate(signatures) if one == arc.first] or arcs
    elif arc.rdisk and arc.kind == "multi":
        arcs = [*arcs[arc.rdisk:arc.rdisk + 1], *arcs[1:], *arcs[:1]]
    found = [numbers[arc.partition] for numbers in arcs if arc.partition in numbers]
    return tuple(dict.fromkeys(found))


def signature(disk: Source) -> int:
    """The disk signature in the MBR, 0 for a disk too short to have one."""
    if disk.size < 512:
        return 0
    return int.from_bytes(read(disk, 0x1B8, 4), "little")


def arc_of(partition: Partition, disks: Mapping[str, Source], directory: str) -> ArcPath:
    """The multi() path of a directory on a partition."""
    return ArcPath("multi", 0, 0, list(disks).index(partition.disk), partition.number, directory)
