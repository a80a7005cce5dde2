"""Accuracy, how sure we are of it, and the area under a noise curve. Fractions everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


def wilson(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion: those rates that a two-sided score test would not reject.

    Unlike p ± z·se it stays in [0, 1] and keeps a width at 0 and at n out of n, where one bound is exactly 0 or 1.

    Args:
        correct: successes, 0 to n.
        n: independent trials, at least 1.
        confidence: coverage, strictly between 0 and 1.
    Returns: lower and upper bound, fractions.
    Raises: ValueError for counts or a confidence out of range.
    Source: Wilson, JASA 22 (1927) 209-212.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"expected 0 <= correct <= n with n >= 1, got {correct} of {n}")
    return score_interval(correct / n, n, confidence)


def score_interval(rate: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """:func:`wilson` for an observed rate and a number of trials that may be fractional (an effective sample size).

    Args:
        rate: observed fraction, 0 to 1.
        n: number of independent trials it is worth, positive.
        confidence: coverage, strictly between 0 and 1.
    Returns: lower and upper bound, fractions, around `rate`.
    Raises: ValueError for values out of range.
    """
    if not 0 <= rate <= 1 or not n > 0 or not 0 < confidence < 1:
        raise ValueError(f"expected a rate and a confidence in [0, 1] and n > 0, got {rate}, {confidence} and {n}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The last bits must not push a bound past 0, past 1 or past the rate itself.
    low = 0.0 if rate == 0 else min(max(centre - half, 0.0), rate)
    high = 1.0 if rate == 1 else max(min(centre + half, 1.0), rate)
    return low, high


def clustered_interval(
    hits: npt.NDArray[np.bool_] | npt.NDArray[np.floating], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of the mean accuracy over repeats, with the image as the unit.

    Repeats redraw the noise on the same N images, so R·N outcomes are not independent. An image's observation is its
    mean over repeats, m_i; the mean of the m_i has the variance var(m)/N. The number of independent images that would
    have that variance, n_eff = N·p(1 - p)/var(m), takes the place of n in Wilson's interval. One repeat gives
    n_eff = N, hence exactly :func:`wilson`; repeats that agree on every image keep N; independent ones reach R·N, where
    n_eff is cut off. When every outcome is the same, var(m) says nothing and n_eff stays at N, the cautious end.

    Args:
        hits: (R, N) 0 or 1, was image i predicted right in repeat r; also R conditions of a mean over conditions.
        confidence: coverage, strictly between 0 and 1.
    Returns: lower and upper bound, fractions, around the mean of `hits`.
    Raises: ValueError unless `hits` is (R, N), not empty, and within [0, 1].
    Source: the design effect, Kish, Survey Sampling (1965) section 8.2; Korn & Graubard (1998) put n_eff into an
        interval for proportions in the same way.
    """
    if hits.ndim != 2 or hits.size == 0:
        raise ValueError(f"expected hits of shape (R, N), not empty, got {hits.shape}")
    repeats, n = hits.shape
    values = hits.astype(np.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("expected hits within [0, 1]")
    rate = float(values.mean())
    within, between = rate * (1 - rate), float(values.mean(axis=0).var())
    if repeats == 1 or within == 0:
        effective = float(n)
    elif between == 0:
        effective = float(repeats * n)
    else:
        effective = min(max(n * within / between, n), repeats * n)
    return score_interval(rate, effective, confidence)


def area_under_curve(levels: Sequence[float], accuracies: Sequence[float]) -> float:
    """Trapezoid area under accuracy over noise level, divided by the width of the grid: a mean accuracy.

    Args:
        levels: (L,) noise levels in any order.
        accuracies: (L,) fractions, in the same order.
    Returns: the area in [0, 1]; for a single level (or several equal ones) the mean of the accuracies.
    Raises: ValueError for empty, non-finite or unequally long input.
    """
    x, y = np.asarray(levels, np.float64), np.asarray(accuracies, np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise ValueError(f"expected as many accuracies as levels, at least one, got {y.shape} and {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite levels and accuracies")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    width = float(x[-1] - x[0])
    if width == 0:
        return float(y.mean())
    # Summed by hand: np.trapezoid is np.trapz before NumPy 2.
    return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2 / width)


def chance_bound(classes: int) -> float:
    """Twice the accuracy of chance, 1.2 times for two classes: what a network should be surely above."""
    return (1.2 if classes == 2 else 2.0) / classes


def near_chance(correct: int, n: int, classes: int) -> bool:
    """Whether an accuracy's interval reaches below :func:`chance_bound`: not to be trusted."""
    return classes > 1 and wilson(correct, n)[0] < chance_bound(classes)
