"""Blurs of CIFAR-10-C and ImageNet-C: Gaussian, defocus, glass, motion and zoom.

Weights are fixed-point integers, so every sum is exact, and neither order, thread count, batch nor device can change a
bit of it. Where the true result is an integer, as in even areas, the original's floating-point error decides on which
side of it the cut to 8 bits falls; there we do what the original does.

Images lie in memory as (row, channel, column) while they are worked on: moving one by whole rows and columns is then
one shift of the flat memory, and a blur is a sum of a few shifted copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import ndimage, sparse
from torch import Tensor
from torch.nn import functional as F

from robustbench_ln.corruptions.kernels.constants import Above0, AtLeast0, AtLeast1, Count
from robustbench_ln.corruptions.kernels.pixels import in_blocks
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError

FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
IntArray: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_BLOCK = 1 << 16  # pixel values worked on at a time; a few int32 buffers of that size stay in the second-level cache
_PIECE = 1 << 16  # values added up at a time


# ---------------------------------------------------------------- sums of shifted copies


class _Padded:
    """Memory for a block of images with a margin: edges repeated, or mirrored without repeating the edge itself.

    Attributes:
        values: ``(n, top + H + bottom, C, left + W + right)``.
        row: how far apart vertical neighbours lie in memory.
    """

    def __init__(
        self, like: Tensor, margins: tuple[int, int, int, int], dtype: torch.dtype, *, mirror: bool = False
    ) -> None:
        n, channels, height, width = like.shape
        top, bottom, left, right = margins
        self.values = like.new_zeros((n, top + height + bottom, channels, left + width + right), dtype=dtype)
        self.row = channels * self.values.shape[3]
        self._inner = self.values[:, top : top + height, :, left : left + width]
        self._borders: list[tuple[Tensor, Tensor, int | None]] = []
        for dim, before, size, after in ((3, left, width, right), (1, top, height, bottom)):
            end = before + size
            low, high = (before + 1, end - 1 - after) if mirror else (before, end - 1)
            for start, length, source in ((0, before, low), (end, after, high)):
                if length:
                    border = self.values.narrow(dim, start, length)
                    inside = self.values.narrow(dim, source, length if mirror else 1)
                    self._borders.append((border, inside, dim if mirror else None))

    def fill(self, images: Tensor) -> None:
        """Put ``(n, C, H, W)`` images in; n may be smaller than the block."""
        self._inner[: len(images)].copy_(images.transpose(1, 2))
        for border, inside, mirrored in self._borders:
            border.copy_(inside if mirrored is None else inside.flip(mirrored))


class _ShiftedSum:
    """``total[i] += weight * source[i + offset]`` in flat memory, for every (offset, weight).

    Slicing costs as much as adding, so it is done here, once for all blocks of a batch, in pieces that stay in the
    cache. What would reach past the end of `source` is left out. Integers may wrap around: the sums come out right.
    """

    def __init__(self, total: Tensor, source: Tensor, taps: Iterable[tuple[int, int | float]]) -> None:
        total, source = total.flatten(), source.flatten()
        taps = list(taps)
        self._terms = []
        for start in range(0, len(total), _PIECE):
            for offset, weight in taps:
                end = min(start + _PIECE, len(total), len(source) - offset)
                if end > start:
                    self._terms.append((total[start:end], source[start + offset : end + offset], weight))

    def add(self) -> None:
        for total, source, weight in self._terms:
            total.add_(source, alpha=weight)


def _crop(whole: Tensor, like: Tensor) -> Tensor:
    """The used part of ``(n, rows, C, columns)`` integers as uint8, in the shape of `like`."""
    n, _, height, width = like.shape
    used = whole[:n, :height, :, :width].transpose(1, 2)
    return used.to(torch.uint8, memory_format=torch.contiguous_format)


def _fixed_point(weights: Sequence[float], bits: int, *, rest: int) -> list[int]:
    """Weights as integer multiples of ``2**-bits`` that keep the sum 1; number `rest` takes what rounding leaves."""
    fixed = [round(weight * (1 << bits)) for weight in weights]
    fixed[rest] += (1 << bits) - sum(fixed)
    return fixed


def _by_planes(images: Tensor, prepare: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Tensor:
    """Work through a batch in blocks ``(n, 1, H, W)`` of single channels.

    Args:
        images: ``(B, C, H, W)`` uint8.
        prepare: is given the first and largest block, and returns the kernel, which keeps its memory between blocks.
    """
    planes = images.flatten(0, 1).unsqueeze(1)
    n = max(1, _BLOCK // max(1, planes[:1].numel()))
    kernel = prepare(planes[:n])
    out = torch.empty_like(planes)
    for start in range(0, len(planes), n):
        out[start : start + n] = kernel(planes[start : start + n])
    return out.view_as(images)


# ---------------------------------------------------------------- Gaussian


def gaussian_blur(images: Tensor, rng: ImageRng | None = None, *, sigma: Above0) -> Tensor:  # noqa: ARG001
    """Blur with a Gaussian cut off at four standard deviations; edges are repeated.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        sigma: standard deviation in pixels.

    Returns: ``(B, C, H, W)`` uint8. Between the two axes we keep 8 fraction bits, not 53: about one value in a thousand
        is cut to the neighbouring grey level.

    Source: ``gaussian_blur`` in make_cifar_c.py and make_imagenet_c.py.
    """
    return _gaussian(images, sigma)


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    weights = _gaussian_weights(sigma)
    if len(weights) == 1 or not images.numel():
        return images.clone()
    return _by_planes(images, lambda block: _gaussian_kernel(block, weights, sigma))


def _gaussian_kernel(block: Tensor, weights: Sequence[float], sigma: float) -> Callable[[Tensor], Tensor]:
    radius = len(weights) // 2
    # With little weight beside the middle, values come close to integers, and 16 bits of a weight would not do.
    precise = radius <= 2
    padded = _Padded(block, (radius,) * 4, torch.float64 if precise else torch.int32)
    source, down = padded.values, torch.zeros_like(padded.values)
    scale = 2.0**-22 if precise else 1
    taps = [scale * weight for weight in _fixed_point(weights, 22 if precise else 16, rest=radius)]
    along_columns = _ShiftedSum(down, source, ((i * padded.row, weight) for i, weight in enumerate(taps)))
    along_rows = _ShiftedSum(source, down, enumerate(taps))
    table = _gaussian_of_even_areas(sigma)
    even = None if table == tuple(range(256)) else torch.tensor(table, dtype=torch.uint8, device=block.device)

    def kernel(planes: Tensor) -> Tensor:
        padded.fill(planes)
        # Between the axes 8 of 16 fraction bits are kept, so that the second sum is 8 + 24 bits, all that int32 has.
        down.fill_(0 if precise else 1 << 7)
        along_columns.add()
        if not precise:
            down.bitwise_right_shift_(8)
        source.zero_()
        along_rows.add()
        whole = source.to(torch.int32) if precise else torch.bitwise_right_shift(source, 24, out=down)
        blurred = _crop(whole, planes)
        if even is not None:
            fraction = source.sub_(whole) if precise else source.bitwise_left_shift_(8)
            _mend_even_areas(blurred, _crop(fraction.to(torch.bool), planes), even)
        return blurred

    return kernel


def _mend_even_areas(blurred: Tensor, has_fraction: Tensor, even: Tensor) -> None:
    """Where the true value has no fraction, put what the original's rounding makes of an even area of that level."""
    if not has_fraction.all():
        at = (has_fraction == 0).nonzero(as_tuple=True)
        blurred[at] = even[blurred[at].to(torch.int64)]


@lru_cache
def _gaussian_weights(sigma: float) -> tuple[float, ...]:
    """The weights of ``scipy.ndimage.gaussian_filter``, which scikit-image calls."""
    radius = int(4 * sigma + 0.5)
    weights = np.array([math.exp(-0.5 / sigma**2 * i**2) for i in range(-radius, radius + 1)])
    return tuple((weights / weights.sum()).tolist())


@lru_cache
def _gaussian_of_even_areas(sigma: float) -> tuple[int, ...]:
    """What the original makes of an area of one grey level, for every level: that level or the one below."""
    weights = _gaussian_weights(sigma)
    radius = len(weights) // 2
    levels = []
    for level in range(256):
        value = level / 255.0
        for _axis in range(2):  # in the order of SciPy's loop: the middle, then pairs from the outside in
            total = value * weights[radius]
            for weight in weights[:radius]:
                total += (value + value) * weight
            value = total
        levels.append(int(min(value, 1.0) * 255))
    return tuple(levels)


# ---------------------------------------------------------------- defocus

_DISK_BITS = 22  # large kernels add up to more than 1, so sums need room above 255


@dataclass(frozen=True, slots=True)
class _DiskPlan:
    """An anti-aliased disk as sums of shifted copies; positions are (row, column) from the middle, weights fixed-point.

    Attributes:
        half_widths: of the rows of a plain disk, top to bottom; empty where single taps do.
        smooth: weights on the sums over the plain disk.
        single: weights on single pixels: all of a small kernel, and of a large one what the disk does not explain.
        margin: pixels that the whole reaches out.
        brightens: whether the weights add up to more than 1.
    """

    half_widths: tuple[int, ...]
    smooth: tuple[tuple[int, int, int | float], ...]
    single: tuple[tuple[int, int, int | float], ...]
    margin: int
    brightens: bool


def defocus_blur(images: Tensor, rng: ImageRng | None = None, *, radius: AtLeast0, alias_blur: Above0) -> Tensor:  # noqa: ARG001
    """Average over a disk with softened rim; edges are mirrored.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        radius: of the disk, in pixels.
        alias_blur: standard deviation of the Gaussian that softens the rim.

    Returns: ``(B, C, H, W)`` uint8. The weights of kernels above 25 pixels have 22 fraction bits: about one value in a
        thousand is cut to the neighbouring grey level.

    Raises:
        InputError: the image is smaller than the margin that has to be mirrored.

    Source: ``defocus_blur`` in make_cifar_c.py and make_imagenet_c.py.
    """
    plan = _disk_plan(radius, alias_blur)
    height, width = images.shape[2:]
    if min(height, width) <= plan.margin:
        raise InputError(
            "images too small for defocus_blur",
            found=f"{height}x{width} pixels",
            hint=f"at this severity it needs {plan.margin + 1} pixels each way",
        )
    if not images.numel():
        return images.clone()
    return _by_planes(images, lambda block: _defocus_kernel(block, plan))


def _defocus_kernel(block: Tensor, plan: _DiskPlan) -> Callable[[Tensor], Tensor]:
    n_pixels = sum(2 * half + 1 for half in plan.half_widths)
    if not n_pixels:
        dtype = torch.float64
    elif n_pixels * 255 < 1 << 15:
        dtype = torch.int16
    else:
        dtype = torch.int32
    padded = _Padded(block, (plan.margin,) * 4, dtype, mirror=True)
    row = padded.row

    def taps(weights: Sequence[tuple[int, int, int | float]], origin: int) -> Iterator[tuple[int, int | float]]:
        return (((y + origin) * row + x + origin, weight) for y, x, weight in weights)

    if not n_pixels:
        exact = torch.zeros_like(padded.values)
        sum_of_pixels = _ShiftedSum(exact, padded.values, taps(plan.single, plan.margin))

        def direct(planes: Tensor) -> Tensor:
            padded.fill(planes)
            exact.zero_()
            sum_of_pixels.add()
            return _crop(exact.to(torch.int32), planes)

        return direct

    total, wide = (torch.zeros_like(padded.values, dtype=torch.int32) for _ in range(2))
    sum_over_disk, disk = _disk_sums(padded.values, plan.half_widths, row)
    sum_of_disks = _ShiftedSum(total, wide, taps(plan.smooth, plan.margin - len(plan.half_widths) // 2))
    sum_of_pixels = _ShiftedSum(total, wide, taps(plan.single, plan.margin))

    def kernel(planes: Tensor) -> Tensor:
        padded.fill(planes)
        for step in sum_over_disk:
            step()
        total.zero_()
        wide.copy_(disk)
        sum_of_disks.add()
        wide.copy_(padded.values)
        sum_of_pixels.add()
        total.bitwise_right_shift_(_DISK_BITS)
        return _crop(total.clamp_(max=255) if plan.brightens else total, planes)

    return kernel


def _disk_sums(values: Tensor, half_widths: tuple[int, ...], row: int) -> tuple[list[Callable[[], object]], Tensor]:
    """What to do, in order, for sums over a disk, and where they will be: at the upper left corner of its square.

    Neighbouring rows of the disk differ little in width, so the sums along rows grow from one width to the next.
    """
    reach = len(half_widths) // 2
    pixels, disk = values.flatten(), torch.zeros_like(values)
    along, other = pixels, torch.zeros_like(pixels)  # sums over 2 * half + 1 pixels to the right
    steps: list[Callable[[], object]] = [disk.zero_]
    for half in range(reach + 1):
        if half:
            size = len(pixels) - 2 * half
            wider = other[:size]
            steps.append(partial(torch.add, along[1 : size + 1], pixels[:size], out=wider))
            steps.append(partial(wider.add_, pixels[2 * half :]))
            along, other = other, (torch.zeros_like(pixels) if along is pixels else along)
        rows = [(y * row + reach - half, 1) for y, wanted in enumerate(half_widths) if wanted == half]
        steps.append(_ShiftedSum(disk, along, rows).add)
    return steps, disk


def _disk_kernel(radius: float, alias_blur: float) -> FloatArray:
    """The kernel of the original, with its quirks: the rim is softened on an array that a large disk fills to the edge,
    where OpenCV mirrors, so that for radius 8 and up the weights add up to more than 1.
    """
    extent = 8 if radius <= 8 else math.floor(radius)
    axis = np.arange(-extent, extent + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    soft = _softening(radius, alias_blur).astype(np.float32).astype(np.float64)
    reach, size = len(soft) // 2, len(disk)
    for _axis in range(2):
        mirrored = np.pad(disk, ((reach, reach), (0, 0)), mode="reflect")
        blurred = (soft[reach] * mirrored[reach : reach + size]).astype(np.float32)
        for i in range(1, reach + 1):
            pair = mirrored[reach - i : reach - i + size] + mirrored[reach + i : reach + i + size]
            # OpenCV's fused multiply-add: float64 holds the product, and one rounding is left. The last bits decide
            # on which side of 1 the sum of all weights lies, and so on the level of even areas.
            blurred = (soft[reach + i] * pair + blurred).astype(np.float32)
        disk = blurred.T
    return disk.astype(np.float64)


def _softening(radius: float, alias_blur: float) -> FloatArray:
    distance = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights: FloatArray = np.exp(-0.5 / alias_blur**2 * distance**2)
    weights /= weights.sum()
    return weights


@lru_cache
def _disk_plan(radius: float, alias_blur: float) -> _DiskPlan:
    kernel = _disk_kernel(radius, alias_blur)
    exact = np.rint(kernel * 2.0**44) * 2.0**-44  # times 8 bits is exact in float64
    if np.count_nonzero(exact) <= 25:
        single = _by_position(exact)
        return _DiskPlan((), (), single, _farthest(single), False)
    scale = 1 << _DISK_BITS
    reach = math.floor(radius)
    half_widths = tuple(math.isqrt(math.floor(radius**2) - y**2) for y in range(-reach, reach + 1))
    n_pixels = sum(2 * half + 1 for half in half_widths)
    soft = _softening(radius, alias_blur)
    over_disk = np.rint(np.outer(soft, soft) * scale / n_pixels).astype(np.int64)
    over_disk[len(soft) // 2, len(soft) // 2] += round(scale / n_pixels) - int(over_disk.sum())
    smooth = _by_position(over_disk)
    rest = np.pad(np.rint(kernel * scale).astype(np.int64), len(soft))
    middle = len(rest) // 2
    for y, x, weight in smooth:
        for row, half in enumerate(half_widths, start=middle + y - reach):
            rest[row, middle + x - half : middle + x + half + 1] -= int(weight)
    rest[np.abs(rest) <= len(soft) ** 2] = 0  # rounding
    # Even areas: where the original's weights add up to less than 1, they are cut to the level below, and only there.
    weight_sum = math.floor(kernel.sum() * scale)
    missing = weight_sum - n_pixels * sum(int(weight) for _, _, weight in smooth) - int(rest.sum())
    if weight_sum >= scale or not 0 <= missing <= 8:  # to miss up to 8 units darkens by less than 0.0005 levels
        rest[middle, middle] += missing
    single = _by_position(rest)
    margin = max(_farthest(single), reach + _farthest(smooth))
    return _DiskPlan(half_widths, smooth, single, margin, weight_sum > scale)


def _by_position(weights: FloatArray | IntArray) -> tuple[tuple[int, int, int | float], ...]:
    """(row, column, weight) for the weights that are not 0, from the middle."""
    middle = len(weights) // 2
    places = zip(*weights.nonzero(), strict=True)
    return tuple((int(y) - middle, int(x) - middle, weights[y, x].item()) for y, x in places)


def _farthest(weights: Iterable[tuple[int, int, int | float]]) -> int:
    return max((max(abs(y), abs(x)) for y, x, _ in weights), default=0)


# ---------------------------------------------------------------- glass


def glass_blur(images: Tensor, rng: ImageRng, *, sigma: Above0, max_delta: Count, iterations: Count) -> Tensor:
    """Blur, let pixels take the colour of random neighbours, blur again.

    The original means to swap, but its two sides are views of one array: a pixel takes its neighbour's colour and the
    neighbour keeps it. It goes from the lower right to the upper left, and a neighbour that has had its turn hands on
    what it took. A pixel's colour thus comes along a chain of neighbours. All chains of a batch are followed at once,
    in steps that double, with the same outcome as the original's loop.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: one stream an image.
        sigma: standard deviation of both Gaussian blurs, in pixels.
        max_delta: neighbours lie from -max_delta to max_delta - 1 away (``randint`` leaves out its upper end).
        iterations: how often every pixel has its turn.

    Returns: ``(B, C, H, W)`` uint8.

    Raises:
        InputError: images so small that no pixel has a turn.

    Source: ``glass_blur`` in make_cifar_c.py and make_imagenet_c.py.
    """
    height, width = images.shape[2:]
    if min(height, width) <= 2 * max_delta:  # no pixel has a turn
        raise InputError(
            "images are too small for glass_blur",
            found=f"{height} x {width} pixels, neighbours up to {max_delta} away",
            hint=f"at least {2 * max_delta + 1} pixels a side",
        )
    if not images.numel():
        return images.clone()

    def mix(part: Tensor, streams: ImageRng) -> Tensor:
        sources = _glass_sources(part, streams, max_delta, iterations).unsqueeze(1)
        return part.flatten(2).gather(2, sources.expand(-1, part.shape[1], -1)).view_as(part)

    return _gaussian(in_blocks(_gaussian(images, sigma), rng, mix, values=_BLOCK), sigma)


def _glass_sources(images: Tensor, rng: ImageRng, max_delta: int, iterations: int) -> Tensor:
    """``(n, H * W)`` int64: the place in the image whose colour each pixel ends with."""
    n, _, height, width = images.shape
    pixels = torch.arange(n * height * width, dtype=torch.int32, device=images.device)
    sources = pixels
    # Rows and columns from max_delta + 1 to size - max_delta have a turn; the two ends are not symmetric.
    first, n_rows, n_columns = max_delta + 1, max(0, height - 2 * max_delta), max(0, width - 2 * max_delta)
    for _ in range(iterations if n_rows and n_columns else 0):
        down, right = _pairs_below(2 * max_delta, rng, n_rows, n_columns)
        step = pixels.new_zeros((n, height, width))
        step[:, first : first + n_rows, first : first + n_columns] = (
            down.mul_(width).add_(right).sub_(max_delta * (width + 1))
        )
        step = step.flatten()
        if max_delta == 1:  # neighbours lie only above and to the left, and have not had their turn
            sources = sources.index_select(0, step.add_(pixels))
            continue
        # A neighbour further on in memory has had its turn in this iteration: go on from there.
        last = step.clamp(min=0).add_(pixels)
        while not torch.equal(further := last.index_select(0, last), last):
            last = further
        before = sources.index_select(0, step.clamp_(max=0).add_(pixels))
        sources = before.index_select(0, last)
    return sources.view(n, -1).sub_(pixels.view(n, -1)[:, :1].clone()).to(torch.int64)


def _pairs_below(high: int, rng: ImageRng, *shape: int) -> tuple[Tensor, Tensor]:
    """Two int32 tensors ``(n, *shape)``, uniform on 0 to high - 1; one random byte is enough for both if high² divides
    256.
    """
    if 256 % high**2:
        down, right = rng.integers(high, 2, *shape).to(torch.int32).unbind(1)
        return down, right
    size = math.prod(shape)
    pair = rng.words(-(-size // 4)).view(torch.uint8)[:, :size].to(torch.int32).view(-1, *shape)
    bits = high.bit_length() - 1
    return (pair >> bits).bitwise_and_(high - 1), pair.bitwise_and_(high - 1)


# ---------------------------------------------------------------- motion

_MOTION_BITS = 23  # 8-bit pixels times 23-bit weights stay below 2**31


def motion_blur(images: Tensor, rng: ImageRng, *, radius: AtLeast0, sigma: Above0) -> Tensor:
    """Blur along a line at a random angle within 45 degrees of the horizontal.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: one stream an image.
        radius: the line has ``2 * ceil(radius) + 1`` pixels.
        sigma: standard deviation of the Gaussian weights along it, in pixels.

    Returns: ``(B, C, H, W)`` uint8.

    Source: ``motion_blur`` in make_cifar_c.py and make_imagenet_c.py.
    """
    angles = (rng.uniform() * 90.0).sub_(45.0)
    return one_sided_motion_blur(images, angles, radius=radius, sigma=sigma)


def one_sided_motion_blur(images: Tensor, angles: Tensor, *, radius: float, sigma: float) -> Tensor:
    """ImageMagick's MotionBlurImage, pixel for pixel.

    The kernel is one half of a Gaussian, from its middle outwards, so it moves the image as well as blurs it.

    Args:
        images: ``(B, C, H, W)`` uint8.
        angles: ``(B,)`` directions in degrees, clockwise from the right.
        radius: the kernel has ``2 * ceil(radius) + 1`` taps, although all of them lie on one side.
        sigma: standard deviation of the Gaussian in pixels.

    Returns: ``(B, C, H, W)`` uint8.
    """
    if not images.numel():
        return images.clone()
    n, channels, height = images.shape[:3]
    weights = _motion_weights(radius, sigma)
    radians = [math.radians(angle) for angle in angles.tolist()]
    steps = np.arange(len(weights))[:, None]
    down = np.ceil(steps * [math.sin(angle) for angle in radians] - 0.5).astype(np.int64)
    right = np.ceil(steps * [math.cos(angle) for angle in radians] - 0.5).astype(np.int64)
    top, left = -int(down.min()), -int(right.min())  # every line starts at (0, 0), so neither is negative
    margins = top, int(down.max()), left, int(right.max())
    in_block = min(n, max(1, _BLOCK // images[0].numel()))
    padded = _Padded(images[:in_block], margins, torch.int32)
    blurred = padded.values.new_empty((in_block, height, channels, padded.values.shape[3]))
    total = blurred.flatten(1)[:, : height * padded.row - left - margins[3]]
    windows = padded.values.flatten().unfold(0, total.shape[1], 1)
    offsets = (down + top) * padded.row + right + left
    out = torch.empty_like(images)
    for start in range(0, n, in_block):
        block = images[start : start + in_block]
        padded.fill(block)
        # ImageMagick rounds to 16 bits (v * 257) and keeps the upper byte: it cuts off after adding half a 257th.
        blurred.fill_((1 << _MOTION_BITS) // (2 * 257))
        places = np.arange(len(block)) * padded.values[0].numel() + offsets[:, start : start + in_block]
        if len(block) == 1:
            for (place,), weight in zip(places.tolist(), weights, strict=True):
                total[0].add_(windows[place], alpha=weight)
        else:
            for place, weight in zip(torch.from_numpy(places).to(images.device), weights, strict=True):
                total[: len(block)].add_(windows.index_select(0, place), alpha=weight)
        out[start : start + in_block] = _crop(blurred.bitwise_right_shift_(_MOTION_BITS), block)
    return out


@lru_cache
def _motion_weights(radius: float, sigma: float) -> tuple[int, ...]:
    """Fixed-point weights by distance from the pixel; the far ones that round to nothing are left out."""
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * math.ceil(radius) + 1)]
    total = math.fsum(weights)
    fixed = _fixed_point([weight / total for weight in weights], _MOTION_BITS, rest=0)
    return tuple(weight for weight in fixed if weight)


# ---------------------------------------------------------------- zoom

_ZOOM_BITS = 16  # 8-bit pixels times 16-bit weights are whole numbers below 2**24, exact in float32
_ZOOM_COLUMNS = 48  # channels of images worked on at a time


def zoom_blur(images: Tensor, rng: ImageRng | None = None, *, max_zoom: AtLeast1, step: Above0) -> Tensor:  # noqa: ARG001
    """Average the image with enlargements of its middle.

    All enlargements are bilinear, so the average is one sparse linear operator, built once for a size and severity.

    Args:
        images: ``(B, C, H, W)`` uint8.
        rng: not drawn from; nothing here is random.
        max_zoom: zoom factors run from 1 to this, as ``np.arange`` has them.
        step: between zoom factors.

    Returns: ``(B, C, H, W)`` uint8. The original adds up in float32 and we in exact multiples of 2**-16: about one
        value in a thousand is cut to the neighbouring grey level.

    Source: ``zoom_blur`` in make_cifar_c.py and make_imagenet_c.py.
    """
    n, channels, height, width = images.shape
    if not images.numel():
        return images.clone()
    operator = _zoom_operator(height, width, max_zoom, step, images.device)
    out = torch.empty_like(images).view(n * channels, -1)
    for start in range(0, n * channels, _ZOOM_COLUMNS):
        part = slice(start, start + _ZOOM_COLUMNS)
        out[part] = operator(images.view(n * channels, -1)[part])
    return out.view_as(images)


@dataclass(frozen=True, slots=True)
class _ZoomOperator:
    """The average of zooms as weights on pixels, in rows: pixel ``i`` sums over ``pixels[starts[i]:starts[i + 1]]``."""

    starts: Tensor
    pixels: Tensor
    weights: Tensor
    even: Tensor

    def __call__(self, channels: Tensor) -> Tensor:
        """``(n, H * W)`` uint8 to the same."""
        values = channels.to(torch.float32).t().contiguous()
        total = F.embedding_bag(
            self.pixels, values, self.starts, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )
        fixed = total.to(torch.int32)
        blurred = (fixed >> _ZOOM_BITS).to(torch.uint8)
        _mend_even_areas(blurred, fixed.bitwise_left_shift_(32 - _ZOOM_BITS).to(torch.bool), self.even)
        return blurred.t()


@lru_cache(maxsize=8)
def _zoom_operator(height: int, width: int, max_zoom: float, step: float, device: torch.device) -> _ZoomOperator:
    zooms = np.arange(1, max_zoom, step)
    average = sparse.eye_array(height * width, format="csr")
    for zoom in zooms.tolist():
        average = average + sparse.kron(_zoom_axis(height, zoom), _zoom_axis(width, zoom), format="csr")
    average = sparse.csr_array(average / (len(zooms) + 1))
    average.sum_duplicates()
    row = np.repeat(np.arange(height * width), np.diff(average.indptr))
    scaled = average.data * (1 << _ZOOM_BITS)
    fixed = np.floor(scaled)
    # Largest remainders, row by row, so that each row keeps its sum.
    missing = np.rint(np.bincount(row, scaled)) - np.bincount(row, fixed)
    order = np.lexsort((fixed - scaled, row))
    rank = np.arange(len(order)) - average.indptr[row]
    fixed[order] += rank < missing[row]
    even = torch.tensor(_zoom_of_even_areas(len(zooms)), dtype=torch.uint8)
    tensors = (
        torch.from_numpy(average.indptr.astype(np.int32)),
        torch.from_numpy(average.indices.astype(np.int32)),
        torch.from_numpy(fixed.astype(np.float32)),
        even,
    )
    return _ZoomOperator(*(tensor.to(device) for tensor in tensors))


def _zoom_axis(size: int, zoom: float) -> sparse.csr_array:
    """``(size, size)`` weights: crop the middle ``size / zoom`` of an axis, stretch it, crop to `size` again."""
    crop = math.ceil(size / zoom)
    start = (size - crop) // 2
    stretched = ndimage.zoom(np.eye(size)[start : start + crop], (zoom, 1), order=1)
    start = (len(stretched) - size) // 2
    return sparse.csr_array(stretched[start : start + size])


def _zoom_of_even_areas(n_zooms: int) -> list[int]:
    """What the original's float32 sums make of an area of one grey level, for every level."""
    value = (np.arange(256) / 255.0).astype(np.float32)
    total = np.zeros_like(value)
    for _ in range(n_zooms):
        total += value
    mean = (value + total) / np.float32(n_zooms + 1)
    levels: list[int] = (np.clip(mean, 0, 1) * np.float32(255)).astype(np.uint8).tolist()
    return levels
