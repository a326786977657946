"""The writing door: libguestfs with its own small Linux and ntfs-3g. Nothing else imports guestfs.

One appliance start per run: journals first, with nothing mounted, then files, then sync. Raw bytes go into
the overlay before (stage.py).
What was written is believed after sync() or close() alone: both unmount, flush, and read the appliance's
kernel log, because a write that the disk lost later is told nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import string
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any

from p2v.errors import GuestError, MissingTool, Unsupported, Where, WriteError
from p2v.guest.mounted import Calls, MountedFiles
from p2v.model import SECTOR, Member, Volume

_NTFS = "NTFS    "  # OEM name in a boot sector
_INSTALL = "apt-get install --no-install-recommends python3-guestfs linux-image-cloud-amd64"
# norecover: ntfs-3g's default throws an unreplayed journal away; with it, such a volume comes read-only.
_NTFS_OPTIONS = "norecover,noatime,windows_names"
# winnt: "atapi.sys" stays one 8.3 entry with NT's lower-case flags, as NT itself would store it.
_FAT_OPTIONS = "shortname=winnt,utf8,noatime"
_NOT_A_JOURNAL = "The log file has been wiped out"
FULL = 1 << 20  # bytes free or less: a growing overlay has met the end


class Appliance:
    """Disks of a guest, opened for writing, while the with block lasts. What changes.perform() needs.

    disks: (id, path, format) of overlays or images. volumes: by name, as the reading door found them.
    backend: "kvm", or "tcg" where KVM is missing or fails; "" before the start.
    Entering raises MissingTool without libguestfs or a kernel for it, GuestError where it does not start.
    """

    def __init__(self, disks: Sequence[tuple[str, str, str]], volumes: Mapping[str, Volume]) -> None:
        if not disks:
            raise ValueError("an appliance needs a disk")
        self.backend = ""
        self._disks = tuple(disks)
        self._labels = {disk: _label(number) for number, (disk, _, _) in enumerate(self._disks)}
        self._volumes = dict(volumes)
        self._handle: Any = None
        self._files: dict[str, MountedFiles] = {}
        self._devices: dict[str, str] = {}
        self._mounted: set[str] = set()

    def __enter__(self) -> Appliance:
        self._handle = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except GuestError as second:  # the first error is the one to act on
            error.add_note(f"and then, while the appliance was shut down: {second}")

    def recover_journal(self, volume: str) -> str:
        """Replay what Windows left in a volume's journal: ntfsrecover, before anything is mounted.

        Returns what it said: "" for a clean volume. A journal that an earlier ntfs-3g mount has wiped
        has nothing left to replay and is no error, so that a run may come here again.
        Raises GuestError where it fails, refuses, or the volume has no journal.
        Tried on a volume of Windows 2003 whose restart pages said "in use": it plays the actions back,
        sets the clean flag, and ntfsresize -i finds nothing wrong.
        """
        where = Where(volume, item="$LogFile")
        if self._mounted:
            raise GuestError(f"a journal would be replayed while {', '.join(sorted(self._mounted))} is mounted",
                             where, "what is mounted is edited already",
                             "this is a bug in p2v: journals come before files")
        device = self._device(volume)
        if not self._is_ntfs(device, where):
            raise GuestError(f"{volume} has no journal", where, "it is no NTFS volume", "make a new plan")
        said = self._calls.shell("run ntfsrecover", where, f"ntfsrecover {device} 2>&1; echo status $?")
        text, _, status = said.strip().rpartition("status ")
        self._flush(where)
        if status != "0" and _NOT_A_JOURNAL not in text:
            raise GuestError(
                f"the journal of {volume} cannot be replayed", where, f"ntfsrecover: {text.strip()[-1000:]}",
                "start the old server once more and shut it down cleanly, or run chkdsk /f there")
        return text.strip()

    # -- files

    def writable(self, volume: str) -> MountedFiles:
        """A volume's files, to write; mounted now. Raises GuestError where that is refused."""
        self._mount(volume)
        return self._files[volume]

    def sync(self) -> None:
        """All that was written is on the medium when this returns; volumes are mounted again when used.

        Raises GuestError when a write was lost on its way.
        """
        where = Where(", ".join(self._labels))
        self._calls("unmount the volumes", where, "umount_all")
        self._mounted.clear()
        self._flush(where)

    def close(self) -> None:
        """Unmount, flush and shut down, in order; safe to call twice. Raises GuestError when that fails."""
        if self._handle is None:
            return
        try:
            self.sync()
            self._calls("shut down in order", Where(), "shutdown")
        finally:
            self._handle.close()
            self._handle = None

    # -- inside

    @property
    def _calls(self) -> Calls:
        if self._handle is None:
            raise ValueError("the appliance is not running")
        return Calls(self._handle)

    def _start(self) -> Any:
        """A running handle: KVM first, TCG where that fails. It happens that /dev/kvm opens and qemu dies."""
        binding, said = _binding(), ""
        # Without access to KVM libguestfs would print advice of its own, chmod 0666 among it.
        for force_tcg in (False, True) if os.access("/dev/kvm", os.R_OK | os.W_OK) else (True,):
            with contextlib.ExitStack() as undo:
                handle = binding.GuestFS(python_return_dict=True)
                undo.callback(handle.close)
                forced = self._configure(handle, force_tcg)
                try:
                    handle.launch()
                except RuntimeError as error:
                    said = f"{'TCG' if forced else 'KVM'}: {_first_lines(error)}"
                    if forced:
                        break
                    continue
                self.backend = "tcg" if forced else _accelerator(Calls(handle))
                undo.pop_all()
                return handle
        if "supermin" in said:
            raise MissingTool("libguestfs cannot build its appliance", "supermin", said, _INSTALL)
        raise GuestError("the libguestfs appliance does not start", "libguestfs", said,
                         "run libguestfs-test-tool: its last lines say what is missing on this machine")

    def _configure(self, handle: Any, force_tcg: bool) -> bool:
        """Everything before launch. Returns whether TCG is forced, by us or by the environment."""
        settings = list(handle.get_backend_settings())
        if force_tcg and "force_tcg" not in settings:
            settings.append("force_tcg")
        calls = Calls(handle)
        calls("choose its backend", Where(), "set_backend", "direct")
        handle.set_backend_settings(settings)
        handle.set_pgroup(True)  # Ctrl-C must not kill it: it is shut down in order
        handle.set_network(False)
        # No event callback for progress: the binding swallows a Ctrl-C that arrives in one (seen).
        for number, (disk, path, format) in enumerate(self._disks):
            calls("open the disk", Where(disk, item=path), "add_drive", path, format=format,
                  label=self._labels[disk], cachemode="writeback")
            # qemu's default stops the machine on a full host disk, and every call would wait for ever.
            calls("set up the disk", Where(disk), "config", "-set", f"drive.hd{number}.werror=report")
        return "force_tcg" in settings

    def _disk_device(self, disk: str) -> str:
        if disk not in self._labels:
            raise ValueError(f"the appliance has no disk {disk}")
        return f"/dev/disk/guestfs/{self._labels[disk]}"

    def _flush(self, where: Where) -> None:
        """To the medium, and told if a write was lost on its way."""
        self._calls("write everything to the disk", where, "sync")
        lost = self._calls.shell("read its kernel log", where,
                                 "dmesg | grep -E 'WRITE|lost (async|sync)? ?page write' | tail -n 5; true")
        if lost.strip():
            self._refuse_full(where)
            raise GuestError("the appliance lost a write", where, lost.strip(),
                             "look for a full or failing disk under the run's folder, then start the run again")

    def _refuse_full(self, where: Where) -> None:
        """Raises WriteError when the overlays' own filesystem is full: that is why writes are lost."""
        for _, path, _ in self._disks:
            if os.path.exists(path) and shutil.disk_usage(path).free < FULL:
                raise WriteError("no space is left for the overlay that holds the edits", where,
                                 f"{path} could not grow", "free space there, then run the same command again")

    def _device(self, volume: str) -> str:
        """The block device of a volume: a loop device over its bytes of the disk.

        Not Linux's own partition: that one is missing where a sector near the table is bad (tried), where
        Linux reads the table otherwise, and for a moment after each write to the disk. Direct I/O: the
        loop reads no sector outside the volume.
        """
        if volume not in self._devices:
            member = self._member(volume)
            self._devices[volume] = self._calls.shell(
                "reach the volume", Where(volume),
                f"losetup -f --show --direct-io=on -o {member.offset} --sizelimit {member.length} "
                f"{self._disk_device(member.disk)}").strip()
        return self._devices[volume]

    def _member(self, name: str) -> Member:
        volume = self._volumes.get(name)
        if volume is None:
            raise GuestError(f"the guest has no volume {name}", name, "", "make a new plan")
        if len(volume.members) != 1:
            raise Unsupported(f"{name} lies on {len(volume.members)} disks", name,
                              f"a {volume.layout} volume cannot be edited yet", "leave its changes out")
        return volume.members[0]

    def _is_ntfs(self, device: str, where: Where) -> bool:
        said = self._calls.shell(
            "read the boot sector", where,
            f"set -e -o pipefail; dd if={device} bs={SECTOR} count=1 iflag=direct status=none | tail -c +4 | head -c 8")
        return said == _NTFS

    def _mount(self, volume: str) -> None:
        if volume in self._mounted:
            return
        where, device = Where(volume), self._device(volume)
        ntfs = self._is_ntfs(device, where)
        if volume not in self._files:
            root = f"/v{len(self._files)}"
            self._calls("make a mount point", where, "mkmountpoint", root)
            version = self._ntfs_version(device, where) if ntfs else None
            self._files[volume] = MountedFiles(
                volume, root, version, lambda: self._calls, lambda: self._mount(volume))
        root = self._files[volume].root
        options, kind = (_NTFS_OPTIONS, "ntfs-3g") if ntfs else (_FAT_OPTIONS, "vfat")
        self._calls("mount the volume", where, "mount_vfs", options, kind, device, root)
        self._mounted.add(volume)
        self._must_be_writable(volume, root)

    def _must_be_writable(self, volume: str, root: str) -> None:
        """ntfs-3g mounts what is unclean or hibernated read-only, and calls that a success."""
        where = Where(volume)
        options = self._calls.shell("look at the mount", where, f"grep ' /sysroot{root} ' /proc/mounts").split()[3]
        if "rw" not in options.split(","):
            self._mounted.discard(volume)
            self._calls("unmount the volume", where, "umount", root)
            raise GuestError(
                f"{volume} can only be mounted read-only", where,
                "its journal is not replayed, Windows is hibernated on it, or the filesystem is damaged",
                "start the old server once more and shut it down cleanly (no hibernation), then plan again")

    def _ntfs_version(self, device: str, where: Where) -> tuple[int, int]:
        """(1, 2) of NT 4, (3, 0) of 2000, (3, 1) later."""
        said = self._calls.shell("read the NTFS version", where, f"ntfsinfo -f -m {device} 2>&1")
        found = re.search(r"Volume Version:\s*(\d+)\.(\d+)", said)
        if not found:
            raise GuestError("ntfsinfo does not say which NTFS this is", where, said.strip()[-500:],
                             "run chkdsk /f on the old server")
        return int(found[1]), int(found[2])


def _binding() -> ModuleType:
    try:
        import guestfs
    except ImportError as error:
        raise MissingTool("libguestfs's Python binding is not installed", "python3-guestfs",
                          "guests are edited through it",
                          f"{_INSTALL}; a virtual environment needs --system-site-packages") from error
    module: ModuleType = guestfs
    return module


def _label(number: int) -> str:
    """A drive label: letters only, because partitions get their number behind it. 0 → "dska", 26 → "dskba"."""
    letters = ""
    while True:
        number, letter = divmod(number, 26)
        letters = string.ascii_lowercase[letter] + letters
        if not number:
            return "dsk" + letters


def _accelerator(calls: Calls) -> str:
    """What the appliance itself runs on: libguestfs takes TCG silently where there is no /dev/kvm."""
    said = calls.shell("ask for its machine", Where(), "systemd-detect-virt; true")
    return "kvm" if said.strip() == "kvm" else "tcg"


def _first_lines(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:400]
