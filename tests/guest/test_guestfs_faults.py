"""The writing door when libguestfs fails: a stand-in for its binding, so no appliance is started."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from p2v.errors import GuestError, MissingTool, Unsupported, Where
from p2v.guest.guestfs import Appliance, _label
from p2v.guest.mounted import Calls, MountedFiles
from p2v.model import Member, Volume
from p2v.testing import MemorySource

DISKS = [("disk0", "/edits/disk0.qcow2", "qcow2")]
VOLUMES = {"disk0p1": Volume("disk0p1", MemorySource(bytes(512)), "basic", (Member("disk0", 32256, 512),))}


class Binding(ModuleType):
    """A libguestfs whose handles note each call. fails: what a call by that name raises."""

    def __init__(self) -> None:
        super().__init__("guestfs")
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, BaseException] = {}
        self.settings: list[str] = []  # what LIBGUESTFS_BACKEND_SETTINGS says
        self.kvm_works = True
        self.log = ""
        self.mount_options = "rw,noatime"

    def GuestFS(self, **options: object) -> Handle:
        return Handle(self)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class Handle:
    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._settings = list(binding.settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: object, **options: object) -> Any:
            self._binding.calls.append((name, *arguments))
            if name in self._binding.fails:
                raise self._binding.fails[name]
            answer = type(self).__dict__.get(f"_{name}")
            return answer(self, *arguments) if answer else None

        return call

    def _get_backend_settings(self) -> list[str]:
        return self._settings

    def _set_backend_settings(self, settings: list[str]) -> None:
        self._settings = settings

    def _launch(self) -> None:
        if "force_tcg" not in self._settings and not self._binding.kvm_works:
            raise RuntimeError("guestfs_launch failed.\nThis usually means that it crashed.")

    def _debug(self, _command: str, words: list[str]) -> str:
        text = " ".join(words)
        for part, answer in (("systemd-detect-virt", "kvm\n"), ("dmesg", self._binding.log),
                             ("losetup", "/dev/loop0\n"), ("dd if", "NTFS    "),
                             ("ntfsinfo", "Volume Version: 3.1"), ("ntfsrecover", "broken log\nstatus 1"),
                             ("/proc/mounts", f"/dev/loop0 /sysroot/v0 fuseblk {self._binding.mount_options} 0 0")):
            if part in text:
                return answer
        raise AssertionError(f"nobody expects {text}")

    def _is_dir(self, place: str) -> bool:
        return True

    def _ls(self, place: str) -> list[str]:
        return ["a.txt"]

    def _lstatns(self, place: str) -> dict[str, int]:
        return {"st_size": 3, "st_mode": stat.S_IFREG | 0o644}

    def _lgetxattr(self, place: str, name: str) -> bytes:
        return b"\0\0\0\x20"


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Binding:
    made = Binding()
    monkeypatch.setitem(sys.modules, "guestfs", made)
    return made


def test_kvm_is_tried_first_then_tcg_and_the_choice_is_said(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)  # /dev/kvm, which not every user may open
    with Appliance(DISKS, VOLUMES) as door:
        assert door.backend == "kvm"
    assert binding.names().count("launch") == 1
    binding.kvm_works = False
    with Appliance(DISKS, VOLUMES) as door:
        assert door.backend == "tcg"
    assert binding.names().count("launch") == 3
    assert binding.names().count("close") == 3  # the handle that failed, too
    assert ("set_pgroup", True) in binding.calls
    assert ("set_backend", "direct") in binding.calls


def test_the_environment_may_choose_tcg(binding: Binding) -> None:
    binding.settings = ["gdb", "force_tcg"]
    binding.fails["launch"] = RuntimeError("no")
    with pytest.raises(GuestError, match="does not start"):
        Appliance(DISKS, VOLUMES).__enter__()
    assert binding.names().count("launch") == 1
    assert ("set_backend_settings", ["gdb", "force_tcg"]) in binding.calls


def test_a_missing_binding_or_kernel_names_the_package(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    binding.fails["launch"] = RuntimeError("supermin exited with error status 1: no kernel was found")
    with pytest.raises(MissingTool) as kernel:
        Appliance(DISKS, VOLUMES).__enter__()
    monkeypatch.setitem(sys.modules, "guestfs", None)
    with pytest.raises(MissingTool) as nothing:
        Appliance(DISKS, VOLUMES).__enter__()
    for error in (kernel.value, nothing.value):
        assert "python3-guestfs" in error.next
        assert "linux-image-cloud-amd64" in error.next


@pytest.mark.parametrize("call", ["add_drive", "config", "launch"])
def test_ctrl_c_while_starting_leaves_no_handle(binding: Binding, call: str) -> None:
    binding.fails[call] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Appliance(DISKS, VOLUMES).__enter__()
    assert binding.names()[-1] == "close"


def test_ctrl_c_while_writing_shuts_down_in_order(binding: Binding) -> None:
    binding.fails["upload"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), Appliance(DISKS, VOLUMES) as door:
        door.writable("disk0p1").write("\\a.txt", b"abc")
    order = [name for name in binding.names() if name in ("upload", "umount_all", "sync", "shutdown", "close")]
    assert order == ["upload", "umount_all", "sync", "shutdown", "close"]


def test_an_error_while_shutting_down_is_not_lost(binding: Binding) -> None:
    door = Appliance(DISKS, VOLUMES).__enter__()
    binding.fails["shutdown"] = RuntimeError("appliance closed the connection unexpectedly")
    with pytest.raises(GuestError, match="could not shut down"):
        door.close()
    assert binding.names()[-1] == "close"
    door.close()  # again is nothing
    with pytest.raises(ZeroDivisionError) as first, Appliance(DISKS, VOLUMES):
        raise ZeroDivisionError
    assert "could not shut down" in first.value.__notes__[0]


def test_a_write_that_the_disk_lost_is_told(binding: Binding) -> None:
    door = Appliance(DISKS, VOLUMES).__enter__()
    binding.log = "[ 12.08] critical space allocation error, dev sda, sector 53247 op 0x1:(WRITE)"
    with pytest.raises(GuestError, match="lost a write") as lost:
        door.close()
    assert "53247" in lost.value.why
    assert binding.names()[-1] == "close"


def test_a_read_only_mount_is_refused(binding: Binding) -> None:
    binding.mount_options = "ro,noatime"
    with Appliance(DISKS, VOLUMES) as door:
        with pytest.raises(GuestError, match="only be mounted read-only"):
            door.writable("disk0p1")
        assert ("umount", "/v0") in binding.calls
        with pytest.raises(GuestError, match="only be mounted read-only"):  # the second time, too
            door.writable("disk0p1")


def test_a_journal_that_cannot_be_replayed_is_an_error(binding: Binding) -> None:
    with Appliance(DISKS, VOLUMES) as door, pytest.raises(GuestError, match="cannot be replayed") as error:
        door.recover_journal("disk0p1")
    assert "broken log" in error.value.why


def test_what_the_caller_gets_wrong(binding: Binding) -> None:
    with pytest.raises(ValueError, match="needs a disk"):
        Appliance([], VOLUMES)
    with pytest.raises(ValueError, match="not running"):
        Appliance(DISKS, VOLUMES).sync()
    two = Volume("m", MemorySource(b""), "mirrored", (Member("disk0", 0, 1), Member("disk1", 0, 1)))
    with Appliance(DISKS, {"m": two}) as door, pytest.raises(Unsupported, match="2 disks"):
        door.writable("m")


def test_labels_are_letters_only() -> None:
    labels = [_label(number) for number in range(1000)]
    assert labels[:2] + labels[25:28] == ["dska", "dskb", "dskz", "dskba", "dskbb"]
    assert len(set(labels)) == 1000
    assert all(label.isalpha() for label in labels)


class Folder:
    """A handle over a dict: place → FILE_ATTRIBUTE_*, content or None for a folder, and short name."""

    def __init__(self, names: list[str], attributes: int = 0x20) -> None:
        self.names = names
        self.attributes = attributes
        self.shorts: dict[str, bytes] = {}
        self.commands: list[str] = []
        self.uploads: dict[str, bytes] = {}

    def ls(self, place: str) -> list[str]:
        return self.names

    def is_dir(self, place: str) -> bool:
        return place == "/v0"

    def exists(self, place: str) -> bool:
        return place.removeprefix("/v0/").encode() in self.shorts.values()

    def lstatns(self, place: str) -> dict[str, int]:
        return {"st_size": len(self.uploads.get(place, b"")), "st_mode": stat.S_IFREG}

    def lgetxattr(self, place: str, name: str) -> bytes:
        if name == "system.ntfs_attrib_be":
            return self.attributes.to_bytes(4, "big")
        if name == "system.ntfs_dos_name" and place in self.shorts:
            return self.shorts[place]
        raise RuntimeError("lgetxattr: getxattr: No data available")

    def upload(self, source: str, place: str) -> None:
        with open(source, "rb") as file:
            self.uploads[place] = file.read()

    def debug(self, _command: str, words: list[str]) -> str:
        self.commands.append(" ".join(words))
        return ""


def files(handle: Folder, version: tuple[int, int] | None = (3, 1)) -> MountedFiles:
    return MountedFiles("disk0p1", "/v0", version, lambda: Calls(handle), lambda: None)


def given_names(handle: Folder) -> list[str]:
    """The short names that were set."""
    return [bytes.fromhex(command.split(" 0x")[1].split()[0]).decode() for command in handle.commands
            if "ntfs_dos_name" in command]


@pytest.mark.parametrize(("name", "short"), [
    ("atapi.sys", "ATAPI.SYS"), ("NTLDR", "NTLDR"), ("Long Driver Name.sys", "LONGDR~1.SYS"),
    ("archive.tar.gz", "ARCHIV~1.GZ"), ("a+b.sys", "AB~1.SYS"), ("Größe der Datei.text", "GREDER~1.TEX"),
    (".profile", "PROFIL~1"), ("żółć", "_~1"), ("two words", "TWOWOR~1"), ("nine chars.s", "NINECH~1.S"),
])
def test_short_names_are_those_of_windows(name: str, short: str) -> None:
    handle = Folder(["old"])
    files(handle).write(f"\\{name}", b"x")
    assert given_names(handle) == [short]


def test_a_short_name_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Folder(["Long Driver One.sys", "LONGDR~2.SYS"])
    handle.shorts["/v0/Long Driver One.sys"] = b"LONGDR~1.SYS"
    files(handle).write("\\Long Driver Two.sys", b"x")
    assert given_names(handle) == ["LONGDR~3.SYS"]
    full = Folder([f"LONGDR~{n}.SYS" for n in range(10)] + [f"LONGD~{n}.SYS" for n in range(10, 100)])
    with pytest.raises(GuestError, match="no short name is free"):
        files(full).write("\\Long Driver Two.sys", b"x")


def test_a_volume_without_short_names_gets_none() -> None:
    handle = Folder(["Another Long Name.sys", "One More.sys"])
    files(handle).write("\\Long Driver Name.sys", b"x")
    files(handle).write("\\short.sys", b"x")
    assert given_names(handle) == ["SHORT.SYS"]


def test_fat_is_asked_for_nothing_of_ntfs() -> None:
    handle = Folder(["old"])
    files(handle, None).write("\\Long Driver Name.sys", b"x", like="\\OLD")
    assert handle.commands == []
    assert handle.uploads == {"/v0/Long Driver Name.sys": b"x"}


@pytest.mark.parametrize(("attributes", "version", "text"), [
    (0x820, (1, 2), "compressed"), (0x4020, (3, 1), "encrypted")])
def test_a_file_that_ntfs_3g_would_spoil_is_refused_before_it_is_written(
    attributes: int, version: tuple[int, int], text: str
) -> None:
    handle = Folder(["a.txt"], attributes)
    with pytest.raises(GuestError, match=text):
        files(handle, version).write("\\A.TXT", b"x")
    assert handle.uploads == {}


def test_a_shorter_file_than_was_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Folder(["a.txt"])
    monkeypatch.setattr(handle, "lstatns", lambda place: {"st_size": 1, "st_mode": stat.S_IFREG})
    with pytest.raises(GuestError, match="1 of 2 bytes") as error:
        files(handle).write("\\a.txt", b"xy")
    assert error.value.where == Where("disk0p1", item="\\a.txt")


def test_too_large_a_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Folder(["pagefile.sys"])
    monkeypatch.setattr(handle, "lstatns", lambda place: {"st_size": 1 << 40, "st_mode": stat.S_IFREG})
    with pytest.raises(GuestError, match="too large"):
        files(handle).read("\\pagefile.sys")


def test_names_are_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Folder(["it's $(here)"], 0x21)
    door = files(handle)
    seen = iter((0x21, 0x01))  # ntfs-3g has changed the attributes: they are set back
    monkeypatch.setattr(handle, "lgetxattr", lambda place, name: next(seen).to_bytes(4, "big"))
    door.write("\\it's $(here)", b"x")
    [command] = handle.commands
    words = shlex.split(shlex.split(command)[-1])  # as bash sees them
    assert words[-3:] == ["-v", "0x00000021", "/sysroot/v0/it's $(here)"]


def test_a_name_with_half_a_surrogate_pair_is_a_guest_error(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Folder([])

    def undecodable(place: str) -> list[str]:
        raise UnicodeDecodeError("utf-8", b"\xed\xa0\x80", 0, 1, "invalid continuation byte")

    monkeypatch.setattr(handle, "ls", undecodable)
    with pytest.raises(GuestError, match="could not list"):
        files(handle).list("\\")
