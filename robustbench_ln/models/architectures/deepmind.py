"""The networks of DeepMind's adversarial robustness (Gowal et al. 2020), which RobustBench holds many of.

They take images in [0, 1] and normalise by themselves, pad as TensorFlow does, and are known with SiLU (Swish).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.blocks import (
    Modules,
    Normalise,
    Pool,
    Residual,
    conv,
    he_initialised,
    named,
    stack,
)
from robustbench_ln.models.architectures.cifar_resnet import BLOCKS
from robustbench_ln.models.architectures.wide_resnet import wrn_sizes, wrn_widths


class _SamePad(nn.ZeroPad2d):
    """TensorFlow's padding of a 3x3 convolution: on the right and below only where the stride is 2."""

    def __init__(self, stride: int) -> None:
        super().__init__((0, 1, 0, 1) if stride == 2 else 1)


def _normalise(num_classes: int) -> Normalise:
    if num_classes == 100:
        return Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    return Normalise((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


def _branch(inputs: int, outputs: int, stride: int, first: str, second: str) -> Modules:
    return {
        "batchnorm_0": nn.BatchNorm2d(inputs),
        "relu_0": nn.SiLU(),
        "pad": _SamePad(stride),
        first: nn.Conv2d(inputs, outputs, 3, stride, bias=False),
        "batchnorm_1": nn.BatchNorm2d(outputs),
        "relu_1": nn.SiLU(),
        second: conv(outputs, outputs, 3),
    }


def _end(channels: int, num_classes: int) -> Modules:
    return {
        "batchnorm": nn.BatchNorm2d(channels),
        "relu": nn.SiLU(),
        "pool": Pool(),
        "logits": nn.Linear(channels, num_classes),
    }


def _wide_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch = _branch(inputs, outputs, stride, "conv_0", "conv_1")
    return Residual(branch, {"shortcut": conv(inputs, outputs, 1, stride)} if inputs != outputs else {}, shared=2)


def _wide(num_classes: int, *, depth: int = 28, width: int = 10) -> nn.Module:
    stages, channels = [], 16
    for i, outputs in enumerate(wrn_widths(width)):
        stages.append(named({"block": stack(_wide_block, channels, outputs, (depth - 4) // 6, 2 if i else 1)}))
        channels = outputs
    parts: Modules = {"normalise": _normalise(num_classes), "init_conv": conv(3, 16, 3)}
    return he_initialised(named(parts | {"layer": nn.Sequential(*stages)} | _end(channels, num_classes)))


def _preact_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    shortcut: Modules = {}
    if stride != 1 or inputs != outputs:
        # 3x3, and from before BatchNorm and SiLU.
        shortcut = {"shortcut_pad": _SamePad(stride), "shortcut": nn.Conv2d(inputs, outputs, 3, stride, bias=False)}
    return Residual(_branch(inputs, outputs, stride, "conv_2d_1", "conv_2d_2"), shortcut)


def _preact(num_classes: int, *, blocks: tuple[int, ...]) -> nn.Module:
    parts: Modules = {"normalise": _normalise(num_classes), "conv_2d": conv(3, 64, 3)}
    channels = 64
    for i, (outputs, number) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
        parts[f"layer_{i}"] = stack(_preact_block, channels, outputs, number, 2 if i else 1)
        channels = outputs
    return he_initialised(named(parts | _end(channels, num_classes)))


ARCHITECTURES = (
    Architecture(
        "wrn-{depth}-{width}-deepmind",
        "Wide ResNet with SiLU for images in [0, 1], keys of DeepMind's adversarial robustness",
        _wide,
        head="logits",
        telltale="layer.2.block.0.conv_0.weight",
        hints=partial(wrn_sizes, block="layer.0.block.{}.conv_0.weight", last="logits.weight"),
    ),
    *(
        Architecture(
            f"preact_resnet{depth}-deepmind",
            f"pre-activation ResNet-{depth} with SiLU for images in [0, 1], keys of DeepMind's adversarial robustness",
            partial(_preact, blocks=BLOCKS[depth][0]),
            head="logits",
            telltale="layer_3.0.conv_2d_1.weight",
        )
        for depth in (18, 34)
    ),
)
