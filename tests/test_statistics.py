"""The statistics of comparisons, against other ways to the same numbers and against simulated truth."""

from __future__ import annotations

from itertools import permutations, product
from math import comb, log, sqrt

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from robustbench_ln.metrics.bootstrap import BootstrapMean
from robustbench_ln.metrics.paired import (
    Pairs,
    binomial_p,
    count_pairs,
    detectable_drop,
    detectable_mean,
    holm,
    mcnemar,
    mcnemar_two_sided,
    paired_interval,
    paired_p,
    score_statistic,
    unpaired_interval,
    unpaired_p,
    unpaired_statistic,
)
from robustbench_ln.metrics.sequential import STAKES, BettingTest, betting_interval, one_look_p


def simulated(n: int, disagreement: float, drop: float, times: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of lost and gained images of many comparisons with a known drop."""
    generator = np.random.default_rng(seed)
    shares = [(disagreement + drop) / 2, (disagreement - drop) / 2, 1 - disagreement]
    lost, gained, _ = generator.multinomial(n, shares, size=times).T
    return lost, gained


def test_pairs_are_counted() -> None:
    pairs = count_pairs(np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool))
    assert pairs == Pairs(5, lost=2, gained=1)
    assert (pairs.drop, pairs.disagreement) == (0.2, 0.6)
    with pytest.raises(ValueError, match="shape"):
        count_pairs(np.ones(3, bool), np.ones(4, bool))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 3), (3, 0), (7, 2), (40, 41), (260, 200)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    differ = lost + gained
    exact = sum(comb(differ, k) for k in range(lost, differ + 1)) / 2**differ
    assert mcnemar(lost, gained) == pytest.approx(exact, rel=1e-9)
    two = stats.binomtest(lost, differ).pvalue if differ else 1.0
    assert mcnemar_two_sided(lost, gained) == pytest.approx(two, rel=1e-9)


def restricted_paired(n: int, lost: int, gained: int, drop: float) -> float:
    """Tango's statistic with the restricted maximum likelihood found by search."""

    def minus_likelihood(gain: float) -> float:
        same = 1 - 2 * gain - drop
        return -(lost * log(gain + drop) + gained * log(gain) + (n - lost - gained) * log(same))

    low, high = max(0.0, -drop), (1 - drop) / 2
    gain = minimize_scalar(minus_likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded",
                           options={"xatol": 1e-12}).x  # fmt: skip
    return float((lost - gained - n * drop) / sqrt(n * (2 * gain + drop - drop**2)))


@pytest.mark.parametrize(("n", "lost", "gained"), [(100, 12, 5), (1000, 7, 30), (50, 20, 20)])
@pytest.mark.parametrize("drop", [-0.1, 0.01, 0.05, 0.3])
def test_the_paired_score_statistic_uses_the_restricted_maximum(n: int, lost: int, gained: int, drop: float) -> None:
    assert score_statistic(n, lost, gained, drop) == pytest.approx(restricted_paired(n, lost, gained, drop), rel=1e-4)


def test_the_paired_score_statistic_without_margin_is_mcnemars() -> None:
    assert score_statistic(500, 30, 14, 0.0) == pytest.approx((30 - 14) / sqrt(30 + 14))
    assert score_statistic(500, 0, 0, 0.0) == 0.0


def test_the_paired_interval_is_where_the_test_stops_rejecting() -> None:
    low, high = paired_interval(Pairs(44, lost=1, gained=0))
    assert low < 1 / 44 < high
    assert score_statistic(44, 1, 0, low) == pytest.approx(1.959964, abs=1e-5)
    assert score_statistic(44, 1, 0, high) == pytest.approx(-1.959964, abs=1e-5)


def restricted_unpaired(x: int, n: int, y: int, m: int, drop: float) -> float:
    def minus_likelihood(p: float) -> float:
        q = p - drop
        return -(x * log(p) + (n - x) * log(1 - p) + y * log(q) + (m - y) * log(1 - q))

    low, high = max(0.0, drop), min(1.0, 1 + drop)
    p = minimize_scalar(minus_likelihood, bounds=(low + 1e-12, high - 1e-12), method="bounded",
                        options={"xatol": 1e-12}).x  # fmt: skip
    q = p - drop
    variance = (p * (1 - p) / n + q * (1 - q) / m) * (n + m) / (n + m - 1)
    return float((x / n - y / m - drop) / sqrt(variance))


@pytest.mark.parametrize(("x", "n", "y", "m"), [(80, 100, 70, 120), (950, 1000, 940, 1000), (5, 50, 30, 60)])
@pytest.mark.parametrize("drop", [-0.2, 0.0, 0.01, 0.3])
def test_the_unpaired_score_statistic_uses_the_restricted_maximum(x: int, n: int, y: int, m: int, drop: float) -> None:
    assert unpaired_statistic(x, n, y, m, drop) == pytest.approx(restricted_unpaired(x, n, y, m, drop), rel=1e-4)


def test_the_unpaired_statistic_holds_at_the_edges() -> None:
    assert unpaired_statistic(100, 100, 100, 100, 0.0) == 0.0
    assert np.isfinite(unpaired_statistic(100, 100, 100, 100, 0.01))
    assert np.isfinite(unpaired_statistic(0, 100, 0, 100, 0.01))
    low, high = unpaired_interval(100, 100, 100, 100)
    assert -0.1 < low < 0 < high < 0.1


def test_pairing_tells_more_than_two_separate_results() -> None:
    # 8,000 and 7,900 of 10,000 right: 300 images differ when paired.
    assert paired_p(10_000, 200, 100, 0.005, "worse") < 0.01 < unpaired_p(8_000, 10_000, 7_900, 10_000, 0.005, "worse")


@pytest.mark.parametrize("max_drop", [0.0, 0.01])
@pytest.mark.parametrize("side", ["worse", "fine"])
@pytest.mark.parametrize("disagreement", [0.01, 0.05, 0.15])
def test_a_fixed_test_errs_as_often_as_alpha_says(max_drop: float, side: str, disagreement: float) -> None:
    lost, gained = simulated(10_000, disagreement, max_drop, times=20_000)
    assert (paired_p(10_000, lost, gained, max_drop, side) <= 0.01).mean() <= 0.0125


def test_a_drop_of_a_point_beyond_the_margin_is_found() -> None:
    lost, gained = simulated(10_000, 0.05, 0.02, times=2_000)
    assert (paired_p(10_000, lost, gained, 0.01, "worse") <= 0.01).mean() >= 0.95


@pytest.mark.parametrize("disagreement", [0.02, 0.1])
def test_the_paired_interval_covers(disagreement: float) -> None:
    lost, gained = simulated(1_000, disagreement, 0.01, times=800)
    bounds = [paired_interval(Pairs(1_000, int(a), int(b))) for a, b in zip(lost, gained, strict=True)]
    assert 0.93 <= np.mean([low <= 0.01 <= high for low, high in bounds]) <= 0.975


@pytest.mark.parametrize("max_drop", [0.0, 0.01])
@pytest.mark.parametrize("disagreement", [0.05, 0.001])
def test_the_smallest_detectable_drop_is_found_four_times_in_five(max_drop: float, disagreement: float) -> None:
    drop = detectable_drop(10_000, disagreement, max_drop, 0.01)
    lost, gained = simulated(10_000, max(disagreement, drop), drop, times=4_000)
    assert 0.74 <= (paired_p(10_000, lost, gained, max_drop, "worse") <= 0.01).mean() <= 0.88


def test_an_absolute_bound_is_tested_exactly() -> None:
    assert binomial_p(70, 100, 0.8, "worse") == pytest.approx(stats.binomtest(70, 100, 0.8, "less").pvalue)
    assert binomial_p(90, 100, 0.8, "fine") == pytest.approx(stats.binomtest(90, 100, 0.8, "greater").pvalue)
    assert binomial_p(0, 100, 0.8, "fine") == 1.0


def test_holm_rejects_what_stepping_down_rejects() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = list(generator.uniform(0, 0.1, 6).round(3))
        adjusted = holm(p)
        for alpha in (0.01, 0.05, 0.2):
            rejected: set[int] = set()
            for rank, index in enumerate(sorted(range(6), key=p.__getitem__)):
                if p[index] > alpha / (6 - rank):
                    break
                rejected.add(index)
            assert {i for i, value in enumerate(adjusted) if value <= alpha * (1 + 1e-12)} == rejected
    assert holm([]) == []


def clustered(n: int, conditions: int, drop: float, generator: np.random.Generator) -> np.ndarray:
    """Mean differences over conditions, of images on which both the models and the conditions agree more or less."""
    difficult = generator.beta(0.1, 1.0, n)[:, None]
    differs = generator.random((n, conditions)) < difficult
    sign = np.where(generator.random((n, conditions)) < 0.5 + drop, 1.0, -1.0)
    return (differs * sign).mean(axis=1)


def test_the_bootstrap_interval_of_a_mean_covers() -> None:
    generator = np.random.default_rng(0)
    truth = 2 * 0.1 * 0.1 / 1.1
    bounds = [
        BootstrapMean(clustered(2_000, 5, 0.1, generator), low=-1, high=1, draws=999).interval() for _ in range(800)
    ]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in bounds]) <= 0.97


def test_the_bootstrap_takes_the_image_as_the_unit() -> None:
    one = clustered(2_000, 1, 0.1, np.random.default_rng(0))
    repeated = np.repeat(one[:, None], 20, axis=1).mean(axis=1)
    assert BootstrapMean(repeated, low=-1, high=1).interval() == pytest.approx(
        BootstrapMean(one, low=-1, high=1).interval(), abs=1e-12
    )


def test_many_distinct_values_are_resampled_as_well_as_few() -> None:
    values = np.random.default_rng(0).exponential(0.1, 3_000).clip(0, 1)
    boot = BootstrapMean(values, low=0, high=1)
    resampled = np.random.default_rng(1).choice(values, (4_000, 3_000))
    t = (resampled.mean(1) - values.mean()) / resampled.std(1) * values.std()
    low, high = np.quantile(t, [0.975, 0.025])
    assert boot.interval() == pytest.approx((values.mean() - low, values.mean() - high), abs=4e-4)


def test_bootstrap_p_values_and_intervals_agree() -> None:
    boot = BootstrapMean(clustered(3_000, 4, 0.1, np.random.default_rng(0)), low=-1, high=1)
    low, high = boot.interval(0.95)
    assert boot.p(low, "above") == pytest.approx(0.025, abs=1e-3)
    assert boot.p(high, "below") == pytest.approx(0.025, abs=1e-3)
    assert boot.p(boot.mean, "above") + boot.p(boot.mean, "below") == pytest.approx(1, abs=0.01)


def test_a_handful_of_images_is_left_to_bets_that_hold_for_any_number() -> None:
    nothing = np.zeros(10_000)
    assert BootstrapMean(nothing, low=-1, high=1).p(0.0, "above") == 1.0
    assert BootstrapMean(nothing, low=-1, high=1).p(0.01, "below") < 1e-6
    assert BootstrapMean(nothing[:10], low=-1, high=1).p(0.01, "below") > 0.5
    few = np.concatenate([np.full(7, 1.0), np.zeros(9_993)])
    boot = BootstrapMean(few, low=-1, high=1)
    assert not boot.is_bootstrapped
    assert boot.p(0.0, "above") >= mcnemar(7, 0)  # resampling would say 0.0003
    low, high = boot.interval()
    assert low <= few.mean() <= high


def test_the_smallest_detectable_mean_is_found_four_times_in_five() -> None:
    assert detectable_mean(10_000, 0.1, 0.01, 0.01) == pytest.approx(0.01 + (2.3263 + 0.8416) * 0.001, abs=1e-6)


def by_hand(values: list[float], null: float, population: int | None) -> list[float]:
    """Wealth after every value of the bets on a mean above `null`, values within [0, 1], one step at a time."""
    wealth, spent, path = np.ones(len(STAKES)), 0.0, []
    for i, x in enumerate(values):
        mean = null if population is None else (population * null - spent) / (population - i)
        wealth = wealth * (1 + STAKES / mean * (x - mean))
        spent += x
        path.append(float(wealth.mean()))
    return path


@pytest.mark.parametrize("population", [None, 40])
def test_the_bets_are_those_of_the_paper(population: int | None) -> None:
    values = np.random.default_rng(3).uniform(0.2, 1, 20)
    test = BettingTest(0.5, "above", low=0, high=1, population=population)
    test.update(values[:7])
    test.update(values[7:])
    path = by_hand(list(values), 0.5, population)
    assert test.p == pytest.approx(1 / max(path))
    assert test.p_now == pytest.approx(min(1, 1 / path[-1]))
    mirrored = BettingTest(-0.5, "below", low=-1, high=0, population=population)
    mirrored.update(-values)
    assert mirrored.p == pytest.approx(test.p)


@pytest.mark.parametrize("null", [0.1, 0.5])
def test_every_bet_is_fair_under_the_null(null: float) -> None:
    # Over all sequences of four coins that fall 1 with the null's probability, wealth keeps its mean of 1.
    expected = 0.0
    for coins in product((0.0, 1.0), repeat=4):
        expected += by_hand(list(coins), null, None)[-1] * null ** sum(coins) * (1 - null) ** (4 - sum(coins))
    assert expected == pytest.approx(1)


def test_bets_without_replacement_are_fair_in_every_order() -> None:
    values = (0.0, 0.25, 0.5, 1.0, 0.75)
    wealth = [by_hand(list(order)[:4], 0.5, 5)[-1] for order in permutations(values)]
    assert np.mean(wealth) == pytest.approx(1)


@pytest.mark.parametrize("direction", ["above", "below"])
@pytest.mark.parametrize("without_replacement", [False, True])
def test_looking_after_every_batch_errs_no_oftener_than_alpha(direction: str, without_replacement: bool) -> None:
    generator = np.random.default_rng(0)
    n, null = 1_000, 0.02
    whole = np.concatenate([np.full(60, 1.0), np.full(40, -1.0), np.zeros(900)])
    wrong = 0
    for _ in range(400):
        drawn = generator.permutation(whole) if without_replacement else generator.choice(whole, n)
        test = BettingTest(null, direction, population=n if without_replacement else None)
        for first in range(0, n, 50):
            test.update(drawn[first : first + 50])
        wrong += test.p <= 0.05
    assert wrong / 400 <= 0.06


def test_a_finite_set_that_cannot_hold_the_null_any_more_is_rejected_for_good() -> None:
    test = BettingTest(0.1, "above", low=0, high=1, population=100)
    test.update(np.ones(10))
    assert test.p > 0
    test.update([1.0])
    assert test.p == 0
    test.update(np.zeros(89))
    assert test.p == 0
    with pytest.raises(ValueError, match="population"):
        test.update([0.0])
    with pytest.raises(ValueError, match="bounds"):
        BettingTest(0.1, "above", low=0, high=1).update([1.5])


def test_a_betting_interval_holds_the_mean_and_narrows() -> None:
    generator = np.random.default_rng(0)
    hits = (generator.random(4_000) < 0.9).astype(float)
    widths = []
    for n in (200, 1_000, 4_000):
        low, high = betting_interval(hits[:n], low=0, high=1)
        assert low <= hits[:n].mean() <= high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert widths[2] < 0.06
    low, high = betting_interval(hits, low=0, high=1, population=4_000)
    assert high - low < 1e-3  # all are known


def test_one_look_takes_no_notice_of_the_order() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 300)
    assert one_look_p(values, -0.1, "above") == pytest.approx(one_look_p(values[::-1], -0.1, "above"))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.93])
def test_betting_intervals_are_as_tight_as_those_of_another_library(rate: float) -> None:
    ville = pytest.importorskip("ville", reason="compares with the package ville from PyPI")
    generator = np.random.default_rng(0)
    for n in (300, 3_000):
        hits = (generator.random(n) < rate).astype(float)
        low, high = ville.BettingCS(bounds=(0.0, 1.0), alpha=0.05).fit(hits).interval()
        ours = betting_interval(hits, low=0, high=1)
        assert max(ours[0], low) < rate < min(ours[1], high)
        assert ours[1] - ours[0] < 1.3 * (high - low)
