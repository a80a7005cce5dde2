"""Training a classifier, from scratch or from a checkpoint, as BatchNorm or LocalNorm network.

python -m robustbench_ln.training --arch demo-net --data demo --epochs 20 --out bn.safetensors
python -m robustbench_ln.training --model bn.safetensors --data demo --groups 4 --epochs 8 --out ln.safetensors
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.data import Dataset, open_dataset
from robustbench_ln.errors import TrustError, UsageError
from robustbench_ln.models import Classifier, build_network, choose_preprocessing, load_model, save_model
from robustbench_ln.norms import convert_to_localnorm, norm_kind
from robustbench_ln.norms.convert import n_groups as groups_of


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, then a cosine to zero.

    Attributes:
        epochs: passes over the data.
        batch_size: images a step; the last short batch of an epoch is left out.
        learning_rate: its peak.
        momentum: of SGD.
        weight_decay: on weights of convolutions and dense layers; norm parameters and biases have none.
        warmup: share of all steps in which the learning rate rises.
        crop: pixels of zero padding for random crops; 0 for none.
        flip: whether images are mirrored at random.
        seed: of data order and augmentation.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    crop: int = 4
    flip: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave: mean training loss and accuracy (fractions), and its wall time in seconds."""

    epoch: int
    loss: float
    accuracy: float
    seconds: float


def train(classifier: nn.Module, data: Dataset, recipe: Recipe) -> Iterator[EpochReport]:
    """Train `classifier` in place; yields after every epoch.

    Args:
        classifier: takes ``(B, 3, H, W)`` in [0, 1], returns logits. A LocalNorm network needs a batch size that K
            divides.
        data: the training images.
        recipe: how.

    Raises:
        UsageError: the batch is larger than the data set, or K does not divide it.
        TrustError: the loss is not finite.
    """
    k = groups_of(classifier) or 1
    if recipe.batch_size % k or recipe.batch_size > len(data):
        raise UsageError(
            "the batch does not fit the network or the data",
            found=f"batch {recipe.batch_size}, K = {k}, {len(data)} images",
            hint=f"a batch size that is a multiple of {k} and at most {len(data)}",
        )
    optimiser = torch.optim.SGD(
        _parameter_groups(classifier, recipe.weight_decay), lr=1.0, momentum=recipe.momentum, nesterov=True
    )
    steps = len(data) // recipe.batch_size
    total = steps * recipe.epochs
    labels = torch.tensor(data.labels)
    classifier.train()
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        # One 32-bit key an image and epoch; sorting them is the shuffle.
        order = ImageRng(recipe.seed, "train/order", torch.arange(len(data)), repeat=epoch).words(1)[:, 0].argsort()
        loss_sum = hits = 0.0
        for step in range(steps):
            indices = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            images = data.read(indices.numpy()).float().div_(255)
            images = _augment(images, ImageRng(recipe.seed, "train/augment", indices, repeat=epoch), recipe)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule((epoch * steps + step + 0.5) / total, recipe.warmup)
            logits = classifier(images)
            loss = F.cross_entropy(logits, labels[indices])
            if not math.isfinite(loss.item()):
                raise TrustError(
                    "the training loss is not finite",
                    found=f"{loss.item()} in epoch {epoch + 1}, step {step + 1}",
                    hint="a smaller learning rate",
                )
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            loss_sum += loss.item()
            hits += float((logits.argmax(1) == labels[indices]).float().mean())
        yield EpochReport(epoch + 1, loss_sum / steps, hits / steps, time.perf_counter() - start)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay for matrices and kernels only; LocalNorm's (K, C) parameters are told from matrices by their layer."""
    local = {
        id(p) for layer in network.modules() if hasattr(layer, "n_groups") for p in layer.parameters(recurse=False)
    }
    decayed = [p for p in network.parameters() if p.dim() > 1 and id(p) not in local]
    rest = [p for p in network.parameters() if p.dim() <= 1 or id(p) in local]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _augment(images: Tensor, rng: ImageRng, recipe: Recipe) -> Tensor:
    """Random crops out of zero-padded images, and mirroring; ``(B, C, H, W)`` in and out."""
    if recipe.flip:
        images = torch.where(rng.uniform(1, 1, 1) < 0.5, images.flip(-1), images)
    if recipe.crop:
        h, w = images.shape[2:]
        padded = F.pad(images, [recipe.crop] * 4)
        top, left = rng.integers(2 * recipe.crop + 1, 2).unbind(1)
        rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
        batch = torch.arange(len(images))[:, None, None]
        images = (
            padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        )
    return images


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m robustbench_ln.training", description=__doc__)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", help="checkpoint to train on from")
    start.add_argument("--arch", help="architecture to train from scratch")
    parser.add_argument("--data", required=True, help="training images, as --data of lnbench eval")
    parser.add_argument("--groups", type=int, default=0, help="K: turn BatchNorm into LocalNorm with K groups")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--crop", type=int, default=4)
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)

    data = open_dataset(given.data, split="train")
    torch.manual_seed(given.seed)
    if given.model:
        loaded = load_model(given.model, image_size=lambda: data.image_size)
        network, arch = loaded.network, loaded.arch
        if loaded.mean is None:
            indices = torch.arange(0, len(data), max(1, len(data) // 512))[:512].numpy()
            images = data.read(indices).float().div_(255)
            choice = choose_preprocessing(network, images, torch.from_numpy(data.labels[indices]))
            mean, std = choice.mean, choice.std
        else:
            mean, std = loaded.mean, loaded.std or ()
    else:
        network, arch = build_network(given.arch, num_classes=len(data.classes)), given.arch
        mean = std = (0.5, 0.5, 0.5)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    if given.groups:
        network = convert_to_localnorm(network, given.groups)
    classifier = Classifier(network, mean, std)
    recipe = Recipe(
        given.epochs,
        given.batch_size,
        given.learning_rate,
        crop=given.crop,
        flip=not given.no_flip,
        seed=given.seed,
    )
    k = groups_of(network)
    metadata = {
        "arch": arch,
        "num_classes": len(data.classes),
        "mean": list(mean),
        "std": list(std),
        "preprocessing": "training",
        **({"n_groups": k, "group_size": recipe.batch_size // k} if k else {}),
    }
    print(f"{arch}, norm {norm_kind(network)}, {len(data)} images", file=sys.stderr)
    for report in train(classifier, data, recipe):
        print(
            f"epoch {report.epoch}: loss {report.loss:.4f}, accuracy {report.accuracy:.4f}, {report.seconds:.0f} s",
            file=sys.stderr,
        )
        save_model(given.out, network, metadata=metadata)


if __name__ == "__main__":
    _main(sys.argv[1:])
