"""`imagefolder:DIR`: image files in one folder per class."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from robustbench_ln.data.base import (
    Dataset,
    Pixels,
    Request,
    changed,
    content_digest,
    existing_path,
    image_digest,
    safe_name,
)
from robustbench_ln.data.geometry import Geometry
from robustbench_ln.errors import InputError, ResourceError, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})

# Only these decoders: among the others is EPS, which starts Ghostscript, whatever the file's name says.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
_SMALL = 64 * 64  # pixels of an image that is decoded so fast that threads only get in each other's way
_PROBED = 16  # images that show what the others are like
_CHUNK = 1024  # files checked at once
_NAMED = 5  # bad files named in an error

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ImageFolder(Dataset):
    """Image files in class folders, decoded when they are asked for.

    The class folders in alphabetical order (by code point) are the labels; inside, images are found at any depth, by
    suffix, and sorted by path. Names that begin with a dot are ignored. Decoding is Pillow's: EXIF orientation is
    applied; grey, palette and CMYK become RGB; an alpha channel is dropped; of an animation the first frame counts;
    16-bit colour keeps its upper 8 bits. Grey images of 16 bits or floats, and images beyond Pillow's size limit,
    count as unreadable.

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
        self._folder = folder.absolute()
        try:
            classes, found, notes = _find(self._folder)
        except OSError as error:
            raise ResourceError("a folder cannot be listed", found=repr(str(error))) from error
        good, bad = [], []
        checks = _check(self._folder, [name for _, name in found])
        for (label, name), checked in zip(found, checks, strict=True):
            if isinstance(checked, str):
                bad.append((name, checked))
            else:
                good.append((label, name, checked))
        if bad and (on_bad_image == "stop" or not good):
            raise _bad_images(bad, len(found))
        if bad:
            notes.append(f"{len(bad)} of {len(found)} images cannot be read and are left out")

        self._names = [name for _, name, _ in good]
        self._digests = b"".join(checked.digest for _, _, checked in good)
        self._geometry, (width, height) = _fit(good, geometry, notes)
        labels = np.array([label for label, _, _ in good], dtype=np.int64)
        described = str(self._geometry) if self._geometry else "as stored"
        super().__init__(
            id=safe_name(f"imagefolder-{self._folder.resolve().name}"),
            source=source or f"imagefolder:{folder}",
            classes=classes,
            labels=labels,
            image_size=(height, width),
            sha256=content_digest(self._digests, labels, (height, width), described),
            geometry=described,
            warnings=tuple(notes),
        )
        self._threads = _threads(checked.size for _, _, checked in good)

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """See `Dataset.pixels`."""
        images = np.empty((len(indices), *self.image_size, 3), np.uint8)
        for image, pixels in zip(images, _each(self._image, indices.tolist(), self._threads), strict=True):
            image[:] = pixels
        return images

    def stem(self, index: int) -> str:
        """See `Dataset.stem`: the file's own name."""
        return safe_name(Path(self._names[index]).stem)

    def _image(self, index: int) -> Pixels:
        name = self._names[index]
        try:
            content = (self._folder / name).read_bytes()
        except OSError as error:
            raise changed(self.source, _inert(name)) from error
        if image_digest(content) != self._digests[32 * index : 32 * index + 32]:
            raise changed(self.source, _inert(name))
        image = _decode(content)
        return np.asarray(self._geometry.apply(image) if self._geometry else image)


def open_imagefolder(request: Request) -> Dataset:
    """A folder with one subfolder a class; the subfolders in alphabetical order are the labels."""
    if not request.argument:
        raise UsageError("imagefolder needs a folder", found=repr(request.source), hint="--data imagefolder:DIR")
    folder = existing_path(request.argument)
    return ImageFolder(folder, on_bad_image=request.on_bad_image, geometry=request.geometry, source=request.source)


def read_image(path: Path) -> Pixels:
    """One image file as ``(H, W, 3)`` uint8, by the rules of :class:`ImageFolder`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    checked = _check(path.parent, [path.name])[0]
    if isinstance(checked, str):
        raise InputError("the image cannot be read", found=f"{_inert(str(path))}: {checked}", hint="a JPEG or PNG file")
    return np.asarray(_decode(path.read_bytes()))


# Finding


def _find(folder: Path) -> tuple[tuple[str, ...], list[tuple[int, str]], list[str]]:
    """Class names, every image as (label, path below the folder) in order, and warnings."""
    if not folder.is_dir():
        raise InputError("not a folder", found=repr(str(folder)), hint="one folder per class: DIR/<class>/<image>")
    entries = _listed(folder)
    classes = tuple(entry.name for entry in entries if _is_folder(entry))
    outside = sum(_is_image(entry) for entry in entries)
    if not classes:
        raise InputError(
            "no class folders",
            found=f"{outside} images and no folder in {str(folder)!r}",
            hint="one folder per class: DIR/<class>/<image>",
        )
    images, empty = [], []
    for label, name in enumerate(classes):
        paths = sorted(_walk(folder, name))
        images += [(label, "/".join(path)) for path in paths]
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
        notes.append(f"{len(empty)} class folders without images keep their labels: {_listing(empty)}")
    if outside:
        notes.append(f"{outside} images outside the class folders are ignored")
    return classes, images, notes


def _walk(root: Path, name: str) -> Iterator[tuple[str, ...]]:
    """Paths of all images of a class; each real folder is visited once, so links in circles come to an end."""
    visited = {_identity(root)}  # a link back to the root would put every class into this one
    waiting: list[tuple[str, ...]] = [(name,)]
    while waiting:
        path = waiting.pop()
        folder = root.joinpath(*path)
        if _identity(folder) in visited:
            continue
        visited.add(_identity(folder))
        for entry in _listed(folder):
            if _is_folder(entry):
                waiting.append((*path, entry.name))
            elif _is_image(entry):
                yield (*path, entry.name)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    # Anything with the name of an image: a broken link is an image that cannot be read, not one that is not there.
    return Path(entry.name).suffix.lower() in SUFFIXES and not _is_folder(entry)


# Checking and decoding


@dataclass(frozen=True, slots=True)
class _Checked:
    digest: bytes
    size: tuple[int, int]  # width, height


def _check(folder: Path, names: list[str]) -> list[_Checked | str]:
    """Decode every image; for each, its digest and size, or why it cannot be read."""

    def check(name: str) -> _Checked | str:
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return "not a file"  # opening a pipe would wait for ever
            content = path.read_bytes()
            return _Checked(image_digest(content), _decode(content).size)
        except Exception as error:  # Pillow's decoders raise almost anything at a hostile file
            return _reason(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = [check(name) for name in names[:_PROBED]]
        threads = _threads(checked.size for checked in first if isinstance(checked, _Checked))
        return [*first, *_each(check, names[_PROBED:], threads)]


def _decode(content: bytes) -> Image.Image:
    """An 8-bit RGB image; see `ImageFolder` for the rules."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"16-bit or float pixels, mode {image.mode}")
        ImageOps.exif_transpose(image, in_place=True)
        image.info.pop("transparency", None)  # dropped like all alpha; Pillow would warn about some of its forms
        return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _inert(str(error))[:80] or type(error).__name__


def _bad_images(bad: list[tuple[str, str]], n: int) -> InputError:
    return InputError(
        f"{len(bad)} of {n} images cannot be read",
        found=_listing([f"{name} ({reason})" for name, reason in bad]),
        hint="--on-bad-image skip leaves them out" if len(bad) < n else "a folder of images",
    )


def _listing(names: list[str]) -> str:
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(_inert, names[:_NAMED]), *more])


def _inert(text: str) -> str:
    """Without line breaks, escape sequences and other things that a terminal would act on."""
    return repr(text)[1:-1]


def _fit(
    images: list[tuple[int, str, _Checked]], geometry: Geometry | None, notes: list[str]
) -> tuple[Geometry | None, tuple[int, int]]:
    """The geometry to use, and the width and height that every image has after it."""
    stored = {checked.size for _, _, checked in images}
    if geometry is None and len(stored) > 1:
        geometry = Geometry()
        notes.append(f"images have {len(stored)} different sizes and are brought to one: {geometry}")
    sizes = {geometry.size(size) for size in stored} if geometry else stored
    if geometry and len(sizes) > 1:
        raise InputError(
            "images still differ in size after resizing",
            found=f"{len(sizes)} different sizes after {geometry}",
            hint=f"--resize {geometry.resize} --crop {geometry.resize}",
        )
    return geometry, sizes.pop()


# Threads


def _threads(sizes: Iterable[tuple[int, int]]) -> int:
    """How many threads are worth having for images of these sizes."""
    largest = max((width * height for width, height in sizes), default=0)
    return 1 if largest <= _SMALL else min(8, os.cpu_count() or 1)


def _each(function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """`map` on threads, a bounded number of items at once. Pillow decodes without holding the interpreter's lock."""
    if threads == 1:
        yield from map(function, items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(rest, _CHUNK)):
            yield from pool.map(function, chunk)
