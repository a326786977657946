"""HAL and kernel: which one a guest has, where it runs, and the pair that is put beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures import guests, trees
from fixtures.hives import Hive
from fixtures.pe import StandIn, pe_file
from p2v.errors import Finding, Severity
from p2v.guest import hal
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import boot_ini, hal_kernel
from p2v.model import FileChange, MultiText, PEFacts
from p2v.testing import DirGuest, check_fixer

SP3 = (4, 0, 1381, 4)  # what the NT 4 tree's kernel says
XP_SP3 = (5, 1, 2600, 5512)


class NoTable(guests.PiixTarget):
    """A target whose firmware builds no MP table."""

    NAME = "bare"
    HAS_MP_TABLE = False


class NoAcpi(guests.PiixTarget):
    """A target without ACPI."""

    NAME = "plain"
    HAS_ACPI = False


@dataclass
class Tree:
    """A guest's folder, its HAL and kernels to replace."""

    folder: Path
    root: str
    system: trees.System

    def put(self, name: str, original: str, version=None, company: str = "") -> None:
        """system32\\NAME becomes what is ORIGINAL on the CD."""
        data = pe_file(replace(self.system.stand_in(original), version=version or self.system.pack))
        if company:
            data = with_company(data, company)
        (self.folder / self.root / "system32" / name).write_bytes(data)

    def guest(self, *drivers: Path) -> DirGuest:
        return DirGuest({"disk0p1": self.folder}, drivers=[str(one) for one in drivers])

    def ini(self) -> list[str]:
        text = (self.folder / "boot.ini").read_text()
        return text[text.index("[operating systems]"):].splitlines()[1:]


def with_company(data: bytes, company: str) -> bytes:
    old = "p2v test stand-in, not Microsoft's".encode("utf-16-le")
    assert data.count(old) == 1
    return data.replace(old, company.ljust(len(old) // 2, "\0").encode("utf-16-le"))


@pytest.fixture
def nt4(nt4_tree) -> Tree:
    return Tree(nt4_tree, "WINNT", trees.NT4)


@pytest.fixture
def xp(xp_tree) -> Tree:
    return Tree(xp_tree, "WINDOWS", trees.XP)


def pack(folder: Path, version=SP3, *, names=("hal.dll", "ntoskrnl.exe", "halmps.dll", "ntkrnlmp.exe")) -> Path:
    """A service pack, unpacked."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(pe_file(StandIn(name, version, ("hal.dll",))))
    return folder


def fitted(tree: Tree, target, *drivers: Path) -> list[Finding]:
    """The guest after both fixers, and that they want no more."""
    said = []
    for fixer in (hal_kernel, boot_ini):  # in this order: a line that names files that are not there starts nothing
        wishes = check_fixer(fixer, tree.guest(*drivers), target)
        said += [wish for wish in wishes if isinstance(wish, Finding)]
        tree.guest(*drivers).apply([wish for wish in wishes if not isinstance(wish, Finding)])
    again = [wish for fixer in (hal_kernel, boot_ini) for wish in fixer.plan(tree.guest(*drivers), target)]
    assert [wish for wish in again if not isinstance(wish, Finding)] == []
    return said


LINE = 'multi(0)disk(0)rdisk(0)partition(1)\\WINNT="Windows NT{}" {}'


# -- identification


@pytest.mark.parametrize(("name", "company", "family", "processors"), [
    ("hal.dll", "Microsoft Corporation", hal.Family.STANDARD, "one"),
    ("HALMPS.DLL", "Microsoft Corporation", hal.Family.MPS, "many"),
    ("halmps.dll", "Compaq Computer Corporation", hal.Family.VENDOR, "many"),
    ("halsp.dll", "Microsoft Corporation", hal.Family.VENDOR, "many"),
    ("halaacpi.dll", "Microsoft Corporation", hal.Family.ACPI, "one"),
    ("halmacpi.dll", "Microsoft Corporation", hal.Family.ACPI, "many"),
    ("halunisy.dll", "Unisys", hal.Family.VENDOR, ""),
    ("halother.dll", "Microsoft Corporation", hal.Family.UNKNOWN, ""),  # refuses nothing
    ("", "", hal.Family.UNKNOWN, ""),
])
def test_what_the_file_says(nt4, name, company, family, processors):
    facts = replace(nt4.guest().facts, hal=PEFacts("x86", SP3, name, company, ()))
    found = hal.identify(facts)
    assert (found.family, found.processors) == (family, processors)


def test_the_pnp_tree_of_a_physical_xp(xp):
    tree = xp.guest().hive("SYSTEM")
    assert hal.device_family(tree, "ControlSet001") is hal.Family.ACPI
    assert hal.device_ids(tree, "ControlSet001") == ("acpiapic_up",)


def test_nt4_has_no_pnp_tree(nt4):
    assert hal.device_family(nt4.guest().hive("SYSTEM"), "ControlSet001") is hal.Family.UNKNOWN


# -- NT 4


def test_a_standard_pc_needs_nothing(nt4, piix_target):
    assert list(hal_kernel.plan(nt4.guest(), piix_target)) == []


@pytest.mark.parametrize("kernel", ["ntkrnlmp.exe", "ntoskrnl.exe"])
def test_a_vendors_hal_gets_the_standard_pair_in_front(nt4, piix_target, tmp_path, kernel):
    nt4.put("hal.dll", "halsp.dll")
    nt4.put("ntoskrnl.exe", kernel)
    before = {name: (nt4.folder / "WINNT/system32" / name).read_bytes() for name in ("hal.dll", "ntoskrnl.exe")}
    old = nt4.ini()
    given = pack(tmp_path / "sp3" / "i386")
    fitted(nt4, piix_target, given)
    pair = "/HAL=halup.dll" + (" /KERNEL=krnlup.exe" if kernel == "ntkrnlmp.exe" else "")
    lines = nt4.ini()
    assert lines[0].endswith(f'"Windows NT [VM HAL]" {pair}')
    assert lines[1] == old[0].replace("scsi(0)", "multi(0)")
    assert lines[2].endswith(f'"Windows NT [VM diagnostic]" {pair} /SOS /BASEVIDEO') and len(lines) == 3
    system32 = nt4.folder / "WINNT/system32"
    assert {name: (system32 / name).read_bytes() for name in before} == before
    assert (system32 / "halup.dll").read_bytes() == (given / "hal.dll").read_bytes()
    assert (system32 / "krnlup.exe").exists() == (kernel == "ntkrnlmp.exe")
    facts = nt4.guest().facts
    assert facts.hal.original_name == "hal.dll" and facts.kernel.original_name == "ntoskrnl.exe"


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: (folder / "hal.dll").unlink(), "hal.dll"),
    (lambda folder: (folder / "ntoskrnl.exe").unlink(), "ntoskrnl.exe"),
    (lambda folder: (folder / "ntoskrnl.exe").write_bytes(pe_file(StandIn("ntoskrnl.exe", (4, 0, 1381, 335)))),
     "its version is 4.0.1381.335, the installed kernel's 4.0.1381.4"),
    (lambda folder: (folder / "hal.dll").write_bytes((folder / "halmps.dll").read_bytes()), "it is halmps.dll"),
    (lambda folder: (folder / "hal.dll").write_bytes(b"MZ"), "no whole program file"),
    (lambda folder: (folder / "hal.dll").write_bytes(pe_file(StandIn("hal.dll", SP3, checked=True))), "checked"),
    (lambda folder: (folder / "hal.dll").rename(folder.parent / "hal.dll"), "it lies apart from ntoskrnl.exe"),
])
def test_a_vendors_hal_and_no_pair_that_fits(nt4, piix_target, tmp_path, spoil, said):
    nt4.put("hal.dll", "halsp.dll")
    nt4.put("ntoskrnl.exe", "ntkrnlmp.exe")
    given = pack(tmp_path / "given" / "i386")
    spoil(given)
    wishes = list(hal_kernel.plan(nt4.guest(tmp_path / "given"), piix_target))
    assert [type(wish) for wish in wishes] == [Finding]
    assert wishes[0].severity is Severity.ERROR and said in wishes[0].what + wishes[0].why
    assert "Service Pack 3 for Windows NT 4.0" in wishes[0].next and "--drivers" in wishes[0].next
    assert "4.0.1381.4" in wishes[0].next


def test_an_mps_hal_stays_where_there_is_a_table(nt4, piix_target, tmp_path):
    nt4.put("hal.dll", "halmps.dll")
    nt4.put("ntoskrnl.exe", "ntkrnlmp.exe")
    assert [wish.severity for wish in hal_kernel.plan(nt4.guest(), piix_target)] == [Severity.INFO]
    fitted(nt4, piix_target, pack(tmp_path / "sp3"))
    lines = nt4.ini()
    assert len(lines) == 2 and lines[0].endswith('"Windows NT" ')
    assert lines[1].endswith('"Windows NT [VM diagnostic]" /HAL=halup.dll /KERNEL=krnlup.exe /SOS /BASEVIDEO')
    assert nt4.guest().facts.hal.original_name == "halmps.dll"


def test_an_mps_hal_where_no_table_is_known(nt4, tmp_path):
    nt4.put("hal.dll", "halmps.dll")
    nt4.put("ntoskrnl.exe", "ntkrnlmp.exe")
    assert [wish.severity for wish in hal_kernel.plan(nt4.guest(), NoTable())] == [Severity.WARNING]
    fitted(nt4, NoTable(), pack(tmp_path / "sp3"))
    assert nt4.guest().facts.hal.original_name == "hal.dll"


def test_names_in_use_are_left_alone(nt4, piix_target, tmp_path):
    nt4.put("hal.dll", "halsp.dll")
    nt4.put("halup.dll", "halmps.dll")
    fitted(nt4, piix_target, pack(tmp_path / "sp3"))
    assert nt4.ini()[0].endswith("/HAL=halup2.dll")


def test_a_hal_that_says_nothing_is_kept(nt4, piix_target):
    nt4.put("hal.dll", "hal.dll")
    path = nt4.folder / "WINNT/system32/hal.dll"
    path.write_bytes(path.read_bytes().replace("OriginalFilename".encode("utf-16-le"),
                                               "OtherginalFilnam".encode("utf-16-le")))
    wishes = list(hal_kernel.plan(nt4.guest(), piix_target))
    assert [wish.severity for wish in wishes] == [Severity.WARNING]


def test_hal_and_kernel_of_different_kinds_are_doubted(nt4, piix_target):
    nt4.put("ntoskrnl.exe", "ntkrnlmp.exe")
    assert [wish.what for wish in hal_kernel.plan(nt4.guest(), piix_target)] == [
        "HAL and kernel do not belong together"]


# -- 2000 and later


@pytest.mark.parametrize(("name", "kernel"), [("halaacpi.dll", "ntoskrnl.exe"), ("halmacpi.dll", "ntkrnlmp.exe"),
                                              ("halacpi.dll", "ntoskrnl.exe")])
def test_acpi_is_left_alone(xp, name, kernel):
    xp.put("hal.dll", name)
    xp.put("ntoskrnl.exe", kernel)
    assert list(hal_kernel.plan(xp.guest(), NoTable())) == []
    wishes = list(hal_kernel.plan(xp.guest(), NoAcpi()))
    assert [wish.severity for wish in wishes] == [Severity.ERROR] and "0xA5" in wishes[0].why


def devices(xp: Tree, name: str | None, identity: str) -> None:
    """The PnP tree's computer."""
    path = xp.folder / "WINDOWS/system32/config/system"
    hive = Hive(path.read_bytes())
    for control_set in hive.control_sets():
        hive.delete(f"{control_set}\\Enum\\Root\\ACPI_HAL")
        if name:
            hive.set(f"{control_set}\\Enum\\Root\\{name}\\0000", HardwareID=MultiText(identity))
    path.write_bytes(hive.finish())


def test_a_vendors_hal_in_an_acpi_tree_stays_acpi(xp, piix_target):
    """Out of the guest's own ServicePackFiles."""
    xp.put("hal.dll", "halunisy.dll")
    fitted(xp, piix_target)
    line = xp.ini()[0]
    assert line.endswith("[VM HAL]\" /fastdetect /HAL=halmp.dll /KERNEL=krnlmp.exe /NOEXECUTE=ALWAYSOFF /NOPAE")
    assert xp.guest().facts.hal.original_name == "halmacpi.dll"


def test_a_vendors_hal_in_a_standard_tree_stays_standard(xp, tmp_path):
    xp.put("hal.dll", "halmps.dll")
    xp.put("ntoskrnl.exe", "ntkrnlmp.exe")
    devices(xp, "PCI_HAL", "mps_mp")
    given = pack(tmp_path / "sp3", XP_SP3)
    fitted(xp, NoTable(), given)
    assert "/HAL=halup.dll /KERNEL=krnlup.exe" in xp.ini()[0]


def test_no_family_no_hal(xp, piix_target):
    xp.put("hal.dll", "halunisy.dll")
    devices(xp, None, "")
    wishes = list(hal_kernel.plan(xp.guest(), piix_target))
    assert [wish.severity for wish in wishes] == [Severity.ERROR] and "PnP tree" in wishes[0].why


def test_hal_and_pnp_tree_differ(xp, piix_target):
    devices(xp, "PCI_HAL", "e_isa_up")
    assert [wish.what for wish in hal_kernel.plan(xp.guest(), piix_target)] == [
        "HAL and PnP tree name different computers"]


# -- PAE through NX


def nx_line(xp: Tree, target) -> tuple[str, list[str]]:
    wishes = list(boot_ini.plan(xp.guest(), target))
    after = next(wish.after.data.decode() for wish in wishes if isinstance(wish, FileChange))
    line = next(one for one in after.splitlines() if one.endswith(("/fastdetect", "/NOPAE")) or "/EXECUTE" in one)
    return line.partition('" ')[2], [wish.what for wish in wishes if isinstance(wish, Finding)]


def test_the_kernel_for_nx_is_there(xp, piix_target):
    assert nx_line(xp, piix_target) == ("/fastdetect", ["Windows may start with its PAE kernel"])


@pytest.mark.parametrize("spoil", [
    lambda xp: (xp.folder / "WINDOWS/system32/ntkrnlpa.exe").unlink(),
    lambda xp: xp.put("ntkrnlpa.exe", "ntkrnlpa.exe", (5, 1, 2600, 2180)),
    lambda xp: xp.put("ntkrnlpa.exe", "ntkrpamp.exe"),
    lambda xp: (xp.folder / "WINDOWS/system32/ntkrnlpa.exe").write_bytes(b"MZ"),
])
def test_the_kernel_for_nx_does_not_fit(xp, piix_target, spoil):
    spoil(xp)
    ini = xp.folder / "boot.ini"
    ini.write_bytes(ini.read_bytes().replace(b"/fastdetect", b"/noexecute=optin /fastdetect"))
    assert nx_line(xp, piix_target) == ("/fastdetect /NOEXECUTE=ALWAYSOFF /NOPAE",
                                        ["the kernel that a processor with NX gets cannot start"])
    fitted(xp, piix_target)


@pytest.mark.parametrize("switch", [b"/execute", b"/noexecute=AlwaysOff", b"/NOPAE", b"/pae"])
def test_a_line_that_decides_itself(xp, piix_target, switch):
    (xp.folder / "WINDOWS/system32/ntkrnlpa.exe").unlink()
    ini = xp.folder / "boot.ini"
    ini.write_bytes(ini.read_bytes().replace(b"/fastdetect", b"/fastdetect " + switch))
    wishes = list(boot_ini.plan(xp.guest(), piix_target))
    assert not [wish for wish in wishes if isinstance(wish, Finding)]
    assert b"NOEXECUTE=ALWAYSOFF /NOPAE" not in next(w.after.data for w in wishes if isinstance(w, FileChange))


def test_the_boot_closure_looks_at_the_pair_that_starts(nt4, piix_target, tmp_path):
    nt4.put("hal.dll", "halsp.dll")
    fitted(nt4, piix_target, pack(tmp_path / "sp3"))
    (nt4.folder / "WINNT/system32/hal.dll").unlink()  # the old one: not loaded any more
    path = nt4.folder / "WINNT/system32/halup.dll"
    path.write_bytes(pe_file(StandIn("hal.dll", SP3, ("ntoskrnl.exe", "nowhere.dll"))))
    assert "needs nowhere.dll" in " ".join(finding.what for finding in boot_closure(nt4.guest(), piix_target))
