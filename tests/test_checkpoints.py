"""Checkpoints: whatever dress one wears, it loads to the same network, or says why not.

`pytest tests/test_checkpoints.py -s -k dress` prints the table of what loads, `-k refused` that of what does not.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import gzip
import hashlib
import io
import json
import lzma
import operator
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from robustbench_ln import models
from robustbench_ln.errors import InputError, ResourceError
from robustbench_ln.models import ARCHITECTURES, DIALECTS, LoadedModel, load_model, save_model
from robustbench_ln.models.architectures import find_architecture
from robustbench_ln.models.unpickling import Reader, Unbuilt
from robustbench_ln.norms import convert_to_localnorm
from robustbench_ln.planning import plan_run
from tests.conftest import toy_data
from tests.networks import State, Tiny, assert_same, images, lively, logits, prefixed, saved, saved_bytes

# Files that load


@lru_cache
def network_of(arch: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(find_architecture(arch).build(10), seed)


@pytest.fixture
def net() -> nn.Module:
    return network_of("resnet20")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Normalise(nn.Module):
    """A layer with buffers that are called as the user likes."""

    def __init__(self, mean: str = "mean", std: str = "std", scale: float = 1) -> None:
        super().__init__()
        self.names = mean, std
        self.register_buffer(mean, scale * torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer(std, scale * torch.tensor(STD).view(1, 3, 1, 1))


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def holding(**parts: nn.Module) -> nn.Module:
    """A module, such as a training script's, that has these."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class Settings(dict):
    """A dictionary of a training framework, which is pickled as an object of its class."""


class Callback:
    """An object of a training framework."""

    def __init__(self) -> None:
        self.best, self.seen, self.options = torch.tensor(0.9), {1, 2}, Settings(a=1)


def lightning(state: State, **more: Any) -> State:
    """What Lightning's ``Trainer.save_checkpoint`` writes, with the callbacks of its older versions."""
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {Callback: Callback(), "EarlyStopping{'monitor': 'val'}": {"best_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": Settings(lr=0.1, root=PurePosixPath("/data"), kinds=collections.defaultdict(list, a=[1])),
        **more,
    }


Write = Callable[[Path, nn.Module], Path]
"""Writes a network into a folder in some dress, and says where."""


def by_torch(dress: Callable[[nn.Module], Any] = nn.Module.state_dict, name: str = "model.pt", **options: Any) -> Write:
    def write(folder: Path, network: nn.Module) -> Path:
        torch.save(dress(network), folder / name, **options)
        return folder / name

    return write


def of_state(dress: Callable[[State], Any], name: str = "model.pt") -> Write:
    return by_torch(lambda network: dress(network.state_dict()), name)


def by_safetensors(name: str) -> Write:
    def write(folder: Path, network: nn.Module) -> Path:
        safetensors.torch.save_file(network.state_dict(), folder / name)
        return folder / name

    return write


def in_shards(form: str, *, give_folder: bool = False) -> Write:
    def write(folder: Path, network: nn.Module) -> Path:
        state = network.state_dict()
        keys = [list(state)[i::3] for i in range(3)]
        stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
        where = {}
        for i, part in enumerate(keys, 1):
            name = f"{stem}-{i:05}-of-00003.{form}"
            content = {key: state[key] for key in part}
            if form == "bin":
                torch.save(content, folder / name)
            else:
                safetensors.torch.save_file(content, folder / name, metadata={"format": "pt"})
            where |= dict.fromkeys(part, name)
        index = folder / f"{stem}.{form}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
        (folder / "config.json").write_text("{}")
        return folder if give_folder else index

    return write


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def in_tar(folder: Path, network: nn.Module) -> Path:
    path = folder / "release.tar"
    path.write_bytes(
        tar_of(
            ("release/README.md", b"read me"),
            ("release/._weights.pth", b"what macOS adds"),
            ("release/weights.pth", saved_bytes({"state_dict": network.state_dict()})),
        )
    )
    return path


def on_another_device(folder: Path, network: nn.Module) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(network.state_dict(), folder / "model.pt")
    assert b"cuda:7" in (folder / "model.pt").read_bytes()
    return folder / "model.pt"


def robustness_library(network: nn.Module) -> State:
    """Checkpoints of the library `robustness` hold the network twice, once inside of the attacker."""
    normalise = Normalise("new_mean", "new_std")
    attacker = holding(normalize=normalise, model=network)
    inner = holding(normalizer=normalise, model=network, attacker=attacker)
    return {"model": holding(module=inner).state_dict(), "epoch": 90, "schedule": None}


def averaged(network: nn.Module) -> State:
    average = AveragedModel(network)
    average.update_parameters(network)
    return average.state_dict()


def with_checkpointed_layers(network: nn.Module) -> State:
    """As FSDP's full state dicts are with activation checkpointing."""
    wrapped = holding(_fsdp_wrapped_module=holding(**dict(network.named_children())))
    wrapped._fsdp_wrapped_module.layer1 = checkpoint_wrapper(wrapped._fsdp_wrapped_module.layer1)
    state = wrapped.state_dict()
    # Its own hook takes the prefix off, older versions did not.
    return {key.replace("layer1.", "layer1._checkpoint_wrapped_module."): value for key, value in state.items()}


def converted(state: State, dtype: torch.dtype) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def with_counters(state: State) -> State:
    """As thop.profile registers them beside the weights of every layer."""
    counters = {
        f"{key.rpartition('.')[0]}.{name}": torch.ones(1, dtype=torch.float64)
        for key in state
        for name in ("total_ops", "total_params")
    }
    return {**counters, **state}


def functional(state: State, *, statistics: bool | None = None) -> State:
    """As a network is saved that is a function of a dictionary: convolutions have no `weight`."""
    return {
        key.removesuffix(".weight") if value.dim() == 4 else key: value
        for key, value in state.items()
        if "num_batches" not in key and statistics in (None, "running" in key)
    }


class Called:
    """Is pickled as a call of what another call returns."""

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.methodcaller("upper"), ("made by a call",)


OTHER = network_of("resnet20", seed=9)
OLD_FORM = {"_use_new_zipfile_serialization": False}  # with the source of every module
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(4, 4)}}, "param_groups": [{"lr": 0.1}]}


@dataclass(frozen=True)
class Case:
    """A file that loads without a flag: its dress, its network, and what is said of it."""

    write: Write
    arch: str = "resnet20"
    container: str = ""
    prefixes: tuple[str, ...] = ()
    form: str = "torch.save"
    precision: torch.dtype = torch.float32
    mean: tuple[float, ...] | None = None
    averaged: bool = False
    said: str = ""  # in the warnings


CASES: dict[str, Case] = {
    # Forms of files
    ".pt": Case(by_torch()),
    ".pth": Case(by_torch(name="model.pth"), "resnet20-b"),
    ".th": Case(by_torch(name="model.th"), "demo-net"),
    ".bin": Case(by_torch(name="pytorch_model.bin"), "resnet32"),
    ".safetensors": Case(by_safetensors("model.safetensors"), "shufflenet_v2_x0_5", form="safetensors"),
    ".pth of PyTorch 1.5": Case(by_torch(name="model.pth", **OLD_FORM), "resnet32"),
    "safetensors called .pt": Case(by_safetensors("model.pt"), "demo-net", form="safetensors"),
    "torch.save called .safetensors": Case(by_torch(name="model.safetensors"), "demo-net"),
    "no suffix": Case(by_torch(name="checkpoint-90"), "demo-net"),
    ".pth.tar of the ImageNet example": Case(
        of_state(
            lambda s: {
                "epoch": 90,
                "arch": "resnet20",
                "state_dict": prefixed(s, "module."),
                "best_acc1": torch.tensor(70.1),
                "optimizer": OPTIMIZER,
            },
            "model_best.pth.tar",
        ),
        container="state_dict",
        prefixes=("module.",),
    ),
    "tar archive of one checkpoint": Case(
        in_tar, "resnet20-b", container="state_dict", form="torch.save in a tar archive"
    ),
    "sharded safetensors": Case(in_shards("safetensors"), form="safetensors in 3 shards"),
    "sharded .bin": Case(in_shards("bin"), "resnet32", form="torch.save in 3 shards"),
    "folder of shards": Case(in_shards("safetensors", give_folder=True), form="safetensors in 3 shards"),
    "folder of one file": Case(
        lambda folder, network: by_safetensors("model.safetensors")(folder, network).parent,
        "mnasnet0_5",
        form="safetensors",
    ),
    # Lightning
    "Lightning, model.": Case(
        of_state(lambda s: lightning(prefixed(s, "model.")), "epoch=3.ckpt"),
        "resnet32",
        "state_dict",
        ("model.",),
    ),
    "Lightning, net. and a loss": Case(
        by_torch(
            lambda n: lightning(holding(net=n, criterion=nn.Linear(3, 3), train_acc=nn.BatchNorm1d(2)).state_dict())
        ),
        container="state_dict",
        prefixes=("net.",),
        said="left out are 2 keys under criterion., 5 keys under train_acc.",
    ),
    "Lightning, student. and teacher.": Case(
        by_torch(lambda n: lightning(holding(teacher=OTHER, student=n).state_dict())),
        container="state_dict",
        prefixes=("student.",),
        said="left out are 116 keys under teacher.",
    ),
    "Lightning, a name of one's own": Case(
        of_state(lambda s: lightning(prefixed(s, "my_resnet."))), container="state_dict", prefixes=("my_resnet.",)
    ),
    "Lightning, WeightAveraging": Case(
        of_state(
            lambda s: lightning(
                OTHER.state_dict(), current_model_state=s, averaging_state={"n_averaged": torch.tensor(7)}
            )
        ),
        container="current_model_state",
        said="the plain ones of 'current_model_state'; the file also holds averaged ones in state_dict (--ema takes",
    ),
    # Containers
    **{
        f"container {name}": Case(
            of_state(lambda s, name=name: {name: s, "epoch": 3, "optimizer": OPTIMIZER}), arch, name
        )
        for name, arch in {
            "state_dict": "resnet20",
            "model": "resnet20-b",
            "model_state": "demo-net",
            "model_state_dict": "resnet32",
            "net": "resnet20",
            "last": "resnet20-b",
            "best": "demo-net",
            "module": "resnet20",
        }.items()
    },
    **{
        f"container {name}": Case(
            of_state(lambda s, name=name: {name: s}), container=name, averaged=True, said=f"averaged copy ('{name}')"
        )
        for name in ("ema", "model_ema", "state_dict_ema")
    },
    "containers in containers": Case(
        of_state(lambda s: {"model": {"state_dict": s, "arch": "x"}}), "resnet20-b", "model.state_dict"
    ),
    "container of a name of one's own": Case(of_state(lambda s: {"cnn": s, "lr": 0.1}), "demo-net", "cnn"),
    "plain and averaged weights": Case(
        of_state(lambda s: {"model_ema": OTHER.state_dict(), "model": s}),
        container="model",
        said="the plain ones of 'model'; the file also holds averaged ones in model_ema (--ema takes those)",
    ),
    "average of torch.optim.swa_utils": Case(
        by_torch(averaged), prefixes=("module.",), averaged=True, said="average of 1 states"
    ),
    "objects beside the weights": Case(
        of_state(
            lambda s: {
                "model": s,
                "args": argparse.Namespace(lr=0.1),
                "acc": np.float64(0.9),
                "classes": np.array(["a"]),
                "config": Settings(Settings(a=1)),
            }
        ),
        container="model",
    ),
    "a module beside the weights, of PyTorch 1.5": Case(
        by_torch(lambda n: {"state_dict": n.state_dict(), "obj": nn.Linear(2, 2)}, **OLD_FORM),
        container="state_dict",
    ),
    "what calls the result of a call, as dill does": Case(
        by_torch(lambda n: {"state_dict": n.state_dict(), "extra": Called()}), container="state_dict"
    ),
    "other things between the weights": Case(
        of_state(lambda s: {**s, "epoch": 3, "classes": ["a"], "best": 0.5, 7: None}), "demo-net"
    ),
    "counters of thop": Case(
        of_state(lambda s: {"net": {**with_counters(s), "total_ops": torch.zeros(1, dtype=torch.float64)}}),
        container="net",
        said="left out are 79 counters of thop (total_ops, total_params)",
    ),
    "counters of thop in DataParallel": Case(
        of_state(lambda s: prefixed(with_counters(s), "module.")), "demo-net", prefixes=("module.",), said="of thop"
    ),
    # Prefixes
    **{
        f"prefix {prefix}": Case(of_state(lambda s, prefix=prefix: prefixed(s, prefix)), arch, prefixes=(prefix,))
        for prefix, arch in {
            "module.": "resnet32",
            "model.": "resnet20",
            "net.": "resnet20-b",
            "_orig_mod.": "demo-net",
            "backbone.": "resnet32",
            "encoder.": "resnet20",
            "0.": "resnet32",
            "1.": "demo-net",
        }.items()
    },
    "DataParallel": Case(by_torch(lambda n: nn.DataParallel(n).state_dict()), prefixes=("module.",)),
    "torch.compile": Case(by_torch(lambda n: torch.compile(n).state_dict()), "demo-net", prefixes=("_orig_mod.",)),
    "DistributedDataParallel of a compiled network": Case(
        of_state(lambda s: {"state_dict": prefixed(s, "module._orig_mod.")}),
        container="state_dict",
        prefixes=("module.", "_orig_mod."),
    ),
    "FSDP with activation checkpointing": Case(
        by_torch(with_checkpointed_layers), prefixes=("_fsdp_wrapped_module.", "*._checkpoint_wrapped_module.")
    ),
    "functions of a dictionary": Case(
        of_state(lambda s: {"params": functional(s), "epoch": 3}), "wrn-10-2-szagoruyko", "params"
    ),
    "functions of two dictionaries": Case(
        of_state(lambda s: {"params": functional(s, statistics=False), "stats": functional(s, statistics=True)}),
        "wrn-10-2-szagoruyko",
        "params",
    ),
    "DataParallel around the features only": Case(
        of_state(lambda s: {k.replace("features.", "features.module."): v for k, v in s.items()}),
        "squeezenet1_1",
        prefixes=("*.module.",),
    ),
    # Numbers
    "half precision": Case(of_state(lambda s: converted(s, torch.float16)), "resnet32", precision=torch.float16),
    "bfloat16": Case(of_state(lambda s: converted(s, torch.bfloat16)), "resnet20", precision=torch.bfloat16),
    "double precision": Case(of_state(lambda s: converted(s, torch.float64)), "demo-net", precision=torch.float64),
    "saved on cuda:7": Case(on_another_device, "resnet20-b"),
    "parameters": Case(of_state(lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()})),
    "without num_batches_tracked": Case(
        of_state(lambda s: {k: v for k, v in s.items() if "num_batches" not in k}), "resnet32"
    ),
    # Normalisation around the network
    "mean and std of a wrapper": Case(
        of_state(lambda s: {**Normalise().state_dict(), **prefixed(s, "model.")}), prefixes=("model.",), mean=MEAN
    ),
    "mu and sigma of a wrapper": Case(
        of_state(lambda s: {**Normalise("mu", "sigma").state_dict(), **prefixed(s, "model.")}),
        "resnet20-b",
        prefixes=("model.",),
        mean=MEAN,
    ),
    "normalize.mean in DataParallel": Case(
        by_torch(lambda n: nn.DataParallel(holding(normalize=Normalise(), model=n)).state_dict()),
        prefixes=("module.", "model."),
        mean=MEAN,
    ),
    "Sequential(normalise, network)": Case(
        by_torch(lambda n: nn.Sequential(Normalise(), n).state_dict()), "demo-net", prefixes=("1.",), mean=MEAN
    ),
    "mean and std for images in 0 to 255": Case(
        by_torch(lambda n: holding(normalize=Normalise(scale=255), model=n).state_dict()),
        prefixes=("model.",),
        mean=MEAN,
    ),
    "library robustness": Case(
        by_torch(robustness_library),
        container="model",
        prefixes=("module.", "model."),
        mean=MEAN,
        said="left out are 118 keys under attacker.",
    ),
}
SIZES = {"squeezenet1_1": 64, "shufflenet_v2_x0_5": 64, "mnasnet0_5": 64}  # of images; others 32


def one_row(name: str, loaded: LoadedModel, difference: float) -> str:
    dress = "; ".join(filter(None, [loaded.container, " ".join(loaded.prefixes), " ".join(loaded.precision)]))
    return f"{name:<46} {loaded.form:<28} {dress:<56} {loaded.arch:<19} {difference:.0e}"


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_in_any_dress_loads_without_a_flag_to_the_same_network(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = network_of(case.arch)
    if case.precision != torch.float32:
        network = network_of.__wrapped__(case.arch).to(case.precision).float()
    loaded = load_model(str(case.write(tmp_path, network)))
    size = SIZES.get(case.arch, 32)
    difference = (logits(loaded.network, size) - logits(network, size)).abs().max().item()
    print(f"\n{one_row(name, loaded, difference)}", end="")
    assert difference <= 1e-6
    assert (loaded.arch, loaded.recognised, loaded.num_classes) == (case.arch, "keys and shapes", 10)
    assert (loaded.form, loaded.container, loaded.prefixes) == (case.form, case.container, case.prefixes)
    assert loaded.averaged == case.averaged
    assert loaded.precision == (() if case.precision == torch.float32 else (str(case.precision)[6:],))
    assert loaded.mean == (case.mean and pytest.approx(case.mean, abs=1e-6))
    assert loaded.preprocessing == ("wrapper layers" if case.mean else "")
    assert case.said in " ".join(loaded.warnings)
    assert bool(loaded.warnings) == bool(case.said)
    assert {value.dtype for value in loaded.network.state_dict().values()} <= {torch.float32, torch.int64}


def test_there_are_many_dresses() -> None:
    assert len(CASES) >= 40
    assert len({case.arch for case in CASES.values()}) >= 6


PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "backbone.", "encoder.", "0.", "1.")


@given(prefixes=st.lists(st.sampled_from(PREFIXES), max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stacked_prefixes_are_stripped_and_recorded(prefixes: list[str], tmp_path: Path) -> None:
    network = network_of("demo-net")
    path = tmp_path / "stacked.safetensors"
    safetensors.torch.save_file(prefixed(dict(network.state_dict()), "".join(prefixes)), path)
    loaded = load_model(str(path))
    assert loaded.prefixes == tuple(prefixes)
    assert_same(loaded.network, network)


def test_every_dialect_leaves_alone_what_it_has_nothing_to_do_with(net: nn.Module) -> None:
    plain = models.Checkpoint(dict(net.state_dict()))
    for dialect in DIALECTS:
        assert dialect(plain) is plain, dialect.__name__


def test_a_prefix_that_only_some_keys_carry_stays(net: nn.Module, tmp_path: Path) -> None:
    state = {("module." if "layer" in key else "") + key: value for key, value in net.state_dict().items()}
    with pytest.raises(InputError, match=r"missing conv1\.weight"):
        load_model(saved(tmp_path, state))


@pytest.mark.parametrize("kind", ["densenet121", "vit_b_16"])
def test_key_names_of_older_torchvision_are_understood(kind: str) -> None:
    old, new = {
        "densenet121": (
            "features.denseblock1.denselayer1.norm.1.weight",
            "features.denseblock1.denselayer1.norm1.weight",
        ),
        "vit_b_16": (
            "encoder.layers.encoder_layer_0.mlp.linear_2.bias",
            "encoder.layers.encoder_layer_0.mlp.3.bias",
        ),
    }[kind]
    assert new in ARCHITECTURES[kind].guess({}).shapes()
    renamed = [dialect(models.Checkpoint({old: torch.zeros(1)})) for dialect in DIALECTS]
    assert new in {key for checkpoint in renamed for key in checkpoint.tensors}


# Which copy

COPIES: dict[str, Callable[[State, State], Any]] = {
    "containers": lambda plain, average: {"model": plain, "model_ema": average},
    "nested containers": lambda plain, average: {"state_dict": {"model": plain, "ema": {"shadow": average}}},
    "Lightning": lambda plain, average: lightning(average, current_model_state=plain, averaging_state={"n": 1}),
    "parts of one state dict": lambda plain, average: {**prefixed(average, "ema_model."), **prefixed(plain, "model.")},
    "swa_utils": lambda plain, average: {
        "state_dict": plain,
        "swa_model": {"n_averaged": torch.tensor(3), **prefixed(average, "module.")},
    },
}


@pytest.mark.parametrize("kind", COPIES)
def test_the_user_chooses_between_the_plain_and_the_averaged_copy(kind: str, net: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path, COPIES[kind](net.state_dict(), OTHER.state_dict()))
    by_default, plain, average = (load_model(path, ema=ema) for ema in (None, False, True))
    assert_same(by_default.network, net)
    assert_same(plain.network, net)
    assert_same(average.network, OTHER)
    assert (by_default.averaged, plain.averaged, average.averaged) == (False, False, True)
    # The two are different models of one file.
    assert by_default.copy == plain.copy != average.copy
    assert by_default.copy
    assert all(loaded.copy.strip(".") in " ".join(loaded.warnings) for loaded in (plain, average))


def test_the_two_copies_of_a_file_are_two_models_of_a_run(tmp_path: Path) -> None:
    state, other = (dict(network_of("demo-net", seed).state_dict()) for seed in (0, 1))
    path = saved(tmp_path, {"model": state, "ema": other})
    plans = [plan_run(path, toy_data(20), sigma=0, normalize="none", ema=ema) for ema in (None, False, True)]
    by_default, plain, average = (plan.models[0].info.id for plan in plans)
    assert by_default == plain != average
    assert "averaged ones of 'ema'" in " ".join(plans[2].manifest.warnings)


def test_a_copy_that_is_not_in_the_file_is_an_input_error(net: nn.Module, tmp_path: Path) -> None:
    plain, average = saved(tmp_path, {"model": net.state_dict()}, "a.pt"), saved(tmp_path, averaged(net), "b.pt")
    with pytest.raises(InputError, match=r"a\.pt holds no averaged weights\nfound: plain weights only, in model"):
        load_model(plain, ema=True)
    with pytest.raises(InputError, match=r"b\.pt holds no plain weights"):
        load_model(average, ema=False)
    assert load_model(average, ema=True).averaged


def test_a_choice_of_copy_beside_a_name_is_said_to_be_unused() -> None:
    assert "--ema is for files" in load_model("demo:bn", ema=True).warnings[0]
    assert "--no-ema is for files" in load_model("demo:bn", ema=False).warnings[0]


# Metadata


FACTS = {
    "arch": "demo-net",
    "num_classes": 10,
    "n_groups": 4,
    "group_size": 16,
    "mean": [0.5, 0.25, 0.5],
    "std": [0.2, 0.2, 0.25],
    "preprocessing": "half",
}


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_metadata_comes_back_without_a_flag(form: str, tmp_path: Path) -> None:
    network = convert_to_localnorm(ARCHITECTURES["demo-net"].build(10), 4).eval()
    path = tmp_path / f"model.{form}"
    if form == "pt":
        torch.save({"state_dict": network.state_dict(), "lnbench": FACTS}, path)
    else:
        save_model(path, network, metadata=FACTS)
    loaded = load_model(str(path))
    assert (loaded.arch, loaded.recognised) == ("demo-net", "file metadata")
    assert (loaded.n_groups, loaded.group_size) == (4, 16)
    assert (loaded.mean, loaded.std) == ((0.5, 0.25, 0.5), (0.2, 0.2, 0.25))
    assert loaded.preprocessing == "file metadata"
    assert loaded.warnings == ()
    assert_same(loaded.network, network)


def test_metadata_may_name_the_preprocessing_or_say_that_there_is_none(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, net, metadata={"preprocessing": "imagenet"})
    assert load_model(str(path)).mean == (0.485, 0.456, 0.406)
    save_model(path, net, metadata={"mean": [], "std": []})
    assert (load_model(str(path)).mean, load_model(str(path)).std) == ((), ())


def test_metadata_that_makes_no_sense_is_passed_over_with_a_warning(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    nonsense = {"arch": "os:getcwd", "n_groups": "-3", "group_size": "[", "mean": "[0.5]", "std": "[0]", "format": "pt"}
    safetensors.torch.save_file(net.state_dict(), path, metadata=nonsense)
    loaded = load_model(str(path))
    assert (loaded.arch, loaded.recognised, loaded.mean) == ("resnet20", "keys and shapes", None)
    said = " ".join(loaded.warnings)
    assert all(word in said for word in ("'os:getcwd'", "'n_groups'", "'group_size'", "'mean' and 'std'"))


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_behind(net: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, net, metadata=FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_that_cannot_be_written_is_a_resource_error(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError):
        save_model(tmp_path / "file" / "a.safetensors", net, metadata={})


# Files that are refused


class Hostile:
    """Makes a folder when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


class DTensor:
    """Called as a part of a tensor that is spread over processes."""


def _zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def _link(target: str) -> bytes:
    info = tarfile.TarInfo("model.pt")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return tar_of((info, b""))


def _claiming(size: int) -> bytes:
    """A tar archive whose header promises more than there is."""
    info = tarfile.TarInfo("model.pt")
    info.size = size
    return info.tobuf() + bytes(1024)


def _array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


def _with_a_flipped_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def _optimizer() -> State:
    network = Tiny()
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, lr=0.1)
    network(images()).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _without_head() -> State:
    return {key: value for key, value in network_of("resnet20").state_dict().items() if "linear" not in key}


WEIGHTS = {"a.weight": torch.ones(1000, 3), "a.bias": torch.ones(3)}

# Content of a file, and words of the reason.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "truncated zip": (lambda: saved_bytes(WEIGHTS)[:-2000], "zip archive that is cut short"),
    "damaged zip": (lambda: _with_a_flipped_byte(saved_bytes(WEIGHTS)), "checksum"),
    "truncated legacy file": (
        lambda: saved_bytes(WEIGHTS, **OLD_FORM)[:-2000],
        "cut short",
    ),
    "truncated safetensors": (lambda: safetensors.torch.save(WEIGHTS)[:-2000], "cut short"),
    "HTML page": (lambda: b"\n <!DOCTYPE html><html><body>404</body></html>", "HTML page: the download failed"),
    "bare HTML page": (lambda: b"<html><head></head></html>", "HTML page: the download failed"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS pointer"),
    "XML": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "the download failed"),
    "JSON": (lambda: b'{"message": "Not Found"}', "JSON text"),
    "text": (lambda: "Zugriff verweigert für Sie".encode() * 300, "text file"),
    "image": (_png, "no format of checkpoints"),
    "random bytes": (lambda: np.random.default_rng(0).bytes(5000), "no format of checkpoints"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras"),
    "NumPy array": (_array, "NumPy array"),
    "gzip": (lambda: gzip.compress(saved_bytes(WEIGHTS)), "gzip"),
    "bzip2": (lambda: bz2.compress(saved_bytes(WEIGHTS)), "bzip2"),
    "xz": (lambda: lzma.compress(saved_bytes(WEIGHTS)), "xz archive"),
    "other zip": (lambda: _zip_of("a.txt"), "torch.save did not write"),
    "plain pickle": (lambda: pickle.dumps({"a": [1, 2]}), "pickle that torch.save did not write"),
    "AOTInductor": (lambda: _zip_of("m/archive_format", "m/data/aotinductor/model/a.so"), "AOTInductor"),
    "tar of several": (
        lambda: tar_of(("a.pt", saved_bytes(WEIGHTS)), ("b.pt", saved_bytes(WEIGHTS))),
        "2 files that may be checkpoints: a.pt, b.pt",
    ),
    "tar of none": (lambda: tar_of(("README.md", b"read me")), "0 files that may be checkpoints"),
    "tar that leaves its folder": (lambda: tar_of(("../../model.pt", saved_bytes(WEIGHTS))), "leaves it: ../../model"),
    "tar with an absolute path": (lambda: tar_of(("/etc/model.pt", saved_bytes(WEIGHTS))), "leaves it: /etc/model"),
    "tar of a link": (lambda: _link("/etc/passwd"), "a link, a device or a path"),
    "tar of a tar": (
        lambda: tar_of(("a.tar", tar_of(("b.pt", saved_bytes(WEIGHTS))))),
        "a.tar, which is no checkpoint",
    ),
    "tar of a web page": (lambda: tar_of(("model.pt", b"<html>")), "HTML page"),
    "truncated tar": (lambda: tar_of(("a.pt", saved_bytes(WEIGHTS)))[:4000], "cut short"),
    "tar that claims a terabyte": (lambda: _claiming(10**12), "cut short"),
    "tar of PyTorch 0.1": (
        lambda: tar_of(("sys_info", b""), ("pickle", b""), ("tensors", b""), ("storages", b"")),
        "PyTorch 0.1",
    ),
    "index of nothing": (lambda: b'{"weight_map": {}}', "an index of no shards"),
    "index without its shards": (
        lambda: b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}',
        "2 of 2 shards are missing: model-1.safetensors",
    ),
    "index that leaves its folder": (lambda: b'{"weight_map": {"a": "../model.bin"}}', "outside of its folder"),
    "index of an absolute path": (lambda: b'{"weight_map": {"a": "/etc/passwd"}}', "outside of its folder"),
    "index of nonsense": (lambda: b'{"weight_map": [1, 2]}', "not the index of a sharded checkpoint"),
    "optimizer state": (lambda: saved_bytes(_optimizer()), "optimizer state only"),
    "optimizer in a container": (lambda: saved_bytes({"optimizer": _optimizer(), "epoch": 3}), "optimizer state only"),
    "no tensors": (lambda: saved_bytes({"epoch": 3, "accuracy": 0.5}), "it holds epoch, accuracy"),
    "nothing": (lambda: saved_bytes({}), "it holds nothing"),
    "list": (lambda: saved_bytes([torch.ones(3)]), "a list, not a state dict"),
    "tensor": (lambda: saved_bytes(torch.ones(3)), "a Tensor, not a state dict"),
    "several networks": (
        lambda: saved_bytes({"generator": WEIGHTS, "critic": {"b": torch.ones(2, 2)}}),
        "several state dicts, none under a usual name: generator, critic",
    ),
    "LoRA": (lambda: saved_bytes({"base.q.lora_A.weight": torch.ones(4, 8)}), "LoRA adapter"),
    "sparse tensor": (lambda: saved_bytes({**WEIGHTS, "s": torch.eye(3).to_sparse()}), "s is sparse"),
    "meta tensor": (
        lambda: saved_bytes({**WEIGHTS, "m": torch.ones(3, device="meta")}),
        "m has a shape but no values",
    ),
    **{
        f"{dtype} weights": (
            lambda dtype=dtype: saved_bytes(
                {
                    key: value.to(dtype) if "layer2.0.conv1" in key else value
                    for key, value in network_of("resnet20").state_dict().items()
                }
            ),
            f"layer2.0.conv1.weight is {str(dtype).removeprefix('torch.')}, {cause}",
        )
        for dtype, cause in {
            torch.int8: "as quantised weights are",
            torch.int64: "as quantised weights are",
            torch.bool: "as quantised weights are",
            torch.complex64: "complex numbers",
        }.items()
    },
    "a small file of huge tensors": (
        lambda: saved_bytes({"linear.weight": torch.ones(1, dtype=torch.half).expand(10**9, 64)}),
        "claims more numbers than the file holds",
    ),
    "a container that contains itself": (lambda: saved_bytes(_loop()), "no weights"),
    "network without its head": (lambda: saved_bytes(_without_head()), "missing linear.weight; missing linear.bias"),
    "unknown network": (lambda: saved_bytes(Tiny().state_dict()), "8 keys, first conv.weight, conv.bias"),
}
# Only what is read without trust.
UNTRUSTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "whole module": (lambda: saved_bytes(Tiny()), "whole module, which can run code when read"),
    "whole module in a container": (lambda: saved_bytes({"model": Tiny(), "epoch": 3}), "it needs tests.networks.Tiny"),
    "whole module of old form": (lambda: saved_bytes(Tiny(), **OLD_FORM), "whole module, which can run code when read"),
    "whole module of old form in a container": (
        lambda: saved_bytes({"model": Tiny(), "epoch": 3}, **OLD_FORM),
        "it needs tests.networks.Tiny",
    ),
    "one process's part of a network": (lambda: saved_bytes({"a.weight": DTensor()}), "one process"),
}


def _loop() -> State:
    loop: State = {}
    loop["model"] = loop
    return {"model": loop}


def refusal(path: Path, *, trust: bool = False) -> InputError:
    with pytest.raises(InputError) as caught:
        load_model(str(path), trust=trust)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert str(caught.value).count("\n") == 2
    return caught.value


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_is_refused_with_the_likely_cause(case: str, trust: bool, tmp_path: Path) -> None:
    make, cause = REFUSED[case]
    path = tmp_path / "model.pt"
    path.write_bytes(make())
    error = refusal(path, trust=trust)
    if not trust:
        print(f"\n{case:<34} {error.what} | {error.found[:110]}", end="")
    assert cause in error.found


@pytest.mark.filterwarnings("error::torch.serialization.SourceChangeWarning")
@pytest.mark.parametrize("case", UNTRUSTED)
def test_what_can_run_code_is_refused_without_trust(case: str, tmp_path: Path) -> None:
    make, cause = UNTRUSTED[case]
    path = tmp_path / "model.pt"
    path.write_bytes(make())
    error = refusal(path)
    print(f"\n{case:<34} {error.what} | {error.found[:110]}", end="")
    assert cause in str(error)


def test_many_files_are_refused() -> None:
    assert len(REFUSED) + len(UNTRUSTED) >= 20


def test_a_shard_that_lacks_what_the_index_says_it_has_is_refused(net: nn.Module, tmp_path: Path) -> None:
    index = in_shards("safetensors")(tmp_path, net)
    safetensors.torch.save_file({"other": torch.ones(1)}, tmp_path / "model-00002-of-00003.safetensors")
    assert "shard model-00002-of-00003.safetensors lacks" in refusal(index).found


def test_the_digest_of_a_sharded_checkpoint_is_of_all_its_files(net: nn.Module, tmp_path: Path) -> None:
    index = in_shards("safetensors")(tmp_path, net)
    before = load_model(str(index)).sha256
    assert load_model(str(tmp_path)).sha256 == before
    shard = tmp_path / "model-00002-of-00003.safetensors"
    state = safetensors.torch.load_file(shard)
    safetensors.torch.save_file({key: value + 1 for key, value in state.items()}, shard)
    assert load_model(str(index)).sha256 != before


def test_a_folder_without_one_checkpoint_is_an_input_error(net: nn.Module, tmp_path: Path) -> None:
    assert "holds no checkpoint" in refusal(tmp_path).what
    for name in ("a.pt", "b.pt"):
        saved(tmp_path, net.state_dict(), name)
    assert "2 files, a.pt, b.pt" in refusal(tmp_path).found
    (tmp_path / ".metadata").touch()
    (tmp_path / "__0_0.distcp").touch()
    assert "dcp_to_torch" in refusal(tmp_path).hint


def test_a_missing_file_is_an_input_error_that_knows_what_is_there(here: Path, net: nn.Module) -> None:
    error = refusal(here / "absent.pt")
    assert error.what == f"no such model file: {here / 'absent.pt'}"
    assert f"0 other files and folders in {here}" in error.found
    assert "demo:bn" in error.hint
    saved(here, net.state_dict(), "best.pt")
    assert refusal(Path("bets.pt")).hint == "best.pt"
    assert refusal(here / "no" / "best.pt").found == f"no folder {here / 'no'}"
    assert refusal(Path("resnet18")).hint == "torchvision:resnet18"


# Files that can run code


def test_a_whole_module_loads_with_trust_and_the_digest_of_what_was_trusted_is_said(tmp_path: Path) -> None:
    network = lively(Tiny())
    for content in (network, {"model": network, "epoch": 3}):
        path = saved(tmp_path, content)
        loaded = load_model(path, trust=True)
        assert (loaded.arch, loaded.recognised, loaded.num_classes) == ("Tiny", "whole module", 5)
        assert any(hashlib.sha256(Path(path).read_bytes()).hexdigest() in warning for warning in loaded.warnings)
        assert_same(loaded.network, network)


def test_a_whole_module_that_normalises_itself_is_not_normalised_twice(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path, Normalising()), trust=True)
    assert (loaded.mean, loaded.std, loaded.preprocessing) == ((), (), "the network itself")


class Normalising(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalise()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_does_not_run_its_code(legacy: bool, here: Path, net: nn.Module) -> None:
    options = {"_use_new_zipfile_serialization": not legacy}
    Path("m.pt").write_bytes(saved_bytes({"model": Hostile()}, **options))
    with pytest.raises(InputError, match="mkdir"):
        load_model("m.pt")
    # Beside weights it is not built, and that is said.
    Path("m.pt").write_bytes(saved_bytes({"model": net.state_dict(), "more": [Hostile()]}, **options))
    loaded = load_model("m.pt")
    assert_same(loaded.network, net)
    assert any("mkdir" in kind for kind in loaded.unbuilt)
    assert not Path("was-run").exists()


def test_objects_that_were_not_built_are_named(net: nn.Module, tmp_path: Path) -> None:
    path = by_torch(lambda network: lightning(network.state_dict()))(tmp_path, net)
    mine = {f"{__name__}.Callback", f"{__name__}.Settings", "pathlib.PurePosixPath"}
    assert mine <= set(load_model(str(path)).unbuilt)


def _pickle_that(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


@pytest.mark.parametrize(
    "content",
    [
        _pickle_that(b"cos\nsystem\n", b"(X\x04\x00\x00\x00true", b"tR"),
        _pickle_that(b"cbuiltins\neval\n", b"(X\x03\x00\x00\x001/0", b"tR"),
        _pickle_that(b"ccollections\nOrderedDict.fromkeys\n", b"(X\x01\x00\x00\x00atR"),
        # Attributes of a function that builds tensors, and of a class.
        _pickle_that(b"ctorch._utils\n_rebuild_tensor_v2\n", b"(}X\x01\x00\x00\x00aK\x01st", b"b"),
        _pickle_that(b"cos\nsystem\n", b"}X\x01\x00\x00\x00aK\x01s", b"b"),
    ],
)
def test_a_pickle_reaches_nothing_outside_of_the_table(content: bytes) -> None:
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    try:
        built = Reader().load(io.BytesIO(content))
    except (pickle.UnpicklingError, TypeError, AttributeError):
        built = None
    assert built is None or isinstance(built, Unbuilt) or issubclass(built, Unbuilt)
    assert vars(torch._utils._rebuild_tensor_v2) == before


def test_trusted_code_that_fails_is_an_input_error(here: Path) -> None:
    Path("was-run").mkdir()
    with pytest.raises(InputError, match="FileExistsError"):
        load_model(saved(here, Hostile()), trust=True)


def test_trust_changes_nothing_for_files_that_need_none(net: nn.Module, tmp_path: Path) -> None:
    assert load_model(saved(tmp_path, net.state_dict()), trust=True).warnings == ()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_a_resource_error(net: nn.Module, tmp_path: Path) -> None:
    path = Path(saved(tmp_path, net.state_dict()))
    path.chmod(0)
    with pytest.raises(ResourceError):
        load_model(str(path))


def test_weights_that_are_not_finite_are_warned_about(net: nn.Module, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state["linear.bias"][3] = torch.nan
    assert load_model(saved(tmp_path, state)).warnings == (
        "NaN or infinity in the weights: 1 tensors, first linear.bias",
    )


def test_a_colon_may_be_in_the_name_of_a_file(net: nn.Module, tmp_path: Path) -> None:
    assert load_model(saved(tmp_path, net.state_dict(), "epoch=3:best.ckpt")).label == "epoch-3-best"
