"""Numbers apart from ink: :func:`build` makes the one `Summary` of results, every format of `FORMATS` renders it.

A new format is a module with ``render(summary) -> str`` and a row in the table. rich, jinja2 and matplotlib are
imported when something is drawn with them, and not before.
"""

from __future__ import annotations

from collections.abc import Callable

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

__all__ = ["FORMATS", "Summary", "build", "summarise"]
