"""Figures out of panels, in the one look that all of ours have: curves with their bands, names at the ends of lines.

Drawn through matplotlib's objects, never pyplot: no global state, no display, safe in threads and notebooks.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_ln.reports.style import N_MARKERS, ModeStyle
from robustbench_ln.reports.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 150
MARKERS = "o^sDv*XP"
PANEL = (3.9, 2.7)  # inches
_LINE = 0.14  # inches of a line of words above or below the panels
_LETTERS = 12  # that fit into an inch of them, capitals too
_SETTINGS: Any = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: it can be searched, read out and edited
    "svg.hashsalt": "lnbench",  # ids by content, so that the same figure is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}
assert len(MARKERS) == N_MARKERS

Painter = Callable[["Axes"], None]
"""Fills one panel."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve to draw: its name, its look, and its points by rising x as (x, y, low, high); y in [0, 1]."""

    name: str
    style: ModeStyle
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels: what fills each (None: not measured), the label of their x axis, and their height in inches."""

    panels: Sequence[Painter | None]
    x_label: str = ""
    height: float = PANEL[1]


def compose(
    rows: Sequence[Row],
    *,
    heads: Sequence[str] = (),
    title: str = "",
    notes: Sequence[str] = (),
    y_label: str = "accuracy (%)",
    width: float = PANEL[0],
    same_x: bool = True,
    same_y: bool = True,
) -> Figure:
    """A figure of panels in rows and columns.

    Args:
        rows: from the top; all of one length, at least one.
        heads: of the columns.
        title: words above.
        notes: what a reader has to be warned of, below.
        y_label: of the leftmost panel of each row that has an x label.
        width: of a panel, in inches.
        same_x: whether a row's panels have one x axis.
        same_y: whether a row's panels have one y axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = len(rows[0].panels)
    with matplotlib.rc_context(_SETTINGS):
        wide = width * columns + 0.4
        wrap = textwrap.TextWrapper(int(wide * _LETTERS), break_on_hyphens=False).wrap
        above, below = wrap(title), [line for note in notes for line in wrap(note)]
        # What is written above and below takes no room from the panels.
        height = sum(row.height for row in rows) + 0.6 + _LINE * (len(above) - 1 + len(below))
        figure = Figure(figsize=(wide, height), dpi=DPI, layout="constrained")
        grid = figure.subplots(
            len(rows), columns, squeeze=False, sharex="row" if same_x else "none", sharey="row" if same_y else "none",
            height_ratios=[row.height for row in rows],
        )  # fmt: skip
        for at, (row, line) in enumerate(zip(rows, grid, strict=True)):
            shown = [axes for axes, paint in zip(line, row.panels, strict=True) if paint is not None]
            for column, (axes, paint) in enumerate(zip(line, row.panels, strict=True)):
                if at == 0 and heads:
                    plain(axes.set_title(shortened(heads[column], 44), fontweight="bold", fontsize=10))
                if paint is None:
                    axes.axis("off")
                    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#7f7f7f")
                    continue
                paint(axes)
                if row.x_label:
                    plain(axes.set_xlabel(shortened(row.x_label, 60)))
            if shown and row.x_label:
                shown[0].set_ylabel(y_label)
                shown[0].tick_params(labelleft=True)
        if above:
            plain(figure.suptitle("\n".join(above), fontsize=9, color="#444444"))
        if below:
            plain(figure.supxlabel("\n".join(below), fontsize=8, color="#b04000"))
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` (150 dpi) and ``stem.svg`` (text as text); the same figure gives the same bytes.

    Returns: the two files.
    """
    import matplotlib

    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no news for stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(files[0], dpi=DPI, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


def curves(
    lines: Sequence[Line],
    *,
    chance: float | None = None,
    marks: Sequence[tuple[float, float, ModeStyle]] = (),
    ticks: Mapping[float, str] | None = None,
) -> Painter:
    """A panel of curves from 0 to 100 %, each named at its end, bands for their intervals.

    Args:
        lines: at least one, each with at least one point.
        chance: y of a dotted line, a fraction.
        marks: single points as hollow rings, (x, y, style): what others published.
        ticks: words on the x axis.
    """

    def paint(axes: Axes) -> None:
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 25))
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        if chance is not None:
            axes.axhline(100 * chance, color="#7f7f7f", linestyle=":", linewidth=1)
        for line in lines:
            style = line.style
            x = [point[0] for point in line.points]
            y, low, high = ([100 * point[i] for point in line.points] for i in (1, 2, 3))
            # Markers on the axis itself, at 0 or 100 %, are drawn whole.
            axes.plot(x, y, color=style.color, linestyle=style.dash, marker=MARKERS[style.marker], markersize=4,
                      linewidth=1.5, clip_on=False, zorder=3)  # fmt: skip
            if len(x) > 1:
                axes.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)
            else:
                axes.vlines(x, low, high, color=style.color, linewidth=1.5)
        for at, height, style in marks:
            axes.plot([at], [100 * height], marker="o", markersize=9, markerfacecolor="none", markeredgewidth=1.6,
                      markeredgecolor=style.color, linestyle="none", zorder=4)  # fmt: skip
        levels = sorted({point[0] for line in lines for point in line.points})
        if ticks is not None:
            axes.set_xticks(list(ticks), list(ticks.values()))
        elif len(levels) == 1:
            axes.set_xticks(levels)
        elif len(levels) <= 6:
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
        _name_lines(axes, lines)

    return paint


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name at its end, apart enough to be read."""
    size = 7.5 if len(lines) <= 10 else 6.0
    gap = 100 * 1.25 * size / 72 / (PANEL[1] - 0.75)
    ordered = sorted(lines, key=lambda line: line.points[-1][1])
    heights = spread([100 * line.points[-1][1] for line in ordered], gap)
    beside = axes.get_yaxis_transform()
    for line, height in zip(ordered, heights, strict=True):
        style, (end, y, *_) = line.style, line.points[-1]
        axes.annotate("", (end, 100 * y), (1.07, height), textcoords=beside, zorder=2,
                      arrowprops={"arrowstyle": "-", "color": style.color, "linewidth": 0.7, "alpha": 0.5,
                                  "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        axes.plot([1.07], [height], transform=beside, color=style.color, marker=MARKERS[style.marker], markersize=4,
                  clip_on=False)  # fmt: skip
        plain(
            axes.text(1.1, height, shortened(line.name, 28), transform=beside, va="center", fontsize=size,
                      color="#222222")
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float, top: float = 100.0) -> list[float]:
    """Move rising heights apart until neighbours are `gap` apart, none above `top`, as little as that takes.

    Least squares by pooling: heights that would overlap form a block around their common centre.
    """
    blocks: list[list[float]] = []  # of heights less the room that the lower ones take
    for index, height in enumerate(heights):
        blocks.append([height - index * gap])
        while len(blocks) > 1 and sum(blocks[-2]) / len(blocks[-2]) >= sum(blocks[-1]) / len(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    lowest = [sum(block) / len(block) for block in blocks for _ in block]
    most = top - (len(heights) - 1) * gap
    return [min(max(low, 0.0), most) + index * gap for index, low in enumerate(lowest)]


def shortened(text: str, most: int) -> str:
    """The text, visible and at most that long."""
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def plain(text: Text) -> None:
    """Keep a dollar sign in a name from being read as mathematics."""
    text.set_parse_math(False)
