"""What hivex lacks: is a hive dirty, its log's recovery, list forms of old systems, a structural check.

Everything here takes bytes and gives bytes; nothing is written.
"""

from __future__ import annotations

import struct

from p2v.registry.cells import BINS, Cells, base_block, checksum, checksum_holds
from p2v.registry.check import check
from p2v.registry.log import Recovered, recover

__all__ = ["Recovered", "alternate", "check", "is_dirty", "lh_to_lf", "recover"]

_ALTERNATE = 1  # the base block's type in SYSTEM.ALT


def is_dirty(data: bytes, name: str = "the hive") -> bool:
    """Did Windows leave the hive half-written, so that its log must be replayed?

    Raises GuestError for what is no hive.
    """
    base = base_block(data, name)
    return base.sequence1 != base.sequence2 or not checksum_holds(data)


def alternate(data: bytes) -> bytes:
    """The form of SYSTEM.ALT, which NT 4 and 2000 load when SYSTEM itself does not load."""
    copy = bytearray(data)
    struct.pack_into("<I", copy, 28, _ALTERNATE)
    struct.pack_into("<I", copy, 508, checksum(copy))
    return bytes(copy)


def lh_to_lf(data: bytes, name: str = "the hive") -> bytes:
    """The same hive with every list of hashes (lh) as a list of name hints (lf).

    Hives before minor version 5 know no lh, and hivex makes one for each first subkey. The elements have
    the same size, so nothing moves. The hint is the first four characters, one byte each, and zeroes for a
    name that begins with characters past 255: then Windows looks at the key itself (seen in lf lists of the
    corpus's NT 4 SYSTEM hive and of yarp's UnicodeHive).
    Only lists that keys refer to are touched: data may begin with "lh" too. Raises GuestError.
    """
    cells = Cells(data, name)
    copy = bytearray(data)
    todo, seen = [cells.base.root], {cells.base.root}
    while todo:
        key = cells.key(todo.pop())
        subkeys = cells.subkeys(key)
        done = 0
        for leaf in cells.leaves(key):
            if leaf.signature == b"lh":
                _rewrite_leaf(copy, cells, leaf.offset, subkeys[done:done + leaf.length])
            done += leaf.length
        new = [offset for offset in subkeys if offset not in seen]
        seen.update(new)
        todo += new
    return bytes(copy)


def _rewrite_leaf(copy: bytearray, cells: Cells, leaf: int, subkeys: list[int]) -> None:
    at = leaf + BINS + 4
    copy[at:at + 2] = b"lf"
    for number, offset in enumerate(subkeys):
        hint = _hint(cells.key_name(offset, cells.key(offset)))
        struct.pack_into("<4s", copy, at + 4 + 8 * number + 4, hint)


def _hint(name: str) -> bytes:
    first = name[:4]
    return first.encode("latin-1") if all(ord(char) < 256 for char in first) else b""
