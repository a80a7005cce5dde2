"""The report as one line a model and mode, every number of it a column: fractions and not percent."""

from __future__ import annotations

import csv
import io

from robustbench_ln.metrics.mce import GROUPS, SEVERITIES, Estimate
from robustbench_ln.reports.csv import cell_text
from robustbench_ln.reports.sheet import Entry
from robustbench_ln.reports.summary import Summary
from robustbench_ln.reports.text import number


def render(summary: Summary) -> str:
    """The summary as comma-separated values with a header line; what is unknown is empty.

    Columns as the keys of the JSON report; ``_low`` and ``_high`` are 95 % intervals. Text that a spreadsheet would
    run as a formula gets a leading apostrophe.
    """
    lines = [_line(summary, entry) for entry in summary.sheet.entries]
    out = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line)) or ["model", "mode"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([cell_text(name) for name in columns])
    writer.writerows([cell_text(line.get(name, "")) for name in columns] for line in lines)
    return out.getvalue()


def _line(summary: Summary, entry: Entry) -> dict[str, str]:
    scores = entry.scores
    line = {
        "model": entry.model,
        "mode": entry.mode,
        "suite": entry.suite,
        "pixels": entry.pixels,
        "frost": entry.frost or "",
        "origin": entry.origin,
        "normaliser": summary.sheet.normaliser,
        "n_corruptions": str(entry.n_corruptions),
        **_columns("clean_error", entry.clean),
        **_columns("mce", scores.mce),
        **_columns("relative_mce", scores.relative_mce),
        **_columns("mean_corruption_error", entry.mean),
    }
    for group in GROUPS:
        line |= _columns(f"group_{group}", scores.groups.get(group))
    for name in summary.sheet.corruptions:
        if summary.sheet.is_normalised:
            line |= _columns(f"ce_{name}", scores.ce.get(name))
            line |= _columns(f"relative_ce_{name}", scores.relative_ce.get(name))
        row = entry.table.errors.get(name, (None,) * len(SEVERITIES))
        line |= {f"error_{name}_{s}": _number(error) for s, error in zip(SEVERITIES, row, strict=True)}
    for curve in summary.curves:
        if (curve.model, curve.mode) == (entry.model, entry.mode):
            line[f"area_{curve.name}_{curve.range}"] = _number(curve.area)
            for point in curve.points:
                line[f"accuracy_{curve.name}_{curve.range}_{number(point.level)}"] = _number(point.accuracy)
    return line


def _columns(name: str, one: Estimate | None) -> dict[str, str]:
    return {
        name: "" if one is None else _number(one.value),
        f"{name}_low": "" if one is None else _number(one.low),
        f"{name}_high": "" if one is None else _number(one.high),
    }


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))
