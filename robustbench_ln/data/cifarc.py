"""`cifar10c:DIR` and `cifar100c:DIR`: a `.npy` file a corruption, severity after severity, and `labels.npy`.

The layout of CIFAR-10-C and CIFAR-100-C (make_cifar_c.py of Hendrycks & Dietterich 2019) and of CIFAR-10-C-bar.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.data.base import Dataset, Labels, Request, check_images, check_labels
from robustbench_ln.data.digests import remembered
from robustbench_ln.data.geometry import Geometry, resized
from robustbench_ln.data.imagefiles import reading
from robustbench_ln.data.published import Opener, Published, Version, folder_of, name_of
from robustbench_ln.data.stored import ArrayHeader, StoredImages, image_digests, read_header
from robustbench_ln.errors import InputError

_LABELS = "labels.npy"
_SEVERITIES = range(1, 6)
_AGAIN = "the file as it lies in the archive; lnbench check-data looks at all of them"


def open_cifar10c(request: Request) -> Published:
    """CIFAR-10-C, or CIFAR-10-C-bar: a `.npy` file a corruption, and `labels.npy`."""
    return _open(request, 10, "CIFAR-10-C")


def open_cifar100c(request: Request) -> Published:
    """CIFAR-100-C, in the layout of CIFAR-10-C."""
    return _open(request, 100, "CIFAR-100-C")


def _open(request: Request, n_classes: int, inside: str) -> Published:
    folder = folder_of(request)
    if not (folder / _LABELS).exists() and (folder / inside / _LABELS).exists():
        folder /= inside
    clean = request.clean
    with reading():
        labels = _one_set(_load_labels(folder / _LABELS))
        names = sorted(path.stem for path in folder.glob("*.npy") if path.name != _LABELS)
    if clean is not None and not np.array_equal(labels, clean.labels):
        found = f"{len(labels)} images in {str(folder)!r}, {len(clean)} in {clean.source!r}"
        if len(labels) == len(clean):
            first = int(np.argmax(labels != clean.labels))
            found = f"image {first} has label {labels[first]} in {_LABELS}, {clean.labels[first]} in {clean.source!r}"
        raise InputError(
            "the clean images are not those of the corrupted ones",
            found=found,
            hint="--clean with the test set, in its order",
        )
    classes = clean.classes if clean else tuple(map(str, range(n_classes)))
    labels = check_labels(labels, len(labels), classes)
    versions: dict[Version, Opener] = {
        (name, severity): partial(
            _open_version, folder / f"{name}.npy", severity, labels, classes, request.geometry, request.source
        )
        for name in names
        for severity in _SEVERITIES
    }
    return Published(request, folder, versions, labels, classes)


def _load_labels(path: Path) -> NDArray[Any]:
    if not path.exists():
        raise InputError(f"no {_LABELS}", found=repr(str(path.parent)), hint=f"a folder with NAME.npy and {_LABELS}")
    header = _read_header(path)
    if header.dtype.kind not in "iu" or len(header.shape) != 1:
        raise InputError(
            f"{_LABELS} does not hold integers of shape (N,)", found=f"{header.dtype} {header.shape}", hint=_AGAIN
        )
    labels: NDArray[Any] = np.load(path, allow_pickle=False)
    return labels


def _one_set(tiled: NDArray[Any]) -> Labels:
    """The labels of the test set, (n,), from those of all severities, (5 n,)."""
    n, rest = divmod(len(tiled), len(_SEVERITIES))
    hint = "the labels of the test set five times, once for each severity"
    if rest or not n:
        raise InputError(f"{_LABELS} does not hold five severities", found=f"{len(tiled)} labels", hint=hint)
    rows = tiled.astype(np.int64).reshape(len(_SEVERITIES), n)
    wrong = np.argwhere(rows != rows[0])
    if len(wrong):
        severity, image = (int(i) for i in wrong[0])
        found = f"image {image}: {rows[0, image]} at severity 1, {rows[severity, image]} at severity {severity + 1}"
        raise InputError(f"{_LABELS} differs between severities", found=found, hint=hint)
    labels: Labels = rows[0]
    return labels


def _open_version(
    path: Path, severity: int, labels: Labels, classes: tuple[str, ...], geometry: Geometry | None, source: str
) -> Dataset:
    """One severity of one file, read from there image by image.

    Not memory-mapped: a file that shrinks under a map ends the process.
    """
    n = len(labels)
    with reading():
        header = _read_header(path)
        if header.by_columns and len(header.shape) > 1:
            raise InputError(
                f"{path.name} is stored by columns",
                found="Fortran's order",
                hint="np.save(FILE, array.copy(order='C'))",
            )
        try:
            check_images(header.shape, header.dtype)
        except InputError as error:
            raise InputError(f"{path.name}: {error.what}", found=error.found, hint=error.hint) from None
        if header.shape[0] != n * len(_SEVERITIES):
            raise InputError(
                f"{path.name} does not hold the {n} images of {_LABELS} at five severities",
                found=f"{header.shape[0]} images",
                hint=f"{n * len(_SEVERITIES)} images; {_AGAIN}",
            )
        height, width = header.image_size
        start = header.length + (severity - 1) * n * height * width * 3

        def find() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return image_digests(file, header.image_size, n)

        images = StoredImages(
            path,
            start,
            remembered([path], f"severity {severity}", find),
            labels=labels,
            classes=classes,
            image_size=header.image_size,
            id=name_of((path.stem, severity)),
            source=source,
        )
    return resized(images, geometry)


def _read_header(path: Path) -> ArrayHeader:
    try:
        with path.open("rb") as file:
            return read_header(file, path.name, path.stat().st_size)
    except OSError:
        raise
    except Exception as error:  # NumPy's reader raises almost anything at a hostile file
        raise InputError(f"{path.name} cannot be read", found=str(error)[:200], hint=_AGAIN) from error
