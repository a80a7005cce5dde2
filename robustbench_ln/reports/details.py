"""What lies below the sheet: calibration by confidence, and the images that degradation takes away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from robustbench_ln.metrics import calibration
from robustbench_ln.results import DocumentRow, Results

MOST_LOST = 12


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well confidence tells accuracy.

    Attributes:
        name: ``clean`` or ``degraded``.
        n: predictions counted.
        bins: confidence, accuracy and count of each bin that is not empty, by rising confidence.
        ece: expected calibration error.
        nll: mean negative log-likelihood.
        brier: mean squared error of the probabilities.
    """

    name: str
    n: int
    bins: tuple[tuple[float, float, int], ...]
    ece: float
    nll: float
    brier: float


@dataclass(frozen=True, slots=True)
class LostImage:
    """An image that is right when clean.

    Attributes:
        index: in the data set.
        label: its class.
        lost: conditions under which it is predicted wrong.
        taken_for: the class it is then predicted as most often; None where there were no finite logits.
    """

    index: int
    label: int
    lost: int
    taken_for: int | None


@dataclass(frozen=True, slots=True)
class Flips:
    """Which images flip from right to wrong.

    Attributes:
        conditions: how many degradations were counted.
        right: images that are right when clean.
        kept: of those, the ones that stay right under every condition.
        shares: of those, the fraction lost in 0 to 10 %, 10 to 20 % ... of the conditions, `kept` ones left out.
        gained: mean fraction of images wrong when clean that a condition turns right; None where all are right.
        most: the images lost most often.
    """

    conditions: int
    right: int
    kept: int
    shares: tuple[float, ...]
    gained: float | None
    most: tuple[LostImage, ...]


def reliabilities(clean: Sequence[DocumentRow], degraded: Sequence[DocumentRow]) -> tuple[Reliability, ...]:
    """Calibration of clean images and of all degraded ones together, for those whose counts are known."""
    found = []
    for name, rows in (("clean", clean), ("degraded", degraded)):
        known = [row.counts.to_counts() for row in rows if row.counts is not None]
        if not known or len(known) < len(rows):
            continue
        counts = reduce(calibration.add, known)
        bins = tuple(
            (sure / n, right / n, n)
            for n, right, sure in zip(counts.bin_n, counts.bin_correct, counts.bin_confidence, strict=True)
            if n
        )
        ratios = calibration.ece(counts), calibration.nll(counts), calibration.brier(counts)
        found.append(Reliability(name, counts.n, bins, *ratios))
    return tuple(found)


def flips_of(results: Results, clean: DocumentRow, degraded: Sequence[DocumentRow]) -> Flips | None:
    """The images that flip between clean and degraded; None where predictions were not kept for all rows.

    Args:
        results: what the rows are of.
        clean: the row of clean images.
        degraded: the rows of degraded ones.
    """
    before = results.predictions(clean)
    after = [results.predictions(row) for row in degraded]
    if results.scored is None or before is None:
        return None
    indices, labels, _ = results.scored
    predicted = [one[0] for one in after if one is not None]
    if len(predicted) < len(degraded) or any(len(one) != len(labels) for one in (before[0], *predicted)):
        return None
    classes = np.stack(predicted)
    wrong = classes != labels
    right = before[0] == labels
    lost = np.where(right, wrong.sum(axis=0), 0)
    worst = [int(i) for i in np.argsort(-lost, kind="stable")[:MOST_LOST] if lost[i]]
    tenths = np.ceil(lost[right] / len(classes) * 10).astype(int)
    most = []
    for i in worst:
        names, counts = np.unique(classes[wrong[:, i], i], return_counts=True)
        often = int(names[counts.argmax()])
        most.append(LostImage(int(indices[i]), int(labels[i]), int(lost[i]), often if often >= 0 else None))
    n = int(right.sum())
    return Flips(
        conditions=len(classes),
        right=n,
        kept=int((right & (lost == 0)).sum()),
        shares=tuple((np.bincount(tenths, minlength=11)[1:] / max(n, 1)).tolist()),
        gained=None if right.all() else float((~wrong[:, ~right]).mean()),
        most=tuple(most),
    )
