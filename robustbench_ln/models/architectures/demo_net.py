"""The small network of `demo:bn` and `demo:ln`: about 60,000 parameters, 3 million multiplications at 32x32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.models.architectures.architecture import Architecture


class DemoNet(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, global average pooling, one linear layer.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to logits ``(B, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = F.relu(self.bn4(self.conv4(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


ARCHITECTURES = (
    Architecture(
        "demo-net", "the small network of demo:bn and demo:ln", DemoNet, head="linear", telltale="conv4.weight"
    ),
)
