"""Line charts out of characters: braille dots for the lines, a marker on the points, plain ASCII where need be.

Knows nothing of models or colours: it returns lines of :class:`Span`, and the caller colours what belongs to a series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

MARKERS = "●▲■◆▼★×+"
ASCII_MARKERS = "oxs*v@#+"
FRAME, GUIDE = -1, -2  # series of what is no series: axes and labels, the chance line

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of the dot at (row, column) of a cell


@dataclass(frozen=True, slots=True)
class Series:
    """A line to draw: points by rising x, y in [0, 1], and the index of its marker."""

    points: Sequence[tuple[float, float]]
    marker: int


@dataclass(frozen=True, slots=True)
class Span:
    """A run of characters that belong to one series (its index), to the frame or to the guide."""

    text: str
    series: int


def draw(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    x_label: str,
    guide: float | None = None,
    ascii_only: bool = False,
) -> list[list[Span]]:
    """Draw the series into `width` columns; y runs from 0 to 100 %, x over the range of the points.

    Args:
        series: at least one, each with at least one point; later ones are drawn over earlier ones.
        width: columns of the whole chart, axis labels included; at least 20.
        height: lines of the plot area; two more hold the x axis and its labels.
        x_label: name of the x axis.
        guide: y of a dotted horizontal line (chance level), or None.
        ascii_only: use ASCII characters only.
    Returns: `height` + 2 lines of spans, each `width` columns wide or less.
    """
    margin = 5
    columns = width - margin
    xs = [x for one in series for x, _ in one.points]
    low, high = min(xs), max(xs)
    middle = (low + high) / 2
    # One level has no width: it is drawn in the middle.
    span = high - low or 1.0
    start = low if high > low else middle - 0.5

    per_x, per_y = (1, 1) if ascii_only else (2, 4)
    dots_x, dots_y = columns * per_x, height * per_y

    def at(x: float, y: float) -> tuple[int, int]:
        y = min(max(y, 0.0), 1.0)
        return round((x - start) / span * (dots_x - 1)), round((1 - y) * (dots_y - 1))

    bits = [[0] * columns for _ in range(height)]
    chars = [[" "] * columns for _ in range(height)]
    owner = [[FRAME] * columns for _ in range(height)]
    if guide is not None:
        row = at(start, guide)[1] // per_y
        chars[row] = ["." if ascii_only else "┈"] * columns
        owner[row] = [GUIDE] * columns
    for index, one in enumerate(series):
        places = [at(x, y) for x, y in one.points]
        for a, b in zip(places, places[1:] or places, strict=False):
            for dot_x, dot_y in _line(a, b):
                row, column = dot_y // per_y, dot_x // per_x
                bits[row][column] |= _DOTS[dot_y % 4][dot_x % 2]
                chars[row][column] = "." if ascii_only else chr(_BRAILLE + bits[row][column])
                owner[row][column] = index
    for index, one in enumerate(series):
        # On a fine grid only some points have a marker, about seven columns apart, each series at points of its own.
        stride = max(1, round(7 * len(one.points) / columns))
        for number, (x, y) in enumerate(one.points):
            if number % stride == index % stride or len(one.points) == 1:
                dot_x, dot_y = at(x, y)
                markers = ASCII_MARKERS if ascii_only else MARKERS
                chars[dot_y // per_y][dot_x // per_x] = markers[one.marker % len(markers)]
                owner[dot_y // per_y][dot_x // per_x] = index

    ticks = {0: "100", height // 2: " 50", height - 1: "  0"} if height % 2 else {0: "100", height - 1: "  0"}
    tick, bar, corner, rule = ("+", "|", "+", "-") if ascii_only else ("┤", "│", "└", "─")
    lines = []
    for row in range(height):
        cells = [Span(f"{ticks.get(row, ''):>3} {tick if row in ticks else bar}", FRAME)]
        pairs = zip(owner[row], chars[row], strict=True)
        cells += [Span("".join(char for _, char in run), who) for who, run in groupby(pairs, key=lambda pair: pair[0])]
        lines.append(cells)
    lines.append([Span(" " * (margin - 1) + corner + rule * columns, FRAME)])
    lines.append([Span(" " * margin + _x_labels(low, high, x_label, columns), FRAME)])
    return lines


def _x_labels(low: float, high: float, label: str, columns: int) -> str:
    """The ends of the axis at its ends, its name between them."""
    left, right = (f"{low:.4g}", f"{high:.4g}") if high > low else ("", "")
    name = label if high > low else f"{label} {low:.4g}"
    room = columns - len(left) - len(right) - 2
    return f"{left} {name[: max(room, 0)]:^{max(room, 0)}} {right}"[:columns]


def _line(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from a to b (Bresenham)."""
    (x, y), (end_x, end_y) = a, b
    dx, dy = abs(end_x - x), -abs(end_y - y)
    step_x, step_y = (1 if x < end_x else -1), (1 if y < end_y else -1)
    error = dx + dy
    dots = [(x, y)]
    while (x, y) != (end_x, end_y):
        doubled = 2 * error
        if doubled >= dy:
            error += dy
            x += step_x
        if doubled <= dx:
            error += dx
            y += step_y
        dots.append((x, y))
    return dots
