"""AllConv for 32x32 images (Springenberg et al. 2015), as in AugMix: with BatchNorm and a GELU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_ln.models.architectures.architecture import Architecture
from robustbench_ln.models.architectures.blocks import Pool, he_initialised, named


class _FastGELU(nn.Module):
    """``x * sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1.702 * x) * x


# Inputs, outputs, kernel and padding of each convolution; None for a max pooling. The 1x1 convolutions pad.
_LAYERS = (
    (3, 96, 3, 1),
    (96, 96, 3, 1),
    (96, 96, 3, 1),
    None,
    (96, 192, 3, 1),
    (192, 192, 3, 1),
    (192, 192, 3, 1),
    None,
    (192, 192, 3, 0),
    (192, 192, 1, 1),
    (192, 192, 1, 1),
)


def _allconv(num_classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for layer in _LAYERS:
        if layer is None:
            layers += [nn.MaxPool2d(2), nn.Dropout()]
        else:
            inputs, outputs, kernel, padding = layer
            layers += [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), _FastGELU()]
    layers.append(nn.AvgPool2d(8))
    parts = {"features": nn.Sequential(*layers), "pool": Pool(), "classifier": nn.Linear(192, num_classes)}
    return he_initialised(named(parts))


ARCHITECTURES = (
    Architecture(
        "allconv",
        "AllConv for 32x32 images, keys of google-research/augmix",
        _allconv,
        head="classifier",
        telltale="features.0.weight",
    ),
)
