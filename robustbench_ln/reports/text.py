"""Names come from files and file names: here they become text that can do nothing but be read."""

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
