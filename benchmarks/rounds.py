"""Rounds in which p2v and its peers take turns, and what comes of them: ratios, spread, CPU, sizes."""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.disks import MIB
from benchmarks.jobs import DIRECT, Job, Run

OURS = "p2v"


@dataclass(frozen=True, slots=True)
class Times:
    """Wall seconds of all rounds: best, median, worst. CPU seconds, median. mib: of the image on the disk."""

    best: float
    median: float
    worst: float
    cpu: float
    mib: float


@dataclass(frozen=True, slots=True)
class Row:
    """p2v against one peer. ratio: of the medians; above 1, p2v is faster. best: of the best rounds.

    spread: of the ratios of the single rounds, lowest and highest. wanted: the ratio to reach; only the fastest
    of the peers that it is about has it.
    """

    job: str
    disk: str
    durable: bool
    peer: str
    ratio: float
    best: float
    spread: tuple[float, float]
    ours: Times
    theirs: Times
    wanted: float | None = None
    wanted_size: float | None = None

    @property
    def met(self) -> bool | None:
        """Is what is wanted reached? None: nothing is."""
        if self.wanted is None:
            return None
        small = self.wanted_size is None or self.ours.mib <= self.theirs.mib * self.wanted_size
        return self.ratio >= self.wanted and small

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"met": self.met}


def compare(name: str, job: Job, source: Path, folder: Path, rounds: int, durable: bool) -> list[Row]:
    """A row for each peer, the fastest first."""
    peers = {who: run for who, run in job.peers.items() if durable or DIRECT not in who}
    runs: dict[str, Run] = {OURS: job.ours, **peers}
    walls: dict[str, list[float]] = {who: [] for who in runs}
    cpus: dict[str, list[float]] = {who: [] for who in runs}
    sizes: dict[str, float] = {}
    for number, who in turns(list(runs), rounds):
        out = folder / "out"
        wall, cpu = measured(runs[who], source, out, durable)
        sizes[who] = out.stat().st_blocks * 512 / MIB
        out.unlink()
        if number:  # the first round only warms up
            walls[who].append(wall)
            cpus[who].append(cpu)
    times = {who: Times(min(walls[who]), statistics.median(walls[who]), max(walls[who]),
                        statistics.median(cpus[who]), sizes[who]) for who in runs}
    ranked = sorted(peers, key=lambda who: times[who].median)
    wanted = goals(job, ranked)
    return [_row(name, job, durable, who, walls, times, wanted.get(who)) for who in ranked]


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, who), in another order each round; round 0 comes on top."""
    chance = random.Random(1)
    for number in range(rounds + 1):
        chance.shuffle(names)
        for name in names:
            yield number, name


def goals(job: Job, ranked: Sequence[str]) -> dict[str, float]:
    """What is wanted against whom: of several with one goal the fastest."""
    found: dict[str, float] = {}
    taken: set[float] = set()
    for peer in ranked:
        goal = next((ratio for part, ratio in job.wanted.items() if peer.startswith((part, f"the {part}"))), None)
        if goal is not None and goal not in taken:
            found[peer] = goal
            taken.add(goal)
    return found


def _row(name: str, job: Job, durable: bool, who: str, walls: dict[str, list[float]], times: dict[str, Times],
         wanted: float | None) -> Row:
    single = [theirs / ours for theirs, ours in zip(walls[who], walls[OURS], strict=True)]
    ours, theirs = times[OURS], times[who]
    return Row(name, job.disk, durable, who, theirs.median / ours.median, theirs.best / ours.best,
               (min(single), max(single)), ours, theirs, wanted, job.wanted_size)


def measured(run: Run, source: Path, out: Path, durable: bool) -> tuple[float, float]:
    """Wall and CPU seconds of a run, its child processes included."""
    cpu, wall = spent(), time.perf_counter()
    run(source, out, durable)
    return time.perf_counter() - wall, spent() - cpu


def spent() -> float:
    """CPU seconds of this process and its children so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
