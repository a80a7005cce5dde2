"""MobileNetV2 for 32x32 images (Sandler et al. 2018).

In the key layouts of kuangliu's pytorch-cifar and weiaicunzai's pytorch-cifar100. chenyaofo's pytorch-cifar-models and
huyvnphan's PyTorch_CIFAR10 share torchvision's keys, with two strides less.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.blocks import Modules, Pool, Residual, conv, he_initialised, named

# Expansion, channels, blocks and stride of each stage, table 2 of the paper; the second stage keeps its resolution.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _kuangliu_block(inputs: int, outputs: int, expansion: int, stride: int) -> nn.Module:
    middle = inputs * expansion
    branch: Modules = {
        "conv1": conv(inputs, middle, 1),
        "bn1": nn.BatchNorm2d(middle),
        "relu1": nn.ReLU(),  # ReLU throughout, where the paper has ReLU6
        "conv2": conv(middle, middle, 3, stride, groups=middle),
        "bn2": nn.BatchNorm2d(middle),
        "relu2": nn.ReLU(),
        "conv3": conv(middle, outputs, 1),
        "bn3": nn.BatchNorm2d(outputs),
    }
    if stride != 1:
        return named(branch)
    shortcut: Modules = {}
    if inputs != outputs:
        shortcut = {"shortcut": nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))}
    return Residual(branch, shortcut)


def _kuangliu(num_classes: int) -> nn.Module:
    layers, channels = [], 32
    for expansion, outputs, blocks, stride in _STAGES:
        for i in range(blocks):
            layers.append(_kuangliu_block(channels, outputs, expansion, 1 if i else stride))
            channels = outputs
    parts: Modules = {"conv1": conv(3, 32, 3), "bn1": nn.BatchNorm2d(32), "relu1": nn.ReLU()}
    parts |= {"layers": nn.Sequential(*layers)}
    parts |= {"conv2": conv(channels, 1280, 1), "bn2": nn.BatchNorm2d(1280), "relu2": nn.ReLU()}
    return he_initialised(named(parts | {"pool": Pool(), "linear": nn.Linear(1280, num_classes)}))


def _weiaicunzai_block(inputs: int, outputs: int, expansion: int, stride: int) -> nn.Module:
    middle = inputs * expansion
    branch = nn.Sequential(
        conv(inputs, middle, 1, bias=True),
        nn.BatchNorm2d(middle),
        nn.ReLU6(),
        conv(middle, middle, 3, stride, bias=True, groups=middle),
        nn.BatchNorm2d(middle),
        nn.ReLU6(),
        conv(middle, outputs, 1, bias=True),
        nn.BatchNorm2d(outputs),
    )
    return Residual({"residual": branch}, {}) if stride == 1 and inputs == outputs else named({"residual": branch})


# weiaicunzai's strides, which are others than those above.
_WEIAICUNZAI_STRIDES = (1, 2, 2, 2, 1, 1, 1)


def _weiaicunzai(num_classes: int) -> nn.Module:
    # A 1x1 convolution that pads: the images become 34x34.
    stem = nn.Conv2d(3, 32, 1, padding=1)
    parts: Modules = {"pre": nn.Sequential(stem, nn.BatchNorm2d(32), nn.ReLU6())}
    channels = 32
    for i, ((expansion, outputs, blocks, _), stride) in enumerate(zip(_STAGES, _WEIAICUNZAI_STRIDES, strict=True), 1):
        layers = []
        for j in range(blocks):
            layers.append(_weiaicunzai_block(channels, outputs, expansion, 1 if j else stride))
            channels = outputs
        parts[f"stage{i}"] = nn.Sequential(*layers) if blocks > 1 else layers[0]
    parts["conv1"] = nn.Sequential(conv(channels, 1280, 1, bias=True), nn.BatchNorm2d(1280), nn.ReLU6())
    # The output layer is a convolution, after the pooling.
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "conv2": conv(1280, num_classes, 1, bias=True), "flatten": nn.Flatten()}
    return he_initialised(named(parts))


def _torchvision(num_classes: int, *, width: float) -> nn.Module:
    from torchvision.models import MobileNetV2  # slow to import, and seldom needed

    setting = [list(stage) for stage in _STAGES]
    network: nn.Module = MobileNetV2(num_classes, width, inverted_residual_setting=setting)
    network.get_submodule("features.0.0").stride = (1, 1)  # type: ignore[assignment]
    return network


# A file of more classes is no CIFAR network: it is torchvision's, which has the same keys and shapes.
_MOST_CLASSES = 100

ARCHITECTURES = (
    Architecture(
        "cifar_mobilenet_v2",
        "MobileNetV2 for 32x32 images, keys of kuangliu/pytorch-cifar",
        _kuangliu,
        head="linear",
        telltale="layers.16.conv1.weight",
    ),
    Architecture(
        "cifar_mobilenet_v2-weiaicunzai",
        "MobileNetV2 for 32x32 images, keys of weiaicunzai/pytorch-cifar100",
        _weiaicunzai,
        head="conv2",
        telltale="stage7.residual.0.weight",
    ),
    *(
        Architecture(
            f"cifar_mobilenet_v2_x{str(width).replace('.', '_')}-chenyaofo",
            f"MobileNetV2 of width {width} for 32x32 images, keys of chenyaofo/pytorch-cifar-models",
            partial(_torchvision, width=width),
            head="classifier.1",
            telltale="features.1.conv.0.0.weight",
            most_classes=_MOST_CLASSES,
        )
        for width in (0.5, 0.75, 1.0, 1.4)
    ),
)
