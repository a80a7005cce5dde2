"""The gate in a test suite and in a workflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robustbench_ln.benchmarks import bench_gate
from robustbench_ln.errors import TrustError, UsageError
from robustbench_ln.gating import read_policy
from robustbench_ln.results import load_results
from robustbench_ln.testing import assert_no_regression
from tests.made_results import CLEAN, hits, write_run

ROOT = Path(__file__).parent.parent
ACTION = ROOT / ".github" / "actions" / "lnbench-gate" / "action.yml"
N = 2_000


def test_a_regression_fails_the_test_with_the_gates_text(tmp_path: Path) -> None:
    main = write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    worse = write_run(tmp_path / "worse", {CLEAN: hits(N, 1800, lost=200)})
    assert assert_no_regression(main, str(main)).verdict == "pass"
    with pytest.raises(AssertionError, match=r"FAIL: of 1 check, 1 fail"):
        assert_no_regression(load_results(worse), main)
    assert assert_no_regression(worse, main, max_drop=0.2).verdict == "pass"
    policy = tmp_path / "gate.yaml"
    policy.write_text("rules:\n  - {metric: clean_accuracy, min: 0.5}\n")
    assert assert_no_regression(worse, main, policy=policy).verdict == "pass"


def test_what_cannot_be_compared_is_an_error_and_no_pass(tmp_path: Path) -> None:
    main = write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    other = write_run(tmp_path / "other", {CLEAN: hits(N, 1800)}, run={"seed": 5})
    with pytest.raises(TrustError, match="seed"):
        assert_no_regression(other, main)


def run_action(folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the action's script with inputs, as a runner does, and return its outputs."""
    action = yaml.safe_load(ACTION.read_text())
    (step,) = action["runs"]["steps"]
    given = {name: str(one.get("default", "")) for name, one in action["inputs"].items()} | inputs
    variables = {
        name: given[value.removeprefix("${{ inputs.").removesuffix(" }}")] for name, value in step["env"].items()
    }
    outputs = folder / "outputs"
    outputs.unlink(missing_ok=True)
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder, env={**os.environ, "PATH": scripts, "GITHUB_OUTPUT": str(outputs), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = outputs.read_text().splitlines() if outputs.exists() else []
    return done, dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(not shutil.which("bash"), reason="the action is a bash script")
def test_the_action_gates(tmp_path: Path) -> None:
    write_run(tmp_path / "main", {CLEAN: hits(N, 1800)})
    write_run(tmp_path / "-new; touch hacked", {CLEAN: hits(N, 1800, lost=200)})
    new = {"new": "-new; touch hacked", "baseline": "main"}
    done, outputs = run_action(tmp_path, **new, junit="gate.xml")
    assert done.returncode == 1, done.stderr
    assert outputs == {"verdict": "fail", "exit-code": "1", "failed": "1"}
    assert "::error " in done.stdout
    assert "<failure" in (tmp_path / "gate.xml").read_text()
    assert not (tmp_path / "hacked").exists()
    assert run_action(tmp_path, **new, **{"exit-zero": "true"})[0].returncode == 0
    assert run_action(tmp_path, **new, **{"max-drop": "0.2", "alpha": "0.05"})[0].returncode == 0


def test_every_input_of_the_action_is_used_and_none_in_the_script() -> None:
    action = yaml.safe_load(ACTION.read_text())
    (step,) = action["runs"]["steps"]
    used = {value.removeprefix("${{ inputs.").removesuffix(" }}") for value in step["env"].values()}
    assert used == set(action["inputs"])
    assert "${{" not in step["run"]


def test_the_workflow_gates_the_demo_models_against_what_is_committed() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["gate"]
    step = next(step for step in job["steps"] if step.get("uses", "").startswith("./"))
    assert (ROOT / step["uses"] / "action.yml").resolve() == ACTION
    assert read_policy(ROOT / step["with"]["policy"]).rules
    baseline = load_results(ROOT / step["with"]["baseline"])
    assert {row.model.partition("@")[0] for row in baseline.document.rows} == {"demo-bn", "demo-ln"}


def test_the_simulation_counts_verdicts() -> None:
    seen = []
    document = bench_gate(times=100, n=400, alpha=0.05, on_row=seen.append)
    assert document["rows"] == seen
    *situations, coverage = document["rows"]
    for row in situations:
        for gate in ("fixed", "sequential"):
            assert row[gate]["fail"] + row[gate]["pass"] <= 1.0 + (gate == "fixed")
        assert 0 < row["sequential"]["images"] <= 1
        wrong = {"no change": ["fail"], "at the margin": ["fail", "pass"]}.get(row["what"], [])
        assert all(row["sequential"][word] <= 0.1 for word in wrong)
    gross = [row for row in situations if row["what"] == "gross failure"]
    assert all(row["sequential"]["fail"] > 0.9 and row["sequential"]["images"] < 0.6 for row in gross)
    assert 0.85 <= coverage["coverage"] <= 1
    with pytest.raises(UsageError, match="too little"):
        bench_gate(times=5)
