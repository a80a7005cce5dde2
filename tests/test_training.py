"""Training: what it learns, that it goes on bit for bit, and that processes together are as one."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat
from torch import Tensor, nn

import robustbench_ln
from robustbench_ln import ArrayDataset, open_dataset, train
from robustbench_ln.cli.train import train_command
from robustbench_ln.corruptions import ImageRng
from robustbench_ln.errors import InputError, LnbenchError, ResourceError, TrustError, UsageError
from robustbench_ln.files import locked
from robustbench_ln.models import build_network, load_model
from robustbench_ln.norms import NORMS, LocalNorm, convert_norms, norm_layers
from robustbench_ln.norms.convert import all_norms
from robustbench_ln.training import Epoch, Processes, Progress, TrainingRun, plan_training, train_plan
from robustbench_ln.training.images import Part, Pixels, ahead, augmented, epoch_order
from robustbench_ln.training.loop import norm_statistics
from robustbench_ln.training.optimization import LossScale, learning_rate, parameter_groups
from tests.conftest import random_network, toy_arrays, toy_data
from tests.train_together import CASES, train_all

SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "normalize": "half"}


def small_train(out: Path, **settings: Any) -> TrainingRun:
    """5 steps an epoch, 3 epochs."""
    given = {"data": toy_data(80), "arch": "demo-net", "eval_data": toy_data(40, seed=1), **SMALL, **settings}
    return train(out=out, **given)


def stopped_after(steps: int, out: Path, **settings: Any) -> TrainingRun:
    """As `small_train`, asked to stop after so many steps."""
    given = {"data": toy_data(80), "arch": "demo-net", "eval_data": toy_data(40, seed=1), **SMALL, **settings}
    count = iter(range(1, 1000))
    return train_plan(plan_training(**given), out, among=Processes(), stop=lambda: next(count) == steps)


def without_time(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k not in ("seconds", "images_per_second")} for one in log]


# Learning


def striped(n: int, seed: int) -> ArrayDataset:
    """Images of two classes, with stripes one way or the other."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    stripes = np.tile([0, 0, 160, 160], (16, 4))
    images = np.stack([np.stack([stripes if y else stripes.T] * 3, -1) for y in labels])
    return ArrayDataset((images + rng.integers(0, 96, images.shape)).astype(np.uint8), labels, ("across", "down"))


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_a_network_learns_and_is_read_back_without_a_flag(norm: str, tmp_path: Path) -> None:
    run = train(
        data=striped(96, 0), eval_data=striped(40, 1), arch="demo-net", norm=norm, groups=4 if norm == "ln" else None,
        out=tmp_path / "run", epochs=4, batch_size=16, learning_rate=0.1, crop=0, schedule="constant",
    )  # fmt: skip
    assert run.finished
    assert max(record["eval_accuracy"] for record in run.log) >= 0.95
    loaded = load_model(str(run.best))
    assert (loaded.arch, loaded.num_classes, loaded.recognised) == ("demo-net", 2, "file metadata")
    assert loaded.label == "run-best"
    assert (loaded.n_groups, loaded.group_size) == ((4, 4) if norm == "ln" else (None, None))
    results = robustbench_ln.evaluate(str(run.best), striped(40, 1), sigma="0", noise="agn")
    assert results.accuracy("bn" if norm == "bn" else "ln-voting") > 0.85


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains_and_is_read_back_as_what_it_is(norm: str, tmp_path: Path) -> None:
    run = small_train(tmp_path, norm=norm, epochs=1)
    loaded = load_model(str(run.last))
    expected = convert_norms(build_network("demo-net", num_classes=10), norm)
    assert [repr(layer) for layer in all_norms(loaded.network).values()] == [
        repr(layer) for layer in all_norms(expected).values()
    ]
    assert loaded.mean == (0.5, 0.5, 0.5)


def test_localnorm_starts_from_the_gamma_and_beta_of_the_checkpoint(bn_file: Path, tmp_path: Path) -> None:
    plan = plan_training(data=toy_data(80), model=str(bn_file), norm="ln", groups=4, **SMALL)
    before = load_model(str(bn_file)).network
    for name, layer in norm_layers(plan.network).items():
        assert isinstance(layer, LocalNorm)
        assert torch.equal(layer.weight, before.get_submodule(name).weight.expand(4, -1))
    assert all(parameter.requires_grad for parameter in plan.network.parameters())
    assert plan.metadata["source_sha256"] == hashlib.sha256(bn_file.read_bytes()).hexdigest()


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    small = plan_training(data=toy_data(1300, size=8), arch="demo-net", norm="ln").settings
    assert (small.batch_size, small.n_groups, small.group_size) == (128, 8, 16)
    assert (small.epochs, small.learning_rate, small.momentum, small.weight_decay) == (200, 0.1, 0.9, 1e-4)
    assert (small.optimizer, small.crop, small.flip) == ("sgd", 1, True)
    large = plan_training(data=toy_data(20, size=224), arch="demo-net", norm="ln").settings
    assert (large.batch_size, large.n_groups, large.group_size) == (16, 4, 4)


def test_the_released_steps_of_the_learning_rate() -> None:
    settings = plan_training(data=toy_data(160), arch="demo-net").settings
    rates = [learning_rate(settings, epoch) for epoch in (0, 49.9, 50, 121.9, 122, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.003, 0.003])


def test_warm_up_and_cosine() -> None:
    plan = plan_training(data=toy_data(160), arch="demo-net", schedule="cosine", epochs=10, warmup=2, learning_rate=1)
    rates = [learning_rate(plan.settings, epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("norm", ["bn", "ln", "layernorm", "switchnorm"])
def test_only_kernels_and_matrices_decay(norm: str) -> None:
    network = convert_norms(build_network("resnet20", num_classes=10), norm)
    decayed, rest = parameter_groups(network, 0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        name for name in names.values() if name.endswith("weight") and ("conv" in name or "linear" in name)
    }
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_a_new_head_is_trained_for_the_classes_of_the_data(bn_file: Path, tmp_path: Path) -> None:
    images, labels = toy_arrays(80, classes=3)
    data = ArrayDataset(images, labels, ("a", "b", "c"))
    with pytest.raises(InputError, match="another number of classes") as error:
        small_train(tmp_path, model=str(bn_file), arch=None, data=data, eval_data="none")
    assert "--new-head" in error.value.hint
    run = small_train(tmp_path, model=str(bn_file), arch=None, data=data, eval_data="none", epochs=1, new_head=True)
    assert load_model(str(run.last)).num_classes == 3
    assert run.log[0]["eval_accuracy"] is None
    assert run.best.read_bytes() == run.last.read_bytes()


# Images


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    indices = np.arange(50)
    orders = [epoch_order(0, epoch, indices).tolist() for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [indices.tolist()] * 2
    assert orders[0] != orders[1]
    assert epoch_order(0, 0, indices).tolist() == orders[0] != epoch_order(1, 0, indices).tolist()


def test_augmentation_is_of_the_image_and_not_of_its_batch() -> None:
    levels = toy_data(6).read(np.arange(6))

    def of(which: list[int]) -> Tensor:
        return augmented(levels[which], ImageRng(3, "train/augment", torch.tensor(which)), crop=2, flip=True)

    together = of([0, 1, 2, 3, 4, 5])
    for i in range(6):
        assert torch.equal(of([i])[0], together[i])
    assert together.dtype == torch.float32
    assert together.shape == levels.shape


def test_crops_and_mirror_images_are_all_drawn_and_none_else() -> None:
    one = toy_data(1, size=4).read([0]).repeat(400, 1, 1, 1)
    found = augmented(one, ImageRng(0, "train/augment", torch.arange(400)), crop=1, flip=True)
    padded = torch.nn.functional.pad(one[0].float() / 255, [1] * 4)
    sides = (padded, padded.flip(-1))
    possible = [side[:, top : top + 4, left : left + 4] for side in sides for top in range(3) for left in range(3)]
    hits = [int((found == view).flatten(1).all(1).sum()) for view in possible]
    assert sum(hits) == 400
    assert min(hits) > 5
    assert torch.equal(
        augmented(one[:2], ImageRng(0, "train/augment", torch.arange(2)), crop=0, flip=False), one[:2].float() / 255
    )


def test_images_too_many_for_memory_are_read_again_and_are_the_same(tmp_path: Path) -> None:
    part = Part(toy_data(30), np.arange(5, 30))
    positions = torch.tensor([3, 0, 24, 3])
    assert torch.equal(Pixels(part).read(positions), Pixels(part, room=0).read(positions))
    assert torch.equal(Pixels(part).read(positions), part.dataset.read(positions.numpy() + 5))


def test_threads_hand_over_in_order_and_change_nothing(tmp_path: Path) -> None:
    items = [torch.tensor(i) for i in range(40)]

    def slow(item: Tensor) -> Tensor:
        time.sleep(0.002 if item % 3 == 0 else 0)
        return item * 2

    assert list(ahead(slow, items, 3)) == [item * 2 for item in items]
    runs = [small_train(tmp_path / str(n), epochs=1, workers=n) for n in (0, 2)]
    assert runs[0].last.read_bytes() == runs[1].last.read_bytes()


def test_a_tenth_is_held_back_where_there_are_no_test_images() -> None:
    plan = plan_training(data=toy_data(80), arch="demo-net", batch_size=16)
    assert plan.held_out is not None
    assert (len(plan.train), len(plan.held_out)) == (72, 8)
    assert not set(plan.train.indices) & set(plan.held_out.indices)
    demo = plan_training(data="demo", arch="demo-net")
    assert demo.held_out is not None
    assert (len(demo.train), demo.held_out.dataset.id) == (8000, "demo")


# Going on

KINDS: dict[str, dict[str, Any]] = {
    "bn": {},
    "ln": {"norm": "ln", "groups": 4},
    "switchnorm": {"norm": "switchnorm"},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "dropout": {"arch": "tests.test_training:dropping"},
}


def dropping(num_classes: int) -> nn.Module:
    """A network with chance of its own."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = small_train(tmp_path / "whole", **KINDS[kind])
    parts = [stopped_after(steps, tmp_path / "parts", **KINDS[kind]) for steps in (3, 4, 1)]
    assert [run.finished for run in parts] == [False] * 3
    end = small_train(tmp_path / "parts", **KINDS[kind])
    assert end.finished
    assert end.last.read_bytes() == whole.last.read_bytes()
    assert end.best.read_bytes() == whole.best.read_bytes()
    assert without_time(end.log) == without_time(whole.log)
    assert [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()] == end.log


def test_a_training_that_was_killed_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(event: Epoch | Progress) -> None:
        if isinstance(event, Progress) and event.images == 8 * 16:
            raise Killed

    whole = small_train(tmp_path / "whole")
    with pytest.raises(Killed):
        small_train(tmp_path / "parts", on_event=kill)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 1
    assert small_train(tmp_path / "parts").last.read_bytes() == whole.last.read_bytes()


def test_a_finished_training_is_found_finished(tmp_path: Path) -> None:
    first = small_train(tmp_path)
    events: list[object] = []
    again = small_train(tmp_path, on_event=events.append)
    assert (again.finished, again.log, events) == (True, first.log, [])


def test_other_settings_are_refused_by_their_names(tmp_path: Path) -> None:
    small_train(tmp_path, epochs=1)
    for change, name in (({"seed": 1}, "seed"), ({"batch_size": 8}, "batch_size"), ({"data": toy_data(81)}, "data")):
        with pytest.raises(UsageError, match=f"other settings: {name}"):
            small_train(tmp_path, epochs=1, **change)
    record = json.loads((tmp_path / "train.json").read_text())
    del record["settings"]["norm_groups"]  # a setting that came later
    (tmp_path / "train.json").write_text(json.dumps(record))
    assert small_train(tmp_path, epochs=1).finished
    with pytest.raises(UsageError) as error:
        small_train(tmp_path, epochs=1, weight_decay=0.5)
    assert error.value.found == f"weight_decay 0.0001 in {tmp_path}, 0.5 asked for"


def test_the_best_epoch_is_kept_apart_from_the_last(tmp_path: Path) -> None:
    run = small_train(tmp_path, epochs=6, learning_rate=0.3, schedule="constant")
    accuracies = [record["eval_accuracy"] for record in run.log]
    chosen = [record["epoch"] for record in run.log if record["best"]][-1]
    assert chosen == accuracies.index(max(accuracies)) + 1
    assert chosen < 6, "the settings are such that an earlier epoch is the best"
    results = robustbench_ln.evaluate(str(run.best), toy_data(40, seed=1), modes="native", noise="agn", sigma="0")
    assert results.accuracy("native") == max(accuracies)


# Bad input


def wrong(data: object = None, **settings: Any) -> dict[str, Any]:
    return {"data": data or toy_data(80), "arch": "demo-net", "eval_data": "none", **SMALL, **settings}


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (wrong(norm="ln", groups=5), 2, "not a multiple of K"),
        (wrong(norm="ln", groups=32), 2, "smaller than K"),
        (wrong(norm="ln", groups=0), 2, "--groups"),
        (wrong(norm="bn", groups=4), 2, "bn has no groups"),
        (wrong(norm="batchnorm"), 2, "unknown norm"),
        (wrong(optimizer="sdg"), 2, "unknown optimizer"),
        (wrong(schedule="linear"), 2, "unknown schedule"),
        (wrong(precision="int8"), 2, "unknown precision"),
        (wrong(arch="resnet21x"), 2, "unknown architecture"),
        (wrong(arch=None), 2, "nothing to train"),
        (wrong(epochs=0), 2, "--epochs"),
        (wrong(learning_rate=math.nan), 2, "--learning-rate"),
        (wrong(momentum=-1), 2, "--momentum"),
        (wrong(new_head=True), 2, "--new-head"),
        (wrong(data=toy_data(10)), 3, "smaller than one batch"),
        (wrong(data="imagefolder:nowhere"), 3, "no such file"),
        (wrong(model="nowhere.pt"), 3, "nowhere.pt"),
        (wrong(data=toy_data(80, size=4), arch="vgg19_bn", batch_size=4), 3, "cannot take the images"),
        (wrong(eval_data=ArrayDataset(*toy_arrays(20), classes=tuple("0123456789"))), 3, "other classes"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    settings: dict[str, Any], code: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(LnbenchError) as error:
        train(out=tmp_path / "run", **settings)
    assert error.value.exit_code == code
    assert said in str(error.value)
    assert error.value.found
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture_is_refused(bn_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit resnet20"):
        small_train(tmp_path, model=str(bn_file), arch="resnet20")


@pytest.mark.parametrize(("k", "processes", "fits"), [(8, 2, True), (8, 8, True), (8, 3, False), (4, 8, False)])
def test_processes_must_share_the_groups_evenly(k: int, processes: int, fits: bool) -> None:
    request = wrong(norm="ln", groups=k, batch_size=24 * k, data=toy_data(200), among=Processes(0, processes))
    if fits:
        assert plan_training(**request).settings.n_groups == k
        return
    with pytest.raises(UsageError, match="cannot be shared out") as error:
        plan_training(**request)
    assert error.value.found == f"K {k}, world size {processes}"


class Exploding(nn.Module):
    """Trains 7 steps, then gives what is no number."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.calls = build_network("demo-net", num_classes=num_classes), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.body(x) * (torch.nan if self.training and self.calls > 7 else 1)


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_epoch(tmp_path: Path) -> None:
    with pytest.raises(TrustError) as error:
        small_train(tmp_path / "nan", arch="tests.test_training:Exploding")
    assert error.value.what == "the training loss is not finite"
    assert error.value.found.startswith("epoch 2, step 3 of 5, learning rate")
    assert "has the weights after epoch 1" in error.value.hint
    assert error.value.exit_code == 6
    tensors = load_file(tmp_path / "nan" / "last.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    state = torch.load(tmp_path / "nan" / "state.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 0)


def test_weights_that_the_last_step_of_an_epoch_spoiled_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="a weight"):
        small_train(tmp_path, data=toy_data(16), epochs=1, learning_rate=1e38, momentum=0)
    assert not (tmp_path / "last.safetensors").exists()


def test_a_second_training_does_not_write_into_the_folder_of_the_first(tmp_path: Path) -> None:
    with locked(tmp_path / "run", tmp_path / "run" / ".lock"), pytest.raises(ResourceError, match="another lnbench"):
        small_train(tmp_path / "run")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("valuable")
    with pytest.raises(UsageError, match="other things"):
        small_train(tmp_path)
    with pytest.raises(UsageError, match="must be a folder"):
        small_train(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of the size of files are POSIX's")
def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    import resource

    stopped_after(8, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".pt")}
    assert set(files) == {"last.safetensors", "best.safetensors", "state.pt"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # less than the weights take
    try:
        with pytest.raises(ResourceError) as error:
            small_train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert error.value.what.startswith(f"cannot write {tmp_path}")
    assert error.value.exit_code == 5
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("content", [b"", b"no zip", "cut"])
def test_a_damaged_state_is_named(content: bytes | str, tmp_path: Path) -> None:
    stopped_after(3, tmp_path)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:-500] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"state\.pt cannot be read"):
        small_train(tmp_path)


def test_a_state_that_would_run_code_does_not(tmp_path: Path) -> None:
    stopped_after(3, tmp_path)
    torch.save({"version": 1, "network": Bomb(str(tmp_path / "ran"))}, tmp_path / "state.pt")
    with pytest.raises(InputError):
        small_train(tmp_path)
    assert not (tmp_path / "ran").exists()


class Bomb:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_float16_gradients_that_overflow_halve_the_scale() -> None:
    scale = LossScale(True)
    scale.update(finite=False)
    assert (scale.scale, scale.good) == (32768.0, 0)
    for _ in range(2000):
        scale.update(finite=True)
    assert (scale.scale, scale.good) == (65536.0, 0)


# Figures


def test_norm_statistics_are_of_each_group() -> None:
    network = convert_norms(random_network(), "ln", groups=2)
    name, layer = next(iter(norm_layers(network).items()))
    layer.weight.data = torch.arange(float(layer.weight.numel())).view_as(layer.weight)
    found = norm_statistics(network)[name]["weight"]
    rows = layer.weight.detach().numpy()
    assert found["mean"] == pytest.approx(rows.mean(1).tolist())
    assert found["var"] == pytest.approx(rows.var(1).tolist())


def test_a_training_draws_its_curves(tmp_path: Path) -> None:
    run = small_train(tmp_path, norm="ln", groups=4)
    for name in ("curves.png", "parameters.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 500
            assert len(np.unique(np.asarray(picture))) > 10
    means = [layer["weight"]["mean"] for layer in run.log[-1]["norms"].values()]
    assert all(len(set(groups)) == 4 for groups in means), "the groups have moved apart"


# Processes


def together(n: int, out: Path, stop_after: int, *names: str) -> None:
    """Train in n processes that torchrun starts."""
    root = Path(__file__).parents[1]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), "-m", "tests.train_together"]
    subprocess.run(
        [sys.executable, *command, str(out), str(stop_after), *names],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, trained by one process."""
    out = tmp_path_factory.mktemp("alone")
    train_all(out, list(CASES))
    return out


def assert_close(a: Path, b: Path, name: str) -> None:
    ours, theirs = (load_file(folder / name / "last.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    tolerance = 1e-9 if "fp64" in name else 1e-5
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=tolerance, msg=f"{name}: {key}")


@pytest.mark.skipif(os.name == "nt", reason="gloo through torchrun")
@pytest.mark.parametrize(("n", "names"), [(2, list(CASES)), (4, ["ln fp64", "ln fp32"])])
def test_processes_train_what_one_process_trains(n: int, names: list[str], alone: Path, tmp_path: Path) -> None:
    together(n, tmp_path, 0, *names)
    for name in names:
        assert_close(alone, tmp_path, name)
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {path.name for path in (alone / name).iterdir()}
        logs = [(folder / name / "log.jsonl").read_text().splitlines() for folder in (alone, tmp_path)]
        one, many = ([json.loads(line)["eval_loss"] for line in log] for log in logs)
        assert one == pytest.approx(many, abs=1e-5)
    weights = load_file(alone / "ln fp64" / "last.safetensors")
    rows = next(value for key, value in weights.items() if value.dim() == 2 and len(value) == 4)
    assert (rows - rows[:1]).abs()[1:].max() > 1e-3, "the groups have learned different things"


@pytest.mark.skipif(os.name == "nt", reason="gloo through torchrun")
def test_one_process_goes_on_where_two_stopped(alone: Path, tmp_path: Path) -> None:
    names = ["ln fp64", "ln adamw"]
    together(2, tmp_path, 7, *names)
    for name in names:
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        assert (state["epoch"], state["step"]) == (1, 3)
    runs = train_all(tmp_path, names)
    assert all(run.finished for run in runs.values())
    for name in names:
        assert_close(alone, tmp_path, name)


# Stanford Cars


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """Three classes in the layout of the official archives."""
    kinds = {"names": ["class", "fname"], "formats": ["O", "O"]}
    rng = np.random.default_rng(0)
    for split, file, n in (("train", "cars_train_annos.mat", 24), ("test", "cars_test_annos_withlabels.mat", 9)):
        (tmp_path / f"cars_{split}").mkdir()
        rows = np.array([(1 + i % 3, f"{i + 1:05d}.jpg") for i in range(n)], dtype=kinds)
        (tmp_path / "devkit").mkdir(exist_ok=True)
        savemat(tmp_path / "devkit" / file, {"annotations": rows})
        for name in rows["fname"]:
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"cars_{split}" / name)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi R8 Coupe 2012"], dtype=object)
    savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    return tmp_path


def test_stanford_cars_is_read_in_its_official_layout(cars: Path, tmp_path: Path) -> None:
    test = open_dataset(f"imagefolder:{cars}", resize=16, crop=16)
    assert (test.id, len(test), test.image_size) == ("stanford-cars-test", 9, (16, 16))
    assert test.classes[1] == "Acura RL Sedan 2012"
    assert test.labels.tolist() == [0, 1, 2] * 3
    plan = plan_training(
        data=f"imagefolder:{cars}", arch="demo-net", resize=16, center_crop=16, batch_size=8, norm="ln", groups=4
    )
    assert plan.held_out is not None
    assert (len(plan.train), plan.held_out.dataset.id) == (24, "stanford-cars-test")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda cars: (cars / "devkit" / "cars_meta.mat").unlink(), "annotations of Stanford Cars are missing"),
        (lambda cars: (cars / "devkit" / "cars_meta.mat").write_bytes(b"no MAT file"), "not an annotation file"),
        (lambda cars: (cars / "cars_test" / "00003.jpg").unlink(), "images of Stanford Cars are missing"),
        (
            lambda cars: savemat(cars / "devkit" / "cars_meta.mat", {"class_names": np.array(["a"], dtype=object)}),
            "class 2 of 1",
        ),
    ],
)
def test_damaged_stanford_cars_are_named(damage: Callable[[Path], object], said: str, cars: Path) -> None:
    damage(cars)
    with pytest.raises(InputError) as error:
        open_dataset(f"imagefolder:{cars}", resize=16, crop=16)
    assert said in str(error.value)


# The command


def test_the_command_has_the_arguments_of_the_function() -> None:
    function, command = (inspect.signature(one).parameters for one in (train, train_command))
    assert set(function) - {"on_event"} == set(command) - {"json", "quiet", "config", "debug"}
    for name, parameter in command.items():
        if name in function:
            assert parameter.default == function[name].default, name


SCRIPT = shutil.which("lnbench", path=str(Path(sys.executable).parent)) or shutil.which("lnbench")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    images, labels = toy_arrays(64)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_the_state_and_the_same_command_goes_on(
    number: signal.Signals, code: int, desk: Path
) -> None:
    assert SCRIPT
    command = [
        SCRIPT, "train", "--arch", "demo-net", "--data", "npz:data.npz", "--batch-size", "16", "--epochs", "4000",
        "--threads", "1", "--out", "run",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (desk / "run" / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "go on with: lnbench train --arch demo-net" in stderr
    assert "Traceback" not in stderr
    state = torch.load(desk / "run" / "state.pt", weights_only=True)
    done = (state["epoch"] * 3 + state["step"]) * 16  # 57 images to train on are 3 steps
    assert f"interrupted: {done} of 192000 images are trained on, the state is kept in run\n" in stderr


def test_the_command_prints_one_json_document(desk: Path) -> None:
    assert SCRIPT
    command = [
        SCRIPT, "train", "--arch", "demo-net", "--data", "npz:data.npz", "--batch-size", "16", "--epochs", "2",
        "--norm", "ln", "--groups", "4", "--json", "--out", "run",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=120, check=True)
    document = json.loads(done.stdout)
    assert (document["schema_version"], document["finished"], len(document["log"])) == (1, True, 2)
    assert (desk / document["best"]).is_file()
    settings = json.loads((desk / "run" / "train.json").read_text())["settings"]
    assert (settings["norm"], settings["n_groups"], settings["batch_size"]) == ("ln", 4, 16)
