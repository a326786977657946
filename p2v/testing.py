"""Sources to test with, and the checks that every source, format and fixer must pass.

For other people's code too: nothing here needs pytest; a failed check is an AssertionError that says
what was expected.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from p2v.errors import Finding, GuestError, P2VError, Unsupported, Where, WriteError
from p2v.guest.guest import ReadingGuest
from p2v.model import (
    SECTOR,
    BytesChange,
    Change,
    Collapsed,
    Extent,
    FileStat,
    Fixer,
    ImageFormat,
    KeyChange,
    Kind,
    Range,
    Recovery,
    Source,
    Target,
    ValueChange,
    read,
)
from p2v.source.bounds import BadSectors
from p2v.volume import find_volumes

_MOST_EDGES = 256  # edges at which check_source reads; of more, evenly chosen ones


class MemorySource:
    """Bytes as a source. extents: all DATA unless given."""

    def __init__(
        self, data: bytes | bytearray, name: str = "memory", sector_size: int = SECTOR,
        extents: Sequence[Extent] | None = None,
    ) -> None:
        self.name = name
        self.size = len(data)
        self.sector_size = sector_size
        self._data = memoryview(data)
        self._extents = extents
        self._closed = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer. Raises ValueError past the end and after close()."""
        if self._closed or offset < 0 or offset + len(buffer) > self.size:
            raise ValueError(f"{self.name}: no bytes {offset:#x} to {offset + len(buffer):#x}")
        buffer[:] = self._data[offset : offset + len(buffer)]

    def extents(self) -> Iterable[Extent]:
        """Those given, or one of DATA."""
        if self._extents is not None:
            return self._extents
        return [Extent(0, self.size, Kind.DATA)] if self.size else []

    def close(self) -> None:
        """Reading is a ValueError from now on."""
        self._closed = True


class FaultySource:
    """A source with bad spots: reading any byte of them is a ReadError that names the first.

    failed: each range that a read has run into, in order.
    """

    def __init__(self, source: Source, bad: Sequence[Range]) -> None:
        self.name = source.name
        self.size = source.size
        self.sector_size = source.sector_size
        self.bad = tuple(sorted(bad, key=lambda r: r.offset))
        self.failed: list[Range] = []
        self._source = source

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill buffer, or raise ReadError naming the part of the read that is bad."""
        end = offset + len(buffer)
        for spot in self.bad:
            start, stop = max(spot.offset, offset), min(spot.end, end)
            if start < stop:
                self.failed.append(Range(start, stop - start))
                raise BadSectors(f"{self.name}: {stop - start} bytes cannot be read",
                                 Where(self.name, start, stop - start), "a test said so", "nothing")
        self._source.read_into(offset, buffer)

    def extents(self) -> Iterable[Extent]:
        """The source's own: a medium does not know its bad spots."""
        return self._source.extents()

    def close(self) -> None:
        """Closes the source below: a faulty disk stands for that disk."""
        self._source.close()


def numbered_sectors(name: str, size: int) -> bytes:
    """A disk of size bytes whose every sector says whose it is and which, so that a wrong one names itself."""
    sectors = (f"{name} sector {number:#x} ".encode() for number in range(-(-size // SECTOR)))
    return b"".join((text * (SECTOR // len(text) + 1))[:SECTOR] for text in sectors)[:size]


def check_source(source: Source, expected: bytes, edges: Sequence[int] = ()) -> None:
    """Does a source keep the contract of model.Source, with these bytes?

    edges: offsets where its parts meet, besides those that its extents show. Leaves it open.
    Raises AssertionError.
    """
    _expect(isinstance(source, Source), "is no Source")
    _expect(bool(source.name), "has no name")
    _expect(source.size == len(expected), f"has {source.size} bytes, expected {len(expected)}")
    _expect(source.sector_size in (512, 4096), f"has sectors of {source.sector_size} bytes")
    shown = list(source.extents())
    _check_extents(shown, expected)
    every = sorted({0, 512, 4096, len(expected) // 2, len(expected), *edges,
                    *(e.offset for e in shown), *(e.end for e in shown)})
    chosen = every[:: -(-len(every) // _MOST_EDGES)]
    reads = [(max(edge - before, 0), min(edge + after, len(expected)))
             for edge in chosen for before, after in ((1, 0), (0, 1), (1, 1), (513, 700), (0, 0))
             if edge <= len(expected)]
    reads += [(first, last) for first, last in zip(chosen, chosen[3:], strict=False) if last <= len(expected)]
    reads += [(max(len(expected) - 1000, 0), len(expected)), (0, len(expected))]
    _check_reads(source, expected, reads)
    _check_outside(source)
    _check_threads(source, expected, reads)


def _check_extents(shown: Sequence[Extent], expected: bytes) -> None:
    at = 0
    for extent in shown:
        _expect(extent.offset == at, f"begins an extent at {extent.offset:#x}, expected {at:#x}")
        at = extent.end
        if extent.kind is Kind.ZERO:
            _expect(not expected[extent.offset : at].strip(b"\0"),
                    f"calls bytes {extent.offset:#x} to {at:#x} ZERO, and they are not")
    _expect(at == len(expected), f"the extents end at {at:#x}, expected {len(expected):#x}")


def _check_reads(source: Source, expected: bytes, reads: Iterable[tuple[int, int]]) -> None:
    for start, end in reads:
        guarded = bytearray(b"\xa5" * (end - start + 2))  # a byte each side shows a write outside
        source.read_into(start, memoryview(guarded)[1 : end - start + 1])
        _expect(guarded[1:-1] == expected[start:end], f"gives wrong bytes from {start:#x} to {end:#x}")
        _expect(guarded[0] == guarded[-1] == 0xA5, f"writes outside the buffer, reading {start:#x} to {end:#x}")


def _check_outside(source: Source) -> None:
    for offset, length in ((source.size, 1), (max(source.size - 1, 0), 2), (-1, 1), (source.size + 1, 0)):
        try:
            read(source, offset, length)
        except ValueError:
            continue
        _expect(False, f"lets {length} bytes at {offset:#x} be read, outside its {source.size} bytes")


def _check_threads(source: Source, expected: bytes, reads: Sequence[tuple[int, int]]) -> None:
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(_check_reads, source, expected, mine) for mine in (reads, reads[::-1])]:
            done.result()


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        named = otherwise.startswith(("the ", "a "))
        raise AssertionError(otherwise if named else f"the source {otherwise}")


def check_format(form: ImageFormat, folder: Path) -> None:
    """Does an output format keep the contract of model.ImageFormat and ImageWriter?

    folder: an empty one to write into. Reads back through the format's own read(), which for a good
    reason is no code of the writer's. Raises AssertionError.
    """
    _expect(bool(form.NAME) and form.SUFFIX.startswith("."), "the format lacks a name or a suffix with a dot")
    _expect(form.LIMIT > 0, "the format's LIMIT is no size")
    for size in (SECTOR, (1 << 20) - SECTOR, (3 << 20) + 7 * SECTOR):
        _check_ascending(form, folder / f"{size}{form.SUFFIX}", size)
    _check_refusals(form, folder)
    _check_abort(form, folder / f"abort{form.SUFFIX}")
    if not form.SEQUENTIAL:
        _check_any_order(form, folder, random.Random(1))
        _check_reopen(form, folder / f"reopen{form.SUFFIX}")


def check_image(form: ImageFormat, path: Path, expected: bytes) -> None:
    """Is the image at path finished, and does it hold these bytes? Raises AssertionError."""
    _expect(path.is_file() and not _part(path).exists(), f"the image {path} is not finished")
    _expect(form.probe(MemorySource(path.read_bytes())), f"the format does not know its own {path}")
    source = form.read(str(path))
    try:
        _expect(source.size >= len(expected), f"the image {path} has only {source.size} bytes")
        found = read(source, 0, source.size)
    finally:
        source.close()
    if not found.startswith(expected):
        wrong = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
        _expect(False, f"the image {path} differs at byte {wrong:#x}")
    _expect(not found[len(expected) :].strip(b"\0"), f"the image {path} has more than zeroes past the disk's end")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _check_ascending(form: ImageFormat, path: Path, size: int) -> None:
    """As a copy writes: ascending, whole 64 KiB but for the end, each byte written or zeroed."""
    content = bytearray(size)
    writer = form.create(str(path), size)
    _expect(not path.exists(), f"the image {path} exists before finish()")
    for number, at in enumerate(range(0, size, 1 << 16)):
        length = min(1 << 16, size - at)
        if number % 3 == 1:
            writer.zero(at, length)
            continue
        content[at : at + length] = bytes([number % 255 + 1]) * length
        writer.write_at(at, memoryview(content)[at : at + length])
    writer.finish()
    writer.abort()  # too late: does nothing
    check_image(form, path, bytes(content))


def _check_refusals(form: ImageFormat, folder: Path) -> None:
    """Nothing is overwritten, nothing is written outside, no disk beyond LIMIT is begun."""
    done, begun = folder / f"there{form.SUFFIX}", folder / f"begun{form.SUFFIX}"
    for path, there in ((done, done), (begun, _part(begun))):
        there.write_bytes(b"precious")
        _fails(P2VError, partial(form.create, str(path), SECTOR), f"{there} existed")
        _expect(there.read_bytes() == b"precious", f"the file {there} was overwritten")
        there.unlink()
        _expect(not path.exists() and not _part(path).exists(), f"the refusal left something at {path}")
    _fails(Unsupported, lambda: form.create(str(done), form.LIMIT + SECTOR), "the disk is past LIMIT")
    _fails(WriteError, lambda: form.create(str(folder / "none" / "x"), SECTOR), "there is no such folder")
    writer = form.create(str(done), 1 << 20)
    for offset, length in (((1 << 20) - 1, 2), (-1, 1), (1 << 20, 1)):
        data = memoryview(bytes(length))
        _fails(ValueError, partial(writer.write_at, offset, data), "it is outside the disk")
        _fails(ValueError, partial(writer.zero, offset, length), "it is outside the disk")
    writer.abort()


def _check_abort(form: ImageFormat, path: Path) -> None:
    before = set(path.parent.iterdir())
    writer = form.create(str(path), 2 << 20)
    writer.write_at(0, memoryview(b"x" * (1 << 20)))
    writer.abort()
    writer.abort()
    _expect(set(path.parent.iterdir()) == before, f"the abort() left {set(path.parent.iterdir()) - before}")


def _check_any_order(form: ImageFormat, folder: Path, chance: random.Random) -> None:
    """Any offset, any length, over and over; the last one counts."""
    size = (5 << 20) + 3 * SECTOR
    for case in range(3):
        path = folder / f"order{case}{form.SUFFIX}"
        content = bytearray(size)
        writer = form.create(str(path), size)
        for _ in range(40):
            at = chance.randrange(size)
            length = min(chance.choice((1, SECTOR, 70_000, 1 << 20)), size - at)
            if chance.random() < 0.3:
                content[at : at + length] = bytes(length)
                writer.zero(at, length)
            else:
                data = chance.randbytes(length)
                content[at : at + length] = data
                writer.write_at(at, memoryview(data))
        writer.finish()
        check_image(form, path, bytes(content))


def _check_reopen(form: ImageFormat, path: Path) -> None:
    """What a checkpoint covers stays; what came after it may be written again, or be lost."""
    size = 4 << 20
    content = bytearray(b"one" * (size // 3 + 1))[:size]
    writer = form.create(str(path), size)
    writer.write_at(1 << 20, memoryview(content)[1 << 20 : 2 << 20])
    state = writer.checkpoint()
    writer.write_at(2 << 20, memoryview(b"lost" * (1 << 18)))  # not covered: this writer is never seen again
    del writer
    _expect(_part(path).exists() and not path.exists(), "the unfinished image is no OUT.part")
    writer = form.reopen(str(path), state)
    content[2 << 20 : 3 << 20] = bytes(1 << 20)
    writer.write_at(0, memoryview(content)[: 1 << 20])
    writer.zero(2 << 20, 1 << 20)
    writer.write_at(3 << 20, memoryview(content)[3 << 20 :])
    writer.finish()
    check_image(form, path, bytes(content))
    _fails(P2VError, lambda: form.reopen(str(path) + "-other", b"no state"), "this is no checkpoint")


def _fails(error: type[Exception], call: Callable[[], object], why: str) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error.__name__}, though {why}")


# ---------------------------------------------------------------------------------------------
# Guests


class DirFiles:
    """A folder of this machine as a volume's files, to read and to write; names as Windows compares them.

    It stands for a mounted tree, and for a whole server in tests. No path leads out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str) -> bytes:
        """A whole file. Raises GuestError."""
        found = self._find(path)
        if found is None or not found.is_file():
            raise GuestError("there is no such file", Where(str(self._folder), item=path), next="put it there")
        return found.read_bytes()

    def stat(self, path: str) -> FileStat | None:
        """None where there is nothing."""
        found = self._find(path)
        return None if found is None else FileStat(found.stat().st_size, found.is_dir())

    def list(self, path: str) -> Sequence[str]:
        """The names in a folder."""
        found = self._find(path)
        return sorted(one.name for one in found.iterdir()) if found and found.is_dir() else ()

    def write(self, path: str, data: bytes, like: str | None = None) -> None:
        """Replace or make a file. Raises GuestError."""
        parent, _, name = path.rpartition("\\")
        folder = self._find(parent)
        if folder is None or not folder.is_dir() or (like and self._find(like) is None):
            raise GuestError("there is no such folder or neighbour", Where(str(self._folder), item=path),
                             next="put it there")
        (self._find(path) or folder / name).write_bytes(data)

    def remove(self, path: str) -> None:
        """Remove a file. Raises GuestError where there is none."""
        found = self._find(path)
        if found is None or not found.is_file():
            raise GuestError("there is no such file", Where(str(self._folder), item=path), next="put it there")
        found.unlink()

    def _find(self, path: str) -> Path | None:
        here = self._folder
        for part in path.replace("/", "\\").split("\\"):
            if not part or not here.is_dir():
                if part:
                    return None
                continue
            found = [one for one in here.iterdir() if one.name.lower() == part.lower()]
            if not found or found[0].is_symlink():
                return None
            here = found[0]
        return here


class DirGuest(ReadingGuest):
    """A guest made of folders: both doors, without any appliance.

    folders: by volume name ("disk0p1"), in the order of their partitions; the first is active. disks: bytes
    by id with real tables; without them the volumes lie on a made-up disk0 that nothing can boot from.
    collapsed: what the disks were put together from.
    Raises what ReadingGuest raises.
    """

    def __init__(self, folders: Mapping[str, Path], disks: Mapping[str, bytearray] | None = None,
                 drivers: Sequence[str] = (), collapsed: Collapsed | None = None) -> None:
        self._folders = dict(folders)
        self._bytes = disks if disks is not None else {"disk0": _table(len(folders))}
        sources = {name: MemorySource(data, name) for name, data in self._bytes.items()}
        layout = find_volumes(sources)
        volumes = {volume.name: volume for volume in layout.volumes}
        if set(self._folders) - set(volumes):
            raise ValueError(f"the disks hold {sorted(volumes)}, the folders are for {sorted(self._folders)}")
        super().__init__(sources, layout.partitions, volumes, self.writable, drivers, collapsed)

    def again(self) -> DirGuest:
        """The same folders and disks, seen afresh."""
        return DirGuest(self._folders, self._bytes, self.drivers, self.collapsed)

    def writable(self, volume: str) -> DirFiles:
        """A volume's files. Raises GuestError for a volume without a folder."""
        if volume not in self._folders:
            raise GuestError("this volume has no folder", Where(volume), next="give one to DirGuest")
        return DirFiles(self._folders[volume])

    def apply(self, changes: Sequence[Change]) -> int:
        """Make what is pending of the changes, as a run does. Returns how many that were.

        Raises DriftError before the first write.
        """
        from p2v import changes as changing

        todo = changing.pending(changes, self)
        for change in todo:
            if isinstance(change, BytesChange):
                self._bytes[change.disk][change.offset : change.offset + len(change.after)] = change.after
        changing.perform(todo, self.facts.hives, self)
        return len(todo)

    def sync(self) -> None:
        """Nothing is held back."""


def _table(count: int) -> bytearray:
    """A small disk with an MBR of count primaries, the first active; no boot code."""
    disk = bytearray((63 + 32 * count) * SECTOR)
    for number in range(count):
        entry = struct.pack("<B3sB3sII", 0x80 * (number == 0), b"\0\0\0", 7, b"\0\0\0", 63 + 32 * number, 32)
        disk[0x1BE + 16 * number : 0x1CE + 16 * number] = entry
    disk[0x1B8:0x1BC], disk[510:512] = b"p2v!", b"\x55\xaa"
    return disk


def check_fixer(fixer: Fixer, guest: DirGuest, target: Target) -> list[Change | Finding]:
    """Does a fixer keep the contract of model.Fixer with this guest? Returns what it yields.

    The guest is edited and brought back. Raises AssertionError.
    """
    from p2v import changes as changing

    _expect(bool(fixer.NAME), "the fixer has no NAME")
    wishes = list(fixer.plan(guest, target))
    _expect(wishes == list(fixer.plan(guest, target)), "the fixer's second plan differs from its first")
    changes = [wish for wish in wishes if not isinstance(wish, Finding)]
    places = [change.place for change in changes]
    _expect(len(set(places)) == len(places), "the fixer changes one place twice")
    made: set[tuple[str, str]] = set()
    for change in changes:
        _check_change(change, guest, made)
    for finding in (wish for wish in wishes if isinstance(wish, Finding)):
        _expect(bool(finding.what and finding.why and finding.next),
                f"the finding {finding.what!r} does not answer what, why and next")
    guest.apply(changes)
    left = [wish for wish in fixer.plan(guest.again(), target) if not isinstance(wish, Finding)]
    _expect(not left, f"the fixer wants more after its own changes: {left[:1]}")
    guest.again().apply(changing.inverses(changes))
    fresh = guest.again()
    for change in changes:
        if not isinstance(change, Recovery):
            _expect(fresh.look(change) == change.before, f"the change of {change.place} cannot be undone")
    return wishes


def _check_change(change: Change, guest: DirGuest, made: set[tuple[str, str]]) -> None:
    _expect(bool(change.why), f"the change of {change.place} has no why")
    if isinstance(change, Recovery):
        return
    _expect(change.before != change.after, f"the change of {change.place} changes nothing")
    _expect(guest.look(change) == change.before, f"the change of {change.place} has another before")
    if isinstance(change, KeyChange):
        parent = change.key.rpartition("\\")[0]
        _expect(guest.hive(change.hive).has(parent) or (change.hive, parent.lower()) in made,
                f"the key {change.key} is made before its parent")
        made.add((change.hive, change.key.lower()))
    if isinstance(change, ValueChange):
        _expect(guest.hive(change.hive).has(change.key) or (change.hive, change.key.lower()) in made,
                f"a value is set in {change.key} before that key is made")
