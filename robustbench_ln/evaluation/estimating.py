"""What a run will cost, before it is begun."""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_ln.corruptions import to_float
from robustbench_ln.errors import UsageError
from robustbench_ln.evaluation.jobs import Finished, repeats_clean, rows_to_find, run
from robustbench_ln.norms import frozen_state
from robustbench_ln.planning import Plan, stratified_order

_CALIBRATION = 2.0  # seconds
_SAMPLE = 32  # images of one measurement, about
_ROW_BYTES = 2_000  # of a row's file and its entry in the documents, besides predictions
_PREDICTION_BYTES = 12  # of an image's class and confidence: in the row's file, and compressed in the archive


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of what is still to do.

    Attributes:
        cells: rows to be found.
        forward_passes: passes of single images, rotations and votes counted.
        seconds: of this machine, with one process.
        memory_bytes: weights, and what one compute batch needs in a forward pass.
        disk_bytes: of the run folder.
    """

    cells: int
    forward_passes: int
    seconds: float
    memory_bytes: int
    disk_bytes: int

    def to_dict(self) -> dict[str, int | float]:
        """For JSON."""
        return asdict(self)


def estimate(plan: Plan, finished: Finished = lambda _: None) -> Estimate:
    """What it takes to carry out a plan, from a calibration of about two seconds.

    Args:
        plan: from :func:`~robustbench_ln.planning.plan_run`.
        finished: gives the cells that are done already.
    """
    missing = rows_to_find(plan, finished)
    kept = _PREDICTION_BYTES * plan.limit if plan.keep_predictions else 0
    per_image = _seconds_per_image(plan) if missing else 0.0
    conditions = len({task.condition for task in missing})
    return Estimate(
        cells=len(missing),
        forward_passes=plan.limit * sum(task.mode.passes for task in missing),
        seconds=round(per_image * plan.limit * conditions, 1),
        memory_bytes=_memory(plan),
        disk_bytes=len(missing) * (_ROW_BYTES + kept),
    )


def within(plan: Plan, seconds: float) -> Plan:
    """The plan for as many images as can be evaluated in a time, of every class its share.

    Args:
        plan: of whole data.
        seconds: for everything that is still to do, with one process.

    Returns: a plan whose order has the classes evenly mixed, limited to what fits; `plan` itself where all fits.

    Raises:
        UsageError: not even a single image of each class fits.
    """
    per_image = _seconds_per_image(plan) * sum(not repeats_clean(one) for one in plan.conditions)
    fits = int(seconds / per_image)
    if fits >= plan.limit:
        return plan
    classes = len(plan.dataset.classes)
    if fits < classes:
        raise UsageError(
            "the budget is too small",
            found=f"{seconds:g} s for {classes} classes of an image each, {per_image:.3g} s an image",
            hint=f"--budget {round(per_image * classes * 2) + 1}s or more, or fewer conditions",
        )
    return plan.reordered(stratified_order(plan.order, plan.dataset.labels)).limited(fits)


def fit_batch(plan: Plan) -> Plan:
    """The plan with a compute batch that half of the free memory holds; at most 128 on a CPU, 1,024 elsewhere."""
    if plan.device.startswith("cuda"):
        free, most = torch.cuda.mem_get_info(plan.device)[0], 1024
    else:
        free, most = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 128 if plan.device == "cpu" else 1024
    image = to_float(plan.dataset.read([0])).to(plan.device)
    each = max(_activations(one.classifier, image) for one in plan.models) + image.nbytes
    size = max(1, min(most, free // 2 // each))
    return replace(plan, batch_size=2 ** (size.bit_length() - 1))


_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Seconds of ``90s``, ``10min`` or ``2h``.

    Raises:
        UsageError: anything else.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", text.strip())
    seconds = float(parts[1]) * _UNITS[parts[2]] if parts else 0.0
    if not seconds:
        raise UsageError("--budget is not a time", found=text, hint="--budget 90s, 10min or 2h")
    return seconds


def _seconds_per_image(plan: Plan) -> float:
    """Of one condition under all models and modes: conditions from all over the plan, on the first few images."""
    units = max(cut.unit for one in plan.models for cut in one.schedules)
    sample = plan.block(0, min(max(_SAMPLE, units), plan.limit))
    # Far-apart conditions first: the cheap and the dear stand together in a plan.
    conditions = [one for one in plan.conditions if not repeats_clean(one)]
    stride = max(1, len(conditions) // 7)
    spread = [one for first in range(stride) for one in conditions[first::stride]]
    times: list[float] = []
    begun = time.perf_counter()
    for condition in [spread[0], *spread]:  # the first time, networks are prepared
        start = time.perf_counter()
        for _ in run(replace(sample, conditions=(condition,)), lambda _: None):
            pass
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begun > _CALIBRATION and len(times) > 1:
            break
    measured = times[1:] or times
    return sum(measured) / len(measured) / sample.limit


def _memory(plan: Plan) -> int:
    """Weights of all networks, and the largest forward pass of a compute batch: everything that its layers give."""
    image = to_float(plan.dataset.read([0])).to(plan.device)
    weights, largest = 0, 0
    for one in plan.models:
        weights += sum(value.nbytes for value in one.classifier.state_dict().values())
        largest = max(largest, _activations(one.classifier, image))
    return weights + plan.batch_size * (largest + image.nbytes)


def _activations(network: nn.Module, image: Tensor) -> int:
    """Bytes of all outputs of a network's layers for one image."""
    total = 0

    def add(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    handles = [
        layer.register_forward_hook(add) for layer in network.modules() if not isinstance(layer, torch.jit.ScriptModule)
    ]
    try:
        with frozen_state(network):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return total
