"""Frost textures: our own by default, the original photographs from a folder of the user's.

Our own are grown, not painted: needles of ice start at random places, feathers branch off them, and the ridges that
result are lit from one side. They are then brought, octave by octave, to the contrast of the photograph whose place
they take. All of it is integer arithmetic on the package's own random numbers, so every machine grows the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError

Pixels = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.integer[Any]]

ORIGINAL_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # a sixth was never used
_SMALLEST_SIDE = 64
_LARGEST_SIDE = 8192
_HINT = "the folder with frost1.png to frost5.jpg of github.com/hendrycks/robustness, or no --frost-textures"


@dataclass(frozen=True, slots=True, eq=False)
class FrostTextures:
    """What frost looks like.

    Attributes:
        kind: our own, or the photographs of the original generators.
        sha256: over sizes and pixels; part of a run's identity.
        images: five ``(3, h, w)`` uint8 RGB, each picked equally often.
    """

    kind: Literal["procedural", "original"]
    sha256: str
    images: tuple[Tensor, ...]


def _record(kind: Literal["procedural", "original"], images: Sequence[Pixels]) -> FrostTextures:
    """Textures from ``(h, w, 3)`` uint8 arrays."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    planes = tuple(torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images)
    return FrostTextures(kind, digest.hexdigest(), planes)


# ---- the originals ----


def find_installed_textures() -> Path | None:
    """The folder of the original textures in an installed generator of corruptions, or None; nothing is imported."""
    for package in ("imagecorruptions", "imagenet_c"):
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            folder = Path(location) / "frost"
            if all((folder / name).is_file() for name in ORIGINAL_FILES):
                return folder
    return None


def load_textures(folder: Path) -> FrostTextures:
    """Read the original textures.

    Args:
        folder: holds frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg. The sixth is never used: the
            generators draw from the first five.

    Raises:
        InputError: the folder or one of the files is missing, unreadable, not an image, or of an unusual size.
    """
    if not folder.is_dir():
        raise InputError("there is no folder of frost textures", found=str(folder), hint=_HINT)
    missing = [name for name in ORIGINAL_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"frost textures are missing in {folder}", found=f"no {', '.join(missing)}", hint=_HINT)
    return _record("original", [_read(folder / name) for name in ORIGINAL_FILES])


def _read(path: Path) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                # Before any pixel is decoded: a small file can claim a huge image.
                if not _SMALLEST_SIDE <= min(image.size) <= max(image.size) <= _LARGEST_SIDE:
                    raise InputError(
                        f"frost texture {path.name} is too small or too large",
                        found="{} x {} pixels".format(*image.size),
                        hint=f"sides of {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels; {_HINT}",
                    )
                return np.array(image.convert("RGB"))
    # Pillow's decoders answer hostile files with nearly any exception.
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"frost texture {path.name} cannot be read", found=str(error), hint=_HINT) from None


# ---- our own ----

_HEIGHT, _WIDTH = 512, 640
_OCTAVES = 7  # both sides halve this often
_ONE = 256  # a grey level in fixed point
_TURN = 1024  # directions in a full turn
_POSITION_BITS = 12  # behind the point in a position or a direction


@dataclass(frozen=True, slots=True)
class _Growth:
    """How one texture grows, and the statistics it is given.

    Attributes:
        needles: how many start.
        rays: needles that start at the same place.
        length: shortest and longest needle in pixels.
        angle: between a needle and its branches, of 1024 to a full turn.
        spacing: pixels between branches; 0 for bare needles.
        branch: a branch's length, as a percentage of the needle that is left beyond it.
        generations: how often branches branch again.
        slope: how much a ridge falls off per pixel across, of 255.
        width: half the width of a ridge in pixels.
        light: weight of the light from the side against the height itself, in percent.
        mean: of red, green and blue.
        tint: a channel's contrast against that of their mean, in percent.
        hue: standard deviation of slow changes of colour in red, green and blue, in grey levels.
        contrast: weight of each octave of scale, finest first: its standard deviation, before the octaves overlap, in
            tenths of a grey level.
    """

    needles: int
    rays: int
    length: tuple[int, int]
    angle: int
    spacing: int
    branch: int
    generations: int
    slope: int
    width: int
    light: int
    mean: tuple[int, int, int]
    tint: tuple[int, int, int]
    hue: tuple[int, int, int]
    contrast: tuple[int, ...]


# One for each of the five photographs, tuned to its mean, contrast and radial spectrum, both at full size and shrunk
# to a fifth. The second and the third photograph show the same.
_GROWTHS = (
    # needles, rays, length, angle, spacing, branch, generations, slope, width, light, mean, tint, hue,
    # contrast
    _Growth(420, 1, (30, 110), 60, 9, 45, 1, 18, 6, 80, (78, 149, 166), (137, 90, 73), (11, -3, -8),
            (91, 19, 8, 9, 32, 20, 24, 25, 66)),
    _Growth(900, 3, (25, 120), 40, 0, 0, 0, 14, 8, 130, (201, 206, 215), (99, 103, 105), (0, 0, 0),
            (99, 31, 29, 31, 30, 18, 18, 25, 91)),
    _Growth(700, 4, (25, 140), 40, 14, 60, 1, 14, 8, 100, (201, 206, 215), (99, 103, 105), (0, 0, 0),
            (92, 33, 31, 34, 23, 18, 18, 25, 91)),
    _Growth(3500, 7, (6, 40), 170, 5, 40, 1, 30, 5, 60, (138, 153, 166), (98, 99, 103), (0, 0, 0),
            (165, 46, 25, 30, 23, 18, 26, 44, 90)),
    _Growth(700, 4, (30, 100), 150, 6, 50, 2, 34, 5, 40, (113, 124, 135), (103, 100, 97), (0, 0, 0),
            (175, 43, 88, 70, 52, 30, 26, 34, 200)),
)  # fmt: skip


@lru_cache(maxsize=1)
def procedural_textures() -> FrostTextures:
    """Five textures of our own, the same bytes everywhere; grown once a process."""
    return _record("procedural", [_grow(ImageRng(0, f"frost-{i}", torch.zeros(1)), g) for i, g in enumerate(_GROWTHS)])


def _grow(rng: ImageRng, growth: _Growth) -> Pixels:
    """One texture: ``(512, 640, 3)`` uint8."""
    ridges = _raise(_skeleton(rng, growth), growth)
    lit = np.roll(ridges, (-1, -1), (0, 1)) - np.roll(ridges, (1, 1), (0, 1))
    relief = lit * growth.light + ridges * (100 - growth.light)
    # Clouds fill the scales at which ridges have nothing. A little blur, and grain before and after it, since a
    # photograph has less at the very finest scale than ridges do.
    structure = relief * 3 + _clouds(rng) * 100 + _integers(rng, 6000, _HEIGHT, _WIDTH)
    for axis in (0, 1):
        structure = structure + np.roll(structure, 1, axis)
    grey = _to_contrast(structure + _integers(rng, 4500, _HEIGHT, _WIDTH), growth.contrast)
    hue = _scaled(_clouds(rng), 10)
    channels = [
        mean * _ONE + grey * tint // 100 + hue * weight
        for mean, tint, weight in zip(growth.mean, growth.tint, growth.hue, strict=True)
    ]
    texture: Pixels = np.clip(np.stack(channels, axis=2) // _ONE, 0, 255).astype(np.uint8)
    return texture


def _integers(rng: ImageRng, high: int, *shape: int) -> Whole:
    """int32, uniform on 0 to high - 1."""
    return rng.integers(high, *shape)[0].to(torch.int32).numpy()


def _directions() -> tuple[Whole, Whole]:
    """(row, column) of unit vectors all around, in fixed point."""
    angles = np.arange(_TURN) * (2 * np.pi / _TURN)
    # Sine and cosine may differ in the last bit between machines; rounded to 1/4096 they do not.
    scale = 1 << _POSITION_BITS
    return np.rint(np.sin(angles) * scale).astype(np.int32), np.rint(np.cos(angles) * scale).astype(np.int32)


def _skeleton(rng: ImageRng, growth: _Growth) -> Whole:
    """Lines of ice, 0 to 255 by height, one pixel wide: ``(512, 640)`` int32, wrapping around."""
    sines, cosines = _directions()
    skeleton = np.zeros((_HEIGHT, _WIDTH), dtype=np.int32)
    stars = -(-growth.needles // growth.rays)
    row = np.repeat(_integers(rng, _HEIGHT, stars), growth.rays) << _POSITION_BITS
    column = np.repeat(_integers(rng, _WIDTH, stars), growth.rays) << _POSITION_BITS
    angle = _integers(rng, _TURN, len(row))
    shortest, longest = growth.length
    length = shortest + _integers(rng, longest - shortest, len(row)) * _integers(rng, 256, len(row)) // 256
    height = 120 + _integers(rng, 136, len(row))
    for generation in range(growth.generations + 1):
        steps = np.arange(int(length.max(initial=1)))
        there = steps < length[:, None]
        rows = ((row[:, None] + steps * sines[angle][:, None]) >> _POSITION_BITS) % _HEIGHT
        columns = ((column[:, None] + steps * cosines[angle][:, None]) >> _POSITION_BITS) % _WIDTH
        # Needles rise over their first eighth and taper off from there.
        taper = np.minimum(64 * steps, 8 * length[:, None] - 7 * steps)
        heights = height[:, None] * taper // (8 * length[:, None])
        np.maximum.at(skeleton, (rows[there], columns[there]), heights[there])
        if generation == growth.generations:
            break
        # A branch to either side, the longer the nearer it is to the needle's root.
        parent, step = np.nonzero(there & (steps % growth.spacing == growth.spacing - 1))
        parent, step = np.repeat(parent, 2), np.repeat(step, 2)
        side = np.tile([growth.angle, -growth.angle], len(parent) // 2)
        row = row[parent] + step * sines[angle[parent]]
        column = column[parent] + step * cosines[angle[parent]]
        height = heights[parent, step] * 7 // 8
        remaining = (length[parent] - step) * growth.branch // 100
        angle = (angle[parent] + side + _integers(rng, 41, len(parent)) - 20) % _TURN
        keep = remaining > 1
        row, column, height, length, angle = row[keep], column[keep], height[keep], remaining[keep], angle[keep]
    return skeleton


def _raise(skeleton: Whole, growth: _Growth) -> Whole:
    """Lines to ridges whose sides fall off evenly."""
    ridges: Whole = skeleton
    for step in range(growth.width):
        beside = np.maximum(np.roll(ridges, 1, 0), np.roll(ridges, -1, 0))
        # Diamonds and squares in turn make eight-sided tips.
        across = np.maximum(ridges, beside) if step % 2 else ridges
        beside = np.maximum(beside, np.maximum(np.roll(across, 1, 1), np.roll(across, -1, 1)))
        ridges = np.maximum(ridges, beside - growth.slope)
    return ridges


def _clouds(rng: ImageRng) -> Whole:
    """Smooth noise, half as high in each finer octave: ``(512, 640)`` int32, wrapping around."""
    clouds: Whole = np.zeros((_HEIGHT >> _OCTAVES, _WIDTH >> _OCTAVES), dtype=np.int32)
    for octave in range(_OCTAVES + 1):
        if octave:
            clouds = _smooth(clouds.repeat(2, 0).repeat(2, 1), 1)
        clouds += _integers(rng, 4096 >> octave, *clouds.shape)
    return clouds


def _smooth(values: Whole, distance: int) -> Whole:
    """Weights 1, 2, 1 in both directions, `distance` pixels apart, wrapping around."""
    for axis in (0, 1):
        values = (np.roll(values, distance, axis) + 2 * values + np.roll(values, -distance, axis)) >> 2
    return values


def _to_contrast(values: Whole, contrast: tuple[int, ...]) -> Whole:
    """Give each octave of scale its standard deviation: an undecimated wavelet decomposition, scaled, and summed.

    Args:
        values: any whole numbers.
        contrast: tenths of a grey level by octave, finest first, all that is coarser last.

    Returns: mean about 0, 256 to a grey level.
    """
    rest = values
    result = np.zeros(values.shape, dtype=np.int64)
    for octave, wanted in enumerate(contrast[:-1]):
        smooth = _smooth(rest, 1 << octave)
        result += _scaled(rest - smooth, wanted)
        rest = smooth
    return result + _scaled(rest, contrast[-1])


def _scaled(values: Whole, wanted: int) -> Whole:
    """To mean 0 and a standard deviation of `wanted` tenths of a grey level, 256 to a grey level."""
    centred: Whole = values.astype(np.int64) - int(values.sum(dtype=np.int64)) // values.size
    power = max(1, int((centred * centred).sum()) // values.size)
    centred *= math.isqrt((wanted * _ONE // 10) ** 2 * (1 << 24) // power)
    return centred >> 12


# ---- resizing, and one sheet for all ----


@lru_cache(maxsize=8)
def scaled_atlas(
    textures: FrostTextures, scale: float, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The textures resized, one below the other, and where pieces of ``(height, width)`` may start.

    Args:
        textures: to resize.
        scale: by how much, as OpenCV's bilinear resize; more where a piece would not fit.
        height: of a piece.
        width: of a piece.
        device: of what is returned.

    Returns: ``(3, rows, columns)`` uint8, contiguous, and ``(5, 3)`` int64: a texture's first row, and from how many
        rows and columns a piece can start. The generators never use the last possible of each.
    """
    scaled = []
    for texture in textures.images:
        enough = max((height + 1) / texture.shape[1], (width + 1) / texture.shape[2])
        scaled.append(resize_bilinear(texture, max(scale, enough)))
    atlas = torch.zeros((3, sum(s.shape[1] for s in scaled), max(s.shape[2] for s in scaled)), dtype=torch.uint8)
    corners = []
    top = 0
    for texture in scaled:
        _, rows, columns = texture.shape
        atlas[:, top : top + rows, :columns] = texture
        corners.append((top, rows - height, columns - width))
        top += rows
    return atlas.to(device), torch.tensor(corners, device=device)


def resize_bilinear(image: Tensor, scale: float) -> Tensor:
    """OpenCV's ``resize`` of 8-bit ``(C, H, W)`` by a factor, bilinear without antialiasing, in its own integers."""
    if scale == 1:
        return image
    rows, row_weights = _bilinear_taps(image.shape[1], scale)
    columns, column_weights = _bilinear_taps(image.shape[2], scale)
    values = image.to(torch.int64)
    # Rows keep 11 more bits, of which OpenCV drops 4, then 16, and rounds off the last 2.
    wide = (values[:, :, columns] * column_weights).sum(-1) >> 4
    tall = (wide[:, rows] * row_weights[:, :, None]) >> 16
    return ((tall.sum(2) + 2) >> 2).clamp_(0, 255).to(torch.uint8)


def _bilinear_taps(size: int, scale: float) -> tuple[Tensor, Tensor]:
    """For each output, its two inputs and their weights in 1/2048: ``(n, 2)`` int64 each."""
    n = round(size * scale)
    positions = ((np.arange(n) + 0.5) * (1 / scale) - 0.5).astype(np.float32)
    first = np.floor(positions)
    fractions = np.where((first < 0) | (first >= size - 1), np.float32(0), positions - first)
    first = np.clip(first.astype(np.int64), 0, size - 1)
    taps = np.stack([first, np.minimum(first + 1, size - 1)], axis=1)
    weights = np.rint(np.stack([1 - fractions, fractions], axis=1) * np.float32(2048)).astype(np.int64)
    return torch.from_numpy(taps), torch.from_numpy(weights)
