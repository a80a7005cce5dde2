"""What kernels share: the way back to 8 bits, blocks that stay in the cache, and normal deviates for look-up tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from robustbench_ln.corruptions.rng import ImageRng

_BLOCK_VALUES = 1 << 18  # 1 MB of float32, half a usual core's second-level cache

Rng = TypeVar("Rng", ImageRng, None)


def to_uint8(values: Tensor) -> Tensor:
    """Bring values on the scale 0 to 255 to 8 bits; `values` may be overwritten.

    The generators end in ``np.uint8(np.clip(x, 0, 1) * 255)``, which cuts the fraction off and does not round.
    """
    # By way of 16 bits, since torch has no vectorised conversion from float to 8 bits.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def in_blocks(
    images: Tensor,
    rng: Rng,
    kernel: Callable[..., Tensor],
    *also: Tensor,
    values: int = _BLOCK_VALUES,
) -> Tensor:
    """`kernel` over a batch, block by block. Every image has its own stream, so the cut changes no pixel.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: one stream an image; None for a kernel without chance.
        kernel: takes images, their streams and their part of what there is besides; returns uint8 images of the same
            shape.
        also: tensors with an entry an image.
        values: pixel values in a block, at least one image.
    """
    step = max(1, values // max(1, images[:1].numel()))
    if len(images) <= step:
        return kernel(images, rng, *also)
    out = torch.empty_like(images)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        out[part] = kernel(images[part], rng if rng is None else rng[part], *(one[part] for one in also))
    return out


def normal_deviates(n: int) -> NDArray[np.float64]:
    """Standard normal deviates in the middle of `n` equally likely intervals."""
    deviates: NDArray[np.float64] = ndtri((np.arange(n) + 0.5) / n)
    return deviates
