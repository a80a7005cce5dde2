"""A small baseline to commit: a results file with a bit an image in place of predictions, and a policy beside it."""

from __future__ import annotations

from pathlib import Path

from robustbench_ln.comparing.matching import PACKED, doubts, packed, subjects
from robustbench_ln.errors import TrustError
from robustbench_ln.gating.policy import checked_alpha, default_policy
from robustbench_ln.results import Results, ResultsDocument, dump_document, write_bytes

POLICY_NAME, BASELINE_NAME = "gate.yaml", "baseline.json"

_POLICY = """\
# What `lnbench gate` allows. docs/gate.md explains every key.
kind: regression      # fail where a drop is shown; or noninferiority: pass only where there is shown to be none
alpha: {alpha:g}           # accepted chance of a wrong failure, all rules together
inconclusive: fail    # or pass
rules:
{rules}"""


def write_baseline(
    results: Results, folder: Path, *, max_drop: float | None = None, alpha: float | None = None
) -> tuple[Path, Path, bool]:
    """Write ``baseline.json`` and, unless there is one, ``gate.yaml`` into a folder.

    Args:
        results: what later results are compared with.
        folder: made where it does not exist.
        max_drop: of the new policy.
        alpha: of the new policy.

    Returns: the baseline, the policy, and whether the policy is new.

    Raises:
        TrustError: the results are no baseline: near chance, or with logits that are not finite.
        InputError: predictions are damaged.
        ResourceError: the folder cannot be written.
    """
    everything = subjects(results)
    found = doubts(results, dict.fromkeys(one.model for one in everything))
    if found:
        raise TrustError(
            "these results are no baseline", found="; ".join(found), hint="check preprocessing, labels and checkpoint"
        )
    conditions = dict.fromkeys(condition for one in everything for condition in one.rows)
    asked = default_policy(conditions, max_drop=max_drop, alpha=alpha)
    rules = "".join(f"  - {{metric: {rule.metric}, max_drop: {rule.limit:g}}}\n" for rule in asked.rules)
    baseline, policy = folder / BASELINE_NAME, folder / POLICY_NAME
    write_bytes(baseline, dump_document(_small(results)).encode())
    is_new = not policy.exists()
    if is_new:
        write_bytes(policy, _POLICY.format(alpha=checked_alpha(alpha), rules=rules).encode())
    return baseline, policy, is_new


def _small(results: Results) -> ResultsDocument:
    """The document with hits packed into the rows; nothing else is lost that a comparison of accuracies needs."""
    rows = []
    for one in subjects(results):
        for row in one.rows.values():
            hits = one.hits(row)
            extra = {key: value for key, value in row.extra.items() if key != "predictions"}
            rows.append(row.model_copy(update={"extra": extra if hits is None else {**extra, PACKED: packed(hits)}}))
    return results.document.model_copy(update={"rows": rows, "predictions": None})
