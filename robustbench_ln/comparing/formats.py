"""How a comparison is shown: a format is a function and a row of `FORMATS`."""

from __future__ import annotations

import csv as csv_module
import io
import json
from collections.abc import Callable
from dataclasses import asdict

from robustbench_ln.comparing.differences import Comparison, Difference
from robustbench_ln.comparing.ink import between, markdown_table, p_value, percent
from robustbench_ln.reports.csv import cell_text
from robustbench_ln.reports.markdown import escape
from robustbench_ln.reports.text import visible

SCHEMA_VERSION = 1
_HEADER = ("change", "condition", "reference", "new", "difference", "95 % interval", "lost", "gained", "p")
_COLUMNS = tuple(Difference.__dataclass_fields__)


def terminal(comparison: Comparison) -> str:
    """A table for each pair of models and modes."""
    from tabulate import tabulate

    parts = []
    for title, lines in _tables(comparison):
        cells = [[visible(cell) for cell in _cells(line)] for line in lines]
        align = ("left",) * 2 + ("right",) * 7
        table = tabulate(cells, _HEADER, tablefmt="simple", disable_numparse=True, colalign=align)
        parts.append(f"{visible(title)}\n\n{table}\n")
    parts.append("\n".join(_notes(comparison)) + "\n")
    parts += [f"warning: {visible(warning)}" for warning in comparison.warnings]
    return "\n".join(parts).rstrip() + "\n"


def as_markdown(comparison: Comparison) -> str:
    """The same tables in Markdown."""
    parts = [
        f"### {escape(title)}\n\n{markdown_table(_HEADER, map(_cells, lines))}\n"
        for title, lines in _tables(comparison)
    ]
    parts += [f"{escape(note)}  \n" for note in _notes(comparison)]
    parts += [f"\n> **warning** {escape(warning)}\n" for warning in comparison.warnings]
    return "".join(parts)


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
    "markdown": as_markdown,
    "csv": csv,
    "json": as_json,
}


def _tables(comparison: Comparison) -> list[tuple[str, list[Difference]]]:
    tables: dict[str, list[Difference]] = {}
    for line in comparison.lines:
        tables.setdefault(f"{line.model}, {line.mode} against {line.reference}", []).append(line)
    return list(tables.items())


def _cells(line: Difference) -> tuple[str, ...]:
    return (
        "" if line.change == "unclear" else line.change,
        line.about if line.metric == "accuracy" else f"{line.metric}, {line.about}",
        percent(line.old),
        percent(line.new),
        percent(line.difference, sign=True),
        between(line.interval),
        "" if line.lost is None else str(line.lost),
        "" if line.gained is None else str(line.gained),
        p_value(line.p_adjusted),
    )


def _notes(comparison: Comparison) -> list[str]:
    counts = {word: sum(line.change == word for line in comparison.lines) for word in ("better", "worse")}
    return [
        f"{counts['better']} better, {counts['worse']} worse, of {len(comparison.lines)} "
        f"(chance of any mistake at most {comparison.alpha:g}).",
        "Values in %, differences in points. lost, gained: images that only the reference, only the new one has right.",
        "p: two-sided, exact McNemar for a condition, bootstrap over images for means; adjusted over all lines (Holm).",
    ]
