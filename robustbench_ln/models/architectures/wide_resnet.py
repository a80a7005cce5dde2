"""Wide ResNets of any depth and width for 32x32 images (Zagoruyko & Komodakis 2016).

In the key layouts of xternalz's WideResNet-pytorch (TRADES, AugMix, RobustBench, bearpaw), of szagoruyko's own
wide-residual-networks, of meliketoy's wide-resnet.pytorch and of weiaicunzai's pytorch-cifar100.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture, count, rows
from robustbench_ln.models.architectures.blocks import (
    Modules,
    Pool,
    Residual,
    conv,
    he_initialised,
    named,
    stack,
)
from robustbench_ln.models.architectures.norm_forms import Shapes


def wrn_sizes(shapes: Shapes, *, block: str, last: str) -> dict[str, Any]:
    """Depth and width, from the key of a block's convolution and that of a layer after the last stage."""
    return {"depth": 6 * (count(shapes, block) or 4) + 4, "width": rows(shapes, last, axis=1, default=640) // 64}


def wrn_widths(width: int) -> tuple[int, int, int]:
    """Channels of the three stages."""
    return 16 * width, 32 * width, 64 * width


# xternalz


def _xternalz_block(inputs: int, outputs: int, stride: int, *, shortcut: str) -> nn.Module:
    branch: Modules = {
        "bn1": nn.BatchNorm2d(inputs),
        "relu1": nn.ReLU(),
        "conv1": conv(inputs, outputs, 3, stride),
        "bn2": nn.BatchNorm2d(outputs),
        "relu2": nn.ReLU(),
        "conv2": conv(outputs, outputs, 3),
    }
    # Of its width only: the first stage of a network of width 1 adds its input, whatever the stride.
    return Residual(branch, {shortcut: conv(inputs, outputs, 1, stride)} if inputs != outputs else {}, shared=2)


class _Unused(nn.Sequential):
    """Weights that are in the file and take no part in the forward pass."""

    def forward(self, x: Any) -> Any:
        return x


def _xternalz(
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 10,
    shortcut: str = "convShortcut",
    sub_block: bool = False,
    bias: bool = True,
) -> nn.Module:
    block = partial(_xternalz_block, shortcut=shortcut)
    parts: Modules = {"conv1": conv(3, 16, 3)}
    channels = 16
    for i, outputs in enumerate(wrn_widths(width), 1):
        stage = partial(stack, block, channels, outputs, (depth - 4) // 6)
        parts[f"block{i}"] = named({"layer": stage(1 if i == 1 else 2)})
        if sub_block and i == 1:
            parts["sub_block1"] = _Unused(OrderedDict(layer=stage(1)))
        channels = outputs
    parts |= {"bn1": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": Pool()}
    parts["fc"] = nn.Linear(channels, num_classes, bias=bias)
    return he_initialised(named(parts))


def _xternalz_hints(shapes: Shapes) -> Mapping[str, Any]:
    augmix = "block2.layer.0.conv_shortcut.weight" in shapes
    return {
        **wrn_sizes(shapes, block="block1.layer.{}.conv1.weight", last="fc.weight"),
        "shortcut": "conv_shortcut" if augmix else "convShortcut",
        # TRADES and what descends from it hold a stage that is never used.
        "sub_block": "sub_block1.layer.0.conv1.weight" in shapes,
        "bias": "fc.bias" in shapes or not shapes,
    }


# szagoruyko: functions of a dictionary; the dialect `name_functional_weights` gives its convolutions the names here


def _szagoruyko_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch: Modules = {
        "bn0": nn.BatchNorm2d(inputs),
        "relu0": nn.ReLU(),
        "conv0": conv(inputs, outputs, 3, stride),
        "bn1": nn.BatchNorm2d(outputs),
        "relu1": nn.ReLU(),
        "conv1": conv(outputs, outputs, 3),
    }
    return Residual(branch, {"convdim": conv(inputs, outputs, 1, stride)} if inputs != outputs else {}, shared=2)


def _szagoruyko(num_classes: int, *, depth: int = 28, width: int = 10) -> nn.Module:
    parts: Modules = {"conv0": conv(3, 16, 3)}
    channels = 16
    for i, outputs in enumerate(wrn_widths(width)):
        blocks = stack(_szagoruyko_block, channels, outputs, (depth - 4) // 6, 2 if i else 1)
        parts[f"group{i}"] = named({f"block{j}": block for j, block in enumerate(blocks)})
        channels = outputs
    parts |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": Pool()}
    parts["fc"] = nn.Linear(channels, num_classes)
    return he_initialised(named(parts))


# meliketoy and weiaicunzai: every convolution has a bias


def _meliketoy_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch: Modules = {
        "bn1": nn.BatchNorm2d(inputs),
        "relu1": nn.ReLU(),
        "conv1": conv(inputs, outputs, 3, bias=True),
        "bn2": nn.BatchNorm2d(outputs),
        "relu2": nn.ReLU(),
        "conv2": conv(outputs, outputs, 3, stride, bias=True),  # the stride is here, not in conv1
    }
    return Residual(branch, _projection(inputs, outputs, stride))


def _weiaicunzai_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        conv(inputs, outputs, 3, stride, bias=True),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Dropout(),
        conv(outputs, outputs, 3, bias=True),
    )
    return Residual({"residual": branch}, _projection(inputs, outputs, stride))


def _projection(inputs: int, outputs: int, stride: int) -> Modules:
    if stride == 1 and inputs == outputs:
        return {}
    return {"shortcut": nn.Sequential(conv(inputs, outputs, 1, stride, bias=True))}


def _biased(
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 10,
    block: Callable[[int, int, int], nn.Module],
    names: tuple[str, str, str, str, str],
) -> nn.Module:
    stem, *stages, norm = names
    parts: Modules = {stem: conv(3, 16, 3, bias=True)}
    channels = 16
    for i, (name, outputs) in enumerate(zip(stages, wrn_widths(width), strict=True)):
        parts[name] = stack(block, channels, outputs, (depth - 4) // 6, 2 if i else 1)
        channels = outputs
    parts |= {norm: nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": Pool()}
    parts["linear"] = nn.Linear(channels, num_classes)
    return he_initialised(named(parts))


ARCHITECTURES = (
    Architecture(
        "wrn-{depth}-{width}",
        "Wide ResNet for 32x32 images, keys of xternalz/WideResNet-pytorch, TRADES, AugMix and RobustBench",
        _xternalz,
        head="fc",
        telltale="block3.layer.0.conv1.weight",
        hints=_xternalz_hints,
    ),
    Architecture(
        "wrn-{depth}-{width}-szagoruyko",
        "Wide ResNet for 32x32 images, keys of szagoruyko/wide-residual-networks",
        _szagoruyko,
        head="fc",
        telltale="group2.block0.conv0.weight",
        hints=partial(wrn_sizes, block="group0.block{}.conv0.weight", last="fc.weight"),
    ),
    Architecture(
        "wrn-{depth}-{width}-meliketoy",
        "Wide ResNet for 32x32 images, keys of meliketoy/wide-resnet.pytorch",
        partial(_biased, block=_meliketoy_block, names=("conv1", "layer1", "layer2", "layer3", "bn1")),
        head="linear",
        telltale="layer3.0.conv1.bias",
        hints=partial(wrn_sizes, block="layer1.{}.conv1.weight", last="linear.weight"),
    ),
    Architecture(
        "wrn-{depth}-{width}-weiaicunzai",
        "Wide ResNet for 32x32 images, keys of weiaicunzai/pytorch-cifar100",
        partial(_biased, block=_weiaicunzai_block, names=("init_conv", "conv2", "conv3", "conv4", "bn")),
        head="linear",
        telltale="conv4.0.residual.2.weight",
        hints=partial(wrn_sizes, block="conv2.{}.residual.2.weight", last="linear.weight"),
    ),
)
