"""Images that lie uncompressed in a file, one after the other, and are read from there when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from robustbench_ln.data.base import Dataset, Pixels, changed, content_digest, image_digest


class StoredImages(Dataset):
    """Images that lie uncompressed in a file, and are read from there one by one.

    They are read rather than memory-mapped: a file that shrinks under a map ends the process.

    Args:
        path: the file.
        offset: where the first image's bytes begin.
        image_digests: SHA-256 of each image, joined in order; `read` holds the file to them.
        labels: (N,) int64.
        classes: class names.
        image_size: height and width.
        id: short name.
        source: what the user typed.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        image_digests: bytes,
        *,
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        image_size: tuple[int, int],
        id: str,
        source: str,
    ) -> None:
        super().__init__(
            id=id,
            source=source,
            classes=classes,
            labels=labels,
            image_size=image_size,
            sha256=content_digest(image_digests, labels, image_size),
        )
        self._path = path
        self._offset = offset
        self._digests = image_digests

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """See `Dataset.pixels`."""
        images = np.empty((len(indices), *self.image_size, 3), np.uint8)
        size = 3 * self.image_size[0] * self.image_size[1]
        try:
            with self._path.open("rb", buffering=0) as file:
                for image, index in zip(images, indices.tolist(), strict=True):
                    file.seek(self._offset + index * size)
                    file.readinto(image.data)
                    if image_digest(image.data) != self._digests[32 * index : 32 * index + 32]:
                        raise changed(self.source, f"image {index}")
        except OSError as error:
            raise changed(self.source, "the file") from error
        return images


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the header of a `.npy` file says.

    Attributes:
        shape: of the array.
        dtype: of its values.
        by_columns: whether they are in Fortran's order.
        length: bytes before the first value.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    length: int

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, where it is an array of images."""
        return self.shape[1], self.shape[2]


def read_header(file: IO[bytes], name: str, size: int) -> ArrayHeader:
    """The header of a `.npy` file, checked before anything is allocated: it may promise any number of images.

    Args:
        file: at its start.
        name: of the array, for messages.
        size: bytes that the whole file has.

    Raises:
        ValueError: no header of this kind, Python objects, or more or fewer bytes than it promises.
    """
    version = npy.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"{name} has an unknown .npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    length = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    promised = dtype.itemsize
    for side in shape:
        promised *= side
    if promised != size - length:
        raise ValueError(f"{name} should have {promised} bytes of data and has {size - length}")
    return ArrayHeader(shape, dtype, by_columns, length)


def image_digests(file: IO[bytes], image_size: tuple[int, int], n: int) -> bytes:
    """SHA-256 of each of the next n images (H, W, 3), joined in order."""
    size = 3 * image_size[0] * image_size[1]
    return b"".join(image_digest(file.read(size)) for _ in range(n))
