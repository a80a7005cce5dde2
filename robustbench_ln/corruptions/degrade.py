"""Turning 8-bit images into the degraded images a model sees; the one place where values are brought back to range."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_ln.corruptions.kernels.textures import FrostTextures
from robustbench_ln.corruptions.noise import NOISES
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.corruptions.suites import Suite, corrupt
from robustbench_ln.types import Condition, Images

# Part of every row's identity: to be raised whenever a kernel's pixels change.
KERNEL_VERSION = 1
FINGERPRINT_IMAGES = 16


@dataclass(frozen=True, slots=True)
class Ranges:
    """Per-channel extremes over a whole data set, for the range policy ``rescale``; ``(C,)`` float32 each."""

    noisy_min: Tensor
    noisy_max: Tensor
    clean_min: Tensor
    clean_max: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Lists of floats, as a results row keeps them."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    def apply(self, images: Images) -> Images:
        """Map [noisy_min, noisy_max] linearly to [clean_min, clean_max], channel by channel."""
        low, high, to_low, to_high = (
            extreme.to(images.device)[:, None, None]
            for extreme in (self.noisy_min, self.noisy_max, self.clean_min, self.clean_max)
        )
        width = torch.where(high > low, high - low, 1.0)  # a channel without spread becomes its clean minimum
        return ((images - low) / width) * (to_high - to_low) + to_low


def to_float(images: Tensor) -> Images:
    """uint8 ``(B, C, H, W)`` to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def to_levels(images: Images) -> Tensor:
    """Images in [0, 1] to uint8, each value to the nearest level: exact for what has 8 bits already, rounds noise."""
    return images.mul(255.0).add_(0.5).floor_().to(torch.uint8)


def add_noise(images: Images, condition: Condition, indices: Tensor, seed: int) -> Images:
    """Noisy images before the range policy.

    Args:
        images: ``(B, C, H, W)`` in [0, 1]; not modified.
        condition: a noise.
        indices: ``(B,)`` positions of the images in the data set.
        seed: the run's seed.
    """
    rng = ImageRng(seed, condition.name, indices, repeat=condition.repeat, device=images.device)
    return NOISES[condition.name].kernel(images, rng, condition.level)


def degrade(
    images: Tensor,
    condition: Condition,
    indices: Tensor,
    seed: int,
    ranges: Ranges | None = None,
    *,
    suite: Suite | None = None,
    textures: FrostTextures | None = None,
) -> Images:
    """What the model sees of `images` under `condition`; a pure function of its arguments, image by image.

    Args:
        images: ``(B, C, H, W)`` uint8.
        condition: clean, a noise or a corruption.
        indices: ``(B,)`` positions of the images in the data set.
        seed: the run's seed.
        ranges: of the whole data set, when the condition's range is ``rescale``.
        suite: whose constants a corruption has; by default the shipped one that the condition names.
        textures: of frost.

    Returns: ``(B, C, H, W)`` float32, in [0, 1] unless the condition's range is ``none``. A corruption's values are
        those of 8 bits.
    """
    if condition.kind == "corruption":
        corrupted = corrupt(
            images,
            condition.name,
            int(condition.level),
            suite=suite or condition.suite,
            indices=indices,
            seed=seed,
            repeat=condition.repeat,
            textures=textures,
            jpeg_parity=condition.jpeg_parity,
        )
        return to_float(corrupted)
    clean = to_float(images)
    if condition.kind == "clean" or condition.level == 0:
        return clean
    noisy = add_noise(clean, condition, indices, seed)
    if condition.range == "clip":
        return noisy.clamp_(0.0, 1.0)
    if condition.range == "rescale":
        assert ranges is not None
        return ranges.apply(noisy)
    return noisy


def fingerprint(images: Images) -> str:
    """Hex digest of degraded images; equal on two machines exactly when their pixels are."""
    content = images.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()[:16]
