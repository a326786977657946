"""The vocabulary of p2v: what all rooms speak in. Read this first.

Four nouns: all that can be read is a Source, all that will be edited is a Change, all that is worth
saying is a Finding (errors.py), and a Plan ties the three together, disk by disk.

Ranges are half-open. A bare offset, length or size is bytes; other units say so in the name.
An object that exists is valid: the dataclasses are frozen and refuse nonsense with ValueError.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from p2v.errors import Finding

SECTOR = 512  # bytes; what partition tables and boot sectors of our guests count in

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(stage, done, total): amounts in bytes, or steps where a stage has no bytes."""

Cancel: TypeAlias = threading.Event
"""Set it, and the run stops at the next safe point with Cancelled."""


class Done(int):
    """The amount that progress() is told while a disk is copied: an int that knows what became of the bytes.

    counts: bytes by what became of them so far: copied, found_zero, zero, free (skipped), bad.
    """

    counts: Mapping[str, int]

    def __new__(cls, amount: int, counts: Mapping[str, int]) -> Done:
        """amount: as it is without counts."""
        self = super().__new__(cls, amount)
        self.counts = counts
        return self


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback of a caller that does not want any."""


# ---------------------------------------------------------------------------------------------
# Sources


class Kind(enum.Enum):
    """What is known of an extent. Unproven is DATA."""

    DATA = "data"
    ZERO = "zero"  # the medium's word, or the bytes
    FREE = "free"  # a filesystem's own bitmap says that nobody needs it
    BAD = "bad"  # tried down to one sector, unreadable; written as zeroes


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of one kind: bytes offset to offset + length."""

    offset: int
    length: int
    kind: Kind

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"no extent: offset {self.offset}, length {self.length}")

    @property
    def end(self) -> int:
        """The first byte past the extent."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes offset to offset + length, of whatever kind."""

    offset: int
    length: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"no range: offset {self.offset}, length {self.length}")

    @property
    def end(self) -> int:
        """The first byte past the range."""
        return self.offset + self.length


@runtime_checkable
class Source(Protocol):
    """All that can be read: a disk, a partition, a mirror, an image, some bytes in a test."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sector_size(self) -> int:
        """Bytes: 512 or 4096."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of buffer from byte offset on.

        Any offset and length; no cursor, so threads share a source freely.
        Raises ReadError naming the range when any byte cannot be read; ValueError past the end.
        """

    def extents(self) -> Iterable[Extent]:
        """Ascending, touching, from 0 to size: what the medium itself knows (holes are ZERO)."""

    def close(self) -> None:
        """Let go of what the source holds open. Reading afterwards is a ValueError."""


def read(source: Source, offset: int, length: int) -> bytes:
    """length bytes from offset on. Raises what Source.read_into raises."""
    buffer = bytearray(length)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


# ---------------------------------------------------------------------------------------------
# Images


class ImageWriter(Protocol):
    """An image while it is being made. A format that is SEQUENTIAL takes ascending writes only."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Put data at byte offset of the disk. Raises WriteError."""

    def zero(self, offset: int, length: int) -> None:
        """These bytes of the disk read as zero. Raises WriteError."""

    def checkpoint(self) -> bytes:
        """fsync; then the state from which reopen() goes on."""

    def finish(self) -> None:
        """Tables, checksums, fsync; then OUT.part is renamed to OUT."""

    def abort(self) -> None:
        """Nothing is left that looks like a finished image. Safe to call twice and after an error."""


class ImageFormat(Protocol):
    """A module in formats/: one output format."""

    NAME: str
    SUFFIX: str  # with the dot
    SEQUENTIAL: bool  # takes ascending writes only
    EDITABLE: bool  # an image of this format can be edited in place
    LIMIT: int  # bytes: the largest disk it can hold

    def create(self, path: str, size: int) -> ImageWriter:
        """Begin PATH.part for a disk of size bytes. Raises WriteError, Unsupported past LIMIT."""

    def reopen(self, path: str, state: bytes) -> ImageWriter:
        """Go on from a checkpoint."""

    def probe(self, source: Source) -> bool:
        """Do these bytes look like an image of this format?"""

    def read(self, path: str) -> Source:
        """The disk inside the image, through a reader that shares no code with our writer."""


# ---------------------------------------------------------------------------------------------
# Disks and volumes


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a BIOS tells boot code through INT 13h: heads and sectors per track (cylinders follow)."""

    heads: int
    sectors: int

    def __post_init__(self) -> None:
        if not (1 <= self.heads <= 256 and 1 <= self.sectors <= 63):
            raise ValueError(f"no geometry: {self.heads} heads, {self.sectors} sectors per track")


@dataclass(frozen=True, slots=True)
class Partition:
    """An entry in a partition table.

    disk: the disk's id in the plan ("disk0"). entry_offset: bytes, where its 16-byte entry lies.
    number: what an ARC path calls partition(N), counted from 1; 0 for what is not counted.
    start_chs, end_chs: the three raw CHS bytes of the entry.
    """

    disk: str
    entry_offset: int
    number: int
    type: int
    active: bool
    logical: bool
    offset: int
    length: int
    start_chs: bytes = b"\0\0\0"
    end_chs: bytes = b"\0\0\0"


@dataclass(frozen=True, slots=True)
class Member:
    """A disk's part in a volume: bytes offset to offset + length of disk ("disk0")."""

    disk: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What a volume manager says of a volume that is more than a partition.

    manager: "ldm", "ft", "md", "imsm", "ddf", "lvm", "gpt". name: what the manager calls it ("Volume1", "md0").
    guid: the 16 raw bytes that MountedDevices knows an LDM volume by; b"" elsewhere.
    letter: its drive letter as far as the manager knows one ("C:"), "" otherwise.
    type: the MBR type byte that it has as a basic partition; 0 where the manager does not say.
    group: the set that the disks belong to, as its manager names it (a GUID as text, a UUID).
    system, boot: the manager calls it Microsoft's system, or boot, volume.
    """

    manager: str
    name: str
    guid: bytes = b""
    letter: str = ""
    type: int = 0
    group: str = ""
    system: bool = False
    boot: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """What carries a filesystem, put together from its members.

    name: its id in a plan, stable for the same disks ("disk0p1").
    layout: "basic" for a partition of one disk, "simple" for one range of a volume manager's, "spanned",
    "striped", "raid4", "raid5", "raid6", "raid10"; a mirror has "mirrored" once its leg is chosen.
    partition: the table entry that it lies in; None for a volume without one.
    origin: what a volume manager says of it; None for a plain partition.
    """

    name: str
    source: Source
    layout: str
    members: tuple[Member, ...]
    partition: Partition | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Leg:
    """One whole copy of a mirrored volume, on one disk.

    source: the volume's bytes as this copy has them. member: where they lie. partition: its entry in the
    table of its own disk, None where it has none.
    generation: what the manager's metadata on this very disk counts, most weighty first; tuples of one mirror
    compare, higher is newer; () where the manager keeps none (an FT set of NT 4).
    history: the same in words, for the user ("committed 1133, TOC 5, changed 2009-03-02 11:20").
    against: what the set's newest metadata, or a hive, holds against this copy, in words: any of them
    makes it no candidate.
    fails: ids of disks that this disk's own metadata calls failed, detached or gone; two that fail each
    other are a split brain.
    changed: when that metadata was last written; None where the manager does not say. What an older leg's
    filesystem wrote after the newest leg's time, it wrote alone.
    """

    disk: str
    source: Source
    member: Member
    partition: Partition | None = None
    generation: tuple[int, ...] = ()
    history: str = ""
    against: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    changed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirrored volume whose leg is not chosen yet: readers find it, only choosing makes a Volume of it.

    legs: the copies on the disks that were given, in the manager's order (member 0 first).
    missing: what the metadata calls the copies' disks that were not given, in words.
    """

    name: str
    size: int
    legs: tuple[Leg, ...]
    origin: Origin
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.legs or self.size <= 0 or any(leg.source.size < self.size for leg in self.legs):
            raise ValueError(f"no mirror: {self.name}, {self.size} bytes on {len(self.legs)} legs")


class FilesystemState(enum.Enum):
    """What the untouched source says of a filesystem."""

    CLEAN = "clean"
    UNCLEAN = "unclean"  # a journal that is not replayed
    DIRTY = "dirty"  # the flag alone
    HIBERNATED = "hibernated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What is known of a volume's filesystem without mounting it.

    kind: "ntfs", "fat16" … or "" when nobody knows it. version: "1.2", "3.0", "3.1" for NTFS, else "".
    free: ascending byte ranges of the volume that its own bitmap calls unused. Empty unless CLEAN.
    droppable: ranges whose content need not be copied though they stay allocated (page file).
    """

    kind: str
    version: str = ""
    cluster_size: int = 0
    state: FilesystemState = FilesystemState.UNKNOWN
    free: tuple[Range, ...] = ()
    droppable: tuple[Range, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file or folder in a guest. size: bytes of its content."""

    size: int
    is_folder: bool
    compressed: bool = False
    encrypted: bool = False
    sparse: bool = False


class GuestFiles(Protocol):
    """A volume's files. Paths as the guest spells them, from the root: \\WINDOWS\\system32\\hal.dll.

    Lookup ignores case, as Windows does.
    """

    def read(self, path: str) -> bytes:
        """A whole file. Raises GuestError where there is none, or it cannot be read."""

    def stat(self, path: str) -> FileStat | None:
        """None where there is nothing."""

    def list(self, path: str) -> Sequence[str]:
        """The names in a folder as the guest spells them; empty where there is no such folder."""


class WritableFiles(GuestFiles, Protocol):
    """The writing door adds two verbs."""

    def write(self, path: str, data: bytes, like: str | None = None) -> None:
        """Replace or make a file; a replaced one keeps owner, ACL, attributes and short name.

        like: a neighbour whose owner and ACL a new file gets. Parent folders must exist.
        Raises GuestError.
        """

    def remove(self, path: str) -> None:
        """Remove a file. Raises GuestError where there is none."""


# ---------------------------------------------------------------------------------------------
# Registry


@dataclass(frozen=True, slots=True)
class Value:
    """A registry value's type (REG_*) and raw data, as the hive holds them."""

    type: int
    data: bytes

    @property
    def number(self) -> int:
        """A DWORD's number. Raises ValueError for anything else."""
        if self.type != 4 or len(self.data) < 4:
            raise ValueError(f"no DWORD: type {self.type}, {len(self.data)} bytes")
        return int(struct.unpack_from("<I", self.data)[0])

    @property
    def text(self) -> str:
        """A string up to its terminator; lone surrogates replaced."""
        return self.data[: len(self.data) & ~1].decode("utf-16-le", "replace").split("\0", 1)[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """The strings of a REG_MULTI_SZ."""
        text = self.data[: len(self.data) & ~1].decode("utf-16-le", "replace")
        return tuple(t for t in text.split("\0") if t)


REG_SZ, REG_EXPAND_SZ, REG_BINARY, REG_DWORD, REG_MULTI_SZ = 1, 2, 3, 4, 7


def DWord(number: int) -> Value:
    """A REG_DWORD."""
    return Value(REG_DWORD, struct.pack("<I", number))


def Text(text: str) -> Value:
    """A REG_SZ."""
    return Value(REG_SZ, (text + "\0").encode("utf-16-le"))


def ExpandText(text: str) -> Value:
    """A REG_EXPAND_SZ."""
    return Value(REG_EXPAND_SZ, (text + "\0").encode("utf-16-le"))


def MultiText(*texts: str) -> Value:
    """A REG_MULTI_SZ."""
    return Value(REG_MULTI_SZ, ("".join(t + "\0" for t in texts) + "\0").encode("utf-16-le"))


class HiveTree(Protocol):
    """A hive to read. Keys are paths below its root with backslashes, "" is the root; case is ignored."""

    def has(self, key: str) -> bool:
        """Is there such a key?"""

    def spelling(self, key: str) -> str | None:
        """The key as the hive spells it; None where there is none."""

    def subkeys(self, key: str) -> Sequence[str]:
        """Names of the keys below; empty where there is no such key."""

    def value(self, key: str, name: str) -> Value | None:
        """One value ("" is the default value); None where there is none."""

    def values(self, key: str) -> Mapping[str, Value]:
        """All values of a key by their name as spelled; empty where there is no such key."""


# ---------------------------------------------------------------------------------------------
# Changes: a place with a before, an after and a why


class State(enum.Enum):
    """A change seen against a guest."""

    PENDING = "pending"
    DONE = "done"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file, known by its SHA-256; the bytes travel beside the plan."""

    data: bytes = field(repr=False)
    digest: str = ""
    size: int = 0

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.data).hexdigest()
        if self.digest not in ("", digest) or self.size not in (0, len(self.data)):
            raise ValueError(f"content is not what its digest says: {self.digest} is {digest}")
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "size", len(self.data))


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A registry value. None means "not there". hive: "SYSTEM", "SOFTWARE"; key: below its root."""

    hive: str
    key: str
    value: str
    before: Value | None
    after: Value | None
    why: str
    fixer: str = ""

    @property
    def place(self) -> str:
        """Where, the same for two changes of one place."""
        return f"{self.hive}\\{self.key}:{self.value}".lower()

    def inverse(self) -> ValueChange:
        """The change that takes this one back."""
        return replace(self, before=self.after, after=self.before, why=f"undo: {self.why}")


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A registry key that comes to be (False → True) or, as an inverse, goes (True → False)."""

    hive: str
    key: str
    before: bool
    after: bool
    why: str
    fixer: str = ""

    @property
    def place(self) -> str:
        """Where, the same for two changes of one place."""
        return f"{self.hive}\\{self.key}".lower()

    def inverse(self) -> KeyChange:
        """The change that takes this one back."""
        return replace(self, before=self.after, after=self.before, why=f"undo: {self.why}")


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file's content. None means "not there".

    volume: a Volume.name. like: a neighbour whose owner and ACL a new file gets.
    """

    volume: str
    path: str
    before: Content | None
    after: Content | None
    why: str
    fixer: str = ""
    like: str | None = None

    @property
    def place(self) -> str:
        """Where, the same for two changes of one place."""
        return f"{self.volume}:{self.path}".lower()

    def inverse(self) -> FileChange:
        """The change that takes this one back."""
        return replace(self, before=self.after, after=self.before, why=f"undo: {self.why}")


@dataclass(frozen=True, slots=True)
class BytesChange:
    """Raw bytes of a disk: boot sectors and tables. disk: its id in the plan ("disk0")."""

    disk: str
    offset: int
    before: bytes
    after: bytes
    why: str
    fixer: str = ""

    def __post_init__(self) -> None:
        if len(self.before) != len(self.after) or not self.before:
            raise ValueError("a BytesChange replaces bytes by as many bytes")

    @property
    def place(self) -> str:
        """Where, the same for two changes of one place."""
        return f"{self.disk}@{self.offset:#x}"

    def inverse(self) -> BytesChange:
        """The change that takes this one back."""
        return replace(self, before=self.after, after=self.before, why=f"undo: {self.why}")


@dataclass(frozen=True, slots=True)
class Recovery:
    """A journal or a hive's log that Windows left unreplayed. Runs first; cannot be undone.

    what: "journal" (a volume's, by ntfsrecover on the overlay) or "hive-log" (replayed in memory, then
    written with the hive's edits). path: the hive's path, "" for a journal. digest: SHA-256 of what is
    replayed. hive: the hive's name for a hive-log ("SYSTEM"), else "".
    """

    what: str
    volume: str
    path: str
    digest: str
    why: str
    fixer: str = "recovery"
    hive: str = ""

    @property
    def place(self) -> str:
        """Where, the same for two changes of one place."""
        return f"recovery:{self.volume}:{self.path}".lower()


Change: TypeAlias = ValueChange | KeyChange | FileChange | BytesChange | Recovery


# ---------------------------------------------------------------------------------------------
# Guests


class Family(enum.Enum):
    """Which kind of system a guest is."""

    WINDOWS = "windows"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HivePlace:
    """Where a hive lies: a Volume.name and a path on it."""

    volume: str
    path: str


@dataclass(frozen=True, slots=True)
class PEFacts:
    """What a Windows program file says of itself.

    machine: "x86", "x64" or the raw number in hex. version: of its version resource, four numbers.
    original_name: OriginalFilename of the resource (hal.dll installed from halmacpi.dll says halmacpi.dll).
    imports: DLL names, lower case.
    """

    machine: str
    version: tuple[int, int, int, int] | None
    original_name: str
    company: str
    imports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """Which system this is.

    version: (4, 0), (5, 0), (5, 1), (5, 2). service_pack: the number, 0 for none. architecture: "x86", "x64".
    product_type: WinNT, LanmanNT or ServerNT. system_root: "\\WINDOWS", on boot_volume.
    boot_volume: carries system_root (Microsoft's "boot partition").
    system_volume: the active one, with ntldr and boot.ini (Microsoft's "system partition").
    control_sets: every ControlSetNNN, as spelled. default_control_set: the one that the loader reads.
    boot_drivers: services with Start = 0 in the default control set, as spelled.
    hives: "SYSTEM", "SOFTWARE" → where they lie.
    """

    family: Family
    name: str
    version: tuple[int, int] = (0, 0)
    build: int = 0
    service_pack: int = 0
    architecture: str = ""
    product_type: str = ""
    product_suite: tuple[str, ...] = ()
    system_root: str = ""
    boot_volume: str = ""
    system_volume: str = ""
    hal: PEFacts | None = None
    kernel: PEFacts | None = None
    control_sets: tuple[str, ...] = ()
    default_control_set: str = ""
    boot_drivers: tuple[str, ...] = ()
    page_files: tuple[str, ...] = ()
    hives: Mapping[str, HivePlace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collapsed:
    """How plain disks came from a server's mirrors and sets: what in the guest still names the old ones.

    arcs: for each source disk, the likely boot disk first: partition number of an ARC path → Volume.name now.
    signatures: their disk signatures, in the same order.
    identities: what MountedDevices knows a volume by (12 bytes, or "DMIO:ID:" + GUID) → Volume.name now.
    letters: Volume.name → its drive letter as far as the volume manager knew one ("C:").
    managers: whose sets were dissolved: "ldm", "ft", "md" …
    """

    arcs: tuple[Mapping[int, str], ...]
    signatures: tuple[int, ...]
    identities: Mapping[bytes, str]
    letters: Mapping[str, str]
    managers: frozenset[str]


class Guest(Protocol):
    """A guest to read: its disks' bytes, its volumes' files, its hives.

    Fixers read it and yield; they never write.
    """

    @property
    def facts(self) -> GuestFacts:
        """Which system this is."""

    @property
    def disks(self) -> Mapping[str, Source]:
        """By id, in BIOS order: disk0 is the boot disk."""

    @property
    def partitions(self) -> Sequence[Partition]:
        """Of all disks, in table order."""

    @property
    def volumes(self) -> Mapping[str, Volume]:
        """By name."""

    @property
    def drivers(self) -> Sequence[str]:
        """Folders of this machine in which the user handed in drivers (--drivers)."""

    @property
    def collapsed(self) -> Collapsed | None:
        """What its disks were put together from; None where they are the server's own."""

    def files(self, volume: str) -> GuestFiles:
        """A volume's files. Raises GuestError where its filesystem cannot be read."""

    def hive(self, name: str) -> HiveTree:
        """A hive, its log replayed where it was dirty. Raises GuestError where there is none."""

    def read_bytes(self, disk: str, offset: int, length: int) -> bytes:
        """Raw bytes of a disk."""

    def look(self, change: Change) -> Value | Content | bytes | bool | None:
        """What is at a change's place now, in the form of its before and after."""


class WritingDoor(Protocol):
    """The writing door: what changes.perform() needs."""

    def writable(self, volume: str) -> WritableFiles:
        """A volume's files, to write."""

    def sync(self) -> None:
        """All that was written is on the medium when this returns."""


# ---------------------------------------------------------------------------------------------
# Targets and plans


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A disk of the VM, in BIOS order. file: its image's name. geometry: what its BIOS must present."""

    file: str
    format: str
    size: int
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Machine:
    """The VM to define. memory in bytes; nic: the target's own model name, "" for none.

    controller: name of the manifest of the controller that the disks are on.
    """

    name: str
    facts: GuestFacts
    disks: tuple[MachineDisk, ...]
    memory: int
    cpus: int
    nic: str
    controller: str = "piix-ide"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a user sets in a VM that p2v writes no definition of.

    text: what to set, and why where that is not plain; {nic}, {cpus} and {memory} (in MiB) are the machine's,
    NAME is what the user calls it. versions, architectures, controllers: of which Windows and manifest this is
    said; () for any.
    """

    text: str
    versions: tuple[tuple[int, int], ...] = ()
    architectures: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()

    def fits(self, machine: Machine) -> bool:
        """Is it said of this machine?"""
        facts = machine.facts
        return ((not self.versions or facts.version in self.versions)
                and (not self.architectures or facts.architecture in self.architectures)
                and (not self.controllers or machine.controller in self.controllers))


class Target(Protocol):
    """A module in target/: where a guest will run."""

    NAME: str
    CONTROLLERS: Sequence[str]  # names of manifests in drivers/: all that it offers
    NICS: Mapping[str, str]  # names of target/nics.py → what the target calls them, best first where all are equal
    TAKES: Sequence[str]  # names of formats.FORMATS that it runs from, or imports
    HAS_ACPI: bool  # and an I/O APIC, where the user does not turn them off
    HAS_MP_TABLE: bool  # the firmware builds a table of Intel's multiprocessor specification
    SETTINGS: Sequence[Setting]  # for a VM made by hand; () where configure() writes its definition

    def controllers(self, facts: GuestFacts) -> Sequence[str]:
        """CONTROLLERS in the order that suits this guest, best first."""

    def format_for(self, facts: GuestFacts) -> str:
        """The image format that suits this guest best here."""

    def machine(self, name: str, facts: GuestFacts, disks: Sequence[MachineDisk]) -> Machine:
        """A VM of sensible size for this guest."""

    def configure(self, machine: Machine) -> Mapping[str, str]:
        """File name → text of the VM's definition."""


class Fixer(Protocol):
    """A module in guest/fixers/: one worry."""

    NAME: str

    def plan(self, guest: Guest, target: Target) -> Iterator[Change | Finding]:
        """The changes that this guest needs on this target, and what is worth saying."""


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk that the user handed in, of a plan whose images are put together from several.

    id: "disk0", in the order given: not the id of an image. The rest as in DiskPlan.
    """

    id: str
    path: str
    size: int
    sector_size: int
    fingerprint: str
    source_format: str = "raw"


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a disk that is put together: bytes offset to offset + length of it.

    source: id of a SourceDisk, or name of a volume that lies on several of them; "" for zeroes.
    at: bytes from the start of that source. twins: where the mirror's other legs hold the same bytes, as
    (id of a SourceDisk, offset).
    """

    offset: int
    length: int
    source: str
    at: int = 0
    twins: tuple[tuple[str, int], ...] = ()

    @property
    def end(self) -> int:
        """The first byte past the piece."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One source → one image.

    id: "disk0" is the boot disk. path: what the user named, absolute; source_format: how it is read.
    fingerprint: what must not have moved when the plan is run. image: the file's name in the output folder, or
    the absolute path of an image that is edited in place.
    pieces: of a disk that is put together from the plan's sources, all of it, ascending; path then names the
    disk that most of it comes from. patches: the bytes laid over them (tables, types, wiped metadata).
    """

    id: str
    path: str
    size: int
    sector_size: int
    fingerprint: str
    format: str
    image: str
    source_format: str = "raw"
    pieces: tuple[Piece, ...] = ()
    patches: tuple[BytesChange, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What a plan keeps of a volume, judged on the untouched source."""

    name: str
    layout: str
    members: tuple[Member, ...]
    filesystem: str
    version: str
    state: FilesystemState
    used: int  # bytes that would be copied


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, and why: shown, run, checked and undone. Nothing else is written.

    output: the folder that the user takes away. drivers: the user's --drivers folders, as given.
    copy_all: free space and page files are copied, too.
    sources: the disks handed in, where images are put together from them (mirrors, volumes over several
    disks); empty where each image is one disk. legs: of each mirror, the id of the source whose leg was chosen.
    in_step: the legs were compared and are equal: what one cannot read comes from another.
    outside: the disks may name files outside their own folders.
    """

    target: str
    output: str
    disks: tuple[DiskPlan, ...]
    volumes: tuple[VolumeFacts, ...]
    facts: GuestFacts
    machine: Machine
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    drivers: tuple[str, ...] = ()
    copy_all: bool = False
    sources: tuple[SourceDisk, ...] = ()
    legs: Mapping[str, str] = field(default_factory=dict)
    in_step: bool = False
    outside: bool = False
    format_version: int = 1
