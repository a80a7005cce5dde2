"""Tests that may be looked at after every image: betting on the mean of bounded values.

A gambler stakes money on the mean being above (or below) what the null hypothesis allows, in a game that is fair or
worse under it. Wealth of 1/alpha at *any* time is then as unlikely as alpha (Ville), so one may look, and stop, after
every batch. The bets are a fixed mixture of stakes from timid to bold ("diversified Kelly"), so that nothing need be
known of the values beforehand.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024) 1-27:
sections 4 and 5 (sampling without replacement), appendix B.4 (diversified Kelly bets).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import CONFIDENCE

Floats = npt.NDArray[np.float64]
Direction = Literal["above", "below"]

# What part of the wealth is staked on a value as far on the wrong side as it can be. A factor of two between stakes
# costs at most 17 % of the best stake's rate of growth.
STAKES = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 0.95])

_BISECTIONS = 40


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

    def update(self, values: npt.ArrayLike) -> None:
        """Take the next values, (B,), in the order in which they were drawn.

        Raises: ValueError for more values than the population has, or values out of bounds.
        """
        x = (np.asarray(values, np.float64) - self._origin) / self._scale
        if not x.size:
            return
        if x.min() < -1e-9 or x.max() > 1 + 1e-9:
            raise ValueError("values beyond their bounds")
        if self._population is not None and self._seen + x.size > self._population:
            raise ValueError(f"more values than the population of {self._population}")
        before = self._sum + np.cumsum(x) - x
        if self._population is None:
            means = np.full(x.size, self._null)
        else:
            left = self._population - self._seen - np.arange(x.size)
            # The mean of what is left to draw, were the null hypothesis just true; the last bits forgiven.
            means = (self._population * self._null - before) / left
            means[np.abs(means) < 1e-12] = 0.0
        excluded = means < 0
        last = int(excluded.argmax()) if excluded.any() else x.size
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = np.where(means[:last] > 0, x[:last] / means[:last], np.where(x[:last] > 0, np.inf, 1.0)) - 1
        # A null mean of 0 is refuted by any value above it, so the stakes never divide by zero unnoticed.
        paths = self._logs + np.cumsum(np.log1p(STAKES * odds[:, None]), axis=0)
        if last:
            self._logs = paths[-1]
            self._peak = max(self._peak, float(_log_mean(paths).max()))
        self._seen, self._sum = self._seen + x.size, float(before[-1] + x[-1])
        # What was drawn may already have used up all that the null hypothesis allows the whole set.
        if last < x.size or (self._population is not None and self._sum > self._population * self._null + 1e-9):
            self._peak = np.inf

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
        return float(min(1.0, np.exp(-_log_mean(self._logs[None])[0]))) if np.isfinite(self._peak) else 0.0


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
