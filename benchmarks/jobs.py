"""What is measured: p2v and its peers, the disk that they copy, and what the comparison should come to."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from p2v.copy import plan_copy, run_copy
from p2v.filesystem import examine
from p2v.formats import FORMATS
from p2v.model import Extent, Range, Source
from p2v.source.device import open_disk
from p2v.volume import find_volumes

Run = Callable[[Path, Path, bool], None]  # source, output, until durable

DIRECT = "-t none"  # past the page cache: of use until durable only
DEVICE_RATE = 200 << 20  # bytes a second of the slow device


@dataclass(frozen=True, slots=True)
class Job:
    """disk: a field of benchmarks.disks.Disks. ours: how p2v does it.

    peers: how others do, by their name. wanted: by a part of a peer's name, the ratio that p2v is meant to
    reach against the fastest of the peers so named. wanted_size: our image by theirs, at most.
    """

    disk: str
    ours: Run
    peers: Mapping[str, Run]
    wanted: Mapping[str, float] = field(default_factory=dict)
    wanted_size: float | None = None


def p2v(name: str, free: Callable[[Source], Iterable[Range]] = lambda _: ()) -> Run:
    """Our copy into a format; digests always. free: says what nobody needs, inside the time."""

    def run(source: Path, out: Path, durable: bool) -> None:
        with until(durable):
            disk = open_disk(str(source))
            copy(disk, plan_copy(disk, list(free(disk))), name, out)
            disk.close()

    return run


def copy(disk: Source, extents: list[Extent], name: str, out: Path) -> None:
    """A copy into an image."""
    writer = FORMATS[name].create(str(out), disk.size)
    run_copy(disk, extents, writer)
    writer.finish()


def until(durable: bool) -> AbstractContextManager[object]:
    """Into the page cache only: p2v's fsync and early writeback do nothing, as a peer calls neither."""
    return nullcontext() if durable else mock.patch.multiple(os, fsync=mock.DEFAULT, posix_fadvise=mock.DEFAULT)


def spared(disk: Source) -> list[Range]:
    """What no volume of a disk needs: free clusters, the content of page files."""
    ranges = []
    for volume in find_volumes({"disk0": disk}).volumes:
        found, start = examine(volume.source), volume.members[0].offset
        ranges += [Range(start + r.offset, r.length) for r in (*found.free, *found.droppable)]
    return ranges


def free_clusters(volume: Source) -> Iterable[Range]:
    """Free clusters of a volume: exactly what partclone and ntfsclone leave out."""
    return examine(volume).free


def program(*words: str) -> Run:
    """A peer; SRC and OUT in its words are replaced."""

    def run(source: Path, out: Path, durable: bool) -> None:
        places = {"SRC": str(source), "OUT": str(out)}
        subprocess.run([places.get(word, word) for word in words], check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if durable:
            with open(out, "rb") as file:
                os.fsync(file.fileno())

    return run


class Device:
    """A disk that takes its time: DEVICE_RATE and not a byte more, one read after the other."""

    def __init__(self, source: Source) -> None:
        self.name, self.size, self.sector_size = source.name, source.size, source.sector_size
        self.extents, self.close = source.extents, source.close
        self._source = source
        self._lock = threading.Lock()
        self._free_at = 0.0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The read is over when a device of this speed would have it."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + len(buffer) / DEVICE_RATE
            end = self._free_at
        self._source.read_into(offset, buffer)
        time.sleep(max(0.0, end - time.monotonic()))


def from_device(name: str) -> Run:
    """Our copy of everything from a slow device."""

    def run(source: Path, out: Path, durable: bool) -> None:
        with until(durable):
            disk = Device(open_disk(str(source)))
            copy(disk, plan_copy(disk), name, out)
            disk.close()

    return run


def the_throttle(source: Path, out: Path, _durable: bool) -> None:
    """What the device itself needs for the same bytes."""
    disk = open_disk(str(source))
    time.sleep(sum(e.length for e in plan_copy(disk) if e.kind.value == "data") / DEVICE_RATE)
    disk.close()
    out.touch()


def qemu_img(kind: str, *options: str) -> dict[str, Run]:
    """qemu-img's ways into a format: as it is, and with its best flags."""
    words = ("qemu-img", "convert", "-f", "raw", "-O", kind, *options)
    return {
        "qemu-img -W -m 8": program(*words, "-W", "-m", "8", "SRC", "OUT"),
        "qemu-img": program(*words, "SRC", "OUT"),
        f"qemu-img -W {DIRECT}": program(*words, "-W", "-m", "8", "-t", "none", "SRC", "OUT"),
    }


# format of ours → qemu-img's words for it
PLAIN = {
    "raw": ("raw",),
    "qcow2": ("qcow2",),
    "vhdx": ("vhdx",),
    "vdi": ("vdi",),
    "vmdk": ("vmdk",),
    "vhd": ("vpc", "-o", "force_size=on"),
}


def jobs() -> dict[str, Job]:
    """All jobs by name, in the order of the table."""
    from benchmarks import twolegs  # made of what is here

    found = {"raw": Job("server", p2v("raw"), {
        **qemu_img("raw"),
        "nbdcopy": program("nbdcopy", "SRC", "OUT"),
        "cp --sparse=always": program("cp", "--sparse=always", "SRC", "OUT"),
    }, {"qemu-img": 1.0, "nbdcopy": 1.0, "cp": 0.9})}
    for name, words in PLAIN.items():
        if name != "raw":
            found[name] = Job("server", p2v(name), qemu_img(*words), {"qemu-img": 1.0})
    for name in ("raw", "qcow2"):
        found[f"{name}, runs"] = Job("synthetic", p2v(name), qemu_img(*PLAIN[name]), {"qemu-img": 1.0})
    for name, words in PLAIN.items():
        found[f"{name}, used"] = Job("server", p2v(name, spared), qemu_img(*words), {"qemu-img": 2.0})
    for name in ("raw", "qcow2"):
        found[f"{name}, used, no holes"] = Job("solid", p2v(name, spared), qemu_img(*PLAIN[name]), {"qemu-img": 2.0})
    return found | packed() | twolegs.jobs() | {
        "NTFS volume": Job("volume", p2v("raw", free_clusters), {
            "partclone -a0": program("partclone.ntfs", "-c", "-a0", "-q", "-F", "-L", os.devnull, "-s", "SRC",
                                     "-O", "OUT"),
            "ntfsclone": program("ntfsclone", "-q", "-s", "-O", "OUT", "SRC"),
        }, {"partclone": 1.5, "ntfsclone": 1.5}),
        "device, raw": Job("synthetic", from_device("raw"), {"the throttle": the_throttle}, {"throttle": 0.97}),
        "device, vmdk-stream": Job("synthetic", from_device("vmdk-stream"), {"the throttle": the_throttle},
                                   {"throttle": 0.97}),
    }


def packed() -> dict[str, Job]:
    """Into images that are compressed; slow, because of the peers."""
    qcow2 = ("qcow2", "-c", "-o")
    return {
        "vmdk-stream": Job("server", p2v("vmdk-stream"),
                           {"qemu-img": qemu_img("vmdk", "-o", "subformat=streamOptimized")["qemu-img"]},
                           {"qemu-img": 8.0}, 1.08),
        "qcow2-deflate": Job("server", p2v("qcow2-deflate"), only_best(*qcow2, "compression_type=zlib"),
                             {"qemu-img": 4.0}),
        "qcow2-zstd": Job("server", p2v("qcow2-zstd"), only_best(*qcow2, "compression_type=zstd"), {"qemu-img": 1.5}),
    }


def only_best(kind: str, *options: str) -> dict[str, Run]:
    """qemu-img with its best flags alone."""
    return {name: run for name, run in qemu_img(kind, *options).items() if "-m" in name}
