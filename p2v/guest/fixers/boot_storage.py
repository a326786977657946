"""Windows must reach its boot disk: make the target controller's driver start at boot."""

from __future__ import annotations

from collections.abc import Iterator

from p2v import drivers
from p2v.drivers import Driver, DriverFile, Generation, Service
from p2v.errors import Finding, Severity, Where
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits, hindrances
from p2v.guest.guest import file_content
from p2v.guest.media import Choice, Media
from p2v.model import Change, DWord, ExpandText, Family, FileChange, Guest, Target, Text, Value

NAME = "windows-boot-storage"
BOOT, DISABLED = 0, 4
DATABASE = "Control\\CriticalDeviceDatabase"
NT4_LARGE_DISK = 8 << 30  # bytes: what atapi.sys before SP4 can address (Q197667)


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """Files first, then every control set. Raises GuestError for a driver file that is nowhere."""
    if guest.facts.family is not Family.WINDOWS:
        return
    driver = drivers.choose(target.CONTROLLERS, guest)
    yield from _files(guest, driver)
    edits = Edits(guest, NAME)
    for control_set in guest.facts.control_sets:
        for service in driver.generation.service:
            yield from _service(edits, control_set, service)
        yield from _needed(edits, control_set, driver.generation)
        yield from _database(edits, control_set, driver.generation)
        yield from _rivals(edits, control_set, driver.generation)


# ---------------------------------------------------------------------------------------------
# Files


def _files(guest: Guest, driver: Driver) -> Iterator[Change | Finding]:
    with Media(guest) as media:
        for wanted in driver.generation.file:
            choice = media.choose(wanted)
            yield from _too_old(guest, wanted, choice)
            if not choice.installed:
                yield from _place(guest, driver, wanted, choice)
        yield from media.findings


def _place(guest: Guest, driver: Driver, wanted: DriverFile, choice: Choice) -> Iterator[Change | Finding]:
    volume = guest.facts.boot_volume
    folder = f"{guest.facts.system_root}\\system32\\drivers"
    path = f"{folder}\\{wanted.name}"
    blocked = list(hindrances(guest, volume, path, NAME))
    yield from blocked
    if blocked:
        return
    before = file_content(guest.files(volume), path)
    version = ".".join(map(str, choice.version))
    instead = "in place of one that does not fit" if before else "which is missing"
    yield FileChange(
        volume, path, before, choice.content,
        f"{driver.manifest.title} needs {wanted.name}, {instead}: version {version} from {choice.where}; "
        "without it 0x7B (inaccessible boot device)", NAME, None if before else _neighbour(guest, folder))


def _neighbour(guest: Guest, folder: str) -> str | None:
    """A driver file whose owner and ACL a new one gets."""
    names = guest.files(guest.facts.boot_volume).list(folder)
    files = sorted((name for name in names if name.lower().endswith(".sys")), key=str.lower)
    best = [name for name in files if name.lower() in ("disk.sys", "ntfs.sys", "i8042prt.sys")]
    return next((f"{folder}\\{name}" for name in (*best, *files)), None)


def _too_old(guest: Guest, wanted: DriverFile, choice: Choice) -> Iterator[Finding]:
    if choice.version[3] >= wanted.minimum_revision:
        return
    largest = max((disk.size for disk in guest.disks.values()), default=0)
    version = ".".join(map(str, choice.version))
    yield Finding(
        f"{wanted.name} is older than it should be", Where(guest.facts.boot_volume, item=choice.where),
        f"version {version}; {wanted.below_minimum}",
        f"take it from {wanted.medium} and install that on the server, or move the file away and give the "
        "newer one with --drivers DIR",
        Severity.ERROR if largest > NT4_LARGE_DISK else Severity.WARNING, NAME)


# ---------------------------------------------------------------------------------------------
# Services


def _service(edits: Edits, control_set: str, service: Service) -> Iterator[Change]:
    """In an existing key only Start; what makes it a driver's key is written where it is missing."""
    key = f"{control_set}\\Services\\{service.name}"
    whole: dict[str, Value] = {
        "Type": DWord(service.type),
        "ErrorControl": DWord(service.error_control),
        "Group": Text(service.group),
        "Tag": DWord(service.tag),
        "ImagePath": ExpandText(service.image_path),
    }
    is_driver = edits.tree.value(key, "Type") is not None
    yield from edits.key(key, service.why)
    yield from edits.value(key, "Start", DWord(service.start), service.why)
    for name, value in whole.items():
        wanted = not is_driver or name in ("ErrorControl", "Group")
        if wanted and edits.tree.value(key, name) is None:
            yield from edits.value(key, name, value, service.why)


def _needed(edits: Edits, control_set: str, generation: Generation) -> Iterator[Change | Finding]:
    for needed in generation.needed:
        key = f"{control_set}\\Services\\{needed.name}"
        if edits.tree.value(key, "Type") is None:
            yield Finding(f"the service {needed.name} is missing", Where(item=f"{HIVE}\\{key}"), needed.why,
                          "repair the system on the server, or check that this is its SYSTEM hive",
                          Severity.ERROR, NAME)
        else:
            yield from edits.value(key, "Start", DWord(BOOT), needed.why)


def _database(edits: Edits, control_set: str, generation: Generation) -> Iterator[Change]:
    """Rows of the CriticalDeviceDatabase: which service a device gets before the first logon."""
    for row in generation.device:
        key = f"{control_set}\\{DATABASE}\\{row.id}"
        service, guid = edits.tree.value(key, "Service"), edits.tree.value(key, "ClassGUID")
        named = service.text if service else ""
        if named and row.keep:
            continue
        yield from edits.key(key, row.why)
        if named.lower() != row.service.lower():
            yield from edits.value(key, "Service", Text(row.service), row.why)
        if guid is None or guid.text.lower() != row.class_guid.lower():
            yield from edits.value(key, "ClassGUID", Text(row.class_guid), row.why)


def _rivals(edits: Edits, control_set: str, generation: Generation) -> Iterator[Change]:
    """NT 4 starts every boot driver that it finds in the registry, whether its card is there or not."""
    services = f"{control_set}\\Services"
    for rival in generation.rival:
        key = f"{services}\\{rival.name}"
        if number(edits.tree, key, "Start") is not None:
            yield from edits.value(key, "Start", DWord(DISABLED), rival.why)
    if not generation.retire_group:
        return
    ours = {service.name.lower() for service in generation.service}
    for name in edits.tree.subkeys(services):
        key = f"{services}\\{name}"
        group = edits.tree.value(key, "Group")
        grouped = group is not None and group.text.lower() == generation.retire_group.lower()
        if name.lower() not in ours and grouped and number(edits.tree, key, "Start") == BOOT:
            yield from edits.value(
                key, "Start", DWord(DISABLED),
                f"{name} drives a controller that the VM does not have; NT 4 would start it all the same, "
                "and some hang when they probe for their card")
