"""Networks with something to say, and how tests save and compare them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Any]


class Tiny(nn.Module):
    """A network that no table knows."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).mean((2, 3)))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval() with norm layers that have something to say."""
    draw = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith(("running_var", "bn1.weight")):
            value.uniform_(0.5, 2, generator=draw)
        elif key.endswith("running_mean"):
            value.normal_(0, 0.2, generator=draw)
    return network.eval()


def images(size: int = 32, n: int = 4) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(network: nn.Module, size: int = 32) -> Tensor:
    return network(images(size))


def assert_same(a: nn.Module, b: nn.Module, size: int = 32) -> None:
    assert torch.equal(logits(a, size), logits(b, size))


def saved(folder: Path, content: Any, name: str = "model.pt") -> str:
    path = folder / name
    torch.save(content, path)
    return str(path)


def saved_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}
