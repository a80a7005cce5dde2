"""Data sets: labelled 8-bit RGB images in a stable order.

To add one, write a module with an opener and give it a row in `DATASETS`, or in `PUBLISHED` if it is one of many
conditions; the tests run over these tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from robustbench_ln.data.base import ArrayDataset, Dataset, Request
from robustbench_ln.data.cifar import open_cifar10, open_cifar100
from robustbench_ln.data.cifarc import open_cifar10c, open_cifar100c
from robustbench_ln.data.demo import DemoDataset, open_demo
from robustbench_ln.data.geometry import Geometry, parse_geometry
from robustbench_ln.data.imagefolder import ImageFolder, open_imagefolder
from robustbench_ln.data.imagenet import ImageNet, open_imagenet
from robustbench_ln.data.imagenetc import open_imagenetc
from robustbench_ln.data.npz import open_npz
from robustbench_ln.data.published import Published
from robustbench_ln.data.stanford_cars import StanfordCars
from robustbench_ln.errors import UsageError, unknown_name

__all__ = [
    "DATASETS",
    "PUBLISHED",
    "ArrayDataset",
    "Dataset",
    "DemoDataset",
    "Geometry",
    "ImageFolder",
    "ImageNet",
    "Published",
    "Request",
    "StanfordCars",
    "names_published",
    "open_dataset",
    "open_published",
    "parse_geometry",
]

DATASETS: dict[str, Callable[[Request], Dataset]] = {
    "demo": open_demo,
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "imagefolder": open_imagefolder,
    "imagenet": open_imagenet,
    "npz": open_npz,
}


PUBLISHED: dict[str, Callable[[Request], Published]] = {
    "cifar10c": open_cifar10c,
    "cifar100c": open_cifar100c,
    "imagenetc": open_imagenetc,
}


def open_dataset(
    spec: str,
    *,
    split: str = "test",
    on_bad_image: str = "stop",
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
) -> Dataset:
    """Open the data set that a `--data` text names, and check all of it.

    Args:
        spec: `KIND` or `KIND:ARGUMENT`, with a kind of `DATASETS`: `demo`, `cifar10`, `imagefolder:photos/test`.
        split: `test` or `train`; folders and files that hold one split ignore it.
        on_bad_image: `stop` at images that cannot be read, or `skip` them with a warning.
        resize: bring the shorter side to this length, in pixels.
        crop: then cut a square of this side from the centre.
        interpolation: `bilinear` (default), `bicubic`, `lanczos` or `nearest`; goes with `resize`.

    Raises:
        UsageError: an unknown kind or option, an argument that is missing or too many; a kind of `PUBLISHED`.
        InputError: files that are missing, unreadable or of the wrong form.
        ResourceError: no permission, or a download that failed or is forbidden.
    """
    kind = _kind(spec)
    if kind in PUBLISHED:
        raise UsageError(f"{kind} holds images that are corrupted already", found=repr(spec), hint="the clean data set")
    return DATASETS[kind](_request(spec, split, on_bad_image, parse_geometry(resize, crop, interpolation)))


def open_published(
    spec: str,
    *,
    clean: Dataset | None = None,
    on_bad_image: str = "stop",
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
) -> Published:
    """Open a data set of many conditions. Each condition is checked when it is first asked for.

    Args:
        spec: `KIND:DIR`, with a kind of `PUBLISHED`: `cifar10c:CIFAR-10-C`.
        clean: the same images before they were corrupted.
        on_bad_image: only `stop`.
        resize: as for `open_dataset`; without it and `crop` images stay as published.
        crop: as there.
        interpolation: as there.

    Raises:
        UsageError: an unknown kind or option, or no folder.
        InputError: a folder in which there is nothing of the kind, or clean images that are not its own.
        ResourceError: no permission.
    """
    kind = _kind(spec)
    if kind not in PUBLISHED:
        raise unknown_name("published data set", kind, PUBLISHED)
    request = _request(spec, "test", on_bad_image, parse_geometry(resize, crop, interpolation))
    return PUBLISHED[kind](replace(request, clean=clean))


def names_published(data: str | Dataset) -> bool:
    """Whether it is a data set of many conditions, or the text that names one."""
    return isinstance(data, Published) or (isinstance(data, str) and data.partition(":")[0] in PUBLISHED)


def _kind(spec: str) -> str:
    kind = spec.partition(":")[0]
    if kind not in DATASETS and kind not in PUBLISHED:
        if os.path.isdir(spec):  # noqa: PTH112 - pathlib's raises where a name can be none
            raise UsageError("--data names no kind", found=f"the folder {spec!r}", hint=f"--data imagefolder:{spec}")
        raise unknown_name("data set", kind, [*DATASETS, *PUBLISHED])
    return kind


def _request(spec: str, split: str, on_bad_image: str, geometry: Geometry | None) -> Request:
    for option, value, known in (("split", split, ("test", "train")), ("on-bad-image", on_bad_image, ("stop", "skip"))):
        if value not in known:
            raise unknown_name(option, value, known)
    return Request(spec, spec.partition(":")[2], split, on_bad_image, geometry)
