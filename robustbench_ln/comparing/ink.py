"""What formats of gate and compare share: numbers as text, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustbench_ln.reports.markdown import escape


def percent(value: float | None, *, sign: bool = False) -> str:
    """A fraction in percent (points, where it is a difference) with two decimals; empty for None."""
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.2f}"


def between(interval: tuple[float, float]) -> str:
    """An interval of fractions, in percent."""
    return f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"


def p_value(p: float) -> str:
    """A p-value with two digits, very small ones as a bound."""
    return "<1e-12" if p < 1e-12 else f"{p:.2g}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped here; the first row is the header."""
    lines = [header, ["---"] * len(header), *([escape(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
