"""The numbers of a `Summary` as tables of text, for every format that is made of tables: one wording, one rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robustbench_ln.errors import counted
from robustbench_ln.metrics.mce import GROUPS, STANDARD, Estimate
from robustbench_ln.reports.sheet import Entry, Sheet, mean_words
from robustbench_ln.reports.summary import Curve, Grid, Point, Source, Summary
from robustbench_ln.reports.text import between, number, percent
from robustbench_ln.results.document import RunInfo


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text, not yet escaped for any format.

    Attributes:
        title: what it shows.
        columns: their heads.
        rows: cells of text; empty where there is nothing to say.
        names: how many columns at the left hold names; the others hold numbers.
        footer: how many rows at the bottom sum up those above.
        note: a sentence below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    footer: int = 0
    note: str = ""


def transposed(table: Table) -> Table:
    """The table with its names as heads: a column for each row, the `names` of a row in one head."""
    heads = [", ".join(row[: table.names]) for row in table.rows]
    rows = [
        (name, *(row[at] for row in table.rows))
        for at, name in enumerate(table.columns[table.names :], start=table.names)
    ]
    return Table(table.title, ("", *heads), tuple(rows), note=table.note)


def title(summary: Summary) -> str:
    """The title of the report."""
    names = list(dict.fromkeys(entry.label for entry in summary.sheet.entries))
    names = names or [model.label for model in summary.models]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Robustness of {shown or 'no model'} on {summary.data.id}"


def tables(summary: Summary) -> Iterator[Table]:
    """Every table of the report, the most important first."""
    yield from sheet_tables(summary.sheet)
    yield from noise_tables(summary)
    yield from corruption_error_tables(summary.sheet)
    yield from mean_error_tables(summary.sheet)
    yield from grid_tables(summary)


def sheet_tables(sheet: Sheet) -> Iterator[Table]:
    """The mCE sheet, ranked, one table for what may be ranked together."""
    for qualifier, entries in sheet.ranks:
        mean = f"mean corruption error, unnormalised{qualifier}"
        heads = [f"mCE{qualifier}", f"relative mCE{qualifier}"] if sheet.is_normalised else []
        rows = []
        for entry in entries:
            scores = entry.scores
            normalised = [estimate(scores.mce), estimate(scores.relative_mce)] if heads else []
            words = mean_words(entry)
            shown = estimate(entry.mean) + (f" ({words})" if words and entry.mean else "")
            groups = [percent(scores.groups[group].value) if group in scores.groups else "" for group in GROUPS]
            rows.append((entry.label, _mode(entry), estimate(entry.clean), *normalised, shown, *groups))
        suites = ", ".join(dict.fromkeys(entry.suite for entry in entries if entry.suite))
        what = "Mean corruption error" if not sheet.is_normalised else "mCE"
        yield Table(
            f"{what}{qualifier}, {suites}",
            ("model", "mode", "clean error", *heads, mean, *GROUPS),
            tuple(rows),
            names=2,
            note=f"In %, lower is better, in brackets 95 % intervals. Normaliser: {sheet.normaliser_words}. "
            "Noise, blur, weather, digital: mean errors of the groups.",
        )


def corruption_error_tables(sheet: Sheet) -> Iterator[Table]:
    """CE of every corruption, a column a model and mode; none without a normaliser."""
    for qualifier, entries, names in _with_cells(sheet) if sheet.is_normalised else ():
        rows = [_row(name, [entry.scores.ce.get(name) for entry in entries]) for name in names if name in STANDARD]
        yield Table(
            f"CE{qualifier} by corruption",
            ("corruption", *(entry.name for entry in entries)),
            (*rows, _row(f"mCE{qualifier}", [entry.scores.mce for entry in entries])),
            footer=1,
            note=f"In %. Normaliser: {sheet.normaliser_words}.",
        )


def mean_error_tables(sheet: Sheet) -> Iterator[Table]:
    """The mean error of every corruption over its severities, a column a model and mode."""
    for qualifier, entries, names in _with_cells(sheet):
        rows = []
        for name in names:
            known = [entry.table.complete.get(name) for entry in entries]
            rows.append((name, *("" if row is None else percent(float(row.mean())) for row in known)))
        means = [estimate(entry.mean) if entry.is_whole else mean_words(entry) for entry in entries]
        yield Table(
            f"Mean error over the severities{qualifier}",
            ("corruption", *(entry.name for entry in entries)),
            (*rows, ("mean over the 15", *means)),
            footer=1,
            note="In %, not normalised.",
        )


def _with_cells(sheet: Sheet) -> Iterator[tuple[str, list[Entry], list[str]]]:
    """The ranks of the sheet, for entries whose cells are known: qualifier, entries, their corruptions."""
    for qualifier, ranked in sheet.ranks:
        entries = [entry for entry in ranked if entry.table.errors]
        if entries:
            yield qualifier, entries, [n for n in sheet.corruptions if any(n in e.table.errors for e in entries)]


def noise_tables(summary: Summary) -> Iterator[Table]:
    """Accuracy under each noise, a column a model and mode."""
    labels = {model.id: model.label for model in summary.models}
    for name, value_range in summary.noises:
        curves = [curve for curve in summary.curves if (curve.name, curve.range) == (name, value_range)]
        levels = sorted({point.level for curve in curves for point in curve.points})
        rows = [(number(level), *(_accuracy(curve, level) for curve in curves)) for level in levels]
        yield Table(
            f"Accuracy under {name} ({value_range})",
            ("sigma", *(f"{labels[curve.model]}, {curve.mode}" for curve in curves)),
            (*rows, ("area", *(f"{curve.area:.3f}" for curve in curves))),
            footer=1,
            note="In %, in brackets 95 % intervals; area: under the curve, divided by the grid's width, 0 to 1.",
        )


def grid_tables(summary: Summary) -> Iterator[Table]:
    """Accuracy by corruption and severity, a table a model and mode."""
    labels = {model.id: model.label for model in summary.models}
    for grid in summary.grids:
        rows = [
            (name, *("" if point is None else percent(point.accuracy) for point in points))
            for name, points in grid.cells
        ]
        foot = ((f"mean over {len(grid.complete)}", *(_interval(point) for point in grid.means)),) if grid.means else ()
        yield Table(
            f"Accuracy of {labels[grid.model]}, {grid.mode} on {grid.suite}",
            ("corruption", *_severities(grid)),
            (*rows, *foot),
            footer=len(foot),
            note="In %, by severity.",
        )


def facts(summary: Summary) -> list[tuple[str, str]]:
    """How it was run, as pairs of words."""
    sources = summary.sources or (Source("", summary.run, summary.data),)
    found = [
        (entry.model, f"figures of {entry.origin}, {entry.file}") for entry in summary.sheet.entries if entry.origin
    ]
    for source in sources if summary.rows else ():
        run, data = source.run, source.data
        found += [("results", source.path)] if source.path else []
        found += [
            ("command", run.command),
            ("data", f"{data.id} ({data.source}): {counted(data.n, 'image')}, {counted(data.classes, 'class')}"),
            ("data digest", f"SHA-256 {data.sha256}" if data.sha256 else ""),
            ("pixels", f"{data.pixels}, frost {data.frost}" if data.frost else data.pixels),
            ("images scored", _scored(run)),
            ("seed", str(run.seed)),
            ("order digest", f"SHA-256 {run.order_sha256}" if run.order_sha256 else ""),
            ("versions", f"lnbench {run.lnbench_version}, torch {run.torch}"),
            ("computed", f"{run.created}, {run.device}, {run.precision}" if run.created else ""),
        ]
    for model in summary.models:
        groups = f", K = {model.n_groups}" if model.n_groups else ""
        about = f"{model.source}, {model.arch}, {model.norm}{groups}, preprocessing: {model.preprocessing}"
        found.append((model.id, about))
    return [(name, value) for name, value in found if value]


def estimate(one: Estimate | None) -> str:
    """A fraction in %, with its interval where that is known; empty for None."""
    if one is None:
        return ""
    interval = "" if one.low is None or one.high is None else f" {between(one.low, one.high)}"
    return f"{percent(one.value)}{interval}"


def _scored(run: RunInfo) -> str:
    most = "all" if run.limit is None else f"the first {run.limit:,} of the seeded order"
    return most if run.ci_width is None else f"{most}, or until the 95 % interval is at most {run.ci_width:g} wide"


def _mode(entry: Entry) -> str:
    return entry.origin or entry.mode


def _row(name: str, estimates: list[Estimate | None]) -> tuple[str, ...]:
    return name, *(estimate(one) for one in estimates)


def _interval(point: Point) -> str:
    return f"{percent(point.accuracy)} {between(point.low, point.high)}"


def _accuracy(curve: Curve, level: float) -> str:
    return next((_interval(point) for point in curve.points if point.level == level), "")


def _severities(grid: Grid) -> tuple[str, ...]:
    return tuple(f"s{number(severity)}" for severity in grid.severities)
