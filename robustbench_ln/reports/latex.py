"""The report as LaTeX tables (booktabs)."""

from __future__ import annotations

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


def render(summary: Summary) -> str:
    r"""The summary as ``table`` environments; they need ``\usepackage{booktabs}``. Names are escaped."""
    # A comment ends at the end of its line, and `visible` leaves no line end in a name.
    head = [f"% {visible(title(summary))}", r"% \usepackage{booktabs}"]
    head += [f"% warning: {visible(warning)}" for warning in summary.warnings]
    head += [f"% {visible(name)}: {visible(value)}" for name, value in facts(summary)]
    return "\n".join([*head, *(_table(table) for table in tables(summary))]) + "\n"


def _table(table: Table) -> str:
    body = [_line(row) for row in table.rows]
    if table.footer:
        body.insert(len(body) - table.footer, r"\midrule")
    return "\n".join(
        [
            "",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape(table.title)}. {escape(table.note)}}}",
            rf"\begin{{tabular}}{{{'l' * table.names}{'r' * (len(table.columns) - table.names)}}}",
            r"\toprule",
            _line(table.columns),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


def escape(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_ESCAPES.get(char, char) for char in visible(text))
