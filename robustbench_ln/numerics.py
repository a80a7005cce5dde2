"""What makes float32 arithmetic the same on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter

import torch
from torch import Tensor

# Multiplications with 10 bits of mantissa (TF32, bfloat16), which a program may have asked for, change predictions and
# pixels. cuDNN's own choice of kernel may differ from run to run.
_SETTINGS: tuple[tuple[str, str, object], ...] = (
    ("cuda.matmul", "fp32_precision", "ieee"),
    ("cudnn.conv", "fp32_precision", "ieee"),
    ("mkldnn.matmul", "fp32_precision", "ieee"),
    ("mkldnn.conv", "fp32_precision", "ieee"),
    ("cudnn", "deterministic", True),
    ("cudnn", "benchmark", False),
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 as float32 in the block, by deterministic kernels; afterwards the settings are as before."""
    with ExitStack() as undo:
        for backend, name, value in _SETTINGS:
            owner = attrgetter(backend)(torch.backends)
            before = getattr(owner, name)
            if before != value:
                undo.callback(setattr, owner, name, before)
                setattr(owner, name, value)
        yield


def divide_(values: Tensor, by: float) -> Tensor:
    """Divide in place; by a tensor, since CUDA multiplies by the reciprocal of a Python number, which rounds twice."""
    return values.div_(torch.full((), by, dtype=values.dtype, device=values.device))
