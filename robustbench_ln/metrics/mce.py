"""Corruption error (CE), its mean (mCE) and their relative forms, with intervals. Errors are fractions everywhere.

CE_c = sum_s E(s, c) / sum_s R(s, c) for the errors E of a model and R of a normaliser at the severities s = 1 to 5;
mCE is the mean of CE over the 15 corruptions of `STANDARD`. The relative forms take the clean error off every E and R.

Source: Hendrycks & Dietterich, ICLR 2019, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import CONFIDENCE

Floats: TypeAlias = npt.NDArray[np.float64]

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The corruptions of ImageNet-C by group, in the field's order."""

STANDARD: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
"""The 15 corruptions that count for mCE."""

SEVERITIES = (1, 2, 3, 4, 5)

# Of torchvision's AlexNet on ImageNet-C, from github.com/hendrycks/robustness, issue 10.
ALEXNET_ERROR: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""AlexNet's top-1 error at severities 1 to 5, the field's normaliser for ImageNet-C."""

ALEXNET_CLEAN_ERROR = 0.435
"""AlexNet's top-1 error on the clean ImageNet validation set, for relative mCE."""

REPLICATES = 2000  # of a bootstrap: the 2.5 % points of 2,000 are steady to about 2 % of an interval's width
_LEAST_LOSS = 0.01  # mean loss over clean that a normaliser must have: less, and a relative CE is mostly noise
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """The errors of a model: all that mCE needs to know of it.

    Attributes:
        clean: error on clean images; None where it is not known.
        errors: corruption to its errors at severities 1 to 5, None where a cell was not run.
    """

    clean: float | None
    errors: Mapping[str, tuple[float | None, ...]]

    def __post_init__(self) -> None:
        for name, row in self.errors.items():
            if len(row) != len(SEVERITIES) or not all(error is None or 0 <= error <= 1 for error in row):
                raise ValueError(f"expected {len(SEVERITIES)} errors from 0 to 1 for {name}, got {row}")
        if self.clean is not None and not 0 <= self.clean <= 1:
            raise ValueError(f"expected a clean error from 0 to 1, got {self.clean}")

    @property
    def complete(self) -> dict[str, Floats]:
        """The corruptions with an error at every severity, the standard ones first: name to (5,)."""
        names = [*(name for name in STANDARD if name in self.errors), *(n for n in self.errors if n not in STANDARD)]
        rows = {name: [error for error in self.errors[name] if error is not None] for name in names}
        return {name: np.array(row) for name, row in rows.items() if len(row) == len(SEVERITIES)}


ALEXNET = ErrorTable(ALEXNET_CLEAN_ERROR, ALEXNET_ERROR)


@dataclass(frozen=True, slots=True)
class WrongImages:
    """What an :class:`ErrorTable` is the mean of: was each image predicted wrong, for all conditions in one order.

    Attributes:
        clean: (N,) 0 or 1; None where it is not known.
        errors: corruption to (5, N), 0 or 1, or the mean over repeats.
    """

    clean: Floats | None
    errors: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval, the latter None where single images are not known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a table comes to. What cannot be said is None or left out, and never a mean over other things.

    Attributes:
        complete: those of the 15 with an error at every severity; fewer than 15 withhold mCE.
        mean_error: plain mean over the severities of `complete`, not normalised; None when that is empty.
        groups: group to its plain mean error, for groups that are complete.
        ce: corruption to its CE, where the normaliser has it.
        relative_ce: corruption to its relative CE.
        mce: mean of CE over the 15.
        relative_mce: mean of relative CE over the 15.
    """

    complete: tuple[str, ...] = ()
    mean_error: Estimate | None = None
    groups: Mapping[str, Estimate] = field(default_factory=dict)
    ce: Mapping[str, Estimate] = field(default_factory=dict)
    relative_ce: Mapping[str, Estimate] = field(default_factory=dict)
    mce: Estimate | None = None
    relative_mce: Estimate | None = None


def score(
    table: ErrorTable,
    normaliser: ErrorTable | None = None,
    wrong: WrongImages | None = None,
    *,
    replicates: int = REPLICATES,
) -> Scores:
    """Bring a table of errors to CE, mCE, their relative forms, and plain means.

    Intervals are bootstrapped over images: a replicate draws N images with replacement, the same for every condition,
    so that what conditions share through their images is kept. The normaliser counts as exact, as a published table
    does. The same input gives the same interval.

    Args:
        table: errors of the model.
        normaliser: errors to divide by; None for plain means only.
        wrong: the images behind `table`, for intervals; cells that it lacks leave all intervals out.
        replicates: of the bootstrap.
    Raises: ValueError for `wrong` of several lengths.
    """
    rows = table.complete
    clean = None if table.clean is None else np.asarray(table.clean)
    values = _statistics(clean, rows, normaliser)
    bounds: dict[tuple[str, str], Floats] = {}
    if rows and wrong is not None and rows.keys() <= wrong.errors.keys() and (clean is None or wrong.clean is not None):
        parts = [] if clean is None or wrong.clean is None else [wrong.clean[None]]
        images = np.concatenate([*parts, *(wrong.errors[name] for name in rows)])
        drawn = bootstrap_means(images, replicates=replicates)
        cells = drawn[:, len(parts) :].reshape(len(drawn), len(rows), len(SEVERITIES))
        draws = _statistics(
            drawn[:, 0] if parts else None, dict(zip(rows, cells.swapaxes(0, 1), strict=True)), normaliser
        )
        tail = (1 - CONFIDENCE) / 2
        bounds = {key: np.quantile(values_drawn, (tail, 1 - tail)) for key, values_drawn in draws.items()}

    def estimate(kind: str, name: str = "") -> Estimate | None:
        if (kind, name) not in values:
            return None
        value = float(values[kind, name])
        if (kind, name) not in bounds:
            return Estimate(value)
        low, high = bounds[kind, name]
        return Estimate(value, min(float(low), value), max(float(high), value))

    def estimates(kind: str) -> dict[str, Estimate]:
        found = {name: estimate(kind, name) for of_kind, name in values if of_kind == kind}
        return {name: one for name, one in found.items() if one is not None}

    return Scores(
        complete=tuple(name for name in STANDARD if name in rows),
        mean_error=estimate("mean_error"),
        groups=estimates("group"),
        ce=estimates("ce"),
        relative_ce=estimates("relative_ce"),
        mce=estimate("mce"),
        relative_mce=estimate("relative_mce"),
    )


def bootstrap_means(values: npt.NDArray[np.floating], *, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """Means over images that are drawn with replacement, the same images for every row.

    Args:
        values: (C, N), an observation of each of N images in each of C conditions.
        replicates: how many draws, B.
        seed: of the draws.
    Returns: (B, C) means.
    """
    n = values.shape[1]
    rng = np.random.default_rng(seed)
    # Sums of 0 and 1 are exact in float32, and twice as fast.
    columns = np.ascontiguousarray(values.T, np.float32)
    means = np.empty((replicates, len(values)))
    for start in range(0, replicates, _CHUNK):
        rows = min(_CHUNK, replicates - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = times.astype(np.float32) @ columns / n
    return means


def _statistics(
    clean: Floats | None, errors: Mapping[str, Floats], normaliser: ErrorTable | None
) -> dict[tuple[str, str], Floats]:
    """Every (kind, name) that can be said of complete corruptions.

    Args:
        clean: (...,) clean error, or None.
        errors: corruption to (..., 5).
        normaliser: errors to divide by.
    Returns: values of shape (...,): one for a table, B for the replicates of a bootstrap.
    """
    found: dict[tuple[str, str], Floats] = {}
    standard = [name for name in STANDARD if name in errors]
    if standard:
        found["mean_error", ""] = np.mean([errors[name].mean(axis=-1) for name in standard], axis=0)
    for group, names in GROUPS.items():
        if all(name in errors for name in names):
            found["group", group] = np.mean([errors[name].mean(axis=-1) for name in names], axis=0)
    if normaliser is None:
        return found
    for name, reference in normaliser.complete.items():
        if name in errors and reference.sum() > 0:
            found["ce", name] = errors[name].sum(axis=-1) / reference.sum()
        if name not in errors or clean is None or normaliser.clean is None:
            continue
        loss = reference.sum() - len(SEVERITIES) * normaliser.clean
        if loss >= len(SEVERITIES) * _LEAST_LOSS:
            found["relative_ce", name] = (errors[name].sum(axis=-1) - len(SEVERITIES) * clean) / loss
    for one, mean in (("ce", "mce"), ("relative_ce", "relative_mce")):
        if all((one, name) in found for name in STANDARD):
            found[mean, ""] = np.mean([found[one, name] for name in STANDARD], axis=0)
    return found
