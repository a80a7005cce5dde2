"""Switchable Normalization (Luo et al., ICLR 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustbench_ln.errors import UsageError


class SwitchableNorm2d(nn.Module):
    """Mean and variance are learned mixtures of those of InstanceNorm, LayerNorm and BatchNorm.

    Args:
        num_features: C.
        eps: added to the variance, inside the square root.
        momentum: how much of the running statistics stays at each step of training.
        batch: whether BatchNorm's statistics are in the mixture; without them there are no running statistics.

    Keys, shapes and the numbers that come out are those of the authors' SwitchNorm2d
    (switchablenorms/Switchable-Normalization), whose variance over an image's channel is the unbiased one.
    """

    running_mean: Tensor
    running_var: Tensor
    average: Callable[[Tensor], Tensor] = staticmethod(lambda values: values)
    """What makes statistics of this process's images those of the batch, where processes share one."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.9, batch: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.batch = num_features, eps, momentum, batch
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.mean_weight = nn.Parameter(torch.ones(2 + batch))
        self.var_weight = nn.Parameter(torch.ones(2 + batch))
        if batch:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1))
            self.register_buffer("running_var", torch.zeros(1, num_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, H, W)``; returns the same shape."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise UsageError(
                "SwitchableNorm2d normalises images", found=str(tuple(x.shape)), hint=f"(B, {self.num_features}, H, W)"
            )
        pixels = x.flatten(2)
        mean = pixels.mean(2, keepdim=True)
        # One pixel has no unbiased variance; the authors' code divides 0 by 0 there.
        var = pixels.var(2, correction=min(1, pixels.shape[2] - 1), keepdim=True)
        square = var + mean**2
        layer_mean = mean.mean(1, keepdim=True)
        means = [mean, layer_mean]
        variances = [var, square.mean(1, keepdim=True) - layer_mean**2]
        if self.batch:
            for kind, statistic in zip((means, variances), self._batch_statistics(mean, square), strict=True):
                kind.append(statistic)
        mixed_mean = _mixed(self.mean_weight, means)
        mixed_var = _mixed(self.var_weight, variances)
        return ((pixels - mixed_mean) / (mixed_var + self.eps).sqrt()).view_as(x) * self.weight + self.bias

    def _batch_statistics(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean, self.running_var
        batch_mean = self.average(mean.mean(0, keepdim=True))
        batch_var = self.average(square.mean(0, keepdim=True)) - batch_mean**2
        with torch.no_grad():
            self.running_mean.lerp_(batch_mean, 1 - self.momentum)
            self.running_var.lerp_(batch_var, 1 - self.momentum)
        return batch_mean, batch_var

    def extra_repr(self) -> str:
        """Its arguments, for ``repr``."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, batch={self.batch}"


def _mixed(weights: Tensor, statistics: list[Tensor]) -> Tensor:
    shares = weights.softmax(0)
    return sum((share * statistic for share, statistic in zip(shares, statistics, strict=True)), shares.new_zeros(()))
