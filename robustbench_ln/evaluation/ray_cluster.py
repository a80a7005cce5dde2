"""Jobs on a Ray cluster of the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from robustbench_ln.errors import LnbenchError, ResourceError
from robustbench_ln.evaluation.processes import finishes, pack, progress_of, unpack
from robustbench_ln.evaluation.work import Finish, Job, Outcome, Progress
from robustbench_ln.models.imports import one_line
from robustbench_ln.planning import Plan


class RayCluster:
    """Jobs as Ray tasks of one CPU each, and one GPU where the plan's device is one.

    Nodes need lnbench and, under the same paths, the files of the data set. A task whose node or process dies is tried
    once more.

    Args:
        address: of the cluster; where it is empty, the one that ``RAY_ADDRESS`` or Ray itself knows, else a new one on
            this machine.

    Raises:
        ResourceError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str = "") -> None:
        self._ray = _import_ray()
        self.address = address

    def outcomes(self, plan: Plan, jobs: Sequence[Job]) -> Iterator[Outcome | Progress]:
        """See :class:`~robustbench_ln.evaluation.Executor`."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            _connect(ray, self.address)
        try:
            content = ray.put(pack(plan))
            gpus = 1 if plan.device.startswith("cuda") else 0
            task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(_work)
            left = {task.remote(content, job): job for job in jobs}
            while left:
                (reference, *_), _ = ray.wait(list(left), num_returns=1)
                job = left.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    result = one_line(error)
                if isinstance(result, LnbenchError):
                    raise result
                yield job, result
                if not isinstance(result, str):
                    yield progress_of(plan, job, result)
        finally:
            if started:
                ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address or None, log_to_driver=False, include_dashboard=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            "the Ray cluster cannot be reached", found=f"{address}: {one_line(error)}", hint="ray status"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ResourceError(
            "--engine ray needs Ray", found="ray is not installed", hint="pip install 'lnbench[ray]'"
        ) from None
    return ray


_plans: dict[int, Plan] = {}  # of this Ray worker, by the hash of its bytes


def _work(content: bytes, job: Job) -> list[Finish] | str | LnbenchError:
    """In the worker. Errors of ours are values: Ray would wrap them into a class of its own."""
    import torch

    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    try:
        name = hash(content)
        if name not in _plans:
            _plans.clear()
            _plans[name] = unpack(content)
        return finishes(_plans[name], job)
    except LnbenchError as error:
        return error
