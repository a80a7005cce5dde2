"""Bringing images to one size: resize the shorter side, crop the centre, as torchvision does for ImageNet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustbench_ln.data.base import Dataset, Pixels
from robustbench_ln.errors import InputError, UsageError, unknown_name

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

_MAX_PIXELS = 2**26  # of a resized image: a strip one pixel high would grow to gigabytes


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image gets its size. Equal to torchvision's `Resize` and `CenterCrop` on a PIL image, pixel for pixel.

    Attributes:
        resize: length of the shorter side after resizing, with antialiasing; None keeps the size.
        crop: side of the square cut from the centre; None keeps everything.
        interpolation: a name of `INTERPOLATIONS`.

    Raises:
        UsageError: a length below 1, a crop larger than the resized image, an unknown interpolation.
    """

    resize: int | None = 256
    crop: int | None = 224
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for option, length in (("--resize", self.resize), ("--crop", self.crop)):
            if length is not None and length < 1:
                raise UsageError(f"{option} must be at least 1", found=str(length))
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise UsageError("the crop is larger than the image", found=f"--resize {self.resize} --crop {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)

    def __str__(self) -> str:
        parts = [f"resize {self.resize}"] if self.resize is not None else []
        parts += [f"crop {self.crop}"] if self.crop is not None else []
        parts += [self.interpolation] if self.resize is not None else []
        return ", ".join(parts)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that an image of this width and height will have.

        Raises:
            InputError: the image is smaller than the crop, or so narrow that it would grow out of bounds.
        """
        width, height = self._resized(size)
        if self.resize is not None and width * height > _MAX_PIXELS:
            raise InputError(
                "an image is too large after resizing",
                found=f"{size[0]} x {size[1]} pixels become {width} x {height}",
                hint="a smaller --resize, or the image left out of the data",
            )
        if self.crop is None:
            return width, height
        if min(width, height) < self.crop:
            raise InputError(
                "an image is smaller than the crop",
                found=f"{width} x {height} pixels, --crop {self.crop}",
                hint=f"--resize {self.crop} --crop {self.crop}",
            )
        return self.crop, self.crop

    def doubts(self, stored: tuple[int, int]) -> list[str]:
        """What a user should know whose images all have this width and height: they may have been resized before."""
        if self.resize in (None, self.crop) or stored != (self.crop, self.crop):
            return []
        return [
            f"images are {self.crop} x {self.crop} pixels already and are resized again ({self}): "
            f"--crop {self.crop} alone takes them as they are"
        ]

    def apply(self, image: Image.Image) -> Image.Image:
        """The image at its new size."""
        resized = self._resized(image.size)
        if resized != image.size:
            image = image.resize(resized, INTERPOLATIONS[self.interpolation])
        if self.crop is None:
            return image
        # Python's round, half to even, as in torchvision: an odd margin falls on the same side.
        left, top = (round((side - self.crop) / 2) for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize is None:
            return size
        short, long = sorted(size)
        scaled = int(self.resize * long / short)
        return (self.resize, scaled) if size[0] <= size[1] else (scaled, self.resize)


def parse_geometry(resize: int | None, crop: int | None, interpolation: str | None) -> Geometry | None:
    """The geometry that `--resize`, `--crop` and `--interpolation` ask for; None where they leave images alone.

    Raises:
        UsageError: an interpolation without a size, or what `Geometry` refuses.
    """
    if interpolation is not None and resize is None:
        raise UsageError(
            "--interpolation needs --resize", found=f"--interpolation {interpolation!r} alone", hint="--resize 256"
        )
    if resize is None and crop is None:
        return None
    return Geometry(resize, crop, interpolation or "bilinear")


class Resized(Dataset):
    """Another data set, brought to another size."""

    def __init__(self, dataset: Dataset, geometry: Geometry) -> None:
        height, width = dataset.image_size
        doubts = geometry.doubts((width, height))
        width, height = geometry.size((width, height))
        super().__init__(
            id=dataset.id,
            source=dataset.source,
            classes=dataset.classes,
            labels=dataset.labels,
            image_size=(height, width),
            sha256=hashlib.sha256(f"{dataset.sha256}\n{geometry}".encode()).hexdigest(),
            geometry=str(geometry),
            warnings=(*dataset.warnings, *doubts),
        )
        self.has_splits = dataset.has_splits
        self._dataset = dataset
        self._geometry = geometry

    def class_folder(self, label: int) -> str:
        """See `Dataset.class_folder`."""
        return self._dataset.class_folder(label)

    def stem(self, index: int) -> str:
        """See `Dataset.stem`."""
        return self._dataset.stem(index)

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """See `Dataset.pixels`."""
        stored = self._dataset.pixels(indices)
        out = np.empty((len(indices), *self.image_size, 3), np.uint8)
        for row, image in zip(out, stored, strict=True):
            row[:] = np.asarray(self._geometry.apply(Image.fromarray(image)))
        return out


def resized(dataset: Dataset, geometry: Geometry | None) -> Dataset:
    """The data set at the size asked for; itself where none was."""
    return dataset if geometry is None else Resized(dataset, geometry)
