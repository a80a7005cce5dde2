"""What a training is: every setting that can change its weights, with the paper's own as defaults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from robustbench_ln.errors import InputError, UsageError, unknown_name

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("step", "cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the paper and its released code (byin-cwi/LocalNorm1) train with.

    Attributes:
        batch_size: images a step.
        n_groups: K of LocalNorm.
        epochs: passes over the data.
        learning_rate: its peak.
    """

    batch_size: int
    n_groups: int
    epochs: int
    learning_rate: float


# Section 4 of the paper; epochs and rates of cifar10/resnet.py, and of car/train.py with car/resnet_152.py.
CIFAR = Setting(batch_size=128, n_groups=8, epochs=200, learning_rate=0.1)
FINE_TUNING = Setting(batch_size=16, n_groups=4, epochs=150, learning_rate=1.5e-3)
_SMALL = 96  # pixels a side up to which images are like CIFAR's


def setting_for(image_size: tuple[int, int]) -> Setting:
    """The paper's settings for images of that height and width."""
    return CIFAR if max(image_size) <= _SMALL else FINE_TUNING


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides the weights of a training.

    Attributes:
        start: what was trained: a model, or an architecture from scratch; as typed.
        start_sha256: of the model's weights; empty from scratch.
        arch: architecture name.
        norm: as in ``--norm``.
        n_groups: K of LocalNorm; None for other norms.
        norm_groups: of GroupNorm; None for other norms.
        data: training images, as typed.
        data_sha256: digest of their content.
        eval_data: images that decide which epoch is best, as typed; empty for none.
        eval_sha256: digest of their content.
        held_out: how many of the training images are kept back as those.
        num_classes: number of logits.
        new_head: whether the output layer starts anew.
        mean: of the preprocessing, one value a channel.
        std: as `mean`.
        epochs: passes over the data.
        batch_size: images a step, over all processes; an epoch's last short batch is left out.
        optimizer: of `OPTIMIZERS`.
        learning_rate: its peak.
        momentum: Nesterov momentum of SGD; beta 1 of Adam.
        weight_decay: on kernels and matrices; norm parameters and biases have none.
        schedule: of `SCHEDULES`.
        warmup: epochs in which the learning rate rises to its peak.
        crop: pixels of zero padding for random crops; 0 for none.
        flip: whether images are mirrored at random.
        precision: of `PRECISIONS`.
        seed: of weights, data order and augmentation.
    """

    start: str
    start_sha256: str
    arch: str
    norm: str
    n_groups: int | None
    norm_groups: int | None
    data: str
    data_sha256: str
    eval_data: str
    eval_sha256: str
    held_out: int
    num_classes: int
    new_head: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: float
    crop: int
    flip: bool
    precision: str
    seed: int

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def identity(self) -> dict[str, object]:
        """What two commands must share to be one training: not names of files, which have digests."""
        return {name: value for name, value in self.to_dict().items() if name not in ("start", "data", "eval_data")}

    @property
    def group_size(self) -> int | None:
        """N/K, images a group; None without LocalNorm."""
        return self.batch_size // self.n_groups if self.n_groups else None


def check_names(**names: tuple[str, tuple[str, ...]]) -> None:
    """Raise UsageError for a value that is not among those known, ``optimizer=("sdg", OPTIMIZERS)``."""
    for kind, (name, known) in names.items():
        if name not in known:
            raise unknown_name(kind, name, known)


def check_rates(**rates: float | None) -> None:
    """Raise UsageError for a rate that is negative or not finite."""
    for name, value in rates.items():
        if value is not None and not 0 <= value < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is not a number of 0 or more", found=str(value), hint=f"{option} 0.1")


def check_batch(batch_size: int, n_groups: int | None, processes: int) -> None:
    """Raise UsageError where K does not divide the batch, or the number of processes not K, or not the batch.

    Args:
        batch_size: images a step.
        n_groups: K of LocalNorm; None for other norms.
        processes: that share the training.
    """
    if n_groups and batch_size % n_groups:
        why = "is smaller than K" if batch_size < n_groups else "is not a multiple of K"
        nearest = max(round(batch_size / n_groups), 1) * n_groups
        raise UsageError(
            f"the batch {why}",
            found=f"--batch-size {batch_size}, K = {n_groups} groups",
            hint=f"--batch-size {nearest}, or other --groups",
        )
    shared, what = (n_groups, "groups") if n_groups else (batch_size, "images of a batch")
    if shared % processes:
        raise UsageError(
            f"{shared} {what} cannot be shared out evenly among {processes} processes",
            found=f"{'K' if n_groups else '--batch-size'} {shared}, world size {processes}",
            hint=f"--nproc-per-node {math.gcd(shared, processes)}",
        )


def check_enough(n_images: int, batch_size: int, n_groups: int | None) -> None:
    """Raise InputError for fewer images than a batch has."""
    if batch_size > n_images:
        k = n_groups or 1
        hint = f"more images, or --batch-size {n_images // k * k}" if n_images >= k else "more images"
        raise InputError(
            "the data set is smaller than one batch",
            found=f"{n_images} training images, --batch-size {batch_size}",
            hint=hint,
        )
