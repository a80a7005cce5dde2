"""Run folders with outcomes that a test decides, image by image, written as `lnbench eval` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_ln.results import ResultsDocument, RunInfo, dump_document
from robustbench_ln.results.document import data_to_document, model_to_document, row_to_document
from robustbench_ln.types import N_BINS, Condition, Counts, DataInfo, ModelInfo, ResultRow

CLEAN = Condition()
RUN = RunInfo(
    lnbench_version="0", created="2026-01-01T00:00:00+00:00", command="", seed=0, limit=None, precision="fp32",
    torch="2", device="cpu", threads=1, batch_size=128, order_sha256="order", warnings=[],
)  # fmt: skip
MODEL = ModelInfo("net@1", "net.pt", "ab", "resnet20", "bn", None, None, (0.5,) * 3, (0.5,) * 3, "none", 10)
DATA = DataInfo("demo", "demo", "cd", 0, 10, image_size=(32, 32))

Outcomes = Mapping[Condition, np.ndarray]


def hits(n: int, right: int, *, lost: int = 0, gained: int = 0) -> np.ndarray:
    """(n,) outcomes: `right` of them right, then the first `lost` of those wrong and `gained` of the others right."""
    made = np.arange(n) < right
    made[:lost] = False
    made[right : right + gained] = True
    return made


def write_run(
    folder: Path,
    outcomes: Outcomes | Mapping[tuple[str, str], Outcomes],
    *,
    predictions: bool = True,
    run: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    row: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a run folder.

    Args:
        folder: made here.
        outcomes: condition to (n,) hits, of ``net@1`` under ``bn``; or (model id, mode) to such a mapping.
        predictions: keep them.
        run: other values of the run's facts.
        data: of the data set's.
        row: of every row's.
        seed: of the confidences.
    """
    first = next(iter(outcomes.values()))
    whole = {("net@1", "bn"): outcomes} if isinstance(first, np.ndarray) else outcomes
    n = len(next(iter(next(iter(whole.values())).values())))
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {"indices": np.arange(n), "labels": np.zeros(n, np.int64)}
    rows = []
    for (model, mode), cells in whole.items():
        for condition, right in cells.items():
            confidence = generator.uniform(0.5, 1, n).astype(np.float32)
            bins = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
            sums = (np.bincount(bins, weights=w, minlength=N_BINS) for w in (np.ones(n), right, confidence))
            bin_n, bin_correct, bin_confidence = (part.tolist() for part in sums)
            counts = Counts(
                n, int(right.sum()), None, 0.5 * n, 0.1 * n,
                tuple(map(int, bin_n)), tuple(map(int, bin_correct)), tuple(bin_confidence),
            )  # fmt: skip
            key = f"key{len(rows)}"
            extra = {"predictions": key} if predictions else {}
            values = {"fingerprint": f"pixels of {condition}", "images": None, "seconds": 0.1, "extra": extra}
            rows.append(ResultRow(model, mode, condition, counts, **{**values, **(row or {})}))
            arrays[f"{key}/predicted"] = np.where(right, 0, 1).astype(np.int32)
            arrays[f"{key}/confidence"] = confidence
    document = ResultsDocument(
        schema_version=1,
        run=RUN.model_copy(update=dict(run or {})),
        models=[model_to_document(replace(MODEL, id=model)) for model in dict.fromkeys(model for model, _ in whole)],
        data=data_to_document(replace(DATA, n=n, **(data or {}))),
        predictions="predictions.npz" if predictions else None,
        rows=[row_to_document(one) for one in rows],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(dump_document(document), encoding="utf-8")
    if predictions:
        np.savez_compressed(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    return folder
