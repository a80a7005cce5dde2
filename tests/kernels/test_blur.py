from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from torch import Tensor

from robustbench_ln.corruptions.kernels import blur
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError

KERNELS = [
    pytest.param(blur.gaussian_blur, {"sigma": 0.4}, id="gaussian-small"),
    pytest.param(blur.gaussian_blur, {"sigma": 2.0}, id="gaussian-large"),
    pytest.param(blur.defocus_blur, {"radius": 0.5, "alias_blur": 0.6}, id="defocus-small"),
    pytest.param(blur.defocus_blur, {"radius": 6, "alias_blur": 0.5}, id="defocus-large"),
    pytest.param(blur.defocus_blur, {"radius": 10, "alias_blur": 0.5}, id="defocus-largest"),
    pytest.param(blur.glass_blur, {"sigma": 0.4, "max_delta": 1, "iterations": 2}, id="glass-near"),
    pytest.param(blur.glass_blur, {"sigma": 1.1, "max_delta": 3, "iterations": 2}, id="glass-far"),
    pytest.param(blur.motion_blur, {"radius": 10, "sigma": 3}, id="motion"),
    pytest.param(blur.zoom_blur, {"max_zoom": 1.16, "step": 0.01}, id="zoom"),
]


def photos(n: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Smooth random images with even areas, black and white among them."""
    noise = np.random.default_rng(7).normal(size=(n, channels, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.from_numpy(np.clip(smooth / smooth.std() * 90 + 128, 0, 255).astype(np.uint8))


def streams(n: int, seed: int = 0) -> ImageRng:
    return ImageRng(seed, "blur", torch.arange(n))


def fraction_different(ours: Tensor, theirs: np.ndarray) -> float:
    difference = np.abs(ours.numpy().astype(int) - theirs)
    assert difference.max() <= 1
    return float((difference > 0).mean())


# ---------------------------------------------------------------- laws of all five


@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
def test_same_bytes_for_any_batch_order_threads_and_alignment(kernel, constants):
    images = photos(70)
    whole = kernel(images, streams(70), **constants)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert whole.is_contiguous()
    assert torch.equal(images, photos(70))
    for size in (1, 7, 64):
        for i in range(0, min(70, 3 * size), size):
            part = slice(i, i + size)
            assert torch.equal(kernel(images[part], streams(70)[part], **constants), whole[part])
    back = kernel(images.flip(0).contiguous(), ImageRng(0, "blur", torch.arange(70).flip(0)), **constants)
    assert torch.equal(back.flip(0), whole)
    shifted = torch.empty(images.numel() + 3, dtype=torch.uint8)[3:].view_as(images).copy_(images)
    assert torch.equal(kernel(shifted, streams(70), **constants), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(kernel(images, streams(70), **constants), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
@pytest.mark.parametrize(("height", "width"), [(13, 40), (33, 17), (64, 64)])
def test_odd_sizes(kernel, constants, height, width):
    images = photos(2, height, width)
    assert kernel(images, streams(2), **constants).shape == images.shape


@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
def test_no_images(kernel, constants):
    assert kernel(photos(1)[:0], streams(0), **constants).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
def test_even_areas_stay_even_and_lose_at_most_a_level_a_cut(kernel, constants):
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32).contiguous()
    out = kernel(levels, streams(256), **constants).to(torch.int64)
    assert torch.equal(out.amax((1, 2, 3)), out.amin((1, 2, 3)))
    if constants.get("radius") != 10 or "alias_blur" not in constants:  # the largest disk brightens
        cuts = 2 if kernel is blur.glass_blur else 1
        assert set((levels - out).unique().tolist()) <= set(range(cuts + 1))


# ---------------------------------------------------------------- Gaussian


@pytest.mark.parametrize("sigma", [0.05, 0.25, 0.4, 0.7, 1, 3, 6])
def test_gaussian_is_scipys(sigma):
    images = photos(4, 60, 50)
    expected = ndimage.gaussian_filter(images.numpy() / 255.0, (0, 0, sigma, sigma), mode="nearest", truncate=4)
    expected = (np.clip(expected, 0, 1) * 255).astype(np.uint8)
    assert fraction_different(blur.gaussian_blur(images, streams(4), sigma=sigma), expected) <= 0.002


@pytest.mark.parametrize("sigma", [0.4, 1, 1.1, 3])
def test_gaussian_cuts_even_areas_as_scipy_does(sigma):
    levels = np.arange(256, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 9, 9), dtype=np.uint8)
    expected = ndimage.gaussian_filter(levels / 255.0, (0, 0, sigma, sigma), mode="nearest", truncate=4)
    expected = (np.clip(expected, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(blur.gaussian_blur(torch.from_numpy(levels), streams(256), sigma=sigma).numpy(), expected)


# ---------------------------------------------------------------- defocus


def test_disk_of_radius_10_by_hand():
    """The kernel as OpenCV makes it: a disk that fills its array, softened with mirrored edges."""
    axis = np.arange(-10, 11)
    disk = (np.add.outer(axis**2, axis**2) <= 100).astype(np.float64)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / 0.5) ** 2)
    soft = ndimage.convolve(disk / disk.sum(), np.outer(taps, taps) / taps.sum() ** 2, mode="mirror")
    assert np.abs(blur._disk_kernel(10, 0.5) - soft).max() < 1e-9
    assert soft.sum() > 1.01


@pytest.mark.parametrize(
    ("radius", "alias_blur"),
    [(0.3, 0.4), (1, 0.2), (1.5, 0.1), (2.5, 0.01), (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
)
def test_defocus_is_a_correlation_with_the_disk(radius, alias_blur):
    images = photos(2, 40, 50)
    kernel = blur._disk_kernel(radius, alias_blur)
    reach = len(kernel) // 2
    padded = np.pad(images.numpy().astype(np.float64), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    expected = signal.correlate(padded, kernel[None, None], mode="valid", method="direct")
    # The level below where weights add up to less than 1: the sums above come within 1e-12 of it.
    expected = np.minimum(np.floor(expected + 1e-12), 255)
    ours = blur.defocus_blur(images, streams(2), radius=radius, alias_blur=alias_blur)
    assert fraction_different(ours, expected) <= 0.003


def test_defocus_says_what_it_needs():
    with pytest.raises(InputError, match="too small") as caught:
        blur.defocus_blur(photos(1, 12, 40), streams(1), radius=10, alias_blur=0.5)
    assert "13 pixels" in caught.value.hint


# ---------------------------------------------------------------- glass


@pytest.mark.parametrize(("max_delta", "iterations"), [(1, 1), (1, 2), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize(("height", "width"), [(20, 26), (31, 15)])
def test_glass_equals_the_loop(max_delta, iterations, height, width):
    """The original's double loop, pixel by pixel, on the places instead of the colours."""
    images = photos(3, height, width)
    ours = blur._glass_sources(images, streams(3), max_delta, iterations).view(3, height, width)
    rng = streams(3)
    places = np.arange(height * width).reshape(1, height, width).repeat(3, 0)
    for _ in range(iterations):
        down, right = blur._pairs_below(2 * max_delta, rng, height - 2 * max_delta, width - 2 * max_delta)
        for image in range(3):
            for h in range(height - max_delta, max_delta, -1):
                for w in range(width - max_delta, max_delta, -1):
                    at = image, h - max_delta - 1, w - max_delta - 1
                    dy, dx = int(down[at]) - max_delta, int(right[at]) - max_delta
                    places[image, h, w] = places[image, h + dy, w + dx]
    assert np.array_equal(ours.numpy(), places)


@pytest.mark.parametrize("high", [2, 4, 6, 8, 12, 16])
def test_glass_draws_are_uniform_and_independent(high):
    first, second = blur._pairs_below(high, streams(20), 100, 100)
    counts = torch.bincount((first * high + second).flatten(), minlength=high**2).double()
    assert len(counts) == high**2
    expected = 200_000 / high**2
    assert ((counts - expected) ** 2 / expected).sum() < high**2 + 5 * math.sqrt(2 * high**2)


def test_glass_refuses_images_in_which_no_pixel_has_a_turn():
    constants = {"sigma": 0.05, "max_delta": 3, "iterations": 2}
    with pytest.raises(InputError, match="too small for glass_blur"):
        blur.glass_blur(photos(2, 6, 40), streams(2), **constants)
    assert not torch.equal(blur.glass_blur(photos(2, 7, 40), streams(2), **constants), photos(2, 7, 40))


# ---------------------------------------------------------------- motion


@pytest.mark.parametrize("angle", [-135.0, -90.0, -61.3, -45.0, -7.9, 0.0, 12.4, 44.9, 90.0])
@pytest.mark.parametrize(("radius", "sigma"), [(6, 2), (10, 3), (15, 8)])
def test_motion_is_imagemagicks(angle, radius, sigma):
    images = photos(2, 31, 37)
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    expected = np.zeros(images.shape)
    for i, weight in enumerate(weights / weights.sum()):
        dx = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        dy = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        rows, columns = np.clip(np.arange(31) + dy, 0, 30), np.clip(np.arange(37) + dx, 0, 36)
        expected += weight * images.numpy()[:, :, rows][..., columns]
    expected = np.floor(expected * 257 + 0.5) // 257
    ours = blur.one_sided_motion_blur(images, torch.tensor([angle, angle]), radius=radius, sigma=sigma)
    if angle == angle // 45 * 45:  # exactly between two pixels, float32 and float64 angles may differ
        return
    assert fraction_different(ours, expected) <= 0.001


def test_motion_takes_any_number_of_channels_and_an_angle_an_image():
    images, angles = photos(5, channels=1), torch.linspace(-140, 60, 5)
    together = blur.one_sided_motion_blur(images, angles, radius=8, sigma=3)
    for i in range(5):
        alone = blur.one_sided_motion_blur(images[i : i + 1], angles[i : i + 1], radius=8, sigma=3)
        assert torch.equal(alone[0], together[i])


def test_motion_angles_are_within_45_degrees():
    """A bright dot is smeared to the left of where it was, and never more up or down than sideways."""
    images = torch.zeros((200, 1, 41, 41), dtype=torch.uint8)
    images[:, :, 20, 35] = 255
    bright = blur.motion_blur(images, streams(200), radius=6, sigma=4) > 0
    slopes = set()
    for y, x in bright.any(0)[0].nonzero().tolist():
        assert x <= 35
        assert abs(y - 20) <= 35 - x + 1
        slopes.add((y > 20) - (y < 20))
    assert slopes == {-1, 0, 1}


# ---------------------------------------------------------------- zoom


@pytest.mark.parametrize(("max_zoom", "step"), [(1.06, 0.01), (1.26, 0.01), (1.21, 0.02), (1.31, 0.03)])
@pytest.mark.parametrize("size", [32, 57])
def test_zoom_is_the_mean_of_scipys_zooms(max_zoom, step, size):
    images = photos(3, size, size)
    expected = []
    for image in images.permute(0, 2, 3, 1).numpy():
        pixels = (image / 255.0).astype(np.float32)
        total = np.zeros_like(pixels)
        zooms = np.arange(1, max_zoom, step)
        for zoom in zooms:
            crop = int(np.ceil(size / zoom))
            top = (size - crop) // 2
            large = ndimage.zoom(pixels[top : top + crop, top : top + crop], (zoom, zoom, 1), order=1)
            trim = (len(large) - size) // 2
            total += large[trim : trim + size, trim : trim + size]
        mean = (pixels + total) / (len(zooms) + 1)
        expected.append((np.clip(mean, 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1))
    ours = blur.zoom_blur(images, streams(3), max_zoom=max_zoom, step=step)
    assert fraction_different(ours, np.stack(expected)) <= 0.005
