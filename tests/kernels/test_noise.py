"""Gaussian, shot, impulse and speckle noise against the formulas of the original generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from robustbench_ln.corruptions.kernels.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from robustbench_ln.corruptions.rng import ImageRng

# The weakest and the strongest of each noise, CIFAR-10-C severity 1 and ImageNet-C severity 5.
NOISES: dict[str, Callable[..., Tensor]] = {
    "gaussian weak": partial(gaussian_noise, std=0.04),
    "gaussian strong": partial(gaussian_noise, std=0.38),
    "shot weak": partial(shot_noise, photons=500.0),
    "shot strong": partial(shot_noise, photons=3.0),
    "impulse weak": partial(impulse_noise, amount=0.01),
    "impulse strong": partial(impulse_noise, amount=0.27),
    "speckle weak": partial(speckle_noise, std=0.06),
    "speckle strong": partial(speckle_noise, std=0.6),
}
N = 200_000


def streams(indices: Tensor | int, seed: int = 0) -> ImageRng:
    return ImageRng(seed, "noise", torch.arange(indices) if isinstance(indices, int) else indices)


def photos(n: int = 64, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def of_flat(noise: Callable[..., Tensor], value: int) -> np.ndarray:
    """What many pixels of one value become."""
    return noise(torch.full((N // 1200, 3, 20, 20), value, dtype=torch.uint8), streams(N // 1200)).numpy().ravel()


def assert_drawn_from(found: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square test of 8-bit values against the probability of each, at a level no honest seed fails."""
    observed, expected = np.bincount(found, minlength=256), probabilities * found.size
    assert not observed[expected == 0].any()
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 20]  # too rare to count one by one
    common = np.setdiff1d(order, rare)
    observed = np.append(observed[common], observed[rare].sum())
    expected = np.append(expected[common], expected[rare].sum())
    keep = expected > 0
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(statistic, max(1, keep.sum() - 1)) > 1e-5


def cut(cdf: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Probabilities of 0 to 255 for a variable on that scale which is clipped and cut off, from its distribution."""
    edges = cdf(np.arange(1, 256))
    return np.diff(np.concatenate([[0.0], edges, [1.0]]))


@pytest.mark.parametrize("value", [0, 3, 128, 255])
@pytest.mark.parametrize("std", [0.04, 0.18, 0.38])
def test_gaussian_noise_is_normal_cut_off_at_8_bits(value: int, std: float) -> None:
    found = of_flat(partial(gaussian_noise, std=std), value)
    assert_drawn_from(found, cut(stats.norm(value, 255 * std).cdf))


@pytest.mark.parametrize("value", [0, 3, 128, 255])
@pytest.mark.parametrize("std", [0.06, 0.35, 0.6])
def test_speckle_noise_is_normal_in_proportion_to_the_value(value: int, std: float) -> None:
    found = of_flat(partial(speckle_noise, std=std), value)
    if value == 0:
        assert not found.any()
    else:
        assert_drawn_from(found, cut(stats.norm(value, value * std).cdf))


@pytest.mark.parametrize("value", [0, 1, 40, 128, 255])
@pytest.mark.parametrize("photons", [500.0, 100.0, 12.0, 3.0])
def test_shot_noise_counts_photons(value: int, photons: float) -> None:
    found = of_flat(partial(shot_noise, photons=photons), value)
    counts = np.arange(2000)
    levels = (np.clip(counts / photons, 0, 1) * 255).astype(np.uint8)
    chance = stats.poisson(value / 255 * photons).pmf(counts)
    assert_drawn_from(found, np.bincount(levels, weights=chance, minlength=256))


@pytest.mark.parametrize("amount", [0.01, 0.09, 0.27])
def test_impulse_noise_is_half_salt_and_half_pepper(amount: float) -> None:
    probabilities = np.zeros(256)
    probabilities[[0, 128, 255]] = amount / 2, 1 - amount, amount / 2
    assert_drawn_from(of_flat(partial(impulse_noise, amount=amount), 128), probabilities)


@pytest.mark.parametrize("name", list(NOISES))
def test_every_value_draws_on_its_own(name: str) -> None:
    x = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8)
    residual = NOISES[name](x, streams(200)).double().sub_(128)
    residual -= residual.mean()
    variance = residual.square().mean()

    def correlation(a: Tensor, b: Tensor) -> float:
        return float((a * b).mean() / variance)

    n = residual.numel() / 3
    limit = 5 / math.sqrt(n)
    assert abs(correlation(residual[:, 0], residual[:, 1])) < limit
    assert abs(correlation(residual[:, 0], residual[:, 2])) < limit
    assert abs(correlation(residual[..., 1:], residual[..., :-1])) < limit
    assert abs(correlation(residual[:, :, 1:], residual[:, :, :-1])) < limit
    assert abs(correlation(residual[1:], residual[:-1])) < limit
    # The two halves of a random word are half an image apart.
    flat = residual.flatten(1)
    assert abs(correlation(flat[:, : flat.shape[1] // 2], flat[:, flat.shape[1] // 2 :])) < limit


def test_halves_of_words_are_uniform_and_independent() -> None:
    drawn = streams(300).halfwords(3, 20, 20)
    assert drawn.dtype == torch.int32
    assert (int(drawn.min()) >= 0, int(drawn.max()) < 1 << 16) == (True, True)
    for byte in (drawn & 0xFF, drawn >> 8):
        assert stats.chisquare(np.bincount(byte.numpy().ravel(), minlength=256)).pvalue > 1e-5
    low, high = drawn.flatten(1).chunk(2, dim=1)
    pairs = ((low >> 12) * 16 + (high >> 12)).numpy().ravel()
    assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-5
    assert torch.equal(streams(300).halfwords(3, 20, 20, bits=12), drawn & 0xFFF)


def test_severities_share_their_random_numbers() -> None:
    x = photos(8).clamp_(60, 180)
    for noise, weak, strong in (
        (partial(gaussian_noise), {"std": 0.04}, {"std": 0.1}),
        (partial(speckle_noise), {"std": 0.06}, {"std": 0.2}),
        (partial(shot_noise), {"photons": 500.0}, {"photons": 50.0}),
    ):
        a, b = (noise(x, streams(8), **constants).double() - x for constants in (weak, strong))
        assert float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) > 0.95
    few, many = (impulse_noise(x, streams(8), amount=amount) for amount in (0.03, 0.27))
    hit = few != x
    assert torch.equal(many[hit], few[hit])


@pytest.mark.parametrize("name", list(NOISES))
def test_pixels_do_not_depend_on_batch_order_or_threads(name: str) -> None:
    x, noise = photos(64), NOISES[name]
    before = x.clone()
    whole = noise(x, streams(64))
    assert torch.equal(x, before)
    assert (whole.shape, whole.dtype) == (x.shape, torch.uint8)
    for size in (1, 7):
        parts = [noise(x[i : i + size], streams(torch.arange(i, min(i + size, 64)))) for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.arange(63, -1, -1)
    assert torch.equal(noise(x[order].contiguous(), streams(order)), whole[order])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(noise(x, streams(64)), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", list(NOISES))
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 23), (300, 310)])
def test_any_size_runs(name: str, size: tuple[int, int]) -> None:
    x = photos(3, *size)
    noisy = NOISES[name](x, streams(3))
    assert (noisy.shape, noisy.dtype) == (x.shape, torch.uint8)
    assert NOISES[name](x[:0], streams(0)).shape == (0, 3, *size)


def test_a_new_stream_changes_the_noise() -> None:
    x = photos(4)
    for noise in NOISES.values():
        assert not torch.equal(noise(x, streams(4)), noise(x, streams(4, seed=1)))
