"""The gate that evaluates by itself, and stops as soon as it can decide.

Images come in the baseline's recorded order, a seeded shuffle, in blocks; after each block every rule is looked at.
Looking often costs nothing but power: the p-values are those of bets, which hold at all times together. A rule still
undecided at the last image is inconclusive; it never falls back on a test for one look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustbench_ln import evaluation
from robustbench_ln.comparing.matching import (
    OWN_MODES,
    Pair,
    Subject,
    check_comparable,
    doubts,
    model_name,
    subjects,
)
from robustbench_ln.data import names_published
from robustbench_ln.errors import IncompleteError, TrustError, UsageError
from robustbench_ln.evaluation import Finish
from robustbench_ln.gating.decide import WORST_FIRST, Check, Decision, Test, Verdict, badness, tests_of
from robustbench_ln.gating.policy import Policy
from robustbench_ln.metrics.accuracy import near_chance
from robustbench_ln.metrics.paired import holm
from robustbench_ln.metrics.sequential import SequentialMean, betting_interval, detectable_by_bets
from robustbench_ln.planning import Plan, PlannedModel, plan_run
from robustbench_ln.results import Cell, DocumentRow, Results, ResultsDocument
from robustbench_ln.results.document import data_to_document, model_to_document
from robustbench_ln.types import Condition

Floats = npt.NDArray[np.float64]
OnLook = Callable[[int, int], None]
BLOCK = 128  # images between looks, at least


def gate_model(
    policy: Policy,
    model: str,
    baseline: Results,
    *,
    data: str | None = None,
    baseline_model: str | None = None,
    arch: str | None = None,
    normalize: str = "auto",
    trust: bool = False,
    device: str = "auto",
    batch_size: int = 128,
    on_look: OnLook | None = None,
) -> Decision:
    """Evaluate a model as the baseline was, and stop as soon as every rule is decided or one has failed.

    Args:
        policy: what is allowed; rules of every metric but ``ece``.
        model: what ``--model`` takes.
        baseline: with predictions, or as ``lnbench gate --init`` wrote it.
        data: the baseline's own where it is left out.
        baseline_model: which of the baseline's models; that of the same name, or the only one, when left out.
        arch: architecture of a checkpoint, where it is not to be recognised.
        normalize: preprocessing.
        trust: allow files that can run code when read.
        device: where the forward passes run.
        batch_size: images computed at once; changes no number.
        on_look: called with the images done and the images there are, after each block.
    Returns: as :func:`~robustbench_ln.gating.decide`; values are those of the images that were needed.

    Raises:
        UsageError: a rule or a baseline that cannot be decided while it is evaluated.
        InputError: a rule matches nothing, a model or data set cannot be used.
    """
    warnings: tuple[str, ...] = ()
    try:
        old = _chosen(baseline, model, baseline_model)
        tests = [test for rule in policy.rules for test in tests_of(rule, [_as_if(one) for one in old])]
        _decidable(tests)
        conditions = dict.fromkeys([Condition(), *(c for test in tests for c, _ in test.measure.terms)])
        plan = _plan(
            model, baseline, old, list(conditions), data=data, arch=arch, normalize=normalize, trust=trust,
            device=device, batch_size=batch_size,
        )  # fmt: skip
        warnings = plan.manifest.warnings
        _check_plan(plan, baseline)
        if found := doubts(baseline, [old[0].model]):
            raise TrustError("the baseline cannot be trusted", found="; ".join(found), hint="another baseline")
        watches, clean = _watch(plan, tests, on_look)
        _check_trust(plan, clean)
        checks = [_check(watch, plan, adjusted) for watch, adjusted in zip(watches, _adjusted(watches), strict=True)]
    except (TrustError, IncompleteError) as problem:
        return Decision("incomparable", (), policy, warnings, problem)
    worst = min((check.verdict for check in checks), key=WORST_FIRST.index)
    return Decision(worst, tuple(sorted(checks, key=badness)), policy, warnings)


@dataclass
class _Watch:
    """A test, its bets, and the values they are on so far: paired drops, or losses under an absolute bound."""

    test: Test
    images: int
    values: list[Floats] = field(default_factory=list)
    verdict: Verdict | None = None
    lost_old: float = 0.0
    lost_new: float = 0.0
    bets: SequentialMean = field(init=False)

    def __post_init__(self) -> None:
        low, high = self.range
        self.bets = SequentialMean(min(max(self.bound, low), high), self.images, low=low, high=high)

    @property
    def is_paired(self) -> bool:
        """Whether images are paired with the baseline's."""
        return self.test.rule.bound == "max_drop"

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that an image can have."""
        most = self.test.measure.scale
        return (-most if self.is_paired else 0.0), most

    @property
    def bound(self) -> float:
        """What the mean value may be: the drop, or the loss that an absolute bound leaves."""
        rule = self.test.rule
        return self.test.measure.scale - rule.limit if rule.bound == "min" else rule.limit


def _chosen(baseline: Results, model: str, asked: str | None) -> list[Subject]:
    """Every mode of the baseline's model that the new one answers to."""
    everything = subjects(baseline)
    names = list(dict.fromkeys(one.model for one in everything))
    stem = asked or Path(model).stem.replace(":", "-")
    found = [name for name in names if stem in (name, model_name(name))]
    found = found or ([] if asked or len(names) != 1 else names)
    if len(found) != 1:
        raise UsageError(
            "it is not clear which of the baseline's models the new one answers to",
            found=f"{stem!r}; {', '.join(names) or 'no rows'} in the baseline",
            hint=f"--pair NEW={model_name(names[0])}" if names else "a baseline with rows",
        )
    return [one for one in everything if one.model == found[0]]


def _as_if(old: Subject) -> Pair:
    """The pair that there will be: rules choose by the baseline's rows."""
    return Pair(old, old)


def _decidable(tests: Iterable[Test]) -> None:
    for test in tests:
        if test.measure.loss != "error":
            raise UsageError(
                f"rule {test.rule.name!r} (line {test.rule.line}) cannot be decided while a model is evaluated",
                found=f"{test.rule.metric}, which is no mean over images",
                hint="lnbench eval, then lnbench gate NEW; or a metric other than ece",
            )
        for condition, _ in test.measure.terms if test.rule.bound == "max_drop" else ():
            if test.pair.old.hits(test.pair.old.rows[condition]) is None:
                raise UsageError(
                    "the baseline has no predictions to pair images with",
                    found=str(condition),
                    hint="a run without --no-predictions, or lnbench gate --init",
                )


def _plan(
    model: str, baseline: Results, old: list[Subject], conditions: list[Condition], *, data: str | None,
    arch: str | None, normalize: str, trust: bool, device: str, batch_size: int,
) -> Plan:  # fmt: skip
    """The baseline's own settings for another model, with the conditions that the rules need."""
    document = baseline.document
    noises: dict[str, dict[float, None]] = {}
    for one in conditions:
        if one.kind == "noise":
            noises.setdefault(one.name, {})[one.level] = None
    corrupted = [one for one in conditions if one.kind == "corruption"]
    source = data or document.data.source
    suites = [] if names_published(source) else sorted({one.suite for one in corrupted})
    if len(suites) > 1:
        raise UsageError("a baseline of several suites", found=", ".join(suites), hint="lnbench eval, then gate NEW")
    plan = plan_run(
        model,
        source,
        clean=document.data.clean,
        # What is planned here is only a way to suite and textures: the conditions are put in below.
        noise=[f"{name}={','.join(f'{level!r}' for level in levels)}" for name, levels in noises.items()] or None,
        corruption=list(dict.fromkeys(one.name for one in corrupted)) or None,
        suite=suites[0] if suites else None,
        modes=list(dict.fromkeys(_plain(one.mode) for one in old)),
        seed=document.run.seed,
        limit=document.run.limit,
        batch_size=batch_size,
        device=device,
        arch=arch,
        normalize=normalize,
        trust=trust,
    )
    return replace(
        plan,
        conditions=tuple(conditions),
        keep_predictions=True,
        manifest=replace(plan.manifest, conditions=tuple(conditions)),
    )


def _check_plan(plan: Plan, baseline: Results) -> None:
    """Raise TrustError where the plan's images are not the baseline's."""
    run = baseline.document.run.model_copy(
        update={
            "seed": plan.seed,
            "limit": plan.manifest.limit,
            "precision": plan.manifest.precision,
            "order_sha256": plan.manifest.order_sha256,
        }
    )
    models = [model_to_document(one.info) for one in plan.models]
    head = ResultsDocument(
        schema_version=1, run=run, models=models, data=data_to_document(plan.manifest.data), predictions=None, rows=[]
    )
    check_comparable(baseline, Results(head, None, lambda _: None, None))


def _watch(plan: Plan, tests: list[Test], on_look: OnLook | None) -> tuple[list[_Watch], dict[str, list[int]]]:
    """Evaluate block after block until all is decided.

    Returns: the tests with what was seen, and for each mode how many clean images were right, how many there were, and
        how many predictions had no finite logits.
    """
    watches = [_Watch(test, plan.limit) for test in tests]
    order = plan.order[: plan.limit].numpy()
    place = {int(index): i for i, index in enumerate(np.sort(order))}
    model = plan.models[0]
    units = lcm(*(schedule.unit for schedule in model.schedules))
    block = -(-BLOCK // units) * units
    clean: dict[str, list[int]] = {}
    for first in range(0, plan.limit, block):
        size = min(block, plan.limit - first)
        indices = order[first : first + size]
        places = np.array([place[int(index)] for index in indices])
        cells = _block(plan, first, size, watches)
        for watch in watches:
            _add(watch, cells, plan.dataset.labels[np.sort(indices)], indices, places)
        for (mode, condition), cell in cells.items():
            # [right, images, lost] of the clean images; lost ones of all conditions.
            counted = clean.setdefault(mode, [0, 0, 0])
            counted[2] += int((cell.predicted < 0).sum())
            if condition.kind == "clean":
                counted[0] += cell.row.counts.correct
                counted[1] += cell.row.counts.n
        if on_look is not None:
            on_look(first + size, plan.limit)
        if _decided(watches):
            break
    return watches, clean


def _block(plan: Plan, first: int, size: int, watches: list[_Watch]) -> dict[tuple[str, Condition], Cell]:
    """The cells of one block of the visiting order, of the modes and conditions that undecided tests need.

    Blocks end where units end, so that who shares a batch with whom is as in a whole run.
    """
    open_tests = [watch.test for watch in watches if not watch.verdict]
    modes = {_plain(test.pair.old.mode) for test in open_tests}
    needed = {Condition(), *(condition for test in open_tests for condition, _ in test.measure.terms)}
    model = plan.models[0]
    schedules = tuple(one for one in model.schedules if one.mode.name in modes)
    part = replace(
        plan.block(first, size),
        models=(PlannedModel(model.info, model.classifier, schedules),),
        conditions=tuple(condition for condition in plan.conditions if condition in needed),
    )
    done: dict[str, Cell] = {}
    for event in evaluation.run(part, done.get):
        if isinstance(event, Finish):
            done[event.key] = event.cell
    return {(cell.row.mode, cell.row.condition): cell for cell in done.values()}


def _add(
    watch: _Watch,
    cells: Mapping[tuple[str, Condition], Cell],
    labels: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
) -> None:
    """Put a block's values on the bets, in visiting order."""
    if watch.verdict:
        return
    old = watch.test.pair.old
    by_visit = np.argsort(np.argsort(indices))  # cells and labels are in data set order
    values = np.zeros(len(indices))
    for condition, weight in watch.test.measure.terms:
        cell, row = cells.get((_plain(old.mode), condition)), old.rows[condition]
        if cell is None:
            raise IncompleteError(
                f"the model does not run the mode {old.mode}", found=f"{condition} missing", hint="another baseline"
            )
        _same_pixels(row, cell)
        lost = (cell.predicted != labels)[by_visit]
        values += weight * lost
        watch.lost_new += weight * float(lost.sum())
        if watch.is_paired:
            before = old.hits(row)
            assert before is not None
            values -= weight * ~before[places]
            watch.lost_old += weight * float((~before[places]).sum())
    watch.values.append(values)
    watch.bets.update(values)


def _same_pixels(row: DocumentRow, cell: Cell) -> None:
    for name, was, now in (("pixels", row.fingerprint, cell.row.fingerprint), ("M", row.images, cell.row.images)):
        if was != now and "" not in (was, now):
            raise TrustError(
                f"the results cannot be compared: {name} of {cell.row.condition} differs",
                found=f"{was} in the baseline, {now} now",
                hint="a new baseline, of this version of lnbench",
            )


def _adjusted(watches: list[_Watch]) -> list[float]:
    return holm([watch.bets.p("worse") for watch in watches])


def _decided(watches: list[_Watch]) -> bool:
    """Settle what can be settled; whether there is nothing left to look for."""
    for watch, adjusted in zip(watches, _adjusted(watches), strict=True):
        alpha = watch.test.rule.alpha
        if not watch.verdict and adjusted <= alpha:
            watch.verdict = "fail"
        elif not watch.verdict and watch.bets.p("fine") <= alpha:
            watch.verdict = "pass"
    return any(watch.verdict == "fail" for watch in watches) or all(watch.verdict for watch in watches)


def _check_trust(plan: Plan, clean: Mapping[str, list[int]]) -> None:
    """Raise TrustError for clean accuracy near chance, or logits that are not finite."""
    own = next((clean[mode] for mode in OWN_MODES if mode in clean), None) or max(clean.values())
    found = []
    if own[1] and near_chance(own[0], own[1], plan.manifest.data.classes):
        found.append(f"clean accuracy {100 * own[0] / own[1]:.1f} % of {own[1]} images cannot be told from chance")
    if lost := sum(counted[2] for counted in clean.values()):
        found.append(f"{lost} predictions had logits that are not finite")
    if found:
        raise TrustError(
            "the new model cannot be trusted", found="; ".join(found), hint="check preprocessing, labels and checkpoint"
        )


def _check(watch: _Watch, plan: Plan, adjusted: float) -> Check:
    rule, measure, values = watch.test.rule, watch.test.measure, np.concatenate(watch.values)
    n = values.size
    low, high = watch.range
    interval = betting_interval(values, low=low, high=high)
    if not watch.is_paired:
        interval = tuple(sorted(map(measure.value, interval)))  # type: ignore[assignment]
    is_single = watch.is_paired and len(measure.terms) == 1
    detectable = detectable_by_bets(plan.limit, float(values.std()), watch.bound, rule.alpha)
    return Check(
        rule=rule,
        model=model_name(plan.models[0].info.id),
        mode=watch.test.pair.old.mode,
        about=measure.about,
        conditions=len(measure.terms),
        old=measure.value(watch.lost_old / n) if watch.is_paired else None,
        new=measure.value(watch.lost_new / n),
        drop=float(values.mean()) if watch.is_paired else None,
        interval=interval,
        n=n,
        p=watch.bets.p("worse"),
        p_adjusted=adjusted,
        p_kept=watch.bets.p("fine"),
        detectable=detectable - (0 if watch.is_paired else watch.bound),
        method=f"sequential betting test, {n} of {plan.limit} images needed",
        paired=watch.is_paired,
        lost=int((values > 0).sum()) if is_single else None,
        gained=int((values < 0).sum()) if is_single else None,
        verdict=watch.verdict or "inconclusive",
    )


def _plain(mode: str) -> str:
    """The mode's own name, without the M that tells rows of one name apart."""
    return mode.partition(" (M ")[0]
