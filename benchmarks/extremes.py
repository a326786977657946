"""The ends of the scale: memory on a huge disk, cost of a tiny one, and how cost grows in between."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.disks import MIB
from benchmarks.jobs import copy, until
from p2v.copy import plan_copy
from p2v.model import Range
from p2v.source.device import open_disk

HUGE = 2047 << 30  # bytes: what a VMDK holds, a GiB short of 2 TiB
SPOTS = 4096  # of 64 KiB each, all over the huge disk
ROUNDS = 5
STEP = 4 * MIB  # of which a share is used

# what a child process does: a copy into a format
COPY = """
import sys
from p2v.copy import plan_copy, run_copy
from p2v.formats import FORMATS
from p2v.source.device import open_disk
disk = open_disk(sys.argv[1])
writer = FORMATS[sys.argv[2]].create(sys.argv[3], disk.size)
run_copy(disk, plan_copy(disk), writer)
writer.finish()
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number. limit: what it should not exceed."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    def text(self) -> str:
        """A line for the screen."""
        limit = "" if self.limit is None else f", at most {self.limit:.0f}{'' if self.value <= self.limit else '!'}"
        return f"{self.name}: {self.value:.2f} {self.unit}{limit}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Line:
    """Median seconds over something, and how well a straight line fits: R², 1 where all points lie on it."""

    name: str
    axis: str
    points: tuple[tuple[float, float], ...]

    @property
    def fit(self) -> tuple[float, float]:
        """Slope and intercept of the least squares."""
        xs, ys = zip(*self.points, strict=True)
        found = statistics.linear_regression(xs, ys)
        return found.slope, found.intercept

    @property
    def straight(self) -> float:
        """R²."""
        xs, ys = zip(*self.points, strict=True)
        return statistics.correlation(xs, ys) ** 2

    def text(self) -> str:
        """A line for the screen."""
        points = ", ".join(f"{x:g}: {y:.3f} s" for x, y in self.points)
        return f"{self.name} over {self.axis}: {points}; straight to R² {self.straight:.3f}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"straight": self.straight}


def rows(folder: Path) -> list[Figure]:
    """Memory and start."""
    return [*memory(folder), *start(folder)]


def memory(folder: Path) -> list[Figure]:
    """Peak resident memory of a process that copies a huge sparse disk with something everywhere."""
    source = folder / "huge.raw"
    with open(source, "wb") as file:
        file.truncate(HUGE)
        for number in range(SPOTS):
            os.pwrite(file.fileno(), os.urandom(64 << 10), number * (HUGE // SPOTS))
    found = []
    for name in ("qcow2", "vmdk"):
        out = folder / "huge.out"
        child = subprocess.Popen([sys.executable, "-c", COPY, str(source), name, str(out)])
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, "the copy of the huge disk")
        out.unlink()
        found.append(Figure(f"peak memory, 2047 GiB sparse into {name}", usage.ru_maxrss / 1024, "MiB", 200))
    source.unlink()
    return found


def start(folder: Path) -> list[Figure]:
    """A disk of 1 MiB, Python's start included, against Python's start."""
    source, out = folder / "tiny.raw", folder / "tiny.out"
    source.write_bytes(os.urandom(MIB))
    times: dict[str, list[float]] = {"pass": [], "copy": []}
    for _ in range(ROUNDS + 1):
        for what, words in (("pass", ["pass"]), ("copy", [COPY, str(source), "raw", str(out)])):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", *words], check=True)
            times[what].append(time.perf_counter() - begun)
            out.unlink(missing_ok=True)
    return [Figure(name, 1000 * statistics.median(times[what][1:]), "ms")
            for name, what in (("python -c pass", "pass"), ("a process that copies a disk of 1 MiB", "copy"))]


def lines(folder: Path, size: int) -> list[Line]:
    """Cost over size, all of it data, and over the used share of a disk of the largest size."""
    sizes = [size * eighths // 8 // MIB * MIB for eighths in (1, 2, 4, 6, 8)]
    source = folder / "line.raw"
    noise = os.urandom(8 * MIB)
    with open(source, "wb") as file:
        for _ in range(0, size, len(noise)):
            file.write(noise)
        os.fsync(file.fileno())
    found = []
    for name in ("raw", "qcow2"):
        over_size = [(_size(source, each, name, folder), each) for each in reversed(sizes)]
        found.append(Line(name, "MiB", tuple((each / MIB, seconds) for seconds, each in reversed(over_size))))
        with open(source, "r+b") as file:
            file.truncate(0)
            for _ in range(0, size, len(noise)):
                file.write(noise)
            os.fsync(file.fileno())
        shares = (10, 25, 50, 75, 100)
        found.append(Line(name, "% used", tuple((share, _share(source, share, name, folder)) for share in shares)))
    source.unlink()
    return found


def _size(source: Path, size: int, name: str, folder: Path) -> float:
    """Seconds for the first size bytes of the disk, which is cut off behind them."""
    os.truncate(source, size)
    return _median(lambda out: _copy(source, 100, name, out), folder)


def _share(source: Path, share: int, name: str, folder: Path) -> float:
    """Seconds when a share of every STEP is used."""
    return _median(lambda out: _copy(source, share, name, out), folder)


def _copy(source: Path, share: int, name: str, out: Path) -> None:
    disk = open_disk(str(source))
    used = STEP * share // 100 // 4096 * 4096
    free = [Range(at + used, min(STEP, disk.size - at) - used) for at in range(0, disk.size, STEP)
            if used < min(STEP, disk.size - at)]
    with until(durable=False):
        copy(disk, plan_copy(disk, free), name, out)
    disk.close()


def _median(run: Callable[[Path], None], folder: Path) -> float:
    out, seconds = folder / "line.out", []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run(out)
        seconds.append(time.perf_counter() - begun)
        out.unlink()
    return statistics.median(seconds)
