"""From a request to a plan: everything is named, loaded and checked before the first step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_ln.corruptions import to_float
from robustbench_ln.data import Dataset, open_dataset
from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.files import as_utf8
from robustbench_ln.models import (
    Classifier,
    Geometry,
    LoadedModel,
    build_network,
    choose_preprocessing,
    load_model,
    parse_normalize,
    recorded_name,
)
from robustbench_ln.models.architectures import shapes_of
from robustbench_ln.models.imports import one_line
from robustbench_ln.models.preprocessing import PROBE_IMAGES
from robustbench_ln.models.programs import Program
from robustbench_ln.norms import NORMS, NetworkNorms, convert_norms, frozen_state
from robustbench_ln.norms.convert import n_groups as groups_of
from robustbench_ln.planning import check_numbers, visiting_order
from robustbench_ln.training.images import Part
from robustbench_ln.training.processes import ALONE, Processes
from robustbench_ln.training.settings import (
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Settings,
    check_batch,
    check_enough,
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
    among: Processes = ALONE,
) -> TrainingPlan:
    """Name, load and check everything; see :func:`robustbench_ln.train` for the arguments.

    Raises:
        UsageError: a name or number that is none, a batch that does not fit the groups or the processes.
        InputError: a model or data set that cannot be used, or that do not go together.
    """
    check_names(optimizer=(optimizer, OPTIMIZERS), schedule=(schedule, SCHEDULES), precision=(precision, PRECISIONS))
    if norm is not None:
        check_names(norm=(norm, tuple(NORMS)))
    check_numbers(seed=seed, epochs=epochs, batch_size=batch_size, groups=groups)
    check_rates(learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay, warmup=warmup, crop=crop)
    if norm == "ln" and batch_size and groups:
        check_batch(batch_size, groups, among.size)
    parse_normalize(normalize)  # a wrong one is an error before anything is read
    if model is None and arch is None:
        raise UsageError(
            "nothing to train was named", found="neither --model nor --arch", hint="--arch resnet20, or --model FILE"
        )
    if new_head and model is None:
        raise UsageError("--new-head is for a model", found="--arch alone", hint="--model, or no --new-head")

    geometry: Geometry | None = None  # of a zoo's model, where nothing else is asked for

    def opened(spec: str, split: str) -> Dataset:
        own = geometry if resize is None and center_crop is None else None
        return open_dataset(
            spec,
            split=split,
            on_bad_image=on_bad_image,
            resize=own.resize if own else resize,
            crop=own.crop if own else center_crop,
            interpolation=own.interpolation if own and interpolation is None else interpolation,
        )

    @functools.cache
    def images() -> Dataset:
        return data if isinstance(data, Dataset) else opened(data, "train")

    loaded = None
    if model is not None:
        loaded = load_model(model, arch=arch, trust=trust, ema=ema, image_size=lambda: images().image_size)
        geometry = loaded.geometry
    dataset = images()
    train, held_out = _parts(dataset, eval_data, seed, opened)
    usual = setting_for(dataset.image_size)
    batch_size = batch_size or usual.batch_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network, name = _start(loaded, arch, len(dataset.classes), new_head)
    network, kind, k, norm_groups = _with_norm(network, norm, groups, usual.n_groups)
    check_batch(batch_size, k, among.size)
    check_enough(len(train), batch_size, k)
    probe = _sample(train, seed, PROBE_IMAGES)
    mean, std, why, said = _preprocessing(loaded, network, normalize, train, probe, seed)
    _check_forward(Classifier(network, mean, std), probe[0], name, k)
    settings = Settings(
        start=as_utf8(model or name),
        start_sha256=loaded.sha256 if loaded is not None else "",
        arch=name,
        norm=kind,
        n_groups=k,
        norm_groups=norm_groups,
        data=as_utf8(dataset.source),
        data_sha256=dataset.sha256,
        eval_data=as_utf8(held_out.dataset.source) if held_out else "",
        eval_sha256=held_out.dataset.sha256 if held_out else "",
        held_out=len(dataset) - len(train),
        num_classes=len(dataset.classes),
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
    known = recorded_name(name, shapes_of(network.state_dict()))
    if known is None and ":" not in name:
        said = [*said, f"{name} is no architecture that lnbench knows: the checkpoints will need --arch"]
    metadata = {
        "arch": known or (name if ":" in name else None),
        "num_classes": settings.num_classes,
        "norm": kind,
        "norm_groups": norm_groups,
        "n_groups": k,
        "group_size": settings.group_size,
        "mean": list(mean),
        "std": list(std),
        "preprocessing": why,
        "geometry": _geometry(geometry, resize, center_crop, interpolation),
        "source_sha256": settings.start_sha256 or None,
    }
    warnings = (*dataset.warnings, *(loaded.warnings if loaded else ()), *said)
    return TrainingPlan(settings, network, train, held_out, metadata, tuple(dict.fromkeys(map(as_utf8, warnings))))


def _geometry(
    own: Geometry | None, resize: int | None, crop: int | None, interpolation: str | None
) -> dict[str, Any] | None:
    """How images were brought to size, for those who evaluate: as asked, or as the model has it."""
    if resize is not None and crop is not None:
        return asdict(Geometry(resize, crop, interpolation or "bilinear"))
    return asdict(own) if own is not None and resize is None and crop is None else None


def _start(loaded: LoadedModel | None, arch: str | None, classes: int, new_head: bool) -> tuple[nn.Module, str]:
    """The network before its norms are chosen, ready to be trained, and the name of its architecture."""
    if loaded is None:
        assert arch is not None
        return build_network(arch, num_classes=classes), arch
    if isinstance(loaded.network, Program):
        raise InputError(
            f"{loaded.source} is a program, which cannot be trained",
            found=loaded.form,
            hint="the checkpoint that it was exported from",
        )
    network = loaded.network.requires_grad_(True)
    if new_head:
        with_new_head(network, loaded.num_classes, classes)
    elif loaded.num_classes != classes:
        raise InputError(
            f"{loaded.source} was trained for another number of classes",
            found=f"{loaded.num_classes} logits, {classes} classes in the data",
            hint="--new-head trains a new output layer",
        )
    return network, loaded.arch


def with_new_head(network: nn.Module, old: int, new: int) -> None:
    """Put a new output layer into `network`, one of random weights for `new` classes instead of `old`.

    Raises:
        InputError: no layer has `old` outputs.
    """
    heads = [
        (name, layer)
        for name, layer in network.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == old)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == old and layer.kernel_size == (1, 1))
    ]
    if not heads or not heads[-1][0]:
        raise InputError(
            "the output layer was not found",
            found=f"no dense layer with {old} outputs inside the network",
            hint="a network that ends in one",
        )
    name, layer = heads[-1]
    has_bias = layer.bias is not None
    made = (
        nn.Linear(layer.in_features, new, bias=has_bias)
        if isinstance(layer, nn.Linear)
        else nn.Conv2d(layer.in_channels, new, 1, bias=has_bias)
    )
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, made.train(layer.training))


def _with_norm(
    network: nn.Module, norm: str | None, groups: int | None, usual: int
) -> tuple[nn.Module, str, int | None, int | None]:
    """The network with the norm asked for: itself, the norm's name, K of LocalNorm, groups of GroupNorm."""
    own = _own_norm(network)
    kind = norm or own
    if kind != own or (groups is not None and kind == "bn"):
        network = convert_norms(network, kind, groups=usual if kind == "ln" and groups is None else groups)
    k = groups_of(network)
    # Where groups did not divide the channels, a layer has fewer; all divide the number that was asked for.
    found = [layer.num_groups for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    norm_groups = math.lcm(*found) if kind == "groupnorm" else None
    if kind == own and groups is not None and groups != (k or norm_groups):
        raise UsageError(
            "the model has another number of groups",
            found=f"{k or norm_groups} groups, --groups {groups}",
            hint="a BatchNorm model, or no --groups",
        )
    return network, kind, k, norm_groups


def _own_norm(network: nn.Module) -> str:
    norms = NetworkNorms.of(network)
    return "dynbn" if norms.kind == "bn" and not norms.running else norms.kind


def _preprocessing(
    loaded: LoadedModel | None,
    network: nn.Module,
    normalize: str,
    train: Part,
    probe: tuple[Tensor, Tensor],
    seed: int,
) -> tuple[Sequence[float], Sequence[float], str, list[str]]:
    """Mean, deviation, where they come from, and warnings: as asked, as the model says, as the images tell."""
    fixed = parse_normalize(normalize)
    if fixed is not None:
        return *fixed, f"--normalize {normalize}", []
    if loaded is None:
        return *_moments(train, seed), "training images", []
    if loaded.mean is not None:
        return loaded.mean, loaded.std or (), loaded.preprocessing, []
    with frozen_state(network):
        choice = choose_preprocessing(network, *probe)
    return choice.mean, choice.std, choice.name, [f"{loaded.source}: preprocessing was found by trial: {choice.text}"]


def _parts(
    dataset: Dataset, eval_data: str | Dataset | None, seed: int, opened: Callable[[str, str], Dataset]
) -> tuple[Part, Part | None]:
    """Images to train on, and others that decide which epoch is best."""
    everything = np.arange(len(dataset))
    if eval_data in (None, "none"):
        return Part(dataset, everything), None
    if eval_data == "auto" and not dataset.has_splits:
        order = visiting_order(seed, len(dataset)).numpy()
        kept = max(round(_HELD_OUT * len(dataset)), 1)
        return Part(dataset, np.sort(order[kept:])), Part(dataset, np.sort(order[:kept]))
    other = eval_data
    if not isinstance(other, Dataset):
        other = opened(dataset.source if other in (None, "auto") else other, "test")
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
