"""Every classifier of torchvision, under torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import nn

from robustbench_ln.models.architectures.architecture import Architecture, Shapes

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


ARCHITECTURES = tuple(_rows())
