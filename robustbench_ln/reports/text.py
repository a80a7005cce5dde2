"""Names and numbers as text: names come from files, and here become text that can do nothing but be read."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}  # controls, direction marks, lone surrogates, line separators


def visible(text: str, *, ascii_only: bool = False) -> str:
    r"""The text with everything that would act on a terminal, or not be seen at all, spelled as an escape.

    Args:
        text: anything, hostile names included.
        ascii_only: also spell what is not ASCII, for streams that cannot carry it.
    Returns: one line; ``\x1b`` stands for an escape character.
    """
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNSEEN or (ascii_only and not char.isascii())
        else char
        for char in text
    )


def number(value: float) -> str:
    """A level as it was asked for: 0.25, 3, 1e-05; no trailing zeros."""
    return f"{value:.12g}"


def percent(value: float | None, *, digits: int = 2, sign: bool = False) -> str:
    """A fraction in %, or a difference of two in points, without the unit; empty for None."""
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.{digits}f}"


def between(low: float, high: float, *, digits: int = 1) -> str:
    """An interval of fractions, in %."""
    return f"[{percent(low, digits=digits)}, {percent(high, digits=digits)}]"


def p_value(p: float) -> str:
    """A p-value with two digits, very small ones as a bound."""
    return "<1e-12" if p < 1e-12 else f"{p:.2g}"
