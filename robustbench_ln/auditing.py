"""How much modes that share statistics depend on who shares a batch: other orders, other sizes, the same pixels.

The same images, degraded in the same way, are visited class by class and in several shuffled orders, with M = 1 to 256
images sharing statistics. Every order is a run folder of its own, so an interrupted audit goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustbench_ln.api import evaluate_plan
from robustbench_ln.errors import UsageError
from robustbench_ln.evaluation import Event
from robustbench_ln.metrics.accuracy import clustered_interval
from robustbench_ln.metrics.bootstrap import BootstrapMean
from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.norms.modes import EvalMode, NetworkNorms, Schedule, parse_mode, schedule
from robustbench_ln.planning import Plan, PlannedModel, check_numbers, plan_run, threads_of, visiting_order
from robustbench_ln.reports.chart import Series
from robustbench_ln.reports.panels import Line, Row, compose, curves
from robustbench_ln.reports.style import mode_styles
from robustbench_ln.reports.tables import Table, estimate
from robustbench_ln.reports.text import percent
from robustbench_ln.results import DocumentRow, Results, write_bytes
from robustbench_ln.types import Condition

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from robustbench_ln.data import Dataset

SIZES = tuple(2**power for power in range(9))  # M, 1 to 256
SHUFFLES = 5
SORTED = "sorted"
FILE_NAME = "orders.json"


@dataclass(frozen=True, slots=True)
class OrderRow:
    """What the order does to one model under one mode, M and condition.

    Attributes:
        model: id of the model.
        mode: the mode without M.
        images: M, how many images share statistics.
        condition: what was done to the images.
        n: images scored, the same in every order.
        accuracies: order (``sorted``, ``shuffled-0`` ...) to accuracy; ``shuffled-0`` is the order of a plain run.
        shuffled: mean accuracy over the shuffled orders, with the image as the unit.
        sorted: accuracy when the images come class by class.
        cost: `shuffled` minus `sorted`, by images in pairs.
        unsteady: share of images that are predicted differently in two shuffled orders, mean over the pairs of orders.
    """

    model: str
    mode: str
    images: int
    condition: Condition
    n: int
    accuracies: Mapping[str, float]
    shuffled: Estimate
    sorted: Estimate
    cost: Estimate
    unsteady: float

    def to_dict(self) -> dict[str, Any]:
        """The row as it stands in ``orders.json``."""
        return asdict(self) | {"condition": self.condition.to_dict()}


@dataclass(frozen=True, slots=True)
class OrderAudit:
    """What an audit found.

    Attributes:
        rows: by model, condition, mode and M.
        results: order to all that was measured in it.
    """

    rows: tuple[OrderRow, ...]
    results: Mapping[str, Results]

    @property
    def warnings(self) -> list[str]:
        """What to know before trusting the numbers."""
        return list(dict.fromkeys(text for results in self.results.values() for text in results.warnings))

    def to_json(self) -> str:
        """The content of ``orders.json``."""
        first = next(iter(self.results.values())).document
        orders = {name: results.document.run.order_sha256 for name, results in self.results.items()}
        document = {
            "schema_version": 1,
            "run": first.run.model_dump(exclude={"order_sha256", "warnings"}) | {"warnings": self.warnings},
            "models": [model.model_dump() for model in first.models],
            "data": first.data.model_dump(),
            "orders": [{"name": name, "order_sha256": digest} for name, digest in orders.items()],
            "rows": [row.to_dict() for row in self.rows],
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def audit_order(
    model: str | nn.Module | Sequence[str | nn.Module],
    data: str | Dataset = "demo",
    *,
    modes: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    threads: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    **settings: Any,
) -> OrderAudit:
    """Measure how much each mode that shares statistics depends on who shares the batch.

    Args:
        model: as of :func:`robustbench_ln.evaluate`.
        data: as there.
        modes: names of modes whose images share statistics, without M; None for all that the networks can run.
        out: folder of the runs, one an order, and of ``orders.json``, ``orders.png`` and ``orders.svg``.
        workers: processes that evaluate conditions side by side; changes no number.
        threads: threads of a forward pass; changes no number.
        on_event: called with every event, for progress.
        **settings: all else that :func:`robustbench_ln.evaluate` takes; without a noise, corruption or preset only
            clean images are evaluated. With ``limit``, the first images of the seeded order are scored in every order.

    Raises:
        UsageError: a mode that shares no statistics or that no model can run, or as of :func:`robustbench_ln.evaluate`.
        InputError, ResourceError, TrustError: as there.
    """
    check_numbers(workers=workers)
    with threads_of(threads):
        plans = plan_orders(model, data, modes=modes, **settings)
        return audit_plans(plans, out=out, workers=workers, on_event=on_event)


def plan_orders(
    model: str | nn.Module | Sequence[str | nn.Module],
    data: str | Dataset = "demo",
    *,
    modes: str | Iterable[str] | None = None,
    **settings: Any,
) -> dict[str, Plan]:
    """The plan of every order, by its name; arguments and errors as of :func:`audit_order`."""
    plan = plan_run(model, data, modes=modes, **settings)
    if not any(settings.get(name) for name in ("noise", "corruption", "preset")):
        plan = plan.only_clean()
    asked = None if modes is None else {parse_mode(cut.mode.name).unsized for m in plan.models for cut in m.schedules}
    models = tuple(replace(one, schedules=_schedules(one, plan, asked)) for one in plan.models)
    models = tuple(one for one in models if one.schedules)
    if not models:
        found = ", ".join(sorted(asked)) if asked else ", ".join(one.info.norm for one in plan.models)
        raise UsageError(
            "there is nothing to audit: no images share statistics",
            found=found,
            hint="--modes dynbn-batch, bn-adapt:N, ln-batch or ln-voting",
        )
    names = dict.fromkeys(cut.mode.name for one in models for cut in one.schedules)
    manifest = replace(plan.manifest, models=tuple(one.info for one in models), modes=tuple(names))
    plan = replace(plan, models=models, manifest=manifest)
    return {name: plan.reordered(order) for name, order in _orders(plan)}


def _schedules(one: PlannedModel, plan: Plan, asked: set[str] | None) -> tuple[Schedule, ...]:
    """The modes of a model that share statistics, with every M that the data has images for."""
    norms = NetworkNorms.of(one.classifier.network, one.info.group_size)
    n = len(plan.dataset)
    found: dict[str, Schedule] = {}
    for mode in _sharing(norms, asked):
        groups = norms.n_groups if norms.kind == "ln" and mode.groups == "own" else 1
        for images in sorted({*SIZES, norms.default_images}):
            # A single image a group is no batch: `ln-batch` is not defined there.
            if images * groups <= n and not (groups > 1 and images < 2):
                cut = schedule(parse_mode(f"{mode.unsized}:{images}"), norms, n, plan.dataset.image_size)
                found.setdefault(cut.identity, cut)
    return tuple(found.values())


def _sharing(norms: NetworkNorms, asked: set[str] | None) -> Iterator[EvalMode]:
    if asked is not None:
        modes = [parse_mode(name) for name in sorted(asked)]
    else:
        modes = [mode for mode in norms.runnable_modes() if mode.source_weight is None]
    yield from (mode for mode in modes if mode.statistics == "batch" and not norms.refusal(mode))


def _orders(plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """The scored images class by class, then shuffled; those that are not scored stay behind them as they are."""
    scored, rest = plan.order[: plan.limit], plan.order[plan.limit :]
    labels = torch.from_numpy(plan.dataset.labels[scored.numpy()])
    yield SORTED, torch.cat((scored[labels.argsort(stable=True)], rest))
    for draw in range(SHUFFLES):
        shuffled = scored[visiting_order(plan.seed, plan.limit, draw=draw)] if draw else scored
        yield f"shuffled-{draw}", torch.cat((shuffled, rest))


def audit_plans(
    plans: Mapping[str, Plan],
    *,
    out: str | Path | None = None,
    workers: int = 0,
    on_event: Callable[[Event], None] | None = None,
    command: str = "",
) -> OrderAudit:
    """Carry out the plans of :func:`plan_orders`; see :func:`audit_order`."""
    results = {}
    for name, plan in plans.items():
        folder = Path(out) / name if out is not None else None
        results[name] = evaluate_plan(plan, out=folder, workers=workers, on_event=on_event, command=command)
    audit = OrderAudit(tuple(_rows(results)), results)
    if out is not None:
        from robustbench_ln.reports.panels import save

        write_bytes(Path(out) / FILE_NAME, audit.to_json().encode())
        save(figure(audit), Path(out) / "orders")
    return audit


def _rows(results: Mapping[str, Results]) -> Iterator[OrderRow]:
    """Bring the rows of all orders together."""
    found: dict[tuple[str, Condition, str, int], dict[str, DocumentRow]] = {}
    for name, one in results.items():
        for row in one.document.rows:
            key = row.model, row.condition.to_condition(), parse_mode(row.mode).unsized, row.images or 0
            found.setdefault(key, {})[name] = row
    for (model, condition, mode, images), rows in sorted(found.items(), key=lambda item: item[0][:4]):
        classes = {name: _classes(results[name], row) for name, row in rows.items()}
        labels = _labels(results[SORTED])
        hits = {name: one == labels for name, one in classes.items()}
        shuffled = np.stack([one for name, one in hits.items() if name != SORTED])
        cost = BootstrapMean(shuffled.mean(axis=0) - hits[SORTED], low=-1.0, high=1.0)
        yield OrderRow(
            model=model,
            mode=mode,
            images=images,
            condition=condition,
            n=len(labels),
            accuracies={name: float(one.mean()) for name, one in hits.items()},
            shuffled=Estimate(float(shuffled.mean()), *clustered_interval(shuffled)),
            sorted=Estimate(float(hits[SORTED].mean()), *clustered_interval(hits[SORTED][None])),
            cost=Estimate(cost.mean, *cost.interval()),
            unsteady=_unsteady(np.stack([one for name, one in classes.items() if name != SORTED])),
        )


def _classes(results: Results, row: DocumentRow) -> np.ndarray:
    kept = results.predictions(row)
    assert kept is not None  # plan_orders keeps them
    return kept[0]


def _labels(results: Results) -> np.ndarray:
    assert results.scored is not None
    return results.scored[1]


def _unsteady(classes: np.ndarray) -> float:
    """Share of images that two orders predict differently, mean over the pairs; ``(orders, n)`` classes."""
    pairs = [(classes[a] != classes[b]).mean() for a in range(len(classes)) for b in range(a)]
    return float(np.mean(pairs))


def tables(audit: OrderAudit) -> Iterator[Table]:
    """The audit as tables, one a model and condition."""
    for (model, condition), rows in _parts(audit):
        yield Table(
            f"{model}, {condition}: accuracy by who shares a batch",
            ("mode", "M", "shuffled", "lowest to highest", "class by class", "cost of sorting", "unsteady"),
            tuple(
                (row.mode, str(row.images), estimate(row.shuffled), _range(row), estimate(row.sorted),
                 estimate(row.cost), percent(row.unsteady))
                for row in rows
            ),
            names=1,
            note=f"In %, in brackets 95 % intervals; {SHUFFLES} shuffled orders, their mean and their extremes. "
            "Cost of sorting: shuffled minus class by class, in points. Unsteady: images predicted differently in two "
            "shuffled orders.",
        )  # fmt: skip


def _range(row: OrderRow) -> str:
    shuffled = [accuracy for name, accuracy in row.accuracies.items() if name != SORTED]
    return f"{percent(min(shuffled))} to {percent(max(shuffled))}"


def _parts(audit: OrderAudit) -> Iterator[tuple[tuple[str, Condition], list[OrderRow]]]:
    for part in dict.fromkeys((row.model, row.condition) for row in audit.rows):
        yield part, [row for row in audit.rows if (row.model, row.condition) == part]


def figure(audit: OrderAudit) -> Figure:
    """Accuracy over M: solid where images are shuffled, dashed where they come class by class; a panel a condition."""
    data = next(iter(audit.results.values())).document.data
    parts = dict(_parts(audit))
    models = list(dict.fromkeys(model for model, _ in parts))
    styles = mode_styles(dict.fromkeys(row.mode for row in audit.rows))
    sizes = sorted({row.images for row in audit.rows})
    ticks = {math.log2(size): str(size) for size in sizes if size in SIZES}

    def lines(rows: list[OrderRow]) -> Iterator[Line]:
        for mode in dict.fromkeys(row.mode for row in rows):
            mine = [row for row in rows if row.mode == mode]
            for name, look, picked in ((mode, "solid", "shuffled"), (f"{mode}, sorted", "dashed", SORTED)):
                points = []
                for row in mine:
                    one: Estimate = getattr(row, picked)
                    points.append((math.log2(row.images), one.value, one.low or 0.0, one.high or 0.0))
                yield Line(name, replace(styles[mode], dash=look), points)  # type: ignore[arg-type]

    rows = []
    for condition in dict.fromkeys(condition for _, condition in parts):
        panels = [
            curves(list(lines(parts[model, condition])), chance=1 / data.classes, ticks=ticks)
            if (model, condition) in parts
            else None
            for model in models
        ]
        rows.append(Row(panels, f"M, images that share statistics ({condition})"))
    title = (
        f"{data.id}, {audit.rows[0].n:,} images; solid: mean of {SHUFFLES} shuffled orders, dashed: class by class; "
        "bands are 95 % intervals, dots are chance"
    )
    return compose(rows, heads=models, title=title, notes=audit.warnings[:3])


def charts(audit: OrderAudit) -> Iterator[tuple[str, list[Series], list[str]]]:
    """What a terminal draws, a chart a model and condition: title, series over log2 M, their names."""
    for (model, condition), rows in _parts(audit):
        series: list[Series] = []
        names: list[str] = []
        for mode in dict.fromkeys(row.mode for row in rows):
            mine = [row for row in rows if row.mode == mode]
            for name, picked in ((f"{mode}, shuffled", "shuffled"), (f"{mode}, class by class", SORTED)):
                points = [(math.log2(row.images), getattr(row, picked).value) for row in mine]
                series.append(Series(points, len(series)))
                names.append(name)
        yield f"{model}, {condition}", series, names
