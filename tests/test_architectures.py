"""Architectures: every row is known by its keys and shapes, with the norm layers that were put in BatchNorm's place."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robustbench_ln.errors import InputError, ResourceError, UsageError
from robustbench_ln.models import ARCHITECTURES, build_network, load_model, save_model
from robustbench_ln.models.architectures import (
    NormForm,
    Shapes,
    as_batchnorm,
    find_architecture,
    norm_form,
    shapes_of,
    timm_zoo,
    torchvision_zoo,
)
from robustbench_ln.models.recognition import fitting
from robustbench_ln.norms import SwitchableNorm2d, convert_to_localnorm, norm_kind, norm_layers, replace_norms

# Small enough for a forward pass; every module of the room has some.
SMALL = [
    "demo-net",
    *(f"resnet20{suffix}" for suffix in ("", "-b", "-chenyaofo")),
    "resnet29-bottleneck-bearpaw",
    "preresnet20-bearpaw",
    "preresnet29-bottleneck-bearpaw",
    "wrn-10-1",
    "wrn-16-2",
    "wrn-10-2-szagoruyko",
    "wrn-16-2-meliketoy",
    "wrn-10-2-weiaicunzai",
    "wrn-10-1-deepmind",
    "resnext29-2x4d",
    "resnext20-2x8d-augmix",
    "resnext29-2x8d-prlz77",
    "densenet-22-12-bearpaw",
    "densenet-22-12-augmix",
    "densenet-22-12-andreasveit",
    "cifar_densenet",
    "cifar_mobilenet_v2",
    "cifar_mobilenet_v2-weiaicunzai",
    "cifar_mobilenet_v2_x0_5-chenyaofo",
    "allconv",
    "cifar_vgg11_bn",
    "cifar_vgg11",
    "cifar_vgg11_bn-chengyangfu",
    "cifar_resnet18",
    "cifar_resnet18-weiaicunzai",
    "preact_resnet18",
    "preact_resnet18-weiaicunzai",
    "preact_resnet18-deepmind",
    "resnet18-3x3",
]


def twins(name: str) -> list[str]:
    """Networks of the very same keys and shapes, in the order of the table."""
    stem = name.removesuffix("-pool").removesuffix("-raw")
    if stem in ("preact_resnet18", "preact_resnet18-bn"):
        return [stem, f"{stem}-raw"]
    if stem.endswith("-3x3"):
        return [stem, f"{stem}-pool"]
    pair = ["cifar_mobilenet_v2_x1_0-chenyaofo", "mobilenet_v2"]
    return pair if name in pair else [name]


@cache
def shapes_by_class(name: str, classes: int) -> Shapes:
    return find_architecture(name).guess({}, classes).shapes()


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval() with parameters and statistics that leave no layer without effect."""
    draw = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.8, 1.2, generator=draw)
        elif value.is_floating_point() and (value.dim() == 1 or not key.endswith("weight") or 1 in value.shape[:1]):
            value += 0.1 * torch.randn(value.shape, generator=draw)
    return network.eval()


@torch.no_grad()
def logits(network: nn.Module, size: int = 32) -> Tensor:
    return network(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def saved(folder: Path, network: nn.Module, **metadata: Any) -> str:
    path = folder / "model.safetensors"
    save_model(path, network, metadata=metadata)
    return str(path)


# The table


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_is_recognised_by_its_keys_and_shapes_and_no_other_but_its_twins(name: str) -> None:
    row = ARCHITECTURES[name]
    shapes = dict(shapes_by_class(name, 10))
    full_name = row.guess({}).name
    assert [(match.name, match.num_classes) for match in fitting(shapes)] == [(twin, 10) for twin in twins(full_name)]
    assert row.description
    # The number of classes is read, whatever it is.
    many = {key: (100, *shape[1:]) for key, shape in shapes.items() if key.startswith(f"{row.head}.")}
    match = row.recognise(shapes | many)
    assert match is not None
    assert (match.num_classes, match.hints) == (100, row.guess({}).hints)
    assert find_architecture(full_name).fit(shapes) is not None


@pytest.mark.parametrize(("name", "classes"), [(name, (10, 100)[i % 2]) for i, name in enumerate(SMALL)])
def test_a_random_network_comes_back_with_equal_logits(name: str, classes: int) -> None:
    torch.manual_seed(0)
    network = lively(build_network(name, num_classes=classes))
    match = fitting(shapes_of(network.state_dict()))[0]
    assert (match.name, match.num_classes) == (name, classes)
    again = match.build()
    again.load_state_dict(network.state_dict())
    expected = logits(network)
    assert expected.shape == (2, classes)
    assert expected.std() > 0
    assert torch.equal(logits(again.eval()), expected)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_are_those_of_the_network_for_any_number_of_classes(name: str) -> None:
    row = find_architecture(name)
    for classes in (3, 100):
        assert row.guess({}, classes).shapes() == shapes_of(row.build(classes, **row.hints({})).state_dict())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar_resnet18", 11_173_962),
        ("preact_resnet18", 11_171_146),
        ("wrn-28-10", 36_479_194),
        ("wrn-40-2", 2_243_546),
        ("densenet-100-12-andreasveit", 769_162),
        ("resnext29-8x64d-prlz77", 34_426_698),
        ("cifar_mobilenet_v2", 2_296_922),
        ("resnet164-bottleneck-bearpaw", 1_704_154),
    ],
)
def test_sizes_are_those_that_are_published(name: str, parameters: int) -> None:
    network = find_architecture(name).guess({}).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


# Families


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("wrn-70-16", {"depth": 70, "width": 16}),
        ("wrn-10-1", {"depth": 10, "width": 1}),
        ("resnext29-16x64d-prlz77", {"depth": 29, "cardinality": 16, "width": 64}),
        ("densenet-190-40-bearpaw", {"depth": 190, "growth": 40}),
        ("preresnet56-bearpaw", {"depth": 56}),
    ],
)
def test_depth_and_width_of_a_family_are_read_from_shapes_and_from_the_name(name: str, hints: dict[str, int]) -> None:
    match = fitting(shapes_by_class(name, 10))[0]
    assert match.name == name
    assert hints.items() <= match.hints.items()


def test_a_file_of_another_size_than_arch_says_is_refused_with_its_own_size(tmp_path: Path) -> None:
    network = build_network("wrn-16-2", num_classes=10)
    with pytest.raises(InputError, match=r"does not fit wrn-16-1.*\n.*\n.*--arch wrn-16-2"):
        load_model(saved(tmp_path, network), arch="wrn-16-1")
    assert load_model(saved(tmp_path, network), arch="wrn-16-2").recognised == "--arch"


@pytest.mark.parametrize("name", ["wrn-28", "wrn-28-0", "wrn-2 8-10", "wrn-28-10x", "wrn-29-10", "resnet21"])
def test_names_that_are_no_size_of_a_family_are_unknown(name: str) -> None:
    with pytest.raises(UsageError, match="unknown architecture"):
        find_architecture(name)


def test_metadata_may_name_a_member_of_a_family(tmp_path: Path) -> None:
    network = lively(build_network("wrn-10-1", num_classes=10))
    loaded = load_model(saved(tmp_path, network, arch="wrn-10-1"))
    assert (loaded.arch, loaded.recognised, loaded.warnings) == ("wrn-10-1", "file metadata", ())


def test_unused_stages_other_names_and_a_missing_bias_of_wide_resnets_are_understood() -> None:
    row = ARCHITECTURES["wrn-{depth}-{width}"]
    for hints in ({"sub_block": True}, {"shortcut": "conv_shortcut"}, {"bias": False}):
        torch.manual_seed(0)
        network = lively(row.build(10, depth=10, width=2, **hints))
        (match,) = fitting(shapes_of(network.state_dict()))
        assert match.name == "wrn-10-2"
        again = match.build()
        again.load_state_dict(network.state_dict())
        assert torch.equal(logits(again.eval()), logits(network))


# Where two fit


def test_where_two_fit_the_simpler_is_taken_and_that_is_said(tmp_path: Path) -> None:
    network = lively(build_network("resnet18-3x3-pool", num_classes=10))
    path = saved(tmp_path, network)
    loaded = load_model(path)
    assert loaded.arch == "resnet18-3x3"
    assert loaded.warnings == (
        "the keys and shapes fit resnet18-3x3 and resnet18-3x3-pool; taken is the simpler resnet18-3x3",
    )
    asked = load_model(path, arch="resnet18-3x3-pool")
    assert asked.warnings == ()
    assert torch.equal(logits(asked.network), logits(network))
    assert not torch.equal(logits(loaded.network), logits(network))


def test_a_file_of_a_thousand_classes_is_no_cifar_network() -> None:
    assert [match.name for match in fitting(shapes_by_class("mobilenet_v2", 1000))] == ["mobilenet_v2"]


# Norm layers in BatchNorm's place

FORMS: dict[str, tuple[NormForm, Callable[[tuple[int, ...]], dict[str, tuple[int, ...]]]]] = {
    "LocalNorm": (NormForm("ln", 8), lambda c: {"weight": (8, *c), "bias": (8, *c)}),
    "GroupNorm": (NormForm("affine"), lambda c: {"weight": c, "bias": c}),
    "LayerNorm": (NormForm("layernorm"), lambda c: {"weight": (*c, 4, 4), "bias": (*c, 4, 4)}),
    "InstanceNorm": (NormForm("instancenorm"), lambda c: {}),
    "Switchable": (
        NormForm("switchnorm"),
        lambda c: {
            **dict.fromkeys(("weight", "bias"), (1, *c, 1, 1)),
            **dict.fromkeys(("running_mean", "running_var"), (1, *c, 1)),
            **dict.fromkeys(("mean_weight", "var_weight"), (3,)),
        },
    ),
    "Switchable without a batch": (
        NormForm("switchnorm", batch=False),
        lambda c: {
            **dict.fromkeys(("weight", "bias"), (1, *c, 1, 1)),
            **dict.fromkeys(("mean_weight", "var_weight"), (2,)),
        },
    ),
}


def dressed(plain: Shapes, form: str) -> Shapes:
    """The shapes with other norm layers."""
    layers = [key.removesuffix("running_mean") for key in plain if key.endswith("running_mean")]
    theirs = {layer + name for layer in layers for name in ("weight", "bias", "running_mean", "running_var")}
    shapes = {key: shape for key, shape in plain.items() if key not in theirs}
    for layer in layers:
        shapes |= {layer + name: shape for name, shape in FORMS[form][1](plain[f"{layer}running_mean"]).items()}
    return shapes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_batchnorm_network_is_known_by_other_norm_layers_too(name: str) -> None:
    plain = shapes_by_class(name, 10)
    if not any(key.endswith("running_mean") for key in plain):
        pytest.skip("no BatchNorm")
    for form, (norm, _) in FORMS.items():
        shapes = dressed(plain, form)
        match = ARCHITECTURES[name].recognise(shapes)
        assert match is not None, form
        assert (match.name, match.norm) == (ARCHITECTURES[name].guess({}).name, norm)
        assert as_batchnorm(plain, shapes) == plain


def test_networks_that_mix_kinds_of_norm_or_k_are_not_recognised() -> None:
    plain = dict(shapes_by_class("demo-net", 10))
    local = dict(dressed(plain, "LocalNorm"))
    assert norm_form(plain, {**plain, "bn1.weight": (1, 16, 1, 1)}) is None
    assert norm_form(plain, {**local, "bn1.weight": (4, 16), "bn1.bias": (4, 16)}) is None
    first = {key: local[key] for key in ("bn1.weight", "bn1.bias")}
    rest = {key: shape for key, shape in plain.items() if not key.startswith("bn1.")}
    assert norm_form(plain, rest | first) is None
    assert norm_form(plain, {**local, "extra": (1,)}) is None
    assert norm_form(plain, plain) == NormForm("bn")


def in_place(network: nn.Module, make: Callable[[int], nn.Module]) -> nn.Module:
    return lively(replace_norms(network, lambda _, layer: make(len(layer.running_mean))))


@pytest.mark.parametrize(
    ("make", "kind", "metadata"),
    [
        (lambda c: nn.GroupNorm(math.gcd(32, c), c), "groupnorm", {}),
        (lambda c: nn.GroupNorm(4, c), "groupnorm", {"norm": "groupnorm", "norm_groups": 4}),
        (lambda c: nn.GroupNorm(1, c), "layernorm", {"norm": "layernorm"}),
        (lambda c: nn.InstanceNorm2d(c, affine=True), "instancenorm", {"norm": "instancenorm"}),
        (lambda c: nn.BatchNorm2d(c, track_running_stats=False), "bn", {"norm": "dynbn"}),
        (nn.InstanceNorm2d, "instancenorm", {}),
        (SwitchableNorm2d, "switchnorm", {}),
        (lambda c: SwitchableNorm2d(c, batch=False), "switchnorm", {}),
    ],
)
@pytest.mark.parametrize("name", ["demo-net", "resnet20", "wrn-10-2"])
def test_a_network_with_other_norm_layers_loads_with_equal_logits(
    name: str, make: Callable[[int], nn.Module], kind: str, metadata: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = in_place(build_network(name, num_classes=10), make)
    loaded = load_model(saved(tmp_path, network, **metadata))
    assert (loaded.arch, norm_kind(loaded.network), loaded.n_groups) == (name, kind, None)
    assert torch.allclose(logits(loaded.network), logits(network), atol=1e-6)
    # Where the file cannot say which it is, the guess is told.
    unsaid = kind == "groupnorm" and not metadata
    assert len(loaded.warnings) == unsaid
    assert not unsaid or "taken is GroupNorm with 32 groups" in loaded.warnings[0]


def test_layernorm_over_channels_and_pixels_loads_with_equal_logits(tmp_path: Path) -> None:
    sizes = {"bn1": 16, "bn2": 16, "bn3": 8, "bn4": 4}
    plain = build_network("demo-net", num_classes=10)
    make = {name: (len(layer.running_mean), sizes[name], sizes[name]) for name, layer in norm_layers(plain).items()}
    network = lively(replace_norms(plain, lambda name, _: nn.LayerNorm(make[name])))
    loaded = load_model(saved(tmp_path, network))
    assert (loaded.arch, norm_kind(loaded.network), loaded.warnings) == ("demo-net", "layernorm", ())
    assert torch.equal(logits(loaded.network), logits(network))


@pytest.mark.parametrize("name", SMALL)
def test_a_localnorm_network_is_recognised_with_its_k(name: str) -> None:
    plain = build_network(name, num_classes=10)
    if not norm_layers(plain):
        pytest.skip("no BatchNorm")
    match = fitting(shapes_of(convert_to_localnorm(plain, 4).state_dict()))[0]
    assert (match.name, match.norm) == (name, NormForm("ln", 4))


def test_what_differs_from_an_architecture_is_told_norm_layers_aside(tmp_path: Path) -> None:
    network = convert_to_localnorm(build_network("resnet20", num_classes=10), 4)
    state = {key: value for key, value in network.state_dict().items() if key != "layer2.0.conv1.weight"}
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(
        InputError, match=r"holds a part of a network only\nfound: .*: missing layer2\.0\.conv1\.weight\n"
    ):
        load_model(str(tmp_path / "part.pt"))


# Switchable Norm


def test_switchable_norm_mixes_the_three_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5) * 2 + 1
    layer = SwitchableNorm2d(3)
    for statistic, weights, axes in (
        # Alone, each of the first two is a norm of torch's, but for the unbiased variance of the first.
        (nn.InstanceNorm2d(3), (50.0, 0, 0), None),
        (nn.BatchNorm2d(3), (0, 0, 50.0), (0, 2, 3)),
    ):
        with torch.no_grad():
            layer.mean_weight.copy_(torch.tensor(weights))
            layer.var_weight.copy_(torch.tensor(weights))
        assert torch.allclose(layer(x), statistic(x), atol=0.1), axes


def test_switchable_norm_by_hand() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    layer = lively(SwitchableNorm2d(3))
    a, b = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    for i in range(2):
        var = x[i].flatten(1).var(1)
        mean = x[i].mean((1, 2))
        layer_mean = mean.mean()
        layer_var = (var + mean**2).mean() - layer_mean**2
        mixed_mean = a[0] * mean + a[1] * layer_mean + a[2] * layer.running_mean.flatten()
        mixed_var = b[0] * var + b[1] * layer_var + b[2] * layer.running_var.flatten()
        expected = (x[i] - mixed_mean.view(3, 1, 1)) / (mixed_var.view(3, 1, 1) + 1e-5).sqrt()
        expected = expected * layer.weight[0] + layer.bias[0]
        assert torch.allclose(layer(x)[i], expected, atol=1e-5)


def test_switchable_norm_moves_its_running_statistics_in_training_only() -> None:
    layer, x = SwitchableNorm2d(3), torch.randn(8, 3, 4, 4) + 2
    layer(x)
    assert torch.allclose(layer.running_mean.flatten(), 0.1 * x.mean((0, 2, 3)), atol=1e-5)
    before = layer.running_mean.clone()
    layer.eval()(x)
    assert torch.equal(layer.running_mean, before)
    assert layer(torch.randn(2, 3, 1, 1)).isfinite().all()
    with pytest.raises(UsageError):
        layer(torch.randn(2, 4, 1, 1))


# timm


def test_the_table_holds_torchvisions_classifiers() -> None:
    # A newer torchvision may have more.
    assert set(torchvision_zoo.NAMES) <= set(torchvision.models.list_models(module=torchvision.models))


def test_timm_is_not_imported_for_what_the_table_knows_and_the_index_is_read_without_it(tmp_path: Path) -> None:
    path = saved(tmp_path, build_network("resnet20", num_classes=10))
    code = (
        "import sys; from robustbench_ln.models import load_model; from robustbench_ln.models.architectures import "
        f"timm_zoo; load_model({path!r}); list(timm_zoo._candidates({{}})); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convmixer_768_32", "ghostnet_050", "levit_128s", "test_vit"])
def test_timms_networks_are_recognised(name: str) -> None:
    pytest.importorskip("timm")
    shapes = find_architecture(f"timm:{name}").guess({}, num_classes=7).shapes()
    matches = fitting(shapes)
    assert f"timm:{name}" in {match.name for match in matches}
    assert {match.num_classes for match in matches} == {7}
    assert all(match.shapes() == shapes for match in matches[:2])


def test_a_timm_network_loads_with_equal_logits_and_as_localnorm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = lively(timm.create_model("test_resnet", num_classes=7))
    loaded = load_model(saved(tmp_path, network))
    assert (loaded.arch, loaded.num_classes) == ("timm:test_resnet", 7)
    assert torch.equal(logits(loaded.network, 64), logits(network, 64))
    local = load_model(saved(tmp_path, convert_to_localnorm(network, 4)))
    assert (local.arch, local.n_groups) == ("timm:test_resnet", 4)
    asked = load_model(saved(tmp_path, network), arch="timm:test_resnet")
    assert asked.recognised == "--arch"


def test_tables_that_are_not_in_a_state_dict_keep_their_values(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("levit_128s", num_classes=7)
    match = find_architecture("timm:levit_128s").fit(shapes_of(network.state_dict()))
    assert match is not None
    again = dict(match.build().named_buffers())
    tables = {name: buffer for name, buffer in network.named_buffers() if name not in network.state_dict()}
    assert tables
    assert all(torch.equal(again[name], table) for name, table in tables.items())


def test_without_timm_its_networks_are_named_with_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ((heads, print_), (names, *_)) = next(iter(timm_zoo._index().items()))
    monkeypatch.setattr(timm_zoo, "_fingerprint", lambda shapes, given: print_)
    monkeypatch.setattr(timm_zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=rf"timm:{names[0]} needs timm\n.*\n.*robustbench-ln\[timm\]"):
        fitting({f"{head}.weight": (7, 3) for head in heads})
    with pytest.raises(ResourceError, match="needs timm"):
        find_architecture("timm:resnet50")


def test_an_unknown_timm_name_is_answered_with_near_ones() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=r"unknown timm model 'vit_tiny_patch16_225'\n.*\n.*vit_tiny_patch16_224"):
        find_architecture("timm:vit_tiny_patch16_225")
