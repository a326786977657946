"""Files as they lie compressed on Windows media: ATAPI.SY_ is a cabinet of one file, or of the older SZDD form.

SZDD is unpacked here: the one kept program that reads it, 7-Zip, weighs ten times as much as this needs.
Source: the form's description in libmspack's documentation (szdd_kwaj.html); msexpand is the witness.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from p2v.errors import GuestError, Where
from p2v.guest.cabinet import Cabinet

SZDD = b"SZDD\x88\xf0\x27\x33"
KWAJ = b"KWAJ"
_WINDOW = 4096
_HEADER = 14  # bytes: signature, mode "A", the last letter of the name, the size


def compressed_name(name: str) -> str:
    """What a file is called while it is compressed: atapi.sys → atapi.sy_."""
    return name[:-1] + "_"


def expand(data: bytes, where: str, limit: int) -> bytes:
    """The file inside; data itself where it is not compressed. limit: bytes.

    Raises GuestError for damage, a file past the limit, and forms that nobody used for drivers; MissingTool.
    """
    if data[:4] == b"MSCF":
        with tempfile.NamedTemporaryFile(prefix="p2v-expand-") as copy:
            copy.write(data)
            copy.flush()
            return Cabinet([Path(copy.name)], Where(item=where)).only(limit)[1]
    if data[:8] == SZDD:
        return _szdd(data, where, limit)
    if data[:4] == KWAJ:
        raise _bad(where, "it is of the KWAJ form, which p2v does not read")
    return data


def _szdd(data: bytes, where: str, limit: int) -> bytes:
    if len(data) < _HEADER or data[8:9] != b"A":
        raise _bad(where, "its SZDD header is cut off, or of an unknown mode")
    size: int = struct.unpack_from("<I", data, 10)[0]
    if size > limit:
        raise _bad(where, f"it claims {size} bytes; a driver has less than {limit}")
    window = bytearray(b" " * _WINDOW)
    out, at, here = bytearray(), _HEADER, _WINDOW - 16
    while len(out) < size and at < len(data):
        flags, at = data[at], at + 1
        for bit in range(8):
            if len(out) >= size or at >= len(data):
                break
            if flags >> bit & 1:
                piece, at = data[at : at + 1], at + 1
            else:
                piece, at = _match(window, here, data[at : at + 2]), at + 2
            for byte in piece:
                window[here] = byte
                here = (here + 1) % _WINDOW
            out += piece
    if len(out) < size:
        raise _bad(where, f"it should hold {size} bytes and holds {len(out)}: it is cut off")
    return bytes(out[:size])


def _match(window: bytearray, here: int, pair: bytes) -> bytes:
    """3 to 18 bytes that were there before; a match may reach into the bytes that it writes."""
    if len(pair) < 2:
        return b""
    start, length = pair[0] | (pair[1] & 0xF0) << 4, (pair[1] & 0x0F) + 3
    piece = bytearray()
    for step in range(length):
        place = (start + step) % _WINDOW
        ahead = (place - here) % _WINDOW
        piece.append(piece[ahead] if ahead < len(piece) else window[place])
    return bytes(piece)


def _bad(where: str, why: str) -> GuestError:
    return GuestError("a compressed file cannot be unpacked", Where(item=where), why,
                      "unpack it on any Windows (expand ATAPI.SY_ ATAPI.SYS), and hand that in with --drivers DIR")
