"""Work cut into jobs, carried out anywhere in any order, put together again: the numbers of a single process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from robustbench_ln import Results, evaluate, load_results, merge
from robustbench_ln.errors import IncompleteError, UsageError
from robustbench_ln.evaluation import Finish, jobs
from tests.conftest import random_localnorm, random_network, toy_data
from tests.test_evaluation import close, numbers


def small_run(**options: Any) -> Results:
    given = {"noise": "agn=0,1", "modes": "bn,dynbn-batch,ln-batch,ln-voting", "group_size": 4, **options}
    return evaluate([random_network(), random_localnorm()], toy_data(40), normalize="half", device="cpu", **given)


@pytest.fixture(scope="module")
def reference() -> Results:
    return small_run()


# ---- Blocks of images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "limit"), [(7, None), (16, None), (10, 33), (39, None)])
def test_blocks_of_images_change_no_number(
    block: int, limit: int | None, reference: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference if limit is None else small_run(limit=limit)
    monkeypatch.setattr(jobs, "_BLOCK", block)
    parts: list[str] = []

    def watch(event: object) -> None:
        if isinstance(event, Finish) and "-" in event.key:
            parts.append(event.key)

    blocked = small_run(limit=limit, on_event=watch)
    assert parts
    assert numbers(blocked) == numbers(whole)
    assert close(blocked, whole)


def test_finished_blocks_are_kept_and_go_when_their_row_is_whole(
    reference: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_BLOCK", 8)
    seen = 0

    def stop(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, Finish)
        if seen == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_run(out=tmp_path / "run", on_event=stop)
    kept = sorted(path.name for path in (tmp_path / "run" / "rows").glob("*-*.row"))
    assert kept
    made: list[str] = []
    again = small_run(out=tmp_path / "run", on_event=lambda e: made.append(e.key) if isinstance(e, Finish) else None)
    assert not {f"{key}.row" for key in made} & set(kept), "a part that was there was made again"
    assert numbers(again) == numbers(reference)
    assert not list((tmp_path / "run" / "rows").glob("*-*.row"))


# ---- Shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16_384, 16])
def test_merged_shards_are_one_run(
    block: int, reference: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_BLOCK", block)
    folders = [tmp_path / f"{i}" for i in (1, 2, 3)]
    for i, folder in enumerate(folders, 1):
        small_run(shard=f"{i}/3", out=folder)
    # In any order, and one of them twice.
    merged = merge([folders[2], folders[0], folders[1], folders[0]], tmp_path / "all")
    assert numbers(merged) == numbers(reference)
    assert merged.document.run.shards == []
    assert numbers(load_results(tmp_path / "all")) == numbers(reference)


def test_a_missing_shard_leaves_rows_that_say_so(reference: Results, tmp_path: Path) -> None:
    small_run(shard="1/2", out=tmp_path / "1")
    merged = merge([tmp_path / "1"], tmp_path / "all")
    assert merged.document.run.shards == ["1/2"]
    failed = [row for row in merged.document.rows if row.status == "failed"]
    assert failed
    assert len(merged) == len(reference)
    assert all("merged" in row.extra["reason"] for row in failed)
    small_run(shard="2/2", out=tmp_path / "2")
    assert numbers(merge([tmp_path / "2"], tmp_path / "all")) == numbers(reference)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_shard_that_is_no_part_of_a_whole_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        small_run(shard=text)


def test_shards_of_other_settings_are_not_merged(tmp_path: Path) -> None:
    small_run(shard="1/2", out=tmp_path / "1")
    small_run(shard="2/2", out=tmp_path / "2", seed=1)
    with pytest.raises(UsageError, match="seed"):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")


# ---- Jobs that fail -------------------------------------------------------------------------------------------------


class Moody(nn.Sequential):
    """A network that does not take images with a value of 0.9 or more."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.max()) > 0.9:
            raise RuntimeError("too bright")
        return super().forward(x)


def dark(n: int = 20) -> Any:
    data = toy_data(n)
    data._images = (data._images // 2).astype(np.uint8)
    return data


def make(kind: type[nn.Sequential]) -> nn.Sequential:
    return kind(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_fail_say_why_and_the_rest_goes_on(workers: int, tmp_path: Path) -> None:
    given = {"noise": "agn=0.001,3", "normalize": "none", "workers": workers, "out": tmp_path / "run"}
    results = evaluate(make(Moody), dark(), **given)
    by_name = {(row.condition.name, row.condition.level): row for row in results.document.rows}
    assert {key: row.status for key, row in by_name.items()} == {
        ("clean", 0.0): "ok",
        ("agn", 0.001): "ok",
        ("agn", 3.0): "failed",
    }
    assert by_name["agn", 3.0].extra["reason"] == "RuntimeError: too bright"
    assert load_results(tmp_path / "run").document.rows == results.document.rows


def test_fail_fast_stops_at_the_first_row_that_fails() -> None:
    with pytest.raises(IncompleteError, match="too bright"):
        evaluate(make(Moody), dark(), noise="agn=3,0.001", normalize="none", fail_fast=True)


def test_a_condition_that_takes_too_long_fails(tmp_path: Path) -> None:
    results = evaluate(make(nn.Sequential), toy_data(20), noise="agn=1", normalize="none", timeout=1e-9)
    assert {row.status for row in results.document.rows} == {"failed"}
    assert "--timeout" in results.document.rows[0].extra["reason"]


class Deadly(nn.Sequential):
    """Ends the worker process that predicts with it, as the system does where memory runs out; at times only once."""

    marker = ""

    def forward(self, x: Tensor) -> Tensor:
        if multiprocessing.parent_process() is not None and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            os._exit(1)
        return super().forward(x)


def test_a_worker_that_dies_is_tried_again(tmp_path: Path) -> None:
    network = make(Deadly)
    network.marker = str(tmp_path / "died")
    results = evaluate(network, toy_data(20), noise="agn=1,2", normalize="half", workers=2)
    assert [row.status for row in results.document.rows] == ["ok"] * 3


def test_what_kills_its_worker_twice_has_failed() -> None:
    results = evaluate(make(Deadly), toy_data(20), noise="agn=1", normalize="half", workers=1)
    assert [row.status for row in results.document.rows] == ["failed"] * 2
    assert "died" in results.document.rows[0].extra["reason"]


# ---- Engines of others ----------------------------------------------------------------------------------------------


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="slurm"):
        small_run(engine="slrum")


def test_slurm_shares_work_out_over_an_array(reference: Results, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    results = small_run(engine="slurm:local", workers=2, out=tmp_path / "run")
    assert numbers(results) == numbers(reference)


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same(reference: Results) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        results = small_run(engine=f"ray:{cluster.address}")
    finally:
        cluster.shutdown()
    assert numbers(results) == numbers(reference)
