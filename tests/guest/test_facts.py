"""Which system is this? Servers, odd boot chains, and what must be refused."""

from __future__ import annotations

import shutil
import struct

import pytest

from fixtures import hives
from fixtures.pe import IA64, StandIn, pe_file
from p2v.errors import GuestError, Severity, Unsupported
from p2v.model import (
    BytesChange,
    Content,
    DWord,
    Family,
    FileChange,
    KeyChange,
    MultiText,
    Recovery,
    Text,
    Value,
    ValueChange,
)
from p2v.testing import DirGuest

EDITION = hives.Edition("Microsoft Windows XP", "5.1", "2600", "Service Pack 3", "C:\\WINDOWS")


def edit(path, **values: Value) -> None:
    """Edit a hive of the tree: values by "key|name" with ! for a backslash."""
    hive = hives.Hive(path.read_bytes())
    for place, value in values.items():
        key, name = place.split("|")
        hive.set(key.replace("!", "\\"), **{name: value})
    path.write_bytes(hive.finish())


def software(**values: str) -> bytes:
    fields = {name: getattr(EDITION, name) for name in EDITION.__slots__} | values
    return hives.software(hives.Edition(**fields))


@pytest.mark.parametrize(("server", "name", "boot"), [
    ("xp_server", "Windows XP Service Pack 3 (x86)", "mraid35x"),
    ("x64_server", "Windows XP Service Pack 2 (x64)", "mraid35x"),
    ("nt4_server", "Windows NT 4.0 Server Enterprise Edition Service Pack 3 (x86)", "Cpqarray"),
    ("nt4_fat_server", "Windows NT 4.0 Server Enterprise Edition Service Pack 3 (x86)", "Cpqarray"),
])
def test_servers(server, name, boot, request, see):
    built = request.getfixturevalue(server)
    guest = see(built)
    facts = guest.facts
    assert facts.family is Family.WINDOWS and facts.name == name
    assert (facts.version, facts.service_pack) == (built.version, built.service_pack)
    assert (facts.architecture, facts.system_root) == (built.architecture, built.system_root)
    assert facts.boot_volume == facts.system_volume == "disk0p1"
    assert facts.control_sets == ("ControlSet001", "ControlSet002")
    assert facts.default_control_set == "ControlSet001"
    assert boot.lower() in [one.lower() for one in facts.boot_drivers]
    assert facts.page_files and facts.page_files[0].lower().startswith("c:\\pagefile.sys")
    assert set(facts.hives) == {"SYSTEM", "SOFTWARE"}
    assert guest.findings == ()


def test_what_lies_at_a_change_s_place(xp_guest):
    key = "ControlSet001\\Control\\CrashControl"
    place = xp_guest.facts.hives["SYSTEM"]
    assert xp_guest.look(ValueChange("SYSTEM", key, "autoreboot", None, None, "")) == DWord(1)
    assert xp_guest.look(ValueChange("SYSTEM", key + "\\none", "x", None, None, "")) is None
    assert xp_guest.look(KeyChange("SYSTEM", key.upper(), False, True, "")) is True
    assert xp_guest.look(KeyChange("SYSTEM", key + "\\none", False, True, "")) is False
    found = xp_guest.look(FileChange("disk0p1", "\\BOOT.INI", None, None, ""))
    assert isinstance(found, Content) and found.data.startswith(b"[boot loader]")
    assert xp_guest.look(FileChange("disk0p1", "\\windows", None, None, "")) is None
    assert xp_guest.look(FileChange("disk0p1", "\\none\\x", None, None, "")) is None
    assert xp_guest.look(BytesChange("disk0", 510, b"ab", b"ab", "")) == b"\x55\xaa"
    assert xp_guest.look(Recovery("hive-log", "disk0p1", place.path, "", "")) is None
    with pytest.raises(GuestError, match="no hive SAM"):
        xp_guest.hive("SAM")


def test_a_half_written_hive_is_read_with_its_log(xp_tree):
    config = xp_tree / "WINDOWS" / "system32" / "config"
    whole = DirGuest({"disk0p1": xp_tree})
    hive, log = hives.half_written((config / "system").read_bytes())
    (config / "system").write_bytes(hive)
    (config / "system.LOG").write_bytes(log)
    guest = DirGuest({"disk0p1": xp_tree})
    assert guest.recovered("SYSTEM").replayed and not guest.recovered("SOFTWARE").replayed
    assert guest.facts == whole.facts


def test_default_counts_not_current(xp_tree):
    edit(xp_tree / "WINDOWS/system32/config/system", **{"Select|Default": DWord(2), "Select|Current": DWord(1)})
    assert DirGuest({"disk0p1": xp_tree}).facts.default_control_set == "ControlSet002"


@pytest.mark.parametrize("value", [DWord(0), DWord(9), Text("2")])
def test_no_control_set_to_start(xp_tree, value):
    edit(xp_tree / "WINDOWS/system32/config/system", **{"Select|Default": value})
    with pytest.raises(GuestError, match="no control set"):
        DirGuest({"disk0p1": xp_tree})


def test_a_folder_of_any_name_is_found_through_boot_ini(xp_tree):
    shutil.move(xp_tree / "WINDOWS", xp_tree / "WTSRV.000")
    ini = xp_tree / "boot.ini"
    ini.write_bytes(ini.read_bytes().replace(b"\\WINDOWS", b"\\wtsrv.000"))
    assert DirGuest({"disk0p1": xp_tree}).facts.system_root == "\\WTSRV.000"


def test_two_windows_the_default_one_counts(xp_tree):
    shutil.copytree(xp_tree / "WINDOWS", xp_tree / "WINNT.OLD")
    guest = DirGuest({"disk0p1": xp_tree})
    assert guest.facts.system_root == "\\WINDOWS"
    assert [finding.where.item for finding in guest.findings] == ["\\WINNT.OLD"]
    assert guest.findings[0].what.endswith(": Windows XP")


def test_the_default_is_another_system(xp_tree):
    ini = xp_tree / "boot.ini"
    text = ini.read_bytes().replace(b"default=multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS", b"default=C:\\")
    ini.write_bytes(text + b'C:\\="Windows 98"\r\n')
    guest = DirGuest({"disk0p1": xp_tree})
    assert guest.facts.system_root == "\\WINDOWS"
    assert [finding.severity for finding in guest.findings] == [Severity.WARNING]


@pytest.mark.parametrize("ini", [
    None, b"", b"[boot loader]\r\ndefault=multi(0)disk(0)rdisk(5)partition(7)\\W\r\n"])
def test_without_a_usable_boot_ini_the_only_windows_counts(xp_tree, ini):
    (xp_tree / "boot.ini").unlink() if ini is None else (xp_tree / "boot.ini").write_bytes(ini)
    guest = DirGuest({"disk0p1": xp_tree})
    assert guest.facts.system_root == "\\WINDOWS"
    assert [finding.severity for finding in guest.findings] == [Severity.WARNING]


def test_two_windows_and_no_line_that_leads_to_one(xp_tree):
    shutil.copytree(xp_tree / "WINDOWS", xp_tree / "WINNT")
    (xp_tree / "boot.ini").write_bytes(b"[operating systems]\r\n")
    with pytest.raises(GuestError, match=r"no line of boot\.ini") as error:
        DirGuest({"disk0p1": xp_tree})
    assert "\\WINNT on disk0p1" in error.value.why


@pytest.mark.parametrize(("sign", "said"), [
    ("bootmgr", "Windows Vista or later"), ("etc", "a Unix system"), ("os2ldr", "OS/2"), ("win.com", "Windows 9x"),
    ("grub", "a Linux boot volume"), (None, "holds a Windows in")])
def test_no_ntldr(xp_tree, sign, said):
    (xp_tree / "ntldr").unlink()
    if sign:
        (xp_tree / sign).write_bytes(b"")
    with pytest.raises(Unsupported, match="no Windows NT 4") as error:
        DirGuest({"disk0p1": xp_tree})
    assert said in error.value.why and "p2v image" in error.value.next


def test_a_disk_of_linux_is_said(tmp_path):
    disk = bytearray(200 * 512)
    disk[0x1BE:0x1CE] = struct.pack("<B3sB3sII", 0x80, b"\0\0\0", 0x83, b"\0\0\0", 63, 100)
    disk[510:512] = b"\x55\xaa"
    with pytest.raises(Unsupported) as error:
        DirGuest({"disk0p1": tmp_path}, {"disk0": disk})
    assert "disk0 has a partition of Linux (type 83)" in error.value.why


def test_an_empty_volume(tmp_path):
    with pytest.raises(Unsupported, match="no Windows NT 4"):
        DirGuest({"disk0p1": tmp_path})


@pytest.mark.parametrize(("version", "said"), [
    ("3.51", "Windows NT 3.51"), ("6.0", "Vista or Server 2008"), ("6.1", "Windows 7"), ("10.0", "NT 10.0")])
def test_other_versions_are_imaged_only(xp_tree, version, said):
    (xp_tree / "WINDOWS/system32/config/software").write_bytes(software(version=version))
    with pytest.raises(Unsupported, match=said) as error:
        DirGuest({"disk0p1": xp_tree})
    assert "p2v image" in error.value.next


@pytest.mark.parametrize(("version", "product", "suites", "pack", "name"), [
    ("4.0", "WinNT", (), "6", "Windows NT 4.0 Workstation Service Pack 6"),
    ("4.0", "ServerNT", (), "", "Windows NT 4.0 Server"),
    ("4.0", "LanmanNT", ("Enterprise",), "1", "Windows NT 4.0 Server Enterprise Edition Service Pack 1"),
    ("4.0", "ServerNT", ("Terminal Server", "Enterprise"), "5",
     "Windows NT 4.0 Server Terminal Server Edition Service Pack 5"),
    ("5.0", "WinNT", (), "4", "Windows 2000 Professional Service Pack 4"),
    ("5.0", "ServerNT", ("Terminal Server",), "", "Windows 2000 Server"),
    ("5.0", "ServerNT", ("Enterprise",), "2", "Windows 2000 Advanced Server Service Pack 2"),
    ("5.0", "ServerNT", ("DataCenter", "Enterprise"), "", "Windows 2000 Datacenter Server"),
    ("5.1", "WinNT", ("Personal",), "3", "Windows XP Home Edition Service Pack 3"),
    ("5.1", "WinNT", (), "", "Windows XP"),
    ("5.2", "ServerNT", ("Blade",), "", "Windows Server 2003 Web Edition"),
    ("5.2", "LanmanNT", ("Enterprise",), "2", "Windows Server 2003 Enterprise Edition Service Pack 2"),
    ("5.2", "WinNT", (), "2", "Windows XP Service Pack 2"),
])
def test_every_edition_has_its_name(xp_tree, version, product, suites, pack, name):
    config = xp_tree / "WINDOWS/system32/config"
    (config / "software").write_bytes(software(version=version, service_pack=f"Service Pack {pack}" if pack else ""))
    edit(config / "system", **{"ControlSet001!Control!ProductOptions|ProductType": Text(product),
                               "ControlSet001!Control!ProductOptions|ProductSuite": MultiText(*suites)})
    assert DirGuest({"disk0p1": xp_tree}).facts.name == f"{name} (x86)"


def test_a_second_release_and_a_service_pack_6a(xp_tree):
    config = xp_tree / "WINDOWS/system32/config"
    (config / "software").write_bytes(software(version="4.0", service_pack="Service Pack 6"))
    edit(config / "software", **{"Microsoft!Windows NT!CurrentVersion!Hotfix!Q246009|Installed": DWord(1)})
    assert "Service Pack 6a" in DirGuest({"disk0p1": xp_tree}).facts.name
    (config / "software").write_bytes(software(version="5.2", product="Microsoft Windows Server 2003 R2"))
    edit(config / "system", **{"ControlSet001!Control!ProductOptions|ProductType": Text("ServerNT")})
    assert DirGuest({"disk0p1": xp_tree}).facts.name.startswith("Windows Server 2003 R2 Service Pack 3")


@pytest.mark.parametrize(("hive", "spoil"), [
    ("system", lambda data: data[:5000]), ("system", lambda data: b"regf" + bytes(8000)), ("system", None),
    ("software", lambda data: b""), ("software", None), ("software", lambda data: software(version="?")),
])
def test_missing_and_damaged_hives(xp_tree, hive, spoil):
    path = xp_tree / "WINDOWS/system32/config" / hive
    path.unlink() if spoil is None else path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises((GuestError, Unsupported)) as error:
        DirGuest({"disk0p1": xp_tree})
    assert error.value.why and error.value.next


@pytest.mark.parametrize("name", ["ntoskrnl.exe", "hal.dll"])
def test_missing_and_damaged_kernels(xp_tree, name):
    path = xp_tree / "WINDOWS/system32" / name
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(GuestError, match="not a whole Windows program"):
        DirGuest({"disk0p1": xp_tree})
    path.unlink()
    with pytest.raises(GuestError, match="is missing"):
        DirGuest({"disk0p1": xp_tree})


def test_another_processor(xp_tree):
    kernel = pe_file(StandIn("ntoskrnl.exe", (5, 1, 2600, 0), machine=IA64))
    (xp_tree / "WINDOWS/system32/ntoskrnl.exe").write_bytes(kernel)
    with pytest.raises(Unsupported, match="another processor"):
        DirGuest({"disk0p1": xp_tree})


def test_a_kernel_of_another_system_is_doubted(xp_tree):
    kernel = pe_file(StandIn("ntoskrnl.exe", (5, 2, 3790, 3959)))
    (xp_tree / "WINDOWS/system32/ntoskrnl.exe").write_bytes(kernel)
    findings = DirGuest({"disk0p1": xp_tree}).findings
    assert [finding.what for finding in findings] == ["the registry and the kernel name different systems"]


def test_hal_and_kernel_of_the_default_line_count(xp_tree):
    ini = xp_tree / "boot.ini"
    ini.write_bytes(ini.read_bytes().replace(b"/fastdetect", b"/fastdetect /HAL=halup.dll"))
    hal = pe_file(StandIn("hal.dll", (5, 1, 2600, 5512)))
    (xp_tree / "WINDOWS/system32/HALUP.DLL").write_bytes(hal)
    assert DirGuest({"disk0p1": xp_tree}).facts.hal.original_name == "hal.dll"
