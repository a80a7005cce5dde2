"""The process that a command is: what was typed, and its one way out after Ctrl-C or SIGTERM."""

from __future__ import annotations

import shlex
import signal
import sys
from types import FrameType, TracebackType
from typing import NoReturn, Self


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
        self.kept = "nothing was done yet"


def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    """Take the way out, through every clean-up."""
    raise Interrupted(number)


class Stop:
    """While the block runs, the first SIGINT or SIGTERM is only taken down, for work that stops at a point of its own.

    Args:
        one_of_many: this is one of the processes of `torchrun`, which passes on the signals that they get themselves.
            Elsewhere the second signal says that somebody will not wait.

    Attributes:
        number: of the signal; 0 while there was none.
    """

    def __init__(self, *, one_of_many: bool) -> None:
        self.number = 0
        self._one_of_many = one_of_many

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number > 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and not self._one_of_many:
            interrupt(number, frame)
        self.number = self.number or number
