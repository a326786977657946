"""Where a service's file lies, and whose it is: ImagePath in all the forms that drivers and programs use."""

from __future__ import annotations

import re

from p2v.errors import GuestError
from p2v.guest import pe
from p2v.guest.facts import VERSION_KEY, number
from p2v.model import Guest, PEFacts

DRIVERS = (1, 2, 8)  # Type of kernel drivers, file systems, recognizers
_PROGRAM = re.compile(r'"([^"]*)"|(.*?\.(?:exe|sys|dll))(?=\s|$)|(\S+)', re.IGNORECASE)


def service_file(guest: Guest, control_set: str, service: str) -> str | None:
    """The path of the service's file on the Windows volume; None where ImagePath leads elsewhere.

    A driver without ImagePath is system32\\drivers\\NAME.sys. A path with a drive letter is looked for on the
    Windows volume alone.
    """
    key = f"{control_set}\\Services\\{service}"
    value = guest.hive("SYSTEM").value(key, "ImagePath")
    text = value.text.strip() if value else ""
    root = guest.facts.system_root
    if not text:
        driver = number(guest.hive("SYSTEM"), key, "Type") in DRIVERS
        return f"{root}\\system32\\drivers\\{service}.sys" if driver else None
    match = _PROGRAM.match(text)
    path = next((part for part in match.groups() if part), "") if match else ""
    path = path.removeprefix("\\??\\")
    for prefix in ("\\SystemRoot\\", "%SystemRoot%\\"):
        if path.lower().startswith(prefix.lower()):
            return f"{root}\\{path[len(prefix):]}"
    if re.match(r"[A-Za-z]:\\", path):
        return path[2:]
    return None if not path or path.startswith(("\\", "%")) or ":" in path else f"{root}\\{path}"


def elsewhere(guest: Guest, control_set: str, service: str) -> bool:
    """May the service's file lie where it is not looked for: by a path that cannot be followed, or on another drive?"""
    if service_file(guest, control_set, service) is None:
        return True
    value = guest.hive("SYSTEM").value(f"{control_set}\\Services\\{service}", "ImagePath")
    letter = re.match(r'"?(?:\\\?\?\\)?([A-Za-z]):\\', value.text.strip()) if value else None
    root = guest.hive("SOFTWARE").value(VERSION_KEY, "SystemRoot")
    return letter is not None and (root is None or root.text[:1].lower() != letter[1].lower())


def is_missing(guest: Guest, path: str | None) -> bool:
    """Is there surely no such file? One that cannot be read, or not be understood, may load all the same."""
    if path is None:
        return False
    try:
        stat = guest.files(guest.facts.boot_volume).stat(path)
    except GuestError:
        return False
    return stat is None or stat.is_folder


def look(guest: Guest, path: str | None) -> PEFacts | str:
    """What the file says of itself, or what is wrong with it, in words."""
    if path is None:
        return "its path cannot be followed"
    files = guest.files(guest.facts.boot_volume)
    try:
        stat = files.stat(path)
        if stat is None or stat.is_folder:
            return f"{path} is not there"
        if stat.size > pe.LIMIT:
            return f"{path} is no program: {stat.size} bytes"
        return pe.read_program(files.read(path), path).facts
    except GuestError as error:
        return f"{error.what} ({error.why})"
