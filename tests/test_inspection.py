"""What `lnbench inspect` tells of a model, and its tree of modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

from robustbench_ln.cli.app import app
from robustbench_ln.cli.inspect import _count
from robustbench_ln.errors import InputError, TrustError
from robustbench_ln.inspection import inspect_model, module_tree, probe_logits
from robustbench_ln.models import build_network, load_model, save_model, wrap_module
from robustbench_ln.norms import convert_to_localnorm, norm_layers
from tests.networks import Tiny, lively, saved


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def flat(node: dict[str, Any], times: int = 1) -> list[tuple[dict[str, Any], int]]:
    """Every node, and how often it is in the network."""
    times *= node["repeat"]
    return [(node, times), *(each for child in node["children"] for each in flat(child, times))]


@pytest.mark.parametrize("name", ["resnet152", "densenet121", "mobilenet_v3_small", "vgg16_bn", "vit_b_16"])
def test_the_tree_folds_what_repeats_and_counts_everything_once(name: str) -> None:
    network = on_meta(name)
    tree = module_tree(network)
    nodes = flat(tree)
    leaves = [(node, times) for node, times in nodes if not node["children"]]
    assert sum(times for _, times in nodes) == len(list(network.modules()))
    assert sum(node["parameters"] * times for node, times in leaves) <= tree["parameters"]
    assert tree["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    marked = sum(times for node, times in leaves if node["norm"])
    assert marked == (len(norm_layers(network)) or 25)  # the LayerNorms of a transformer are marked too
    json.dumps(tree, allow_nan=False)


def test_a_resnet152_fits_on_a_screen() -> None:
    tree = module_tree(on_meta("resnet152"))
    assert _count(tree, 2) < 24
    assert _count(tree, 99) < 100  # of 515 modules
    (repeated,) = (child for child in tree["children"][6]["children"] if child["repeat"] > 1)
    assert (repeated["name"], repeated["repeat"], repeated["type"]) == ("1 ... 35", 35, "Bottleneck")


def test_localnorm_layers_show_their_k() -> None:
    tree = module_tree(convert_to_localnorm(build_network("demo-net", num_classes=10), 4))
    norms = [node for node, _ in flat(tree) if node["norm"]]
    assert {node["type"] for node in norms} == {"LocalNorm2d"}
    assert norms[0]["detail"].startswith("4 x ")
    assert tree["norm_layers"] == len(norms) == 4


def test_everything_found_out_is_in_the_facts(tmp_path: Path) -> None:
    network = lively(build_network("resnet20", num_classes=10))
    half = {f"module.{key}": value.half() for key, value in network.state_dict().items()}
    content = {"model": half, "ema": {key: value + 1 for key, value in half.items()}, "args": {Tiny(): 1}}
    facts = inspect_model(load_model(saved(tmp_path, content), ema=False))
    known = {
        "format": "torch.save",
        "container": "model",
        "copy": "model",
        "averaged": False,
        "prefixes": ["module."],
        "precision": ["float16"],
        "arch": "resnet20",
        "recognised": "keys and shapes",
        "norm": "bn",
        "norm_layers": 19,
        "geometry": None,
    }
    assert {key: facts[key] for key in known} == known
    assert "tests.networks.Tiny" in facts["not_built"]
    assert any("averaged ones in ema" in warning for warning in facts["warnings"])


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_a_screen_shows_the_facts_and_the_tree_with_its_norm_layers_marked(tmp_path: Path) -> None:
    path = saved(tmp_path, lively(build_network("resnet20", num_classes=10)).state_dict())
    short, long = run(path), run(path, "--tree")
    for text in (short, long):
        assert "resnet20" in text
        assert "bn1 BatchNorm2d 16  [norm]" in text
        assert "keys and shapes" in text
    assert len(short.splitlines()) < 50
    assert "1 ... 2 2 x" in short
    assert short.count("[norm]") == 1  # those of the blocks are counted
    assert long.count("[norm]") > short.count("[norm]")
    assert json.loads(run(path, "--json"))["tree"]["norm_layers"] == 19


def test_the_copy_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    state = build_network("demo-net", num_classes=10).state_dict()
    path = saved(tmp_path, {"model": state, "ema": state | {"linear.bias": state["linear.bias"] + 1}})
    assert json.loads(run(path, "--ema", "--json"))["container"] == "ema"
    assert json.loads(run(path, "--no-ema", "--json"))["container"] == "model"


def test_images_that_the_network_cannot_take_are_an_input_error(tmp_path: Path) -> None:
    loaded = wrap_module(Tiny())
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 1, 1), np.float32))
    with pytest.raises(InputError, match=r"cannot run on .*\nfound: images of shape \(2, 3, 1, 1\): RuntimeError: "):
        probe_logits(loaded, tmp_path / "x.npy", tmp_path / "out.json", normalize="none")


class Unpooled(nn.Module):
    """A network whose logits have the right shape for images of one size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)[:, ::16, ::16].flatten(1)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 3, 8, 8), np.float32), r"found: float32 of shape \(0, 3, 8, 8\)\ntry: .* one image or more"),
        (np.zeros((2, 1, 8, 8), np.float32), r"found: float32 of shape \(2, 1, 8, 8\)"),
        (np.zeros((3, 8, 8), np.float32), r"found: float32 of shape \(3, 8, 8\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "found: uint8"),
        (np.full((2, 3, 8, 8), 2, np.float32), "found: 2.0 to 2.0"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), "found: nan to nan"),
        (np.zeros((2, 3, 64, 64), np.float32), r"found: shape \(2, 16\) for images of shape \(2, 3, 64, 64\)"),
    ],
)
def test_what_is_no_batch_of_images_is_an_input_error(array: Any, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=words):
        probe_logits(wrap_module(Unpooled()), tmp_path / "x.npy", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_logits_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    network = Tiny()
    network.head.bias.data[2] = torch.nan
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(TrustError, match=r"not finite\nfound: NaN or infinity for 2 of 2 images") as caught:
        probe_logits(wrap_module(network), tmp_path / "x.npy", tmp_path / "out.json")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out.json").exists()


def test_an_assumed_group_size_is_said_to_be_assumed(tmp_path: Path) -> None:
    network = convert_to_localnorm(build_network("demo-net", num_classes=10), 8)
    for metadata, shown in (({}, "16 (assumed)"), ({"group_size": 16}, "16")):
        save_model(tmp_path / "ln.safetensors", network, metadata=metadata)
        (line,) = (line for line in run(str(tmp_path / "ln.safetensors")).splitlines() if line.startswith("group size"))
        assert line.removeprefix("group size").strip() == shown
        facts = json.loads(run(str(tmp_path / "ln.safetensors"), "--json"))
        assert (facts["group_size"], facts["group_size_assumed"]) == (16, not metadata)
    assert json.loads(run("demo:bn", "--json"))["group_size_assumed"] is False
