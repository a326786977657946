"""Windows must reach its boot disk: make the target controller's driver start at boot.

The best controller that the guest has a driver for is fitted completely. Under Plug and Play the target's further
controllers are fitted, too, where their files are there: such entries lie idle until the VM has the controller.
NT 4 starts whatever the registry names, so it gets the one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from p2v.drivers import DeviceRow, Driver, DriverFile, Generation, Named, Service
from p2v.errors import Finding, Severity, Where
from p2v.guest import controllers
from p2v.guest.controllers import Option
from p2v.guest.facts import number
from p2v.guest.fixers.edits import HIVE, Edits, hindrances
from p2v.guest.guest import file_content
from p2v.guest.media import Choice, Media, dotted
from p2v.model import REG_BINARY, Change, DWord, ExpandText, Family, FileChange, Guest, Target, Text, Value

NAME = "windows-boot-storage"
BOOT, DISABLED = 0, 4
DATABASE = "Control\\CriticalDeviceDatabase"
ORDER = "Control\\GroupOrderList"
TAGS = 4096  # more than any list of a real system; a longer one is left alone
NT4_LARGE_DISK = 8 << 30  # bytes: what atapi.sys before SP4 can address (Q197667)


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:
    """Files first, then every control set. Raises GuestError for a driver file that is nowhere."""
    if guest.facts.family is not Family.WINDOWS:
        return
    with Media(guest) as media:
        found = controllers.options(target.controllers(guest.facts), guest, media)
        chosen = found[0]
        fitted = (chosen, *(one for one in found[1:] if not one.driver.manifest.alone)) \
            if chosen.driver.plug_and_play else found[:1]
        yield from _second_best(guest, target, chosen, media)
        yield from _files(guest, fitted)
        yield from media.findings
    edits = Edits(guest, NAME)
    generations = [option.driver.generation for option in fitted]
    for control_set in guest.facts.control_sets:
        done: set[str] = set()  # two controllers may share a service, a row or a needed driver
        for generation in generations:
            yield from _fit(edits, control_set, generation, done)
        yield from _rivals(edits, control_set, generations[0])


def _fit(edits: Edits, control_set: str, generation: Generation, done: set[str]) -> Iterator[Change | Finding]:
    for service in generation.service:
        if f"service {service.name.lower()}" not in done:
            done.add(f"service {service.name.lower()}")
            yield from _service(edits, control_set, service)
    for needed in generation.needed:
        if f"needed {needed.name.lower()}" not in done:
            done.add(f"needed {needed.name.lower()}")
            yield from _needed(edits, control_set, needed)
    for row in generation.device:
        if f"row {row.id}" not in done:
            done.add(f"row {row.id}")
            yield from _row(edits, control_set, row)


def _second_best(guest: Guest, target: Target, chosen: Option, media: Media) -> Iterator[Finding]:
    """The VM must have the controller that the guest was fitted to, and that is not the one it would have had."""
    best = controllers.best(target.controllers(guest.facts), guest)
    if best.manifest.name == chosen.driver.manifest.name:
        return
    missing = controllers.examine(best, media).missing
    names = ", ".join(error.where.item for error in missing)
    yield Finding(
        f"the VM's disks must be on {chosen.driver.manifest.title}", Where(item=chosen.driver.manifest.name),
        f"{best.manifest.title} would come first, but {names} cannot be had: "
        + "; ".join(error.why for error in missing),
        "\n".join(("nothing, if that controller will do; else", *(error.next for error in missing))),
        Severity.WARNING, NAME)


# ---------------------------------------------------------------------------------------------
# Files


def _files(guest: Guest, fitted: Sequence[Option]) -> Iterator[Change | Finding]:
    done: set[str] = set()
    for option in fitted:
        for wanted, choice in option.files:
            if wanted.name in done:
                continue
            done.add(wanted.name)
            yield from _too_old(guest, wanted, choice)
            if not choice.installed:
                yield from _place(guest, option.driver, wanted, choice)


def _place(guest: Guest, driver: Driver, wanted: DriverFile, choice: Choice) -> Iterator[Change | Finding]:
    volume = guest.facts.boot_volume
    folder = f"{guest.facts.system_root}\\system32\\drivers"
    path = f"{folder}\\{wanted.name}"
    blocked = list(hindrances(guest, volume, path, NAME))
    yield from blocked
    if blocked:
        return
    before = file_content(guest.files(volume), path)
    version = dotted(choice.version)
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
    version = dotted(choice.version)
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
        "ImagePath": ExpandText(service.image_path),
    }
    if service.tag:
        whole["Tag"] = DWord(service.tag)
    is_driver = edits.tree.value(key, "Type") is not None
    yield from edits.key(key, service.why)
    yield from edits.value(key, "Start", DWord(service.start), service.why)
    for name, value in whole.items():
        wanted = not is_driver or name in ("ErrorControl", "Group")
        if wanted and edits.tree.value(key, name) is None:
            yield from edits.value(key, name, value, service.why)
    if is_driver:
        return
    for parameter in service.parameter:
        below = f"{key}\\{parameter.key}"
        yield from edits.key(below, service.why)
        if edits.tree.value(below, parameter.name) is None:
            yield from edits.value(below, parameter.name, DWord(parameter.number), service.why)
    yield from _order(edits, control_set, service)


def _order(edits: Edits, control_set: str, service: Service) -> Iterator[Change]:
    """A new service's tag is known to its group: appended where the list lacks it, nothing is moved."""
    if not service.tag:
        return
    key = f"{control_set}\\{ORDER}"
    now = edits.tree.value(key, service.group)
    if now is None or now.type != REG_BINARY or len(now.data) < 4 or len(now.data) % 4:
        return  # without a list the group has no order, and drivers load as they come
    count, *tags = struct.unpack(f"<{len(now.data) // 4}I", now.data)
    if count > len(tags) or count >= TAGS or service.tag in tags[:count]:
        return
    tags = [*tags[:count], service.tag]
    after = Value(REG_BINARY, struct.pack(f"<{len(tags) + 1}I", len(tags), *tags))
    yield from edits.value(key, service.group, after, f"the new service {service.name} has the tag {service.tag} in "
                           "this group; one that the list lacks would be loaded last")


def _needed(edits: Edits, control_set: str, needed: Named) -> Iterator[Change | Finding]:
    key = f"{control_set}\\Services\\{needed.name}"
    if edits.tree.value(key, "Type") is None:
        yield Finding(f"the service {needed.name} is missing", Where(item=f"{HIVE}\\{key}"), needed.why,
                      "repair the system on the server, or check that this is its SYSTEM hive",
                      Severity.ERROR, NAME)
    else:
        yield from edits.value(key, "Start", DWord(BOOT), needed.why)


def _row(edits: Edits, control_set: str, row: DeviceRow) -> Iterator[Change]:
    """A row of the CriticalDeviceDatabase: which service a device gets before the first logon."""
    key = f"{control_set}\\{DATABASE}\\{row.id}"
    service, guid = edits.tree.value(key, "Service"), edits.tree.value(key, "ClassGUID")
    named = service.text if service else ""
    if named and row.keep:
        return
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
    ours |= {name.lower() for name in generation.spare}
    for name in edits.tree.subkeys(services):
        key = f"{services}\\{name}"
        group = edits.tree.value(key, "Group")
        grouped = group is not None and group.text.lower() == generation.retire_group.lower()
        if name.lower() not in ours and grouped and number(edits.tree, key, "Start") == BOOT:
            yield from edits.value(
                key, "Start", DWord(DISABLED),
                f"{name} drives a controller that the VM does not have; NT 4 would start it all the same, "
                "and some hang when they probe for their card")
