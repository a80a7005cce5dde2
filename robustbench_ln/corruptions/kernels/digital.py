"""Digital corruptions of CIFAR-10-C and ImageNet-C: elastic transform, pixelate and JPEG compression.

Smoothed displacement fields are sums of fixed-point numbers that are exact in their floating-point type, and everything
else is elementwise arithmetic and table look-ups: no order, batch, thread count or device can change a bit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustbench_ln.corruptions.kernels.constants import Above0, AtLeast0, Quality, Shrinking
from robustbench_ln.corruptions.kernels.pixels import in_blocks, to_uint8
from robustbench_ln.corruptions.kernels.smoothing import (
    WEIGHT_BITS,
    Slabs,
    along_rows,
    gaussian_slabs,
    gaussian_taps,
    slabs,
)
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError
from robustbench_ln.numerics import divide_

# ---- elastic transform ----

_STEPS = 32  # places of a pixel that the affine map tells apart
_SMALLEST = 3  # pixels; the affine map's three points are a third of the image apart


def elastic_transform(
    images: Tensor, rng: ImageRng, *, alpha: AtLeast0, sigma: AtLeast0, affine: AtLeast0, multiplier: Above0
) -> Tensor:
    """Warp by a random affine map, then displace every pixel along a smooth random field.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: one stream an image.
        alpha: by how much the smoothed field, uniform on -1 to 1 before, is multiplied.
        sigma: standard deviation of its smoothing.
        affine: the map's three points move by up to this much in x and y.
        multiplier: the three are multiples of this many pixels: 32 and 64, and 244 where images have 224. The
            original's slip is kept, since it is in the published pixels.

    Returns: ``(B, C, H, W)`` uint8.

    Raises:
        InputError: images of fewer than 3 pixels a side.

    Source: ``elastic_transform`` in make_cifar_c.py and make_imagenet_c.py; its OpenCV works in steps of 1/32 pixel.
    """
    height, width = images.shape[2:]
    if min(height, width) < _SMALLEST:
        raise InputError(
            "images are too small for elastic_transform",
            found=f"{height} x {width} pixels",
            hint=f"at least {_SMALLEST} pixels a side",
        )

    offsets = rng.uniform(3, 2).to(torch.float64).mul_(2.0).sub_(1.0).mul_(multiplier * affine)

    places = _places(_affine_to_source(offsets, height, width), height, width)

    def kernel(part: Tensor, streams: ImageRng, *places: Tensor) -> Tensor:
        planes = _warp(part, *places)
        if alpha == 0:
            return to_uint8(planes.mul_(255.0)).transpose(0, 1).contiguous()
        fields = _smooth(_uniform_fields(streams, height, width), multiplier * sigma, multiplier * alpha)
        return _displace(planes, *fields)

    return in_blocks(images, rng, kernel, *places)


def _affine_to_source(offsets: Tensor, height: int, width: int) -> Tensor:
    """The map from a pixel of the result to its place in the image.

    Args:
        offsets: ``(B, 3, 2)`` float64, by how much the three points move, as (x, y).
        height: of the image.
        width: of the image.

    Returns: ``(B, 2, 3)`` float64 matrices: x and y of the place are rows times (x, y, 1).
    """
    side = float(min(height, width) // 3)
    # The original takes numpy's (height, width) for OpenCV's (x, y): in images that are not square, the triangle's
    # centre is not the image's.
    centre = offsets.new_tensor([height // 2, width // 2])
    to_point = offsets.new_tensor([[side, side], [side, -side], [-side, -side]])
    moved = to_point + centre + offsets
    # Edges from the corner of the right angle: (0, 2 side) and (-2 side, 0) before.
    first_x, first_y = (moved[:, 0] - moved[:, 1]).unbind(1)
    second_x, second_y = (moved[:, 2] - moved[:, 1]).unbind(1)
    scale = (2.0 * side) / (first_x * second_y - first_y * second_x)
    linear = torch.stack((first_y, -first_x, second_y, -second_x), dim=1).mul_(scale[:, None]).view(-1, 2, 2)
    corner = linear[:, :, 0] * moved[:, 1, :1] + linear[:, :, 1] * moved[:, 1, 1:]
    return torch.cat((linear, (to_point[1] + centre - corner)[:, :, None]), dim=2)


def _places(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where in the image every pixel of the result lies, each coordinate as the sum of a term by column and one by row.

    Args:
        matrices: ``(B, 2, 3)`` float64, from a pixel of the result to its place in the image.
        height: of both.
        width: of both.

    Returns: x as ``(B, 1, W)`` and ``(B, H, 1)``, then y likewise; int32 in 1/1024 pixel, less than a turn from 0.
    """
    unit = 1024  # OpenCV rounds the terms of x and of y to this part of a pixel, then cuts their sum to 1/32
    # Mirror images repeat after a turn.
    turn = matrices.new_tensor([[2 * (width - 1) * unit], [2 * (height - 1) * unit]])
    by_column, by_row, offset = matrices.unsqueeze(3).unbind(2)
    columns, rows = (torch.arange(n, dtype=torch.float64, device=matrices.device) for n in (width, height))
    along = (by_column * columns).mul_(unit).round_().remainder_(turn).to(torch.int32)
    across = (by_row * rows).add_(offset).mul_(unit).round_().add_(unit // 64).remainder_(turn).sub_(turn)
    (x_along, y_along), (x_across, y_across) = along.unbind(1), across.to(torch.int32).unbind(1)
    return x_along[:, None, :], x_across[:, :, None], y_along[:, None, :], y_across[:, :, None]


def _warp(images: Tensor, x_along: Tensor, x_across: Tensor, y_along: Tensor, y_across: Tensor) -> Tensor:
    """OpenCV's ``warpAffine`` of float images: bilinear in steps of 1/32 pixel, mirrored at the edge pixels' centres.

    Args:
        images: ``(B, C, H, W)`` uint8.
        x_along: what `_places` returns first.
        x_across: what it returns then,
        y_along: and then,
        y_across: and last.

    Returns: ``(C, B, H, W)`` float32 in [0, 1], OpenCV's but for the last bit.
    """
    batch, channels, height, width = images.shape
    # One row and column of zeros: the neighbours, of weight 0, of places on the last row and column.
    source = images.new_zeros((channels, batch, height + 1, width + 1), dtype=torch.float32)
    source[:, :, :height, :width] = images.transpose(0, 1)
    divide_(source, 255.0 * _STEPS**2)  # so that weights can be whole numbers
    planes = source.flatten(1)
    x, y = _mirrored(x_along, x_across, width), _mirrored(y_along, y_across, height)
    right, below = (position.bitwise_and(_STEPS - 1).to(torch.float32) for position in (x, y))
    index = _flat_index(x.bitwise_right_shift_(5), y.bitwise_right_shift_(5), width + 1, height + 1)
    left, above = _STEPS - right, _STEPS - below
    warped = _pick(planes, index, 0).mul_((above * left).flatten())
    for shift, weight in ((1, above.mul_(right)), (width + 1, left.mul_(below)), (width + 2, below.mul_(right))):
        warped.add_(_pick(planes, index, shift).mul_(weight.flatten()))
    return warped.view(channels, *x.shape)


def _flat_index(x: Tensor, y: Tensor, stride: int, rows: int) -> Tensor:
    """Positions in a flattened ``(B, rows, stride)`` of the pixels ``(B, H, W)`` int32 `x` and `y`; both are reused."""
    if len(y) > 1:
        y.add_(torch.arange(0, len(y) * rows, rows, dtype=torch.int32, device=y.device)[:, None, None])
    return x.add_(y, alpha=stride).flatten()


def _pick(planes: Tensor, index: Tensor, shift: int) -> Tensor:
    """``planes[:, shift + index]``, several times as fast."""
    picked = planes.new_empty((len(planes), len(index)))
    for plane, out in zip(planes, picked, strict=True):
        torch.index_select(plane[shift:], 0, index, out=out)
    return picked


def _mirrored(along: Tensor, across: Tensor, size: int) -> Tensor:
    """The sum of two terms mirrored into an image of `size` pixels; in 1/32 pixel, from 0 to 32 (size - 1)."""
    middle = (size - 1) * _STEPS
    return middle - (along + across).bitwise_right_shift_(5).abs_().sub_(middle).abs_()


_TRUNCATE = 3.0  # standard deviations at which the filter is cut off
_DRAW_BITS = WEIGHT_BITS  # draws are odd multiples of 2**-12: times 12-bit weights, they fit float32's 24 bits


def _uniform_fields(rng: ImageRng, height: int, width: int) -> Tensor:
    """``(2, B, height, width)`` float32, uniform on the odd numbers from -4095 to 4095: two draws from one word."""
    words = rng.words(height, width)
    spare = 32 - _DRAW_BITS
    fields = torch.empty((2, *words.shape), dtype=torch.float32, device=words.device)
    fields[0] = (words >> (spare - 1)).bitwise_or_(1)
    fields[1] = words.bitwise_left_shift_(_DRAW_BITS).bitwise_right_shift_(spare - 1).bitwise_or_(1)
    return fields


def _smooth(draws: Tensor, sigma: float, amplitude: float) -> Tensor:
    """Gaussian filter of random draws, cut off at three standard deviations, mirrored at the image's border.

    Args:
        draws: ``(..., H, W)`` whole numbers in units of 2**-12.
        sigma: standard deviation in pixels.
        amplitude: by how much the smoothed draws are multiplied.

    Returns: ``(..., H, W)`` float32.
    """
    height, width = draws.shape[-2:]
    rows, columns = (_wide_filter(size, sigma, draws.device) for size in (height, width))
    if rows is not None and columns is not None:
        fixed = draws.to(torch.float64).mul_(_HELD)
        for down, across in ((rows[0], columns[0].T), (rows[1].T, columns[1])):
            fixed = (down @ fixed).mul_(2.0**-_MODE_BITS).round_()
            fixed = (fixed @ across).mul_(2.0**-_MODE_BITS).round_()
        return fixed.mul_(amplitude / (_HELD << _DRAW_BITS)).to(torch.float32)
    across = along_rows(draws.to(torch.float32).view(-1, width), _filter(width, sigma, draws.device), width)
    across = across.view(-1, height, width).transpose(0, 1)
    # Back to 12 bits, for the second direction.
    lines = torch.mul(across, 2.0**-_DRAW_BITS, out=across.new_empty(across.shape)).round_().flatten(1)
    smoothed = torch.empty_like(lines)
    for outputs, inputs, weights in _filter(height, sigma, draws.device):
        torch.mm(weights.T, lines[inputs], out=smoothed[outputs])
    fields = smoothed.view(across.shape).transpose(0, 1)
    return torch.mul(fields, amplitude * 2.0 ** (-2 * _DRAW_BITS), out=fields.new_empty(fields.shape)).view(draws.shape)


def _filter(size: int, sigma: float, device: torch.device) -> Slabs:
    return gaussian_slabs(size, sigma, device, truncate=_TRUNCATE, edges="mirrored")


_MODE_BITS = 24
_HELD = 16  # parts of a draw's unit that are kept between products: 2**12 units * 16 * 224 pixels * 2**24 < 2**53
_FAINTEST = 1e-3  # modes of a smaller weight are left out: less than 1e-4 of a field's variance


@lru_cache
def _wide_filter(size: int, sigma: float, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The filter of `size` values through the few cosines that a wide one lets pass; None if these are not few.

    With mirrored borders the cosines of the DCT-II are its eigenvectors.

    Returns: what takes values to the cosines' coefficients, and the same times the filter's weights of them; both
        ``(modes, size)`` float64 in multiples of 2**-24, multiplied by 2**24.
    """
    taps = gaussian_taps(sigma, _TRUNCATE)
    offsets = np.arange(len(taps)) - len(taps) // 2
    frequencies = np.arange(size) * (math.pi / size)
    weights = np.cos(frequencies[:, None] * offsets) @ taps
    kept = np.flatnonzero(np.abs(weights) > _FAINTEST)
    if len(kept) > size // 4:
        return None
    cosines = np.cos(frequencies[kept, None] * (np.arange(size) + 0.5)) * math.sqrt(2 / size)
    cosines[kept == 0] *= math.sqrt(0.5)
    analysis, synthesis = (
        torch.from_numpy(np.rint(matrix * (1 << _MODE_BITS))).to(device)
        for matrix in (cosines, weights[kept, None] * cosines)
    )
    return analysis, synthesis


def _displace(planes: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Take every pixel from where its displacement points, bilinear, mirrored at the image's border.

    Args:
        planes: ``(C, B, H, W)`` float32 in [0, 1].
        dx: ``(B, H, W)`` float32 in pixels.
        dy: the same for y.

    Returns: ``(B, C, H, W)`` uint8.
    """
    channels, batch, height, width = planes.shape
    planes = planes.flatten(1)
    x, right = _cell(dx, torch.arange(0.5, width, device=dx.device), width)
    y, below = _cell(dy, torch.arange(0.5, height, device=dy.device)[:, None], height)
    right, below = right.flatten(), below.flatten()
    index = _flat_index(x, y, width, height)
    # As start + (end - start) * part, which leaves even areas as they are.
    upper, lower = (
        (start := _pick(planes, index, shift)).add_(_pick(planes, index, shift + 1).sub_(start).mul_(right))
        for shift in (0, width)
    )
    # What is interpolated between 0 and 1 needs no clipping.
    levels = upper.add_(lower.sub_(upper).mul_(below)).mul_(255.0).to(torch.int16).view(channels, *x.shape)
    out = torch.empty((batch, channels, height, width), dtype=torch.uint8, device=levels.device)
    return out.copy_(levels.transpose(0, 1))


def _cell(displacement: Tensor, centres: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The pixel before each displaced position, int32 up to size - 2, and how far it lies behind it, 0 to 1."""
    place = ((size - 0.5) - (displacement + centres).abs_().sub_(size).abs_()).clamp_(0, size - 1)
    pixel = place.floor().clamp_(max=size - 2)
    return pixel.to(torch.int32), place.sub_(pixel)


# ---- pixelate ----


def pixelate(images: Tensor, rng: ImageRng | None = None, *, factor: Shrinking) -> Tensor:  # noqa: ARG001
    """Shrink by averaging boxes of pixels, then enlarge by repeating them.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        factor: of the size, above 0, at most 1.

    Returns: ``(B, C, H, W)`` uint8, the same pixels as Pillow's ``resize`` with BOX, there and back.

    Raises:
        InputError: images so small that nothing would be left of them.

    Source: ``pixelate`` in make_cifar_c.py and make_imagenet_c.py.
    """
    height, width = images.shape[2:]
    rows, columns = int(height * factor), int(width * factor)
    if min(rows, columns) < 1:
        raise InputError(
            "images are too small for pixelate",
            found=f"{height} x {width} pixels, shrunk by {factor:g}",
            hint="larger images",
        )
    if images.device.type == "cpu" and height * width >= _LARGE:
        return _pixelate_large(images, rows, columns)
    return in_blocks(images, None, lambda part, _: _pixelate(part, rows, columns), values=_PIXELATE_VALUES)


# Pixels of an image from which on Pillow, plane by plane, is faster on a CPU than products over a batch: 1.6 times at
# 224 x 224, while they are 1.6 times faster at 64 x 64 and 2.5 times at 32 x 32.
_LARGE = 128 * 128
# More than fits the second-level cache: its matrix products are so small that calling them costs the more.
_PIXELATE_VALUES = 1 << 19


def _pixelate(images: Tensor, rows: int, columns: int) -> Tensor:
    height, width = images.shape[2:]
    adding, shares, repeating = _column_boxes(width, columns, images.device)
    # Along the rows by products with bands of 0 and 1, exact in float32: faster than looking up columns.
    boxes = along_rows(images.flatten(0, 2).to(torch.float32), adding, columns)
    boxes = boxes.mul_(shares).add_(0.5).floor_()  # as Pillow does, to whole numbers after each direction
    boxes = boxes.view(*images.shape[:3], columns)
    taps, present, shares, repeats = _row_boxes(height, rows, images.device)
    sums = boxes.index_select(2, taps[0])
    for tap, there in zip(taps[1:], present[1:], strict=True):
        sums.add_(boxes.index_select(2, tap).mul_(there))
    small = sums.mul_(shares).add_(0.5).floor_()
    wide = to_uint8(along_rows(small.flatten(0, 2), repeating, width))
    return wide.view(*small.shape[:3], width).index_select(2, repeats)


def _pixelate_large(images: Tensor, rows: int, columns: int) -> Tensor:
    height, width = images.shape[2:]
    down, across = _repeats(height, rows), _repeats(width, columns)
    source = images.contiguous().numpy()
    out = np.empty_like(source)
    for image, result in zip(source, out, strict=True):
        small = _planes(_to_pillow(image).resize((columns, rows), Image.Resampling.BOX))
        # Every mode but "raise" writes to `out` without a copy in between.
        np.take(small.take(across, axis=2), down, axis=1, out=result, mode="clip")
    return torch.from_numpy(out)


def _to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    """``(3, H, W)`` to an RGB image; from planes this takes Pillow half as long as from pixels."""
    height, width = image.shape[1:]
    return Image.merge("RGB", [Image.frombuffer("L", (width, height), plane, "raw", "L", 0, 1) for plane in image])


def _planes(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB image to ``(3, H, W)``."""
    planes = b"".join(image.tobytes("raw", band) for band in "RGB")
    return np.frombuffer(planes, dtype=np.uint8).reshape(3, image.height, image.width)


@lru_cache
def _repeats(size: int, smaller: int) -> NDArray[np.int32]:
    return _boxes(size, smaller)[2]


def _boxes(size: int, smaller: int) -> tuple[list[list[int]], NDArray[np.float32], NDArray[np.int32]]:
    """What Pillow's BOX filter does when it shrinks `size` pixels to `smaller` and enlarges them again.

    Returns: the pixels in each box, what their sum is multiplied by, and which box stands at each enlarged pixel.
    """
    scale = size / smaller
    boxes: list[list[int]] = []
    for i in range(smaller):
        centre = (i + 0.5) * scale
        near = range(max(int(centre - scale / 2 + 0.5), 0), min(int(centre + scale / 2 + 0.5), size))
        boxes.append([pixel for pixel in near if -0.5 < (pixel - centre + 0.5) * (1 / scale) <= 0.5])
    # Pillow's weight is 1/n rounded to 2**-22, and the side on which that lies decides where half a grey level goes.
    # Here the weight lies 2**-20 off, enough for float32 to tell and too little for other means, 1/2n from a half.
    shares = [(1 + math.copysign(2.0**-20, int(0.5 + 2.0**22 / n) * n - 2**22)) / n for n in map(len, boxes)]
    repeats = [int((i + 0.5) * (smaller / size)) for i in range(size)]
    return boxes, np.array(shares, dtype=np.float32), np.array(repeats, dtype=np.int32)


@lru_cache
def _column_boxes(size: int, smaller: int, device: torch.device) -> tuple[Slabs, Tensor, Slabs]:
    """`_boxes` as a matrix that adds up each box ``(size, smaller)``, the boxes' shares, and one that repeats them."""
    boxes, shares, repeats = _boxes(size, smaller)
    adding = np.zeros((size, smaller), dtype=np.float32)
    for i, box in enumerate(boxes):
        adding[box, i] = 1
    repeating = np.zeros((smaller, size), dtype=np.float32)
    repeating[repeats, np.arange(size)] = 1
    return slabs(adding, 32, device), torch.from_numpy(shares).to(device), slabs(repeating, 64, device)


@lru_cache
def _row_boxes(size: int, smaller: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_boxes` as row numbers ``(taps, smaller)``, which of them the box has (1 or 0), its share, and the repeats."""
    boxes, shares, repeats = _boxes(size, smaller)
    taps = np.zeros((max(map(len, boxes)), smaller), dtype=np.int32)
    present = np.zeros((*taps.shape, 1), dtype=np.float32)
    for i, box in enumerate(boxes):
        taps[: len(box), i] = box
        present[: len(box), i] = 1
    return (
        torch.from_numpy(taps).to(device),
        torch.from_numpy(present).to(device),
        torch.from_numpy(shares[:, None]).to(device),
        torch.from_numpy(repeats).to(device),
    )


# ---- JPEG compression ----


def jpeg_compression(images: Tensor, rng: ImageRng | None = None, *, quality: Quality) -> Tensor:  # noqa: ARG001
    """Write as JPEG and read back, on the CPU wherever the images are.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        quality: of the JPEG file, 1 to 95.

    Returns: ``(B, 3, H, W)`` uint8.

    Source: ``jpeg_compression`` in make_cifar_c.py and make_imagenet_c.py, which go through Pillow as we do.
    """
    source = images.cpu().numpy()
    out = np.empty_like(source)
    height, width = source.shape[2:]
    # Allocated once, and read and written where Pillow copies least: copies cost as much as the codec.
    pixels = np.zeros((height, width, 4), dtype=np.uint8)
    original = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    decoded = Image.new("RGB", (width, height))
    for image, result in zip(source, out, strict=True):
        for channel, plane in enumerate(image):
            pixels[..., channel] = plane
        # Straight to the codec: what Pillow does besides in `save` and `open` takes longer than coding a small image.
        decoded.frombytes(original.tobytes("jpeg", "RGB", quality), "jpeg", "RGB", "")
        result[...] = _planes(decoded)
    return torch.from_numpy(out).to(images.device)
