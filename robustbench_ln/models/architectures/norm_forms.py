"""Which norm layers a state dict has where an architecture has BatchNorm.

Architectures are written down once, with BatchNorm. Networks of the same keys whose norm layers were replaced one for
one are told from it by the shapes of those layers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""A state dict without its values. BatchNorm's `num_batches_tracked` is left out: old files lack it."""


@dataclass(frozen=True, slots=True)
class NormForm:
    """What stands in the place of BatchNorm.

    Attributes:
        kind: ``bn`` (as the architecture has it), ``ln`` (LocalNorm), ``layernorm`` over (C, H, W), ``switchnorm``,
            ``instancenorm`` without parameters, or ``affine``: a weight and a bias of length C and no running
            statistics, which GroupNorm, InstanceNorm and LayerNorm over (C, H, W) with shared weights all have.
        n_groups: K of LocalNorm.
        batch: whether Switchable Norm has the statistics of the batch among its own.
    """

    kind: str
    n_groups: int | None = None
    batch: bool = True


BATCHNORM = NormForm("bn")


def norm_form(expected: Shapes, found: Shapes) -> NormForm | None:
    """The one form that all norm layers of `found` have; None where they differ in form, or other keys differ.

    Args:
        expected: of the architecture, with BatchNorm.
        found: of the state dict.
    """
    forms, plain = _read(expected, found)
    return forms.pop() if len(forms) == 1 and plain == expected else None


def as_batchnorm(expected: Shapes, found: Shapes) -> Shapes:
    """`found` with the norm layers of `expected` where it has others in their place: what is left is what differs."""
    return _read(expected, found)[1]


def _read(expected: Shapes, found: Shapes) -> tuple[set[NormForm], Shapes]:
    layers = [key.removesuffix("running_mean") for key in expected if key.endswith("running_mean")]
    if not layers or expected == found:
        return {BATCHNORM}, found
    of_layers = {layer + name for layer in layers for name in _NAMES}
    if found == {key: shape for key, shape in expected.items() if key not in of_layers}:
        return {NormForm("instancenorm")}, expected
    plain = dict(found)
    forms = set()
    for layer in layers:
        held = {name: plain.pop(layer + name) for name in _NAMES if layer + name in plain}
        usual = {name: expected[layer + name] for name in _NAMES if layer + name in expected}
        form = _form(held, usual)
        if form is None:
            plain |= {layer + name: shape for name, shape in held.items()}
        else:
            forms.add(form)
            plain |= {layer + name: shape for name, shape in usual.items()}
    return forms, plain


_NAMES = ("weight", "bias", "running_mean", "running_var", "mean_weight", "var_weight")


def _form(held: Shapes, usual: Shapes) -> NormForm | None:
    """The form of one layer with these shapes, where a BatchNorm has the usual ones."""
    if held == usual:
        return BATCHNORM
    features = usual["running_mean"]
    weight = held.get("weight", ())
    if held.keys() == {"weight", "bias"} and held["bias"] == weight:
        if weight == features:
            return NormForm("affine")
        if len(weight) == 2 and weight[1:] == features:
            return NormForm("ln", weight[0])
        if len(weight) == 3 and weight[:1] == features:
            return NormForm("layernorm")
    for batch in (True, False):
        if held == _switchable(features[0], batch=batch):
            return NormForm("switchnorm", batch=batch)
    return None


def _switchable(features: int, *, batch: bool) -> Shapes:
    wide, mixed = (1, features, 1, 1), (3 if batch else 2,)
    shapes: dict[str, tuple[int, ...]] = {"weight": wide, "bias": wide, "mean_weight": mixed, "var_weight": mixed}
    running = {"running_mean": (1, features, 1), "running_var": (1, features, 1)}
    return shapes | running if batch else shapes
