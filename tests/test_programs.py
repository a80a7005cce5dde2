"""Programs: TorchScript, torch.export and ONNX run as they are, in any batch."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_ln import evaluate
from robustbench_ln.errors import InputError, ResourceError
from robustbench_ln.inspection import inspect_model, probe_logits
from robustbench_ln.models import load_model
from tests.conftest import random_network, toy_data
from tests.networks import Tiny, images, lively, logits, saved_bytes

NETWORK = lively(Tiny(10))


class OneImageOnly(nn.Module):
    """A network that a trace ties to one image."""

    def __init__(self, network: nn.Module = NETWORK) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).view(1, 10)


def traced(folder: Path, network: nn.Module = NETWORK, size: int = 32) -> Path:
    path = folder / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, images(size, n=1)).save(str(path))
    return path


def exported(folder: Path, network: nn.Module = NETWORK, n: int = 2, **options: Any) -> Path:
    path = folder / "network.pt2"
    torch.export.save(torch.export.export(network, (images(n=n),), **options), path)
    return path


def onnx(folder: Path, network: nn.Module = NETWORK, n: int = 1, **options: Any) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images(n=n),), path, dynamo=False, **options)
    return path


ANY_BATCH = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
PROGRAMS = {
    "TorchScript": traced,
    "TorchScript of one image": lambda folder: traced(folder, OneImageOnly()),
    "torch.export": lambda folder: exported(folder, dynamic_shapes=({0: torch.export.Dim("batch")},)),
    "torch.export of two images": exported,
    "torch.export of one image": lambda folder: exported(folder, n=1),
    "ONNX": lambda folder: onnx(folder, **ANY_BATCH),
    "ONNX of one image": onnx,
    "ONNX of three images": lambda folder: onnx(folder, n=3),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_gives_the_logits_of_its_network_for_any_number_of_images(kind: str, tmp_path: Path) -> None:
    loaded = load_model(str(PROGRAMS[kind](tmp_path)), trust="ONNX" not in kind)
    assert (loaded.arch, loaded.recognised, loaded.num_classes) == (kind.split(" of ")[0], "program", 10)
    assert loaded.form == loaded.arch
    again = pickle.loads(pickle.dumps(copy.deepcopy(loaded.network)))  # as worker processes get it
    for network in (loaded.network, again):
        assert torch.allclose(logits(network), logits(NETWORK), atol=1e-6)
        assert network(images(n=1)).shape == (1, 10)
    assert inspect_model(loaded)["modes"] == ["native"]
    assert "norm layers cannot be reached" in " ".join(loaded.warnings)


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_a_program_that_can_run_code_needs_trust_and_its_digest_is_said(kind: str, tmp_path: Path) -> None:
    path = PROGRAMS[kind](tmp_path)
    with pytest.raises(
        InputError, match=rf"{kind}, which can run code when read\nfound: SHA-256 [0-9a-f]{{64}}\ntry: --trust"
    ):
        load_model(str(path))
    loaded = load_model(str(path), trust=True)
    assert any(loaded.sha256 in warning for warning in loaded.warnings)


def test_a_program_is_evaluated_in_mode_native(tmp_path: Path) -> None:
    network = random_network()
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network, (torch.rand(1, 3, 16, 16),)), path)
    options = {"data": toy_data(40), "sigma": "0,0.5", "normalize": "none", "batch_size": 16}
    program = evaluate(str(path), trust=True, **options)
    module = evaluate(network, modes="native", **options)
    counts = [[row.counts.correct for row in results.rows] for results in (program, module)]
    assert counts[0] == counts[1]
    assert {row.mode for row in program.rows} == {"native"}


def test_images_of_another_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    loaded = load_model(str(exported(tmp_path)), trust=True)
    with pytest.raises(InputError, match=r"takes images of 32 x 32 pixels only\nfound: 64 x 64 pixels"):
        loaded.network(images(64))
    np.save(tmp_path / "x.npy", images(64).numpy())
    with pytest.raises(InputError, match="32 x 32"):
        probe_logits(loaded, tmp_path / "x.npy", tmp_path / "out.json", normalize="none")
    np.save(tmp_path / "x.npy", images().numpy())
    probe_logits(loaded, tmp_path / "x.npy", tmp_path / "out.json", normalize="none")
    assert np.allclose(json.loads((tmp_path / "out.json").read_text()), logits(NETWORK), atol=1e-6)


def test_a_program_in_half_precision_gets_half_precision(tmp_path: Path) -> None:
    network = copy.deepcopy(NETWORK).half()
    path = tmp_path / "half.pt2"
    torch.export.save(torch.export.export(network, (images(n=2).half(),)), path)
    loaded = load_model(str(path), trust=True)
    assert loaded.network(images()).dtype == torch.float32
    assert torch.allclose(logits(loaded.network), logits(NETWORK), atol=0.02)


def test_a_program_that_normalises_itself_is_not_normalised_twice(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = NETWORK
            self.register_buffer("mean", torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1))
            self.register_buffer("std", torch.tensor([0.2, 0.2, 0.2]).view(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.network((x - self.mean) / self.std)

    loaded = load_model(str(traced(tmp_path, Wrapped())), trust=True)
    assert (loaded.mean, loaded.preprocessing) == ((), "the network itself")


def test_outputs_that_are_probabilities_are_said(tmp_path: Path) -> None:
    loaded = load_model(str(traced(tmp_path, nn.Sequential(NETWORK, nn.Softmax(1)))), trust=True)
    assert "look like probabilities" in " ".join(loaded.warnings)


class TwoInputs(Tiny):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class TwoOutputs(Tiny):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


@pytest.mark.parametrize("form", ["torch.export", "ONNX"])
def test_what_does_not_take_images_and_give_logits_is_refused(form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def write(network: nn.Module, *inputs: Tensor) -> str:
        path = tmp_path / ("a.pt2" if form == "torch.export" else "a.onnx")
        if form == "torch.export":
            torch.export.save(torch.export.export(network.eval(), inputs), path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(network.eval(), inputs, path, dynamo=False)
        return str(path)

    for network, inputs, words in (
        (TwoInputs(), (images(), images()), "does not take one batch of images"),
        (TwoOutputs(), (images(),), "logits"),
        (nn.Linear(8, 10), (torch.rand(2, 8),), r"does not take images of shape \(B, 3, H, W\)"),
        (nn.Conv2d(1, 8, 3), (torch.rand(2, 1, 8, 8),), r"does not take images of shape \(B, 3, H, W\)"),
        (nn.Conv2d(3, 8, 3), (images(),), "logits"),
    ):
        with pytest.raises(InputError, match=words):
            load_model(write(network, *inputs), trust=True)


def test_an_onnx_network_with_its_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    package = pytest.importorskip("onnx")
    network = package.load(onnx(tmp_path, **ANY_BATCH))
    path = tmp_path / "parts.onnx"
    package.save_model(network, path, save_as_external_data=True, location="parts.data", size_threshold=0)
    loaded = load_model(str(path))
    assert torch.allclose(logits(loaded.network), logits(NETWORK), atol=1e-6)
    # The digest is of both files.
    data = tmp_path / "parts.data"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    assert load_model(str(path)).sha256 != loaded.sha256
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not an ONNX network that can be read"):
        load_model(str(path))


def test_an_onnx_network_whose_weights_lie_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    package = pytest.importorskip("onnx")
    (tmp_path / "in").mkdir()
    network = package.load(onnx(tmp_path))
    package.save_model(
        network, tmp_path / "x.onnx", save_as_external_data=True, location="parts.data", size_threshold=0
    )
    network = package.load(tmp_path / "x.onnx", load_external_data=False)
    for tensor in network.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../parts.data"
    (tmp_path / "in" / "y.onnx").write_bytes(network.SerializeToString())
    with pytest.raises(InputError):
        load_model(str(tmp_path / "in" / "y.onnx"))


@pytest.mark.parametrize("content", [b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(99), b"\x08\x07onnx"])
def test_a_damaged_onnx_file_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.onnx"):
        load_model(str(tmp_path / "a.onnx"))


def test_onnx_without_its_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx(tmp_path)
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ResourceError, match=r"pip install 'robustbench-ln\[onnx\]'") as caught:
                load_model(str(path))
            assert caught.value.exit_code == 5


def test_a_damaged_program_is_an_input_error(tmp_path: Path) -> None:
    import zipfile

    for name, member in (("a.pt", "m/constants.pkl"), ("b.pt2", "m/archive_format")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"x")
            archive.writestr("m/data.pkl", saved_bytes({}))
        with pytest.raises(InputError, match="cannot be opened"):
            load_model(str(tmp_path / name), trust=True)
