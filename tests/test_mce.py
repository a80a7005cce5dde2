"""CE, mCE and their intervals: against the published table, by hand, and by simulation."""

from __future__ import annotations

import time
from statistics import NormalDist

import numpy as np
import pytest

from robustbench_ln.corruptions import load_suite
from robustbench_ln.metrics.mce import (
    ALEXNET,
    ALEXNET_ERROR,
    GROUPS,
    STANDARD,
    ErrorTable,
    WrongImages,
    bootstrap_means,
    score,
)


def flat(error: float, clean: float | None = 0.1, **other: float) -> ErrorTable:
    """The same error everywhere, but for the corruptions of `other`."""
    return ErrorTable(clean, {name: (other.get(name, error),) * 5 for name in STANDARD})


# The published denominators of CE (mean error over the five severities), and their mean.
DENOMINATORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def test_the_table_has_the_published_means() -> None:
    assert {name: float(np.mean(row)) for name, row in ALEXNET_ERROR.items()} == pytest.approx(DENOMINATORS, abs=1e-9)
    assert tuple(ALEXNET_ERROR) == STANDARD == tuple(DENOMINATORS)


def test_the_fifteen_are_the_common_ones_of_every_suite() -> None:
    suite = load_suite("imagenet-c")
    assert [one.name for one in suite.corruptions.values() if not one.extra] == list(STANDARD)
    for group, names in GROUPS.items():
        assert {suite[name].family for name in names} == {group}


def test_alexnet_against_itself_is_one_exactly() -> None:
    scores = score(ALEXNET, ALEXNET)
    assert scores.mce is not None
    assert scores.relative_mce is not None
    assert scores.mce.value == 1.0
    assert scores.relative_mce.value == 1.0
    assert {one.value for one in scores.ce.values()} == {1.0}
    assert scores.mean_error is not None
    assert scores.mean_error.value == pytest.approx(0.788993, abs=1e-6)


def test_a_table_worked_by_hand() -> None:
    # The model errs 0.3 everywhere and 0.6 under fog, the normaliser 0.6 and 0.8: CE is 0.5 fourteen times, and 0.75.
    model, normaliser = flat(0.3, 0.1, fog=0.6), flat(0.6, 0.2, fog=0.8)
    scores = score(model, normaliser)
    assert scores.ce["snow"].value == pytest.approx(0.5)
    assert scores.ce["fog"].value == pytest.approx(0.75)
    assert scores.mce is not None
    assert scores.mce.value == pytest.approx((14 * 0.5 + 0.75) / 15)
    # Relative: 0.2 / 0.4 fourteen times, and 0.5 / 0.6.
    assert scores.relative_mce is not None
    assert scores.relative_mce.value == pytest.approx((14 * 0.5 + 0.5 / 0.6) / 15)
    assert scores.mean_error is not None
    assert scores.mean_error.value == pytest.approx((14 * 0.3 + 0.6) / 15)
    assert {group: one.value for group, one in scores.groups.items()} == pytest.approx(
        {"noise": 0.3, "blur": 0.3, "weather": 0.375, "digital": 0.3}
    )


def test_severities_are_summed_before_the_division() -> None:
    # 1.5 / 2.5, not the mean of the five ratios.
    model = ErrorTable(0.1, {"fog": (0.1, 0.2, 0.3, 0.4, 0.5)})
    normaliser = ErrorTable(0.2, {"fog": (0.3, 0.4, 0.5, 0.6, 0.7)})
    assert score(model, normaliser).ce["fog"].value == pytest.approx(0.6)
    assert score(model, normaliser).relative_ce["fog"].value == pytest.approx((1.5 - 0.5) / (2.5 - 1.0))


@pytest.mark.parametrize("gap", ["cell", "corruption", "normaliser"])
def test_a_missing_cell_gives_no_mce(gap: str) -> None:
    whole, holed = flat(0.3), dict(flat(0.3).errors)
    if gap == "corruption":
        del holed["snow"]
    else:
        holed["snow"] = (0.3, 0.3, None, 0.3, 0.3)
    table = ErrorTable(0.1, holed)
    scores = score(whole, table) if gap == "normaliser" else score(table, ALEXNET)
    assert scores.mce is None
    assert scores.relative_mce is None
    assert "snow" not in scores.ce
    assert len(scores.ce) == 14
    assert len(scores.complete) == (15 if gap == "normaliser" else 14)
    assert ("weather" in scores.groups) == (gap == "normaliser")


def test_without_a_normaliser_there_are_plain_means_only() -> None:
    scores = score(flat(0.3))
    assert scores.mean_error is not None
    assert scores.mce is scores.relative_mce is None
    assert not scores.ce


def test_without_a_clean_error_there_is_no_relative_mce() -> None:
    assert score(flat(0.3, None), ALEXNET).relative_mce is None
    assert score(flat(0.3), flat(0.6, None)).relative_mce is None
    assert score(flat(0.3, None), ALEXNET).mce is not None


def test_a_normaliser_that_loses_nothing_gives_no_relative_mce() -> None:
    scores = score(flat(0.3), flat(0.6, 0.595))
    assert scores.relative_mce is None
    assert scores.mce is not None


def test_a_normaliser_without_errors_gives_no_mce() -> None:
    assert score(flat(0.3), flat(0.0)).mce is None


def test_further_corruptions_take_no_part_in_means() -> None:
    more = ErrorTable(0.1, {**flat(0.3).errors, "spatter": (1.0,) * 5})
    plain, scores = score(flat(0.3), ALEXNET), score(more, ALEXNET)
    assert (scores.mce, scores.mean_error) == (plain.mce, plain.mean_error)
    assert score(more, more).ce["spatter"].value == 1.0


def test_an_empty_table_says_nothing() -> None:
    scores = score(ErrorTable(0.1, {}), ALEXNET)
    assert scores.complete == ()
    assert scores.mean_error is scores.mce is None


@pytest.mark.parametrize("row", [(0.1,) * 4, (0.1,) * 4 + (1.2,), (0.1,) * 4 + (float("nan"),)])
def test_what_is_no_table_of_errors_is_refused(row: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fog"):
        ErrorTable(0.1, {"fog": row})


# --- intervals


def drawn(n: int, seed: int, sd: float = 1.5) -> tuple[ErrorTable, WrongImages, ErrorTable]:
    """A table of N random images, the images, and the truth: an image of difficulty d errs where a + sd·d + e > 0."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    phi = NormalDist().cdf
    errors, truth, offsets = {}, {}, {}
    for c, name in enumerate(STANDARD):
        offsets[name] = np.linspace(-2.5, 1.5, 5) + 0.1 * c
        latent = offsets[name][:, None] + sd * difficulty + rng.normal(size=(5, n))
        errors[name] = (latent > 0).astype(float)
        truth[name] = tuple(phi(a / (1 + sd**2) ** 0.5) for a in offsets[name])
    clean = (-3 + sd * difficulty + rng.normal(size=n) > 0).astype(float)
    table = ErrorTable(float(clean.mean()), {name: tuple(row.mean(axis=1).tolist()) for name, row in errors.items()})
    return table, WrongImages(clean, errors), ErrorTable(phi(-3 / (1 + sd**2) ** 0.5), truth)


def test_intervals_surround_their_value_and_repeat() -> None:
    table, wrong, _ = drawn(400, 0)
    scores = score(table, ALEXNET, wrong)
    every = [scores.mce, scores.relative_mce, scores.mean_error, *scores.ce.values(), *scores.groups.values()]
    for one in every:
        assert one is not None
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
    assert score(table, ALEXNET, wrong) == scores
    assert score(table, ALEXNET).mce == type(one)(scores.mce.value)  # type: ignore[union-attr]


def test_the_image_is_the_unit_across_conditions() -> None:
    # Every condition errs on the same images: 75 cells know no more than one, and the interval must be as wide.
    rng = np.random.default_rng(1)
    same = (rng.random(1000) < 0.3).astype(float)
    wrong = WrongImages(same, {name: np.tile(same, (5, 1)) for name in STANDARD})
    table = flat(float(same.mean()))
    mean = score(table, None, wrong).mean_error
    assert mean is not None
    assert mean.low is not None
    assert mean.high is not None
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 1000), rel=0.08)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = {"mce": 0, "relative_mce": 0, "mean_error": 0}
    trials = 300
    for seed in range(trials):
        table, wrong, truth = drawn(300, seed)
        found, true = score(table, ALEXNET, wrong, replicates=400), score(truth, ALEXNET)
        for name in held:
            one, value = getattr(found, name), getattr(true, name).value
            held[name] += one.low <= value <= one.high
    # 95 %, and three standard errors of 300 trials.
    assert all(0.912 <= count / trials <= 0.988 for count in held.values()), held


def test_cells_without_images_leave_the_intervals_out() -> None:
    table, wrong, _ = drawn(50, 0)
    partial = WrongImages(wrong.clean, {name: row for name, row in wrong.errors.items() if name != "fog"})
    scores = score(table, ALEXNET, partial)
    assert scores.mce is not None
    assert scores.mce.low is None


def test_bootstrap_means_draw_the_same_images_for_every_condition() -> None:
    values = np.random.default_rng(0).random((1, 200)).repeat(2, axis=0)
    means = bootstrap_means(values, replicates=250)
    assert means.shape == (250, 2)
    assert np.allclose(means[:, 0], means[:, 1], atol=1e-6)
    assert means.std() == pytest.approx(values[0].std() / np.sqrt(200), rel=0.15)


def test_ten_thousand_images_are_no_wait() -> None:
    table, wrong, _ = drawn(10_000, 0)
    start = time.perf_counter()
    score(table, ALEXNET, wrong)
    assert time.perf_counter() - start < 10  # 0.5 s on a free core; CI machines are shared
