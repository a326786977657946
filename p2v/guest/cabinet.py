"""Single files out of cabinets, through cabextract, with bounds: a cabinet is untrusted.

Nothing is unpacked into folders, so no name in a cabinet can lead anywhere: a member is read from a pipe, not a
byte more than the cabinet's own listing says. A set in several parts is one cabinet; only parts that the caller
has found itself are opened, never what a part names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from p2v.errors import GuestError, Where
from p2v.guest.piped import piped, streamed

LISTING_LIMIT = 8 << 20  # bytes; driver.cab of XP has some 3000 members, 60 bytes each
PARTS = 64  # of one set
HEAD = 1 << 16  # bytes in which the names of a part's neighbours lie
WHOLE_LIMIT = 1 << 30  # bytes of all members; driver.cab of 2003 has 250 MB
_PROGRAM = ("cabextract", "driver files lie in cabinets")
_MEMBER = re.compile(r"\s*(\d{1,12}) \| [\d.]+ [\d:]+ \| (.+)")
_HAS_PREVIOUS, _HAS_NEXT, _HAS_RESERVE = 1, 2, 4
_GLOB = re.compile(r"([*?\[\]\\])")


class Cabinet:
    """A cabinet in files of ours, its parts in order. where: what the user knows it by. missing: parts not found."""

    def __init__(self, parts: Sequence[Path], where: Where, missing: Sequence[str] = ()) -> None:
        self._parts = tuple(parts)
        self._where = where
        self._missing = tuple(missing)
        self._sizes: dict[str, list[int]] | None = None
        self._order: list[tuple[str, int]] = []
        self._ready: dict[str, bytes] = {}

    def expect(self, names: Collection[str], limit: int) -> None:
        """Members of these names will be wanted: the cabinet is unpacked once for all of them, and not for each.

        Nothing is promised: where this fails, members() unpacks each, and says what is wrong. Raises GuestError
        for a damaged listing, MissingTool.
        """
        sizes = self.listing()
        wanted = {path for path, found in sizes.items() if path.rpartition("/")[2] in names
                  and len(found) == 1 and found[0] <= limit and path not in self._ready}
        total = sum(size for _, size in self._order)
        if len(wanted) < 2 or total > WHOLE_LIMIT:
            return
        taken = _Taken(self._order, wanted)
        status = streamed(["cabextract", "-q", "-s", "-p", "--", *map(str, self._parts)], total, *_PROGRAM, taken.add)
        if not status and taken.at == total:  # else a damaged member has moved those behind it
            self._ready.update({path: bytes(data) for path, data in taken.found.items()})

    def members(self, name: str, limit: int) -> Iterator[tuple[str, bytes]]:
        """(path inside, content) of each file of that name, in whatever folder of the cabinet.

        limit: bytes. Raises GuestError for a damaged cabinet, two members of one path, or a file past the
        limit; MissingTool.
        """
        for path, sizes in self.listing().items():
            if path.rpartition("/")[2] == name.lower():
                yield path, self._read(path, sizes, limit)

    def only(self, limit: int) -> tuple[str, bytes]:
        """(path, content) of the one file of a cabinet that holds one. Raises GuestError for any other."""
        listing = self.listing()
        if len(listing) != 1:
            raise self._bad(f"one file was expected, it holds {len(listing)}")
        path, sizes = next(iter(listing.items()))
        return path, self._read(path, sizes, limit)

    def listing(self) -> dict[str, list[int]]:
        """Path in lower case, with / between folders → the sizes of the members that have it."""
        if self._sizes is None:
            sizes: dict[str, list[int]] = {}
            self._order.clear()
            for line in self._run(["-l"], LISTING_LIMIT).decode("utf-8", "replace").splitlines():
                found = _MEMBER.fullmatch(line)
                if found:
                    path = found[2].replace("\\", "/").lower()
                    sizes.setdefault(path, []).append(int(found[1]))
                    self._order.append((path, int(found[1])))
            self._sizes = sizes
        return self._sizes

    def _read(self, path: str, sizes: Sequence[int], limit: int) -> bytes:
        if len(sizes) > 1 or sizes[0] > limit:
            raise self._bad(f"{path} is there {len(sizes)} times, with {max(sizes)} bytes")
        if path in self._ready:
            return self._ready[path]
        data = self._run(["-p", "-F", _GLOB.sub(r"[\1]", path)], sizes[0])
        if len(data) != sizes[0]:
            raise self._bad(f"{path} should have {sizes[0]} bytes and has {len(data)} or more")
        return data

    def _run(self, arguments: Sequence[str], limit: int) -> bytes:
        """What cabextract prints, at most limit bytes and one more."""
        # -s: of a set, only the parts named here are opened
        data, status = piped(["cabextract", "-q", "-s", *arguments, "--", *map(str, self._parts)], limit, *_PROGRAM)
        if status and len(data) <= limit:
            raise self._bad(f"cabextract ended with status {status}")
        return data

    def _bad(self, why: str) -> GuestError:
        missing = f"; parts of its set that are not there: {', '.join(self._missing)}" if self._missing else ""
        return GuestError("a cabinet cannot be used", self._where, why + missing, "hand in the file with --drivers DIR")


class _Taken:
    """Picks the wanted members out of all, as they come one behind the other."""

    def __init__(self, order: Sequence[tuple[str, int]], wanted: Collection[str]) -> None:
        self.at = 0
        self.found: dict[str, bytearray] = {path: bytearray() for path, _ in order if path in wanted}
        self._todo: list[tuple[int, int, str]] = []
        start = 0
        for path, size in order:
            if path in wanted:
                self._todo.append((start, start + size, path))
            start += size

    def add(self, piece: bytes) -> None:
        end = self.at + len(piece)
        for start, stop, path in self._todo:
            if start < end and stop > self.at:
                self.found[path] += piece[max(start - self.at, 0) : stop - self.at]
        self.at = end


def neighbours(head: bytes) -> tuple[str, str]:
    """What a part of a set calls the parts before and after it; "" for none.

    head: the first HEAD bytes. Names are as the part spells them, and untrusted.
    Source: Microsoft Cabinet Format, CFHEADER.
    """
    if len(head) < 36 or head[:4] != b"MSCF":
        return "", ""
    flags, at = struct.unpack_from("<H", head, 30)[0], 36
    if flags & _HAS_RESERVE and len(head) >= 40:
        at += 4 + int(struct.unpack_from("<H", head, 36)[0])
    names = []
    for flag in (_HAS_PREVIOUS, _HAS_NEXT):
        name = b""
        if flags & flag:
            name, _, rest = head[at:].partition(b"\0")
            at = len(head) - len(rest)
            at = len(head) - len(rest.partition(b"\0")[2])  # past the disk's label
        names.append(name.decode("latin-1"))
    return names[0], names[1]


def with_parts(first: str, place: Callable[[str], Path | None], where: Where) -> Cabinet:
    """The cabinet that a file is, or begins. Where other parts lie beside it, it is the whole set.

    place: a name in the same folder, in any case → that file as one of ours, None where there is none.
    Raises what place raises; GuestError for a set without end.
    """
    found = place(first)
    parts = [found] if found else []
    missing: list[str] = []
    seen = {first.lower()}
    name = _next(found)
    while name:
        if name.lower() in seen or len(seen) >= PARTS or not _plain(name):
            raise GuestError("a cabinet names parts in a circle, too many, or outside its folder", where, name,
                             "hand in the file with --drivers DIR")
        seen.add(name.lower())
        part = place(name)
        if part is None:
            missing.append(name)
            break
        parts.append(part)
        name = _next(part)
    return Cabinet(parts, where, missing)


def begins(head: bytes, names: Sequence[str]) -> bool:
    """Is this the first part that is there? names: what lies in its folder."""
    before = neighbours(head)[0].lower()
    return not before or before not in {name.lower() for name in names}


def _next(part: Path | None) -> str:
    if part is None:
        return ""
    with part.open("rb") as file:
        return neighbours(file.read(HEAD))[1]


def _plain(name: str) -> bool:
    return not any(sign in name for sign in "/\\:") and name not in (".", "..")
