"""Windows setup texts (INF, txtsetup.oem): which service a device gets.

Only what that question needs: sections, strings, models, AddService. A text that makes no sense binds nothing: it
is evidence for `inspect`, and nothing is written because of it.
Source: Microsoft's description of the INF format, "INF Manufacturer Section", "INF Models Section", "INF
DDInstall.Services Section".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence

LIMIT = 4 << 20  # bytes; the largest setup text of XP has 0.6 MB
_STRING = re.compile(r"%([^%]*)%")
_MARKS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF8, "utf-8"))
_ARCHITECTURES = {"x86": ("ntx86", "nt"), "x64": ("ntamd64", "nt")}

Sections = Mapping[str, Sequence[str]]


def sections(data: bytes) -> dict[str, list[str]]:
    """Name of a section in lower case → its lines, without comments; continued lines joined."""
    found: dict[str, list[str]] = {}
    lines = found.setdefault("", [])
    for line in _lines(_decoded(data[:LIMIT])):
        head = re.fullmatch(r"\[([^\]]*)\]?", line)
        if head:
            lines = found.setdefault(head[1].strip().lower(), [])
        else:
            lines.append(line)
    return found


def bindings(data: bytes, architecture: str) -> dict[str, str]:
    """Hardware id in lower case → the service that the text installs for it, on "x86" or "x64"."""
    parts = sections(data)
    strings = {key.lower(): value for key, value in _pairs(parts.get("strings", []))}
    found: dict[str, str] = {}
    for models in _models(parts, strings, architecture):
        for _, value in _pairs(parts.get(models, [])):
            install, *ids = _fields(value, strings)
            service = _service(parts, strings, install.lower(), architecture) if ids else ""
            if service:
                for id in ids:
                    found.setdefault(id.lower(), service)
    for name, body in parts.items():  # txtsetup.oem says it straight
        if name.startswith("hardwareids."):
            for _, value in _pairs(body):
                id, *rest = _fields(value, strings)
                if rest:
                    found.setdefault(id.lower(), rest[0])
    found.pop("", None)
    return found


def _models(parts: Sections, strings: Mapping[str, str], architecture: str) -> Iterator[str]:
    """The sections that list devices for this processor, as [Manufacturer] names them."""
    for _, value in _pairs(parts.get("manufacturer", [])):
        name, *decorations = _fields(value, strings)
        fitting = [one for one in decorations if one.lower().split(".")[0] in _ARCHITECTURES.get(architecture, ())]
        for one in (*(f"{name}.{decoration}" for decoration in fitting), *((name,) if architecture == "x86" else ())):
            yield one.lower()


def _service(parts: Sections, strings: Mapping[str, str], install: str, architecture: str) -> str:
    """The service that an install section adds for the device itself; "" for none."""
    endings = (*(f".{one}" for one in _ARCHITECTURES.get(architecture, ())), "")
    for ending in endings:
        for key, value in _pairs(parts.get(f"{install}{ending}.services", [])):
            name, *rest = _fields(value, strings)
            if key.lower() == "addservice" and name and (not rest or rest[0] not in ("", "0", "0x0")):
                return name
    return ""


def _decoded(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark):].decode(encoding, "replace")
    return data.decode("cp1252", "replace")


def _lines(text: str) -> Iterator[str]:
    held = ""
    for raw in text.splitlines():
        line = _bare(raw).strip()
        if line.endswith("\\") and "=" in held + line:
            held += line[:-1]
            continue
        if held + line:
            yield held + line
        held = ""
    if held:
        yield held


def _bare(line: str) -> str:
    """Without its comment: from ; or, at the start of a line of txtsetup.oem, # on; not inside quotes."""
    if line.lstrip().startswith("#"):
        return ""
    quoted = False
    for at, sign in enumerate(line):
        if sign == '"':
            quoted = not quoted
        elif sign == ";" and not quoted:
            return line[:at]
    return line


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, sign, value = line.partition("=")
        if sign:
            yield key.strip().strip('"'), value.strip()


def _fields(value: str, strings: Mapping[str, str]) -> list[str]:
    """The parts of a value between commas, strings put in, unquoted; at least one."""
    filled = _STRING.sub(lambda found: strings.get(found[1].lower(), ""), value)
    return [one.strip().strip('"').strip() for one in filled.split(",")]
