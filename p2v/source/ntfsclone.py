"""A special image of ntfsclone, version 10: an NTFS volume's used clusters, read by us because qemu cannot.

Head | for each cluster the byte 1 and the cluster, or the byte 0 and how many unused ones follow. There is no
map, so the file is read through once when it is opened, as ntfsclone itself does; there are no checksums.
Since 10.1 the last bytes past the last whole cluster (the backup boot sector) end it as one more cluster.
Older versions are of the byte order of their machine, and not read.
Source: ntfs-3g's ntfsclone.c; images of ntfsclone 2022.10.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import construct as c
import numpy as np

from p2v.binary import parse
from p2v.errors import LayoutError, Unsupported, Where
from p2v.model import SECTOR, Source, read
from p2v.source.blockimage import BlockImage, BlockIndex
from p2v.source.split import open_parts

MAGIC = b"\0ntfsclone-image"
LARGEST = 64 << 40  # bytes of a volume
MOST_BITMAP = 1 << 30  # bytes
STEP = 8 << 20  # bytes read at once while the file is indexed
GAP_BYTES = 9
GAP, NEXT = 0, 1

LAYOUT = c.Struct(
    "magic" / c.Const(MAGIC),
    "major" / c.Int8ul,
    "minor" / c.Int8ul,
    "cluster_size" / c.Int32ul,
    "device_size" / c.Int64ul,
    "nr_clusters" / c.Int64sl,
    "inuse" / c.Int64ul,
    "offset_to_image_data" / c.Int32ul,
)


@dataclass(frozen=True, slots=True)
class Head:
    """A head that holds together."""

    major: int
    minor: int
    cluster_size: int
    device_size: int
    nr_clusters: int
    inuse: int
    offset_to_image_data: int

    def __post_init__(self) -> None:
        size = self.cluster_size
        checks = {
            "cluster size": SECTOR <= size <= 2 << 20 and size & (size - 1) == 0,
            "device size": 0 < self.device_size <= LARGEST and self.device_size % SECTOR == 0,
            "clusters": 0 < self.nr_clusters <= 8 * MOST_BITMAP and
            self.device_size - self.nr_clusters * size >= 0,
            "clusters in use": self.inuse <= self.nr_clusters,
            # $Bitmap is in use itself, with a bit for each cluster: so no small image has a large volume
            "clusters in use, for the volume's own bitmap": 8 * self.inuse * size >= self.nr_clusters,
            "offset of the data": LAYOUT.sizeof() <= self.offset_to_image_data <= 4096,
        }
        wrong = [what for what, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"its fields contradict each other: {', '.join(wrong)}")

    @property
    def whole_clusters(self) -> int:
        """With the short one for the backup boot sector, where there is room for one."""
        return self.nr_clusters + (self.rest > 0)

    @property
    def rest(self) -> int:
        """Bytes of the short cluster."""
        return min(self.device_size - self.nr_clusters * self.cluster_size, self.cluster_size)


def open_ntfsclone(path: str) -> Source:
    """The volume in an image, also one in parts (.aa, .ab …). Raises LayoutError, Unsupported, PlanError."""
    file = open_parts(path)
    try:
        if read(file, 0, min(16, file.size)) != MAGIC:
            raise LayoutError(f"{path} is no image of ntfsclone", Where(path, 0, 16),
                              next="name its format with --source-format")
        if file.size > 17 and read(file, 16, 1)[0] != 10:
            raise Unsupported("an image of an ntfsclone of another age", Where(path, 16, 2),
                              "its numbers are in the byte order of the machine that made it",
                              "restore it: ntfsclone -r -O partition.img IMAGE, then give partition.img")
        head = parse(LAYOUT, file, 0, Head, "the head of the ntfsclone image")
        need = head.offset_to_image_data + head.inuse * (head.cluster_size + 1)
        if file.size < need:
            raise LayoutError(f"{path} is cut off", Where(path, file.size, need - file.size),
                              f"its head counts {head.inuse} clusters", "copy it again, and all its parts")
        clusters = _Clusters(file, head)
        return BlockImage(file, head.device_size, head.cluster_size, clusters.index, clusters)
    except BaseException:
        file.close()
        raise


class _Clusters:
    """Where each used cluster lies: behind as many clusters and gaps as come before it."""

    def __init__(self, file: Source, head: Head) -> None:
        self._file, self._head = file, head
        self._unit = head.cluster_size + 1
        self.index = self._indexed()
        self._begins_used = self.index.rank(1) if self.index.count else 0

    def load(self, block: int, offset: int, view: memoryview) -> None:
        """Fill view out of the clusters of one run, without the byte before each."""
        size, done = self._head.cluster_size, 0
        place = self._place(block)
        while done < len(view):
            length = min(STEP // self._unit * self._unit, -(-(offset + len(view) - done) // size) * self._unit)
            raw = bytearray(length)
            there = min(length, self._file.size - place)  # the last cluster may be short
            self._file.read_into(place, memoryview(raw)[:there])
            clusters = np.frombuffer(raw, np.uint8).reshape(-1, self._unit)[:, 1:]
            data = clusters.tobytes()[offset : offset + len(view) - done]
            view[done : done + len(data)] = data
            done, place, offset = done + len(data), place + length, 0

    def _place(self, block: int) -> int:
        gaps = self.index.runs_before(block + 1) - self._begins_used
        return self._head.offset_to_image_data + self.index.rank(block) * self._unit + gaps * GAP_BYTES

    def _indexed(self) -> BlockIndex:
        """Read all the commands. Raises LayoutError where they do not make the volume."""
        head = self._head
        used = np.zeros(-(-(head.nr_clusters + 1) // 8), np.uint8)
        at, cluster, after_gap = head.offset_to_image_data, 0, False
        while at < self._file.size:
            count = self._clusters_at(at)
            if cluster + count > head.whole_clusters:
                raise self._wrong(at, "there are more clusters than the volume has")
            if count:
                _set(used, cluster, cluster + count)
                cluster, at, after_gap = cluster + count, at + count * self._unit, False
                continue
            if after_gap:
                raise self._wrong(at, "a gap follows a gap")
            cluster, at, after_gap = cluster + self._gap_at(at, cluster), at + GAP_BYTES, True
        short = head.cluster_size - head.rest if cluster > head.nr_clusters and not after_gap else 0
        index = BlockIndex(used, head.nr_clusters + 1 if head.rest else head.nr_clusters)
        if cluster < head.nr_clusters or at != self._file.size + short:
            raise self._wrong(self._file.size, f"the image ends at cluster {cluster} of {head.nr_clusters}")
        if index.total - (index.rank(index.count) - index.rank(min(head.nr_clusters, index.count))) != head.inuse:
            raise self._wrong(at, f"it has {index.total} clusters, the head says {head.inuse}")
        return index

    def _clusters_at(self, at: int) -> int:
        """How many clusters follow one another from byte at on, as far as one read shows."""
        unit = self._unit
        length = min(max(STEP // unit, 1) * unit, self._file.size - at)
        raw = np.frombuffer(read(self._file, at, 1 if length < unit else length), np.uint8)
        others = np.flatnonzero(raw[::unit] != NEXT)
        return int(others[0]) if len(others) else -(-length // unit)

    def _gap_at(self, at: int, cluster: int) -> int:
        if at + GAP_BYTES > self._file.size or read(self._file, at, 1)[0] != GAP:
            raise self._wrong(at, "here is neither a cluster nor a gap")
        count = int.from_bytes(read(self._file, at + 1, 8), "little", signed=True)
        if not 0 < count <= self._head.whole_clusters - cluster:
            raise self._wrong(at, f"a gap of {count} clusters")
        return count

    def _wrong(self, offset: int, what: str) -> LayoutError:
        return LayoutError(f"the ntfsclone image is damaged: {what}", Where(self._file.name, offset),
                           "what follows cannot be put in its place", "copy it again, and all its parts")


def _set(bits: np.ndarray[tuple[int], np.dtype[np.uint8]], first: int, end: int) -> None:
    """Set the bits first to end, lowest first."""
    low, high = -(-first // 8), end // 8
    if low > high:
        bits[first // 8] |= (1 << end % 8) - (1 << first % 8)
        return
    bits[low:high] = 0xFF
    if first % 8:
        bits[first // 8] |= 0xFF & -(1 << first % 8)
    if end % 8:
        bits[high] |= (1 << end % 8) - 1
