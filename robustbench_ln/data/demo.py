"""`demo`: ten kinds of shapes, drawn by arithmetic, so that everything works without a download.

Pixels must be the same bytes on every machine. Only integer hashing and IEEE `+ - * /`, `sqrt`, comparisons and
rounding are used, one NumPy operation at a time: these are exact or correctly rounded everywhere. Sums over an axis,
matrix products, sines and exponentials are not, and stay out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.data.base import ArrayDataset, Dataset, Request
from robustbench_ln.data.geometry import resized
from robustbench_ln.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint64]

SIZE = 32
LENGTHS = {"test": 1_000, "train": 8_000}
_SPLIT_KEYS = {"test": 0x7E57, "train": 0x7EA1}
_CHUNK = 500  # images drawn at once: bounds memory, changes no pixel


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How hard the pictures are; everything here changes every pixel, and so the golden digest in the tests.

    Attributes:
        radius: smallest and largest radius of the shape, in pixels.
        contrast: smallest and largest difference in brightness between shape and ground.
        chroma: largest shift of a colour channel away from grey.
        gradient: largest relative change of brightness from the centre to an edge.
        clutter: number of small blobs under and, one of them, over the shape.
        clutter_radius: smallest and largest radius of a blob, in pixels.
        noise: half-width of the uniform sensor noise.

    A BatchNorm network of four convolutions and 60,000 weights reaches 90 to 95 % on these values. Shapes are large
    on purpose: what is left of them under heavy noise has to be recognisable.
    """

    radius: tuple[float, float] = (9.0, 13.0)
    contrast: tuple[float, float] = (0.12, 0.85)
    chroma: float = 0.18
    gradient: float = 0.35
    clutter: int = 6
    clutter_radius: tuple[float, float] = (1.5, 4.0)
    noise: float = 0.2


DIFFICULTY = Difficulty()


class DemoDataset(ArrayDataset):
    """1,000 test or 8,000 training images of 32 x 32 pixels in ten balanced classes; label `i % 10` for image `i`.

    Shapes differ in place, size, rotation, colour, contrast and lighting, on cluttered ground with mild sensor noise.
    No image is in both splits.

    Args:
        split: `test` or `train`.
        source: what the user typed.
    """

    has_splits = True

    def __init__(self, split: str = "test", *, source: str = "demo") -> None:
        indices = np.arange(LENGTHS[split])
        images = np.concatenate([draw(indices[i : i + _CHUNK], split) for i in range(0, len(indices), _CHUNK)])
        name = "demo" if split == "test" else f"demo-{split}"
        super().__init__(images, indices % len(SHAPES), classes=tuple(SHAPES), id=name, source=source)


def open_demo(request: Request) -> Dataset:
    """Ten classes of procedural 32 x 32 colour images, made by seed; nothing is read or downloaded."""
    if request.argument:
        raise UsageError("demo takes no argument", found=repr(request.source), hint="--data demo")
    return resized(DemoDataset(request.split, source=request.source), request.geometry)


def draw(indices: NDArray[np.int64], split: str) -> NDArray[np.uint8]:
    """Images (B, 32, 32, 3) of the given indices; each depends on its own index and the split only."""
    hard = DIFFICULTY
    draws = _Draws(_hash(_hash(np.full(len(indices), _SPLIT_KEYS[split], np.uint64)) + indices.astype(np.uint64)))
    y, x = (axis[None] - (SIZE - 1) / 2 for axis in np.mgrid[:SIZE, :SIZE].astype(np.float64))

    # The ground's brightness leaves room for the contrast on one side of it.
    contrast = draws.uniform(*hard.contrast)
    darker, lighter = 0.05, 0.95
    low = darker + (lighter - darker - contrast) * draws.uniform(0, 1)
    shape_is_lighter = draws.uniform(0, 1) < 0.5
    ground_level = np.where(shape_is_lighter, low, low + contrast)
    shape_level = np.where(shape_is_lighter, low + contrast, low)
    ground, shape = (_colour(draws, level, hard.chroma) for level in (ground_level, shape_level))

    # A blob takes a colour between ground and shape, so that colour alone never gives the shape away.
    blobs = []
    for _ in range(hard.clutter):
        centre_x, centre_y = draws.uniform(-16, 16), draws.uniform(-16, 16)
        radius = draws.uniform(*hard.clutter_radius)
        share = draws.uniform(-0.25, 1)[..., None]
        cover = _cover(_length(x - centre_x, y - centre_y) - radius)
        blobs.append((cover, ground + share * (shape - ground)))

    radius = draws.uniform(*hard.radius)
    play = 15.0 - radius  # the shape may touch the border and lose a corner there
    along, across = _turned(draws, x - play * draws.uniform(-1, 1), y - play * draws.uniform(-1, 1))
    detail = draws.uniform(0, 1)
    covered = np.empty((len(indices), SIZE, SIZE))
    for label, distance in enumerate(SHAPES.values()):
        own = indices % len(SHAPES) == label
        covered[own] = _cover(distance(along[own], across[own], radius[own], detail[own]))

    image = np.broadcast_to(ground, (len(indices), SIZE, SIZE, 3))
    for cover, colour in [*blobs[1:], (covered, shape), *blobs[:1]]:
        image = image + cover[..., None] * (colour - image)

    light, _ = _turned(draws, x, y)
    image = image * (1 + draws.uniform(-hard.gradient, hard.gradient) * light / 16)[..., None]
    image = image + hard.noise * draws.pixel_noise()
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


class _Draws:
    """Random numbers of each image, from its key and a counter; drawn for the whole batch at once."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._count = 0

    def _bits(self, n: int) -> Keys:
        counters = np.arange(self._count, self._count + n, dtype=np.uint64)
        self._count += n
        return _hash(self._keys[:, None] + counters * np.uint64(0x9E3779B97F4A7C15))

    def uniform(self, low: float, high: float) -> Floats:
        """One number in [low, high) per image, (B, 1, 1)."""
        fraction = (self._bits(1) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (low + (high - low) * fraction)[:, :, None]

    def pixel_noise(self) -> Floats:
        """Uniform in [-1, 1), (B, 32, 32, 3): three 16-bit parts of one hash per pixel."""
        bits = self._bits(SIZE * SIZE).reshape(-1, SIZE, SIZE, 1)
        parts = (bits >> np.array([0, 16, 32], np.uint64)) & np.uint64(0xFFFF)
        return parts.astype(np.float64) * 2.0**-15 - 1


def _hash(values: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) after one step of its counter."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _colour(draws: _Draws, level: Floats, chroma: float) -> Floats:
    """A colour (B, 1, 1, 3) around a grey level (B, 1, 1)."""
    return np.stack([level + draws.uniform(-chroma, chroma) for _ in range(3)], axis=-1)


def _turned(draws: _Draws, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coordinates in a frame turned by a random angle: a direction through a square's border, no sine needed."""
    slope = draws.uniform(-1, 1)
    length = np.sqrt(1 + slope * slope)
    steep = draws.uniform(0, 1) < 0.5
    sign = np.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0)
    cos = sign * np.where(steep, slope, 1.0) / length
    sin = sign * np.where(steep, 1.0, slope) / length
    return cos * x + sin * y, cos * y - sin * x


def _cover(distance: Floats) -> Floats:
    """How much of a pixel lies inside, from its centre's signed distance to the edge in pixels."""
    return np.clip(0.5 - distance, 0, 1)


# Shapes: signed distance to the edge in pixels, negative inside. `x`, `y` are (B, 32, 32) from the shape's centre,
# `r` its radius and `t` in [0, 1) a free detail, both (B, 1, 1).


def _length(x: Floats, y: Floats) -> Floats:
    length: Floats = np.sqrt(x * x + y * y)
    return length


def _box(x: Floats, y: Floats, half_width: Floats, half_height: Floats) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    return _length(x, y) - (0.85 + 0.1 * t) * r


def _ring(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    return np.abs(_length(x, y) - 0.75 * r) - (0.18 + 0.1 * t) * r


def _square(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    return _box(x, y, 0.8 * r, (0.7 + 0.1 * t) * r)


def _triangle(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    slant = 0.8660254037844386 * np.abs(x) - 0.5 * y
    return np.maximum(slant, y) - (0.5 + 0.05 * t) * r


def _cross(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    arm = (0.24 + 0.1 * t) * r
    return np.minimum(_box(x, y, r, arm), _box(x, y, arm, r))


_PENTAGON = [  # its sides' normals, written out because a library's sine may differ in the last bit
    (0.0, 1.0),
    (0.9510565162951535, 0.3090169943749474),
    (-0.9510565162951535, 0.3090169943749474),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
]


def _star(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    # Inside a pentagram is what lies within at least four of its five lines: the second largest distance counts.
    largest = second = np.full_like(x, -np.inf)
    for normal_x, normal_y in _PENTAGON:
        side = normal_x * x + normal_y * y
        second = np.maximum(second, np.minimum(largest, side))
        largest = np.maximum(largest, side)
    return second - (0.38 + 0.08 * t) * r


def _stripes(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    period = (0.62 + 0.1 * t) * r
    return np.maximum(_box(x, y, 0.95 * r, 0.95 * r), np.abs(_wave(y, period)) - 0.25 * period)


def _checkerboard(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    period = (0.85 + 0.1 * t) * r
    # The product of two triangle waves is positive on one colour of the board.
    u, v = (0.25 * period - np.abs(_wave(axis - 0.25 * period, period)) for axis in (x, y))
    edge: Floats = np.where(u * v > 0, -1.0, 1.0) * np.minimum(np.abs(u), np.abs(v))
    return np.maximum(_box(x, y, period, period), edge)


def _crescent(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    return np.maximum(_length(x, y) - r, 0.8 * r - _length(x - (0.4 + 0.15 * t) * r, y))


def _dots(x: Floats, y: Floats, r: Floats, t: Floats) -> Floats:
    apart = 0.6 * r
    ring = _length(np.abs(x) - apart, np.abs(y) - apart)
    return np.minimum(ring, _length(x, y)) - (0.26 + 0.06 * t) * r


def _wave(x: Floats, period: Floats) -> Floats:
    """Distance to the nearest multiple of the period, signed."""
    wave: Floats = x - period * np.rint(x / period)
    return wave


SHAPES: dict[str, Callable[[Floats, Floats, Floats, Floats], Floats]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "crescent": _crescent,
    "dots": _dots,
}
