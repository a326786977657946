"""Single files out of a CD image, through bsdtar, with bounds: the image is untrusted.

bsdtar (libarchive, BSD licence, fuzzed and kept; 0.2 MB on top of its library) reads ISO 9660 with Joliet and Rock
Ridge in a process of its own, which can be stopped; xorriso can write too, 7-Zip weighs ten times as much, and
pycdlib would parse hostile folders inside our process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2v.errors import GuestError, Where
from p2v.guest.piped import piped

LISTING_LIMIT = 16 << 20  # bytes; a Windows CD has some 7000 files, virtio-win 2000: 80 bytes each
_LINE = re.compile(r"[-h]\S{9}\s+\d+\s+\S+\s+\S+\s+(\d{1,12}) \w{3} [ \d]\d\s+[\d:]{4,5} (.+)")
_LINK = " link to "  # a file whose content another name of the image has, too
_GLOB = re.compile(r"([*?\[\]\\{}])")
SIGNATURE, SIGNATURE_AT = b"CD001", 0x8001  # of the first volume descriptor


@dataclass(frozen=True, slots=True)
class _Entry:
    size: int
    target: str


class Iso:
    """A CD image in a file of ours."""

    def __init__(self, path: Path, where: Where) -> None:
        self._path = path
        self._where = where
        self._entries: dict[str, _Entry] | None = None

    def sizes(self) -> Mapping[str, int]:
        """Path of each file, with / between folders, as the image spells it → its bytes.

        Raises GuestError for a damaged image, MissingTool.
        """
        entries = self._listing()
        return {path: entries.get(entry.target, entry).size for path, entry in entries.items()}

    def read(self, path: str, limit: int) -> bytes:
        """A file. limit: bytes. Raises GuestError for a file past the limit, or not as long as it says."""
        entry = self._listing()[path]
        target = entry.target or path
        size = self._listing().get(target, entry).size
        if size > limit:
            raise self._bad(f"{path} has {size} bytes, {limit} are allowed")
        data = self._run(["-xOf", str(self._path), "--", _GLOB.sub(r"\\\1", target)], size)
        if len(data) != size:
            raise self._bad(f"{path} should have {size} bytes and has {len(data)}")
        return data

    def _listing(self) -> dict[str, _Entry]:
        if self._entries is None:
            entries: dict[str, _Entry] = {}
            for line in self._run(["-tvf", str(self._path)], LISTING_LIMIT).decode("utf-8", "replace").splitlines():
                found = _LINE.fullmatch(line)
                if found:
                    path, _, target = found[2].partition(_LINK)
                    entries[path] = _Entry(int(found[1]), target)
            self._entries = entries
        return self._entries

    def _run(self, arguments: list[str], limit: int) -> bytes:
        data, status = piped(["bsdtar", *arguments], limit, "libarchive-tools", "a CD image was handed in")
        if len(data) > limit:
            raise self._bad(f"more than {limit} bytes came out")
        if status:
            raise self._bad(f"bsdtar ended with status {status}")
        return data

    def _bad(self, why: str) -> GuestError:
        return GuestError("a CD image cannot be read", self._where, why,
                          "copy the driver files out of it into a folder, and give that with --drivers DIR")


def is_iso(path: Path) -> bool:
    """By its first volume descriptor."""
    with path.open("rb") as file:
        file.seek(SIGNATURE_AT)
        return file.read(5) == SIGNATURE
