"""The writing door, seen by other people's readers. One appliance start serves the whole module.

The edits are made once, on overlays; then the appliance is gone, and each test looks at what is left with
libfsntfs, ntfsinfo, ntfsresize, mtools and fsck.fat.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyfsntfs
import pytest

from fixtures.disks import Entry, fill_fat, fill_ntfs, make_disk, make_fat16, make_ntfs, place, unpack_ntfs
from fixtures.ntfs import ARCHIVE, COMPRESSED, HIDDEN, READ_ONLY, SYSTEM
from fixtures.trees import TreeFile
from p2v.errors import GuestError, P2VError, Unsupported
from p2v.guest.guestfs import Appliance
from p2v.model import SECTOR, BytesChange, Geometry, Member, Range, Source, Volume, read
from p2v.source.device import open_disk
from p2v.source.window import Window
from p2v.stage import Stage, overlaid
from p2v.testing import FaultySource

pytestmark = pytest.mark.appliance

GEOMETRY = Geometry(255, 63)
LARGE = os.urandom(1 << 16) * 80  # 5 MiB, more than libguestfs takes in one message
AT, RAW = 1000, b"raw bytes across sectors " * 60  # in the gap behind the MBR
SIGNATURE = b"\xde\xad\xbe\xef"
DRIVERS = "\\WINDOWS\\system32\\drivers"
HIDDEN_FILE = HIDDEN | SYSTEM | READ_ONLY
MIB = 1 << 20
# On disk0: next to the bytes that are edited, in the MBR's own page, and just before the first volume.
BAD = [Range(5 * SECTOR, SECTOR), Range(62 * SECTOR, SECTOR)]
SECTORS = 70 * 2048 + 776  # a multiple of 4 KiB: Linux then caches the disk in pages, not in sectors

# name → (disk, offset in sectors, length in sectors); "loose" is in no partition table.
VOLUMES = {
    "ntfs": ("disk0", 63, 24 * 2048),
    "fat": ("disk0", 63 + 24 * 2048, 20 * 2048),
    "unclean": ("disk0", 63 + 44 * 2048, 8 * 2048),
    "compressed": ("disk0", 63 + 52 * 2048, 8 * 2048),
    "loose": ("disk0", 100 + 60 * 2048, 8 * 2048),
    "nt4": ("disk1", 63, 64 * 2048),
}


def administrators_only() -> bytes:
    """A self-relative security descriptor that no other file has: owner SYSTEM, full control for them."""
    system = struct.pack("<BB6sI", 1, 1, b"\0\0\0\0\0\5", 18)
    administrators = struct.pack("<BB6sII", 1, 2, b"\0\0\0\0\0\5", 32, 544)
    acl = struct.pack("<BxHHxxBBHI", 2, 8 + 24, 1, 0, 0, 24, 0x1F01FF) + administrators
    return struct.pack("<BxHIIII", 1, 0x8004, 20, 32, 0, 44) + system + system + acl


ACL = administrators_only()


def version_1_2(volume: Path) -> None:
    """Call a volume NTFS 1.2. Its one $VOLUME_INFORMATION: eight zeroes, then 3, 1."""
    data = volume.read_bytes()
    found = [m.start() for m in re.finditer(rb"\0{8}\x03\x01\0\0", data)]
    header = struct.pack("<II", 0x70, 0x28)  # the resident attribute of that type and length around it
    places = [at for at in found if data[at - 24 : at - 16] == header]
    assert places
    with open(volume, "r+b") as file:
        for at in places:
            file.seek(at + 8)
            file.write(b"\x01\x02")


def build_disk0(folder: Path) -> Path:
    disk, part = folder / "disk0.img", folder / "part.img"
    listed = ("ntfs", "fat", "unclean", "compressed")
    make_disk(disk, SECTORS, 0x11223344, [
        Entry(6 if name == "fat" else 7, VOLUMES[name][1], VOLUMES[name][2], active=name == "ntfs")
        for name in listed], GEOMETRY)
    trees = {
        "ntfs": [
            TreeFile(f"{DRIVERS}\\atapi.sys", b"old driver " * 3000, HIDDEN_FILE, "ATAPI.SYS"),
            TreeFile(f"{DRIVERS}\\Neighbour Driver.sys", b"neighbour", ARCHIVE, "NEIGHB~1.SYS"),
            TreeFile(f"{DRIVERS}\\gone.sys", b"to be removed", HIDDEN_FILE),
            TreeFile("\\boot.ini", b"[boot loader]\r\n", HIDDEN_FILE, "BOOT.INI"),
            TreeFile("\\Größe\\Übung.txt", b"umlauts"),
        ],
        "unclean": [TreeFile("\\here.txt", b"clean again?")],
        "compressed": [TreeFile("\\packed.dat", b"pack me " * 9000, ARCHIVE | COMPRESSED),
                       TreeFile("\\plain.dat", b"plain")],
        "loose": [TreeFile("\\loose.txt", b"in no table")],
    }
    for name, (_, start, length) in VOLUMES.items():
        if name == "fat":
            make_fat16(part, length, GEOMETRY, "BOOT")
            fill_fat(part, [TreeFile("\\boot.ini", b"[boot loader]\r\n", HIDDEN_FILE),
                            TreeFile("\\NTLDR", b"loader"), TreeFile("\\WINNT\\Long File Name.txt", b"long"),
                            TreeFile("\\WINNT\\gone.txt", b"gone", READ_ONLY)])
        elif name in trees:
            make_ntfs(part, length, GEOMETRY, name)
            fill_ntfs(part, trees[name], unclean=name == "unclean")
            if name == "compressed":
                version_1_2(part)
        else:
            continue
        place(part, disk, start * SECTOR)
    return disk


def build_disk1(folder: Path, corpus: Path) -> Path:
    disk, part = folder / "disk1.img", folder / "nt4.img"
    sectors = unpack_ntfs(corpus / "ntfs" / "ntfs12-files-64m.img.xz", part, GEOMETRY)
    assert sectors == VOLUMES["nt4"][2]
    make_disk(disk, 63 + sectors + 100, 0x55667788, [Entry(7, 63, sectors, active=True)], GEOMETRY)
    place(part, disk, 63 * SECTOR)
    return disk


@dataclass
class Bench:
    """What was there before, what was seen while it was edited, and the volumes as files afterwards."""

    before: dict[str, Path] = field(default_factory=dict)
    after: dict[str, Path] = field(default_factory=dict)
    seen: dict[str, object] = field(default_factory=dict)
    errors: dict[str, P2VError] = field(default_factory=dict)
    hashes: tuple[list[str], list[str]] = ([], [])
    disk0: bytes = b""

    def refused(self, name: str, call: Callable[[], object]) -> None:
        with pytest.raises((GuestError, Unsupported)) as caught:
            call()
        self.errors[name] = caught.value


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Bench:
    """Everything that the writing door is asked to do, done."""
    folder, bench = tmp_path_factory.mktemp("writing-door"), Bench()
    paths = {"disk0": build_disk0(folder), "disk1": build_disk1(folder, corpus)}
    sources: dict[str, Source] = {disk: open_disk(str(path)) for disk, path in paths.items()}
    sources["disk0"] = FaultySource(sources["disk0"], BAD)
    bench.hashes[0].extend(sha256(path) for path in paths.values())
    overlays = {disk: folder / f"{disk}.overlay.qcow2" for disk in paths}
    for name, (disk, start, length) in VOLUMES.items():
        bench.before[name] = extract(sources[disk], start, length, folder / f"{name}.before")
    bench.seen["table"] = read(sources["disk0"], 0x1BE, 66)
    with Stage(sources, overlays) as staged:
        staged.write_bytes([BytesChange("disk0", AT, bytes(len(RAW)), RAW, "in the gap"),
                            BytesChange("disk0", 0x1B8, struct.pack("<I", 0x11223344), SIGNATURE, "a test")])
        with Appliance(staged.disks, volumes(sources)) as door:
            edit(door, bench)
    bench.seen["failed reads"] = staged.failed_reads()
    edited = {disk: overlaid(sources[disk], overlays[disk]) for disk in paths}
    for name, (disk, start, length) in VOLUMES.items():
        bench.after[name] = extract(edited[disk], start, length, folder / f"{name}.after")
    bench.disk0 = read(edited["disk0"], 0, BAD[0].offset)
    bench.seen["edits"] = edited["disk0"].changed
    for source in (*edited.values(), *sources.values()):
        source.close()
    bench.hashes[1].extend(sha256(path) for path in paths.values())
    return bench


def volumes(sources: dict[str, Source]) -> dict[str, Volume]:
    made = {name: Volume(name, Window(sources[disk], start * SECTOR, length * SECTOR), "basic",
                         (Member(disk, start * SECTOR, length * SECTOR),))
            for name, (disk, start, length) in VOLUMES.items()}
    first = made["ntfs"].members
    made["mirror"] = Volume("mirror", made["ntfs"].source, "mirrored", first + made["fat"].members)
    return made


def edit(door: Appliance, bench: Bench) -> None:
    bench.seen["backend"] = door.backend
    bench.refused("unclean", lambda: door.writable("unclean").list("\\"))
    bench.seen["recovery"] = door.recover_journal("unclean")
    bench.seen["recovery of a clean volume"] = door.recover_journal("unclean")
    bench.seen["recovery of a wiped journal"] = door.recover_journal("loose")
    bench.refused("journal of FAT", lambda: door.recover_journal("fat"))
    bench.refused("two disks", lambda: door.writable("mirror"))
    bench.refused("no such volume", lambda: door.writable("ghost"))
    edit_ntfs(door, bench)
    edit_fat(door, bench)
    edit_nt4(door)
    for name in ("unclean", "loose"):
        door.writable(name).write("\\new.txt", b"written to " + name.encode())
    compressed = door.writable("compressed")
    bench.refused("compressed", lambda: compressed.write("\\packed.dat", b"short"))
    compressed.write("\\plain.dat", b"edited")
    bench.refused("journal too late", lambda: door.recover_journal("unclean"))
    door.sync()
    after_sync = door.writable("ntfs")
    bench.seen["after a sync"] = after_sync.read("\\boot.ini")
    door.sync()
    after_sync.write("\\late.txt", b"mounted again by itself")


def edit_ntfs(door: Appliance, bench: Bench) -> None:
    files, drivers = door.writable("ntfs"), DRIVERS.upper()
    door._calls.shell("give the neighbour an ACL", files._where(""), (
        f"setfattr -n system.ntfs_acl -v 0x{ACL.hex()} "
        f"'/sysroot{files.root}/WINDOWS/system32/drivers/Neighbour Driver.sys'"))
    bench.seen["list"] = files.list(drivers)
    bench.seen["stat"] = files.stat(drivers + "\\ATAPI.sys")
    bench.seen["folder"] = files.stat("\\windows")
    files.write(drivers + "\\ATAPI.SYS", LARGE)
    bench.seen["large"] = files.read(DRIVERS + "\\atapi.sys")
    files.write("\\BOOT.INI", b"")
    files.write("\\boot.ini", b"[boot loader]\r\ntimeout=5\r\n")
    files.write(DRIVERS + "\\intelide.sys", b"new driver", like=drivers + "\\neighbour driver.SYS")
    files.write(DRIVERS + "\\Neighbour Driver two.sys", b"second", like=DRIVERS + "\\Neighbour Driver.sys")
    files.write(DRIVERS + "\\NEIGHB~1.SYS", b"by its short name")
    files.write("\\grösse.txt", b"no neighbour")
    files.write("\\GRÖSSE.TXT", b"the same file")
    bench.seen["umlauts"] = files.read("\\gRÖßE\\übung.TXT")
    bench.seen["sharp s"] = files.stat("\\GRÖSSE\\Übung.txt")
    files.remove(drivers + "\\GONE.SYS")
    bench.seen["removed"] = (files.stat(DRIVERS + "\\gone.sys"), files.list("\\nowhere"))
    bench.refused("read nothing", lambda: files.read("\\nothing.txt"))
    bench.refused("read a folder", lambda: files.read("\\WINDOWS"))
    bench.refused("write a folder", lambda: files.write("\\WINDOWS", b""))
    bench.refused("remove nothing", lambda: files.remove("\\nothing.txt"))
    bench.refused("remove a folder", lambda: files.remove("\\WINDOWS"))
    bench.refused("no folder", lambda: files.write("\\WINNT\\x.sys", b""))
    bench.refused("a file for a folder", lambda: files.write("\\boot.ini\\x.sys", b""))
    bench.refused("no neighbour", lambda: files.write("\\x.sys", b"", like="\\nothing.sys"))
    bench.refused("no path", lambda: files.write("\\..\\x.sys", b""))
    bench.refused("no Windows name", lambda: files.write("\\what?.sys", b""))
    bench.seen["not made"] = [files.stat(path) for path in ("\\x.sys", "\\what?.sys")]


def edit_fat(door: Appliance, bench: Bench) -> None:
    files = door.writable("fat")
    files.write("\\BOOT.INI", b"[boot loader]\r\ntimeout=7\r\n")
    files.write("\\winnt\\LONG file NAME.TXT", b"still long")
    files.write("\\winnt\\new long name.sys", b"new", like="\\ntldr")
    files.write("\\WINNT\\atapi.sys", b"lower case")
    files.remove("\\WINNT\\GONE.TXT")
    bench.seen["fat"] = sorted(files.list("\\"))


def edit_nt4(door: Appliance) -> None:
    files = door.writable("nt4")
    files.write("\\winnt\\SYSTEM32\\config\\system", b"no hive " * 1000)
    files.write("\\WINNT\\system32\\atapi.sys", b"for NT 4", like="\\WINNT\\system32\\config\\SYSTEM")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(source: Source, start: int, length: int, path: Path) -> Path:
    """A volume as a file of its own."""
    with open(path, "wb") as file:
        for at in range(0, length * SECTOR, MIB):
            file.write(read(source, start * SECTOR + at, min(MIB, length * SECTOR - at)))
    return path


@dataclass(frozen=True)
class Seen:
    """A file as libfsntfs sees it."""

    data: bytes
    record: int
    attributes: int
    acl: bytes


def look(volume: Path, path: str) -> Seen | None:
    with open(volume, "rb") as file:
        reader = pyfsntfs.volume()
        reader.open_file_object(file)
        try:
            entry = reader.get_file_entry_by_path(path)
            if entry is None:
                return None
            acl = entry.get_security_descriptor_data() or b""
            return Seen(entry.read(entry.get_size()), entry.get_file_reference(),
                        entry.get_file_attribute_flags(), acl)
        finally:
            reader.close()


def names(volume: Path, path: str) -> dict[str, str]:
    """Namespace → name, as ntfsinfo sees it."""
    said = run("ntfsinfo", "-F", path.replace("\\", "/"), str(volume)).stdout
    return dict(re.findall(r"Namespace:\s*(.*?)\n\s*Filename:\s*'(.*)'", said))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"})


def test_sources_stay_as_they_were_and_every_read_worked(bench: Bench) -> None:
    assert bench.hashes[0] == bench.hashes[1]
    assert bench.seen["backend"] in ("kvm", "tcg")


def test_raw_bytes_land_where_they_should_and_nowhere_else(bench: Bench) -> None:
    expected = bytes(AT) + RAW + bytes(BAD[0].offset - AT - len(RAW))
    assert bench.disk0[SECTOR:] == expected[SECTOR:]
    assert bench.disk0[0x1B8:0x1BC] == SIGNATURE
    assert bench.disk0[0x1BE:SECTOR] == bench.seen["table"]


def test_a_bad_sector_beside_an_edit_harms_nobody(bench: Bench) -> None:
    failed = bench.seen["failed reads"]
    assert BAD[0] in failed["disk0"]  # Linux looked for a partition table
    assert set(failed["disk0"]) <= set(BAD)
    assert failed["disk1"] == []
    gap = [edit for edit in bench.seen["edits"] if edit.offset < 63 * SECTOR]
    assert gap == [Range(0, BAD[0].offset)]


def test_an_unreplayed_journal_is_refused_and_then_replayed(bench: Bench, needs: Callable[..., None]) -> None:
    needs("ntfsresize", "ntfsrecover")
    assert "read-only" in bench.errors["unclean"].what
    assert "playing" in str(bench.seen["recovery"])
    assert bench.seen["recovery of a clean volume"] == ""
    assert "wiped out" in bench.seen["recovery of a wiped journal"]
    assert "no journal" in bench.errors["journal of FAT"].what
    assert "is mounted" in bench.errors["journal too late"].what
    left = [run("ntfsrecover", "-n", str(b["unclean"])).stdout for b in (bench.before, bench.after)]
    assert "playing" in left[0]
    assert "playing" not in left[1]
    assert look(bench.after["unclean"], "\\new.txt").data == b"written to unclean"


@pytest.mark.parametrize("name", ["ntfs", "unclean", "loose", "nt4", "compressed"])
def test_ntfs_volumes_are_consistent(bench: Bench, name: str, needs: Callable[..., None]) -> None:
    needs("ntfsresize", "ntfsinfo")
    checked = run("ntfsresize", "-i", "-f", str(bench.after[name]))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    versions = [re.search(r"Volume Version: (.*)", run("ntfsinfo", "-f", "-m", str(path)).stdout)[1]
                for path in (bench.before[name], bench.after[name])]
    assert versions == ["1.2" if name in ("nt4", "compressed") else "3.1"] * 2


def test_a_replaced_file_keeps_record_acl_attributes_and_names(bench: Bench) -> None:
    before, after = (look(b["ntfs"], DRIVERS + "\\atapi.sys") for b in (bench.before, bench.after))
    assert after.data == LARGE == bench.seen["large"]
    assert (after.record, after.attributes, after.acl) == (before.record, before.attributes, before.acl)
    assert after.attributes & 0x27 == HIDDEN_FILE  # ntfs-3g alone would have set the archive bit
    assert names(bench.after["ntfs"], DRIVERS + "\\atapi.sys") == {"Win32 & DOS": "atapi.sys"}
    assert look(bench.after["ntfs"], "\\boot.ini").data == b"[boot loader]\r\ntimeout=5\r\n"


def test_a_new_file_gets_the_neighbours_acl_and_a_short_name(bench: Bench) -> None:
    volume = bench.after["ntfs"]
    new, second = (look(volume, f"{DRIVERS}\\{name}") for name in ("intelide.sys", "Neighbour Driver two.sys"))
    assert (new.data, second.data) == (b"new driver", b"second")
    assert new.acl == second.acl == ACL
    assert names(volume, DRIVERS + "\\intelide.sys") == {"Win32 & DOS": "intelide.sys"}
    assert names(volume, DRIVERS + "\\Neighbour Driver two.sys") == {
        "Win32": "Neighbour Driver two.sys", "DOS": "NEIGHB~2.SYS"}
    assert look(volume, DRIVERS + "\\Neighbour Driver.sys").data == b"by its short name"
    ids = {re.search(r"Security ID:\s*(\d+)", run("ntfsinfo", "-F", f"/WINDOWS/system32/drivers/{name}",
                                                  str(volume)).stdout)[1]
           for name in ("intelide.sys", "Neighbour Driver two.sys", "Neighbour Driver.sys")}
    assert len(ids) == 1  # one entry in $Secure serves them all


def test_paths_are_found_as_windows_would(bench: Bench) -> None:
    assert set(bench.seen["list"]) == {"atapi.sys", "Neighbour Driver.sys", "gone.sys"}
    assert (bench.seen["stat"].size, bench.seen["stat"].is_folder) == (33000, False)
    assert bench.seen["folder"].is_folder
    assert bench.seen["umlauts"] == b"umlauts"
    assert bench.seen["sharp s"] is None
    assert look(bench.after["ntfs"], "\\grösse.txt").data == b"the same file"
    assert bench.seen["after a sync"] == b"[boot loader]\r\ntimeout=5\r\n"
    assert look(bench.after["ntfs"], "\\late.txt").data == b"mounted again by itself"


def test_a_removed_file_is_gone(bench: Bench) -> None:
    assert bench.seen["removed"] == (None, ())
    assert look(bench.before["ntfs"], DRIVERS + "\\gone.sys") is not None
    assert look(bench.after["ntfs"], DRIVERS + "\\gone.sys") is None


@pytest.mark.parametrize(("name", "text"), [
    ("two disks", "lies on 2 disks"), ("no such volume", "no volume ghost"), ("read nothing", "no such file"),
    ("read a folder", "no file"), ("write a folder", "no file"), ("remove nothing", "no such file"),
    ("remove a folder", "no file"), ("no folder", "folder does not exist"),
    ("a file for a folder", "folder does not exist"), ("no neighbour", "no such file"), ("no path", "no path"),
    ("no Windows name", "could not write the file"), ("compressed", "compressed file"),
])
def test_what_cannot_be_done_says_so(bench: Bench, name: str, text: str) -> None:
    assert text in bench.errors[name].what
    assert bench.errors[name].where.item or bench.errors[name].where.source
    assert bench.seen["not made"] == [None, None]


def test_a_compressed_file_of_nt4_is_left_as_it_was(bench: Bench) -> None:
    before, after = (look(b["compressed"], "\\packed.dat") for b in (bench.before, bench.after))
    assert before == after
    assert before.attributes & COMPRESSED
    assert look(bench.after["compressed"], "\\plain.dat").data == b"edited"


def test_nt4_keeps_its_own_descriptors(bench: Bench) -> None:
    path = "\\WINNT\\system32\\config\\SYSTEM"
    before, after = (look(b["nt4"], path) for b in (bench.before, bench.after))
    assert after.data == b"no hive " * 1000
    assert (after.record, after.attributes, after.acl) == (before.record, before.attributes, before.acl)
    new = look(bench.after["nt4"], "\\WINNT\\system32\\atapi.sys")
    assert (new.data, new.acl) == (b"for NT 4", before.acl)
    said = run("ntfsinfo", "-F", "/WINNT/system32/atapi.sys", str(bench.after["nt4"])).stdout
    assert re.search(r"\$STANDARD_INFORMATION \(0x10\).*?Data size:\s*48 ", said, re.S)
    assert names(bench.after["nt4"], "\\WINNT\\system32\\atapi.sys") == {"Win32 & DOS": "atapi.sys"}


def test_fat_keeps_case_long_names_and_attributes(bench: Bench, needs: Callable[..., None]) -> None:
    needs("mdir", "mtype", "mattrib", "fsck.fat")
    volume = str(bench.after["fat"])

    def content(path: str) -> str:
        return run("mtype", "-i", volume, f"::{path}").stdout

    assert content("/boot.ini") == "[boot loader]\ntimeout=7\n"  # read as text
    assert content("/WINNT/Long File Name.txt") == "still long"
    assert content("/WINNT/new long name.sys") == "new"
    assert content("/WINNT/atapi.sys") == "lower case"
    listing = run("mdir", "-i", volume, "-b", "::/WINNT").stdout.split("\n")
    assert sorted(filter(None, listing)) == [
        "::/WINNT/Long File Name.txt", "::/WINNT/atapi.sys", "::/WINNT/new long name.sys"]
    assert {"boot.ini", "NTLDR", "WINNT"} <= set(bench.seen["fat"])
    assert run("mattrib", "-i", volume, "::/boot.ini").stdout.split()[0:3] == ["A", "SHR", "::/boot.ini"]
    checked = run("fsck.fat", "-n", volume)
    assert checked.returncode == 0, checked.stdout


def test_no_qemu_is_left_behind(bench: Bench) -> None:
    assert shutil.which("pgrep")
    assert run("pgrep", "-P", str(os.getpid()), "qemu-system").stdout == ""
