"""Data sets whose images are files of their own: finding, checking and decoding them."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from robustbench_ln.data.base import (
    Dataset,
    Pixels,
    changed,
    content_digest,
    image_digest,
    safe_name,
)
from robustbench_ln.data.digests import remembered
from robustbench_ln.data.geometry import Geometry
from robustbench_ln.errors import InputError, ResourceError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})

# Only these decoders: among the others is EPS, which starts Ghostscript, whatever the file's name says.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
_SMALL = 64 * 64  # pixels of an image that is decoded so fast that threads only get in each other's way
_PROBED = 16  # images that show what the others are like
_CHUNK = 1024  # files checked at once
_NAMED = 5  # bad files named in an error

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ImageFiles(Dataset):
    """Image files below one folder, decoded when they are asked for; who labels them is another's business.

    Decoding is Pillow's: EXIF orientation is applied; grey, palette and CMYK become RGB; an alpha channel is dropped;
    of an animation the first frame counts; 16-bit colour keeps its upper 8 bits. Grey images of 16 bits or floats, and
    images beyond Pillow's size limit, count as unreadable.

    Args:
        folder: absolute path of the folder.
        images: label and path of each image, relative to the folder, with ``/``; at least one.
        classes: class names; a class's position is its label.
        id: short name of the data set.
        source: what the user typed.
        on_bad_image: `stop` raises InputError where images cannot be read; `skip` leaves them out with a warning.
        geometry: how to bring images to size; None leaves images of one size alone, and uses torchvision's usual
            geometry, with a warning, where sizes differ.
        photos: the images are known to be photographs of any size, so that None is torchvision's usual geometry unless
            all of them are already squares of the network's size or smaller.
        notes: what a user should know.
        remember: keep digests and sizes for the next time, as long as no file changes.

    Raises:
        InputError: images that cannot be read, sizes that stay different.
    """

    def __init__(
        self,
        folder: Path,
        images: list[tuple[int, str]],
        classes: tuple[str, ...],
        *,
        id: str,
        source: str,
        on_bad_image: str = "stop",
        geometry: Geometry | None = None,
        photos: bool = False,
        notes: Iterable[str] = (),
        remember: bool = False,
    ) -> None:
        notes = list(notes)
        good, bad = [], []
        checks = (_check_once if remember else _check)(folder, [name for _, name in images])
        for (label, name), checked in zip(images, checks, strict=True):
            if isinstance(checked, str):
                bad.append((name, checked))
            else:
                good.append((label, name, checked))
        if bad and (on_bad_image == "stop" or not good):
            raise _bad_images(bad, len(images))
        if bad:
            notes.append(f"{len(bad)} of {len(images)} images cannot be read and are left out")

        self._folder = folder
        self._names = [name for _, name, _ in good]
        self._digests = b"".join(checked.digest for _, _, checked in good)
        self._geometry, (width, height) = _fit({checked.size for _, _, checked in good}, geometry, photos, notes)
        labels = np.array([label for label, _, _ in good], dtype=np.int64)
        described = str(self._geometry) if self._geometry else "as stored"
        super().__init__(
            id=id,
            source=source,
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
            raise changed(self.source, inert(name)) from error
        if image_digest(content) != self._digests[32 * index : 32 * index + 32]:
            raise changed(self.source, inert(name))
        try:
            image = _decode(content)
        except Exception as error:
            raise _bad_images([(name, _reason(error))], len(self)) from error
        return np.asarray(self._geometry.apply(image) if self._geometry else image)


def read_image(path: Path) -> Pixels:
    """One image file as ``(H, W, 3)`` uint8, by the rules of :class:`ImageFiles`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    checked = _check(path.parent, [path.name])[0]
    if isinstance(checked, str):
        raise InputError("the image cannot be read", found=f"{inert(str(path))}: {checked}", hint="a JPEG or PNG file")
    return np.asarray(_decode(path.read_bytes()))


# Finding


@contextmanager
def reading() -> Iterator[None]:
    """Turn what the system refuses inside the block into ResourceError."""
    try:
        yield
    except OSError as error:
        raise ResourceError("a folder or file cannot be read", found=repr(str(error))) from error


def images_below(root: Path, name: str) -> list[str]:
    """All images in a folder of the root, at any depth: their paths below the root, sorted part by part.

    Each real folder is visited once, so links in circles come to an end.
    """
    visited = {_identity(root)}  # a link back to the root would put every class into this one
    waiting, found = [name], []
    while waiting:
        path = waiting.pop()
        folder = root / path
        if _identity(folder) in visited:
            continue
        visited.add(_identity(folder))
        for entry in listed(folder):
            if is_folder(entry):
                waiting.append(f"{path}/{entry.name}")
            elif is_image(entry):
                found.append(f"{path}/{entry.name}")
    return sorted(found, key=lambda path: path.split("/"))


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name; names that begin with a dot are left out."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link that leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it has an image's name. A broken link is an image that cannot be read, not one that is not there."""
    return Path(entry.name).suffix.lower() in SUFFIXES and not is_folder(entry)


# Checking and decoding


@dataclass(frozen=True, slots=True)
class _Checked:
    digest: bytes
    size: tuple[int, int]  # width, height


def _check(folder: Path, names: list[str]) -> list[_Checked | str]:
    """Go through every image; for each, its digest and size, or why it cannot be read."""

    def check(name: str) -> _Checked | str:
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return "not a file"  # opening a pipe would wait for ever
            content = path.read_bytes()
            return _Checked(image_digest(content), _size(content))
        except Exception as error:  # Pillow's decoders raise almost anything at a hostile file
            return _reason(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = [check(name) for name in names[:_PROBED]]
        threads = _threads(checked.size for checked in first if isinstance(checked, _Checked))
        return [*first, *_each(check, names[_PROBED:], threads)]


_RECORD = struct.Struct("<32sII")  # digest, width, height


def _check_once(folder: Path, names: list[str]) -> list[_Checked | str]:
    """As `_check`, or what it found before where all images could be read and none has changed."""

    def find() -> bytes:
        records = []
        for name, checked in zip(names, _check(folder, names), strict=True):
            if isinstance(checked, str):
                raise _bad_images([(name, checked)], len(names))
            records.append(_RECORD.pack(checked.digest, *checked.size))
        return b"".join(records)

    with suppress(OSError, InputError):
        found = remembered([folder / name for name in names], "images", find)
        return [_Checked(digest, (width, height)) for digest, width, height in _RECORD.iter_unpack(found)]
    return _check(folder, names)


def _decode(content: bytes) -> Image.Image:
    """An 8-bit RGB image; see `ImageFiles` for the rules."""
    with _opened(content) as image:
        return _upright(image)


def _size(content: bytes) -> tuple[int, int]:
    """Width and height of what `_decode` returns; raises where that would.

    JPEGs are decoded to an eighth of their size: all coded data are gone through, so that a file that was cut is found,
    at half the cost. What fails then is decoded in full before it is called unreadable.
    """
    with suppress(Exception), _opened(content) as image:
        if isinstance(image, JpegImageFile):
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            image.draft(None, (1, 1))  # asks for the smallest size that it can be decoded to
            _upright(image)
            return (height, width) if turned else (width, height)
    return _decode(content).size


def _opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    if image.mode[0] in "IF":
        raise ValueError(f"16-bit or float pixels, mode {image.mode}")
    return image


def _upright(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)  # dropped like all alpha; Pillow would warn about some of its forms
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return inert(str(error))[:80] or type(error).__name__


def _bad_images(bad: list[tuple[str, str]], n: int) -> InputError:
    return InputError(
        f"{len(bad)} of {n} images cannot be read",
        found=listing([f"{name} ({reason})" for name, reason in bad]),
        hint="--on-bad-image skip leaves them out" if len(bad) < n else "a folder of images",
    )


def listing(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*map(inert, names[:_NAMED]), *more])


def inert(text: str) -> str:
    """A text without line breaks, escape sequences and other things that a terminal would act on."""
    return repr(text)[1:-1]


def _fit(
    stored: set[tuple[int, int]], geometry: Geometry | None, photos: bool, notes: list[str]
) -> tuple[Geometry | None, tuple[int, int]]:
    """The geometry to use, and the width and height that every image has after it."""
    if geometry is None and photos:
        geometry = Geometry()
        width, height = next(iter(stored))
        if len(stored) == 1 and width == height <= (geometry.crop or 0):
            notes.append(f"all images are {width} x {height} pixels and stay so, instead of: {geometry}")
            geometry = None
    elif geometry is None and len(stored) > 1:
        geometry = Geometry()
        notes.append(f"images have {len(stored)} different sizes and are brought to one: {geometry}")
    if geometry is None:
        return None, stored.pop()
    sizes = {geometry.size(size) for size in stored}
    if len(sizes) > 1:
        raise InputError(
            "images still differ in size after resizing",
            found=f"{len(sizes)} different sizes after {geometry}",
            hint=f"--resize {geometry.resize} --crop {geometry.resize}",
        )
    if len(stored) == 1:
        notes += geometry.doubts(*stored)
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
