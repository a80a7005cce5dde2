"""The figures of the targets, in the paper's arrangement. A new kind is a function and a row of `DRAWINGS`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustbench_ln.corruptions import degrade, to_levels
from robustbench_ln.data import Dataset
from robustbench_ln.errors import InputError
from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.reports.panels import MARKERS, Line, Painter, Row, compose, curves, plain
from robustbench_ln.reports.plots import line_points
from robustbench_ln.reports.style import BLUE, GREEN, ORANGE, VERMILION, ModeStyle, mode_styles
from robustbench_ln.reproducing.measuring import Part
from robustbench_ln.reproducing.recipes import PAPER_SETTINGS, Measure, Recipe
from robustbench_ln.types import Condition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BANDS, _RINGS = "bands are 95 % intervals", "rings are the paper's numbers"
_APART: Any = {"y_label": "", "same_x": False, "same_y": False}  # panels of different things
_SHOWN = 4  # degraded pictures above a panel
_HISTOGRAM = (0.0, 0.5, 1.0, 2.0)  # levels of the noise


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is drawn from.

    Attributes:
        recipe: what it is.
        parts: what was measured, a setting each.
        grids: noise to its levels.
        range: what happens to noisy values outside [0, 1].
        seed: of the noise.
        datasets: of the parts, by setting.
        times: rows of the speed benchmark.
    """

    recipe: Recipe
    parts: Sequence[Part]
    grids: dict[str, tuple[float, ...]]
    range: str
    seed: int
    datasets: dict[str, Dataset]
    times: list[dict[str, Any]] = field(default_factory=list)


def paper_numbers(recipe: Recipe, part: Part) -> tuple[str, dict[Measure, dict[str, float]]]:
    """The paper's setting whose numbers stand beside a part's, and the numbers: its own, or the first there are."""
    own = part.setting.paper if part.setting.paper in recipe.paper else next(iter(recipe.paper), "")
    return own, {measure: dict(values) for measure, values in recipe.paper.get(own, {}).items()}


def _columns(target: Target) -> Figure:
    """A panel a setting, a column a mode: ours with its interval, the paper's number as a ring."""
    styles = mode_styles(target.recipe.modes)

    def panel(part: Part) -> Painter:
        _, numbers = paper_numbers(target.recipe, part)
        measure = Measure()
        found = [(mode, part.estimate(mode, measure)) for mode in target.recipe.modes]
        ours = [(mode, estimate) for mode, estimate in found if estimate]
        return _dots(ours, numbers.get(measure, {}), styles)

    row = Row([panel(part) for part in target.parts], "mode")
    return _composed(target, [row], f"bars are 95 % intervals, {_RINGS}")


def _dots(ours: Sequence[tuple[str, Estimate]], paper: dict[str, float], styles: dict[str, ModeStyle]) -> Painter:
    def paint(axes: Axes) -> None:
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 25))
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        for at, (mode, one) in enumerate(ours):
            style = styles[mode]
            low, high = one.value if one.low is None else one.low, one.value if one.high is None else one.high
            axes.vlines([at], 100 * low, 100 * high, color=style.color, linewidth=2)
            axes.plot([at], [100 * one.value], marker=MARKERS[style.marker], color=style.color, clip_on=False)
            axes.text(at + 0.12, 100 * one.value, f"{100 * one.value:.1f}", fontsize=7, va="center")
            if mode in paper:
                axes.plot([at], [100 * paper[mode]], marker="o", markersize=10, markerfacecolor="none",
                          markeredgecolor="#444444", markeredgewidth=1.2, clip_on=False)  # fmt: skip
        axes.set_xlim(-0.5, len(ours) - 0.2)
        axes.set_xticks(range(len(ours)), [mode for mode, _ in ours], rotation=35, ha="right", fontsize=7.5)

    return paint


def _curves(target: Target) -> Figure:
    """A row of panels a setting, a column a noise, under a row of pictures where the recipe has them."""
    styles = mode_styles(target.recipe.modes)
    noises = list(target.grids)

    def panel(part: Part, noise: str) -> Painter | None:
        summary = part.summary
        lines = [
            Line(curve.mode, styles[curve.mode.split(" ")[0]], line_points(curve.points))
            for curve in summary.curves
            if curve.name == noise and curve.range == target.range
        ]
        _, numbers = paper_numbers(target.recipe, part)
        marks = [
            (measure.level, value, styles[mode])
            for measure, values in numbers.items()
            for mode, value in values.items()
            if measure.level is not None and noise.startswith(measure.name)
        ]
        return curves(lines, chance=1 / summary.data.classes, marks=marks) if lines else None

    rows = []
    if target.recipe.pictures:
        data = target.datasets[target.parts[0].setting.name]
        rows.append(Row([_pictures(target, data, noise) for noise in noises], height=0.95))
    for part in target.parts:
        rows.append(Row([panel(part, noise) for noise in noises], f"sigma ({target.range}), {part.setting.network}"))
    rings = f", {_RINGS}" if target.recipe.paper else ""
    return _composed(target, rows, f"{_BANDS}, dots are chance{rings}", heads=noises, same_x=False)


def _pictures(target: Target, data: Dataset, noise: str) -> Painter:
    """A strip of one image under the noise, from the clean one to the strongest."""
    levels = target.grids[noise]
    picked = list(dict.fromkeys(levels[round(i * (len(levels) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)))

    def paint(axes: Axes) -> None:
        axes.axis("off")
        shown = [_degraded(data, Condition(noise, level), target.seed) for level in picked]
        height, width = shown[0].shape[:2]
        gap = max(1, width // 10)
        strip = np.full((height, len(shown) * (width + gap) - gap, 3), 255, np.uint8)
        for at, picture in enumerate(shown):
            strip[:, at * (width + gap) : at * (width + gap) + width] = picture
            axes.text(at * (width + gap) + width / 2, 1.22 * height, f"{picked[at]:g}", ha="center", fontsize=7)
        axes.imshow(strip, interpolation="nearest")

    return paint


def _degraded(data: Dataset, condition: Condition, seed: int, index: int = 0) -> np.ndarray:
    """``(H, W, 3)`` uint8: an image as it would be seen, clipped."""
    images = degrade(data.read([index]), condition, torch.tensor([index]), seed)
    picture: np.ndarray = to_levels(images)[0].permute(1, 2, 0).numpy()
    return picture


def _corruptions(target: Target) -> Figure:
    """A panel a setting: the accuracy of every mode under each corruption, averaged over severities."""
    styles = mode_styles(target.recipe.modes)

    def panel(part: Part) -> Painter:
        grids = part.summary.grids

        def paint(axes: Axes) -> None:
            names = [name for name, _ in grids[0].cells]
            axes.set_ylim(0, 100)
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
            axes.axhline(100 / part.summary.data.classes, color="#7f7f7f", linestyle=":", linewidth=1)
            for grid in grids:
                style = styles[grid.mode.split(" ")[0]]
                known = [[point.accuracy for point in points if point] for _, points in grid.cells]
                means = [100 * float(np.mean(values)) for values in known]
                mean = 100 * float(np.mean([point.accuracy for point in grid.means]))
                axes.plot(range(len(names)), means, color=style.color, linestyle=style.dash, linewidth=1.2,
                          marker=MARKERS[style.marker], markersize=4, label=f"{grid.mode}: {mean:.1f}")  # fmt: skip
            axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
            plain(axes.set_title(part.setting.network, fontsize=9))
            axes.legend(fontsize=7, frameon=False, loc="lower left")

        return paint

    rows = [Row([panel(part)], "corruption", height=3.6) for part in target.parts]
    return _composed(target, rows, "mean over severities", width=7.0, heads=())


def _histograms(target: Target) -> Figure:
    """A column a level: the picture, and below it how often each value of red, green and blue occurs."""
    noise = next(iter(target.grids))
    data = target.datasets[target.parts[0].setting.name]

    def picture(level: float) -> Painter:
        def paint(axes: Axes) -> None:
            axes.axis("off")
            axes.imshow(_degraded(data, Condition(noise, level), target.seed), interpolation="nearest")

        return paint

    def histogram(level: float) -> Painter:
        def paint(axes: Axes) -> None:
            # Unclipped: what the network's first layer would see before any range policy.
            condition = Condition(noise, level, range="none")
            images = degrade(data.read([0]), condition, torch.tensor([0]), target.seed)[0]
            bins = np.linspace(-0.5, 2.0, 76)
            for channel, color in enumerate(("#c8321e", "#2f8f2f", "#2b4fc0")):
                counts, edges = np.histogram(images[channel].numpy().clip(bins[0], bins[-1]), bins)
                axes.stairs(counts / counts.sum(), edges, color=color, fill=True, alpha=0.35)
            axes.set_xlim(bins[0], bins[-1])
            axes.set_yticks([])

        return paint

    rows = [
        Row([picture(level) for level in _HISTOGRAM], height=1.3),
        Row([histogram(level) for level in _HISTOGRAM], "value (1 is full scale)", height=1.8),
    ]
    heads = ["clean" if not level else f"{noise}, sigma {level:g}" for level in _HISTOGRAM]
    return _composed(target, rows, "values before the range policy", heads=heads, width=2.4, y_label="share of pixels")


def _parameters(target: Target) -> Figure:
    """Mean and variance of gamma and beta over the epochs, a line a group."""
    columns = [(name, moment) for name in ("gamma", "beta") for moment in ("mean", "variance")]

    def panel(epochs: Sequence[int], values: np.ndarray, legend: bool) -> Painter:
        def paint(axes: Axes) -> None:
            for group, line in enumerate(values.T):
                axes.plot(epochs, line, marker=".", linewidth=1, label=f"group {group + 1}")
            axes.set_xticks(epochs[:: max(1, len(epochs) // 6)])
            if legend:
                axes.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

        return paint

    rows = []
    for part in target.parts:
        epochs, moments = group_moments(part)
        if epochs:
            panels = [panel(epochs, moments[column], column == columns[-1]) for column in columns]
            rows.append(Row(panels, "epoch" if len(target.parts) == 1 else f"epoch, {part.setting.network}"))
    if not rows:
        raise InputError(
            "figure 5 needs the log of a training",
            found="LocalNorm networks without one",
            hint="--model with the folder of lnbench train, or no --model",
        )
    heads = [f"{moment} of {name}" for name, moment in columns]
    return _composed(target, rows, "mean over all LocalNorm layers", heads=heads, width=2.9, **_APART)


def group_moments(part: Part) -> tuple[list[int], dict[tuple[str, str], np.ndarray]]:
    """The epochs of a LocalNorm training, and for (gamma or beta, mean or variance) an ``(epochs, K)`` array.

    Moments are over the channels of a layer, then averaged over layers. No epochs where there is no log.
    """
    folders = [network.folder for network in part.networks.values() if network.norm == "ln" and network.folder]
    logs = [folder / "log.jsonl" for folder in folders if (folder / "log.jsonl").is_file()]
    if not logs:
        return [], {}
    log = [json.loads(line) for line in logs[0].read_text(encoding="utf-8").splitlines()]
    moments = {
        (name, words): np.array(
            [np.mean([layer[kind][moment] for layer in epoch["norms"].values()], axis=0) for epoch in log]
        )
        for name, kind in (("gamma", "weight"), ("beta", "bias"))
        for words, moment in (("mean", "mean"), ("variance", "var"))
    }
    return [epoch["epoch"] for epoch in log], moments


def _groups(target: Target) -> Figure:
    """A panel a measure: accuracy over images a group; the shaded span is what the paper found best."""
    styles = mode_styles(target.recipe.modes)
    measures = [Measure(), *(Measure(noise) for noise in target.grids)]

    def panel(part: Part, measure: Measure) -> Painter:
        sizes = sorted((network.group_size or 0, key) for key, network in part.networks.items())
        lines = []
        for mode in target.recipe.modes:
            found = [(size, part.estimate(mode, measure, key)) for size, key in sizes]
            points = [
                (math.log2(size), one.value, one.low or 0.0, 1.0 if one.high is None else one.high)
                for size, one in found
                if one
            ]
            lines += [Line(mode, styles[mode], points)] if points else []
        drawn = curves(lines, ticks={math.log2(size): str(size) for size, _ in sizes})

        def paint(axes: Axes) -> None:
            drawn(axes)
            if target.recipe.best:
                axes.axvspan(*(math.log2(size) for size in target.recipe.best), color="#000000", alpha=0.06, zorder=0)

        return paint

    rows = [
        Row([panel(part, measure) for measure in measures], f"images a group, {part.setting.network}")
        for part in target.parts
    ]
    heads = [str(measure) for measure in measures]
    return _composed(target, rows, f"{_BANDS}; shaded: what the paper found best", heads=heads)


def _cost(target: Target) -> Figure:
    """Bars of times over BatchNorm's: a training step, one image and a batch under every mode; a column a network."""
    networks = list(dict.fromkeys(row["network"] for row in target.times))
    kinds = list(dict.fromkeys((row["pass"], row["images"]) for row in target.times))

    def panel(network: str, kind: tuple[str, int]) -> Painter | None:
        rows = [row for row in target.times if (row["network"], row["pass"], row["images"]) == (network, *kind)]

        def paint(axes: Axes) -> None:
            axes.barh(range(len(rows)), [row["ratio"] for row in rows], color=[_color(row) for row in rows], height=0.7)
            axes.axvline(1, color="#444444", linewidth=0.8)
            if kind[0] == "train" and target.recipe.slower:
                axes.axvspan(*target.recipe.slower, color="#000000", alpha=0.1)
            names = [row["mode"] if row["mode"] not in (None, "native") else row["norm"] for row in rows]
            axes.set_yticks(range(len(rows)), names, fontsize=7)
            axes.invert_yaxis()
            for at, row in enumerate(rows):
                axes.text(row["ratio"], at, f" {row['ratio']:.2f}", va="center", fontsize=7)

        return paint if rows else None

    def words(which: str, images: int) -> str:
        step = "a training step" if which == "train" else "prediction"
        return f"{step} of {images} image{'s' if images > 1 else ''}, time over BatchNorm's"

    rows = [Row([panel(network, kind) for network in networks], words(*kind)) for kind in kinds]
    return _composed(target, rows, "shaded: the paper's 10 to 20 %", heads=networks, width=5.0, **_APART)


def _color(row: dict[str, Any]) -> str:
    return {"bn": VERMILION, "dynbn": BLUE, "ln": GREEN}.get(row["norm"], ORANGE)


def _composed(target: Target, rows: Sequence[Row], legend: str, **options: Any) -> Figure:
    """A figure under the recipe's title."""
    options.setdefault("heads", [part.setting.network for part in target.parts])
    measured = [part for part in target.parts if part.rows]
    said = [target.recipe.title, *_images(measured), legend]
    shown = dict.fromkeys(part.setting.paper for part in target.parts)
    others = [one for one in shown if one not in (*target.recipe.settings, *target.recipe.beyond)]
    if others and target.recipe.paper:
        used, _ = paper_numbers(target.recipe, target.parts[0])
        said.append(f"the paper's are of {PAPER_SETTINGS[used]}")
    return compose(rows, title="; ".join(one for one in said if one), **options)


def _images(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts[:1]:
        yield f"{part.rows[0].n:,} images"


DRAWINGS: dict[str, Callable[[Target], Figure]] = {
    "columns": _columns,
    "curves": _curves,
    "corruptions": _corruptions,
    "histograms": _histograms,
    "parameters": _parameters,
    "groups": _groups,
    "cost": _cost,
}
