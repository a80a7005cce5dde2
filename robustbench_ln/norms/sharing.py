"""What several passes over the same images need only once: the layers before the first norm layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from robustbench_ln.norms.convert import norm_layers

_HEAVY = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@contextmanager
def shared_prefix(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Run the convolutions and dense layers before the first norm layer once, for all passes made in the block.

    Args:
        network: takes the same images in every pass, and only its norm layers change between passes.

    Yields: a function to be called before every pass.
    """
    outputs: dict[nn.Module, Tensor] = {}
    recording = True
    due: set[nn.Module] = set()  # whose output is still to be reused in this pass

    def begin() -> None:
        due.update(outputs)

    def stop(*_: Any) -> None:
        nonlocal recording
        recording = False

    def sharing(layer: nn.Module) -> Callable[..., Tensor]:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if layer in due:
                due.remove(layer)
                return outputs[layer]
            output: Tensor = original(*args, **kwargs)
            if recording:
                # Of a layer that runs several times, the first run.
                outputs.setdefault(layer, output)
            return output

        return forward

    with ExitStack() as undo:
        for norm in norm_layers(network).values():
            undo.callback(norm.register_forward_pre_hook(stop).remove)
        for layer in network.modules():
            if isinstance(layer, _HEAVY) and "forward" not in layer.__dict__:
                # Straight into __dict__: Module.__setattr__ would look for parameters and submodules of that name.
                layer.__dict__["forward"] = sharing(layer)
                undo.callback(layer.__dict__.pop, "forward")
        yield begin
