"""A hive's bins, cells and keys, walked without trust: every offset is checked before it is followed.

Offsets between cells are counted from the first bin (file offset 4096), here and in the hive.
Source of all layouts: "Windows registry file format specification" (msuhanov/regf), checked on the corpus.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import reduce
from operator import xor
from typing import NamedTuple

from p2v.errors import GuestError, Unsupported, Where

BINS = 4096  # file offset of the first bin
BIN_HEADER = 32
NOWHERE = 0xFFFFFFFF
SMALL = 0x80000000  # in a value's size: the data lies in the offset field
SEGMENT = 16344  # bytes of one big-data segment, and the most that a plain data cell holds from minor 4 on

_BASE = struct.Struct("<4sIIQ7I")
_BIN = struct.Struct("<4sII")
_KEY = struct.Struct("<2sHQ15IHH")
_VALUE = struct.Struct("<2sHIIIHH")
_SECURITY = struct.Struct("<2sHIIII")
_INT = struct.Struct("<i")
_LIST = struct.Struct("<2sH")
_BIG = struct.Struct("<2sHI")

REPAIR = ("take the hive from the machine's own backup (its repair folder, or a backup of the system state), "
          "or load and save it once in a running Windows of the same or a later version")


class BaseBlock(NamedTuple):
    """A hive's header, the first 512 bytes. timestamp: FILETIME; size: bytes of all bins."""

    signature: bytes
    sequence1: int
    sequence2: int
    timestamp: int
    major: int
    minor: int
    type: int
    format: int
    root: int
    size: int
    cluster: int


class Key(NamedTuple):
    """A key node. subkey_list, value_list, security, class_cell: offsets of other cells."""

    signature: bytes
    flags: int
    timestamp: int
    access: int
    parent: int
    subkeys: int
    volatile: int
    subkey_list: int
    volatile_list: int
    values: int
    value_list: int
    security: int
    class_cell: int
    longest_subkey: int
    longest_class: int
    longest_value: int
    largest_data: int
    hint: int
    name_length: int
    class_length: int


class ValueNode(NamedTuple):
    """A value node. size: bytes of data, with SMALL set where data holds them itself."""

    signature: bytes
    name_length: int
    size: int
    data: int
    type: int
    flags: int
    spare: int


class Security(NamedTuple):
    """A security descriptor's node. references: how many keys have it; size: bytes of the descriptor."""

    signature: bytes
    spare: int
    next: int
    previous: int
    references: int
    size: int


class Leaf(NamedTuple):
    """A list of keys: offset of its cell, "lf", "lh" or "li", and how many keys it lists."""

    offset: int
    signature: bytes
    length: int


def damaged(name: str, what: str, offset: int | None = None, item: str = "") -> GuestError:
    """The error of a hive that contradicts itself. offset: bytes from the start of the hive's file."""
    return GuestError(f"the hive {name} is damaged: {what}", Where(name, offset, item=item),
                      "what Windows or p2v would read from it is not what was written", REPAIR)


def checksum(data: bytes | bytearray) -> int:
    """Of a base block: XOR of its first 127 dwords, never 0 and never all ones."""
    value: int = reduce(xor, struct.unpack_from("<127I", data))
    return {0: 1, NOWHERE: NOWHERE - 1}.get(value, value)


def checksum_holds(data: bytes | bytearray) -> bool:
    """Does the base block carry its own checksum?"""
    return bool(struct.unpack_from("<I", data, 508)[0] == checksum(data))


def base_block(data: bytes | bytearray, name: str) -> BaseBlock:
    """The header of a hive or of its log. Raises GuestError for what is neither."""
    if len(data) < 512:
        raise damaged(name, f"its file has {len(data)} bytes, too few for a base block", 0)
    base = BaseBlock(*_BASE.unpack_from(data))
    if base.signature != b"regf":
        raise damaged(name, f"it begins with {bytes(data[:4])!r} instead of 'regf'", 0)
    return base


def readable_base(data: bytes | bytearray, name: str) -> BaseBlock:
    """The header of a hive whose cells p2v can walk. Raises GuestError, Unsupported."""
    base = base_block(data, name)
    if base.major != 1 or not 2 <= base.minor <= 6:
        raise Unsupported(f"the hive {name} has format {base.major}.{base.minor}",
                          Where(name, 20, 8, "base block, version"), "p2v reads 1.2 to 1.6",
                          "this is no hive of NT 4, 2000, XP or 2003; is it the right file?")
    if base.size == 0 or base.size % 4096:
        raise damaged(name, f"its bins are {base.size} bytes, not a multiple of 4096", 40)
    if BINS + base.size > len(data):
        raise damaged(name, f"it is cut off: {BINS + base.size} bytes are needed, {len(data)} are there", 40)
    return base


def walk_bins(data: bytes | bytearray, size: int, name: str) -> Iterator[tuple[int, int]]:
    """File offset and length of each bin, ascending, touching. Raises GuestError at a bad one."""
    offset, end = BINS, BINS + size
    while offset < end:
        signature, own, length = _BIN.unpack_from(data, offset)
        if signature != b"hbin" or own != offset - BINS:
            raise damaged(name, f"no bin at {offset:#x}, where one must begin", offset)
        if length < 4096 or length % 4096 or offset + length > end:
            raise damaged(name, f"the bin at {offset:#x} claims {length} bytes", offset + 8)
        yield offset, length
        offset += length


def key_name(raw: bytes, compressed: bool) -> str:
    """A key's or value's name as the hive holds it; compressed: one byte per character."""
    return raw.decode("latin-1") if compressed else raw[: len(raw) & ~1].decode("utf-16-le", "surrogatepass")


def fold(name: str) -> str:
    """A name for comparison: upper case, character by character, as Windows orders and finds keys.

    Characters past U+FFFF are two units to Windows, which have no case (seen in offreg's test hive).
    """
    if name.isascii():
        return name.upper()
    return "".join(upper if len(upper := char.upper()) == 1 and char < "\U00010000" else char
                   for char in name)


def sort_key(name: str) -> bytes:
    """What subkeys rise by: the units of the folded name."""
    return fold(name).encode("utf-16-be", "surrogatepass")


class Cells:
    """The allocated cells of a hive. Every method raises GuestError where the hive contradicts itself."""

    def __init__(self, data: bytes | bytearray, name: str) -> None:
        self.data = data
        self.name = name
        self.base = readable_base(data, name)
        self.sizes: dict[int, int] = {}  # offset of a cell → bytes of its content
        for offset, length in walk_bins(data, self.base.size, name):
            self._walk_cells(offset + BIN_HEADER, offset + length)

    def _walk_cells(self, offset: int, end: int) -> None:
        data, sizes, unpack = self.data, self.sizes, _INT.unpack_from
        while offset < end:
            (size,) = unpack(data, offset)
            length = abs(size)
            if length < 8 or length & 3 or offset + length > end:
                raise self.bad(f"the cell at {offset:#x} claims {length} bytes", offset)
            if size < 0:
                sizes[offset - BINS] = length - 4
            offset += length

    def bad(self, what: str, offset: int | None = None) -> GuestError:
        """The error of this hive's damage. offset: bytes from the start of its file."""
        return damaged(self.name, what, offset)

    def content(self, offset: int, least: int, what: str) -> int:
        """File offset of a cell's content, which has at least so many bytes."""
        size = self.sizes.get(offset)
        if size is None:
            raise self.bad(f"{what} is said to be where no cell is in use", offset + BINS)
        if size < least:
            raise self.bad(f"{what} needs {least} bytes, its cell has {size}", offset + BINS)
        return offset + BINS + 4

    def key(self, offset: int) -> Key:
        """A key node."""
        key = Key(*_KEY.unpack_from(self.data, self.content(offset, _KEY.size, "a key")))
        if key.signature != b"nk":
            raise self.bad("a cell is listed as a key and is none", offset + BINS)
        return key

    def key_name(self, offset: int, key: Key) -> str:
        """The name of the key at offset."""
        at = self.content(offset, _KEY.size + key.name_length, "a key with its name") + _KEY.size
        return key_name(bytes(self.data[at:at + key.name_length]), bool(key.flags & 0x20))

    def leaves(self, key: Key) -> Iterator[Leaf]:
        """The lists that hold a key's subkeys."""
        if key.subkeys == 0:
            return
        first = self._leaf(key.subkey_list)
        if first.signature != b"ri":
            yield first
            return
        for offset in self._numbers(first.offset, 4, first.length, 1):
            leaf = self._leaf(offset)
            if leaf.signature == b"ri" or leaf.length == 0:
                raise self.bad("an index root lists an empty list or another root", offset + BINS)
            yield leaf

    def _leaf(self, offset: int) -> Leaf:
        at = self.content(offset, _LIST.size, "a list of subkeys")
        signature, count = _LIST.unpack_from(self.data, at)
        if signature not in (b"lf", b"lh", b"li", b"ri"):
            raise self.bad("a cell should list subkeys and does not", offset + BINS)
        return Leaf(offset, signature, count)

    def _numbers(self, offset: int, skip: int, count: int, step: int) -> tuple[int, ...]:
        at = self.content(offset, skip + 4 * step * count, f"a list of {count}") + skip
        return struct.unpack_from(f"<{step * count}I", self.data, at)[::step]

    def subkeys(self, key: Key) -> list[int]:
        """Offsets of a key's subkeys, in the order of its lists."""
        found: list[int] = []
        for leaf in self.leaves(key):
            found += self._numbers(leaf.offset, 4, leaf.length, 1 if leaf.signature == b"li" else 2)
            if len(found) > len(self.sizes):
                raise self.bad("a key lists more subkeys than the hive has cells", leaf.offset + BINS)
        if len(found) != key.subkeys:
            raise self.bad(f"a key claims {key.subkeys} subkeys, lists {len(found)}", key.subkey_list + BINS)
        return found

    def values(self, key: Key) -> tuple[int, ...]:
        """Offsets of a key's values."""
        if key.values == 0:
            return ()
        if key.values > len(self.sizes):
            raise self.bad(f"a key claims {key.values} values, more than the hive has cells")
        return self._numbers(key.value_list, 0, key.values, 1)

    def security(self, offset: int) -> Security:
        """A security descriptor's node, the descriptor checked to lie in its cell."""
        at = self.content(offset, _SECURITY.size, "a security descriptor")
        security = Security(*_SECURITY.unpack_from(self.data, at))
        if security.signature != b"sk":
            raise self.bad("a cell should hold a security descriptor and does not", offset + BINS)
        self.content(offset, _SECURITY.size + security.size, "a security descriptor")
        return security

    def value(self, offset: int) -> ValueNode:
        """A value node, its name checked to lie in its cell."""
        at = self.content(offset, _VALUE.size, "a value")
        value = ValueNode(*_VALUE.unpack_from(self.data, at))
        if value.signature != b"vk":
            raise self.bad("a cell is listed as a value and is none", offset + BINS)
        self.content(offset, _VALUE.size + value.name_length, "a value with its name")
        return value

    def value_cells(self, offset: int, value: ValueNode) -> list[int]:
        """Offsets of the cells that hold a value's data: none where the value at offset holds it itself."""
        if value.size & SMALL:
            if value.size & ~SMALL > 4:
                raise self.bad(f"a value claims {value.size & ~SMALL} bytes in a field of 4", offset + BINS)
            return []
        if value.size == 0:
            return []
        if value.size <= SEGMENT or not self.is_big(value.data):
            self.content(value.data, value.size, "a value's data")
            return [value.data]
        _, count, table = _BIG.unpack_from(self.data, value.data + BINS + 4)
        segments = self._numbers(table, 0, count, 1)
        for number, segment in enumerate(segments):
            left = value.size - number * SEGMENT
            self.content(segment, max(0, min(left, SEGMENT)), "a segment of big data")
        if count * SEGMENT < value.size:
            raise self.bad(f"big data of {value.size} bytes has {count} segments", value.data + BINS)
        return [value.data, table, *segments]

    def is_big(self, offset: int) -> bool:
        """Does the cell at offset hold a big-data record?"""
        at = self.content(offset, _BIG.size, "a value's data")
        return self.data[at:at + 2] == b"db"
