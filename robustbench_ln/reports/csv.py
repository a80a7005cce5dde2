"""One line a row, tidy: every column one variable, fractions and not percent. For spreadsheets and data frames."""

from __future__ import annotations

import csv
import io

from robustbench_ln.reports.summary import Summary
from robustbench_ln.reports.text import number, visible
from robustbench_ln.results.document import DocumentRow

COLUMNS = (
    "model",
    "mode",
    "kind",
    "name",
    "level",
    "range",
    "suite",
    "repeat",
    "n",
    "correct",
    "accuracy",
    "ci_low",
    "ci_high",
    "top5",
    "nll",
    "ece",
    "brier",
    "images",
    "seconds",
    "fingerprint",
    "status",
    "interval",
)


def render(summary: Summary) -> str:
    """The rows of the summary as comma-separated values with a header line; what is unknown is empty.

    Text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in summary.rows)
    return out.getvalue()


def _cells(row: DocumentRow) -> list[str]:
    condition = row.condition
    low, high = row.ci95 or (None, None)
    ratios = (row.accuracy, low, high, row.top5, row.nll, row.ece, row.brier)
    return [
        cell_text(row.model),
        cell_text(row.mode),
        condition.kind,
        cell_text(condition.name),
        number(condition.level),
        condition.range,
        cell_text(condition.suite or ""),
        str(condition.repeat),
        str(row.n),
        str(row.correct),
        *("" if ratio is None else repr(float(ratio)) for ratio in ratios),
        "" if row.images is None else str(row.images),
        repr(float(row.seconds)),
        cell_text(row.fingerprint),
        row.status,
        row.interval,
    ]


def cell_text(text: str) -> str:
    """One line of text that a spreadsheet shows and does not run."""
    shown = visible(text)
    return f"'{shown}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else shown
