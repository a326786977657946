"""Edit on a thin overlay over the read-only disks, and prove the edits, before anything is copied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from p2v import changes as changing
from p2v import planning, stage
from p2v.errors import GuestError, MismatchError, Severity, Where
from p2v.model import (
    BytesChange,
    Change,
    FileChange,
    Progress,
    Recovery,
    Source,
    State,
    no_progress,
)
from p2v.target import target_named


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
        file = isinstance(change, (FileChange, Recovery))
        volume = change.volume if file else guest.facts.hives[change.hive].volume
        disks.update(member.disk for member in guest.volumes[volume].members)
    return [disk for disk in seen.disks if disk in disks]


def make_overlays(
    changes: Sequence[Change], seen: planning.View, overlays: Mapping[str, Path], progress: Progress
) -> None:
    """Make the changes, in new overlays over the touched disks. One appliance start.

    overlays: disk id → the overlay's path; what is there is replaced.
    Raises DriftError before the first write; GuestError when an edit fails, or a read that an edit needed.
    """
    from p2v.guest.guestfs import Appliance

    guest = seen.known_guest
    changing.pending(changes, guest)  # a guest that has drifted must not cost an appliance start
    for path in overlays.values():
        path.unlink(missing_ok=True)
    progress("edit", 0, len(changes))
    with stage.Stage({disk: seen.disks[disk] for disk in overlays}, overlays) as staged:
        with Appliance(staged.disks, guest.volumes) as door:
            changing.apply(changes, guest, door)
        failed = staged.failed_reads()
    if failed:
        raise GuestError(
            "the disk could not be read where the guest had to be edited",
            Where(item="; ".join(str(place) for place in failed[:5])),
            "an edit there cannot be trusted; no output was begun, and the source is untouched",
            planning.RESCUE_FIRST,
        )
    progress("edit", len(changes), len(changes))


def digests(overlays: Mapping[str, Path]) -> dict[str, str] | None:
    """Of each overlay's file, None when one is missing: the overlay that a run knows is reused."""
    if not all(path.exists() for path in overlays.values()):
        return None
    return {disk: stage.digest(path) for disk, path in overlays.items()}


@contextlib.contextmanager
def overlaid(seen: planning.View, overlays: Mapping[str, Path]) -> Iterator[Mapping[str, Source]]:
    """All disks, the overlays' changes in front of them: unchanged ranges come from the disks directly."""
    with contextlib.ExitStack() as stack:
        disks = dict(seen.disks)
        for disk, path in overlays.items():
            disks[disk] = edited = stage.overlaid(seen.disks[disk], path)
            stack.callback(edited.close)
        yield disks


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
    missing = [change.place for change in changes if changing.state_of(change, guest) is not State.DONE]
    if missing:
        raise MismatchError(
            f"{len(missing)} of {len(changes)} changes cannot be seen after they were made",
            Where(item="; ".join(missing[:10])),
            "the writer reported success; what it wrote reads differently",
            "report this with the run's folder",
        )
    found = boot_closure(guest, target_named(target)) if target else ()
    for finding in found:
        if finding.severity is Severity.ERROR:
            raise MismatchError(f"the guest would not boot: {finding.what}", finding.where, finding.why,
                                finding.next or "report this with the run's folder")
    progress("prove", len(changes), len(changes))
