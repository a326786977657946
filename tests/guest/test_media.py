"""Which copy of a driver file is taken: the newest that fits, and never a decoy."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures.cabs import cabinet
from fixtures.pe import AMD64, COMPANY, I386, IA64, StandIn, pe_file
from p2v.drivers import DriverFile
from p2v.errors import GuestError, PlanError, Severity
from p2v.guest.media import Media
from p2v.model import Family, GuestFacts, PEFacts
from p2v.testing import DirFiles

WANTED = DriverFile("atapi.sys", "the Windows CD", "a test")
RIGHT = (5, 1, 2600, 5512)


@dataclass
class Server:
    """As much of a guest as the chooser looks at."""

    facts: GuestFacts
    folder: Path
    drivers: tuple[str, ...] = ()

    def files(self, volume: str) -> DirFiles:
        assert volume == self.facts.boot_volume
        return DirFiles(self.folder)

    def put(self, path: str, data: bytes) -> None:
        where = self.folder.joinpath("WINDOWS", *path.split("\\"))
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(data)


@pytest.fixture
def server(tmp_path) -> Server:
    """XP SP3 with nothing on it."""
    return server_of(tmp_path, RIGHT, "x86")


def server_of(tmp_path, kernel, architecture) -> Server:
    folder = tmp_path / "guest"
    (folder / "WINDOWS" / "system32" / "drivers").mkdir(parents=True)
    given = tmp_path / "given"
    given.mkdir()
    facts = GuestFacts(Family.WINDOWS, "a test", version=kernel[:2], architecture=architecture,
                       system_root="\\WINDOWS", boot_volume="disk0p1",
                       kernel=PEFacts(architecture, kernel, "ntoskrnl.exe", "", ()))
    return Server(facts, folder, (str(given),))


def driver(version=RIGHT, **changes) -> bytes:
    return pe_file(StandIn("atapi.sys", version, **changes))


def chosen(server: Server, wanted: DriverFile = WANTED):
    with Media(server) as media:
        return media.choose(wanted)


INSTALLED = "system32\\drivers\\atapi.sys"
PACK = "ServicePackFiles\\i386\\atapi.sys"
CACHE = "Driver Cache\\i386\\"


def test_what_is_installed_and_fits_stays(server):
    server.put(INSTALLED, driver((5, 1, 2600, 2180)))
    server.put(PACK, driver())
    choice = chosen(server)
    assert choice.installed and choice.version == (5, 1, 2600, 2180)


def test_an_installed_hotfix_newer_than_the_kernel_stays(server):
    server.put(INSTALLED, driver((5, 1, 2600, 6000)))
    assert chosen(server).installed


def test_what_is_installed_and_does_not_fit_is_replaced(server):
    server.put(INSTALLED, driver(machine=AMD64))
    server.put(PACK, driver())
    choice = chosen(server)
    assert not choice.installed and choice.version == RIGHT


@pytest.mark.parametrize(("decoy", "reason"), [
    (driver((5, 1, 2600, 5513)), "newer than the installed service pack"),
    (driver((5, 1, 2600, 6512)), "newer than the installed service pack"),
    (driver((5, 2, 3790, 3959)), "the kernel of 5.1.2600.5512"),
    (driver((5, 0, 2195, 6717)), "the kernel of 5.1.2600.5512"),
    (driver((4, 0, 1381, 333)), "the kernel of 5.1.2600.5512"),
    (driver((5, 1, 2505, 0)), "the kernel of 5.1.2600.5512"),
    (driver(machine=AMD64), "it is for x64"),
    (driver(machine=IA64), "it is for 0x200"),
    (driver(checked=True), "checked (debug) build"),
    (pe_file(StandIn("cmd.exe", RIGHT)), "not native"),
    (driver()[:-700], "no whole program file"),
    (b"SZDD" + bytes(500), "no whole program file"),
    (b"", "no whole program file"),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("place", [INSTALLED, PACK, CACHE + "atapi.sys"])
def test_no_decoy_is_taken(server, decoy, reason, place):
    if "newer than" in reason and place == INSTALLED:
        return  # what Windows put there itself is not held to the limit
    server.put(place, decoy)
    with pytest.raises(GuestError, match=r"atapi\.sys is nowhere") as error:
        chosen(server)
    assert reason in error.value.why and place in error.value.why
    assert "--drivers" in error.value.next and "the Windows CD" in error.value.next
    server.put(CACHE + "driver.cab", cabinet({"atapi.sys": driver((5, 1, 2600, 0))}))
    assert chosen(server).version == (5, 1, 2600, 0)


def test_the_newest_wins_wherever_it_lies(server):
    server.put(PACK, driver((5, 1, 2600, 1106)))
    server.put(CACHE + "sp2.cab", cabinet({"ATAPI.SYS": driver((5, 1, 2600, 2180))}))
    server.put(CACHE + "sp3.cab", cabinet({"atapi.sys": driver(RIGHT)}))
    server.put(CACHE + "driver.cab", cabinet({"atapi.sys": driver((5, 1, 2600, 0))}))
    Path(server.drivers[0], "atapi.sys").write_bytes(driver((5, 1, 2600, 5511)))
    choice = chosen(server)
    assert choice.version == RIGHT and "sp3.cab" in choice.where


def test_a_later_pack_s_cabinet_left_behind_is_passed_over(server, tmp_path):
    older = server_of(tmp_path / "sp2", (5, 1, 2600, 2180), "x86")
    older.put(CACHE + "sp3.cab", cabinet({"atapi.sys": driver(RIGHT)}))
    older.put(CACHE + "sp2.cab", cabinet({"atapi.sys": driver((5, 1, 2600, 2180))}))
    assert chosen(older).version == (5, 1, 2600, 2180)


def test_a_tie_goes_to_the_place_looked_at_first(server):
    server.put(PACK, driver())
    server.put(CACHE + "sp3.cab", cabinet({"atapi.sys": driver()}))
    assert "ServicePackFiles" in chosen(server).where


def test_a_damaged_cabinet_is_said_and_the_next_one_taken(server):
    server.put(CACHE + "sp3.cab", cabinet({"atapi.sys": driver()})[:100])
    server.put(CACHE + "driver.cab", cabinet({"atapi.sys": driver((5, 1, 2600, 0))}))
    with Media(server) as media:
        choice = media.choose(WANTED)
        assert choice.version == (5, 1, 2600, 0)
        assert "sp3.cab" in media.findings[0].why


def test_the_user_s_folder_plain_and_in_a_cabinet(server):
    below = Path(server.drivers[0], "a", "b")
    below.mkdir(parents=True)
    (below / "Drivers.CAB").write_bytes(cabinet({"atapi.sys": driver()}))
    assert chosen(server).version == RIGHT
    (below / "readme.txt").write_text("not this")
    (below / "pipe.sys").symlink_to("/dev/zero")
    assert chosen(server).version == RIGHT


def test_a_link_to_a_device_is_no_driver(server):
    Path(server.drivers[0], "atapi.sys").symlink_to("/dev/zero")
    with pytest.raises(GuestError, match="nowhere"):
        chosen(server)


def test_nt4_takes_it_from_the_user_only(tmp_path):
    server = server_of(tmp_path, (4, 0, 1381, 4), "x86")
    wanted = DriverFile("atapi.sys", "Service Pack 6a", "a test", given_only=True, newer_than_kernel=True,
                        minimum_revision=133)
    server.put(PACK, driver((4, 0, 1381, 333)))
    with pytest.raises(GuestError, match="nowhere") as error:
        chosen(server, wanted)
    assert "ServicePackFiles" not in error.value.why and "given (--drivers)" in error.value.why
    Path(server.drivers[0], "atapi.sys").write_bytes(driver((4, 0, 1381, 333)))
    assert chosen(server, wanted).version == (4, 0, 1381, 333)


def test_x64_has_its_own_folders(tmp_path):
    server = server_of(tmp_path, (5, 2, 3790, 3959), "x64")
    server.put(CACHE + "driver.cab", cabinet({"atapi.sys": driver((5, 2, 3790, 3959), machine=I386)}))
    server.put("Driver Cache\\amd64\\driver.cab",
               cabinet({"atapi.sys": driver((5, 2, 3790, 1830), machine=AMD64)}))
    assert chosen(server).version == (5, 2, 3790, 1830)


def test_a_kernel_without_a_version_compares_with_nothing(tmp_path):
    server = server_of(tmp_path, RIGHT, "x86")
    server.facts = GuestFacts(Family.WINDOWS, "a test", system_root="\\WINDOWS", boot_volume="disk0p1",
                              architecture="x86", kernel=PEFacts("x86", None, "", "", ()))
    server.put(PACK, driver())
    with pytest.raises(GuestError, match="nowhere") as error:
        chosen(server)
    assert "kernel does not say its version" in error.value.why


def test_no_such_folder(server):
    server.drivers = ("/nowhere/at/all",)
    with pytest.raises(PlanError, match="given with --drivers is not there"):
        chosen(server)


def test_the_cabinets_are_gone_afterwards(server):
    server.put(CACHE + "driver.cab", cabinet({"atapi.sys": driver()}))
    with Media(server) as media:
        media.choose(WANTED)
        folder = Path(media._folder.name)
        assert list(folder.iterdir())
    assert not folder.exists()


# -- service packs, hotfixes, what was put aside


def spelled_version(data: bytes, old: str, new: str) -> bytes:
    """The same file with another text of one length in its version resource."""
    before, after = old.encode("utf-16-le"), new.encode("utf-16-le")
    assert len(before) == len(after) and before in data
    return data.replace(before, after)


@pytest.mark.parametrize(("branch", "taken"), [
    ("5.1.2600.6055 (xpsp_sp3_gdr.101)", True), ("5.1.2600.6055 (xpsp_sp3_qfe.101)", True),
    ("5.1.2600.6055 (xpsp_sp2_gdr.101)", False), ("5.1.2600.6055 (xpsp.101209-1647)", False)])
def test_a_hotfix_newer_than_the_kernel(server, branch, taken):
    """Its version text names the service pack that it was made for."""
    server.facts = replace(server.facts, service_pack=3)
    server.put(PACK, driver((5, 1, 2600, 6055), version_text=branch))
    if taken:
        assert chosen(server).version == (5, 1, 2600, 6055)
    else:
        with pytest.raises(GuestError, match="nowhere"):
            chosen(server)


def test_what_a_service_pack_put_aside_is_a_last_resort_and_said(server):
    server.put("$NtServicePackUninstall$\\atapi.sys", driver((5, 1, 2600, 1106)))
    with Media(server) as media:
        assert media.choose(WANTED).version == (5, 1, 2600, 1106)
        (finding,) = media.findings
    assert finding.severity is Severity.WARNING and "put aside" in finding.what and "5.1.2600.1106" in finding.why
    server.put(CACHE + "sp3.cab", cabinet({"atapi.sys": driver()}))
    with Media(server) as media:
        assert media.choose(WANTED).version == RIGHT and not media.findings


def test_what_is_missing_is_named_with_version_and_medium(server):
    with pytest.raises(GuestError) as error:
        chosen(server)
    assert error.value.next == ("take atapi.sys, x86, version 5.1.2600.0 up to 5.1.2600.5512 from the Windows CD, and "
                                "give the folder, ISO or cabinet that it lies in with --drivers PATH")


# -- vendors' own files


VENDOR = DriverFile("viostor.sys", "virtio-win", "a test", vendor=True, folders=("xp",))


def vendors(version=(51, 74, 104, 13000), system=(5, 1), name="viostor.sys") -> bytes:
    """A driver that counts as it likes, for a Windows from system on."""
    data = bytearray(pe_file(StandIn(name, version, ("scsiport.sys",))))
    at = struct.unpack_from("<I", data, 0x3C)[0] + 24
    struct.pack_into("<HH", data, at + 48, *system)
    return bytes(data)


def test_a_vendor_s_version_says_nothing_of_the_windows(server):
    Path(server.drivers[0], "viostor.sys").write_bytes(vendors())
    choice = chosen(server, VENDOR)
    assert choice.version == (51, 74, 104, 13000) and not choice.in_box and choice.imports == ("scsiport.sys",)


def test_virtio_win_s_folders(server):
    for folder, version, system in (("2k3", (52, 74, 104, 13000), (5, 2)), ("xp", (51, 74, 104, 13000), (5, 1)),
                                    ("w7", (61, 74, 104, 13000), (5, 1)), ("2k", (99, 0, 0, 0), (5, 0))):
        path = Path(server.drivers[0], "viostor", folder, "x86")
        path.mkdir(parents=True)
        (path / "viostor.sys").write_bytes(vendors(version, system))
    choice = chosen(server, VENDOR)
    assert "/viostor/xp/x86/" in choice.where and choice.version == (51, 74, 104, 13000)


def test_why_a_vendor_s_file_does_not_fit(server):
    for folder, system in (("w7", (5, 1)), ("plain", (6, 1))):
        path = Path(server.drivers[0], folder)
        path.mkdir()
        (path / "viostor.sys").write_bytes(vendors(system=system))
    with pytest.raises(GuestError) as error:
        chosen(server, VENDOR)
    assert "it lies in w7, the folder for another Windows" in error.value.why
    assert "built for Windows 6.1 and later" in error.value.why
    assert "take viostor.sys for a test from virtio-win" in error.value.next


def test_a_vendor_s_driver_that_ships_with_windows_counts_its_own_versions(server):
    """XP's sym_hi is LSI's: its version is not XP's, and its place in XP's own cabinet is what counts."""
    file = spelled_version(pe_file(StandIn("sym_hi.sys", (4, 16, 0, 0))), COMPANY, "LSI Logic".ljust(len(COMPANY)))
    server.put(CACHE + "driver.cab", cabinet({"sym_hi.sys": file}))
    assert chosen(server, replace(WANTED, name="sym_hi.sys")).version == (4, 16, 0, 0)


def test_the_guest_s_cabinet_in_several_parts(server, corpus, needs):
    """Each part is taken from the guest; members that begin in one part and end in another are whole."""
    needs("cabextract")
    for number in range(1, 6):
        server.put(f"{CACHE}Split-{number}.cab", (corpus / "inf" / "cab" / f"split-{number}.cab").read_bytes())
    with Media(server) as media:
        found = list(media._own.cached("\\WINDOWS\\Driver Cache\\i386", "medium2.bin"))
        assert [len(copy.data) for copy in found] == [50000] and not media._unreadable
