"""Rows that stop once their accuracy is known well enough: when they stop, what they hold, what they are unfit for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_ln import Results, evaluate, load_results
from robustbench_ln.comparing import compare
from robustbench_ln.errors import TrustError, UsageError
from robustbench_ln.evaluation import LOOK, Progress, run, total_images
from robustbench_ln.gating import Policy, Rule, decide, write_baseline
from robustbench_ln.gating.sequential import gate_model
from robustbench_ln.metrics.accuracy import wilson
from robustbench_ln.metrics.sequential import betting_interval, narrow_interval
from robustbench_ln.planning import plan_run
from robustbench_ln.reports import report, summarise
from robustbench_ln.results.store import MemoryRun
from tests.conftest import random_network, toy_data
from tests.test_evaluation import close, numbers

N, M, WIDTH = 500, 48, 0.06
SETTINGS: dict[str, Any] = {"noise": "agn", "sigma": "0,2", "modes": f"bn,dynbn-batch:{M}", "group_size": None}


def early(**options: Any) -> Results:
    return evaluate(random_network(), toy_data(N), **{**SETTINGS, "ci_width": WIDTH, **options})


@pytest.fixture(scope="module")
def stopped() -> Results:
    return early()


@pytest.fixture(scope="module")
def whole() -> Results:
    return early(ci_width=None)


def test_rows_stop_at_a_look_and_hold_the_first_images_of_a_whole_row(stopped: Results, whole: Results) -> None:
    assert stopped.scored is not None
    assert stopped.scored.places is not None
    early_rows = [row for row in stopped.document.rows if row.interval == "anytime"]
    assert {row.mode for row in early_rows} == {"bn", f"dynbn-batch:{M}"}
    for row, full in zip(stopped.document.rows, whole.document.rows, strict=True):
        assert full.n == N
        seen = stopped.scored.places < row.n
        kept, all_of_it = stopped.predictions(row), whole.predictions(full)
        assert kept is not None
        assert all_of_it is not None
        assert kept[0].tolist() == all_of_it[0][seen].tolist()
        if row.interval == "anytime":
            every = LOOK if row.mode == "bn" else -(-LOOK // M) * M
            assert row.n % every == 0
            assert row.n < N


def test_the_interval_is_that_of_bets_without_replacement_and_narrow_enough(stopped: Results, whole: Results) -> None:
    assert whole.scored is not None
    for row, full in zip(stopped.document.rows, whole.document.rows, strict=True):
        hits = whole.hits(full)
        assert hits is not None
        in_order = hits[np.argsort(whole.scored.places)][: row.n]
        expected = betting_interval(in_order, low=0, high=1, population=N)
        if row.interval == "anytime":
            assert row.ci95 == pytest.approx(expected)
            assert row.ci95[1] - row.ci95[0] <= WIDTH
            before = in_order[: row.n - (LOOK if row.mode == "bn" else -(-LOOK // M) * M)]
            assert not before.size or narrow_interval(before, N, WIDTH) is None
        else:
            assert row.n == N
            assert row.ci95 == pytest.approx(wilson(row.correct, row.n))


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": 400}, {"workers": 2}])
def test_where_a_row_stops_does_not_depend_on_how_it_is_computed(options: dict[str, Any], stopped: Results) -> None:
    again = early(**options)
    assert numbers(again) == numbers(stopped)
    assert close(again, stopped)
    assert [row.ci95 for row in again.document.rows] == [row.ci95 for row in stopped.document.rows]


def test_an_interrupted_run_ends_the_same_and_is_read_back(tmp_path: Path, stopped: Results) -> None:
    early(out=tmp_path / "run", sigma="0", modes="bn")
    early(out=tmp_path / "run")
    read = load_results(tmp_path / "run")
    assert numbers(read) == numbers(stopped)
    assert [row.interval for row in read.document.rows] == [row.interval for row in stopped.document.rows]
    assert read.document.run.ci_width == WIDTH
    assert read.scored is not None
    assert stopped.scored is not None
    assert np.array_equal(read.scored.places, stopped.scored.places)


def test_a_folder_is_for_one_width(tmp_path: Path) -> None:
    short = {"sigma": "0", "modes": "bn", "out": tmp_path / "run"}
    early(**short)
    for width in (None, 0.05):
        with pytest.raises(UsageError, match="another ci-width"):
            early(**short, ci_width=width)


def test_a_folder_of_an_older_version_is_one_of_whole_rows(tmp_path: Path) -> None:
    short = {"sigma": "0", "modes": "bn", "out": tmp_path / "run"}
    early(**short, ci_width=None)
    file = tmp_path / "run" / "run.json"
    manifest = json.loads(file.read_text())
    assert manifest.pop("ci_width") is None
    file.write_text(json.dumps(manifest))
    assert len(early(**short, ci_width=None)) == 2
    with pytest.raises(UsageError, match="another ci-width"):
        early(**short)


def test_keys_of_whole_rows_and_of_each_width_differ() -> None:
    keys = set()
    for width in (None, 0.05, WIDTH):
        plan = plan_run(random_network(), toy_data(50), sigma="0", modes="bn", ci_width=width)
        keys.add(plan.key(plan.models[0], plan.conditions[0], plan.models[0].schedules[0]))
    assert len(keys) == 3


def test_progress_counts_what_was_spared_as_done() -> None:
    plan = plan_run(random_network(), toy_data(N), sigma="0,2", modes="bn", ci_width=WIDTH, batch_size=32)
    store = MemoryRun(plan.manifest)
    done = 0
    for event in run(plan, store.get):
        if isinstance(event, Progress):
            done += event.images
        else:
            store.append(event.key, event.cell)
    assert done == total_images(plan)


@pytest.mark.parametrize("width", [0, 1, -0.1, float("nan")])
def test_a_width_that_is_no_fraction_is_refused(width: float) -> None:
    with pytest.raises(UsageError, match="--ci-width is a fraction"):
        early(ci_width=width)


def test_intervals_hold_the_accuracy_of_the_data_set_although_the_outcome_decides_when_to_look_away() -> None:
    generator = np.random.default_rng(0)
    missed, n = 0, 300
    for _ in range(40):
        hits = generator.random(n) < 0.8
        found = next(filter(None, (narrow_interval(hits[:k], n, 0.1) for k in range(25, n, 25))), None)
        assert found is not None
        missed += not found[0] <= hits.mean() <= found[1]
    assert missed <= 5  # expected: at most 2 of 40; six or more would be a chance of 1 %
    assert narrow_interval(np.ones(10, bool), 300, 0.1) is None


def test_what_needs_the_same_images_in_all_rows_is_refused(tmp_path: Path, stopped: Results) -> None:
    policy = Policy((Rule("clean_accuracy", "clean_accuracy", "max_drop", 0.01),))
    assert all(stopped.hits(row) is None for row in stopped.document.rows if row.interval == "anytime")
    with pytest.raises(TrustError, match="stopped early"):
        compare([stopped])
    with pytest.raises(TrustError, match="stopped early"):
        write_baseline(stopped, tmp_path)
    for decision in (decide(policy, stopped, stopped), gate_model(policy, "demo:bn", stopped)):
        assert decision.exit_code == 6
        assert decision.problem is not None
        assert "--ci-width" in decision.problem.what


def test_reports_say_so(tmp_path: Path) -> None:
    results = early(out=tmp_path / "run", corruption="fog", severity="1,5")
    summary = summarise(results.document, results.hits)
    numbers_of_images = {row.n for row in results.document.rows}
    assert summary.scored == f"{min(numbers_of_images)} to {max(numbers_of_images)}"
    assert any("stopped early" in warning for warning in summary.warnings)
    for format in ("terminal", "markdown", "latex", "html"):
        shown = " ".join(report(tmp_path / "run", format=format).split())
        assert "stopped early" in shown
    assert any(
        "stopped early" in warning for warning in json.loads(report(tmp_path / "run", format="json"))["warnings"]
    )
    assert "anytime" in (tmp_path / "run" / "results.csv").read_text()
