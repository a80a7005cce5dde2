"""The gate: red for a regression, never for noise, never green for results that cannot be compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from robustbench_ln.cli import app
from robustbench_ln.comparing.evidence import ImageMean, PairedProportion, UnpairedProportion, difference, level
from robustbench_ln.comparing.matching import Pair, packed, subjects, unpacked
from robustbench_ln.comparing.measures import METRICS, single
from robustbench_ln.errors import IncompleteError, InputError, TrustError
from robustbench_ln.gating import FORMATS, decide, default_policy, read_policy
from robustbench_ln.metrics.calibration import ece
from robustbench_ln.metrics.mce import ALEXNET_ERROR, STANDARD
from robustbench_ln.metrics.paired import paired_p, unpaired_p
from robustbench_ln.results import load_results
from robustbench_ln.types import Condition
from tests.made_results import CLEAN, hits, write_run

N = 2_000
AGN = [Condition("agn", level) for level in (0.0, 0.25, 0.5, 1.0)]
FOG = Condition("fog", 3.0, "cifar10-c")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lnbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Exit code, stdout and stderr of a command, run in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lnbench", *arguments])
        capsys.readouterr()
        code = app._run()
        return code, *capsys.readouterr()

    return run


def results(folder: Path, *args: Any, **options: Any) -> Any:
    return load_results(write_run(folder, *args, **options))


def check(tmp_path: Path, policy: str, old: Any, new: Any, **options: Any) -> Any:
    """The decision of a policy, given as text, on outcomes."""
    (tmp_path / "gate.yaml").write_text(policy)
    before, after = results(tmp_path / "old", old), results(tmp_path / "new", new, **options)
    return decide(read_policy(tmp_path / "gate.yaml"), after, before)


def rule(text: str, **top: str) -> str:
    return "".join(f"{key}: {value}\n" for key, value in top.items()) + f"rules:\n  - {{{text}}}\n"


def test_a_drop_fails_and_none_passes(lnbench: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    write_run(tmp_path / "worse", {CLEAN: hits(N, 1800), FOG: hits(N, 1200, lost=150, gained=20)})
    code, out, err = lnbench("gate", "main", "--baseline", "main")
    assert (code, err) == (0, "")
    assert out.startswith("PASS")
    code, out, err = lnbench("gate", "worse", "--baseline", "main")
    assert (code, err) == (1, "")
    assert out.startswith("FAIL: of 2 checks, 1 fail")
    first = out.splitlines()[4].split()
    assert first[:6] == ["fail", "accuracy", "net", "bn", "60.00", "53.50"]
    assert lnbench("gate", "worse", "--baseline", "main", "--exit-zero")[0] == 0
    assert lnbench("gate", "worse", "--baseline", "main", "--max-drop", "0.2")[0] == 0


def test_noise_does_not_fail(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    hard = {CLEAN: generator.random(N) < 0.1, FOG: generator.random(N) < 0.4}  # images that either model may get wrong
    before, after = ({one: ~(bad & (generator.random(N) < 0.8)) for one, bad in hard.items()} for _ in range(2))
    decision = check(tmp_path, rule("metric: accuracy, max_drop: 0, where: {condition: '*'}"), before, after)
    assert decision.verdict == "pass"
    assert decision.checks[0].interval[0] < 0 < decision.checks[0].interval[1]


def test_one_condition_takes_the_paired_score_test(tmp_path: Path) -> None:
    decision = check(
        tmp_path, rule("metric: clean_accuracy, max_drop: 0.01"),
        {CLEAN: hits(N, 1800)}, {CLEAN: hits(N, 1800, lost=60, gained=10)},
    )  # fmt: skip
    one = decision.checks[0]
    assert (one.lost, one.gained, one.n, one.paired) == (60, 10, N, True)
    assert one.p == one.p_adjusted == pytest.approx(float(paired_p(N, 60, 10, 0.01, "worse")))
    assert one.drop == pytest.approx(0.025)
    assert one.interval[0] < 0.025 < one.interval[1]


def test_no_margin_takes_mcnemars_exact_test(tmp_path: Path) -> None:
    decision = check(
        tmp_path, rule("metric: clean_accuracy, max_drop: 0"),
        {CLEAN: hits(N, 1800)}, {CLEAN: hits(N, 1800, lost=10)},
    )  # fmt: skip
    assert decision.verdict == "fail"
    assert decision.checks[0].p == pytest.approx(2**-10)
    assert decision.checks[0].method == "exact McNemar test"


def test_holm_adjusts_over_all_rules(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800, lost=10)}
    whole = {("net@1", f"mode{i}"): cells for i in range(5)}
    old = {key: {CLEAN: hits(N, 1800)} for key in whole}
    decision = check(tmp_path, rule("metric: clean_accuracy, max_drop: 0"), old, whole)
    assert [one.p_adjusted for one in decision.checks] == pytest.approx([5 * 2**-10] * 5)
    many = {("net@1", f"mode{i}"): cells if not i else {CLEAN: hits(N, 1800)} for i in range(20)}
    old = {key: {CLEAN: hits(N, 1800)} for key in many}
    assert check(tmp_path, rule("metric: clean_accuracy, max_drop: 0"), old, many).verdict == "pass"


@pytest.mark.parametrize(
    ("lost", "gained", "verdict", "code"),
    [(0, 0, "pass", 0), (50, 50, "inconclusive", 1), (200, 0, "fail", 1)],
)
def test_noninferiority_passes_only_what_is_shown_to_be_good(
    tmp_path: Path, lost: int, gained: int, verdict: str, code: int
) -> None:
    policy = rule("metric: clean_accuracy, max_drop: 0.01", kind="noninferiority")
    old, new = {CLEAN: hits(N, 1800)}, {CLEAN: hits(N, 1800, lost=lost, gained=gained)}
    decision = check(tmp_path, policy, old, new)
    assert (decision.verdict, decision.exit_code) == (verdict, code)
    lenient = check(tmp_path, f"inconclusive: pass\n{policy}", old, new)
    assert lenient.verdict == verdict
    assert lenient.exit_code == (0 if verdict == "inconclusive" else code)


def test_noninferiority_is_not_adjusted_but_needs_every_rule(tmp_path: Path) -> None:
    # Thirty rules, each kept with p just below alpha: all pass, since all are needed.
    cells = {CLEAN: hits(N, 1800, lost=7)}
    whole = {("net@1", f"mode{i}"): cells for i in range(30)}
    old = {key: {CLEAN: hits(N, 1800)} for key in whole}
    policy = rule("metric: clean_accuracy, max_drop: 0.01", kind="noninferiority")
    decision = check(tmp_path, policy, old, whole)
    assert decision.verdict == "pass"
    assert 0.01 / 30 < decision.checks[0].p_kept <= 0.01
    whole["net@1", "mode7"] = {CLEAN: hits(N, 1800, lost=12)}
    assert check(tmp_path, policy, old, whole).verdict == "inconclusive"


def test_without_predictions_it_is_unpaired_and_says_so(tmp_path: Path) -> None:
    old, new = {CLEAN: hits(N, 1800), FOG: hits(N, 1200)}, {CLEAN: hits(N, 1740), FOG: hits(N, 1140)}
    paired = check(tmp_path, rule("metric: accuracy, max_drop: 0.01"), old, new)
    unpaired = check(tmp_path, rule("metric: accuracy, max_drop: 0.01"), old, new, predictions=False)
    assert paired.verdict == "fail"
    assert unpaired.verdict == "pass"
    assert any("unpaired" in warning for warning in unpaired.warnings)
    assert "unpaired" in FORMATS["text"](unpaired)
    assert unpaired.checks[0].p == pytest.approx(float(unpaired_p(1200, N, 1140, N, 0.01, "worse")))


def test_a_mean_without_predictions_counts_each_image_once(tmp_path: Path) -> None:
    conditions = [Condition("fog", float(s), "cifar10-c") for s in (1, 2, 3, 4, 5)]
    old = {condition: hits(N, 1200) for condition in conditions}
    new = {condition: hits(N, 1100) for condition in conditions}
    pair = Pair(subjects(results(tmp_path / "a", old, predictions=False))[0], subjects(results(tmp_path / "b", new))[0])
    measure = METRICS["accuracy"](conditions, True)
    assert measure is not None
    evidence = difference(measure, pair)
    assert isinstance(evidence, UnpairedProportion)
    assert evidence.drop == pytest.approx(0.05)
    assert evidence.p(0.0, "worse") == pytest.approx(float(unpaired_p(1200, N, 1100, N, 0.0, "worse")))


def test_metrics_are_what_they_are_by_hand(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rates = {0.0: 0.9, 0.25: 0.8, 0.5: 0.7, 1.0: 0.3}
    cells: dict[Condition, np.ndarray] = {one: generator.random(N) < rates[one.level] for one in AGN}
    corrupted = {
        Condition(name, float(s), "imagenet-c"): generator.random(N) < 0.9 - 0.1 * s
        for name in STANDARD
        for s in (1, 2, 3, 4, 5)
    }
    cells = {CLEAN: generator.random(N) < 0.9, **cells, **corrupted}
    one = subjects(results(tmp_path / "a", cells))[0]
    mean = {condition: float(right.mean()) for condition, right in cells.items()}

    def value(name: str, conditions: list[Condition], chosen: bool = False) -> float:
        measure = METRICS[name](conditions, chosen)
        assert measure is not None
        evidence = level(measure, one)
        found = (
            measure.value(sum(w * (1 - mean[c]) for c, w in measure.terms))
            if measure.loss == "error"
            else evidence.drop
        )
        assert found == pytest.approx(-evidence.drop if measure.rising else evidence.drop)
        return found

    a = [mean[condition] for condition in AGN]
    area = 0.25 * (a[0] + a[1]) / 2 + 0.25 * (a[1] + a[2]) / 2 + 0.5 * (a[2] + a[3]) / 2
    assert value("auc", list(cells)) == pytest.approx(area)
    assert value("accuracy", AGN) == pytest.approx(np.mean(a[1:]))  # sigma 0 is clean again
    assert value("accuracy", AGN, chosen=True) == pytest.approx(np.mean(a))
    assert value("clean_accuracy", list(cells)) == pytest.approx(mean[CLEAN])
    errors = {condition: 1 - mean[condition] for condition in corrupted}
    assert value("mean_corruption_error", list(cells)) == pytest.approx(np.mean(list(errors.values())))
    ce = [
        sum(errors[Condition(name, float(s), "imagenet-c")] for s in (1, 2, 3, 4, 5)) / sum(ALEXNET_ERROR[name])
        for name in STANDARD
    ]
    assert value("mce", list(cells)) == pytest.approx(np.mean(ce))
    row = one.rows[CLEAN]
    assert row.counts is not None
    assert value("ece", [CLEAN], chosen=True) == pytest.approx(ece(row.counts.to_counts()), abs=1e-6)


def test_repeats_of_a_condition_share_its_weight() -> None:
    conditions = [Condition("agn", 0.5, repeat=r) for r in range(3)] + [FOG]
    measure = METRICS["accuracy"](conditions, True)
    assert measure is not None
    assert [weight for _, weight in measure.terms] == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert measure.about == "mean of 2 conditions"


def test_mce_is_withheld_for_missing_cells_mixed_suites_and_other_sizes() -> None:
    whole = [Condition(name, float(s), "imagenet-c") for name in STANDARD for s in (1, 2, 3, 4, 5)]
    with pytest.raises(IncompleteError, match=r"75|15"):
        METRICS["mce"](whole[1:], False)
    with pytest.raises(TrustError, match="mixed"):
        METRICS["mean_corruption_error"]([*whole, FOG], False)
    small = [Condition(one.name, one.level, "cifar10-c") for one in whole]
    with pytest.raises(TrustError, match="AlexNet"):
        METRICS["mce"](small, False)
    assert METRICS["mean_corruption_error"](small, False) is not None
    assert METRICS["mce"]([CLEAN], False) is None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("metric: clean_accuracy, min: 0.85", "pass"),
        ("metric: clean_accuracy, min: 0.95", "fail"),
        ("metric: accuracy, min: 0.95", "fail"),
        ("metric: ece, max: 0.5", "pass"),
        ("metric: ece, max: 0.01", "fail"),
        ("metric: clean_accuracy, min: 0.899, kind: noninferiority", "inconclusive"),
        ("metric: clean_accuracy, min: 0.85, kind: noninferiority", "pass"),
    ],
)
def test_absolute_bounds(tmp_path: Path, text: str, verdict: str) -> None:
    cells = {CLEAN: hits(N, 1800), FOG: hits(N, 1200), Condition("snow", 1.0, "cifar10-c"): hits(N, 1300)}
    decision = check(tmp_path, rule(text), cells, cells)
    assert decision.verdict == verdict
    low, high = decision.checks[0].interval
    assert low <= decision.checks[0].new <= high


def test_calibration_that_got_worse_fails(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1500)}
    over = {CLEAN: hits(N, 1500, lost=600)}  # confidences stay at 75 %, accuracy does not
    decision = check(tmp_path, rule("metric: ece, max_drop: 0.02"), cells, over)
    assert decision.verdict == "fail"
    assert decision.checks[0].drop == pytest.approx(decision.checks[0].new - decision.checks[0].old, abs=1e-5)
    assert check(tmp_path, rule("metric: ece, max_drop: 0.02"), cells, over, predictions=False).verdict == "fail"


def test_every_verdict_says_what_it_could_have_found(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800), FOG: hits(N, 1200)}
    decision = check(tmp_path, rule("metric: clean_accuracy, max_drop: 0.01"), cells, cells)
    assert 0.01 < decision.checks[0].detectable < 0.05
    assert f"{100 * decision.checks[0].detectable:.2f}" in FORMATS["text"](decision)


# Matching


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"sha256": "other"}}, "data"),
        ({"run": {"seed": 1}}, "seed"),
        ({"run": {"precision": "fp16"}}, "precision"),
        ({"run": {"order_sha256": "x"}}, "order"),
        ({"run": {"limit": 5}}, "limit"),
        ({"data": {"pixels": "published"}}, "pixels"),
        ({"data": {"image_size": (64, 64)}}, "image size"),
        ({"row": {"fingerprint": "others"}}, "pixels of clean"),
        ({"row": {"images": 64}}, "M, the images"),
    ],
)  # fmt: skip
def test_results_of_other_images_are_incomparable(lnbench: Run, tmp_path: Path, change: Any, named: str) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    write_run(tmp_path / "new", {CLEAN: hits(N, 1800)}, **change)
    code, out, err = lnbench("gate", "new", "--baseline", "main", "--format", "json", "--exit-zero")
    assert code == 6
    document = json.loads(out)
    assert document["verdict"] == "incomparable"
    assert named in document["reason"]["what"]
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "found", "try"]


def test_another_suite_is_incomplete(lnbench: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    write_run(tmp_path / "new", {CLEAN: hits(N, 1800), Condition("fog", 3.0, "imagenet-c"): hits(N, 1200)})
    code, out, _ = lnbench("gate", "new", "--baseline", "main")
    assert code == 4
    assert out.startswith("INCOMPARABLE")


@pytest.mark.parametrize(("new", "old"), [([CLEAN], [CLEAN, FOG]), ([CLEAN, FOG], [CLEAN])])
def test_missing_cells_are_never_a_pass(lnbench: Run, tmp_path: Path, new: Any, old: Any) -> None:
    write_run(tmp_path / "main", {one: hits(N, 1500) for one in old})
    write_run(tmp_path / "new", {one: hits(N, 1500) for one in new})
    (tmp_path / "p.yaml").write_text(rule("metric: accuracy, max_drop: 0.01, where: {condition: '*'}"))
    code, _, err = lnbench("gate", "new", "--baseline", "main", "--policy", "p.yaml")
    assert code == 4
    assert "fog 3" in err
    (tmp_path / "p.yaml").write_text(rule("metric: clean_accuracy, max_drop: 0.01"))
    assert lnbench("gate", "new", "--baseline", "main", "--policy", "p.yaml")[0] == 0


def test_a_failed_row_is_a_missing_one(lnbench: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    raw = json.loads((tmp_path / "main" / "results.json").read_text())
    raw["rows"][1]["status"] = "failed"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "results.json").write_text(json.dumps({**raw, "predictions": None}))
    assert lnbench("gate", "new", "--baseline", "main")[0] == 4


def test_a_mode_that_was_not_run_is_incomplete(lnbench: Run, tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800)}
    write_run(tmp_path / "main", {("net@1", "bn"): cells, ("net@1", "dynbn-batch"): cells})
    write_run(tmp_path / "new", {("net@1", "bn"): cells})
    code, _, err = lnbench("gate", "new", "--baseline", "main")
    assert code == 4
    assert "dynbn-batch" in err


@pytest.mark.parametrize("which", ["new", "main"])
def test_near_chance_and_lost_logits_are_not_trusted(lnbench: Run, tmp_path: Path, which: str) -> None:
    good = {CLEAN: hits(N, 1800), FOG: hits(N, 1200)}
    for bad, extra in ({CLEAN: hits(N, 210), FOG: hits(N, 200)}, None), (good, {"extra": {"non_finite": 3}}):
        write_run(tmp_path / "new", good)
        write_run(tmp_path / "main", good)
        write_run(tmp_path / which, bad, row=extra, predictions=extra is None)
        code, out, err = lnbench("gate", "new", "--baseline", "main")
        assert code == 6, out
        assert ("chance" if extra is None else "not finite") in err
        assert lnbench("gate", which, "--init", "base")[0] == 6
    assert not (tmp_path / "base").exists()


def test_models_are_matched_by_name_whatever_their_weights(tmp_path: Path) -> None:
    good, bad = {CLEAN: hits(N, 1800)}, {CLEAN: hits(N, 1800, lost=300)}
    old = {("a@1", "bn"): good, ("b@2", "bn"): good}
    new = {("b@9", "bn"): bad, ("a@1", "bn"): good, ("c@3", "bn"): good}
    decision = check(tmp_path, rule("metric: clean_accuracy, max_drop: 0.01"), old, new)
    assert [(one.model, one.verdict) for one in decision.checks] == [("b", "fail"), ("a", "pass")]
    assert any("c@3" in warning for warning in decision.warnings)


def test_renamed_models_are_matched_on_request(lnbench: Run, tmp_path: Path) -> None:
    good = {CLEAN: hits(N, 1800)}
    write_run(tmp_path / "main", {("a@1", "bn"): good, ("b@2", "bn"): good})
    write_run(tmp_path / "new", {("x@1", "bn"): good, ("y@2", "bn"): good})
    code, _, err = lnbench("gate", "new", "--baseline", "main")
    assert code == 2
    assert "--pair x=a" in err
    assert lnbench("gate", "new", "--baseline", "main", "--pair", "x=a", "--pair", "y=b")[0] == 0
    assert lnbench("gate", "new", "--baseline", "main", "--pair", "x")[0] == 2
    assert lnbench("gate", "new", "--baseline", "main", "--pair", "z=a")[0] == 2
    write_run(tmp_path / "one", {("x@1", "bn"): good})
    write_run(tmp_path / "other", {("a@1", "bn"): good})
    assert lnbench("gate", "one", "--baseline", "other")[0] == 0  # the only ones


def test_predictions_that_contradict_the_counts_are_refused(lnbench: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    write_run(tmp_path / "new", {CLEAN: hits(N, 1800)})
    write_run(tmp_path / "other", {CLEAN: hits(N, 1900)})
    (tmp_path / "other" / "predictions.npz").replace(tmp_path / "new" / "predictions.npz")
    code, out, err = lnbench("gate", "new", "--baseline", "main")
    assert (code, out) == (3, "")
    assert "1900 of 2000" in err
    content = (tmp_path / "main" / "predictions.npz").read_bytes()
    for damage in (content[:700], content[:300] + b"\0" * 400 + content[700:], b"no archive"):
        (tmp_path / "new" / "predictions.npz").write_bytes(damage)
        code, out, err = lnbench("gate", "new", "--baseline", "main")
        assert code == 3, out + err


# The small baseline


def test_a_small_baseline_decides_as_the_run_does(lnbench: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    conditions = [CLEAN, *(Condition(name, float(s), "cifar10-c") for name in STANDARD[:4] for s in (1, 2, 3, 4, 5))][
        :20
    ]
    old = {condition: generator.random(10_000) < 0.6 for condition in conditions}
    new = {condition: right & (generator.random(10_000) > 0.04) for condition, right in old.items()}
    write_run(tmp_path / "main", old)
    write_run(tmp_path / "new", new)
    assert lnbench("gate", "main", "--init", "base")[0] == 0
    assert (tmp_path / "base" / "baseline.json").stat().st_size < 300_000
    small = json.loads(lnbench("gate", "new", "--baseline", "base/baseline.json", "--format", "json")[1])
    full = json.loads(lnbench("gate", "new", "--baseline", "main", "--format", "json")[1])
    assert small == full
    assert small["verdict"] == "fail"
    assert all(one["paired"] for one in small["rules"])
    by_policy = lnbench(
        "gate", "new", "--baseline", "base/baseline.json", "--policy", "base/gate.yaml", "--format", "json"
    )
    assert [one["p"] for one in json.loads(by_policy[1])["rules"]] == [one["p"] for one in small["rules"]]


def test_init_keeps_a_policy_that_is_there(lnbench: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    lnbench("gate", "main", "--init", "base", "--max-drop", "0.03", "--alpha", "0.05")
    policy = tmp_path / "base" / "gate.yaml"
    assert [(one.limit, one.alpha) for one in read_policy(policy).rules] == [(0.03, 0.05)]
    policy.write_text(rule("metric: clean_accuracy, max_drop: 0.5"))
    _, out, _ = lnbench("gate", "main", "--init", "base")
    assert "left as it is" in out
    assert read_policy(policy).rules[0].limit == 0.5


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_packed_hits_come_back(n: int) -> None:
    made = np.random.default_rng(n).random(n) < 0.5
    assert (unpacked(packed(made), n) == made).all()
    for text in ("", "!", packed(made)[:-8], packed(np.concatenate([made, np.ones(64, bool)])), 3, None):
        with pytest.raises(InputError, match="damaged"):
            unpacked(text, n)


# Policies


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("rules:\n  - metrik: accuracy\n", 2, "metric"),
        ("rules:\n  - metric: acuracy\n    max_drop: 0.1\n", 2, "accuracy"),
        ("kind: regresion\nrules:\n  - {metric: accuracy, max_drop: 0.1}\n", 1, "regression"),
        ("rules:\n  - metric: accuracy\n    max_drop: 0.1\n    max_drop: 0.2\n", 4, "twice"),
        ("rules:\n  - metric: accuracy\n    max_drop: 1 %\n", 3, "number"),
        ("rules:\n  - metric: accuracy\n    max_drop: 5\n", 3, "fractions"),
        ("rules:\n  - metric: accuracy\n    max_drop: .nan\n", 3, "number"),
        ("rules:\n  - metric: accuracy\n    max_drop: true\n", 3, "number"),
        ("rules:\n  - metric: accuracy\n", 2, "one of"),
        ("rules:\n  - {metric: accuracy, max_drop: 0.1, min: 0.5}\n", 2, "max_drop and min"),
        ("rules:\n  - {metric: accuracy, max: 0.5}\n", 2, "min"),
        ("rules:\n  - {metric: ece, min: 0.5}\n", 2, "max"),
        ("alpha: 0\nrules:\n  - {metric: accuracy, max_drop: 0.1}\n", 1, "probability"),
        ("rules:\n  - {metric: accuracy, max_drop: 0.1, where: {modes: bn}}\n", 2, "mode"),
        ("rules:\n  - metric: accuracy\n    max_drop: 0.1\n    where:\n      mode: 3\n", 5, "pattern"),
        ("rules:\n  - {metric: accuracy, max_drop: 0.1, name: 3}\n", 2, "text"),
        ("rules: []\n", 1, "list of rules"),
        ("alpha: 0.1\n", 1, "list of rules"),
        ("rules: {metric: accuracy}\n", 1, "list of rules"),
        ("- metric: accuracy\n", 1, "keys and values"),
        ("rules:\n  - accuracy\n", 2, "keys and values"),
        ("", 1, "keys and values"),
    ],
)
def test_a_bad_policy_is_refused_with_line_and_near_names(
    lnbench: Run, tmp_path: Path, text: str, line: int, said: str
) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    (tmp_path / "gate.yaml").write_text(text)
    code, out, err = lnbench("gate", "main", "--baseline", "main", "--policy", "gate.yaml")
    assert (code, out) == (3, "")
    assert f"gate.yaml, line {line}" in err
    assert said in err


@pytest.mark.parametrize(
    "where", ["{mode: ln-batch}", "{model: other}", "{condition: snow}", '{condition: ["snow *", "agn 7"]}']
)
def test_a_rule_that_matches_nothing_is_an_error(lnbench: Run, tmp_path: Path, where: str) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    (tmp_path / "gate.yaml").write_text(f"rules:\n  - metric: accuracy\n    max_drop: 0.1\n    where: {where}\n")
    code, _, err = lnbench("gate", "main", "--baseline", "main", "--policy", "gate.yaml")
    assert code == 3
    assert "line 2" in err


def test_patterns_name_models_modes_and_conditions(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800), **{one: hits(N, 1000) for one in AGN}, FOG: hits(N, 900)}
    whole = {(model, mode): cells for model in ("a@1", "b@2") for mode in ("bn", "dynbn-batch:64")}
    policy = (
        'rules:\n- {metric: accuracy, max_drop: 0.1, where: {model: a, mode: "dyn*", condition: ["agn 0.?", "fog"]}}'
    )
    decision = check(tmp_path, policy, whole, whole)
    assert [(one.model, one.mode, one.conditions) for one in decision.checks] == [("a", "dynbn-batch:64", 2)]
    policy = "rules:\n- {metric: accuracy, max_drop: 0.1, where: {condition: [agn 0.25, agn 1]}}"
    assert [one.conditions for one in check(tmp_path, policy, whole, whole).checks] == [2] * 4


def test_the_command_line_gives_what_rules_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("alpha: 0.05\nrules:\n  - {metric: accuracy}\n  - {metric: auc, max_drop: 0.2, alpha: 0.1}\n")
    asked = read_policy(path, max_drop=0.03, alpha=0.02)
    assert [(one.limit, one.alpha) for one in asked.rules] == [(0.03, 0.02), (0.2, 0.1)]
    path.write_text("alpha: 0.05\nmax_drop: 0.04\nrules:\n  - {metric: accuracy}\n")
    assert [(one.limit, one.alpha) for one in read_policy(path).rules] == [(0.04, 0.05)]


@pytest.mark.parametrize("options", [("--max-drop", "1"), ("--max-drop", "-0.1"), ("--alpha", "0"), ("--format", "xml"),
                                     ("--alpha", "nan"), ("--init", "x")])  # fmt: skip
def test_options_out_of_range_are_usage_errors(lnbench: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    assert lnbench("gate", "main", "--baseline", "main", *options)[0] == 2


def test_files_that_are_no_results_are_refused(lnbench: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    text = (folder / "results.json").read_text()
    for name, content in (("newer", text.replace('"schema_version": 1', '"schema_version": 2')), ("half", text[:500])):
        (tmp_path / f"{name}.json").write_text(content)
        assert lnbench("gate", f"{name}.json", "--baseline", "main")[0] == 3
    assert lnbench("gate", "missing", "--baseline", "main")[0] == 3
    assert lnbench("gate", "main", "--baseline", "main", "--policy", "missing.yaml")[0] == 3
    assert lnbench("gate", "main")[0] == 2


# Formats

HOSTILE = "<script>alert(1)</script>|%0A`x`\n::error::\x1b[31mred=1+1,&'\""


def hostile_decisions(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    old = {(f"={HOSTILE}@1", f"bn{HOSTILE}"): {CLEAN: hits(N, 1800), Condition(HOSTILE, 1.0): hits(N, 1000)}}
    new = {key: {one: right & (np.arange(N) > 300) for one, right in cells.items()} for key, cells in old.items()}
    before = results(tmp_path / "old", old)
    after = results(tmp_path / "new", new, run={"warnings": [HOSTILE]})
    (tmp_path / "gate.yaml").write_text(
        json.dumps({"rules": [{"metric": "accuracy", "max_drop": 0.01, "name": HOSTILE}]})
    )
    asked = read_policy(tmp_path / "gate.yaml")
    yield "fail", decide(asked, after, before)
    yield (
        "incomparable",
        decide(asked, after, results(tmp_path / "other", old, data={"sha256": HOSTILE, "source": HOSTILE})),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_names_are_inert_in_every_format(tmp_path: Path, name: str) -> None:
    for verdict, decision in hostile_decisions(tmp_path):
        assert decision.verdict == verdict
        shown = FORMATS[name](decision)
        assert "\x1b" not in shown
        commands = [line for line in shown.splitlines() if line.lstrip().startswith("::")]
        if name == "github":
            assert len(commands) == 2  # the verdict and the run's warning
            for line in commands:
                head, message = re.fullmatch(r"::(?:error|warning) (.*?)::(.*)", line).groups()  # type: ignore[union-attr]
                assert [part.partition("=")[0] for part in head.split(",")] == ["title", "file", "line"]
                assert "%0A" not in message.replace("%250A", "")
        else:
            assert not commands
        if name == "junit":
            root = ElementTree.fromstring(shown)
            assert root.find(".//script") is None
        if name in ("json", "gitlab"):
            json.loads(shown)


def test_json_says_everything(tmp_path: Path) -> None:
    for verdict, decision in hostile_decisions(tmp_path):
        document = json.loads(FORMATS["json"](decision))
        assert document["verdict"] == verdict
        if verdict == "fail":
            one = document["rules"][0]
            assert one["rule"] == HOSTILE
            assert one["drop"] == pytest.approx(0.1505)
            assert one["ci95"][0] < one["drop"] < one["ci95"][1]
            assert one["line"] == 1
        else:
            assert document["rules"] == []
            assert document["exit_code"] == 6


def test_junit_counts_what_it_holds(tmp_path: Path) -> None:
    for verdict, decision in hostile_decisions(tmp_path):
        root = ElementTree.fromstring(FORMATS["junit"](decision))
        counted = {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")}
        expected = {"fail": ("1", "1", "0", "0"), "incomparable": ("1", "0", "1", "0")}[verdict]
        assert tuple(counted.values()) == expected
    policy = "inconclusive: pass\n" + rule("metric: clean_accuracy, max_drop: 0.01", kind="noninferiority")
    decision = check(tmp_path, policy, {CLEAN: hits(N, 1800)}, {CLEAN: hits(N, 1800, lost=50, gained=50)})
    assert ElementTree.fromstring(FORMATS["junit"](decision)).get("skipped") == "1"


def test_gitlab_issues_are_told_apart_by_what_they_are_about(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800)}
    old = {("a@1", mode): cells for mode in ("bn", "native")}
    new = {key: {CLEAN: hits(N, 1800, lost=300)} for key in old}
    issues = json.loads(FORMATS["gitlab"](check(tmp_path, rule("metric: clean_accuracy, max_drop: 0.01"), old, new)))
    assert len({one["fingerprint"] for one in issues}) == len(issues) == 2
    assert issues[0]["location"] == {"path": str(tmp_path / "gate.yaml"), "lines": {"begin": 2}}
    passed = FORMATS["gitlab"](check(tmp_path, rule("metric: clean_accuracy, max_drop: 0.01"), old, old))
    assert json.loads(passed) == []


def test_github_gets_a_summary_and_outputs(lnbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "main", {("<b>|`x`@1", "bn"): {CLEAN: hits(N, 1800)}})
    write_run(tmp_path / "new", {("<b>|`x`@1", "bn"): {CLEAN: hits(N, 1800, lost=300)}})
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert lnbench("gate", "new", "--baseline", "main", "--format", "github")[0] == 1
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == "verdict=fail\nexit-code=1\nfailed=1\n"
    summary = (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert "<b>" not in summary
    table = [line for line in summary.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "no" / "such"))
    assert lnbench("gate", "new", "--baseline", "main", "--format", "github")[0] == 5


def test_the_worst_comes_first_and_out_keeps_the_format(lnbench: Run, tmp_path: Path) -> None:
    drops = {"a": 60, "b": 0, "c": 400}
    write_run(tmp_path / "main", {(f"{name}@1", "bn"): {CLEAN: hits(N, 1800)} for name in drops})
    write_run(
        tmp_path / "new", {(f"{name}@1", "bn"): {CLEAN: hits(N, 1800, lost=lost)} for name, lost in drops.items()}
    )
    code, out, _ = lnbench("gate", "new", "--baseline", "main", "--format", "json", "--out", "reports/gate.json")
    assert code == 1
    assert out.startswith("FAIL")
    document = json.loads((tmp_path / "reports" / "gate.json").read_text())
    assert [one["model"] for one in document["rules"]] == ["c", "a", "b"]


def test_deciding_takes_a_moment_and_no_torch(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    old = {condition: generator.random(10_000) < 0.7 for condition in [CLEAN, *AGN, FOG]}
    write_run(tmp_path / "main", old)
    write_run(
        tmp_path / "new", {condition: right & (generator.random(10_000) > 0.05) for condition, right in old.items()}
    )
    code = (
        "import sys; from robustbench_ln.cli import app; sys.argv = ['lnbench', 'gate', 'new', '--baseline', 'main'];"
        "code = app._run(); heavy = {'torch', 'scipy', 'matplotlib', 'pandas', 'rich.console'} & set(sys.modules);"
        "print(code, sorted(heavy))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []"
    assert time.perf_counter() - start < 10  # 1 s on a free machine


def test_the_strategy_follows_what_is_kept(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800), FOG: hits(N, 1200)}
    kept, counted = (subjects(results(tmp_path / str(keep), cells, predictions=keep))[0] for keep in (True, False))
    assert isinstance(difference(single(CLEAN), Pair(kept, kept)), PairedProportion)
    assert isinstance(difference(single(CLEAN), Pair(counted, kept)), UnpairedProportion)
    mean = METRICS["accuracy"]([CLEAN, FOG], True)
    assert mean is not None
    assert isinstance(difference(mean, Pair(kept, kept)), ImageMean)
    assert isinstance(difference(mean, Pair(kept, counted)), UnpairedProportion)


def test_without_a_policy_clean_and_all_else_are_gated() -> None:
    assert [one.metric for one in default_policy([CLEAN], max_drop=None, alpha=None).rules] == ["clean_accuracy"]
    both = default_policy([CLEAN, FOG], max_drop=0.02, alpha=0.05).rules
    assert [(one.metric, one.limit, one.alpha) for one in both] == [
        ("clean_accuracy", 0.02, 0.05),
        ("accuracy", 0.02, 0.05),
    ]
