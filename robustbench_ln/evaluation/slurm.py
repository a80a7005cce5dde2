"""Jobs as an array of a Slurm cluster, submitted and watched through submitit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustbench_ln.errors import LnbenchError, ResourceError
from robustbench_ln.evaluation.processes import finishes, pack, progress_of, unpack
from robustbench_ln.evaluation.work import Finish, Job, Outcome, Progress
from robustbench_ln.models.imports import one_line
from robustbench_ln.planning import Plan
from robustbench_ln.results import Cell, cell_file, write_bytes

_POLL = 1.0  # seconds between looks at what has come


class Slurm:
    """Jobs shared out over the tasks of a job array; their cells come back through a shared folder.

    Cells stay in the folder until they are fetched: a task, or this process, that is killed loses nothing that was
    finished. ``SBATCH_PARTITION`` and the other variables of sbatch are honoured.

    Args:
        folder: on a file system that all nodes share.
        tasks: of the array, at most.
        local: run the tasks as processes of this machine, as submitit does for trials.

    Raises:
        ResourceError: submitit is not installed.
    """

    def __init__(self, folder: Path, *, tasks: int = 16, local: bool = False) -> None:
        self._submitit = _import_submitit()
        self.folder, self.tasks, self.local = folder, tasks, local

    def outcomes(self, plan: Plan, jobs: Sequence[Job]) -> Iterator[Outcome | Progress]:
        """See :class:`~robustbench_ln.evaluation.Executor`."""
        left = dict.fromkeys(jobs)
        yield from self._fetched(plan, left)  # what an earlier submission left
        if not left:
            return
        handles = self._submit(plan, list(left))
        try:
            while left and not all(handle.done() for handle in handles):
                time.sleep(_POLL)
                yield from self._fetched(plan, left)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        yield from self._fetched(plan, left)
        reasons = _reasons(handles)
        for job in left:
            yield job, reasons.get(job, reasons[None])

    def _submit(self, plan: Plan, jobs: Sequence[Job]) -> list[Any]:
        write_bytes(self.folder / "plan", pack(plan))
        executor = self._submitit.AutoExecutor(folder=self.folder / "logs", cluster="local" if self.local else "slurm")
        gpus = {"gpus_per_node": 1} if plan.device.startswith("cuda") else {}
        executor.update_parameters(name="lnbench", cpus_per_task=1, timeout_min=24 * 60, **gpus)
        n = min(self.tasks, len(jobs))
        handles: list[Any] = executor.map_array(_work, [self.folder] * n, [jobs[i::n] for i in range(n)])
        return handles

    def _fetched(self, plan: Plan, left: dict[Job, None]) -> Iterator[Outcome | Progress]:
        """Jobs of `left` whose cells have all come; they leave it, and their files the folder."""
        for job in list(left):
            files = {key: cell_file(self.folder, key) for key in sorted(job.keys)}
            if not all(file.exists() for file in files.values()):
                continue
            try:
                result = [Finish(key, Cell.from_bytes(file.read_bytes())) for key, file in files.items()]
            except (ValueError, KeyError, TypeError):  # damaged: to be done again
                result = []
            if result:
                del left[job]
                yield job, result
                yield progress_of(plan, job, result)
            for file in files.values():
                file.unlink(missing_ok=True)


def _reasons(handles: Sequence[Any]) -> dict[Job | None, str]:
    """Why jobs failed; under None, why any other did.

    Raises:
        LnbenchError: what a task raised.
    """
    reasons: dict[Job | None, str] = {None: "its task ended early"}
    for handle in handles:
        try:
            result = handle.result()
        except Exception as error:  # submitit's: killed, out of time, no log
            reasons[None] = one_line(error)
            continue
        if isinstance(result, LnbenchError):
            raise result
        reasons |= result
    return reasons


def _work(folder: Path, jobs: Sequence[Job]) -> dict[Job, str] | LnbenchError:
    """In a task of the array: carry out jobs, put their cells into the folder, return what failed."""
    import torch

    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    failed: dict[Job, str] = {}
    try:
        plan = unpack((folder / "plan").read_bytes())
        for job in jobs:
            result = finishes(plan, job)
            if isinstance(result, str):
                failed[job] = result
                continue
            for finish in result:
                write_bytes(cell_file(folder, finish.key), finish.cell.to_bytes())
    except LnbenchError as error:
        return error
    return failed


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ResourceError(
            "--engine slurm needs submitit", found="submitit is not installed", hint="pip install 'lnbench[slurm]'"
        ) from None
    return submitit
