"""Every classifier of torchvision, under torchvision's names; its ResNets and DenseNets also with a 3x3 stem.

The stem is what those who train on small images change, without max pooling (as SimCLR does) or with it (huyvnphan's
PyTorch_CIFAR10): the keys and shapes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torchvision
from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.norm_forms import Shapes

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
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **hints)
    return network


def _hints(shapes: Shapes, *, name: str) -> Mapping[str, Any]:
    # torchvision takes them off when it loads its own weights; networks trained from nothing keep them.
    return {"aux_logits": _AUXILIARY[name] in shapes} if name in _AUXILIARY else {}


def _rows() -> Iterator[Architecture]:
    for name in torchvision.models.list_models(module=torchvision.models):
        family = next((family for family in _FAMILIES if name.startswith(family)), None)
        # A newer torchvision may have families that this table does not know yet.
        if family is not None:
            head, telltale = _FAMILIES[family]
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
