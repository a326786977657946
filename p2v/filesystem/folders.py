"""Folders of NTFS by their own index ($I30): a path becomes an MFT record in a few small reads.

For volumes on failing or doubtful disks: a lookup touches only the index blocks on its way down, where the
libraries would read a folder whole. Source: ntfs-3g layout.h (INDEX_ROOT, INDEX_BLOCK, INDEX_ENTRY); checked
against libfsntfs on volumes of mkntfs and of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, Where
from p2v.filesystem.mft import Mft
from p2v.filesystem.records import DIRECTORY, RECORD_NUMBER, damaged, fix_up, utf16

ROOT = 5  # record number of the root folder
INDEX_ROOT, INDEX_ALLOCATION, NAME = 0x90, 0xA0, "$I30"
HAS_BELOW, LAST = 1, 2  # flags of an entry
FIRST_USER_RECORD = 16  # the files below are $MFT and its kin
DEEPEST = 32  # levels of an index
MOST_NODES = 4096  # of an index that is listed: 16 MiB
NODE_AT = 0x18  # bytes from the start of an index block
VCN_UNIT = 512  # bytes, where a cluster is larger than an index block

ROOT_LAYOUT = c.Struct("type" / c.Int32ul, "collation" / c.Int32ul, "block_size" / c.Int32ul, c.Padding(4))
BLOCK_LAYOUT = c.Struct("magic" / c.Const(b"INDX"), "usa_offset" / c.Int16ul, "usa_count" / c.Int16ul)
NODE_LAYOUT = c.Struct("entries_offset" / c.Int32ul, "index_length" / c.Int32ul)
ENTRY_LAYOUT = c.Struct("reference" / c.Int64ul, "length" / c.Int16ul, "key_length" / c.Int16ul, "flags" / c.Int16ul,
                        c.Padding(2))
NAME_AT = int(ENTRY_LAYOUT.sizeof()) + 0x40  # bytes from the start of an entry: length, namespace, name


@dataclass(frozen=True, slots=True)
class _Root:
    block_size: int

    def __post_init__(self) -> None:
        if self.block_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
            raise ValueError(f"index blocks of {self.block_size} bytes")


@dataclass(frozen=True, slots=True)
class _Block:
    usa_offset: int
    usa_count: int


@dataclass(frozen=True, slots=True)
class _Node:
    entries_offset: int
    index_length: int


@dataclass(frozen=True, slots=True)
class _Entry:
    reference: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Name:
    """An entry of a folder. below: number of the index block with smaller names. last: ends a node, no name."""

    name: str
    record: int
    below: int | None
    last: bool


class Folder:
    """A folder's index. Raises LayoutError and ReadError, as everything here does."""

    def __init__(self, mft: Mft, number: int) -> None:
        self._mft = mft
        self._what = f"the folder in MFT record {number}"
        self._where = Where(mft.source.name, item=self._what)
        record = mft.record(number)
        root = mft.attribute(record, INDEX_ROOT, NAME)
        if root is None or root.value is None:
            raise self._damaged("it has no index")
        self._block_size = parse_bytes(ROOT_LAYOUT, root.value, _Root, self._what, self._where).block_size
        self._root = root.value[int(ROOT_LAYOUT.sizeof()):]
        self._blocks = mft.attribute(record, INDEX_ALLOCATION, NAME)

    def find(self, name: str) -> int | None:
        """The number of a file's MFT record, case ignored; None where there is none."""
        wanted = _order(name)
        node = self._root
        for _ in range(DEEPEST):
            entry = next(entry for entry in self._entries(node) if entry.last or wanted <= _order(entry.name))
            if not entry.last and wanted == _order(entry.name):
                return entry.record
            if entry.below is None:
                return None
            node = self._block(entry.below)
        raise self._damaged(f"its index is deeper than {DEEPEST} levels")

    def names(self) -> Iterator[Name]:
        """All names, in the index's own order, without the filesystem's own files."""
        nodes, seen = [self._root], set[int]()
        while nodes:
            for entry in self._entries(nodes.pop()):
                if entry.below is not None:
                    if entry.below in seen or len(seen) >= MOST_NODES:
                        raise self._damaged("its index is a loop, or too long")
                    seen.add(entry.below)
                    nodes.append(self._block(entry.below))
                if not entry.last and entry.record >= FIRST_USER_RECORD:
                    yield entry

    def _block(self, number: int) -> bytes:
        """The node in an index block."""
        if self._blocks is None:
            raise self._damaged("its index lacks its blocks")
        cluster = self._mft.boot.cluster_size
        offset = number * (cluster if cluster <= self._block_size else VCN_UNIT)
        if not 0 <= offset <= self._blocks.size - self._block_size:
            raise self._damaged(f"there is no index block {number}")
        raw = self._mft.read(self._blocks, offset, self._block_size)
        head = parse_bytes(BLOCK_LAYOUT, raw, _Block, self._what, self._where)
        data = fix_up(raw, head.usa_offset, head.usa_count)
        if data is None:
            raise self._damaged(f"its index block {number} is torn")
        return data[NODE_AT:]

    def _entries(self, node: bytes) -> Iterator[Name]:
        """A node's entries up to the last one, which has no name."""
        header = parse_bytes(NODE_LAYOUT, node, _Node, self._what, self._where)
        offset, end = header.entries_offset, min(header.index_length, len(node))
        least = int(ENTRY_LAYOUT.sizeof())
        while offset + least <= end:
            entry = parse_bytes(ENTRY_LAYOUT, node[offset:offset + least], _Entry, self._what, self._where)
            raw = node[offset:min(offset + entry.length, end)]
            last = bool(entry.flags & LAST)
            if entry.length < least or len(raw) < entry.length or not (last or len(raw) > NAME_AT + 2):
                break
            below = int.from_bytes(raw[-8:], "little") if entry.flags & HAS_BELOW else None
            name = "" if last else utf16(raw, NAME_AT + 2, raw[NAME_AT])
            yield Name(name, entry.reference & RECORD_NUMBER, below, last)
            if last:
                return
            offset += entry.length
        raise self._damaged("an entry of its index does not fit")

    def _damaged(self, why: str) -> LayoutError:
        return damaged(self._where, f"{self._what} is damaged", why)


def find_path(mft: Mft, path: str) -> int | None:
    """The number of the MFT record at a path from the root; None where there is nothing.

    Raises LayoutError, ReadError where the way there is damaged.
    """
    number: int | None = ROOT
    for part in (part for part in path.split("\\") if part):
        if number is None or not mft.record(number).flags & DIRECTORY:
            return None
        number = Folder(mft, number).find(part)
    return number


def _order(name: str) -> bytes:
    """As NTFS sorts names: upper case letter by letter, compared as UTF-16 units."""
    folded = "".join(up if len(up := letter.upper()) == 1 else letter for letter in name)
    return folded.encode("utf-16-be")
