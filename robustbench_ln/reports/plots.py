"""Accuracy curves as figures: a column a model, a row a noise, a line with its band a mode.

Drawn through matplotlib's objects, never pyplot: no global state, no display, safe in threads and notebooks.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_ln.reports.style import N_MARKERS, ModeStyle, mode_styles
from robustbench_ln.reports.summary import Point, Summary
from robustbench_ln.reports.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 150
MARKERS = "o^sDv*XP"
_PANEL = (3.9, 2.7)  # inches
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


def accuracy_curves(summary: Summary) -> Figure:
    """Draw every curve and, for corruptions, the mean accuracy over severity.

    The y axis runs from 0 to 100 % in all panels, a mode looks the same in all of them, bands are 95 % intervals and
    the dotted line is chance. Modes are named at the end of their lines.

    Raises: ValueError when there is neither a curve nor a grid to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = [_Row(_noise_label(noise), _curves_of(summary, noise)) for noise in summary.noises]
    rows += [_Row(_suite_label(summary, suite), _means_of(summary, suite)) for suite in summary.suites]
    rows = [row for row in rows if row.lines]
    models = [model for model in summary.models if any(model.id in row.lines for row in rows)]
    if not rows:
        raise ValueError("there is no curve to draw: the results hold neither a noise nor a corruption")
    styles = mode_styles(summary.modes)
    chance = 100 / summary.data.classes

    with matplotlib.rc_context(_SETTINGS):
        width = _PANEL[0] * len(models) + 0.4
        title, notes = _words(summary, chance, width)
        # What is written below takes no room from the panels.
        height = _PANEL[1] * len(rows) + 0.6 + _LINE * (len(title) - 1 + len(notes))
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        panels = figure.subplots(len(rows), len(models), squeeze=False, sharex="row", sharey=True)
        for row, line_of_panels in zip(rows, panels, strict=True):
            shown = [axes for axes, model in zip(line_of_panels, models, strict=True) if model.id in row.lines]
            for axes, model in zip(line_of_panels, models, strict=True):
                if row is rows[0]:
                    _plain(axes.set_title(_short(model.label, 44), fontweight="bold", fontsize=10))
                if axes not in shown:
                    axes.axis("off")
                    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#7f7f7f")
                    continue
                _panel(axes, row.lines[model.id], styles, chance)
                _plain(axes.set_xlabel(_short(row.label, 60)))
            shown[0].set_ylabel("accuracy (%)")
            shown[0].tick_params(labelleft=True)
        _plain(figure.suptitle("\n".join(title), fontsize=9, color="#444444"))
        if notes:
            _plain(figure.supxlabel("\n".join(notes), fontsize=8, color="#b04000"))
    return figure


def save_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write ``curves.png`` (150 dpi) and ``curves.svg`` (text as text) into `folder`, which must exist.

    The same summary gives the same bytes: no date and no random ids are written.

    Returns: the files, none when there is no curve to draw.
    """
    import matplotlib

    if not summary.noises and not any(grid.means for grid in summary.grids):
        return []
    figure = accuracy_curves(summary)
    files = [folder / "curves.png", folder / "curves.svg"]
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no news for stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(files[0], dpi=DPI, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of panels: the label of its x axis, and for each model id its (mode, points)."""

    label: str
    lines: Mapping[str, Sequence[tuple[str, Sequence[Point]]]]


def _noise_label(noise: tuple[str, str]) -> str:
    return f"sigma ({noise[0]}, {noise[1]})"


def _suite_label(summary: Summary, suite: str) -> str:
    counts = sorted({len(grid.complete) for grid in summary.grids if grid.suite == suite and grid.means})
    return f"severity ({suite}, mean over {' or '.join(map(str, counts))} corruptions)"


def _curves_of(summary: Summary, noise: tuple[str, str]) -> dict[str, list[tuple[str, Sequence[Point]]]]:
    lines: dict[str, list[tuple[str, Sequence[Point]]]] = {}
    for curve in summary.curves:
        if (curve.name, curve.range) == noise:
            lines.setdefault(curve.model, []).append((curve.mode, curve.points))
    return lines


def _means_of(summary: Summary, suite: str) -> dict[str, list[tuple[str, Sequence[Point]]]]:
    lines: dict[str, list[tuple[str, Sequence[Point]]]] = {}
    for grid in summary.grids:
        if grid.suite == suite and grid.means:
            lines.setdefault(grid.model, []).append((grid.mode, grid.means))
    return lines


def _panel(
    axes: Axes, lines: Sequence[tuple[str, Sequence[Point]]], styles: Mapping[str, ModeStyle], chance: float
) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 25))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axhline(chance, color="#7f7f7f", linestyle=":", linewidth=1)
    for mode, points in lines:
        style = styles[mode]
        x = [point.level for point in points]
        y = [100 * point.accuracy for point in points]
        low, high = [100 * point.low for point in points], [100 * point.high for point in points]
        # Markers on the axis itself, at 0 or 100 %, are drawn whole.
        axes.plot(x, y, color=style.color, linestyle=style.dash, marker=MARKERS[style.marker], markersize=4,
                  linewidth=1.5, clip_on=False, zorder=3)  # fmt: skip
        if len(points) > 1:
            axes.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)
        else:
            axes.vlines(x, low, high, color=style.color, linewidth=1.5)
    levels = sorted({point.level for _, points in lines for point in points})
    if len(levels) == 1:
        axes.set_xticks(levels)
    elif len(levels) <= 6:
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
    _name_lines(axes, lines, styles)


def _name_lines(axes: Axes, lines: Sequence[tuple[str, Sequence[Point]]], styles: Mapping[str, ModeStyle]) -> None:
    """Write each mode's name at the end of its line, apart enough to be read."""
    size = 7.5 if len(lines) <= 10 else 6.0
    gap = 100 * 1.25 * size / 72 / (_PANEL[1] - 0.75)
    ordered = sorted(lines, key=lambda line: line[1][-1].accuracy)
    heights = spread([100 * points[-1].accuracy for _, points in ordered], gap)
    beside = axes.get_yaxis_transform()
    for (mode, points), height in zip(ordered, heights, strict=True):
        style, end = styles[mode], points[-1]
        axes.annotate("", (end.level, 100 * end.accuracy), (1.07, height), textcoords=beside, zorder=2,
                      arrowprops={"arrowstyle": "-", "color": style.color, "linewidth": 0.7, "alpha": 0.5,
                                  "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        axes.plot([1.07], [height], transform=beside, color=style.color, marker=MARKERS[style.marker], markersize=4,
                  clip_on=False)  # fmt: skip
        _plain(axes.text(1.1, height, _short(mode, 28), transform=beside, va="center", fontsize=size, color="#222222"))


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


def _words(summary: Summary, chance: float, inches: float) -> tuple[list[str], list[str]]:
    """Lines of what the figure shows, for above it, and of what its reader has to be warned of, for below."""
    scored = sorted({point.n for curve in summary.curves for point in curve.points})
    scored = scored or sorted({point.n for grid in summary.grids for point in grid.means})
    images = " or ".join(f"{n:,}" for n in scored)
    title = f"{visible(summary.data.id)}, {images} images; bands are 95 % intervals, dots are chance ({chance:.3g} %)"
    notes = [f"warning: {_short(warning, 300)}" for warning in summary.warnings[:3]]
    if len(summary.warnings) > 3:
        notes.append(f"and {len(summary.warnings) - 3} more warnings")
    wrap = textwrap.TextWrapper(int(inches * _LETTERS), break_on_hyphens=False).wrap
    return wrap(title), [line for note in notes for line in wrap(note)]


def _short(text: str, most: int) -> str:
    shown = visible(text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _plain(text: Text) -> None:
    """Keep a dollar sign in a name from being read as mathematics."""
    text.set_parse_math(False)
