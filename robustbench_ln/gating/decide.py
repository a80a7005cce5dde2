"""From two results and a policy to a verdict.

A drop is a worsening, for every metric: accuracy lost, or error gained. `regression` fails where the drop is shown to
be larger than allowed; the p-values of all rules together are adjusted by Holm's method, so that the chance of any
wrong failure is at most alpha. `noninferiority` passes only where every rule's drop is shown to be smaller than
allowed, each at alpha: passing needs all of them, so nothing is to be adjusted (an intersection-union test).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from robustbench_ln.comparing.evidence import Evidence, PairedProportion, difference, level, mean_loss
from robustbench_ln.comparing.matching import Pair, doubts, match
from robustbench_ln.comparing.measures import METRICS, Measure
from robustbench_ln.errors import IncompleteError, InputError, LnbenchError, TrustError
from robustbench_ln.gating.policy import Policy, Rule
from robustbench_ln.metrics.bootstrap import resamples
from robustbench_ln.metrics.paired import holm
from robustbench_ln.results import Results, shards_missing

Verdict = Literal["pass", "fail", "inconclusive", "incomparable"]
WORST_FIRST: tuple[Verdict, ...] = ("incomparable", "fail", "inconclusive", "pass")


@dataclass(frozen=True, slots=True)
class Check:
    """A rule held against one model under one mode.

    Attributes:
        rule: what was asked.
        model: name of the model.
        mode: evaluation mode.
        about: which conditions, in words.
        conditions: how many rows went in, repeats included.
        old: the metric in the baseline; None for an absolute bound on rows it lacks.
        new: the metric in the new result.
        drop: how much worse the new result is.
        interval: 95 % interval of the drop; for an absolute bound, of the new value.
        n: images.
        p: one-sided p-value of "the limit is kept".
        p_adjusted: after Holm; at most alpha is a failure.
        p_kept: one-sided p-value of "the limit is broken"; what `noninferiority` passes by.
        detectable: the smallest drop (or distance to an absolute bound) that would have been found with power 80 %.
        method: how it was tested.
        paired: whether images were paired.
        lost: images right before and wrong now, for one condition with predictions, else None.
        gained: images wrong before and right now, likewise.
        verdict: pass, fail or inconclusive.
    """

    rule: Rule
    model: str
    mode: str
    about: str
    conditions: int
    old: float | None
    new: float
    drop: float | None
    interval: tuple[float, float]
    n: int
    p: float
    p_adjusted: float
    p_kept: float
    detectable: float
    method: str
    paired: bool
    lost: int | None
    gained: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict of a gate.

    Attributes:
        verdict: of all rules together.
        checks: worst first.
        policy: what was asked.
        warnings: what a reader should know.
        problem: why the results are incomparable; None otherwise.
    """

    verdict: Verdict
    checks: tuple[Check, ...]
    policy: Policy
    warnings: tuple[str, ...] = ()
    problem: LnbenchError | None = None

    @property
    def exit_code(self) -> int:
        """0, 1, 4 or 6."""
        if self.problem is not None:
            return self.problem.exit_code
        passed = self.verdict == "pass" or (self.verdict == "inconclusive" and self.policy.inconclusive == "pass")
        return 0 if passed else 1


def decide(policy: Policy, new: Results, baseline: Results, *, pairs: Mapping[str, str] | None = None) -> Decision:
    """Hold every rule of a policy against a new result and its baseline.

    Args:
        policy: what is allowed.
        new: what is judged.
        baseline: what it is compared with.
        pairs: new model name to baseline model name, for models that were renamed.
    Returns: a decision; ``incomparable``, with the reason, where the results cannot be compared or trusted.

    Raises:
        InputError: a rule matches nothing, or predictions are damaged.
        UsageError: it is not clear which models belong together.
    """
    warnings = [*new.warnings]
    try:
        _whole(new, baseline)
        matched = match(baseline, new, pairs)
        _trusted(new, baseline, matched)
        tests = [test for rule in policy.rules for test in tests_of(rule, matched)]
        checks = _checked(tests)
    except (TrustError, IncompleteError) as problem:
        return Decision("incomparable", (), policy, tuple(warnings), problem)
    left_out = {row.model for row in new.document.rows} - {one.new.model for one in matched}
    warnings += [f"not gated, since the baseline has no such model: {model}" for model in sorted(left_out)]
    if any(check.rule.bound == "max_drop" and not check.paired for check in checks):
        warnings.append("unpaired, and so less sensitive: predictions were not kept on both sides")
    worst = min((check.verdict for check in checks), key=WORST_FIRST.index)
    return Decision(worst, tuple(sorted(checks, key=badness)), policy, tuple(dict.fromkeys(warnings)))


@dataclass(frozen=True, slots=True)
class Test:
    """A rule and what it is held against, before the p-values of all are known.

    Attributes:
        rule: what was asked.
        pair: of which model and mode.
        measure: on what.
    """

    rule: Rule
    pair: Pair
    measure: Measure

    @property
    def bound(self) -> float:
        """The limit as a drop; an absolute minimum m of the value v is a bound -m of the drop -v."""
        return -self.rule.limit if self.rule.bound == "min" else self.rule.limit

    def evidence(self, draws: int) -> Evidence:
        """What the two results say."""
        if self.rule.bound == "max_drop":
            return difference(self.measure, self.pair, draws)
        return level(self.measure, self.pair.new, draws)


def _whole(new: Results, baseline: Results) -> None:
    """Raise IncompleteError for a shard that was not merged with the others."""
    for name, results in (("the new result", new), ("the baseline", baseline)):
        if missing := shards_missing(results.document.run):
            raise IncompleteError(
                f"{name} is a part of the work", found=f"shards {', '.join(missing)} missing", hint="lnbench merge"
            )


def _trusted(new: Results, baseline: Results, matched: list[Pair]) -> None:
    for where, results, models in (
        ("new result", new, {one.new.model for one in matched}),
        ("baseline", baseline, {one.old.model for one in matched}),
    ):
        found = doubts(results, sorted(models))
        if found:
            raise TrustError(
                f"the {where} cannot be trusted",
                found="; ".join(found),
                hint="check preprocessing, label order and checkpoint, or evaluate more images",
            )


def tests_of(rule: Rule, matched: list[Pair]) -> Iterator[Test]:
    """The rule for every model and mode it names.

    Raises:
        InputError: it names none.
        IncompleteError: one side lacks conditions that it names.
    """
    nothing = True
    for one in (one for one in matched if rule.names(one.new) or rule.names(one.old)):
        both = dict.fromkeys([*one.new.rows, *one.old.rows]) if rule.bound == "max_drop" else one.new.rows
        conditions = rule.chosen(both)
        measure = METRICS[rule.metric](conditions, rule.conditions is not None) if conditions else None
        if measure is None:
            continue
        nothing = False
        if rule.bound == "max_drop":
            _complete(rule, one, measure)
        yield Test(rule, one, measure)
    if nothing:
        have = "; ".join(dict.fromkeys(f"{one.new.name}, {one.new.mode}" for one in matched))
        names = dict.fromkeys(condition.name for one in matched for condition in one.new.rows)
        raise InputError(
            f"rule {rule.name!r} (line {rule.line}) matches nothing",
            found=f"{have}; conditions {', '.join(names)}"[:300],
            hint='patterns as in `where: {mode: bn, condition: "agn*"}`',
        )


def _complete(rule: Rule, one: Pair, measure: Measure) -> None:
    used = [condition for condition, _ in measure.terms]
    for where, side in (("new result", one.new), ("baseline", one.old)):
        missing = [str(condition) for condition in used if condition not in side.rows]
        if missing:
            raise IncompleteError(
                f"the {where} lacks conditions of rule {rule.name!r}",
                found=f"{len(missing)} of {len(used)} missing for {one.label}, the first: {missing[0]}",
                hint="run lnbench eval to its end, or a new baseline" if where == "new result" else "a new baseline",
            )


def _checked(tests: list[Test]) -> list[Check]:
    draws = resamples(len(tests), min(test.rule.alpha for test in tests))
    evidence = [test.evidence(draws) for test in tests]
    p_values = [one.p(test.bound, "worse") for test, one in zip(tests, evidence, strict=True)]
    adjusted = holm(p_values)
    return [_check(*parts, len(tests)) for parts in zip(tests, evidence, p_values, adjusted, strict=True)]


def _check(test: Test, evidence: Evidence, p: float, adjusted: float, tests: int) -> Check:
    rule, measure = test.rule, test.measure
    kept = evidence.p(test.bound, "fine")
    if adjusted <= rule.alpha:
        verdict: Verdict = "fail"
    elif rule.kind == "regression" or kept <= rule.alpha:
        verdict = "pass"
    else:
        verdict = "inconclusive"
    has_old = all(condition in test.pair.old.rows for condition, _ in measure.terms)
    old = measure.value(mean_loss(measure, test.pair.old)) if has_old else None
    new = measure.value(mean_loss(measure, test.pair.new))
    low, high = evidence.interval()
    if rule.bound == "max_drop":
        drop: float | None = evidence.drop
    else:
        drop = None if old is None else (old - new if measure.rising else new - old)
        low, high = (-high, -low) if measure.rising else (low, high)
    single = evidence.pairs if isinstance(evidence, PairedProportion) else None
    exact = single is not None and rule.limit == 0
    return Check(
        rule=rule,
        model=test.pair.new.name,
        mode=test.pair.new.mode,
        about=measure.about,
        conditions=len(measure.terms),
        old=old,
        new=new,
        drop=drop,
        interval=(low, high),
        n=evidence.n,
        p=p,
        p_adjusted=adjusted,
        p_kept=kept,
        detectable=evidence.detectable(test.bound, rule.alpha / tests)
        - (0 if rule.bound == "max_drop" else test.bound),
        method="exact McNemar test" if exact else evidence.method,
        paired=evidence.paired,
        lost=single.lost if single else None,
        gained=single.gained if single else None,
        verdict=verdict,
    )


def badness(check: Check) -> tuple[int, float, float]:
    """By what checks are sorted, worst first."""
    return WORST_FIRST.index(check.verdict), check.p_adjusted, -(check.drop or 0.0)
