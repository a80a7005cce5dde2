"""The engines that `--engine` names. A new engine is a new row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustbench_ln.errors import UsageError, unknown_name
from robustbench_ln.evaluation.jobs import InProcess
from robustbench_ln.evaluation.processes import Processes
from robustbench_ln.evaluation.work import Executor


def _local(argument: str, workers: int, devices: Sequence[str], folder: Path) -> Executor:  # noqa: ARG001
    return Processes(max(workers, len(devices)), devices) if workers or len(devices) > 1 else InProcess()


def _ray(argument: str, workers: int, devices: Sequence[str], folder: Path) -> Executor:  # noqa: ARG001
    from robustbench_ln.evaluation.ray_cluster import RayCluster

    return RayCluster(argument)


def _slurm(argument: str, workers: int, devices: Sequence[str], folder: Path) -> Executor:  # noqa: ARG001
    from robustbench_ln.evaluation.slurm import Slurm

    if argument not in ("", "local"):
        raise UsageError(f"engine slurm takes no {argument!r}", found=f"slurm:{argument}", hint="slurm or slurm:local")
    return Slurm(folder, tasks=workers or 16, local=argument == "local")


ENGINES: dict[str, Callable[[str, int, Sequence[str], Path], Executor]] = {
    "local": _local,
    "ray": _ray,
    "slurm": _slurm,
}


def choose_engine(text: str, *, workers: int, devices: Sequence[str], folder: Path) -> Executor:
    """What carries out the jobs of a run.

    Args:
        text: ``local``, ``ray[:ADDRESS]`` or ``slurm[:local]``.
        workers: processes of this machine (0 for this process alone), or tasks of a Slurm array.
        devices: where networks run; several share the processes.
        folder: where an engine may keep what its nodes exchange.

    Raises:
        UsageError: no such engine.
        ResourceError: its package is not installed.
    """
    name, _, argument = text.partition(":")
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    return ENGINES[name](argument, workers, devices, folder)
