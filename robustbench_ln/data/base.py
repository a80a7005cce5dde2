"""What every data set offers, and the data set that lives in memory."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustbench_ln.errors import InputError, ResourceError, TrustError

if TYPE_CHECKING:
    from robustbench_ln.data.geometry import Geometry

Pixels: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]

MAX_LABEL = 1_000_000  # a label beyond it is taken for a mistake; the largest public label sets have some 20,000


@dataclass(frozen=True, slots=True)
class Request:
    """A `--data` text and its options, parsed and checked; what an opener gets.

    Attributes:
        source: the text as typed, `imagefolder:~/photos`.
        argument: what follows the colon; empty where nothing does.
        split: `train` or `test`.
        on_bad_image: `stop` or `skip`.
        geometry: how to bring images to size; None leaves it to the data set.
    """

    source: str
    argument: str = ""
    split: str = "test"
    on_bad_image: str = "stop"
    geometry: Geometry | None = None


class Dataset(ABC):
    """Labelled images in a stable order, read by index. Picklable, so that worker processes can have it.

    Attributes:
        id: short name that is safe in a file name (`demo`, `imagefolder-test`).
        source: the `--data` text as typed.
        classes: class names; a class's position is its label. Not made safe for a terminal.
        labels: (N,) int64, in data set order, read-only.
        image_size: height and width of what `read` returns.
        sha256: digest of geometry, labels and every image, in order; paths and class names are not in it.
        geometry: how images were brought to that size (`as stored`; `resize 256, crop 224, bilinear`).
        warnings: what a user should know, such as the number of images left out.
        has_splits: whether the same text names other images as the other split.
    """

    has_splits: bool = False

    def __init__(
        self,
        *,
        id: str,
        source: str,
        classes: tuple[str, ...],
        labels: Labels,
        image_size: tuple[int, int],
        sha256: str,
        geometry: str = "as stored",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.id = id
        self.source = source
        self.classes = classes
        self.labels = labels.copy()
        self.labels.flags.writeable = False
        self.image_size = image_size
        self.sha256 = sha256
        self.geometry = geometry
        self.warnings = warnings

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"<{type(self).__name__} {self.id}: {len(self)} images {height} x {width}, {len(self.classes)} classes>"

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> torch.Tensor:
        """The images of some indices.

        Args:
            indices: integers in [0, N), in any order; repeats are allowed.

        Returns: uint8 (B, 3, H, W), RGB, contiguous, the caller's own.

        Raises:
            IndexError: an index lies outside [0, N).
            TrustError: an image is not what it was when the data set was opened.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"image index outside 0 to {len(self) - 1}")
        return torch.from_numpy(np.ascontiguousarray(self.pixels(wanted).transpose(0, 3, 1, 2)))

    def places(self, indices: NDArray[np.int64]) -> list[str]:
        """``<class>/<image>`` for the images of some indices: safe in a file name, and all different."""
        folders = [self.class_folder(label) for label in range(len(self.classes))]
        if len({name.lower() for name in folders}) < len(folders):
            folders = [f"{label}-{name}" for label, name in enumerate(folders)]
        places = [f"{folders[self.labels[index]]}/{self.stem(int(index))}" for index in indices]
        if len({place.lower() for place in places}) < len(places):
            places = [f"{place}-{index}" for index, place in zip(indices, places, strict=True)]
        return places

    def class_folder(self, label: int) -> str:
        """A safe name for the folder of a class; not necessarily unique."""
        return safe_name(self.classes[label])

    def stem(self, index: int) -> str:
        """A safe name for one image, without a suffix; not necessarily unique."""
        return f"{index:0{len(str(len(self) - 1))}d}"

    @abstractmethod
    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """The images as a new array (B, H, W, 3), for indices that are known to exist; `read` is for everyone else."""


class ArrayDataset(Dataset):
    """Images held in memory.

    Args:
        images: uint8 (N, H, W, 3), RGB; kept, not copied, so leave it alone afterwards.
        labels: integers (N,), 0 or greater.
        classes: class names; by default the labels' numbers.
        id: short name of the data set.
        source: what the user typed, where that differs from `id`.

    Raises:
        InputError: wrong shape or dtype, no images, counts that differ, labels outside the classes.
    """

    def __init__(
        self,
        images: ArrayLike,
        labels: ArrayLike,
        classes: Sequence[str] | None = None,
        *,
        id: str = "array",
        source: str = "",
    ) -> None:
        pixels = np.asarray(images)
        check_images(pixels.shape, pixels.dtype)
        checked = check_labels(np.asarray(labels), len(pixels), classes)
        self._images: Pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[1:3]
        super().__init__(
            id=id,
            source=source or id,
            classes=class_names(checked, classes),
            labels=checked,
            image_size=(height, width),
            sha256=content_digest(
                b"".join(image_digest(image.data) for image in self._images), checked, (height, width)
            ),
        )

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """See `Dataset.pixels`."""
        return self._images[indices]


def check_images(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise InputError unless shape and dtype are those of one or more RGB images, uint8 (N, H, W, 3)."""
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise InputError(
            "images are not uint8 of shape (N, H, W, 3)",
            found=f"{dtype} {shape}",
            hint="8-bit RGB images, 0 to 255, channels last, at least one",
        )


def check_labels(labels: NDArray[Any], n: int, classes: Sequence[str] | None) -> Labels:
    """Labels (n,) as int64, each one the position of a class.

    Raises:
        InputError: not integers, not one per image, negative, or beyond the classes.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            "labels are not integers of shape (N,)",
            found=f"{labels.dtype} {labels.shape}",
            hint="one class number per image, from 0",
        )
    if len(labels) != n:
        raise InputError("images and labels differ in number", found=f"{n} images, {len(labels)} labels")
    limit = len(classes) if classes is not None else MAX_LABEL
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= limit:
        expected = f"0 to {limit - 1}" if classes is not None else f"class numbers from 0 to below {limit:,}"
        raise InputError("labels out of range", found=f"labels from {low} to {high}", hint=expected)
    return labels.astype(np.int64)


def class_names(labels: Labels, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, or the numbers 0 to the greatest label."""
    return tuple(classes) if classes is not None else tuple(str(i) for i in range(int(labels.max()) + 1))


def image_digest(content: bytes | memoryview) -> bytes:
    """SHA-256 of one image: of its file, or of its pixels where it has no file of its own."""
    return hashlib.sha256(content).digest()


def content_digest(
    image_digests: bytes, labels: Labels, image_size: tuple[int, int], geometry: str = "as stored"
) -> str:
    """SHA-256 over what an evaluation sees: size and geometry, then all labels and all image digests in order."""
    height, width = image_size
    digest = hashlib.sha256(f"lnbench data 1\n{height} x {width}\n{geometry}\n{len(labels)}\n".encode())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(image_digests)
    return digest.hexdigest()


def existing_path(argument: str) -> Path:
    """The absolute path that a user means, `~` included.

    Raises:
        InputError: there is nothing.
        ResourceError: the way there is closed.
    """
    try:
        path = Path(argument).expanduser().absolute()
        path.stat()
    except PermissionError as error:
        raise ResourceError("no permission to read the data", found=repr(argument)) from error
    except (OSError, RuntimeError, ValueError) as error:  # also an unknown ~user, or a zero byte
        raise InputError("no such file or folder", found=repr(argument)) from error
    return path


def changed(source: str, which: str) -> TrustError:
    """The error for an image that is not what it was when the data set was opened."""
    return TrustError(
        "data changed during the run",
        found=f"{which} of {source!r} is not what it was when the run began",
        hint="let the data come to rest, then start a new run",
    )


def safe_name(text: str) -> str:
    """A short form of any text that is safe in a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "data"
