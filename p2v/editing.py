"""Edit on a thin overlay over the read-only disks, and prove the edits, before anything is copied."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from p2v import changes as changing
from p2v import planning
from p2v.errors import GuestError, MismatchError, ReadError, Severity, Where
from p2v.model import (
    BytesChange,
    Change,
    FileChange,
    FilesystemState,
    Progress,
    Range,
    Recovery,
    Source,
    State,
    Volume,
    no_progress,
    read,
)
from p2v.rundir import RunDir
from p2v.source.nbd import allocated
from p2v.stage import Stage, digest
from p2v.stage import overlaid as overlaid_source
from p2v.target import target_named

if TYPE_CHECKING:
    from p2v.guest.guestfs import Appliance

PIECE = 1 << 20  # bytes read at once


def touched_disks(changes: Sequence[Change], seen: planning.View) -> list[str]:
    """The ids of the disks that the changes write to, in BIOS order."""
    if not changes:
        return []
    guest = seen.known_guest
    disks: set[str] = set()
    for change in changes:
        if isinstance(change, BytesChange):
            disks.add(change.disk)
            continue
        volume = change.volume if isinstance(change, (FileChange, Recovery)) else guest.facts.hives[change.hive].volume
        disks.update(member.disk for member in guest.volumes[volume].members)
    return [disk for disk in seen.disks if disk in disks]


@contextlib.contextmanager
def recovered(seen: planning.View, run: RunDir, progress: Progress = no_progress) -> Iterator[planning.View]:
    """A view of the guest whose volumes have their journals replayed, on the run's overlays.

    Where no journal needs it, that is the view as it is, and nothing is made. Filesystems stay as they were
    judged on the source. The overlays are made once and used further. Costs an appliance start where they are
    made. Raises GuestError where a journal cannot be replayed.
    """
    unclean = planning.unclean_volumes(seen)
    if not unclean:
        yield seen
        return
    members = {member.disk for volume in seen.layout.volumes if volume.name in unclean for member in volume.members}
    overlays = {disk: run.overlay(disk) for disk in seen.disks if disk in members}
    sources = {disk: planning.fingerprint(disk, seen) for disk in overlays}
    known = run.state().get("recovered")
    if known is None or known != {"overlays": digests(overlays, seen), "sources": sources}:
        run.make()
        run.save_state(recovered=None, overlays=None)
        for path in overlays.values():  # half an edit must never be taken for a replayed journal
            path.unlink(missing_ok=True)
        volumes = {volume.name: volume for volume in seen.layout.volumes}
        with _appliance(seen, overlays, volumes) as door:
            for index, name in enumerate(unclean):
                progress("replay journals", index, len(unclean))
                door.recover_journal(name)
            progress("replay journals", len(unclean), len(unclean))
        run.save_state(recovered={"overlays": digests(overlays, seen), "sources": sources})
    with overlaid(seen, overlays) as disks:
        yield replace(planning.view(disks, seen.drivers, seen.sources, seen.collapsed), filesystems=seen.filesystems)


def make_overlays(
    changes: Sequence[Change],
    seen: planning.View,
    overlays: Mapping[str, Path],
    run: RunDir,
    progress: Progress,
) -> None:
    """Make the changes, in overlays over the touched disks. One appliance start.

    overlays: disk id → the overlay's path in the run; what is there is replaced, unless a journal was
    replayed on it. Raises DriftError before the first write; GuestError when an edit fails, or a read that
    an edit needed.
    """
    with recovered(seen, run, progress) as ready:  # a guest that has drifted must not cost an appliance start
        guest = ready.known_guest
        todo, hives, volumes = changing.pending(changes, guest), guest.facts.hives, guest.volumes
    replayed = run.state().get("recovered") if planning.unclean_volumes(seen) else None
    for disk in overlays.keys() - (replayed or {}).get("overlays", {}).keys():
        overlays[disk].unlink(missing_ok=True)
    progress("edit", 0, len(changes))
    raw = [change for change in todo if isinstance(change, BytesChange)]
    with _appliance(seen, overlays, volumes, raw) as door:
        changing.perform(todo, hives, door)
        backend = door.backend
    run.save_state(recovered=None, appliance=backend)
    progress("edit", len(changes), len(changes))


@contextlib.contextmanager
def _appliance(
    seen: planning.View, overlays: Mapping[str, Path], volumes: Mapping[str, Volume], raw: Sequence[BytesChange] = ()
) -> Iterator[Appliance]:
    """The writing door on overlays, after raw bytes were written into them.

    At the end, a read that failed inside what was edited is an error.
    """
    from p2v.guest.guestfs import Appliance

    with Stage(seen.disks, overlays) as staged:
        staged.write_bytes(raw)
        with Appliance(staged.disks, volumes) as door:
            yield door
        reads = staged.failed_reads()
    failed = within_edits(reads, overlays)
    if failed:
        raise GuestError(
            "the disk could not be read where the guest had to be edited",
            Where(item="; ".join(str(place) for place in failed[:5])),
            "an edit there cannot be trusted; no output was begun, and the source is untouched",
            planning.RESCUE_FIRST,
        )


def within_edits(failed: Mapping[str, Sequence[Range]], overlays: Mapping[str, Path]) -> list[Where]:
    """The failed reads that lie inside what was edited; one beside an edit harms nobody.

    An overlay's subclusters are single sectors, so an edit never copies its neighbours.
    """
    hit = []
    for disk, reads in failed.items():
        edits = allocated(str(overlays[disk])) if reads else ()
        hit += [Where(disk, r.offset, r.length) for r in reads
                if any(edit.offset < r.end and r.offset < edit.end for edit in edits)]
    return hit


def digests(overlays: Mapping[str, Path], seen: planning.View) -> dict[str, str] | None:
    """What tells that overlays may be used further; None when one is missing.

    Of each, the digests of its file and of the source's bytes under its edits: an overlay over a source that
    has moved would mix two states of the guest.
    """
    if not all(path.exists() for path in overlays.values()):
        return None
    found = {}
    for disk, path in overlays.items():
        under = hashlib.sha256()
        for edit in allocated(str(path)):
            for offset in range(edit.offset, edit.end, PIECE):
                under.update(_bytes_under(seen.disks[disk], offset, min(PIECE, edit.end - offset)))
        found[disk] = f"{digest(path)} over {under.hexdigest()}"
    return found


def _bytes_under(source: Source, offset: int, length: int) -> bytes:
    """The source's bytes; what cannot be read counts as its message."""
    try:
        return read(source, offset, length)
    except ReadError as error:
        return error.what.encode()


@contextlib.contextmanager
def overlaid(seen: planning.View, overlays: Mapping[str, Path]) -> Iterator[Mapping[str, Source]]:
    """All disks, the overlays' changes in front of them: unchanged ranges come from the disks directly."""
    with contextlib.ExitStack() as stack:
        disks = dict(seen.disks)
        for disk, path in overlays.items():
            disks[disk] = edited = overlaid_source(seen.disks[disk], path)
            stack.callback(edited.close)
        yield disks


def _is_done(change: Change, seen: planning.View) -> bool:
    if isinstance(change, Recovery) and not change.hive:
        return seen.filesystems[change.volume].state is not FilesystemState.UNCLEAN
    return changing.state_of(change, seen.known_guest) is State.DONE


def prove(
    changes: Sequence[Change],
    target: str | None,
    seen: planning.View,
    progress: Progress = no_progress,
) -> None:
    """Look again, through the reading door: every change is there, and the guest can boot on the target.

    target: None to leave the boot closure out (a guest that is put back need not boot in a VM).
    Raises MismatchError naming what is not as it must be.
    """
    from p2v.guest.closure import boot_closure

    progress("prove", 0, len(changes))
    guest = seen.known_guest
    missing = [change.place for change in changes if not _is_done(change, seen)]
    if missing:
        raise MismatchError(
            f"{len(missing)} of {len(changes)} changes are not there",
            Where(item="; ".join(missing[:5]) + (" …" if len(missing) > 5 else "")),
            "read back through another reader than the one that wrote them, these places hold something else",
            "if nothing else has changed the images, report this with the run's folder",
        )
    found = boot_closure(guest, target_named(target)) if target else ()
    for finding in found:
        if finding.severity is Severity.ERROR:
            raise MismatchError(f"the guest would not boot: {finding.what}", finding.where, finding.why,
                                finding.next or "report this with the run's folder")
    progress("prove", len(changes), len(changes))
