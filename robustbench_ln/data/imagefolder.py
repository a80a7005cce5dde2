"""`imagefolder:DIR`: image files in one folder per class."""

from __future__ import annotations

from pathlib import Path

from robustbench_ln.data.base import Request, existing_path, safe_name
from robustbench_ln.data.geometry import Geometry
from robustbench_ln.data.imagefiles import (
    SUFFIXES,
    ImageFiles,
    images_below,
    is_folder,
    is_image,
    listed,
    listing,
    reading,
)
from robustbench_ln.data.stanford_cars import StanfordCars, is_stanford_cars
from robustbench_ln.errors import InputError, UsageError


class ImageFolder(ImageFiles):
    """Image files in class folders.

    The class folders in alphabetical order (by code point) are the labels; inside, images are found at any depth, by
    suffix, and sorted by path. Names that begin with a dot are ignored.

    Images of one size stay as stored. Where sizes differ and no geometry is given, the shorter side is resized to 256
    and the centre cropped to 224, with a warning.

    Args:
        folder: the folder of class folders.
        on_bad_image: `stop` raises InputError where images cannot be read; `skip` leaves them out with a warning.
        geometry: how to bring images to size.
        source: what the user typed.

    Raises:
        InputError: no folder, no classes, no images, images that cannot be read, sizes that stay different.
        ResourceError: a folder that may not be listed.
    """

    def __init__(
        self, folder: Path, *, on_bad_image: str = "stop", geometry: Geometry | None = None, source: str = ""
    ) -> None:
        root = folder.absolute()
        with reading():
            classes, images, notes = _find(root)
        super().__init__(
            root,
            images,
            classes,
            id=safe_name(f"imagefolder-{root.resolve().name}"),
            source=source or f"imagefolder:{folder}",
            on_bad_image=on_bad_image,
            geometry=geometry,
            notes=notes,
        )


def open_imagefolder(request: Request) -> ImageFiles:
    """A folder with one subfolder a class, in alphabetical order the labels; or Stanford Cars in its own layout."""
    if not request.argument:
        raise UsageError("imagefolder needs a folder", found=repr(request.source), hint="--data imagefolder:DIR")
    folder = existing_path(request.argument)
    if is_stanford_cars(folder):
        return StanfordCars(folder, request)
    return ImageFolder(folder, on_bad_image=request.on_bad_image, geometry=request.geometry, source=request.source)


def _find(folder: Path) -> tuple[tuple[str, ...], list[tuple[int, str]], list[str]]:
    """Class names, every image as (label, path below the folder) in order, and warnings."""
    if not folder.is_dir():
        raise InputError("not a folder", found=repr(str(folder)), hint="one folder per class: DIR/<class>/<image>")
    entries = listed(folder)
    classes = tuple(entry.name for entry in entries if is_folder(entry))
    outside = sum(is_image(entry) for entry in entries)
    if not classes:
        raise InputError(
            "no class folders",
            found=f"{outside} images and no folder in {str(folder)!r}",
            hint="one folder per class: DIR/<class>/<image>",
        )
    images, empty = [], []
    for label, name in enumerate(classes):
        paths = images_below(folder, name)
        images += [(label, path) for path in paths]
        if not paths:
            empty.append(name)
    if not images:
        raise InputError(
            "no images in the class folders",
            found=f"{len(classes)} folders in {str(folder)!r}",
            hint=f"files ending in {' '.join(sorted(SUFFIXES))}",
        )
    notes = []
    if empty:
        notes.append(f"{len(empty)} class folders without images keep their labels: {listing(empty)}")
    if outside:
        notes.append(f"{outside} images outside the class folders are ignored")
    return classes, images, notes
