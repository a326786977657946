"""The copy against its peers: ratios of the medians and the best, over rounds that take turns.

    python -m benchmarks.copy --size quick
    python -m benchmarks.copy --size 8G --rounds 9 --folder /var/tmp --json speed.json --plot speed.svg

Source in the page cache. Each job runs twice: output into the page cache ("cached"), and until durable (fsync
inside the time). p2v takes its digests in both; no peer takes any. Single runs on such machines vary threefold,
so only the ratios say anything. p2v runs inside this process: what starting Python costs is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import extremes, plots, twolegs
from benchmarks.disks import MIB, make_all, room
from benchmarks.jobs import jobs
from benchmarks.rounds import Row, compare

QUICK = "512M"
UNITS = {"M": 20, "G": 30}
FIGURES, LINES, RESCUE = "memory and start", "lines", "two-leg rescue"  # what is measured besides the jobs
HEAD = (f"{'job':<22}{'until':<9}{'peer':<20}{'ratio':>6}{'best':>6}{'spread':>13}{'wanted':>8}   "
        f"{'seconds (ours, theirs)':<24}{'CPU s':<14}{'MiB':<12}")


def main() -> None:
    """Reads the command line, measures, prints as it goes, writes what was asked for."""
    options = arguments()
    size = QUICK if options.size == "quick" else options.size.upper()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, total = Path(name), int(size[:-1]) << UNITS[size[-1]]
        if room(folder) < 7 * total:
            raise SystemExit(f"{folder} needs {7 * total / MIB:.0f} MiB of free space for disks of {size}")
        print(f"{machine()}; disks of {size}, {options.rounds} rounds; ratio > 1: p2v is faster")
        rows = measure(folder, total, options)
        more = extremes.rows(folder) if FIGURES in options.jobs else []
        more += twolegs.rescue() if RESCUE in options.jobs else []
        lines = extremes.lines(folder, total // 2) if LINES in options.jobs else []
    print("\n".join([*(figure.text() for figure in more), *(line.text() for line in lines)]))
    if options.json:
        report(options.json, size, rows, more, lines)
    if options.plot:
        options.plot.write_text(plots.draw(rows, lines))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="p2v's copy against qemu-img, nbdcopy, cp, partclone and ntfsclone")
    parser.add_argument("--size", default="quick", help=f"of the disks: quick ({QUICK}), or a number with M or G")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where disks and images lie; default: a temporary one")
    names = [*jobs(), FIGURES, LINES, RESCUE]
    parser.add_argument("--jobs", nargs="+", choices=names, default=names, help="which; default: all")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--plot", type=Path, help="a file for the plot, an SVG")
    return parser.parse_args()


def measure(folder: Path, size: int, options: argparse.Namespace) -> list[Row]:
    """The jobs asked for, cached and durable."""
    chosen = {name: job for name, job in jobs().items() if name in options.jobs}
    if not chosen:
        return []
    disks = make_all(folder, size)
    print(HEAD)
    rows = []
    for name, job in chosen.items():
        for durable in (False, True):
            found = compare(name, job, getattr(disks, job.disk), folder, options.rounds, durable)
            print("\n".join(map(text, found)), flush=True)
            rows += found
    return rows


def text(row: Row) -> str:
    """A line of the table."""
    wanted = "" if row.wanted is None else f"{row.wanted:.2f}{'' if row.met else '!'}"
    return (f"{row.job:<22}{'durable' if row.durable else 'cached':<9}{row.peer:<20}{row.ratio:>6.2f}{row.best:>6.2f}"
            f"{f'{row.spread[0]:.2f}-{row.spread[1]:.2f}':>13}{wanted:>8}   "
            f"{f'{row.ours.median:.2f}, {row.theirs.median:.2f}':<24}{f'{row.ours.cpu:.2f}, {row.theirs.cpu:.2f}':<14}"
            f"{row.ours.mib:.0f}, {row.theirs.mib:.0f}")


def machine() -> str:
    """What it was measured on, and how busy that was."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    return f"{os.cpu_count()} cores {model}, Linux {platform.release()}, load {load}, {time.strftime('%Y-%m-%d')}"


def report(path: Path, size: str, rows: list[Row], more: list[extremes.Figure], lines: list[extremes.Line]) -> None:
    """Everything as JSON."""
    content: dict[str, Any] = {
        "machine": machine(), "size": size, "jobs": [row.to_json() for row in rows],
        "figures": [figure.to_json() for figure in more], "lines": [line.to_json() for line in lines],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
