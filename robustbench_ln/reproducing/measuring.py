"""Measuring what a recipe asks for, and reading numbers off what was measured, with the image as the unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import clustered_interval
from robustbench_ln.metrics.bootstrap import BootstrapMean
from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.norms import EVAL_MODES
from robustbench_ln.reports.building import build
from robustbench_ln.reports.summary import Summary, summarise
from robustbench_ln.reproducing.networks import Network
from robustbench_ln.reproducing.recipes import Measure, Recipe, Setting
from robustbench_ln.results import DocumentRow, Results

Floats = npt.NDArray[np.float64]

MARGIN = 0.01  # a mode that is no more than a point below another is "not below" it
HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


@dataclass(frozen=True, slots=True)
class Part:
    """What was measured of one setting for one recipe.

    Attributes:
        setting: which.
        networks: the networks, by the id that rows name them by.
        results: everything of the setting's run folder; None where a recipe measures nothing.
        rows: those of the recipe.
    """

    setting: Setting
    networks: Mapping[str, Network]
    results: Results | None = None
    rows: tuple[DocumentRow, ...] = ()

    @property
    def summary(self) -> Summary:
        """The rows as a report has them, models by their names."""
        assert self.results is not None
        used = {row.model for row in self.rows}
        document = self.results.document
        document = document.model_copy(
            update={"rows": list(self.rows), "models": [one for one in document.models if one.id in used]}
        )
        made = summarise(document, self.results.hits)
        return replace(made, models=tuple(replace(one, label=self.networks[one.id].name) for one in made.models))

    def of_mode(self, mode: str) -> str:
        """Id of the network that runs a mode, the first of its kind."""
        norm = EVAL_MODES[mode].norm
        return next(key for key, network in self.networks.items() if network.norm == norm)

    def values(self, mode: str, measure: Measure, model: str = "") -> Floats | None:
        """``(N,)`` what every image contributes to a mean accuracy, 0 to 1; None where it was not measured."""
        rows = self._rows(mode, measure, model or self.of_mode(mode))
        hits = [self.results.hits(row) for row in rows] if self.results else []
        known = [one.astype(np.float64) for one in hits if one is not None]
        if not known or len(known) < len(rows):
            return None
        if measure.name in ("clean", "corruptions") or len(rows) == 1:
            mean: Floats = np.mean(known, axis=0, dtype=np.float64)
            return mean
        levels = np.array([row.condition.level for row in rows])
        widths = np.diff(levels) / (levels[-1] - levels[0])
        weights = (np.append(widths, 0) + np.insert(widths, 0, 0)) / 2  # of the trapezoids
        weighted: Floats = np.tensordot(weights, np.stack(known), axes=1)
        return weighted

    def _rows(self, mode: str, measure: Measure, model: str) -> list[DocumentRow]:
        mine = [row for row in self.rows if (row.model, row.mode.split(":")[0]) == (model, mode)]
        if measure.name == "clean":
            return [row for row in mine if row.condition.kind == "clean"]
        if measure.name in ("corruptions", "mce"):
            return [row for row in mine if row.condition.kind == "corruption"]
        rows = [row for row in mine if row.condition.kind == "noise" and row.condition.name.startswith(measure.name)]
        return sorted(
            (row for row in rows if measure.level in (None, row.condition.level)), key=lambda row: row.condition.level
        )

    def estimate(self, mode: str, measure: Measure, model: str = "") -> Estimate | None:
        """A mean accuracy with its 95 % interval; None where it was not measured."""
        values = self.values(mode, measure, model)
        if values is None:
            return None
        if set(np.unique(values)) <= {0.0, 1.0}:
            return Estimate(float(values.mean()), *clustered_interval(values[None]))
        mean = BootstrapMean(values, low=0.0, high=1.0)
        return Estimate(mean.mean, *mean.interval())

    def mce(self, mode: str) -> Estimate | None:
        """Mean corruption error over AlexNet's; None where cells are missing, or images are not ImageNet's."""
        if self.results is None or self.results.folder is None or self.summary.suites != ("imagenet-c",):
            return None
        entries = build([self.results.folder]).sheet.entries
        return next((one.scores.mce for one in entries if (one.model, one.mode) == (self.of_mode(mode), mode)), None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim of the paper, judged.

    Attributes:
        claim: what was claimed.
        setting: where it was looked at.
        difference: `left` minus `right`, with its 95 % interval.
        word: ``holds``, ``does not hold`` or ``cannot be told``.
    """

    claim: str
    setting: str
    difference: Estimate
    word: str


def judge(recipe: Recipe, parts: Sequence[Part]) -> Iterator[Verdict]:
    """The claims of a recipe against what was measured; those that were not measured are left out."""
    for part in parts:
        for claim in recipe.claims:
            found = _mean_difference(part.values(claim.left, claim.measure), part.values(claim.right, claim.measure))
            if found is not None:
                yield Verdict(str(claim), part.setting.name, found, word_for(claim.relation, found))
        if recipe.best is not None:
            yield from _judge_sizes(recipe, recipe.best, part)


def _judge_sizes(recipe: Recipe, best: tuple[float, float], part: Part) -> Iterator[Verdict]:
    """Whether a group size from `best` is at least as good as every other, for the modes that cut groups."""
    for mode in recipe.modes:
        if EVAL_MODES[mode].statistics != "batch":
            continue
        found: dict[bool, list[Floats]] = {True: [], False: []}
        for key, network in part.networks.items():
            values = part.values(mode, Measure(), key)
            if values is not None and network.group_size:
                found[best[0] <= network.group_size <= best[1]].append(values)
        if found[True] and found[False]:
            inside, outside = (max(found[side], key=lambda values: float(values.mean())) for side in (True, False))
            difference = _mean_difference(inside, outside)
            assert difference is not None
            words = f"best of {best[0]:g} to {best[1]:g} images a group >= best of the other sizes ({mode}, clean)"
            yield Verdict(words, part.setting.name, difference, word_for(">=", difference))


def _mean_difference(left: Floats | None, right: Floats | None) -> Estimate | None:
    """Mean of `left` minus mean of `right`, by images in pairs; None where one was not measured."""
    if left is None or right is None:
        return None
    mean = BootstrapMean(left - right, low=-1.0, high=1.0)
    return Estimate(mean.mean, *mean.interval())


def word_for(relation: str, difference: Estimate) -> str:
    """Whether an order holds: beyond doubt, or within :data:`MARGIN` for ``>=``."""
    assert difference.low is not None
    assert difference.high is not None
    if difference.high < 0 or (relation == ">" and difference.high == 0):
        return FAILS
    return HOLDS if difference.low > (0.0 if relation == ">" else -MARGIN) else OPEN
