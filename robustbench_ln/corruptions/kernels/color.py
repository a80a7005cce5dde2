"""Brightness, contrast and saturation, to the pixel as the generators have them.

The generators work in float64 and cut the result off, and many results are whole numbers but for a rounding error
(twice the saturation: all of them). The same roundings in the same order are therefore the only way to the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from robustbench_ln.corruptions.kernels.constants import AtLeast0
from robustbench_ln.corruptions.kernels.pixels import in_blocks
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.numerics import divide_

_BLOCK = 1 << 16  # values worked on at a time: a third as many pixels, which are float64
_TIE = 2.0**-20  # nearer than this to a whole number, a result may hang on rounding errors


def brightness(images: Tensor, rng: ImageRng | None = None, *, shift: float) -> Tensor:  # noqa: ARG001
    """Add to the value (V) of every pixel in the HSV colour space.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        shift: what is added, as a fraction of full scale.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``brightness`` of make_cifar_c.py and make_imagenet_c.py.
    """
    return _in_hsv(images, value=lambda v: v.add_(shift).clamp_(0, 1))


def saturate(images: Tensor, rng: ImageRng | None = None, *, factor: AtLeast0, offset: float) -> Tensor:  # noqa: ARG001
    """Scale and shift the saturation (S) of every pixel in the HSV colour space.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        factor: what the saturation is multiplied by.
        offset: what is added then. A grey pixel has hue 0 and turns red.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``saturate`` of make_cifar_c.py and make_imagenet_c.py.
    """
    return _in_hsv(images, saturation=lambda s: s.mul_(factor).add_(offset).clamp_(0, 1))


def contrast(images: Tensor, rng: ImageRng | None = None, *, factor: AtLeast0) -> Tensor:  # noqa: ARG001
    """Pull the values of every image and channel towards their mean.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        factor: the share of the distance to the mean that remains.

    Returns: ``(B, 3, H, W)`` uint8.
    Source: ``contrast`` of make_cifar_c.py and make_imagenet_c.py.
    """
    levels = _fraction(torch.arange(256, device=images.device))
    # Where two results are whole numbers apart, one is as near to a whole number as the other: few values tell for all.
    apart = np.unique(np.round(np.arange(256) * factor % 1 / _TIE)) * _TIE
    steps = torch.from_numpy(apart).to(images.device)

    def kernel(images: Tensor, _: None) -> Tensor:
        planes = images.flatten(0, 1).flatten(1)
        n_planes, size = planes.shape
        mean = divide_(_fraction(planes.sum(1, dtype=torch.float64)), size)
        # The sum is exact, NumPy's is not. Where that could show, add as NumPy does: pixel after pixel, like cumsum.
        result = mean.mul(255 * (1 - factor))[:, None] + steps
        near = result.sub_(result.round()).abs_().amin(1) < _TIE
        if near.any():
            mean[near] = divide_(levels[planes[near].to(torch.int64)].cumsum(1)[:, -1], size)
        mean = mean[:, None]
        table = _cut((levels - mean).mul_(factor).add_(mean).clamp_(0, 1)).flatten()
        row = torch.arange(0, 256 * n_planes, 256, dtype=torch.int32, device=images.device)[:, None]
        return table.index_select(0, planes.to(torch.int32).add_(row).flatten()).view(images.shape)

    return in_blocks(images, None, kernel, values=2 * _BLOCK)


def _in_hsv(
    images: Tensor,
    *,
    value: Callable[[Tensor], Tensor] = lambda v: v,
    saturation: Callable[[Tensor], Tensor] = lambda s: s,
) -> Tensor:
    """Change the value or the saturation of every pixel; both callables may work in place.

    With V the largest channel, m the smallest and S = (V - m)/V, the way back from HSV makes the largest channel V',
    the smallest V'(1 - S') and the one between V'(1 - e S'), where e comes from the hue: only that one needs the hue.
    """

    def kernel(images: Tensor, _: None) -> Tensor:
        r, g, b = images.unbind(1)
        high = torch.maximum(torch.maximum(r, g), b)
        low = torch.minimum(torch.minimum(r, g), b)
        middle = (r + g).add_(b).sub_(high).sub_(low)  # wraps, and wraps back
        v, m = _fraction(high), _fraction(low)
        chroma = v - m
        e = _fraction(middle).sub_(m).div_(chroma)  # NaN for a grey pixel, which has no channel between

        # The hue is k + e or k - e sixths of the circle, k = 0, 2, 4 where red, green, blue is the largest. What it
        # loses to rounding on the way there and back (by 6, to [0, 1), times 6, to [0, 1)) is part of the result.
        g_r, b_g, r_b = ((x > y).view(torch.uint8) for x, y in ((g, r), (b, g), (r, b)))
        rises = 2 - (g_r + b_g).add_(r_b)  # 1 or 0: two of the three hold where it falls
        sign = (2 * rises).sub_(1).view(torch.int8)
        k = (g_r > b_g).to(torch.uint8).add_((b_g > r_b).view(torch.uint8), alpha=2).mul_(2)
        hue = divide_(e.mul_(sign.to(torch.float64)).add_(k.to(torch.float64)), 6)
        hue = hue.sub_(hue.floor()).mul_(6).frac_()
        e = hue.sub_(rises.to(torch.float64)).abs_()  # 1 - hue where it rises, hue where it falls

        s = saturation(chroma.div_(v.clamp(min=1 / 255)))
        v = value(v)
        middle = _cut((1 - e.mul_(s)).mul_(v))
        smallest = _cut((1 - s).mul_(v))
        largest = _cut(v)

        out = torch.empty_like(images)
        above, below = largest - middle, smallest - middle
        for channel, target in zip((r, g, b), out.unbind(1), strict=True):
            is_high, is_low = (channel == high).view(torch.uint8), (channel == low).view(torch.uint8)
            # A grey pixel is both; its hue 0 makes red the largest channel and the others the smallest.
            if channel is r:
                is_low = is_low.mul_(1 - is_high)
            else:
                is_high = is_high.mul_(1 - is_low)
            torch.add(is_high.mul_(above), is_low.mul_(below), out=target).add_(middle)
        return out

    return in_blocks(images, None, kernel, values=_BLOCK)


def _fraction(levels: Tensor) -> Tensor:
    """Whole numbers as float64 fractions of 255."""
    return divide_(levels.to(torch.float64), 255)


def _cut(fractions: Tensor) -> Tensor:
    """Fractions of full scale to 8 bits, cut off and not rounded; overwrites `fractions`."""
    return fractions.mul_(255).to(torch.int16).to(torch.uint8)  # faster by way of int16
