"""What a row of the architecture table is: how to build a network, and how to know one by its keys and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""A state dict without its values. BatchNorm's `num_batches_tracked` is left out: old files lack it."""

_COUNTER = "num_batches_tracked"


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes in a state dict, in its order, without `num_batches_tracked`."""
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_COUNTER)}


@dataclass(frozen=True, slots=True)
class Match:
    """An architecture whose keys and shapes equal those of a state dict.

    Attributes:
        architecture: the row of the table.
        num_classes: rows of the output layer.
        hints: what else `build` has to be called with.
    """

    architecture: Architecture
    num_classes: int
    hints: Mapping[str, Any] = field(default_factory=dict)

    def shapes(self) -> Shapes:
        """Keys and shapes of the network that :meth:`build` returns."""
        return _shapes(self.architecture, self.num_classes, tuple(sorted(self.hints.items())))

    def build(self) -> nn.Module:
        """The network on the CPU, its weights allocated but not set: quick, and no random number is drawn.

        Every tensor of it is in its state dict, so that strict loading sets all of them.
        """
        return _skeleton(self.architecture, self.num_classes, self.hints).to_empty(device="cpu")


def _no_hints(shapes: Shapes) -> Mapping[str, Any]:  # noqa: ARG001
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that is known by name, and recognised by the keys and shapes of its state dict.

    Attributes:
        name: what `--arch` takes.
        description: what it is, in a few words.
        build: ``build(num_classes, **hints)``; the network as a random initialisation, with BatchNorm if it has any.
        head: name of the output layer; its weight has one row a class.
        telltale: a key that its family has and others lack, so that most candidates cost one look-up.
        hints: reads from shapes what `build` needs besides the number of classes.
    """

    name: str
    description: str
    build: Callable[..., nn.Module]
    head: str
    telltale: str
    hints: Callable[[Shapes], Mapping[str, Any]] = _no_hints

    def guess(self, shapes: Shapes, num_classes: int = 10) -> Match:
        """How this architecture would have to be built to come nearest to `shapes`.

        Args:
            shapes: of a BatchNorm state dict.
            num_classes: where the output layer is not in `shapes`.
        """
        head = shapes.get(f"{self.head}.weight")
        return Match(self, head[0] if head else num_classes, self.hints(shapes))

    def recognise(self, shapes: Shapes) -> Match | None:
        """How to build the network whose keys and shapes are exactly `shapes`; None where this one is not it."""
        if self.telltale not in shapes or f"{self.head}.weight" not in shapes:
            return None
        match = self.guess(shapes)
        return match if match.shapes() == shapes else None


class _OnMeta(TorchFunctionMode):
    """Give parameters a shape but no memory.

    Only ``torch.empty``, which layers make parameters with, goes to the meta device; under ``torch.device("meta")``
    constructors that compute with small tensors (RegNet's widths) fail.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _skeleton(architecture: Architecture, num_classes: int, hints: Mapping[str, Any]) -> nn.Module:
    # What little is still drawn (initial values of real tensors) must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]), _OnMeta():
        return architecture.build(num_classes, **hints)


@lru_cache(maxsize=512)
def _shapes(architecture: Architecture, num_classes: int, hints: tuple[tuple[str, Any], ...]) -> Shapes:
    return shapes_of(_skeleton(architecture, num_classes, dict(hints)).state_dict())
