"""Predicting under an evaluation mode: any checkpoint keeps its own `forward`, and its state always goes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.norms.convert import is_frozen_batchnorm, norm_layers
from robustbench_ln.norms.layer import Layout, LocalNorm, normalise
from robustbench_ln.norms.modes import Schedule
from robustbench_ln.norms.sharing import shared_prefix
from robustbench_ln.numerics import full_float32

_VIEWS = 4  # an image and its 90, 180 and 270 degree rotations


class _Redirect(TorchFunctionMode):
    """Answers every call of batch_norm with `normalise` under a layout, and counts them.

    Working on the function instead of replacing the module lets subclasses keep what else they do: timm's
    BatchNormAct2d drops and activates after the call.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout, self.calls = layout, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            self.calls += 1
            return self._functional(*args, **kwargs)
        if func is torch.batch_norm:
            self.calls += 1
            return self._native(*args, **kwargs)
        return func(*args, **kwargs)

    def _functional(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 - the signature is PyTorch's
        momentum: float = 0.1,  # noqa: ARG002
        eps: float = 1e-5,
    ) -> Tensor:
        with torch._C.DisableTorchFunction():
            return normalise(input, weight, bias, eps, self.layout, (running_mean, running_var))

    def _native(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,  # noqa: ARG002
    ) -> Tensor:
        return self._functional(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _under(layer: nn.Module, layout: Layout) -> Callable[..., Any]:
    """A forward pass for a BatchNorm `layer` that uses `layout`."""
    original = layer.forward
    if is_frozen_batchnorm(layer):
        # FrozenBatchNorm2d multiplies and adds by itself; there is no call to redirect.
        def frozen(x: Tensor) -> Tensor:
            running = (layer.running_mean, layer.running_var)
            return normalise(x, layer.weight, layer.bias, float(layer.eps), layout, running)  # type: ignore[arg-type]

        return frozen

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Redirect(layout) as redirect:
            result = original(*args, **kwargs)
        if not redirect.calls:
            raise UsageError(
                "a BatchNorm subclass of the network does its own arithmetic, so no mode but native can be applied",
                found=type(layer).__name__,
                hint="--modes native, or build the network with plain BatchNorm layers",
            )
        return result

    return forward


@contextmanager
def frozen_state(network: nn.Module) -> Iterator[None]:
    """Put `network` in eval(), without gradients and in full float32; afterwards everything is as it was."""
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode(), full_float32():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def using(network: nn.Module, layout: Layout) -> Iterator[None]:
    """Make every norm layer of `network` normalise by `layout`, then put back what was there.

    Args:
        network: any network with BatchNorm (and subclasses), SyncBatchNorm, FrozenBatchNorm2d or LocalNorm layers.
        layout: which images of a forward pass share statistics, and their affine rows.
    """
    with ExitStack() as undo:
        for layer in norm_layers(network).values():
            attribute, value = (
                ("layout", layout) if isinstance(layer, LocalNorm) else ("forward", _under(layer, layout))
            )
            undo.callback(_restore, layer, attribute, layer.__dict__.get(attribute, _ABSENT))
            # Straight into __dict__: Module.__setattr__ would look for parameters and submodules of that name.
            layer.__dict__[attribute] = value
        yield


_ABSENT = object()


def _restore(layer: nn.Module, attribute: str, value: object) -> None:
    if value is _ABSENT:
        layer.__dict__.pop(attribute, None)
    else:
        layer.__dict__[attribute] = value


@dataclass(frozen=True, slots=True)
class Chance:
    """The random choices of a forward pass's images, drawn by the caller from the run's seed.

    Attributes:
        group: ``(B,)`` float in [0, 1): which group an image is evaluated with in ``ln-single``.
        tie: ``(B,)`` float in [0, 1): which of the classes with equally many votes wins.
    """

    group: Tensor
    tie: Tensor


def predict_logits(
    network: Callable[[Tensor], Tensor], modules: nn.Module, images: Tensor, schedule: Schedule, group: Tensor
) -> Tensor:
    """Logits of every pass over whole units of images.

    Args:
        network: what is called, usually a classifier around `modules`.
        modules: where the norm layers are.
        images: ``(B, C, H, W)`` in [0, 1], B a multiple of the schedule's unit.
        schedule: the mode, made concrete.
        group: ``(B,)`` float in [0, 1), the random draws of ``ln-single``.

    Returns: ``(P, B, classes)`` float64; P is K in voting modes, 1 otherwise.

    Raises:
        InputError: a +rot90 mode and images that are not square.
    """
    mode, k, b = schedule.mode, schedule.n_groups, len(images)
    if mode.statistics == "native":
        # Units go one by one where a network's own eval() lets batch mates meet.
        parts = torch.split(images, schedule.unit) if schedule.unit > 1 else (images,)
        return torch.cat([_as_logits(network(part)) for part in parts])[None]
    if mode.statistics == "running":
        layouts = [Layout(None)]
    elif mode.statistics == "image":
        size = _VIEWS if mode.rot90 else 1
        if mode.groups == "random":
            layouts = [Layout(size, tuple((group * k).long().clamp(max=k - 1).tolist()))]
        else:
            layouts = [Layout(size, (row,) * b) for row in (range(k) if mode.groups == "all" else (0,))]
    else:
        size = schedule.images or 1
        sets, source = b // size, mode.source_weight or 0
        if mode.groups == "all":
            layouts = [Layout(size, (row,) * sets, source) for row in range(k)]
        else:
            layouts = [Layout(size, tuple(i % k for i in range(sets)), source)]
    if mode.rot90:
        images = with_rotations(images)
    passes = []
    with shared_prefix(modules) if len(layouts) > 1 else nullcontext(lambda: None) as begin_pass:
        for layout in layouts:
            begin_pass()
            with using(modules, replace(layout, images=len(images))):
                logits = _as_logits(network(images))
            passes.append(logits[::_VIEWS] if mode.rot90 else logits)
    return torch.stack(passes)


def _as_logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            "the network does not return logits",
            found=f"{found} instead of a tensor (images, classes)",
            hint="wrap it so that forward returns one tensor of logits",
        )
    return output.double()


def with_rotations(images: Tensor) -> Tensor:
    """``(B, C, H, H)`` to ``(4B, C, H, H)``: each image followed by its 90, 180, 270 degree clockwise rotations.

    Raises:
        InputError: images that are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise InputError(
            "+rot90 needs square images",
            found=f"{images.shape[-2]}x{images.shape[-1]}",
            hint="--crop to a square, or a mode without +rot90",
        )
    views = [torch.rot90(images, -turns, (-2, -1)) for turns in range(_VIEWS)]
    return torch.stack(views, dim=1).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a mode says of B images.

    Attributes:
        predicted: ``(B,)`` int64 class; -1 where no pass gave finite logits.
        log_probabilities: ``(B, classes)`` float64, log of the mean of the passes' softmax vectors.
        fragile: ``(B,)`` bool: a difference in the last bits of the logits could change a count.
    """

    predicted: Tensor
    log_probabilities: Tensor
    fragile: Tensor


# fp32 logits of ResNet-20 differ by up to 3e-6 of the largest between batch shapes and thread counts; ten times that
# leaves room for deeper networks.
LOGIT_TOLERANCE = 3e-5
CONFIDENCE_TOLERANCE = 1e-5


def decide(logits: Tensor, tie: Tensor, labels: Tensor, *, n_bins: int) -> Prediction:
    """Turn the passes' logits into one prediction an image.

    Args:
        logits: ``(P, B, classes)`` float64.
        tie: ``(B,)`` float in [0, 1): the random draws that break ties between classes with equally many votes.
        labels: ``(B,)`` true classes; they only tell whether a near tie at the fifth place matters for top-5.
        n_bins: equal-width confidence bins that will be counted.

    A pass with a logit that is not finite has no vote and a uniform probability vector.
    """
    passes, _, classes = logits.shape
    finite = logits.isfinite().all(-1)
    logits = torch.where(finite[..., None], logits, 0.0)
    votes = torch.zeros_like(logits[0])
    for one, counts in zip(logits.argmax(-1), finite, strict=True):
        votes.scatter_add_(1, one[:, None], counts[:, None].to(votes.dtype))
    tied = votes == votes.amax(-1, keepdim=True)
    # Of n tied classes in ascending order, the one at floor(tie * n).
    place = (tie.to(votes.device).double() * tied.sum(-1)).long()
    predicted = (tied.cumsum(-1) == place[:, None] + 1).logical_and(tied).int().argmax(-1)
    predicted = torch.where(finite.any(0), predicted, -1)
    log_probabilities = logits.log_softmax(-1).logsumexp(0).sub(torch.tensor(passes, dtype=torch.float64).log().item())

    scale = logits.abs().amax(-1).clamp(min=1.0) * LOGIT_TOLERANCE
    top = logits.topk(min(2, classes), -1).values
    fragile = (
        ((top[..., 0] - top[..., -1]) < scale).any(0) if classes > 1 else torch.zeros_like(predicted, dtype=torch.bool)
    )
    if classes > 5:
        ranked = log_probabilities.topk(6, -1).values
        own = log_probabilities.gather(1, labels.to(logits.device)[:, None])
        # The label is fifth or sixth, and the two are close.
        near = (own - ranked[:, 4:]).abs() < scale.amax(0)[:, None]
        fragile |= near.all(-1)
    confidence = log_probabilities.amax(-1).exp() * n_bins
    edge = confidence.round()
    at_edge = ((confidence - edge).abs() < CONFIDENCE_TOLERANCE * n_bins) & (edge < n_bins)
    return Prediction(predicted, log_probabilities, fragile | at_edge)
