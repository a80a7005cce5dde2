"""The report as Markdown (GitHub's tables), for pull requests and wikis."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from robustbench_ln.reports.summary import Summary
from robustbench_ln.reports.tables import Table, facts, tables, title
from robustbench_ln.reports.text import visible


def render(summary: Summary) -> str:
    """The summary as Markdown. Names are escaped: they cannot end a cell, or become markup, HTML or links."""
    parts = [f"# {escape(title(summary))}"]
    if summary.warnings:
        parts.append("\n".join(f"> **Warning:** {escape(warning)}  " for warning in summary.warnings))
    parts += map(section, tables(summary))
    parts.append(
        "## How it was run\n\n" + "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in facts(summary))
    )
    return "\n\n".join(parts) + "\n"


def section(table: Table, *, level: int = 2) -> str:
    """A table under its title, a heading of that level, its note below."""
    note = f"\n\n{escape(table.note)}" if table.note else ""
    return f"{'#' * level} {escape(table.title)}\n\n{grid(table.columns, table.rows, names=table.names)}{note}"


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A table of cells that are escaped here; `names` columns at the left hold names, the others numbers."""
    rule = ["---"] * names + ["---:"] * (len(columns) - names)
    lines = [map(escape, columns), rule, *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SPECIAL = re.compile(
    r"[\\`*|~$@#]"  # code, emphasis, cells, strikes, formulas, mentions, issues
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word marks nothing up
    r"|\](?=[(\[:])"  # links and their definitions
    r"|:(?=//)|(?<=www)\."  # addresses that become links by themselves
    r"|^[-+=](?=\s|$)"  # what opens a block
)


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\g<0>", html.escape(visible(text), quote=False))
