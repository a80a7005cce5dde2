"""DenseNets for 32x32 images (Huang et al. 2017), of any depth and growth rate.

Three dense blocks, with bottlenecks and compression (BC) or without either, in the key layouts of bearpaw's
pytorch-classification, of AugMix and of andreasveit's densenet-pytorch; the four blocks of the ImageNet networks in
those of kuangliu's pytorch-cifar and weiaicunzai's pytorch-cifar100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture, count, rows
from robustbench_ln.models.architectures.blocks import Dense, Modules, Pool, conv, he_initialised, named
from robustbench_ln.models.architectures.norm_forms import Shapes


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an implementation calls the parts of a DenseNet."""

    dense: str
    norm: str
    head: str
    transition: tuple[str, str] = ("bn1", "conv1")
    input_first: bool = True


_KUANGLIU = _Layout("dense{}", "bn", "linear", ("bn", "conv"), input_first=False)
_BEARPAW = _Layout("dense{}", "bn", "fc")
_AUGMIX = _Layout("dense{}", "bn1", "fc")
_ANDREASVEIT = _Layout("block{}.layer", "bn1", "fc")


def _branch(inputs: int, growth: int, *, bottleneck: bool) -> Modules:
    first: Modules = {"bn1": nn.BatchNorm2d(inputs), "relu1": nn.ReLU()}
    if not bottleneck:
        return first | {"conv1": conv(inputs, growth, 3)}
    return first | {
        "conv1": conv(inputs, 4 * growth, 1),
        "bn2": nn.BatchNorm2d(4 * growth),
        "relu2": nn.ReLU(),
        "conv2": conv(4 * growth, growth, 3),
    }


def _densenet(
    num_classes: int,
    *,
    layout: _Layout,
    blocks: tuple[int, ...],
    growth: int,
    bottleneck: bool = True,
    reduction: float = 0.5,
) -> nn.Module:
    channels = 2 * growth
    parts: Modules = {"conv1": conv(3, channels, 3)}
    for i, number in enumerate(blocks, 1):
        layers = []
        for _ in range(number):
            layers.append(Dense(_branch(channels, growth, bottleneck=bottleneck), input_first=layout.input_first))
            channels += growth
        outer, _, inner = layout.dense.format(i).partition(".")
        parts[outer] = named({inner: nn.Sequential(*layers)}) if inner else nn.Sequential(*layers)
        if i < len(blocks):
            outputs = int(channels * reduction)
            bn, conv1 = layout.transition
            transition: Modules = {bn: nn.BatchNorm2d(channels), "relu": nn.ReLU(), conv1: conv(channels, outputs, 1)}
            parts[f"trans{i}"] = named(transition | {"pool": nn.AvgPool2d(2)})
            channels = outputs
    parts |= {layout.norm: nn.BatchNorm2d(channels), "relu": nn.ReLU(), "pool": Pool()}
    parts[layout.head] = nn.Linear(channels, num_classes)
    return he_initialised(named(parts))


def _three_blocks(
    num_classes: int,
    *,
    depth: int = 100,
    growth: int = 12,
    layout: _Layout,
    bottleneck: bool = True,
    reduction: float = 0.5,
) -> nn.Module:
    number = (depth - 4) // (6 if bottleneck else 3)
    return _densenet(
        num_classes,
        layout=layout,
        blocks=(number,) * 3,
        growth=growth,
        bottleneck=bottleneck,
        reduction=reduction,
    )


def _hints(shapes: Shapes, *, layout: _Layout) -> Mapping[str, Any]:
    first = layout.dense.format(1)
    bottleneck = f"{first}.0.conv2.weight" in shapes or not shapes
    number = count(shapes, f"{first}.{{}}.conv1.weight") or 16
    before = rows(shapes, "trans1.conv1.weight", axis=1, default=2)
    return {
        "depth": (6 if bottleneck else 3) * number + 4,
        "growth": rows(shapes, "conv1.weight", default=24) // 2,
        "bottleneck": bottleneck,
        "reduction": 1.0 if rows(shapes, "trans1.conv1.weight", default=1) == before else 0.5,
    }


def _weiaicunzai(num_classes: int, *, blocks: tuple[int, ...], growth: int) -> nn.Module:
    channels = 2 * growth
    features: Modules = {}
    for i, number in enumerate(blocks):
        last = i == len(blocks) - 1
        layers: Modules = {}
        for j in range(number):
            branch = nn.Sequential(*_branch(channels, growth, bottleneck=True).values())
            layers[f"bottle_neck_layer_{j}"] = Dense({"bottle_neck": branch})
            channels += growth
        features[f"dense_block{i}" if last else f"dense_block_layer_{i}"] = named(layers)
        if not last:
            # No ReLU here.
            down = nn.Sequential(nn.BatchNorm2d(channels), conv(channels, channels // 2, 1), nn.AvgPool2d(2))
            features[f"transition_layer_{i}"] = named({"down_sample": down})
            channels //= 2
    features |= {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    parts: Modules = {"conv1": conv(3, 2 * growth, 3), "features": named(features), "pool": Pool()}
    return he_initialised(named(parts | {"linear": nn.Linear(channels, num_classes)}))


# Layers in each dense block (Huang et al. 2017, table 1), and the growth rate.
_IMAGENET = {
    "121": ((6, 12, 24, 16), 32),
    "169": ((6, 12, 32, 32), 32),
    "201": ((6, 12, 48, 32), 32),
    "161": ((6, 12, 36, 24), 48),
}

ARCHITECTURES = (
    *(
        Architecture(
            f"densenet-{{depth}}-{{growth}}-{whose}",
            f"DenseNet or DenseNet-BC with three blocks for 32x32 images, keys of {keys}",
            partial(_three_blocks, layout=layout),
            head=layout.head,
            telltale=f"{layout.dense.format(3)}.0.conv1.weight",
            hints=partial(_hints, layout=layout),
        )
        for whose, layout, keys in (
            ("bearpaw", _BEARPAW, "bearpaw/pytorch-classification"),
            ("augmix", _AUGMIX, "google-research/augmix"),
            ("andreasveit", _ANDREASVEIT, "andreasveit/densenet-pytorch"),
        )
    ),
    *(
        Architecture(
            f"cifar_densenet{name}",
            f"DenseNet-{name} with a 3x3 stem for 32x32 images, keys of kuangliu/pytorch-cifar",
            partial(_densenet, layout=_KUANGLIU, blocks=blocks, growth=growth),
            head="linear",
            telltale="dense4.0.conv1.weight",
        )
        for name, (blocks, growth) in {"": ((6, 12, 24, 16), 12), **_IMAGENET}.items()
    ),
    *(
        Architecture(
            f"cifar_densenet{name}-weiaicunzai",
            f"DenseNet-{name} with a 3x3 stem for 32x32 images, keys of weiaicunzai/pytorch-cifar100",
            partial(_weiaicunzai, blocks=blocks, growth=growth),
            head="linear",
            telltale="features.dense_block3.bottle_neck_layer_0.bottle_neck.2.weight",
        )
        for name, (blocks, growth) in _IMAGENET.items()
    ),
)
