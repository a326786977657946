"""Which controllers a guest can drive, which one is taken, and what is said of what is missing."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from fixtures import hives, trees
from fixtures.cabs import cabinet
from fixtures.guests import PiixTarget
from fixtures.pe import AMD64, I386, StandIn, pe_file
from p2v.errors import Finding, GuestError, Severity, Unsupported
from p2v.guest import controllers
from p2v.guest.closure import boot_closure
from p2v.guest.fixers import boot_storage
from p2v.guest.media import Media
from p2v.model import REG_BINARY, DWord, ExpandText, FileChange, Text, Value, ValueChange
from p2v.testing import DirGuest, check_fixer

SERVICES, DATABASE = "ControlSet001\\Services\\", "ControlSet001\\Control\\CriticalDeviceDatabase\\"
ORDER = "ControlSet001\\Control\\GroupOrderList"


class Offering(PiixTarget):
    """A target that offers these controllers, best first."""

    def __init__(self, *names: str) -> None:
        self.CONTROLLERS = names

    def controllers(self, facts) -> Sequence[str]:
        return self.CONTROLLERS


def vendors(name: str, version, imports: Sequence[str] = ("scsiport.sys",), machine: int = I386) -> bytes:
    """A vendor's driver, for the guest's Windows or an older one."""
    data = bytearray(pe_file(StandIn(name, version, ("ntoskrnl.exe", *imports), machine)))
    at = struct.unpack_from("<I", data, 0x3C)[0] + 24
    struct.pack_into("<HH", data, at + 48, 5, 0)
    return bytes(data)


def put(tree: Path, path: str, data: bytes) -> None:
    where = next(tree.glob("WIN*")).joinpath(*path.split("\\"))
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(data)


def in_cache(tree: Path, *names: str) -> None:
    put(tree, "Driver Cache\\i386\\more.cab", cabinet({name: trees.XP.file(name) for name in names}))


def guest_of(tree: Path, **rest) -> DirGuest:
    return DirGuest({"disk0p1": tree}, **rest)


def after(wishes) -> dict[str, object]:
    return {f"{wish.key}:{wish.value}": wish.after for wish in wishes
            if isinstance(wish, ValueChange) and wish.key.startswith("ControlSet001")}


@pytest.fixture
def xp(xp_tree) -> Path:
    """XP with the drivers of PCI SCSI cards in its cache, as its real driver.cab has them."""
    in_cache(xp_tree, "sym_hi.sys", "amsint.sys")
    return xp_tree


def chosen(guest, *names: str) -> list[str]:
    with Media(guest) as media:
        return [option.driver.manifest.name for option in controllers.options(names, guest, media)]


def test_the_first_that_is_complete(xp):
    guest = guest_of(xp)
    assert chosen(guest, "piix-ide", "lsi-53c895a") == ["piix-ide", "lsi-53c895a"]
    assert chosen(guest, "virtio-blk", "lsi-53c895a", "buslogic", "piix-ide") == ["lsi-53c895a", "piix-ide"]
    assert chosen(guest, "virtio-scsi", "am53c974") == ["am53c974"]  # there is no vioscsi for XP


def test_a_driver_that_was_handed_in(xp, tmp_path):
    given = tmp_path / "given" / "viostor" / "xp" / "x86"
    given.mkdir(parents=True)
    (given / "viostor.sys").write_bytes(vendors("viostor.sys", (51, 74, 104, 13000)))
    guest = guest_of(xp, drivers=[str(tmp_path / "given")])
    assert chosen(guest, "virtio-blk", "piix-ide") == ["virtio-blk", "piix-ide"]
    with Media(guest) as media:
        virtio, piix = controllers.options(("virtio-blk", "piix-ide"), guest, media)
    assert not virtio.in_box and piix.in_box


def test_what_a_driver_imports_is_needed_too(xp, tmp_path):
    """A viostor of 2003 that got into the wrong folder imports storport, which XP never had."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "viostor.sys").write_bytes(vendors("viostor.sys", (52, 74, 104, 13000), ("storport.sys",)))
    guest = guest_of(xp, drivers=[str(given)])
    with pytest.raises(GuestError, match=r"storport\.sys is nowhere to be found"):
        chosen(guest, "virtio-blk")
    in_cache(xp, "storport.sys")
    with Media(guest) as media:
        (option,) = controllers.options(("virtio-blk",), guest, media)
    assert [file.name for file, _ in option.files] == ["viostor.sys", "scsiport.sys", "storport.sys"]


def test_nothing_is_complete_and_the_message_is_enough(xp_tree):
    with pytest.raises(GuestError) as error:
        chosen(guest_of(xp_tree), "virtio-blk", "buslogic")
    assert error.value.what == "viostor.sys is nowhere to be found"
    assert error.value.next == (
        "take viostor.sys for Windows XP Service Pack 3 (x86) from Fedora's virtio-win ISO 0.1.173 or older "
        "(\\viostor\\xp\\x86\\viostor.sys), and give the folder, ISO or cabinet that it lies in with --drivers PATH\n"
        "or, for BusLogic SCSI: vmscsi.sys from VMware's driver diskette vmscsi-1.2.0.4.flp, or a later one")


def test_several_files_are_missing(nt4_tree):
    (nt4_tree / "WINNT/system32/drivers/scsiport.sys").unlink()
    with pytest.raises(GuestError, match="2 driver files are nowhere to be found: atapi") as error:
        chosen(guest_of(nt4_tree), "piix-ide")
    assert "version 4.0.1381.133 or later from Service Pack 4 to 6a" in error.value.next
    assert "take scsiport.sys, x86, version 4.0.1381.0 up to 4.0.1381.4" in error.value.next


def test_no_driver_for_this_windows(xp_tree):
    with pytest.raises(Unsupported, match="no controller of the target"):
        chosen(guest_of(xp_tree), "virtio-scsi")
    with pytest.raises(Unsupported):
        boot_closure(guest_of(xp_tree), Offering("virtio-scsi"))


@pytest.mark.parametrize(("text", "name", "taken"), [
    ("lsi-symmpi-xp.inf", "symmpi.inf", True), ("lsi-symmpi-txtsetup.oem", "txtsetup.oem", True),
    ("prolific-ser2pl-w2k.inf", "other.inf", True), ("intel-iastor-txtsetup.oem", "TXTSETUP.OEM", False)])
def test_a_setup_text_that_names_other_controllers(xp, corpus, tmp_path, text, name, taken):
    """A real text beside the driver; one that names no PCI device says nothing either way."""
    folder = tmp_path / "given" / "disk1"
    folder.mkdir(parents=True)
    (folder / "symmpi.sys").write_bytes(vendors("symmpi.sys", (1, 21, 25, 0)))
    (folder / name).write_bytes((corpus / "inf" / text).read_bytes())
    guest = guest_of(xp, drivers=[str(folder.parent)])
    if taken:
        assert chosen(guest, "lsi-53c1030") == ["lsi-53c1030"]
    else:
        with pytest.raises(GuestError) as error:
            chosen(guest, "lsi-53c1030")
        assert "TXTSETUP.OEM beside it names pci#ven_8086" in error.value.why
        assert "not pci#ven_1000&dev_0030" in error.value.why


# -- what the fixer makes of it


def test_further_controllers_are_fitted_besides(xp):
    guest, target = guest_of(xp), Offering("piix-ide", "lsi-53c895a", "am53c974", "virtio-blk")
    wishes = check_fixer(boot_storage, guest, target)
    values = after(wishes)
    assert {values[f"{SERVICES}{name}:Start"] for name in ("atapi", "sym_hi", "amsint")} == {DWord(0)}
    assert values[DATABASE + "pci#ven_1000&dev_0012:Service"] == Text("sym_hi")
    assert values[DATABASE + "pci#ven_1022&dev_2020:Service"] == Text("amsint")
    assert not [name for name in values if "viostor" in name]
    placed = [wish.path.rpartition("\\")[2] for wish in wishes if isinstance(wish, FileChange)]
    assert placed == ["atapi.sys", "intelide.sys", "pciide.sys", "pciidex.sys", "sym_hi.sys", "amsint.sys"]
    assert not [wish for wish in wishes if isinstance(wish, Finding)]


def test_an_existing_service_keeps_all_but_start(xp):
    """XP's own hive has sym_hi with Start 4, a tag and its parameters: only Start changes."""
    values = after(boot_storage.plan(guest_of(xp), Offering("lsi-53c895a")))
    assert [name for name in values if name.startswith(SERVICES + "sym_hi")] == [SERVICES + "sym_hi:Start"]


@pytest.fixture
def without(xp):
    """without(*keys): the XP server after these keys were deleted from its hive."""
    def made(*keys: str, **order) -> DirGuest:
        path = xp / "WINDOWS" / "system32" / "config" / "system"
        hive = hives.Hive(path.read_bytes())
        for key in keys:
            hive.delete(key)
        if order:
            hive.set(ORDER, **order)
        path.write_bytes(hive.finish())
        return guest_of(xp)

    return made


def test_a_new_service_is_whole(without):
    wishes = check_fixer(boot_storage, without(SERVICES + "sym_hi"), Offering("lsi-53c895a"))
    made = {name.removeprefix(SERVICES): value for name, value in after(wishes).items() if "sym_hi" in name.lower()
            and name.startswith(SERVICES)}
    assert made == {
        "sym_hi:Start": DWord(0), "sym_hi:Type": DWord(1), "sym_hi:ErrorControl": DWord(1),
        "sym_hi:Group": Text("SCSI miniport"), "sym_hi:ImagePath": ExpandText("system32\\DRIVERS\\sym_hi.sys"),
        "sym_hi:Tag": DWord(55), "sym_hi\\Parameters\\PnpInterface:5": DWord(1)}


def tags(*numbers: int) -> Value:
    return Value(REG_BINARY, struct.pack(f"<{len(numbers) + 1}I", len(numbers), *numbers))


@pytest.mark.parametrize(("now", "wanted"), [
    (tags(9, 1, 25), tags(9, 1, 25, 55)), (tags(55, 25), None), (tags(), tags(55)),
    (Value(REG_BINARY, tags(9, 1).data + bytes(8)), tags(9, 1, 55)),  # more room than the count says
    (Value(REG_BINARY, b"\1"), None), (Value(REG_BINARY, struct.pack("<II", 7, 1)), None), (Text("x"), None)])
def test_a_tag_that_its_group_does_not_list_is_appended(without, now, wanted):
    guest = without(SERVICES + "sym_hi", **{"SCSI Miniport": now})
    found = {wish.value: wish.after for wish in boot_storage.plan(guest, Offering("lsi-53c895a"))
             if isinstance(wish, ValueChange) and wish.key == ORDER}
    assert found == ({"SCSI Miniport": wanted} if wanted else {})


def test_another_controller_than_the_best_is_said(xp):
    wishes = list(boot_storage.plan(guest_of(xp), Offering("buslogic", "lsi-53c895a")))
    (finding,) = [wish for wish in wishes if isinstance(wish, Finding)]
    assert finding.severity is Severity.WARNING
    assert finding.what == "the VM's disks must be on LSI 53C895A SCSI" and "BusLogic SCSI" in finding.why
    assert "take vmscsi.sys" in finding.next and "vmscsi-1.2.0.4.flp" in finding.next, "enough to go and get it"


def test_nt4_gets_one_controller(nt4_tree):
    """A miniport without its card may hang NT 4: the IDE driver stays for the CD, the rest is off."""
    drivers = nt4_tree / "WINNT" / "system32" / "drivers"
    (drivers / "buslogic.sys").write_bytes(trees.NT4.file("buslogic.sys"))
    (drivers / "atapi.sys").write_bytes(trees.NT4.file("atapi.sys", trees.ATAPI_NT4_SP6A))
    guest = guest_of(nt4_tree)
    values = after(boot_storage.plan(guest, Offering("buslogic", "piix-ide")))
    assert values == {SERVICES + "BusLogic:Start": DWord(0), SERVICES + "Cpqarray:Start": DWord(4)}  # not atapi


# -- the closure, and what inspect shows


@pytest.mark.parametrize("names", [("virtio-blk", "am53c974"), ("piix-ide", "lsi-53c895a")])
def test_what_was_fitted_is_closed(xp, names):
    guest, target = guest_of(xp), Offering(*names)
    assert any(finding.severity is Severity.ERROR for finding in boot_closure(guest, target))
    guest.apply([wish for wish in boot_storage.plan(guest, target) if not isinstance(wish, Finding)])
    whole = [finding for finding in boot_closure(guest.again(), target) if finding.severity is Severity.ERROR]
    assert not whole


def test_the_closure_asks_for_the_controller_that_was_fitted(xp):
    """A better one's driver that lies there, but cannot load, was not chosen and is not asked for."""
    put(xp, "system32\\drivers\\viostor.sys", vendors("viostor.sys", (52, 1, 1, 1), ("storport.sys",)))
    guest, target = guest_of(xp), Offering("virtio-blk", "piix-ide")
    assert chosen(guest, *target.CONTROLLERS) == ["piix-ide"]
    guest.apply([wish for wish in boot_storage.plan(guest, target) if not isinstance(wish, Finding)])
    assert controllers.in_place(target.CONTROLLERS, guest.again()).manifest.name == "piix-ide"


def test_what_inspect_shows(xp):
    put(xp, "inf\\scsi.inf", b"[Manufacturer]\n%L%=LSI\n[LSI]\n%D%=sym_hi_Inst, PCI\\VEN_1000&DEV_0012\n"
        b"[sym_hi_Inst.Services]\nAddService = sym_hi, 2, x\n")
    found = {manifest.name: evidence for manifest, evidence in controllers.available(guest_of(xp))}
    assert {name: evidence.verdict for name, evidence in found.items()} == {
        "piix-ide": "yes", "lsi-53c895a": "yes", "am53c974": "yes", "lsi-53c1030": "no", "buslogic": "unknown",
        "virtio-blk": "no", "virtio-scsi": "no", "uniata": "no"}
    signs = found["lsi-53c895a"].signs
    assert "sym_hi.sys 5.1.2600.5512 in \\WINDOWS\\Driver Cache\\i386\\more.cab: sym_hi.sys" in signs
    assert "the service sym_hi is there, Start 4" in signs
    assert "scsi.inf binds pci#ven_1000&dev_0012 to sym_hi" in signs
    assert "vmscsi-1.2.0.4.flp" in found["buslogic"].needs[0]
    assert found["virtio-scsi"].signs == ("nobody made a driver for Windows XP Service Pack 3 (x86)",)


def test_x64_takes_no_driver_of_x86(xp, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "viostor.sys").write_bytes(vendors("viostor.sys", (52, 1, 1, 1), machine=AMD64))
    with pytest.raises(GuestError) as error:
        chosen(guest_of(xp, drivers=[str(given)]), "virtio-blk")
    assert "it is for x64, the guest is x86" in error.value.why
