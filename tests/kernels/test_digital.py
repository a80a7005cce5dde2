from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from robustbench_ln.corruptions.kernels import digital
from robustbench_ln.corruptions.kernels.digital import elastic_transform, jpeg_compression, pixelate
from robustbench_ln.corruptions.kernels.pixels import to_uint8
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError

# Constants of make_cifar_c.py and make_imagenet_c.py: alpha, sigma, affine.
ELASTIC = {
    32: [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    224: [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
}
MULTIPLIER = {32: 32, 224: 244}


def pictures(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Random images with smooth and rough parts and both extremes."""
    generator = np.random.default_rng(seed)
    rough = generator.integers(0, 256, (n, 3, height, width))
    smooth = gaussian_filter(rough.astype(float), (0, 0, 3, 3))
    mixed = np.where(np.arange(width) < width // 2, rough, (smooth - 127) * 4 + 127)
    return torch.from_numpy(mixed.clip(0, 255).astype(np.uint8))


def streams(n: int, name: str = "digital") -> ImageRng:
    return ImageRng(3, name, torch.arange(n))


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


# ---- all three ----

KERNELS = {
    "elastic_transform, narrow": (elastic_transform, {"alpha": 0.1, "sigma": 0.04, "affine": 0.05, "multiplier": 32}),
    "elastic_transform, wide": (elastic_transform, {"alpha": 2, "sigma": 0.7, "affine": 0.1, "multiplier": 35}),
    "elastic_transform, affine only": (elastic_transform, {"alpha": 0, "sigma": 0, "affine": 0.08, "multiplier": 32}),
    "pixelate": (pixelate, {"factor": 0.65}),
    "jpeg_compression": (jpeg_compression, {"quality": 40}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_pixels_do_not_depend_on_batch_size_order_or_threads(name: str) -> None:
    kernel, constants = KERNELS[name]
    images = pictures(64)
    before = images.clone()
    whole = kernel(images, streams(64), **constants)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert whole.is_contiguous()
    assert torch.equal(images, before)
    for size in (1, 7):
        parts = [
            kernel(images[i : i + size], ImageRng(3, "digital", torch.arange(i, min(i + size, 64))), **constants)
            for i in range(0, 64, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    backwards = kernel(images.flip(0), ImageRng(3, "digital", torch.arange(64).flip(0)), **constants)
    assert torch.equal(backwards.flip(0), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(kernel(images, streams(64), **constants), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(33, 50), (5, 3), (224, 70)])
def test_other_sizes_run(name: str, height: int, width: int) -> None:
    kernel, constants = KERNELS[name]
    images = pictures(3, height, width)
    assert kernel(images, streams(3), **constants).shape == images.shape
    assert kernel(images[:0], streams(0), **constants).shape == (0, 3, height, width)


def test_images_too_small_are_refused() -> None:
    images = pictures(1, 2, 40)
    with pytest.raises(InputError, match="too small for elastic_transform"):
        elastic_transform(images, streams(1), alpha=0, sigma=0, affine=0.1, multiplier=32)
    with pytest.raises(InputError, match="too small for pixelate"):
        pixelate(images, streams(1), factor=0.25)


# ---- elastic transform ----


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_elastic_transform_of_the_official_draws_gives_the_official_pixels(shared: Path, name: str) -> None:
    """The distribution hardly tells 244 from 224; pixels do: there two thirds would differ, by up to 146."""
    with np.load(shared / "golden" / f"{name}_reference.npz") as arrays:
        clean, keys = arrays["inputs"].transpose(0, 3, 1, 2), arrays["keys"]
        outputs = {s: arrays[f"elastic_transform/{s}"] for s in range(1, 6) if f"elastic_transform/{s}" in arrays}
    size = clean.shape[2]
    for severity, expected in outputs.items():
        alpha, sigma, affine = (MULTIPLIER[size] * part for part in ELASTIC[size][severity - 1])
        for image, key, output in zip(clean, keys, expected, strict=False):
            draw = np.random.RandomState(zlib.crc32(f"elastic_transform/{severity}/0/{key}".encode())).uniform
            offsets = torch.from_numpy(draw(-affine, affine, (1, 3, 2)).astype(np.float32)).double()
            places = digital._places(digital._affine_to_source(offsets, size, size), size, size)
            fields = np.stack([draw(-1, 1, (1, size, size)) for _ in "xy"])
            planes = digital._warp(torch.from_numpy(image)[None], *places)
            if alpha:
                steps = torch.from_numpy(np.floor((fields + 1) * 2048) * 2 - 4095).int()
                out = digital._displace(planes, *digital._smooth(steps, sigma, alpha))[0]
            else:
                out = to_uint8(planes[:, 0] * 255.0)
            difference = (out.permute(1, 2, 0).int() - torch.from_numpy(output).int()).abs()
            assert difference.max() <= 1
            assert (difference > 0).double().mean() < 0.03


def test_affine_map_takes_moved_points_to_where_they_were() -> None:
    offsets = torch.from_numpy(np.random.default_rng(0).uniform(-3, 3, (4, 3, 2)))
    matrices = digital._affine_to_source(offsets, 32, 32)
    points = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]], dtype=torch.float64)
    moved = torch.cat((points + offsets, torch.ones(4, 3, 1, dtype=torch.float64)), dim=2)
    torch.testing.assert_close(moved @ matrices.transpose(1, 2), points.expand(4, 3, 2))


def test_warp_interpolates_in_steps_of_a_thirty_second() -> None:
    images = pictures(1, 20, 20)
    matrix = torch.tensor([[[1.0, 0.0, 0.26], [0.0, 1.0, -0.74]]], dtype=torch.float64)
    x, y = (np.arange(20) + 8 / 32, np.arange(20) - 24 / 32)
    expected = [
        map_coordinates(plane / 255.0, np.meshgrid(y, x, indexing="ij"), order=1, mode="mirror")
        for plane in images[0].double().numpy()
    ]
    np.testing.assert_allclose(
        digital._warp(images, *digital._places(matrix, *images.shape[2:]))[:, 0].numpy(), expected, atol=1e-6
    )


def test_warp_mirrors_far_outside_as_often_as_needed() -> None:
    images = pictures(1, 5, 5)
    matrix = torch.tensor([[[1.0, 0.0, -19.0], [0.0, 1.0, 1002.0]]], dtype=torch.float64)
    x, y = (
        np.abs((np.arange(5) - 19 + 4) % 8 - 4),
        np.abs((np.arange(5) + 1002 + 4) % 8 - 4),
    )
    expected = images[0].numpy()[:, y][:, :, x] / np.float32(255)
    np.testing.assert_array_equal(
        digital._warp(images, *digital._places(matrix, *images.shape[2:]))[:, 0].numpy(), expected
    )


@pytest.mark.parametrize(("size", "sigma"), [(32, 0.96), (32, 6.4), (224, 2.44), (224, 19.52), (224, 170.8), (9, 0.0)])
def test_smoothing_is_scipys(size: int, sigma: float) -> None:
    draws = digital._uniform_fields(streams(2), size, size + 3)
    smoothed = digital._smooth(draws, sigma, 1.0)
    expected = gaussian_filter(draws.numpy() / 4096.0, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    assert np.abs(smoothed.numpy() - expected).std() < 0.004 * expected.std()


def test_draws_are_uniform_and_independent() -> None:
    fields = digital._uniform_fields(streams(4), 200, 200).double() / 4096
    assert fields.abs().max() < 1
    assert fields.mean().abs() < 0.005
    assert abs(fields.var() - 1 / 3) < 0.003
    assert torch.corrcoef(fields.flatten(1)).sub(torch.eye(2)).abs().max() < 0.01
    assert (fields[..., 1:] * fields[..., :-1]).mean().abs() < 0.003


def test_displacement_is_scipys() -> None:
    planes = torch.rand((3, 2, 20, 26), generator=torch.Generator().manual_seed(0))
    dx, dy = torch.randn((2, 2, 20, 26), generator=torch.Generator().manual_seed(1)) * 6
    y, x = np.meshgrid(np.arange(20), np.arange(26), indexing="ij")
    expected = np.stack(
        [
            [
                map_coordinates(p[i], (y + dy[i].numpy(), x + dx[i].numpy()), order=1, mode="reflect")
                for p in planes.numpy()
            ]
            for i in range(2)
        ]
    )
    out = digital._displace(planes, dx, dy).numpy()
    np.testing.assert_allclose(out, np.clip(expected, 0, 1) * 255 - 0.5, atol=0.501)


def test_no_displacement_leaves_every_value() -> None:
    planes = (torch.arange(256).to(torch.float32) / 255).view(1, 1, 16, 16)
    still = torch.zeros(1, 16, 16)
    assert torch.equal(digital._displace(planes, still, still.clone()).flatten(), torch.arange(256).to(torch.uint8))


def test_severities_share_their_draws() -> None:
    images = pictures(2)
    small, large = (
        elastic_transform(images, streams(2), alpha=0.1, sigma=0.04, affine=affine, multiplier=32)
        for affine in (0.04999, 0.05)
    )
    assert (small.int() - large.int()).abs().double().mean() < 1


# ---- pixelate ----


@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (131, 160)])
def test_both_ways_to_pixelate_give_the_same_pixels(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(2, height, width)
    for factor in (0.95, 0.6, 0.5, 0.3, 0.25):
        found = []
        for large in (0, 10**9):
            monkeypatch.setattr(digital, "_LARGE", large)
            found.append(pixelate(images, factor=factor))
        assert torch.equal(*found)


@pytest.mark.parametrize("factor", [0.95, 0.9, 0.85, 0.8, 0.75, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25, 0.17, 0.1, 0.05, 1.0])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (60, 37)])
def test_pixelate_is_pillows(factor: float, height: int, width: int) -> None:
    images = pictures(3, height, width)
    small = int(width * factor), int(height * factor)
    expected = [
        to_pillow(image).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
        for image in images
    ]
    assert torch.equal(pixelate(images, streams(3), factor=factor), from_pillow(expected))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 10, 12, 28])
def test_half_a_grey_level_goes_where_pillow_takes_it(n: int) -> None:
    """Means of n pixels at and next to a half, with Pillow's fixed-point weights."""
    sums = torch.arange(255 * n + 1)
    row = (torch.arange(n) < sums[:, None] % n).int() + torch.div(sums, n, rounding_mode="floor")[:, None]
    images = row.to(torch.uint8)[:, None, None].expand(-1, 3, 1, -1)[: 256 * n : max(1, n // 8)].contiguous()
    expected = from_pillow([to_pillow(image).resize((1, 1), Image.Resampling.BOX) for image in images])
    boxes, shares, _ = digital._boxes(n, 1)
    assert boxes == [list(range(n))]
    out = (images[:, :, 0].float().sum(dim=2) * shares[0]).add(0.5).floor()
    assert torch.equal(out, expected[:, :, 0, 0].float())


# ---- JPEG compression ----


@pytest.mark.parametrize("quality", [80, 40, 25, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 37), (1, 9)])
def test_jpeg_is_what_pillow_writes_and_reads(quality: int, height: int, width: int) -> None:
    images = pictures(5, height, width)
    expected = []
    for image in images:
        file = BytesIO()
        to_pillow(image).save(file, "JPEG", quality=quality)
        expected.append(Image.open(file))
    assert torch.equal(jpeg_compression(images, streams(5), quality=quality), from_pillow(expected))
