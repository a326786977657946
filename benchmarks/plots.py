"""The figures as one SVG: a bar for each ratio, and cost over size and over the used share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from benchmarks.extremes import Line
from benchmarks.rounds import Row

LEFT, BAR, WIDTH, PLOT, GAP = 330, 16, 420, 220, 60  # pixels
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")
TOP = 16  # the largest ratio drawn; smaller than 1 / TOP is drawn as that


def draw(rows: Sequence[Row], lines: Sequence[Line]) -> str:
    """The SVG's text."""
    bars = [row for row in rows if row.wanted is not None]
    below = 60 + BAR * len(bars) + GAP
    axes = list(dict.fromkeys(line.axis for line in lines))
    width = LEFT + WIDTH + 40
    parts = [*_bars(bars)]
    for number, axis in enumerate(axes):
        chosen = [line for line in lines if line.axis == axis]
        parts += _lines(chosen, GAP + number * (PLOT + 2 * GAP), below)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{below + PLOT + GAP}" '
            'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(parts) + "\n</svg>\n")


def _bars(rows: Sequence[Row]) -> Iterator[str]:
    """Bars on a scale of logarithms; a tick where the wanted ratio is, a thin line for the spread."""
    yield _text(LEFT, 20, "p2v against the fastest peer: times as fast (bar), spread (line), wanted (tick)", "middle")
    end = 40 + BAR * len(rows)
    for ratio in (0.5, 1, 2, 4, 8, 16):
        yield _stroke(_x(ratio), 34, _x(ratio), end, "#999" if ratio == 1 else "#ddd")
        yield _text(_x(ratio), end + 14, f"{ratio:g}", "middle")
    for number, row in enumerate(rows):
        y = 38 + BAR * number
        low, high = sorted((_x(1), _x(row.ratio)))
        until = "durable" if row.durable else "cached"
        yield _text(LEFT - 8, y + 10, f"{row.job}, {until} / {row.peer}", "end")
        yield (f'<rect x="{low:.1f}" y="{y + 2}" width="{max(1.0, high - low):.1f}" height="{BAR - 5}" '
               f'fill="{COLOURS[0] if row.met else COLOURS[1]}"/>')
        yield _stroke(_x(row.spread[0]), y + 7, _x(row.spread[1]), y + 7, "black")
        yield _stroke(_x(row.wanted or 1), y, _x(row.wanted or 1), y + BAR - 1, "black")


def _lines(lines: Sequence[Line], left: int, top: int) -> Iterator[str]:
    """Points, and the straight line that fits them best."""
    widest = max(x for line in lines for x, _ in line.points)
    highest = max(y for line in lines for _, y in line.points) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        return left + PLOT * x / widest, top + PLOT * (1 - y / highest)

    yield _stroke(*place(0, 0), *place(widest, 0), "black")
    yield _stroke(*place(0, 0), *place(0, highest), "black")
    yield _text(left + PLOT / 2, top + PLOT + 30, f"{lines[0].axis} ({widest:g} at the right)", "middle")
    yield _text(left, top - 6, f"seconds, up to {highest:.2f}", "start")
    for line, colour in zip(lines, COLOURS, strict=False):
        slope, base = line.fit
        yield _stroke(*place(0, max(0.0, base)), *place(widest, base + slope * widest), colour)
        for x, y in (place(*point) for point in line.points):
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        at = place(widest, line.points[-1][1])
        yield _text(at[0] + 6, at[1], f"{line.name}, R² {line.straight:.3f}", "start", colour)


def _x(ratio: float) -> float:
    """Where a ratio lies: 1/2 at the left, TOP at the right."""
    bounded = min(max(ratio, 0.4), TOP)
    return LEFT + 30 + (WIDTH - 40) * (math.log2(bounded) + 1) / (math.log2(TOP) + 1)


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
