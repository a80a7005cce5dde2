"""How often the gate errs, and what it finds: comparisons whose truth is known, simulated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from robustbench_ln.benchmarks.timing import machine
from robustbench_ln.errors import UsageError
from robustbench_ln.metrics.bootstrap import BootstrapMean
from robustbench_ln.metrics.mce import ALEXNET_ERROR
from robustbench_ln.metrics.paired import Side, paired_p
from robustbench_ln.metrics.sequential import SequentialMean

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]

MARGINS = (0.0, 0.01)
DISAGREEMENTS = (0.01, 0.05, 0.15)
_FAR = 0.10  # a gross failure
_SEED = 0
_LOOKS_AT_ONCE = 10  # to save time; verdicts are as if each look came by itself
_MORE_FIXED = 10  # comparisons of the fixed gate for each of the sequential one, since they are cheap
_SIDES: dict[str, Side] = {"fail": "worse", "pass": "fine"}


def bench_gate(
    *,
    times: int = 2_000,
    n: int = 10_000,
    alpha: float = 0.01,
    batch: int = 100,
    on_row: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Simulate comparisons of two models, and count the verdicts.

    Args:
        times: comparisons a row for the sequential gate; the fixed one, which is cheap, gets ten times as many.
        n: images of a comparison.
        alpha: level of the tests.
        batch: images between two looks of the sequential gate.
        on_row: called with every row as it is done.

    Returns: ``{"schema_version", "machine", "threads", "n", "alpha", "times", "batch", "rows"}``. A row is a situation
        and what each gate did in it: ``{"what", "max_drop", "drop", "disagreement", "fixed": {"fail", "pass",
        "comparisons"}, "sequential": {"fail", "pass", "images", "comparisons"}, "seconds"}``: shares of the
        comparisons, and the mean share of images used. ``pass`` is that of noninferiority: the limit is shown to be
        kept. The last row is ``{"what", "coverage"}``, of bootstrap intervals of mCE.

    Raises:
        UsageError: fewer than 100 comparisons or images.
    """
    if min(times, n) < 100 or not 0 < alpha <= 0.5 or batch < 1:
        raise UsageError(
            "too little to count", found=f"{times} comparisons of {n} images", hint="at least 100 of both, alpha <= 0.5"
        )
    generator, fixed_generator = np.random.default_rng(_SEED), np.random.default_rng(_SEED + 1)
    situations = [
        # At margin 0, no change is the margin.
        *(("no change", margin, 0.0, apart) for margin in MARGINS for apart in DISAGREEMENTS),
        *(("at the margin", margin, margin, apart) for margin in MARGINS if margin for apart in DISAGREEMENTS),
        *(("a point beyond", margin, margin + 0.01, 0.05) for margin in MARGINS),
        *(("gross failure", margin, _FAR, 0.15) for margin in MARGINS),
    ]
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        if on_row is not None:
            on_row(row)

    for what, margin, drop, apart in situations:
        start = time.perf_counter()
        fixed = _fixed(fixed_generator, times, n, alpha, margin, drop, apart)
        sequential = _sequential(generator, times, n, alpha, batch, margin, drop, apart)
        done(
            {
                "what": what, "max_drop": margin, "drop": drop, "disagreement": apart, "fixed": fixed,
                "sequential": sequential, "seconds": round(time.perf_counter() - start, 2),
            }
        )  # fmt: skip
    done({"what": "coverage of mCE intervals", "coverage": _coverage(generator, min(times, 1_000))})
    return {
        "schema_version": 1, "machine": machine(), "threads": 1, "n": n, "alpha": alpha, "times": times,
        "batch": batch, "rows": rows,
    }  # fmt: skip


def _fixed(
    generator: np.random.Generator, times: int, n: int, alpha: float, margin: float, drop: float, apart: float
) -> dict[str, float]:
    """Shares of verdicts of the fixed gate. Counts are all that it needs, and those are drawn at once."""
    times *= _MORE_FIXED
    lost, gained, _ = generator.multinomial(n, _shares(apart, drop), size=times).T
    shares = {word: float((paired_p(n, lost, gained, margin, side) <= alpha).mean()) for word, side in _SIDES.items()}
    return {**shares, "comparisons": times}


def _sequential(
    generator: np.random.Generator,
    times: int,
    n: int,
    alpha: float,
    batch: int,
    margin: float,
    drop: float,
    apart: float,
) -> dict[str, float]:
    """Shares of verdicts of the sequential gate, and the mean share of images it took."""
    counted, images = {"fail": 0, "pass": 0, "inconclusive": 0}, 0
    for _ in range(times):
        drops = generator.choice([1.0, -1.0, 0.0], n, p=_shares(apart, drop))
        word, used = _stopped(drops, alpha, batch, margin)
        counted[word] += 1
        images += used
    shares = {word: counted[word] / times for word in _SIDES}
    return {**shares, "images": images / (times * n), "comparisons": times}


def _shares(apart: float, drop: float) -> list[float]:
    """Probabilities that an image is lost, gained, or the same."""
    return [(apart + drop) / 2, (apart - drop) / 2, 1 - apart]


def _stopped(drops: Floats, alpha: float, batch: int, margin: float) -> tuple[str, int]:
    """The sequential gate's verdict, looking after every batch, and how many images it took."""
    test = SequentialMean(margin, drops.size)
    for first in range(0, drops.size, _LOOKS_AT_ONCE * batch):
        p = test.update(drops[first : first + _LOOKS_AT_ONCE * batch])
        size = p["worse"].size
        looks = np.unique(np.append(np.arange(batch, size + 1, batch), size)) - 1
        found = {word: _first(p[side][looks] <= alpha) for word, side in _SIDES.items()}
        word = min(found, key=found.__getitem__)
        if found[word] < looks.size:
            return word, first + int(looks[found[word]]) + 1
    return "inconclusive", drops.size


def _first(found: npt.NDArray[np.bool_]) -> int:
    """Index of the first look that found something; past the end where none did."""
    return int(found.argmax()) if found.any() else found.size


def _coverage(generator: np.random.Generator, times: int, n: int = 1_000) -> float:
    """How often the 95 % interval of an mCE of simulated images holds the truth.

    An image has one difficulty for all 75 cells, so that its outcomes hang together as those of real images do.
    """
    reference = np.array(list(ALEXNET_ERROR.values()))
    weights = (1 / reference.sum(axis=1, keepdims=True) / len(reference) * np.ones_like(reference)).ravel()
    levels = 0.8 * reference.ravel()
    # The chance of an error is linear in the image's difficulty, which is uniform: its mean is the level.
    truth = float(weights @ levels)
    inside = 0
    for _ in range(times):
        difficulty = generator.random((n, 1))
        slope = np.minimum(levels, 1 - levels)
        errors = generator.random((n, levels.size)) < levels + slope * (2 * difficulty - 1)
        low, high = BootstrapMean(errors @ weights, low=0.0, high=float(weights.sum())).interval()
        inside += low <= truth <= high
    return inside / times
