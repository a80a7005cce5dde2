"""Numbers apart from ink: :func:`summarise` makes the one `Summary`, every format of `FORMATS` renders it.

A format is a module with ``render(summary) -> str`` and a row in the table. rich and matplotlib are imported when
something is drawn with them, and not before.
"""

from __future__ import annotations

from collections.abc import Callable

from robustbench_ln.reports import csv, terminal
from robustbench_ln.reports.summary import Summary, summarise

FORMATS: dict[str, Callable[[Summary], str]] = {
    "terminal": terminal.render,
    "csv": csv.render,
}

__all__ = ["FORMATS", "Summary", "summarise"]
