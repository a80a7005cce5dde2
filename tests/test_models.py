"""Models: whatever dress a checkpoint wears, it loads to the same network, or says why not."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_ln import models
from robustbench_ln.data import ArrayDataset
from robustbench_ln.errors import InputError, ResourceError, UsageError
from robustbench_ln.models import (
    ARCHITECTURES,
    PREPROCESSINGS,
    Classifier,
    LoadedModel,
    build_network,
    choose_preprocessing,
    load_model,
    parse_normalize,
    save_model,
    state_sha256,
    wrap_module,
)
from robustbench_ln.models.loaded import Geometry, ready
from robustbench_ln.models.loading import SOURCES
from robustbench_ln.models.recognition import fitting
from robustbench_ln.norms import convert_to_localnorm
from robustbench_ln.planning import plan_run
from tests.conftest import toy_data
from tests.networks import Tiny, assert_same, images, lively, prefixed, saved

CIFAR = ["demo-net", "resnet20", "resnet20-b", "resnet56", "resnet56-b", "cifar_vgg11_bn"]
ZOO = [
    "resnet18",
    "mobilenet_v3_small",
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "regnet_y_400mf",
    "googlenet",
]
SLOW_TO_SAVE = ["convnext_tiny", "swin_t"]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return lively(ARCHITECTURES["resnet20"].build(10))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Architectures


@pytest.mark.parametrize("name", CIFAR + ZOO + SLOW_TO_SAVE)
def test_a_state_dict_loads_by_recognition_alone_with_equal_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lively(ARCHITECTURES[name].build(7))
    size = 32 if name in CIFAR else 64
    loaded = load_model(saved(tmp_path, network.state_dict()))
    assert (loaded.arch, loaded.recognised, loaded.num_classes) == (name, "keys and shapes", 7)
    assert loaded.n_groups is None
    assert_same(loaded.network, network, size)


@pytest.mark.parametrize("name", [*CIFAR, "resnet18", "mobilenet_v3_small"])
def test_a_localnorm_network_loads_by_recognition_alone_with_its_k(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = convert_to_localnorm(lively(ARCHITECTURES[name].build(7)), 4)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(tmp_path / "ln.safetensors", network, metadata={})
    loaded = load_model(str(tmp_path / "ln.safetensors"))
    assert (loaded.arch, loaded.n_groups, loaded.group_size) == (name, 4, None)
    assert_same(loaded.network, network, 32 if name in CIFAR else 64)


def test_every_tensor_of_a_recognised_network_is_in_its_state_dict() -> None:
    # What is not, would stay unset when weights are loaded.
    for row in ARCHITECTURES.values():
        if row.name in CIFAR + ZOO + SLOW_TO_SAVE:
            network = row.guess({}).build()
            held = network.state_dict().keys()
            assert {name for name, _ in [*network.named_buffers(), *network.named_parameters()]} <= held, row.name


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    from robustbench_ln.models.architectures.cifar_resnet import PadShortcut

    x = torch.rand(2, 16, 6, 6)
    y = PadShortcut(32)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].count_nonzero() == y[:, 24:].count_nonzero() == 0


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)]
)
def test_cifar_resnets_have_the_published_number_of_parameters(depth: int, parameters: float) -> None:
    network = ARCHITECTURES[f"resnet{depth}"].guess({}).build()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


def test_the_demo_network_is_small() -> None:
    assert 55_000 < sum(p.numel() for p in build_network("demo-net", num_classes=10).parameters()) < 65_000


def test_googlenet_with_and_without_auxiliary_outputs_is_recognised() -> None:
    for auxiliary in (True, False):
        shapes = ARCHITECTURES["googlenet"].guess({"aux1.fc1.weight": (1,)} if auxiliary else {}).shapes()
        assert ("aux1.fc1.weight" in shapes) == auxiliary
        assert [m.architecture.name for m in fitting(shapes)] == ["googlenet"]


def test_loading_draws_no_random_number(net: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path, net.state_dict())
    torch.manual_seed(3)
    load_model(path)
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


# Architectures that do not fit


def test_a_named_architecture_that_does_not_fit_lists_five_keys_and_the_one_that_does(
    net: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load_model(saved(tmp_path, net.state_dict()), arch="resnet32")
    assert caught.value.what == "checkpoint does not fit resnet32"
    assert caught.value.found.count("missing layer") == 5
    assert caught.value.hint == "--arch resnet20"


def test_a_shape_that_differs_is_shown_with_both_shapes(net: nn.Module, tmp_path: Path) -> None:
    state = dict(net.state_dict()) | {"conv1.weight": torch.zeros(16, 1, 3, 3)}
    with pytest.raises(InputError) as caught:
        load_model(saved(tmp_path, state))
    assert "fits no architecture" in caught.value.what
    assert "nearest is resnet20" in caught.value.found
    assert "conv1.weight is (16, 1, 3, 3), expected (16, 3, 3, 3)" in caught.value.found
    assert "--arch NAME" in caught.value.hint
    assert "python:package.module:factory" in caught.value.hint


def test_a_part_of_a_network_is_called_one(net: nn.Module, tmp_path: Path) -> None:
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("linear")}
    with pytest.raises(InputError) as caught:
        load_model(saved(tmp_path, state))
    assert "a part of a network only" in caught.value.what
    assert "missing linear.weight; missing linear.bias" in caught.value.found


def test_another_width_is_compared_with_the_network_it_resembles(net: nn.Module, tmp_path: Path) -> None:
    state = {
        key: torch.zeros([2 * n if n in (16, 32, 64) else n for n in v.shape]) for key, v in net.state_dict().items()
    }
    with pytest.raises(InputError, match=r"nearest is resnet20, 1 of \d+ keys agree: .*expected \(16, 3, 3, 3\)"):
        load_model(saved(tmp_path, state))


def test_an_unknown_network_shows_its_first_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"8 keys, first conv\.weight, conv\.bias"):
        load_model(saved(tmp_path, Tiny().state_dict()))


def test_an_unknown_architecture_is_an_error_before_the_file_is_read() -> None:
    for spec in ("/absent/file.pt", "demo:bn", "python:absent:make", "torchvision:resnet18"):
        with pytest.raises(UsageError, match=r"unknown architecture 'resent32'\n.*\ntry: resnet32 or .* names all"):
            load_model(spec, arch="resent32")


def test_a_named_architecture_is_used(net: nn.Module, tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path, net.state_dict()), arch="resnet20")
    assert (loaded.arch, loaded.recognised) == ("resnet20", "--arch")


# Factories


@pytest.fixture
def factories(here: Path) -> Iterator[str]:
    """A module in the current folder that is not installed anywhere."""
    (here / "their_nets.py").write_text(
        "import torch\n"
        "from tests.networks import Tiny\n"
        "class Wrapped(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.register_buffer('mean', torch.full((3, 1, 1), 0.5))\n"
        "        self.register_buffer('std', torch.full((3, 1, 1), 0.25))\n"
        "        self.model = Tiny(num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.model((x - self.mean) / self.std)\n"
        "def make(): return Tiny(6)\n"
        "def sized(num_classes): return Tiny(num_classes)\n"
        "def fails(): raise RuntimeError('no luck')\n"
        "def leaves(): raise SystemExit(0)\n"
        "def state(): return Tiny().state_dict()\n"
        "def features(): return torch.nn.Conv2d(3, 8, 3)\n"
        "layers = torch.nn.Flatten, torch.nn.LazyBatchNorm1d, lambda: torch.nn.LazyLinear(5)\n"
        "def lazy(): return torch.nn.Sequential(*(layer() for layer in layers))\n"
        "def flat(height, width):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * height * width, 10))\n"
        "def fixed(): return flat(40, 40)\n"
        "answer = 42\n"
    )
    (here / "broken_nets.py").write_text("import absent_module\n")
    yield "their_nets"
    for name in ("their_nets", "broken_nets"):
        sys.modules.pop(name, None)


def test_a_factory_in_the_current_folder_gives_the_network(factories: str) -> None:
    path = list(sys.path)
    loaded = load_model("python:their_nets:make")
    assert (loaded.arch, loaded.recognised, loaded.num_classes) == ("their_nets:make", "factory", 6)
    assert loaded.label == "python-their_nets-make"
    assert loaded.sha256 == state_sha256(loaded.network.state_dict())
    assert loaded.mean is None
    assert sys.path == path
    assert load_model("python:their_nets:sized", num_classes=9).num_classes == 9
    assert load_model("python:their_nets:make", num_classes=9).num_classes == 6


def test_what_a_factory_prints_stays_off_stdout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from torch import nn\nprint('importing')\ndef make():\n    print('building')\n    return nn.Sequential("
    (here / "loud_nets.py").write_text(code + "nn.AdaptiveAvgPool2d(1), nn.Flatten())\n")
    load_model("python:loud_nets:make")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "importing\nbuilding\n" in printed.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("their_nets:fails", "RuntimeError: no luck"),
        ("their_nets:leaves", "SystemExit"),
        ("their_nets:state", "OrderedDict"),
        ("their_nets:features", "Tensor"),
        ("their_nets:sized", "num_classes"),
        ("their_nets:answer", "no factory 'answer'"),
        ("their_nets:absent", "no factory 'absent'"),
        ("broken_nets:make", "absent_module"),
        ("no_such_package.nets:make", "no_such_package"),
    ],
)
def test_a_factory_that_fails_is_an_input_error(name: str, words: str, factories: str) -> None:
    with pytest.raises(InputError, match=words):
        load_model(f"python:{name}")


def test_a_network_of_lazy_layers_that_saw_no_image_is_an_input_error(
    factories: str, net: nn.Module, here: Path
) -> None:
    words = r"lazy layers without a shape\nfound: 6 parameters and buffers .* first 1\.weight\n"
    factory = f"{factories}:lazy"
    lazy = build_network(factory, num_classes=5)
    with pytest.raises(InputError, match=words):
        load_model(f"python:{factory}")
    with pytest.raises(InputError, match=words):
        load_model(saved(here, net.state_dict()), arch=factory)
    with pytest.raises(InputError, match=words):
        load_model(saved(here, lazy), trust=True)
    with pytest.raises(InputError, match=words):
        wrap_module(lazy)
    lazy(images())
    assert wrap_module(lazy).num_classes == 5


def test_a_network_of_an_unusual_size_is_run_on_images_of_the_data(factories: str, here: Path) -> None:
    name = f"{factories}:fixed"
    with pytest.raises(InputError, match="does not turn images"):
        load_model(f"python:{name}")
    assert load_model(f"python:{name}", image_size=lambda: (40, 40)).num_classes == 10
    file = saved(here, build_network(name, num_classes=10).state_dict())
    plan = plan_run([f"python:{name}", file], toy_data(size=40), arch=name)
    assert [model.info.num_classes for model in plan.models] == [10, 10]
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 20, 10))
    data = ArrayDataset(np.zeros((20, 64, 20, 3), np.uint8), np.arange(20) % 10, classes=tuple("abcdefghij"))
    assert plan_run(wide, data).manifest.data.image_size == (64, 20)
    with pytest.raises(InputError, match="does not turn images"):
        plan_run(wide, toy_data(size=40))


def test_the_size_of_the_data_is_not_asked_for_where_a_usual_one_does(factories: str) -> None:
    def image_size() -> tuple[int, int]:
        raise AssertionError

    first, second = (load_model(f"python:{factories}:make", image_size=size) for size in (None, image_size))
    assert first.code == second.code
    with pytest.raises(AssertionError):
        load_model(f"python:{factories}:fixed", image_size=image_size)


def test_images_have_the_size_that_a_zoo_wants_whatever_stands_first(
    factories: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(spec: str, *_: object) -> LoadedModel:
        loaded = ready(lively(Tiny(10)), spec, spec, None, arch="tiny", recognised="zoo", num_classes=10)
        return replace(loaded, geometry=Geometry(40, 40, "bilinear"))

    monkeypatch.setitem(SOURCES, "timm", load)
    for label in "ab":
        (here / "data" / label).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (50, 60), (60 * i, 0, 0)).save(here / "data" / label / f"{i}.png")
    plan = plan_run([f"python:{factories}:fixed", "timm:tiny"], "imagefolder:data")
    assert [model.info.source for model in plan.models] == [f"python:{factories}:fixed", "timm:tiny"]
    assert plan.dataset.image_size == (40, 40)


@pytest.mark.parametrize("name", ["", "their_nets", ":make", "their_nets:", "their nets:make", "a..b:make"])
def test_a_factory_of_another_form_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=r"package\.module:factory"):
        load_model(f"python:{name}")


def test_a_factory_gives_the_architecture_of_a_file_with_the_class_count_of_its_weights(
    factories: str, here: Path
) -> None:
    network = lively(Tiny(17))
    loaded = load_model(saved(here, {"state_dict": prefixed(network.state_dict(), "module.")}), arch="their_nets:sized")
    assert (loaded.arch, loaded.recognised, loaded.num_classes) == ("their_nets:sized", "--arch", 17)
    assert loaded.prefixes == ("module.",)
    assert_same(loaded.network, network)


def test_a_factory_takes_localnorm_weights_too(factories: str, here: Path) -> None:
    network = convert_to_localnorm(lively(Tiny(10)), 2)
    loaded = load_model(saved(here, network.state_dict()), arch="their_nets:sized")
    assert loaded.n_groups == 2
    assert_same(loaded.network, network)


def test_a_factory_that_normalises_itself_is_not_normalised_twice(factories: str, here: Path) -> None:
    network = lively(build_network("their_nets:Wrapped", num_classes=10))
    loaded = load_model(saved(here, network.state_dict()), arch="their_nets:Wrapped")
    assert (loaded.mean, loaded.std, loaded.preprocessing, loaded.prefixes) == ((), (), "the network itself", ())
    assert_same(loaded.network, network)


def test_a_factory_that_does_not_fit_lists_the_keys(factories: str, net: nn.Module, here: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit their_nets:sized\nfound: \d+ keys differ, first missing conv"):
        load_model(saved(here, net.state_dict()), arch="their_nets:sized")


# Names


def test_an_unknown_kind_of_model_is_a_usage_error_with_near_matches() -> None:
    with pytest.raises(UsageError, match="torchvision"):
        load_model("torchvison:resnet18")
    for spec, near in (("torchvision:resnet17", "resnet18"), ("demo:nb", "bn")):
        with pytest.raises(UsageError, match=near) as caught:
            load_model(spec)
        assert len(str(caught.value)) < 200  # not the hundreds that there are


def test_an_architecture_beside_a_name_is_said_to_be_unused(factories: str) -> None:
    assert "--arch resnet20 is for files" in load_model("python:their_nets:make", arch="resnet20").warnings[0]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvision_weights_in_the_cache_load_offline_with_the_zoo_preprocessing(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")
    network = ARCHITECTURES["squeezenet1_1"].build(1000).eval()
    file = hub / "squeezenet1_1-b8a52dc0.pth"
    torch.save(network.state_dict(), file)
    loaded = load_model("torchvision:squeezenet1_1")
    assert (loaded.label, loaded.recognised, loaded.num_classes) == ("torchvision-squeezenet1_1", "zoo", 1000)
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.preprocessing == "zoo"
    assert loaded.geometry == models.Geometry(256, 224, "bilinear")
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert_same(loaded.network, network, 64)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_model("torchvision:squeezenet1_1")


def test_a_download_that_is_forbidden_is_a_resource_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")
    with pytest.raises(ResourceError, match="LNBENCH_OFFLINE"):
        load_model("torchvision:resnet18")


def test_a_download_that_fails_is_a_resource_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LNBENCH_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ResourceError, match="cannot be downloaded"):
        load_model("torchvision:resnet18")


@pytest.mark.parametrize(("kind", "norm_groups"), [("bn", False), ("ln", True)])
def test_the_demo_models_load(kind: str, norm_groups: bool) -> None:
    if not (Path(models.__file__).parent / "demo" / f"{kind}.safetensors").exists():
        pytest.skip("the demo weights are not in this checkout")
    loaded = load_model(f"demo:{kind}")
    assert (loaded.label, loaded.arch, loaded.recognised) == (f"demo-{kind}", "demo-net", "file metadata")
    assert loaded.num_classes == 10
    assert loaded.mean is not None
    assert (loaded.n_groups is not None) == (loaded.group_size is not None) == norm_groups


# Modules in Python


def test_a_module_of_the_caller_stays_as_it_is() -> None:
    network = Tiny().double().train()
    loaded = wrap_module(network)
    assert (loaded.arch, loaded.label, loaded.recognised, loaded.num_classes) == ("Tiny", "Tiny", "module", 5)
    assert network.training
    assert all(p.dtype == torch.float64 and p.requires_grad for p in network.parameters())
    assert not loaded.network.training
    assert not any(p.dtype == torch.float64 or p.requires_grad for p in loaded.network.parameters())


class Scaled(Tiny):
    """A network with all that a state dict does not show."""

    def __init__(self, scale: float = 1, offset: float = 0, power: int = 1) -> None:
        torch.default_generator.manual_seed(0)
        super().__init__()
        self.scale, self.power = scale, power
        self.register_buffer("offset", torch.tensor(float(offset)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x**self.power + self.offset) * self.scale


def identity(network: nn.Module) -> tuple[str, str]:
    loaded = wrap_module(network)
    return loaded.sha256, loaded.code


def test_networks_of_equal_weights_that_do_something_else_are_told_apart() -> None:
    class Other(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(-1))

    networks = [Scaled(), Scaled(scale=1.001), Scaled(offset=0.5), Scaled(power=2), Other()]
    assert len({identity(network)[1] for network in networks}) == len(networks)
    states = [network.state_dict() for network in networks]
    assert all(state_sha256(state) == state_sha256(states[0]) for state in states)
    # Buffers that are not saved count as weights do, though this one changes no logit.
    assert identity(Scaled(offset=1e-12))[0] != identity(Scaled())[0]
    # Layers too: here a ReLU that changes no number.
    assert identity(nn.Sequential(Scaled(), nn.Identity()))[1] != identity(nn.Sequential(Scaled(), nn.Flatten()))[1]


def test_a_network_is_the_same_model_whenever_and_with_however_many_threads_it_is_loaded() -> None:
    class Noisy(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    threads = torch.get_num_threads()
    for make in (Scaled, Noisy, lambda: nn.Sequential(ARCHITECTURES["resnet20"].build(10))):
        torch.manual_seed(0)
        network = make()
        digests = set()
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            torch.manual_seed(n)
            digests.add(identity(network))
        torch.set_num_threads(threads)
        assert len(digests) == 1
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))  # loading drew no number


def test_networks_that_cannot_compute_in_double_precision_have_an_identity_too() -> None:
    class Single(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(x)

    assert identity(Single(scale=2))[1] != identity(Single())[1]
    assert {p.dtype for p in wrap_module(Single()).network.parameters()} == {torch.float32}


def test_twins_in_weights_are_evaluated_side_by_side() -> None:
    twice = [Scaled(), Scaled(power=2)]
    assert len(plan_run(twice, toy_data(20, classes=5), noise="agn", sigma=1).models) == 2
    assert len(plan_run([twice[0], twice[0]], toy_data(20, classes=5), noise="agn", sigma=1).models) == 1


def test_more_classes_than_the_data_has_are_said() -> None:
    plan = plan_run(build_network("demo-net", num_classes=100), toy_data(20), noise="agn", sigma=1)
    assert any("was trained for 100 classes, the data has 10" in warning for warning in plan.manifest.warnings)


def test_code_that_changes_is_another_model_and_random_weights_are_the_same_in_every_run(here: Path) -> None:
    source = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x): return self.conv(x).mean((2, 3))\n"
    )
    torch.manual_seed(1)
    torch.save(nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)}).state_dict(), "weights.pt")

    def ids(text: str) -> list[str]:
        Path("code_nets.py").write_text(text)
        sys.modules.pop("code_nets", None)
        importlib.invalidate_caches()
        torch.rand(1)  # random numbers go on
        loaded = load_model("python:code_nets:Net"), load_model("weights.pt", arch="code_nets:Net")
        return [f"{one.sha256} {one.code}" for one in loaded]

    dont_write, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the clock of files has whole seconds
    try:
        first = ids(source)
        assert ids(source + "# a comment\n") == first
        assert not set(ids(source.replace("mean((2, 3))", "amax((2, 3))"))) & set(first)
    finally:
        sys.dont_write_bytecode = dont_write
        sys.modules.pop("code_nets", None)


def test_the_digest_of_weights_depends_on_names_and_values_only() -> None:
    state = Tiny().state_dict()
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    assert state_sha256(state) != state_sha256({**state, "head.bias": state["head.bias"] + 1})
    assert state_sha256({"a": state["head.bias"]}) != state_sha256({"b": state["head.bias"]})


def test_new_networks_are_built_by_name_or_factory(factories: str) -> None:
    assert build_network("resnet20", num_classes=4).training
    assert isinstance(build_network("their_nets:sized", num_classes=4), Tiny)
    with pytest.raises(UsageError, match="demo-net"):
        build_network("demonet", num_classes=4)


# Preprocessing


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def test_the_classifier_alone_applies_mean_and_std() -> None:
    x = images()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(Classifier(nn.Identity(), MEAN, STD)(x), (x - mean) / std)
    assert torch.equal(Classifier(nn.Identity(), (), ())(x), x)
    assert Classifier(nn.Identity(), MEAN, STD).state_dict() == {}


def test_normalize_is_read_by_name_or_as_numbers() -> None:
    assert parse_normalize("auto") is None
    assert parse_normalize("none") == ((), ())
    assert parse_normalize("half") == ((0.5,) * 3, (0.5,) * 3)
    assert parse_normalize("imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert parse_normalize("0.5,0.5,0.5;0.2, 0.2,0.2") == ((0.5,) * 3, (0.2,) * 3)
    assert parse_normalize("0.5;1") == ((0.5,), (1.0,))


NO_NORMALISATIONS = ["imagnet", "", "1;2;3", "a;b", ";", "0.5;0", "0;-1", "nan;1", "0;inf", "0,0,0;1,1"]
NO_NORMALISATIONS += ["0.5,0.5;0.2,0.2", "0,0,0,0;1,1,1,1"]  # as many channels as no image has


@pytest.mark.parametrize("text", NO_NORMALISATIONS)
def test_a_normalisation_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_normalize(text)
    assert caught.value.hint


class Ruler(nn.Module):
    """Right exactly where the images come normalised by what it was made for; undecided otherwise."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.undo = mean or (0.0,), std or (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self.undo)
        grey = (x * std + mean).mean((1, 2, 3))
        distance = (grey[:, None] - torch.linspace(0, 1, 50)).abs()
        return -400 * distance


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_the_probe_finds_the_preprocessing_that_a_network_was_made_for(name: str) -> None:
    labels = torch.arange(50).repeat(12)
    x = torch.linspace(0, 1, 50).repeat(12).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    row = PREPROCESSINGS[name]
    choice = choose_preprocessing(Ruler(row.mean, row.std), x, labels)
    assert (choice.name, choice.mean, choice.std) == (name, row.mean, row.std)
    assert choice.accuracies[name] == 1
    assert set(choice.accuracies) == set(PREPROCESSINGS)
    assert choice.text.startswith(f"{name}: 100.0% of 512 clean images right (")
    assert "near tie" not in choice.text


def test_a_near_tie_goes_to_the_better_likelihood_and_is_said() -> None:
    class Unsure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Always the same class; the smaller the values, the less sure.
            return torch.stack([x.abs().amax((1, 2, 3)) + 1, torch.zeros(len(x))], 1)

    told: list[tuple[int, int]] = []
    choice = choose_preprocessing(Unsure(), images(n=40), torch.arange(40) % 2, lambda *at: told.append(at))
    assert told == [(40 * i, 160) for i in (1, 2, 3, 4)]
    assert choice.accuracies == dict.fromkeys(choice.accuracies, 0.5)
    assert choice.name in ("half", "none")
    assert "a near tie, decided by negative log-likelihood" in choice.text


def test_logits_that_are_not_finite_count_as_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), torch.nan)

    choice = choose_preprocessing(Broken(), images(), torch.zeros(4, dtype=torch.int64))
    assert set(choice.accuracies.values()) == {0.0}


# Real checkpoints


@pytest.fixture(scope="module")
def cifar(shared: Path) -> tuple[Tensor, Tensor]:
    """512 images of the test set in a fixed random order, and their labels."""
    archive = shared / "data" / "cifar10-jpeg-test.tar.gz"
    with tarfile.open(archive) as tar:
        files = sorted((m for m in tar if m.isfile() and m.name.endswith((".jpg", ".jpeg"))), key=lambda m: m.name)
        classes = sorted({Path(m.name).parent.name for m in files})
        chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:512].tolist()
        # The archive is read in its own order: jumping about in a gzip stream is slow.
        wanted = sorted((files[i] for i in chosen), key=lambda m: m.offset)
        pixels = [np.asarray(Image.open(tar.extractfile(m)).convert("RGB")) for m in wanted]  # type: ignore[arg-type]
        labels = [classes.index(Path(m.name).parent.name) for m in wanted]
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()[order] / 255, torch.tensor(labels)[order]


@pytest.mark.parametrize(("name", "arch"), [("resnet20-12fca82f", "resnet20"), ("resnet32-d509ac18", "resnet32")])
def test_real_checkpoints_load_by_recognition_and_the_probe_finds_their_preprocessing(
    name: str, arch: str, shared: Path, cifar: tuple[Tensor, Tensor]
) -> None:
    loaded = load_model(str(shared / "checkpoints" / f"{name}.th"))
    assert (loaded.arch, loaded.recognised, loaded.num_classes, loaded.label) == (arch, "keys and shapes", 10, name)
    assert (loaded.container, loaded.prefixes, loaded.warnings) == ("state_dict", ("module.",), ())
    # The files are named after their digests.
    assert loaded.sha256.startswith(name.rpartition("-")[2])
    choice = choose_preprocessing(loaded.network, *cifar)
    assert choice.name == "imagenet"
    assert 0.75 < choice.accuracies["imagenet"] < 0.88


def test_the_surface_is_what_is_imported() -> None:
    imported = {
        name for name, value in vars(models).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(models.__all__) == imported
