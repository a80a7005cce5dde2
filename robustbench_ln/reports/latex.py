"""The report as LaTeX tables (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from robustbench_ln.reports.summary import Summary
from robustbench_ln.reports.tables import Table, facts, tables, title
from robustbench_ln.reports.text import visible

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", '"': "{''}",
    # After the \\ that ends a row, these two would be its argument.
    "[": "{[}", "*": "{*}",
}  # fmt: skip

_MINUS = re.compile(r"-(?=\d)")
_PAGE = 45  # rows that a page has room for


def render(summary: Summary) -> str:
    r"""The summary as ``table`` environments; they need ``\usepackage{booktabs}``. Names are escaped."""
    told = [title(summary), *(f"warning: {warning}" for warning in summary.warnings)]
    return document([*told, *(f"{name}: {value}" for name, value in facts(summary))], tables(summary))


def document(told: Iterable[str], tables: Iterable[Table]) -> str:
    """What is told as comments, then the tables; those that a page is too short for as ``longtable``."""
    # A comment ends at the end of its line, and `visible` leaves no line end in a name.
    tables = list(tables)
    needed = ["booktabs", *(["longtable"] if any(map(_is_long, tables)) else [])]
    head = [*(f"% {visible(line)}" for line in told), rf"% \usepackage{{{','.join(needed)}}}"]
    return "\n".join([*head, *map(_environment, tables)]) + "\n"


def _is_long(table: Table) -> bool:
    return len(table.rows) > _PAGE


def _environment(table: Table) -> str:
    body = [_line(row, table.names) for row in table.rows]
    if table.footer:
        body.insert(len(body) - table.footer, r"\midrule")
    caption = rf"\caption{{{escape(table.title)}. {escape(table.note)}}}"
    columns = f"{{{'l' * table.names}{'r' * (len(table.columns) - table.names)}}}"
    head = [r"\toprule", _line(table.columns), r"\midrule"]
    if _is_long(table):
        lines = [rf"\begin{{longtable}}{columns}", rf"{caption} \\", *head, r"\endhead", *body, r"\bottomrule"]
        return "\n".join(["", r"{\small", *lines, r"\end{longtable}", "}"])
    lines = [r"\begin{table}", r"\centering\small", caption, rf"\begin{{tabular}}{columns}", *head, *body]
    return "\n".join(["", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _line(cells: Sequence[str], names: int | None = None) -> str:
    """A row; behind its `names` stand numbers, whose minus is not a hyphen."""
    shown = [escape(cell) for cell in cells]
    if names is not None:
        shown[names:] = [_MINUS.sub("$-$", cell) for cell in shown[names:]]
    return " & ".join(shown) + r" \\"


def escape(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_ESCAPES.get(char, char) for char in visible(text))
