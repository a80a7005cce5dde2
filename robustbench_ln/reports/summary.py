"""The numbers of a report, all of them: every format renders a `Summary`, so formats cannot disagree.

Levels of a noise become a curve with its area, severities of a corruption a row of a grid, repeats a mean with an
interval that takes the image as the unit. Fractions everywhere; percent only in ink.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from robustbench_ln.metrics.accuracy import area_under_curve, clustered_interval, score_interval
from robustbench_ln.reports.sheet import NO_SHEET, Sheet
from robustbench_ln.results.document import (
    ConditionEntry,
    DataEntry,
    DocumentRow,
    ModelEntry,
    ResultsDocument,
    RunInfo,
    shards_missing,
)

Hits = Callable[[DocumentRow], npt.NDArray[np.bool_] | None]
"""From a row to (N,) was each scored image predicted right, in one order for all rows; None where that is not known."""

CAUTIOUS = (
    "intervals of means over repeats or corruptions are wider than they need be: "
    "without every image's prediction, or with rows that stopped early, they count each image once"
)


@dataclass(frozen=True, slots=True)
class Point:
    """An accuracy and its 95 % interval.

    Attributes:
        level: sigma of a noise, severity of a corruption, 0 for clean.
        accuracy: mean over the repeats (and over the corruptions, in a mean over them).
        low: lower bound.
        high: upper bound.
        n: images scored in each repeat.
        repeats: how many redraws were averaged.
    """

    level: float
    accuracy: float
    low: float
    high: float
    n: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy of a model under a mode over the levels of one noise.

    Attributes:
        model: id of the model.
        mode: evaluation mode.
        name: the noise.
        range: what happened to values outside [0, 1].
        points: by rising level.
        area: under the curve by trapezoids, divided by the grid's width; 0 to 1.
    """

    model: str
    mode: str
    name: str
    range: str
    points: tuple[Point, ...]
    area: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Accuracy of a model under a mode over corruptions and severities of one suite.

    Attributes:
        model: id of the model.
        mode: evaluation mode.
        suite: whose constants.
        severities: every severity that occurs, rising.
        cells: corruption, then a point for each of `severities`, None where it was not run.
        means: for each of `severities` the mean over the complete corruptions; empty when none is complete.
        complete: the corruptions that were run at every one of `severities`.
    """

    model: str
    mode: str
    suite: str
    severities: tuple[float, ...]
    cells: tuple[tuple[str, tuple[Point | None, ...]], ...]
    means: tuple[Point, ...]
    complete: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model and the modes it ran.

    Attributes:
        id: id of the model, as rows name it.
        label: the id without its digest, where that still tells the models apart.
        source: what was passed to ``--model``.
        arch: architecture.
        norm: kind of the norm layers.
        n_groups: K, None for networks without LocalNorm.
        preprocessing: where mean and std come from.
        modes: in order of appearance.
        images: mode to M, the images that shared statistics; None where none did.
    """

    id: str
    label: str
    source: str
    arch: str
    norm: str
    n_groups: int | None
    preprocessing: str
    modes: tuple[str, ...]
    images: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Source:
    """One of the inputs of a report.

    Attributes:
        path: as the user named it.
        run: how its numbers were made.
        data: its data set.
        preview: PNG of what images looked like, where the run folder has one.
    """

    path: str
    run: RunInfo
    data: DataEntry
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """All that a report shows.

    Attributes:
        models: in the document's order.
        modes: every mode of any model, in order of appearance.
        clean: (model id, mode) to the clean accuracy.
        curves: one a (model, mode, noise, range).
        grids: one a (model, mode, suite).
        warnings: of the run, then of the summary; to be shown in every format.
        rows: the document's rows, for formats that list them.
        run: how the numbers were made.
        data: the data set.
        sheet: mCE and all that belongs to it; empty where only the grids are shown.
        sources: what each of the inputs was; empty where the document alone is known.
    """

    models: tuple[ModelSummary, ...]
    modes: tuple[str, ...]
    clean: Mapping[tuple[str, str], Point]
    curves: tuple[Curve, ...]
    grids: tuple[Grid, ...]
    warnings: tuple[str, ...]
    rows: tuple[DocumentRow, ...]
    run: RunInfo
    data: DataEntry
    sheet: Sheet = NO_SHEET
    sources: tuple[Source, ...] = ()

    @property
    def scored(self) -> str:
        """How many images the rows have, in words."""
        found = {row.n for row in self.rows if row.status == "ok"}
        return " to ".join(f"{n:,}" for n in sorted({min(found), max(found)})) if found else "no"

    @property
    def noises(self) -> tuple[tuple[str, str], ...]:
        """The (noise, range) pairs that have a curve, in order of appearance."""
        return tuple(dict.fromkeys((curve.name, curve.range) for curve in self.curves))

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites that have a grid, in order of appearance."""
        return tuple(dict.fromkeys(grid.suite for grid in self.grids))


def summarise(document: ResultsDocument, hits: Hits | None = None) -> Summary:
    """Turn a document into the numbers of a report. Failed rows take no part and are named in the warnings.

    Args:
        document: what a run found.
        hits: where each image's prediction is kept, a way to it; intervals of means over repeats or corruptions need
            it. Without it they are Wilson's with N images, which is wide enough whatever the dependence, and a warning
            says so.
    """
    done = [row for row in document.rows if row.status == "ok"]
    labels = mode_labels(done)
    notes: list[str] = []
    point = partial(_point, hits=hits, notes=notes)

    cells: dict[tuple[str, str], dict[tuple[str, str, str], dict[float, list[DocumentRow]]]] = {}
    for row, mode in zip(done, labels, strict=True):
        kind = (suite_of(row.condition), row.condition.range, row.condition.name)
        levels = cells.setdefault((row.model, mode), {}).setdefault(kind, {})
        levels.setdefault(row.condition.level, []).append(row)

    clean: dict[tuple[str, str], Point] = {}
    curves: list[Curve] = []
    grids: list[Grid] = []
    for (model, mode), kinds in cells.items():
        suites: dict[str, dict[str, dict[float, list[DocumentRow]]]] = {}
        for (suite, value_range, name), levels in kinds.items():
            if name == "clean":
                clean[model, mode] = point(0.0, next(iter(levels.values())))
            elif suite:
                suites.setdefault(suite, {})[name] = levels
            else:
                points = tuple(point(level, levels[level]) for level in sorted(levels))
                area = area_under_curve([p.level for p in points], [p.accuracy for p in points])
                curves.append(Curve(model, mode, name, value_range, points, area))
        grids += [_grid(model, mode, suite, names, point) for suite, names in suites.items()]

    modes = _modes_by_model(zip(done, labels, strict=True))
    failed = [row for row in document.rows if row.status == "failed"]
    if failed:
        first = f"{failed[0].model}, {failed[0].mode}, {failed[0].condition.to_condition()}"
        notes.append(f"{len(failed)} of {len(document.rows)} rows failed and are left out, the first: {first}")
    early = sum(row.interval == "anytime" for row in done)
    if early:
        notes.append(
            f"{early} of {len(done)} rows stopped early (--ci-width): their intervals hold for the accuracy on this "
            "data set, not on other images of its kind, and they have no paired tests"
        )
    if missing := shards_missing(document.run):
        notes.append(f"shards {', '.join(missing)} of the work are not in here: lnbench merge puts them together")
    return Summary(
        models=tuple(_models(document.models, modes)),
        modes=tuple(dict.fromkeys(mode for of_model in modes.values() for mode in of_model)),
        clean=clean,
        curves=tuple(curves),
        grids=tuple(grids),
        warnings=tuple(dict.fromkeys([*document.run.warnings, *notes])),
        rows=tuple(document.rows),
        run=document.run,
        data=document.data,
    )


def suite_of(condition: ConditionEntry) -> str:
    """The suite under which a corruption is shown, one with a round trip through JPEG apart; empty for others."""
    suite = condition.suite or ""
    return f"{suite}, jpeg 85" if condition.jpeg_parity else suite


def mode_labels(rows: Sequence[DocumentRow]) -> list[str]:
    """The mode of each row; where one name ran with several M, with the M it used, which is part of its identity."""
    used: dict[tuple[str, str], set[int | None]] = {}
    for row in rows:
        used.setdefault((row.model, row.mode), set()).add(row.images)
    several = {key for key, images in used.items() if len(images) > 1}
    return [f"{row.mode} (M {row.images})" if (row.model, row.mode) in several else row.mode for row in rows]


def _modes_by_model(rows: Iterable[tuple[DocumentRow, str]]) -> dict[str, dict[str, int | None]]:
    modes: dict[str, dict[str, int | None]] = {}
    for row, mode in rows:
        modes.setdefault(row.model, {})[mode] = row.images
    return modes


def _models(models: Sequence[ModelEntry], modes: Mapping[str, Mapping[str, int | None]]) -> Iterable[ModelSummary]:
    short = [re.sub(r"[-@:_.][0-9a-f]{6,64}$", "", model.id) or model.id for model in models]
    labels = short if len(set(short)) == len(short) else [model.id for model in models]
    for model, label in zip(models, labels, strict=True):
        images = modes.get(model.id, {})
        yield ModelSummary(
            id=model.id,
            label=label,
            source=model.source,
            arch=model.arch,
            norm=model.norm,
            n_groups=model.n_groups,
            preprocessing=model.preprocessing,
            modes=tuple(images),
            images=images,
        )


def _grid(
    model: str,
    mode: str,
    suite: str,
    names: Mapping[str, Mapping[float, list[DocumentRow]]],
    point: Callable[[float, list[DocumentRow]], Point],
) -> Grid:
    severities = tuple(sorted({level for levels in names.values() for level in levels}))
    complete = tuple(name for name, levels in names.items() if len(levels) == len(severities))
    cells = tuple(
        (name, tuple(point(level, levels[level]) if level in levels else None for level in severities))
        for name, levels in names.items()
    )
    means = [point(level, [row for name in complete for row in names[name][level]]) for level in severities if complete]
    return Grid(model, mode, suite, severities, cells, tuple(means), complete)


def _point(level: float, rows: list[DocumentRow], *, hits: Hits | None, notes: list[str]) -> Point:
    """The mean of rows over the same images, with its interval."""
    n = min(row.n for row in rows)
    accuracy = float(np.mean([row.correct / row.n for row in rows]))
    repeats = len({row.condition.repeat for row in rows})
    if len(rows) == 1 and rows[0].interval == "anytime" and rows[0].ci95 is not None:
        low, high = rows[0].ci95
    elif len(rows) > 1 and (table := hit_table(rows, hits)) is not None:
        low, high = clustered_interval(table)
    else:
        low, high = score_interval(accuracy, n)
        if len(rows) > 1 and CAUTIOUS not in notes:
            notes.append(CAUTIOUS)
    return Point(level, accuracy, low, high, n, repeats)


def hit_table(rows: Sequence[DocumentRow], hits: Hits | None) -> npt.NDArray[np.bool_] | None:
    """(R, N) hits of the rows, or None unless they are known for all and agree with the counts."""
    found: list[npt.NDArray[np.bool_]] = []
    for row in rows:
        one = None if hits is None else hits(row)
        if one is None or one.shape != (row.n,) or int(one.sum()) != row.correct:
            return None
        found.append(one)
    return np.stack(found) if len({one.shape for one in found}) == 1 else None
