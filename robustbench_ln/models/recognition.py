"""From the keys and shapes of a state dict to an architecture, or to the reason why none fits."""

from __future__ import annotations

from collections.abc import Iterator

from robustbench_ln.models.architectures import ARCHITECTURES, Match, Shapes


def as_batchnorm(shapes: Shapes) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """The same network with BatchNorm where `shapes` has LocalNorm, and K.

    A LocalNorm layer is what has a `weight` and a `bias` of one shape (K, C); no other layer does. As a BatchNorm it
    has vectors of length C and running statistics. So architectures need to be written down once, with BatchNorm.

    Returns: the shapes and K; K is None, and the shapes unchanged, where there is no LocalNorm, K is not unique,
        or there are BatchNorm layers besides.
    """
    layers = [
        key.removesuffix("weight")
        for key, shape in shapes.items()
        if key.endswith("weight") and len(shape) == 2 and shapes.get(f"{key.removesuffix('weight')}bias") == shape
    ]
    counts = {shapes[f"{layer}weight"][0] for layer in layers}
    if len(counts) != 1 or any(key.endswith("running_mean") for key in shapes):
        return dict(shapes), None
    plain = dict(shapes)
    for layer in layers:
        features = shapes[f"{layer}weight"][1:]
        plain |= {f"{layer}{name}": features for name in ("weight", "bias", "running_mean", "running_var")}
    return plain, counts.pop()


def fitting(shapes: Shapes) -> list[Match]:
    """Every architecture whose keys and shapes equal the given BatchNorm shapes, the simplest first."""
    return [match for row in ARCHITECTURES.values() if (match := row.recognise(shapes))]


def nearest(shapes: Shapes) -> tuple[Match, int] | None:
    """The architecture that `shapes` resembles most, and the number of keys that agree in both.

    The measure is the share, in all keys of both, of keys in common; half of it for those of different shapes. Less
    than a quarter is no resemblance, unless `shapes` is a part of the network: then None.
    """
    best: tuple[float, Match, int] | None = None
    for row in ARCHITECTURES.values():
        if row.telltale not in shapes and f"{row.head}.weight" not in shapes:
            continue
        match = row.guess(shapes)
        expected = match.shapes()
        same_key = len(expected.keys() & shapes.keys())
        agree = sum(expected.get(key) == shape for key, shape in shapes.items())
        share = (same_key + agree) / 2 / len(expected.keys() | shapes.keys())
        if (share >= 0.25 or agree == len(shapes)) and (best is None or share > best[0]):
            best = share, match, agree
    return best and best[1:]


def differences(expected: Shapes, found: Shapes, limit: int = 5) -> str:
    """Where `found` departs from `expected`, key by key; the first `limit` of them in words."""
    listed = list(_differences(expected, found))
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
