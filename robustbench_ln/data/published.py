"""Data sets of many conditions: the images of one test set as published, once for every corruption and severity.

A layout is a function that finds those conditions in a folder and says how each is opened; see `cifarc` and
`imagenetc`. A condition is then a data set like any other, whose image i is test image i.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.data.base import Dataset, Labels, Pixels, Request, changed, existing_path, safe_name
from robustbench_ln.errors import InputError, LnbenchError, UsageError
from robustbench_ln.types import Origin

RECORD = "lnbench.json"  # what `lnbench corrupt` leaves in a folder
_KEPT = 500_000  # images of conditions whose digests are held in memory; at least one condition
_GENTLEST = "brightness"  # costs networks the least
_NO_CLEAN = "no clean images beside the corrupted ones (--clean DATA): no clean accuracy, and no relative mCE"

Version = tuple[str, int]
"""Corruption and severity."""
Opener = Callable[[], Dataset]
"""Checks and opens the images of one version. Picklable."""


class Published(Dataset):
    """The images of one test set under many conditions.

    Read like any data set it gives the clean images; where there are none, those of the mildest condition.

    Args:
        request: what was asked for, with the clean data set.
        folder: where the conditions lie.
        versions: how each condition is opened.
        labels: (N,) int64, the same for all conditions.
        classes: class names.
        partners: (N,) position of each image in the clean data set; None where they are in the same places.
        problems: what is wrong with parts of the folder that can be left out.
        notes: what a user should know.

    Attributes:
        found: severities of each corruption that is there.
        clean: the clean data set, or None.
        origin: who made the images.
        problems: as above.

    Raises:
        InputError: no conditions, or clean images of another size.
    """

    def __init__(
        self,
        request: Request,
        folder: Path,
        versions: Mapping[Version, Opener],
        labels: Labels,
        classes: tuple[str, ...],
        *,
        partners: NDArray[np.int64] | None = None,
        problems: Sequence[LnbenchError] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.folder, self.clean, self.problems = folder, request.clean, tuple(problems)
        self.origin = _origin(folder)
        self.found: dict[str, tuple[int, ...]] = {}
        for name, severity in sorted(versions):
            self.found[name] = (*self.found.get(name, ()), severity)
        if not versions:
            raise problems[0] if problems else no_conditions(folder)
        self._openers = dict(versions)
        self._partners = partners
        self.mildest, base = self._base()
        # Opened versions, as many as are held in memory, and the digests of all that were ever opened.
        self._open = {} if self.clean else {self.mildest: base}
        self._digests = {version: images.sha256 for version, images in self._open.items()}
        super().__init__(
            id=safe_name(f"{request.source.partition(':')[0]}-{folder.resolve().name}"),
            source=request.source,
            classes=classes,
            labels=labels,
            image_size=base.image_size,
            sha256=_identity(self.clean, partners, labels),
            geometry=base.geometry,
            warnings=(*notes, *base.warnings, *map(_words, problems), *(() if self.clean else (_NO_CLEAN,))),
        )

    def _base(self) -> tuple[Version, Dataset]:
        """The mildest version that can be opened, and what stands for the clean images: themselves, or that version."""
        *milder, last = sorted(self._openers, key=lambda one: (one[1], one[0] != _GENTLEST, one[0]))
        if self.clean is not None:
            return (milder or [last])[0], self.clean
        for version in milder:
            with suppress(InputError):
                return version, self._openers[version]()
        return last, self._openers[last]()

    def pixels(self, indices: NDArray[np.int64]) -> Pixels:
        """See `Dataset.pixels`: of the clean images, or of the mildest condition."""
        if self.clean is None:
            return self.version(*self.mildest).pixels(indices)
        return self.clean.pixels(indices if self._partners is None else self._partners[indices])

    def version(self, corruption: str, severity: int) -> Dataset:
        """The images under a condition, index by index.

        Raises:
            KeyError: it is not among those found.
            InputError: its files are damaged, or are not of this test set.
            TrustError: it is not what it was when it was first opened.
        """
        key = (corruption, severity)
        if key not in self._open:
            version = self._openers[key]()
            if version.image_size != self.image_size:
                raise InputError(
                    "images differ in size",
                    found=f"{_shown(version.image_size)} in {corruption} {severity}, "
                    f"{_shown(self.image_size)} in {self.clean.source if self.clean else name_of(self.mildest)}",
                    hint="--clean with images of the same size, or --resize and --crop to bring both to one",
                )
            if self._digests.setdefault(key, version.sha256) != version.sha256:
                raise changed(self.source, name_of(key))
            while self._open and (len(self._open) + 1) * len(self) > _KEPT:
                self._open.pop(next(iter(self._open)))
            self._open[key] = version
        return self._open[key]

    def digest(self, corruption: str, severity: int) -> str:
        """SHA-256 of the images under a condition, as of any data set. Raises as `version`."""
        key = (corruption, severity)
        return self._digests[key] if key in self._digests else self.version(*key).sha256

    @property
    def base(self) -> str:
        """What `read` without a condition gives, in words."""
        return "clean images" if self.clean else f"the images of {name_of(self.mildest)}"

    def __getstate__(self) -> dict[str, Any]:
        # What is open can be opened again; worker processes get the digests to compare with.
        return self.__dict__ | {"_open": {}}


def folder_of(request: Request) -> Path:
    """The folder that a `--data` text of a published set names.

    Raises:
        UsageError: it names none, or images are to be skipped.
        InputError: no such folder.
    """
    kind = request.source.partition(":")[0]
    if not request.argument:
        raise UsageError(f"{kind} needs a folder", found=repr(request.source), hint=f"--data {kind}:DIR")
    if request.on_bad_image != "stop":
        raise UsageError(
            "no image of a published set can be skipped: in other conditions its partner would stay",
            found=f"--on-bad-image {request.on_bad_image}",
            hint="--on-bad-image stop",
        )
    folder = existing_path(request.argument)
    if not folder.is_dir():
        raise InputError("not a folder", found=repr(request.argument), hint=f"--data {kind}:DIR")
    return folder


def name_of(version: Version) -> str:
    """A version in words: `fog 3`."""
    return "{} {}".format(*version)


def no_conditions(folder: Path) -> InputError:
    """The error for a folder that holds none."""
    return InputError(
        "no published corruptions",
        found=f"neither NAME.npy with labels.npy nor NAME/1 to NAME/5 with class folders in {str(folder)!r}",
        hint="the unpacked folder: cifar10c:CIFAR-10-C, imagenetc:ImageNet-C",
    )


def _origin(folder: Path) -> Origin:
    record = folder / RECORD
    if not record.exists():
        return Origin()
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))
        jpeg = bool(settings["JPEG parity"]) or settings["layout"] == "imagenetc"
        return Origin("regenerated", str(settings["suite"]), jpeg, str(settings["frost textures"] or ""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read {record}", found=repr(error)[:200], hint="lnbench corrupt makes the folder anew"
        ) from None


def _identity(clean: Dataset | None, partners: NDArray[np.int64] | None, labels: Labels) -> str:
    """What the test set is, apart from its conditions, which have digests of their own."""
    if clean is not None and partners is None:
        return clean.sha256
    digest = hashlib.sha256(f"lnbench published 1\n{clean.sha256 if clean else ''}\n".encode())
    digest.update((labels if partners is None else partners).astype("<i8").tobytes())
    return digest.hexdigest()


def _words(problem: LnbenchError) -> str:
    return f"{problem.what}: {problem.found}"


def _shown(size: tuple[int, int]) -> str:
    return "{} x {}".format(*size)
