"""From the keys and shapes of a state dict to an architecture and its norm layers, or to the reason why none fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from robustbench_ln.models.architectures import ARCHITECTURES, Match, NormForm, Shapes, as_batchnorm, timm_zoo
from robustbench_ln.norms import NORMS, SwitchableNorm2d, convert_norms, norm_layers, replace_norms

AFFINE_KINDS = ("dynbn", "groupnorm", "instancenorm", "layernorm")
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
    match form.kind:
        case "bn":
            return network, ()
        case "affine":
            kind, groups = metadata.get("norm"), metadata.get("norm_groups")
            if kind in AFFINE_KINDS:
                return convert_norms(network, kind, groups=groups if NORMS[kind].groups else None), ()
            return convert_norms(network, "groupnorm", groups=groups), (_assumption(network, groups),)
        case "layernorm":
            return replace_norms(network, lambda name, _: nn.LayerNorm(shapes[f"{name}.weight"])), ()
        case "instancenorm":
            return replace_norms(network, lambda _, layer: nn.InstanceNorm2d(len(layer.get_buffer("running_mean")))), ()
        case "switchnorm" if not form.batch:
            return replace_norms(
                network, lambda _, layer: SwitchableNorm2d(len(layer.get_buffer("running_mean")), batch=False)
            ), ()
    return convert_norms(network, form.kind, groups=form.n_groups), ()


def _assumption(network: nn.Module, groups: int | None) -> str:
    usual = NORMS["groupnorm"].groups
    said = f"{groups or usual} groups" + ("" if groups else f" (as many as divide both {usual} and the channels)")
    return (
        f"{len(norm_layers(network))} norm layers have a weight and a bias and no running statistics, which GroupNorm, "
        f"InstanceNorm, LayerNorm and Dynamic BatchNorm share; taken is GroupNorm with {said}; metadata 'norm' and "
        "'norm_groups' decide"
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
