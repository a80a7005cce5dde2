"""Weather of CIFAR-10-C and ImageNet-C: snow, frost, fog and spatter.

Random fields are drawn in whole steps of a fixed size and smoothed with fixed-point weights, so that every sum is exact
in float32 and no order, thread count, batch or device can change a bit of it. Where the generators call OpenCV on 8-bit
maps, its integer arithmetic is rebuilt. Maps of a whole block lie as ``(H, W, B)``: a neighbour in any direction is
then one slice with long contiguous runs, at 32 pixels as well as at 224.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_ln.corruptions.kernels.blur import one_sided_motion_blur
from robustbench_ln.corruptions.kernels.constants import Above0, AtLeast0, AtLeast1, Count, Share
from robustbench_ln.corruptions.kernels.pixels import in_blocks, normal_deviates, to_uint8
from robustbench_ln.corruptions.kernels.smoothing import WEIGHT_BITS, Slabs, gaussian_slabs
from robustbench_ln.corruptions.kernels.textures import FrostTextures, scaled_atlas
from robustbench_ln.corruptions.rng import ImageRng

_BLOCK_VALUES = 5 << 18  # larger than usual: these kernels take many short steps, most on a map of one channel
_CACHED = 1 << 17  # values of an image in float32 that stay in the second-level cache

# ---- random fields, exact in float32 ----

_STEPS = 512  # a standard deviation in whole steps; the largest draw, 4.2 of them, stays below 2**12
_WEIGHT = 1 << WEIGHT_BITS  # fixed-point one of all weights


@lru_cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """The middles of 65536 equally likely slices of the standard normal, in steps; ``(65536,)`` float32."""
    return torch.from_numpy(np.rint(normal_deviates(1 << 16) * _STEPS)).to(device, torch.float32)


def _normal_steps(rng: ImageRng, height: int, width: int) -> Tensor:
    """``(B, height, width)`` float32, standard normal in whole steps of 1/512; four times as fast as ``rng.normal``."""
    index = rng.halfwords(height, width)
    return _normal_quantiles(index.device).index_select(0, index.flatten()).view_as(index)


def _filter(size: int, sigma: float, device: torch.device) -> Slabs:
    """The filter of scikit-image's ``gaussian``: cut off at four standard deviations, edges repeated."""
    return gaussian_slabs(size, sigma, device, truncate=4.0, edges="repeated")


def _smooth_columns(maps: Tensor, sigma: float) -> Tensor:
    """Smooth ``(B, H, W)`` along W; whole numbers below 2**12 in, multiplied by 2**12 out."""
    return torch.cat([maps[:, :, i] @ w for _, i, w in _filter(maps.shape[2], sigma, maps.device)], dim=2)


def _smooth_rows(maps: Tensor, sigma: float) -> Tensor:
    """Smooth ``(H, W, B)`` along H, as `_smooth_columns` does along W."""
    flat = maps.flatten(1)
    return torch.cat([w.T @ flat[i] for _, i, w in _filter(len(maps), sigma, maps.device)]).view_as(maps)


# ---- snow ----


def snow(
    images: Tensor,
    rng: ImageRng,
    *,
    loc: float,
    scale: AtLeast0,
    zoom: AtLeast1,
    threshold: float,
    radius: AtLeast0,
    sigma: Above0,
    mix: Share,
) -> Tensor:
    """Falling snow in front of a whitened scene.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        loc: mean of the noise the flakes are cut from.
        scale: its standard deviation.
        zoom: enlargement of the flakes, at least 1.
        threshold: where the noise is below this, there is no flake.
        radius: of the motion blur that makes flakes fall, in pixels.
        sigma: of the motion blur, in pixels.
        mix: how much of the image stays; the rest is whitened.

    Returns: ``(B, 3, H, W)`` uint8.

    Source: ``snow`` in make_cifar_c.py and make_imagenet_c.py. They enlarge the middle of a larger map of noise; here
    only that middle is drawn.
    """

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        rows = _enlargement(images.shape[2], zoom, images.device)
        columns = _enlargement(images.shape[3], zoom, images.device)
        noise = _normal_steps(rng, rows.shape[1], columns.shape[1])
        enlarged = torch.matmul(torch.matmul(rows, noise).mul_(1 / _WEIGHT).round_(), columns.T)
        heights = enlarged.mul_(255 * scale / (_STEPS * _WEIGHT)).add_(255 * loc)
        flakes = to_uint8(F.threshold(heights, 255 * threshold, 0.0, inplace=True)).unsqueeze(1)
        falling = one_sided_motion_blur(flakes, rng.uniform() * 90.0 - 135.0, radius=radius, sigma=sigma)
        scene = _whiten(images, mix)
        # The same flakes twice, the second time turned by half a turn.
        return _add_to(_add_to(scene, falling), falling.flip(2, 3))

    return in_blocks(images, rng, kernel, values=_BLOCK_VALUES)


@lru_cache
def _enlargement(size: int, zoom: float, device: torch.device) -> Tensor:
    """Linear interpolation to `size` values, in 1/4096: ``(size, ceil(size / zoom))``.

    The grid of ``scipy.ndimage.zoom``: first and last point stay where they are, and the middle is kept of a result
    longer than `size`.
    """
    n = math.ceil(size / zoom)
    enlarged = max(round(n * zoom), size)
    positions = np.arange(enlarged) * ((n - 1) / max(1, enlarged - 1))
    positions = positions[(enlarged - size) // 2 :][:size]
    distances = np.abs(positions[:, None] - np.arange(n))
    return torch.from_numpy(np.rint(np.clip(1 - distances, 0, 1) * _WEIGHT)).to(device, torch.float32)


_LUMA = (0.299, 0.587, 0.114)  # OpenCV's grey of red, green and blue


def _whiten(images: Tensor, mix: float) -> Tensor:
    """What is left of the scene: mix x + (1 - mix) max(x, 1.5 grey + 0.5), cut off to 8 bits."""
    pixels = images.to(torch.float32)
    red, green, blue = ((pixels[:, c] * weight) for c, weight in enumerate(_LUMA))
    white = red.add_(green).add_(blue).mul_(1.5).add_(127.5).mul_(1 - mix).unsqueeze(1)
    # Below the whitened value, x is mix x + (1 - mix) x: the maximum can be taken last, in 8 bits.
    return torch.maximum(images, to_uint8(pixels.mul_(mix).add_(white)))


def _add_to(images: Tensor, light: Tensor) -> Tensor:
    """Add 8-bit `light` to `images` in place, saturating at 255."""
    return images.add_(torch.minimum(light, 255 - images))


# ---- frost ----


def frost(
    images: Tensor,
    rng: ImageRng,
    *,
    image_weight: AtLeast0,
    frost_weight: AtLeast0,
    texture_scale: Above0,
    textures: FrostTextures,
) -> Tensor:
    """A frosted window: a random piece of a random texture on top of the image.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        image_weight: of the image.
        frost_weight: of the texture.
        texture_scale: the textures are resized by this; by more where an image would not fit.
        textures: what frost looks like, see `procedural_textures` and `load_textures`.

    Returns: ``(B, 3, H, W)`` uint8.

    Source: ``frost`` in make_cifar_c.py and make_imagenet_c.py.
    """
    height, width = images.shape[2:]
    atlas, corners = scaled_atlas(textures, texture_scale, height, width, images.device)
    blend = _blend_table(image_weight, frost_weight, images.device)
    # One view of every piece by where it starts, so that picking pieces is a single indexing of the first dimension.
    plane, row, _ = atlas.stride()
    starts = atlas.numel() - 2 * plane - (height - 1) * row - width + 1
    pieces = atlas.as_strided((starts, 3, height, width), (1, plane, row, 1))

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        texture, y, x = rng.uniform(3).double().unbind(1)
        top, n_rows, n_columns = corners[(texture * len(corners)).long()].unbind(1)
        start = (top + (y * n_rows).long()) * row + (x * n_columns).long()
        index = images.to(torch.int32).bitwise_left_shift_(8).bitwise_or_(pieces[start].to(torch.int32))
        return blend.index_select(0, index.flatten()).view_as(images)

    return in_blocks(images, rng, kernel, values=_BLOCK_VALUES)


@lru_cache
def _blend_table(image_weight: float, frost_weight: float, device: torch.device) -> Tensor:
    """The 8-bit blend of every pair of an image's and a texture's value; ``(65536,)`` uint8, texture fastest."""
    values = np.arange(256)
    blend = image_weight * values[:, None] + frost_weight * values
    return torch.from_numpy(np.clip(blend, 0, 255).astype(np.uint8)).to(device).flatten()


# ---- fog ----


def fog(images: Tensor, rng: ImageRng, *, amount: AtLeast0, wibble: Above0, map_size: Count) -> Tensor:
    """Fog of uneven thickness, a plasma fractal.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        amount: thickness of the fog where it is thickest.
        wibble: how fast detail fades: each halving of the scale divides its size by ``wibble ** 2``.
        map_size: side of the fractal, rounded up to a power of two that covers the image.

    Returns: ``(B, 3, H, W)`` uint8.

    Source: ``fog`` in make_cifar_c.py and make_imagenet_c.py.
    """
    height, width = images.shape[2:]
    levels = math.ceil(math.log2(max(map_size, height, width, 2)))
    thickness = 255.0 * amount

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        plasma = _plasma(rng, levels, wibble)
        low, high = plasma.amin(dim=(1, 2)), plasma.amax(dim=(1, 2))
        brightest = images.amax(dim=(1, 2, 3)).to(torch.float32)
        # Fog is added and the sum scaled back to the image's own maximum; a black image stays black.
        keep = brightest / (brightest + thickness).clamp_(min=1.0)
        scale = keep * thickness / (high - low)
        haze = (plasma[:, :height, :width] - low.view(-1, 1, 1)).mul_(scale.view(-1, 1, 1)).unsqueeze(1)
        keep = keep.view(-1, 1, 1, 1)
        out = torch.empty_like(images)
        # Few images at a time, so that they stay in the cache. No value can leave 0 to 255.
        step = max(1, _CACHED // max(1, images[:1].numel()))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            out[part] = images[part].to(torch.float32).mul_(keep[part]).add_(haze[part]).to(torch.int16)
        return out

    return in_blocks(images, rng, kernel, values=_BLOCK_VALUES)


def _plasma(rng: ImageRng, levels: int, wibble: float) -> Tensor:
    """Diamond-square height maps that wrap around, not normalised: ``(B, 2**levels, 2**levels)`` float32.

    Args:
        rng: one stream an image.
        levels: how often the grid is refined from its single first point.
        wibble: the generators draw from ``w * uniform(-w, w)`` and divide w by this after each level.
    """
    # 16 bits a point, but 8 for the last level: three quarters of all points, and the faintest.
    half = 1 << (levels - 1)
    coarse = rng.halfwords(half * half - 1)
    fine = rng.words(-(-3 * half * half // 4)).view(torch.uint8)
    grid = torch.zeros((len(rng), 1, 1), device=coarse.device)
    size = 100.0**2
    for level in range(levels):
        n = 1 << level
        last = level == levels - 1
        draws, values = (fine[:, : 3 * n * n], 1 << 8) if last else (coarse[:, n * n - 1 : 4 * n * n - 1], 1 << 16)
        noise = draws.to(torch.float32).sub_((values - 1) / 2).mul_(2 * size / values).view(-1, 3, n, n)
        grid = _refine(grid, *noise.unbind(1))
        size /= wibble**2
    return grid


def _refine(corners: Tensor, centre: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Twice as fine a grid: midpoints are the mean of their four neighbours plus noise, which is overwritten.

    Args:
        corners: ``(B, n, n)`` the grid.
        centre: noise at (i + 1/2, j + 1/2).
        top: noise at (i, j + 1/2).
        left: noise at (i + 1/2, j).
    """
    across = _plus_rolled(corners, corners, -1, 2)
    down = _plus_rolled(corners, corners, -1, 1)
    centre += _plus_rolled(across, across, -1, 1).mul_(0.25)
    top += _plus_rolled(across.add_(centre), centre, 1, 1).mul_(0.25)
    left += _plus_rolled(down.add_(centre), centre, 1, 2).mul_(0.25)
    # torch.complex is the fastest way to interleave two tensors.
    batch, n, _ = corners.shape
    pairs = torch.empty((batch, n, 2, n), dtype=torch.complex64, device=corners.device)
    torch.complex(corners, top, out=pairs[:, :, 0])
    torch.complex(left, centre, out=pairs[:, :, 1])
    return torch.view_as_real(pairs).view(batch, 2 * n, 2 * n)


def _plus_rolled(values: Tensor, others: Tensor, shift: int, dim: int) -> Tensor:
    """``values + others.roll(shift, dim)`` without the copy."""
    size = values.shape[dim]
    shift %= size
    out = torch.empty_like(values)
    torch.add(
        values.narrow(dim, shift, size - shift),
        others.narrow(dim, 0, size - shift),
        out=out.narrow(dim, shift, size - shift),
    )
    torch.add(values.narrow(dim, 0, shift), others.narrow(dim, size - shift, shift), out=out.narrow(dim, 0, shift))
    return out


# ---- spatter ----


def spatter(
    images: Tensor,
    rng: ImageRng,
    *,
    loc: float,
    std: AtLeast0,
    sigma: AtLeast0,
    threshold: float,
    mix: AtLeast0,
    mud: bool,
) -> Tensor:
    """Drops of water, or splashes of mud, on the lens.

    Args:
        images: ``(B, 3, H, W)`` uint8.
        rng: one stream an image.
        loc: mean of the liquid's height before smoothing.
        std: its standard deviation.
        sigma: of the Gaussian that smooths the height, in pixels.
        threshold: liquid is where the smoothed height reaches this.
        mix: brightness of water; for mud, sigma in pixels of its soft rim.
        mud: mud instead of water.

    Returns: ``(B, 3, H, W)`` uint8.

    Source: ``spatter`` in make_cifar_c.py and make_imagenet_c.py. Where no water forms they divide 0 by 0; here the
    image then stays as it is.
    """

    def kernel(images: Tensor, rng: ImageRng) -> Tensor:
        noise = _normal_steps(rng, *images.shape[2:])
        smooth = _smooth_columns(noise, sigma).mul_(1 / _WEIGHT).round_()
        height = _smooth_rows(_images_last(smooth), sigma).mul_(255 * std / (_STEPS * _WEIGHT)).add_(255 * loc)
        liquid = F.threshold(height, 255 * threshold, 0.0, inplace=True)
        return _splash_mud(images, liquid, mix) if mud else _splash_water(images, liquid, mix)

    return in_blocks(images, rng, kernel, values=_BLOCK_VALUES)


def _images_last(maps: Tensor) -> Tensor:
    """``(B, H, W)`` to a contiguous ``(H, W, B)``."""
    return maps.permute(1, 2, 0).contiguous()


def _images_first(maps: Tensor) -> Tensor:
    """``(H, W, B)`` to a contiguous ``(B, 1, H, W)``."""
    return maps.permute(2, 0, 1).contiguous().unsqueeze(1)


_MUD = (63, 42, 20)  # red, green, blue


def _splash_mud(images: Tensor, liquid: Tensor, sigma: float) -> Tensor:
    """Cover ``(B, 3, H, W)`` uint8 by mud where ``(H, W, B)`` `liquid` is not 0, softly at the rim."""
    mask = _smooth_rows(liquid.clamp_(max=1.0).ceil_(), sigma)
    cover = _smooth_columns(_images_first(mask).squeeze(1), sigma).mul_(1 / _WEIGHT**2)
    cover = F.threshold(cover, 0.8, 0.0, inplace=True).unsqueeze(1)
    mud = torch.tensor(_MUD, dtype=torch.float32, device=images.device).view(3, 1, 1)
    covered = images.to(torch.float32).mul_(1.0 - cover).add_(cover * mud)
    return covered.to(torch.int16).to(torch.uint8)


_WATER = (slice(0, 1), 175), (slice(1, 3), 238)  # red, and green as blue: pale turquoise


def _splash_water(images: Tensor, liquid: Tensor, mix: float) -> Tensor:
    """Add highlights to ``(B, 3, H, W)`` uint8 inside the drops of ``(H, W, B)`` `liquid`, on the scale 0 to 255."""
    # A height above 255 starts again at 0, as in the generators' cast to 8 bits.
    level = liquid.to(torch.int16).bitwise_and_(255)
    depth = _distance_to(_canny(level, 50, 150))
    light = _box_mean(_emboss(_equalize(_truncated_box_mean(depth))))
    glow = _images_first(light.mul_(level.to(torch.float32)))
    glow.div_(glow.amax(dim=(2, 3), keepdim=True).clamp_(min=1.0))  # 0 / 0 where no liquid formed: no glow
    glow.mul_(mix)
    out = torch.empty_like(images)
    for channels, colour in _WATER:
        # An 8-bit pixel plus a fraction, cut off, is the pixel plus the cut-off fraction.
        shine = to_uint8(glow * colour)
        pixels = images[:, channels]
        torch.add(pixels, torch.minimum(shine, 255 - pixels), out=out[:, channels])
    return out


def _pad(maps: Tensor, *, reflect: bool) -> Tensor:
    """One more row and column on each side of ``(H, W, B)``: the edge repeated, or mirrored without repeating it."""
    height, width, n = maps.shape
    padded = maps.new_empty(height + 2, width + 2, n)
    padded[1:-1, 1:-1] = maps
    inner = 2 if reflect else 1
    padded[0, 1:-1], padded[-1, 1:-1] = padded[min(inner, height), 1:-1], padded[max(-1 - inner, -1 - height), 1:-1]
    padded[:, 0], padded[:, -1] = padded[:, min(inner, width)], padded[:, max(-1 - inner, -1 - width)]
    return padded


def _canny(level: Tensor, low: int, high: int) -> Tensor:
    """OpenCV's Canny edges (3 x 3 Sobel, sum of absolute values) of 8-bit ``(H, W, B)`` int16: 1 on edges, else 0."""
    padded = _pad(level, reflect=False)
    across = (padded[1:-1] * 2).add_(padded[:-2]).add_(padded[2:])
    dx = across[:, 2:] - across[:, :-2]
    down = padded[2:] - padded[:-2]
    dy = (down[:, 1:-1] * 2).add_(down[:, :-2]).add_(down[:, 2:])
    diagonal_up = (dx ^ dy) >> 15  # all bits set where the gradient points up right or down left
    dx, dy = dx.abs_(), dy.abs_()
    height, width, n = level.shape
    strength = level.new_zeros(height + 2, width + 2, n)
    inside = strength[1:-1, 1:-1]
    torch.add(dx, dy, out=inside)
    # A pixel stays if it exceeds one neighbour along the gradient and at least equals the other (exceeds both on
    # diagonals). OpenCV's tangent of 22.5 degrees is 13573 / 2**15; that of 67.5 is larger by 2. Tangent times dx is
    # never whole, so its whole part tells as much as itself.
    dx_tan = dx.to(torch.float32).mul_(13573 / (1 << 15)).to(torch.int16)
    flat = (dy - 1).sub_(dx_tan).bitwise_right_shift_(15)
    steep = dx_tan.add_(dx).add_(dx).sub_(dy).bitwise_right_shift_(15)
    up, down, left, right = strength[:-2, 1:-1], strength[2:, 1:-1], strength[1:-1, :-2], strength[1:-1, 2:]
    rival = torch.maximum(strength[:-2, :-2], strength[2:, 2:])
    rival = _select(diagonal_up, torch.maximum(strength[:-2, 2:], strength[2:, :-2]), rival)
    rival = _select(flat, torch.maximum(left, right - 1), rival)
    rival = _select(steep, torch.maximum(up, down - 1), rival)
    peaks = inside & (rival.clamp_(min=low).sub_(inside) >> 15)
    strength.zero_()
    torch.sub(peaks.clamp(max=1), (high - peaks).bitwise_right_shift_(15), out=inside)
    return _follow(strength.to(torch.uint8))[1:-1, 1:-1] >> 1


def _select(mask: Tensor, where: Tensor, otherwise: Tensor) -> Tensor:
    """`where` where all bits of `mask` are set, `otherwise` where none is; several times as fast as torch.where."""
    return (where ^ otherwise).bitwise_and_(mask).bitwise_xor_(otherwise)


def _follow(edges: Tensor) -> Tensor:
    """Make 2 in place of all 1 that are 8-connected to a 2; ``(H, W, B)`` uint8, 0 on the border."""
    # Few edges are weak: a list of them is shorter than another look at all pixels, and found fastest by eights.
    marks = edges.flatten()
    eights = F.pad(marks & 1, (0, -len(marks) % 8))
    near = eights.view(torch.int64).nonzero() * 8 + torch.arange(8, device=edges.device)
    weak = near[eights[near] > 0]
    row, column = edges.stride()[:2]
    around = [y * row + x * column for y in (-1, 0, 1) for x in (-1, 0, 1)]
    neighbours = weak[:, None] + torch.tensor(around, device=edges.device)
    while len(weak):
        connected = marks[neighbours].amax(1) > 1
        if not connected.any():
            break
        marks[weak[connected]] = 2
        weak, neighbours = weak[~connected], neighbours[~connected]
    return edges


_UNIT = 1000  # a pixel's width in fixed point; 20 pixels plus the longest step fit in 16 bits
_FAR = 20 * _UNIT
# Steps of OpenCV's 5 x 5 mask as (rows, columns), each in all directions, and their length: 1, 1.4 and 2.1969 pixels.
_MOVES = (((0, 1), (1, 0)), 1000), (((1, 1),), 1400), (((1, 2), (2, 1)), 2197)
_LONGEST_JUMP = 8  # rows


def _distance_to(marks: Tensor) -> Tensor:
    """OpenCV's chamfer distance (DIST_L2, 5 x 5) to the nearest mark, at most 20 pixels; int16 in thousandths.

    The shortest path uses steps of at most two directions, of different length, and steps commute: so the lengths can
    be taken one after the other, each as minima that reach 1, 3, 7, 15 and 20 steps far after each round.
    """
    height, width, _ = marks.shape
    far = (1 - marks.to(torch.int16)).mul_(_FAR)
    moved = marks.new_full((height + 2 * _LONGEST_JUMP, *marks.shape[1:]), _FAR, dtype=torch.int16)
    inside = moved[_LONGEST_JUMP:-_LONGEST_JUMP]
    for steps, cost in _MOVES:
        reach, wanted = 0, _FAR // cost
        while reach < wanted:
            jump = min(reach + 1, wanted - reach)
            torch.add(far, cost * jump, out=inside)
            for rows, columns in steps:
                up, down = (moved.narrow(0, _LONGEST_JUMP + jump * sign * rows, height) for sign in (-1, 1))
                nearest = torch.minimum(up, down) if rows else inside
                across = jump * columns
                if not columns:
                    torch.minimum(far, nearest, out=far)
                elif across < width:
                    for target, source in (
                        (far[:, across:], nearest[:, :-across]),
                        (far[:, :-across], nearest[:, across:]),
                    ):
                        torch.minimum(target, source, out=target)
            reach += jump
    return far


def _box_sum(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over 3 x 3 neighbours of ``(H, W, B)``, mirrored at the edges without repeating them.

    Args:
        maps: integers; the sum of three must fit in their type.
        dtype: of the result.
    """
    padded = _pad(maps, reflect=True)
    rows = (padded[:-2] + padded[1:-1]).add_(padded[2:]).to(dtype)
    return (rows[:, :-2] + rows[:, 1:-1]).add_(rows[:, 2:])


def _truncated_box_mean(depth: Tensor) -> Tensor:
    """Mean of 3 x 3 distances in whole pixels, fraction cut off; 0 to 20."""
    # With zero in the middle of the range, the sum of three still fits in 16 bits. Half a thousandth keeps whole means
    # from falling below themselves.
    centred = _box_sum(depth - _FAR // 2, torch.float32)
    return centred.add_(9 * _FAR // 2 + 0.5).mul_(1 / (9 * _UNIT)).to(torch.int16)


def _equalize(maps: Tensor) -> Tensor:
    """OpenCV's histogram equalization of each image; ``(H, W, B)`` int16, 0 to 20 in, 0 to 255 out."""
    height, width, n = maps.shape
    values = _FAR // _UNIT + 1
    index = maps + torch.arange(0, n * values, values, dtype=torch.int32, device=maps.device)
    index = index.flatten()
    counts = torch.bincount(index, minlength=n * values).view(n, values)
    darkest = (counts > 0).to(torch.uint8).argmax(dim=1, keepdim=True)  # the first value that occurs
    n_darkest = counts.gather(1, darkest)
    rest = height * width - n_darkest
    scale = 255.0 / rest.clamp(min=1).to(torch.float32)
    ranks = (counts.cumsum(1) - n_darkest).clamp_(min=0).to(torch.float32)
    # An image of one value only keeps it.
    table = torch.where(rest > 0, (ranks * scale).round_(), darkest.to(torch.float32)).to(torch.int16)
    return table.flatten().index_select(0, index).view(height, width, n)


def _emboss(maps: Tensor) -> Tensor:
    """The generators' 3 x 3 relief filter, lit from the lower right; 8-bit ``(H, W, B)`` int16."""
    p = _pad(maps, reflect=True)
    lit = p[2:, 2:] - p[:-2, :-2]
    lit.mul_(2).add_(p[1:-1, 1:-1]).add_(p[1:-1, 2:]).add_(p[2:, 1:-1])
    return lit.sub_(p[:-2, 1:-1]).sub_(p[1:-1, :-2]).clamp_(0, 255)


def _box_mean(maps: Tensor) -> Tensor:
    """Mean of 3 x 3 8-bit values, rounded; float32."""
    return _box_sum(maps, torch.int16).to(torch.float32).mul_(1 / 9).round_()
