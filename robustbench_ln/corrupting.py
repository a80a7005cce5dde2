"""Degraded copies of a data set on disk: one `.npz`, or the layouts of CIFAR-10-C and ImageNet-C.

Everything is written under a temporary name and renamed when it is whole, condition by condition, so an interrupted
run goes on where it stopped and nobody ever reads half a file. What was asked for is recorded beside the images
(`settings` in the archive, `lnbench.json` in a folder), and other settings never overwrite it.
"""

from __future__ import annotations

import glob
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robustbench_ln.corruptions import KERNEL_VERSION, Degradations, degrade, plan_degradations, to_levels
from robustbench_ln.corruptions.suites import PARITY_QUALITY, SEVERITIES
from robustbench_ln.data import Dataset, open_dataset
from robustbench_ln.data.published import RECORD
from robustbench_ln.errors import InputError, ResourceError, UsageError, unknown_name
from robustbench_ln.files import leftovers, locked, write_bytes, writing
from robustbench_ln.planning import check_numbers, choose_device, visiting_order
from robustbench_ln.types import Condition

OnImages = Callable[[Condition, int], None]
"""Called with the condition at work and the number of images newly done."""

_LABELS = "labels.npy"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written; made by :func:`plan_corrupted`.

    Attributes:
        dataset: the images.
        indices: positions of the images that are taken, rising.
        degradations: what is done to them.
        seed: of everything random.
        layout: a name of :data:`LAYOUTS`.
        out: the archive or the folder.
        batch_size: images computed at once; changes no pixel.
        device: where they are computed.
    """

    dataset: Dataset
    indices: NDArray[np.int64]
    degradations: Degradations
    seed: int
    layout: str
    out: Path
    batch_size: int
    device: str

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is done to the images."""
        return self.degradations.conditions

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know."""
        return (*self.dataset.warnings, *self.degradations.warnings)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the images that are taken."""
        return self.dataset.labels[self.indices]

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes every pixel besides the conditions; two outputs with equal settings can be joined."""
        textures = self.degradations.textures
        return {
            "data": self.dataset.sha256,
            "number of images": len(self.indices),
            "seed": self.seed,
            "suite": self.degradations.suite.name,
            "frost textures": textures.sha256 if textures else None,
            "JPEG parity": any(condition.jpeg_parity for condition in self.conditions),
            "kernel version": KERNEL_VERSION,
        }

    def batches(self, condition: Condition) -> Iterator[NDArray[np.uint8]]:
        """The degraded images as ``(b, H, W, 3)``, batch by batch."""
        for start in range(0, len(self.indices), self.batch_size):
            indices = self.indices[start : start + self.batch_size]
            images = self.dataset.read(indices).to(self.device)
            degraded = degrade(
                images,
                condition,
                torch.from_numpy(indices),
                self.seed,
                suite=self.degradations.suite,
                textures=self.degradations.textures,
            )
            yield to_levels(degraded).permute(0, 2, 3, 1).cpu().numpy()


def plan_corrupted(
    data: str | Dataset,
    out: str | Path,
    *,
    corruption: str | Iterable[str] | None = None,
    severity: str | int | Sequence[int] | None = None,
    suite: str | None = None,
    frost_textures: str | Path | None = None,
    jpeg_parity: bool = False,
    noise: str | Iterable[str] | None = None,
    sigma: str | float | Sequence[float] | None = None,
    layout: str = "npz",
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    on_bad_image: str = "stop",
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
) -> Job:
    """Check everything before the first image is degraded.

    Args:
        data: what ``--data`` takes, or a data set.
        out: the archive, ending in ``.npz``, or the folder of another layout.
        corruption: names of the suite, ``all``, ``common`` or ``extra``; ``all`` when no noise is named either.
        severity: of corruptions, each 1 to 5.
        suite: whose constants; the one nearest in size when left out.
        frost_textures: folder with the original frost textures.
        jpeg_parity: send corrupted images through JPEG of quality 85.
        noise: names with or without a grid.
        sigma: grid of the noises without one.
        layout: ``npz``, ``cifar10c`` or ``imagenetc``; see :func:`write_corrupted`.
        seed: of everything random, at least 0.
        limit: take only the images that an evaluation with this seed and limit scores.
        batch_size: images computed at once; changes no pixel.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        on_bad_image: ``stop``, or ``skip`` to leave unreadable images out.
        resize: shorter side after resizing, in pixels.
        crop: side of the centre crop, in pixels.
        interpolation: of resizing.

    Raises:
        UsageError: a name or number that is none, or options that do not go together.
        InputError: a data set, suite or textures that cannot be used.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    check_numbers(seed=seed, limit=limit, batch_size=batch_size)
    plan = plan_degradations(
        noise=noise,
        sigma=sigma,
        corruption=corruption,
        severity=severity,
        suite=suite,
        frost_textures=frost_textures,
        jpeg_parity=jpeg_parity,
        otherwise="corruption",
    )
    target = choose_device(device)
    folder = Path(out)
    if layout == "npz" and folder.suffix != ".npz":
        raise UsageError("--out must end in .npz", found=str(out), hint="OUT.npz, or --layout cifar10c for a folder")
    if layout != "npz":
        if noise is not None:
            raise UsageError(
                f"--layout {layout} holds corruptions only", found="--noise", hint="--out OUT.npz for noise"
            )
        if layout == "cifar10c" and plan.severities != SEVERITIES:
            found = ",".join(map(str, plan.severities))
            raise UsageError("--layout cifar10c holds severities 1 to 5", found=found, hint="--severity 1:5")
        if jpeg_parity and layout == "imagenetc":
            raise UsageError(
                "--layout imagenetc stores JPEG of quality 85 as it is", found="--jpeg-parity", hint="leave it out"
            )
        if folder.exists() and not folder.is_dir():
            raise UsageError("--out must be a folder", found=f"a file at {folder}", hint="another --out")
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_dataset(data, on_bad_image=on_bad_image, resize=resize, crop=crop, interpolation=interpolation)
    )
    indices = np.sort(visiting_order(seed, len(dataset))[:limit].numpy())
    return Job(dataset, indices, plan.for_images(dataset.image_size), seed, layout, folder, batch_size, target)


def write_corrupted(job: Job, *, on_images: OnImages | None = None) -> int:
    """Write the degraded images of a plan; what is there already is not made again.

    ``npz``: arrays ``<name>/<level>`` uint8 ``(N, H, W, 3)``, ``labels`` and ``indices`` (N,). ``cifar10c``: a folder
    with ``<corruption>.npy`` uint8 ``(5 N, H, W, 3)``, severity after severity, and ``labels.npy``, the labels five
    times. ``imagenetc``: ``<corruption>/<severity>/<class>/<image>.JPEG`` of quality 85.

    A second command on the same output waits, and then finds what the first has made.

    Args:
        job: from :func:`plan_corrupted`.
        on_images: called while images are written.

    Returns: how many conditions were newly made.

    Raises:
        UsageError: the output is there with other settings.
        InputError: the output is there and is something else.
        ResourceError: it cannot be written.
    """
    lock_file = job.out.with_name(f".{job.out.name}{_LOCK}") if job.layout == "npz" else job.out / _LOCK
    with locked(job.out, lock_file):
        return LAYOUTS[job.layout](job, on_images or (lambda _condition, _n: None))


# One archive


def _write_npz(job: Job, on_images: OnImages) -> int:
    partial = job.out.with_name(f"{job.out.name}.partial")
    for stale in leftovers(job.out.parent, glob.escape(job.out.name)):
        stale.unlink(missing_ok=True)
    settings, old_names = job.settings, list[str]()
    if job.out.exists():
        settings = _joined(_settings_of_npz(job.out), settings, job.out)
        old_names = _members(job.out)
    made = [one for one in job.conditions if f"{_name(one)}.npy" not in old_names]
    if not made:
        shutil.rmtree(partial, ignore_errors=True)
        return 0
    with _begun(job, partial):
        for condition in made:
            path = partial / f"{_name(condition)}.npy"
            if path.exists():
                on_images(condition, len(job.indices))
            else:
                _write_npy(path, job, (condition,), on_images)
    with writing(job.out) as file, zipfile.ZipFile(file, "w") as archive:
        text = np.array(json.dumps(settings))
        facts = {"labels.npy": job.labels, "indices.npy": job.indices, "settings.npy": text}
        for member, array in facts.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            content.seek(0)
            _add(archive, member, content)
        if old_names:
            with zipfile.ZipFile(job.out) as before:
                for member in old_names:
                    if member not in facts:
                        with before.open(member) as source:
                            _add(archive, member, source)
        for condition in made:
            with (partial / f"{_name(condition)}.npy").open("rb") as source:
                _add(archive, f"{_name(condition)}.npy", source)
    shutil.rmtree(partial, ignore_errors=True)
    return len(made)


def _name(condition: Condition) -> str:
    return f"{condition.name}/{condition.level:g}"


def _add(archive: zipfile.ZipFile, name: str, source: IO[bytes]) -> None:
    # A fixed date: the same images are the same bytes. Stored, so that readers can take images out one by one.
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    with archive.open(info, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _members(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _settings_of_npz(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive["settings"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise InputError(
            "--out is there and was not written by lnbench corrupt", found=str(path), hint="another --out"
        ) from None


def _write_npy(path: Path, job: Job, conditions: Sequence[Condition], on_images: OnImages) -> None:
    """An array of all conditions' images, one after the other."""
    height, width = job.dataset.image_size
    shape = (len(conditions) * len(job.indices), height, width, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for condition in conditions:
            for images in job.batches(condition):
                file.write(np.ascontiguousarray(images).data)
                on_images(condition, len(images))


# Folders


def _write_cifar(job: Job, on_images: OnImages) -> int:
    labels = np.tile(job.labels, len(SEVERITIES))
    content = io.BytesIO()
    np.save(content, labels.astype(np.uint8 if labels.max() < 256 else np.int64))
    made = 0
    with _begun(job, job.out):
        write_bytes(job.out / _LABELS, content.getvalue())
        for name in dict.fromkeys(condition.name for condition in job.conditions):
            mine = [condition for condition in job.conditions if condition.name == name]
            if (job.out / f"{name}.npy").exists():
                on_images(mine[-1], len(mine) * len(job.indices))
            else:
                _write_npy(job.out / f"{name}.npy", job, mine, on_images)
                made += len(mine)
    return made


def _write_imagenet(job: Job, on_images: OnImages) -> int:
    places = job.dataset.places(job.indices)
    made = 0
    with _begun(job, job.out):
        for condition in job.conditions:
            folder = job.out / condition.name / f"{condition.level:g}"
            if folder.exists():
                on_images(condition, len(job.indices))
            else:
                _write_tree(folder, job, condition, places, on_images)
                made += 1
    return made


def _write_tree(folder: Path, job: Job, condition: Condition, places: Sequence[str], on_images: OnImages) -> None:
    """A folder of one condition's images, which is there when it is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    names = iter(places)
    try:
        for images in job.batches(condition):
            for image in images:
                path = partial / f"{next(names)}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, "JPEG", quality=PARITY_QUALITY, optimize=True)
            on_images(condition, len(images))
        partial.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"cannot write {folder}", found=error.strerror or str(error), hint="free space, or another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


LAYOUTS: dict[str, Callable[[Job, OnImages], int]] = {
    "npz": _write_npz,
    "cifar10c": _write_cifar,
    "imagenetc": _write_imagenet,
}


@contextmanager
def _begun(job: Job, folder: Path) -> Iterator[None]:
    """Make `folder`, or go on in it where it holds the output of the same settings.

    A run that is refused before its first condition is whole leaves nothing that would bind the next one.
    """
    _begin(job, folder)
    try:
        yield
    finally:
        whole = [*folder.glob("*.npy"), *folder.glob("*/[0-9]*")]
        if all(path.name == _LABELS for path in whole):
            for name in (RECORD, _LABELS):
                (folder / name).unlink(missing_ok=True)
            for place in (*{folder / one.name for one in job.conditions}, folder):
                with suppress(OSError):  # it is not there, or not empty
                    place.rmdir()


def _begin(job: Job, folder: Path) -> None:
    """Make `folder`, or go on in it where it holds the output of the same settings."""
    record = folder / RECORD
    settings = {**job.settings, "layout": job.layout}
    before = None
    if record.exists():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"cannot read {record}", found="no JSON", hint="another --out") from None
        settings = _joined(before, settings, folder)
    elif folder.exists() and any(entry.name != _LOCK for entry in folder.iterdir()):
        raise UsageError(
            "--out is a folder with other things in it", found=f"{folder} without {RECORD}", hint="another --out"
        )
    for place in (folder, *(folder / one.name for one in job.conditions)):
        for stale in leftovers(place, "*"):
            stale.unlink(missing_ok=True)
    if settings != before:
        write_bytes(record, json.dumps(settings, indent=1).encode())


def _joined(before: Any, settings: dict[str, Any], where: Path) -> dict[str, Any]:
    """The settings of what is there and of what is asked for, which must not contradict each other."""
    known = before if isinstance(before, dict) else {}
    joined = {}
    for field, value in settings.items():
        found = known.get(field)
        # Until frost is asked for there are no textures; then they are fixed like the rest.
        if found != value and not (field == "frost textures" and None in (found, value)):
            raise UsageError(
                f"{where} holds images of another {field}",
                found=f"{field} {found}, asked for {value}",
                hint="another --out",
            )
        joined[field] = found if value is None else value
    return joined
