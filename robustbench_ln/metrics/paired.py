"""Statistics of two models on the same images: did the accuracy drop, by how much, what drop could have been seen.

A *drop* is the old accuracy minus the new one: positive is worse. `worse` tests ask whether it is larger than allowed
(null hypothesis: it is not), `fine` tests whether it is smaller (null hypothesis: it is not smaller). All p-values are
one-sided unless said otherwise. Functions of counts take arrays as well as numbers. NumPy only: a gate decides in less
time than scipy takes to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erfc, inf, log, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import CONFIDENCE

Side = Literal["worse", "fine"]
Floats = npt.NDArray[np.float64]
Numbers = Any  # a number, or an array of numbers; the result has the same shape
POWER = 0.8

_BISECTIONS = 60  # halvings of an interval of width 2: beyond float64


@dataclass(frozen=True, slots=True)
class Pairs:
    """How two models fared on the same images.

    Attributes:
        n: images.
        lost: images that the old model has right and the new one wrong.
        gained: images that the old model has wrong and the new one right.
    """

    n: int
    lost: int
    gained: int

    @property
    def drop(self) -> float:
        """Old accuracy minus new accuracy, -1 to 1."""
        return (self.lost - self.gained) / self.n

    @property
    def disagreement(self) -> float:
        """Fraction of images that one model has right and the other wrong."""
        return (self.lost + self.gained) / self.n


def count_pairs(old: npt.NDArray[np.bool_], new: npt.NDArray[np.bool_]) -> Pairs:
    """Count the images on which two models differ.

    Args:
        old: (N,) was each image predicted right by the old model.
        new: (N,) the same of the new model, in the same order.
    Raises: ValueError for arrays that are empty or not of one shape.
    """
    if old.shape != new.shape or old.ndim != 1 or not old.size:
        raise ValueError(f"expected two arrays of shape (N,), not empty, got {old.shape} and {new.shape}")
    return Pairs(old.size, int((old & ~new).sum()), int((~old & new).sum()))


def mcnemar(lost: Numbers, gained: Numbers) -> Numbers:
    """Exact one-sided McNemar test of "losing an image is no more likely than gaining one".

    Of `lost + gained` images that differ, `lost` or more were lost with probability p if each was a fair coin.
    `mcnemar(gained, lost)` tests the other side. No image that differs gives 1.

    Source: McNemar, Psychometrika 12 (1947) 153-157, with the binomial distribution itself.
    """
    lost, gained = np.asarray(lost, np.int64), np.asarray(gained, np.int64)
    return _each(lambda a, b: _at_least(int(a), int(a + b), 0.5), lost, gained)


def mcnemar_two_sided(lost: Numbers, gained: Numbers) -> Numbers:
    """Exact two-sided McNemar test of "no difference": twice the smaller side, at most 1."""
    return np.minimum(1.0, 2 * np.minimum(mcnemar(lost, gained), mcnemar(gained, lost)))


def score_statistic(n: Numbers, lost: Numbers, gained: Numbers, drop: Numbers) -> Numbers:
    """Tango's score statistic of paired proportions: how many standard errors the drop lies above `drop`.

    The standard error is that under the null hypothesis: the chance of gaining an image is estimated with the drop held
    at `drop`. For `drop` 0 this is McNemar's statistic without correction. Where nothing differs and nothing was
    allowed to, it is 0.

    Args:
        n: images.
        lost: right before, wrong now.
        gained: wrong before, right now.
        drop: hypothesised drop, strictly between -1 and 1.
    Source: Tango, Statistics in Medicine 17 (1998) 891-908, equations 3 to 5.
    """
    n, lost, gained, drop = (np.asarray(value, np.float64) for value in (n, lost, gained, drop))
    b = (2 * n - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    gain = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    variance = n * np.maximum(2 * gain + drop * (1 - drop), 0)
    above = lost - gained - n * drop
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / np.sqrt(variance))[()]


def paired_p(n: Numbers, lost: Numbers, gained: Numbers, max_drop: float, side: Side) -> Numbers:
    """p-value of one condition's drop against `max_drop`.

    Args:
        n: images.
        lost: right before, wrong now.
        gained: wrong before, right now.
        max_drop: allowed drop, at least 0 and below 1; 0 takes the exact test, others the score test with margin.
        side: ``worse`` tests "the drop is at most max_drop", ``fine`` tests "the drop is at least max_drop".
    """
    if max_drop == 0:
        return mcnemar(lost, gained) if side == "worse" else mcnemar(gained, lost)
    z = score_statistic(n, lost, gained, max_drop)
    return _normal_tail(z if side == "worse" else -z)


def paired_interval(pairs: Pairs, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the drop: the values that Tango's two-sided score test does not reject."""
    return _inverted(lambda drop: score_statistic(pairs.n, pairs.lost, pairs.gained, drop), pairs.drop, confidence)


def unpaired_statistic(old: Numbers, n_old: Numbers, new: Numbers, n_new: Numbers, drop: Numbers) -> Numbers:
    """Miettinen and Nurminen's score statistic of two independent proportions, for results without predictions.

    Args:
        old: images the old model has right; may be fractional (a mean over conditions, times n).
        n_old: images of the old result.
        new: images the new model has right.
        n_new: images of the new result.
        drop: hypothesised old accuracy minus new accuracy, strictly between -1 and 1.
    Source: Miettinen & Nurminen, Statistics in Medicine 4 (1985) 213-226; the restricted estimate in closed form as in
        Farrington & Manning, Statistics in Medicine 9 (1990) 1447-1454.
    """
    old, n_old, new, n_new, drop = (np.asarray(value, np.float64) for value in (old, n_old, new, n_new, drop))
    p_old, p_new, theta = old / n_old, new / n_new, n_new / n_old
    a = 1 + theta
    b = -(1 + theta + p_old + theta * p_new + drop * (theta + 2))
    c = drop * drop + drop * (2 * p_old + theta + 1) + p_old + theta * p_new
    d = -p_old * drop * (1 + drop)
    v = b**3 / (27 * a**3) - b * c / (6 * a * a) + d / (2 * a)
    u = np.where(v >= 0, 1.0, -1.0) * np.sqrt(np.maximum(b * b / (9 * a * a) - c / (3 * a), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(u == 0, 0.0, np.clip(v / u**3, -1, 1))
    held = 2 * u * np.cos((np.pi + np.arccos(ratio)) / 3) - b / (3 * a)
    held = np.clip(held, np.maximum(drop, 0), np.minimum(1 + drop, 1))
    total = n_old + n_new
    variance = held * (1 - held) / n_old + (held - drop) * (1 - held + drop) / n_new
    above = p_old - p_new - drop
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / np.sqrt(np.maximum(variance, 0) * total / (total - 1)))[()]


def unpaired_p(old: Numbers, n_old: Numbers, new: Numbers, n_new: Numbers, max_drop: float, side: Side) -> Numbers:
    """As :func:`paired_p`, for results that cannot be paired; see :func:`unpaired_statistic`."""
    z = unpaired_statistic(old, n_old, new, n_new, max_drop)
    return _normal_tail(z if side == "worse" else -z)


def unpaired_interval(
    old: float, n_old: int, new: float, n_new: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """As :func:`paired_interval`, for results that cannot be paired."""
    return _inverted(
        lambda drop: unpaired_statistic(old, n_old, new, n_new, drop), old / n_old - new / n_new, confidence
    )


def _inverted(statistic: Callable[[float], float], estimate: float, confidence: float) -> tuple[float, float]:
    """Where a statistic that falls with the hypothesised drop crosses the two quantiles."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def crossing(target: float, low: float, high: float) -> float:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > target else (low, middle)
        return (low + high) / 2

    return crossing(z, -1.0, estimate), crossing(-z, estimate, 1.0)


def binomial_p(correct: int, n: int, bound: float, side: Side) -> float:
    """Exact one-sided test of one accuracy against an absolute bound.

    Args:
        correct: images predicted right.
        n: images.
        bound: accuracy asked for, 0 to 1.
        side: ``worse`` tests "the accuracy is at least `bound`", ``fine`` tests "it is at most `bound`".
    """
    if side == "worse":
        return _at_least(n - correct, n, 1 - bound)
    return _at_least(correct, n, bound)


def _at_least(k: int, n: int, p: float) -> float:
    """Probability of k or more successes in n trials, summed exactly, the smallest terms not lost."""
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0:
        return 0.0
    i = np.arange(1, n + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(i))])
    i = np.arange(k, n + 1)
    logs = log_factorials[n] - log_factorials[i] - log_factorials[n - i] + i * log(p) + (n - i) * log(1 - p)
    top = float(logs.max(initial=-inf))
    return min(1.0, float(np.exp(top) * np.exp(logs - top).sum()))


def _normal_tail(z: Numbers) -> Numbers:
    """Probability that a standard normal variable is z or more."""
    return _each(lambda one: erfc(one / sqrt(2)) / 2, z)


def _each(function: Callable[..., float], *values: Numbers) -> Numbers:
    return np.vectorize(function, otypes=[float])(*values)[()]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: comparing each with alpha holds the chance of any false rejection to alpha.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=p_values.__getitem__)):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def detectable_drop(n: int, disagreement: float, max_drop: float, alpha: float, power: float = POWER) -> float:
    """The smallest drop of a paired accuracy that a ``worse`` test would have found with that power.

    Args:
        n: images.
        disagreement: fraction of images on which the models differ; a drop needs at least as much itself.
        max_drop: what is allowed.
        alpha: level of the test.
        power: probability of finding it.
    Returns: a drop above `max_drop`, at most 1 (also where nothing would have been found).
    Source: the sample size formula of paired proportions (Connor, Biometrics 43 (1987) 207-211), with the margin in it.
    """
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)

    def found(drop: float) -> bool:
        differ = max(disagreement, drop, 1 / n)
        null, true = max(differ - max_drop**2, 0.0), max(differ - drop**2, 0.0)
        return (drop - max_drop) * sqrt(n) >= z_alpha * sqrt(null) + z_power * sqrt(true)

    return _smallest(found, max_drop)


def detectable_mean(n: int, deviation: float, max_drop: float, alpha: float, power: float = POWER) -> float:
    """As :func:`detectable_drop`, for a mean over images of values with that standard deviation."""
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    return max_drop + z * max(deviation, 1 / n) / sqrt(n)


def _smallest(found: Callable[[float], bool], low: float) -> float:
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
