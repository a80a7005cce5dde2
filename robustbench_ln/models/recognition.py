"""From the keys and shapes of a state dict to an architecture and its norm layers, or to the reason why none fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from robustbench_ln.errors import InputError
from robustbench_ln.models.architectures import ARCHITECTURES, Match, NormForm, Shapes, as_batchnorm, timm_zoo
from robustbench_ln.norms import SwitchableNorm2d, convert_to_localnorm, norm_layers, replace_norms

_GROUPS = 32  # what the GroupNorm paper and every library take where nothing is said
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AFFINE_KINDS = ("groupnorm", "instancenorm", "layernorm")
"""Norm layers that a state dict cannot tell apart; metadata may name the one."""


def fitting(shapes: Shapes) -> list[Match]:
    """Every architecture whose keys and shapes equal the given ones, norm layers aside; the simplest first.

    timm's are looked at where no row of the table fits.

    Raises:
        ResourceError: one of timm's fits, and timm is not installed.
    """
    found = [match for row in ARCHITECTURES.values() if (match := row.recognise(shapes))]
    return found or timm_zoo.fitting(shapes)


def with_norms(
    network: nn.Module, form: NormForm, shapes: Shapes, metadata: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """`network` with the norm layers that a state dict has in place of BatchNorm.

    Args:
        network: with BatchNorm; not modified.
        form: what the state dict has.
        shapes: of the state dict.
        metadata: of the file; `norm` and `norm_groups` say what shapes do not.

    Returns: the network, and what had to be assumed.
    """
    if form.kind == "bn":
        return network, ()
    if form.kind == "ln":
        assert form.n_groups is not None, "LocalNorm's shapes say K"
        return convert_to_localnorm(network, form.n_groups), ()
    kind, warnings = form.kind, tuple[str, ...]()
    if kind == "affine":
        kind = metadata.get("norm", "")
        if kind not in AFFINE_KINDS:
            kind = "groupnorm"
            warnings = (_assumption(network, metadata.get("norm_groups")),)
    groups = 1 if kind == "layernorm" else metadata.get("norm_groups", _GROUPS)

    def make(name: str, layer: nn.Module) -> nn.Module:
        if type(layer) not in _PLAIN:
            raise InputError(
                f"{name} is a BatchNorm that does more than normalise; no other norm layer is known in its place",
                found=type(layer).__name__,
                hint="--arch package.module:factory, a network that has the norm layers of the file",
            )
        features = len(layer.get_buffer("running_mean"))
        if form.kind == "layernorm":
            return nn.LayerNorm(shapes[f"{name}.weight"])
        if kind == "switchnorm":
            return SwitchableNorm2d(features, batch=form.batch)
        if kind == "instancenorm":
            return nn.InstanceNorm2d(features, affine=form.kind == "affine")
        return nn.GroupNorm(math.gcd(groups, features), features)

    return replace_norms(network, make).train(network.training), warnings


def _assumption(network: nn.Module, groups: int | None) -> str:
    said = f"{groups or _GROUPS} groups" + ("" if groups else " (as many as divide both 32 and the channels)")
    return (
        f"{len(norm_layers(network))} norm layers have a weight and a bias and no running statistics, which GroupNorm, "
        f"InstanceNorm and LayerNorm share; taken is GroupNorm with {said}; metadata 'norm' and 'norm_groups' decide"
    )


def nearest(shapes: Shapes) -> tuple[Match, int] | None:
    """The architecture that `shapes` resembles most, and the number of keys that agree in both.

    The measure is the share, in all keys of both, of keys in common; half of it for those of different shapes. Less
    than a quarter is no resemblance, unless `shapes` is a part of the network: then None.
    """
    best: tuple[float, Match, int] | None = None
    rows = [row for row in ARCHITECTURES.values() if row.telltale in shapes]
    for row in rows or [row for row in ARCHITECTURES.values() if f"{row.head}.weight" in shapes]:
        match = row.guess(shapes)
        expected = match.shapes()
        found = as_batchnorm(expected, shapes)
        same_key = len(expected.keys() & found.keys())
        agree = sum(expected.get(key) == shape for key, shape in found.items())
        share = (same_key + agree) / 2 / len(expected.keys() | found.keys())
        if (share >= 0.25 or agree == len(found)) and (best is None or share > best[0]):
            best = share, match, agree
    return best and best[1:]


def differences(expected: Shapes, found: Shapes, limit: int = 5) -> str:
    """Where `found` departs from `expected`, norm layers of another kind aside; the first `limit` keys in words."""
    listed = list(_differences(expected, as_batchnorm(expected, found)))
    text = "; ".join(listed[:limit])
    return f"{len(listed)} keys differ, first {text}" if len(listed) > limit else text


def _differences(expected: Shapes, found: Shapes) -> Iterator[str]:
    for key, shape in expected.items():
        if key not in found:
            yield f"missing {key}"
        elif found[key] != shape:
            yield f"{key} is {found[key]}, expected {shape}"
    for key in found:
        if key not in expected:
            yield f"unexpected {key}"
