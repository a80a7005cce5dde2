"""What several test files share: small networks, small data, the real files where they are."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_ln.data import ArrayDataset
from robustbench_ln.models import build_network, save_model
from robustbench_ln.norms import convert_to_localnorm, norm_layers


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real checkpoints and images."""
    folder = os.environ.get("LNBENCH_SHARED")
    if not folder:
        pytest.skip("LNBENCH_SHARED does not name a folder with real checkpoints and images")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar_test(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 of the JPEG CIFAR-10 test images, of all classes, as an image folder."""
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(shared / "data" / "cifar10-jpeg-test.tar.gz") as archive:
        images = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)[::10]
        archive.extractall(folder, sorted(images, key=lambda member: member.offset), filter="data")
    return folder / "test"


def random_network(classes: int = 10, seed: int = 0) -> nn.Module:
    """A demo network with random weights, affine parameters and running statistics."""
    torch.manual_seed(seed)
    network = build_network("demo-net", num_classes=classes)
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, 0, 0.3)
        layer.running_mean.normal_(0, 0.2)
        layer.running_var.uniform_(0.3, 2)
    return network.eval()


def random_localnorm(k: int = 4, seed: int = 0) -> nn.Module:
    """As `random_network`, with K groups of different parameters."""
    network = convert_to_localnorm(random_network(seed=seed), k)
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, 0, 0.3)
    return network.eval()


@pytest.fixture(scope="session")
def bn_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BatchNorm checkpoint."""
    path = tmp_path_factory.mktemp("models") / "bn.pt"
    torch.save({"state_dict": random_network().state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def ln_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LocalNorm checkpoint with K = 4 and group size 8."""
    path = tmp_path_factory.mktemp("models") / "ln.safetensors"
    metadata = {"arch": "demo-net", "n_groups": 4, "group_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    save_model(path, random_localnorm(), metadata=metadata)
    return path


def toy_arrays(n: int, classes: int = 10, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random 8-bit images whose brightness differs between images, and labels that are sorted by class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, size, size, 3)) * generator.uniform(0.3, 1, (n, 1, 1, 3))
    return images.astype(np.uint8), np.sort(generator.integers(0, classes, n))


def toy_data(n: int = 70, **options: int) -> ArrayDataset:
    """`toy_arrays` as a data set."""
    images, labels = toy_arrays(n, **options)
    return ArrayDataset(images, labels, classes=tuple("abcdefghij"))
