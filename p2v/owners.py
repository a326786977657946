"""Whose the differences between the legs of a mirror are, and what that says of the legs.

Free space and page files differ on healthy mirrors: nobody reads what is there. A difference anywhere else means
that one leg has missed writes.
"""

from __future__ import annotations

import enum
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from p2v.binary import parse
from p2v.comparing import Comparison
from p2v.drawing import amount
from p2v.errors import Finding, LayoutError, ReadError, Severity, Where
from p2v.extents import intersection, union, without
from p2v.filesystem import fat, records
from p2v.filesystem.hit import files_in, has_files
from p2v.filesystem.reader import LIBRARY_ERRORS
from p2v.model import Filesystem, FilesystemState, Range, Source

NAMED = 200  # files, those with the most first
SHOWN = 5  # of them, in a finding
PAGING, SLEEPING = ("\\pagefile.sys", "\\win386.swp"), "\\hiberfil.sys"
HIVE = re.compile(r".*(\\system32\\config\\[^\\.]+(\.(log\d?|sav|alt|bak))?|\\(ntuser|usrclass)\.dat(\.log\d?)?)")


class Owner(enum.Enum):
    """A kind of owner, in words."""

    FILE = "files"
    METADATA = "the filesystem itself"
    PAGING = "page and hibernation files"
    FREE = "free space"
    OUTSIDE = "outside of any filesystem"


@dataclass(frozen=True, slots=True)
class Owners:
    """The differences of a comparison by owner.

    amounts: bytes. files, metadata: (name, bytes), the most first, at most NAMED of each. unnamed: files besides.
    weighty: where data is that is in use; all else is harmless. untold: why not all of it has a name, or "".
    in_step: was all compared, and nothing differs that is in use?
    """

    amounts: Mapping[Owner, int]
    files: tuple[tuple[str, int], ...]
    metadata: tuple[tuple[str, int], ...]
    weighty: tuple[Range, ...] = field(repr=False)
    in_step: bool
    unnamed: int = 0
    untold: str = ""


def classify(comparison: Comparison, source: Source, filesystem: Filesystem) -> Owners:
    """Whose the differences are. source: the chosen leg, or its image; filesystem: what examine() says of it."""
    differences = list(comparison.differences)
    free = _total(intersection(differences, union(filesystem.free)))
    left = without(differences, union([*filesystem.free, *filesystem.droppable]))
    found = _Named(PAGING if filesystem.state is FilesystemState.HIBERNATED else (*PAGING, SLEEPING))
    untold = found.look(source, filesystem, left) if left and has_files(filesystem) else ""
    left = without(left, union(found.paging))
    paging = _total(differences) - free - _total(left)
    end = _end(source, filesystem)
    outside = _total(part for part in left if part.offset >= end) + sum(
        part.end - end for part in left if part.offset < end < part.end)
    rest = max(0, _total(left) - outside - found.files.amount - found.metadata.amount)
    amounts = {Owner.FILE: found.files.amount, Owner.METADATA: found.metadata.amount + rest, Owner.PAGING: paging,
               Owner.FREE: free, Owner.OUTSIDE: outside}
    metadata = found.metadata.names()
    if rest:
        metadata += (("folders and other structures" if has_files(filesystem) and not untold else "in use", rest),)
    in_step = comparison.compared > 0 and not comparison.left and not left
    return Owners(amounts, found.files.names(), metadata, tuple(left), in_step,
                  found.files.count - len(found.files.names()), untold)


def protected_ranges(
    source: Source, filesystem: Filesystem, among: Sequence[Range] | None = None
) -> tuple[Range, ...]:
    """What must never be taken from a stale leg: the filesystem's own structures, its folders, and hives.

    That is all but the content of plain files and free space. source: the chosen leg, or its image. among: the
    ranges to judge, ascending; without them the whole volume. Where files cannot be told all is protected.
    """
    ranges = list(among) if among is not None else [Range(0, source.size)]
    if not has_files(filesystem):
        return tuple(ranges)
    plain = intersection(union(filesystem.free), ranges)
    try:
        for path, parts in files_in(source, filesystem, ranges):
            if parts is None:
                return tuple(ranges)
            if not path.startswith("\\$") and HIVE.fullmatch(path.lower()) is None:
                plain += parts
    except LIBRARY_ERRORS:
        return tuple(ranges)
    return tuple(without(ranges, union(plain)))


class _Most:
    """Names with amounts, of which only those with the most are kept."""

    def __init__(self) -> None:
        self.amount = self.count = 0
        self._kept: list[tuple[int, str]] = []

    def add(self, name: str, amount: int) -> None:
        self.amount, self.count = self.amount + amount, self.count + 1
        (heapq.heappush if len(self._kept) < NAMED else heapq.heappushpop)(self._kept, (amount, name))

    def names(self) -> tuple[tuple[str, int], ...]:
        """The most first."""
        return tuple((name, amount) for amount, name in sorted(self._kept, key=lambda one: (-one[0], one[1])))


class _Named:
    """What of some ranges has a name. idle: paths of files that nobody needs."""

    def __init__(self, idle: Sequence[str]) -> None:
        self._idle = idle
        self.files, self.metadata = _Most(), _Most()
        self.paging: list[Range] = []

    def look(self, source: Source, filesystem: Filesystem, ranges: Sequence[Range]) -> str:
        """Returns why not all can be told, or nothing."""
        untold = ""
        try:
            for path, parts in files_in(source, filesystem, ranges):
                if parts is None:
                    untold = untold or f"{path} cannot be read, so files below it are not known"
                elif path.lower() in self._idle:
                    self.paging += parts
                else:
                    (self.metadata if path.startswith("\\$") else self.files).add(path, _total(parts))
        except LIBRARY_ERRORS as error:
            untold = f"the files of the volume cannot be walked: {str(error).split('. ')[0]}"
        return untold


def _end(source: Source, filesystem: Filesystem) -> int:
    """Where the filesystem ends, as it says itself; 0 where there is none."""
    try:
        if filesystem.kind == "ntfs":
            ntfs = parse(records.BOOT_LAYOUT, source, 0, records.Boot, "the NTFS boot sector")
            return ntfs.total_sectors * ntfs.bytes_per_sector
        if filesystem.kind.startswith("fat"):
            boot = parse(fat.BOOT_LAYOUT, source, 0, fat.Boot, "the FAT boot sector")
            return boot.total_sectors * boot.bytes_per_sector
    except (LayoutError, ReadError):
        return source.size
    return source.size if filesystem.kind else 0


def _total(ranges: Sequence[Range] | Iterator[Range]) -> int:
    return sum(part.length for part in ranges)


# ---------------------------------------------------------------------------------------------
# For people


def told(comparison: Comparison, owners: Owners, volume: str) -> list[Finding]:
    """What a comparison came to: one finding on the legs, and one on what is unreadable. volume: its name."""
    found = [_verdict(comparison, owners, volume)]
    for name, ranges in zip(comparison.names, comparison.unreadable, strict=True):
        if ranges:
            both = _total(comparison.in_none)
            found.append(Finding(
                f"{volume}: {amount(_total(ranges))} on {name} cannot be read",
                Where(volume, ranges[0].offset, ranges[0].length, f"on {name}"),
                f"{amount(both)} of it on no leg" if both else "each byte of it can be read on another leg",
                "the legs are in step: what another leg has is taken from there" if owners.in_step else
                "nothing is taken from a leg that is not in step, unless you say --rescue-from-stale",
                Severity.WARNING))
    return found


def _verdict(comparison: Comparison, owners: Owners, volume: str) -> Finding:
    legs = " and ".join(comparison.names)
    why = "; ".join(_reasons(comparison, owners))
    where = Where(volume)
    if owners.in_step:
        what = f"{volume}: {legs} are equal" if comparison.equal else \
            f"{volume}: {legs} are in step: nothing differs that is in use"
        return Finding(what, where, why, "nothing; what one leg cannot read may be taken from the other")
    if owners.weighty:
        first = owners.weighty[0]
        return Finding(f"{volume}: {legs} differ in {amount(_total(owners.weighty))} that are in use",
                       Where(volume, first.offset, first.length), why,
                       "the chosen leg alone is used; look at the files named, and choose another one with --leg",
                       Severity.WARNING)
    return Finding(f"{volume}: whether {legs} are equal is not known", where, why,
                   "check the disk that failed, then compare again with p2v inspect --compare", Severity.WARNING)


def _reasons(comparison: Comparison, owners: Owners) -> Iterator[str]:
    yield f"{amount(comparison.compared)} of {amount(comparison.size)} were compared"
    if comparison.left:
        yield f"{amount(_total(comparison.left))} were not: a leg failed, or the legs were known to differ"
    for owner, count in owners.amounts.items():
        if count:
            yield f"{amount(count)} differ in {owner.value}{_names(owner, owners)}"
    if comparison.grain and comparison.differences:
        yield f"differences closer than {amount(comparison.grain)} are counted as one"
    if owners.untold:
        yield owners.untold


def _names(owner: Owner, owners: Owners) -> str:
    named = {Owner.FILE: owners.files, Owner.METADATA: owners.metadata}.get(owner, ())
    more = len(named) - SHOWN + (owners.unnamed if owner is Owner.FILE else 0)
    words = [name for name, _ in named[:SHOWN]] + ([f"{more} more"] if more > 0 else [])
    return f" ({', '.join(words)})" if words else ""


def draw(comparison: Comparison, owners: Owners | None = None, width: int = 64) -> str:
    """The volume as text, a line for each leg. owners: tells differences that matter from those that do not."""
    weighty = owners.weighty if owners is not None else comparison.differences
    layers = [("-", comparison.left), ("~", comparison.differences), ("#", weighty)]
    longest = max(map(len, comparison.names))
    lines = []
    for name, bad in zip(comparison.names, comparison.unreadable, strict=True):
        cells = ["."] * width
        for sign, ranges in (*layers, ("x", bad)):
            for part in ranges:
                first, last = (at * width // comparison.size for at in (part.offset, part.end - 1))
                cells[first : last + 1] = sign * (last + 1 - first)
        lines.append(f"{name:<{longest}} [{''.join(cells)}]")
    used = {sign for line in lines for sign in line[longest + 2 : -1]}
    legend = {".": "the same", "~": "differs, not in use", "#": "differs, in use", "x": "unreadable on this leg",
              "-": "not compared"}
    scale = f"each sign stands for {amount(-(-comparison.size // width))}"
    return "\n".join([*lines, ", ".join([*(f"{sign} {words}" for sign, words in legend.items() if sign in used),
                                         scale])])
