"""The report as Markdown (GitHub's tables), for pull requests and wikis."""

from __future__ import annotations

import html
import re

from robustbench_ln.reports.summary import Summary
from robustbench_ln.reports.tables import Table, facts, tables, title
from robustbench_ln.reports.text import visible


def render(summary: Summary) -> str:
    """The summary as Markdown. Names are escaped: they cannot end a cell, or become markup, HTML or links."""
    parts = [f"# {escape(title(summary))}"]
    if summary.warnings:
        parts.append("\n".join(f"> **Warning:** {escape(warning)}  " for warning in summary.warnings))
    parts += [table(one) for one in tables(summary)]
    parts.append(
        "## How it was run\n\n" + "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in facts(summary))
    )
    return "\n\n".join(parts) + "\n"


def table(one: Table, *, level: int = 2) -> str:
    """A table under a heading of that level, with its note."""
    head = [
        _line(one.columns),
        _line(["---"] * one.names + ["---:"] * (len(one.columns) - one.names), raw=True),
    ]
    body = [_line(row) for row in one.rows]
    note = f"\n\n{escape(one.note)}" if one.note else ""
    return f"{'#' * level} {escape(one.title)}\n\n" + "\n".join([*head, *body]) + note


def _line(cells: list[str] | tuple[str, ...], *, raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else escape(cell) for cell in cells)} |"


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
