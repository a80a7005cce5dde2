"""The four noises of CIFAR-10-C and ImageNet-C: Gaussian, shot, impulse and speckle.

Every value of every channel draws a quantile of the noise, a whole number, and a table says what follows from it. All
severities read the same quantiles, so a stronger noise is the same noise, stronger. With 2**16 (shot noise: 2**15)
equally likely quantiles, no cumulative probability is off by more than 2**-17 (2**-16), and a Gaussian ends at 4.3
standard deviations, which one in 60,000 would pass.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import pdtr
from torch import Tensor

from robustbench_ln.corruptions.kernels.constants import Above0, AtLeast0, Share
from robustbench_ln.corruptions.kernels.pixels import in_blocks, normal_deviates, to_uint8
from robustbench_ln.corruptions.rng import ImageRng

_BLOCK = 1 << 17  # values worked on at a time; with larger buffers the allocator goes back to the system every time
_QUANTILES = 1 << 16
_SHOT_BITS = 15  # so that a quantile and two 8-bit values fit into one int32


def gaussian_noise(images: Tensor, rng: ImageRng, *, std: AtLeast0) -> Tensor:
    """Add independent Gaussian noise to every value.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        std: standard deviation as a fraction of full scale.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``gaussian_noise`` of make_cifar_c.py and make_imagenet_c.py.
    """
    table = _whole_levels(std, images.device)

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        noise = _look_up(table, rng.halfwords(*images.shape[1:]))
        return noise.add_(images.to(torch.int16)).clamp_(0, 255).to(torch.uint8)

    return in_blocks(images, rng, kernel, values=_BLOCK)


def speckle_noise(images: Tensor, rng: ImageRng, *, std: AtLeast0) -> Tensor:
    """Multiply every value by its own 1 + xi, xi Gaussian.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        std: standard deviation of xi.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``speckle_noise`` of make_cifar_c.py and make_imagenet_c.py.
    """
    table = _gains(std, images.device)

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        gain = _look_up(table, rng.halfwords(*images.shape[1:]))
        return to_uint8(gain.mul_(images.to(torch.float32)))

    return in_blocks(images, rng, kernel, values=_BLOCK)


def shot_noise(images: Tensor, rng: ImageRng, *, photons: Above0) -> Tensor:
    """Replace every value by a count of photons, Poisson distributed.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        photons: expected count of a white value; few photons, much noise.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``shot_noise`` of make_cifar_c.py and make_imagenet_c.py.
    """
    classes, steps = _counted_levels(photons, images.device)

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        quantile = rng.halfwords(*images.shape[1:], bits=_SHOT_BITS)
        step = _look_up(steps, _look_up(classes, quantile).add_(images.to(torch.int32), alpha=256))
        above = (step >> 16 <= quantile).view(torch.uint8)
        return above.mul_(step.to(torch.uint8)).add_((step >> 8).to(torch.uint8))

    return in_blocks(images, rng, kernel, values=_BLOCK)


def impulse_noise(images: Tensor, rng: ImageRng, *, amount: Share) -> Tensor:
    """Set some values to 0 (pepper) and as many to 255 (salt), each value and channel on its own.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        amount: probability that a value is replaced.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``impulse_noise`` of make_cifar_c.py and make_imagenet_c.py, ``skimage.util.random_noise(mode="s&p")``.
    """
    edge = round(amount / 2 * _QUANTILES)
    signed_edge = edge if edge < 1 << 15 else -edge  # wraps around

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        # As signed 16 bits, the lowest quantiles are those from 0 and the highest those below 0: one distance from
        # between them tells for both. Masks by shifts, since comparisons with a number take several times as long.
        quantile = rng.halfwords(*images.shape[1:]).to(torch.int16)
        upper = quantile >> 15
        replaced = quantile.bitwise_xor_(upper).sub_(signed_edge).bitwise_right_shift_(15).to(torch.uint8)
        return (upper.to(torch.uint8) ^ images).bitwise_and_(replaced).bitwise_xor_(images)

    return in_blocks(images, rng, kernel, values=_BLOCK)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # Several times as fast as table[index].
    return table.index_select(0, index.flatten()).view(index.shape)


@lru_cache(maxsize=32)
def _whole_levels(std: float, device: torch.device) -> Tensor:
    """Gaussian noise in grey levels, rounded down: the generator cuts x + noise off, and x is a whole number."""
    levels = np.floor(normal_deviates(_QUANTILES) * (255 * std)).clip(-256, 255)
    return torch.from_numpy(levels.astype(np.int16)).to(device)


@lru_cache(maxsize=32)
def _gains(std: float, device: torch.device) -> Tensor:
    return torch.from_numpy((1 + std * normal_deviates(_QUANTILES)).astype(np.float32)).to(device)


@lru_cache(maxsize=32)
def _counted_levels(photons: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """What each value becomes at each quantile, in two tables that stay in the cache; one of all pairs would not.

    Quantiles fall into classes of 1/30 of a standard deviation, narrow enough that in each a value has two results at
    most: counts of many photons are that close together, but then several of them are one 8-bit value.

    Returns: the class of each quantile, int32; and for each value and class (256 a value) one int32 that holds a
        quantile (bits 16 and up), the result below it (bits 8 to 15), and how much higher it is from there on (0 to 7).
    """
    n = 1 << _SHOT_BITS
    counts = np.arange(math.ceil(photons + 10 * math.sqrt(photons)) + 20)
    edges = np.rint(pdtr(counts, np.arange(256)[:, None] / 255 * photons) * n).astype(np.int32)
    levels = (np.minimum(counts / photons, 1) * 255).astype(np.uint8).astype(np.int32)
    last_of_level = np.append(np.diff(levels) > 0, True)
    edges, levels = edges[:, last_of_level], levels[last_of_level]

    deviates = normal_deviates(n)
    scaled = (deviates - deviates[0]) * (255.99 / np.ptp(deviates))
    _, first, classes = np.unique(np.floor(scaled), return_index=True, return_inverse=True)
    last = np.append(first[1:], n) - 1
    steps = np.zeros((256, 256), np.int32)
    for value, edge in enumerate(edges):
        below, above = edge.searchsorted(first, side="right"), edge.searchsorted(last, side="right")
        step = np.minimum(edge[below], n - 1) << 16 | levels[below] << 8 | levels[above] - levels[below]
        steps[value, : len(first)] = step
    return torch.from_numpy(classes.astype(np.int32)).to(device), torch.from_numpy(steps.ravel()).to(device)
