"""Gaussian filters of whole numbers as band matrices, exact in float32.

Values of up to 12 bits times weights of 12 bits add up to whole numbers that float32 holds, so no order, thread count,
batch or device can change a bit of a sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WEIGHT_BITS = 12
_SLAB = 32

Slabs: TypeAlias = list[tuple[slice, slice, Tensor]]
"""A band matrix without most of its zeros: outputs, the inputs that reach them, and ``(inputs, outputs)`` weights."""


def gaussian_taps(sigma: float, truncate: float) -> NDArray[np.float64]:
    """Weights of a Gaussian filter, cut off at `truncate` standard deviations as SciPy does, adding up to 1."""
    radius = int(truncate * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-9)) ** 2)
    normalised: NDArray[np.float64] = taps / taps.sum()
    return normalised


@lru_cache
def gaussian_slabs(
    size: int, sigma: float, device: torch.device, *, truncate: float, edges: Literal["repeated", "mirrored"]
) -> Slabs:
    """A Gaussian filter of `size` values; float32 whole weights that add up to ``2**WEIGHT_BITS`` for every output.

    Args:
        size: how many values there are.
        sigma: standard deviation, in values.
        device: of the weights.
        truncate: where the filter is cut off, in standard deviations.
        edges: what lies outside: the outermost value, or the values mirrored with the outermost one repeated.
    """
    fixed = np.rint(gaussian_taps(sigma, truncate) * (1 << WEIGHT_BITS))
    radius = len(fixed) // 2
    fixed[radius] += (1 << WEIGHT_BITS) - fixed.sum()
    source = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
    if edges == "repeated":
        source = source.clip(0, size - 1)
    else:
        source = source % (2 * size)
        source = np.minimum(source, 2 * size - 1 - source)
    matrix = np.zeros((size, size), dtype=np.float32)
    np.add.at(matrix, (source, np.arange(size)[:, None]), fixed)
    return slabs(matrix, _SLAB, device)


def slabs(matrix: NDArray[np.float32], n_outputs: int, device: torch.device) -> Slabs:
    """Cut a band matrix ``(inputs, outputs)`` into slabs of some outputs each."""
    found = []
    for start in range(0, matrix.shape[1], n_outputs):
        outputs = slice(start, min(start + n_outputs, matrix.shape[1]))
        reached = np.flatnonzero(matrix[:, outputs].any(axis=1))
        inputs = slice(int(reached[0]), int(reached[-1]) + 1)
        found.append((outputs, inputs, torch.from_numpy(matrix[inputs, outputs].copy()).to(device)))
    return found


def along_rows(lines: Tensor, band: Slabs, n_outputs: int) -> Tensor:
    """``(lines, inputs)`` times a band matrix."""
    product = lines.new_empty((len(lines), n_outputs))
    for outputs, inputs, weights in band:
        torch.mm(lines[:, inputs], weights, out=product[:, outputs])
    return product
