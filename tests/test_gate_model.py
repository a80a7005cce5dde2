"""The gate that evaluates by itself: the same numbers as a whole run, and fewer images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import robustbench_ln
from robustbench_ln import evaluate
from robustbench_ln.errors import UsageError
from robustbench_ln.gating import Policy, Rule, decide, read_policy
from robustbench_ln.gating.sequential import gate_model
from robustbench_ln.results import Results, load_results
from tests.conftest import toy_arrays
from tests.made_results import CLEAN, hits, write_run
from tests.test_gate import Run, lnbench

__all__ = ["lnbench"]  # the fixture

LIMIT = 300  # no multiple of any batch: the last one is completed from the start of the order
SETTINGS = {
    "noise": "agn",
    "sigma": "0.5",
    "corruption": "fog",
    "severity": "5",
    "modes": "bn,dynbn-batch:32",
    "limit": LIMIT,
    "seed": 3,
}


def noised(folder: Path, strength: float) -> str:
    """The demo network with noise on its weights."""
    source = Path(robustbench_ln.__file__).parent / "models" / "demo" / "bn.safetensors"
    with safe_open(source, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    torch.manual_seed(0)
    for key, value in tensors.items():
        if value.is_floating_point() and value.numel() > 1:
            tensors[key] = value + torch.randn_like(value) * value.std() * strength
    folder.mkdir()
    save_file(tensors, folder / "demo-bn.safetensors", metadata=metadata)
    return str(folder / "demo-bn.safetensors")


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> str:
    return noised(tmp_path_factory.mktemp("models") / "noised", 0.12)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "main"
    evaluate("demo:bn", out=folder, **SETTINGS)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def whole(worse: str, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return evaluate(worse, out=tmp_path_factory.mktemp("runs") / "worse", **SETTINGS)  # type: ignore[arg-type]


def policy(max_drop: float, **options: object) -> Policy:
    metrics = ("clean_accuracy", "accuracy")
    return Policy(tuple(Rule(metric, metric, "max_drop", max_drop, **options) for metric in metrics))  # type: ignore[arg-type]


def test_all_images_give_the_numbers_of_a_whole_run(baseline: Path, worse: str, whole: Results) -> None:
    # A level that nothing reaches: every rule stays open to the last image.
    asked = policy(0.05, alpha=1e-12)
    looks: list[tuple[int, int]] = []
    by_blocks = gate_model(asked, worse, load_results(baseline), on_look=lambda *look: looks.append(look))
    at_once = decide(asked, whole, load_results(baseline))
    values = [
        {(one.rule.name, one.mode): (one.old, one.new, one.n) for one in decision.checks}
        for decision in (by_blocks, at_once)
    ]
    assert values[0].keys() == values[1].keys()
    assert len(values[0]) == 4
    for key, value in values[0].items():
        assert value == pytest.approx(values[1][key])
    counts = [
        {one.mode: (one.lost, one.gained) for one in decision.checks if one.rule.metric == "clean_accuracy"}
        for decision in (by_blocks, at_once)
    ]
    assert counts[0] == counts[1]
    assert looks == [(128, LIMIT), (256, LIMIT), (LIMIT, LIMIT)]
    assert by_blocks.verdict == "inconclusive"
    assert by_blocks.exit_code == 1


def test_a_gross_failure_needs_few_images(baseline: Path, tmp_path: Path) -> None:
    decision = gate_model(policy(0.01), noised(tmp_path / "bad", 0.2), load_results(baseline))
    assert decision.verdict == "fail"
    assert decision.checks[0].n == 128
    assert decision.checks[0].p_adjusted <= 0.01


def test_the_same_model_passes_before_the_last_image(lnbench: Run, baseline: Path) -> None:
    code, out, err = lnbench("gate", "--model", "demo:bn", "--baseline", str(baseline), "--max-drop", "0.1")
    assert code == 0, out
    assert "128 of 300 images needed" in out
    assert err.splitlines() == ["128 of 300 images"]


def test_absolute_bounds_are_decided_on_the_way_and_need_no_predictions(baseline: Path) -> None:
    old = load_results(baseline)
    bare = Results(old.document, None, lambda _: None, None)
    kept = Policy(
        (Rule("a", "accuracy", "min", 0.2), Rule("e", "mean_corruption_error", "max", 0.95, conditions=("fog",)))
    )
    decision = gate_model(kept, "demo:bn", bare)
    assert decision.verdict == "pass"
    assert len(decision.checks) == 4
    for check in decision.checks:
        assert check.n < LIMIT
        assert (check.old, check.drop, check.paired) == (None, None, False)
        assert check.interval[0] < check.new < check.interval[1]
        assert check.p_kept <= 0.01 < check.p
        assert check.detectable > 0
    broken = gate_model(
        Policy((Rule("e", "mean_corruption_error", "max", 0.01, conditions=("fog",)),)), "demo:bn", bare
    )
    assert broken.verdict == "fail"
    assert broken.checks[0].n < LIMIT
    assert broken.checks[0].p_adjusted <= 0.01


def test_absolute_bounds_at_the_last_image_are_those_of_a_whole_run(baseline: Path) -> None:
    old = load_results(baseline)
    # Limits that these very images just keep: no bet is won on them.
    whole = Policy(
        (Rule("a", "accuracy", "min", 0.0), Rule("e", "mean_corruption_error", "max", 0.0, conditions=("fog",)))
    )
    values = {(one.rule.name, one.mode): one.new for one in decide(whole, old, old).checks}
    rules = [
        Rule(name, {"a": "accuracy", "e": "mean_corruption_error"}[name], {"a": "min", "e": "max"}[name], value,
             modes=(mode,), conditions={"a": None, "e": ("fog",)}[name], alpha=1e-9)
        for (name, mode), value in values.items()
    ]  # fmt: skip
    decision = gate_model(Policy(tuple(rules)), "demo:bn", old)
    assert decision.verdict == "inconclusive"
    assert {(one.rule.name, one.mode): one.new for one in decision.checks} == pytest.approx(values)
    assert {one.n for one in decision.checks} == {LIMIT}


def test_a_small_baseline_will_do(lnbench: Run, baseline: Path) -> None:
    lnbench("gate", str(baseline), "--init", "base")
    options = ("--baseline", "base/baseline.json", "--policy", "base/gate.yaml", "--max-drop", "0.1", "--quiet")
    Path("base/gate.yaml").write_text("rules:\n  - {metric: clean_accuracy}\n")
    code, out, err = lnbench("gate", "--model", "demo:bn", *options)
    assert (code, err) == (0, "")
    assert "clean_accuracy" in out


def test_other_data_is_incomparable(lnbench: Run, baseline: Path, tmp_path: Path) -> None:
    images, labels = toy_arrays(1000, size=32)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    code, out, err = lnbench("gate", "--model", "demo:bn", "--baseline", str(baseline), "--data", "npz:data.npz")
    assert code == 6
    assert out.startswith("INCOMPARABLE")
    assert "data differs" in err


def test_what_cannot_be_decided_on_the_way_is_refused(lnbench: Run, baseline: Path, tmp_path: Path) -> None:
    for text in ("metric: ece, max_drop: 0.1", "metric: ece, max: 0.1"):
        (tmp_path / "gate.yaml").write_text(f"rules:\n  - {{{text}}}\n")
        with pytest.raises(UsageError, match="while a model is evaluated"):
            gate_model(read_policy(tmp_path / "gate.yaml"), "demo:bn", load_results(baseline))
    bare = write_run(tmp_path / "bare", {CLEAN: hits(100, 90)}, predictions=False)
    with pytest.raises(UsageError, match="no predictions"):
        gate_model(policy(0.01), "demo:bn", load_results(bare))
    several = {("a@1", "bn"): {CLEAN: hits(100, 90)}, ("b@2", "bn"): {CLEAN: hits(100, 90)}}
    with pytest.raises(UsageError, match="which of the baseline's models"):
        gate_model(policy(0.01), "demo:bn", load_results(write_run(tmp_path / "two", several)))
    assert lnbench("gate", "x", "--model", "demo:bn", "--baseline", str(baseline))[0] == 2
    assert lnbench("gate", "--baseline", str(baseline))[0] == 2
    assert lnbench("gate", "--model", "demo:bn", "--init", "base")[0] == 2
