"""Which of the target's disk controllers this guest can drive, and where their drivers come from.

The manifests say what a driver is made of; whether it is there is read from the guest: the files in place and in
its caches, its service keys, its setup texts, and what the user handed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from p2v import drivers
from p2v.drivers import Driver, DriverFile, Manifest
from p2v.errors import GuestError, Unsupported, Where
from p2v.guest import inf
from p2v.guest.facts import number
from p2v.guest.media import Choice, Media, dotted
from p2v.model import Guest

_SETUP_TEXTS = ("mshdc.inf", "pnpscsi.inf", "scsi.inf")  # Microsoft's for disk controllers; vendors' are oemNN.inf
_TEXTS = 64  # setup texts looked at
_IMPORTS = 32  # of one file; a real driver has five


@dataclass(frozen=True, slots=True)
class Option:
    """A controller of the target that there is a driver for. files: what it needs, and the copy to use of each.

    missing: an error for each file that is nowhere.
    """

    driver: Driver
    files: tuple[tuple[DriverFile, Choice], ...]
    missing: tuple[GuestError, ...]

    @property
    def in_box(self) -> bool:
        """All its files are the guest's own."""
        return not self.missing and all(choice.in_box for _, choice in self.files)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a controller on this guest.

    verdict: "yes", its driver is complete; "no", files are missing, or there is no driver for this Windows;
    "unknown", the files are missing and the manifest does not know whether this Windows ships them.
    signs: what was found, in words. needs: what to get, in words.
    """

    verdict: str
    signs: tuple[str, ...]
    needs: tuple[str, ...] = ()


def options(controllers: Sequence[str], guest: Guest, media: Media) -> tuple[Option, ...]:
    """The controllers whose drivers are complete, in the target's order; at least one.

    Raises GuestError naming every file that is nowhere, of the best controller first; Unsupported where no
    driver for this Windows exists; PlanError for a wrong manifest.
    """
    best(controllers, guest)
    media.expect(file for driver in drivers.serving(controllers, guest.facts) for file in driver.generation.file)
    found = [examine(driver, media) for driver in drivers.serving(controllers, guest.facts)]
    complete = tuple(option for option in found if not option.missing)
    if not complete:
        raise _nowhere(found)
    return complete


def best(controllers: Sequence[str], guest: Guest) -> Driver:
    """The target's first controller that any driver for this Windows exists for. Raises Unsupported."""
    for driver in drivers.serving(controllers, guest.facts):
        return driver
    raise Unsupported(
        f"no controller of the target has a driver for {guest.facts.name}", Where(item=", ".join(controllers)),
        "without a driver for its disk controller Windows stops with 0x7B (inaccessible boot device)",
        "choose another target")


def in_place(controllers: Sequence[str], guest: Guest) -> Driver:
    """The controller that the guest is fitted to: the best whose files lie where they belong; else the best.

    Raises Unsupported where no driver for this Windows exists.
    """
    with Media(guest) as media:
        for driver in drivers.serving(controllers, guest.facts):
            if all(_in_place(file, media) for file in driver.generation.file):
                return driver
    return best(controllers, guest)


def _in_place(file: DriverFile, media: Media) -> bool:
    choice = media.installed(file)
    return choice is not None and all(media.has(name) for name in choice.imports if name.endswith(".sys"))


def examine(driver: Driver, media: Media) -> Option:
    """Where the files of a driver come from, and what those import in turn."""
    files: list[tuple[DriverFile, Choice]] = []
    missing: list[GuestError] = []
    generic = any(row.id.startswith("pci#cc_") for row in driver.generation.device)
    ids = () if generic else driver.device_ids  # who serves a whole class need not name each of it
    todo = list(driver.generation.file)
    known = {file.name for file in todo}
    while todo:
        file = todo.pop(0)
        try:
            choice = media.choose(file, ids)
        except GuestError as error:
            missing.append(error)
            continue
        files.append((file, choice))
        for name in choice.imports[:_IMPORTS]:
            if re.fullmatch(r"[a-z0-9_]{1,8}\.sys", name) and name not in known and not media.has(name):
                known.add(name)
                todo.append(_library(file, name))
    return Option(driver, tuple(files), tuple(missing))


def available(guest: Guest) -> list[tuple[Manifest, Evidence]]:
    """Every controller that p2v knows, and what this guest has for it: what `inspect` shows. Reads the guest."""
    with Media(guest) as media:
        bindings = _bindings(guest)
        names = drivers.names()
        media.expect(file for driver in drivers.serving(names, guest.facts) for file in driver.generation.file)
        return [(drivers.load(name), _evidence(guest, drivers.load(name), media, bindings)) for name in names]


def _evidence(guest: Guest, manifest: Manifest, media: Media, bindings: dict[str, tuple[str, str]]) -> Evidence:
    driver = next(drivers.serving((manifest.name,), guest.facts), None)
    if driver is None:
        return Evidence("no", (f"nobody made a driver for {guest.facts.name}",))
    option = examine(driver, media)
    signs = [f"{file.name} {dotted(choice.version)} in {choice.where}" for file, choice in option.files]
    signs += _keys(guest, driver)
    for id in driver.device_ids:
        text, service = bindings.get(id, ("", ""))
        if text:
            signs.append(f"{text} binds {id} to {service}")
    needs = tuple(error.next for error in option.missing)
    if not option.missing:
        return Evidence("yes", tuple(signs))
    return Evidence("unknown" if driver.generation.in_box == "unknown" else "no", tuple(signs), needs)


def _keys(guest: Guest, driver: Driver) -> Iterator[str]:
    tree, services = guest.hive("SYSTEM"), f"{guest.facts.default_control_set}\\Services"
    for service in driver.generation.service:
        start = number(tree, f"{services}\\{service.name}", "Start")
        if start is not None:
            yield f"the service {service.name} is there, Start {start}"


def _bindings(guest: Guest) -> dict[str, tuple[str, str]]:
    """CriticalDeviceDatabase id → (setup text, service) as the guest's own setup texts have it."""
    files, folder = guest.files(guest.facts.boot_volume), f"{guest.facts.system_root}\\inf"
    names = [name for name in files.list(folder) if name.lower() in _SETUP_TEXTS]
    names += sorted(name for name in files.list(folder)
                    if name.lower().startswith("oem") and name.lower().endswith(".inf"))
    found: dict[str, tuple[str, str]] = {}
    for name in names[:_TEXTS]:
        path = f"{folder}\\{name}"
        stat = files.stat(path)
        if stat is None or stat.is_folder or stat.size > inf.LIMIT:
            continue
        try:
            text = files.read(path)
        except GuestError:  # an unreadable setup text is no evidence, and nobody needs it to boot
            continue
        for id, service in inf.bindings(text, guest.facts.architecture).items():
            found.setdefault(id.replace("\\", "#"), (name, service))
    return found


def _library(importer: DriverFile, name: str) -> DriverFile:
    """A file that a driver imports: Microsoft's, from the system's own medium."""
    return DriverFile(name, "the Windows CD of the same service pack (DRIVER.CAB or SPn.CAB in its I386 or AMD64)",
                      f"{importer.name} imports it", given_only=importer.given_only and not importer.vendor)


def _nowhere(found: Sequence[Option]) -> GuestError:
    """What to get, for the best controller, and for the others in a line each."""
    best = found[0]
    first = best.missing[0]
    what, steps = first.what, [error.next for error in best.missing]
    if len(best.missing) > 1:
        what = f"{len(best.missing)} driver files are nowhere to be found: " + ", ".join(
            error.where.item for error in best.missing)
    for option in found[1:]:
        lacking = ", ".join(error.where.item for error in option.missing)
        media = "; ".join(dict.fromkeys(file.medium for file in option.driver.generation.file
                                        if file.name in {error.where.item for error in option.missing}))
        steps.append(f"or, for {option.driver.manifest.title}: {lacking}" + (f" from {media}" if media else ""))
    why = "\n".join(error.why for error in best.missing)
    return GuestError(what, replace(first.where, item=", ".join(error.where.item for error in best.missing)), why,
                      "\n".join(steps))
