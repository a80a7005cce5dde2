"""What a command shows on stderr while it works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustbench_ln import evaluation
from robustbench_ln.cli.process import Interrupted
from robustbench_ln.evaluation import Event, total_images
from robustbench_ln.planning import Plan

_LINE_EVERY = 30.0  # seconds between plain lines where there is no terminal


class Lines:
    """A plain line on stderr, no more than one every 30 s."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, line: Callable[[], str]) -> None:
        """Print the line where one is due."""
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY:
            self._last = now
            print(line(), file=sys.stderr, flush=True)


class Bars:
    """A progress bar with what is at work on a terminal, a plain line every 30 s elsewhere.

    Args:
        total: how much there is to do.
        unit: of what, in the plural.
        kept: what an interrupt leaves, for the user.
        quiet: show nothing.
    """

    def __init__(self, total: int, unit: str, *, kept: str, quiet: bool) -> None:
        self.done: float = 0
        self.kept = kept
        self._total, self._unit = total, unit
        self._started = time.monotonic()
        console = Console(stderr=True)
        self._lines = None if quiet or console.is_terminal else Lines()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit},"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("to go"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if isinstance(error, Interrupted):
            error.kept = self.kept

    def advance(self, label: str, done: float) -> None:
        """Show that `label` is at work and that so much more is done."""
        self.done += done
        self._bar.update(self._task, completed=self.done, description=label)
        if self._lines is not None:
            self._lines.say(lambda: f"{label}: {int(self.done)} of {self._total} {self._unit}, about {self._left()}")

    def _left(self) -> str:
        left = (time.monotonic() - self._started) * (self._total - self.done) / max(self.done, 1e-9)
        return f"{left:.0f} s to go"


class Display(Bars):
    """The progress of an evaluation, in rows."""

    def __init__(self, plan: Plan, folder: Path, *, quiet: bool) -> None:
        self._per_row, self._folder, self._rows = plan.limit, folder, 0
        super().__init__(total_images(plan) // plan.limit, "rows", kept="", quiet=quiet)
        self._keep(0)

    def on_event(self, event: Event) -> None:
        """Show where the run is."""
        if isinstance(event, evaluation.Finish):
            self._keep(1)
            return
        if not event.modes:  # rows that were there before
            self._keep(event.images // self._per_row)
        modes = f" ({', '.join(event.modes)})" if event.modes else ""
        self.advance(f"{event.condition}{modes}", event.images / self._per_row)

    def _keep(self, rows: int) -> None:
        self._rows += rows
        self.kept = f"{self._rows} of {self._total} rows are kept in {self._folder}"
