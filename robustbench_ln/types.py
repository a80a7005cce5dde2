"""The few records that travel between rooms. Nothing here computes; torch is not imported at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Images: TypeAlias = "Tensor"
"""``(B, C, H, W)`` float32, RGB, values in [0, 1]. Every image outside a model has this form."""

Kind = Literal["clean", "noise", "corruption"]
RANGES = {
    "clip": "values outside [0, 1] become 0 or 1",
    "rescale": "per channel, the noisy data set's range is mapped to the clean one's, as in the released code",
    "none": "values stay as they are",
}
N_BINS = 15  # equal-width confidence bins of the expected calibration error


@dataclass(frozen=True, slots=True, order=True)
class Condition:
    """What was done to the images; the unit of seeding, resuming and plotting.

    Attributes:
        name: ``clean``, a noise (``agn``) or a corruption (``glass_blur``).
        level: sigma of a noise, severity 1 to 5 of a corruption, 0 for clean.
        suite: whose constants a corruption has (``cifar10-c``); empty for clean and noise.
        range: what happens to noisy values outside [0, 1]: ``clip``, ``rescale`` or ``none``.
        repeat: which redraw of the random numbers, from 0.
        jpeg_parity: whether the corrupted image went through JPEG of quality 85, as the files of ImageNet-C did.
    """

    name: str = "clean"
    level: float = 0.0
    suite: str = ""
    range: str = "clip"
    repeat: int = 0
    jpeg_parity: bool = False

    @property
    def kind(self) -> Kind:
        """``clean``, ``noise`` or ``corruption``."""
        if self.name == "clean":
            return "clean"
        return "corruption" if self.suite else "noise"

    def to_dict(self) -> dict[str, Any]:
        """The condition as it stands in ``results.json``."""
        return {
            "kind": self.kind,
            "name": self.name,
            "level": self.level,
            "range": self.range,
            "suite": self.suite or None,
            "repeat": self.repeat,
            "jpeg_parity": self.jpeg_parity,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Condition:
        """The inverse of :meth:`to_dict`; ``kind`` is derived and ignored."""
        return cls(
            value["name"],
            float(value["level"]),
            value["suite"] or "",
            value["range"],
            value["repeat"],
            value.get("jpeg_parity", False),
        )

    def __str__(self) -> str:
        if self.kind == "clean":
            return "clean"
        parts = [f"{self.name} {self.level:g}"]
        if self.range != "clip":
            parts.append(self.range)
        if self.repeat:
            parts.append(f"repeat {self.repeat}")
        if self.jpeg_parity:
            parts.append("jpeg 85")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made the images of a folder in a published layout. Published sets do not say; ``lnbench corrupt`` does.

    Attributes:
        pixels: ``published``, or ``regenerated`` by lnbench.
        suite: whose constants regenerated images have.
        jpeg: whether regenerated images went through JPEG of quality 85.
        frost_sha256: digest of the textures of regenerated frost; empty where there is none.
    """

    pixels: Literal["published", "regenerated"] = "published"
    suite: str = ""
    jpeg: bool = False
    frost_sha256: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as a run records it.

    Attributes:
        id: short name and the first digits of a digest over everything that can change its numbers.
        source: what the user passed to ``--model``.
        sha256: digest of the file, or of the weights where there is no file.
        arch: architecture name.
        norm: kind of the norm layers: ``bn``, ``ln``, ``layernorm``, ``groupnorm``, ``instancenorm``, ``none``.
        n_groups: K, the number of LocalNorm computation groups; None for other networks.
        group_size: N/K, images a group had in training; None where unknown.
        mean: per-channel mean subtracted from images in [0, 1]; empty when the network does it itself.
        std: per-channel standard deviation divided by.
        preprocessing: where mean and std come from, for a reader.
        num_classes: number of logits.
    """

    id: str
    source: str
    sha256: str
    arch: str
    norm: str
    n_groups: int | None
    group_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: str
    num_classes: int


@dataclass(frozen=True, slots=True)
class DataInfo:
    """A data set as a run records it.

    Attributes:
        id: short name (``demo``, ``imagefolder-test``).
        source: what the user passed to ``--data``.
        sha256: digest of pixels (or files) and labels.
        n: number of images.
        classes: number of classes in the data.
        pixels: ``regenerated`` when lnbench degrades the images, ``published`` for files of a published set.
        frost: ``procedural`` or ``original`` where frost was used, else None.
        frost_sha256: digest of the frost textures; None where none were used.
        image_size: height and width at evaluation.
        geometry: how images were brought to that size.
        clean: what the user passed to ``--clean``; None where published images have no clean ones beside them, and
            where lnbench degrades the images itself.
    """

    id: str
    source: str
    sha256: str
    n: int
    classes: int
    pixels: str = "regenerated"
    frost: str | None = None
    frost_sha256: str | None = None
    image_size: tuple[int, int] = (0, 0)
    geometry: str = "as stored"
    clean: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted over the scored images of one (model, mode, condition); everything here adds.

    Attributes:
        n: images scored.
        correct: images whose predicted class is the label.
        top5: images whose label is among the five most probable classes; None with five classes or fewer.
        nll_sum: sum of the negative natural log of the label's probability.
        brier_sum: sum over images of the squared error summed over classes.
        bin_n: images in each of 15 equal-width bins of the top probability.
        bin_correct: images predicted right in each bin.
        bin_confidence: sum of the top probability in each bin.
    """

    n: int
    correct: int
    top5: int | None
    nll_sum: float
    brier_sum: float
    bin_n: tuple[int, ...] = (0,) * N_BINS
    bin_correct: tuple[int, ...] = (0,) * N_BINS
    bin_confidence: tuple[float, ...] = (0.0,) * N_BINS

    def __add__(self, other: Counts) -> Counts:
        """What was counted over the images of both."""

        def total(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None or theirs is None:
                return None
            return tuple(map(add, mine, theirs)) if isinstance(mine, tuple) else mine + theirs

        return Counts(**{name: total(name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One counted cell: a model under a mode and a condition.

    Attributes:
        model: id of the model.
        mode: evaluation mode, as the user named it.
        condition: what was done to the images.
        counts: what was counted.
        fingerprint: digest of the condition's images 0 to 15, so that two machines can be compared.
        images: M, how many images shared statistics; None where none did.
        seconds: wall time of this row's forward passes and its share of degrading the images.
        status: ``ok`` or ``failed``.
        extra: anything else worth keeping (the ranges of ``rescale``, warnings of the row).
        anytime: of a row that stopped early, the interval of the data set's accuracy that was narrow enough; None for
            a row of all images.
    """

    model: str
    mode: str
    condition: Condition
    counts: Counts
    fingerprint: str
    images: int | None
    seconds: float
    status: str = "ok"
    extra: dict[str, Any] = field(default_factory=dict)
    anytime: tuple[float, float] | None = None

    @property
    def accuracy(self) -> float:
        """Fraction of the scored images that were predicted right."""
        return self.counts.correct / self.counts.n
