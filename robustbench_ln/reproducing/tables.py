"""The numbers of a target as tables: the paper's beside ours, the claims judged, and all that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.reports.tables import Table, estimate, grid_tables, noise_tables
from robustbench_ln.reports.text import percent
from robustbench_ln.reproducing.drawings import Target, group_moments, paper_numbers
from robustbench_ln.reproducing.measuring import MARGIN, Verdict
from robustbench_ln.reproducing.recipes import PAPER_SETTINGS, Measure


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the paper and ours.

    Attributes:
        setting: ours.
        paper_setting: the paper's.
        measure: what it is of.
        mode: evaluation mode.
        paper: what the paper prints, a fraction.
        ours: with its 95 % interval; None where it was not measured.
    """

    setting: str
    paper_setting: str
    measure: Measure
    mode: str
    paper: float
    ours: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The number as it stands in ``reproduced.json``."""
        ours = self.ours
        return {
            "setting": self.setting, "paper_setting": self.paper_setting, "measure": str(self.measure),
            "mode": self.mode, "paper": self.paper, "ours": ours and ours.value,
            "ci95": ours and [ours.low, ours.high], "difference": ours and ours.value - self.paper,
        }  # fmt: skip


def numbers_of(target: Target) -> Iterator[Number]:
    """The paper's numbers beside ours, setting by setting; each setting that we ran beside each of the paper's."""
    for part in target.parts:
        used, measures = paper_numbers(target.recipe, part)
        # Where nothing of ours is the paper's own setting, ours stands beside every one of its columns.
        own = part.setting.paper in target.recipe.paper
        names = [used] if own else list(target.recipe.paper)
        for name in names:
            for measure, values in (measures if own else target.recipe.paper[name]).items():
                for mode, value in values.items():
                    ours = part.mce(mode) if measure.name == "mce" else part.estimate(mode, measure)
                    yield Number(part.setting.name, name, measure, mode, value, ours)


def number_table(numbers: Sequence[Number]) -> Table:
    """The paper's numbers, ours, and the differences."""
    return Table(
        "The paper's numbers and ours",
        ("ours", "the paper's", "measure", "mode", "paper", "ours, %", "difference"),
        tuple(
            (
                one.setting, PAPER_SETTINGS[one.paper_setting], str(one.measure), one.mode, percent(one.paper),
                estimate(one.ours), f"{100 * (one.ours.value - one.paper):+.2f}" if one.ours else "",
            )
            for one in numbers
        ),
        names=4,
        note="In %, in brackets 95 % intervals; differences in points.",
    )  # fmt: skip


def claim_table(verdicts: Sequence[Verdict]) -> Table:
    """What the paper claims, how far apart the two sides are, and whether it holds."""
    return Table(
        "What the paper reports, and whether it holds here",
        ("claim", "setting", "verdict", "left minus right"),
        tuple(
            (one.claim, one.setting, one.word, estimate(one.difference)) for one in verdicts
        ),
        names=3,
        note="In points of accuracy, in brackets 95 % intervals of the difference by images in pairs. > holds where "
        f"the interval lies above 0, >= where it lies above -{100 * MARGIN:g}; neither holds where it lies below 0.",
    )  # fmt: skip


def measured_tables(target: Target) -> Iterator[Table]:
    """All that was measured, in the tables that fit the recipe."""
    for part in target.parts:
        if target.recipe.drawing == "parameters":
            yield from _moment_tables(target)
            return
        if target.recipe.drawing == "groups":
            yield _group_table(target)
            return
        if part.results is None:
            continue
        summary = part.summary
        if target.grids:
            yield from noise_tables(summary)
        elif target.recipe.corruption:
            yield from grid_tables(summary)
        else:
            rows = [(mode, estimate(part.estimate(mode, Measure()))) for mode in target.recipe.modes]
            yield Table(f"Measured on {part.setting.network}", ("mode", "accuracy, %"), tuple(rows))
    if target.times:
        yield Table(
            "Times",
            ("network", "norm", "pass", "mode", "images", "seconds", "over BatchNorm"),
            tuple(
                (one["network"], one["norm"], one["pass"], one["mode"] or "", str(one["images"]),
                 f"{one['seconds']:.4f}", f"{one['ratio']:.2f}")
                for one in target.times
            ),
            names=4,
            note="Medians. The paper: a training step takes {:.2f} to {:.2f} times BatchNorm's.".format(
                *(target.recipe.slower or (1.0, 1.0))
            ),
        )  # fmt: skip


def _group_table(target: Target) -> Table:
    measures = [Measure(), *(Measure(noise) for noise in target.grids)]
    columns = [(mode, measure) for measure in measures for mode in target.recipe.modes]
    rows = []
    for part in target.parts:
        for key, network in sorted(part.networks.items(), key=lambda item: item[1].group_size or 0):
            cells = [estimate(part.estimate(mode, measure, key)) for mode, measure in columns]
            rows.append((str(network.group_size), network.name, *cells))
    heads = [f"{mode}, {measure}" for mode, measure in columns]
    return Table("Accuracy by images a group", ("images", "network", *heads), tuple(rows), names=2, note="In %.")


def _moment_tables(target: Target) -> Iterator[Table]:
    for part in target.parts:
        epochs, moments = group_moments(part)
        if not epochs:
            continue
        groups = next(iter(moments.values())).shape[1]
        rows = tuple(
            (f"{words} of {name}", *(f"{value:.4f}" for value in values[-1]), f"{values[-1].std():.4f}")
            for (name, words), values in moments.items()
        )
        heads = [f"group {group + 1}" for group in range(groups)]
        yield Table(
            f"After epoch {epochs[-1]}, {part.setting.network}",
            ("", *heads, "spread over groups"),
            rows,
            note="Means over all LocalNorm layers; spread: standard deviation over the groups.",
        )
