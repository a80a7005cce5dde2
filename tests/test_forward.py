"""Cheaper forward passes that change no count: folded BatchNorm, and layers shared between passes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_ln import ArrayDataset, evaluate
from robustbench_ln.models import build_network
from robustbench_ln.norms import (
    Layout,
    NetworkNorms,
    convert_to_localnorm,
    frozen_state,
    parse_mode,
    schedule,
    using,
)
from robustbench_ln.norms.folding import fold_batchnorm
from robustbench_ln.norms.predict import predict_logits


def with_random_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """As after training: running statistics, gamma and beta that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            shape = (layer.num_features,)
            if layer.track_running_stats:
                layer.running_mean = torch.randn(shape, generator=generator) * 0.3
                layer.running_var = torch.rand(shape, generator=generator) + 0.2
            if layer.affine:
                layer.weight.data = torch.rand(shape, generator=generator) + 0.5
                layer.bias.data = torch.randn(shape, generator=generator) * 0.2
    return network.eval()


def batchnorms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


class Twice(nn.Module):
    """A convolution whose output goes into BatchNorm, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return (self.norm(made) + made).mean((2, 3))


class Repeated(nn.Module):
    """A convolution that runs twice, each time before another BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)).relu())).mean((2, 3))


class Activated(nn.BatchNorm2d):
    """A subclass that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


FOLDED_WHOLE = {
    "resnet20": (lambda: build_network("resnet20", num_classes=10), (3, 32, 32)),
    "mobilenet_v3_small": (lambda: build_network("mobilenet_v3_small", num_classes=10), (3, 64, 64)),
    "vgg16_bn": (lambda: build_network("vgg16_bn", num_classes=10), (3, 32, 32)),
    "dense": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.BatchNorm1d(9)), (3, 4, 4)),
    "without affine, without bias": (
        lambda: head(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", FOLDED_WHOLE)
def test_a_folded_network_gives_the_same_logits_without_batchnorm(name: str):
    make, shape = FOLDED_WHOLE[name]
    network = with_random_statistics(make())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    with frozen_state(network):
        folded = fold_batchnorm(network, x)
        assert folded is not None
        assert batchnorms(folded) == 0
        other = torch.rand(3, *shape, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(folded(other), network(other), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())


KEPT = {
    "an output used twice": Twice,
    "a layer that runs twice": Repeated,
    "BatchNorm before the convolution": lambda: head(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)),
    "a subclass that does more": lambda: head(nn.Conv2d(3, 4, 3), Activated(4)),
    "no running statistics": lambda: head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    "tokens": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.BatchNorm1d(3), nn.Flatten()),
    "no BatchNorm": lambda: head(nn.Conv2d(3, 4, 3)),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_stays_as_it_is(name: str):
    network = with_random_statistics(KEPT[name]())
    with frozen_state(network):
        assert fold_batchnorm(network, torch.rand(4, 3, 8, 8)) is None


def test_weights_that_float32_cannot_multiply_out_are_not_folded():
    network = with_random_statistics(head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    network[1].running_var.fill_(float("nan"))
    with frozen_state(network):
        assert fold_batchnorm(network, torch.rand(2, 3, 8, 8)) is None


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), groups=st.sampled_from([1, 2]), bias=st.booleans())
def test_folding_holds_for_any_statistics(seed: int, groups: int, bias: bool):
    layers = nn.Conv2d(4, 6, 3, groups=groups, bias=bias, stride=2), nn.BatchNorm2d(6)
    network = with_random_statistics(head(*layers), seed)
    x = torch.rand(3, 4, 9, 9, generator=torch.Generator().manual_seed(seed))
    with frozen_state(network):
        folded = fold_batchnorm(network, x)
        assert folded is not None
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


def test_evaluation_counts_what_the_network_itself_predicts():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (40, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = with_random_statistics(build_network("resnet20", num_classes=10))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        own = network(images).argmax(1).tolist()
    data = ArrayDataset(pixels, own, classes=[str(i) for i in range(10)])
    results = evaluate(network, data, noise="agn", sigma=0, modes="bn,native", normalize="none", batch_size=16)
    assert {row.counts.correct for row in results.rows} == {40}


def test_voting_runs_the_layers_before_the_first_norm_once():
    network = convert_to_localnorm(build_network("resnet20", num_classes=10), 4).eval()
    runs: Counter[str] = Counter()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            # The arithmetic itself is counted: hooks run for shared outputs as well.
            original = layer._conv_forward
            layer._conv_forward = lambda *args, name=name, original=original: runs.update([name]) or original(*args)
    norms = NetworkNorms.of(network, 4)
    plan = schedule(parse_mode("ln-voting"), norms, 8, (32, 32))
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with frozen_state(network):
        logits = predict_logits(network, network, x, plan, torch.zeros(8))
        first, *others = runs
        assert runs[first] == 1
        assert {runs[name] for name in others} == {4}
        for k in range(4):
            with using(network, Layout(4, (k, k))):
                assert torch.equal(network(x).double(), logits[k])
    assert "forward" not in network.get_submodule(first).__dict__
