"""Taking times on shared, noisy machines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

_Name = TypeVar("_Name")
_SHORTEST = 0.05  # seconds of a single measurement, so that the clock and the scheduler hardly matter


def per_second(work: Callable[[], object], items: int) -> float:
    """Items a second of one measurement: `work` is called until it has taken long enough."""
    start = time.perf_counter()
    calls = 0
    while (taken := time.perf_counter() - start) < _SHORTEST or not calls:
        work()
        calls += 1
    return items * calls / taken


def side_by_side(works: Mapping[_Name, Callable[[], object]], repeats: int, *, threads: int) -> dict[_Name, float]:
    """Median seconds of a call of each, measured in turn so that all meet the same moods of the machine.

    With one thread it is the processor's time that counts, which other programs on the machine disturb least.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    taken: dict[_Name, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()  # the first call allocates and looks up, and is not measured
    for i in range(repeats):
        # There and back, so that nobody always has the same neighbours.
        for name, work in list(works.items())[:: -1 if i % 2 else 1]:
            start, calls = clock(), 0
            while (spent := clock() - start) < _SHORTEST or not calls:
                work()
                calls += 1
            taken[name].append(spent / calls)
    return {name: median(times) for name, times in taken.items()}


@contextmanager
def on_one_core(threads: int) -> Iterator[bool]:
    """With one thread, keep this process and the children it starts on one core, where the system can do that.

    Yields: whether it did.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    pinned = threads == 1 and bool(cores)
    if pinned:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield pinned
    finally:
        if pinned:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """What the times depend on, for a reader."""
    model = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
