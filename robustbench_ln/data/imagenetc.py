"""`imagenetc:DIR`: image files in folders `[GROUP/]CORRUPTION/SEVERITY/CLASS`.

The layout of ImageNet-C and Tiny-ImageNet-C (make_imagenet_c.py of Hendrycks & Dietterich 2019), ImageNet-C-bar and
ImageNet-3DCC; also that of `lnbench corrupt --layout imagenetc`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.data.base import Dataset, Request, safe_name
from robustbench_ln.data.geometry import Geometry
from robustbench_ln.data.imagefiles import (
    ImageFiles,
    images_below,
    is_folder,
    listed,
    listing,
    read_image,
    reading,
)
from robustbench_ln.data.imagenet import imagenet_classes
from robustbench_ln.data.published import Opener, Published, Version, folder_of, name_of, no_conditions
from robustbench_ln.errors import InputError

_DEPTH = 2  # folders above the corruptions' own: ImageNet-C/noise
_SEVERITIES = 5
_TINY = (200, 64)  # classes and pixels of Tiny-ImageNet-C
_FIXED_FROST = "the corrected set, https://zenodo.org/records/8206060; or --corruption without frost"


def open_imagenetc(request: Request) -> Published:
    """ImageNet-C, Tiny-ImageNet-C, ImageNet-C-bar or ImageNet-3DCC: image files by corruption, severity and class."""
    folder = folder_of(request)
    problems: list[InputError] = []
    with reading():
        folders = dict(_versions(folder, problems))
        if not folders:
            raise problems[0] if problems else no_conditions(folder)
        first = min(folders, key=lambda one: (one[1], one[0]))
        present = _images(folders[first])
    if not present:
        raise InputError("no images in the class folders", found=repr(str(folders[first])), hint="CLASS/IMAGE.JPEG")
    places, labels, classes, partners, notes = _test_set(request, folders[first], present, name_of(first))
    versions: dict[Version, Opener] = {
        version: partial(
            _open_version, version, path, name_of(first), places, labels, classes, request.geometry, request.source
        )
        for version, path in folders.items()
    }
    return Published(
        request,
        folder,
        versions,
        np.array(labels, np.int64),
        classes,
        partners=partners,
        problems=problems,
        notes=notes,
    )


# Finding


def _versions(root: Path, problems: list[InputError]) -> Iterator[tuple[Version, Path]]:
    """Every corruption and severity with its folder; what cannot be told goes to `problems`."""
    seen: dict[str, Path] = {}
    for folder in _corruptions(root, _DEPTH):
        if folder.name in seen:
            raise InputError(
                f"the corruption {folder.name} is there twice",
                found=f"{str(seen[folder.name])!r} and {str(folder)!r}",
                hint="a folder with one of them",
            )
        seen[folder.name] = folder
        severities = _severities(folder)
        if not severities:
            problems.append(
                InputError(
                    f"the severities of {folder.name} cannot be told",
                    found=listing(_numbers(folder)),
                    hint="folders 1 to 5, or five folders named by rising numbers",
                )
            )
        for severity, name in severities.items():
            yield (folder.name, severity), folder / name


def _corruptions(folder: Path, depth: int) -> Iterator[Path]:
    """The folders that hold folders named by numbers."""
    for entry in listed(folder):
        if is_folder(entry):
            path = folder / entry.name
            if _numbers(path):
                yield path
            elif depth:
                yield from _corruptions(path, depth - 1)


def _numbers(folder: Path) -> list[str]:
    return [entry.name for entry in listed(folder) if re.fullmatch(r"\d+(\.\d+)?", entry.name) and is_folder(entry)]


def _severities(folder: Path) -> dict[int, str]:
    """Severities 1 to 5 and their folders. Those of ImageNet-C-bar may be named by its real numbers, which rise."""
    names = sorted(_numbers(folder), key=float)
    whole = [str(severity) for severity in range(1, _SEVERITIES + 1)]
    if set(names) <= set(whole):
        return {int(name): name for name in names}
    return dict(enumerate(names, 1)) if len(names) == _SEVERITIES else {}


def _images(folder: Path) -> dict[str, str]:
    """Where each image of a condition is: class and name, without suffix and safe as in `Dataset.places`, to path."""
    found: dict[str, str] = {}
    for entry in listed(folder):
        if is_folder(entry):
            for path in images_below(folder, entry.name):
                place = f"{safe_name(entry.name)}/{safe_name(Path(path).stem)}"
                if found.setdefault(place, path) != path:
                    raise InputError(
                        "two images have one name", found=listing([found[place], path]), hint="one file an image"
                    )
    return found


# The test set


def _test_set(
    request: Request, folder: Path, present: dict[str, str], name: str
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], NDArray[np.int64] | None, list[str]]:
    """Images in order, their labels, the classes, each image's position in the clean data set, and notes."""
    clean = request.clean
    if clean is None:
        places = tuple(present)
        labels, classes, notes = _labels(folder, present)
        return places, labels, classes, None, notes
    order = {place: index for index, place in enumerate(clean.places(np.arange(len(clean))))}
    if strange := [place for place in present if place not in order]:
        raise InputError(
            "the clean images are not those of the corrupted ones",
            found=f"{len(strange)} of {len(present)} images of {name} are not in {clean.source!r}: {listing(strange)}",
            hint="--clean with the same images under the same names",
        )
    places = tuple(sorted(present, key=order.__getitem__))
    partners = np.array([order[place] for place in places], np.int64)
    labels = tuple(clean.labels[partners].tolist())
    if len(partners) == len(clean):
        return places, labels, clean.classes, None, []
    note = f"{len(partners):,} of the {len(clean):,} clean images have corrupted partners; the others are left out"
    return places, labels, clean.classes, partners, [note]


def _labels(folder: Path, present: dict[str, str]) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """Labels from the names of the class folders: ImageNet's own where they are its, else in alphabetical order."""
    folders = [path.partition("/")[0] for path in present.values()]
    names = sorted(set(folders))
    known = imagenet_classes()
    notes = []
    if all(name in known for name in names):
        height, width, _ = read_image(folder / next(iter(present.values()))).shape
        if (len(names), height, width) != (_TINY[0], _TINY[1], _TINY[1]):
            positions = {wnid: index for index, wnid in enumerate(known)}
            if len(names) < len(known):
                notes.append(f"images of {len(names)} of the {len(known):,} ImageNet classes")
            return tuple(positions[name] for name in folders), tuple(known.values()), notes
        notes.append(f"taken for Tiny-ImageNet-C: labels 0 to {len(names) - 1} are its folders in alphabetical order")
    return tuple(names.index(name) for name in folders), tuple(names), notes


def _open_version(
    version: Version,
    folder: Path,
    first: str,
    places: Sequence[str],
    labels: Sequence[int],
    classes: tuple[str, ...],
    geometry: Geometry | None,
    source: str,
) -> Dataset:
    with reading():
        present = _images(folder)
        if present.keys() != set(places):
            raise _other_images(name_of(version), first, set(present), set(places))
        images = ImageFiles(
            folder,
            [(label, present[place]) for label, place in zip(labels, places, strict=True)],
            classes,
            id=safe_name(name_of(version)),
            source=source,
            geometry=geometry,
            remember=True,
        )
    if geometry is None and images.geometry != "as stored":
        raise InputError(
            f"images of {name_of(version)} have several sizes",
            found=repr(str(folder)),
            hint="images of one size, as published; or --resize and --crop",
        )
    return images


def _other_images(name: str, first: str, here: set[str], there: set[str]) -> InputError:
    """The error for a condition whose images are not those of another."""
    classes, expected = ({place.partition("/")[0] for place in places} for places in (here, there))
    odd = sorted(there - here) or sorted(here - there)
    what = "misses" if there - here else "has besides"
    frost = name.startswith("frost ") and len(expected) == _TINY[0] < len(classes)
    return InputError(
        f"{name} holds other images than {first}",
        found=f"{len(here)} images of {len(classes)} classes, not {len(there)} of {len(expected)}; "
        f"{what} {listing(odd)}",
        hint=_FIXED_FROST
        if frost
        else "the same images under every condition; lnbench check-data looks at all of them",
    )
