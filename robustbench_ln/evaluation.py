"""The engine: degrade once, predict under every mode, yield one counted row per (condition, model, mode).

Images flow through in the visiting order. Every mode cuts that stream into units (the images that share statistics),
and predicts whole units only, so who shares a batch never depends on how much is computed at once. Rows depend on the
plan alone: nothing here prints, and nothing touches a file.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from robustbench_ln.corruptions import ImageRng, Ranges, add_noise, degrade, fingerprint, to_float
from robustbench_ln.corruptions.degrade import FINGERPRINT_IMAGES
from robustbench_ln.errors import ResourceError, UsageError
from robustbench_ln.metrics.calibration import count, per_image
from robustbench_ln.metrics.sequential import narrow_interval
from robustbench_ln.models.imports import importable_from_here, one_line
from robustbench_ln.norms.modes import Schedule
from robustbench_ln.norms.predict import Chance, decide, frozen_state, predict_logits
from robustbench_ln.planning import Plan, PlannedModel
from robustbench_ln.results import Cell
from robustbench_ln.types import N_BINS, Condition, ResultRow

Finished = Callable[[str], Cell | None]

LOOK = 128  # images between looks at the width of an interval, at least


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Attributes:
        condition: at work, or just finished.
        modes: names of the modes being predicted.
        images: how many image predictions are newly done, all models and modes counted; rows that were finished
            before count as well.
    """

    condition: Condition
    modes: tuple[str, ...]
    images: int


@dataclass(frozen=True, slots=True)
class Finish:
    """A row is done: its key and cell."""

    key: str
    cell: Cell


Event = Progress | Finish


def total_images(plan: Plan) -> int:
    """How many image predictions a whole run counts; the sum of all :class:`Progress` images."""
    return len(plan.conditions) * sum(len(one.schedules) for one in plan.models) * plan.limit


def run(plan: Plan, finished: Finished, *, workers: int = 0) -> Iterator[Event]:
    """Evaluate what is missing.

    Args:
        plan: from :func:`~robustbench_ln.planning.plan_run`.
        finished: gives the cell of a key that is done already, else None. It must know the cells yielded so far.
        workers: processes that evaluate conditions side by side; 0 for this process alone. Changes no number.

    Yields: :class:`Progress` while it works and :class:`Finish` for every new row.
    """
    todo: list[tuple[Condition, list[_Task]]] = []
    reused: list[Condition] = []
    for condition in plan.conditions:
        tasks = _tasks(plan, condition)
        missing = [task for task in tasks if not _is_whole(plan, finished(task.key))]
        done = (len(tasks) - len(missing)) * plan.limit
        if done:
            yield Progress(condition, (), done)
        if not missing:
            continue
        if condition.kind == "noise" and condition.level == 0:
            reused.append(condition)
        else:
            todo.append((condition, missing))
    if workers > 0 and len(todo) > 1:
        yield from _run_in_processes(plan, todo, workers)
    else:
        for condition, missing in todo:
            yield from _run_condition(plan, condition, missing)
    for condition in reused:
        yield from _reuse_clean(plan, condition, finished)


@dataclass(frozen=True, slots=True)
class _Task:
    """One row to be found: a model under a mode, and the row's key."""

    model: PlannedModel
    mode: Schedule
    key: str


def _tasks(plan: Plan, condition: Condition) -> list[_Task]:
    return [_Task(one, mode, plan.key(one, condition, mode)) for one in plan.models for mode in one.schedules]


def _is_whole(plan: Plan, cell: Cell | None) -> bool:
    """Whether a cell is there with all that the plan wants of it; predictions may have been left out before."""
    return cell is not None and (len(cell.predicted) > 0 or not plan.keep_predictions)


def _reuse_clean(plan: Plan, condition: Condition, finished: Finished) -> Iterator[Event]:
    """Sigma 0 leaves every image as it is: its rows are those of `clean`."""
    clean = next(other for other in plan.conditions if other.kind == "clean")
    for one in plan.models:
        for mode in one.schedules:
            key = plan.key(one, condition, mode)
            cell = finished(plan.key(one, clean, mode))
            if cell is not None and not _is_whole(plan, finished(key)):
                yield Finish(key, replace(cell, row=replace(cell.row, condition=condition, seconds=0.0)))
                yield Progress(condition, (mode.mode.name,), plan.limit)


def _run_condition(plan: Plan, condition: Condition, tasks: list[_Task]) -> Iterator[Event]:
    """Degrade the stream of images once and let every task predict it."""
    start = time.perf_counter()
    ranges = find_ranges(plan, condition) if condition.range == "rescale" and condition.kind == "noise" else None
    mark = _degraded(plan, condition, np.arange(min(FINGERPRINT_IMAGES, len(plan.dataset))), ranges)
    digest = fingerprint(mark)
    streams = [_Stream(plan, task) for task in tasks]
    degrading = time.perf_counter() - start
    n = len(plan.dataset)
    for first in range(0, max(stream.end for stream in streams), plan.batch_size):
        last = min(first + plan.batch_size, max(stream.end for stream in streams))
        start = time.perf_counter()
        indices = plan.order[torch.arange(first, last) % n].numpy()
        images = _degraded(plan, condition, indices, ranges)
        degrading += time.perf_counter() - start
        for stream in streams:
            scored = stream.feed(images, first)
            yield Progress(condition, (stream.task.mode.mode.name,), scored)
        if all(stream.stopped for stream in streams):
            break
    for stream in streams:
        extra: dict[str, object] = {"ranges": ranges.to_dict()} if ranges else {}
        cell = stream.cell(condition, digest, degrading / len(streams), extra)
        yield Finish(stream.task.key, cell)


def _degraded(plan: Plan, condition: Condition, indices: np.ndarray, ranges: Ranges | None) -> Tensor:
    images = plan.dataset.read(indices).to(plan.device)
    return degrade(
        images, condition, torch.from_numpy(indices), plan.seed, ranges, suite=plan.suite, textures=plan.textures
    )


def find_ranges(plan: Plan, condition: Condition) -> Ranges:
    """Per-channel extremes of the clean and the noisy images over the whole data set, limited or not."""
    channels = 3
    low = [torch.full((channels,), float("inf")) for _ in range(2)]
    high = [torch.full((channels,), float("-inf")) for _ in range(2)]
    for first in range(0, len(plan.dataset), plan.batch_size):
        indices = np.arange(first, min(first + plan.batch_size, len(plan.dataset)))
        clean = to_float(plan.dataset.read(indices).to(plan.device))
        noisy = add_noise(clean, condition, torch.from_numpy(indices), plan.seed)
        for i, images in enumerate((noisy, clean)):
            low[i] = torch.minimum(low[i], images.amin((0, 2, 3)).cpu())
            high[i] = torch.maximum(high[i], images.amax((0, 2, 3)).cpu())
    return Ranges(low[0], high[0], low[1], high[1])


@dataclass
class _Stream:
    """One task's view of the stream of images: collects whole units, predicts them, keeps a score for every image."""

    plan: Plan
    task: _Task
    pending: Tensor | None = None
    predicted_to: int = 0
    seconds: float = 0.0
    batches: list[dict[str, np.ndarray]] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    looked: int = 0
    stopped: tuple[float, float] | None = None

    @property
    def end(self) -> int:
        """Position in the (wrapped) order where the last unit with a scored image ends."""
        unit = self.task.mode.unit
        return -(-self.plan.limit // unit) * unit

    @property
    def step(self) -> int:
        """Images of one forward pass: as many whole units as the compute batch holds, at least one."""
        unit = self.task.mode.unit
        return max(1, self.plan.batch_size // (unit * (4 if self.task.mode.mode.rot90 else 1))) * unit

    def feed(self, images: Tensor, first: int) -> int:
        """Take images from position `first` on; returns how many scored images were predicted."""
        start = time.perf_counter()
        images = images[: max(self.end - first, 0)]
        pending = images if self.pending is None else torch.cat((self.pending, images))
        last = first + len(images) >= self.end
        ready = len(pending) if last else len(pending) // self.step * self.step
        before = min(self.predicted_to, self.plan.limit)
        for part in torch.split(pending[:ready], self.step):
            if len(part) and not self.stopped:
                self._predict(part)
                self._look()
        self.pending = pending[ready:]
        self.seconds += time.perf_counter() - start
        return min(self.predicted_to, self.plan.limit) - before

    def _predict(self, images: Tensor) -> None:
        positions = torch.arange(self.predicted_to, self.predicted_to + len(images))
        indices = self.plan.order[positions % len(self.plan.dataset)]
        labels = torch.from_numpy(self.plan.dataset.labels[indices.numpy()])
        # Chance is keyed by image alone, so that every condition gives an image the same group.
        group, tie = (
            ImageRng(self.plan.seed, f"predict/{what}", indices).uniform(1)[:, 0] for what in ("group", "tie")
        )
        chance = Chance(group, tie)
        network, schedule = self.task.model.classifier, self.task.mode
        with frozen_state(network):
            logits = predict_logits(network, network.network, images, schedule, chance.group)
            made = decide(logits, chance.tie, labels, n_bins=N_BINS)
            if made.fragile.any():
                settled = self._settled(logits, images, chance, made.fragile)
                made = decide(settled, chance.tie, labels, n_bins=N_BINS)
            log_probabilities = made.log_probabilities.cpu().numpy()
            predicted = made.predicted.cpu().numpy()
        scored = max(0, min(len(images), self.plan.limit - self.predicted_to))
        self.predicted_to += len(images)
        if not scored:
            return
        scores = per_image(log_probabilities[:scored], labels[:scored].numpy())
        self.hits.append(predicted[:scored] == labels[:scored].numpy())
        batch = {
            "index": indices[:scored].numpy(),
            "predicted": predicted[:scored].astype(np.int32),
            **scores._asdict(),
        }
        self.batches.append({name: value for name, value in batch.items() if value is not None})

    def _look(self) -> None:
        """Stop where the interval has become narrow enough.

        Looks are at fixed numbers of images, after whole units, so that it does not matter how much is computed at
        once. The last image is no look: a row that gets there is that of a whole run.
        """
        width, unit = self.plan.manifest.ci_width, self.task.mode.unit
        if width is None:
            return
        every = -(-LOOK // unit) * unit
        hits = np.concatenate(self.hits)
        for n in range(self.looked + every, min(len(hits), self.plan.limit - 1) + 1, every):
            self.looked = n
            self.stopped = narrow_interval(hits[:n], len(self.plan.dataset), width)
            if self.stopped:
                self.predicted_to = self.end  # what is left is done with
                return

    def _settled(self, logits: Tensor, images: Tensor, chance: Chance, fragile: Tensor) -> Tensor:
        """`logits` with the units of fragile images predicted again, each alone and on one thread.

        The last bits of a float32 forward pass differ between batch shapes and thread counts. Where they could change
        a count, one fixed shape decides, so that results do not depend on the compute batch.
        """
        unit = self.task.mode.unit
        network = self.task.model.classifier
        logits = logits.clone()
        with _threads(1):
            for first in (fragile.view(-1, unit).any(1).nonzero()[:, 0] * unit).tolist():
                part = slice(first, first + unit)
                logits[:, part] = predict_logits(
                    network, network.network, images[part], self.task.mode, chance.group[part]
                )
        return logits

    def cell(self, condition: Condition, digest: str, degrading: float, extra: dict[str, object]) -> Cell:
        """Count everything; images go back into data set order."""
        n = self.looked if self.stopped else self.plan.limit
        merged = {name: np.concatenate([batch[name] for batch in self.batches])[:n] for name in self.batches[0]}
        by_index = merged.pop("index").argsort(kind="stable")
        merged = {name: value[by_index] for name, value in merged.items()}
        labels = self.plan.dataset.labels[np.sort(self.plan.order[:n].numpy())]
        counts = count(
            merged["predicted"], merged["confidence"], merged["nll"], merged["brier"], merged.get("top5"), labels
        )
        lost = int((merged["predicted"] < 0).sum())
        row = ResultRow(
            model=self.task.model.info.id,
            mode=self.task.mode.mode.name,
            condition=condition,
            counts=counts,
            fingerprint=digest,
            images=self.task.mode.images,
            seconds=round(self.seconds + degrading, 3),
            anytime=self.stopped,
            extra=extra | ({"non_finite": lost} if lost else {}),
        )
        kept = slice(None) if self.plan.keep_predictions else slice(0)
        return Cell(row, merged["predicted"][kept], merged["confidence"][kept])


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start_worker() -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # what a network's own code prints must not stand among the results
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _read_plan(file: Path) -> Plan:
    # Modules in the current folder, as the parent found them.
    with importable_from_here():
        plan: Plan = pickle.loads(file.read_bytes())
    return plan


def _work(file: Path, index: int, keys: frozenset[str]) -> list[Finish]:
    try:
        plan = _read_plan(file)
    except Exception as error:  # the network's own code is imported and run
        raise _no_workers(error) from error
    condition = plan.conditions[index]
    events = _run_condition(plan, condition, [task for task in _tasks(plan, condition) if task.key in keys])
    return [event for event in events if isinstance(event, Finish)]


def _no_workers(error: Exception) -> UsageError:
    return UsageError(
        "a model or data set cannot be handed to worker processes",
        found=one_line(error),
        hint="--workers 0, or define its class at the top of a module that can be imported",
    )


def _run_in_processes(plan: Plan, todo: list[tuple[Condition, list[_Task]]], workers: int) -> Iterator[Event]:
    """Conditions side by side; rows come as they are done.

    Raises:
        UsageError: the plan cannot be handed to another process.
        ResourceError: a worker was killed.
    """
    try:
        content = pickle.dumps(plan)
    except Exception as error:  # the network's own code may run
        raise _no_workers(error) from error
    with TemporaryDirectory(prefix="lnbench-") as folder:
        # By way of a file: a process that cannot read its start arguments leaves its parent waiting for ever.
        file = Path(folder) / "plan"
        file.write_bytes(content)
        # spawn: a forked child would inherit torch's thread pools and CUDA contexts in an undefined state.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_start_worker)
        futures: dict[Future[list[Finish]], Condition] = {}
        try:
            for condition, missing in todo:
                keys = frozenset(task.key for task in missing)
                futures[pool.submit(_work, file, plan.conditions.index(condition), keys)] = condition
            for future in as_completed(futures):
                finishes = future.result()
                yield from finishes
                names = tuple(dict.fromkeys(finish.cell.row.mode for finish in finishes))
                yield Progress(futures[future], names, len(finishes) * plan.limit)
        except BrokenProcessPool as error:
            raise ResourceError(
                "a worker process died",
                found=f"{workers} workers, {one_line(error)}",
                hint="fewer --workers (memory?); in a script of yours, call evaluate under if __name__ == '__main__'",
            ) from error
        except BaseException:
            for process in (pool._processes or {}).values():
                os.kill(process.pid, signal.SIGTERM)  # type: ignore[arg-type]
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
