"""What a gate allows: rules, from a YAML file or from options.

```yaml
kind: regression        # or noninferiority
alpha: 0.01
inconclusive: fail      # or pass
rules:
  - {metric: clean_accuracy, max_drop: 0.01}
  - {metric: accuracy, where: {mode: bn, condition: "agn*"}, max_drop: 0.02}
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from robustbench_ln.comparing.matching import Subject
from robustbench_ln.comparing.measures import METRICS, degraded
from robustbench_ln.errors import UsageError, unknown_name
from robustbench_ln.types import Condition
from robustbench_ln.yaml_files import Where, YamlFile, read_yaml

Kind = Literal["regression", "noninferiority"]
Bound = Literal["max_drop", "min", "max"]
MAX_DROP, ALPHA = 0.01, 0.01
KINDS: tuple[Kind, ...] = ("regression", "noninferiority")
BOUNDS: tuple[Bound, ...] = ("max_drop", "min", "max")

_RISING = ("accuracy", "clean_accuracy", "auc")  # more is better
_TOP_KEYS = ("kind", "alpha", "max_drop", "inconclusive", "rules")
_RULE_KEYS = ("name", "metric", "where", *BOUNDS, "alpha", "kind")
_WHERE_KEYS = ("model", "mode", "condition")


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that must hold, for every model and mode it names.

    Attributes:
        name: for reports.
        metric: a key of :data:`~robustbench_ln.comparing.measures.METRICS`.
        bound: ``max_drop``, how much worse than the baseline the metric may be; or an absolute ``min`` or ``max``.
        limit: the bound's value, a fraction.
        alpha: chance of a wrong verdict that is accepted.
        kind: ``regression`` fails where the limit is shown to be broken, ``noninferiority`` passes only where it is
            shown to be kept.
        models: patterns of model names.
        modes: patterns of modes.
        conditions: patterns of conditions; None for those that the metric means by itself.
        line: of the policy file, from 1.
    """

    name: str
    metric: str
    bound: Bound
    limit: float
    alpha: float = ALPHA
    kind: Kind = "regression"
    models: tuple[str, ...] = ("*",)
    modes: tuple[str, ...] = ("*",)
    conditions: tuple[str, ...] | None = None
    line: int = 1

    def names(self, subject: Subject) -> bool:
        """Whether the rule is about this model and mode."""
        return _fits(self.models, (subject.model, subject.name)) and _fits(self.modes, (subject.mode,))

    def chosen(self, conditions: Iterable[Condition]) -> list[Condition]:
        """The conditions that the rule names, by name (``fog``), name and level (``fog 3``) or in full."""
        if self.conditions is None:
            return list(conditions)
        return [one for one in conditions if _fits(self.conditions, (one.name, f"{one.name} {one.level:g}", str(one)))]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a gate.

    Attributes:
        rules: at least one.
        inconclusive: what an inconclusive verdict amounts to.
        file: where the rules stand; empty for those of the options.
    """

    rules: tuple[Rule, ...]
    inconclusive: Literal["fail", "pass"] = "fail"
    file: str = ""


def default_policy(conditions: Iterable[Condition], *, max_drop: float | None, alpha: float | None) -> Policy:
    """The rules where no policy is given: clean accuracy, and the mean accuracy over all else there is.

    Raises:
        UsageError: a number out of range.
    """
    drop, level = checked_drop(max_drop), checked_alpha(alpha)
    metrics = ["clean_accuracy"] + (["accuracy"] if degraded(conditions) else [])
    return Policy(tuple(Rule(metric, metric, "max_drop", drop, level) for metric in metrics))


def checked_drop(max_drop: float | None) -> float:
    """`max_drop`, or its default; UsageError where it is out of range."""
    value = MAX_DROP if max_drop is None else max_drop
    if not 0 <= value < 1:
        raise UsageError("--max-drop is a fraction", found=f"{value:g}", hint="--max-drop 0.01 for one point")
    return value


def checked_alpha(alpha: float | None) -> float:
    """`alpha`, or its default; UsageError where it is out of range."""
    value = ALPHA if alpha is None else alpha
    if not 0 < value <= 0.5:
        raise UsageError("--alpha is a probability, at most 0.5", found=f"{value:g}", hint="--alpha 0.01")
    return value


def read_policy(path: Path, *, max_drop: float | None = None, alpha: float | None = None) -> Policy:
    """Read a policy.

    Args:
        path: the YAML file.
        max_drop: in place of the file's own for all rules; a rule's own goes first.
        alpha: likewise.

    Raises:
        InputError: a key that is unknown or stands twice, a value of the wrong kind; with the line.
        UsageError: an argument out of range.
    """
    file = read_yaml(path)
    top = _mapping(file, (), file.content, _TOP_KEYS)
    if "rules" not in top or not isinstance(top["rules"], list) or not top["rules"]:
        file.fail(("rules",), "expected a list of rules", found=_shown(top.get("rules")), hint=_EXAMPLE)
    common_drop = checked_drop(max_drop) if max_drop is not None else None
    if common_drop is None and "max_drop" in top:
        common_drop = _number(file, ("max_drop",), top["max_drop"], 0, 1)
    common_alpha = checked_alpha(alpha) if alpha is not None else _alpha(file, (), top, ALPHA)
    kind = _word(file, ("kind",), top.get("kind", KINDS[0]), KINDS)
    inconclusive = _word(file, ("inconclusive",), top.get("inconclusive", "fail"), ("fail", "pass"))
    rules = tuple(
        _rule(file, ("rules", i), entry, common_drop, common_alpha, cast(Kind, kind))
        for i, entry in enumerate(top["rules"])
    )
    return Policy(rules, cast(Literal["fail", "pass"], inconclusive), str(path))


_EXAMPLE = "rules: [{metric: clean_accuracy, max_drop: 0.01}]"


def _rule(file: YamlFile, where: Where, entry: Any, max_drop: float | None, alpha: float, kind: Kind) -> Rule:
    rule = _mapping(file, where, entry, _RULE_KEYS)
    metric = _word(file, (*where, "metric"), rule.get("metric"), tuple(METRICS))
    given: list[Bound] = [bound for bound in BOUNDS if bound in rule]
    if not given and max_drop is not None:
        given, rule = ["max_drop"], {**rule, "max_drop": max_drop}
    if len(given) != 1:
        file.fail(where, f"expected one of {', '.join(BOUNDS)}", found=" and ".join(given) or "none", hint=_EXAMPLE)
    bound = given[0]
    if bound != "max_drop" and (bound == "min") != (metric in _RISING):
        better = "min" if metric in _RISING else "max"
        file.fail((*where, bound), f"{metric} has no {bound}", found=f"{bound}: {rule[bound]}", hint=f"{better}: ...")
    limit = _number(file, (*where, bound), rule[bound], 0, 10 if metric == "mce" and bound == "max" else 1)
    if bound == "max_drop" and limit == 1:
        file.fail((*where, bound), "a drop of 1 allows everything", found="1", hint="max_drop: 0.01 for one point")
    patterns = _mapping(file, (*where, "where"), rule.get("where") or {}, _WHERE_KEYS)
    models, modes, conditions = (_patterns(file, (*where, "where", key), patterns.get(key)) for key in _WHERE_KEYS)
    name = rule.get("name", metric)
    if not isinstance(name, str) or not name:
        file.fail((*where, "name"), "expected text", found=_shown(name), hint=f"name: {metric}")
    return Rule(
        name=name,
        metric=metric,
        bound=bound,
        limit=limit,
        alpha=_alpha(file, where, rule, alpha),
        kind=cast(Kind, _word(file, (*where, "kind"), rule.get("kind", kind), KINDS)),
        models=models or ("*",),
        modes=modes or ("*",),
        conditions=conditions,
        line=file.lines.get(where, 1),
    )


def _fits(patterns: Iterable[str], names: Iterable[str]) -> bool:
    names = list(names)
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _mapping(file: YamlFile, where: Where, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        file.fail(where, "expected keys and values", found=_shown(value), hint=f"keys: {', '.join(known)}")
    for key in value:
        if key not in known:
            file.fail((*where, key), "unknown key", found=repr(key), hint=unknown_name("key", key, known).hint)
    return value


def _word(file: YamlFile, where: Where, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        hint = unknown_name("word", str(value), known).hint
        file.fail(where, f"expected one of {', '.join(known)}", found=_shown(value), hint=hint)
    return value


def _number(file: YamlFile, where: Where, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        hint = "fractions, not percent: 0.01 is one point"
        file.fail(where, f"expected a number from {low:g} to {high:g}", found=_shown(value), hint=hint)
    return float(value)


def _alpha(file: YamlFile, where: Where, mapping: Mapping[str, Any], default: float) -> float:
    value = mapping.get("alpha", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 0.5:
        file.fail((*where, "alpha"), "expected a probability, at most 0.5", found=_shown(value), hint="alpha: 0.01")
    return float(value)


def _patterns(file: YamlFile, where: Where, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(one, str) and one for one in found):
        _bad_pattern(file, where, value)
    return tuple(found)


def _bad_pattern(file: YamlFile, where: Where, value: Any) -> NoReturn:
    file.fail(where, "expected a pattern, or a list of them", found=_shown(value), hint='"agn*", or ["fog *", snow]')


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
