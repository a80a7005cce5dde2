"""The one place that knows mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_ln.types import Images


class Classifier(nn.Module):
    """A network together with its preprocessing: images in [0, 1] in, logits out.

    Args:
        network: takes normalised images.
        mean: one value a channel, or one for all; empty where the network needs no preprocessing.
        std: as `mean`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        # Not persistent: a state dict with them would apply them twice when read elsewhere.
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Tensor:
        """Images ``(B, C, H, W)`` float32 in [0, 1] to logits ``(B, classes)``."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
