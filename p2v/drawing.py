"""How the VM's disks are put together, drawn: as text for the screen, as SVG for a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from p2v.model import Piece, Plan, SourceDisk

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")
ZERO = "#eeeeee"
WIDTH, BAR, GAP, LEFT = 900, 36, 58, 20  # pixels
LEAST = 6  # pixels of the smallest piece


def amount(size: int) -> str:
    """Bytes in decimal with a unit: 1.5 GiB."""
    number = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def draw_pieces(pieces: Mapping[str, Sequence[Piece]], names: Mapping[str, str]) -> Iterator[str]:
    """A line a piece. pieces: by the VM's disk. names: of the disks handed in, by id."""
    for disk, theirs in pieces.items():
        yield f"  {disk}, {amount(theirs[-1].end)}, is put together from:"
        for piece in theirs:
            yield f"    {piece.offset:#012x}  {amount(piece.length):>10}  {_origin(piece, names)}"


def _origin(piece: Piece, names: Mapping[str, str]) -> str:
    if not piece.source:
        return "zeroes (what belonged to the set alone)"
    name = names.get(piece.source, f"volume {piece.source}")
    place = "" if piece.at == piece.offset or piece.source not in names else f" from {piece.at:#x}"
    twins = ", ".join(f"{names.get(disk, disk)} at {at:#x}" for disk, at in piece.twins)
    return name + place + (f"; other leg: {twins}" if twins else "")


def source_names(sources: Sequence[SourceDisk]) -> dict[str, str]:
    """What the disks handed in are called, by id."""
    return {source.id: os.path.basename(source.path) for source in sources}


def svg(plan: Plan) -> str:
    """A drawing of all disks: where each part comes from. Widths are to scale, down to a least width."""
    names = source_names(plan.sources) or {disk.id: os.path.basename(disk.path) for disk in plan.disks}
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    rows = []
    for disk in plan.disks:
        pieces = disk.pieces or (Piece(0, max(disk.size, 1), disk.id),)
        rows.append((f"{disk.image}: {amount(disk.size)}", pieces))
    height = GAP * len(rows) + BAR * len(rows) + 20 + 22 * len(names)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * LEFT}" height="{height}" '
             'font-family="sans-serif" font-size="13">']
    y = 24
    for title, pieces in rows:
        parts.append(f'<text x="{LEFT}" y="{y}">{escape(title)}</text>')
        parts += _bar(pieces, y + 8, names, colours)
        y += BAR + GAP
    for name, path in names.items():
        parts.append(f'<rect x="{LEFT}" y="{y - 12}" width="14" height="14" fill="{colours[name]}"/>'
                     f'<text x="{LEFT + 20}" y="{y}">{escape(path)}</text>')
        y += 22
    return "\n".join([*parts, "</svg>", ""])


def _bar(pieces: Sequence[Piece], y: int, names: Mapping[str, str], colours: Mapping[str, str]) -> Iterator[str]:
    least = min(LEAST, WIDTH / (2 * len(pieces)))
    scale = (WIDTH - least * len(pieces)) / max(pieces[-1].end, 1)
    x = float(LEFT)
    for piece in pieces:
        width = least + piece.length * scale
        colour = colours.get(piece.source, ZERO if not piece.source else "#bab0ac")
        tip = f"{piece.offset:#x} to {piece.end:#x}: {_origin(piece, names)}"
        yield (f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}" stroke="white">'
               f"<title>{escape(tip)}</title></rect>")
        if width > 90:
            yield f'<text x="{x + 6:.1f}" y="{y + BAR + 14}" font-size="11">{escape(_short(piece, names))}</text>'
        x += width


def _short(piece: Piece, names: Mapping[str, str]) -> str:
    return f"{amount(piece.length)} {names.get(piece.source, piece.source or 'zeroes')}"
