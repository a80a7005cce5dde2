"""What a whole sweep costs, in units of the forward passes that it cannot do without."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_ln import evaluation
from robustbench_ln.benchmarks.corruptions import sample_images
from robustbench_ln.benchmarks.timing import machine, on_one_core
from robustbench_ln.corruptions import to_float
from robustbench_ln.data import ArrayDataset
from robustbench_ln.errors import unknown_name
from robustbench_ln.evaluation import Finish, Processes
from robustbench_ln.models import build_network
from robustbench_ln.norms import convert_to_localnorm, frozen_state
from robustbench_ln.planning import Plan, plan_run


@dataclass(frozen=True, slots=True)
class _Case:
    """A sweep to time: all corruptions and severities of a network's suite, under some modes."""

    network: str
    size: int
    modes: str
    n_groups: int = 0
    severities: str = "1:5"

    def build(self) -> nn.Module:
        # Weights do not matter for the time, but logits without ties do.
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = build_network(self.network, num_classes=10)
        return convert_to_localnorm(network, self.n_groups) if self.n_groups else network


CASES = {
    "resnet20": _Case("resnet20", 32, "bn"),
    "mobilenet_v3_small": _Case("mobilenet_v3_small", 224, "bn"),
    # One severity, for every mode counts as often as it has forward passes: 54 an image.
    "resnet20-ln": _Case("resnet20", 32, "all", n_groups=8, severities="3"),
}


def bench_sweep(
    *,
    network: Sequence[str] = tuple(CASES),
    images: int = 256,
    batch_size: int = 128,
    threads: int = 1,
    workers: int = 2,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Time sweeps over all 19 corruptions, each beside the plain forward passes of the same network in the same run.

    After every condition the plain passes are timed too, so that both see the same noise of the machine. Plain is an
    evaluation loop over images that are ready in memory, in the faster of both memory formats.

    Args:
        network: names of :data:`CASES`.
        images: of the data set.
        batch_size: images computed at once, in the sweep and in the plain passes.
        threads: of torch; with 1 the whole process is pinned to a core.
        workers: processes of the second measurement, against one; below 2 for none.
        on_row: called with every row as it is done.

    Returns: ``{"schema_version", "machine", "threads", "pinned", "rows"}``; of a row, `ratio` is the time of the sweep
        over that of its plain forward passes, all `passes` an image counted.

    Raises:
        UsageError: no such network.
    """
    for name in network:
        if name not in CASES:
            raise unknown_name("network", name, CASES)
    rows: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        rows.append(row)
        if on_row is not None:
            on_row(row)

    for name in network:
        case = CASES[name]
        with on_one_core(threads) as pinned:
            for row in _measure(case, images, batch_size):
                say(row)
        if workers > 1:
            say(_with_workers(case, images, batch_size, workers))
    return {"schema_version": 1, "machine": machine(), "threads": threads, "pinned": pinned, "rows": rows}


def _plan(case: _Case, images: int, batch_size: int) -> Plan:
    pixels = sample_images(case.size, images)
    data = ArrayDataset(pixels.permute(0, 2, 3, 1).numpy(), np.arange(images) % 10, id="bench")
    return plan_run(
        case.build(),
        data,
        corruption="all",
        severity=case.severities,
        modes=case.modes,
        batch_size=batch_size,
        device="cpu",
        normalize="none",
    )


def _measure(case: _Case, images: int, batch_size: int) -> Iterator[dict[str, Any]]:
    plan = _plan(case, images, batch_size)
    network = plan.models[0].classifier
    ready = to_float(plan.dataset.read(range(images)))
    names = [cut.mode.name for cut in plan.models[0].schedules]
    passes = {cut.mode.name: cut.passes for cut in plan.models[0].schedules}
    seconds = dict.fromkeys(names, 0.0)
    sweep = forward = 0.0
    with _plain(network, ready, batch_size) as once:
        start = time.perf_counter()
        done = 0
        for event in evaluation.run(plan, lambda _: None):
            if not isinstance(event, Finish):
                continue
            seconds[event.cell.row.mode] += event.cell.row.seconds
            done += 1
            if done % len(names) == 0:
                sweep += time.perf_counter() - start
                forward += once()
                start = time.perf_counter()
    conditions = len(plan.conditions)
    predictions = images * conditions
    head = {"network": case.network, "size": case.size, "norm": plan.models[0].info.norm, "workers": 0}
    total = {"mode": "+".join(names), "passes": sum(passes.values()), "seconds": sweep}
    each = [{"mode": name, "passes": passes[name], "seconds": seconds[name]} for name in names]
    for row in [*(each if len(names) > 1 else ()), total]:
        yield {
            **head,
            **row,
            "images": predictions,
            "images_per_second": predictions / row["seconds"],
            "forward_images_per_second": predictions / forward,
            "ratio": row["seconds"] / (forward * row["passes"]),
        }


@contextmanager
def _plain(network: nn.Module, images: Tensor, batch_size: int) -> Iterator[Callable[[], float]]:
    """Gives a function that takes the seconds of plain forward passes, in the memory format that is the faster one."""
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    contestants = [(network, images), (twin, images.contiguous(memory_format=torch.channels_last))]

    def seconds(network: nn.Module, images: Tensor) -> float:
        start = time.perf_counter()
        for batch in torch.split(images, batch_size):
            network(batch)
        return time.perf_counter() - start

    with frozen_state(network), frozen_state(twin):
        trials = [[seconds(*one) for one in contestants] for _ in range(4)][1:]
        best = min(range(2), key=lambda i: median(trial[i] for trial in trials))
        yield lambda: seconds(*contestants[best])


def _with_workers(case: _Case, images: int, batch_size: int, workers: int) -> dict[str, Any]:
    """One worker process, then several, on the same sweep."""
    plan = _plan(case, images, batch_size)
    seconds = []
    for n in (1, workers):
        start = time.perf_counter()
        for _ in evaluation.run(plan, lambda _: None, executor=Processes(n)):
            pass
        seconds.append(time.perf_counter() - start)
    predictions = images * len(plan.conditions) * len(plan.models[0].schedules)
    return {
        "network": case.network,
        "size": case.size,
        "norm": plan.models[0].info.norm,
        "mode": case.modes,
        "workers": workers,
        "images": predictions,
        "seconds": seconds[1],
        "images_per_second": predictions / seconds[1],
        "speedup": seconds[0] / seconds[1],
    }
