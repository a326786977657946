"""Is a block device in use? Mounted, swap, or held by md or dm: read from tables of /proc and /sys.

Everything goes by major:minor, so that every name of a disk (/dev/disk/by-id/…) finds the same answer.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2v.errors import PlanError

NumberOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo. device: "8:1". source: what was mounted, as the kernel names it.

    writable: of the filesystem, not of this mount: it writes though one of its mounts is read-only.
    """

    device: str
    source: str
    point: str
    writable: bool


def parse_mounts(text: str) -> Iterator[Mount]:
    """The mounts of a mountinfo table; lines that are none are left out.

    Source: proc(5): id parent major:minor root point options [optional …] - type source super-options.
    """
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if separator and len(left) >= 6 and len(right) >= 3:
            yield Mount(left[2], _unescape(right[1]), _unescape(left[4]), "rw" in right[2].split(","))


def parse_swaps(text: str) -> list[str]:
    """The paths in a /proc/swaps table: its first column, below a line of headings."""
    return [_unescape(line.split()[0]) for line in text.splitlines()[1:] if line.strip()]


def device_number(path: str) -> str | None:
    """A block device's "major:minor"; None for anything else."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def family(device: str, sys: Path) -> dict[str, Path]:
    """A device and its partitions: "8:0" → its folder in /sys, itself first."""
    home = (sys / "dev" / "block" / device).resolve()
    found = {device: home}
    for child in sorted(home.iterdir()):
        if (child / "partition").is_file():
            found[(child / "dev").read_text().strip()] = child
    return found


def whole(device: str, sys: Path = Path("/sys")) -> str:
    """The disk that a partition belongs to: "8:1" → "8:0"; any other device itself. Raises OSError."""
    home = (sys / "dev" / "block" / device).resolve()
    return (home.parent / "dev").read_text().strip() if (home / "partition").is_file() else device


def users(device: str, *, proc: Path, sys: Path, number_of: NumberOf = device_number) -> list[str]:
    """Who uses a block device or a partition of it such that its bytes may change: one line each.

    device: "major:minor". A filesystem mounted read-only does not count. Raises OSError where a table
    cannot be read.
    """
    names = {number: home.name for number, home in family(device, sys).items()}
    found = []
    for mount in parse_mounts(_text(proc / "self" / "mountinfo")):
        # btrfs and others mount under a number of their own: there the source's path tells
        numbers = {mount.device, number_of(mount.source) if mount.source.startswith("/") else None}
        found += [f"{names[n]} is mounted read-write on {mount.point}"
                  for n in numbers if mount.writable and n in names]
    for path in parse_swaps(_text(proc / "swaps")):
        number = number_of(path)
        if number in names:
            found.append(f"{names[number]} is swap")
    for home in family(device, sys).values():
        found += [f"{home.name} is held by {holder.name}" for holder in sorted(home.glob("holders/*"))]
    return found


def check_unused(
    name: str, device: str, *, proc: Path = Path("/proc"), sys: Path = Path("/sys"),
    number_of: NumberOf = device_number,
) -> None:
    """Raises PlanError when a block device is in use, or when nobody can tell. device: "major:minor"."""
    try:
        found = users(device, proc=proc, sys=sys, number_of=number_of)
    except OSError as error:
        raise PlanError(f"{name}: cannot tell whether this disk is in use", name,
                        f"reading {error.filename} failed: {error.strerror}",
                        "run p2v where /proc and /sys are mounted") from error
    if found:
        raise PlanError(f"{name} is in use: {found[0]}", name,
                        "; ".join([*found[1:5], "its bytes may change while they are copied, and the image "
                                               "would be none of the states the disk ever had"]),
                        "unmount it, swapoff it, or stop the array or mapping; the disk that a system runs "
                        "from is best read from a rescue system")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
