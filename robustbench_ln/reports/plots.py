"""Accuracy curves as figures: a column a model, a row a noise, a line with its band a mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_ln.reports.panels import Line, Painter, Row, compose, curves, save, shortened
from robustbench_ln.reports.style import mode_styles
from robustbench_ln.reports.summary import Point, Summary
from robustbench_ln.reports.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_curves(summary: Summary) -> Figure:
    """Draw every curve and, for corruptions, the mean accuracy over severity.

    The y axis runs from 0 to 100 % in all panels, a mode looks the same in all of them, bands are 95 % intervals and
    the dotted line is chance. Modes are named at the end of their lines.

    Raises: ValueError when there is neither a curve nor a grid to draw.
    """
    rows = [_Row(_noise_label(noise), _curves_of(summary, noise)) for noise in summary.noises]
    rows += [_Row(_suite_label(summary, suite), _means_of(summary, suite)) for suite in summary.suites]
    rows = [row for row in rows if row.lines]
    models = [model for model in summary.models if any(model.id in row.lines for row in rows)]
    if not rows:
        raise ValueError("there is no curve to draw: the results hold neither a noise nor a corruption")
    styles = mode_styles(summary.modes)
    chance = 1 / summary.data.classes

    def panel(row: _Row, model: str) -> Painter | None:
        if model not in row.lines:
            return None
        lines = [Line(mode, styles[mode], line_points(points)) for mode, points in row.lines[model]]
        return curves(lines, chance=chance)

    title, notes = _words(summary, chance)
    return compose(
        [Row([panel(row, model.id) for model in models], row.label) for row in rows],
        heads=[model.label for model in models],
        title=title,
        notes=notes,
    )


def line_points(points: Sequence[Point]) -> list[tuple[float, float, float, float]]:
    """Points as a :class:`~robustbench_ln.reports.panels.Line` takes them."""
    return [(point.level, point.accuracy, point.low, point.high) for point in points]


def save_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write ``curves.png`` (150 dpi) and ``curves.svg`` (text as text) into `folder`, which must exist.

    The same summary gives the same bytes: no date and no random ids are written.

    Returns: the files, none when there is no curve to draw.
    """
    if not summary.noises and not any(grid.means for grid in summary.grids):
        return []
    return save(accuracy_curves(summary), folder / "curves")


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


def _words(summary: Summary, chance: float) -> tuple[str, list[str]]:
    """What the figure shows, for above it, and what its reader has to be warned of, for below."""
    scored = sorted({point.n for curve in summary.curves for point in curve.points})
    scored = scored or sorted({point.n for grid in summary.grids for point in grid.means})
    images = " or ".join(f"{n:,}" for n in scored)
    dots = f"{100 * chance:.3g}"
    title = f"{visible(summary.data.id)}, {images} images; bands are 95 % intervals, dots are chance ({dots} %)"
    notes = [f"warning: {shortened(warning, 300)}" for warning in summary.warnings[:3]]
    if len(summary.warnings) > 3:
        notes.append(f"and {len(summary.warnings) - 3} more warnings")
    return title, notes
