"""The MFT of an NTFS volume: its records, and attributes put together from several of them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import construct as c

from p2v.binary import parse, parse_bytes
from p2v.errors import LayoutError, Where
from p2v.filesystem.records import (
    ATTRIBUTE_LIST,
    BOOT_LAYOUT,
    DATA,
    RECORD_NUMBER,
    Attribute,
    Boot,
    Record,
    Run,
    damaged,
    parse_record,
    utf16,
)
from p2v.model import Source, read

LONGEST_LIST = 256 << 10  # bytes of an attribute list, the limit of NTFS itself

LIST_ENTRY_LAYOUT = c.Struct(
    "type" / c.Int32ul,
    "length" / c.Int16ul,
    "name_length" / c.Int8ul,
    "name_offset" / c.Int8ul,
    "lowest_vcn" / c.Int64ul,
    "reference" / c.Int64ul,
    "id" / c.Int16ul,
)


@dataclass(frozen=True, slots=True)
class _ListEntry:
    type: int
    length: int
    name_length: int
    name_offset: int
    lowest_vcn: int
    reference: int


class Mft:
    """The MFT of a volume. Raises LayoutError, or ReadError, as everything here does."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._where = Where(source.name)
        self.boot = parse(BOOT_LAYOUT, source, 0, Boot, "the NTFS boot sector")
        end = self.boot.total_sectors * self.boot.bytes_per_sector
        if end > source.size:
            raise LayoutError("the NTFS volume is longer than its partition", Where(source.name, 0x28, 8),
                              why=f"it needs {end} bytes, there are {source.size}", next="give the whole disk")
        first = read(source, self.boot.mft_lcn * self.boot.cluster_size, self.boot.record_size)
        record = self._parse(first, 0)
        self._mft = self._only(record, DATA, "", 0)
        if record.has_list:
            self._assembled(record, DATA, "")

    @property
    def runs(self) -> tuple[Run, ...]:
        """Where the MFT itself lies."""
        return self._mft.runs

    def record(self, number: int) -> Record:
        """An MFT record."""
        size = self.boot.record_size
        if (number + 1) * size > self._mft.initialized:
            raise damaged(self._where, f"there is no MFT record {number}", "the MFT is shorter")
        return self._parse(self.read(self._mft, number * size, size), number)

    def attribute(self, record: Record, type: int, name: str = "") -> Attribute | None:
        """A whole attribute, put together where an attribute list has spread it."""
        if record.has_list:
            return self._assembled(record, type, name)
        if not any((a.type, a.name) == (type, name) for a in record.attributes):
            return None
        return self._only(record, type, name, 0)

    def read(self, attribute: Attribute, offset: int, length: int) -> bytes:
        """Bytes of an attribute; zeroes in holes and past its initialized size."""
        if attribute.value is not None:
            return attribute.value[offset:offset + length].ljust(length, b"\0")
        cluster = self.boot.cluster_size
        starts = [0]
        for run in attribute.runs:
            starts.append(starts[-1] + run.length * cluster)
        data = bytearray(length)
        end = min(offset + length, attribute.initialized, starts[-1])
        index = bisect.bisect_right(starts, offset) - 1
        position = offset
        while position < end:
            run = attribute.runs[index]
            piece = min(starts[index + 1], end) - position
            if run.lcn is not None:
                place = run.lcn * cluster + position - starts[index]
                self.source.read_into(place, memoryview(data)[position - offset:position - offset + piece])
            position += piece
            index += 1
        return bytes(data)

    def _parse(self, raw: bytes, number: int) -> Record:
        return parse_record(raw, number, self.boot.clusters, self._where)

    # -- attributes that lie in several records

    def _assembled(self, record: Record, type: int, name: str) -> Attribute | None:
        whole: Attribute | None = None
        clusters = 0
        for entry in sorted(self._list(record, type, name), key=lambda entry: entry.lowest_vcn):
            piece = self._only(self._holder(record, entry), type, name, entry.lowest_vcn)
            if piece.value is not None:
                return piece
            if piece.lowest_vcn != clusters:
                raise damaged(self._where, f"MFT record {record.number}: pieces of an attribute do not join",
                              f"one should start at cluster {clusters}, not {piece.lowest_vcn}")
            clusters += sum(run.length for run in piece.runs)
            whole = replace(whole, runs=whole.runs + piece.runs) if whole else piece
            if record.number == 0 and type == DATA:  # the next piece may lie in what this one adds
                self._mft = whole
        return whole

    def _holder(self, record: Record, entry: _ListEntry) -> Record:
        """The record that holds what an attribute list's entry names."""
        number = entry.reference & RECORD_NUMBER
        if number == record.number:
            return record
        holder = self.record(number)
        if holder.base != record.number:
            raise damaged(self._where, f"MFT record {number} does not extend record {record.number}",
                          "an attribute list says so")
        return holder

    def _list(self, record: Record, type: int, name: str) -> Iterator[_ListEntry]:
        attribute = self._only(record, ATTRIBUTE_LIST, "", 0)
        if attribute.size > LONGEST_LIST:
            raise damaged(self._where, f"MFT record {record.number}: its attribute list is too long",
                          f"{attribute.size} bytes")
        data = self.read(attribute, 0, attribute.size)
        offset, least = 0, int(LIST_ENTRY_LAYOUT.sizeof())
        while offset + least <= len(data):
            entry = parse_bytes(LIST_ENTRY_LAYOUT, data[offset:offset + least], _ListEntry,
                                f"the attribute list of MFT record {record.number}", self._where)
            if entry.length < least:
                raise damaged(self._where, f"MFT record {record.number}: its attribute list is a loop",
                              f"an entry of {entry.length} bytes")
            start = offset + entry.name_offset
            if entry.type == type and utf16(data, start, entry.name_length) == name:
                yield entry
            offset += entry.length

    def _only(self, record: Record, type: int, name: str, lowest_vcn: int) -> Attribute:
        found = [a for a in record.attributes
                 if (a.type, a.name, a.lowest_vcn) == (type, name, lowest_vcn)]
        if len(found) != 1:
            raise damaged(self._where, f"MFT record {record.number}: {len(found)} attributes, not one",
                          f"type {type:#x}, name {name!r}, from cluster {lowest_vcn}")
        return found[0]
