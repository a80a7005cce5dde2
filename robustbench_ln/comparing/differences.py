"""Everything that can be said of models side by side: differences per condition and of the means, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from robustbench_ln.comparing.evidence import PairedProportion, difference, mean_loss
from robustbench_ln.comparing.matching import Pair, Subject, check_comparable, doubts, pair, subjects
from robustbench_ln.comparing.measures import METRICS, Measure, degraded, single
from robustbench_ln.errors import IncompleteError, TrustError, UsageError
from robustbench_ln.metrics.bootstrap import resamples
from robustbench_ln.metrics.paired import holm
from robustbench_ln.results import Results

Change = Literal["better", "worse", "unclear"]
ALPHA = 0.05
_MEANS = ("accuracy", "auc", "mean_corruption_error", "mce")


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a comparison.

    Attributes:
        metric: ``accuracy`` of one condition, or a mean: ``accuracy``, ``auc``, ``mean_corruption_error``, ``mce``.
        about: the condition, or which of them, in words.
        conditions: how many rows went in.
        model: name of the model that is compared; its id where the reference has the same name.
        mode: its mode.
        reference: model and mode that it is compared with.
        old: value of the reference.
        new: value of the model.
        difference: new minus old.
        interval: 95 % interval of the difference.
        p: two-sided p-value of "no difference": exact McNemar for a condition, bootstrap for means.
        p_adjusted: after Holm over all lines.
        change: better or worse where the adjusted p-value is at most alpha.
        n: images.
        paired: whether images were paired.
        lost: images that only the reference has right; None for means and without predictions.
        gained: images that only the model has right, likewise.
    """

    metric: str
    about: str
    conditions: int
    model: str
    mode: str
    reference: str
    old: float
    new: float
    difference: float
    interval: tuple[float, float]
    p: float
    p_adjusted: float
    change: Change
    n: int
    paired: bool
    lost: int | None
    gained: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models side by side.

    Attributes:
        lines: for each pair its conditions, then its means.
        alpha: level of "better" and "worse", all lines together.
        warnings: what a reader should know.
    """

    lines: tuple[Difference, ...]
    alpha: float
    warnings: tuple[str, ...]


ORDERS = {
    "file": lambda _: 0.0,
    "difference": lambda line: line.difference,
    "p": lambda line: line.p,
}
"""How lines can be sorted: as in the results, the worst difference first, the surest first."""


def compare(
    results: Sequence[Results], *, reference: str | None = None, alpha: float = ALPHA, sort: str = "file"
) -> Comparison:
    """Compare every model and mode with a reference, image by image.

    With several results the reference is the first: of it, the model of the same name and the same mode, or what comes
    first. Within one result everything is compared with its first model and mode.

    Args:
        results: at least one.
        reference: ``MODEL``, ``MODE`` or ``MODEL/MODE`` that everything is compared with instead.
        alpha: chance of calling any of the lines better or worse by mistake.
        sort: a key of `ORDERS`.
    Returns: the differences; conditions that only one side has are left out, and named in the warnings.

    Raises:
        TrustError: the results are of other data, seed or pixels.
        UsageError: there is nothing to compare, or no such reference.
    """
    pairs = list(_pairs(results, reference))
    if not pairs:
        raise UsageError(
            "there is nothing to compare", found="one model and mode in all", hint="two results, models or modes"
        )
    warnings: dict[str, None] = {}
    for one in results:
        models = dict.fromkeys(subject.model for subject in subjects(one))
        warnings |= dict.fromkeys([*one.warnings, *doubts(one, models)])
    todo = [(measure, two) for two in pairs for measure in _measures(two)]
    draws = resamples(len(todo), alpha / 2)
    lines = [_line(measure, two, draws) for measure, two in todo]
    for two in pairs:
        warnings |= dict.fromkeys(f"{two.label}: left out: {missing}" for missing in two.missing)
    if any(not line.paired for line in lines):
        warnings["unpaired, and so less sensitive, where predictions were not kept on both sides"] = None
    lines = [
        replace(line, p_adjusted=p, change=_change(line, p, alpha))
        for line, p in zip(lines, holm([line.p for line in lines]), strict=True)
    ]
    return Comparison(tuple(sorted(lines, key=ORDERS[sort])), alpha, tuple(warnings))


def _pairs(results: Sequence[Results], reference: str | None) -> Iterator[Pair]:
    everything = [subject for one in results for subject in subjects(one)]
    if not everything:
        return
    for one in results[1:]:
        check_comparable(results[0], one)
    if reference is not None:
        chosen = _referred(everything, reference)
        yield from (pair(chosen, after) for after in everything if after is not chosen)
    elif len(results) == 1:
        yield from (pair(everything[0], after) for after in everything[1:])
    else:
        first = subjects(results[0])
        for after in (subject for other in results[1:] for subject in subjects(other)):
            models = [before for before in first if before.name == after.name] or first
            yield pair(next((before for before in models if before.mode == after.mode), models[0]), after)


def _referred(everything: list[Subject], text: str) -> Subject:
    names = [
        (one, {one.model, one.name, one.mode, f"{one.model}/{one.mode}", f"{one.name}/{one.mode}"})
        for one in everything
    ]
    found = [one for one, words in names if text in words]
    if not found:
        known = ", ".join(dict.fromkeys(f"{one.name}/{one.mode}" for one in everything))
        raise UsageError("no such reference", found=repr(text), hint=f"--reference with one of {known}")
    return found[0]


def _measures(one: Pair) -> Iterator[Measure]:
    # A noise of sigma 0 is clean once more, and would only be one more line to adjust for.
    clean = [condition for condition in one.conditions if condition.kind == "clean"]
    yield from (single(condition) for condition in [*clean, *degraded(one.conditions)])
    if len(degraded(one.conditions)) < 2:
        return
    for name in _MEANS:
        try:
            measure = METRICS[name](one.conditions, False)
        except (IncompleteError, TrustError):
            continue  # it is not what these conditions are for
        if measure is not None:
            yield measure


def _line(measure: Measure, one: Pair, draws: int) -> Difference:
    evidence = difference(measure, one, draws)
    # Names tell models apart, or else their digests do.
    old, new = (one.old.name, one.new.name) if one.old.name != one.new.name else (one.old.model, one.new.model)
    better = 1 if measure.rising else -1
    low, high = evidence.interval()
    single_one = evidence.pairs if isinstance(evidence, PairedProportion) else None
    p = evidence.p_two_sided()
    return Difference(
        metric=measure.name,
        about=measure.about,
        conditions=len(measure.terms),
        model=new,
        mode=one.new.mode,
        reference=f"{old}, {one.old.mode}",
        old=measure.value(mean_loss(measure, one.old)),
        new=measure.value(mean_loss(measure, one.new)),
        difference=0.0 - better * evidence.drop,
        interval=(-high, -low) if measure.rising else (low, high),
        p=p,
        p_adjusted=p,
        change="unclear",
        n=evidence.n,
        paired=evidence.paired,
        lost=single_one.lost if single_one else None,
        gained=single_one.gained if single_one else None,
    )


def _change(line: Difference, p: float, alpha: float) -> Change:
    if p > alpha or line.difference == 0:
        return "unclear"
    rising = line.metric in ("accuracy", "auc")
    return "better" if (line.difference > 0) == rising else "worse"
