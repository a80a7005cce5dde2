"""What is compared: weighted sums over conditions. A new metric is a function and a row of `METRICS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robustbench_ln.comparing.matching import without_repeat
from robustbench_ln.errors import IncompleteError, TrustError
from robustbench_ln.metrics.mce import ALEXNET_ERROR, SEVERITIES, STANDARD
from robustbench_ln.types import Condition

Loss = Literal["error", "gap"]
"""What an image can lose in a condition: being wrong, or its bin's distance of accuracy from confidence."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric as a weighted sum of losses, so that a *drop* (a worsening) is new minus old for all metrics.

    Attributes:
        name: of the metric.
        terms: conditions and their weights.
        loss: what is summed.
        rising: whether more is better; the value is then one minus the sum.
        about: which conditions, in words.
    """

    name: str
    terms: tuple[tuple[Condition, float], ...]
    loss: Loss
    rising: bool
    about: str

    @property
    def scale(self) -> float:
        """The sum of the weights: the most that can be lost."""
        return sum(weight for _, weight in self.terms)

    def value(self, lost: float) -> float:
        """The metric's value, from the weighted sum of mean losses."""
        return self.scale - lost if self.rising else lost


Selected = Sequence[Condition]
Make = Callable[[Selected, bool], Measure | None]
"""From the conditions, and whether somebody chose them, to a measure; None where the metric means none of them."""


def _accuracy(conditions: Selected, chosen: bool) -> Measure | None:
    used = conditions if chosen else degraded(conditions) or conditions
    return _mean("accuracy", used, "error", rising=True)


def _clean_accuracy(conditions: Selected, chosen: bool) -> Measure | None:  # noqa: ARG001 - clean is clean
    return _mean("clean_accuracy", [one for one in conditions if one.kind == "clean"], "error", rising=True)


def _ece(conditions: Selected, chosen: bool) -> Measure | None:
    used = conditions if chosen else degraded(conditions) or conditions
    return _mean("ece", used, "gap", rising=False)


def _auc(conditions: Selected, chosen: bool) -> Measure | None:  # noqa: ARG001 - curves are of noises
    curves: dict[tuple[str, str], dict[float, list[Condition]]] = {}
    for one in conditions:
        if one.kind == "noise":
            curves.setdefault((one.name, one.range), {}).setdefault(one.level, []).append(one)
    curves = {key: levels for key, levels in curves.items() if len(levels) > 1}
    terms: list[tuple[Condition, float]] = []
    for levels in curves.values():
        x = np.array(sorted(levels))
        # The trapezoid rule as weights: half of the two neighbouring intervals, over the grid's width.
        steps = np.diff(x, prepend=x[0], append=x[-1])
        weights = (steps[1:] + steps[:-1]) / 2 / (x[-1] - x[0])
        for level, weight in zip(x.tolist(), weights.tolist(), strict=True):
            share = weight / len(levels[level]) / len(curves)
            terms += [(condition, share) for condition in levels[level]]
    names = ", ".join(name for name, _ in curves)
    return Measure("auc", tuple(terms), "error", True, f"area under {names}") if terms else None


def _mean_corruption_error(conditions: Selected, chosen: bool) -> Measure | None:
    used = [one for one in conditions if one.kind == "corruption"]
    if not chosen and used:
        used = _whole_suite(used, "mean_corruption_error")
    return _mean("mean_corruption_error", used, "error", rising=False)


def _mce(conditions: Selected, chosen: bool) -> Measure | None:  # noqa: ARG001 - mCE is of all 15 or it is not mCE
    used = [one for one in conditions if one.kind == "corruption"]
    if not used:
        return None
    used = _whole_suite(used, "mce")
    if used[0].suite != "imagenet-c":
        raise TrustError(
            "mCE is normalised by AlexNet's errors on ImageNet-C",
            found=f"corruptions of {used[0].suite}",
            hint="metric: mean_corruption_error",
        )
    repeats = _counted(used)
    terms = tuple(
        (one, 1 / (len(STANDARD) * sum(ALEXNET_ERROR[one.name]) * repeats[without_repeat(one)])) for one in used
    )
    return Measure("mce", terms, "error", False, f"{len(STANDARD)} corruptions, normalised by AlexNet")


METRICS: dict[str, Make] = {
    "accuracy": _accuracy,
    "clean_accuracy": _clean_accuracy,
    "auc": _auc,
    "mean_corruption_error": _mean_corruption_error,
    "mce": _mce,
    "ece": _ece,
}


def single(condition: Condition) -> Measure:
    """The accuracy under one condition."""
    return Measure("accuracy", ((condition, 1.0),), "error", True, str(condition))


def degraded(conditions: Iterable[Condition]) -> list[Condition]:
    """Those that change the images: not clean, and not a noise of sigma 0."""
    return [one for one in conditions if one.kind != "clean" and one.level > 0]


def _mean(name: str, conditions: Selected, loss: Loss, *, rising: bool) -> Measure | None:
    """The plain mean over conditions; repeats of one condition share its weight."""
    if not conditions:
        return None
    repeats = _counted(conditions)
    terms = tuple((one, 1 / (len(repeats) * repeats[without_repeat(one)])) for one in conditions)
    about = str(conditions[0]) if len(conditions) == 1 else f"mean of {len(repeats)} conditions"
    return Measure(name, terms, loss, rising, about)


def _counted(conditions: Selected) -> dict[Condition, int]:
    """Condition to the number of its repeats."""
    counted: dict[Condition, int] = {}
    for one in conditions:
        counted[without_repeat(one)] = counted.get(without_repeat(one), 0) + 1
    return counted


def _whole_suite(conditions: Selected, metric: str) -> list[Condition]:
    """The cells of the 15 corruptions at five severities, all of one suite.

    Raises:
        TrustError: several suites are mixed.
        IncompleteError: a cell is missing.
    """
    suites = sorted({f"{one.suite}{', jpeg 85' if one.jpeg_parity else ''}" for one in conditions})
    if len(suites) > 1:
        raise TrustError(f"{metric} of mixed suites", found="; ".join(suites), hint="one suite a results file")
    used = [one for one in conditions if one.name in STANDARD and one.level in SEVERITIES]
    there = {(one.name, one.level) for one in used}
    missing = [f"{name} {level}" for name in STANDARD for level in SEVERITIES if (name, level) not in there]
    if missing:
        raise IncompleteError(
            f"{metric} needs {len(STANDARD)} corruptions at {len(SEVERITIES)} severities",
            found=f"{len(missing)} cells missing, the first: {missing[0]}",
            hint="lnbench eval --corruption common, or a rule with `where: {condition: ...}`",
        )
    return used
