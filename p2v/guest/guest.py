"""The reading door to a guest: its disks' bytes, its volumes' files, its hives.

Everything is opened when it is first asked for, through libfsntfs/libfsfat and python-registry over any
Source: no root, no appliance, and no line of code shared with the writing door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from p2v.errors import Finding, GuestError, P2VError, Where
from p2v.guest import facts as recognise
from p2v.model import (
    BytesChange,
    Change,
    Collapsed,
    Content,
    FileChange,
    Filesystem,
    GuestFacts,
    GuestFiles,
    HiveTree,
    KeyChange,
    Partition,
    Source,
    Value,
    ValueChange,
    Volume,
    read,
)
from p2v.registry.reader import open_hive
from p2v.registry.regf import Recovered, recover
from p2v.volume import Layout

HIVE_LIMIT = 256 << 20  # bytes; the loader of 2003 takes 200 MB


class ReadingGuest:
    """A model.Guest. open_files(name) opens a volume; it is called once for each.

    findings: what was noticed while the system was recognised.
    Raises Unsupported where no Windows NT 4 or 5.x is found, GuestError where it is damaged.
    """

    def __init__(self, disks: Mapping[str, Source], partitions: Sequence[Partition],
                 volumes: Mapping[str, Volume], open_files: Callable[[str], GuestFiles],
                 drivers: Sequence[str] = (), collapsed: Collapsed | None = None) -> None:
        self.collapsed = collapsed
        self.disks = disks
        self.partitions = tuple(partitions)
        self.volumes = volumes
        self.drivers = tuple(drivers)
        self._open_files = open_files
        self._files: dict[str, GuestFiles] = {}
        self._trees: dict[str, HiveTree] = {}
        self._recovered: dict[str, Recovered] = {}
        found = recognise.find_system(self)
        self._places = found.hives
        self.facts: GuestFacts = recognise.describe(self, found, self.hive("SYSTEM"), self.hive("SOFTWARE"))
        self.findings: tuple[Finding, ...] = (*found.findings, *recognise.doubts(self.facts))

    def files(self, volume: str) -> GuestFiles:
        """A volume's files. Raises GuestError where its filesystem cannot be read."""
        if volume not in self._files:
            self._files[volume] = self._open_files(volume)
        return self._files[volume]

    def recovered(self, name: str) -> Recovered:
        """A hive's bytes with its log replayed where it was dirty; says whether that was so.

        Raises GuestError where there is none or it is damaged.
        """
        if name not in self._recovered:
            data, log = self.hive_files(name)
            self._recovered[name] = recover(data, log, name)
        return self._recovered[name]

    def hive_files(self, name: str) -> tuple[bytes, bytes | None]:
        """A hive and its log as they lie on the disk. Raises GuestError where there is none, or it is too large."""
        place = self._places.get(name)
        if place is None:
            raise GuestError(f"this guest has no hive {name}", Where(item=name), "it is not looked for",
                             "report this: a fixer asked for it")
        files = self.files(place.volume)
        stat, log = files.stat(place.path), files.stat(place.path + ".LOG")
        if stat is None or stat.is_folder or max(stat.size, log.size if log else 0) > HIVE_LIMIT:
            raise GuestError(
                f"the registry hive {name} is missing or no hive", Where(place.volume, item=place.path),
                "Windows keeps its configuration there and does not start without",
                "restore the file from a backup or system32\\config\\repair, then try again")
        return files.read(place.path), files.read(place.path + ".LOG") if log and not log.is_folder else None

    def hive(self, name: str) -> HiveTree:
        """A hive, its log replayed where it was dirty. Raises GuestError where there is none."""
        if name not in self._trees:
            self._trees[name] = open_hive(self.recovered(name).data, name)
        return self._trees[name]

    def read_bytes(self, disk: str, offset: int, length: int) -> bytes:
        """Raw bytes of a disk."""
        return read(self.disks[disk], offset, length)

    def look(self, change: Change) -> Value | Content | bytes | bool | None:
        """What is at a change's place now. For a hive's Recovery: is there something to replay?

        None for a journal's Recovery: that is judged on the volume, not on its files.
        """
        if isinstance(change, ValueChange):
            return self.hive(change.hive).value(change.key, change.value)
        if isinstance(change, KeyChange):
            return self.hive(change.hive).has(change.key)
        if isinstance(change, FileChange):
            return file_content(self.files(change.volume), change.path)
        if isinstance(change, BytesChange):
            return self.read_bytes(change.disk, change.offset, len(change.before))
        return self.recovered(change.hive).replayed if change.hive else None


def file_content(files: GuestFiles, path: str) -> Content | None:
    """A file's content, None where there is none."""
    stat = files.stat(path)
    return None if stat is None or stat.is_folder else Content(files.read(path))


def open_guest(disks: Mapping[str, Source], layout: Layout, filesystems: Mapping[str, Filesystem],
               drivers: Sequence[str] = (), collapsed: Collapsed | None = None) -> ReadingGuest:
    """The reading door to the Windows on these disks (by id, in BIOS order).

    filesystems: by Volume.name. collapsed: what the disks were put together from, while the guest's settings
    still name that. Raises Unsupported when no guest is known, GuestError when it is damaged.
    """
    from p2v.filesystem import open_files

    volumes = {volume.name: volume for volume in layout.volumes}

    def open_volume(name: str) -> GuestFiles:
        filesystem = filesystems.get(name)
        if name not in volumes or filesystem is None or not filesystem.kind:
            raise GuestError("this volume holds no filesystem that can be read", Where(name),
                             "its files cannot be looked at", "leave it as it is: it is copied whole")
        try:
            return open_files(volumes[name].source, filesystem)
        except P2VError as error:
            if isinstance(error, GuestError):
                raise
            raise GuestError(f"the filesystem cannot be opened: {error.what}", error.where, error.why,
                             error.next) from error

    return ReadingGuest(disks, layout.partitions, volumes, open_volume, drivers, collapsed)
