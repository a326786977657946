"""What an image lacks because its disk could not be read, and whose it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from p2v import planning
from p2v.copy import CopyReport
from p2v.errors import Finding, P2VError, Severity, Where
from p2v.keeping import Job
from p2v.model import Extent, ImageFormat, Range, Source
from p2v.source.assembled import Assembled
from p2v.volume import Layout

RANGES = 40  # that could not be read and are told one by one


def losses(source: Source, job: Job, report: CopyReport, chart: Path, disk: str) -> Iterator[Finding]:
    """Each range that could not be read, and whose it was. chart: the mapfile of its rescue."""
    if not report.bad:
        return
    again = "to try again: the same command with another -o and --retries 3"
    if chart.exists():
        again = "to try again: the same command with --resume --retries 3"
        if isinstance(source, Assembled):  # no byte of a disk needs to be at the same place in the image
            again += "; with --compare and another -o, what the other leg of a mirror in step has is taken from there"
        elif job.form.NAME == "raw":
            again += f"; or ddrescue -d -r3 {source.name} {job.path} {chart}, and then the same command with --resume"
    yield from ranges(source, report.bad, again)
    yield from files_lost(job.form, job.path, [Range(e.offset, e.length) for e in report.bad], disk)


def ranges(source: Source, bad: Sequence[Extent], again: str) -> Iterator[Finding]:
    for extent in bad[:RANGES]:
        place = source.origin(extent.offset) if isinstance(source, Assembled) else (source.name, extent.offset)
        yield Finding(f"{extent.length} bytes cannot be read", Where(*place, extent.length),
                      "they are zeroes in the image", again, Severity.WARNING)
    if len(bad) > RANGES:
        lost = sum(extent.length for extent in bad[RANGES:])
        yield Finding(f"{lost} bytes in {len(bad) - RANGES} more ranges cannot be read", Where(source.name),
                      "they are zeroes in the image; the manifest lists them all", again, Severity.WARNING)


def files_lost(form: ImageFormat, path: Path, bad: Sequence[Range], disk: str) -> Iterator[Finding]:
    """The files that have lost content, by the image itself: the failing disk is left in peace."""
    from p2v.filesystem.hit import files_hit

    source = form.read(str(path))
    try:
        seen, _ = look({disk: source})
        for volume in seen.layout.volumes:
            member = volume.members[0]
            inside = [Range(max(r.offset, member.offset) - member.offset,
                            min(r.end, member.offset + member.length) - max(r.offset, member.offset))
                      for r in bad if r.offset < member.offset + member.length and member.offset < r.end]
            if inside:
                yield from files_hit(volume.name, volume.source, seen.filesystems[volume.name], inside)
    finally:
        source.close()


def look(disks: Mapping[str, Source]) -> tuple[planning.View, list[Finding]]:
    """Volumes and filesystems, as far as they can be read: a disk that hides them is copied whole."""
    from p2v.filesystem import examine
    from p2v.volume import find_volumes

    try:
        layout = find_volumes(disks)
        filesystems = {volume.name: examine(volume.source) for volume in layout.volumes}
    except P2VError as error:
        said = Finding("everything is copied, used or not", error.where, f"{error.what}; {error.why}",
                       "nothing, if the image is all that matters", Severity.WARNING)
        return planning.View(disks, Layout((), (), ()), {}, None, None), [said]
    seen = planning.View(disks, layout, filesystems, None, None)
    return seen, [said for said in seen.findings if said.severity is not Severity.INFO]
