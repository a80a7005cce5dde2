"""Optimisers, learning rates and the scaling of float16 losses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from robustbench_ln.norms.convert import all_norms
from robustbench_ln.training.settings import Settings

# Where the steps of the released cifar10/resnet.py lie in its 200 epochs, and its rates there relative to the first.
_STEPS = ((50 / 200, 0.1), (122 / 200, 0.03))


def make_optimizer(network: nn.Module, settings: Settings) -> Optimizer:
    """The optimiser of `settings` over the parameters of `network`; its learning rate is set before each step."""
    groups = parameter_groups(network, settings.weight_decay)
    rate, momentum = settings.learning_rate, settings.momentum
    if settings.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    kind = Adam if settings.optimizer == "adam" else AdamW
    return kind(groups, lr=rate, betas=(momentum, 0.999))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay for kernels and matrices only; norms may have parameters of that look, and are told by their layer."""
    of_norms = {id(p) for layer in all_norms(network).values() for p in layer.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decayed if parameter.dim() > 1 and id(parameter) not in of_norms else rest).append(parameter)
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def learning_rate(settings: Settings, epochs: float) -> float:
    """The rate after so many epochs, a fraction between steps."""
    rate = settings.learning_rate
    if epochs < settings.warmup:
        return rate * epochs / settings.warmup
    if settings.schedule == "cosine":
        progress = (epochs - settings.warmup) / max(settings.epochs - settings.warmup, 1e-12)
        return rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
    if settings.schedule == "step":
        return rate * next((factor for at, factor in reversed(_STEPS) if epochs >= at * settings.epochs), 1.0)
    return rate


class LossScale:
    """Keeps the gradients of float16 in range: doubled after 2,000 good steps, halved where one overflows.

    As torch's GradScaler, but with a state of two numbers, and one decision for all processes.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale, self.good = (65536.0, 0) if enabled else (1.0, 0)

    def update(self, finite: bool) -> None:
        """Take note of whether a step's gradients were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == 2000:
            self.scale, self.good = self.scale * 2, 0


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and factor != 1:
        torch._foreach_mul_(gradients, factor)


def all_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """``()`` bool on the gradients' device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).isfinite().all()
