"""What a row of the architecture table is: how to build a network, and how to know one by its keys and shapes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustbench_ln.models.architectures.norm_forms import BATCHNORM, NormForm, Shapes, norm_form

_COUNTER = "num_batches_tracked"


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes in a state dict, in its order, without `num_batches_tracked`."""
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(_COUNTER)}


def count(shapes: Shapes, pattern: str) -> int:
    """How many keys there are of a pattern such as ``layer1.{}.conv1.weight``, counted from 0 without a gap."""
    n = 0
    while pattern.format(n) in shapes:
        n += 1
    return n


def rows(shapes: Shapes, key: str, *, axis: int = 0, default: int) -> int:
    """Length of one axis of a tensor; the default where there is no such tensor or axis."""
    shape = shapes.get(key, ())
    return shape[axis] if axis < len(shape) else default


@dataclass(frozen=True, slots=True)
class Match:
    """An architecture whose keys and shapes equal those of a state dict, its norm layers aside.

    Attributes:
        architecture: the row of the table.
        num_classes: rows of the output layer.
        hints: what else `build` has to be called with.
        norm: what the state dict has in place of BatchNorm.
    """

    architecture: Architecture
    num_classes: int
    hints: Mapping[str, Any] = field(default_factory=dict)
    norm: NormForm = BATCHNORM

    @property
    def name(self) -> str:
        """What `--arch` takes, sizes included: ``wrn-28-10``."""
        return self.architecture.name.format(**self.hints)

    def shapes(self) -> Shapes:
        """Keys and shapes of the network that :meth:`build` returns."""
        shapes, of_classes = _shapes(self.architecture, tuple(sorted(self.hints.items())))
        rows = {key: tuple(self.num_classes if n == _CLASSES else n for n in shapes[key]) for key in of_classes}
        return {**shapes, **rows}

    def build(self) -> nn.Module:
        """The network on the CPU, its weights allocated but not set: quick, and no random number is drawn.

        Every tensor that is not set is in its state dict, so that strict loading sets all of them.
        """
        network = _skeleton(self.architecture, self.num_classes, self.hints)
        if _unset(network):
            with torch.random.fork_rng(devices=[]):
                return self.architecture.build(self.num_classes, **self.hints)
        # Tensors that have memory, such as tables of indices, keep their values.
        network._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)  # type: ignore[no-untyped-call]
        return network


def _no_hints(shapes: Shapes) -> Mapping[str, Any]:  # noqa: ARG001
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network, or a family of networks, that is known by name and recognised by the keys and shapes of a state dict.

    Attributes:
        name: what `--arch` takes; sizes that are read from shapes stand in braces: ``wrn-{depth}-{width}``.
        description: what it is, in a few words.
        build: ``build(num_classes, **hints)``; the network as a random initialisation, with BatchNorm if it has any.
        head: name of the output layer; its weight has one row a class.
        telltale: a key that its family has and others lack, so that most candidates cost one look-up.
        hints: reads from shapes what `build` needs besides the number of classes; a usual size where they do not say.
        most_classes: a file of more classes is another network of the same keys and shapes.
    """

    name: str
    description: str
    build: Callable[..., nn.Module]
    head: str
    telltale: str
    hints: Callable[[Shapes], Mapping[str, Any]] = _no_hints
    most_classes: int = sys.maxsize

    def sized(self, name: str) -> Architecture | None:
        """The member of this family that `name` names: ``wrn-40-2``; None where it names none."""
        parts = re.split(r"\{(\w+)\}", self.name)
        number = "(?P<{}>[1-9][0-9]{{0,3}})"
        pattern = "".join(number.format(part) if i % 2 else re.escape(part) for i, part in enumerate(parts))
        found = re.fullmatch(pattern, name)
        if found is None or len(parts) == 1:
            return None
        sizes = {size: int(value) for size, value in found.groupdict().items()}
        member = replace(
            self,
            name=name,
            build=lambda num_classes, **hints: self.build(num_classes, **{**hints, **sizes}),
            hints=lambda shapes: {**self.hints(shapes), **sizes},
        )
        # Not every depth is one: there is no Wide ResNet of 29 layers.
        return member if sizes.items() <= self.hints(member.guess({}).shapes()).items() else None

    def guess(self, shapes: Shapes, num_classes: int = 10) -> Match:
        """How this architecture would have to be built to come nearest to `shapes`.

        Args:
            shapes: of a state dict.
            num_classes: where the output layer is not in `shapes`.
        """
        classes = rows(shapes, f"{self.head}.weight", default=num_classes)
        return Match(self, classes, self.hints(shapes))

    def recognise(self, shapes: Shapes) -> Match | None:
        """How to build the network whose keys and shapes are `shapes`; None where this one is not it.

        Norm layers may have been replaced, one for one (see `NormForm`).
        """
        if self.telltale not in shapes or f"{self.head}.weight" not in shapes:
            return None
        return self.fit(shapes)

    def fit(self, shapes: Shapes) -> Match | None:
        """As :meth:`recognise`, without a look at the telltale."""
        match = self.guess(shapes)
        form = None if match.num_classes > self.most_classes else norm_form(match.shapes(), shapes)
        return None if form is None else replace(match, norm=form)


# What sets values and leaves shapes: on the meta device it does nothing, and takes most of the time of building.
_INITIALISERS = frozenset(
    getattr(Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_")
)


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
        if func in _INITIALISERS and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def _unset(network: nn.Module) -> bool:
    """Whether there are tensors without memory that no state dict sets."""
    held = network.state_dict().keys()
    named = [*network.named_parameters(), *network.named_buffers()]
    return any(tensor.is_meta and name not in held for name, tensor in named)


def _skeleton(architecture: Architecture, num_classes: int, hints: Mapping[str, Any]) -> nn.Module:
    # What little is still drawn (initial values of real tensors) must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        try:
            with _OnMeta():
                return architecture.build(num_classes, **hints)
        except RuntimeError:  # a constructor that runs a part of the network, as timm's hybrids do to learn its size
            return architecture.build(num_classes, **hints)


# A length that no other axis of any network has: where it stands, the number of classes goes.
_CLASSES = 9973


@lru_cache(maxsize=1024)
def _shapes(architecture: Architecture, hints: tuple[tuple[str, Any], ...]) -> tuple[Shapes, tuple[str, ...]]:
    """Shapes for `_CLASSES` classes, and the keys of those that depend on their number: one building serves all."""
    shapes = shapes_of(_skeleton(architecture, _CLASSES, dict(hints)).state_dict())
    return shapes, tuple(key for key, shape in shapes.items() if _CLASSES in shape)
