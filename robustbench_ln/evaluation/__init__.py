"""Carrying out a plan: the engine, and where its jobs run."""

from robustbench_ln.evaluation.engines import choose_engine
from robustbench_ln.evaluation.estimating import Estimate, estimate, fit_batch, parse_time, within
from robustbench_ln.evaluation.jobs import InProcess, run, total_images
from robustbench_ln.evaluation.predicting import LOOK, find_ranges
from robustbench_ln.evaluation.processes import Processes
from robustbench_ln.evaluation.work import Event, Executor, Failure, Finish, Job, Progress

__all__ = [
    "LOOK",
    "Estimate",
    "Event",
    "Executor",
    "Failure",
    "Finish",
    "InProcess",
    "Job",
    "Processes",
    "Progress",
    "choose_engine",
    "estimate",
    "find_ranges",
    "fit_batch",
    "parse_time",
    "run",
    "total_images",
    "within",
]
