"""Mirrors, spanned and striped volumes → plain basic disks, put together on the fly and never written anywhere.

A disk that is put together is a Source: planning, staging, editing, proving and copying work on it as on any
disk. Sector 0, gaps and logical partitions' tables come from one disk as a whole, the volumes from their
chosen legs; what a volume manager kept for itself is zeroes. Volumes over several disks, and those without
room in a table, become plain partitions on disks of their own.
Source of the rules: KB 147690, KB 167045, KB 227364; the LDM on-disk notes; tried through real boot code.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from p2v import newtable
from p2v.choosing import settle
from p2v.errors import Finding, P2VError, PlanError, Severity, Where
from p2v.guest.facts import windows_folders
from p2v.model import (
    SECTOR,
    BytesChange,
    Collapsed,
    GuestFiles,
    Member,
    Partition,
    Piece,
    Source,
    Volume,
    read,
)
from p2v.newtable import Seat
from p2v.source.assembled import Assembled, Part
from p2v.source.mirrored import Mirrored
from p2v.source.window import Window
from p2v.volume import Layout, find_volumes, is_dissolved, metadata_ranges
from p2v.volume.mbr import CONTAINERS

HEAD = 1 << 20  # bytes in front of, and at least behind, the volume on a disk of its own
DYNAMIC, FT_BIT = 0x42, 0x80
FT_BASES = (0x06, 0x07, 0x0B, 0x0C)  # with FT_BIT: members of NT's fault-tolerant sets


@dataclass(frozen=True, slots=True)
class PlainDisk:
    """A disk that is put together.

    raw: the pieces; source: with the patches over them. twin: like raw, the mirrored ranges as another leg has
    them; None where no piece has one. helped: mirrors of which another leg gives what the chosen one cannot,
    each with the names of its legs' disks and its place on this one. apart: offsets of the pieces whose twin does
    not look like the chosen leg by metadata and filesystem: never in step.
    """

    pieces: tuple[Piece, ...]
    patches: tuple[BytesChange, ...]
    raw: Source
    source: Source
    twin: Source | None
    helped: tuple[tuple[Mirrored, tuple[str, ...], int], ...] = ()
    apart: frozenset[int] = frozenset()

    @property
    def mirrored(self) -> list[Piece]:
        """The pieces that another leg has, too, ascending."""
        return [piece for piece in self.pieces if piece.twins]


@dataclass(frozen=True, slots=True)
class Built:
    """All disks of the VM, by image id in BIOS order. legs: of each mirror, the source disk that was chosen."""

    disks: Mapping[str, PlainDisk]
    legs: Mapping[str, str]
    collapsed: Collapsed
    findings: tuple[Finding, ...]

    @property
    def sources(self) -> dict[str, Source]:
        """What planning sees."""
        return {id: disk.source for id, disk in self.disks.items()}


def collapse(
    disks: Mapping[str, Source], layout: Layout, chosen: Mapping[str, str], *, in_step: bool = False,
    shared: bool = False,
) -> Built:
    """Plain disks out of these.

    disks: by id, in the order given. chosen: the user's legs, see choosing.settle. in_step: the legs were
    compared and are equal: what the chosen one cannot read comes from another. shared: by the user's word they
    are, and all of them are read at once, each a part.
    Raises PlanError where a leg cannot be chosen, with both histories, or shared legs do not look the same;
    ReadError.
    """
    for source in disks.values():
        if source.size < SECTOR:
            raise PlanError(f"{source.name} holds {source.size} bytes, less than one sector", Where(source.name),
                            "there is nothing on it that could become a disk of the VM",
                            "leave it out, or copy it again if it was cut short")
    settled = settle(layout, chosen)
    for finding in settled.findings:
        if finding.severity is Severity.ERROR:
            raise PlanError(finding.what, finding.where, finding.why, finding.next)
    for decision in settled.legs.values() if shared and not in_step else ():
        if decision.differing:
            raise PlanError(
                f"the legs of {decision.volume} are not equal: they cannot share the reading", Where(decision.leg),
                f"{', '.join(decision.differing)} would be mixed into {decision.leg}: "
                + ("; ".join(decision.reasons) or "their histories differ"), "leave --trust-equal out")
    legs = {name: decision.leg for name, decision in settled.legs.items()}
    said = tuple(dict.fromkeys((*layout.findings, *settled.findings)))
    apart = {(member.disk, member.offset) for volume in settled.layout.volumes if volume.name in settled.legs
             for member in volume.members if member.disk in settled.legs[volume.name].differing}
    return _Collapse(disks, settled.layout, apart, in_step=in_step, shared=shared).built(legs, said)


class _Collapse:
    def __init__(self, disks: Mapping[str, Source], layout: Layout, apart: Collection[tuple[str, int]], *,
                 in_step: bool, shared: bool) -> None:
        self.disks, self.apart = disks, apart
        self.volumes = {volume.name: self._readable(disks, volume, in_step=in_step or shared)
                        for volume in layout.volumes}
        self.partitions = {id: [p for p in layout.partitions if p.disk == id] for id in disks}
        self.in_step, self.shared = in_step or shared, shared
        self._helped: list[tuple[Mirrored, tuple[str, ...], int]] = []
        self.metadata = {id: metadata_ranges(source) for id, source in disks.items()}

    @staticmethod
    def _readable(disks: Mapping[str, Source], volume: Volume, *, in_step: bool) -> Volume:
        """A mirrored volume from all its legs, where they are in step; any other as it is."""
        size = volume.source.size
        if not in_step or volume.layout != "mirrored" or not all(_is_plain(volume, m) for m in volume.members):
            return volume
        legs = [Window(disks[m.disk], m.offset, size, disks[m.disk].name) for m in volume.members]
        return replace(volume, source=Mirrored(legs, volume.name, size=size, in_step=True))

    # -- which volume goes where

    @cached_property
    def system(self) -> Volume | None:
        """The volume that the VM starts from: with ntldr, on an active partition if one is; None: unknown.

        Where the disk with ntldr is gone, the one with Windows: the loader's files are put there (boot-files).
        """
        def rank(volume: Volume) -> tuple[bool, bool]:
            active = any(p.active and p.offset <= m.offset < p.offset + p.length
                         for m in volume.members for p in self.partitions.get(m.disk, ()))
            return active, bool(volume.origin and volume.origin.system)

        found = [volume for volume in self.volumes.values() if _looked(volume, _has_loader)]
        found = found or [volume for volume in self.volumes.values() if _looked(volume, _has_windows)]
        return max(found, key=rank, default=None)

    @cached_property
    def base(self) -> str:
        """The source whose table the boot disk gets: the chosen leg of the system volume lies on it."""
        volume = self.system or next((v for v in self.volumes.values() if v.origin and v.origin.boot), None)
        members = [m.disk for m in volume.members if m.disk in self.disks] if volume is not None else []
        return next((id for id in members if self._has_table(id)), next(iter([*members, *self.disks])))

    @cached_property
    def homes(self) -> dict[str, str]:
        """Volume.name → the source whose table it stays in, "" for a disk of its own."""
        found: dict[str, str] = {}
        room = {id: self._room(id) for id in self.disks}
        ordered = sorted(self.volumes.values(), key=lambda v: self._entry(v, self._home(v)) is None)
        for volume in ordered:
            home = self._home(volume)
            if home and is_dissolved(volume) and self._entry(volume, home) is None:
                room[home] -= 1
                home = home if room[home] >= 0 else ""
            found[volume.name] = home
        return found

    def _home(self, volume: Volume) -> str:
        if not is_dissolved(volume):
            return volume.members[0].disk
        places = [m.disk for m in volume.members if _is_plain(volume, m) and self._has_table(m.disk)]
        if volume.layout not in ("simple", "mirrored") or not places:
            return ""
        return self.base if self.base in places else places[0]

    def _has_table(self, id: str) -> bool:
        """Can this disk's table hold plain entries? One of a GPT, or without any, cannot."""
        return bool(self.partitions[id]) and not any(p.type == 0xEE for p in self.partitions[id])

    def _room(self, id: str) -> int:
        return newtable.free_slots(self.partitions[id], self._gone(id))

    def _entry(self, volume: Volume, id: str) -> Partition | None:
        """The table entry of a volume on a source, None where it has none of its own."""
        place = next((m for m in volume.members if m.disk == id), None)
        if place is None:
            return None
        owner = volume.origin.manager if volume.origin else ""
        return next((p for p in self.partitions[id] if p.type not in CONTAINERS and (
            p.offset == place.offset if owner in ("ldm", "ft", "")
            else p.offset <= place.offset < p.offset + p.length)), None)

    def _gone(self, id: str) -> set[int]:
        """entry_offset of the entries whose volume goes elsewhere, and of fillers."""
        kept = {entry.entry_offset for volume in self.volumes.values() if self._home(volume) == id
                and (entry := self._entry(volume, id))}
        return {p.entry_offset for p in self.partitions[id] if p.entry_offset not in kept and self._is_ours(p)}

    def _is_ours(self, partition: Partition) -> bool:
        """Is it an entry of a set or dynamic disk, or one in which a member of a set lies?"""
        marked = partition.type == DYNAMIC or (partition.type & 0x3F in FT_BASES and partition.type & FT_BIT)
        inside = any(m.disk == partition.disk and partition.offset <= m.offset < partition.offset + partition.length
                     for v in self.volumes.values() if is_dissolved(v) for m in v.members)
        return partition.type not in CONTAINERS and bool(marked or inside)

    # -- the disks

    def built(self, legs: Mapping[str, str], findings: Sequence[Finding]) -> Built:
        kept = [id for id in self.disks if id in self.homes.values() or not self._is_member(id)]
        kept.sort(key=lambda id: id != self.base)
        whole = [v for name, v in self.volumes.items() if not self.homes[name] and _carries_a_table(v)]
        alone = [v for name, v in self.volumes.items() if not self.homes[name] and not _carries_a_table(v)]
        disks: dict[str, PlainDisk] = {}
        for volume in whole:
            disks[f"disk{len(disks)}"] = self._array(volume)
        taken: set[int] = set()
        for id in kept:
            disks[f"disk{len(disks)}"] = made = self._from(id, f"disk{len(disks)}", taken)
            taken.add(_signature(made.source))
        for volume in alone:
            disks[f"disk{len(disks)}"] = made = self._own(volume, f"disk{len(disks)}", taken)
            taken.add(_signature(made.source))
        dropped = tuple(id for id in self.disks if id not in kept)
        said = [_left(self.disks[id].name) for id in dropped if any(
            m.disk == id for v in self.volumes.values() if v.layout == "mirrored" for m in v.members[1:])]
        heard = [_spared(finding, {self.disks[id].name for id in dropped}) for finding in findings]
        return Built(disks, legs, self._collapsed(disks), (*heard, *said))

    def _is_member(self, id: str) -> bool:
        return any(m.disk == id for v in self.volumes.values() if is_dissolved(v) for m in v.members)

    def _from(self, id: str, image: str, taken: set[int]) -> PlainDisk:
        """A disk with the table of source id: its own bytes, each volume from its chosen leg, no metadata."""
        source = self.disks[id]
        here = [v for v in self.volumes.values() if self.homes[v.name] == id and is_dissolved(v)]
        seats = [self._seat(volume, id) for volume in here]
        cuts = [self._piece(volume, seat.offset) for volume, seat in zip(here, seats, strict=True)]
        for volume in self.volumes.values():
            if is_dissolved(volume) and self.homes[volume.name] != id:
                cuts += [Piece(m.offset, m.length, "") for m in volume.members if m.disk == id and m.length]
        cuts += [Piece(r.offset, r.length, "") for r in self.metadata[id]]
        pieces = _tiled(cuts, source.size, id)
        raw = self._assembled(pieces, source)
        gone = self._gone(id)
        patches = tuple(newtable.patches(
            raw, image, self.partitions[id], seats, gone, starts=id == self.base and self.system is not None,
            code=self._code(id), taken=taken)) if here or gone else ()
        return self._disk(pieces, patches, source)

    def _own(self, volume: Volume, image: str, taken: set[int]) -> PlainDisk:
        """A new disk with one partition."""
        length = volume.source.size // SECTOR * SECTOR
        size = -(-(HEAD + length) // HEAD) * HEAD + HEAD
        pieces = tuple(_tiled([Piece(0, HEAD, ""), replace(self._piece(volume, HEAD), length=length),
                               Piece(HEAD + length, size - HEAD - length, "")], size, ""))
        raw = self._assembled(pieces, volume.source)
        starts = volume is self.system
        seat = Seat(volume.name, HEAD, length, _type(volume), active=starts)
        origin = volume.origin
        seed = volume.name.encode() + (origin.guid + origin.group.encode() if origin else b"")  # the same each time
        patches = tuple(newtable.patches(raw, image, (), [seat], (), starts=starts, code=self._code(""),
                                         taken=taken, seed=seed))
        return self._disk(pieces, patches, volume.source)

    def _array(self, volume: Volume) -> PlainDisk:
        """A set of whole disks with a table inside: a disk as it is."""
        pieces = (self._piece(volume, 0),)
        return self._disk(pieces, (), volume.source)

    def _seat(self, volume: Volume, id: str) -> Seat:
        place = next(m for m in volume.members if m.disk == id)
        length = volume.source.size // SECTOR * SECTOR
        return Seat(volume.name, place.offset, length, _type(volume), volume is self.system, self._entry(volume, id))

    def _piece(self, volume: Volume, offset: int) -> Piece:
        """A volume's bytes, at offset of the new disk: from its chosen leg, or from the volume as a whole."""
        length = volume.source.size
        if volume.layout in ("basic", "simple", "mirrored") and _is_plain(volume, volume.members[0]):
            first, *others = volume.members
            twins = tuple((m.disk, m.offset) for m in others if _is_plain(volume, m))
            return Piece(offset, length, first.disk, first.offset, twins)
        return Piece(offset, length, volume.name)

    def _code(self, id: str) -> bytes:
        """Boot code for a leg that has none: that of the system volume's other leg, or free code."""
        others = [m.disk for m in self.system.members if m.disk != id] if self.system else []
        for other in others:
            with contextlib.suppress(P2VError):
                sector = read(self.disks[other], 0, SECTOR)
                if any(sector[newtable.CODE]) and sector[510:] == b"\x55\xaa":
                    return sector[newtable.CODE]
        return newtable.standard_code()

    # -- sources

    def _disk(self, pieces: Sequence[Piece], patches: Sequence[BytesChange], like: Source) -> PlainDisk:
        bytes_over = [(patch.offset, patch.after) for patch in patches]
        self._helped = []
        whole = self._assembled(pieces, like, bytes_over)
        helped, twin = tuple(self._helped), None
        if any(piece.twins for piece in pieces):
            twin = Assembled([self._part(piece, twin=True) for piece in pieces], f"{like.name} (the other leg)",
                             size=pieces[-1].end, sector_size=like.sector_size)
        apart = frozenset(piece.offset for piece in pieces if piece.twins and piece.twins[0] in self.apart)
        return PlainDisk(tuple(pieces), tuple(patches), self._assembled(pieces, like), whole, twin, helped, apart)

    def _assembled(self, pieces: Sequence[Piece], like: Source, patches: Sequence[tuple[int, bytes]] = ()) -> Assembled:
        return Assembled([self._part(piece) for piece in pieces], like.name, size=pieces[-1].end,
                         sector_size=like.sector_size, patches=patches)

    def _part(self, piece: Piece, *, twin: bool = False) -> Part:
        if not piece.source:
            return Part(piece.offset, piece.length, None, 0)
        if twin and piece.twins:
            disk, at = piece.twins[0]
            return Part(piece.offset, piece.length, self.disks[disk], at)
        if piece.source not in self.disks:
            return Part(piece.offset, piece.length, self.volumes[piece.source].source, piece.at)
        if self.in_step and piece.twins:
            legs = [Window(self.disks[disk], at, piece.length, self.disks[disk].name)
                    for disk, at in ((piece.source, piece.at), *piece.twins)]
            mirrored = Mirrored(legs, legs[0].name, size=piece.length, in_step=True, shared=self.shared)
            self._helped.append((mirrored, tuple(leg.name for leg in legs), piece.offset))
            return Part(piece.offset, piece.length, mirrored, 0)
        return Part(piece.offset, piece.length, self.disks[piece.source], piece.at)

    # -- what the guest's settings still name

    def _collapsed(self, disks: Mapping[str, PlainDisk]) -> Collapsed:
        now = find_volumes({id: disk.source for id, disk in disks.items()}).volumes
        order = [self.base, *(id for id in self.disks if id != self.base)]
        names = {v.name: new for v in self.volumes.values() if (new := self._new_name(v, disks, now))}
        identities: dict[bytes, str] = {}
        for volume in self.volumes.values():
            if volume.name in names:
                identities.update(dict.fromkeys(self._identities(volume), names[volume.name]))
        arcs = [{p.number: names[v.name] for p in self.partitions[id] if p.number
                 for v in self.volumes.values() if v.name in names and self._entry(v, id) == p} for id in order]
        letters = {names[v.name]: v.origin.letter for v in self.volumes.values()
                   if v.name in names and v.origin and v.origin.letter}
        managers = {v.origin.manager for v in self.volumes.values() if v.origin and is_dissolved(v)}
        return Collapsed(tuple(arcs), tuple(_signature(self.disks[id]) for id in order), identities, letters,
                         frozenset(managers))

    def _new_name(self, volume: Volume, disks: Mapping[str, PlainDisk], now: Sequence[Volume]) -> str:
        """The name that a volume has on the new disks."""
        wanted = self._piece(volume, 0)
        for id, disk in disks.items():
            for piece in disk.pieces:
                start = piece.offset + wanted.at - piece.at
                if piece.source == wanted.source and piece.at <= wanted.at < piece.at + piece.length:
                    for new in now:
                        if new.members[0].disk == id and new.members[0].offset == start:
                            return new.name
        return ""

    def _identities(self, volume: Volume) -> Iterator[bytes]:
        """What MountedDevices may know a volume by: signature and offset of any leg, or its GUID in either order."""
        for member in volume.members:
            if member.disk in self.disks and (entry := self._entry(volume, member.disk)):
                yield struct.pack("<IQ", _signature(self.disks[member.disk]), entry.offset)
        if volume.origin and len(volume.origin.guid) == 16:
            guid = volume.origin.guid
            yield b"DMIO:ID:" + guid
            yield b"DMIO:ID:" + guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]


def _looked(volume: Volume, holds: Callable[[GuestFiles], bool]) -> bool:
    """Does a volume's content hold something? What cannot be read does not."""
    from p2v.filesystem import examine, open_files

    with contextlib.suppress(P2VError):
        return holds(open_files(volume.source, examine(volume.source)))
    return False


def _has_loader(files: GuestFiles) -> bool:
    return files.stat("\\ntldr") is not None


def _has_windows(files: GuestFiles) -> bool:
    return any(windows_folders(files))


def _type(volume: Volume) -> int:
    """The MBR type of the plain partition that a volume becomes; Linux where nobody says what it is."""
    said = volume.origin.type if volume.origin else 0
    return newtable.fitting_type(read(volume.source, 0, SECTOR), said) or 0x83


def _is_plain(volume: Volume, member: Member) -> bool:
    """Does one member alone hold all of the volume?"""
    return member.length >= volume.source.size


def _carries_a_table(volume: Volume) -> bool:
    """Does the volume stand for a whole disk, with partitions in it?"""
    if volume.partition is not None or volume.source.size < SECTOR:
        return False
    with contextlib.suppress(P2VError):
        return bool(find_volumes({"array": volume.source}).partitions)
    return False


def _signature(source: Source) -> int:
    try:
        return int.from_bytes(read(source, newtable.SIGNATURE_AT, 4), "little")
    except P2VError:
        return 0


def _tiled(cuts: Sequence[Piece], size: int, rest: str) -> list[Piece]:
    """The cuts, and source rest at its own place between them. Raises PlanError where two cuts overlap."""
    pieces: list[Piece] = []
    at = 0
    for cut in sorted(cuts, key=lambda piece: piece.offset):
        if cut.offset < at:
            raise PlanError("two volumes claim the same bytes of a disk", Where(rest, cut.offset, at - cut.offset),
                            "the set's metadata contradicts itself", "image the disks as they are: --layout keep")
        if cut.offset > at:
            pieces.append(Piece(at, cut.offset - at, rest, at))
        pieces.append(cut)
        at = cut.end
    if at < size:
        pieces.append(Piece(at, size - at, rest, at))
    if at > size:
        raise PlanError("a volume reaches past the end of its disk", Where(rest, size, at - size),
                        "the disk is cut short", "give the whole disk")
    return pieces


def _spared(finding: Finding, dropped: Collection[str]) -> Finding:
    """An unreadable table stops nothing where the VM does not get that disk: the other leg's table serves."""
    where = finding.where
    if finding.severity is Severity.ERROR and where.source in dropped and where.offset == 0:
        return replace(finding, severity=Severity.WARNING,
                       next="nothing: the table of the mirror's other disk is used")
    return finding


def _left(name: str) -> Finding:
    return Finding(f"{name} does not go into the VM", Where(name),
                   "it holds only the other leg of a mirror; the VM gets one plain disk",
                   "keep the disk as it is until the VM has proven itself; make the redundancy in the host")
