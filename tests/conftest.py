"""What tests share: where the corpus is, and how a missing witness is handled."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package fixtures, which is not installed

from fixtures import branded, fat32, guests, variants
from fixtures.servers import (
    Server,
    build_nt4_fat16,
    build_nt4_ntfs,
    build_two_disk,
    build_x64,
    build_xp,
)
from fixtures.trees import ATAPI_NT4_SP6A, NT4, TreeFile
from p2v.testing import DirGuest


def absent(reason: str) -> None:
    """Skip for a reason; in CI a missing witness is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must be there: {reason}")
    pytest.skip(reason)


APPLIANCE_STARTS = 10  # in the whole run: each costs ten seconds without KVM


@pytest.fixture(scope="session", autouse=True)
def few_appliance_starts(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fails the quick run when it has started the libguestfs appliance more often than agreed."""
    if "not slow" not in pytestconfig.getoption("-m"):
        yield
        return
    try:
        import guestfs
    except ImportError:
        yield
        return
    starts: list[object] = []
    launch = guestfs.GuestFS.launch

    def counted(handle: object) -> object:
        result = launch(handle)
        starts.append(handle.__class__)  # a launch that fails, because there is no KVM, costs nothing
        return result

    guestfs.GuestFS.launch = counted
    yield
    guestfs.GuestFS.launch = launch
    assert len(starts) <= APPLIANCE_STARTS, f"the tests started the appliance {len(starts)} times"


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real sample data, named by P2V_CORPUS."""
    folder = os.environ.get("P2V_CORPUS", "")
    if not folder or not Path(folder).is_dir():
        absent("P2V_CORPUS does not name the folder of real sample data")
    return Path(folder)


@pytest.fixture
def needs():
    """needs("qemu-img", …): skip (in CI: fail) where a witness program is missing."""

    def check(*programs: str) -> None:
        for program in programs:
            if shutil.which(program) is None:
                absent(f"{program} is not installed")

    return check


# Whole servers, built once per run (0.3 s each, NT 4 on NTFS 2 s). Treat their images as read-only.


@pytest.fixture(scope="session")
def xp_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Windows XP SP3, the physical Dell, on NTFS. Needs no corpus."""
    return build_xp(tmp_path_factory.mktemp("xp"))


@pytest.fixture(scope="session")
def two_disk_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The XP server with a second disk of data. Needs no corpus."""
    return build_two_disk(tmp_path_factory.mktemp("two-disk"))


@pytest.fixture(scope="session")
def nt4_fat_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Windows NT 4 Server on FAT16; its atapi.sys is in .supplied. Needs no corpus."""
    return build_nt4_fat16(tmp_path_factory.mktemp("nt4-fat16"))


@pytest.fixture(scope="session")
def nt4_server(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Server:
    """Windows NT 4 Server on NTFS 1.2; its atapi.sys is in .supplied."""
    return build_nt4_ntfs(tmp_path_factory.mktemp("nt4-ntfs"), corpus)


@pytest.fixture(scope="session")
def x64_server(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Server:
    """Windows XP x64 SP2 (NT 5.2) on NTFS."""
    return build_x64(tmp_path_factory.mktemp("xp-x64"), corpus)


@pytest.fixture(scope="session")
def proliant_server(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Server:
    """NT 4 Server SP6a on a Compaq ProLiant, behind Compaq's partition; its service pack is in .supplied."""
    return branded.build_proliant(tmp_path_factory.mktemp("proliant"), corpus)


@pytest.fixture(scope="session")
def poweredge_server(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Server:
    """2000 Server SP4 (synthesised) on a Dell PowerEdge, on NTFS 3.0 behind Dell's partition."""
    return branded.build_poweredge(tmp_path_factory.mktemp("poweredge"), corpus)


@pytest.fixture(scope="session")
def xseries_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """2003 Server SP2 (a stand-in) on an IBM xSeries. Needs no corpus."""
    return branded.build_xseries(tmp_path_factory.mktemp("xseries"))


@pytest.fixture(scope="session")
def fat32_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Windows XP SP3 on FAT32. Needs no corpus."""
    return fat32.build_xp_fat32(tmp_path_factory.mktemp("xp-fat32"))


# Guests as plain folders: a hundredth of a second each, and free to be spoilt.


@pytest.fixture(scope="session")
def piix_target() -> guests.PiixTarget:
    """As much of a target as fixers look at."""
    return guests.PiixTarget()


@pytest.fixture(scope="session")
def xp_files() -> list[TreeFile]:
    """The XP server's files."""
    return guests.xp_files()


@pytest.fixture(scope="session")
def nt4_files() -> list[TreeFile]:
    """The NT 4 server's files."""
    return guests.nt4_files()


@pytest.fixture
def xp_tree(xp_files: list[TreeFile], tmp_path: Path) -> Path:
    """The XP server's files in a folder."""
    return guests.unpack(xp_files, tmp_path / "xp")


@pytest.fixture
def nt4_tree(nt4_files: list[TreeFile], tmp_path: Path) -> Path:
    """The NT 4 server's files in a folder."""
    return guests.unpack(nt4_files, tmp_path / "nt4")


@pytest.fixture
def atapi_folder(tmp_path: Path) -> str:
    """What a user hands in for NT 4: atapi.sys of SP6a, a level below the folder that is named."""
    folder = tmp_path / "given"
    (folder / "sp6").mkdir(parents=True)
    (folder / "sp6" / "ATAPI.SYS").write_bytes(NT4.file("atapi.sys", ATAPI_NT4_SP6A))
    return str(folder)


@pytest.fixture
def xp_guest(xp_tree: Path) -> DirGuest:
    """The XP server as a folder."""
    return DirGuest({"disk0p1": xp_tree})


@pytest.fixture
def nt4_guest(nt4_tree: Path, atapi_folder: str) -> DirGuest:
    """The NT 4 server as a folder, with atapi.sys handed in."""
    return DirGuest({"disk0p1": nt4_tree}, drivers=[atapi_folder])


@pytest.fixture
def w2000_guest(tmp_path: Path) -> DirGuest:
    """2000 Server (synthesised) on the PowerEdge as a folder."""
    return variants.make(variants.VARIANTS[branded.POWEREDGE.name], tmp_path)


@pytest.fixture
def w2003_guest(tmp_path: Path) -> DirGuest:
    """2003 Server (a stand-in) on the xSeries as a folder."""
    return variants.make(variants.VARIANTS[branded.XSERIES.name], tmp_path)
