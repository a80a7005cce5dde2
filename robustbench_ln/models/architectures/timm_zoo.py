"""timm's classifiers, under timm's names with ``timm:`` before them.

There are over a thousand, so they are no rows of the table: an index beside this file holds fingerprints of them all.
It tells what a state dict is without importing timm, or building more than one network; models newer than the index are
reached by ``--arch timm:NAME`` only. To make it anew, with the newest timm installed::

    python -c "from robustbench_ln.models.architectures import timm_zoo; timm_zoo.write_index()"
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from robustbench_ln.errors import ResourceError, UsageError, unknown_name
from robustbench_ln.models.architectures.architecture import Architecture, Match
from robustbench_ln.models.architectures.norm_forms import Shapes

PREFIX = "timm:"
_INDEX = Path(__file__).with_name("timm_index.txt")


def architecture(name: str) -> Architecture:
    """One of timm's, by ``timm:NAME``.

    Raises:
        UsageError: an unknown name.
        ResourceError: timm is not installed.
    """
    timm = _timm(name)
    bare = name.removeprefix(PREFIX)
    if not timm.is_model(bare) or not _heads(bare):
        raise unknown_timm(bare, timm.list_models())
    return _row(bare, _heads(bare)[0])


def unknown_timm(name: str, known: list[str]) -> UsageError:
    """The error for a name that is none of timm's, or none of these."""
    return unknown_name("timm model", name, known, listing="timm.list_models() in Python")


def fitting(shapes: Shapes) -> list[Match]:
    """Those of timm's that have these keys and shapes, the shortest name first; norm layers may have been replaced.

    Raises:
        ResourceError: there are some, and timm is not installed.
    """
    matches = []
    for heads, names in _candidates(shapes):
        timm = _timm(PREFIX + names[0])
        rows = [_row(name, heads[0]) for name in names if timm.is_model(name)]
        # All names of an entry have the same keys and shapes, so one of them is built.
        match = rows[0].fit(shapes) if rows else None
        if match is not None:
            matches += [match, *(Match(row, match.num_classes, match.hints, match.norm) for row in rows[1:])]
    return sorted(matches, key=lambda match: (len(match.name), match.name))


def _timm(name: str) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise ResourceError(
            f"the architecture {name} needs timm",
            found="timm is not installed",
            hint="pip install 'robustbench-ln[timm]'",
        )
    import timm

    return timm


def _build(num_classes: int, *, name: str) -> nn.Module:
    network: nn.Module = _timm(PREFIX + name).create_model(name, pretrained=False, num_classes=num_classes)
    return network


def _row(name: str, head: str) -> Architecture:
    return Architecture(PREFIX + name, f"timm's {name}", partial(_build, name=name), head, f"{head}.weight")


def _heads(name: str) -> tuple[str, ...]:
    """The output layers of a timm model; two where it is distilled, none where it is no classifier."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    found = (cfg.classifier if cfg else None) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _fingerprint(shapes: Shapes, heads: tuple[str, ...]) -> str:
    """Of everything that depends neither on the number of classes nor on the kind of norm layers."""
    kept = [
        f"{key} {shape}"
        for key, shape in sorted(shapes.items())
        if len(shape) > 1
        and not key.startswith(tuple(f"{head}." for head in heads))
        and not key.endswith(("running_mean", "running_var"))
        # LocalNorm's weight and bias have two dimensions, Switchable Norm's four; no other layer's have one shape.
        and not _is_norm(shapes, key)
    ]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _is_norm(shapes: Shapes, key: str) -> bool:
    layer, _, name = key.rpartition(".")
    other = {"weight": "bias", "bias": "weight"}.get(name)
    return other is not None and shapes.get(f"{layer}.{other}") == shapes[key]


@cache
def _index() -> dict[tuple[tuple[str, ...], str], list[list[str]]]:
    """Names by output layers and fingerprint; names in one list have the very same keys and shapes."""
    index = defaultdict(list)
    for line in _INDEX.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            heads, print_, *names = line.split(" ")
            index[tuple(heads.split("+")), print_].append(names)
    return dict(index)


def _candidates(shapes: Shapes) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    for heads in sorted({heads for heads, _ in _index()}):
        if all(f"{head}.weight" in shapes for head in heads):
            for names in _index().get((heads, _fingerprint(shapes, heads)), []):
                yield heads, names


def _entries(names: Iterable[str]) -> Iterator[str]:
    """Lines of the index for these models."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        heads = _heads(name)
        if not heads:
            continue
        shapes = _row(name, heads[0]).guess({}, num_classes=11).shapes()
        if all(f"{head}.weight" in shapes for head in heads):
            whole = hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()
            groups["+".join(heads), _fingerprint(shapes, heads), whole].append(name)
    for (heads_, print_, _), same in sorted(groups.items(), key=lambda item: min(item[1])):
        yield " ".join((heads_, print_, *sorted(same, key=lambda name: (len(name), name))))


def write_index() -> None:
    """Write the index of every classifier of the installed timm; takes minutes."""
    timm = _timm("any")
    lines = [f"# timm {timm.__version__}: output layers, fingerprint, names", *_entries(timm.list_models())]
    _INDEX.write_text("\n".join(lines) + "\n", encoding="utf-8")
