"""Inspect everything, return a Plan. Reads only.

A View is what can be seen of some disks at one moment: their volumes, filesystems and guest. The plan is
made from a view of the sources; prove and verify take another view of the overlay and of the output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2v import arranging
from p2v import changes as changing
from p2v.arranging import Arranged, arrange
from p2v.errors import Finding, GuestError, P2VError, PlanError, ReadError, Severity, Unsupported, Where
from p2v.model import (
    SECTOR,
    Change,
    Collapsed,
    DiskPlan,
    Filesystem,
    FilesystemState,
    Fixer,
    Guest,
    MachineDisk,
    Plan,
    Progress,
    Recovery,
    Source,
    SourceDisk,
    Target,
    Volume,
    VolumeFacts,
    no_progress,
    read,
)
from p2v.rundir import RunDir
from p2v.source.watched import Watched

if TYPE_CHECKING:
    from p2v.collapse import PlainDisk
    from p2v.guest.guest import ReadingGuest
    from p2v.volume import Layout

HEAD = 1 << 20  # bytes of a FAT volume: its tables, which move with every file that is written
JOURNAL_HEAD = 8192  # bytes: both restart pages
WINDOWS_TYPES = frozenset(type | hidden for type in (0x01, 0x04, 0x06, 0x07, 0x0B, 0x0C, 0x0E) for hidden in (0, 0x10))
TRUSTED_TYPES: Mapping[str, frozenset[int]] = {  # free space is believed where the table says the same as the volume
    **dict.fromkeys(("ntfs", "fat12", "fat16", "fat32"), WINDOWS_TYPES),
    **{kind: frozenset({0x83}) for kind in ("ext2", "ext3", "ext4")},
    "swap": frozenset({0x82}),
}
RESCUE_FIRST = (
    "copy the disk with GNU ddrescue first (ddrescue -d DISK rescued.img rescued.map), "
    "then run p2v adapt rescued.img"
)

ASK_THE_OTHER_LEG = (
    "give all disks of the mirror to p2v convert: what one cannot read it takes from the other, where they are in "
    "step; a disk that fails too much may be copied with GNU ddrescue first, and its copy given in its place"
)


@dataclass(frozen=True, slots=True)
class View:
    """What is seen of some disks. guest is None where no guest is known: unknown says why.

    sources: the disks handed in, where the disks were put together from them. collapsed: what the guest's
    settings still name then.
    """

    disks: Mapping[str, Source]
    layout: Layout
    filesystems: Mapping[str, Filesystem]
    guest: ReadingGuest | None
    unknown: P2VError | None
    drivers: Sequence[str] = ()
    sources: Mapping[str, Source] | None = None
    collapsed: Collapsed | None = None

    @property
    def known_guest(self) -> ReadingGuest:
        """The guest. Raises what stood in the way of knowing it: ReadError where the disks fail."""
        if self.guest is not None:
            return self.guest
        unknown = self.unknown or Unsupported("no guest was looked for", why="the disks were not opened for that",
                                              next="report this")
        for bad in read_errors(self.sources or self.disks, in_sets=self.collapsed is not None):
            raise ReadError(f"{bad.what}, and {unknown.what}", bad.where, bad.why, bad.next) from unknown
        others = [f for f in self.findings if f.severity is not Severity.INFO and f.what != unknown.what]
        why = "; ".join([unknown.why, *(f"{finding.what} ({finding.where})" for finding in others[:5])])
        raise type(unknown)(unknown.what, unknown.where, why, unknown.next) from unknown

    @property
    def findings(self) -> list[Finding]:
        """What the layout and the filesystems have to say, and the unknown guest."""
        found = [*self.layout.findings]
        for filesystem in self.filesystems.values():
            found += filesystem.findings
        if self.guest is not None:
            found += self.guest.findings
        found += read_errors(self.sources or self.disks, in_sets=self.collapsed is not None)
        return found + ([self.unknown.as_finding()] if self.unknown else [])


def open_source(path: str | Path, format: str | None = None, *, outside: bool = False) -> Source:
    """A disk to read: a block device, a raw file, or an image.

    format: a name of source.images.INPUTS, or of formats.FORMATS; without it the file's name says it, and
    what says nothing is raw. The content never decides: a raw disk may begin like any format, and would then
    be able to name other files of this machine; but a content that contradicts the name is an error.
    outside: the image may name files outside its own folder.
    Raises PlanError, LayoutError, Unsupported, ReadError, MissingTool.
    """
    from p2v.formats import FORMATS
    from p2v.source.images import INPUTS, contradiction, name_of, open_input

    kind = format or format_by_name(path)
    if kind not in INPUTS and kind not in FORMATS:
        raise PlanError(f"no format is called {kind}", str(path), next="choose one of: " + ", ".join(INPUTS))
    if format is None:
        problem = contradiction(str(path), kind)
        if problem is not None:
            raise problem
    if kind not in INPUTS:
        kind = name_of(f"image{FORMATS[kind].SUFFIX}")
    return open_input(str(path), kind, outside=outside)


def format_by_name(path: str | Path) -> str:
    """The format of a source that was named without one. Raises Unsupported for a compressed file."""
    from p2v.source.images import name_of

    return name_of(str(path))


def _refuse_twice(paths: Sequence[str | Path]) -> None:
    """Raises PlanError when two names lead to one disk."""
    seen: dict[tuple[int, int], int] = {}
    for index, path in enumerate(paths):
        with contextlib.suppress(OSError):  # what is not there is told by whoever opens it
            stat = os.stat(path)
            first = seen.setdefault((stat.st_rdev or stat.st_dev, stat.st_rdev or stat.st_ino), index)
            if first != index:
                raise PlanError("one disk was named twice", Where(item=f"{paths[first]} and {path}"),
                                "two disks with one signature keep Windows from starting", "name each disk once")


@contextlib.contextmanager
def opened(
    paths: Sequence[str | Path], format: str | None = None, outside: bool = False
) -> Iterator[dict[str, Source]]:
    """The sources in the order given, as disk0, disk1 …; closed at the end."""
    if not paths:
        raise PlanError("no disk was named", why="there is nothing to read",
                        next="name the server's disks, the boot disk first")
    with contextlib.ExitStack() as stack:
        disks: dict[str, Source] = {}
        _refuse_twice(paths)
        for path in paths:
            source = Watched(open_source(path, format, outside=outside))
            stack.callback(source.close)
            disks[f"disk{len(disks)}"] = source
        yield disks


def read_errors(disks: Mapping[str, Source], *, in_sets: bool = False) -> list[Finding]:
    """One finding for each disk that could not be read in places, as far as was read yet.

    in_sets: they are members of mirrors and sets.
    """
    return [
        Finding(
            f"{source.name} has read errors: {len(source.failed)} range(s) so far",
            Where(source.name, source.failed[0].offset, source.failed[0].length),
            "the disk is failing: each further read may be its last, and what cannot be read is zeroes in the image",
            ASK_THE_OTHER_LEG if in_sets else RESCUE_FIRST,
            Severity.WARNING,
        )
        for source in disks.values()
        if isinstance(source, Watched) and source.failed
    ]


def view(
    disks: Mapping[str, Source], drivers: Sequence[str] = (), sources: Mapping[str, Source] | None = None,
    collapsed: Collapsed | None = None,
) -> View:
    """See what is on the disks: see View. Raises ReadError where even the tables cannot be read."""
    from p2v.filesystem import examine
    from p2v.guest.guest import open_guest
    from p2v.volume import find_volumes

    try:
        layout = find_volumes(disks)
        filesystems = {volume.name: _trusted(volume, examine(volume.source)) for volume in layout.volumes}
        guest: ReadingGuest | None = None
        unknown: P2VError | None = None
        try:
            guest = open_guest(disks, layout, filesystems, drivers, collapsed)
        except (Unsupported, GuestError) as error:
            unknown = error
        return View(disks, layout, filesystems, guest, unknown, drivers, sources, collapsed)
    except ReadError as error:
        raise ReadError(error.what, error.where, f"{error.why}; nothing can be planned without these bytes",
                        RESCUE_FIRST) from error


def _trusted(volume: Volume, filesystem: Filesystem) -> Filesystem:
    """Free space counts only where the table agrees: a stale filesystem may lie under a RAID member or LVM."""
    type = volume.partition.type if volume.partition else None
    if type is None or type in TRUSTED_TYPES.get(filesystem.kind, ()):
        return filesystem
    return dataclasses.replace(filesystem, free=(), droppable=())


def in_bios_order(disks: Mapping[str, Source]) -> list[str]:
    """The ids with the boot disk first: the one whose active partition holds ntldr; else as given."""
    from p2v.filesystem import examine, open_files
    from p2v.volume import find_volumes

    for volume in find_volumes(disks).volumes:
        if volume.partition is None or not volume.partition.active:
            continue
        with contextlib.suppress(P2VError):
            if open_files(volume.source, examine(volume.source)).stat("\\ntldr") is not None:
                first = volume.partition.disk
                return [first, *(disk for disk in disks if disk != first)]
    return list(disks)


def plan(
    paths: Sequence[str | Path],
    *,
    target: str = "kvm",
    output: str | Path,
    drivers: Sequence[str | Path] = (),
    format: str | None = None,
    source_format: str | None = None,
    copy_all: bool = False,
    legs: Mapping[str, str] | None = None,
    layout: str = "collapse",
    compare: bool = False,
    outside: bool = False,
    progress: Progress = no_progress,
    holding: bool = False,
) -> Plan:
    """What a conversion of these disks would do, and why.

    Nothing is written; only where Windows was not shut down, its journal is replayed on an overlay in
    OUTPUT/run, because the plan must be made from what the journal leaves.

    target: a name of target.TARGETS. output: the folder to come. drivers: folders with driver files that
    the guest lacks. copy_all: free space and page files, too. format: of the images; the target's best by default.
    source_format, outside: see open_source. legs: of mirrors, the disk to take: by the mirror's name, its drive letter,
    or "" for all → a path or id of a disk. layout: "collapse" makes plain disks of mirrors and sets; "keep"
    takes each disk as it is. compare: read all legs of mirrors first; where they are in step, what one cannot give
    comes from another. That happens anyway when the plan cannot be made without. holding: the caller has locked
    the output's run already.
    Raises Unsupported for a guest that p2v does not know, GuestError for one that must not be touched or
    lacks a file, ReadError, LayoutError, PlanError.
    """
    from p2v.editing import recovered
    from p2v.formats import FORMATS
    from p2v.target import target_named
    from p2v.target.byhand import not_taken, to_make
    from p2v.target.places import too_many

    chosen = target_named(target)
    if format is not None and format not in FORMATS:
        raise PlanError(f"no format is called {format}", "--format", next="choose one of: " + ", ".join(FORMATS))
    folders = [str(folder) for folder in drivers]
    for folder in folders:
        if not Path(folder).exists():
            raise PlanError("what was named with --drivers is not there", Where(item=folder),
                            next="name a folder, an ISO, a cabinet or a diskette's image")
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(opened(paths, source_format, outside))
        arranged, seen, compared = seen_through_legs(given, legs, layout, folders, compare=compare, progress=progress)
        if arranged.has_sets and arranged.built is None:
            raise Unsupported("a server on mirrors or dynamic disks cannot be converted with its disks as they are",
                              Where(item="--layout keep"), "a guest can be edited on plain disks only",
                              "leave --layout keep out, or copy the disks exactly: p2v image DISKS -o FOLDER")
        refuse_hibernated(seen)
        run = RunDir.of_output(output)
        if unclean_volumes(seen) and not holding:
            stack.enter_context(run.locked())
        ready = stack.enter_context(recovered(seen, run, progress))
        guest = ready.known_guest
        wanted, findings = wishes(ready, chosen, journal_digests(seen))
        images = [disk_plan(id, source, seen, format or chosen.format_for(guest.facts), source_format,
                            arranged.built.disks[id] if arranged.built else None)
                  for id, source in arranged.disks.items()]
        machine = dataclasses.replace(
            chosen.machine(Path(output).resolve().name, guest.facts, machine_disks(images, output)),
            controller=boot_controller(guest, chosen))
        return Plan(
            target=target,
            output=str(output),
            disks=tuple(images),
            volumes=tuple(volume_facts(volume, seen) for volume in seen.layout.volumes),
            facts=guest.facts,
            machine=machine,
            changes=tuple(wanted),
            findings=(*arranged.findings, *compared, *ready.findings, *second_opinion(ready), *findings,
                      *too_many(machine, chosen), *not_taken(machine, chosen), *to_make(machine, chosen)),
            drivers=tuple(folders),
            copy_all=copy_all,
            sources=source_disks(given, source_format) if arranged.built else (),
            legs=arranged.built.legs if arranged.built else {},
            in_step=arranged.in_step,
            outside=outside,
        )


def seen_through_legs(
    given: Mapping[str, Source], legs: Mapping[str, str] | None, layout: str, drivers: Sequence[str], *,
    compare: bool, progress: Progress,
) -> tuple[Arranged, View, list[Finding]]:
    """The VM's disks and what is on them; from all legs of mirrors where they are known to be in step.

    Legs are compared when the caller wants it, or when the chosen ones cannot be read where the plan must look.
    """
    from p2v.volume import find_volumes

    failure: ReadError | None = None
    try:
        arranged = arrange(given, legs, layout)
        seen = view(arranged.disks, drivers, given, arranged.collapsed)
    except ReadError as error:
        failure = error
    mirrors = [one for one in find_volumes(given).mirrors if len(one.legs) > 1] if layout == arranging.COLLAPSE else []
    if not mirrors or not (compare or failure or read_errors(given)):
        if failure is not None:
            raise failure
        return arranged, seen, []
    from p2v.pairing import compare_mirrors

    compared = compare_mirrors(mirrors, arranging.decisions(given, legs), progress=progress)
    findings = [said for one in compared for said in one.findings]
    if all(one.in_step for one in compared):
        arranged = arrange(given, legs, layout, in_step=True)
        seen = view(arranged.disks, drivers, given, arranged.collapsed)
    elif failure is not None:
        raise failure
    return arranged, seen, findings


def machine_disks(images: Sequence[DiskPlan], folder: str | Path) -> list[MachineDisk]:
    """The VM's disks, in BIOS order, with the geometry that is written into the images."""
    from p2v.volume.geometry import target_geometry

    return [
        MachineDisk(str(Path(folder).resolve() / image.image), image.format, image.size,
                    target_geometry(image.size))
        for image in images
    ]


def boot_controller(guest: Guest, target: Target) -> str:
    """The manifest of the controller that the guest's disks are on: the target's best that it has a driver for."""
    from p2v.guest.controllers import options
    from p2v.guest.media import Media

    with Media(guest) as media:
        return options(target.controllers(guest.facts), guest, media)[0].driver.manifest.name


def journal_digests(seen: View) -> dict[str, str]:
    """SHA-256 of the journals that are not replayed, by volume, as the disks hold them."""
    from p2v.filesystem import open_files

    sources = {volume.name: volume.source for volume in seen.layout.volumes}
    found = {}
    for name in unclean_volumes(seen):
        try:
            journal = open_files(sources[name], seen.filesystems[name]).read("\\$LogFile")
        except GuestError:
            continue  # the volume is too damaged for this reader; ntfsrecover will say what it finds
        found[name] = hashlib.sha256(journal).hexdigest()
    return found


def wishes(seen: View, target: Target, journals: Mapping[str, str]) -> tuple[list[Change], list[Finding]]:
    """What the recoveries and the fixers want changed, one change a place, and what they have to say."""
    from p2v.guest.fixers import FIXERS

    guest = seen.known_guest
    wanted: list[Change] = [*recoveries(seen, journals)]
    findings: list[Finding] = []
    for fixer in FIXERS:
        try:
            for wish in _signed(fixer, guest, target):
                if isinstance(wish, Finding):
                    findings.append(wish)
                else:
                    wanted.append(wish)
        except GuestError as error:
            raise _with_the_rest(error, [one for one in findings if one.severity is Severity.ERROR]) from error
    return changing.merge(wanted), findings


def _with_the_rest(error: GuestError, stops: Sequence[Finding]) -> GuestError:
    """The error, and what else stops the plan: whoever fetches a file from a medium fetches all from it at once."""
    besides = [f"besides, {one.what}: {one.next}" for one in stops]
    return GuestError(error.what, error.where, error.why, "\n".join((error.next, *besides)))


def _signed(fixer: Fixer, guest: Guest, target: Target) -> Iterator[Change | Finding]:
    for wish in fixer.plan(guest, target):
        yield wish if wish.fixer else dataclasses.replace(wish, fixer=fixer.NAME)


def second_opinion(seen: View) -> Iterator[Finding]:
    """Where libparted reads a table in another way than p2v."""
    from p2v.volume.parted import compare

    for disk, source in seen.disks.items():
        yield from compare(disk, source, [one for one in seen.layout.partitions if one.disk == disk])


def recoveries(seen: View, journals: Mapping[str, str]) -> Iterator[Recovery]:
    """Journals and hive logs that Windows left unreplayed, on what the plan will edit.

    journals: the digests of the source's journals, by volume.
    """
    guest = seen.known_guest
    for name in unclean_volumes(seen):
        yield Recovery("journal", name, "", journals.get(name, ""), "Windows was not shut down: its journal holds "
                       "changes that the files do not show yet")
    for name, place in guest.facts.hives.items():
        found = guest.recovered(name)
        if found.replayed:
            yield Recovery("hive-log", place.volume, place.path, found.digest,
                           "the hive was not closed: its log holds the changes that it lacks", hive=name)


def unclean_volumes(seen: View) -> list[str]:
    """The volumes that a plan edits and whose journal is not replayed; all of them where no guest is known yet."""
    unclean = {name for name, filesystem in seen.filesystems.items()
               if filesystem.state is FilesystemState.UNCLEAN and filesystem.kind == "ntfs"}
    if seen.guest is not None:
        unclean &= {seen.guest.facts.boot_volume, seen.guest.facts.system_volume}
    return sorted(unclean)


def refuse_hibernated(seen: View) -> None:
    """Raises GuestError when a volume of the guest holds a hibernated system."""
    for name, filesystem in seen.filesystems.items():
        if filesystem.state is FilesystemState.HIBERNATED:
            raise GuestError(
                "the server is hibernated, not shut down",
                filesystem.findings[0].where if filesystem.findings else Where(item=name),
                "its memory image refers to open files: edits and a boot elsewhere would corrupt them",
                "start the server once more, shut it down in full, and plan again",
            )


def volume_facts(volume: Volume, seen: View) -> VolumeFacts:
    """What a plan keeps of a volume."""
    filesystem = seen.filesystems[volume.name]
    spared = sum(r.length for r in (*filesystem.free, *filesystem.droppable))
    return VolumeFacts(volume.name, volume.layout, volume.members, filesystem.kind, filesystem.version,
                       filesystem.state, volume.source.size - spared)


def disk_plan(
    id: str, source: Source, seen: View, format: str, source_format: str | None, plain: PlainDisk | None = None
) -> DiskPlan:
    """One source → one image. plain: how the source is put together.

    Raises Unsupported for a disk that the format cannot hold.
    """
    from p2v.formats import FORMATS

    if source.size > FORMATS[format].LIMIT:
        raise Unsupported(f"{format} holds at most {FORMATS[format].LIMIT} bytes", Where(source.name),
                          f"{id} has {source.size}", "choose another --format")
    return DiskPlan(id, os.path.abspath(source.name), source.size, source.sector_size, fingerprint(id, seen),
                    format, id + FORMATS[format].SUFFIX, source_format or format_by_name(source.name),
                    plain.pieces if plain else (), plain.patches if plain else ())


def source_disks(given: Mapping[str, Source], format: str | None) -> tuple[SourceDisk, ...]:
    """What a plan keeps of the disks handed in."""
    return tuple(SourceDisk(id, os.path.abspath(source.name), source.size, source.sector_size,
                            arranging.fingerprint(source), format or format_by_name(source.name))
                 for id, source in given.items())


def fingerprint(disk: str, seen: View) -> str:
    """What must not have moved between plan and run. SHA-256 of size, tables, boot sectors, journals' heads, hives.

    The head of an NTFS journal moves whenever Windows mounts the volume and writes.
    """
    source = seen.disks[disk]
    digest = hashlib.sha256(f"{source.size}:{source.sector_size}:".encode())
    digest.update(read(source, 0, SECTOR))
    for partition in seen.layout.partitions:
        if partition.disk == disk:
            digest.update(read(source, partition.entry_offset // SECTOR * SECTOR, SECTOR))
    for volume in seen.layout.volumes:
        if volume.members[0].disk == disk:
            head = HEAD if seen.filesystems[volume.name].kind.startswith("fat") else 16 * SECTOR
            digest.update(read(volume.source, 0, min(volume.source.size, head)))
            digest.update(_journal_head(volume, seen.filesystems[volume.name]))
    if seen.guest:
        for name, place in seen.guest.facts.hives.items():
            if seen.guest.volumes[place.volume].members[0].disk == disk:
                digest.update(seen.guest.hive_files(name)[0])
    return digest.hexdigest()


def _journal_head(volume: Volume, filesystem: Filesystem) -> bytes:
    """The restart pages of NTFS, which carry the last log sequence number; nothing elsewhere."""
    from p2v.filesystem import open_files

    if filesystem.kind != "ntfs":
        return b""
    try:
        return open_files(volume.source, filesystem).head("\\$LogFile", JOURNAL_HEAD)
    except GuestError as error:
        return str(error).encode()


def errors_of(plan: Plan) -> list[Finding]:
    """The findings that stop the plan from being run."""
    return [finding for finding in plan.findings if finding.severity is Severity.ERROR]
