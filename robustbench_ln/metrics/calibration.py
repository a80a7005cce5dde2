"""Scores of single images, their sums, and the ratios derived from the sums: top-5, NLL, ECE, Brier.

Logarithms are natural. Sums add over images, so batches, shards and merges need no thought; ratios are derived last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from robustbench_ln.types import N_BINS, Counts

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer[Any]]

LOG_TINY = float(np.log(np.nextafter(0.0, 1.0)))  # -744.4, the smallest probability that float64 can tell from 0
_EDGES = np.arange(N_BINS + 1) / N_BINS


class Scores(NamedTuple):
    """What is kept of an image's probability vector, each of shape (B,), in the order that :func:`count` takes it.

    Attributes:
        confidence: the largest probability, float32, 0 to 1.
        nll: negative natural log of the label's probability, float64, finite.
        brier: squared error summed over the classes, float64, 0 to 2.
        top5: whether the label is among the five most probable classes; None with five classes or fewer.
    """

    confidence: npt.NDArray[np.float32]
    nll: Floats
    brier: Floats
    top5: npt.NDArray[np.bool_] | None


def per_image(log_probabilities: Floats, labels: Labels) -> Scores:
    """Score each image's probability vector against its label.

    The predicted class is not among the scores: voting modes take it from the vote and not from these probabilities.
    A probability of 0 (a logarithm of minus infinity) counts as the smallest positive float64, so that nll is finite;
    a vector holding NaN or plus infinity counts as probability 0 for every class. Of classes that tie for the last of
    the top five, the lower ones are in.

    Args:
        log_probabilities: (B, C) natural logarithms of probabilities that sum to 1, best from a float64 log-softmax.
        labels: (B,) classes, 0 to C - 1.
    Returns: :class:`Scores` of B images.
    Raises: ValueError for shapes that do not fit, or labels that are no class.
    Source: Brier, Monthly Weather Review 78 (1950) 1-3, summed over classes as there.
    """
    log_p = np.asarray(log_probabilities, np.float64)
    if log_p.ndim != 2 or labels.shape != log_p.shape[:1]:
        raise ValueError(f"expected (B, C) log-probabilities and (B,) labels, got {log_p.shape} and {labels.shape}")
    images, classes = log_p.shape
    if images and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, beyond {classes} classes")
    lost = np.asarray(~(log_p < np.inf).all(axis=1))
    log_p = np.where(lost[:, None], -np.inf, log_p)
    at_label = (np.arange(images), labels)

    own = log_p[at_label]
    errors = np.exp(log_p)
    confidence = errors.max(axis=1, initial=0.0).astype(np.float32)
    errors[at_label] -= 1
    top5 = None
    if classes > 5:
        ahead = (log_p > own[:, None]).sum(axis=1)
        ties_ahead = ((log_p == own[:, None]) & (np.arange(classes) < labels[:, None])).sum(axis=1)
        top5 = (ahead + ties_ahead < 5) & ~lost
    # The + 0.0 turns the -0.0 of a certain prediction into 0.0.
    return Scores(confidence, -np.where(np.isneginf(own), LOG_TINY, own) + 0.0, (errors**2).sum(axis=1), top5)


def bin_of(confidence: Floats) -> npt.NDArray[np.intp]:
    """(N,) which of the 15 bins each confidence falls into: bin b holds (b/15, (b + 1)/15], and bin 0 also holds 0."""
    return np.clip(np.searchsorted(_EDGES, confidence, side="left") - 1, 0, N_BINS - 1)


def count(
    predicted: Labels,
    confidence: npt.NDArray[np.float32],
    nll: Floats,
    brier: Floats,
    top5: npt.NDArray[np.bool_] | None,
    labels: Labels,
) -> Counts:
    """Add up the scores of images. `count(predicted, *per_image(log_p, labels), labels)` counts a batch.

    Bin b of 15 holds the confidences in (b/15, (b + 1)/15], as Guo et al. cut them; a confidence of 0 goes into bin 0.

    Args:
        predicted: (N,) predicted classes.
        confidence: (N,) top probability, 0 to 1.
        nll: (N,) negative log-likelihoods.
        brier: (N,) Brier scores.
        top5: (N,) whether the label is among the top five, or None.
        labels: (N,) true classes.
    Returns: the sums over N images; N = 0 gives zeros, which :func:`add` leaves other counts unchanged by.
    Raises: ValueError for arrays of different lengths.
    """
    arrays = [predicted, confidence, nll, brier, labels] + ([] if top5 is None else [top5])
    if any(array.shape != labels.shape for array in arrays):
        raise ValueError(f"expected arrays of one length, got shapes {[array.shape for array in arrays]}")
    hit = predicted == labels
    sure = confidence.astype(np.float64)
    bins = bin_of(sure)
    return Counts(
        n=len(labels),
        correct=int(hit.sum()),
        top5=None if top5 is None else int(top5.sum()),
        nll_sum=float(nll.sum(dtype=np.float64)),
        brier_sum=float(brier.sum(dtype=np.float64)),
        bin_n=tuple(np.bincount(bins, minlength=N_BINS).tolist()),
        bin_correct=tuple(np.bincount(bins[hit], minlength=N_BINS).tolist()),
        bin_confidence=tuple(np.bincount(bins, weights=sure, minlength=N_BINS).tolist()),
    )


def add(a: Counts, b: Counts) -> Counts:
    """The counts of the images of `a` and of `b` together.

    Raises: ValueError when one has top-5 counts and the other, not being empty, has none.
    """
    if not a.n or not b.n:
        return a if a.n else b
    if (a.top5 is None) != (b.top5 is None):
        raise ValueError("counts with and without top-5 do not add")
    return Counts(
        n=a.n + b.n,
        correct=a.correct + b.correct,
        top5=None if a.top5 is None or b.top5 is None else a.top5 + b.top5,
        nll_sum=a.nll_sum + b.nll_sum,
        brier_sum=a.brier_sum + b.brier_sum,
        bin_n=tuple(x + y for x, y in zip(a.bin_n, b.bin_n, strict=True)),
        bin_correct=tuple(x + y for x, y in zip(a.bin_correct, b.bin_correct, strict=True)),
        bin_confidence=tuple(x + y for x, y in zip(a.bin_confidence, b.bin_confidence, strict=True)),
    )


# The ratios. All take counts of at least one image.


def accuracy(counts: Counts) -> float:
    """Fraction of images whose predicted class is the label."""
    return counts.correct / counts.n


def top5(counts: Counts) -> float | None:
    """Fraction of images whose label is among the five most probable classes; None with five classes or fewer."""
    return None if counts.top5 is None else counts.top5 / counts.n


def nll(counts: Counts) -> float:
    """Mean negative natural log-likelihood of the label, at least 0."""
    return counts.nll_sum / counts.n


def brier(counts: Counts) -> float:
    """Mean squared error of the probability vector, summed over classes: 0 to 2."""
    return counts.brier_sum / counts.n


def ece(counts: Counts) -> float:
    """Expected calibration error over 15 equal-width bins: the mean distance of accuracy from confidence, 0 to 1.

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3.
    """
    gaps = (abs(hit - sure) for hit, sure in zip(counts.bin_correct, counts.bin_confidence, strict=True))
    return sum(gaps) / counts.n
