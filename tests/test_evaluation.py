"""The engine and the run folder: membership, determinism, resuming, and what is written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_ln import Results, evaluate, load_results
from robustbench_ln.corruptions import Ranges, add_noise, degrade, to_float
from robustbench_ln.data import ArrayDataset
from robustbench_ln.errors import InputError, TrustError, UsageError
from robustbench_ln.evaluation import Event, Finish, find_ranges, run, total_images
from robustbench_ln.models import choose_preprocessing
from robustbench_ln.planning import plan_run, visiting_order
from robustbench_ln.results.store import Cell, FolderRun, MemoryRun, open_run
from tests.conftest import random_localnorm, random_network, toy_arrays, toy_data

BN_MODES = "bn,dynbn-batch:16,dynbn-single,dynbn-single+rot90,bn-adapt:8:16"
LN_MODES = "ln-single,ln-single+rot90,ln-single-vote,ln-single-vote+rot90,ln-batch,ln-voting,native"


def numbers(results: Results) -> list[tuple[Any, ...]]:
    """Everything of a result that must not depend on how it was computed; probabilities to 1e-5 apart."""
    rows = []
    for row in results.document.rows:
        predictions = results.predictions(row)
        classes = None if predictions is None else predictions[0].tolist()
        rows.append(
            (
                row.model,
                row.mode,
                row.condition.to_condition(),
                row.images,
                row.n,
                row.correct,
                row.counts.top5,
                row.counts.bin_n,
                row.counts.bin_correct,
                row.fingerprint,
                classes,
            )
        )
    return rows


def close(a: Results, b: Results) -> bool:
    """Whether nll, ece, brier and probabilities agree within 1e-5."""
    for one, other in zip(a.document.rows, b.document.rows, strict=True):
        for name in ("nll", "ece", "brier"):
            if abs(getattr(one, name) - getattr(other, name)) > 1e-5:
                return False
        if np.abs(a.predictions(one)[1] - b.predictions(other)[1]).max() > 1e-5:
            return False
    return True


def small_run(**options: Any) -> Results:
    models = [random_network(), random_localnorm()]
    given = {"noise": "agn=0,1", "modes": f"{BN_MODES},{LN_MODES}", "group_size": 4, "device": "cpu", **options}
    given.setdefault("data", toy_data(40))
    return evaluate(models, normalize="half", **given)


@pytest.fixture(scope="module")
def reference() -> Results:
    return small_run(batch_size=64)


# ---- Who is scored, and with whom -----------------------------------------------------------------------------------


class Witness(nn.Module):
    """Counts how often each image is seen: its logit says which image it is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        # The top left pixel carries the image's number; the norm layer is called so that modes apply.
        number = (x[:, 0, 0, 0] * 255).round().long()
        self.norm(x)
        return 50.0 * nn.functional.one_hot(number, self.classes).float()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(2, 90),
    m=st.integers(1, 40),
    k=st.integers(1, 5),
    batch=st.integers(1, 60),
    limit=st.none() | st.integers(1, 90),
)
def test_every_image_is_scored_exactly_once(n: int, m: int, k: int, batch: int, limit: int | None) -> None:
    # Each image is its own class and predicts itself: all right means none was missed, mixed up or scored twice.
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(n)
    data = ArrayDataset(images, np.arange(n))
    modes = f"bn,dynbn-batch:{m},bn-adapt:4:{m}"
    models: list[nn.Module] = [Witness(n)]
    if n >= 2 * k:
        from robustbench_ln.norms import convert_to_localnorm

        models.append(convert_to_localnorm(Witness(n), k))
        modes += f",ln-batch:{m},ln-voting:{m},ln-single"
        if m < 2:
            modes = modes.replace(",ln-batch:1", "")
    results = evaluate(
        models, data, noise="agn=0", modes=modes, normalize="none", batch_size=batch, limit=limit, device="cpu"
    )
    for row in results.document.rows:
        assert row.n == row.correct == min(limit or n, n)


def test_statistics_are_shared_by_the_images_of_the_visiting_order() -> None:
    """dynbn-batch by hand: order, cut, wrap, train-mode BatchNorm, float64."""
    data, network, m = toy_data(50), random_network(), 16
    results = evaluate(network, data, noise="agn=0", modes=f"dynbn-batch:{m}", normalize="none", device="cpu")
    order = visiting_order(0, 50).tolist()
    assert sorted(order) == list(range(50))
    full = order + order[: -50 % m]
    double = random_network().double()
    for module in double.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    predicted = {}
    with torch.no_grad():
        for first in range(0, len(full), m):
            members = full[first : first + m]
            classes = double(to_float(data.read(members)).double()).argmax(1).tolist()
            for index, one in zip(members, classes, strict=True):
                predicted.setdefault(index, one)
    row = results.document.rows[0]
    assert results.predictions(row)[0].tolist() == [predicted[i] for i in range(50)]


def test_the_order_is_a_permutation_that_depends_on_the_seed_alone() -> None:
    assert visiting_order(0, 8).tolist() == visiting_order(0, 8).tolist()
    assert visiting_order(0, 100).tolist() != visiting_order(1, 100).tolist()
    # The same on every machine: integer arithmetic and a stable sort.
    assert visiting_order(0, 8).tolist() == [5, 1, 7, 4, 2, 0, 3, 6]


# ---- The same numbers, however computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_numbers_do_not_depend_on_the_compute_batch(batch_size: int, reference: Results) -> None:
    other = small_run(batch_size=batch_size)
    assert numbers(other) == numbers(reference)
    assert close(other, reference)


def test_numbers_do_not_depend_on_threads(reference: Results) -> None:
    other = small_run(batch_size=64, threads=1)
    assert numbers(other) == numbers(reference)
    assert close(other, reference)


def test_numbers_do_not_depend_on_worker_processes() -> None:
    # Each worker loads torch, so one run takes noise, a suite and textures to them.
    given = {"corruption": "frost,contrast", "severity": 5, "modes": "bn,dynbn-batch:16,ln-voting", "batch_size": 64}
    one, other = small_run(**given), small_run(**given, workers=2)
    assert numbers(other) == numbers(one)
    assert close(other, one)


def test_workers_find_a_network_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    command = [
        sys.executable, "-m", "robustbench_ln", "eval", "--model", "python:own_network:make", "--limit", "20",
        "--noise", "agn=1,2", "--modes", "native", "--normalize", "half", "--workers", "2", "--quiet", "--out", "run",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(load_results(tmp_path / "run").document.rows) == 3


OWN_NETWORK = """
from torch import nn

class Own(nn.Sequential):
    pass

def make():
    return Own(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
"""


def test_a_network_that_no_worker_can_read_is_refused() -> None:
    class Local(nn.Sequential):
        pass

    network = Local(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    with pytest.raises(UsageError, match="--workers 0"):
        evaluate(network, toy_data(20), noise="agn=1,2", normalize="half", workers=2)


def test_a_limit_changes_nothing_for_the_images_it_keeps(reference: Results) -> None:
    limited = small_run(limit=23)
    kept = np.sort(visiting_order(0, 40)[:23].numpy())
    for whole, part in zip(reference.document.rows, limited.document.rows, strict=True):
        assert part.n == 23
        assert part.fingerprint == whole.fingerprint
        assert (part.mode, part.images) == (whole.mode, whole.images)
        assert reference.predictions(whole)[0][kept].tolist() == limited.predictions(part)[0].tolist()


def test_sigma_zero_equals_clean_exactly(reference: Results) -> None:
    cells = {(row.model, row.mode, row.condition.name, row.condition.level): row for row in reference.document.rows}
    zeros = [key for key in cells if key[2:] == ("agn", 0.0)]
    assert zeros
    for model, mode, *_ in zeros:
        clean, zero = cells[model, mode, "clean", 0.0], cells[model, mode, "agn", 0.0]
        assert zero.counts == clean.counts
        assert zero.fingerprint == clean.fingerprint


def test_a_fingerprint_is_of_the_first_images_by_index_and_their_condition() -> None:
    one = evaluate(random_network(), toy_data(70), noise="agn=1", modes="bn", normalize="none", device="cpu")
    other = evaluate(random_network(), toy_data(70), noise="agn=1", modes="bn", normalize="none", device="cpu", limit=3)
    moved = evaluate(random_network(), toy_data(70), noise="agn=1", modes="bn", normalize="none", device="cpu", seed=1)
    marks = [[row.fingerprint for row in result.document.rows] for result in (one, other, moved)]
    assert marks[0] == marks[1]
    assert marks[0][0] == marks[2][0]  # clean pixels have no seed
    assert marks[0][1] != marks[2][1]


def test_repeats_redraw_pixels_and_nothing_else() -> None:
    results = small_run(noise="agn=1", repeats=3)
    rows = [row for row in results.document.rows if row.mode == "ln-single" and row.condition.name == "agn"]
    assert [row.condition.repeat for row in rows] == [0, 1, 2]
    assert len({row.fingerprint for row in rows}) == 3


def test_rescale_uses_the_extremes_of_the_whole_data_set_limited_or_not() -> None:
    data = toy_data(60)
    results = evaluate(
        random_network(),
        data,
        noise="agn=2",
        range="rescale",
        modes="bn",
        normalize="none",
        limit=5,
        batch_size=7,
        device="cpu",
    )
    row = results.document.rows[1]
    indices = torch.arange(60)
    clean = to_float(data.read(indices.numpy()))
    noisy = add_noise(clean, row.condition.to_condition(), indices, 0)
    ranges = row.extra["ranges"]
    assert ranges["noisy_min"] == noisy.amin((0, 2, 3)).tolist()
    assert ranges["noisy_max"] == noisy.amax((0, 2, 3)).tolist()
    assert ranges["clean_max"] == clean.amax((0, 2, 3)).tolist()
    # And the pixels are those of the formula: the prediction of the noisy images by hand.
    made = Ranges(*(torch.tensor(ranges[name]) for name in ("noisy_min", "noisy_max", "clean_min", "clean_max")))
    seen = degrade(data.read(indices.numpy()), row.condition.to_condition(), indices, 0, made)
    with torch.no_grad():
        expected = random_network()(seen).argmax(1)[np.sort(visiting_order(0, 60)[:5].numpy())]
    assert results.predictions(row)[0].tolist() == expected.tolist()


def test_ranges_do_not_depend_on_the_compute_batch() -> None:
    found = []
    for batch_size in (7, 64):
        plan = plan_run(
            random_network(), toy_data(60), noise="agn=2", range="rescale", normalize="none", batch_size=batch_size
        )
        found.append(find_ranges(plan, plan.conditions[1]).to_dict())
    assert found[0] == found[1]


class AlmostTied(nn.Module):
    """Two logits that differ by less than float32 noise, so that batch shape alone would decide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 64, 5)
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)
        self.head.weight.data[1] = self.head.weight.data[0] + 2e-8
        self.head.bias.data[:2] = 30.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)).relu().mean((2, 3)))


def test_near_ties_are_settled_the_same_for_every_compute_batch_and_thread_count() -> None:
    found = set()
    for batch_size, threads in ((1, 1), (7, 2), (64, 1), (70, 2)):
        results = evaluate(
            AlmostTied(),
            toy_data(70),
            noise="agn=1",
            modes="bn,dynbn-batch:8",
            normalize="none",
            batch_size=batch_size,
            threads=threads,
            device="cpu",
        )
        found.add(str(numbers(results)))
    assert len(found) == 1


# ---- Resuming -------------------------------------------------------------------------------------------------------


def folder_run(out: Path, **options: Any) -> Results:
    return small_run(out=out, **options)


def rows_done(out: Path) -> set[str]:
    return {path.name for path in (out / "rows").glob("*.row")}


class Interrupt:
    """Presses Ctrl-C after so many finished rows."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, event: Event) -> None:
        self.left -= isinstance(event, Finish)
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, reference: Results) -> None:
    for stop_after in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            folder_run(tmp_path / "run", on_event=Interrupt(stop_after))
        assert (tmp_path / "run" / "results.json").is_file()
    before = {name: (tmp_path / "run" / "rows" / name).read_bytes() for name in rows_done(tmp_path / "run")}
    assert len(before) == 5
    done: list[str] = []
    results = folder_run(tmp_path / "run", on_event=lambda e: done.append(e.key) if isinstance(e, Finish) else None)
    assert numbers(results) == numbers(reference)
    assert not {f"{key}.row" for key in done} & set(before)
    assert all((tmp_path / "run" / "rows" / name).read_bytes() == content for name, content in before.items())


def test_a_second_evaluation_finds_everything_done(tmp_path: Path) -> None:
    first = folder_run(tmp_path / "run")
    events: list[Event] = []
    second = folder_run(tmp_path / "run", on_event=events.append)
    assert not any(isinstance(event, Finish) for event in events)
    assert numbers(first) == numbers(second)


def test_a_damaged_row_is_noticed_and_evaluated_again(tmp_path: Path, reference: Results) -> None:
    folder_run(tmp_path / "run")
    victims = sorted((tmp_path / "run" / "rows").glob("*.row"))[:3]
    for place, victim in enumerate(victims):
        content = bytearray(victim.read_bytes())
        if place == 0:
            content = content[: len(content) // 2]
        else:
            content[-5 if place == 1 else 80] ^= 4
        victim.write_bytes(bytes(content))
    redone: list[str] = []
    results = folder_run(tmp_path / "run", on_event=lambda e: redone.append(e.key) if isinstance(e, Finish) else None)
    assert {f"{key}.row" for key in redone} == {victim.name for victim in victims}
    assert numbers(results) == numbers(reference)


def test_a_folder_takes_more_modes_conditions_and_models(tmp_path: Path) -> None:
    out, data = tmp_path / "run", toy_data(40)
    common = {"data": data, "normalize": "none", "device": "cpu", "out": out}
    evaluate(random_network(), noise="agn=1", modes="bn", **common)
    evaluate(random_network(), noise="apn=1", modes="bn,dynbn-batch:8", **common)
    results = evaluate(random_network(seed=5), noise="agn=1", modes="bn", **common)
    cells = {(row.model, row.mode, row.condition.name) for row in results.document.rows}
    first, second = (entry.id for entry in results.document.models)
    assert cells == {
        *((first, mode, name) for mode in ("bn", "dynbn-batch:8") for name in ("clean", "apn")),
        (first, "bn", "agn"),
        (second, "bn", "clean"),
        (second, "bn", "agn"),
    }


@pytest.mark.parametrize(
    ("field", "change"),
    [("seed", {"seed": 1}), ("limit", {"limit": 9}), ("data", {"data": toy_data(41)})],
)
def test_a_folder_of_other_settings_is_refused_by_name(tmp_path: Path, field: str, change: dict[str, Any]) -> None:
    settings = {"data": toy_data(40), "noise": "agn=1", "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    evaluate(random_network(), **settings)
    done = rows_done(tmp_path / "run")
    with pytest.raises(UsageError, match=f"other {field}"):
        evaluate(random_network(), **{**settings, **change})
    assert rows_done(tmp_path / "run") == done


def test_predictions_that_an_earlier_command_left_out_are_made_up_for(tmp_path: Path) -> None:
    settings = {"data": toy_data(40), "noise": "agn=0,1", "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    without = evaluate(random_network(), predictions=False, **settings)
    assert without.document.predictions is None
    with_them = evaluate(random_network(), **settings)
    assert len(with_them.document.rows) == len(without.document.rows) == 3
    assert all(with_them.predictions(row) is not None for row in with_them.document.rows)
    events: list[Event] = []
    again = evaluate(random_network(), predictions=False, on_event=events.append, **settings)
    assert not any(isinstance(event, Finish) for event in events)
    assert numbers(again) == numbers(with_them)


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.json.abc123.tmp").write_bytes(b"{")
    first = folder_run(run)
    (run / "rows" / ".0123.row.abc123.tmp").write_bytes(b"half")
    assert numbers(folder_run(run)) == numbers(first)
    assert not list(run.rglob("*.tmp"))


def test_rows_that_run_json_does_not_know_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"data": toy_data(40), "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    evaluate(random_network(), noise="agn=1,2", **settings)
    record = tmp_path / "run" / "run.json"
    content = json.loads(record.read_text())
    content["conditions"] = content["conditions"][:-1]
    record.write_text(json.dumps(content))
    results = evaluate(random_network(), noise="agn=1", **settings)
    assert [row.condition.level for row in results.document.rows] == [0.0, 1.0]
    assert "run.json does not know" in caplog.text


def test_a_folder_made_with_other_kernels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"data": toy_data(40), "noise": "agn=1", "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    evaluate(random_network(), **settings)
    monkeypatch.setattr("robustbench_ln.planning.KERNEL_VERSION", 10**6)
    with pytest.raises(UsageError, match="another kernel version"):
        evaluate(random_network(), **settings)


def test_a_mode_asked_for_by_another_name_is_the_same_row(tmp_path: Path) -> None:
    settings = {"data": toy_data(40), "noise": "agn=1", "normalize": "none", "out": tmp_path / "run"}
    for modes in ("dynbn-batch:128", "dynbn-batch", "dynbn-batch:40"):
        results = evaluate(random_network(), modes=modes, **settings)
        assert len(results.document.rows) == 2
        assert results.accuracy("dynbn-batch", "agn", 1.0) == results.accuracy("dynbn-batch:40", "agn", 1.0)


def test_accuracy_tells_ranges_apart_and_says_which_rows_fit(tmp_path: Path) -> None:
    settings = {"data": toy_data(40), "noise": "agn=1", "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    for policy in ("clip", "none"):
        results = evaluate(random_network(), range=policy, **settings)
    with pytest.raises(UsageError, match="agn 1, none"):
        results.accuracy("bn", "agn", 1.0)
    assert 0 <= results.accuracy("bn", "agn", 1.0, range="none") <= 1


def test_paths_that_are_no_utf8_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "bad\udcffname.pt"
    torch.save(random_network().state_dict(), path)
    results = evaluate(str(path), toy_data(40), noise="agn=0", modes="bn", normalize="none", out=tmp_path / "run")
    assert results.document.models[0].source.endswith("bad\\xffname.pt")
    assert numbers(load_results(tmp_path / "run")) == numbers(results)


def test_a_changed_model_file_is_a_new_model_and_a_renamed_one_is_not(tmp_path: Path, bn_file: Path) -> None:
    settings = {"data": toy_data(40), "noise": "agn=1", "modes": "bn", "normalize": "none", "out": tmp_path / "run"}
    copy = tmp_path / "copy.pt"
    copy.write_bytes(bn_file.read_bytes())
    evaluate(str(bn_file), **settings)
    renamed = evaluate(str(copy), **settings)
    assert len({row.model for row in renamed.document.rows}) == 1
    torch.save(random_network(seed=3).state_dict(), copy)
    changed = evaluate(str(copy), **settings)
    assert len({row.model for row in changed.document.rows}) == 2
    assert len(changed.document.rows) == 2 * len(renamed.document.rows)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="other things"):
        evaluate(random_network(), toy_data(20), modes="bn", normalize="none", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["letter.txt"]


def test_a_killed_process_loses_no_finished_row(tmp_path: Path) -> None:
    images, labels = toy_arrays(600)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    torch.save(random_network().state_dict(), tmp_path / "model.pt")
    given = {"model": str(tmp_path / "model.pt"), "data": f"npz:{tmp_path / 'data.npz'}", "noise": "agn=0:1:0.1"}
    given |= {"modes": "bn,dynbn-batch:16", "normalize": "half", "device": "cpu"}
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-m", "robustbench_ln", "eval", *options, "--threads", "1"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(rows_done(tmp_path / "killed")) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {name: (tmp_path / "killed" / "rows" / name).read_bytes() for name in rows_done(tmp_path / "killed")}
    assert len(kept) >= 4
    for out in ("killed", "whole"):
        evaluate(**given, threads=1, out=tmp_path / out)
    assert all((tmp_path / "killed" / "rows" / name).read_bytes() == content for name, content in kept.items())
    assert numbers(load_results(tmp_path / "killed")) == numbers(load_results(tmp_path / "whole"))
    assert (tmp_path / "killed" / "predictions.npz").read_bytes() == (
        tmp_path / "whole" / "predictions.npz"
    ).read_bytes()


# ---- What is written, and what is said -------------------------------------------------------------------------------


def test_a_run_folder_holds_results_tables_plots_and_predictions(tmp_path: Path) -> None:
    import jsonschema

    from robustbench_ln.results import json_schema

    results = folder_run(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.json", "results.csv", "curves.png", "curves.svg", "predictions.npz", "run.json", "rows"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    jsonschema.validate(json.loads((tmp_path / "run" / "results.json").read_text()), json_schema())
    again = load_results(tmp_path / "run")
    assert numbers(again) == numbers(results)
    archive = np.load(tmp_path / "run" / "predictions.npz")
    assert archive["indices"].tolist() == list(range(40))
    for row in again.document.rows:
        assert int(again.hits(row).sum()) == row.correct


def test_without_predictions_none_are_written(tmp_path: Path) -> None:
    results = folder_run(tmp_path / "run", predictions=False)
    assert results.document.predictions is None
    assert not (tmp_path / "run" / "predictions.npz").exists()
    assert results.predictions(results.document.rows[0]) is None


def test_results_become_a_data_frame_and_a_table(reference: Results) -> None:
    frame = reference.to_dataframe()
    assert len(frame) == len(reference)
    assert {"model", "mode", "name", "level", "accuracy", "ci_low", "ci_high"} <= set(frame.columns)
    assert reference._repr_html_().count("<tr>") == len(reference) + 1
    first = reference.document.rows[0]
    assert reference.accuracy(first.mode, model=first.model) == first.accuracy
    with pytest.raises(UsageError):
        reference.accuracy("no-such-mode")


def test_progress_adds_up_to_the_whole(tmp_path: Path) -> None:
    plan = plan_run(
        [random_network(), random_localnorm()], toy_data(50), noise="agn=0,1", normalize="none", device="cpu"
    )
    memory = MemoryRun(plan.manifest)

    def drive(limit: int) -> Iterator[Event]:
        for event in run(plan, memory.get):
            if isinstance(event, Finish):
                memory.append(event.key, event.cell)
            yield event
            if len(list(memory.cells())) == limit:
                return

    list(drive(4))
    assert sum(event.images for event in drive(10**9) if not isinstance(event, Finish)) == total_images(plan)


def test_the_mode_that_no_model_can_run_is_an_error_and_the_one_that_some_can_is_a_warning() -> None:
    with pytest.raises(UsageError) as error:
        evaluate(random_network(), toy_data(30), modes="ln-batch", normalize="none")
    assert "LocalNorm" in str(error.value)
    assert "dynbn-batch" in str(error.value)
    results = evaluate(
        [random_network(), random_localnorm()], toy_data(64), noise="agn=0", modes="bn,ln-voting:8", normalize="none"
    )
    assert len(results.document.rows) == 4
    assert sum("skipped" in warning for warning in results.warnings) == 2


def test_modes_that_the_data_cannot_be_cut_for() -> None:
    images, labels = toy_arrays(40)
    oblong = ArrayDataset(images[:, :, :12], labels, classes=tuple("abcdefghij"))
    with pytest.raises(InputError, match="square"):
        evaluate(random_network(), oblong, noise="agn=0", modes="bn,dynbn-single+rot90", normalize="none")
    results = evaluate(random_network(), oblong, noise="agn=0", modes="all", normalize="none")
    assert {row.mode for row in results.document.rows} == {"bn", "dynbn-batch", "dynbn-single", "bn-adapt:16"}
    assert any("dynbn-single+rot90 skipped" in warning for warning in results.warnings)


def test_the_modes_offered_instead_are_all_that_run() -> None:
    with pytest.raises(UsageError) as error:
        evaluate(random_network(), toy_data(30), modes="ln-batch", normalize="none")
    assert "native" in str(error.value)


def test_images_too_small_for_the_network_are_refused_before_the_run() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 16), nn.AvgPool2d(8), nn.Flatten(), nn.LazyLinear(10))
    network(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="16 x 16 pixels"):
        evaluate(network, toy_data(30), normalize="half")


def test_preprocessing_is_probed_on_classes_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    # toy_data is sorted by class, and statistics of a batch of one class mislead a network with live statistics.
    seen = []

    def choose(network: nn.Module, images: Tensor, labels: Tensor, *more: Any) -> Any:
        seen.append(labels.tolist())
        return choose_preprocessing(network, images, labels, *more)

    monkeypatch.setattr("robustbench_ln.planning.choose_preprocessing", choose)
    plan_run(random_localnorm(), toy_data(200), modes="ln-batch")
    assert seen[0] != sorted(seen[0])


def test_a_model_near_chance_is_named_loudly() -> None:
    results = evaluate(random_network(), toy_data(200), noise="agn=0", modes="bn", normalize="none")
    assert any("is near chance" in warning for warning in results.warnings)


def test_images_of_one_class_are_said_to_be() -> None:
    images, labels = toy_arrays(20)
    data = ArrayDataset(images, labels * 0, classes=["test"])
    results = evaluate(random_network(), data, noise="agn=0", modes="bn", normalize="none")
    assert any("are of one class" in warning for warning in results.warnings)


def test_too_few_images_to_tell_from_chance_are_said_to_be() -> None:
    images, labels = toy_arrays(4)
    network = random_network(classes=2)
    first = evaluate(network, ArrayDataset(images, labels % 2, classes="ab"), noise="agn=0", normalize="none")
    predicted = first.predictions(first.document.rows[0])
    assert predicted is not None
    data = ArrayDataset(images, predicted[0], classes="ab")
    results = evaluate(network, data, noise="agn=0", modes="bn", normalize="none", limit=1)
    assert results.accuracy("bn") == 1
    assert any("1 image cannot be told from chance" in warning for warning in results.warnings)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 10) * self.scale
        logits[:, 3] = torch.where(x.mean((1, 2, 3)) > 0.3, float("nan"), 1.0)
        return logits


def test_logits_that_are_not_finite_count_as_wrong_and_are_said() -> None:
    data = toy_data(60)
    results = evaluate(Broken(), data, noise="agn=0", normalize="none")
    bright = to_float(data.read(range(60))).mean((1, 2, 3)).numpy() > 0.3
    row = results.document.rows[0]
    assert 0 < bright.sum() < 60
    assert (results.predictions(row)[0] == np.where(bright, -1, 3)).all()
    assert any("not finite" in warning for warning in results.warnings)
    assert row.nll is not None


def test_a_model_with_too_few_classes_is_refused() -> None:
    with pytest.raises(InputError, match="logits"):
        evaluate(random_network(classes=4), toy_data(100), normalize="none")


def test_fewer_classes_in_the_data_than_logits_is_said() -> None:
    images, labels = toy_arrays(30)
    results = evaluate(random_network(), ArrayDataset(images, labels % 3), noise="agn=0", modes="bn", normalize="none")
    assert any("trained for 10 classes, the data has 3" in warning for warning in results.warnings)


@pytest.mark.parametrize(
    "bad",
    [
        {"modes": "bnn"}, {"noise": "agm"}, {"sigma": "-1"}, {"sigma": "nan"}, {"noise": "mbn=0,2"}, {"range": "clamp"},
        {"seed": -1}, {"limit": 0}, {"batch_size": 0}, {"repeats": 0}, {"group_size": 0}, {"threads": 0},
        {"workers": -1}, {"device": "tpu"}, {"device": "cuda:99"}, {"normalize": "imagenat"}, {"preset": "paper"},
        {"preset": "paper-fig6", "sigma": "1"}, {"preset": "paper-fig6", "range": "clip"},
        {"noise": "agn", "severity": 3}, {"modes": "bn-adapt"},
    ],
)  # fmt: skip
def test_bad_words_are_refused_before_any_file_is_read(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        evaluate("no-such-file.pt", "imagefolder:/no/such/folder", **bad)
    assert "no-such-file" not in str(error.value)


def test_models_in_memory_are_left_as_they_are() -> None:
    network = random_network().train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    evaluate(network, toy_data(40), noise="agn=1", modes="all", normalize="none")
    assert network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_cells_survive_their_file_format() -> None:
    plan = plan_run(random_network(), toy_data(30), noise="agn=1", modes="bn", normalize="none", device="cpu")
    for event in run(plan, lambda key: None):
        if isinstance(event, Finish):
            again = Cell.from_bytes(event.cell.to_bytes())
            assert again.row == event.cell.row
            assert (again.predicted == event.cell.predicted).all()
            assert (again.confidence == event.cell.confidence).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_of_a_row_is_noticed(data: st.DataObject) -> None:
    content = bytearray(_one_row())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):  # noqa: PT011 - any of its kind
        Cell.from_bytes(bytes(content))


_row: list[bytes] = []


def _one_row() -> bytes:
    if not _row:
        plan = plan_run(random_network(), toy_data(30), noise="agn=1", modes="bn", normalize="none", device="cpu")
        _row.append(next(event.cell.to_bytes() for event in run(plan, lambda key: None) if isinstance(event, Finish)))
    return _row[0]


def test_two_runs_of_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    plan = plan_run(random_network(), toy_data(30), noise="agn=1", modes="bn", normalize="none", device="cpu")
    with open_run(tmp_path / "run", plan.manifest) as first:
        assert isinstance(first, FolderRun)
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from filelock import FileLock; FileLock({str(tmp_path / 'run' / '.lock')!r}).acquire(timeout=0)",
            ],
            stderr=subprocess.DEVNULL,
        )
        assert waiting.wait() != 0


def test_data_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    from PIL import Image

    images, labels = toy_arrays(40)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "data" / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / f"c{label}" / f"{i:03}.png")
    changed = False

    def change(event: Event) -> None:
        nonlocal changed
        if isinstance(event, Finish) and not changed:
            changed = True
            for path in (tmp_path / "data").rglob("*.png"):
                Image.fromarray(images[0] // 2).save(path)

    with pytest.raises(TrustError, match="changed"):
        evaluate(
            random_network(),
            f"imagefolder:{tmp_path / 'data'}",
            noise="agn=1",
            modes="bn",
            normalize="none",
            on_event=change,
        )


# Corruptions


@pytest.fixture(scope="module")
def corrupted() -> Results:
    return corrupted_run()


def corrupted_run(**options: Any) -> Results:
    given = {"corruption": "glass_blur,frost,contrast", "severity": "2,5", "modes": "bn,dynbn-batch:16", **options}
    return evaluate(random_network(), toy_data(40, size=32), normalize="half", device="cpu", **given)


def test_corruptions_run_without_noise_and_beside_it(corrupted: Results) -> None:
    names = {row.condition.name for row in corrupted.rows}
    assert names == {"clean", "glass_blur", "frost", "contrast"}
    assert {row.condition.suite for row in corrupted.rows} == {"", "cifar10-c"}
    both = corrupted_run(corruption="contrast", severity=1, noise="agn", sigma="0.5", modes="bn")
    assert [row.condition.name for row in both.rows] == ["clean", "agn", "contrast"]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"threads": 2}])
def test_corrupted_rows_do_not_depend_on_how_they_are_computed(options: dict[str, Any], corrupted: Results) -> None:
    other = corrupted_run(**options)
    assert numbers(other) == numbers(corrupted)
    assert close(other, corrupted)


def test_a_limited_corrupted_run_keeps_its_pixels(corrupted: Results) -> None:
    limited = corrupted_run(limit=10)
    for one, other in zip(limited.document.rows, corrupted.document.rows, strict=True):
        assert one.fingerprint == other.fingerprint


def test_frost_says_whose_textures_it_used(corrupted: Results, tmp_path: Path) -> None:
    data = corrupted.document.data
    assert data.pixels == "regenerated"
    assert data.frost in ("procedural", "original")
    assert (data.frost == "procedural") == any("procedural textures" in text for text in corrupted.warnings)
    plain = corrupted_run(corruption="contrast", out=tmp_path / "run")
    assert plain.document.data.frost is None
    grown = corrupted_run(corruption="frost", out=tmp_path / "run")
    assert grown.document.data.frost == data.frost


def test_other_textures_make_other_rows_and_need_another_folder(tmp_path: Path) -> None:
    from PIL import Image

    textures = tmp_path / "frost"
    textures.mkdir()
    for i, name in enumerate(("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")):
        pixels = np.random.default_rng(i).integers(0, 256, (240, 250, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(textures / name)
    mine = corrupted_run(corruption="frost", frost_textures=textures, out=tmp_path / "run")
    assert mine.document.data.frost == "original"
    Image.fromarray(np.zeros((240, 250, 3), np.uint8)).save(textures / "frost1.png")
    with pytest.raises(UsageError, match="frost textures"):
        corrupted_run(corruption="frost", frost_textures=textures, out=tmp_path / "run")
    (textures / "frost2.png").unlink()
    with pytest.raises(InputError, match=r"frost2\.png"):
        corrupted_run(corruption="frost", frost_textures=textures)


def test_a_size_that_is_not_the_suites_is_marked() -> None:
    results = corrupted_run(corruption="contrast", severity=1, modes="bn", suite="imagenet-c")
    assert any("not comparable with published figures" in text for text in results.warnings)
    assert not any("constants of" in text for text in corrupted_run(corruption="contrast", severity=1).warnings)


def test_jpeg_parity_is_part_of_a_condition(tmp_path: Path) -> None:
    options = {"corruption": "contrast", "severity": 1, "modes": "bn", "out": tmp_path / "run"}
    corrupted_run(**options)
    both = corrupted_run(**options, jpeg_parity=True)
    marks = {row.fingerprint for row in both.document.rows if row.condition.name == "contrast"}
    assert len(marks) == 2


def test_a_changed_suite_is_another_suite(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    text = "description: x\nsize: 32\ncorruptions:\n  soft: {kernel: blur.gaussian_blur, family: blur, sigma: %s}\n"
    names = []
    for sigma in (1, 2):
        suite.write_text(text % sigma)
        options = {"corruption": "soft", "severity": 1, "modes": "bn", "suite": str(suite), "out": tmp_path / "run"}
        names.append({row.condition.suite for row in corrupted_run(**options).rows if row.condition.suite})
    assert len(names[0]) == 1
    assert len(names[1]) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"corruption": "fogg"},
        {"severity": "0:5"},
        {"suite": "mnist-c"},
        {"corruption": None, "suite": "cifar10-c"},
        {"corruption": None, "jpeg_parity": True},
        {"sigma": "0.5"},
    ],
)
def test_bad_words_about_corruptions_are_refused_before_any_file_is_read(bad: dict[str, Any]) -> None:
    options = {"corruption": "all", **bad}
    with pytest.raises(UsageError):
        plan_run("missing.pt", "imagefolder:missing", **options)
