"""Brightness, contrast and saturation against the generators' formulas in NumPy, pixel for pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_ln.corruptions.kernels.color import brightness, contrast, saturate
from robustbench_ln.corruptions.rng import ImageRng

BRIGHTNESS = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
SATURATE = [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.0), (2.0, 0.1), (2.5, 0.2), (5.0, 0.1), (20.0, 0.2)]
CONTRAST = [0.75, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05]
KERNELS: dict[str, Callable[..., Tensor]] = {
    "brightness": partial(brightness, shift=0.2),
    "saturate": partial(saturate, factor=2.0, offset=0.1),
    "contrast": partial(contrast, factor=0.4),
}


def run(kernel: Callable[..., Tensor], images: Tensor, **constants: float) -> Tensor:
    return kernel(images, ImageRng(0, "color", torch.arange(len(images))), **constants)


def photos(n: int = 64, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def through_hsv(colors: np.ndarray, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]):
    """(N, 3) uint8 to HSV and back in float64, `change` taking and returning saturation and value."""
    rgb = colors / 255.0
    v, m = rgb.max(1), rgb.min(1)
    chroma = v - m
    grey = chroma == 0
    with np.errstate(invalid="ignore"):
        s = np.where(grey, 0.0, chroma / v)
        r, g, b = ((rgb[:, (i + 1) % 3] - rgb[:, (i + 2) % 3]) / chroma for i in range(3))
    hue = np.select([rgb[:, 2] == v, rgb[:, 1] == v], [4.0 + b, 2.0 + g], r)
    hue = np.where(grey, 0.0, hue / 6.0 % 1.0) * 6
    s, v = change(s, v)
    sector = np.floor(hue)
    f = hue - sector
    p, q, t = v * (1 - s), v * (1 - f * s), v * (1 - (1 - f) * s)
    orders = [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)]
    index = sector.astype(int) % 6
    out = np.stack([np.choose(index, [order[i] for order in orders]) for i in range(3)], axis=1)
    return (np.clip(out, 0, 1) * 255).astype(np.uint8)


@lru_cache
def colors() -> np.ndarray:
    """All greys, all pairs of values in all arrangements, and random colours."""
    grey = np.repeat(np.arange(256)[:, None], 3, axis=1)
    a, b = (side.ravel()[::17] for side in np.meshgrid(np.arange(256), np.arange(256)))
    pairs = [np.stack(order, axis=1) for order in ((a, a, b), (a, b, a), (b, a, a))]
    everything = np.random.default_rng(0).integers(0, 256, (20_000, 3))
    close = everything // 16 + np.random.default_rng(1).integers(0, 241, (20_000, 1))
    return np.concatenate([grey, *pairs, everything, close]).astype(np.uint8)


def as_image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.T))[None, :, None, :]


@pytest.mark.parametrize("shift", BRIGHTNESS)
def test_brightness_is_the_generators_pixel_for_pixel(shift: float) -> None:
    expected = through_hsv(colors(), lambda s, v: (s, np.clip(v + shift, 0, 1)))
    assert torch.equal(run(brightness, as_image(colors()), shift=shift), as_image(expected))


@pytest.mark.parametrize(("factor", "offset"), SATURATE)
def test_saturate_is_the_generators_pixel_for_pixel(factor: float, offset: float) -> None:
    expected = through_hsv(colors(), lambda s, v: (np.clip(s * factor + offset, 0, 1), v))
    assert torch.equal(run(saturate, as_image(colors()), factor=factor, offset=offset), as_image(expected))


def test_a_grey_pixel_turns_red_where_saturation_is_added() -> None:
    grey = torch.full((1, 3, 2, 2), 200, dtype=torch.uint8)
    red, green, blue = run(saturate, grey, factor=2.0, offset=0.2)[0, :, 0, 0].tolist()
    assert (red, green, blue) == (200, 160, 160)


@pytest.mark.parametrize("factor", CONTRAST)
def test_contrast_is_the_generators_pixel_for_pixel(factor: float) -> None:
    x = photos(300, 8, 8)  # of so small images many have a mean where a result is all but whole
    x[:20] = torch.arange(0, 240, 12, dtype=torch.uint8)[:, None, None, None]
    x[20:40, :, :4] = 255
    pixels = x.permute(0, 2, 3, 1).numpy() / 255.0
    # One image at a time and channels last: the order of the sum, and so its rounding, depends on it.
    mean = np.stack([np.mean(np.ascontiguousarray(image), axis=(0, 1), keepdims=True) for image in pixels])
    expected = (np.clip((pixels - mean) * factor + mean, 0, 1) * 255).astype(np.uint8)
    assert torch.equal(run(contrast, x, factor=factor).permute(0, 2, 3, 1), torch.from_numpy(expected))


def test_contrast_means_each_image_and_channel_on_its_own() -> None:
    x = photos(5)
    whole = run(contrast, x, factor=0.4)
    for channel in range(3):
        alone = x[2:3, channel : channel + 1].expand(1, 3, 16, 16).contiguous()
        assert torch.equal(run(contrast, alone, factor=0.4)[0, 0], whole[2, channel])


@pytest.mark.parametrize("name", list(KERNELS))
def test_pixels_do_not_depend_on_batch_or_threads(name: str) -> None:
    x, kernel = photos(64), KERNELS[name]
    before = x.clone()
    whole = run(kernel, x)
    assert torch.equal(x, before)
    for size in (1, 7):
        assert torch.equal(torch.cat([run(kernel, part) for part in x.split(size)]), whole)
    shifted = torch.empty(x.numel() + 3, dtype=torch.uint8)[3:].view_as(x).copy_(x)
    assert torch.equal(run(kernel, shifted), whole)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(run(kernel, x), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 23), (300, 310)])
def test_any_size_runs(name: str, size: tuple[int, int]) -> None:
    x = photos(3, *size)
    out = run(KERNELS[name], x)
    assert (out.shape, out.dtype) == (x.shape, torch.uint8)
    assert run(KERNELS[name], x[:0]).shape == (0, 3, *size)
