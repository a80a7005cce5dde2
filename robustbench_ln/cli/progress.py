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
from robustbench_ln.results import is_part
from robustbench_ln.training import Epoch, TrainingPlan
from robustbench_ln.training import Progress as TrainingProgress

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

    Attributes:
        done: how much is done.
        before: how much of it was done by an earlier command.
    """

    def __init__(self, total: int, unit: str, *, kept: str, quiet: bool) -> None:
        self.done: float = 0
        self.before: float = 0
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
        if self._lines is not None and self.done > self.before:
            self._lines.say(lambda: f"{label}: {int(self.done)} of {self._total} {self._unit}, about {self._left()}")

    def _left(self) -> str:
        left = (time.monotonic() - self._started) * (self._total - self.done) / (self.done - self.before)
        return f"{left:.0f} s to go"


class Display(Bars):
    """The progress of an evaluation, in rows; of several that differ in their order only, all together."""

    def __init__(self, plan: Plan, folder: Path, *, quiet: bool, orders: int = 1) -> None:
        self._per_row, self._folder, self._rows = plan.limit, folder, 0
        super().__init__(orders * total_images(plan) // plan.limit, "rows", kept="", quiet=quiet)
        self._keep(0)

    def on_event(self, event: Event) -> None:
        """Show where the run is."""
        if isinstance(event, evaluation.Finish):
            self._keep(0 if is_part(event.key) else 1)
            return
        if isinstance(event, evaluation.Failure):
            row = event.row
            print(f"warning: {row.model}, {row.mode}, {row.condition} failed: {row.extra['reason']}", file=sys.stderr)
            return
        if not event.modes:  # rows that were there before
            self._keep(event.images // self._per_row)
        modes = f" ({', '.join(event.modes)})" if event.modes else ""
        self.advance(f"{event.condition}{modes}", event.images / self._per_row)

    def _keep(self, rows: int) -> None:
        self._rows += rows
        self.kept = f"{self._rows} of {self._total} rows are kept in {self._folder}"


class TrainingDisplay(Bars):
    """The progress of a training, in images; a line an epoch."""

    def __init__(self, plan: TrainingPlan, folder: Path, *, quiet: bool) -> None:
        settings = plan.settings
        each = len(plan.train) // settings.batch_size * settings.batch_size
        super().__init__(each * settings.epochs, "images", kept="nothing was trained yet", quiet=quiet)
        self._folder, self._quiet, self._first = folder, quiet, True

    def on_event(self, event: Epoch | TrainingProgress) -> None:
        """Show where the training is."""
        if isinstance(event, Epoch):
            self._say(event)
            return
        if self._first:
            self.before, self._first = event.images, False
        self.kept = f"{event.images} of {event.total} images are trained on, the state is kept in {self._folder}"
        label = f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}, rate {event.learning_rate:.3g}"
        self.advance(label, event.images - self.done)

    def _say(self, epoch: Epoch) -> None:
        if self._quiet:
            return
        held_out = ""
        if epoch.eval_accuracy is not None:
            held_out = f", held out {100 * epoch.eval_accuracy:.2f} %{' (best)' if epoch.best else ''}"
        text = f"epoch {epoch.epoch}: loss {epoch.loss:.4f}, accuracy {100 * epoch.accuracy:.2f} %{held_out}, "
        self._bar.console.print(f"{text}{epoch.seconds:.0f} s", highlight=False)
