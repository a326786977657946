"""NTFS structures as they lie on the disk: boot sector, MFT record, attribute, runlist.

The same from NT 3.51 (1.2) to XP (3.1) as far as they are read here. Everything is checked against the
volume's own size; what does not fit is a LayoutError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import construct as c

from p2v.binary import parse_bytes
from p2v.errors import LayoutError, Where
from p2v.model import SECTOR

DATA, ATTRIBUTE_LIST, VOLUME_INFORMATION, END = 0x80, 0x20, 0x70, 0xFFFFFFFF
STRIDE = 512  # bytes: each one's last two are swapped with the update sequence array
RECORD_NUMBER = (1 << 48) - 1  # of a file reference
IN_USE, DIRECTORY = 1, 2  # flags of a record
COMPRESSED, ENCRYPTED, SPARSE = 0x00FF, 0x4000, 0x8000  # flags of an attribute

BOOT_LAYOUT = c.Struct(
    "jump" / c.Bytes(3),
    "oem" / c.Const(b"NTFS    "),
    "bytes_per_sector" / c.Int16ul,
    "sectors_per_cluster" / c.Int8ul,
    c.Padding(26),
    "total_sectors" / c.Int64ul,
    "mft_lcn" / c.Int64ul,
    "mftmirr_lcn" / c.Int64ul,
    "clusters_per_record" / c.Int8sl,
    c.Padding(3),
    "clusters_per_index" / c.Int8sl,
    c.Padding(3),
    "serial" / c.Int64ul,
    c.Padding(430),
    "signature" / c.Const(b"\x55\xaa"),
)
RECORD_LAYOUT = c.Struct(
    "magic" / c.Const(b"FILE"),
    "usa_offset" / c.Int16ul,
    "usa_count" / c.Int16ul,
    "lsn" / c.Int64ul,
    "sequence" / c.Int16ul,
    "links" / c.Int16ul,
    "attributes_offset" / c.Int16ul,
    "flags" / c.Int16ul,
    "bytes_in_use" / c.Int32ul,
    "bytes_allocated" / c.Int32ul,
    "base_record" / c.Int64ul,
)
ATTRIBUTE_LAYOUT = c.Struct(
    "type" / c.Int32ul,
    "length" / c.Int32ul,
    "non_resident" / c.Int8ul,
    "name_length" / c.Int8ul,
    "name_offset" / c.Int16ul,
    "flags" / c.Int16ul,
    "id" / c.Int16ul,
)
RESIDENT_LAYOUT = c.Struct("value_length" / c.Int32ul, "value_offset" / c.Int16ul)
NON_RESIDENT_LAYOUT = c.Struct(
    "lowest_vcn" / c.Int64ul,
    "highest_vcn" / c.Int64sl,
    "runs_offset" / c.Int16ul,
    "compression_unit" / c.Int16ul,
    c.Padding(4),
    "allocated_size" / c.Int64ul,
    "data_size" / c.Int64ul,
    "initialized_size" / c.Int64ul,
)


@dataclass(frozen=True, slots=True)
class Boot:
    """The boot sector. A value above 0x80 in sectors_per_cluster means 2^(256 - value)."""

    bytes_per_sector: int
    sectors_per_cluster: int
    total_sectors: int
    mft_lcn: int
    mftmirr_lcn: int
    clusters_per_record: int

    def __post_init__(self) -> None:
        if self.bytes_per_sector not in (512, 1024, 2048, 4096):
            raise ValueError(f"{self.bytes_per_sector} bytes per sector")
        per_cluster = self.sectors_per_cluster
        if per_cluster == 0 or (per_cluster <= 0x80 and per_cluster & (per_cluster - 1)) \
                or 0x80 < per_cluster < 0xF4:
            raise ValueError(f"{per_cluster:#x} sectors per cluster")
        if not -16 <= self.clusters_per_record <= 64 or not SECTOR <= self.record_size <= 64 << 10 \
                or self.record_size % STRIDE:
            raise ValueError(f"{self.clusters_per_record} clusters per MFT record")
        if self.mft_lcn >= self.clusters:
            raise ValueError(f"the MFT at cluster {self.mft_lcn:#x} of {self.clusters:#x}")

    @property
    def cluster_sectors(self) -> int:
        """Sectors of a cluster."""
        return self.sectors_per_cluster if self.sectors_per_cluster <= 0x80 \
            else 1 << 256 - self.sectors_per_cluster

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return self.bytes_per_sector * self.cluster_sectors

    @property
    def clusters(self) -> int:
        """Whole clusters: sectors at the end that fill none belong to no cluster."""
        return self.total_sectors // self.cluster_sectors

    @property
    def record_size(self) -> int:
        """Bytes of an MFT record; a negative field is a power of two."""
        count = self.clusters_per_record
        return count * self.cluster_size if count > 0 else 1 << -count


@dataclass(frozen=True, slots=True)
class _RecordHeader:
    usa_offset: int
    usa_count: int
    attributes_offset: int
    flags: int
    bytes_in_use: int
    base_record: int


@dataclass(frozen=True, slots=True)
class _AttributeHeader:
    type: int
    length: int
    non_resident: int
    name_length: int
    name_offset: int
    flags: int


@dataclass(frozen=True, slots=True)
class _Resident:
    value_length: int
    value_offset: int


@dataclass(frozen=True, slots=True)
class _NonResident:
    lowest_vcn: int
    runs_offset: int
    data_size: int
    initialized_size: int


@dataclass(frozen=True, slots=True)
class Run:
    """length clusters from cluster lcn on; lcn None is a hole."""

    lcn: int | None
    length: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute, or one piece of it (lowest_vcn > 0). value: of a resident one, else None."""

    type: int
    name: str
    flags: int
    value: bytes | None
    runs: tuple[Run, ...] = ()
    lowest_vcn: int = 0
    size: int = 0
    initialized: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """An MFT record after its fixups."""

    number: int
    flags: int
    base: int  # number of the record that it extends, 0 for none
    attributes: tuple[Attribute, ...]

    @property
    def has_list(self) -> bool:
        """Do some of its attributes lie in other records?"""
        return any(attribute.type == ATTRIBUTE_LIST for attribute in self.attributes)


def parse_record(raw: bytes, number: int, clusters: int, where: Where) -> Record:
    """An MFT record as it lies on the disk. clusters: of the volume. Raises LayoutError."""
    what = f"MFT record {number}"
    header = parse_bytes(RECORD_LAYOUT, raw, _RecordHeader, what, where)
    data = fix_up(raw, header.usa_offset, header.usa_count)
    if data is None:
        raise damaged(where, f"{what} is torn or damaged", "its update sequence numbers differ")
    end = min(header.bytes_in_use, len(data))
    return Record(number, header.flags, header.base_record & RECORD_NUMBER,
                  tuple(_attributes(data[:end], header.attributes_offset, what, clusters, where)))


def _attributes(data: bytes, offset: int, what: str, clusters: int, where: Where) -> Iterator[Attribute]:
    least = int(ATTRIBUTE_LAYOUT.sizeof())
    while data[offset:offset + 4] != END.to_bytes(4, "little"):
        header = parse_bytes(ATTRIBUTE_LAYOUT, data[offset:], _AttributeHeader, what,
                             where)
        if header.length < least or offset + header.length > len(data):
            raise damaged(where, f"{what}: an attribute does not fit", f"{header.length} bytes at {offset:#x}")
        yield _attribute(data[offset:offset + header.length], header, what, clusters, where)
        offset += header.length


def _attribute(data: bytes, header: _AttributeHeader, what: str, clusters: int, where: Where) -> Attribute:
    name = utf16(data, header.name_offset, header.name_length)
    rest = data[int(ATTRIBUTE_LAYOUT.sizeof()):]
    if not header.non_resident:
        resident = parse_bytes(RESIDENT_LAYOUT, rest, _Resident, what, where)
        value = data[resident.value_offset:resident.value_offset + resident.value_length]
        if len(value) != resident.value_length:
            raise damaged(where, f"{what}: a value does not fit", f"{resident.value_length} bytes")
        return Attribute(header.type, name, header.flags, value, size=len(value), initialized=len(value))
    spread = parse_bytes(NON_RESIDENT_LAYOUT, rest, _NonResident, what, where)
    runs = tuple(_runs(data[spread.runs_offset:], what, clusters, where))
    return Attribute(header.type, name, header.flags, None, runs, spread.lowest_vcn, spread.data_size,
                     min(spread.initialized_size, spread.data_size))


def _runs(data: bytes, what: str, clusters: int, where: Where) -> Iterator[Run]:
    """Low nibble: bytes of the length; high nibble: bytes of the signed step from the last LCN."""
    offset, lcn = 0, 0
    while offset < len(data) and data[offset]:
        length_bytes, step_bytes = data[offset] & 15, data[offset] >> 4
        end = offset + 1 + length_bytes
        length = int.from_bytes(data[offset + 1:end], "little", signed=True)
        lcn += int.from_bytes(data[end:end + step_bytes], "little", signed=True)
        offset = end + step_bytes
        # A hole has no step; before NTFS 3.0 libntfs wrote it as LCN -1.
        hole = not step_bytes or lcn == -1
        if not 0 < length_bytes <= 8 or step_bytes > 8 or length <= 0 or offset > len(data) \
                or not (hole or 0 <= lcn <= clusters - length):
            raise damaged(where, f"{what}: a run lies outside the volume",
                                f"{length} clusters from {lcn} of {clusters}")
        yield Run(None if hole else lcn, length)


def fix_up(raw: bytes, usa_offset: int, usa_count: int) -> bytes | None:
    """A record with the ends of its strides put back; None where one does not match (a torn write)."""
    strides = len(raw) // STRIDE
    table = raw[usa_offset:usa_offset + 2 * usa_count]
    if usa_count != strides + 1 or len(table) != 2 * usa_count or usa_offset + len(table) > STRIDE:
        return None
    data = bytearray(raw)
    for stride in range(1, strides + 1):
        end = stride * STRIDE
        if data[end - 2:end] != table[:2]:
            return None
        data[end - 2:end] = table[2 * stride:2 * stride + 2]
    return bytes(data)


def utf16(data: bytes, offset: int, letters: int) -> str:
    return data[offset:offset + 2 * letters].decode("utf-16-le", "replace")


def damaged(where: Where, what: str, why: str) -> LayoutError:
    """The error of a structure that contradicts itself or its volume."""
    return LayoutError(what, where, why, "run chkdsk on the machine, or copy the disk again")
