"""VGG with BatchNorm for 32x32 images: Simonyan & Zisserman's convolutions and a single linear layer (512 to classes).

The key layout is that of kuangliu/pytorch-cifar: `features.N` as in torchvision, `classifier` without an index.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from robustbench_ln.models.architectures.architecture import Architecture

# Convolutions in each of the five stages, table 1 of the VGG paper (configurations A, B, D, E).
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


class CifarVgg(nn.Module):
    """VGG of 11, 13, 16 or 19 layers with BatchNorm after every convolution.

    Args:
        num_classes: number of logits.
        depth: 11, 13, 16 or 19.
    """

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, convolutions in zip(_CHANNELS, _STAGES[depth], strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, 32, 32)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


ARCHITECTURES = tuple(
    Architecture(
        f"cifar_vgg{depth}_bn",
        f"VGG-{depth} with BatchNorm for 32x32 images",
        partial(CifarVgg, depth=depth),
        head="classifier",
        telltale="features.0.weight",
    )
    for depth in _STAGES
)
