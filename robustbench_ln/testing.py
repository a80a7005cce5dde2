"""For test suites: a pytest assertion that a model has not become less robust.

>>> from robustbench_ln.testing import assert_no_regression
>>> assert_no_regression("runs/new", "robustness/baseline.json", policy="robustness/gate.yaml")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robustbench_ln.gating import Decision, decide, default_policy, read_policy
from robustbench_ln.gating.formats import text
from robustbench_ln.results import Results, load_results


def assert_no_regression(
    new: Results | Path | str,
    baseline: Results | Path | str,
    *,
    policy: Path | str | None = None,
    max_drop: float | None = None,
    alpha: float | None = None,
    pairs: Mapping[str, str] | None = None,
) -> Decision:
    """Fail a test where ``lnbench gate`` would fail.

    Args:
        new: what is judged: results, a run folder, or a results file.
        baseline: what it is compared with, likewise.
        policy: YAML file with rules; clean accuracy and the mean over all else, when left out.
        max_drop: allowed drop where a rule names none, a fraction.
        alpha: accepted chance of a wrong verdict.
        pairs: new model name to baseline model name, for models that were renamed.

    Returns: the decision, where it passes.

    Raises:
        AssertionError: the gate fails or is inconclusive; its text is the message.
        LnbenchError: the results cannot be compared or trusted, or a rule matches nothing.
    """
    __tracebackhide__ = True
    judged, old = (one if isinstance(one, Results) else load_results(one) for one in (new, baseline))
    if policy is not None:
        asked = read_policy(Path(policy), max_drop=max_drop, alpha=alpha)
    else:
        conditions = [row.condition.to_condition() for row in judged.document.rows]
        asked = default_policy(conditions, max_drop=max_drop, alpha=alpha)
    decision = decide(asked, judged, old, pairs=pairs)
    if decision.problem is not None:
        raise decision.problem
    if decision.exit_code:
        raise AssertionError(text(decision))
    return decision
