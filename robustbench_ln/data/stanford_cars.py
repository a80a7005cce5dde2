"""Stanford Cars (Krause et al., 2013) in its official layout, which `imagefolder:DIR` recognises.

DIR/cars_train/00001.jpg …  DIR/cars_test/00001.jpg …
DIR/devkit/cars_meta.mat    names of the 196 classes
DIR/devkit/cars_train_annos.mat, and cars_test_annos_withlabels.mat beside it or in DIR

File names and fields are those of the authors' development kit, as torchvision's StanfordCars reads them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_ln.data.base import Request
from robustbench_ln.data.imagefiles import ImageFiles, reading
from robustbench_ln.errors import InputError

_FOLDERS = {"train": "cars_train", "test": "cars_test"}
_LABELS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
_META = "cars_meta.mat"


def is_stanford_cars(folder: Path) -> bool:
    """Whether a folder has the layout, complete or not."""
    return (folder / "devkit").is_dir() and any((folder / name).is_dir() for name in _FOLDERS.values())


class StanfordCars(ImageFiles):
    """8,144 training or 8,041 test photographs of 196 models of cars; labels are the official ones less 1.

    Args:
        folder: with ``devkit`` inside.
        split: `train` or `test`.
        request: the options that it was asked for with.

    Raises:
        InputError: missing or damaged annotations, labels outside the classes, missing images, images that cannot be
            read.
    """

    has_splits = True

    def __init__(self, folder: Path, request: Request) -> None:
        root = folder.absolute()
        with reading():
            classes, images = _annotated(root, request.split)
        super().__init__(
            root,
            images,
            classes,
            id=f"stanford-cars-{request.split}",
            source=request.source,
            on_bad_image=request.on_bad_image,
            geometry=request.geometry,
            photos=True,
        )


def _annotated(root: Path, split: str) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
    """Class names, and every image of the split as (label, path below the root)."""
    names = _read(_found(root, _META), "class_names")
    classes = tuple(str(name) for name in np.ravel(names))
    path = _found(root, _LABELS[split])
    rows = np.atleast_1d(_read(path, "annotations"))
    try:
        images = [(int(row["class"]) - 1, f"{_FOLDERS[split]}/{Path(str(row['fname'])).name}") for row in rows]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"no class and fname in its rows ({error})") from None
    wrong = [label + 1 for label, _ in images if not 0 <= label < len(classes)]
    if wrong or not images:
        raise _damaged(path, f"class {wrong[0]} of {len(classes)}" if wrong else "no images")
    missing = [name for _, name in images if not (root / name).is_file()]
    if missing:
        raise InputError(
            "images of Stanford Cars are missing",
            found=f"{len(missing)} of {len(images)}, first {missing[0]}",
            hint=f"the unpacked archive as {root / _FOLDERS[split]}",
        )
    return classes, images


def _found(root: Path, name: str) -> Path:
    for path in (root / "devkit" / name, root / name):
        if path.is_file():
            return path
    raise InputError(
        "annotations of Stanford Cars are missing", found=f"no {name}", hint=f"the file as {root / 'devkit' / name}"
    )


def _read(path: Path, variable: str) -> Any:
    from scipy.io import loadmat  # slow to import

    content = path.read_bytes()
    try:
        # Numbers and text only; nothing in a MAT file runs code.
        return loadmat(io.BytesIO(content), squeeze_me=True, variable_names=[variable])[variable]
    except Exception as error:  # scipy raises almost anything at a damaged file
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not an annotation file of Stanford Cars", found=why[:200], hint="the official devkit")
