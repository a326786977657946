"""Plans, diffs and findings → text. No colours, no width tricks: it must survive a log file and an e-mail."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from p2v.drawing import amount, draw_pieces, source_names
from p2v.errors import Finding, Severity
from p2v.model import (
    BytesChange,
    Change,
    Content,
    FileChange,
    FilesystemState,
    KeyChange,
    Plan,
    Recovery,
    Value,
    ValueChange,
    VolumeFacts,
)
from p2v.planfile import plain, readable

if TYPE_CHECKING:
    from p2v.conversion import Result
    from p2v.inspecting import Inspection

CONTROL_SET = re.compile(r"ControlSet\d{3}", re.IGNORECASE)
LINE = 32  # bytes that a line of hex shows
LABELS = {Severity.ERROR: "STOPS", Severity.WARNING: "WARNING", Severity.INFO: "note"}


def render_plan(plan: Plan) -> str:
    """The dry run: what is there, what will change and why, what is worth knowing."""
    lines = [f"Plan: {plan.facts.name} → {plan.target}, into {plan.output}", "", *_disks(plan), ""]
    lines += [f"The guest: {plan.facts.name}, {plan.facts.architecture}, build {plan.facts.build}, "
              f"in {plan.facts.system_root} on {plan.facts.boot_volume}", ""]
    lines += [*_assembly(plan), render_changes(plan.changes), ""]
    if plan.findings:
        lines += [render_findings(plan.findings), ""]
    lines += [verdict(plan)]
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """The plan's last line: can it be run?"""
    errors = sum(finding.severity is Severity.ERROR for finding in plan.findings)
    if errors:
        return f"This plan cannot be run: {errors} finding(s) above stop it. Nothing has been written."
    if all(Path(disk.image).is_absolute() for disk in plan.disks):
        return f"{len(plan.changes)} change(s), to be made in the image(s) where they lie; p2v undo takes them back."
    return f"{len(plan.changes)} change(s) planned. The source has only been read, and will only be read."


def _disks(plan: Plan) -> Iterator[str]:
    for source in plan.sources:
        yield f"  {source.id}  {source.path}, {amount(source.size)}"
    for mirror, leg in plan.legs.items():
        yield f"    of {mirror}, the leg on {leg} is taken"
    if plan.sources:
        yield "The VM's disks:"
    for disk in plan.disks:
        origin = "put together" if disk.pieces else disk.path
        yield f"  {disk.id}  {origin}, {amount(disk.size)} → {disk.image} ({disk.format})"
        for volume in plan.volumes:
            if volume.members[0].disk == disk.id:
                yield f"    {volume_line(volume)}"


def _assembly(plan: Plan) -> Iterator[str]:
    """How disks are put together, and what is laid over them."""
    if not plan.sources:
        return
    yield from draw_pieces({disk.id: disk.pieces for disk in plan.disks}, source_names(plan.sources))
    patches = [patch for disk in plan.disks for patch in disk.patches]
    if patches:
        yield f"Laid over them: {len(patches)} patch(es)"
        yield from render_changes(patches).split("\n")[1:]
    yield ""


def volume_line(volume: VolumeFacts) -> str:
    """One volume in one line."""
    start = volume.members[0].offset
    size = sum(member.length for member in volume.members)
    kind = f"{volume.filesystem.upper()} {volume.version}".strip() or "unknown filesystem"
    state = "" if volume.state is FilesystemState.CLEAN else f", {volume.state.value}"
    return f"{volume.name}  {kind}, {amount(size)} at {start:#x}, {amount(volume.used)} to copy{state}"


def render_changes(changes: Sequence[Change]) -> str:
    """The diff, grouped by fixer and by why; what is the same in several control sets is shown once."""
    if not changes:
        return "Changes: none, the guest is as it must be."
    lines = [f"Changes: {len(changes)}"]
    for fixer, group in groupby(changes, key=lambda change: change.fixer):
        lines += ["", f"  {fixer}"]
        reasons: dict[str, list[Change]] = {}
        for change in group:
            reasons.setdefault(change.why, []).append(change)
        for why, same in reasons.items():
            lines += [f"    because {why}", *(f"      {line}" for line in _folded(same))]
    return "\n".join(lines)


def _folded(changes: Sequence[Change]) -> Iterator[str]:
    """The lines of changes; those that differ in the control set alone are folded into one."""
    folded: dict[tuple[str, ...], list[str]] = {}
    for change in changes:
        first, *rest = change_lines(change)
        found = CONTROL_SET.search(first)
        key = (CONTROL_SET.sub("ControlSet*", first, count=1), *rest)
        folded.setdefault(key, []).append(found.group() if found else "")
    for lines, sets in folded.items():
        first = lines[0].replace("ControlSet*", sets[0] if len(sets) == 1 else "{" + ",".join(sets) + "}", 1)
        yield from (first, *lines[1:])


def change_lines(change: Change) -> list[str]:
    """One change as lines of a diff."""
    match change:
        case ValueChange():
            head = f"{change.hive}\\{change.key} : {change.value or '(default)'}"
            return [head, f"  - {_shown(change.before)}", f"  + {_shown(change.after)}"]
        case KeyChange():
            return [f"{'+' if change.after else '-'} key {change.hive}\\{change.key}"]
        case FileChange():
            head = f"{change.volume}:{change.path}"
            return [head, f"  - {_shown(change.before)}", f"  + {_shown(change.after)}"]
        case BytesChange():
            head = f"{change.disk}, bytes {change.offset:#x} to {change.offset + len(change.after):#x}"
            return [head, f"  - {_hex(change.before)}", f"  + {_hex(change.after)}"]
        case Recovery():
            place = f"{change.volume}:{change.path}" if change.path else change.volume
            return [f"replay the {change.what} of {place} (cannot be undone)"]


def _hex(data: bytes) -> str:
    if len(data) <= LINE:
        return data.hex(" ")
    return f"{data[:LINE].hex(' ')} …, {len(data)} bytes" if any(data) else f"{len(data)} zero bytes"


def _shown(thing: Value | Content | None) -> str:
    if thing is None:
        return "not there"
    if isinstance(thing, Value):
        return readable(thing)
    if thing.size <= 4096 and _is_text(thing.data):
        return f"{thing.size} bytes of text:\n" + "\n".join(
            f"          | {line}" for line in thing.data.decode("cp1252", "replace").splitlines())
    return f"{thing.size} bytes, sha256 {thing.digest[:16]}…"


def _is_text(data: bytes) -> bool:
    return all(byte >= 0x20 or byte in b"\r\n\t" for byte in data)


def render_findings(findings: Iterable[Finding]) -> str:
    """What is worth saying, what stops the work first."""
    order = list(LABELS)
    lines = ["Findings:"]
    for finding in sorted(findings, key=lambda finding: order.index(finding.severity)):
        first, *rest = str(finding).split("\n")
        lines += [f"  {LABELS[finding.severity]}: {first}", *(f"  {line}" for line in rest)]
    return "\n".join(lines)


def render_inspection(seen: Inspection) -> str:
    """What `p2v inspect` prints."""
    lines = []
    for index, (path, size) in enumerate(zip(seen.paths, seen.sizes, strict=True)):
        lines.append(f"disk{index}  {path}, {amount(size)}")
        if not seen.pieces:
            lines += [f"  {volume_line(v)}" for v in seen.volumes if v.members[0].disk == f"disk{index}"]
    lines += _sets(seen)
    for drawing in seen.compared:
        lines += ["", *drawing.split("\n")]
    facts = seen.facts
    if facts is not None:
        lines += [
            "",
            f"{facts.name}, build {facts.build}, {facts.architecture}, {facts.product_type}",
            f"  in {facts.system_root} on {facts.boot_volume}; started from {facts.system_volume}",
            f"  HAL {facts.hal.original_name if facts.hal else 'unknown'}; "
            f"control sets {', '.join(facts.control_sets)}, {facts.default_control_set} is started",
            f"  boot drivers: {', '.join(facts.boot_drivers)}",
            *_controllers(seen),
        ]
    if seen.findings:
        lines += ["", render_findings(seen.findings)]
    return "\n".join([*lines, "", _next(seen)])


def _controllers(seen: Inspection) -> Iterator[str]:
    """Which of the hypervisors' disk controllers this Windows can drive; the evidence is in --json."""
    words = {"yes": "has drivers for", "unknown": "may have drivers for", "no": "needs drivers (--drivers) for"}
    for verdict, text in words.items():
        titles = [one.title for one in seen.controllers if one.verdict == verdict and (one.needs or verdict != "no")]
        if titles:
            yield f"  {text}: {', '.join(titles)}"
    nobody = [one.title for one in seen.controllers if one.verdict == "no" and not one.needs]
    if nobody:
        yield f"  nobody made drivers for: {', '.join(nobody)}"


def _sets(seen: Inspection) -> Iterator[str]:
    """Mirrors and other sets, and the plain disks that the VM gets of them."""
    if not seen.sets:
        return
    yield "sets on them:"
    for one in seen.sets:
        places = ", ".join(f"{m.disk} at {m.offset:#x}" for m in one.members)
        kind = f"{one.filesystem.upper()} {one.version}".strip() or "filesystem not looked at"
        leg = seen.legs.get(one.name)
        known = f"; the leg on {leg} is taken, {seen.taken.get(one.name, '')}" if leg else "; NO LEG CHOSEN YET"
        taken = known if one.layout == "mirrored" else ""
        yield f"  {one.name}  {one.layout}, {kind}: {places}{taken}"
    if seen.pieces:
        yield "the VM would get:"
        for disk, theirs in seen.pieces.items():
            yield f"  {disk}  {amount(theirs[-1].end)}"
            yield from (f"    {volume_line(v)}" for v in seen.volumes if v.members[0].disk == disk)


def _next(seen: Inspection) -> str:
    words = " ".join(shlex.quote(word) for word in (*seen.paths, *seen.options))
    if any(one.layout == "mirrored" and one.name not in seen.legs for one in seen.sets):
        return f"next: decide which leg is right, then p2v plan {words} --leg DISK -o FOLDER"
    stopped = any(finding.severity is Severity.ERROR for finding in seen.findings)
    if seen.facts is not None:
        return f"next: {'what STOPS, see above; then ' if stopped else ''}p2v plan {words} -o FOLDER"
    if seen.pieces:
        output = "FOLDER" if len(seen.pieces) > 1 else "disk0.qcow2"
        return ("There is no guest here that p2v can convert; the plain disks can be imaged:\n"
                f"next: p2v image {words} --layout collapse -o {output}")
    if seen.sets and stopped:
        return "next: what STOPS, see above; then look again with p2v inspect"
    return "There is no guest here that p2v can convert."


def render_result(result: Result, verb: str) -> str:
    """What a finished run prints."""
    if result.done_before:
        return f"{result.folder}: nothing to do, all of it is {verb} already."
    lines = [f"{verb}: {result.folder}" + (f", {result.changes} change(s)" if result.changes else "")]
    for disk, report in result.reports.items():
        lines.append(f"  {disk}  " + ", ".join(
            f"{amount(size)} {kind.replace('_', ' ')}" for kind, size in report.counts.items() if size))
    lines += [f"  {file}" for file in result.files]
    if result.findings:
        lines += ["", render_findings(result.findings)]
    return "\n".join(lines)


def result_json(result: Result, verb: str) -> dict[str, object]:
    """The same for other programs."""
    return {
        "done": verb,
        "folder": result.folder,
        "nothing_to_do": result.done_before,
        "changes": result.changes,
        "files": list(result.files),
        "disks": {disk: report.to_json() for disk, report in result.reports.items()},
        "findings": plain(result.findings),
    }
