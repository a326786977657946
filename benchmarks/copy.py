"""The copy against its peers: ratios of the best and the median, over rounds that take turns.

    python -m benchmarks.copy --size 2G --rounds 5 --folder /var/tmp

The disk is a sparse raw file: a third data, a third zeroes that were written, a third holes, in runs of
64 KiB to 16 MiB. A third of the data is noise, the rest are programs and libraries of this machine, so that
packing has something to do. Source in the page cache. Each job runs twice: output into the page cache ("cached":
p2v's fsync and early writeback do nothing, peers call neither), and until durable ("durable": fsync inside
the time). p2v takes its digests in both; no peer takes any. Single runs on such machines vary threefold,
so only the ratios say anything. Beside them: the size of our image, and of the peer's.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from p2v.copy import plan_copy, run_copy
from p2v.formats import FORMATS
from p2v.source.device import open_disk

UNITS = {"K": 10, "M": 20, "G": 30}
Job = Callable[[Path, Path, bool], None]


def main() -> None:
    """Reads the command line, runs all jobs, prints the table."""
    parser = argparse.ArgumentParser(description="p2v's copy against qemu-img and cp, in one run")
    parser.add_argument("--size", default="1G", help="of the disk: a number with K, M or G")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where source and images lie; default: a temporary one")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="which; default: all")
    options = parser.parse_args()
    size = int(options.size[:-1]) << UNITS[options.size[-1].upper()]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "source.raw")
        data = make_disk(source, size)
        print(f"{size >> 20} MiB, {data >> 20} MiB of it data; {options.rounds} rounds; ratio > 1: p2v is faster")
        print(f"{'job':<24}{'peer':<28}{'best':>6}{'median':>8}   "
              "seconds best-worst (p2v, peer)   CPU (p2v, peer)   MiB (p2v, peer)")
        for durable in (False, True):
            for name in options.jobs:
                compare(name, JOBS[name], source, Path(folder), options.rounds, durable)


def make_disk(path: Path, size: int) -> int:
    """A disk with runs of data, written zeroes and holes in turn. Returns the bytes of data."""
    chance = random.Random(7)
    programs = some_programs()
    at = data = 0
    with open(path, "wb") as file:
        file.truncate(size)
        while at < size:
            kind = chance.choice("dzh")
            length = min(chance.choice((1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)), size - at)
            if kind != "h":
                os.pwrite(file.fileno(), content(chance, programs, length) if kind == "d" else bytes(length), at)
            data += length if kind == "d" else 0
            at += length
        os.fsync(file.fileno())
    return data


def some_programs() -> bytes:
    """64 MiB of what lies in /usr/bin and /usr/lib."""
    found = bytearray()
    for path in sorted(Path("/usr").glob("bin/*")) + sorted(Path("/usr/lib").glob("*/*.so*")):
        if len(found) < 64 << 20 and path.is_file() and not path.is_symlink():
            found += path.read_bytes()
    return bytes(found[: 64 << 20])


def content(chance: random.Random, programs: bytes, length: int) -> bytes:
    """A run of data: noise or programs."""
    if chance.random() < 1 / 3:
        return chance.randbytes(length)
    start = chance.randrange(max(1, len(programs) - length))
    return programs[start : start + length].ljust(length, b"x")


def p2v(name: str) -> Job:
    """Our copy into a format."""

    def job(source: Path, out: Path, durable: bool) -> None:
        with nullcontext() if durable else mock.patch.multiple(os, fsync=mock.DEFAULT, posix_fadvise=mock.DEFAULT):
            disk = open_disk(str(source))
            writer = FORMATS[name].create(str(out), disk.size)
            run_copy(disk, plan_copy(disk), writer)
            writer.finish()
            disk.close()

    return job


def program(*words: str) -> Job:
    """A peer; SRC and OUT in its words are replaced."""

    def job(source: Path, out: Path, durable: bool) -> None:
        places = {"SRC": str(source), "OUT": str(out)}
        subprocess.run([places.get(word, word) for word in words], check=True)
        if durable:
            with open(out, "rb") as file:
                os.fsync(file.fileno())

    return job


CONVERT = ("qemu-img", "convert", "-f", "raw", "-O")
JOBS: dict[str, dict[str, Job]] = {
    "raw": {
        "p2v": p2v("raw"),
        "qemu-img -W -m 8": program(*CONVERT, "raw", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "raw", "SRC", "OUT"),
        "cp --sparse=always": program("cp", "--sparse=always", "SRC", "OUT"),
    },
    "qcow2": {
        "p2v": p2v("qcow2"),
        "qemu-img -W -m 8": program(*CONVERT, "qcow2", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "qcow2", "SRC", "OUT"),
    },
    "qcow2-deflate": {
        "p2v": p2v("qcow2-deflate"),
        "qemu-img -c -W -m 8": program(*CONVERT, "qcow2", "-c", "-W", "-m", "8", "SRC", "OUT"),
    },
    "qcow2-zstd": {
        "p2v": p2v("qcow2-zstd"),
        "qemu-img -c -W -m 8": program(*CONVERT, "qcow2", "-c", "-o", "compression_type=zstd", "-W", "-m", "8",
                                       "SRC", "OUT"),
    },
    "vmdk": {
        "p2v": p2v("vmdk"),
        "qemu-img -W -m 8": program(*CONVERT, "vmdk", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "vmdk", "SRC", "OUT"),
    },
    "vmdk-stream": {
        "p2v": p2v("vmdk-stream"),
        "qemu-img": program(*CONVERT, "vmdk", "-o", "subformat=streamOptimized", "SRC", "OUT"),
    },
    "vhd": {
        "p2v": p2v("vhd"),
        "qemu-img -W -m 8": program(*CONVERT, "vpc", "-o", "force_size=on", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "vpc", "-o", "force_size=on", "SRC", "OUT"),
    },
    "vhdx": {
        "p2v": p2v("vhdx"),
        "qemu-img -W -m 8": program(*CONVERT, "vhdx", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "vhdx", "SRC", "OUT"),
    },
    "vdi": {
        "p2v": p2v("vdi"),
        "qemu-img -W -m 8": program(*CONVERT, "vdi", "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*CONVERT, "vdi", "SRC", "OUT"),
    },
}


def compare(
    name: str, peers: dict[str, Job], source: Path, folder: Path, rounds: int, durable: bool
) -> None:
    """Rounds in which each peer has its turn; one line per peer against p2v, the first one."""
    walls: dict[str, list[float]] = {peer: [] for peer in peers}
    cpus: dict[str, list[float]] = {peer: [] for peer in peers}
    sizes: dict[str, int] = {}
    chance = random.Random(1)
    order = iter(chance.random, None)
    for number in range(rounds + 1):
        for peer in sorted(peers, key=lambda _: next(order)):
            out = folder / "out"
            wall, cpu = measured(peers[peer], source, out, durable)
            sizes[peer] = out.stat().st_blocks * 512 >> 20
            out.unlink()
            if number:  # the first round only warms up
                walls[peer].append(wall)
                cpus[peer].append(cpu)
    ours, *others = peers
    for peer in others:
        best = min(walls[peer]) / min(walls[ours])
        median = statistics.median(walls[peer]) / statistics.median(walls[ours])
        print(f"{name + (', durable' if durable else ', cached'):<24}{peer:<28}{best:>6.2f}{median:>8.2f}   "
              f"{spread(walls[ours])}, {spread(walls[peer])}   {min(cpus[ours]):.2f}, {min(cpus[peer]):.2f}   "
              f"{sizes[ours]}, {sizes[peer]}",
              flush=True)


def measured(job: Job, source: Path, out: Path, durable: bool) -> tuple[float, float]:
    """Wall and CPU seconds of a job, its child processes included."""
    cpu, wall = spent(), time.perf_counter()
    job(source, out, durable)
    return time.perf_counter() - wall, spent() - cpu


def spent() -> float:
    """CPU seconds of this process and its children so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def spread(seconds: Sequence[float]) -> str:
    """Best to worst."""
    return f"{min(seconds):.2f}-{max(seconds):.2f}"


if __name__ == "__main__":
    main()
