"""Finding a network's norm layers, and turning a BatchNorm network into one of another normalisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_ln.errors import InputError, UsageError, unknown_name
from robustbench_ln.norms.layer import LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d
from robustbench_ln.norms.switchable import SwitchableNorm2d

_LOCAL = {1: LocalNorm1d, 2: LocalNorm2d, 3: LocalNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_COMPARATORS: dict[str, tuple[type[nn.Module], ...]] = {
    "groupnorm": (nn.GroupNorm,),
    "instancenorm": tuple(_INSTANCE.values()),
    "layernorm": (nn.LayerNorm,),
    "switchnorm": (SwitchableNorm2d,),
}


def is_frozen_batchnorm(module: nn.Module) -> bool:
    """Whether `module` is a FrozenBatchNorm2d: torchvision's or one of its copies in detection code bases."""
    return any(base.__name__ == "FrozenBatchNorm2d" for base in type(module).__mro__)


def is_batchnorm(module: nn.Module) -> bool:
    """Whether `module` is a BatchNorm of any dimension, SyncBatchNorm, FrozenBatchNorm2d, or a subclass of them."""
    # InstanceNorm shares BatchNorm's private base class in PyTorch, and is none.
    return (isinstance(module, _BatchNorm) and not isinstance(module, _COMPARATORS["instancenorm"])) or (
        is_frozen_batchnorm(module)
    )


def norm_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that evaluation modes act on, by their name in `network`: every BatchNorm and LocalNorm."""
    return {
        name: module
        for name, module in network.named_modules()
        if is_batchnorm(module) or isinstance(module, LocalNorm)
    }


def all_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Every layer of any normalisation in :data:`NORMS`, by its name in `network`."""
    others = tuple(kind for kinds in _COMPARATORS.values() for kind in kinds)
    local = norm_layers(network)
    return {name: layer for name, layer in network.named_modules() if name in local or isinstance(layer, others)}


def norm_kind(network: nn.Module) -> str:
    """``bn``, ``ln``, ``groupnorm``, ``instancenorm``, ``layernorm``, ``switchnorm`` or ``none``; the first found.

    GroupNorm with one group in every layer is LayerNorm over an image's channels and pixels, and called so.

    Raises:
        UsageError: BatchNorm and LocalNorm layers in one network, for which no evaluation mode is defined.
    """
    found = list(norm_layers(network).values())
    local = [layer for layer in found if isinstance(layer, LocalNorm)]
    if local and len(local) < len(found):
        raise UsageError(
            "the network mixes BatchNorm and LocalNorm layers",
            found=f"{len(found) - len(local)} BatchNorm and {len(local)} LocalNorm layers",
            hint="convert all of its BatchNorm layers",
        )
    if found:
        return "ln" if local else "bn"
    for kind, types in _COMPARATORS.items():
        layers = [module for module in network.modules() if isinstance(module, types)]
        if layers:
            return "layernorm" if all(getattr(layer, "num_groups", 0) == 1 for layer in layers) else kind
    return "none"


def n_groups(network: nn.Module) -> int | None:
    """K of a LocalNorm network, None for others.

    Raises:
        UsageError: its layers differ in K.
    """
    counts = {layer.n_groups for layer in norm_layers(network).values() if isinstance(layer, LocalNorm)}
    if len(counts) > 1:
        raise UsageError(
            "LocalNorm layers of one network must have one number of groups",
            found=f"K = {', '.join(map(str, sorted(counts)))}",
            hint="convert the network again with a single --groups",
        )
    return counts.pop() if counts else None


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation that can stand in BatchNorm's place.

    Attributes:
        description: what it is, in a few words.
        like: makes the layer that takes the place of a BatchNorm, with its gamma and beta, given a number of groups.
        groups: how many it has where nothing is said; None for one without groups.
    """

    description: str
    like: Callable[[nn.Module, int], nn.Module]
    groups: int | None = None


def convert_norms(network: nn.Module, to: str, *, groups: int | None = None) -> nn.Module:
    """A copy of `network` in which every BatchNorm is a layer of another normalisation.

    Gamma and beta are kept, in LocalNorm by each of the K groups; running statistics only where the normalisation
    has some. Names stay, so the state dict keeps its keys.

    Args:
        network: any network with BatchNorm layers (SyncBatchNorm, FrozenBatchNorm2d, subclasses); not modified.
        to: a name of :data:`NORMS`; ``bn`` gives an unchanged copy.
        groups: K of LocalNorm (8 when left out); groups of channels of GroupNorm (32; where they do not divide the
            channels, as many as divide both).

    Raises:
        UsageError: an unknown name, `groups` below 1, or for a normalisation that has none.
        InputError: the network has no BatchNorm layer, or one in whose place the normalisation cannot stand.

    Source: Yin et al. 2021, section 4 (fine-tuning from pretrained BatchNorm networks).
    """
    if to not in NORMS:
        raise unknown_name("normalisation", to, NORMS)
    norm = NORMS[to]
    if groups is not None and norm.groups is None:
        raise UsageError(f"{to} has no groups", found=f"{groups} groups", hint="--groups with ln or groupnorm only")
    if groups is not None and groups < 1:
        raise UsageError("a normalisation needs at least one group", found=f"{groups} groups", hint="--groups 8")
    kind = norm_kind(network)
    if kind != "bn":
        raise InputError(
            "only a BatchNorm network can be turned into one of another normalisation",
            found="no norm layers" if kind == "none" else f"norm layers of kind {kind}",
            hint="a network with BatchNorm or SyncBatchNorm layers",
        )
    number = groups or norm.groups or 1
    return replace_norms(network, lambda _, layer: norm.like(layer, number))


def convert_to_localnorm(network: nn.Module, n_groups: int) -> nn.Module:
    """A copy of `network` in which every BatchNorm is a LocalNorm with `n_groups` groups; see `convert_norms`.

    Args:
        network: any network; not modified.
        n_groups: K, at least 1.

    Raises:
        UsageError: `n_groups` is below 1.
        InputError: the network has no BatchNorm layer.
    """
    return convert_norms(network, "ln", groups=n_groups)


def replace_norms(network: nn.Module, make: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of `network` with ``make(name, layer)`` in the place of every BatchNorm and LocalNorm layer.

    What a BatchNorm subclass does after normalising (timm's BatchNormAct2d: drop, act) stays.

    Raises:
        InputError: a BatchNorm subclass with a forward pass of its own.
    """
    converted = copy.deepcopy(network)
    for name, layer in norm_layers(converted).items():
        made = make(name, layer)
        if type(made) is not type(layer):
            made = _followed_by_the_rest(layer, made.train(layer.training))
        if not name:
            return made
        parent, _, child = name.rpartition(".")
        setattr(converted.get_submodule(parent), child, made)
    return converted


_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _followed_by_the_rest(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """`norm`, followed by the modules that `layer` holds."""
    rest = dict(layer.named_children())
    # Children are added to the layer itself, so that the keys `weight` and `bias` keep their place.
    for name, module in rest.items():
        norm.add_module(name, module)
    if rest:
        norm.register_forward_hook(_children_in_turn)
    elif is_batchnorm(layer) and not is_frozen_batchnorm(layer) and type(layer).forward not in _PLAIN_FORWARDS:
        raise InputError(
            "a BatchNorm subclass with a forward pass of its own cannot be replaced",
            found=type(layer).__name__,
            hint="build the network with plain BatchNorm layers",
        )
    return norm


def _children_in_turn(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for module in layer.children():
        output = module(output)
    return output


def _dynamic(layer: nn.Module, _: int) -> nn.Module:
    """A BatchNorm without running statistics, which uses those of the batch in eval() too."""
    if is_frozen_batchnorm(layer):
        return _adopt(nn.BatchNorm2d(_features(layer), _eps(layer), track_running_stats=False), layer)
    layer.track_running_stats = False  # type: ignore[assignment]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        layer.register_buffer(name, None)
    return layer


def _local(layer: nn.Module, n_groups: int) -> nn.Module:
    kind = _LOCAL[_spatial(layer)]
    return _adopt(kind(_features(layer), n_groups, _eps(layer), affine=_is_affine(layer)), layer)


def _group(layer: nn.Module, groups: int) -> nn.Module:
    features = _features(layer)
    return _adopt(nn.GroupNorm(math.gcd(groups, features), features, _eps(layer), affine=_is_affine(layer)), layer)


def _instance(layer: nn.Module, _: int) -> nn.Module:
    kind = _INSTANCE[_spatial(layer)]
    return _adopt(kind(_features(layer), _eps(layer), affine=_is_affine(layer)), layer)


def _switchable(layer: nn.Module, _: int) -> nn.Module:
    if _spatial(layer) != 2:
        raise InputError(
            "Switchable Norm normalises images only", found=type(layer).__name__, hint="a network of BatchNorm2d layers"
        )
    return _adopt(SwitchableNorm2d(_features(layer), _eps(layer)), layer)


NORMS: dict[str, Norm] = {
    "bn": Norm("BatchNorm", lambda layer, _: layer),
    "dynbn": Norm("BatchNorm without running statistics: always those of the batch", _dynamic),
    "ln": Norm("LocalNorm: K groups of a batch, each with its own statistics, gamma and beta", _local, groups=8),
    "layernorm": Norm("LayerNorm over an image's channels and pixels: GroupNorm with one group", _group),
    "instancenorm": Norm("InstanceNorm: each channel of an image alone", _instance),
    "groupnorm": Norm("GroupNorm: groups of an image's channels", _group, groups=32),
    "switchnorm": Norm("Switchable Norm: a learned mixture of InstanceNorm, LayerNorm and BatchNorm", _switchable),
}
"""What a BatchNorm network can be turned into, by the name that ``--to`` and ``--norm`` take."""


def _adopt(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """`norm` with the gamma, beta and running statistics of the BatchNorm `layer`, where it has them, in its shapes."""
    # FrozenBatchNorm2d holds gamma and beta as buffers, so the attributes are looked up, not typed.
    for name in ("weight", "bias", "running_mean", "running_var"):
        own: Tensor | None = getattr(norm, name, None)
        source: Tensor | None = getattr(layer, name, None)
        if own is not None and source is not None:
            # (C,) against (C,), (K, C) or (1, C, 1, 1). Through .data: parameters stay leaves that want gradients.
            source = source.detach().view(-1, *(1,) * (own.dim() - 2))
            own.data = source.expand_as(own).clone()
    return norm


def _spatial(layer: nn.Module) -> int:
    return next((d for d, kind in {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}.items() if isinstance(layer, kind)), 2)


def _features(layer: nn.Module) -> int:
    # FrozenBatchNorm2d has no num_features.
    features: int = getattr(layer, "num_features", 0) or len(layer.get_buffer("running_mean"))
    return features


def _eps(layer: nn.Module) -> float:
    return float(getattr(layer, "eps", 1e-5))


def _is_affine(layer: nn.Module) -> bool:
    return getattr(layer, "weight", None) is not None
