"""Which mean and standard deviation a network wants: asked for by name, or found by trying on clean images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustbench_ln.errors import UsageError, unknown_name
from robustbench_ln.models.classifier import Classifier
from robustbench_ln.types import Images

OnImages = Callable[[int, int], None]
"""Called with the predictions made so far and with all there are to make."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to images in [0, 1] before the network sees them: ``(image - mean) / std`` per channel.

    Attributes:
        name: as the user names it (``imagenet``).
        mean: one value a channel, or one for all; empty where the network needs nothing.
        std: as `mean`, above 0.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# The probe tries them in this order.
PREPROCESSINGS = {
    row.name: row
    for row in (
        Preprocessing("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        # The pixels' own deviation. Much public code has (0.2023, 0.1994, 0.2010), the mean of per-image deviations.
        Preprocessing("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        Preprocessing("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Preprocessing("none", (), ()),
    )
}

PROBE_IMAGES = 512
_BATCH = 128


def parse_normalize(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Read what `--normalize` was given.

    Args:
        text: ``auto``, a name in `PREPROCESSINGS`, or ``MEAN;STD`` with commas between channels
            (``0.5,0.5,0.5;0.2,0.2,0.2``).

    Returns: mean and standard deviation, empty for ``none``; None for ``auto``.

    Raises:
        UsageError: an unknown name, or numbers that cannot be a mean and a standard deviation.
    """
    if text == "auto":
        return None
    if ";" not in text:
        if text not in PREPROCESSINGS:
            raise unknown_name("normalisation", text, ["auto", *PREPROCESSINGS, "MEAN;STD"])
        return PREPROCESSINGS[text].mean, PREPROCESSINGS[text].std
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split(";"))
    except ValueError:
        raise _not_numbers(text) from None
    if not is_mean_std(mean, std):
        raise _not_numbers(text)
    return mean, std


def is_mean_std(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether two tuples can be a mean and a standard deviation: as `Preprocessing` has them, and finite."""
    fit = len(mean) == len(std) and len(mean) in (0, 1, 3)
    return fit and all(map(math.isfinite, mean)) and all(0 < s < math.inf for s in std)


def _not_numbers(text: str) -> UsageError:
    return UsageError(
        "a normalisation needs a mean and a positive standard deviation for each of 3 channels, or one for all",
        found=repr(text),
        hint='--normalize "0.5,0.5,0.5;0.2,0.2,0.2"',
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What the probe found.

    Attributes:
        name: the best candidate.
        mean: its mean; empty for ``none``.
        std: its standard deviation; empty for ``none``.
        accuracies: clean accuracy of every candidate, as a fraction.
        text: the choice and its margins in one line, for a reader.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracies: dict[str, float]
    text: str


def choose_preprocessing(
    network: nn.Module, images: Images, labels: Tensor, on_images: OnImages | None = None
) -> Choice:
    """Try every named preprocessing on clean images and take the best.

    Accuracy decides where it can. Among those that it cannot tell from the most accurate, the lowest negative
    log-likelihood decides: on 512 images the constants of ImageNet and CIFAR-10 are often too
    close for accuracy (of random draws it finds the right ones of a CIFAR ResNet-20 in 7 of 10, the likelihood in 19 of
    20).

    Args:
        network: in eval(); takes normalised images, gives ``(B, classes)``.
        images: ``(B, 3, H, W)`` in [0, 1]; the first 512 are used. Images of all classes mixed, or statistics of a
            batch mislead.
        labels: ``(B,)`` int64, each below the number of classes.
        on_images: called with the predictions made and all there are to make, after each batch.
    """
    images, labels = images[:PROBE_IMAGES], labels[:PROBE_IMAGES]
    right, nll = {}, {}
    for i, row in enumerate(PREPROCESSINGS.values()):

        def tell(done: int, before: int = i * len(labels)) -> None:
            if on_images is not None:
                on_images(before + done, len(PREPROCESSINGS) * len(labels))

        right[row.name], nll[row.name] = _score(Classifier(network, row.mean, row.std), images, labels, tell)
    ranked = sorted(PREPROCESSINGS, key=lambda name: (-int(right[name].sum()), nll[name]))
    close = [name for name in ranked if not _clearly_better(right[ranked[0]], right[name])]
    best = PREPROCESSINGS[min(close, key=lambda name: nll[name])]
    accuracies = {name: right[name].float().mean().item() for name in ranked}
    others = ", ".join(f"{name} {accuracies[name]:.1%}" for name in ranked if name != best.name)
    text = f"{best.name}: {accuracies[best.name]:.1%} of {len(labels)} clean images right ({others})"
    if len(close) > 1:
        likelihoods = ", ".join(f"{name} {nll[name]:.3f}" for name in sorted(close, key=lambda name: nll[name]))
        text += f"; a near tie, decided by negative log-likelihood ({likelihoods})"
    return Choice(best.name, best.mean, best.std, accuracies, text)


def doubt(network: nn.Module, asked: Preprocessing, known: Preprocessing | None, images: Images, labels: Tensor) -> str:
    """Why a normalisation that the user asked for may be the wrong one; empty where nothing speaks against it.

    Where nothing says what the network wants, its accuracy on one batch of clean images is compared with that of no
    normalisation at all, which is better where the network normalises its input itself.

    Args:
        network: as in `choose_preprocessing`.
        asked: what the user wants done.
        known: what the model brings along, `name` saying where it stands; None where nothing says it.
        images: ``(B, 3, H, W)`` in [0, 1]; the first 128 are used, classes mixed.
        labels: ``(B,)`` int64.
    """
    if known is not None and asked.mean and not known.mean:
        return f"the network normalises its input itself, and --normalize {asked.name} does it before: --normalize none"
    if known is not None:
        stated, wanted = known.mean + known.std, asked.mean + asked.std
        if len(stated) == len(wanted) and all(map(partial(math.isclose, rel_tol=1e-4), stated, wanted)):
            return ""
        return f"--normalize {asked.name} replaces the model's own normalisation ({known.name})"
    if not asked.mean:
        return ""
    images, labels = images[:_BATCH], labels[:_BATCH]
    right, _ = _score(Classifier(network, asked.mean, asked.std), images, labels)
    right_without, _ = _score(Classifier(network, (), ()), images, labels)
    if not _clearly_better(right_without, right):
        return ""
    return (
        f"--normalize {asked.name} has {right.float().mean():.1%} of {len(labels)} clean images right, none has "
        f"{right_without.float().mean():.1%}: does the network normalise its input itself? --normalize none"
    )


@torch.no_grad()
def _score(
    classifier: Classifier, images: Images, labels: Tensor, tell: Callable[[int], None] = lambda _: None
) -> tuple[Tensor, float]:
    """Which images are right, ``(B,)`` bool, and the mean negative log-likelihood; tells how many images are done."""
    parts = []
    for first in range(0, len(images), _BATCH):
        parts.append(classifier(images[first : first + _BATCH]))
        tell(min(first + _BATCH, len(images)))
    logits = torch.cat(parts).float().cpu()
    labels = labels.cpu()
    # argmax calls the first NaN the largest value: such an image is wrong whatever its label.
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    nll = nn.functional.cross_entropy(logits, labels).item()
    return right, nll if math.isfinite(nll) else math.inf


def _clearly_better(a: Tensor, b: Tensor) -> bool:
    """Whether a is right more often than b by two standard errors (McNemar: only images they differ on count)."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a - only_b > 2 * math.sqrt(only_a + only_b)
