"""From a request to a plan: everything is named, loaded and checked before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_ln.corruptions import to_float
from robustbench_ln.data import Dataset, open_dataset
from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.files import as_utf8
from robustbench_ln.models import Classifier, build_network, choose_preprocessing, load_model, parse_normalize
from robustbench_ln.models.imports import one_line
from robustbench_ln.models.loaded import Geometry
from robustbench_ln.norms import convert_to_localnorm, frozen_state, norm_kind
from robustbench_ln.norms.convert import n_groups as groups_of
from robustbench_ln.planning import check_numbers, visiting_order
from robustbench_ln.training.images import Part
from robustbench_ln.training.processes import Processes
from robustbench_ln.training.settings import (
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Settings,
    check_batch,
    check_names,
    check_rates,
    setting_for,
)

_HELD_OUT = 0.1  # of the training images, where a data set has no test images of its own; as in the released code
_MEASURED = 10_000  # training images that mean and standard deviation are taken from


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """All that a training needs.

    Attributes:
        settings: what decides the weights.
        network: with all K groups, on the CPU, before the first step.
        train: the training images.
        held_out: images that decide which epoch is best; None for none.
        metadata: what the checkpoints record.
        warnings: what the user should know.
    """

    settings: Settings
    network: nn.Module
    train: Part
    held_out: Part | None
    metadata: Mapping[str, Any]
    warnings: tuple[str, ...]


def plan_training(
    *,
    data: str | Dataset,
    model: str | None = None,
    arch: str | None = None,
    norm: str | None = None,
    groups: int | None = None,
    eval_data: str | Dataset | None = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "step",
    warmup: float = 0.0,
    crop: int | None = None,
    flip: bool = True,
    precision: str = "fp32",
    new_head: bool = False,
    normalize: str = "auto",
    seed: int = 0,
    trust: bool = False,
    ema: bool | None = None,
    on_bad_image: str = "stop",
    resize: int | None = None,
    center_crop: int | None = None,
    interpolation: str | None = None,
    among: Processes = Processes(),
) -> TrainingPlan:
    """Name, load and check everything; see :func:`robustbench_ln.train` for the arguments.

    Raises:
        UsageError: a name or number that is none, a batch that does not fit the groups or the processes.
        InputError: a model or data set that cannot be used, or that do not go together.
    """
    check_names(optimizer=(optimizer, OPTIMIZERS), schedule=(schedule, SCHEDULES), precision=(precision, PRECISIONS))
    check_numbers(seed=seed, epochs=epochs, batch_size=batch_size, groups=groups)
    check_rates(learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay, warmup=warmup, crop=crop)
    fixed = parse_normalize(normalize)
    if model is None and arch is None:
        raise UsageError(
            "nothing to train was named", found="neither --model nor --arch", hint="--arch resnet20, or --model FILE"
        )

    loaded = None
    geometry: Geometry | None = None

    def opened(spec: str, split: str) -> Dataset:
        plain = geometry is None or resize is not None or center_crop is not None
        return open_dataset(
            spec,
            split=split,
            on_bad_image=on_bad_image,
            resize=resize if plain else geometry.resize,
            crop=center_crop if plain else geometry.crop,
            interpolation=interpolation if plain or interpolation else geometry.interpolation,
        )

    if model is not None:
        loaded = load_model(
            model, arch=arch, trust=trust, ema=ema, image_size=lambda: opened(str(data), "train").image_size
        )
        geometry = loaded.geometry
    dataset = data if isinstance(data, Dataset) else opened(data, "train")
    train, held_out = _parts(dataset, eval_data, seed, opened)
    warnings = list(dataset.warnings)

    usual = setting_for(dataset.image_size)
    batch_size = batch_size or usual.batch_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if loaded is not None:
            network, name = loaded.network, loaded.arch
            warnings += loaded.warnings
        else:
            assert arch is not None
            network, name = build_network(arch, num_classes=len(dataset.classes)), arch
    network.requires_grad_(True)
    classes = loaded.num_classes if loaded is not None else len(dataset.classes)
    if classes != len(dataset.classes):
        raise InputError(
            f"{model} was trained for another number of classes",
            found=f"{classes} logits, {len(dataset.classes)} classes in {dataset.source}",
            hint="--new-head trains a new output layer",
        )
    if norm == "ln" and norm_kind(network) == "bn":
        network = convert_to_localnorm(network, groups or usual.n_groups)
    k = groups_of(network)
    if groups is not None and k is not None and groups != k:
        raise UsageError(
            "the model has another number of groups", found=f"K = {k}, --groups {groups}", hint="a BatchNorm model"
        )
    check_batch(batch_size, len(train), k, among.size)
    probe = _sample(train, seed, 512)
    if fixed is not None:
        (mean, std), why = fixed, f"--normalize {normalize}"
    elif loaded is not None and loaded.mean is not None:
        mean, std, why = loaded.mean, loaded.std or (), loaded.preprocessing
    elif loaded is not None:
        with frozen_state(network):
            choice = choose_preprocessing(network, *probe)
        mean, std, why = choice.mean, choice.std, "training"
        warnings.append(f"{model}: preprocessing was found by trial: {choice.text}")
    else:
        mean, std = _moments(train, seed)
        why = "training images"
    _check_forward(Classifier(network, mean, std), probe[0], name, k)
    settings = Settings(
        start=as_utf8(model or name),
        start_sha256=loaded.sha256 if loaded is not None else "",
        arch=name,
        norm=norm or norm_kind(network),
        n_groups=k,
        data=as_utf8(dataset.source),
        data_sha256=dataset.sha256,
        eval_data=as_utf8(held_out.dataset.source) if held_out else "",
        eval_sha256=held_out.dataset.sha256 if held_out else "",
        held_out=len(dataset) - len(train),
        num_classes=classes,
        new_head=new_head,
        mean=tuple(mean),
        std=tuple(std),
        epochs=epochs or usual.epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=usual.learning_rate if learning_rate is None else learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        crop=max(dataset.image_size) // 8 if crop is None else crop,
        flip=flip,
        precision=precision,
        seed=seed,
    )
    metadata = {
        "arch": name,
        "num_classes": classes,
        "n_groups": k,
        "group_size": settings.group_size,
        "mean": list(mean),
        "std": list(std),
        "preprocessing": why,
    }
    return TrainingPlan(settings, network, train, held_out, metadata, tuple(dict.fromkeys(map(as_utf8, warnings))))


def _parts(dataset: Dataset, eval_data: str | Dataset | None, seed: int, opened: Any) -> tuple[Part, Part | None]:
    """Images to train on, and others that decide which epoch is best."""
    everything = np.arange(len(dataset))
    if isinstance(eval_data, Dataset):
        return Part(dataset, everything), Part(eval_data, np.arange(len(eval_data)))
    if eval_data in (None, "none"):
        return Part(dataset, everything), None
    if eval_data == "auto" and dataset.source.partition(":")[0] not in ("demo", "cifar10", "cifar100"):
        order = visiting_order(seed, len(dataset)).numpy()
        kept = max(round(_HELD_OUT * len(dataset)), 1)
        return Part(dataset, np.sort(order[kept:])), Part(dataset, np.sort(order[:kept]))
    other = opened(dataset.source if eval_data == "auto" else eval_data, "test")
    if other.classes != dataset.classes or other.image_size != dataset.image_size:
        raise InputError(
            "the images for evaluation are of other classes or another size than those for training",
            found=f"{other!r} and {dataset!r}",
            hint="--eval-data of the same kind, or --resize and --center-crop",
        )
    return Part(dataset, everything), Part(other, np.arange(len(other)))


def _sample(part: Part, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Some images in [0, 1] with their labels, classes mixed."""
    indices = part.indices[visiting_order(seed, len(part))[:n].numpy()]
    return to_float(part.dataset.read(indices)), torch.from_numpy(part.dataset.labels[indices])


def _moments(part: Part, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels of each channel, in [0, 1]."""
    chosen = part.indices[np.sort(visiting_order(seed, len(part))[:_MEASURED].numpy())]
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for indices in np.array_split(chosen, -(-len(chosen) // 256)):
        values = part.dataset.read(indices).double().div_(255)
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    height, width = part.dataset.image_size
    mean, square = sums / (len(chosen) * height * width)
    std = (square - mean**2).clamp(min=1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _check_forward(classifier: Classifier, images: Tensor, name: str, n_groups: int | None) -> None:
    try:
        with frozen_state(classifier):
            classifier(images[: n_groups or 2])
    except Exception as error:  # the network's own code ran
        height, width = images.shape[-2:]
        raise InputError(
            f"{name} cannot take the images of the data",
            found=f"{height} x {width} pixels: {one_line(error)}",
            hint="--resize and --center-crop to the size that the network was made for",
        ) from error
