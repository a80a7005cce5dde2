"""What a run shows on stderr while it works."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from robustbench_ln.evaluation import Event, Finish, Progress, total_images
from robustbench_ln.planning import Plan

_LINE_EVERY = 30.0  # seconds between plain lines where there is no terminal


class Display:
    """A progress bar with the condition and mode at work on a terminal, a plain line every 30 s elsewhere."""

    def __init__(self, plan: Plan, folder: Path, *, quiet: bool) -> None:
        self._total = total_images(plan)
        self._rows = len(plan.conditions) * sum(len(one.schedules) for one in plan.models)
        self._per_row = plan.limit
        self._folder = folder
        self._done = 0
        self._started = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._lines = not quiet and not console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows,"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("to go"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=self._rows)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if isinstance(error, KeyboardInterrupt):
            print(
                f"interrupted: {self._rows_done} of {self._rows} rows are kept in {self._folder}\n"
                f"go on with: {shlex.join(['lnbench', *sys.argv[1:]])}",
                file=sys.stderr,
            )

    @property
    def _rows_done(self) -> int:
        return int(self._done / self._per_row)

    def on_event(self, event: Event) -> None:
        """Show where the run is."""
        if isinstance(event, Finish):
            return
        assert isinstance(event, Progress)
        self._done += event.images
        modes = ", ".join(event.modes)
        label = f"{event.condition} ({modes})" if modes else str(event.condition)
        self._bar.update(self._task, completed=self._done / self._per_row, description=label)
        now = time.monotonic()
        if self._lines and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            left = (now - self._started) * (self._total - self._done) / max(self._done, 1)
            print(f"{label}: {self._rows_done} of {self._rows} rows, about {left:.0f} s to go", file=sys.stderr)
