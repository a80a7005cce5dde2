"""The pieces that the networks for 32x32 images are put together from.

Names of modules make the keys of a state dict, and public implementations of one network differ in little else. So a
network here is nested `nn.Sequential`s under the names of an implementation, and a family is one function for all of
its key layouts. Modules without parameters (ReLU, pooling) may have any name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Modules = dict[str, nn.Module]
"""Modules by name, in the order in which they are applied."""


def named(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    """The modules one after the other, under their names."""
    return nn.Sequential(OrderedDict(modules))


def he_initialised(network: nn.Module) -> nn.Module:
    """`network` with the weights of He et al. (2015), which deep networks need to start training."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return network


def stack(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, blocks: int, stride: int
) -> nn.Sequential:
    """A stage: ``block(inputs, outputs, stride)`` and then ``blocks - 1`` times ``block(outputs, outputs, 1)``."""
    return nn.Sequential(*(block(outputs if i else inputs, outputs, 1 if i else stride) for i in range(max(blocks, 1))))


class Residual(nn.Module):
    """The sum of a branch and a shortcut.

    Args:
        branch: what is applied to the input.
        shortcut: what is applied beside it; empty for the input itself.
        shared: how many modules of the branch come before the shortcut too, where it is not empty (pre-activation).
        relu: whether ReLU follows the sum.
    """

    def __init__(self, branch: Modules, shortcut: Modules, *, shared: int = 0, relu: bool = False) -> None:
        super().__init__()
        for name, module in (branch | shortcut).items():
            self.add_module(name, module)
        names = tuple(branch)
        self._shared, self._branch, self._shortcut = names[:shared], names[shared:], tuple(shortcut)
        self._relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', H', W')``."""
        y = self._apply_all(self._shared, x)
        kept = self._apply_all(self._shortcut, y) if self._shortcut else x
        total = self._apply_all(self._branch, y) + kept
        return F.relu(total) if self._relu else total

    def _apply_all(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class Dense(nn.Module):
    """The input and what a branch makes of it, side by side as channels.

    Args:
        branch: what is applied to the input.
        input_first: whether the input's channels come before the branch's.
    """

    def __init__(self, branch: Modules, *, input_first: bool = True) -> None:
        super().__init__()
        for name, module in branch.items():
            self.add_module(name, module)
        self._input_first = input_first

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C + growth, H, W)``."""
        y = x
        for module in self.children():
            y = module(y)
        return torch.cat((x, y) if self._input_first else (y, x), 1)


class Pool(nn.Module):
    """Global average pooling: ``(B, C, H, W)`` to ``(B, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each channel."""
        # Not mean(): the originals pool with a kernel of the feature map's size, and so do the last bits.
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, for networks that take images in [0, 1]; not a part of the state dict."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self._mean, self._std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to the same shape."""
        return (x - x.new_tensor(self._mean).view(-1, 1, 1)) / x.new_tensor(self._std).view(-1, 1, 1)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """A convolution whose output is as large as its input where the stride is 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
