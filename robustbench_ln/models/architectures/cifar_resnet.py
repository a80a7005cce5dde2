"""ResNets for 32x32 images (He et al. 2016, section 4.2), in the key layout of akamaster/pytorch_resnet_cifar10."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.models.architectures.architecture import Architecture


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, channels, ceil(H/2), ceil(W/2))``."""
        side = (self.channels - x.shape[1]) // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != channels and option == "A":
            self.shortcut = PadShortcut(channels)
        elif in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, channels, H/stride, W/stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of 6 n + 2 layers: a stem and three stages of n blocks with 16, 32 and 64 channels.

    Args:
        num_classes: number of logits.
        depth: 20, 32, 44, 56, 110, ...
        option: what the shortcuts between stages are: ``A`` without parameters, ``B`` a 1x1 convolution.
    """

    def __init__(self, num_classes: int, depth: int, option: str) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, option)
        self.layer2 = _stage(16, 32, blocks, 2, option)
        self.layer3 = _stage(32, 64, blocks, 2, option)
        self.linear = nn.Linear(64, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # Not mean(): the original pools with a kernel of the feature map's size, and so do its last bits.
        x = F.avg_pool2d(x, x.shape[-2:]).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int, option: str) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, option)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, option) for _ in range(blocks - 1)))


ARCHITECTURES = tuple(
    Architecture(
        f"resnet{depth}{suffix}",
        f"ResNet-{depth} for 32x32 images, shortcut option {option}",
        partial(CifarResNet, depth=depth, option=option),
        head="linear",
        telltale="layer3.0.conv1.weight",
    )
    for option, suffix in (("A", ""), ("B", "-b"))
    for depth in (20, 32, 44, 56, 110)
)
