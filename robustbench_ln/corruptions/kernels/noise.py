"""The four noises of CIFAR-10-C and ImageNet-C: Gaussian, shot, impulse and speckle.

Every value of every channel draws a quantile of the noise, a whole number, and a table says what follows from it. All
severities read the same quantiles, so a stronger noise is the same noise, stronger. With n equally likely outcomes no
cumulative probability is off by more than 1/(2 n). The 2**16 normal deviates end at 4.3 standard deviations, which one
in 60,000 would pass.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri, pdtr
from torch import Tensor

from robustbench_ln.corruptions.kernels.pixels import in_blocks, to_uint8
from robustbench_ln.corruptions.rng import ImageRng

_BLOCK = 1 << 17  # values worked on at a time; with larger buffers the allocator goes back to the system every time
_QUANTILES = 1 << 16
# Shot noise has a table for each of 256 values. In 1 MB they stay in the cache; twice that takes twice the time. The
# standard deviation comes out 0.02 % too small and the mean right to 0.03 of a grey level.
_SHOT_BITS = 12


def gaussian_noise(images: Tensor, rng: ImageRng, *, std: float) -> Tensor:
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


def speckle_noise(images: Tensor, rng: ImageRng, *, std: float) -> Tensor:
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


def shot_noise(images: Tensor, rng: ImageRng, *, photons: float) -> Tensor:
    """Replace every value by a count of photons, Poisson distributed.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        photons: expected count of a white value; few photons, much noise.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``shot_noise`` of make_cifar_c.py and make_imagenet_c.py.
    """
    table = _counted_levels(photons, images.device)

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        quantile = rng.halfwords(*images.shape[1:], bits=_SHOT_BITS)
        return _look_up(table, quantile.add_(images.to(torch.int32), alpha=1 << _SHOT_BITS))

    return in_blocks(images, rng, kernel, values=_BLOCK)


def impulse_noise(images: Tensor, rng: ImageRng, *, amount: float) -> Tensor:
    """Set some values to 0 (pepper) and as many to 255 (salt), each value and channel on its own.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        amount: probability that a value is replaced.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``impulse_noise`` of make_cifar_c.py and make_imagenet_c.py, ``skimage.util.random_noise(mode="s&p")``.
    """
    edge = round(amount / 2 * _QUANTILES)

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        quantile = rng.halfwords(*images.shape[1:])
        kept = (quantile >= edge).view(torch.uint8)
        salt = (quantile >= _QUANTILES - edge).view(torch.uint8)
        return torch.maximum(images * kept, salt.mul_(255))

    return in_blocks(images, rng, kernel, values=_BLOCK)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # Several times as fast as table[index].
    return table.index_select(0, index.flatten()).view(index.shape)


def _normal_deviates(n: int) -> NDArray[np.float64]:
    """Standard normal deviates in the middle of `n` equally likely intervals."""
    deviates: NDArray[np.float64] = ndtri((np.arange(n) + 0.5) / n)
    return deviates


@lru_cache(maxsize=32)
def _whole_levels(std: float, device: torch.device) -> Tensor:
    """Gaussian noise in grey levels, rounded down: the generator cuts x + noise off, and x is a whole number."""
    levels = np.floor(_normal_deviates(_QUANTILES) * (255 * std)).clip(-256, 255)
    return torch.from_numpy(levels.astype(np.int16)).to(device)


@lru_cache(maxsize=32)
def _gains(std: float, device: torch.device) -> Tensor:
    return torch.from_numpy((1 + std * _normal_deviates(_QUANTILES)).astype(np.float32)).to(device)


@lru_cache(maxsize=32)
def _counted_levels(photons: float, device: torch.device) -> Tensor:
    """What each of the 256 values becomes at each quantile, flat, uint8."""
    n = 1 << _SHOT_BITS
    counts = np.arange(math.ceil(photons + 10 * math.sqrt(photons)) + 20)
    edges = np.rint(pdtr(counts, np.arange(256)[:, None] / 255 * photons) * n).astype(np.int64)
    levels = (np.minimum(counts / photons, 1) * 255).astype(np.uint8)
    return torch.from_numpy(np.tile(levels, 256).repeat(np.diff(edges, prepend=0).ravel())).to(device)
