"""Figures that describe a corrupted batch, as in the reference statistics, and how far two generators lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

Array = NDArray[np.float64]

N_BANDS = 8
NAMES = (
    *(f"mean {channel}" for channel in "RGB"),
    *(f"mean square {channel}" for channel in "RGB"),
    "distance",
    *(f"power, band {band}" for band in range(N_BANDS)),
    "power, mean",
    "share of 0",
    "share of 255",
)


@lru_cache
def _bands(height: int, width: int) -> Tensor:
    """``(H * (W // 2 + 1), 9)`` float32: averages half a power spectrum over rings, and picks frequency 0."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    ring = np.minimum((np.hypot(fy, fx) * 16).astype(int), N_BANDS - 1)
    ring[0, 0] = N_BANDS
    # The half that rfft2 leaves out mirrors the one it keeps, except for columns that mirror themselves.
    twice = np.where((fx == 0) | (fx == 0.5), 1.0, 2.0) * np.ones_like(fy)
    weights = np.stack([(ring == band) * twice for band in range(N_BANDS + 1)], axis=-1).reshape(-1, N_BANDS + 1)
    return torch.from_numpy(weights / weights.sum(axis=0)).to(torch.float32)


def image_figures(corrupted: Tensor, clean: Tensor) -> Array:
    """``(B, len(NAMES))`` figures of ``(B, 3, H, W)`` uint8 images; a batch's figure is the mean of its images'."""
    values, residual = corrupted / 255.0, (corrupted.to(torch.float32) - clean.to(torch.float32)) / 255.0
    height, width = clean.shape[2:]
    power = torch.fft.rfft2(residual).abs().square().mean(dim=1).flatten(1) / (height * width)
    columns = (
        values.mean(dim=(2, 3)),
        values.square().mean(dim=(2, 3)),
        residual.square().mean(dim=(1, 2, 3)).sqrt()[:, None],
        power @ _bands(height, width),
        *((corrupted == extreme).flatten(1).to(torch.float32).mean(dim=1)[:, None] for extreme in (0, 255)),
    )
    return torch.cat(columns, dim=1).to(torch.float64).numpy()


def official_figures(statistics: Mapping[str, Any]) -> Array:
    """``(seeds, len(NAMES))`` figures of one corruption from the reference statistics."""
    seeds = {name: np.array(statistics[name]["per_seed"]) for name in ("mean", "std", "l2_mean", "psd", "psd_dc")}
    clipped = [np.array(statistics[name]["per_seed"]) for name in ("clip0", "clip255")]
    # Standard deviations over all images are no mean over images; mean squares are, and say the same.
    squares = seeds["std"] ** 2 + seeds["mean"] ** 2
    columns = (seeds["mean"], squares, seeds["l2_mean"], seeds["psd"], seeds["psd_dc"], *clipped)
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)


def channel_correlations(corrupted: Tensor, clean: Tensor) -> Array:
    """``(B, 3)`` Fisher-transformed correlations of an image's residual between R and G, R and B, G and B."""
    residual = (corrupted.to(torch.float64) - clean).flatten(2)
    residual = residual - residual.mean(dim=2, keepdim=True)
    covariance = residual @ residual.transpose(1, 2)
    variance = covariance.diagonal(dim1=1, dim2=2)
    scale = (variance[:, :, None] * variance[:, None, :]).sqrt()
    correlation = torch.where(scale > 0, covariance / scale.clamp(min=1e-12), 1.0)
    pairs = torch.stack([correlation[:, i, j] for i, j in ((0, 1), (0, 2), (1, 2))], dim=1)
    return pairs.clamp(-0.9999, 0.9999).atanh().numpy()


def deviations(ours: Array, theirs: Array, finest: float = 0.0) -> tuple[Array, Array]:
    """How far the means of two generators lie apart.

    The spread between seeds is estimated from ours, image by image: images are drawn independently, so the variance of
    a batch's mean is the mean of the images' variances over their number. With 8 seeds of 32 images that has up to 224
    degrees of freedom, where the reference's three seeds alone have two.

    Args:
        ours: ``(seeds, images, figures)``.
        theirs: ``(seeds, figures)``, means over the same images.
        finest: the least spread between two seeds, for figures that count rare values.

    Returns: the differences as standard normal deviates (of the same probability as their Student's t), and the
        variance between their seeds over ours, which is near 1 where generators agree; both ``(figures,)``.
    """
    n_seeds, n_images, _ = ours.shape
    by_image = ours.var(axis=0, ddof=1) + n_images * max(finest, 1e-9) ** 2
    variance = by_image.sum(axis=0) / n_images**2
    freedom = (n_seeds - 1) * by_image.sum(axis=0) ** 2 / (by_image**2).sum(axis=0)  # Satterthwaite's
    error = np.sqrt(variance * (1 / n_seeds + 1 / len(theirs)))
    t = (ours.mean(axis=(0, 1)) - theirs.mean(axis=0)) / error
    deviates = np.sign(t) * norm.isf(student.sf(np.abs(t), freedom).clip(min=1e-300))
    spread = theirs.var(axis=0, ddof=1) / variance if len(theirs) > 1 else np.ones_like(error)
    return deviates, spread
