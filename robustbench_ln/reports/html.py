"""The report as one page that holds all it needs: no network, no script but its own, and a policy that enforces both.

Geometry is reckoned here, in units of the drawings' view boxes; the template puts it into markup, and escapes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_ln.errors import counted
from robustbench_ln.metrics.mce import GROUPS, Estimate
from robustbench_ln.reports import style
from robustbench_ln.reports.sheet import Entry, Sheet, mean_words
from robustbench_ln.reports.style import ModeStyle, mode_styles
from robustbench_ln.reports.summary import Point, Summary
from robustbench_ln.reports.tables import (
    Table,
    corruption_error_tables,
    estimate,
    facts,
    mean_error_tables,
    noise_tables,
    title,
)
from robustbench_ln.reports.text import between, number, percent, visible

TEMPLATES = Path(__file__).parent / "templates"
HEAT_STEPS = 20  # classes h0 to h19 of report.css

_WIDTH, _HEIGHT = 360.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 10.0, 8.0, 34.0
_BAR = 200.0
_FEW = 10  # predictions of a bin: with fewer its accuracy is noise, and is marked but not joined

_COLORS = {
    style.BLACK: "black", style.ORANGE: "orange", style.SKY: "sky", style.GREEN: "green", style.BLUE: "blue",
    style.VERMILION: "vermilion", style.PURPLE: "purple", style.GREY: "grey",
}  # fmt: skip

# One path a marker, around the origin; as many as style.N_MARKERS.
MARKS = (
    "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "M0-4L4 3.2H-4z",
    "M-3.1-3.1H3.1V3.1H-3.1z",
    "M0-4.3L4.3 0L0 4.3L-4.3 0z",
    "M0 4L4-3.2H-4z",
    "M0-4.8L1.3-1.6H4.6L2 .5L2.9 3.9L0 1.9L-2.9 3.9L-2 .5L-4.6-1.6H-1.3z",
    "M-4-2.4L-2.4-4L0-1.6L2.4-4L4-2.4L1.6 0L4 2.4L2.4 4L0 1.6L-2.4 4L-4 2.4L-1.6 0z",
    "M-1.3-4.2H1.3V-1.3H4.2V1.3H1.3V4.2H-1.3V1.3H-4.2V-1.3H-1.3z",
)


@dataclass(frozen=True, slots=True)
class Look:
    """How a mode is drawn: classes of the style sheet, and a path."""

    color: str
    dash: str
    mark: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a panel, in view box units; a mark is x, y and size, and `note` stands in the legend."""

    name: str
    note: str
    look: Look
    path: str
    band: str
    marks: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawing: curves over a common axis, and the words that each level shows when pointed at."""

    name: str
    x_label: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, tuple[str, ...]], ...]
    chance: float | None = None
    diagonal: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Panels under a heading, and the table that holds their numbers."""

    name: str
    panels: tuple[Panel, ...]
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A number on a scale from 0 to 100 %: place of its mark and of its whisker's ends."""

    text: str
    x: float
    low: float | None
    high: float | None
    value: float


def render(summary: Summary) -> str:
    """The summary as one HTML page. Names are escaped, and controls in them spelled out; nothing is loaded."""
    return page("report.html.j2", context(summary))


def page(template: str, values: Mapping[str, Any]) -> str:
    """A page of `TEMPLATES` with the style and the script that all pages share, and the policy that allows no other."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever a name holds, it is one line of text that can be seen.
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    css, js = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    shared = {"css": Markup(css), "js": Markup(js), "policy": policy(css, js), "percent": percent, "between": between}
    return environment.get_template(template).render(**shared, **values) + "\n"


def policy(css: str, js: str) -> str:
    """The content security policy: this style, this script, pictures inside the page, and nothing else."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(css)}; script-src {digest(js)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def context(summary: Summary) -> dict[str, Any]:
    """All that the template shows."""
    looks = {mode: _look(one) for mode, one in mode_styles(summary.modes).items()}
    entries = summary.sheet.entries
    return {
        "title": title(summary),
        "lead": _lead(summary),
        "warnings": summary.warnings,
        "sheets": [_sheet(summary.sheet, qualifier, ranked) for qualifier, ranked in summary.sheet.ranks],
        "normaliser": summary.sheet.normaliser_words,
        "is_normalised": summary.sheet.is_normalised,
        "error_tables": [*corruption_error_tables(summary.sheet), *mean_error_tables(summary.sheet)],
        "curves": list(_curves(summary, looks)),
        "modes": _mode_bars(summary),
        "looks": looks,
        "heat": [_heat(entry) for entry in entries if entry.table.errors],
        "severities": [1, 2, 3, 4, 5],
        "heat_steps": range(HEAT_STEPS),
        "calibration": [(e.name, _reliability(e, looks), e.calibration) for e in entries if e.calibration],
        "flips": [(entry.name, entry.flips, _flip_bars(entry)) for entry in entries if entry.flips],
        "previews": [
            (source.path, f"data:image/png;base64,{base64.b64encode(source.preview).decode()}")
            for source in summary.sources
            if source.preview
        ][:1],
        "facts": facts(summary),
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
        "bar": _BAR,
        "y_ticks": [(_y(value / 100), f"{value}") for value in (0, 25, 50, 75, 100)],
        "y_of": _y,
        "groups": list(GROUPS),
    }


def _lead(summary: Summary) -> str:
    data = summary.data
    if not summary.rows:
        return "Figures as others published them"
    classes = counted(data.classes, "class")
    return f"{summary.scored} images scored, {classes}, {data.pixels} pixels, seed {summary.run.seed}"


def _look(one: ModeStyle) -> Look:
    return Look(_COLORS[one.color], one.dash, MARKS[one.marker % len(MARKS)])


def _sheet(sheet: Sheet, qualifier: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """A ranked table of the sheet: heads, and for each entry its names and numbers."""
    heads = ["clean error"]
    heads += [f"mCE{qualifier}", f"relative mCE{qualifier}"] if sheet.is_normalised else []
    heads += [f"mean corruption error, unnormalised{qualifier}", *GROUPS]
    rows = []
    for entry in entries:
        scores = entry.scores
        numbers = [entry.clean, *((scores.mce, scores.relative_mce) if sheet.is_normalised else ())]
        numbers += [entry.mean, *(scores.groups.get(group) for group in GROUPS)]
        rows.append((entry, numbers, mean_words(entry)))
    suites = ", ".join(dict.fromkeys(entry.suite for entry in entries if entry.suite))
    return {"suite": suites, "heads": heads, "rows": rows, "qualifier": qualifier, "mean": len(heads) - len(GROUPS) - 1}


def _x(value: float, low: float, high: float) -> float:
    """One level has no width: it stands in the middle."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(_LEFT + 6 + share * (_WIDTH - _LEFT - _RIGHT - 12), 1)


def _y(accuracy: float) -> float:
    return round(_TOP + (1 - accuracy) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _curves(summary: Summary, looks: Mapping[str, Look]) -> Iterator[Block]:
    """A block a noise and one a suite, a panel a model, a line a mode."""
    tables = list(noise_tables(summary))
    for noise, table in zip(summary.noises, tables, strict=True):
        panels = []
        for model in summary.models:
            curves = [c for c in summary.curves if (c.model, (c.name, c.range)) == (model.id, noise)]
            lines = [(c.mode, f"area {c.area:.3f}", c.points) for c in curves]
            if lines:
                panels.append(_panel(model.label, "sigma", lines, looks, 1 / summary.data.classes))
        yield Block(f"Under {noise[0]} ({noise[1]})", tuple(panels), table)
    for suite in summary.suites:
        panels = []
        for model in summary.models:
            grids = [grid for grid in summary.grids if (grid.model, grid.suite) == (model.id, suite) and grid.means]
            lines = [(g.mode, f"mean {percent(_mean(g.means))} over {len(g.complete)}", g.means) for g in grids]
            if lines:
                panels.append(_panel(model.label, "severity", lines, looks, 1 / summary.data.classes))
        if panels:
            yield Block(f"Mean over the corruptions of {suite}", tuple(panels))


def _mean(points: Sequence[Point]) -> float:
    return sum(point.accuracy for point in points) / len(points)


def _panel(
    name: str,
    x_label: str,
    lines: Sequence[tuple[str, str, Sequence[Point]]],
    looks: Mapping[str, Look],
    chance: float,
) -> Panel:
    levels = sorted({point.level for _, _, points in lines for point in points})
    low, high = levels[0], levels[-1]
    drawn = []
    for mode, note, points in lines:
        places = [(_x(p.level, low, high), _y(p.accuracy), _y(p.low), _y(p.high)) for p in points]
        edge = [(x, top) for x, _, _, top in places] + [(x, bottom) for x, _, bottom, _ in reversed(places)]
        middle = [(x, y) for x, y, _, _ in places]
        marks = tuple((x, y, 1.0) for x, y in middle)
        drawn.append(Line(mode, note, looks[mode], _path(middle), _path(edge) + "z", marks))
    told = []
    for level in levels:
        words = [f"{x_label} {number(level)}"]
        for mode, _, points in lines:
            words += [f"{mode}: {percent(p.accuracy)} % {between(p.low, p.high)}" for p in points if p.level == level]
        told.append((_x(level, low, high), tuple(words)))
    step = max(1, -(-len(levels) // 8))
    ticks = [(_x(level, low, high), number(level)) for level in levels[::step]]
    return Panel(name, x_label, tuple(drawn), tuple(ticks), tuple(told), chance)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def _reliability(entry: Entry, looks: Mapping[str, Look]) -> Panel:
    """Accuracy over confidence; the diagonal is perfect calibration."""
    look = looks.get(entry.mode, Look("black", "solid", MARKS[0]))
    lines, told = [], []
    for one, dash, mark in zip(entry.calibration, ("solid", "dashed"), (MARKS[0], MARKS[2]), strict=False):
        most = max(n for _, _, n in one.bins)
        middle = [(_x(sure, 0, 1), _y(right)) for sure, right, _ in one.bins]
        joined = [place for place, (_, _, n) in zip(middle, one.bins, strict=True) if n >= _FEW]
        sizes = [round(max(0.3, 1.4 * (n / most) ** 0.5), 2) for _, _, n in one.bins]
        marks = tuple((x, y, size) for (x, y), size in zip(middle, sizes, strict=True))
        lines.append(Line(one.name, f"ECE {percent(one.ece)}", Look(look.color, dash, mark), _path(joined), "", marks))
        told += [(_x(sure, 0, 1), (one.name, *_bin(sure, right, n))) for sure, right, n in one.bins]
    ticks = [(_x(value / 100, 0, 1), f"{value}") for value in (0, 25, 50, 75, 100)]
    return Panel(entry.name, "confidence, %", tuple(lines), tuple(ticks), tuple(sorted(told)), diagonal=True)


def _bin(sure: float, right: float, n: int) -> tuple[str, str]:
    return f"confidence {percent(sure)} %, accuracy {percent(right)} %", f"{n:,} predictions"


def _mode_bars(summary: Summary) -> list[tuple[str, list[tuple[Entry, Bar]]]]:
    """For each measure that more than one entry has, its value on a common scale, best first."""
    measures: list[tuple[str, list[tuple[Entry, Estimate]]]] = []
    entries = summary.sheet.entries
    measures.append(("clean accuracy", [(e, _accuracy(e.clean)) for e in entries if e.clean]))
    whole = [(e, _accuracy(e.mean)) for e in entries if e.mean and e.is_whole]
    measures.append(("mean accuracy over the 15 corruptions", whole))
    for name, value_range in summary.noises:
        areas = {(c.model, c.mode): c.area for c in summary.curves if (c.name, c.range) == (name, value_range)}
        found = [(e, Estimate(areas[e.model, e.mode])) for e in entries if (e.model, e.mode) in areas]
        measures.append((f"area under {name} ({value_range})", found))
    return [
        (name, [(e, _bar(one)) for e, one in sorted(values, key=lambda pair: -pair[1].value)])
        for name, values in measures
        if len(values) > 1
    ]


def _accuracy(error: Estimate) -> Estimate:
    if error.low is None or error.high is None:
        return Estimate(1 - error.value)
    return Estimate(1 - error.value, 1 - error.high, 1 - error.low)


def _bar(one: Estimate) -> Bar:
    ends = [None if end is None else round(4 + end * (_BAR - 8), 1) for end in (one.low, one.high)]
    return Bar(estimate(one), round(4 + one.value * (_BAR - 8), 1), ends[0], ends[1], one.value)


def _heat(entry: Entry) -> dict[str, Any]:
    """Accuracy by corruption and severity: text, class and words of every cell."""
    rows = []
    for name, errors in entry.table.errors.items():
        cells = [None if error is None else _heat_cell(1 - error) for error in errors]
        known = entry.table.complete.get(name)
        rows.append((name, cells, "" if known is None else percent(1 - float(known.mean()))))
    return {"name": entry.name, "qualifier": entry.qualifier, "suite": entry.suite, "rows": rows}


def _heat_cell(accuracy: float) -> tuple[str, int]:
    return percent(accuracy, digits=1), min(int(accuracy * HEAT_STEPS), HEAT_STEPS - 1)


def _flip_bars(entry: Entry) -> list[tuple[str, str, float]]:
    """Of the images that are right when clean, how many are lost in what part of the conditions."""
    if entry.flips is None:
        return []
    kept = entry.flips.kept / max(entry.flips.right, 1)
    tenths = ["up to 10 %", *(f"{low} to {low + 10} %" for low in range(10, 100, 10))]
    parts = [("never", kept), *zip(tenths, entry.flips.shares, strict=True)]
    return [(name, percent(share), round(share * _BAR, 1)) for name, share in parts]
