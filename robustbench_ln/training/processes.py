"""The processes that share a training, as `torchrun` starts them: each owns K / world_size groups of every LocalNorm.

A process gets a contiguous part of each batch, which is that of its groups, so their statistics need nobody else. Its
rows of gamma and beta are its own; the gradients of all other parameters are averaged.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from robustbench_ln.errors import LnbenchError
from robustbench_ln.norms import SwitchableNorm2d, norm_layers
from robustbench_ln.norms.layer import LocalNorm

_T = TypeVar("_T")
_PATIENCE = timedelta(hours=2)  # for the others to read their data, or to write a checkpoint to a slow disk


@dataclass(frozen=True, slots=True)
class Processes:
    """A process among those that share a training.

    Attributes:
        rank: from 0; the first one writes and prints.
        size: how many there are.
        device: on which tensors are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.size == 1:
            return values.cpu()
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def rows(self, part: Tensor) -> Tensor:
        """The parts of all processes, one after the other along the first axis."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def averaging(self, network: nn.Module, own: set[str]) -> nn.Module:
        """`network`, such that backward() averages the gradients of all parameters but its `own`."""
        if self.size == 1:
            return network
        for layer in network.modules():
            if isinstance(layer, SwitchableNorm2d):
                layer.average = average
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, own)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network)

    def shared_statistics(self) -> AbstractContextManager[object]:
        """A block in which BatchNorm takes its statistics from the batches of all processes."""
        return nullcontext() if self.size == 1 else SharedBatchNorm()

    def share(self, n: int) -> slice:
        """Which of n things that `size` divides are this process's."""
        return slice(n // self.size * self.rank, n // self.size * (self.rank + 1))

    def together(self, work: Callable[[], _T]) -> _T:
        """Do something that may fail in one process; then it fails in all, and the first one says why."""
        if self.size == 1:
            return work()
        result, error = None, None
        try:
            result = work()
        except LnbenchError as caught:
            error = caught
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, error)
        said = next(filter(None, errors), None)
        if said is None:
            return result  # type: ignore[return-value]
        if self.first:
            raise said
        raise SystemExit(said.exit_code)


ALONE = Processes()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` has started, through gloo on the CPU and NCCL on GPUs.

    Args:
        device: where this process computes; ``cuda`` is the GPU of its local rank then.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes(device=device)
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        with warnings.catch_warnings():
            # Of kernels of 1 x 1 pixels, whose strides say nothing; one copy a step.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield Processes(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()


class _Average(torch.autograd.Function):
    """The mean over all processes; that of the gradients, going back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 - the signature is PyTorch's
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Average.forward(ctx, *gradients)


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, through which gradients flow to all of them."""
    averaged: Tensor = _Average.apply(values)
    return averaged


class SharedBatchNorm(TorchFunctionMode):
    """While it is active, BatchNorm in train() takes its statistics from the batches of all processes.

    Working on the function, as evaluation modes do, it serves subclasses of BatchNorm too, on CPUs and GPUs alike.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [axis for axis in range(input.dim()) if axis != 1]
    shape = (1, -1, *(1,) * (input.dim() - 2))
    x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    # Each process has as many values as the others, so that means of means are means.
    mean = average(x.mean(axes))
    centred = x - mean.view(shape)
    var = average(centred.square().mean(axes))
    if running_mean is not None and running_var is not None:
        n = input.numel() // input.shape[1] * dist.get_world_size()
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / max(n - 1, 1))).to(running_var.dtype), momentum)
    gain = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    y = centred * gain.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(input.dtype)


def group_parameters(network: nn.Module) -> set[str]:
    """Names of the parameters that each LocalNorm group has its own row of."""
    return {
        f"{name}.{kind}" if name else kind
        for name, layer in norm_layers(network).items()
        if isinstance(layer, LocalNorm)
        for kind, _ in layer.named_parameters(recurse=False)
    }


def own_part(network: nn.Module, among: Processes) -> nn.Module:
    """The network that a process trains: a copy with its own groups only; the network itself where it is alone."""
    if among.size == 1:
        return network
    part = copy.deepcopy(network)
    for layer in norm_layers(part).values():
        if isinstance(layer, LocalNorm):
            own = among.share(layer.n_groups)
            layer.n_groups //= among.size
            for kind, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, kind, nn.Parameter(parameter.detach()[own].clone()))
    return part


def whole_state(part: nn.Module, among: Processes) -> dict[str, Tensor]:
    """State dict of the network with all groups."""
    state = part.state_dict()
    if among.size == 1:
        return state
    own = group_parameters(part)
    return {key: among.rows(value) if key in own else value for key, value in state.items()}
