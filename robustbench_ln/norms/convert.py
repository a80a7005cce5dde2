"""Finding a network's norm layers, and turning a BatchNorm network into a LocalNorm one."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_ln.errors import UsageError
from robustbench_ln.norms.layer import LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d
from robustbench_ln.norms.switchable import SwitchableNorm2d

_LOCAL = {1: LocalNorm1d, 2: LocalNorm2d, 3: LocalNorm3d}
_COMPARATORS: dict[str, tuple[type[nn.Module], ...]] = {
    "groupnorm": (nn.GroupNorm,),
    "instancenorm": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
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


def norm_kind(network: nn.Module) -> str:
    """``bn``, ``ln``, ``groupnorm``, ``instancenorm``, ``layernorm``, ``switchnorm`` or ``none``; the first found.

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
        if any(isinstance(module, types) for module in network.modules()):
            return kind
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


def convert_to_localnorm(network: nn.Module, n_groups: int) -> nn.Module:
    """A copy of `network` in which every BatchNorm is a LocalNorm with `n_groups` groups.

    All groups start from the BatchNorm's gamma and beta; running statistics are dropped. Names stay, so the state
    dict keeps its keys, with ``weight`` and ``bias`` of shape (K, C).

    Args:
        network: any network; not modified.
        n_groups: K, at least 1.

    Raises:
        UsageError: the network has no BatchNorm layer, or `n_groups` is below 1.

    Source: Yin et al. 2021, section 4 (fine-tuning from pretrained BatchNorm networks).
    """
    if n_groups < 1:
        raise UsageError("LocalNorm needs at least one group", found=f"K = {n_groups}", hint="--groups 8")
    if norm_kind(network) != "bn":
        raise UsageError(
            "only a BatchNorm network can be turned into a LocalNorm network",
            found=f"norm layers of kind {norm_kind(network)!r}",
            hint="a network with BatchNorm or SyncBatchNorm layers",
        )
    return replace_norms(network, lambda _, layer: _localnorm_like(layer, n_groups))


def replace_norms(network: nn.Module, make: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """A copy of `network` with ``make(name, layer)`` in the place of every BatchNorm and LocalNorm layer."""
    converted = copy.deepcopy(network)
    for name, layer in norm_layers(converted).items():
        if not name:
            return make(name, layer)
        parent, _, child = name.rpartition(".")
        setattr(converted.get_submodule(parent), child, make(name, layer))
    return converted


def _localnorm_like(layer: nn.Module, n_groups: int) -> nn.Module:
    dimensions = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}
    spatial = next((d for kind, d in dimensions.items() if isinstance(layer, kind)), 2)
    # FrozenBatchNorm2d holds the same names as buffers, so the attributes are looked up, not typed.
    gamma: Tensor | None = getattr(layer, "weight", None)
    beta: Tensor | None = getattr(layer, "bias", None)
    eps = float(getattr(layer, "eps", 1e-5))
    local = _LOCAL[spatial](_features(layer), n_groups, eps=eps, affine=gamma is not None)
    local.train(layer.training)
    for parameter, source in ((local.weight, gamma), (local.bias, beta)):
        if parameter is not None and source is not None:
            # Through .data: the new parameters are leaves that want gradients.
            parameter.data = source.detach().expand_as(parameter).clone()
    if type(layer) in (*dimensions, nn.BatchNorm2d, nn.SyncBatchNorm) or is_frozen_batchnorm(layer):
        return local
    return _with_the_rest(layer, local)


def _features(layer: nn.Module) -> int:
    # FrozenBatchNorm2d has no num_features.
    features: int = getattr(layer, "num_features", 0) or len(layer.get_buffer("running_mean"))
    return features


def _with_the_rest(layer: nn.Module, local: LocalNorm) -> nn.Module:
    """LocalNorm followed by what a BatchNorm subclass does besides normalising (timm's BatchNormAct2d: drop, act)."""
    rest = dict(layer.named_children())
    if not rest:
        raise UsageError(
            "a BatchNorm subclass with a forward pass of its own cannot be turned into LocalNorm",
            found=type(layer).__name__,
            hint="build the network with plain BatchNorm layers",
        )
    # Children are added to the LocalNorm itself, so that the keys `weight` and `bias` keep their place.
    return LocalNormAct(local, rest)


class LocalNormAct(LocalNorm2d):
    """LocalNorm followed by other modules, in order; the counterpart of timm's BatchNormAct2d."""

    def __init__(self, local: LocalNorm, rest: dict[str, nn.Module]) -> None:
        super().__init__(local.num_features, local.n_groups, local.eps, local.affine)
        self.weight, self.bias = local.weight, local.bias
        self._rest = tuple(rest)
        for name, module in rest.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then apply the other modules."""
        x = super().forward(x)
        for name in self._rest:
            x = self.get_submodule(name)(x)
        return x
