"""ResNets for 32x32 images.

Three stages of 16, 32 and 64 channels (He et al. 2016, section 4.2) in the key layouts of akamaster's
pytorch_resnet_cifar10 and of chenyaofo's pytorch-cifar-models, which bearpaw's pytorch-classification shares; four
stages of 64 to 512 channels, the ImageNet network with a 3x3 stem, in those of kuangliu's pytorch-cifar (RobustBench
and many others) and of weiaicunzai's pytorch-cifar100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.models.architectures.architecture import Architecture, count
from robustbench_ln.models.architectures.blocks import Modules, Pool, Residual, conv, he_initialised, named, stack
from robustbench_ln.models.architectures.norm_forms import Shapes


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, channels, ceil(H/2), ceil(W/2))``."""
        side = (self.channels - x.shape[1]) // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an implementation calls the parts of a ResNet; an empty `branch` leaves its modules in the block itself."""

    shortcut: str
    head: str
    stage: str = "layer{}"
    first_stage: int = 1
    branch: str = ""
    stem: str = ""

    def telltale(self, stage: int) -> str:
        """The first convolution of a stage, counted from 1."""
        name = self.stage.format(stage - 1 + self.first_stage)
        return f"{name}.0.{self.branch}.0.weight" if self.branch else f"{name}.0.conv1.weight"


_AKAMASTER = _KUANGLIU = _Layout("shortcut", "linear")
_CHENYAOFO = _Layout("downsample", "fc")
_WEIAICUNZAI = _Layout("shortcut", "fc", "conv{}_x", 2, "residual_function", "conv1")


def _block(inputs: int, outputs: int, stride: int, *, layout: _Layout, option: str, bottleneck: bool) -> nn.Module:
    middle = outputs // 4 if bottleneck else outputs
    kernels = (1, 3, 1) if bottleneck else (3, 3)
    branch: Modules = {}
    for i, kernel in enumerate(kernels, 1):
        last = i == len(kernels)
        branch[f"conv{i}"] = conv(
            inputs if i == 1 else middle,
            outputs if last else middle,
            kernel,
            stride if i == len(kernels) - 1 else 1,  # the 3x3 of a bottleneck, the first of a basic block
        )
        branch[f"bn{i}"] = nn.BatchNorm2d(outputs if last else middle)
        if not last:
            branch[f"relu{i}"] = nn.ReLU()
    if layout.branch:
        branch = {layout.branch: nn.Sequential(*branch.values())}
    shortcut: Modules = {}
    if stride != 1 or inputs != outputs:
        projection = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        shortcut[layout.shortcut] = PadShortcut(outputs) if option == "A" else projection
    return Residual(branch, shortcut, relu=True)


def _resnet(
    num_classes: int,
    *,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    layout: _Layout,
    option: str = "B",
    bottleneck: bool = False,
) -> nn.Module:
    channels = widths[0]
    stem: Modules = {"conv1": conv(3, channels, 3), "bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    parts: Modules = {layout.stem: nn.Sequential(*stem.values())} if layout.stem else stem
    block = partial(_block, layout=layout, option=option, bottleneck=bottleneck)
    for i, (width, number) in enumerate(zip(widths, blocks, strict=True)):
        outputs = width * 4 if bottleneck else width
        parts[layout.stage.format(i + layout.first_stage)] = stack(block, channels, outputs, number, 2 if i else 1)
        channels = outputs
    parts |= {"pool": Pool(), layout.head: nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


_SMALL = (16, 32, 64)
_WIDE = (64, 128, 256, 512)

# Blocks in each stage (He et al. 2016, table 1), and whether they are bottlenecks.
BLOCKS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def _bottlenecks(num_classes: int, *, depth: int = 164) -> nn.Module:
    blocks = ((depth - 2) // 9,) * 3
    return _resnet(num_classes, widths=_SMALL, blocks=blocks, layout=_CHENYAOFO, bottleneck=True)


def _bottleneck_depth(shapes: Shapes) -> Mapping[str, Any]:
    return {"depth": 9 * (count(shapes, "layer1.{}.conv3.weight") or 18) + 2}


ARCHITECTURES = (
    *(
        Architecture(
            f"resnet{depth}{suffix}",
            f"ResNet-{depth} for 32x32 images, shortcut option {option}{keys}",
            partial(_resnet, widths=_SMALL, blocks=((depth - 2) // 6,) * 3, layout=layout, option=option),
            head=layout.head,
            telltale=layout.telltale(3),
        )
        for option, suffix, layout, keys in (
            ("A", "", _AKAMASTER, ""),
            ("B", "-b", _AKAMASTER, ""),
            ("B", "-chenyaofo", _CHENYAOFO, ", keys of chenyaofo/pytorch-cifar-models"),
        )
        for depth in (20, 32, 44, 56, 110)
    ),
    Architecture(
        "resnet{depth}-bottleneck-bearpaw",
        "ResNet of bottleneck blocks for 32x32 images, keys of bearpaw/pytorch-classification",
        _bottlenecks,
        head="fc",
        telltale="layer3.0.conv3.weight",
        hints=_bottleneck_depth,
    ),
    *(
        Architecture(
            f"cifar_resnet{depth}{suffix}",
            f"ResNet-{depth} with a 3x3 stem for 32x32 images, keys of {keys}",
            partial(_resnet, widths=_WIDE, blocks=blocks, layout=layout, bottleneck=bottleneck),
            head=layout.head,
            telltale=layout.telltale(4),
        )
        for suffix, layout, keys in (
            ("", _KUANGLIU, "kuangliu/pytorch-cifar"),
            ("-weiaicunzai", _WEIAICUNZAI, "weiaicunzai/pytorch-cifar100"),
        )
        for depth, (blocks, bottleneck) in BLOCKS.items()
    ),
)
