"""A whole hive as python-registry sees it: a walk that shares no code with p2v's reader or its checks."""

from __future__ import annotations

import io
import lzma
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Registry import Registry, RegistryParse

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"


def unpacked(path: Path) -> bytes:
    """A file's content, unpacked where it is packed."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def stored(name: str) -> bytes:
    """A hive that comes with the fixtures."""
    found = [folder / f"{name}.xz" for folder in (FIXTURES / "hives", FIXTURES / "registry")]
    return unpacked(next(path for path in found if path.exists()))


@dataclass(frozen=True)
class Seen:
    """All that a hive holds of a key. values: name, type, raw size field, data."""

    name: str
    flags: int
    timestamp: int
    class_name: bytes
    security: bytes
    values: tuple[tuple[str, int, int, bytes], ...]


def walk(data: bytes) -> dict[str, Seen]:
    """Every key by its path, root ""."""
    registry = Registry.Registry(io.BytesIO(data))
    found: dict[str, Seen] = {}
    todo = [("", registry._regf.first_key())]
    while todo:
        path, record = todo.pop()
        found[path] = _seen(record)
        if record.subkey_number():
            listed = record.subkey_list().keys()
            todo += [(f"{path}\\{key.name()}".lstrip("\\"), _fresh(key, registry)) for key in listed]
    return found


def leaf_kinds(data: bytes) -> set[str]:
    """Which classes of python-registry the lists of subkeys are."""
    registry = Registry.Registry(io.BytesIO(data))
    kinds: set[str] = set()
    todo = [registry._regf.first_key()]
    while todo:
        record = todo.pop()
        if record.subkey_number():
            subkeys = record.subkey_list()
            kinds.add(type(subkeys).__name__)
            if isinstance(subkeys, RegistryParse.RIRecord):
                offsets = struct.unpack_from(f"<{subkeys._keys_len()}I", data, subkeys.offset() + 4)
                kinds |= {data[4100 + offset:4102 + offset].decode().upper() + "Record" for offset in offsets}
            listed = subkeys.keys()
            todo += [_fresh(key, registry) for key in listed]
    return kinds


def _fresh(key: Any, registry: Any) -> Any:
    """The same record right below the first bin: python-registry climbs to it for every offset."""
    return RegistryParse.NKRecord(key._buf, key.offset(), next(registry._regf.hbins()))


def _seen(record: Any) -> Seen:
    length = record.unpack_word(0x4A)
    at = record.abs_offset_from_hbin_offset(record.unpack_dword(0x30)) + 4 if length else 0
    security = record.sk_record()
    (size,) = struct.unpack_from("<I", record._buf, security.offset() + 16)
    values = record.values_list().values() if record.values_number() else ()
    return Seen(record.name(), record.unpack_word(2), record.unpack_qword(4), bytes(record._buf[at:at + length]),
                bytes(record._buf[security.offset() + 20:security.offset() + 20 + size]),
                tuple((value.name(), value.unpack_dword(0xC), value.raw_data_length(), value.raw_data())
                      for value in values))
