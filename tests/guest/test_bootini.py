"""boot.ini: paths, lines that stay byte for byte, and what the fixer makes of real and odd files."""

from __future__ import annotations

import pytest

from p2v.errors import Finding, GuestError, Severity
from p2v.guest import bootini
from p2v.guest.bootini import ArcPath, parse, parse_arc
from p2v.guest.fixers import boot_ini
from p2v.testing import DirGuest

HEAD = b"[boot loader]\r\ntimeout=30\r\ndefault=%s\\WINNT\r\n[operating systems]\r\n"
MULTI = "multi(0)disk(0)rdisk(0)partition(1)"
LINE = b'%s\\WINNT="Windows NT Server" /sos\r\n'


@pytest.mark.parametrize(("text", "arc"), [
    (f"{MULTI}\\WINNT", ArcPath("multi", 0, 0, 0, 1, "\\WINNT")),
    (" MULTI(0)DISK(0)RDISK(2)PARTITION(3)\\winnt.sbs\\ ", ArcPath("multi", 0, 0, 2, 3, "\\winnt.sbs")),
    ("scsi(1)disk(6)rdisk(0)partition(2)\\WTSRV", ArcPath("scsi", 1, 6, 0, 2, "\\WTSRV")),
    ("signature(8b467c12)disk(0)rdisk(0)partition(2)\\WINNT",
     ArcPath("signature", 0x8B467C12, 0, 0, 2, "\\WINNT")),
    ("multi()disk()rdisk()partition(1)", ArcPath("multi", 0, 0, 0, 1, "")),
    ("C:\\", None), ("C:\\CMDCONS\\BOOTSECT.DAT", None), ("", None),
    ("multi(0)disk(0)rdisk(0)partition()\\WINNT", None),
    ("multi(ff)disk(0)rdisk(0)partition(1)\\WINNT", None),
    (f"{MULTI}WINNT", None), ("multi(0)disk(0)rdisk(0)partition(99999999999)\\W", None),
    ("net(0)\\WINNT", None),
])
def test_paths(text, arc):
    assert parse_arc(text) == arc


def test_a_path_prints_as_it_was():
    for text in (f"{MULTI}\\WINNT", "signature(8b467c12)disk(0)rdisk(0)partition(2)\\WINNT"):
        assert str(parse_arc(text)) == text


def test_lines_and_switches():
    ini = parse(b'; mine\r\n[Boot Loader]\r\nTimeout = 5\r\nDefault = C:\\\r\n\r\n[Operating Systems]\r\n'
                + MULTI.encode() + b'\\WINNT="NT \x84\xe9" /KERNEL=krnlup.exe /HAL=halup.dll /sos\r\n'
                b'C:\\="Windows 98"\r\n' + MULTI.encode() + b"\\X=no quotes /debug\r\n")
    assert ini.timeout == 5
    assert [line.title for line in ini.systems] == [b"NT \x84\xe9", b"Windows 98", b"no quotes"]
    assert ini.systems[0].switch("kernel") == "krnlup.exe"
    assert ini.systems[0].switch("HAL") == "halup.dll"
    assert ini.systems[1].arc is None and ini.systems[2].switches == b"/debug"
    assert ini.default_line == ini.systems[1]


@pytest.mark.parametrize("data", [b"", b"\0" * 500, b"[", b"[operating systems]", b"=\r\n=\n" * 100,
                                  b"[boot loader]\ndefault\ntimeout=\xff\n[operating systems]\n=\n\"\"\n"])
def test_anything_parses_and_stays_itself(data):
    assert parse(data).data == data


def test_a_huge_file_is_no_boot_ini():
    with pytest.raises(GuestError, match=r"no boot\.ini"):
        parse(bytes(bootini.LIMIT + 1))


# -- the fixer


def fixed(guest: DirGuest, target) -> tuple[bytes, list[Finding]]:
    wishes = list(boot_ini.plan(guest, target))
    changes = [wish for wish in wishes if not isinstance(wish, Finding)]
    assert len(changes) == 1
    return changes[0].after.data, [wish for wish in wishes if isinstance(wish, Finding)]


def with_ini(tree, data: bytes, **rest) -> DirGuest:
    (tree / "boot.ini").write_bytes(data)
    return DirGuest({"disk0p1": tree}, **rest)


@pytest.mark.parametrize("old", [
    "scsi(0)disk(0)rdisk(0)partition(1)", "scsi(2)disk(6)rdisk(1)partition(1)",
    "signature(21763270)disk(0)rdisk(0)partition(1)",  # "p2v!" of DirGuest's disk
    "signature(deadbeef)disk(0)rdisk(3)partition(1)",
])
def test_other_paths_become_multi(nt4_tree, piix_target, old):
    text = HEAD % old.encode() + LINE % old.encode() + b'C:\\="Windows 98"\r\n'
    after, findings = fixed(with_ini(nt4_tree, text), piix_target)
    wanted = text.replace(old.encode(), MULTI.encode())
    diagnostic = MULTI.encode() + b'\\WINNT="Windows NT Server [VM diagnostic]" /sos /BASEVIDEO\r\n'
    assert after == wanted + diagnostic
    assert findings == []


def test_a_path_that_leads_nowhere_is_led_home(nt4_tree, piix_target):
    wrong = b"multi(0)disk(0)rdisk(0)partition(2)"
    after, findings = fixed(with_ini(nt4_tree, HEAD % wrong + LINE % wrong), piix_target)
    assert wrong not in after and after.count(MULTI.encode()) == 3
    assert findings == []


def test_the_rest_stays_byte_for_byte(nt4_tree, piix_target):
    odd = (b";\x84\x94\x81 cp437\n" + HEAD % MULTI.encode() + b"\r\n  " + LINE % MULTI.encode()
           + b"C:\\CMDCONS\\BOOTSECT.DAT=\"Konsole f\x81r\" /cmdcons\r\n; the end\x1a")
    after, _ = fixed(with_ini(nt4_tree, odd), piix_target)
    added = MULTI.encode() + b'\\WINNT="Windows NT Server [VM diagnostic]" /sos /BASEVIDEO\r\n'
    assert after.replace(added, b"") == odd
    assert after.index(added) < after.index(b"; the end")


def test_a_last_line_without_an_end(nt4_tree, piix_target):
    text = (HEAD % MULTI.encode() + LINE % MULTI.encode()).rstrip(b"\r\n")
    after, _ = fixed(with_ini(nt4_tree, text), piix_target)
    assert after.startswith(text + b"\r\n" + MULTI.encode())


def test_unix_line_ends_stay(nt4_tree, piix_target):
    text = (HEAD % MULTI.encode() + LINE % MULTI.encode()).replace(b"\r\n", b"\n")
    after, _ = fixed(with_ini(nt4_tree, text), piix_target)
    assert b"\r" not in after


def test_twice_is_once(nt4_tree, piix_target):
    after, _ = fixed(with_ini(nt4_tree, HEAD % MULTI.encode() + LINE % MULTI.encode()), piix_target)
    assert list(boot_ini.plan(with_ini(nt4_tree, after), piix_target)) == []


def test_switches_of_the_debugger_are_left_out_of_the_new_line(nt4_tree, piix_target):
    line = LINE % MULTI.encode()
    text = HEAD % MULTI.encode() + line.replace(b"/sos", b"/DEBUG /debugport=com1 /3GB /baudrate=115200")
    after, _ = fixed(with_ini(nt4_tree, text), piix_target)
    assert after.endswith(b'[VM diagnostic]" /3GB /SOS /BASEVIDEO\r\n')


def test_a_full_menu_gets_no_line_more(nt4_tree, piix_target):
    text = HEAD % MULTI.encode() + (LINE % MULTI.encode()) * 10
    assert list(boot_ini.plan(with_ini(nt4_tree, text), piix_target)) == []


def test_a_second_line_that_leads_nowhere_is_said(nt4_tree, piix_target):
    text = HEAD % MULTI.encode() + LINE % MULTI.encode()
    text += b'scsi(0)disk(1)rdisk(0)partition(4)\\WINNT="gone"\r\n'
    after, findings = fixed(with_ini(nt4_tree, text), piix_target)
    assert b"scsi(0)disk(1)rdisk(0)partition(4)" in after
    assert [finding.severity for finding in findings] == [Severity.WARNING]


def test_ntbootdd_stays_and_is_said(nt4_tree, piix_target):
    (nt4_tree / "NTBOOTDD.SYS").write_bytes(b"MZ")
    scsi = b"scsi(0)disk(0)rdisk(0)partition(1)"
    _, findings = fixed(with_ini(nt4_tree, HEAD % scsi + LINE % scsi), piix_target)
    assert [finding.what for finding in findings] == ["ntbootdd.sys is left where it is"]


def test_the_windows_on_a_second_partition(nt4_tree, tmp_path, piix_target):
    """Boot files on the first partition, \\WINNT on the second: scsi() there too becomes multi()."""
    first = tmp_path / "first"
    first.mkdir()
    for name in ("ntldr", "NTDETECT.COM"):
        (nt4_tree / name).rename(first / name)
    scsi = b"scsi(0)disk(0)rdisk(0)partition(2)"
    (first / "BOOT.INI").write_bytes(HEAD % scsi + LINE % scsi)
    (nt4_tree / "boot.ini").unlink()
    guest = DirGuest({"disk0p1": first, "disk0p2": nt4_tree})
    assert (guest.facts.system_volume, guest.facts.boot_volume) == ("disk0p1", "disk0p2")
    change = next(boot_ini.plan(guest, piix_target))
    assert (change.volume, change.path) == ("disk0p1", "\\BOOT.INI")
    assert change.after.data.count(b"multi(0)disk(0)rdisk(0)partition(2)\\WINNT") == 3
