"""Carrying out a plan: the engine, and where its jobs run."""

from robustbench_ln.evaluation.engine import (
    Event,
    Executor,
    Failure,
    Finish,
    InProcess,
    Job,
    Progress,
    find_ranges,
    run,
    total_images,
)
from robustbench_ln.evaluation.engines import choose_engine
from robustbench_ln.evaluation.processes import Processes

__all__ = [
    "Event",
    "Executor",
    "Failure",
    "Finish",
    "InProcess",
    "Job",
    "Processes",
    "Progress",
    "choose_engine",
    "find_ranges",
    "run",
    "total_images",
]
