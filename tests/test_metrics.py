"""Metrics: every formula against an independent computation, and the laws they must obey."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from robustbench_ln.metrics import calibration
from robustbench_ln.metrics.accuracy import area_under_curve, clustered_interval, score_interval, wilson
from robustbench_ln.metrics.calibration import add, count, per_image
from robustbench_ln.types import N_BINS, Counts

Z = NormalDist().inv_cdf(0.975)
cases = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def random_log_probabilities(seed: int, images: int, classes: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (images, classes))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_p, rng.integers(0, classes, images)


# --- intervals


@pytest.mark.parametrize(("correct", "n"), [(1, 10), (8123, 10000), (499, 500), (3, 7), (50, 100)])
def test_wilson_bounds_solve_the_score_equation(correct: int, n: int) -> None:
    rate = correct / n

    def score(p: float) -> float:
        return (rate - p) ** 2 * n - Z**2 * p * (1 - p)

    low, high = wilson(correct, n)
    assert low == pytest.approx(brentq(score, 1e-12, rate), abs=1e-9)
    assert high == pytest.approx(brentq(score, rate, 1 - 1e-12), abs=1e-9)


def test_wilson_gives_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_exact_at_none_and_all() -> None:
    assert wilson(0, 20)[0] == 0.0
    assert wilson(0, 20)[1] == pytest.approx(Z**2 / (20 + Z**2))
    assert wilson(20, 20)[1] == 1.0
    assert wilson(20, 20)[0] == pytest.approx(20 / (20 + Z**2))


@given(cases)
def test_wilson_holds_the_rate_and_stays_within_0_and_1(case: tuple[int, int]) -> None:
    correct, n = case
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high


@given(cases, st.integers(2, 20))
def test_wilson_narrows_with_more_images(case: tuple[int, int], factor: int) -> None:
    correct, n = case
    few, many = wilson(correct, n), wilson(correct * factor, n * factor)
    assert many[1] - many[0] < few[1] - few[0]


@given(cases)
def test_wilson_widens_with_confidence(case: tuple[int, int]) -> None:
    low, high = wilson(*case, confidence=0.9)
    wider_low, wider_high = wilson(*case, confidence=0.99)
    assert wider_low <= low
    assert high <= wider_high


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="correct"):
        wilson(correct, n)


@given(cases)
def test_one_repeat_has_wilsons_interval(case: tuple[int, int]) -> None:
    correct, n = case
    hits = np.arange(n)[None] < correct
    assert clustered_interval(hits) == wilson(correct, n)


def test_repeats_that_agree_on_every_image_add_no_certainty() -> None:
    hits = np.random.default_rng(0).random(400) < 0.7
    assert clustered_interval(np.stack([hits] * 5)) == pytest.approx(wilson(int(hits.sum()), 400))


def test_independent_repeats_approach_the_interval_of_all_of_them() -> None:
    hits = np.random.default_rng(1).random((8, 5000)) < 0.6
    low, high = clustered_interval(hits)
    all_low, all_high = wilson(int(hits.sum()), hits.size)
    assert high - low == pytest.approx(all_high - all_low, rel=0.05)


@given(st.integers(1, 6), st.integers(1, 60), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_clustered_interval_lies_between_its_two_extremes(repeats: int, n: int, seed: int, rate: float) -> None:
    hits = np.random.default_rng(seed).random((repeats, n)) < rate
    mean = float(hits.mean())
    low, high = clustered_interval(hits)
    assert 0 <= low <= mean <= high <= 1
    widest, narrowest = score_interval(mean, n), score_interval(mean, n * repeats)
    width = high - low
    assert narrowest[1] - narrowest[0] - 1e-12 <= width <= widest[1] - widest[0] + 1e-12


def test_clustered_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Images of different difficulty, three redraws: pooled Wilson would cover about 83 % here.
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        difficulty = rng.beta(0.4, 0.4, 300)
        low, high = clustered_interval(rng.random((3, 300)) < difficulty)
        covered += low <= 0.5 <= high
    assert 0.925 < covered / 600 < 0.98


@pytest.mark.parametrize(
    "hits", [np.ones(4), np.ones((0, 4)), np.ones((2, 0)), np.full((2, 2), 1.5), np.full((1, 1), np.nan)]
)
def test_clustered_interval_refuses_what_are_no_hits(hits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="hits"):
        clustered_interval(hits)


# --- area


def test_area_under_hand_made_curves() -> None:
    assert area_under_curve([0, 1], [1, 0]) == 0.5
    assert area_under_curve([0, 1, 3], [0.9, 0.5, 0.1]) == pytest.approx((0.7 * 1 + 0.3 * 2) / 3)
    assert area_under_curve([0.5], [0.8]) == 0.8
    assert area_under_curve([2, 2], [0.8, 0.6]) == pytest.approx(0.7)


def test_area_does_not_mind_the_order_of_the_grid() -> None:
    assert area_under_curve([3, 0, 1], [0.1, 0.9, 0.5]) == area_under_curve([0, 1, 3], [0.9, 0.5, 0.1])


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=20))
def test_area_lies_between_the_worst_and_the_best_accuracy(points: list[tuple[float, float]]) -> None:
    levels, accuracies = zip(*points, strict=True)
    assert min(accuracies) - 1e-9 <= area_under_curve(levels, accuracies) <= max(accuracies) + 1e-9


@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_area_does_not_depend_on_the_unit_of_the_levels(scale: float, shift: float) -> None:
    levels, accuracies = np.array([0, 0.5, 2, 3]), [0.9, 0.7, 0.4, 0.3]
    moved = area_under_curve((levels * scale + shift).tolist(), accuracies)
    assert moved == pytest.approx(area_under_curve(levels.tolist(), accuracies))


@pytest.mark.parametrize(("levels", "accuracies"), [([], []), ([0, 1], [0.5]), ([0, float("nan")], [1, 1])])
def test_area_refuses_what_is_no_curve(levels: list[float], accuracies: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        area_under_curve(levels, accuracies)


# --- scores of images


@pytest.mark.parametrize("classes", [2, 5, 6, 10, 100])
def test_scores_equal_their_definitions(classes: int) -> None:
    log_p, labels = random_log_probabilities(3, 50, classes)
    scores = per_image(log_p, labels)
    for i, label in enumerate(labels):
        p = np.exp(log_p[i])
        target = np.eye(classes)[label]
        assert scores.confidence[i] == np.float32(p.max())
        assert scores.nll[i] == pytest.approx(-np.log(p[label]))
        assert scores.brier[i] == pytest.approx(((p - target) ** 2).sum())
        if scores.top5 is not None:
            assert scores.top5[i] == (label in np.argsort(p)[-5:])
    assert (scores.top5 is None) == (classes <= 5)
    assert scores.confidence.dtype == np.float32
    assert scores.nll.dtype == scores.brier.dtype == np.float64


def test_probability_zero_has_a_finite_likelihood() -> None:
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[1.0, 0.0], [0.0, 1.0]]))
    scores = per_image(log_p, np.array([1, 1]))
    assert np.isfinite(scores.nll).all()
    assert 744 < scores.nll[0] < 746
    assert scores.nll[1] == 0
    assert scores.brier.tolist() == [2.0, 0.0]


def test_tiny_probabilities_keep_their_likelihood() -> None:
    assert per_image(np.array([[0.0, -5000.0]]), np.array([1])).nll[0] == 5000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_never_right(bad: float) -> None:
    log_p = np.full((1, 10), -2.0)
    log_p[0, 3] = bad
    scores = per_image(log_p, np.array([0]))
    assert scores.confidence[0] == 0
    assert np.isfinite(scores.nll[0])
    assert scores.brier[0] == 1
    assert scores.top5 is not None
    assert not scores.top5[0]


def test_top_five_holds_exactly_five_classes_even_when_all_tie() -> None:
    labels = np.arange(8)
    scores = per_image(np.full((8, 8), np.log(1 / 8)), labels)
    assert scores.top5 is not None
    assert scores.top5.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize(("shape", "labels"), [((2, 3), [0]), ((2,), [0, 1]), ((2, 3), [0, 3]), ((2, 3), [-1, 0])])
def test_scores_refuse_labels_that_do_not_fit(shape: tuple[int, ...], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        per_image(np.zeros(shape), np.array(labels))


# --- counts


def counted(seed: int, images: int = 200, classes: int = 10) -> tuple[Counts, np.ndarray, np.ndarray]:
    log_p, labels = random_log_probabilities(seed, images, classes)
    return count(log_p.argmax(axis=1), *per_image(log_p, labels), labels), log_p, labels


def test_ratios_equal_their_definitions_by_brute_force() -> None:
    counts, log_p, labels = counted(4)
    p = np.exp(log_p)
    hit = p.argmax(axis=1) == labels
    sure = p.max(axis=1).astype(np.float32).astype(float)
    gap = 0.0
    for b in range(15):
        inside = (sure > b / 15) & (sure <= (b + 1) / 15)
        if inside.any():
            gap += inside.sum() / len(labels) * abs(hit[inside].mean() - sure[inside].mean())
        assert counts.bin_n[b] == inside.sum()
        assert counts.bin_correct[b] == hit[inside].sum()
    assert calibration.ece(counts) == pytest.approx(gap)
    assert calibration.accuracy(counts) == hit.mean()
    assert calibration.nll(counts) == pytest.approx(-log_p[np.arange(200), labels].mean())
    assert calibration.brier(counts) == pytest.approx(((p - np.eye(10)[labels]) ** 2).sum(axis=1).mean())
    in_five = [label in np.argsort(row)[-5:] for row, label in zip(p, labels, strict=True)]
    assert calibration.top5(counts) == np.mean(in_five)


def test_bins_hold_their_upper_edge_and_not_their_lower() -> None:
    confidence = np.array([0.0, 1 / 5, np.nextafter(np.float32(0.2), np.float32(1)), 1.0], np.float32)
    # float32(0.2) lies a little above 1/5, so the neighbour below it stands in for the edge.
    confidence[1] = np.nextafter(np.float32(0.2), np.float32(0))
    zeros = np.zeros(4)
    counts = count(np.zeros(4, int), confidence, zeros, zeros, None, np.zeros(4, int))
    assert {b: n for b, n in enumerate(counts.bin_n) if n} == {0: 1, 2: 1, 3: 1, 14: 1}
    half = count(np.zeros(1, int), np.array([0.6], np.float32), zeros[:1], zeros[:1], None, np.zeros(1, int))
    assert sum(half.bin_n) == 1


def test_a_calibrated_and_a_boastful_network_have_the_expected_errors() -> None:
    hits = np.array([True] * 8 + [False] * 2)
    zeros = np.zeros(10)
    labels = np.zeros(10, int)
    for confidence, error in ((0.8, 0.0), (1.0, 0.2)):
        counts = count(np.where(hits, 0, 1), np.full(10, confidence, np.float32), zeros, zeros, None, labels)
        assert calibration.ece(counts) == pytest.approx(error, abs=1e-7)


def test_the_prediction_counts_and_not_the_most_probable_class() -> None:
    log_p, labels = random_log_probabilities(5, 30, 10)
    voted = (labels + 1) % 10
    assert count(voted, *per_image(log_p, labels), labels).correct == 0
    assert count(labels, *per_image(log_p, labels), labels).correct == 30


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([3, 10]))
def test_counts_of_parts_add_up_to_the_counts_of_all(seed: int, cut: int, classes: int) -> None:
    log_p, labels = random_log_probabilities(seed, 60, classes)
    predicted, scores = log_p.argmax(axis=1), per_image(log_p, labels)

    def part(rows: slice) -> Counts:
        return count(predicted[rows], *(None if s is None else s[rows] for s in scores), labels[rows])

    together, whole = add(part(slice(cut)), part(slice(cut, None))), part(slice(None))
    assert (together.n, together.correct, together.top5) == (whole.n, whole.correct, whole.top5)
    assert (together.bin_n, together.bin_correct) == (whole.bin_n, whole.bin_correct)
    assert together.nll_sum == pytest.approx(whole.nll_sum)
    assert together.brier_sum == pytest.approx(whole.brier_sum)
    assert together.bin_confidence == pytest.approx(whole.bin_confidence)


def test_counts_without_images_change_nothing() -> None:
    counts, _, _ = counted(6)
    nothing = Counts(0, 0, None, 0.0, 0.0)
    assert add(counts, nothing) == add(nothing, counts) == counts


def test_counts_with_and_without_top_five_do_not_add() -> None:
    with pytest.raises(ValueError, match="top-5"):
        add(counted(7)[0], counted(7, classes=3)[0])


def test_arrays_of_different_lengths_are_refused() -> None:
    zeros = np.zeros(3)
    with pytest.raises(ValueError, match="length"):
        count(np.zeros(3, int), zeros.astype(np.float32), zeros, np.zeros(2), None, np.zeros(3, int))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_ratios_stay_in_their_ranges(seed: int) -> None:
    counts, _, _ = counted(seed, images=20)
    assert 0 <= calibration.ece(counts) <= 1
    assert 0 <= calibration.brier(counts) <= 2
    assert calibration.nll(counts) >= 0
    assert calibration.accuracy(counts) <= (calibration.top5(counts) or 0)
    assert len(counts.bin_n) == N_BINS
