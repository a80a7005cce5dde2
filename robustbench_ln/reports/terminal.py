"""What ``eval`` prints: a table a model (conditions x modes), the area under each curve, and the curves themselves.

Names are put in as `Text` and never as markup, and control characters are spelled out: a file's name cannot colour,
move or title the terminal.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from robustbench_ln.errors import counted
from robustbench_ln.reports import chart
from robustbench_ln.reports.sheet import Sheet
from robustbench_ln.reports.style import BLACK, ModeStyle, mode_styles
from robustbench_ln.reports.summary import Grid, ModelSummary, Point, Summary
from robustbench_ln.reports.tables import corruption_error_tables, sheet_tables, transposed
from robustbench_ln.reports.text import between, number, percent, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

WIDTH = 80
_PANEL = 36  # columns that a chart needs at least, and
_PANEL_MOST = 60  # has at most
_HEIGHT = 11
_SHEET_NAMES, _SHEET_CELL = 20, 24  # columns of the sheet's names, and of a number with its interval at most
_MODE_WIDTH = 18  # of "81.03 [80.2, 81.8]" and of most modes' names

Show = Callable[[str], str]


def render(summary: Summary, *, width: int = WIDTH) -> str:
    """The report as plain text without colour, `width` columns wide."""
    from rich.console import Console

    out = io.StringIO()
    show(summary, Console(file=out, width=width, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def stdout_console() -> Console:
    """A console on stdout: as wide as the terminal, or 80 columns (or COLUMNS) where there is none; obeys NO_COLOR."""
    from rich.console import Console

    columns = os.environ.get("COLUMNS", "")
    fixed = int(columns) if columns.isdecimal() and int(columns) > 0 else WIDTH
    return Console(width=None if sys.stdout.isatty() else fixed, markup=False, emoji=False, highlight=False)


def show(summary: Summary, console: Console | None = None) -> None:
    """Print the report on `console`, by default stdout; ASCII only where its encoding is not a Unicode one."""
    console = console or stdout_console()
    for part in parts(summary, width=console.width, ascii_only=console.options.ascii_only):
        console.print(part, markup=False, emoji=False, highlight=False)


def parts(summary: Summary, *, width: int = WIDTH, ascii_only: bool = False) -> Iterator[RenderableType]:
    """The report as rich renderables, top to bottom.

    Args:
        summary: what to show.
        width: columns to fill.
        ascii_only: draw and spell with ASCII only.
    """
    from rich.text import Text

    def safe(text: str) -> str:
        return visible(text, ascii_only=ascii_only)

    styles = mode_styles(summary.modes)
    yield Text(safe(_facts(summary)), style="dim")
    yield from _sheet(summary.sheet, width, safe, ascii_only)
    for model in summary.models:
        yield Text()
        yield _heading(model, safe)
        if not model.modes:
            yield Text("no finished rows", style="dim")
            continue
        yield from _accuracy_tables(summary, model, width, safe, ascii_only)
        yield from _grid_tables(summary, model, safe, ascii_only)
    yield Text()
    yield Text(_caption(summary, ascii_only), style="dim")
    yield from _charts(summary, styles, width, safe, ascii_only)
    if summary.warnings:
        yield Text()
    for warning in summary.warnings:
        yield Text.assemble(("warning: ", "bold yellow"), safe(warning))


def _facts(summary: Summary) -> str:
    data, run = summary.data, summary.run
    if not summary.rows and summary.sheet.entries:
        return f"{data.id}: figures as others published them"
    of = "" if summary.scored in (f"{data.n:,}", "no") else f" of {data.n:,}"
    classes = counted(data.classes, "class")
    return f"{data.id}: {summary.scored}{of} images scored, {classes}, seed {run.seed}, {run.precision}"


def _heading(model: ModelSummary, safe: Show) -> Text:
    from rich.text import Text

    groups = f", K = {model.n_groups}" if model.n_groups else ""
    return Text.assemble((safe(model.label), "bold"), (f"  {safe(model.arch)}, {safe(model.norm)}{groups}", "dim"))


def _caption(summary: Summary, ascii_only: bool) -> str:
    text = "Accuracy in %, in brackets its 95 % interval."
    if any(point.repeats > 1 for curve in summary.curves for point in curve.points):
        text += " Repeats are averaged."
    if summary.curves:
        text += " area: under the curve, divided by the grid's width, 0 to 1."
    if any(grid.means for grid in summary.grids):
        text += f" {_plus_minus(ascii_only)}: the longer side of a mean's 95 % interval."
    return text


def _table(ascii_only: bool, first: str) -> Table:
    from rich import box
    from rich.table import Table

    style = box.ASCII2 if ascii_only else box.SIMPLE_HEAD
    table = Table(box=style, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _accuracy_tables(
    summary: Summary, model: ModelSummary, width: int, safe: Show, ascii_only: bool
) -> Iterator[RenderableType]:
    """Conditions x modes; as many modes side by side as fit, the rest in further tables."""
    from rich.text import Text

    curves = {(c.name, c.range, c.mode): c for c in summary.curves if c.model == model.id}
    noises = [noise for noise in summary.noises if any((*noise, mode) in curves for mode in model.modes)]
    if not noises and not any((model.id, mode) in summary.clean for mode in model.modes):
        return
    names = [_noise_name(safe(name), value_range) for name, value_range in noises]
    first = max(len(line) for name in ["condition", *names] for line in name.splitlines())
    fit = max(1, (width - first) // (_MODE_WIDTH + 2))
    for start in range(0, len(model.modes), fit):
        modes = model.modes[start : start + fit]
        table = _table(ascii_only, "condition")
        for mode in modes:
            images = model.images[mode]
            share = f"M {images}" if images and ":" not in mode and "(M " not in mode else ""
            table.add_column(Text.assemble(safe(mode), ("\n" + share if share else "", "dim")), min_width=_MODE_WIDTH)
        table.add_row("clean", *(_accuracy(summary.clean.get((model.id, mode))) for mode in modes))
        for name, noise in zip(names, noises, strict=True):
            here = [curves.get((*noise, mode)) for mode in modes]
            points = [{point.level: point for point in curve.points} if curve else {} for curve in here]
            table.add_section()
            table.add_row(Text(name, style="bold"))
            for level in sorted({level for one in points for level in one}):
                table.add_row(f"  {number(level)}", *(_accuracy(one.get(level)) for one in points))
            table.add_row("  area", *(Text(f"{curve.area:.3f}" if curve else "", style="bold") for curve in here))
        if start:
            yield Text()
        yield table


def _noise_name(name: str, value_range: str) -> str:
    """The noise and its range, on two lines where one would cost the table a mode."""
    return f"{name}{' ' if len(name) <= 8 else chr(10)}({value_range})"


def _accuracy(point: Point | None) -> Text:
    from rich.text import Text

    if point is None:
        return Text()
    interval = f" {between(point.low, point.high)}"
    return Text.assemble((f"{percent(point.accuracy):>5}", "bold"), (interval, "dim"))


def _grid_tables(summary: Summary, model: ModelSummary, safe: Show, ascii_only: bool) -> Iterator[RenderableType]:
    """Corruptions x severities, a table a mode."""
    from rich.text import Text

    for grid in summary.grids:
        if grid.model != model.id:
            continue
        table = _table(ascii_only, safe(f"{grid.suite}, {grid.mode}"))
        for severity in grid.severities:
            table.add_column(f"s{number(severity)}", justify="right")
        table.add_column("mean", justify="right")
        for name, points in grid.cells:
            shown = [percent(point.accuracy) if point else "" for point in points]
            known = [point.accuracy for point in points if point]
            whole = len(known) == len(points)
            table.add_row(safe(name), *shown, percent(sum(known) / len(known)) if whole else "")
        if grid.means:
            table.add_section()
            overall = sum(point.accuracy for point in grid.means) / len(grid.means)
            means = [percent(point.accuracy) for point in grid.means]
            table.add_row(f"mean over {len(grid.complete)}", *means, percent(overall), style="bold")
            sides = [max(point.high - point.accuracy, point.accuracy - point.low) for point in grid.means]
            table.add_row(_plus_minus(ascii_only), *(percent(side, digits=1) for side in sides), "", style="dim")
        yield Text()
        yield table


def _plus_minus(ascii_only: bool) -> str:
    return "+/-" if ascii_only else "±"


def _sheet(sheet: Sheet, width: int, safe: Show, ascii_only: bool) -> Iterator[RenderableType]:
    """The mCE sheet, a column a model and mode; as many side by side as fit, the rest in further tables."""
    from rich.text import Text

    shown = [transposed(table) for table in sheet_tables(sheet)]
    shown += corruption_error_tables(sheet)
    for of_sheet in shown:
        yield Text()
        yield Text(safe(of_sheet.title), style="bold")
        longest = max(len(cell) for row in of_sheet.rows for cell in row[1:])
        cell = min(max(longest, _MODE_WIDTH), _SHEET_CELL)
        fit = max(1, (width - _SHEET_NAMES) // (cell + 2))
        for start in range(1, len(of_sheet.columns), fit):
            table = _table(ascii_only, "")
            table.columns[0].width = _SHEET_NAMES
            for head in of_sheet.columns[start : start + fit]:
                table.add_column(Text(safe(head)), width=cell, overflow="fold")
            for row in of_sheet.rows:
                table.add_row(*(Text(safe(cell)) for cell in (row[0], *row[start : start + fit])))
            yield table
        yield Text(safe(of_sheet.note), style="dim")


def _charts(
    summary: Summary, styles: Mapping[str, ModeStyle], width: int, safe: Show, ascii_only: bool
) -> Iterator[RenderableType]:
    """The curves, a chart a model, side by side as far as the width allows."""
    from rich.table import Table
    from rich.text import Text

    def block(title: str, charts: Sequence[Sequence[Text]]) -> Iterator[RenderableType]:
        yield Text()
        yield Text(safe(title), style="bold")
        for start in range(0, len(charts), side_by_side):
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_row(*(Text("\n").join(lines) for lines in charts[start : start + side_by_side]))
            yield grid

    side_by_side = max(1, min(len(summary.models), width // (_PANEL + 2)))
    panel = min(_PANEL_MOST, width // side_by_side - 2)
    chance = 1 / summary.data.classes

    def plot(model: ModelSummary, lines: Sequence[tuple[str, Sequence[Point], str]], x_label: str) -> list[Text]:
        looks = [styles[mode] for mode, _, _ in lines]
        series = [
            chart.Series([(point.level, point.accuracy) for point in points], look.marker)
            for look, (_, points, _) in zip(looks, lines, strict=True)
        ]
        colors = ["default" if look.color == BLACK else look.color for look in looks]
        head = Text.assemble((safe(model.label), "bold"), ("  accuracy in %", "dim"))
        drawn = chart.draw(
            series, width=max(panel, 20), height=_HEIGHT, x_label=x_label, guide=chance, ascii_only=ascii_only
        )
        body = [
            Text.assemble(*((span.text, colors[span.series] if span.series >= 0 else "dim") for span in spans))
            for spans in drawn
        ]
        markers = chart.ASCII_MARKERS if ascii_only else chart.MARKERS
        legend = [
            Text.assemble("     ", (f"{markers[look.marker]} {safe(mode)}", color), (f"  {note}", "dim"))
            for look, color, (mode, _, note) in zip(looks, colors, lines, strict=True)
        ]
        legend.append(Text(f"     {'.' if ascii_only else '┈'} chance  {percent(chance, digits=1)}", style="dim"))
        for line in (head, *body, *legend):
            line.truncate(panel, overflow="ellipsis" if not ascii_only else "crop")
        return [head, *body, *legend]

    def mean_note(grid: Grid) -> str:
        overall = sum(point.accuracy for point in grid.means) / len(grid.means)
        return f"mean {percent(overall, digits=1)} over {len(grid.complete)}"

    for name, value_range in summary.noises:
        charts = []
        for model in summary.models:
            mine = [c for c in summary.curves if (c.model, c.name, c.range) == (model.id, name, value_range)]
            if mine:
                charts.append(plot(model, [(c.mode, c.points, f"area {c.area:.3f}") for c in mine], "sigma"))
        yield from block(f"{name} ({value_range})", charts)
    for suite in summary.suites:
        charts = []
        for model in summary.models:
            means = [g for g in summary.grids if (g.model, g.suite) == (model.id, suite) and g.means]
            if means:
                charts.append(plot(model, [(g.mode, g.means, mean_note(g)) for g in means], "severity"))
        if charts:
            yield from block(f"{suite}, mean over corruptions", charts)
