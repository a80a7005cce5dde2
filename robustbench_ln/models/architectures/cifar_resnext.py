"""ResNeXt-29 for 32x32 images (Xie et al. 2017, section 5.3), of any number of groups and any width.

In the key layouts of kuangliu's pytorch-cifar, of prlz77's ResNeXt.pytorch (bearpaw) and of Xuanyi Dong's
ResNeXt-DenseNet (AugMix, RobustBench).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture, count, rows
from robustbench_ln.models.architectures.blocks import Modules, Pool, Residual, conv, he_initialised, named, stack
from robustbench_ln.models.architectures.norm_forms import Shapes


def _kuangliu_block(inputs: int, outputs: int, stride: int, *, cardinality: int) -> nn.Module:
    middle = outputs // 2
    branch: Modules = {
        "conv1": conv(inputs, middle, 1),
        "bn1": nn.BatchNorm2d(middle),
        "relu1": nn.ReLU(),
        "conv2": conv(middle, middle, 3, stride, groups=cardinality),
        "bn2": nn.BatchNorm2d(middle),
        "relu2": nn.ReLU(),
        "conv3": conv(middle, outputs, 1),
        "bn3": nn.BatchNorm2d(outputs),
    }
    shortcut: Modules = {}
    if stride != 1 or inputs != outputs:
        shortcut = {"shortcut": nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))}
    return Residual(branch, shortcut, relu=True)


def _kuangliu(num_classes: int, *, cardinality: int = 32, width: int = 4) -> nn.Module:
    # The stem is a 1x1 convolution here.
    parts: Modules = {"conv1": conv(3, 64, 1), "bn1": nn.BatchNorm2d(64), "relu": nn.ReLU()}
    channels = 64
    for i in range(3):
        outputs = 2 * cardinality * width * 2**i
        block = partial(_kuangliu_block, cardinality=cardinality)
        parts[f"layer{i + 1}"] = stack(block, channels, outputs, 3, 2 if i else 1)
        channels = outputs
    parts |= {"pool": Pool(), "linear": nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


def _type_c_block(
    inputs: int, outputs: int, stride: int, *, cardinality: int, middle: int, shortcut: str, names: tuple[str, str]
) -> nn.Module:
    branch: Modules = {
        "conv_reduce": conv(inputs, middle, 1),
        "bn_reduce": nn.BatchNorm2d(middle),
        "relu1": nn.ReLU(),
        "conv_conv": conv(middle, middle, 3, stride, groups=cardinality),
        "bn": nn.BatchNorm2d(middle),
        "relu2": nn.ReLU(),
        "conv_expand": conv(middle, outputs, 1),
        "bn_expand": nn.BatchNorm2d(outputs),
    }
    projection = {names[0]: conv(inputs, outputs, 1, stride), names[1]: nn.BatchNorm2d(outputs)}
    return Residual(branch, {shortcut: named(projection)} if inputs != outputs else {}, relu=True)


def _type_c(
    num_classes: int,
    *,
    depth: int = 29,
    cardinality: int = 4,
    width: int = 32,
    expansion: int = 4,
    shortcut: str,
    names: tuple[str, str],
    block_name: str,
) -> nn.Module:
    parts: Modules = {"conv_1_3x3": conv(3, 64, 3), "bn_1": nn.BatchNorm2d(64), "relu": nn.ReLU()}
    channels = 64
    for i in range(3):
        outputs = 64 * expansion * 2**i
        middle = cardinality * width * 2**i
        block = partial(_type_c_block, cardinality=cardinality, middle=middle, shortcut=shortcut, names=names)
        blocks = stack(block, channels, outputs, (depth - 2) // 9, 2 if i else 1)
        parts[f"stage_{i + 1}"] = named({block_name.format(i + 1, j): each for j, each in enumerate(blocks)})
        channels = outputs
    parts |= {"pool": Pool(), "classifier": nn.Linear(channels, num_classes)}
    return he_initialised(named(parts))


def _groups(shapes: Shapes, key: str, cardinality: int, width: int) -> dict[str, Any]:
    """Number of groups and width of one, from a grouped convolution of the first stage."""
    if key not in shapes:
        return {"cardinality": cardinality, "width": width}
    width = rows(shapes, key, axis=1, default=width)
    return {"cardinality": rows(shapes, key, default=width) // width, "width": width}


def _kuangliu_hints(shapes: Shapes) -> Mapping[str, Any]:
    return _groups(shapes, "layer1.0.conv2.weight", 32, 4)


def _type_c_hints(shapes: Shapes, *, block: str, sizes: tuple[int, int]) -> Mapping[str, Any]:
    return {
        "depth": 9 * (count(shapes, f"stage_1.{block}.conv_conv.weight") or 3) + 2,
        "expansion": rows(shapes, f"stage_1.{block.format(0)}.conv_expand.weight", default=256) // 64,
        **_groups(shapes, f"stage_1.{block.format(0)}.conv_conv.weight", *sizes),
    }


ARCHITECTURES = (
    Architecture(
        "resnext29-{cardinality}x{width}d",
        "ResNeXt-29 for 32x32 images, keys of kuangliu/pytorch-cifar",
        _kuangliu,
        head="linear",
        telltale="layer3.0.conv3.weight",
        hints=_kuangliu_hints,
    ),
    Architecture(
        "resnext{depth}-{cardinality}x{width}d-augmix",
        "ResNeXt for 32x32 images, keys of google-research/augmix and RobustBench",
        partial(_type_c, shortcut="downsample", names=("0", "1"), block_name="{1}"),
        head="classifier",
        telltale="stage_3.0.conv_reduce.weight",
        hints=partial(_type_c_hints, block="{}", sizes=(4, 32)),
    ),
    Architecture(
        "resnext{depth}-{cardinality}x{width}d-prlz77",
        "ResNeXt for 32x32 images, keys of prlz77/ResNeXt.pytorch and bearpaw/pytorch-classification",
        partial(
            _type_c,
            shortcut="shortcut",
            names=("shortcut_conv", "shortcut_bn"),
            block_name="stage_{0}_bottleneck_{1}",
        ),
        head="classifier",
        telltale="stage_3.stage_3_bottleneck_0.conv_reduce.weight",
        hints=partial(_type_c_hints, block="stage_1_bottleneck_{}", sizes=(8, 64)),
    ),
)
