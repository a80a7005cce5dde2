"""Who shares a batch: other orders are the same images, sorted is sorted, and what must not depend on it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_ln import audit_order, evaluate
from robustbench_ln.auditing import SHUFFLES, SORTED, OrderAudit, figure, plan_orders, tables
from robustbench_ln.errors import UsageError
from robustbench_ln.evaluation import Event, Finish
from tests.conftest import random_localnorm, random_network, toy_data

N, LIMIT = 48, 40
SETTINGS: dict[str, Any] = {"normalize": "half", "device": "cpu", "limit": LIMIT}


def networks() -> list[torch.nn.Module]:
    return [random_network(), random_localnorm()]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[OrderAudit, Path]:
    out = tmp_path_factory.mktemp("audit") / "orders"
    return audit_order(networks(), toy_data(N), out=out, **SETTINGS), out


def test_every_order_scores_the_same_images_and_sorted_means_sorted() -> None:
    data = toy_data(N)
    plans = plan_orders(networks(), data, **SETTINGS)
    assert len(plans) == 1 + SHUFFLES
    scored = [frozenset(plan.order[:LIMIT].tolist()) for plan in plans.values()]
    assert len(set(scored)) == 1
    for plan in plans.values():
        assert sorted(plan.order.tolist()) == list(range(N))
    assert len({plan.manifest.order_sha256 for plan in plans.values()}) == 1 + SHUFFLES
    labels = data.labels[plans[SORTED].order[:LIMIT].numpy()]
    assert (np.diff(labels) >= 0).all()
    assert (np.diff(data.labels[plans["shuffled-0"].order[:LIMIT].numpy()]) < 0).any()


def test_one_shuffled_order_is_that_of_a_plain_run(found: tuple[OrderAudit, Path]) -> None:
    plain = evaluate(networks(), toy_data(N), noise="agn=0", modes="dynbn-batch:8,ln-batch:8,ln-voting:8", **SETTINGS)
    audited = {(row.model, row.mode): row for row in found[0].rows if row.images == 8}
    clean = [row for row in plain.rows if row.condition.kind == "clean"]
    assert len(clean) == 3
    for row in clean:
        assert audited[row.model, row.mode.split(":")[0]].accuracies["shuffled-0"] == row.accuracy


def test_an_image_alone_depends_on_no_order(found: tuple[OrderAudit, Path]) -> None:
    alone = [row for row in found[0].rows if row.images == 1]
    assert {row.mode for row in alone} == {"dynbn-batch", "ln-voting"}  # a group of one is no group of ln-batch
    for row in alone:
        assert len(set(row.accuracies.values())) == 1
        assert row.unsteady == 0
        assert row.cost.value == 0


def test_company_matters_where_statistics_are_shared(found: tuple[OrderAudit, Path]) -> None:
    assert any(row.unsteady > 0 for row in found[0].rows if row.images == 2)
    for row in found[0].rows:
        assert row.images * (4 if row.mode == "ln-batch" else 1) <= N
        shuffled = [value for name, value in row.accuracies.items() if name != SORTED]
        assert row.shuffled.value == pytest.approx(np.mean(shuffled))
        assert row.cost.value == pytest.approx(row.shuffled.value - row.accuracies[SORTED])
        assert row.cost.low <= row.cost.value <= row.cost.high


def test_the_same_audit_again_evaluates_nothing_and_says_the_same(found: tuple[OrderAudit, Path]) -> None:
    audit, out = found
    events: list[Event] = []
    again = audit_order(networks(), toy_data(N), out=out, on_event=events.append, **SETTINGS)
    assert not [event for event in events if isinstance(event, Finish)]
    assert again.rows == audit.rows
    fresh = audit_order(networks(), toy_data(N), batch_size=16, **SETTINGS)
    assert fresh.rows == audit.rows


def test_an_audit_is_kept_as_data_and_pictures(found: tuple[OrderAudit, Path]) -> None:
    audit, out = found
    document = json.loads((out / "orders.json").read_text())
    assert len(document["rows"]) == len(audit.rows)
    assert [one["name"] for one in document["orders"]] == [SORTED, *(f"shuffled-{i}" for i in range(SHUFFLES))]
    assert (out / "orders.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure(audit).axes) == 2
    assert sum(len(table.rows) for table in tables(audit)) == len(audit.rows)


def test_rows_of_two_orders_do_not_mix(found: tuple[OrderAudit, Path]) -> None:
    with pytest.raises(UsageError, match="visiting order"):
        evaluate(networks(), toy_data(N), noise="agn=0", out=found[1] / SORTED, **SETTINGS)


@pytest.mark.parametrize("modes", ["bn", "ln-single", "native"])
def test_modes_that_share_nothing_are_refused(modes: str) -> None:
    with pytest.raises(UsageError, match="nothing to audit"):
        plan_orders(networks(), toy_data(N), modes=modes, **SETTINGS)


def test_modes_and_degradations_can_be_chosen() -> None:
    plans = plan_orders(networks(), toy_data(N), modes="bn-adapt:16,ln-voting", noise="agn=1", **SETTINGS)
    plan = plans[SORTED]
    assert {cut.mode.name.split(":")[0] for one in plan.models for cut in one.schedules} == {"bn-adapt", "ln-voting"}
    assert [condition.name for condition in plan.conditions] == ["clean", "agn"]
