"""Numbers apart from ink: :func:`build` makes the one `Summary` of results, every format of `FORMATS` renders it.

A new format is a module with ``render(summary) -> str`` and a row in the table. rich, jinja2 and matplotlib are
imported when something is drawn with them, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustbench_ln.errors import unknown_name
from robustbench_ln.reports import html, json, latex, markdown, sheet_csv, terminal
from robustbench_ln.reports.building import build
from robustbench_ln.reports.summary import Summary, summarise

FORMATS: dict[str, Callable[[Summary], str]] = {
    "terminal": terminal.render,
    "html": html.render,
    "markdown": markdown.render,
    "latex": latex.render,
    "csv": sheet_csv.render,
    "json": json.render,
}


def report(
    results: str | Path | Sequence[str | Path],
    *,
    format: str = "terminal",
    normaliser: str | None = None,
    suite: str | None = None,
) -> str:
    """A report of results as text, what ``lnbench report`` prints.

    Args:
        results: run folders, ``results.json`` files, or RobustBench's tables and model files; one or several.
        format: ``terminal``, ``html``, ``markdown``, ``latex``, ``csv`` or ``json``.
        normaliser: what mCE divides by: ``alexnet``, ``none`` or a results file, with ``#MODEL`` or ``#MODEL/MODE``
            where it has several. None is ``alexnet`` for ImageNet-C and ``none`` for all else.
        suite: the suite to report on, where the results hold several.

    Raises:
        UsageError: no such format, suite, model or mode.
        InputError: something cannot be read.
        TrustError: the inputs, or the normaliser, are of other data, sizes or suites.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    paths = [results] if isinstance(results, str | Path) else list(results)
    return FORMATS[format](build(paths, normaliser=normaliser, suite=suite))


__all__ = ["FORMATS", "Summary", "build", "report", "summarise"]
