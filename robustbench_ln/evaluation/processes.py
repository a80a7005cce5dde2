"""Jobs in worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from robustbench_ln.errors import LnbenchError, UsageError
from robustbench_ln.evaluation.jobs import carry_out
from robustbench_ln.evaluation.work import Finish, Job, Outcome, Progress
from robustbench_ln.models.imports import importable_from_here, one_line
from robustbench_ln.planning import Plan


def pack(plan: Plan) -> bytes:
    """A plan for another process.

    Raises:
        UsageError: it cannot be handed over.
    """
    try:
        return pickle.dumps(plan)
    except Exception as error:  # the network's own code may run
        raise _no_workers(error) from error


def unpack(content: bytes) -> Plan:
    """The inverse of :func:`pack`, in the other process.

    Raises:
        UsageError: the plan cannot be read there.
    """
    try:
        # Modules in the current folder, as the parent found them.
        with importable_from_here():
            plan: Plan = pickle.loads(content)
    except Exception as error:  # the network's own code is imported and run
        raise _no_workers(error) from error
    return plan


def finishes(plan: Plan, job: Job) -> list[Finish] | str:
    """What a job gives, or the reason why it failed."""
    try:
        return [event for event in carry_out(plan, job) if isinstance(event, Finish)]
    except LnbenchError:
        raise
    except Exception as error:  # the network's own code ran, or memory ran out
        return one_line(error)


def progress_of(plan: Plan, job: Job, result: list[Finish]) -> Progress:
    """What there is to say of a job that was done out of sight."""
    names = tuple(dict.fromkeys(finish.cell.row.mode for finish in result))
    return Progress(plan.conditions[job.condition], names, len(result) * job.size)


class Processes:
    """Jobs side by side in processes of this machine.

    A process that dies takes the jobs at work with it. Each is tried once more, alone; the one that kills its process
    again has failed, and the others go on.

    Args:
        workers: how many processes, each with one thread.
        devices: where their networks run, dealt out in turn; the plan's device when left out.
    """

    def __init__(self, workers: int, devices: Sequence[str] = ()) -> None:
        self.workers, self.devices = workers, tuple(devices)

    def outcomes(self, plan: Plan, jobs: Sequence[Job]) -> Iterator[Outcome | Progress]:
        """See :class:`~robustbench_ln.evaluation.Executor`."""
        if not jobs:
            return
        with TemporaryDirectory(prefix="lnbench-") as folder:
            # By way of a file: a process that cannot read its start arguments leaves its parent waiting for ever.
            file = Path(folder) / "plan"
            file.write_bytes(pack(plan))
            left = dict.fromkeys(jobs)
            while left:
                suspects: list[Job] = []
                for job, result in self._round(file, list(left), self.workers, suspects):
                    del left[job]
                    yield job, result
                    if not isinstance(result, str):
                        yield progress_of(plan, job, result)
                for job in suspects:
                    again: list[Job] = []
                    for _, result in self._round(file, [job], 1, again):
                        yield job, result
                        if not isinstance(result, str):
                            yield progress_of(plan, job, result)
                    if again:
                        yield job, "its worker process died, twice: out of memory?"
                    del left[job]

    def _round(
        self, file: Path, jobs: Sequence[Job], workers: int, suspects: list[Job]
    ) -> Iterator[tuple[Job, list[Finish] | str]]:
        """Carry out jobs until they are done or a process dies; then `suspects` are those that were at work."""
        with self._pool(min(workers, len(jobs))) as pool:
            futures: dict[Future[list[Finish] | str], Job] = {pool.submit(_work, file, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    yield futures.pop(future), result
            except BrokenProcessPool:
                # Jobs are begun in order, and the pool has one more at hand than it has processes.
                suspects += list(futures.values())[: workers + 1]

    @contextmanager
    def _pool(self, workers: int) -> Iterator[ProcessPoolExecutor]:
        # spawn: a forked child would inherit torch's thread pools and CUDA contexts in an undefined state.
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()
        for i in range(workers):
            devices.put(self.devices[i % len(self.devices)] if self.devices else "")
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(devices,))
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():
                os.kill(process.pid, signal.SIGTERM)  # type: ignore[arg-type]
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_device = ""  # of this worker process; empty for the plan's own


def _start_worker(devices: Any) -> None:
    global _device
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # what a network's own code prints must not stand among the results
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _device = devices.get()


@cache
def _read_plan(file: Path) -> Plan:
    plan = unpack(file.read_bytes())
    return plan.on(_device) if _device else plan


def _work(file: Path, job: Job) -> list[Finish] | str:
    return finishes(_read_plan(file), job)


def _no_workers(error: Exception) -> UsageError:
    return UsageError(
        "a model or data set cannot be handed to worker processes",
        found=one_line(error),
        hint="--workers 0, or define its class at the top of a module that can be imported",
    )
