"""Noises, their random numbers, and the grids that ask for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_ln.corruptions import (
    NOISES,
    ImageRng,
    Ranges,
    add_noise,
    degrade,
    fingerprint,
    list_presets,
    load_preset,
    parse_grid,
    parse_noises,
    plan_noises,
    to_float,
)
from robustbench_ln.corruptions.rng import poisson_cdf
from robustbench_ln.errors import UsageError
from robustbench_ln.types import Condition

ALL = list(NOISES)


def images(n: int = 12, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pcg4d_reference(v: list[int]) -> list[int]:
    """pcg4d as its paper writes it, in Python integers."""
    mask = 0xFFFFFFFF
    x, y, z, w = ((value * 1664525 + 1013904223) & mask for value in v)
    for last in (False, True):
        x = (x + y * w) & mask
        y = (y + z * x) & mask
        z = (z + x * y) & mask
        w = (w + y * z) & mask
        if not last:
            x, y, z, w = (value ^ (value >> 16) for value in (x, y, z, w))
    return [x, y, z, w]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_the_hash_is_pcg4d(v: list[int]) -> None:
    from robustbench_ln.corruptions.rng import _int32, _pcg4d

    lanes = [torch.tensor([_int32(value)], dtype=torch.int32) for value in v]
    _pcg4d(*lanes)
    assert [int(lane) & 0xFFFFFFFF for lane in lanes] == pcg4d_reference(v)


def test_draws_are_the_same_on_every_machine() -> None:
    rng = ImageRng(0, "agn", torch.tensor([0, 1, 2**40]))
    drawn = torch.cat([rng.uniform(5).flatten(), rng.normal(5).flatten()])
    # Taken from one machine; exact arithmetic makes them the same on all.
    assert fingerprint(drawn) == "0b53d55fe90bf4d2"


@pytest.mark.parametrize("draw", ["uniform", "normal", "words"])
def test_an_image_draws_the_same_alone_and_in_any_batch(draw: str) -> None:
    indices = torch.tensor([5, 0, 123456, 7])
    together = getattr(ImageRng(3, "agn", indices), draw)(3, 9, 9)
    for place, index in enumerate(indices.tolist()):
        alone = getattr(ImageRng(3, "agn", torch.tensor([index])), draw)(3, 9, 9)
        assert torch.equal(together[place], alone[0])


def test_seed_purpose_repeat_index_and_call_each_change_the_draws() -> None:
    def first(seed: int = 0, purpose: str = "a", repeat: int = 0, index: int = 0, call: int = 0) -> torch.Tensor:
        rng = ImageRng(seed, purpose, torch.tensor([index]), repeat=repeat)
        for _ in range(call):
            rng.words(64)
        return rng.words(64)

    drawn = [first(), first(seed=1), first(purpose="b"), first(repeat=1), first(index=1), first(call=1)]
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert (one == other).float().mean() < 0.1


def test_uniform_draws_fill_the_unit_interval_evenly_within_and_across_images() -> None:
    u = ImageRng(0, "agn", torch.arange(2000)).uniform(100).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    for axis in (0, 1):  # 64 equal bins, chi-square with 63 degrees of freedom: mean 63, sd 11
        part = u if axis == 0 else u.T
        observed = np.bincount((part.reshape(-1) * 64).astype(int), minlength=64)
        chi2 = ((observed - u.size / 64) ** 2 / (u.size / 64)).sum()
        assert 20 < chi2 < 130
    # Neighbouring pixels and neighbouring images are uncorrelated: sd of r is 1/sqrt(200000) = 0.0022.
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01


def test_each_bit_of_a_word_is_fair() -> None:
    words = ImageRng(1, "agn", torch.arange(500)).words(400).numpy().view(np.uint32)
    share = np.array([((words >> bit) & 1).mean() for bit in range(32)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(words.size)


def test_normal_draws_follow_the_normal_distribution() -> None:
    from scipy import stats

    z = ImageRng(0, "agn", torch.arange(400)).normal(500).numpy().ravel()
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_the_logarithm_and_the_sine_are_accurate_to_float32() -> None:
    from robustbench_ln.corruptions.rng import _minus_two_log, _sine_cosine

    u = torch.arange(1, 2**24, 97, dtype=torch.float32) * 2.0**-24
    exact = -2 * u.double().log()
    assert ((_minus_two_log(u.clone()).double() - exact).abs() / exact).max() < 1e-6
    angle = (u.double() - 0.5) * 2 * math.pi
    sine, cosine = _sine_cosine(u)
    assert (sine.double() - angle.sin()).abs().max() < 2e-6
    assert (cosine.double() - angle.cos()).abs().max() < 2e-6


@pytest.mark.parametrize("rate", [0.0, 0.025, 0.5, 1.0, 7.5, 255.0, 1000.0])
def test_poisson_draws_have_mean_and_variance_equal_to_the_rate(rate: float) -> None:
    drawn = ImageRng(0, "apn", torch.arange(100)).poisson(rate, 1000).double()
    error = 5 * math.sqrt(max(rate, 1e-12) / drawn.numel())
    assert abs(float(drawn.mean()) - rate) <= error
    # The variance of a Poisson sample's variance is about (rate + 2 rate²) / n.
    assert abs(float(drawn.var()) - rate) <= 5 * math.sqrt((rate + 2 * rate * rate) / drawn.numel()) + 1e-12


@pytest.mark.parametrize("rate", [0.1, 3.0, 255.0])
def test_the_poisson_table_is_the_distribution_function(rate: float) -> None:
    from scipy import stats

    cdf = poisson_cdf(rate)
    assert np.allclose(cdf, stats.poisson.cdf(np.arange(len(cdf)), rate), atol=1e-12)


def test_a_larger_poisson_rate_never_draws_less() -> None:
    few, many = (ImageRng(0, "apn", torch.arange(20)).poisson(rate, 200) for rate in (0.4, 0.7))
    assert bool((many >= few).all())


# Moments of each noise: mean and variance of noise(x) for a pixel of value x, from its formula.
MOMENTS = {
    "agn": lambda x, s: (x, (x * s) ** 2),
    "agn-released": lambda x, s: (x, (x * s) ** 2 / 12),
    "agn-released-positive": lambda x, s: (x * (1 + s / 2), (x * s) ** 2 / 12),
    "apn": lambda x, s: (x * (1 + s), x * x * s),
    "apn-additive": lambda x, s: (x + s, s),
    "apn-additive-released": lambda x, s: (x + s, 255 * s / 255**2),
    "mbn": lambda x, s: (x * (1 - s), x * x * s * (1 - s)),
    "mbn-channel": lambda x, s: (x * (1 - s), x * x * s * (1 - s)),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_noise_has_the_moments_of_its_formula(name: str, sigma: float) -> None:
    x = 0.6
    flat = torch.full((150, 3, 20, 20), x)
    noisy = add_noise(flat, Condition(name, sigma), torch.arange(150), seed=1).double()
    mean, variance = MOMENTS[name](x, sigma)
    n = noisy.numel() / (3 if name == "mbn" else 1)
    assert float(noisy.mean()) == pytest.approx(mean, abs=6 * math.sqrt(variance / n) + 1e-6)
    assert float(noisy.var()) == pytest.approx(variance, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_sigma_zero_leaves_images_as_they_are(name: str) -> None:
    x = images()
    for policy in ("clip", "none"):
        assert torch.equal(degrade(x, Condition(name, 0.0, range=policy), torch.arange(12), seed=0), to_float(x))
    assert torch.equal(add_noise(to_float(x), Condition(name, 0.0), torch.arange(12), seed=0), to_float(x))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_an_image_is_degraded_the_same_in_any_batch_and_order(name: str, data: st.DataObject) -> None:
    x = images()
    indices = torch.tensor(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12)))
    condition = Condition(name, 0.7, repeat=data.draw(st.integers(0, 2)))
    whole = degrade(x, condition, torch.arange(12), seed=5)
    assert torch.equal(degrade(x[indices], condition, indices, seed=5), whole[indices])


@pytest.mark.parametrize("name", ALL)
def test_noise_keeps_shape_and_type_and_does_not_touch_its_input(name: str) -> None:
    x = to_float(images())
    before = x.clone()
    noisy = add_noise(x, Condition(name, 0.5), torch.arange(12), seed=0)
    assert (noisy.shape, noisy.dtype) == (x.shape, torch.float32)
    assert torch.equal(x, before)
    assert not torch.equal(noisy, x)


def test_pixels_do_not_depend_on_the_number_of_threads() -> None:
    x, condition = images(64), Condition("agn", 1.0)
    before = torch.get_num_threads()
    try:
        marks = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            marks.add(fingerprint(degrade(x, condition, torch.arange(64), seed=0)))
    finally:
        torch.set_num_threads(before)
    assert len(marks) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_pixels_are_the_same_on_cpu_and_cuda(name: str) -> None:
    x, condition = images(64), Condition(name, 0.5)
    indices = torch.arange(64)
    assert torch.equal(degrade(x, condition, indices, 0), degrade(x.cuda(), condition, indices, 0).cpu())


def test_mbn_draws_once_a_pixel_and_mbn_channel_once_a_channel() -> None:
    ones = torch.ones(50, 3, 16, 16)
    shared = add_noise(ones, Condition("mbn", 0.5), torch.arange(50), 0)
    assert torch.equal(shared[:, 0], shared[:, 1])
    own = add_noise(ones, Condition("mbn-channel", 0.5), torch.arange(50), 0)
    assert float((own[:, 0] == own[:, 1]).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_levels_of_a_noise_share_their_random_numbers() -> None:
    grey = torch.full((4, 3, 8, 8), 0.5)
    weak, strong = (add_noise(grey, Condition("agn", s), torch.arange(4), 0) - grey for s in (0.5, 1.0))
    assert torch.allclose(2 * weak, strong, atol=1e-6)
    few, many = (add_noise(grey, Condition("mbn", s), torch.arange(4), 0) == 0 for s in (0.2, 0.6))
    assert bool((many | ~few).all())


def test_range_policies() -> None:
    x, indices = images(), torch.arange(12)
    clipped = degrade(x, Condition("agn", 2.0), indices, 0)
    assert 0 <= float(clipped.min()) <= float(clipped.max()) <= 1
    raw = degrade(x, Condition("agn", 2.0, range="none"), indices, 0)
    assert float(raw.min()) < 0
    assert float(raw.max()) > 1
    assert torch.equal(raw.clamp(0, 1), clipped)
    clean = to_float(x)
    ranges = Ranges(raw.amin((0, 2, 3)), raw.amax((0, 2, 3)), clean.amin((0, 2, 3)), clean.amax((0, 2, 3)))
    mapped = degrade(x, Condition("agn", 2.0, range="rescale"), indices, 0, ranges)
    assert torch.allclose(mapped.amin((0, 2, 3)), ranges.clean_min, atol=1e-6)
    assert torch.allclose(mapped.amax((0, 2, 3)), ranges.clean_max, atol=1e-6)
    by_hand = (raw[3, 1] - raw[:, 1].min()) / (raw[:, 1].max() - raw[:, 1].min())
    by_hand = by_hand * (clean[:, 1].max() - clean[:, 1].min()) + clean[:, 1].min()
    assert torch.allclose(mapped[3, 1], by_hand, atol=1e-6)


def test_a_grid_names_its_stop_and_does_not_drift() -> None:
    assert parse_grid("0:3:0.25") == tuple(i / 4 for i in range(13))
    assert parse_grid("0:0.3:0.1") == (0.0, 0.1, 0.2, 0.3)
    assert parse_grid("0,0.5,1") == (0.0, 0.5, 1.0)
    assert parse_grid("0.7") == (0.7,)
    assert parse_grid("0:0.2:0.1,1,2:3:0.5,1") == (0.0, 0.1, 0.2, 1.0, 2.0, 2.5, 3.0)
    assert parse_grid(0.5) == (0.5,)
    assert parse_grid([0, 0.25]) == (0.0, 0.25)
    for number in (np.float32(0.5), np.float64(0.5), np.array(0.5)):
        assert parse_grid(number) == parse_grid([number]) == (0.5,)
    assert parse_grid(np.linspace(0, 1, 3)) == (0.0, 0.5, 1.0)


@given(start=st.integers(0, 50), count=st.integers(0, 60), step=st.integers(1, 400))
def test_a_grid_has_every_step_exactly(start: int, count: int, step: int) -> None:
    first, width = start / 100, step / 1000
    stop = (start * 10 + count * step) / 1000
    assert parse_grid(f"{first}:{stop}:{width}") == tuple((start * 10 + i * step) / 1000 for i in range(count + 1))


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "nan",
        "inf",
        "a",
        "",
        "0:1",
        "0:1:0",
        "1:0:0.1",
        "0:1:-0.1",
        "0:1:0.1:2",
        "0,,1",
        "0:1e9:0.001",
        "1e99",
        "1_0",
        "٣",
        "0x1",
    ],
)
def test_a_bad_grid_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_grid(text)


def test_noises_take_their_own_grid_or_the_common_one() -> None:
    found = parse_noises(["agn,agn-released", "mbn=0:0.2:0.1", "apn=0,0.5,mbn-channel=0.3"], "0:1:0.5")
    assert {request.name: request.sigmas for request in found} == {
        "agn": (0.0, 0.5, 1.0),
        "agn-released": (0.0, 0.5, 1.0),
        "mbn": (0.0, 0.1, 0.2),
        "apn": (0.0, 0.5),
        "mbn-channel": (0.3,),
    }
    assert parse_noises("agn = 1, 2 , apn", "0") == parse_noises("agn=1,2,apn", "0")


@pytest.mark.parametrize(
    ("noises", "sigma", "says"),
    [
        ("agm", None, "agn"),
        ("mbn", "0:2:0.5", "probability"),
        ("agn,agn", None, "twice"),
        ("agn=-0.5", None, "grid"),
        ("agn", "-1", "grid"),
    ],
)
def test_a_bad_noise_is_refused_with_a_way_out(noises: str, sigma: str | None, says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_noises(noises, sigma)
    assert says in str(error.value)


def test_only_what_is_random_is_redrawn() -> None:
    planned = plan_noises(parse_noises("agn", "0,1"), range_policy="none", repeats=3)
    assert [(c.level, c.repeat) for c in planned] == [(0.0, 0), (1.0, 0), (1.0, 1), (1.0, 2)]
    assert all(c.range == "none" for c in planned)
    with pytest.raises(UsageError):
        plan_noises([], range_policy="clamp")


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_names_known_noises_within_their_bounds(name: str) -> None:
    preset = load_preset(name)
    assert plan_noises(preset.requests, range_policy=preset.range_policy)
    assert preset.description


def test_an_unknown_preset_is_refused_with_near_matches() -> None:
    with pytest.raises(UsageError, match="paper-fig6"):
        load_preset("paper-fig66")
