"""Our corruptions against outputs and statistics of the official generators (make_cifar_c.py, make_imagenet_c.py).

Where a corruption is a function of the image, pixels are compared. Where it is random, figures of its output are, as
deviations from the official means that are standard normal if the distributions agree. There are about two thousand of
them; the bounds are so wide that other seeds would hardly ever raise a false alarm, and `test_bounds_notice_mistakes`
shows what they are narrow enough for. Run with ``-s`` to see all figures.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_ln.corruptions import ImageRng, corrupt
from robustbench_ln.corruptions.kernels import blur, digital, noise, weather
from robustbench_ln.corruptions.kernels.textures import (
    FrostTextures,
    find_installed_textures,
    load_textures,
)
from tests.golden.figures import (
    NAMES,
    Array,
    channel_correlations,
    deviations,
    image_figures,
    official_figures,
)

FILES = {"cifar10-c": "cifar", "imagenet-c": "imagenet"}
SEVERITIES = (1, 2, 3, 4, 5)
DETERMINISTIC = (
    *("defocus_blur", "zoom_blur", "brightness", "contrast"),
    *("pixelate", "jpeg_compression", "gaussian_blur", "saturate"),
)
RANDOM = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("glass_blur", "motion_blur", "snow", "frost", "fog", "spatter", "elastic_transform"),
)
SEEDS = 8
NO_PHOTOGRAPHS = "the official frost photographs are neither installed nor named by LNBENCH_FROST_TEXTURES"

LARGEST_DIFFERENCE = 1  # grey level
LARGEST_SHARE = 0.005  # of values that differ at all
LARGEST_DEVIATION = 5.5  # of one figure at one severity
LARGEST_SUM = 5.0  # of one figure over the severities, divided by the root of their number
LARGEST_SPREAD = 4.0  # variance between their seeds over that between ours, or the other way round


@dataclass(frozen=True, eq=False)
class Golden:
    """What is kept of an official generator.

    Attributes:
        suite: whose constants it has.
        clean: ``(N, 3, H, W)`` uint8, what it was given.
        outputs: ``name/severity`` to ``(n, 3, H, W)`` uint8, for the first n of them.
        statistics: ``name/severity`` to figures of all, for several seeds.
    """

    suite: str
    clean: Tensor
    outputs: dict[str, Tensor]
    statistics: dict[str, Any]


@lru_cache
def load(shared: Path, suite: str) -> Golden:
    """Read the files of one suite; skips the test where they are not."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} with outputs of the official generators is not there")
    with np.load(folder / f"{FILES[suite]}_reference.npz") as arrays:
        pixels = {
            name: torch.from_numpy(arrays[name].transpose(0, 3, 1, 2).copy()) for name in arrays if name != "keys"
        }
    statistics = json.loads((folder / f"stats_{FILES[suite]}.json").read_text(encoding="utf-8"))
    return Golden(suite, pixels.pop("inputs"), pixels, statistics["corruptions"])


@pytest.fixture(params=FILES)
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    """Official outputs at 32 and at 224 pixels."""
    return load(shared, request.param)


@lru_cache
def original_textures() -> FrostTextures | None:
    """The photographs of the official generators, where the environment has them."""
    folder = os.environ.get("LNBENCH_FROST_TEXTURES") or find_installed_textures()
    return load_textures(Path(folder)) if folder else None


# ---- functions of the image ----


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_corruption_gives_the_official_pixels(golden: Golden, name: str) -> None:
    for severity in SEVERITIES:
        expected = golden.outputs.get(f"{name}/{severity}")
        if expected is None:
            continue
        n = len(expected)
        out = corrupt(golden.clean[:n], name, severity, suite=golden.suite, indices=torch.arange(n), seed=0)
        difference = (out.int() - expected.int()).abs()
        share, largest = (difference > 0).double().mean().item(), difference.max().item()
        print(f"{golden.suite} {name} {severity}: {share:.4%} of values differ, by at most {largest}")
        assert largest <= LARGEST_DIFFERENCE
        assert share <= LARGEST_SHARE


# ---- random ones ----


Corrupt = Callable[[Tensor, int, Tensor], Tensor]  # images, severity, indices


def redraws(clean: Tensor, severity: int, kernel: Corrupt) -> Tensor:
    """``(SEEDS, N, 3, H, W)``: every image, several times over; other severities draw other random numbers."""
    n = SEEDS * len(clean)
    indices = torch.arange(n) + n * severity
    return kernel(clean.repeat(SEEDS, 1, 1, 1), severity, indices).view(SEEDS, *clean.shape)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Deviations ``(severities, figures)`` from the official generator, and ratios of the variances between seeds."""

    severities: tuple[int, ...]
    deviations: Array
    spreads: Array

    @property
    def largest(self) -> float:
        return float(np.abs(self.deviations).max())

    @property
    def sums(self) -> Array:
        return self.deviations.sum(axis=0) / math.sqrt(len(self.severities))

    @property
    def agrees(self) -> bool:
        spread = self.spreads.mean()
        return bool(
            self.largest <= LARGEST_DEVIATION
            and np.abs(self.sums).max() <= LARGEST_SUM
            and 1 / LARGEST_SPREAD <= spread <= LARGEST_SPREAD
        )

    def __str__(self) -> str:
        severity, figure = np.unravel_index(np.abs(self.deviations).argmax(), self.deviations.shape)
        worst = int(np.abs(self.sums).argmax())
        return (
            f"largest deviation {self.deviations[severity, figure]:+.1f} ({NAMES[figure]}, severity "
            f"{self.severities[severity]}), over severities {self.sums[worst]:+.1f} ({NAMES[worst]}), "
            f"root mean square {np.sqrt((self.deviations**2).mean()):.2f}, variance ratio {self.spreads.mean():.2f}"
        )


def compare(golden: Golden, name: str, kernel: Corrupt, severities: tuple[int, ...] = SEVERITIES) -> Comparison:
    """Figures of `kernel`'s outputs against those of the official `name`."""
    rows = []
    for severity in severities:
        out = redraws(golden.clean, severity, kernel)
        ours = np.stack([image_figures(batch, golden.clean) for batch in out])
        theirs = official_figures(golden.statistics[f"{name}/{severity}"])
        rows.append(deviations(ours, theirs, finest=1 / golden.clean.numel()))
    return Comparison(severities, np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]))


def by_name(golden: Golden, name: str, textures: FrostTextures | None = None) -> Corrupt:
    """The corruption as users call it."""

    def kernel(images: Tensor, severity: int, indices: Tensor) -> Tensor:
        return corrupt(images, name, severity, suite=golden.suite, indices=indices, seed=0, textures=textures)

    return kernel


@pytest.mark.parametrize("name", RANDOM)
def test_random_corruption_has_the_official_distribution(golden: Golden, name: str) -> None:
    textures = None
    if name == "frost":
        textures = original_textures()
        if textures is None:
            print(f"{golden.suite} frost, own textures: {compare(golden, name, by_name(golden, name))}")
            pytest.skip(NO_PHOTOGRAPHS)
    comparison = compare(golden, name, by_name(golden, name, textures))
    print(f"{golden.suite} {name}: {comparison}")
    assert comparison.agrees, str(comparison)


def compare_correlations(golden: Golden, name: str, kernel: Corrupt) -> Array:
    """Deviations ``(severities, 3)`` of the correlations between the channels of what `kernel` adds to an image."""
    rows = []
    for severity in SEVERITIES:
        expected = golden.outputs.get(f"{name}/{severity}")
        if expected is None:
            continue
        clean = golden.clean[: len(expected)]
        ours = np.stack([channel_correlations(out, clean) for out in redraws(clean, severity, kernel)])
        theirs = channel_correlations(expected, clean).mean(axis=0, keepdims=True)
        rows.append(deviations(ours, theirs, finest=1e-3)[0])
        print(
            f"{golden.suite} {name} {severity}: RG, RB, GB {np.tanh(ours.mean(axis=(0, 1))).round(3)}, "
            f"official {np.tanh(theirs[0]).round(3)}, deviations {rows[-1].round(1)}"
        )
    return np.stack(rows)


@pytest.mark.parametrize("name", RANDOM)
def test_random_corruption_correlates_channels_as_the_official_one(golden: Golden, name: str) -> None:
    if name == "frost" and original_textures() is None:
        pytest.skip(NO_PHOTOGRAPHS)
    kernel = by_name(golden, name, original_textures() if name == "frost" else None)
    assert np.abs(compare_correlations(golden, name, kernel)).max() <= LARGEST_DEVIATION


# ---- the test itself ----


@pytest.mark.parametrize("name", ["gaussian_noise", "frost", "zoom_blur", "elastic_transform"])
def test_figures_are_those_of_the_reference_statistics(golden: Golden, name: str) -> None:
    out = golden.outputs[f"{name}/3"]
    if len(out) < len(golden.clean):
        pytest.skip("the outputs of one image only are kept")
    expected = official_figures(golden.statistics[f"{name}/3"])[0]  # the outputs are those of the first seed
    np.testing.assert_allclose(image_figures(out, golden.clean).mean(axis=0), expected, rtol=1e-4, atol=1e-7)


def rounded(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Gaussian noise, brought to 8 bits by rounding: one more in every other value."""
    out = corrupt(images, "gaussian_noise", severity, suite="cifar10-c", indices=indices, seed=0)
    up = torch.rand(out.shape, generator=torch.Generator().manual_seed(severity)) < 0.5
    return out + (up & (out < 255))


def motion_both_ways(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Motion blur with a kernel to both sides."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    angles = ImageRng(0, "motion_blur", indices).uniform() * 90.0 - 45.0
    ways = [
        blur.one_sided_motion_blur(images, angles + turn, radius=radius, sigma=sigma).int() for turn in (0.0, 180.0)
    ]
    return ((ways[0] + ways[1]) // 2).to(torch.uint8)


def glass_once_more(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Glass blur with one more round of displacements."""
    sigma, iterations = {1: (0.05, 2), 2: (0.25, 2), 3: (0.4, 2)}[severity]
    rng = ImageRng(0, "glass_blur", indices)
    return blur.glass_blur(images, rng, sigma=sigma, max_delta=1, iterations=iterations)


def more_photons(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Shot noise of a twentieth more photons."""
    photons = (500, 250, 100, 75, 50)[severity - 1] * 1.05
    return noise.shot_noise(images, ImageRng(0, "shot_noise", indices), photons=photons)


def coarse_fog(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Fog cut out of a map twice as large."""
    amount, wibble = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    return weather.fog(images, ImageRng(0, "fog", indices), amount=amount, wibble=wibble, map_size=64)


def stronger_elastic(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Elastic transform that displaces by a quarter more."""
    alpha, sigma, affine = {3: (0.1, 0.06, 0.06), 4: (0.125, 0.04, 0.05), 5: (0.125, 0.03, 0.03)}[severity]
    rng = ImageRng(0, "elastic_transform", indices)
    return digital.elastic_transform(images, rng, alpha=alpha, sigma=sigma, affine=affine, multiplier=32)


def grey_speckle(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Speckle noise that is the same for the three channels."""
    std = (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1]
    factor = 1 + std * ImageRng(0, "speckle_noise", indices).normal(1, *images.shape[2:])
    return (images * factor).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("suite", "name", "severities", "mistaken"),
    [
        ("cifar10-c", "gaussian_noise", (3,), rounded),
        ("cifar10-c", "motion_blur", (1, 3, 5), motion_both_ways),
        ("cifar10-c", "glass_blur", (1, 2, 3), glass_once_more),
        ("cifar10-c", "shot_noise", (1, 3, 5), more_photons),
        ("cifar10-c", "fog", SEVERITIES, coarse_fog),
        ("cifar10-c", "elastic_transform", (3, 4, 5), stronger_elastic),
    ],
)
def test_bounds_notice_mistakes(
    shared: Path, suite: str, name: str, severities: tuple[int, ...], mistaken: Corrupt
) -> None:
    comparison = compare(load(shared, suite), name, mistaken, severities)
    print(f"{suite} {name}, {mistaken.__name__}: {comparison}")
    assert not comparison.agrees


def test_bounds_notice_noise_shared_by_channels(shared: Path) -> None:
    golden = load(shared, "cifar10-c")
    assert np.abs(compare_correlations(golden, "speckle_noise", grey_speckle)).max() > LARGEST_DEVIATION
