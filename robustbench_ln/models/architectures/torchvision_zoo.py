"""Every classifier of torchvision, under torchvision's names; its ResNets and DenseNets also with a 3x3 stem.

The stem is what those who train on small images change, without max pooling (as SimCLR does) or with it (huyvnphan's
PyTorch_CIFAR10): the keys and shapes are the same. torchvision is imported where a network is built: it takes as long
as torch, and most runs need none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.norm_forms import Shapes

_LISTED = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34
resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn
vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2
wide_resnet50_2
"""
NAMES = tuple(_LISTED.split())

# Family: its output layer, and a key that few others have. A name belongs to the family it starts with.
_FAMILIES = {
    "alexnet": ("classifier.6", "features.10.weight"),
    "convnext": ("classifier.2", "features.1.0.layer_scale"),
    "densenet": ("classifier", "features.conv0.weight"),
    "efficientnet": ("classifier.1", "features.1.0.block.0.0.weight"),
    "googlenet": ("fc", "inception3a.branch1.conv.weight"),
    "inception": ("fc", "Mixed_5b.branch1x1.conv.weight"),
    "maxvit": ("classifier.5", "stem.0.0.weight"),
    "mnasnet": ("classifier.1", "layers.0.weight"),
    "mobilenet_v2": ("classifier.1", "features.1.conv.0.0.weight"),
    "mobilenet_v3": ("classifier.3", "features.1.block.0.0.weight"),
    "regnet": ("fc", "trunk_output.block1.block1-0.f.a.0.weight"),
    "resnet": ("fc", "layer4.0.conv1.weight"),
    "resnext": ("fc", "layer4.0.conv1.weight"),
    "shufflenet": ("fc", "stage2.0.branch1.0.weight"),
    "squeezenet": ("classifier.1", "features.3.squeeze.weight"),
    "swin": ("head", "features.1.0.attn.qkv.weight"),
    "vgg": ("classifier.6", "features.0.weight"),
    "vit": ("heads.head", "class_token"),
    "wide_resnet": ("fc", "layer4.0.conv1.weight"),
}


# The networks whose training form has auxiliary outputs, and a key of those.
_AUXILIARY = {"googlenet": "aux1.fc1.weight", "inception_v3": "AuxLogits.fc.weight"}


def _build(num_classes: int, *, name: str, **hints: Any) -> nn.Module:
    if name in _AUXILIARY:
        # Said outright, for torchvision warns that this default will change.
        hints["init_weights"] = True
    from torchvision.models import get_model

    network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **hints)
    return network


def _hints(shapes: Shapes, *, name: str) -> Mapping[str, Any]:
    # torchvision takes them off when it loads its own weights; networks trained from nothing keep them.
    return {"aux_logits": _AUXILIARY[name] in shapes} if name in _AUXILIARY else {}


def _rows() -> Iterator[Architecture]:
    for name in NAMES:
        head, telltale = next(row for family, row in _FAMILIES.items() if name.startswith(family))
        yield Architecture(
            name, f"torchvision's {name}", partial(_build, name=name), head, telltale, partial(_hints, name=name)
        )


# The families that are known with a 3x3 stem: names of the stem and of the max pooling after it.
_STEMS = {"layer4.0.conv1.weight": ("conv1", "maxpool"), "features.conv0.weight": ("features.conv0", "features.pool0")}


def _build_small(num_classes: int, *, name: str, stem: str, pool: str) -> nn.Module:
    network = _build(num_classes, name=name)
    outputs: int = network.get_submodule(stem).out_channels  # type: ignore[assignment]
    network.set_submodule(stem, nn.Conv2d(3, outputs, 3, padding=1, bias=False))
    if pool:
        network.set_submodule(pool, nn.Identity())
    return network


def _small_rows() -> Iterator[Architecture]:
    for row in _rows():
        if row.telltale in _STEMS:
            stem, pool = _STEMS[row.telltale]
            for taken_out, suffix, said in ((pool, "-3x3", "no max pooling"), ("", "-3x3-pool", "max pooling")):
                yield replace(
                    row,
                    name=row.name + suffix,
                    description=f"torchvision's {row.name} with a 3x3 stem and {said}",
                    build=partial(_build_small, name=row.name, stem=stem, pool=taken_out),
                )


ARCHITECTURES = (*_rows(), *_small_rows())
