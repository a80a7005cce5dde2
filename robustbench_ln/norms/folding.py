"""BatchNorm with frozen statistics folded into the layer before it: the same function with fewer passes over memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

Network = TypeVar("Network", bound=nn.Module)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Of the largest logit: as far apart as float32 forward passes of other shapes are, and less than counts bear
# (LOGIT_TOLERANCE of `predict`).
_TOLERANCE = 1e-5


def fold_batchnorm(network: Network, images: Tensor) -> Network | None:
    """A copy of `network` whose BatchNorm layers are part of the convolution or dense layer before them.

    Which layer comes before which is seen in a forward pass, so any network will do. A subclass of a layer may do more
    than the layer and stays as it is, as do layers that run more than once.

    Args:
        network: in ``eval()``, its BatchNorm layers with running statistics; not modified.
        images: ``(B, …)``, what the network takes. The copy must give the same logits for them.

    Returns: None where there is nothing to fold, or where the copy's logits differ by more than 1e-5 of the largest:
        a convolution whose output is used elsewhere as well, or weights that float32 cannot multiply out.
    """
    expected, pairs = _watch(network, images)
    if not pairs:
        return None
    folded = copy.deepcopy(network)
    for before, norm in pairs:
        layer, batchnorm = folded.get_submodule(before), folded.get_submodule(norm)
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _put(folded, before, fuse(layer, batchnorm))
        _put(folded, norm, nn.Identity())
    # Convolutions on a CPU are faster so; their results come in the same format, whatever they are given.
    folded = folded.to(memory_format=torch.channels_last)
    found = folded(images)
    scale = expected.abs().amax().clamp(min=1.0)
    # `not … <=` refuses NaN too.
    return folded if (found - expected).abs().amax() <= _TOLERANCE * scale else None


def _watch(network: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """The network's output, and the names of layers whose output goes straight into a BatchNorm."""
    made: dict[int, tuple[str, Tensor]] = {}  # by identity; the tensor is held, or another could take its place
    pairs: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()

    def after(name: str, output: Tensor) -> None:
        runs[name] += 1
        made[id(output)] = (name, output)

    def before(name: str, batchnorm: nn.Module, given: Tensor) -> None:
        runs[name] += 1
        source, _ = made.get(id(given), ("", None))
        # A dense layer's BatchNorm sees (B, C); over (B, T, C) it would normalise tokens.
        fits = not isinstance(network.get_submodule(source), nn.Linear) or given.dim() == 2
        if source and fits and batchnorm.running_mean is not None:
            pairs.append((source, name))

    handles = []
    for name, module in network.named_modules():
        if type(module) in (*_CONVOLUTIONS, nn.Linear):
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
        elif type(module) in _NORMS:
            handles.append(
                module.register_forward_pre_hook(lambda module, given, name=name: before(name, module, given[0]))
            )
    try:
        output: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return output, [pair for pair in pairs if all(runs[name] == 1 for name in pair)]


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
