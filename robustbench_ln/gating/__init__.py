"""The gate: a policy, a decision, its formats, and the small baseline that it compares with."""

from robustbench_ln.gating.baseline import write_baseline
from robustbench_ln.gating.decide import Check, Decision, decide
from robustbench_ln.gating.formats import FORMATS
from robustbench_ln.gating.policy import Policy, Rule, default_policy, read_policy

__all__ = [
    "FORMATS",
    "Check",
    "Decision",
    "Policy",
    "Rule",
    "decide",
    "default_policy",
    "read_policy",
    "write_baseline",
]
