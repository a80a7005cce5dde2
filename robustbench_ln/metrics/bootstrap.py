"""Means over images, with the image as the unit: intervals and tests by the bootstrap.

What is measured on an image, over all conditions together, is one value. Resampling images thereby keeps whatever the
conditions of an image have in common.
"""

from __future__ import annotations

from functools import cached_property
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import CONFIDENCE
from robustbench_ln.metrics.sequential import Direction, betting_interval, one_look_p

Floats = npt.NDArray[np.float64]

DRAWS = 9_999  # at least
_MOST_DRAWS = 199_999
_RESOLUTION = 10  # of the smallest level that matters: p-values are told apart to a tenth of it
FEW = 30  # images that differ from the rest; below that, resampling knows too little of the tails

_CELLS = 128  # distinct values that resampling tells apart
_CHUNK = 1_000
_SEED = 0


def resamples(tests: int, alpha: float) -> int:
    """How many resamples let a test be significant among `tests` of them at `alpha`, however they are adjusted."""
    return min(max(DRAWS, ceil(_RESOLUTION * tests / alpha) - 1), _MOST_DRAWS)


class BootstrapMean:
    """A mean over images and how sure it is: the bootstrap of the studentised mean (bootstrap-t).

    Its errors in coverage fall with 1/n where those of the plain t interval fall with 1/sqrt(n) (Hall, Annals of
    Statistics 16 (1988) 927-953). Where fewer than 30 images differ from the most frequent value, resampling sees no
    tails, and the bets of :mod:`~robustbench_ln.metrics.sequential` stand in, which hold for any n but need the bounds.
    The same values give the same numbers: the resampling has a seed of its own.

    Args:
        values: (N,) one value an image.
        low: smallest possible value.
        high: largest possible value.
        draws: how many resamples; p-values go down to 1 / (draws + 1).
    Raises: ValueError for no values, or values that are not finite or out of bounds.
    """

    def __init__(self, values: Floats, *, low: float, high: float, draws: int = DRAWS) -> None:
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"expected finite values of shape (N,), not empty, got {values.shape}")
        slack = 1e-9 * (high - low)
        if values.min() < low - slack or values.max() > high + slack:
            raise ValueError(f"values run from {values.min()} to {values.max()}, beyond {low} and {high}")
        self._values, self._low, self._high, self._draws = np.clip(values, low, high), low, high, draws
        self.n = values.size
        self.mean = float(values.mean())
        self.deviation = float(values.std())
        _, counts = np.unique(values, return_counts=True)
        self.differing = self.n - int(counts.max())

    @property
    def is_bootstrapped(self) -> bool:
        """Whether enough images differ for resampling."""
        return self.differing >= FEW

    def p(self, null: float, direction: Direction) -> float:
        """One-sided p-value of "the mean is at most `null`" (direction above) or "at least `null`" (below)."""
        if not self.is_bootstrapped:
            return one_look_p(self._values, null, direction, low=self._low, high=self._high)
        t = (self.mean - null) / self._error
        if direction == "above":
            as_far = self._studentised.size - np.searchsorted(self._studentised, t, side="left")
        else:
            as_far = np.searchsorted(self._studentised, t, side="right")
        return float((1 + as_far) / (1 + self._studentised.size))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Two-sided interval of the mean, equal tails."""
        if not self.is_bootstrapped:
            return betting_interval(self._values, confidence, low=self._low, high=self._high)
        tail = (1 - confidence) / 2
        low, high = np.quantile(self._studentised, [1 - tail, tail])
        return max(self.mean - float(low) * self._error, self._low), min(
            self.mean - float(high) * self._error, self._high
        )

    @property
    def _error(self) -> float:
        return self.deviation / sqrt(self.n)

    @cached_property
    def _studentised(self) -> Floats:
        """The resampled means, each as so many of its own standard errors from the mean, rising.

        Images with the same value are exchangeable, so how often each *value* is drawn is one multinomial draw. Values
        are rounded to 128 cells for that (never for the estimate), which keeps the time independent of n.
        """
        step = (self._values.max() - self._values.min()) / (_CELLS - 1)
        distinct, counts = np.unique(self._values, return_counts=True)
        if distinct.size > _CELLS:
            cells, counts = np.unique(np.round(self._values / step), return_counts=True)
            distinct = cells * step
        shares = counts / self.n
        centred = distinct - float(shares @ distinct)
        moments = np.stack([centred, centred**2], axis=1) / self.n
        generator = np.random.default_rng(_SEED)
        found = []
        for first in range(0, self._draws, _CHUNK):
            size = min(_CHUNK, self._draws - first)
            means, squares = (generator.multinomial(self.n, shares, size=size) @ moments).T
            found.append(means / np.sqrt(np.maximum(squares - means**2, 1e-300) / self.n))
        return np.sort(np.concatenate(found))
