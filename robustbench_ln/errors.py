"""The errors lnbench raises on purpose; each carries what a user needs to go on, and the exit code of the CLI.

LnbenchError
├── UsageError           2  the request is wrong: unknown name, value out of range, mode that no model can run
├── InputError           3  a file or data set is unreadable, hostile, incomplete, or of the wrong kind
├── IncompleteError      4  rows are failed or missing
├── ResourceError        5  disk, memory, permission, missing extra, network forbidden
└── TrustError           6  numbers that must not be trusted or compared
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LnbenchError(Exception):
    """Base of all errors that lnbench raises on purpose.

    Args:
        what: one line, what went wrong.
        found: what was found instead of what was expected.
        hint: what to do about it; printed after ``try:``.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: str = "", hint: str = "") -> None:
        super().__init__(what, found, hint)
        self.what, self.found, self.hint = what, found, hint

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive Exception's own pickling, and errors travel from worker processes.
        return _rebuild, (type(self), self.what, self.found, self.hint)

    def __str__(self) -> str:
        lines = [self.what]
        if self.found:
            lines.append(f"found: {self.found}")
        if self.hint:
            lines.append(f"try: {self.hint}")
        return "\n".join(lines)


def _rebuild(kind: type[LnbenchError], what: str, found: str, hint: str) -> LnbenchError:
    return kind(what, found=found, hint=hint)


class UsageError(LnbenchError):
    """The request cannot be carried out as it was written (exit 2)."""

    exit_code = 2


class InputError(LnbenchError):
    """A file or data set is unreadable, hostile, incomplete or of the wrong kind (exit 3)."""

    exit_code = 3


class IncompleteError(LnbenchError):
    """Rows failed or are missing (exit 4)."""

    exit_code = 4


class ResourceError(LnbenchError):
    """The machine stands in the way: disk, memory, permission, a missing extra, no network (exit 5)."""

    exit_code = 5


class TrustError(LnbenchError):
    """The numbers would not be trustworthy or comparable (exit 6)."""

    exit_code = 6


def unknown_name(kind: str, name: str, known: Iterable[str], *, listing: str = "") -> UsageError:
    """The error for a name that is in no table: near matches first, then the whole list, or where to find it.

    Args:
        kind: what the name should have been, in the singular ("mode", "noise").
        name: what the user wrote.
        known: every name that would have been right.
        listing: what lists them, where there are hundreds.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if listing:
        hint = f"{' or '.join(near)}; {listing} names all" if near else f"{listing} names all"
    else:
        listed = ", ".join(names)
        hint = f"{' or '.join(near)}; known: {listed}" if near else f"one of {listed}"
    return UsageError(f"unknown {kind} {name!r}", found=repr(name), hint=hint)


def counted(n: int, noun: str) -> str:
    """A number with its noun, in the plural where there is not one: ``1 class``, ``1,000 classes``."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"
