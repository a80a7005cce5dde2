"""The process that a command is: what was typed, and its one way out after Ctrl-C or SIGTERM."""

from __future__ import annotations

import shlex
import sys
from types import FrameType
from typing import NoReturn


def command_line() -> str:
    """What the user typed, such that it can be typed again."""
    return shlex.join(["lnbench", *sys.argv[1:]])


def help_line() -> str:
    """The command that explains the one that was typed."""
    return shlex.join(["lnbench", *(word for word in sys.argv[1:2] if not word.startswith("-")), "--help"])


class Interrupted(SystemExit):
    """SIGINT or SIGTERM. Not a KeyboardInterrupt: typer makes something else of that, each version its own.

    Attributes:
        code: exit code, 128 and the number of the signal.
        kept: what the user still has; who is at work fills it in.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.kept = "nothing was evaluated yet"


def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    """Take the way out, through every clean-up."""
    raise Interrupted(number)
