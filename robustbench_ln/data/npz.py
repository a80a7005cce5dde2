"""`npz:FILE`: images and labels as NumPy arrays in one file."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from robustbench_ln.data.base import (
    ArrayDataset,
    Dataset,
    Request,
    check_images,
    check_labels,
    class_names,
    existing_path,
    safe_name,
)
from robustbench_ln.data.geometry import resized
from robustbench_ln.data.stored import ArrayHeader, StoredImages, image_digests, read_header
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


@dataclass(frozen=True, slots=True)
class _Member:
    """One array of the file."""

    info: zipfile.ZipInfo
    header: ArrayHeader


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
        check_images(images.header.shape, images.header.dtype)
        classes = _load_classes(archive) if "classes" in names else None
        checked = check_labels(_load(archive, labels), images.header.shape[0], classes)
        name = safe_name(f"npz-{path.stem}")
        if images.info.compress_type != zipfile.ZIP_STORED or images.header.by_columns:
            return ArrayDataset(_load(archive, images), checked, classes, id=name, source=source)
        return StoredImages(
            path,
            _offset(file, images),
            _digests(archive, images),
            labels=checked,
            classes=class_names(checked, classes),
            image_size=images.header.image_size,
            id=name,
            source=source,
        )


def _inspect(archive: zipfile.ZipFile, name: str) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        return _Member(info, read_header(file, name, info.file_size))


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
    return int(member.info.header_offset + _LOCAL_HEADER.size + name + extra + member.header.length)


def _digests(archive: zipfile.ZipFile, member: _Member) -> bytes:
    """The images' digests, read through the archive to the end: that also checks the member's CRC."""
    with archive.open(member.info) as file:
        file.read(member.header.length)
        return image_digests(file, member.header.image_size, member.header.shape[0])
