"""One file out of a cabinet, through cabextract, with bounds: a guest's cabinet is untrusted.

Nothing is unpacked into folders, so no name in a cabinet can lead anywhere: the one member is read from a
pipe, not a byte more than the cabinet's own listing says.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from p2v.errors import GuestError, MissingTool, Where

SECONDS = 120  # a whole driver.cab of XP (70 MB) takes 3
LISTING_LIMIT = 8 << 20  # bytes; driver.cab of XP has some 3000 members, 60 bytes each
_MEMBER = re.compile(r"\s*(\d{1,12}) \| [\d.]+ [\d:]+ \| (.+)")


class Cabinet:
    """A cabinet in a file of ours. where: what the user knows it by."""

    def __init__(self, path: Path, where: Where) -> None:
        self._path = path
        self._where = where
        self._sizes: dict[str, list[int]] | None = None

    def member(self, name: str, limit: int) -> bytes | None:
        """A file of the cabinet, None where it has none of that name.

        limit: bytes. Raises GuestError for a damaged cabinet, two members of one name, or a file past
        the limit; MissingTool.
        """
        sizes = self._listing().get(name.lower(), [])
        if not sizes:
            return None
        if len(sizes) > 1 or sizes[0] > limit:
            raise self._bad(f"{name} is there {len(sizes)} times, with {max(sizes)} bytes")
        data = self._run(["-p", "-F", name], sizes[0])
        if len(data) != sizes[0]:
            raise self._bad(f"{name} should have {sizes[0]} bytes and has {len(data)} or more")
        return data

    def _listing(self) -> dict[str, list[int]]:
        if self._sizes is None:
            self._sizes = {}
            for line in self._run(["-l"], LISTING_LIMIT).decode("utf-8", "replace").splitlines():
                found = _MEMBER.fullmatch(line)
                if found:
                    self._sizes.setdefault(found[2].lower(), []).append(int(found[1]))
        return self._sizes

    def _run(self, arguments: Sequence[str], limit: int) -> bytes:
        """What cabextract prints, at most limit bytes and one more."""
        command = ["cabextract", "-q", "-s", *arguments, "--", str(self._path)]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise MissingTool("cabextract is not installed", "", "driver files lie in the guest's cabinets",
                              "apt install cabextract") from error
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            with process:
                assert process.stdout is not None
                data = process.stdout.read(limit + 1)
                if len(data) > limit:
                    process.kill()
                status = process.wait()
        finally:
            timer.cancel()
        if status and len(data) <= limit:
            raise self._bad(f"cabextract ended with status {status}")
        return data

    def _bad(self, why: str) -> GuestError:
        return GuestError("a cabinet cannot be used", self._where, why,
                          "hand in the file with --drivers DIR")
