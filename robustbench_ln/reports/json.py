"""The report as one strict JSON document: fractions, null for what cannot be said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.reports.sheet import Entry, mean_words
from robustbench_ln.reports.summary import Point, Summary

SCHEMA_VERSION = 1


def render(summary: Summary) -> str:
    """The summary as JSON, a model and mode an entry of ``models``; pure ASCII, names as they are."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": [_model(summary, entry) for entry in summary.sheet.entries],
        "warnings": list(summary.warnings),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _model(summary: Summary, entry: Entry) -> dict[str, Any]:
    scores = entry.scores
    mine = [curve for curve in summary.curves if (curve.model, curve.mode) == (entry.model, entry.mode)]
    return {
        "model": entry.model,
        "mode": entry.mode,
        "clean_error": _value(entry.clean),
        "mce": _value(scores.mce),
        "relative_mce": _value(scores.relative_mce),
        "mean_corruption_error": _value(entry.mean),
        "normaliser": summary.sheet.normaliser,
        "n_corruptions": entry.n_corruptions,
        "pixels": entry.pixels,
        "frost": entry.frost,
        "ce": _values(scores.ce),
        "error": {name: list(row) for name, row in entry.table.errors.items()},
        "suite": entry.suite or None,
        "mce_label": f"mCE{entry.qualifier}",
        "mean_label": f"{mean_words(entry) or 'mean corruption error, unnormalised'}{entry.qualifier}",
        "relative_ce": _values(scores.relative_ce),
        "groups": _values(scores.groups),
        "ci95": {
            "clean_error": _interval(entry.clean),
            "mce": _interval(scores.mce),
            "relative_mce": _interval(scores.relative_mce),
            "mean_corruption_error": _interval(scores.mean_error),
            "ce": {name: _interval(one) for name, one in scores.ce.items()},
            "relative_ce": {name: _interval(one) for name, one in scores.relative_ce.items()},
            "groups": {name: _interval(one) for name, one in scores.groups.items()},
        },
        "noise": [
            {"name": c.name, "range": c.range, "area": c.area, "points": [_point(point) for point in c.points]}
            for c in mine
        ],
        "origin": entry.origin or None,
    }


def _value(one: Estimate | None) -> float | None:
    return None if one is None else one.value


def _values(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: one.value for name, one in estimates.items()}


def _interval(one: Estimate | None) -> list[float] | None:
    return None if one is None or one.low is None or one.high is None else [one.low, one.high]


def _point(point: Point) -> dict[str, Any]:
    return {"sigma": point.level, "accuracy": point.accuracy, "ci95": [point.low, point.high]}
