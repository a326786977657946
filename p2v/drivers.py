"""Which driver serves a target's controller on this Windows: loads and checks the manifests in drivers/.

A manifest is data: PCI ids, service keys, CriticalDeviceDatabase rows, files, and where each fact is
known from. A new controller is a new file and its name in a target's CONTROLLERS; no code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2v import tables
from p2v.errors import PlanError
from p2v.model import GuestFacts


@dataclass(frozen=True, slots=True)
class Parameter:
    """A DWORD below a service key. key: below the service ("Parameters\\PnpInterface")."""

    key: str
    name: str
    number: int
    known_from: str


@dataclass(frozen=True, slots=True)
class Service:
    """A service key as Windows' setup makes it.

    tag: its place in the group, by GroupOrderList; 0 for none, which is last. parameter: written with a new
    key only.
    """

    name: str
    type: int
    start: int
    error_control: int
    group: str
    image_path: str
    why: str
    known_from: str
    tag: int = 0
    parameter: tuple[Parameter, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A key of the CriticalDeviceDatabase. keep: an existing row stays whatever it names."""

    id: str
    service: str
    class_guid: str
    why: str
    known_from: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class DriverFile:
    """A file that must lie in system32\\drivers.

    medium: which medium carries it, in words for the user. given_only: never from the guest's own caches.
    newer_than_kernel: a version above the kernel's is welcome. minimum_revision: the fourth version
    number from which it is known to be good; below_minimum says what is wrong with an older one.
    vendor: not Microsoft's, so its version says nothing of the Windows that it is for. folders: what its
    vendor's media call the folders for this Windows ("xp"); a copy in another system's folder does not fit.
    """

    name: str
    medium: str
    known_from: str
    given_only: bool = False
    newer_than_kernel: bool = False
    minimum_revision: int = 0
    below_minimum: str = ""
    vendor: bool = False
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A service that must start at boot besides, or that must not."""

    name: str
    why: str
    known_from: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation of Windows needs for the controller.

    in_box: does its driver ship with this Windows? "yes", "no" or "unknown": a hint, the guest's files decide.
    supplied: it comes from the controller's vendor, and the user hands it in.
    retire_group: boot-start services of this group other than ours are disabled ("" for none); spare: but
    not these.
    """

    title: str
    versions: tuple[str, ...]
    architectures: tuple[str, ...]
    in_box: str
    known_from: str
    service: tuple[Service, ...]
    file: tuple[DriverFile, ...]
    device: tuple[DeviceRow, ...] = ()
    needed: tuple[Named, ...] = ()
    rival: tuple[Named, ...] = ()
    retire_group: str = ""
    spare: tuple[str, ...] = ()
    supplied: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """One controller. pci: "vendor:device" in hex. alone: its driver must not stand beside another one's."""

    name: str
    title: str
    pci: tuple[str, ...]
    generation: tuple[Generation, ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Driver:
    """The controller and what this Windows needs for it."""

    manifest: Manifest
    generation: Generation

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The CriticalDeviceDatabase keys of the controller's own PCI ids."""
        return tuple("pci#ven_{}&dev_{}".format(*pci.lower().split(":")) for pci in self.manifest.pci)

    @property
    def service_names(self) -> tuple[str, ...]:
        """Its own services, and those that must start at boot besides."""
        own, needed = self.generation.service, self.generation.needed
        return (*(one.name for one in own), *(one.name for one in needed))

    @property
    def plug_and_play(self) -> bool:
        """Does Windows ask the CriticalDeviceDatabase for it? NT 4 starts what the registry names."""
        return bool(self.generation.device)


def serving(controllers: Sequence[str], facts: GuestFacts) -> Iterator[Driver]:
    """The controllers that some driver for this Windows exists for, best first; whose files nobody asked for yet."""
    version = "{}.{}".format(*facts.version)
    for name in controllers:
        manifest = load(name)
        for generation in manifest.generation:
            if version in generation.versions and facts.architecture in generation.architectures:
                yield Driver(manifest, generation)


@functools.cache
def load(name: str) -> Manifest:
    """The manifest of a controller. Raises PlanError where it is missing or wrong."""
    path = folder() / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"there is no driver manifest for {name}", str(path), str(error),
                        "check the name in the target's CONTROLLERS") from error
    return parse(text, path.name)


def parse(text: str, place: str) -> Manifest:
    """A manifest out of TOML. Raises PlanError with the place of what is wrong in it."""
    manifest = tables.parse(Manifest, text, place, _wrong, {"class": "class_guid"})
    _check(manifest, place)
    return manifest


def folder() -> Path:
    """Where the manifests lie: inside the installed package, or at the root of the source tree."""
    return tables.folder("drivers")


def names() -> tuple[str, ...]:
    """The controllers that have a manifest."""
    return tuple(sorted(path.stem for path in folder().glob("*.toml")))


_PATTERNS = {
    "pci id": re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}"),
    "version": re.compile(r"\d\.\d+"),
    "architecture": re.compile(r"x86|x64"),
    "file name": re.compile(r"[a-z0-9_]{1,8}\.sys"),
    "folder": re.compile(r"[a-z0-9_.]+"),
    "service name": re.compile(r"[A-Za-z0-9_]+"),
    "device id": re.compile(r"[a-z0-9_#&*]+"),
    "class": re.compile(r"\{[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\}"),
    "key below a service": re.compile(r"[A-Za-z0-9]+(\\[A-Za-z0-9]+)*"),
    "value name": re.compile(r"[A-Za-z0-9]+"),
    "answer to in_box (yes, no, unknown)": re.compile(r"yes|no|unknown"),
}
_DWORD = 1 << 32


def _check(manifest: Manifest, place: str) -> None:
    """What types alone do not say. Raises PlanError."""
    _all("pci id", manifest.pci, place)
    if not manifest.generation:
        raise _wrong(place, "a manifest needs a generation")
    served: set[tuple[str, str]] = set()
    for generation in manifest.generation:
        inside = f"{place}, generation {generation.title}"
        _all("version", generation.versions, inside)
        _all("architecture", generation.architectures, inside)
        _all("answer to in_box (yes, no, unknown)", [generation.in_box], inside)
        _all("file name", [file.name for file in generation.file], inside)
        _all("folder", [one for file in generation.file for one in file.folders], inside)
        _all("class", [row.class_guid for row in generation.device], inside)
        _all("device id", [row.id for row in generation.device], inside)
        _all("service name", [one.name for one in generation.service], inside)
        _all("service name", [one.name for one in (*generation.needed, *generation.rival)], inside)
        _all("service name", generation.spare, inside)
        _check_services(generation, inside)
        _check_supply(generation, inside)
        for one in ((v, a) for v in generation.versions for a in generation.architectures):
            if one in served:
                raise _wrong(inside, f"Windows {one[0]} on {one[1]} has two generations")
            served.add(one)


def _check_services(generation: Generation, place: str) -> None:
    known = {one.name.lower() for one in generation.service}
    known |= {one.name.lower() for one in generation.needed}
    for row in generation.device:
        if row.service.lower() not in known:
            raise _wrong(f"{place}, device {row.id}", f"{row.service} is none of this generation's services")
    for service in generation.service:
        inside = f"{place}, service {service.name}"
        if not (0 <= service.start <= 4 and 0 <= service.error_control <= 3):
            raise _wrong(inside, "start is 0 to 4, error_control 0 to 3")
        if not 0 <= service.tag < _DWORD or (service.tag and not service.group):
            raise _wrong(inside, "a tag is a DWORD, and the place in a group")
        for parameter in service.parameter:
            where = f"{inside}, parameter {parameter.key}"
            _all("key below a service", [parameter.key], where)
            _all("value name", [parameter.name], where)
            if not 0 <= parameter.number < _DWORD:
                raise _wrong(where, f"{parameter.number} is no DWORD")


def _check_supply(generation: Generation, place: str) -> None:
    """What a vendor supplies is his own file, and does not ship with Windows."""
    if generation.supplied != any(file.vendor for file in generation.file):
        raise _wrong(place, "supplied is said of a generation with a vendor's file, and of no other")
    if generation.supplied and generation.in_box == "yes":
        raise _wrong(place, "what ships with Windows need not be supplied")
    for file in generation.file:
        if file.folders and not file.vendor:
            raise _wrong(f"{place}, file {file.name}", "folders are a vendor's; Microsoft's files say their Windows")


def _all(what: str, values: Sequence[str], place: str) -> None:
    for value in values:
        if not _PATTERNS[what].fullmatch(value):
            raise _wrong(place, f"{value!r} is no {what}")


def _wrong(place: str, why: str) -> PlanError:
    return PlanError("a driver manifest is wrong", place, why,
                     "mend the file; CONTRIBUTING says what a manifest holds")
