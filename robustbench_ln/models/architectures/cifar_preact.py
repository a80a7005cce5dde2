"""Pre-activation ResNets for 32x32 images (He et al. 2016, Identity mappings).

Four stages in the key layouts of kuangliu's pytorch-cifar and of weiaicunzai's pytorch-cifar100; three stages in that
of bearpaw's pytorch-classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture, count
from robustbench_ln.models.architectures.blocks import Modules, Pool, Residual, conv, he_initialised, named, stack
from robustbench_ln.models.architectures.cifar_resnet import BLOCKS
from robustbench_ln.models.architectures.norm_forms import Shapes

_WIDTHS = (64, 128, 256, 512)


def _branch(inputs: int, outputs: int, strides: tuple[int, ...], *, bias: bool = False) -> Modules:
    """BatchNorm, ReLU and convolution, in turn: two 3x3 ones, or a bottleneck of three."""
    bottleneck = len(strides) == 3
    middle = outputs // 4 if bottleneck else outputs
    modules: Modules = {}
    for i, stride in enumerate(strides, 1):
        before, after = inputs if i == 1 else middle, outputs if i == len(strides) else middle
        kernel = 1 if bottleneck and i != 2 else 3
        modules |= {
            f"bn{i}": nn.BatchNorm2d(before),
            f"relu{i}": nn.ReLU(),
            f"conv{i}": conv(before, after, kernel, stride, bias=bias),
        }
    return modules


def _kuangliu_block(
    inputs: int, outputs: int, stride: int, *, bottleneck: bool, raw: bool, name: str = "shortcut"
) -> nn.Module:
    branch = _branch(inputs, outputs, (1, stride, 1) if bottleneck else (stride, 1))
    projected = stride != 1 or inputs != outputs
    shortcut: Modules = {name: nn.Sequential(conv(inputs, outputs, 1, stride))} if projected else {}
    return Residual(branch, shortcut, shared=0 if raw else 2)


def _kuangliu(
    num_classes: int, *, blocks: tuple[int, ...], bottleneck: bool, raw: bool = False, last_norm: bool = False
) -> nn.Module:
    parts: Modules = {"conv1": conv(3, 64, 3)}
    block = partial(_kuangliu_block, bottleneck=bottleneck, raw=raw)
    channels = 64
    for i, (width, number) in enumerate(zip(_WIDTHS, blocks, strict=True), 1):
        outputs = width * 4 if bottleneck else width
        parts[f"layer{i}"] = stack(block, channels, outputs, number, 1 if i == 1 else 2)
        channels = outputs
    if last_norm:
        parts |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    parts |= {"pool": Pool(), "linear": nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


def _weiaicunzai_block(inputs: int, outputs: int, stride: int, *, bottleneck: bool) -> nn.Module:
    # Here the first convolution of a bottleneck has the stride, and every convolution a bias.
    branch = _branch(inputs, outputs, (stride, 1, 1) if bottleneck else (stride, 1), bias=True)
    projected = stride != 1 or inputs != outputs
    shortcut: Modules = {"shortcut": conv(inputs, outputs, 1, stride, bias=True)} if projected else {}
    return Residual({"residual": nn.Sequential(*branch.values())}, shortcut)


def _weiaicunzai(num_classes: int, *, blocks: tuple[int, ...], bottleneck: bool) -> nn.Module:
    parts: Modules = {"pre": nn.Sequential(conv(3, 64, 3, bias=True), nn.BatchNorm2d(64), nn.ReLU())}
    block = partial(_weiaicunzai_block, bottleneck=bottleneck)
    channels = 64
    for i, (width, number) in enumerate(zip(_WIDTHS, blocks, strict=True), 1):
        outputs = width * 4 if bottleneck else width
        parts[f"stage{i}"] = stack(block, channels, outputs, number, 1 if i == 1 else 2)
        channels = outputs
    parts |= {"pool": Pool(), "linear": nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


def _bearpaw(num_classes: int, *, depth: int = 110, bottleneck: bool) -> nn.Module:
    parts: Modules = {"conv1": conv(3, 16, 3)}
    block = partial(_kuangliu_block, bottleneck=bottleneck, raw=True, name="downsample")
    channels = 16
    for i, width in enumerate((16, 32, 64), 1):
        outputs = width * 4 if bottleneck else width
        number = (depth - 2) // (9 if bottleneck else 6)
        parts[f"layer{i}"] = stack(block, channels, outputs, number, 1 if i == 1 else 2)
        channels = outputs
    parts |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": Pool(), "fc": nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


def _bearpaw_depth(shapes: Shapes, *, bottleneck: bool) -> Mapping[str, Any]:
    # The layers of one block in each stage: 6 in basic blocks, 9 in bottlenecks.
    return {"depth": (9 if bottleneck else 6) * (count(shapes, "layer1.{}.conv1.weight") or 18) + 2}


ARCHITECTURES = (
    *(
        Architecture(
            f"preact_resnet{depth}",
            f"pre-activation ResNet-{depth} for 32x32 images, keys of kuangliu/pytorch-cifar",
            partial(_kuangliu, blocks=blocks, bottleneck=bottleneck),
            head="linear",
            telltale="layer4.0.conv1.weight",
        )
        for depth, (blocks, bottleneck) in BLOCKS.items()
    ),
    *(
        Architecture(
            f"preact_resnet18{suffix}",
            f"as preact_resnet18, {said}",
            partial(_kuangliu, blocks=BLOCKS[18][0], bottleneck=False, raw=raw, last_norm=last_norm),
            head="linear",
            telltale="layer4.0.conv1.weight",
        )
        for suffix, raw, last_norm, said in (
            ("-raw", True, False, "shortcuts from before BatchNorm and ReLU (RobustBench's PreActBlock)"),
            ("-bn", False, True, "BatchNorm before the output layer (RobustBench's PreActBlockV2)"),
            ("-bn-raw", True, True, "BatchNorm before the output layer, shortcuts from before BatchNorm and ReLU"),
        )
    ),
    *(
        Architecture(
            f"preact_resnet{depth}-weiaicunzai",
            f"pre-activation ResNet-{depth} for 32x32 images, keys of weiaicunzai/pytorch-cifar100",
            partial(_weiaicunzai, blocks=blocks, bottleneck=bottleneck),
            head="linear",
            telltale="stage4.0.residual.2.weight",
        )
        for depth, (blocks, bottleneck) in BLOCKS.items()
    ),
    *(
        Architecture(
            f"preresnet{{depth}}{suffix}-bearpaw",
            f"pre-activation ResNet of {blocks} for 32x32 images, keys of bearpaw/pytorch-classification",
            partial(_bearpaw, bottleneck=bottleneck),
            head="fc",
            telltale=f"layer3.0.{last}.weight",
            hints=partial(_bearpaw_depth, bottleneck=bottleneck),
        )
        for suffix, bottleneck, last, blocks in (
            ("", False, "conv2", "basic blocks"),
            ("-bottleneck", True, "conv3", "bottlenecks"),
        )
    ),
)
