"""Two legs of a mirror: compared beside a copy, read together, and one's holes filled from the other.

Both legs are the same file here, each behind a device of its own speed; so a disk that is not waiting is seen.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from pathlib import Path

from benchmarks.disks import MIB
from benchmarks.extremes import Figure
from benchmarks.jobs import Device, Job, from_device, the_throttle, until
from p2v.coarse import Coarse
from p2v.comparing import compare
from p2v.copy import plan_copy, run_copy
from p2v.errors import ReadError, Where
from p2v.extents import union, without
from p2v.filling import Pair, fill
from p2v.formats import FORMATS
from p2v.mapfile import Mapfile, Status
from p2v.model import Range, Source
from p2v.source.device import DiskSource, open_disk
from p2v.source.mirrored import Mirrored
from p2v.twolegs import Beside

ONE = "one leg"
RESCUED = 64 * MIB  # bytes of the disk that is rescued
PLACES = 40  # where each leg is bad


def jobs() -> dict[str, Job]:
    """For the table of copies."""
    alone = {ONE: from_device("raw")}
    return {
        "twin beside": Job("solid", beside, alone, {ONE: 1 / 1.1}),
        "legs share": Job("solid", shared, alone, {ONE: 1.7}),
        "legs compared": Job("solid", compared, {"the throttle": the_throttle}, {"throttle": 1 / 1.1}),
    }


def beside(source: Path, out: Path, durable: bool) -> None:
    """A copy of one leg, compared with the other on the way."""
    with until(durable):
        primary, twin = legs(source)
        extents = plan_copy(primary)
        writer = FORMATS["raw"].create(str(out), primary.size)
        with Beside(twin, extents) as other:
            report = run_copy(primary, extents, writer)
            found = other.compare(report, primary)
        writer.finish()
        assert found.equal, "the legs are one file"


def shared(source: Path, out: Path, durable: bool) -> None:
    """A copy of both legs, each giving a half."""
    with until(durable):
        mirror = Mirrored(legs(source), "mirror", size=source.stat().st_size, in_step=True, shared=True)
        writer = FORMATS["raw"].create(str(out), mirror.size)
        run_copy(mirror, plan_copy(mirror), writer)
        writer.finish()
        mirror.close()


def compared(source: Path, out: Path, _durable: bool) -> None:
    """Both legs, compared byte by byte."""
    assert compare(legs(source)).equal, "the legs are one file"
    out.touch()


def legs(source: Path) -> tuple[Source, Source]:
    """Two devices with the same content."""
    return Device(open_disk(str(source))), Device(open_disk(str(source)))


# ---------------------------------------------------------------------------------------------
# Rescue


class Failing:
    """A disk that fails in places, and counts its reads."""

    def __init__(self, disk: DiskSource, bad: list[Range]) -> None:
        self.name, self.size, self.sector_size = disk.name, disk.size, disk.sector_size
        self.extents, self.close = disk.extents, disk.close
        self._disk, self._bad = disk, bad
        self.reads = self.failed = 0

    def attempt(self, offset: int, buffer: memoryview, direct: bool = True) -> int:
        """As a device does: nothing of a read that touches a bad sector."""
        self.reads += 1
        if any(part.offset < offset + len(buffer) and offset < part.end for part in self._bad):
            self.failed += 1
            return 0
        return self._disk.attempt(offset, buffer, direct)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """All of it, or an error."""
        if self.attempt(offset, buffer, False) < len(buffer):
            raise ReadError("bad", Where(self.name, offset, len(buffer)), "the benchmark said so", "nothing")


def rescue() -> list[Figure]:
    """What two legs give that are bad in different places, and what ddrescue gets of one of them."""
    bad = bad_places(1)
    other = without(bad_places(2), bad)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "disk").write_bytes(random.Random(3).randbytes(RESCUED))
        disk = open_disk(str(folder / "disk"))
        assert isinstance(disk, DiskSource)
        one, two = Failing(disk, bad), Failing(disk, other)
        lost = two_legs(one, two, folder)
        disk.close()
        theirs = ddrescue(folder, bad)
    everything = sum(part.length for part in bad)
    return [
        Figure("two-leg rescue, bytes lost", lost, f"of {everything} that one leg cannot read", 0),
        Figure("two-leg rescue, reads of both legs", one.reads + two.reads, f"({two.reads} of the other leg); "
               f"ddrescue of one leg: {theirs[0]}", theirs[0]),
        Figure("two-leg rescue, reads that failed", one.failed + two.failed, f"({two.failed} of the other leg); "
               f"ddrescue of one leg: {theirs[1]}", theirs[1]),
    ]


def bad_places(seed: int) -> list[Range]:
    """Single sectors and short runs."""
    chance = random.Random(seed)
    return union(Range(chance.randrange(RESCUED // 1024) * 512, chance.choice((1, 2, 8, 300)) * 512)
                 for _ in range(PLACES))


def two_legs(one: Failing, two: Failing, folder: Path) -> int:
    """A copy of one leg that leaves bad places at once, filled from the other. Returns the bytes that stay lost."""
    extents = plan_copy(one)
    writer = FORMATS["raw"].create(str(folder / "image"), one.size)
    report = run_copy(Coarse(one), extents, writer)
    pair = Pair(one, two, ("one", "two"), True, coarse=True)
    filling = fill(report, extents, writer, FORMATS["raw"], pair)
    writer.finish()
    assert (folder / "image").read_bytes() == (folder / "disk").read_bytes() or filling.report.bad
    return filling.report.counts["bad"]


def ddrescue(folder: Path, bad: list[Range]) -> tuple[int, int]:
    """GNU ddrescue's reads of one leg, in its own simulation: all, and those that failed."""
    poor = Mapfile(RESCUED)
    poor.set(0, RESCUED, Status.FINISHED)
    for part in bad:
        poor.set(part.offset, part.length, Status.BAD)
    (folder / "poor").write_text(poor.to_text())
    subprocess.run(["ddrescue", "-q", "-H", "poor", "--log-reads=log", "disk", "theirs", "map"], cwd=folder, check=True)
    reads = [line.split() for line in (folder / "log").read_text().splitlines() if line and line[0] != "#"]
    return len(reads), sum(words[3] != "0" for words in reads)
