"""LocalNorm layers, conversion, evaluation modes: against an independent NumPy implementation, and by their laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.norms import (
    EVAL_MODES,
    NORMS,
    Layout,
    LocalNorm,
    LocalNorm1d,
    LocalNorm2d,
    LocalNorm3d,
    NetworkNorms,
    choose_modes,
    convert_norms,
    convert_to_localnorm,
    frozen_state,
    norm_kind,
    norm_layers,
    normalise,
    parse_mode,
    schedule,
    using,
)
from robustbench_ln.norms.predict import decide, predict_logits, with_rotations

Array = NDArray[np.float64]
EPS = 1e-5


class TwoNorms(nn.Module):
    """conv - norm - relu - conv - norm - relu - pool - linear: enough for statistics to matter twice."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, classes: int = 7) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), norm(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3), norm(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(x.mean((2, 3)))


def bn_network(seed: int = 0) -> TwoNorms:
    torch.manual_seed(seed)
    network = TwoNorms()
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_(0, 0.3)
        layer.running_var.uniform_(0.3, 2)
    return network.eval()


def ln_network(k: int = 3, seed: int = 0) -> nn.Module:
    network = convert_to_localnorm(bn_network(seed), k)
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    return network.eval()


def pictures(n: int, size: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---- An independent implementation in NumPy, float64, image by image and loop by loop -------------------------------


def np_conv(x: Array, conv: nn.Conv2d) -> Array:
    weight, bias = (p.detach().double().numpy() for p in (conv.weight, conv.bias))
    n, _, h, w = x.shape
    out = np.zeros((n, weight.shape[0], h - 2, w - 2))
    for i in range(3):
        for j in range(3):
            out += np.einsum("nchw,oc->nohw", x[:, :, i : i + h - 2, j : j + w - 2], weight[:, :, i, j])
    return out + bias[None, :, None, None]


def np_forward(network: nn.Module, views: Array, sets: list[list[int]], rows: list[int], source: float | None) -> Array:
    """Logits of `views`, where every list in `sets` shares statistics and uses its affine row.

    source: None for live statistics, infinity for running ones, else N of bn-adapt.
    """
    x = views
    for conv, layer in ((network.conv1, network.norm1), (network.conv2, network.norm2)):
        x = np_conv(x, conv)
        weight, bias = (np.atleast_2d(p.detach().double().numpy()) for p in (layer.weight, layer.bias))
        out = np.empty_like(x)
        for members, row in zip(sets, rows, strict=True):
            part = x[members]
            mean, var = part.mean((0, 2, 3)), part.var((0, 2, 3))
            if source is not None:
                share = 1.0 if np.isinf(source) else source / (source + len(members))
                mean = share * layer.running_mean.double().numpy() + (1 - share) * mean
                var = share * layer.running_var.double().numpy() + (1 - share) * var
            shape = (1, -1, 1, 1)
            scaled = (part - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + EPS)
            out[members] = scaled * weight[row].reshape(shape) + bias[row].reshape(shape)
        x = np.maximum(out, 0)
    head = network.head
    return x.mean((2, 3)) @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()


def np_logits(network: nn.Module, images: Array, mode: str, m: int, k: int, group: Array) -> Array:
    """(passes, B, classes) of SPEC 2.2, written from its table alone."""
    b = len(images)
    name, *numbers = mode.split(":")
    rotated = name.endswith("+rot90")
    alone = [[i] for i in range(b)]
    batches = [list(range(i, i + m)) for i in range(0, b, m)]
    if rotated:
        views = np.concatenate([[np.rot90(image, -turn, (1, 2)) for turn in range(4)] for image in images])
        alone = [list(range(4 * i, 4 * i + 4)) for i in range(b)]
    else:
        views = images
    name = name.removesuffix("+rot90")
    if name == "bn":
        passes = [np_forward(network, views, alone, [0] * b, np.inf)]
    elif name == "dynbn-batch":
        passes = [np_forward(network, views, batches, [0] * len(batches), None)]
    elif name == "bn-adapt":
        passes = [np_forward(network, views, batches, [0] * len(batches), float(numbers[0]))]
    elif name == "dynbn-single":
        passes = [np_forward(network, views, alone, [0] * b, None)]
    elif name == "ln-single":
        passes = [np_forward(network, views, alone, [int(u * k) for u in group], None)]
    elif name == "ln-single-vote":
        passes = [np_forward(network, views, alone, [row] * b, None) for row in range(k)]
    elif name in ("ln-batch", "native"):
        passes = [np_forward(network, views, batches, [i % k for i in range(len(batches))], None)]
    elif name == "ln-voting":
        passes = [np_forward(network, views, batches, [row] * len(batches), None) for row in range(k)]
    else:
        raise AssertionError(name)
    return np.stack([logits[::4] if rotated else logits for logits in passes])


BN_MODES = ["bn", "dynbn-batch:5", "dynbn-single", "dynbn-single+rot90", "bn-adapt:0:5", "bn-adapt:16:5"]
LN_MODES = [
    "ln-single",
    "ln-single+rot90",
    "ln-single-vote",
    "ln-single-vote+rot90",
    "ln-batch:5",
    "ln-voting:5",
    "native",
]


@pytest.mark.parametrize("mode", BN_MODES + LN_MODES)
def test_a_mode_agrees_with_numpy_in_float64(mode: str) -> None:
    k = 3
    network = bn_network() if mode in BN_MODES else ln_network(k)
    images, group = pictures(30), torch.rand(30, generator=torch.Generator().manual_seed(1))
    made = schedule(parse_mode(mode), NetworkNorms.of(network, group_size=5), len(images), (8, 8))
    with frozen_state(network):
        found = predict_logits(network, network, images, made, group).numpy()
    expected = np_logits(network, images.double().numpy(), mode, 5, k, group.numpy())
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_every_mode_of_the_table_is_compared_with_numpy() -> None:
    assert {mode.split(":")[0] for mode in BN_MODES + LN_MODES} == set(EVAL_MODES)


# ---- Laws ---------------------------------------------------------------------------------------------------------


def run_mode(network: nn.Module, images: Tensor, mode: str, group_size: int | None = 4) -> Tensor:
    made = schedule(parse_mode(mode), NetworkNorms.of(network, group_size), len(images), (8, 8))
    with frozen_state(network):
        return predict_logits(network, network, images, made, torch.full((len(images),), 0.4))


def test_one_group_equals_dynamic_batchnorm() -> None:
    network, images = bn_network(), pictures(12)
    converted = convert_to_localnorm(network, 1)
    expected = run_mode(network, images, "dynbn-batch:6")
    for mode in ("ln-batch:6", "ln-voting:6"):
        assert torch.equal(run_mode(converted, images, mode), expected)


def test_voting_with_equal_parameters_equals_dynamic_batchnorm() -> None:
    network, images = bn_network(), pictures(12)
    expected = run_mode(network, images, "dynbn-batch:6")
    passes = run_mode(convert_to_localnorm(network, 4), images, "ln-voting:6")
    assert len(passes) == 4
    assert all(torch.equal(one, expected[0]) for one in passes)


def test_single_and_vote_agree_when_group_parameters_are_equal() -> None:
    network, images = convert_to_localnorm(bn_network(), 4), pictures(8)
    single = run_mode(network, images, "ln-single")[0]
    assert all(torch.equal(one, single) for one in run_mode(network, images, "ln-single-vote"))


def test_bn_adapt_reaches_from_dynamic_batchnorm_to_batchnorm() -> None:
    network, images = bn_network(), pictures(12)
    dynamic, frozen = (run_mode(network, images, mode) for mode in ("dynbn-batch:6", "bn"))
    assert torch.allclose(run_mode(network, images, "bn-adapt:0:6"), dynamic, atol=1e-5)
    assert torch.allclose(run_mode(network, images, "bn-adapt:100000000:6"), frozen, atol=1e-5)
    gaps = [float((run_mode(network, images, f"bn-adapt:{n}:6") - frozen).abs().max()) for n in (0, 8, 64, 512)]
    assert gaps == sorted(gaps, reverse=True)


def test_running_statistics_equal_batchnorm_in_eval() -> None:
    network, images = bn_network(), pictures(9)
    assert torch.equal(run_mode(network, images, "bn")[0], network(images).double())


def test_native_equals_ln_batch_for_full_batches() -> None:
    network, images = ln_network(3), pictures(24)
    assert torch.equal(run_mode(network, images, "native"), run_mode(network, images, "ln-batch:4"))


def test_one_whole_group_equals_batchnorm_in_train() -> None:
    x = torch.randn(8, 5, 4, 4) * 3 + 1
    batchnorm = nn.BatchNorm2d(5)
    local = LocalNorm2d(5, 1)
    assert torch.allclose(local(x), batchnorm(x), atol=1e-6)


def test_groups_of_one_image_equal_instancenorm() -> None:
    x = torch.randn(6, 5, 4, 4)
    assert torch.allclose(LocalNorm2d(5, 6)(x), nn.InstanceNorm2d(5)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"), [(LocalNorm1d, (8, 5)), (LocalNorm1d, (8, 5, 7)), (LocalNorm3d, (8, 5, 2, 3, 4))]
)
def test_localnorm_works_in_one_and_three_dimensions(layer: type[LocalNorm], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    out = layer(5, 2)(x)
    axes = (0, *range(2, len(shape)))
    for part in (out[:4], out[4:]):
        assert torch.allclose(part.mean(axes), torch.zeros(5), atol=1e-5)
        assert torch.allclose(part.var(axes, correction=0), torch.ones(5), atol=1e-2)


def test_localnorm_has_exact_gradients() -> None:
    torch.manual_seed(0)
    layer = LocalNorm2d(3, 2).double()
    nn.init.uniform_(layer.weight)
    x = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: normalise(x, w, b, 1e-5, Layout(2, (0, 1))), (x, layer.weight, layer.bias)
    )


def test_a_training_batch_must_be_a_multiple_of_the_groups() -> None:
    layer = LocalNorm2d(3, 4)
    with pytest.raises(UsageError, match="6 images for K = 4"):
        layer(torch.rand(6, 3, 2, 2))


@given(n=st.integers(1, 13), k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_in_eval_groups_are_cut_as_tensor_split_does(n: int, k: int) -> None:
    layer = LocalNorm2d(2, k).eval()
    nn.init.normal_(layer.bias)
    x = torch.rand(n, 2, 3, 3)
    parts = [part for part in x.tensor_split(k) if len(part)]
    expected = torch.cat([LocalNorm2d(2, 1)(part) + layer.bias[i, :, None, None] for i, part in enumerate(parts)])
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_zero_variance_and_single_values_give_beta() -> None:
    layer = LocalNorm2d(3, 1).eval()
    nn.init.normal_(layer.bias)
    for x in (torch.rand(1, 3, 1, 1), torch.full((4, 3, 2, 2), 0.3)):
        assert torch.allclose(layer(x), layer.bias[0, :, None, None].expand_as(x).detach(), atol=1e-4)


# ---- Whatever the network --------------------------------------------------------------------------------------------


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: a BatchNorm that holds what comes after it."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        live = self.running_mean is None
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, live, 0.1, self.eps
        )
        return self.act(self.drop(x))


class OwnArithmetic(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


def randomised(layer: nn.Module) -> nn.Module:
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer.eval()


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, BatchNormAct2d])
def test_every_kind_of_batchnorm_follows_the_mode_and_keeps_what_else_it_does(kind: Callable[[int], nn.Module]) -> None:
    layer = randomised(kind(4))
    x = torch.rand(6, 4, 5, 5)
    after = torch.tanh if kind is BatchNormAct2d else (lambda value: value)
    live = nn.functional.batch_norm(x, None, None, training=True)
    with torch.no_grad():
        with using(layer, Layout(6)):
            assert torch.allclose(layer(x), after(live), atol=1e-5)
        with using(layer, Layout(None)):
            frozen = layer(x)
        assert torch.allclose(layer(x), frozen, atol=1e-6)


def test_a_batchnorm_that_does_its_own_arithmetic_is_refused_and_not_ignored() -> None:
    layer = OwnArithmetic(4)
    with using(layer, Layout(2)), pytest.raises(UsageError, match="own arithmetic"):
        layer(torch.rand(2, 4, 3, 3))


@pytest.mark.parametrize("mode", BN_MODES + LN_MODES)
def test_afterwards_the_network_is_as_it_was(mode: str) -> None:
    network = bn_network() if mode in BN_MODES else ln_network(3)
    network.train()
    network.norm1.eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    flags = {name: module.training for name, module in network.named_modules()}
    attributes = {name: set(module.__dict__) for name, module in network.named_modules()}
    run_mode(network, pictures(30), mode, group_size=5)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert flags == {name: module.training for name, module in network.named_modules()}
    assert attributes == {name: set(module.__dict__) for name, module in network.named_modules()}
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_network_is_restored_when_a_forward_pass_fails() -> None:
    network = bn_network().train()
    with pytest.raises(RuntimeError), frozen_state(network), using(network, Layout(2)):
        network(torch.rand(4, 5, 10, 10))
    assert network.training
    assert "forward" not in network.norm1.__dict__


def test_conversion_copies_parameters_into_every_group_and_leaves_the_source_alone() -> None:
    network = bn_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    converted = convert_to_localnorm(network, 5)
    state = converted.state_dict()
    assert set(state) == {key for key in before if "running" not in key and "num_batches" not in key}
    for key, value in state.items():
        expected = before[key].expand(5, -1) if "norm" in key else before[key]
        assert torch.equal(value, expected)
    assert norm_kind(network) == "bn"
    assert norm_kind(converted) == "ln"


@pytest.mark.parametrize("to", NORMS)
def test_conversion_keeps_what_a_batchnorm_subclass_does_besides(to: str) -> None:
    layer = randomised(BatchNormAct2d(4))
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(6, 4, 5, 5)
    expected = convert_norms(plain, to)(x)
    assert torch.allclose(convert_norms(nn.Sequential(layer), to)(x), torch.tanh(expected), atol=1e-6)


def test_a_mode_of_a_converted_network_keeps_what_a_batchnorm_subclass_does_besides() -> None:
    converted = convert_to_localnorm(nn.Sequential(randomised(BatchNormAct2d(4))), 1).eval()
    x = torch.rand(6, 4, 5, 5)
    with using(converted, Layout(1, (0,) * 6)):
        assert torch.allclose(converted(x), torch.tanh(nn.functional.instance_norm(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("to", "function"),
    [
        ("bn", lambda x, n: nn.functional.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)),
        ("dynbn", lambda x, n: nn.functional.batch_norm(x, None, None, n.weight, n.bias, training=True)),
        ("ln", lambda x, n: torch.cat([nn.functional.batch_norm(part, None, None, n.weight, n.bias, training=True)
                                       for part in x.chunk(4)])),
        ("layernorm", lambda x, n: nn.functional.layer_norm(x, x.shape[1:]) * n.weight[:, None, None]
         + n.bias[:, None, None]),
        ("instancenorm", lambda x, n: nn.functional.instance_norm(x, weight=n.weight, bias=n.bias)),
        ("groupnorm", lambda x, n: nn.functional.group_norm(x, 2, n.weight, n.bias)),
    ],
)  # fmt: skip
def test_a_converted_layer_is_the_normalisation_of_its_name_with_the_gamma_and_beta_of_before(
    to: str, function: Callable[[Tensor, nn.BatchNorm2d], Tensor]
) -> None:
    layer = nn.BatchNorm2d(6)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    randomised(layer)
    x = torch.randn(8, 6, 5, 5)
    # Four groups of 6 channels: as many as divide both, 2.
    converted = convert_norms(layer, to, groups=4 if to in ("ln", "groupnorm") else None)
    assert torch.allclose(converted(x), function(x, layer), atol=1e-5)
    assert norm_kind(converted) == ("bn" if to == "dynbn" else to)


def test_switchable_norm_starts_with_everything_that_batchnorm_has() -> None:
    layer = randomised(nn.BatchNorm2d(6))
    converted = convert_norms(layer, "switchnorm")
    nn.init.constant_(converted.mean_weight[2:], 50)
    nn.init.constant_(converted.var_weight[2:], 50)
    x = torch.randn(8, 6, 5, 5)
    assert torch.allclose(converted(x), layer(x), atol=1e-5)
    with pytest.raises(InputError, match="images only"):
        convert_norms(nn.BatchNorm1d(6), "switchnorm")


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d])
@pytest.mark.parametrize("to", [name for name in NORMS if name != "switchnorm"])
def test_every_kind_of_batchnorm_can_be_converted(kind: Callable[..., nn.Module], to: str) -> None:
    plain = kind(4, eps=0.3)
    converted = convert_norms(plain, to)
    shape = {nn.BatchNorm1d: (8, 4, 3), nn.BatchNorm3d: (8, 4, 3, 2, 2)}.get(kind, (8, 4, 3, 3))
    assert converted.eval()(torch.rand(shape)).shape == shape
    assert converted.eps == 0.3
    assert to == "bn" or not any("running" in key or "batches" in key for key in converted.state_dict())


def test_conversion_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="no norm layers"):
        convert_to_localnorm(nn.Linear(2, 2), 4)
    with pytest.raises(InputError, match="norm layers of kind ln"):
        convert_to_localnorm(ln_network(), 4)
    with pytest.raises(InputError, match="OwnArithmetic"):
        convert_norms(OwnArithmetic(4), "groupnorm")
    with pytest.raises(UsageError, match="0 groups"):
        convert_to_localnorm(bn_network(), 0)
    with pytest.raises(UsageError, match="layernorm has no groups"):
        convert_norms(bn_network(), "layernorm", groups=4)
    with pytest.raises(UsageError, match="try: groupnorm"):
        convert_norms(bn_network(), "gruopnorm")


# ---- Names, defaults, units ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EVAL_MODES, "dynbn-batch:64", "ln-voting:8"])
def test_a_mode_is_named_as_the_user_names_it(name: str) -> None:
    text = f"{name}:8" if name == "bn-adapt" else name
    assert parse_mode(text).name == text


@pytest.mark.parametrize(
    "text",
    [
        "bn-adapt",
        "bn:3",
        "ln-single:4",
        "dynbn-batch:0",
        "ln-batch:x",
        "ln-batch:4:4",
        "native:2",
        "dynbn-batch:",
        f"bn-adapt:{10**400}",
        "bn-adapt:1:10000000000",
    ],
)
def test_a_mode_with_wrong_numbers_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_mode(text)


def test_an_unknown_mode_is_answered_with_near_matches() -> None:
    with pytest.raises(UsageError, match="ln-voting"):
        parse_mode("ln-votng")


def test_default_and_all_modes_fit_the_network() -> None:
    bn, ln = NetworkNorms.of(bn_network()), NetworkNorms.of(ln_network(3), 5)
    plain = NetworkNorms.of(nn.Linear(2, 2))
    assert [mode.name for mode in choose_modes(None, bn, group_size=None)] == ["bn", "dynbn-batch"]
    assert [mode.name for mode in choose_modes(None, ln, group_size=None)] == ["ln-single", "ln-batch", "ln-voting"]
    assert [mode.name for mode in choose_modes(None, plain, group_size=None)] == ["native"]
    everything = {mode.name for mode in choose_modes(["all"], bn, group_size=None)}
    assert everything == {"bn", "dynbn-batch", "dynbn-single", "dynbn-single+rot90", "bn-adapt:16"}
    assert {mode.name for mode in choose_modes(["all"], ln, group_size=None)} == {
        name for name in EVAL_MODES if name.startswith("ln-")
    }
    assert [mode.name for mode in choose_modes(["dynbn-batch", "bn"], bn, group_size=32)] == ["dynbn-batch:32", "bn"]


def test_all_modes_leaves_out_exact_duplicates() -> None:
    def everything(network: nn.Module) -> set[str]:
        return {mode.name for mode in NetworkNorms.of(network).all_modes()}

    assert everything(ln_network(1)) == {"ln-single", "ln-single+rot90", "ln-batch"}
    live = TwoNorms(lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    assert everything(live) == {"dynbn-batch", "dynbn-single", "dynbn-single+rot90"}
    assert {mode.name for mode in NetworkNorms.of(live).runnable_modes()} == everything(live) | {"native"}


def test_a_group_size_holds_for_every_mode_that_shares_statistics() -> None:
    live = NetworkNorms.of(TwoNorms(lambda c: nn.BatchNorm2d(c, track_running_stats=False)))
    (mode,) = choose_modes(["native"], live, group_size=16)
    assert (schedule(mode, live, 1000, (8, 8)).unit, mode.name) == (16, "native")
    frozen = NetworkNorms.of(bn_network())
    (mode,) = choose_modes(["native"], frozen, group_size=16)
    assert schedule(mode, frozen, 1000, (8, 8)).images is None


def test_one_thing_has_one_name_however_it_was_asked_for() -> None:
    norms = NetworkNorms.of(ln_network(3), 16)
    names = {schedule(parse_mode(f"ln-voting{m}"), norms, 48, (8, 8)).mode.name for m in ("", ":16")}
    assert names == {"ln-voting"}
    assert schedule(parse_mode("ln-voting:15"), norms, 48, (8, 8)).mode.name == "ln-voting:15"
    # Cut to what the data has, both are the same batches of 30.
    names = {schedule(parse_mode(f"dynbn-batch{m}"), NetworkNorms.of(bn_network()), 30, (8, 8)).mode.name
             for m in ("", ":128", ":30", ":64")}  # fmt: skip
    assert names == {"dynbn-batch"}
    assert schedule(parse_mode("bn-adapt:4:128"), NetworkNorms.of(bn_network()), 900, (8, 8)).mode.name == "bn-adapt:4"


def test_a_single_image_a_group_and_images_that_are_not_square_are_refused_by_name() -> None:
    norms = NetworkNorms.of(ln_network(3), 16)
    with pytest.raises(InputError, match="M = 1"):
        schedule(parse_mode("ln-batch:1"), norms, 1000, (8, 8))
    with pytest.raises(InputError, match="square"):
        schedule(parse_mode("ln-single+rot90"), norms, 1000, (8, 9))


class Tokens(nn.Module):
    """A network that flattens its images into tokens before its norm layer, as some transformers do."""

    def __init__(self, norm: nn.Module, order: str = "images first") -> None:
        super().__init__()
        self.norm, self.order = norm, order

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, T, C)
        if self.order == "mixed":
            return self.norm(tokens.flatten(0, 1)[: len(x) + 1])[: len(x)]
        return self.norm(tokens.flatten(0, 1)).view_as(tokens).mean(1)


@pytest.mark.parametrize("mode", ["dynbn-batch:4", "dynbn-single", "dynbn-single+rot90", "bn-adapt:3:4"])
@pytest.mark.parametrize("affine", [True, False])
def test_flattened_tokens_share_statistics_by_images(mode: str, affine: bool) -> None:
    # The same numbers as a 2-D norm layer over the unflattened image.
    torch.manual_seed(0)
    flat, plain = nn.BatchNorm1d(3, affine=affine), nn.BatchNorm2d(3, affine=affine)
    flat.running_mean.normal_()
    flat.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(flat.weight)
    plain.load_state_dict(flat.state_dict())
    pooled = nn.Sequential(plain, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(8, 3, 4, 4)
    found = []
    for network in (Tokens(flat), pooled):
        made = schedule(parse_mode(mode), NetworkNorms.of(network), len(images), (4, 4))
        with frozen_state(network):
            found.append(predict_logits(network, network, images, made, torch.zeros(8)))
    assert torch.allclose(*found, atol=1e-6)


def test_rows_that_belong_to_no_image_are_refused() -> None:
    network = Tokens(nn.BatchNorm1d(3), "mixed")
    made = schedule(parse_mode("dynbn-batch:4"), NetworkNorms.of(network), 8, (4, 4))
    with frozen_state(network), pytest.raises(InputError, match="9 rows for 8 images"):
        predict_logits(network, network, torch.rand(8, 3, 4, 4), made, torch.zeros(8))


def test_measuring_multiplies_in_full_float32_and_puts_the_settings_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with frozen_state(nn.Linear(2, 2)):
            inside = (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cudnn.deterministic)
        assert inside == ("ieee", True)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_network_without_running_statistics_cannot_run_bn() -> None:
    norms = NetworkNorms.of(TwoNorms(lambda c: nn.BatchNorm2d(c, track_running_stats=False)))
    assert "running" in norms.refusal(EVAL_MODES["bn"])
    assert not norms.refusal(EVAL_MODES["dynbn-batch"])
    assert schedule(EVAL_MODES["native"], norms, 1000, (8, 8)).unit == 128


def test_a_small_data_set_reduces_m_and_never_repeats_an_image_in_a_batch() -> None:
    bn, ln = NetworkNorms.of(bn_network()), NetworkNorms.of(ln_network(3), 16)
    made = schedule(EVAL_MODES["dynbn-batch"], bn, 50, (8, 8))
    assert (made.images, made.unit, bool(made.warning)) == (50, 50, True)
    made = schedule(EVAL_MODES["ln-batch"], ln, 10, (8, 8))
    assert (made.images, made.unit, bool(made.warning)) == (3, 9, True)
    made = schedule(EVAL_MODES["ln-batch"], ln, 48, (8, 8))
    assert (made.images, made.unit, made.warning) == (16, 48, "")
    with pytest.raises(InputError, match="5 images"):
        schedule(EVAL_MODES["ln-batch"], ln, 5, (8, 8))


def test_two_names_for_one_thing_have_one_identity() -> None:
    norms = NetworkNorms.of(bn_network())
    short, long = (schedule(parse_mode(name), norms, 1000, (8, 8)) for name in ("dynbn-batch", "dynbn-batch:128"))
    assert short.identity == long.identity
    assert short.identity != schedule(parse_mode("dynbn-batch:64"), norms, 1000, (8, 8)).identity
    assert (
        schedule(parse_mode("bn-adapt:1:8"), norms, 1000, (8, 8)).identity
        != schedule(parse_mode("bn-adapt:2:8"), norms, 1000, (8, 8)).identity
    )


def test_rotations_are_clockwise_and_need_squares() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    views = with_rotations(image)
    assert views[1, 0].tolist() == [[6, 3, 0], [7, 4, 1], [8, 5, 2]]
    assert torch.equal(views[3, 0], torch.rot90(image[0, 0]))
    with pytest.raises(InputError, match="3x4"):
        with_rotations(torch.rand(1, 1, 3, 4))


# ---- Votes -----------------------------------------------------------------------------------------------------------


def one_hot(*classes: int, n: int = 4) -> Tensor:
    return torch.stack([10.0 * nn.functional.one_hot(torch.tensor([c]), n).double() for c in classes])


def test_the_majority_wins_whatever_the_draw() -> None:
    for tie in (0.0, 0.5, 0.99):
        assert decide(one_hot(2, 1, 2), torch.tensor([tie]), torch.tensor([0]), n_bins=15).predicted.tolist() == [2]


def test_ties_are_broken_by_the_draw_evenly() -> None:
    draws = torch.linspace(0, 0.999, 300)
    logits = one_hot(3, 1, 3, 1).expand(-1, 300, -1)
    predicted = decide(logits, draws, torch.zeros(300, dtype=torch.int64), n_bins=15).predicted
    assert set(predicted.tolist()) == {1, 3}
    assert int((predicted == 1).sum()) == 150


def test_probabilities_are_the_mean_of_the_passes() -> None:
    logits = torch.randn(5, 6, 4, dtype=torch.float64)
    made = decide(logits, torch.zeros(6), torch.zeros(6, dtype=torch.int64), n_bins=15)
    assert torch.allclose(made.log_probabilities.exp(), logits.softmax(-1).mean(0), atol=1e-12)


def test_a_pass_without_finite_logits_has_no_vote() -> None:
    logits = one_hot(2, 1)
    logits[1, 0, 0] = float("nan")
    assert decide(logits, torch.zeros(1), torch.zeros(1, dtype=torch.int64), n_bins=15).predicted.tolist() == [2]
    logits[0, 0, 0] = float("inf")
    made = decide(logits, torch.zeros(1), torch.zeros(1, dtype=torch.int64), n_bins=15)
    assert made.predicted.tolist() == [-1]
    assert torch.allclose(made.log_probabilities.exp(), torch.full((1, 4), 0.25, dtype=torch.float64))


def test_near_ties_and_bin_edges_are_marked_fragile() -> None:
    logits = torch.tensor([[[1.0, 1.00001, 0], [3.0, 1, 0]]], dtype=torch.float64)
    assert decide(logits, torch.zeros(2), torch.zeros(2, dtype=torch.int64), n_bins=15).fragile.tolist() == [
        True,
        False,
    ]
    edge = torch.tensor([[[np.log(0.6), np.log(0.4)], [np.log(0.62), np.log(0.38)]]])
    assert decide(edge, torch.zeros(2), torch.zeros(2, dtype=torch.int64), n_bins=15).fragile.tolist() == [True, False]


def test_a_near_tie_at_the_fifth_place_is_fragile_only_where_the_label_is_in_it() -> None:
    logits = torch.tensor([9.0, 8, 7, 6, 5, 5 + 1e-6, 1], dtype=torch.float64).expand(1, 3, 7)
    made = decide(logits, torch.zeros(3), torch.tensor([4, 5, 0]), n_bins=15)
    assert made.fragile.tolist() == [True, True, False]
