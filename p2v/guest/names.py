"""What systems are called: ours with their editions, and those that are imaged only."""

from __future__ import annotations

from p2v.model import GuestFacts

SIGNS = {  # in a volume's root → what leaves it there
    "bootmgr": "Windows Vista or later", "win.com": "Windows 9x or 3.x", "command.com": "DOS or Windows 9x",
    "msdos.sys": "Windows 9x or DOS", "os2ldr": "OS/2", "server.exe": "NetWare",
    "etc": "a Unix system", "vmlinuz": "a Linux boot volume", "grub": "a Linux boot volume"}
TYPES = {0x82: "Linux", 0x83: "Linux", 0x85: "Linux", 0x8E: "Linux (LVM)", 0xFD: "Linux (RAID)", 0xA5: "FreeBSD",
         0xA6: "OpenBSD", 0xA9: "NetBSD", 0xBF: "Solaris", 0x63: "Unix System V", 0x65: "NetWare", 0x64: "NetWare"}
NAMES = {(4, 0): "Windows NT 4.0", (5, 0): "Windows 2000", (5, 1): "Windows XP",
          (5, 2): "Windows Server 2003"}
# ProductSuite, lower case → the edition that it makes of a server; the first that is there counts.
_EDITIONS: dict[tuple[int, int], dict[str, str]] = {
    (4, 0): {"terminal server": "Server Terminal Server Edition", "enterprise": "Server Enterprise Edition"},
    (5, 0): {"datacenter": "Datacenter Server", "enterprise": "Advanced Server"},
    (5, 2): {"datacenter": "Datacenter Edition", "enterprise": "Enterprise Edition", "blade": "Web Edition"},
}
_SERVERS = {(4, 0): "Server", (5, 0): "Server"}  # the edition without a suite; 2003 has it in its name
_WORKSTATIONS = {(4, 0): "Workstation", (5, 0): "Professional"}


def name_of(facts: GuestFacts, product_name: str, *, again: bool) -> str:
    """What people call it: "Windows XP Service Pack 3 (x86)". again: the service pack was released a second time."""
    words = [NAMES[facts.version]]
    suites = [one.lower() for one in facts.product_suite]
    if facts.product_type.lower() == "winnt":
        words = ["Windows XP"] if facts.version == (5, 2) else words
        words += [_WORKSTATIONS[facts.version]] if facts.version in _WORKSTATIONS else []
        words += ["Home Edition"] if facts.version == (5, 1) and "personal" in suites else []
    else:
        words += ["R2"] if "R2" in product_name.split() else []
        found = (name for suite, name in _EDITIONS.get(facts.version, {}).items() if suite in suites)
        edition = next(found, _SERVERS.get(facts.version, ""))
        words += [edition] if edition else []
    if facts.service_pack:
        words.append(f"Service Pack {facts.service_pack}{'a' if again else ''}")
    return " ".join(words) + f" ({facts.architecture})"


def other_windows(version: tuple[int, int]) -> str:
    """A Windows NT that is none of ours."""
    names = {(6, 0): "Windows Vista or Server 2008", (6, 1): "Windows 7 or Server 2008 R2",
             (6, 2): "Windows 8 or Server 2012", (6, 3): "Windows 8.1 or later"}
    number = f"Windows NT {version[0]}.{version[1]}"
    return f"{names[version]} ({number})" if version in names else number
