"""The LocalNorm paper's noises (Yin et al. 2021, section 4), as its text has them and as its released code does.

Text and code differ (https://github.com/byin-cwi/LocalNorm1); each form has its own name, and none is silently mended.
Kernels take and return ``(B, C, H, W)`` float32 and leave values outside [0, 1] to the range policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.numerics import divide_
from robustbench_ln.types import Images


@dataclass(frozen=True, slots=True)
class Noise:
    """A noise and what a reader needs to know of it.

    Attributes:
        name: the name in the interface.
        kernel: ``kernel(images, rng, sigma)``, pure and batched.
        formula: what it computes.
        source: where the formula comes from.
        max_sigma: largest sigma that has a meaning; infinite for most.
    """

    name: str
    kernel: Callable[[Images, ImageRng, float], Images]
    formula: str
    source: str
    max_sigma: float = float("inf")


def agn(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative Gaussian noise x(1 + xi), xi ~ Normal(0, sigma), for every pixel and channel."""
    return images * rng.normal(*images.shape[1:]).mul_(sigma).add_(1.0)


def agn_released(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative uniform noise x(1 + xi), xi ~ Uniform(-sigma/2, sigma/2)."""
    return images * rng.uniform(*images.shape[1:]).sub_(0.5).mul_(sigma).add_(1.0)


def agn_released_positive(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative uniform noise x(1 + xi), xi ~ Uniform(0, sigma)."""
    return images * rng.uniform(*images.shape[1:]).mul_(sigma).add_(1.0)


def apn(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative Poisson noise x(1 + xi), xi ~ Poisson(sigma); not centred, so images grow brighter."""
    return images * rng.poisson(sigma, *images.shape[1:]).add_(1.0)


def apn_additive(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Additive Poisson noise x + xi, xi ~ Poisson(sigma); on 0..255 this is x + 255 xi, so every hit saturates."""
    return images + rng.poisson(sigma, *images.shape[1:])


def apn_additive_released(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Additive Poisson noise x + xi/255, xi ~ Poisson(255 sigma)."""
    return images + divide_(rng.poisson(255.0 * sigma, *images.shape[1:]), 255.0)


def mbn(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative Bernoulli noise: a pixel is set to 0, in all channels, with probability sigma."""
    return images * (rng.uniform(1, *images.shape[2:]) >= sigma)


def mbn_channel(images: Images, rng: ImageRng, sigma: float) -> Images:
    """Multiplicative Bernoulli noise: every pixel and channel on its own is set to 0 with probability sigma."""
    return images * (rng.uniform(*images.shape[1:]) >= sigma)


_TEXT = "the paper's text"
_CODE = "the authors' released code"
NOISES: dict[str, Noise] = {
    noise.name: noise
    for noise in (
        Noise("agn", agn, "x(1 + xi), xi ~ Normal(0, sigma)", _TEXT),
        Noise(
            "agn-released", agn_released, "x(1 + xi), xi ~ Uniform(-sigma/2, sigma/2)", f"{_CODE}, option `negative`"
        ),
        Noise("agn-released-positive", agn_released_positive, "x(1 + xi), xi ~ Uniform(0, sigma)", _CODE),
        Noise("apn", apn, "x(1 + xi), xi ~ Poisson(sigma)", f"{_TEXT}, second form, and {_CODE}"),
        Noise("apn-additive", apn_additive, "x + xi, xi ~ Poisson(sigma)", f"{_TEXT}, first form"),
        Noise(
            "apn-additive-released", apn_additive_released, "x + xi/255, xi ~ Poisson(255 sigma)", f"{_CODE} for Cars"
        ),
        Noise("mbn", mbn, "x m, m = 0 with probability sigma, shared by the channels", f"{_TEXT} and {_CODE}", 1.0),
        Noise("mbn-channel", mbn_channel, "as mbn, one draw a channel", f"{_TEXT}, 'independent on each channel'", 1.0),
    )
}
