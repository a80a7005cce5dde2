"""The LocalNorm layer: forward and gradients against NumPy in float64, and what a layer of a network has to bear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_ln.norms import LocalNorm1d, LocalNorm2d, LocalNorm3d, convert_norms, layer

Array = NDArray[np.float64]
BIG = (8, 6, 40, 40)  # more values in a set than are put side by side


@pytest.fixture(params=["side by side", "in place"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which sets are normalised, whatever their size."""
    monkeypatch.setattr(layer, "_SMALL_SET", 1 << 30 if request.param == "side by side" else 0)
    return request.param


def made(shape: tuple[int, ...], k: int, seed: int = 0) -> tuple[LocalNorm2d, Tensor, Tensor]:
    """A layer with K different gammas and betas, images, and a gradient of the output; all float64."""
    torch.manual_seed(seed)
    norm = LocalNorm2d(shape[1], k).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
    return norm, x, torch.randn(shape, dtype=torch.float64)


def np_localnorm(x: Array, gamma: Array, beta: Array, dy: Array, eps: float) -> tuple[Array, Array, Array, Array]:
    """Output, and gradients of x, gamma and beta, channel by channel from the definition."""
    y, dx = np.empty_like(x), np.empty_like(x)
    dgamma, dbeta = np.empty_like(gamma), np.empty_like(beta)
    size = len(x) // len(gamma)
    for k in range(len(gamma)):
        for c in range(x.shape[1]):
            part, upstream = x[k * size : (k + 1) * size, c], dy[k * size : (k + 1) * size, c]
            deviation = np.sqrt(part.var() + eps)
            scaled = (part - part.mean()) / deviation
            y[k * size : (k + 1) * size, c] = gamma[k, c] * scaled + beta[k, c]
            dgamma[k, c], dbeta[k, c] = (upstream * scaled).sum(), upstream.sum()
            # The mean and the variance depend on every value of the part.
            centred = upstream - upstream.mean() - scaled * (upstream * scaled).mean()
            dx[k * size : (k + 1) * size, c] = gamma[k, c] * centred / deviation
    return y, dx, dgamma, dbeta


@given(
    k=st.integers(1, 4),
    size=st.integers(1, 4),
    features=st.integers(1, 4),
    spatial=st.sampled_from([(), (5,), (3, 2), (2, 3, 2)]),
    small=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_forward_and_gradients_are_those_of_the_definition(
    k: int, size: int, features: int, spatial: tuple[int, ...], small: bool, seed: int
) -> None:
    norm, x, dy = made((k * size, features, *spatial), k, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "_SMALL_SET", 1 << 30 if small else 0)
        y = norm(x)
        y.backward(dy)
    arrays = (one.detach().numpy() for one in (x, norm.weight, norm.bias, dy))
    expected = np_localnorm(*arrays, norm.eps)
    for found, wanted in zip((y, x.grad, norm.weight.grad, norm.bias.grad), expected, strict=True):
        # A part of one value has a deviation of sqrt(eps), which makes 1e-13 of rounding 1e-8.
        assert np.allclose(found.detach().numpy(), wanted, rtol=1e-9, atol=1e-7)


def test_large_groups_in_float32_are_those_of_the_definition_too() -> None:
    norm, x, dy = made(BIG, 2)
    single, images = norm.float(), x.detach().float().requires_grad_()
    single(images).backward(dy.float())
    arrays = (one.detach().double().numpy() for one in (images, single.weight, single.bias, dy))
    _, dx, dgamma, dbeta = np_localnorm(*arrays, norm.eps)
    assert np.allclose(images.grad.numpy(), dx, atol=1e-5)
    assert np.allclose(single.weight.grad.numpy(), dgamma, rtol=1e-4, atol=1e-3)
    assert np.allclose(single.bias.grad.numpy(), dbeta, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("path")
def test_equal_groups_of_equal_images_are_one_batchnorm() -> None:
    k = 3
    batchnorm = nn.BatchNorm2d(5).double()
    nn.init.uniform_(batchnorm.weight, 0.5, 1.5)
    nn.init.normal_(batchnorm.bias)
    norm = convert_norms(batchnorm, "ln", groups=k)
    images, upstream = (torch.randn(4, 5, 6, 6, dtype=torch.float64).repeat(k, 1, 1, 1) for _ in range(2))
    found, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    assert torch.allclose(norm(found), batchnorm(expected), atol=1e-12)
    norm(found).backward(upstream)
    batchnorm(expected).backward(upstream)
    assert torch.allclose(found.grad, expected.grad, atol=1e-12)
    assert torch.allclose(norm.weight.grad.sum(0), batchnorm.weight.grad, atol=1e-10)
    assert torch.allclose(norm.bias.grad.sum(0), batchnorm.bias.grad, atol=1e-10)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives_are_exact(affine: bool) -> None:
    torch.manual_seed(0)
    norm = LocalNorm2d(2, 2, affine=affine).double()
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *norm.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x), inputs)


@pytest.mark.usefixtures("path")
def test_functional_transforms_and_tracing_see_through_the_layer() -> None:
    norm, x, dy = made((6, 3, 4, 4), 3)
    norm(x).backward(dy)
    gradient = torch.func.grad(lambda images: (norm(images) * dy).sum())(x.detach())
    assert torch.allclose(gradient, x.grad, atol=1e-12)
    traced = torch.jit.trace(norm.eval(), x.detach())
    assert torch.allclose(traced(x.detach()), norm(x), atol=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("kind", "shape", "form"),
    [
        (LocalNorm2d, (6, 4, 5, 5), torch.channels_last),
        (LocalNorm2d, (6, 4, 5, 5), torch.contiguous_format),
        (LocalNorm3d, (6, 4, 3, 5, 5), torch.channels_last_3d),
        (LocalNorm1d, (6, 4, 5), torch.contiguous_format),
    ],
)
def test_the_memory_format_stays_and_changes_no_number(
    kind: Callable[..., nn.Module], shape: tuple[int, ...], form: torch.memory_format
) -> None:
    norm = kind(4, 2)
    images = torch.randn(shape)
    found = images.clone(memory_format=form).requires_grad_()
    expected = images.clone().requires_grad_()
    upstream = torch.randn(shape)
    y = norm(found)
    y.backward(upstream.to(memory_format=form))
    norm(expected).backward(upstream)
    assert y.is_contiguous(memory_format=form)
    assert torch.allclose(y, norm(expected), atol=1e-5)
    assert torch.allclose(found.grad, expected.grad, atol=1e-5)


@pytest.mark.usefixtures("path")
def test_strides_of_any_kind_change_no_number() -> None:
    norm, _, dy = made((6, 4, 5, 5), 2)
    images = torch.randn(12, 5, 4, 10, dtype=torch.float64)
    odd = images.transpose(1, 2)[::2, :, :, ::2].requires_grad_()
    plain = odd.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    for x in (odd, plain):
        norm(x).sum(0, keepdim=True).expand_as(dy).backward(dy)  # a gradient that is not dense either
    assert torch.allclose(norm(odd), norm(plain), atol=1e-12)
    assert torch.allclose(odd.grad, plain.grad, atol=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_statistics_of_16_bit_images_are_32_bit(kind: torch.dtype, affine: bool) -> None:
    # 16-bit sums would lose these: the deviation is a hundredth of the mean.
    x = (100 + torch.randn(8, 3, 30, 30)).to(kind).requires_grad_()
    norm = LocalNorm2d(3, 2, affine=affine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    y.float().square().mean().backward()
    assert (y.dtype, x.grad.dtype) == (kind, kind)
    assert torch.allclose(y.float(), norm(x.detach().float()), atol=0.03)
    assert not affine or norm.weight.grad.dtype == torch.float32


class Small(nn.Module):
    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), LocalNorm2d(8, k), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_takes_the_layer_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = Small()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    x = torch.randn(8, 3, 35, 35)
    for found, expected in zip(gradients(compiled, x), gradients(network, x), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    network.eval()
    for n in (8, 3, 10):  # whole groups, fewer images than groups, groups of two sizes
        assert torch.allclose(compiled(x[:1].expand(n, -1, -1, -1)), network(x[:1].expand(n, -1, -1, -1)), atol=1e-5)


def test_distributed_training_of_one_process_changes_no_gradient(tmp_path: Path) -> None:
    network, x = Small(), torch.randn(8, 3, 12, 12)
    expected = gradients(network, x)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        # A parameter without a gradient would be an error here.
        found = gradients(nn.parallel.DistributedDataParallel(network), x)
    finally:
        dist.destroy_process_group()
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
