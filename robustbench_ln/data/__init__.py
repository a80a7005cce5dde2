"""Data sets: labelled 8-bit RGB images in a stable order.

To add one, write a module with an opener and give it a row in `DATASETS`; the tests run over that table.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from robustbench_ln.data.base import ArrayDataset, Dataset, Request
from robustbench_ln.data.cifar import open_cifar10, open_cifar100
from robustbench_ln.data.demo import DemoDataset, open_demo
from robustbench_ln.data.geometry import Geometry, parse_geometry
from robustbench_ln.data.imagefolder import ImageFolder, open_imagefolder
from robustbench_ln.data.imagenet import ImageNet, open_imagenet
from robustbench_ln.data.npz import NpzDataset, open_npz
from robustbench_ln.data.stanford_cars import StanfordCars
from robustbench_ln.errors import UsageError, unknown_name

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Dataset",
    "DemoDataset",
    "Geometry",
    "ImageFolder",
    "ImageNet",
    "NpzDataset",
    "Request",
    "StanfordCars",
    "open_dataset",
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
        UsageError: an unknown kind or option, an argument that is missing or too many.
        InputError: files that are missing, unreadable or of the wrong form.
        ResourceError: no permission, or a download that failed or is forbidden.
    """
    kind, _, argument = spec.partition(":")
    if kind not in DATASETS:
        if os.path.isdir(spec):  # noqa: PTH112 - pathlib's raises where a name can be none
            raise UsageError("--data names no kind", found=f"the folder {spec!r}", hint=f"--data imagefolder:{spec}")
        raise unknown_name("data set", kind, DATASETS)
    for option, value, known in (("split", split, ("test", "train")), ("on-bad-image", on_bad_image, ("stop", "skip"))):
        if value not in known:
            raise unknown_name(option, value, known)
    geometry = parse_geometry(resize, crop, interpolation)
    return DATASETS[kind](Request(spec, argument, split, on_bad_image, geometry))
