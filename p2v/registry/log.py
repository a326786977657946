"""The transaction log of a hive: what Windows had begun to write when it stopped.

Old form (NT 4 to 2003): a copy of the base block, "DIRT" with one bit per 512 bytes of the bins, then the
dirty pages in the bits' order. Source: "Windows registry file format specification" (msuhanov/regf), "Format
of transaction log files"; checked on yarp's OldDirtyHive against the hive that Windows itself recovered.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from p2v.errors import GuestError, Unsupported, Where
from p2v.registry.cells import (
    BINS,
    BaseBlock,
    base_block,
    checksum,
    checksum_holds,
    damaged,
    readable_base,
    walk_bins,
)

PAGE = 512
_XP, _NT4, _NEW = 1, 2, 6  # the base block's type in a log
_NEXT = ("start the source machine once more, shut it down cleanly and copy it again; "
         "or take the hive and its .LOG together from the same moment of a backup")


@dataclass(frozen=True, slots=True)
class Recovered:
    """A clean hive. digest: SHA-256 of the log that was replayed, "" where none was."""

    data: bytes
    replayed: bool
    digest: str


def recover(data: bytes, log: bytes | None, name: str) -> Recovered:
    """A hive as Windows would see it after loading.

    A clean hive comes back as it is: the log beside it was already written (a clean NT hive with sequence
    number N has a log with N - 1 twice, which must not be replayed). A dirty one is completed from its log.
    Raises GuestError where the hive is dirty and its log is missing or does not fit; Unsupported for logs of
    Windows 8.1 and later.
    """
    if data[BINS:BINS + 4] != b"hbin":  # without a bin it is no hive at all, whatever its log says
        base_block(data, name)
        raise damaged(name, "no bin where the first one must begin", BINS)
    if len(data) < BINS + 4096:
        raise damaged(name, f"its file ends after {len(data)} bytes", len(data))
    sound = data[:4] == b"regf" and checksum_holds(data)
    primary = base_block(data, name) if sound else None
    if primary and primary.sequence1 == primary.sequence2:
        return Recovered(data, False, "")
    if not log:
        raise _unfit(name, f"{_state(primary)}, and its log is missing or empty", 4)
    header = _log_header(log, name)
    if primary:
        _match(header, primary, name)
    elif header.timestamp != struct.unpack_from("<Q", data, BINS + 20)[0]:
        raise _unfit(name, "its base block's checksum is wrong, and its log is of another moment than its "
                           "first bin", BINS + 20)
    recovered = _apply(data, log, header, name)
    _clean_base(recovered, log, header, primary.sequence1 if primary else None)
    for _ in walk_bins(recovered, readable_base(recovered, name).size, name):
        pass
    return Recovered(bytes(recovered), True, hashlib.sha256(log).hexdigest())


def _state(primary: BaseBlock | None) -> str:
    if primary is None:
        return "its base block's checksum is wrong"
    return f"its sequence numbers are {primary.sequence1} and {primary.sequence2}"


def _unfit(name: str, what: str, offset: int, source: str = "") -> GuestError:
    return GuestError(f"the hive {name} was not written to its end: {what}", Where(source or name, offset),
                      "Windows was stopped while it wrote this hive; without the log a part of the settings "
                      "is from before and a part from after", _NEXT)


def _log_header(log: bytes, name: str) -> BaseBlock:
    """The log's base block, which says that the log itself was written to its end."""
    beside = f"{name}.LOG"
    if len(log) < 2 * PAGE or log[:4] != b"regf":
        raise _unfit(name, f"its log is no log ({len(log)} bytes, begins with {log[:4]!r})", 0, beside)
    header = base_block(log, beside)
    if header.type == _NEW or log[PAGE:PAGE + 4] == b"HvLE":
        raise Unsupported(f"the log of the hive {name} has the form of Windows 8.1 and later",
                          Where(beside, 28, 4, "base block, type"), "p2v replays logs of NT 4 to 2003",
                          "this guest is newer than p2v handles; shut it down cleanly and use virt-v2v")
    if header.type not in (_XP, _NT4):
        raise _unfit(name, f"its log has type {header.type} instead of {_XP} or {_NT4}", 28, beside)
    if not checksum_holds(log):
        raise _unfit(name, "its log's checksum is wrong", 508, beside)
    if header.sequence1 != header.sequence2:
        raise _unfit(name, "its log was not written to its end either (sequence numbers "
                           f"{header.sequence1} and {header.sequence2})", 4, beside)
    return header


def _match(header: BaseBlock, primary: BaseBlock, name: str) -> None:
    """Hive and log must be of the same moment: Windows writes both from one header in memory."""
    beside = f"{name}.LOG"
    if header.timestamp != primary.timestamp:
        raise _unfit(name, f"its log is of another moment (timestamp {header.timestamp:#x}, the hive has "
                           f"{primary.timestamp:#x})", 12, beside)
    if (header.size, header.root, header.cluster) != (primary.size, primary.root, primary.cluster):
        raise _unfit(name, "hive and log disagree about the size of the bins, the root or the sector size",
                     36, beside)


def _apply(data: bytes, log: bytes, header: BaseBlock, name: str) -> bytearray:
    """The hive's bytes with the log's pages in their places; grown where the bins had grown."""
    beside = f"{name}.LOG"
    sector = PAGE * header.cluster
    if header.cluster not in (1, 2, 4, 8) or header.size == 0 or header.size % 4096:
        raise _unfit(name, f"its log claims bins of {header.size} bytes, sectors of {sector}", 40, beside)
    bits = header.size // PAGE
    pages = -(-(sector + 4 + bits // 8) // sector) * sector  # bits is a multiple of 8
    if log[sector:sector + 4] != b"DIRT" or pages > len(log):
        raise _unfit(name, "its log has no list of dirty pages", sector, beside)
    runs = list(_runs(log[sector + 4:sector + 4 + bits // 8]))
    amount = PAGE * sum(length for _, length in runs)
    if pages + amount > len(log):
        raise _unfit(name, f"its log is truncated: {pages + amount} bytes are needed, it has {len(log)}",
                     len(log), beside)
    if BINS + header.size > len(data) + amount:
        raise _unfit(name, f"its log claims bins of {header.size} bytes and does not hold what the hive "
                           "lacks of them", 40, beside)
    recovered = bytearray(data)
    recovered.extend(bytes(max(0, BINS + header.size - len(data))))
    for first, length in runs:
        at = BINS + PAGE * first
        recovered[at:at + PAGE * length] = log[pages:pages + PAGE * length]
        pages += PAGE * length
    return recovered


def _runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """Runs of set bits as (first, length), lowest bit of each byte first."""
    first = length = 0
    for index, byte in enumerate(bitmap):
        if byte == 0:
            continue
        for bit in range(8):
            if not byte >> bit & 1:
                continue
            number = 8 * index + bit
            if length and number == first + length:
                length += 1
                continue
            if length:
                yield first, length
            first, length = number, 1
    if length:
        yield first, length


def _clean_base(recovered: bytearray, log: bytes, header: BaseBlock, sequence: int | None) -> None:
    """A base block that says clean: from the log where the hive's own cannot be trusted."""
    if sequence is None:
        sector = PAGE * header.cluster
        recovered[:sector] = log[:sector]
        struct.pack_into("<I", recovered, 28, 0)
        sequence = header.sequence1
    struct.pack_into("<II", recovered, 4, sequence, sequence)
    struct.pack_into("<I", recovered, 508, checksum(recovered))
