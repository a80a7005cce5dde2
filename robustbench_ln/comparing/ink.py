"""What formats of gate and compare share: numbers as text, and names that can do nothing but be read."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from robustbench_ln.reports.text import visible


def percent(value: float | None, *, sign: bool = False) -> str:
    """A fraction in percent (points, where it is a difference) with two decimals; empty for None."""
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.2f}"


def between(interval: tuple[float, float]) -> str:
    """An interval of fractions, in percent."""
    return f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def p_value(p: float) -> str:
    """A p-value with two digits, very small ones as a bound."""
    return "<1e-12" if p < 1e-12 else f"{p:.2g}"


def markdown(text: str) -> str:
    """Text that Markdown renders as itself: no markup, no HTML, no link, one table cell."""
    shown = html.escape(visible(text), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#~@!$:])", r"\\\1", shown)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped here; the first row is the header."""
    lines = [header, ["---"] * len(header), *([markdown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spreadsheet(text: str) -> str:
    """Text that a spreadsheet does not run as a formula."""
    shown = visible(text)
    return f"'{shown}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else shown
