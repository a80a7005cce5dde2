"""The evaluation modes: how normalisation statistics are found at test time. A new mode is a new row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_ln.errors import InputError, UsageError, unknown_name
from robustbench_ln.norms.convert import n_groups as groups_of
from robustbench_ln.norms.convert import norm_kind, norm_layers

DEFAULT_BATCH = 128  # M of the BatchNorm batch modes: the paper's CIFAR-10 batch


@dataclass(frozen=True, slots=True)
class EvalMode:
    """How normalisation statistics are found at test time (Yin et al. 2021, section 3).

    Attributes:
        name: as the user writes it, ``:M`` included where given.
        description: what it does, in a line.
        statistics: ``native`` (the module's own eval()), ``running``, each ``image`` alone, or a ``batch``.
        norm: networks that can run it: ``bn``, ``ln`` or ``any``.
        groups: affine rows: each group its ``own`` images, one ``random`` row an image, or ``all`` rows in turn with
            a majority vote.
        images: M, how many images share statistics; None for the network's own.
        rot90: whether an image's three rotations join its statistics.
        source_weight: N of ``bn-adapt``; None where a mode has no such weight.
    """

    name: str
    description: str
    statistics: Literal["native", "running", "image", "batch"]
    norm: Literal["bn", "ln", "any"]
    groups: Literal["own", "random", "all"] = "own"
    images: int | None = None
    rot90: bool = False
    source_weight: int | None = None

    @property
    def unsized(self) -> str:
        """The name without ``:M``."""
        name = self.name.split(":")[0]
        return name if self.source_weight is None else f"{name}:{self.source_weight}"


EVAL_MODES: dict[str, EvalMode] = {
    mode.name: mode
    for mode in (
        EvalMode("native", "the module's own eval()", "native", "any"),
        EvalMode("bn", "BatchNorm: frozen running statistics", "running", "bn"),
        EvalMode("dynbn-batch", "Dynamic BatchNorm: statistics of M test images", "batch", "bn"),
        EvalMode("dynbn-single", "Dynamic BatchNorm: statistics of each image alone", "image", "bn"),
        EvalMode("dynbn-single+rot90", "as dynbn-single, with the image's three rotations", "image", "bn", rot90=True),
        # N = 16 is only the default of `--modes all`: elsewhere the user says N.
        EvalMode(
            "bn-adapt",
            "bn-adapt:N[:M], running statistics weigh N images, M test images join",
            "batch",
            "bn",
            source_weight=16,
        ),
        EvalMode("ln-single", "each image alone, one randomly selected group", "image", "ln", "random"),
        EvalMode(
            "ln-single+rot90", "as ln-single, with the image's three rotations", "image", "ln", "random", rot90=True
        ),
        EvalMode("ln-single-vote", "each image alone, majority over every group", "image", "ln", "all"),
        EvalMode(
            "ln-single-vote+rot90",
            "as ln-single-vote, with the image's three rotations",
            "image",
            "ln",
            "all",
            rot90=True,
        ),
        EvalMode("ln-batch", "K groups of M different images, each with its own parameters", "batch", "ln"),
        EvalMode("ln-voting", "statistics of M images, majority over every group", "batch", "ln", "all"),
    )
}
_DEFAULTS = {"bn": ("bn", "dynbn-batch"), "ln": ("ln-single", "ln-batch", "ln-voting")}


def parse_mode(text: str, *, group_size: int | None = None) -> EvalMode:
    """The mode that `text` names.

    Args:
        text: a name of :data:`EVAL_MODES`, with ``:M`` on the batch modes, ``bn-adapt:N`` or ``bn-adapt:N:M``.
        group_size: M for batch modes that name none (`--group-size`).

    Raises:
        UsageError: unknown name, or numbers the mode does not take.
    """
    name, *numbers = text.strip().split(":")
    if name not in EVAL_MODES:
        raise unknown_name("mode", name, EVAL_MODES)
    mode = EVAL_MODES[name]
    adapt = mode.source_weight is not None
    takes = (1 if adapt else 0, (2 if adapt else 1) if mode.statistics == "batch" else 0)
    if not takes[0] <= len(numbers) <= takes[1]:
        shape = f"{name}:N or {name}:N:M" if adapt else f"{name} or {name}:M" if takes[1] else name
        raise UsageError(f"mode {text!r} has the wrong numbers", found=f"{len(numbers)} after the name", hint=shape)
    values = [_count(number, text, least=0 if adapt and i == 0 else 1) for i, number in enumerate(numbers)]
    if adapt:
        mode = replace(mode, source_weight=values.pop(0))
    images = values[0] if values else group_size if mode.statistics == "batch" else None
    label = ":".join([name, *([str(mode.source_weight)] if adapt else []), *([str(images)] if images else [])])
    return replace(mode, name=label, images=images)


_MOST = 1_000_000_000  # images: more than any data set has, and safe in floating point


def _count(number: str, text: str, *, least: int) -> int:
    if not (number.isascii() and number.isdigit() and len(number) <= 10) or not least <= int(number) <= _MOST:
        hint = f"a whole number from {least} to {_MOST}"
        raise UsageError(f"mode {text!r} has a bad number", found=repr(number), hint=hint)
    return int(number)


@dataclass(frozen=True, slots=True)
class NetworkNorms:
    """What of a network decides which modes it can run.

    Attributes:
        kind: as :func:`~robustbench_ln.norms.norm_kind`.
        n_groups: K; 1 for networks without LocalNorm.
        group_size: images a group had in training; None where unknown.
        running: whether every BatchNorm has running statistics.
    """

    kind: str
    n_groups: int
    group_size: int | None
    running: bool

    @classmethod
    def of(cls, network: nn.Module, group_size: int | None = None) -> NetworkNorms:
        """Read them off a network."""
        layers = norm_layers(network).values()
        running = all(layer.running_mean is not None for layer in layers if isinstance(layer, _BatchNorm))
        return cls(norm_kind(network), groups_of(network) or 1, group_size, running)

    @property
    def live(self) -> bool:
        """Whether the network's own eval() lets the images of a batch share statistics."""
        return self.kind == "ln" or (self.kind == "bn" and not self.running)

    @property
    def default_images(self) -> int:
        """M of a batch mode that names none."""
        if self.kind != "ln":
            return DEFAULT_BATCH
        # Where training's group size is not recorded: the paper's batch of 128, shared out.
        return self.group_size or max(DEFAULT_BATCH // self.n_groups, 1)

    def refusal(self, mode: EvalMode) -> str:
        """Why this network cannot run `mode`; empty when it can."""
        if mode.norm not in ("any", self.kind):
            wanted = {"bn": "BatchNorm", "ln": "LocalNorm"}[mode.norm]
            return f"it has no {wanted} layers"
        if not self.running and (mode.statistics == "running" or mode.source_weight):
            return "its BatchNorm layers keep no running statistics"
        return ""

    def default_modes(self) -> list[EvalMode]:
        """The modes evaluated when the user names none."""
        names = _DEFAULTS.get(self.kind, ("native",))
        modes = [EVAL_MODES[name] for name in names]
        return [mode for mode in modes if not self.refusal(mode)] or [EVAL_MODES["native"]]

    def runnable_modes(self) -> list[EvalMode]:
        """Every mode this network can run, those that repeat another's numbers included."""
        return [mode for mode in EVAL_MODES.values() if not self.refusal(mode)]

    def all_modes(self) -> list[EvalMode]:
        """Every mode this network can run, without exact duplicates."""
        runnable = {mode.name: mode for mode in self.runnable_modes()}
        if self.kind in ("bn", "ln"):
            # `native` repeats bn (frozen statistics), dynbn-batch (live ones) or ln-batch (full batches).
            del runnable["native"]
        if self.kind == "ln" and self.n_groups == 1:
            # With a single group there is nothing to vote about.
            runnable = {name: mode for name, mode in runnable.items() if mode.groups != "all"}
        return [replace(mode, name="bn-adapt:16") if mode.name == "bn-adapt" else mode for mode in runnable.values()]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A mode made concrete for one network and one data set: how images are cut into units.

    Attributes:
        mode: the mode.
        images: M used; None where no images share statistics.
        unit: images predicted together, the smallest forward pass that has a meaning (K·M for ``ln-batch``).
        n_groups: K.
        warning: why M is smaller than asked for; empty otherwise.
    """

    mode: EvalMode
    images: int | None
    unit: int
    n_groups: int
    warning: str = ""

    @property
    def passes(self) -> int:
        """Forward passes that an image takes part in, its rotations counted."""
        return (4 if self.mode.rot90 else 1) * (self.n_groups if self.mode.groups == "all" else 1)

    @property
    def identity(self) -> str:
        """What of the mode changes numbers, for keys: two names for the same thing have the same identity."""
        mode = self.mode
        return f"{mode.name.split(':')[0]}:{mode.source_weight if self.images else ''}:{self.images}:{self.unit}"


def schedule(mode: EvalMode, norms: NetworkNorms, n: int, image_size: tuple[int, int]) -> Schedule:
    """Cut a data set for `mode`.

    A data set smaller than one batch reduces M to what fits; no image is ever repeated inside a batch.

    Args:
        mode: one that the network can run.
        norms: of the network.
        n: number of images.
        image_size: their height and width.

    Raises:
        InputError: fewer than 2 images a group in ``ln-batch``, or a +rot90 mode for images that are not square.
    """
    k = norms.n_groups
    if mode.rot90 and image_size[0] != image_size[1]:
        raise InputError(
            f"mode {mode.name} needs square images",
            found=f"{image_size[0]} x {image_size[1]} pixels",
            hint=f"--crop for square images, or {mode.name.removesuffix('+rot90')}",
        )
    if mode.statistics != "batch" and not (mode.statistics == "native" and norms.live):
        return Schedule(mode, None, 1, k)
    images = mode.images or norms.default_images
    per_unit = k if norms.kind == "ln" and mode.groups == "own" else 1
    fits = min(images, n // per_unit)
    if per_unit > 1 and fits < 2 and mode.statistics == "batch":
        raise InputError(
            f"mode {mode.name} needs 2 images or more a group",
            found=f"{n} images for K = {per_unit} groups" if images > 1 else "M = 1",
            hint=f"{2 * per_unit} images and M = 2 or more, or a mode with one image a group such as ln-single",
        )
    fits = max(fits, 1)
    warning = "" if fits == images else f"{mode.name}: M reduced from {images} to {fits}, the data set has {n} images"
    if fits == max(min(norms.default_images, n // per_unit), 1):
        # One name for one thing, however it was asked for: rows of another command must be found again.
        mode = replace(mode, name=mode.unsized)
    return Schedule(mode, fits, min(fits * per_unit, n), k, warning)


def choose_modes(requested: Iterable[str] | None, norms: NetworkNorms, *, group_size: int | None) -> list[EvalMode]:
    """The modes to evaluate on one network, those it cannot run included (see :meth:`NetworkNorms.refusal`).

    Args:
        requested: names, or ``all``; None for the network's defaults.
        norms: of the network.
        group_size: M for modes whose images share statistics and that name none.
    """
    if requested is None:
        modes = norms.default_modes()
    else:
        names = list(requested)
        modes = []
        for name in names:
            modes.extend(norms.all_modes() if name == "all" else [parse_mode(name, group_size=group_size)])
    sized = [
        replace(mode, name=mode.name if mode.statistics == "native" else f"{mode.name}:{group_size}", images=group_size)
        if group_size and mode.statistics in ("native", "batch") and mode.images is None
        else mode
        for mode in modes
    ]
    return list(dict.fromkeys(sized))
