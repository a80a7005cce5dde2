"""`lnbench convert`: files that need no flag, with the numbers of the network that they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from robustbench_ln import convert, convert_norms, evaluate, load_model, report
from robustbench_ln.cli.app import app
from robustbench_ln.errors import InputError, LnbenchError, UsageError
from robustbench_ln.models import build_network, save_model
from robustbench_ln.models.checkpoint import file_sha256
from robustbench_ln.norms import NORMS, NetworkNorms, frozen_state, norm_kind, norm_layers, parse_mode, schedule
from robustbench_ln.norms.predict import predict_logits
from tests.networks import lively

COMPARATORS = ("layernorm", "instancenorm", "groupnorm", "switchnorm")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def network_file(folder: Path, arch: str = "resnet20", **metadata: Any) -> Path:
    torch.manual_seed(0)
    path = folder / f"{arch}.safetensors"
    save_model(path, lively(build_network(arch, num_classes=10)), metadata=metadata)
    return path


def logits(network: nn.Module, mode: str, group_size: int | None = None) -> Tensor:
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = schedule(parse_mode(mode), NetworkNorms.of(network, group_size), len(images), (32, 32))
    with frozen_state(network):
        return predict_logits(network, network, images, made, torch.zeros(len(images)))


def test_keys_stay_running_statistics_go_and_every_group_has_gamma_and_beta(tmp_path: Path) -> None:
    source = network_file(tmp_path, preprocessing="half")
    made = convert(str(source), groups=8, out=tmp_path / "ln.safetensors")
    before, after = load_file(source), load_file(tmp_path / "ln.safetensors")
    assert list(after) == [key for key in before if "running" not in key and "num_batches" not in key]
    norms = [f"{name}." for name in norm_layers(build_network("resnet20", num_classes=10))]
    for key, value in after.items():
        expected = before[key].expand(8, -1) if key.startswith(tuple(norms)) else before[key]
        assert torch.equal(value, expected), key
    assert (made.n_groups, made.group_size, made.norm_layers) == (8, 16, 19)
    assert metadata_of(tmp_path / "ln.safetensors") == {
        "arch": "resnet20",
        "group_size": "16",
        "mean": "[0.5, 0.5, 0.5]",
        "n_groups": "8",
        "norm": "ln",
        "num_classes": "10",
        "preprocessing": "file metadata",
        "source_sha256": file_sha256(source),
        "std": "[0.5, 0.5, 0.5]",
    }


@pytest.mark.parametrize("arch", ["demo-net", "resnet20", "wrn-10-2", "vgg16_bn"])
def test_one_group_in_ln_batch_is_dynamic_batchnorm(arch: str, tmp_path: Path) -> None:
    source = network_file(tmp_path, arch)
    convert(str(source), groups=1, out=tmp_path / "ln.safetensors")
    network = load_model(str(tmp_path / "ln.safetensors")).network
    assert torch.equal(logits(network, "ln-batch:12"), logits(load_model(str(source)).network, "dynbn-batch:12"))


@pytest.mark.parametrize("to", NORMS)
def test_a_file_is_read_back_as_what_was_written_without_a_flag(to: str, tmp_path: Path) -> None:
    source = network_file(tmp_path, preprocessing="half")
    groups = {"ln": 4, "groupnorm": 4}.get(to)
    convert(str(source), to=to, groups=groups, out=tmp_path / "made.safetensors")
    loaded = load_model(str(tmp_path / "made.safetensors"))
    expected = convert_norms(load_model(str(source)).network, to, groups=groups)
    assert torch.equal(logits(loaded.network, "native", 6), logits(expected, "native", 6))
    assert norm_kind(loaded.network) == norm_kind(expected)
    assert (loaded.arch, loaded.recognised, loaded.mean) == ("resnet20", "file metadata", (0.5, 0.5, 0.5))
    assert (loaded.source_sha256, loaded.warnings) == (file_sha256(source), ())


def test_the_group_size_is_that_of_the_file(tmp_path: Path) -> None:
    for asked, expected in ((None, 32), (6, 6)):
        convert("demo:bn", groups=4, group_size=asked, out=tmp_path / f"{asked}.safetensors")
        loaded = load_model(str(tmp_path / f"{asked}.safetensors"))
        assert (loaded.n_groups, loaded.group_size) == (4, expected)


def test_normalize_is_recorded_and_its_lack_is_said(tmp_path: Path) -> None:
    source = str(network_file(tmp_path))
    made = convert(source, out=tmp_path / "unsaid.safetensors")
    assert any("--normalize" in warning for warning in made.warnings)
    made = convert(source, normalize="cifar10", out=tmp_path / "said.safetensors")
    assert (made.preprocessing, made.warnings) == ("cifar10", ())
    assert load_model(str(tmp_path / "said.safetensors")).std == (0.2470, 0.2435, 0.2616)


def test_all_forms_of_checkpoint_can_be_converted(tmp_path: Path) -> None:
    network = lively(build_network("resnet20", num_classes=10))
    wrapped = {"model": {f"module.{key}": value for key, value in network.state_dict().items()}}
    averaged = {f"module.{key}": value + 1 for key, value in network.state_dict().items()}
    torch.save({**wrapped, "model_ema": averaged}, tmp_path / "wrapped.pt")
    convert(str(tmp_path / "wrapped.pt"), out=tmp_path / "plain.safetensors")
    convert(str(tmp_path / "wrapped.pt"), ema=True, out=tmp_path / "averaged.safetensors")
    plain, averages = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "averaged"))
    assert plain.keys() == averages.keys()
    assert torch.equal(plain["linear.weight"], network.state_dict()["linear.weight"])
    assert torch.equal(averages["linear.weight"], plain["linear.weight"] + 1)
    torch.save(network, tmp_path / "whole.pt")
    with pytest.raises(InputError, match="--trust"):
        convert(str(tmp_path / "whole.pt"), out=tmp_path / "whole.safetensors")
    convert(str(tmp_path / "whole.pt"), trust=True, out=tmp_path / "whole.safetensors")
    assert torch.equal(load_file(tmp_path / "whole.safetensors")["linear.weight"], plain["linear.weight"])


FACTORY = """
from torch import nn

def factory(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


def test_a_network_of_the_users_code_is_converted_and_its_file_names_the_flag_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_network.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "own.safetensors"
    made = convert("python:my_own_network:factory", groups=2, out=out)
    assert any("--arch my_own_network:factory" in warning for warning in made.warnings)
    with pytest.raises(InputError, match="try: --arch my_own_network:factory"):
        load_model(str(out))
    assert load_model(str(out), arch="my_own_network:factory").n_groups == 2


def test_a_module_can_be_converted_in_python(tmp_path: Path) -> None:
    network = lively(build_network("resnet20", num_classes=10))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    convert(network, out=tmp_path / "ln.safetensors")
    assert load_model(str(tmp_path / "ln.safetensors")).arch == "resnet20"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_same_command_again_is_fine_and_another_file_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "ln.safetensors"
    for _ in range(2):
        convert("demo:bn", out=out)
    content = out.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        convert("demo:bn", groups=4, out=out)
    assert out.read_bytes() == content
    assert list(tmp_path.iterdir()) == [out]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "arguments", "code", "words"),
    [
        ("demo:ln", {}, 3, "norm layers of kind ln"),
        (Plain(), {}, 3, "no norm layers"),
        ("missing.pt", {}, 3, "missing.pt"),
        ("demo:bn", {"to": "locallnorm"}, 2, "normalisation"),
        ("demo:bn", {"groups": 0}, 2, "--groups"),
        ("demo:bn", {"group_size": 0}, 2, "--group-size"),
        ("demo:bn", {"to": "layernorm", "groups": 8}, 2, "has no groups"),
        ("demo:bn", {"to": "groupnorm", "group_size": 8}, 2, "--to ln"),
        ("demo:bn", {"out": "made.pt"}, 2, "--out made.safetensors"),
        ("demo:bn", {"normalize": "imagnet"}, 2, "imagenet"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(
    model: str | nn.Module, arguments: dict[str, Any], code: int, words: str, tmp_path: Path
) -> None:
    given = {"out": "made.safetensors", **arguments}
    with pytest.raises(LnbenchError, match=words) as raised:
        convert(model, **{**given, "out": tmp_path / given["out"]})
    assert raised.value.exit_code == code
    assert not list(tmp_path.iterdir())


def test_a_program_cannot_be_converted(tmp_path: Path) -> None:
    torch.jit.trace(Plain().eval(), torch.rand(2, 3, 8, 8)).save(tmp_path / "program.pt")
    with pytest.raises(InputError, match="is a program, whose norm layers cannot be replaced"):
        convert(str(tmp_path / "program.pt"), trust=True, out=tmp_path / "made.safetensors")


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    done = run("convert", "demo:bn", "--to", "ln", "--groups", "4", "--out", str(out))
    assert done.exit_code == 0
    assert done.stdout == f"{out}: demo-net with 4 norm layers of kind ln, K = 4 groups of 32\n"
    done = run("convert", "demo:bn", "--to", "groupnorm", "--out", str(tmp_path / "gn.safetensors"), "--json")
    facts = json.loads(done.stdout)
    assert (facts["norm"], facts["norm_groups"], facts["n_groups"], facts["arch"]) == (
        "groupnorm",
        32,
        None,
        "demo-net",
    )


def test_comparators_run_native_and_stand_in_the_same_tables_and_plots(tmp_path: Path) -> None:
    models = ["demo:bn"]
    for to in COMPARATORS:
        models.append(str(tmp_path / f"{to}.safetensors"))
        convert("demo:bn", to=to, out=models[-1])
    results = evaluate(models, sigma="0,0.5", limit=40, out=tmp_path / "run")
    modes: dict[str, set[str]] = {}
    for row in results.rows:
        modes.setdefault(row.model.partition("@")[0], set()).add(row.mode)
    assert modes == {"demo-bn": {"bn", "dynbn-batch"}, **{name: {"native"} for name in COMPARATORS}}
    assert [model.norm for model in results.document.models] == ["bn", *COMPARATORS]
    for text in (report(tmp_path / "run", format="markdown"), (tmp_path / "run" / "curves.svg").read_text()):
        assert all(name in text for name in ("demo-bn", *COMPARATORS))
