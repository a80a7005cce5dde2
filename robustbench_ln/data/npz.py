"""`npz:FILE`: images and labels as NumPy arrays in one file."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from robustbench_ln.data.base import (
    ArrayDataset,
    Dataset,
    Pixels,
    Request,
    changed,
    check_images,
    check_labels,
    class_names,
    content_digest,
    existing_path,
    image_digest,
    safe_name,
)
from robustbench_ln.data.geometry import resized
from robustbench_ln.errors import InputError, LnbenchError, ResourceError, UsageError

_LOCAL_HEADER = struct.Struct("<26xHH")  # a zip member's own header: the lengths of its name and extra field come last


def open_npz(request: Request) -> Dataset:
    """An archive with `images`, uint8 (N, H, W, 3), and `labels`.

    The file holds `images` uint8 (N, H, W, 3) and `labels` integers (N,), and may hold `classes`, an array of
    strings. Images that are stored uncompressed (`np.savez`) are read from the file when they are asked for, so memory
    does not grow with their number; compressed ones (`np.savez_compressed`) are held in memory.
    """
    if not request.argument:
        raise UsageError("npz needs a file", found=repr(request.source), hint="--data npz:images.npz")
    path = existing_path(request.argument)
    if not path.is_file():
        raise InputError("not a file", found=repr(request.argument), hint="imagefolder:DIR for a folder of images")
    try:
        dataset = _open(path, request.source)
    except PermissionError as error:
        raise ResourceError("no permission to read the data", found=repr(request.argument)) from error
    except MemoryError as error:
        raise ResourceError(
            "the images do not fit in memory", found=repr(request.argument), hint="np.savez instead of savez_compressed"
        ) from error
    except LnbenchError:
        raise
    except Exception as error:  # the zip and .npy readers raise almost anything at a hostile file
        raise InputError(
            "not a readable .npz file",
            found=f"{request.argument!r}: {str(error)[:200]!r}",
            hint="np.savez(FILE, images=..., labels=...)",
        ) from error
    return resized(dataset, request.geometry)


class NpzDataset(Dataset):
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
class _Member:
    """One array of the file, as its header describes it."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool
    header: int  # bytes before the array's own


def _open(path: Path, source: str) -> Dataset:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if missing := {"images", "labels"} - set(names):
            raise InputError(
                f"an array is missing: {' and '.join(sorted(missing))}",
                found=f"{names[:10]} in {path.name!r}",
                hint="np.savez(FILE, images=..., labels=...)",
            )
        images, labels = _inspect(archive, "images"), _inspect(archive, "labels")
        check_images(images.shape, images.dtype)
        classes = _load_classes(archive) if "classes" in names else None
        checked = check_labels(_load(archive, labels), images.shape[0], classes)
        name = safe_name(f"npz-{path.stem}")
        if images.info.compress_type != zipfile.ZIP_STORED or images.by_columns:
            return ArrayDataset(_load(archive, images), checked, classes, id=name, source=source)
        return NpzDataset(
            path,
            _offset(file, images),
            _digests(archive, images),
            labels=checked,
            classes=class_names(checked, classes),
            image_size=(images.shape[1], images.shape[2]),
            id=name,
            source=source,
        )


def _inspect(archive: zipfile.ZipFile, name: str) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in {(1, 0), (2, 0)}:
            raise ValueError(f"{name} has an unknown .npy version {version}")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    # Before anything is allocated: a header may promise any number of images.
    promised = dtype.itemsize
    for length in shape:
        promised *= length
    if promised != info.file_size - header:
        raise ValueError(f"{name} should have {promised} bytes of data and has {info.file_size - header}")
    return _Member(info, shape, dtype, by_columns, header)


def _load(archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
    with archive.open(member.info) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        return array


def _load_classes(archive: zipfile.ZipFile) -> list[str]:
    classes = _load(archive, _inspect(archive, "classes"))
    if classes.dtype.kind != "U" or classes.ndim != 1:
        raise InputError("classes are not strings of shape (K,)", found=f"{classes.dtype} {classes.shape}")
    return [str(name) for name in classes]


def _offset(file: IO[bytes], member: _Member) -> int:
    """Where the array's data begin in the file. The local header has an extra field of its own, so it is asked."""
    file.seek(member.info.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return int(member.info.header_offset + _LOCAL_HEADER.size + name + extra + member.header)


def _digests(archive: zipfile.ZipFile, member: _Member) -> bytes:
    """The images' digests, read through the archive to the end: that also checks the member's CRC."""
    n, height, width, channels = member.shape
    with archive.open(member.info) as file:
        file.read(member.header)
        return b"".join(image_digest(file.read(height * width * channels)) for _ in range(n))
