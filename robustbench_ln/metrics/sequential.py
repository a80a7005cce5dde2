"""Tests that may be looked at after every image: betting on the mean of bounded values.

A gambler stakes money on the mean being above (or below) what the null hypothesis allows, in a game that is fair or
worse under it. Wealth of 1/alpha at *any* time is then as unlikely as alpha (Ville), so one may look, and stop, after
every batch. The bets are a fixed mixture of stakes from timid to bold ("diversified Kelly"), so that nothing need be
known of the values beforehand.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024) 1-27:
sections 4 and 5 (sampling without replacement), appendix B.4 (diversified Kelly bets).
"""

from __future__ import annotations

from math import log, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import CONFIDENCE
from robustbench_ln.metrics.paired import POWER, Side

Floats = npt.NDArray[np.float64]
Direction = Literal["above", "below"]

# What part of the wealth is staked on a value as far on the wrong side as it can be. A factor of two between stakes
# costs at most 17 % of the best stake's rate of growth.
STAKES = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 0.95])

_BISECTIONS = 24  # halvings of an interval of width 2: far below what is shown of it


class BettingTest:
    """Evidence against "the mean is at most `null`" (direction above) or "at least `null`" (below).

    Args:
        null: hypothesised mean, within the bounds.
        direction: where the mean is suspected.
        low: smallest possible value.
        high: largest possible value.
        population: None where the values are independent draws of one distribution, whose mean is meant; the size of a
            finite set that is drawn from in random order without replacement, whose own mean is meant.
    Raises: ValueError for bounds that do not hold the null.
    """

    def __init__(
        self, null: float, direction: Direction, *, low: float = -1.0, high: float = 1.0, population: int | None = None
    ) -> None:
        if not low < high or not low <= null <= high:
            raise ValueError(f"expected low <= null <= high, got {low}, {null}, {high}")
        # One direction on [0, 1] is enough: the other one is its mirror image.
        self._origin, self._scale = (low, high - low) if direction == "above" else (high, low - high)
        self._null = (null - self._origin) / self._scale
        self._population = population
        self._seen, self._sum = 0, 0.0
        self._logs = np.zeros(len(STAKES))
        self._peak = 0.0

    def update(self, values: npt.ArrayLike) -> Floats:
        """Take the next values, (B,), in the order in which they were drawn.

        Returns: (B,) the anytime-valid p-value after each of them.
        Raises: ValueError for more values than the population has, or values out of bounds.
        """
        x = (np.asarray(values, np.float64) - self._origin) / self._scale
        if not x.size:
            return x
        if x.min() < -1e-9 or x.max() > 1 + 1e-9:
            raise ValueError("values beyond their bounds")
        if self._population is not None and self._seen + x.size > self._population:
            raise ValueError(f"more values than the population of {self._population}")
        spent = self._sum + np.cumsum(x)
        logs = self._logs + np.cumsum(np.log1p(STAKES * self._odds(x, spent - x)[:, None]), axis=0)
        wealth = _log_mean(logs)
        if self._population is not None:
            # What was drawn may have used up all that the null hypothesis allows the whole set.
            wealth = np.where(spent > self._population * self._null + 1e-9, np.inf, wealth)
        peaks = np.maximum(np.maximum.accumulate(wealth), self._peak)
        self._seen, self._sum = self._seen + x.size, float(spent[-1])
        self._logs, self._peak = logs[-1], float(peaks[-1])
        return np.exp(-peaks)

    def _odds(self, x: Floats, before: Floats) -> Floats:
        """(B,) what a full stake wins on each value: its ratio to the null mean of what was left to draw, minus one."""
        means = np.full(x.size, self._null)
        if self._population is not None:
            left = self._population - self._seen - np.arange(x.size)
            means = (self._population * self._null - before) / left
        # A mean of 0 (but for the last bits) is refuted by any value above it; one below 0 was refuted before.
        nothing = means < 1e-12
        ratios = x / np.where(nothing, 1.0, means)
        return np.where(nothing, np.where(x > 1e-12, np.inf, 0.0), ratios - 1)

    @property
    def seen(self) -> int:
        """How many values were taken."""
        return self._seen

    @property
    def p(self) -> float:
        """Anytime-valid p-value: one over the largest wealth so far."""
        return float(np.exp(-self._peak))

    @property
    def p_now(self) -> float:
        """One over the present wealth, at most 1: what counts when only this one look was planned."""
        return 0.0 if np.isinf(self._peak) else float(min(1.0, np.exp(-_log_mean(self._logs[None])[0])))


class SequentialMean:
    """Evidence about a mean over images (of drops, or of losses) that may be looked at after every image, with the
    guarantee of both ways to see a test set.

    The images are a sample, and models are judged for all images of their kind (as the fixed tests do); or the test set
    is all there is, drawn from without replacement. A p-value here is the larger of the two, so that a verdict is wrong
    with probability at most alpha either way: noise in the test set does not turn into a failure at its last image.

    Args:
        bound: what is allowed, in units of the values.
        n: images of the test set.
        low: smallest possible value, -1 for differences of hits.
        high: largest possible value.
    """

    def __init__(self, bound: float, n: int, *, low: float = -1.0, high: float = 1.0) -> None:
        views = (None, n)
        directions: dict[Side, Direction] = {"worse": "above", "fine": "below"}
        self._tests: dict[Side, list[BettingTest]] = {
            side: [BettingTest(bound, direction, low=low, high=high, population=view) for view in views]
            for side, direction in directions.items()
        }

    def update(self, values: npt.ArrayLike) -> dict[Side, Floats]:
        """Take the next images' values, (B,), in random order; the p-values of each side after each image."""
        return {side: np.maximum.reduce([test.update(values) for test in tests]) for side, tests in self._tests.items()}

    def p(self, side: Side) -> float:
        """One-sided p-value so far: ``worse`` tests "the mean is at most the bound", ``fine`` tests "at least"."""
        return max(test.p for test in self._tests[side])


def detectable_by_bets(n: int, deviation: float, max_drop: float, alpha: float, power: float = POWER) -> float:
    """The smallest mean drop that bets on all `n` images would find with that power, about.

    The logarithm of the best stake's wealth is about normal with mean x²/2 and variance x², where x is how many
    standard errors the drop lies beyond `max_drop`; of the mixture, that stake and its neighbours hold three in eight.
    """
    z = NormalDist().inv_cdf(power)
    needed = z + sqrt(z * z + 2 * log(len(STAKES) / 3 / alpha))
    # A drop brings images with it that differ; with next to none seen, 30 are taken for granted.
    return max_drop + needed * max(deviation, sqrt(30 / n)) / sqrt(n)


def _log_mean(logs: Floats) -> Floats:
    """(T,) logarithm of the mean wealth over the stakes, from (T, J) logarithms."""
    top = logs.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(logs - shift[:, None]).mean(axis=1)) + shift)


def one_look_p(values: Floats, null: float, direction: Direction, *, low: float = -1.0, high: float = 1.0) -> float:
    """A p-value of the mean that holds for any number of values and any distribution within the bounds.

    Of the same bets as :class:`BettingTest`, for independent values looked at once; their order does not matter.
    """
    test = BettingTest(null, direction, low=low, high=high)
    test.update(values)
    return test.p_now


def betting_interval(
    values: npt.ArrayLike,
    confidence: float = CONFIDENCE,
    *,
    low: float = -1.0,
    high: float = 1.0,
    population: int | None = None,
) -> tuple[float, float]:
    """The means that neither direction has ever rejected: an interval that may be looked at after every value.

    Args:
        values: (T,) in the order drawn.
        confidence: coverage over all times together.
        low: smallest possible value.
        high: largest possible value.
        population: as for :class:`BettingTest`.
    """
    x = np.asarray(values, np.float64)
    level = (1 - confidence) / 2

    def rejected(null: float, direction: Direction) -> bool:
        test = BettingTest(null, direction, low=low, high=high, population=population)
        test.update(x)
        return test.p <= level

    def edge(direction: Direction, inside: float, outside: float) -> float:
        if not rejected(outside, direction):
            return outside
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle, direction) else (middle, outside)
        return outside

    centre = float(x.mean())
    return edge("above", centre, low), edge("below", centre, high)


def narrow_interval(hits: npt.NDArray[np.bool_], population: int, width: float) -> tuple[float, float] | None:
    """The anytime-valid 95 % interval of a test set's accuracy, once it is narrow enough.

    Args:
        hits: (n,) was each image predicted right, drawn in random order and without replacement.
        population: images of the test set.
        width: how wide the interval may be.
    Returns: the interval; None where it is wider.
    """
    n, rate = hits.size, float(hits.mean())
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    # An interval of one look is narrower than one that holds at all of them, and cheap.
    if 2 * z * sqrt(rate * (1 - rate) / n * (1 - n / population)) > width:
        return None
    low, high = betting_interval(hits, low=0.0, high=1.0, population=population)
    return (low, high) if high - low <= width else None
