"""The engine: which rows a plan lacks, cut into jobs; who carries them out; rows put together from what comes back.

Rows depend on the plan alone: nothing here prints, and nothing touches a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from robustbench_ln.errors import LnbenchError
from robustbench_ln.evaluation.predicting import run_condition
from robustbench_ln.evaluation.work import Event, Executor, Failure, Finish, Job, Outcome, Progress, Task
from robustbench_ln.models.imports import one_line
from robustbench_ln.planning import Plan
from robustbench_ln.results import Cell
from robustbench_ln.types import Condition, Counts, ResultRow

Finished = Callable[[str], Cell | None]


def total_images(plan: Plan) -> int:
    """How many image predictions a whole run counts; the sum of all :class:`Progress` images."""
    return len(plan.conditions) * sum(len(one.schedules) for one in plan.models) * plan.limit


def run(
    plan: Plan,
    finished: Finished,
    *,
    executor: Executor | None = None,
    shard: tuple[int, int] = (1, 1),
) -> Iterator[Event]:
    """Evaluate what is missing.

    Args:
        plan: from :func:`~robustbench_ln.planning.plan_run`.
        finished: gives the cell of a key that is done already, else None. It must know the cells yielded so far.
        executor: where; in this process when left out. Changes no number.
        shard: (i, n): only the i-th of n parts of the work.

    Yields: :class:`Progress` while it works, :class:`Finish` for every new row or part of one, :class:`Failure` for
        rows that could not be found.
    """
    i, n = shard
    rows: dict[str, Task] = {}
    jobs: dict[tuple[int, int, int], set[str]] = {}
    reused: list[Condition] = []
    for place, condition in enumerate(plan.conditions):
        tasks = _tasks(plan, condition)
        missing = [task for task in tasks if not _is_whole(plan, finished(task.key))]
        done = (len(tasks) - len(missing)) * plan.limit
        if done:
            yield Progress(condition, (), done)
        if not missing:
            continue
        # A shard may lack the clean rows.
        if repeats_clean(condition) and n == 1:
            reused.append(condition)
            continue
        for task in missing:
            rows[task.key] = task
            for first, size in _blocks(plan, task):
                key = _part_key(plan, task, first)
                if key != task.key and _is_whole(plan, finished(key)):
                    yield Progress(condition, (), size)
                else:
                    jobs.setdefault((place, first, size), set()).add(key)
    mine = [Job(*where, frozenset(keys)) for where, keys in jobs.items()][i - 1 :: n]
    failed: set[str] = set()
    for outcome in (executor or InProcess()).outcomes(plan, mine):
        if isinstance(outcome, Progress):
            yield outcome
            continue
        job, result = outcome
        if isinstance(result, str):
            lost = {key.partition("-")[0] for key in job.keys} - failed
            failed |= lost
            yield from (Failure(_failed(rows[key], result)) for key in sorted(lost))
            continue
        yield from result
        for finish in result:
            key, _, part = finish.key.partition("-")
            if part:
                yield from _joined(plan, rows[key], finished)
    for condition in reused:
        yield from _reuse_clean(plan, condition, finished)


def _tasks(plan: Plan, condition: Condition) -> list[Task]:
    return [Task(one, condition, mode, plan.key(one, condition, mode)) for one in plan.models for mode in one.schedules]


# Images of a job, about: a few minutes of a large network on a CPU are lost at most, and a job costs nothing
# beside its forward passes.
_BLOCK = 16_384


def rows_to_find(plan: Plan, finished: Finished) -> list[Task]:
    """The rows of a plan that must be predicted: those that are not done, but for repetitions of `clean`."""
    return [
        task
        for condition in plan.conditions
        if not repeats_clean(condition)
        for task in _tasks(plan, condition)
        if not _is_whole(plan, finished(task.key))
    ]


def repeats_clean(condition: Condition) -> bool:
    """Whether a condition leaves every image as it is."""
    return condition.kind == "noise" and condition.level == 0


def _blocks(plan: Plan, task: Task) -> list[tuple[int, int]]:
    """First image and number of images of every block of a row; blocks end where sets of images do."""
    if plan.manifest.ci_width is not None:
        return [(0, plan.limit)]  # looks go on from image to image
    size = -(-_BLOCK // task.mode.unit) * task.mode.unit
    return [(first, min(size, plan.limit - first)) for first in range(0, plan.limit, size)]


def _part_key(plan: Plan, task: Task, first: int) -> str:
    return task.key if len(_blocks(plan, task)) == 1 else f"{task.key}-{first}"


def _joined(plan: Plan, task: Task, finished: Finished) -> Iterator[Finish]:
    """The row whose parts are all there."""
    keys = [_part_key(plan, task, first) for first, _ in _blocks(plan, task)]
    cells = [cell for cell in map(finished, keys) if cell is not None]
    if len(cells) == len(keys):
        indices = [plan.order[first : first + size].sort().values.numpy() for first, size in _blocks(plan, task)]
        yield Finish(task.key, Cell.joined(cells, indices), tuple(keys))


def _failed(task: Task, reason: str) -> ResultRow:
    return ResultRow(
        model=task.model.info.id,
        mode=task.mode.mode.name,
        condition=task.condition,
        counts=Counts(0, 0, None, 0.0, 0.0),
        fingerprint="",
        images=task.mode.images,
        seconds=0.0,
        status="failed",
        extra={"reason": reason},
    )


def carry_out(plan: Plan, job: Job) -> Iterator[Finish | Progress]:
    """Do a job's work in this process."""
    condition = plan.conditions[job.condition]
    part = plan.block(job.first, job.size)
    tasks = []
    for task in _tasks(plan, condition):
        for first, size in _blocks(plan, task):
            key = _part_key(plan, task, first)
            if (first, size) == (job.first, job.size) and key in job.keys:
                tasks.append(replace(task, key=key))
    yield from run_condition(part, condition, tasks)


class InProcess:
    """Jobs one after the other, in this process."""

    def outcomes(self, plan: Plan, jobs: Sequence[Job]) -> Iterator[Outcome | Progress]:
        """See :class:`Executor`."""
        for job in jobs:
            done = []
            try:
                for event in carry_out(plan, job):
                    if isinstance(event, Finish):
                        done.append(event)
                    else:
                        yield event
            except LnbenchError:
                raise
            except Exception as error:  # the network's own code ran, or memory ran out
                yield job, one_line(error)
            else:
                yield job, done


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
