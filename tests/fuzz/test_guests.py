"""What lies in a guest or is handed in for it: hives, programs, cabinets, setup texts, boot.ini, under good checksums.

Every answer is one of the family of errors, or findings; it comes soon, and the guest's files stay as they were.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import guests, hives, trees
from fixtures.cabs import cabinet
from fixtures.registry.dirty import NT4, XP, dirty
from p2v.errors import Finding, GuestError, LayoutError, P2VError, Severity, Unsupported, Where
from p2v.guest import bootini, inf, pe
from p2v.guest.cabinet import Cabinet
from p2v.guest.closure import boot_closure
from p2v.guest.expand import expand
from p2v.guest.fixers import FIXERS
from p2v.model import BytesChange, DWord, ExpandText, MultiText, Text, Value
from p2v.registry import regf
from p2v.registry.cells import checksum
from p2v.registry.hive import HiveEditor
from p2v.registry.reader import open_hive
from p2v.testing import DirGuest
from tests.fuzz.bounds import bounded, damaged, fuzz, many
from tests.registry.hive_witness import stored
from tests.registry.test_reader import everything, sample

pytestmark = fuzz
REFUSALS = (GuestError, Unsupported, LayoutError)
HIVES = ("EmptyHive", "UnicodeHive", "StringValuesHive", "BadListHive", "WrongOrderHive", "BigDataHive", "special",
         "sample")
SERVICES = ("disk", "partmgr", "mountmgr", "ftdisk", "pci", "acpi", "isapnp", "i8042prt", "kbdclass", "mouclass",
            "VgaSave", "agp440", "cpqasm", "VMTools", "Hardlock", "atapi", "intelide")
KEYS = 2000  # more than any of these hives has


@cache
def hive(name: str) -> bytes:
    return sample() if name == "sample" else stored(name)


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """Base block and first bins damaged; the checksum made good most of the time, so that damage gets further."""
    copy = draw(damaged(data, [(0, 64), (4096, min(len(data), 16384) - 4096)]))
    if draw(st.sampled_from([True, True, True, False])):
        copy[508:512] = checksum(copy).to_bytes(4, "little")
    return bytes(copy[:draw(st.sampled_from([len(copy)] * 5 + [4096, 512, 100]))])


def answered(act: Callable[[], object]) -> None:
    """An answer, or an error that says what, where and what next."""
    try:
        act()
    except REFUSALS as error:
        assert error.what and error.next and str(error.where)


@many
@given(st.data())
def test_hives_are_read(data):
    bad = data.draw(spoilt(hive(data.draw(st.sampled_from(HIVES)))))
    with bounded():
        answered(lambda: everything(open_hive(bad, "S"), KEYS))
        answered(lambda: regf.lh_to_lf(bad, "S"))
        assert all(finding.what and finding.next for finding in regf.check(bad, "S"))


@many
@given(st.data())
def test_hives_and_their_logs(data):
    edited = HiveEditor(hive("sample"), "S")
    edited.create_key("A\\key 9")
    primary, log = dirty(hive("sample"), edited.commit(), data.draw(st.sampled_from([NT4, XP])))
    bad = bytearray(data.draw(damaged(log, [(0, 64), (512, min(len(log), 1024) - 512)])))
    bad[508:512] = checksum(bad).to_bytes(4, "little")
    if data.draw(st.booleans()):
        primary = data.draw(spoilt(primary))
    with bounded():
        try:
            assert not regf.is_dirty(regf.recover(primary, bytes(bad), "S").data)
        except REFUSALS as error:
            assert error.next and error.where.source in ("S", "S.LOG")


def edit(bad: bytes) -> None:
    """What HiveEditor lets through to hivex; the result is whole."""
    try:
        editor = HiveEditor(bad, "S")
        editor.create_key("A\\key 7\\deep")
        editor.set_value("A\\key 7\\deep", "Start", DWord(9))
        if editor.commit() and open_hive(bad, "S").has("A\\key 3"):
            editor.delete_key("A\\key 3", recursive=True)
        edited = editor.commit()
    except REFUSALS:
        return
    assert not [finding for finding in regf.check(edited, "S") if finding.severity is Severity.ERROR]
    assert open_hive(edited, "S").value("A\\key 7\\deep", "Start") == DWord(9)


@many
@given(st.data())
def test_hives_are_edited(data):
    """In a child: hivex's asserts would end this process."""
    bad = data.draw(spoilt(hive(data.draw(st.sampled_from(HIVES)))))
    child = os.fork()
    if not child:
        try:
            with bounded():
                edit(bad)
        except BaseException as error:  # a child must not go on as a second pytest
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# -- a whole guest


def system_hive() -> bytes:
    """As much of XP's SYSTEM as fixers look at, in a few bins."""
    made = hives.Hive(hives.stored("minimal"))
    made.set("Select", Current=DWord(1), Default=DWord(1), Failed=DWord(0), LastKnownGood=DWord(1))
    services, control = "ControlSet001\\Services", "ControlSet001\\Control"
    for number, name in enumerate(SERVICES):
        made.set(f"{services}\\{name}", Type=DWord(1), Start=DWord(number % 5), ErrorControl=DWord(1),
                 Tag=DWord(number), Group=Text("Base"), ImagePath=ExpandText(f"system32\\drivers\\{name}.sys"))
    disks = f"{control}\\Class\\{{4D36E967-E325-11CE-BFC1-08002BE10318}}"
    made.set(disks, UpperFilters=MultiText("partmgr", "gone"), Class=Text("DiskDrive"))
    made.set(f"{control}\\CriticalDeviceDatabase\\gendisk", Service=Text("disk"), ClassGUID=Text("{x}"))
    made.set(f"{control}\\GroupOrderList", Base=DWord(3))
    made.set(f"{control}\\Session Manager", BootExecute=MultiText("autocheck autochk *"))
    made.set(f"{control}\\ProductOptions", ProductType=Text("WinNT"))
    made.set("ControlSet001\\Enum\\PCI\\VEN_8086&DEV_7111\\3&1", ConfigFlags=DWord(1), ClassGUID=Text("{x}"))
    made.set("ControlSet001\\Hardware Profiles\\0001\\System\\CurrentControlSet\\Enum\\PCIIDE\\IDEChannel\\1",
             CSConfigFlags=DWord(1))
    return made.finish()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, bytes, bytes]:
    """A folder with an XP of a few files, its SYSTEM and SOFTWARE."""
    system = system_hive()
    software = hives.software(hives.Edition("Microsoft Windows XP", "5.1", "2600", "Service Pack 3", "C:\\WINDOWS"))
    parts = trees.Hives(system, (), software, hives.stored("minimal"))
    ini = trees.boot_ini("multi(0)disk(0)rdisk(0)partition(1)", "WINDOWS", "Windows XP", "/fastdetect")
    files = [file for file in trees.windows_tree(trees.XP, parts) if "Driver Cache" not in file.path]
    folder = guests.unpack([*trees.boot_files_of_root(ini), *files], tmp_path_factory.mktemp("small"))
    drivers = folder / "WINDOWS/system32/drivers"
    for name in trees.IDE_FILES:
        (drivers / name).write_bytes(trees.XP.file(name))
    return folder, system, software


def planned(folder: Path, bad: dict[str, bytes]) -> None:
    """All fixers and the closure on these hives: what is planned could be undone, and nothing is written."""
    config = folder / "WINDOWS/system32/config"
    for name, content in bad.items():
        (config / name).write_bytes(content)
    with bounded():
        try:
            guest = DirGuest({"disk0p1": folder})
            for fixer in FIXERS:
                for wish in fixer.plan(guest, guests.PiixTarget()):
                    if isinstance(wish, Finding):
                        assert wish.what and wish.why and wish.next
                    elif not isinstance(wish, BytesChange):
                        assert wish.why and guest.look(wish) == wish.before
            boot_closure(guest, guests.PiixTarget())
        except P2VError as error:
            assert error.what and error.next, error
    assert all((config / name).read_bytes() == content for name, content in bad.items())


def test_the_sound_guest_is_planned_to_the_end(small):
    """Else the two tests below would stop at the same place, whatever is damaged."""
    folder, system, software = small
    planned(folder, {"system": system, "software": software})
    guest = DirGuest({"disk0p1": folder})
    wishes = [wish for fixer in FIXERS for wish in fixer.plan(guest, guests.PiixTarget())]
    assert len({type(wish) for wish in wishes}) == 5  # all four kinds of changes, and findings


@many
@given(st.data())
def test_every_fixer_on_a_damaged_registry(small, data):
    """Loops, lies about sizes, cells that overlap."""
    folder, system, software = small
    which = data.draw(st.sampled_from(["system", "system", "system", "software"]))
    bad = {"system": system, "software": software}
    planned(folder, {**bad, which: data.draw(spoilt(bad[which]))})


PLACES = [("Select", "Default"), ("Select", "LastKnownGood"), ("Select", "Failed"),
          *[(f"ControlSet001\\Services\\{service}", name) for service in SERVICES
            for name in ("Type", "Start", "ImagePath", "Group", "ErrorControl")],
          ("ControlSet001\\Control\\Class\\{4D36E967-E325-11CE-BFC1-08002BE10318}", "UpperFilters"),
          ("ControlSet001\\Control\\CriticalDeviceDatabase\\gendisk", "Service"),
          ("ControlSet001\\Control\\GroupOrderList", "Base"),
          ("ControlSet001\\Control\\Session Manager", "BootExecute"),
          ("ControlSet001\\Enum\\PCI\\VEN_8086&DEV_7111\\3&1", "ConfigFlags"),
          ("ControlSet001\\Enum\\PCI\\VEN_8086&DEV_7111\\3&1", "Service"), ("Setup", "SetupType")]
ODD = st.binary(max_size=40) | st.sampled_from([
    b"", b"\xff", b"\xff\xff\xff\xff", b"\x00\xd8a\x00", "..\\..\\x.sys\0".encode("utf-16-le"),
    "%%%\0".encode("utf-16-le"),
    ("a\0" * 500).encode("utf-16-le"), "\\??\\C:\0".encode("utf-16-le"), '"'.encode("utf-16-le"),
    "C:\\con.sys".encode("utf-16-le"), ("\\" * 300).encode("utf-16-le"), "ab\u0130\u00df\0".encode("utf-16-le")])


@many
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from([0, 1, 2, 3, 4, 7, 11, 0xFFFF]), ODD), min_size=1,
                max_size=8))
def test_every_fixer_on_odd_values(small, edits):
    """Numbers that are texts, texts that are no UTF-16, paths that lead out of the system folder."""
    folder, system, software = small
    made = hives.Hive(system)
    for (key, name), kind, content in edits:
        made.set(key, **{name: Value(kind, content)})
    planned(folder, {"system": made.finish(), "software": software})


# -- files


PROGRAM = trees.XP.file("atapi.sys")
INF = b"""[Version]\r\nSignature="$Windows NT$"\r\n[Manufacturer]\r\n%x%=mfg,NTx86\r\n[mfg.NTx86]\r\n
%d%=inst,PCI\\VEN_1AF4&DEV_1001\r\n[inst.Services]\r\nAddService=viostor,2,svc\r\n[Strings]\r\nx="a"\r\nd="b"\r\n"""
INI = trees.boot_ini("multi(0)disk(0)rdisk(0)partition(1)", "WINNT", "Windows", "/fastdetect /sos")
SZDD = b"SZDD\x88\xf0\x27\x33A\0" + (400).to_bytes(4, "little") + bytes(range(1, 200)) * 3


@many
@given(st.data())
def test_files_in_memory(data):
    what: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "program": (PROGRAM, lambda bad: pe.read_program(bad, "x.sys")),
        "setup text": (INF, lambda bad: inf.bindings(bad, "x86")),
        "setup text in UTF-16": (b"\xff\xfe" + INF.decode().encode("utf-16-le"), lambda bad: inf.bindings(bad, "x64")),
        "boot.ini": (INI, lambda bad: [line.arc for line in bootini.parse(bad).systems]),
        "compressed": (SZDD, lambda bad: expand(bad, "x", 1 << 20)),
    }
    good, act = what[data.draw(st.sampled_from(sorted(what)))]
    bad = bytes(data.draw(damaged(good, [(0, min(len(good), 1024)), (0, len(good))])))
    with bounded():
        answered(lambda: act(bad[:data.draw(st.sampled_from([len(bad)] * 4 + [len(bad) // 2, 1, 0]))]))


@pytest.fixture(scope="module")
def packed() -> bytes:
    return cabinet({"atapi.sys": PROGRAM[:3000], "pciide.sys": b"x" * 5000})


@many
@given(st.data())
def test_cabinets(packed, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bad.cab"
    path.write_bytes(bytes(data.draw(damaged(packed, [(0, 120), (0, len(packed))]))))
    made = Cabinet([path], Where("bad.cab"))
    with bounded():
        answered(lambda: [len(content) for _, content in made.members("atapi.sys", 1 << 20)])
        answered(lambda: made.only(1 << 20))
    assert sorted(one.name for one in path.parent.glob("*.sys")) == []
