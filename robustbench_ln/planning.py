"""From a request to a plan: everything is named, loaded and checked before the first forward pass."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_ln.corruptions import (
    KERNEL_VERSION,
    FrostTextures,
    ImageRng,
    PublishedPlan,
    Suite,
    plan_degradations,
    plan_published,
    to_float,
)
from robustbench_ln.data import PUBLISHED, Dataset, Published, names_published, open_dataset, open_published
from robustbench_ln.errors import InputError, LnbenchError, UsageError, counted, unknown_name
from robustbench_ln.files import as_utf8
from robustbench_ln.models import (
    Classifier,
    LoadedModel,
    Preprocessing,
    choose_preprocessing,
    doubt,
    load_model,
    parse_normalize,
    wrap_module,
)
from robustbench_ln.models.imports import one_line
from robustbench_ln.models.loading import names_zoo
from robustbench_ln.models.preprocessing import PROBE_IMAGES, OnImages
from robustbench_ln.norms import NetworkNorms, choose_modes, frozen_state, parse_mode
from robustbench_ln.norms.modes import Schedule, schedule
from robustbench_ln.results import Manifest, row_key
from robustbench_ln.types import Condition, DataInfo, ModelInfo

# What forward passes compute in. Weights, statistics of norm layers and everything after the logits stay in float32.
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model ready to predict.

    Attributes:
        info: what a run records of it.
        classifier: takes images in [0, 1], returns logits.
        schedules: the modes it is evaluated under.
    """

    info: ModelInfo
    classifier: Classifier
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run needs; picklable, so that worker processes can have it.

    Attributes:
        models: the models with their modes.
        dataset: the images.
        conditions: what is done to them, ``clean`` first.
        order: ``(N,)`` int64, the visiting order of the whole data set.
        limit: how many images of the order are scored.
        seed: of everything random.
        batch_size: images computed at once; changes no number.
        device: where the forward passes run.
        manifest: what a run folder records.
        suite: whose constants corruptions have.
        textures: of frost; None where there is none among the conditions.
        keep_predictions: whether every image's class and confidence are kept.
        devices: where worker processes run their networks, in turn; empty for `device`.
        timeout: seconds that a job may take; None for any number.
        compile: whether networks whose statistics are frozen run compiled.
        other_order: digest of the order, where it is not the seed's own; it then names rows too.
    """

    models: tuple[PlannedModel, ...]
    dataset: Dataset
    conditions: tuple[Condition, ...]
    order: Tensor
    limit: int
    seed: int
    batch_size: int
    device: str
    manifest: Manifest
    suite: Suite
    textures: FrostTextures | None = None
    keep_predictions: bool = True
    devices: tuple[str, ...] = ()
    timeout: float | None = None
    compile: bool = False
    other_order: str = ""

    def block(self, first: int, size: int) -> Plan:
        """The plan for `size` images of the visiting order from `first` on.

        The order is turned, not cut: where `first` is the start of a set of images, who shares statistics with whom is
        as in the whole plan, the completion of the last set included.
        """
        if (first, size) == (0, self.limit):
            return self
        return replace(self, order=torch.roll(self.order, -first), limit=size)

    def on(self, device: str) -> Plan:
        """The plan with its networks moved to another device."""
        models = tuple(replace(one, classifier=one.classifier.to(device)) for one in self.models)
        return replace(self, models=models, device=device)

    def reordered(self, order: Tensor) -> Plan:
        """The same images degraded in the same way, but visited in another order: only who shares a batch differs.

        Args:
            order: ``(N,)`` int64; its first `limit` images are those of this plan's order, in any order.
        """
        digest = order_digest(order)
        if digest == self.manifest.order_sha256:
            return self
        manifest = replace(self.manifest, order_sha256=digest)
        return replace(self, order=order, manifest=manifest, other_order=digest)

    def limited(self, limit: int) -> Plan:
        """The same plan for the first `limit` images of its order."""
        return replace(self, limit=limit, manifest=replace(self.manifest, limit=limit))

    def only_clean(self) -> Plan:
        """The same plan without anything done to images."""
        clean = (Condition(),)
        return replace(self, conditions=clean, manifest=replace(self.manifest, conditions=clean))

    def key(self, model: PlannedModel, condition: Condition, mode: Schedule) -> str:
        """Name of a row: a digest of all that can change its numbers."""
        digest = model.info.id.rpartition("@")[2]
        manifest = self.manifest
        where = [manifest.data.sha256, manifest.seed, manifest.limit, manifest.precision, manifest.kernels]
        # Only where there is one, so that the rows of other runs keep their keys.
        where += [self.other_order] if self.other_order else []
        what = [mode.identity, condition.to_dict(), self.files_of(condition)]
        if manifest.ci_width is not None:
            what.append(f"ci-width {manifest.ci_width!r}")
        return row_key([*where, digest, *what])

    def published(self, condition: Condition) -> Dataset | None:
        """The images of a condition that are read from files; None where lnbench makes them."""
        if not isinstance(self.dataset, Published) or condition.kind != "corruption":
            return None
        return self.dataset.version(condition.name, int(condition.level))

    def files_of(self, condition: Condition) -> str:
        """Digest of the files, besides the data set's, that a condition's pixels depend on; empty for most."""
        if isinstance(self.dataset, Published):
            return "" if condition.kind == "clean" else self.dataset.digest(condition.name, int(condition.level))
        used = condition.kind == "corruption" and self.suite[condition.name].uses_textures
        return self.textures.sha256 if used and self.textures is not None else ""


def visiting_order(seed: int, n: int, *, draw: int = 0) -> Tensor:
    """``(n,)`` int64: the seeded shuffled order in which images are visited, the same on every machine.

    Args:
        seed: of the run.
        n: number of images.
        draw: 0 for the order of a run; others are independent of it.
    """
    words = ImageRng(seed, f"order/{draw}" if draw else "order", torch.arange(n)).words(2).to(torch.int64)
    return ((words[:, 0] << 32) | (words[:, 1] & 0xFFFFFFFF)).argsort(stable=True)


def stratified_order(order: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """An order of which every beginning holds the classes in the shares of the whole.

    Args:
        order: ``(N,)`` int64, a visiting order; among the images of a class it stays.
        labels: ``(N,)`` of the data set.
    """
    classes = labels[order.numpy()]
    place = np.empty(len(order))
    for label in np.unique(classes):
        (mine,) = np.nonzero(classes == label)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return order[torch.from_numpy(place.argsort(kind="stable"))]


def order_digest(order: Tensor) -> str:
    """SHA-256 of a visiting order."""
    return hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()


def choose_device(name: str) -> str:
    """The device that ``auto`` stands for, or `name` where it can be used.

    Raises:
        UsageError: no such device here.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}.get(kind, 0)
    if not re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", name) or int(index or 0) >= count:
        cuda = torch.cuda.device_count()
        usable = ["auto", "cpu", *["cuda"][:cuda], *(f"cuda:{i}" for i in range(cuda)), *["mps"][:mps]]
        found = f"{counted(cuda, 'CUDA device')}, MPS {'present' if mps else 'absent'}"
        raise UsageError(f"device {name!r} cannot be used", found=found, hint=f"--device {' or '.join(usable)}")
    return name


def plan_run(
    model: str | nn.Module | Sequence[str | nn.Module],
    data: str | Dataset = "demo",
    *,
    clean: str | Dataset | None = None,
    noise: str | Iterable[str] | None = None,
    sigma: str | float | Sequence[float] | None = None,
    preset: str | None = None,
    range: str | None = None,
    corruption: str | Iterable[str] | None = None,
    severity: str | int | Sequence[int] | None = None,
    suite: str | None = None,
    frost_textures: str | Path | None = None,
    jpeg_parity: bool = False,
    modes: str | Iterable[str] | None = None,
    group_size: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 128,
    device: str = "auto",
    arch: str | None = None,
    normalize: str = "auto",
    trust: bool = False,
    ema: bool | None = None,
    on_bad_image: str = "stop",
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
    ci_width: float | None = None,
    predictions: bool = True,
    precision: str = "fp32",
    compile: bool = False,
    timeout: float | None = None,
    on_trial: OnImages | None = None,
) -> Plan:
    """Name, load and check everything; see :func:`robustbench_ln.evaluate` for the arguments.

    `on_trial` is called while preprocessing is found by trial, with the predictions made and all there are to make.
    Names and numbers are checked before any file is read, files before any image is degraded.

    Raises:
        UsageError: a name or number that is none, or a mode that none of the models can run.
        InputError: a model or data set that cannot be used.
    """
    if clean is not None and not (isinstance(data, str) and names_published(data)):
        raise UsageError(
            "--clean goes with published corruptions", found=f"--data {data}", hint=f"one of {', '.join(PUBLISHED)}"
        )
    degradations = (plan_published if names_published(data) else plan_degradations)(
        noise=noise,
        sigma=sigma,
        preset=preset,
        range=range,
        corruption=corruption,
        severity=severity,
        suite=suite,
        frost_textures=frost_textures,
        jpeg_parity=jpeg_parity,
        repeats=repeats,
    )
    names = _mode_names(modes, group_size)
    check_numbers(seed=seed, limit=limit, batch_size=batch_size, group_size=group_size)
    if ci_width is not None and not 0 < ci_width < 1:
        raise UsageError("--ci-width is a fraction", found=f"{ci_width:g}", hint="--ci-width 0.01 for one point")
    fixed = parse_normalize(normalize)
    targets = tuple(choose_device(one) for one in device.split(","))
    target = targets[0]
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if timeout is not None and not timeout > 0:
        raise UsageError("--timeout is too small", found=f"{timeout:g}", hint="--timeout 3600, in seconds")

    requested = [model] if isinstance(model, str | nn.Module) else list(model)
    if not requested:
        raise UsageError("no model was named", hint="--model demo:bn")
    models: dict[int, LoadedModel] = {}

    @functools.cache
    def opened() -> Dataset:
        if isinstance(data, Dataset):
            return data
        wanted = (models[i].geometry for i in sorted(models)) if resize is None and crop is None else ()
        zoo = next(filter(None, wanted), None)
        open_photos = functools.partial(
            open_dataset,
            on_bad_image=on_bad_image,
            resize=zoo.resize if zoo else resize,
            crop=zoo.crop if zoo else crop,
            interpolation=zoo.interpolation if zoo and interpolation is None else interpolation,
        )
        if not names_published(data):
            return open_photos(data)
        # A network's usual geometry is for photographs: published images have been through it.
        return open_published(
            data,
            clean=open_photos(clean) if isinstance(clean, str) else clean,
            on_bad_image=on_bad_image,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
        )

    def image_size() -> tuple[int, int]:
        return opened().image_size

    # A zoo's models first: they decide the size of the images, with which others may have to be run.
    zoo_first = sorted(enumerate(requested), key=lambda item: not (isinstance(item[1], str) and names_zoo(item[1])))
    for i, given in zoo_first:
        models[i] = (
            load_model(given, arch=arch, trust=trust, ema=ema, image_size=image_size)
            if isinstance(given, str)
            else wrap_module(given, image_size=image_size)
        )
    loaded = [models[i] for i in sorted(models)]
    dataset = opened()
    order = visiting_order(seed, len(dataset))
    warnings = list(dataset.warnings)
    if len(dataset.classes) == 1:
        warnings.append(f"all images of {dataset.source} are of one class: is a folder of classes meant, inside it?")
    files = dataset if isinstance(dataset, Published) else None
    if isinstance(degradations, PublishedPlan):
        assert files is not None
        made = degradations.for_files(files.found, files.image_size, files.origin)
        digests = {str(one): files.digest(one.name, int(one.level)) for one in made.conditions}
    else:
        made, digests = degradations.for_images(dataset.image_size), {}
    clean_first = (Condition(),) if files is None or files.clean else ()
    conditions, textures = (*clean_first, *made.conditions), made.textures
    warnings += made.warnings
    probe = _probe_images(dataset, order)
    planned: list[PlannedModel] = []
    skipped: list[str] = []
    for one in loaded:
        warnings += one.warnings
        _check_classes(one, dataset)
        _check_size(one, probe[0])
        if files and one.geometry and one.geometry.crop not in (None, *files.image_size):
            height, width = files.image_size
            warnings.append(
                f"{one.source} is meant for {one.geometry.crop} x {one.geometry.crop} pixels, the published images "
                f"have {height} x {width} (--resize {one.geometry.crop} --crop {one.geometry.crop} enlarges them)"
            )
        info, classifier, said = _prepare(one, normalize, fixed, probe, on_trial)
        warnings += said
        if said and files and not files.clean:
            warnings.append(f"{one.source}: preprocessing was judged by {files.base}, as there are no clean images")
        twin = next(
            (other for other in planned if other.info.id.rpartition("@")[2] == info.id.rpartition("@")[2]), None
        )
        if twin:
            warnings.append(f"{one.source} has the content of {twin.info.source} and is evaluated once")
            continue
        schedules, left_out = _schedules(one, names, group_size, dataset)
        skipped += [f"{info.id}: {why}" for why in left_out]
        warnings += [f"{info.id}: {cut.warning}" for cut in schedules if cut.warning]
        if len(dataset.classes) != info.num_classes:
            warnings.append(
                f"{info.id} was trained for {counted(info.num_classes, 'class')}, the data has {len(dataset.classes)}"
            )
        planned.append(PlannedModel(info, classifier.to(target), _without_twins(schedules)))
    if names is not None:
        _check_every_mode_runs(names, planned, loaded, group_size)
    if limit is not None and limit >= len(dataset):
        limit = None
    info_ = DataInfo(
        dataset.id,
        as_utf8(dataset.source),
        dataset.sha256,
        len(dataset),
        len(dataset.classes),
        pixels=files.origin.pixels if files else "regenerated",
        frost=textures.kind if textures else None,
        frost_sha256=(textures.sha256 or None) if textures else None,
        image_size=dataset.image_size,
        geometry=dataset.geometry,
        clean=as_utf8(files.clean.source) if files and files.clean else None,
    )
    ran = dict.fromkeys(cut.mode.name for one in planned for cut in one.schedules)
    manifest = Manifest(
        data=info_,
        seed=seed,
        limit=limit,
        precision=precision,
        kernels=KERNEL_VERSION,
        order_sha256=order_digest(order),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(one.info for one in planned),
        modes=tuple(ran),
        conditions=conditions,
        warnings=tuple(dict.fromkeys(map(as_utf8, warnings + skipped))),
        files=digests,
        ci_width=ci_width,
    )
    scored = len(dataset) if limit is None else limit
    return Plan(
        tuple(planned),
        dataset,
        conditions,
        order,
        scored,
        seed,
        batch_size,
        target,
        manifest,
        made.suite,
        textures,
        predictions,
        devices=targets if len(targets) > 1 else (),
        timeout=timeout,
        compile=compile,
    )


def _mode_names(modes: str | Iterable[str] | None, group_size: int | None) -> list[str] | None:
    """The modes asked for, checked as far as words go; None for each network's own."""
    if modes is None:
        return None
    texts = [modes] if isinstance(modes, str) else list(modes)
    names = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))
    for name in names:
        if name != "all":
            parse_mode(name, group_size=group_size)
    return names


def check_numbers(**numbers: int | None) -> None:
    """Raise UsageError for an option (``batch_size``) below the least that makes sense: 0 for some, 1 for others."""
    for name, value in numbers.items():
        least = 0 if name in ("seed", "workers") else 1
        if value is not None and value < least:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is too small", found=str(value), hint=f"{option} {least} or more")


@contextmanager
def threads_of(threads: int | None) -> Iterator[None]:
    """Use that many threads in the block; None leaves the number alone."""
    if threads is None:
        yield
        return
    check_numbers(threads=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _schedules(
    one: LoadedModel, names: list[str] | None, group_size: int | None, dataset: Dataset
) -> tuple[list[Schedule], list[str]]:
    """The modes that a model is evaluated under, and why others are not.

    Raises:
        InputError: the data cannot be cut for a mode that was asked for by its name.
    """
    norms = NetworkNorms.of(one.network, one.group_size)
    asked = {parse_mode(name).unsized for name in names or () if name != "all"}
    schedules: list[Schedule] = []
    left_out: dict[str, list[str]] = {}
    for mode in choose_modes(names, norms, group_size=group_size):
        refusal = norms.refusal(mode)
        if refusal:
            left_out.setdefault(refusal, []).append(mode.name)
            continue
        try:
            schedules.append(schedule(mode, norms, len(dataset), dataset.image_size))
        except InputError as error:
            if mode.unsized in asked:
                raise
            left_out.setdefault(f"{error.what} ({error.found})", []).append(mode.name)
    return schedules, [
        f"mode{'s' if len(modes) > 1 else ''} {', '.join(modes)} skipped: {why}" for why, modes in left_out.items()
    ]


def _check_classes(one: LoadedModel, dataset: Dataset) -> None:
    highest = int(dataset.labels.max()) + 1
    if highest > one.num_classes:
        raise InputError(
            f"{one.source} has too few classes for the data",
            found=f"{one.num_classes} logits, labels up to {highest - 1} ({counted(len(dataset.classes), 'class')})",
            hint="a model trained for this data set",
        )


def _check_size(one: LoadedModel, images: Tensor) -> None:
    try:
        with frozen_state(one.network):
            one.network(images[:2])
    except LnbenchError:
        raise
    except Exception as error:  # the network's own code ran
        height, width = images.shape[-2:]
        raise InputError(
            f"{one.source} cannot take the images of the data",
            found=f"{height} x {width} pixels: {one_line(error)}",
            hint="--resize and --crop to the size that the model was made for",
        ) from error


def _probe_images(dataset: Dataset, order: Tensor) -> tuple[Tensor, Tensor]:
    # In the shuffled order: classes mixed, as networks with live statistics need them.
    indices = order[:PROBE_IMAGES].numpy()
    return to_float(dataset.read(indices)), torch.from_numpy(dataset.labels[indices])


def _prepare(
    one: LoadedModel,
    normalize: str,
    fixed: tuple[tuple[float, ...], tuple[float, ...]] | None,
    probe: tuple[Tensor, Tensor],
    on_trial: OnImages | None,
) -> tuple[ModelInfo, Classifier, list[str]]:
    """Settle a model's preprocessing: as asked, as its file says, or as clean images tell."""
    warnings: list[str] = []
    if fixed is not None:
        (mean, std), why = fixed, f"--normalize {normalize}"
        known = None if one.mean is None else Preprocessing(one.preprocessing, one.mean, one.std or ())
        with frozen_state(one.network):
            said = doubt(one.network, Preprocessing(normalize, mean, std), known, *probe)
        warnings += [f"{one.source}: {said}"] if said else []
    elif one.mean is not None:
        mean, std, why = one.mean, one.std or (), one.preprocessing
    else:
        with frozen_state(one.network):
            choice = choose_preprocessing(one.network, *probe, on_trial)
        mean, std, why = choice.mean, choice.std, choice.text
        warnings.append(f"{one.source}: preprocessing was found by trial: {choice.text}")
    # Last and only where there are any, so that other models keep their ids.
    more = [text for text in (one.copy, one.code) if text]
    identity = repr((one.sha256, one.arch, tuple(mean), tuple(std), one.group_size, *more))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    norms = NetworkNorms.of(one.network, one.group_size)
    info = ModelInfo(
        id=f"{one.label}@{digest}",
        source=as_utf8(one.source),
        sha256=one.sha256,
        arch=one.arch,
        norm=norms.kind,
        n_groups=norms.n_groups if norms.kind == "ln" else None,
        group_size=norms.default_images if norms.kind == "ln" else None,
        mean=tuple(mean),
        std=tuple(std),
        preprocessing=why,
        num_classes=one.num_classes,
    )
    return info, Classifier(one.network, mean, std), warnings


def _without_twins(schedules: list[Schedule]) -> tuple[Schedule, ...]:
    """Without those that another name for the same thing has already asked for."""
    return tuple({made.identity: made for made in reversed(schedules)}.values())[::-1]


def _check_every_mode_runs(
    names: list[str], planned: list[PlannedModel], loaded: list[LoadedModel], group_size: int | None
) -> None:
    ran = {made.identity.split(":")[0] for one in planned for made in one.schedules}
    for name in names:
        if name != "all" and parse_mode(name).name.split(":")[0] not in ran:
            fit = dict.fromkeys(
                mode.name for one in loaded for mode in NetworkNorms.of(one.network, one.group_size).runnable_modes()
            )
            error = unknown_name("mode", name, fit)
            norms = NetworkNorms.of(loaded[0].network, loaded[0].group_size)
            reason = norms.refusal(parse_mode(name, group_size=group_size))
            raise UsageError(
                f"none of the models can run mode {name!r}",
                found=f"{loaded[0].source}: {reason}",
                hint=error.hint,
            )
