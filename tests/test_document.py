"""The results document: what goes in comes out, and what does not fit is refused with the place named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import robustbench_ln.results.document as module
from robustbench_ln.errors import InputError
from robustbench_ln.results.document import (
    ResultsDocument,
    data_from_document,
    data_to_document,
    dump_document,
    json_schema,
    load_document,
    model_from_document,
    model_to_document,
    parse_document,
    row_from_document,
    row_to_document,
)
from robustbench_ln.types import Condition, Counts, DataInfo, ModelInfo, ResultRow

# The example of the interface contract, filled in: what another tool may write, without our extra keys.
CONTRACT = """
{"schema_version": 1,
 "run": {"lnbench_version": "", "created": "", "command": "", "seed": 0, "limit": null, "precision": "fp32", "torch": "", "device": "", "threads": 1,
         "batch_size": 128, "order_sha256": "", "warnings": []},
 "models": [{"id": "m", "source": "", "sha256": "", "arch": "", "norm": "bn", "n_groups": null, "group_size": null, "mean": [], "std": [], "preprocessing": ""}],
 "data": {"id": "", "source": "", "sha256": "", "n": 10000, "classes": 10, "pixels": "regenerated", "frost": null},
 "predictions": "predictions.npz",
 "rows": [{"model": "m", "mode": "bn", "status": "ok", "fingerprint": "",
           "condition": {"kind": "noise", "name": "agn", "level": 0.25, "range": "clip", "suite": null, "repeat": 0},
           "n": 10000, "correct": 8123, "accuracy": 0.8123, "ci95": [0.8045, 0.8198],
           "top5": null, "nll": 0.61, "ece": 0.04, "brier": 0.28, "seconds": 3.2}]}
"""  # noqa: E501

COUNTS = Counts(10, 7, 9, 4.2, 2.1, (0,) * 13 + (4, 6), (0,) * 13 + (2, 5), (0.0,) * 13 + (3.6, 5.8))
MODEL = ModelInfo("m", "m.pt", "ab", "resnet20", "ln", 8, 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "probe", 10)
DATA = DataInfo("demo", "demo", "cd", 10, 10, image_size=(32, 32))


def row(**changes: Any) -> ResultRow:
    values = {
        "model": "m", "mode": "ln-batch", "condition": Condition("agn", 0.5, range="rescale", repeat=1),
        "counts": COUNTS, "fingerprint": "ff", "images": 16, "seconds": 1.5, "extra": {"ranges": [[0.0, 1.0]]},
    }  # fmt: skip
    return ResultRow(**{**values, **changes})


def document(*rows: ResultRow) -> ResultsDocument:
    run = parse_document(CONTRACT).run
    return ResultsDocument(
        schema_version=1,
        run=run,
        models=[model_to_document(MODEL)],
        data=data_to_document(DATA),
        predictions=None,
        rows=[row_to_document(one) for one in rows],
    )


def changed(path: str, value: Any) -> str:
    """The contract's example with one value replaced; `path` as ``rows.0.n``."""
    raw = json.loads(CONTRACT)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = raw
    for part in parents:
        target = target[part]
    target[last] = value
    return json.dumps(raw)


def test_records_survive_the_way_into_the_document_and_back() -> None:
    read = parse_document(dump_document(document(row(), row(condition=Condition()))))
    assert [row_from_document(entry) for entry in read.rows] == [row(), row(condition=Condition())]
    assert model_from_document(read.models[0]) == MODEL
    assert data_from_document(read.data) == DATA


def test_ratios_are_derived_from_the_counts() -> None:
    entry = row_to_document(row())
    assert entry.accuracy == 0.7
    assert entry.ci95 == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert (entry.top5, entry.nll, entry.brier) == pytest.approx((0.9, 0.42, 0.21))
    assert entry.ece == pytest.approx((abs(2 - 3.6) + abs(5 - 5.8)) / 10)


def test_a_failed_row_has_no_ratios_and_survives() -> None:
    failed = row(counts=Counts(0, 0, None, 0.0, 0.0), status="failed", extra={"error": "out of memory"})
    text = dump_document(document(failed))
    entry = json.loads(text)["rows"][0]
    assert [entry[key] for key in ("accuracy", "ci95", "top5", "nll", "ece", "brier")] == [None] * 6
    assert row_from_document(parse_document(text).rows[0]) == failed


def test_the_same_document_gives_the_same_text_with_a_line_a_row() -> None:
    made = document(row(), row(condition=Condition()))
    text = dump_document(made)
    assert text == dump_document(parse_document(text))
    assert sum('"fingerprint"' in line for line in text.splitlines()) == 2
    assert json.loads(dump_document(document()))["rows"] == []


def test_nan_is_never_written() -> None:
    text = dump_document(document(row(extra={"x": float("nan"), "y": [float("inf")]})))
    assert parse_document(text).rows[0].extra == {"x": None, "y": [None]}
    with pytest.raises(ValueError, match="nll"):
        row_to_document(row(counts=replace(COUNTS, nll_sum=float("nan"))))


def test_the_contracts_example_is_read_and_unknown_keys_are_kept() -> None:
    read = parse_document(changed("run.hostname", "node7"))
    assert read.rows[0].counts is None
    assert json.loads(dump_document(read))["run"]["hostname"] == "node7"
    with pytest.raises(InputError, match="no counts"):
        row_from_document(read.rows[0])


def test_the_shipped_schema_is_the_one_of_the_code() -> None:
    shipped = Path(module.__file__).with_name("results-schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == json_schema()


@pytest.mark.parametrize("text", [CONTRACT, dump_document(document(row(), row(condition=Condition())))])
def test_documents_satisfy_the_schema(text: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(text))


@pytest.mark.parametrize("path", ["rows.0.n", "rows.0.condition.level", "run.seed", "models.0.norm", "schema_version"])
def test_the_schema_refuses_wrong_types(path: str) -> None:
    wrong = json.loads(changed(path, ["?"]))
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(wrong)


def test_a_run_folder_and_its_file_are_both_read(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(CONTRACT)
    assert load_document(tmp_path) == load_document(str(tmp_path / "results.json")) == parse_document(CONTRACT)


def test_a_newer_schema_is_refused_with_both_versions_named() -> None:
    with pytest.raises(InputError) as caught:
        parse_document('{"schema_version": 7, "anything": {}}')
    assert caught.value.exit_code == 3
    assert "7" in caught.value.found
    assert "1" in caught.value.found


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("rows.0.n", "10000", "rows.0.n"),
        ("rows.0.n", None, "rows.0.n"),
        ("rows.0.correct", 10001, "correct"),
        ("rows.0.correct", 8124, "accuracy"),
        ("rows.0.accuracy", 1.5, "rows.0.accuracy"),
        ("rows.0.accuracy", None, "status"),
        ("rows.0.ci95", [0.1, 0.2], "ci95"),
        ("rows.0.ci95", [0.8], "rows.0.ci95"),
        ("rows.0.status", "done", "rows.0.status"),
        ("rows.0.model", "other", "other"),
        ("rows.0.condition.kind", "corruption", "kind"),
        ("rows.0.condition.range", "wrap", "range"),
        ("data.pixels", "painted", "data.pixels"),
        ("data.classes", 0, "data.classes"),
        ("predictions", "../../etc/passwd", "predictions"),
        ("run", [], "run"),
        ("rows", {}, "rows"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place_named(path: str, value: Any, named: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_document(changed(path, value), name="main.json")
    assert "main.json" in caught.value.what
    assert named in caught.value.found
    assert caught.value.hint


@pytest.mark.parametrize("key", ["run", "models", "data", "predictions", "rows"])
def test_a_missing_key_is_refused(key: str) -> None:
    raw = json.loads(CONTRACT)
    del raw[key]
    with pytest.raises(InputError) as caught:
        parse_document(json.dumps(raw))
    assert key in caught.value.found


def test_the_same_cell_twice_is_refused() -> None:
    raw = json.loads(CONTRACT)
    raw["rows"] *= 2
    with pytest.raises(InputError) as caught:
        parse_document(json.dumps(raw))
    assert "repeats" in caught.value.found


def test_counts_that_contradict_the_row_are_refused() -> None:
    raw = json.loads(dump_document(document(row())))
    raw["rows"][0]["counts"]["correct"] = 6
    with pytest.raises(InputError) as caught:
        parse_document(json.dumps(raw))
    assert "6 of 10" in caught.value.found


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "12", '"results"', "<html></html>", CONTRACT[:300], "{}", "[" * 100_000,
        '{"schema_version": true}', '{"schema_version": "1"}', '{"schema_version": 0}', '{"schema_version": 1}',
        CONTRACT.replace("0.61", "NaN"), CONTRACT.replace("0.61", "1e999"),
        CONTRACT.replace('"warnings": []', '"warnings": [], "new": Infinity'), '{"schema_version": ' + "9" * 5000 + "}",
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_no_document_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_document(text)
    assert caught.value.found
    assert len(str(caught.value)) < 1000


def test_a_missing_folder_and_a_binary_file_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"\x80\x02\xff")
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError) as caught:
            load_document(path)
        assert caught.value.found
