"""How a comparison is shown: a format is a function and a row of `FORMATS`."""

from __future__ import annotations

import csv as csv_module
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from robustbench_ln.comparing.differences import Comparison, Difference
from robustbench_ln.reports import html, latex, markdown
from robustbench_ln.reports.csv import cell_text
from robustbench_ln.reports.tables import Table
from robustbench_ln.reports.text import between, p_value, percent, visible

SCHEMA_VERSION = 1
_HEADER = ("change", "condition", "reference", "new", "difference", "95 % interval", "lost", "gained", "p")
_NAMES = 2  # columns that hold names
_COLUMNS = tuple(Difference.__dataclass_fields__)
_UNITS = (
    "Values in %, differences in points. lost, gained: images that only the reference, only the new one has right.",
    "p: two-sided, exact McNemar for a condition, bootstrap over images for means; adjusted over all lines (Holm).",
)
_SCALE = 190.0  # units of a drawing of a difference
_COLORS = {"better": "blue", "worse": "vermilion", "unclear": "grey"}


def terminal(comparison: Comparison) -> str:
    """A table for each pair of models and modes."""
    from tabulate import tabulate

    parts = []
    for title, lines in _pairs(comparison):
        cells = [[visible(cell) for cell in _cells(line)] for line in lines]
        align = ("left",) * _NAMES + ("right",) * (len(_HEADER) - _NAMES)
        table = tabulate(cells, _HEADER, tablefmt="simple", disable_numparse=True, colalign=align)
        parts.append(f"{visible(title)}\n\n{table}\n")
    parts.append("\n".join((_outcome(comparison), *_UNITS)) + "\n")
    parts += [f"warning: {visible(warning)}" for warning in comparison.warnings]
    return "\n".join(parts).rstrip() + "\n"


def as_markdown(comparison: Comparison) -> str:
    """The same tables in Markdown."""
    parts = [markdown.escape(_outcome(comparison))]
    parts += [f"> **Warning:** {markdown.escape(warning)}" for warning in comparison.warnings]
    return "\n\n".join([*parts, *map(markdown.section, _tables(comparison))]) + "\n"


def as_latex(comparison: Comparison) -> str:
    """The same tables in LaTeX (booktabs)."""
    warnings = [f"warning: {warning}" for warning in comparison.warnings]
    return latex.document([_outcome(comparison), *warnings], _tables(comparison))


def as_html(comparison: Comparison) -> str:
    """One page that holds all it needs, with tables that sort, the means first, and a drawing of every difference."""
    pairs = _pairs(comparison)
    ends = [0.0, *(end for line in comparison.lines for end in line.interval)]
    low, high = min(ends), max(ends)

    def drawn(value: float) -> float:
        return round(4 + (value - low) / ((high - low) or 1) * (_SCALE - 8), 1)

    sections = []
    for title, lines in pairs:
        rows: list[dict[str, Any]] = [
            {
                "line": line,
                "cells": dict(zip(_HEADER, _cells(line), strict=True)),
                "at": drawn(line.difference),
                "ends": [drawn(end) for end in line.interval],
                "color": _COLORS[line.change],
            }
            for line in sorted(lines, key=lambda line: line.conditions == 1)
        ]
        sections.append({"title": title, "name": f"{lines[0].model}, {lines[0].mode}", "rows": rows})
    values = {
        "title": pairs[0][0] if len(pairs) == 1 else f"{len(pairs)} models and modes compared",
        "lead": _outcome(comparison),
        "warnings": comparison.warnings,
        "sections": sections,
        "units": _UNITS,
        "range": (percent(low, sign=True), percent(high, sign=True)),
        "zero": drawn(0.0),
        "width": _SCALE,
    }
    return html.page("compare.html.j2", values)


def csv(comparison: Comparison) -> str:
    """A line a difference, every column one variable, fractions and not percent."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    columns = [name for name in _COLUMNS if name != "interval"]
    writer.writerow([*columns, "ci_low", "ci_high"])
    for line in comparison.lines:
        values = asdict(line)
        cells = [values[name] for name in columns]
        shown = [cell_text(cell) if isinstance(cell, str) else "" if cell is None else repr(cell) for cell in cells]
        writer.writerow([*shown, *map(repr, line.interval)])
    return out.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, fractions and not percent."""
    rows = []
    for line in comparison.lines:
        values = asdict(line)
        values["ci95"] = list(values.pop("interval"))
        rows.append(values)
    document = {
        "schema_version": SCHEMA_VERSION,
        "alpha": comparison.alpha,
        "rows": rows,
        "warnings": list(comparison.warnings),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "html": as_html,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": csv,
    "json": as_json,
}


def _pairs(comparison: Comparison) -> list[tuple[str, list[Difference]]]:
    """The lines of each pair of models and modes, under what they compare."""
    pairs: dict[str, list[Difference]] = {}
    for line in comparison.lines:
        pairs.setdefault(f"{line.model}, {line.mode} against {line.reference}", []).append(line)
    return list(pairs.items())


def _tables(comparison: Comparison) -> list[Table]:
    return [
        Table(title, _HEADER, tuple(map(_cells, lines)), names=_NAMES, note=" ".join(_UNITS))
        for title, lines in _pairs(comparison)
    ]


def _cells(line: Difference) -> tuple[str, ...]:
    return (
        "" if line.change == "unclear" else line.change,
        line.about if line.metric == "accuracy" else f"{line.metric}, {line.about}",
        percent(line.old),
        percent(line.new),
        percent(line.difference, sign=True),
        between(*line.interval, digits=2),
        "" if line.lost is None else str(line.lost),
        "" if line.gained is None else str(line.gained),
        p_value(line.p_adjusted),
    )


def _outcome(comparison: Comparison) -> str:
    counts = {word: sum(line.change == word for line in comparison.lines) for word in ("better", "worse")}
    return (
        f"{counts['better']} better, {counts['worse']} worse, of {len(comparison.lines)} "
        f"(chance of any mistake at most {comparison.alpha:g})."
    )
