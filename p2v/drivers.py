"""Which driver serves a target's controller on this Windows: loads and checks the manifests in drivers/.

A manifest is data: PCI ids, service keys, CriticalDeviceDatabase rows, files, and where each fact is
known from. A new controller is a new file and its name in a target's CONTROLLERS; no code.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from p2v.errors import PlanError, Unsupported, Where
from p2v.model import Guest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """A service key as Windows' setup makes it."""

    name: str
    type: int
    start: int
    error_control: int
    group: str
    tag: int
    image_path: str
    why: str
    known_from: str


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
    """

    name: str
    medium: str
    known_from: str
    given_only: bool = False
    newer_than_kernel: bool = False
    minimum_revision: int = 0
    below_minimum: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A service that must start at boot besides, or that must not."""

    name: str
    why: str
    known_from: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation of Windows needs for the controller.

    retire_group: boot-start services of this group other than ours are disabled ("" for none).
    """

    title: str
    versions: tuple[str, ...]
    architectures: tuple[str, ...]
    known_from: str
    service: tuple[Service, ...]
    file: tuple[DriverFile, ...]
    device: tuple[DeviceRow, ...] = ()
    needed: tuple[Named, ...] = ()
    rival: tuple[Named, ...] = ()
    retire_group: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One controller. pci: "vendor:device" in hex."""

    name: str
    title: str
    pci: tuple[str, ...]
    generation: tuple[Generation, ...]


@dataclass(frozen=True, slots=True)
class Driver:
    """The controller and what this Windows needs for it."""

    manifest: Manifest
    generation: Generation

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The CriticalDeviceDatabase keys of the controller's own PCI ids."""
        return tuple("pci#ven_{}&dev_{}".format(*pci.lower().split(":")) for pci in self.manifest.pci)


def choose(controllers: Sequence[str], guest: Guest) -> Driver:
    """The best of the target's controllers that has a driver for this Windows. Raises Unsupported."""
    facts = guest.facts
    version = "{}.{}".format(*facts.version)
    for name in controllers:
        manifest = load(name)
        for generation in manifest.generation:
            if version in generation.versions and facts.architecture in generation.architectures:
                return Driver(manifest, generation)
    raise Unsupported(
        f"no controller of the target has a driver for {facts.name}", Where(item=", ".join(controllers)),
        "without a driver for its disk controller Windows stops with 0x7B (inaccessible boot device)",
        "choose another target")


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
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _wrong(place, str(error)) from error
    manifest = _build(Manifest, table, place)
    _check(manifest, place)
    return manifest


def folder() -> Path:
    """Where the manifests lie: inside the installed package, or at the root of the source tree."""
    here = Path(__file__).resolve().parent
    installed = here / "_drivers"
    return installed if installed.is_dir() else here.parent / "drivers"


def names() -> tuple[str, ...]:
    """The controllers that have a manifest."""
    return tuple(sorted(path.stem for path in folder().glob("*.toml")))


def _build(kind: type[T], table: Mapping[str, Any], place: str) -> T:
    """A dataclass from a TOML table; each key must be a field, of the field's type."""
    hints = typing.get_type_hints(kind)
    spelled = {("class" if name == "class_guid" else name): name for name in hints}
    for key in table:
        if key not in spelled:
            raise _wrong(f"{place}, {key}", "this key is not known here")
    values = {field: _value(hints[field], table[key], f"{place}, {key}")
              for key, field in spelled.items() if key in table}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is one of our dataclasses
        if field.default is dataclasses.MISSING and field.name not in values:
            raise _wrong(f"{place}, {field.name}", "this key is missing")
    return kind(**values)


def _value(hint: Any, value: Any, place: str) -> Any:
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list):
            raise _wrong(place, "a list is wanted")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, one, f"{place} {number}") for number, one in enumerate(value, 1))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong(place, "a table is wanted")
        label = value.get("name") or value.get("id") or value.get("title") or ""
        return _build(typing.cast(type[Any], hint), value, f"{place} {label}".rstrip())
    if type(value) is not hint:
        raise _wrong(place, f"{hint.__name__} is wanted, not {value!r}")
    return value


_PATTERNS = {
    "pci id": re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}"),
    "version": re.compile(r"\d\.\d+"),
    "architecture": re.compile(r"x86|x64"),
    "file name": re.compile(r"[a-z0-9_]{1,8}\.sys"),
    "service name": re.compile(r"[A-Za-z0-9_]+"),
    "class": re.compile(r"\{[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\}"),
}


def _check(manifest: Manifest, place: str) -> None:
    """What types alone do not say. Raises PlanError."""
    _all("pci id", manifest.pci, place)
    if not manifest.generation:
        raise _wrong(place, "a manifest needs a generation")
    for generation in manifest.generation:
        inside = f"{place}, generation {generation.title}"
        _all("version", generation.versions, inside)
        _all("architecture", generation.architectures, inside)
        _all("file name", [file.name for file in generation.file], inside)
        _all("class", [row.class_guid for row in generation.device], inside)
        _all("service name", [one.name for one in generation.service], inside)
        _all("service name", [one.name for one in (*generation.needed, *generation.rival)], inside)
        _check_services(generation, inside)


def _check_services(generation: Generation, place: str) -> None:
    known = {one.name.lower() for one in generation.service}
    known |= {one.name.lower() for one in generation.needed}
    for row in generation.device:
        if row.service.lower() not in known:
            raise _wrong(f"{place}, device {row.id}", f"{row.service} is none of this generation's services")
    for service in generation.service:
        if not (0 <= service.start <= 4 and 0 <= service.error_control <= 3):
            raise _wrong(f"{place}, service {service.name}", "start is 0 to 4, error_control 0 to 3")


def _all(what: str, values: Sequence[str], place: str) -> None:
    for value in values:
        if not _PATTERNS[what].fullmatch(value):
            raise _wrong(place, f"{value!r} is no {what}")


def _wrong(place: str, why: str) -> PlanError:
    return PlanError("a driver manifest is wrong", place, why,
                     "mend the file; CONTRIBUTING says what a manifest holds")
