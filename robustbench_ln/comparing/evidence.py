"""How sure a difference is: the right test for what two results hold.

| what is compared | predictions on both sides | counts only |
|---|---|---|
| accuracy, one condition | exact McNemar; with a margin Tango's score test | score test of Miettinen and Nurminen |
| a mean, an area, mCE | bootstrap over images of paired differences | the same, as if all conditions agreed |
| calibration error | bootstrap over images of paired differences | normal, with the variance of the bins |
| an absolute bound | exact binomial, or bootstrap over images | exact binomial, as if all conditions agreed |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from robustbench_ln.comparing.matching import Pair, Subject
from robustbench_ln.comparing.measures import Measure
from robustbench_ln.metrics import calibration
from robustbench_ln.metrics.accuracy import CONFIDENCE, score_interval
from robustbench_ln.metrics.bootstrap import DRAWS, BootstrapMean
from robustbench_ln.metrics.paired import (
    Pairs,
    Side,
    binomial_p,
    count_pairs,
    detectable_drop,
    detectable_mean,
    mcnemar_two_sided,
    paired_interval,
    paired_p,
    unpaired_interval,
    unpaired_p,
)
from robustbench_ln.results import DocumentRow
from robustbench_ln.types import N_BINS

Floats = npt.NDArray[np.float64]
_BIN_COUNTS = ("bin_n", "bin_correct", "bin_confidence")


class Evidence(ABC):
    """What is known of a drop: how much worse the new model is. Positive is worse, whatever the metric.

    Attributes:
        drop: the estimate.
        n: images.
        method: how it is tested, for a reader.
        paired: whether images were paired.
    """

    drop: float
    n: int
    method: str
    paired: bool

    @abstractmethod
    def p(self, bound: float, side: Side) -> float:
        """One-sided p-value of "the drop is at most `bound`" (worse) or "at least `bound`" (fine)."""

    @abstractmethod
    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Two-sided interval of the drop."""

    @abstractmethod
    def detectable(self, bound: float, alpha: float) -> float:
        """The smallest drop that would have been found with power 80 %."""

    def p_two_sided(self) -> float:
        """Two-sided p-value of "nothing changed"."""
        return min(1.0, 2 * min(self.p(0.0, "worse"), self.p(0.0, "fine")))


class PairedProportion(Evidence):
    """One condition, each image predicted by both."""

    paired = True

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.drop, self.n = pairs, pairs.drop, pairs.n
        self.method = "paired score test"

    def p(self, bound: float, side: Side) -> float:
        """See :class:`Evidence`."""
        return float(paired_p(self.n, self.pairs.lost, self.pairs.gained, bound, side))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """See :class:`Evidence`."""
        return paired_interval(self.pairs, confidence)

    def detectable(self, bound: float, alpha: float) -> float:
        """See :class:`Evidence`."""
        return detectable_drop(self.n, self.pairs.disagreement, bound, alpha)

    def p_two_sided(self) -> float:
        """See :class:`Evidence`."""
        return float(mcnemar_two_sided(self.pairs.lost, self.pairs.gained))


class ImageMean(Evidence):
    """A mean over images, of paired differences or (for an absolute bound) of losses."""

    def __init__(self, values: Floats, *, low: float, high: float, paired: bool, draws: int) -> None:
        self._mean = BootstrapMean(values, low=low, high=high, draws=draws)
        self._most = max(abs(low), abs(high))
        self.drop, self.n, self.paired = self._mean.mean, self._mean.n, paired
        self.method = "bootstrap over images" if self._mean.is_bootstrapped else "betting test (few images differ)"

    def p(self, bound: float, side: Side) -> float:
        """See :class:`Evidence`."""
        return self._mean.p(bound, "above" if side == "worse" else "below")

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """See :class:`Evidence`."""
        return self._interval if confidence == CONFIDENCE else self._mean.interval(confidence)

    @cached_property
    def _interval(self) -> tuple[float, float]:
        return self._mean.interval()

    def detectable(self, bound: float, alpha: float) -> float:
        """See :class:`Evidence`."""
        if self._mean.is_bootstrapped:
            return detectable_mean(self.n, self._mean.deviation, bound, alpha)
        # So few images differ that a drop would have to bring more with it; at worst each differs as much as it can.
        return self._most * detectable_drop(self.n, self._mean.differing / self.n, bound / self._most, alpha)


class UnpairedProportion(Evidence):
    """Accuracies of which only counts are known. A mean over conditions counts each image once, as if its outcome were
    the same in all of them: wide enough whatever the dependence.
    """  # fmt: skip

    paired = False
    method = "unpaired score test"

    def __init__(self, old: float, n_old: int, new: float, n_new: int, scale: float) -> None:
        self._old, self._n_old, self._new, self._n_new, self._scale = old, n_old, new, n_new, scale
        self.drop, self.n = scale * (old - new), n_new

    def p(self, bound: float, side: Side) -> float:
        """See :class:`Evidence`."""
        counts = self._old * self._n_old, self._n_old, self._new * self._n_new, self._n_new
        return float(unpaired_p(*counts, bound / self._scale, side))

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """See :class:`Evidence`."""
        counts = self._old * self._n_old, self._n_old, self._new * self._n_new, self._n_new
        low, high = unpaired_interval(*counts, confidence)
        return self._scale * low, self._scale * high

    def detectable(self, bound: float, alpha: float) -> float:
        """See :class:`Evidence`."""
        deviation = sqrt(sum(p * (1 - p) * self.n / n for p, n in ((self._old, self._n_old), (self._new, self._n_new))))
        return detectable_mean(self.n, self._scale * deviation, bound, alpha)


class SingleProportion(Evidence):
    """An accuracy by itself, for absolute bounds: the drop is minus the accuracy (or the error), the bound likewise."""

    paired = False

    def __init__(self, accuracy: float, n: int, scale: float, *, rising: bool) -> None:
        self._accuracy, self.n, self._scale, self._rising = accuracy, n, scale, rising
        self.drop = scale * (-accuracy if rising else 1 - accuracy)
        self.method = "exact binomial test"

    def p(self, bound: float, side: Side) -> float:
        """See :class:`Evidence`."""
        asked = -bound / self._scale if self._rising else 1 - bound / self._scale
        return binomial_p(round(self._accuracy * self.n), self.n, min(max(asked, 0.0), 1.0), side)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """See :class:`Evidence`."""
        low, high = score_interval(self._accuracy, self.n, confidence)
        offset = 0.0 if self._rising else 1.0
        return self._scale * (offset - high), self._scale * (offset - low)

    def detectable(self, bound: float, alpha: float) -> float:
        """See :class:`Evidence`."""
        deviation = self._scale * sqrt(self._accuracy * (1 - self._accuracy))
        return detectable_mean(self.n, deviation, bound, alpha)


class Normal(Evidence):
    """An estimate with a standard error."""

    paired = False
    method = "normal approximation from the bins"

    def __init__(self, drop: float, error: float, n: int) -> None:
        self.drop, self.n, self._error = drop, n, max(error, 1 / n)

    def p(self, bound: float, side: Side) -> float:
        """See :class:`Evidence`."""
        z = (self.drop - bound) / self._error
        return NormalDist().cdf(-z if side == "worse" else z)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """See :class:`Evidence`."""
        half = NormalDist().inv_cdf((1 + confidence) / 2) * self._error
        return self.drop - half, self.drop + half

    def detectable(self, bound: float, alpha: float) -> float:
        """See :class:`Evidence`."""
        return detectable_mean(self.n, self._error * sqrt(self.n), bound, alpha)


def mean_loss(measure: Measure, subject: Subject) -> float:
    """The weighted sum of mean losses, from counts."""
    if measure.loss == "gap":
        return sum(weight * _ece(subject.rows[condition]) for condition, weight in measure.terms)
    return sum(weight * (1 - _rate(subject.rows[condition])) for condition, weight in measure.terms)


def difference(measure: Measure, pair: Pair, draws: int = DRAWS) -> Evidence:
    """What two results say about a measure's drop."""
    if len(measure.terms) == 1 and measure.loss == "error":
        condition, weight = measure.terms[0]
        old, new = (one.hits(one.rows[condition]) for one in (pair.old, pair.new))
        if old is not None and new is not None and weight == 1:
            return PairedProportion(count_pairs(old, new))
    before, after = image_losses(measure, pair.old), image_losses(measure, pair.new)
    if before is not None and after is not None:
        most = measure.scale * (2 if measure.loss == "gap" else 1)
        return ImageMean(after - before, low=-most, high=most, paired=True, draws=draws)
    lost = mean_loss(measure, pair.old), mean_loss(measure, pair.new)
    n_old, n_new = (min(one.rows[condition].n for condition, _ in measure.terms) for one in (pair.old, pair.new))
    if measure.loss == "gap":
        error = sqrt(sum(_gap_variance(measure, one) for one in (pair.old, pair.new)))
        return Normal(lost[1] - lost[0], error, n_new)
    scale = measure.scale
    return UnpairedProportion(1 - lost[0] / scale, n_old, 1 - lost[1] / scale, n_new, scale)


def level(measure: Measure, subject: Subject, draws: int = DRAWS) -> Evidence:
    """What one result says about a measure's value; its drop is the value, minus the value where more is better."""
    losses = image_losses(measure, subject)
    lost = mean_loss(measure, subject)
    n = min(subject.rows[condition].n for condition, _ in measure.terms)
    if measure.loss == "error" and (losses is None or len(measure.terms) == 1):
        return SingleProportion(1 - lost / measure.scale, n, measure.scale, rising=measure.rising)
    if losses is None:
        return Normal(lost, sqrt(_gap_variance(measure, subject)), n)
    shift = measure.scale if measure.rising else 0.0
    bounds = (-measure.scale, measure.scale) if measure.loss == "gap" else (-shift, measure.scale - shift)
    return ImageMean(losses - shift, low=bounds[0], high=bounds[1], paired=False, draws=draws)


def image_losses(measure: Measure, subject: Subject) -> Floats | None:
    """(N,) the weighted sum of an image's losses over all conditions; None where one is not known."""
    total: Floats | None = None
    for condition, weight in measure.terms:
        row = subject.rows[condition]
        hits = subject.hits(row)
        if hits is None:
            return None
        loss: Floats = np.where(hits, 0.0, 1.0)
        if measure.loss == "gap":
            confidences = subject.confidences(row)
            if confidences is None:
                return None
            loss = _gaps(hits, confidences)
        total = weight * loss if total is None else total + weight * loss
    return total


def _gaps(hits: npt.NDArray[np.bool_], confidences: Floats) -> Floats:
    """(N,) values whose mean is the expected calibration error: accuracy minus confidence, signed as its bin is."""
    bins = calibration.bin_of(confidences)
    apart = hits - confidences
    return apart * np.sign(np.bincount(bins, weights=apart, minlength=N_BINS))[bins]


def _ece(row: DocumentRow) -> float:
    return row.ece or 0.0


def _rate(row: DocumentRow) -> float:
    return row.correct / row.n


def _gap_variance(measure: Measure, subject: Subject) -> float:
    """Variance of a mean calibration error from the counts of its bins, as if all conditions agreed."""
    deviations = (weight * _gap_deviation(subject.rows[condition]) for condition, weight in measure.terms)
    return sum(deviations) ** 2


def _gap_deviation(row: DocumentRow) -> float:
    if row.counts is None:
        return 0.5 / sqrt(row.n)  # the most it can be
    n, correct, sure = (np.array(getattr(row.counts, name), np.float64) for name in _BIN_COUNTS)
    filled = n > 0
    rate, confidence, share = correct[filled] / n[filled], sure[filled] / n[filled], n[filled] / row.n
    inside = rate * (1 - rate) + 1 / (12 * N_BINS**2)  # of a hit, and of a confidence within its bin
    gaps = np.abs(rate - confidence)
    variance = float(share @ inside + share @ gaps**2 - (share @ gaps) ** 2)
    return sqrt(max(variance, 0.0) / row.n)
