"""A file in parts as one source: image.001 image.002 …, image.aa image.ab … (split, dd, Clonezilla).

The first part is named; the others lie beside it. A part that is missing, or shorter than those before it,
is an error: nobody can tell afterwards where the bytes behind it belong.
"""

from __future__ import annotations

import os
import re
import stat
import string
from collections.abc import Sequence

from p2v.errors import LayoutError, PlanError, Unsupported, Where
from p2v.model import SECTOR, Source
from p2v.source.device import DiskSource
from p2v.source.linear import Linear
from p2v.source.window import Window

_NUMBER = re.compile(r"\.(\d{2,4})$")
_LETTERS = re.compile(r"\.([a-z]{2,3})$")
MOST_PARTS = 20_000
SHORTEST = 64  # bytes: a VMDK descriptor is the shortest file of an image
_ALPHABET = string.ascii_lowercase


class Joined(Linear):
    """Linear over sources of its own: it closes them.

    own: what is closed; the parts, unless they are cut out of something else.
    """

    def __init__(self, parts: Sequence[Source], name: str, own: Sequence[Source] = ()) -> None:
        super().__init__(parts, name)
        self._own = own or parts

    def close(self) -> None:
        """The parts, or what they are cut out of, are closed too."""
        super().close()
        for part in self._own:
            part.close()


def open_file(path: str) -> Source:
    """A plain file of any length, read-only. Raises PlanError, LayoutError where it is empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PlanError(f"{path} cannot be opened: {error.strerror}", path, "an image is read from here",
                        "check the spelling, and that all files of the image are there") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise PlanError(f"{path} is no file", path, "an image is read from here", "name a file")
        size = os.lseek(fd, 0, os.SEEK_END)
        if size == 0:
            raise LayoutError(f"{path} is empty", Where(path, 0), "an image begins with its header",
                              "copy it again")
        return DiskSource(fd, path, size, SECTOR, stat.S_ISBLK(mode))
    except BaseException:
        os.close(fd)
        raise


def open_whole(path: str) -> Source:
    """A file that must not be in parts, of at least a sector. Raises Unsupported, LayoutError, PlanError."""
    if len(parts_of(path)) > 1:
        raise Unsupported(f"{path} is a part of an image", Where(path),
                          "only raw disks and images of partclone and ntfsclone are read in parts",
                          f"join them: cat {inner_name(path)}.* > {inner_name(path)}")
    file = open_file(path)
    if file.size < SHORTEST:
        file.close()
        raise LayoutError(f"{path} is too short for an image", Where(path, 0, file.size), next="copy it again")
    return file


def shortened(image: Source, size: int) -> Source:
    """The first bytes of an image that is longer than its disk. Raises LayoutError where it is shorter."""
    if image.size < size:
        found = image.size
        image.close()
        raise LayoutError(f"{image.name} is shorter than it says", Where(image.name, found),
                          f"a disk of {size} bytes, of which {found} can be read", "copy the image again")
    return Joined([Window(image, 0, size)], image.name, [image])


def inner_name(path: str) -> str:
    """The name without the mark of a first part: image.img.001 is image.img, image.aa is image."""
    mark = _mark(path)
    return path[: -len(mark) - 1] if mark else path


def parts_of(path: str) -> list[str]:
    """The file itself, or all its parts, in order. Raises LayoutError where one is missing."""
    first = _mark(path)
    if not first:
        return [path]
    stem = path[: -len(first)]
    found = [path]
    following = _next(first)
    while following is not None and os.path.lexists(stem + following) and len(found) < MOST_PARTS:
        found.append(stem + following)
        following = _next(following)
    _refuse_a_gap(path, stem, first, set(found), following)
    return found


def open_parts(path: str) -> Source:
    """A file, or a file in parts: open, read-only. Raises PlanError, LayoutError."""
    paths = parts_of(path)
    if len(paths) == 1:
        return open_file(path)
    parts: list[Source] = []
    try:
        for name in paths:
            parts.append(open_file(name))
        for part in parts[1:-1]:
            _refuse_another_size(part, parts[0])
        if parts[-1].size > parts[0].size:
            _refuse_another_size(parts[-1], parts[0])
        return Joined(parts, path)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _mark(path: str) -> str:
    """What makes a name the first part's: "001", "000", "aa"; "" for any other name."""
    match = _NUMBER.search(path) or _LETTERS.search(path)
    if match is None:
        return ""
    mark = match.group(1)
    first = int(mark) <= 1 if mark.isdigit() else set(mark) == {"a"}
    return mark if first else ""


def _next(mark: str) -> str | None:
    """001 → 002, az → ba; None past the last."""
    if mark.isdigit():
        return f"{int(mark) + 1:0{len(mark)}d}"
    number = 0
    for letter in mark:
        number = number * 26 + _ALPHABET.index(letter)
    number += 1
    letters = "".join(_ALPHABET[number // 26**power % 26] for power in range(len(mark) - 1, -1, -1))
    return letters if number < 26 ** len(mark) else None


def _refuse_a_gap(path: str, stem: str, first: str, found: set[str], missing: str | None) -> None:
    folder, start = os.path.split(stem)
    like = re.compile(re.escape(start) + (rf"\d{{{len(first)}}}" if first.isdigit() else rf"[a-z]{{{len(first)}}}"))
    try:
        names = os.listdir(folder or ".")
    except OSError:
        names = []
    beyond = sorted(name for name in names if like.fullmatch(name) and os.path.join(folder, name) not in found
                    and name > os.path.basename(path))
    if beyond:
        raise LayoutError(f"a part of {path} is missing", Where(f"{stem}{missing}"),
                          f"{beyond[0]} is there, but not the part before it", "copy the missing part beside it")


def _refuse_another_size(part: Source, first: Source) -> None:
    if part.size != first.size:
        raise LayoutError(f"{part.name} is a part of another size", Where(part.name, 0, part.size),
                          f"the first part has {first.size} bytes, and only the last may be shorter",
                          "copy the part again; parts cut by hand are joined with: cat PARTS > IMAGE")
