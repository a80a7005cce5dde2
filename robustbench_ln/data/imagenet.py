"""`imagenet:DIR`: ImageNet (ILSVRC2012) as it lies on people's disks, labelled by the standard 1,000 classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from robustbench_ln.data.base import Request, existing_path, safe_name
from robustbench_ln.data.geometry import Geometry
from robustbench_ln.data.imagefiles import ImageFiles, images_below, is_folder, is_image, listed, listing, reading
from robustbench_ln.errors import InputError, UsageError

_INSIDE = ("", "ILSVRC/Data/CLS-LOC")  # the images' folders may lie here: an own layout, Kaggle's archive
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_TRUTH_IN = ("", "data", "ILSVRC2012_devkit_t12/data")
_TABLES = ("LOC_val_solution.csv", "labels.csv", "labels.txt")  # lines `name,wnid`; the first is Kaggle's
_VALIDATION = 50_000
_NEEDED = (
    f"the devkit's ILSVRC2012_devkit_t12/data with {_TRUTH} and meta.mat, or Kaggle's {_TABLES[0]}, "
    f"in the folder of the images or beside it"
)


@cache
def imagenet_classes() -> dict[str, str]:
    """The 1,000 classes: WordNet ID to name, in the order of their indices (sorted by ID)."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))


@cache
def _indices() -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(imagenet_classes())}


class ImageNet(ImageFiles):
    """Images of ILSVRC2012; labels are positions in the standard table of 1,000 classes, whichever are present.

    The folder holds class folders named by WordNet ID (``n01440764``), or images in one flat folder; or it holds such
    a folder as ``val`` or ``train``. Flat images are labelled by

    1. their names, where all of them begin with a WordNet ID (``n01440764_tench.JPEG``);
    2. a table of names and IDs: ``LOC_val_solution.csv`` of Kaggle, ``labels.csv`` or ``labels.txt``;
    3. the devkit's ``ILSVRC2012_validation_ground_truth.txt`` with its ``meta.mat``.

    The files are looked for in the folder of the images, beside it, and in the folder that was named.

    Without a geometry the shorter side is resized to 256 and the centre cropped to 224, as torchvision does for
    ImageNet; squares of 224 pixels or fewer, all of one size, stay as stored.

    Args:
        folder: where the images are.
        split: `test` takes ``val`` where ``val`` and ``train`` are in the folder, `train` takes ``train``.
        on_bad_image: `stop` raises InputError where images cannot be read; `skip` leaves them out with a warning.
        geometry: how to bring images to size.
        source: what the user typed.

    Raises:
        InputError: no ImageNet images, unknown classes, images without a label, labels that do not fit the images,
            images that cannot be read.
        ResourceError: a folder or file that may not be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split: str = "test",
        on_bad_image: str = "stop",
        geometry: Geometry | None = None,
        source: str = "",
    ) -> None:
        top = folder.absolute()
        with reading():
            root, notes = _locate(top, "train" if split == "train" else "val")
            images, more = _find(root, top)
        present = len({label for label, _ in images})
        if present < len(_indices()):
            notes.append(f"images of {present} of the {len(_indices()):,} ImageNet classes")
        super().__init__(
            root,
            images,
            tuple(imagenet_classes().values()),
            id=safe_name(f"imagenet-{root.resolve().name}"),
            source=source or f"imagenet:{folder}",
            on_bad_image=on_bad_image,
            geometry=geometry,
            photos=True,
            notes=notes + more,
        )
        self.has_splits = root != top and all((root.parent / name).is_dir() for name in ("train", "val"))

    def class_folder(self, label: int) -> str:
        """See `Dataset.class_folder`: the WordNet ID, as in ImageNet-C."""
        return list(imagenet_classes())[label]


def open_imagenet(request: Request) -> ImageNet:
    """ImageNet (ILSVRC2012): class folders named by WordNet ID, any of the 1,000, or the flat validation folder."""
    if not request.argument:
        raise UsageError("imagenet needs a folder", found=repr(request.source), hint="--data imagenet:DIR")
    return ImageNet(
        existing_path(request.argument),
        split=request.split,
        on_bad_image=request.on_bad_image,
        geometry=request.geometry,
        source=request.source,
    )


# Finding


def _locate(top: Path, wanted: str) -> tuple[Path, list[str]]:
    """The folder whose images are meant: the one that was named, or the one of a split inside; and warnings."""
    if not top.is_dir():
        raise InputError("not a folder", found=repr(str(top)), hint="imagenet:DIR with folders named n01440764, ...")
    other = "train" if wanted == "val" else "val"
    for split in ("", wanted, other):
        for inside in _INSIDE:
            folder = top / inside / split
            # Beside the folders of the splits, an image may be anything.
            if folder.is_dir() and (_has_classes(folder) or (split and _has_images(folder))):
                notes = [f"there is no folder {wanted!r}: the images of {other!r} are used"] if split == other else []
                return folder, notes
    if _has_images(top):
        return top, []
    names = [entry.name for entry in listed(top) if is_folder(entry)]
    hint = "imagefolder:DIR, if these are class folders in the order of your network's labels" if names else ""
    raise InputError(
        "no ImageNet images",
        found=f"{len(names)} folders in {str(top)!r}: {listing(names)}" if names else f"no images in {str(top)!r}",
        hint=hint or "a folder with class folders n01440764, ..., with val/ or train/, or with the validation images",
    )


def _has_classes(folder: Path) -> bool:
    return any(entry.name in _indices() and is_folder(entry) for entry in listed(folder))


def _has_images(folder: Path) -> bool:
    return any(is_image(entry) for entry in listed(folder))


def _find(root: Path, top: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """Every image as (label, path below the root), and warnings."""
    entries = listed(root)
    folders = [entry.name for entry in entries if is_folder(entry)]
    flat = [entry.name for entry in entries if is_image(entry)]
    if not _has_classes(root):
        labels, notes = _flat_labels(root, top, flat)
        return list(zip(labels, flat, strict=True)), notes
    below = {name: images_below(root, name) for name in folders}
    strange = [name for name, paths in below.items() if paths and name not in _indices()]
    if strange:
        raise InputError(
            f"{len(strange)} folders with images are no classes of ILSVRC2012",
            found=listing(strange),
            hint="only folders named by the 1,000 WordNet IDs; imagefolder:DIR for other classes",
        )
    images = [(_indices()[name], path) for name, paths in below.items() for path in paths]
    if not images:
        raise InputError("no images in the class folders", found=f"{len(folders)} folders in {str(root)!r}")
    return images, [f"{len(flat)} images outside the class folders are ignored"] if flat else []


# Labels of a flat folder


def _flat_labels(root: Path, top: Path, names: list[str]) -> tuple[list[int], list[str]]:
    """The labels of images in one folder, from whatever tells them; and warnings."""
    own = [_indices().get(name.partition("_")[0]) for name in names]
    if None not in own:
        return [label for label in own if label is not None], []
    # Beside the images as well as with them, and where the user pointed: archives are unpacked in all these ways.
    places = list(dict.fromkeys((root, root.parent, top)))
    table = _first(place / name for place in places for name in _TABLES)
    if table is not None:
        return _labelled(names, _read_table(table), table), []
    truth = _first(place / inside / _TRUTH for place in places for inside in _TRUTH_IN)
    if truth is None:
        raise InputError(
            "images in one folder need a file that labels them",
            found=f"{len(names)} images in {str(root)!r}, no {_TRUTH}",
            hint=_NEEDED,
        )
    labels = _read_truth(truth)
    if len(labels) not in (_VALIDATION, len(names)):
        raise InputError(
            "the ground truth does not fit the images",
            found=f"{len(labels)} lines in {str(truth)!r}, {len(names)} images",
            hint=f"the devkit's file has {_VALIDATION:,} lines",
        )
    numbered = {f"ILSVRC2012_val_{number:08d}": label for number, label in enumerate(labels, 1)}
    missing = len(labels) - len(names)
    notes = [f"{len(names):,} of the {len(labels):,} validation images are present"] if missing else []
    return _labelled(names, numbered, truth), notes


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _labelled(names: list[str], labels: Mapping[str, int], source: Path) -> list[int]:
    """The label of each image, found by its name with or without the suffix."""
    found = [labels.get(name, labels.get(Path(name).stem)) for name in names]
    unknown = [name for name, label in zip(names, found, strict=True) if label is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(names)} images have no label in {source.name}",
            found=listing(unknown),
            hint=f"images named as in {str(source)!r}",
        )
    return [label for label in found if label is not None]


def _read_table(path: Path) -> dict[str, int]:
    """File name to label, from lines that begin with a name and a WordNet ID; the first line may be a heading."""
    labels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, wnid = (*re.split(r"[,\s]+", line.strip()), "", "")[:2]
        if wnid in _indices():
            labels[name] = _indices()[wnid]
        elif number > 1 and name:
            raise InputError(
                f"line {number} of {path.name} names no class of ILSVRC2012",
                found=repr(line[:80]),
                hint="lines of a file name and a WordNet ID: ILSVRC2012_val_00000001,n01751748",
            )
    return labels


def _read_truth(path: Path) -> list[int]:
    """Label of each validation image, from the devkit's numbers, which are in an order of their own."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise InputError(f"{path.name} needs the devkit's meta.mat beside it", found=f"no {str(meta)!r}", hint=_NEEDED)
    wnids = _read_meta(meta)
    labels = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip() not in wnids:
            raise InputError(
                f"line {number} of {path.name} is no class number", found=repr(line[:80]), hint="a number, 1 to 1000"
            )
        labels.append(_indices()[wnids[line.strip()]])
    return labels


def _read_meta(path: Path) -> dict[str, str]:
    """The devkit's class numbers, as text, to WordNet IDs."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True)
        wnids = {str(int(number)): str(wnid) for number, wnid in pairs if str(wnid) in _indices()}
    except Exception as error:  # the reader raises almost anything at a damaged file
        if isinstance(error, PermissionError):
            raise
        raise InputError(
            f"{path.name} is not the devkit's", found=f"{str(path)!r}: {str(error)[:200]!r}", hint=_NEEDED
        ) from error
    if len(wnids) != len(_indices()):
        raise InputError(f"{path.name} is not the devkit's", found=f"{len(wnids)} of the 1,000 classes", hint=_NEEDED)
    return wnids
