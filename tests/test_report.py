"""`lnbench report`: the mCE sheet in every format, what may stand in one report, and hostile names."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from robustbench_ln.cli.app import main
from robustbench_ln.errors import InputError, TrustError, UsageError
from robustbench_ln.metrics.mce import ALEXNET_CLEAN_ERROR, ALEXNET_ERROR, SEVERITIES, STANDARD
from robustbench_ln.reports import FORMATS, Summary, build, terminal
from robustbench_ln.results.document import ResultsDocument, dump_document, row_to_document
from robustbench_ln.types import Condition, Counts, ResultRow
from tests.test_reports import Made, hostile

N = 400


def made_run(modes: dict[str, list[str]] | None = None, **changes: Any) -> Made:
    options = {"corruptions": (*STANDARD, "spatter"), "n": N, "suite": "imagenet-c", "data_id": "photos"}
    return Made(modes or {"net@1a2b3c4d": ["bn"]}, {"agn": [0, 1, 2]}, **{**options, **changes})


def write(folder: Path, made: Made, *, predictions: bool = True, **data: Any) -> Path:
    """A run folder with the document, its data entry changed, and every image's prediction."""
    folder.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {"indices": np.arange(0, 2 * N, 2)[:N], "labels": np.full(N, 3)}
    rows = []
    for number, row in enumerate(made.document.rows):
        if predictions and row.status == "ok":
            hits = made.known(row)
            arrays["labels"], arrays["indices"] = np.full(len(hits), 3), np.arange(0, 2 * len(hits), 2)
            arrays[f"k{number}/predicted"] = np.where(hits, 3, 5)
            arrays[f"k{number}/confidence"] = np.full(len(hits), 0.5, np.float32)
            row = row.model_copy(update={"extra": {"predictions": f"k{number}"}})
        rows.append(row)
    entry = made.document.data.model_copy(update={"image_size": [32, 32], **data})
    file = "predictions.npz" if predictions else None
    document = made.document.model_copy(update={"rows": rows, "data": entry, "predictions": file})
    (folder / "results.json").write_text(dump_document(document))
    if predictions:
        np.savez(folder / "predictions.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, three modes, all cells, with predictions."""
    made = made_run({"one@1a2b3c4d": ["bn", "dynbn-batch"], "two@5a6b7c8d": ["ln-batch"]}, warnings=("mind the gap",))
    return write(tmp_path_factory.mktemp("report") / "run", made)


@pytest.fixture(scope="module")
def summary(run: Path) -> Summary:
    return build([run])


def errors_of(made: Made, mode: str = "bn") -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in made.document.rows:
        if row.condition.kind == "corruption" and row.mode == mode:
            found.setdefault(row.condition.name, []).append((row.n - row.correct) / row.n)
    return found


# --- the numbers


def test_the_sheet_has_the_numbers_of_the_formulas(tmp_path: Path) -> None:
    made = made_run()
    (entry,) = build([write(tmp_path / "run", made)]).sheet.entries
    errors = errors_of(made)
    clean = next((r.n - r.correct) / r.n for r in made.document.rows if r.condition.kind == "clean")
    ce = {name: sum(errors[name]) / sum(ALEXNET_ERROR[name]) for name in STANDARD}
    relative = {
        name: (sum(errors[name]) - 5 * clean) / (sum(ALEXNET_ERROR[name]) - 5 * ALEXNET_CLEAN_ERROR)
        for name in STANDARD
    }
    assert {name: one.value for name, one in entry.scores.ce.items()} == pytest.approx(ce)
    assert entry.scores.mce is not None
    assert entry.scores.relative_mce is not None
    assert entry.mean is not None
    assert entry.scores.mce.value == pytest.approx(np.mean(list(ce.values())))
    assert entry.scores.relative_mce.value == pytest.approx(np.mean(list(relative.values())))
    assert entry.mean.value == pytest.approx(np.mean([errors[name] for name in STANDARD]))
    assert entry.clean is not None
    assert entry.clean.value == clean
    for one in (entry.scores.mce, entry.scores.relative_mce, entry.mean):
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high


def test_repeats_are_one_cell(tmp_path: Path) -> None:
    made = made_run(repeats=3, corruptions=STANDARD[:3])
    (entry,) = build([write(tmp_path / "run", made)]).sheet.entries
    rows = [r for r in made.document.rows if (r.condition.name, r.condition.level) == (STANDARD[0], 2)]
    assert len(rows) == 3
    assert entry.table.errors[STANDARD[0]][1] == pytest.approx(np.mean([(r.n - r.correct) / r.n for r in rows]))
    assert entry.scores.groups["noise"].low is not None


def test_a_results_file_that_is_its_own_normaliser_gives_one(run: Path) -> None:
    summary = build([run], normaliser=f"{run}#one/bn")
    values = {e.name: e.scores.mce.value for e in summary.sheet.entries if e.scores.mce}
    assert values["one, bn"] == 1.0
    assert values["two, ln-batch"] != 1.0


def test_a_normaliser_with_one_model_is_taken_as_the_network_comes(tmp_path: Path, run: Path) -> None:
    base = write(tmp_path / "base", made_run({"base@00000000": ["dynbn-batch", "bn"]}))
    assert build([run], normaliser=str(base)).sheet == replace_name(build([run], normaliser=f"{base}#base/bn"), base)


def replace_name(summary: Summary, base: Path) -> Any:
    return type(summary.sheet)(summary.sheet.entries, str(base), asked=True)


def test_cifar_has_no_normaliser_unless_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run", made_run(suite="cifar10-c"))
    plain = build([path])
    assert plain.sheet.normaliser == "none"
    assert plain.sheet.entries[0].scores.mce is None
    assert plain.sheet.entries[0].mean is not None
    asked = build([path], normaliser="alexnet")
    assert asked.sheet.entries[0].scores.mce is not None
    assert any("not comparable with published mCE" in warning for warning in asked.warnings)


def test_without_predictions_there_are_no_intervals_and_the_reader_is_told(tmp_path: Path) -> None:
    summary = build([write(tmp_path / "run", made_run(), predictions=False)])
    (entry,) = summary.sheet.entries
    assert entry.scores.mce is not None
    assert entry.scores.mce.low is None
    assert any("no intervals" in warning for warning in summary.warnings)


@pytest.mark.parametrize(
    ("pixels", "frost", "label"),
    [
        ("published", None, "mCE"),
        ("published", "original", "mCE"),
        ("regenerated", "original", "mCE (regenerated)"),
        ("regenerated", "procedural", "mCE (regenerated, own frost)"),
    ],
)
def test_every_format_labels_regenerated_pixels(tmp_path: Path, pixels: str, frost: str | None, label: str) -> None:
    summary = build([write(tmp_path / "run", made_run(), pixels=pixels, frost=frost)])
    (entry,) = summary.sheet.entries
    assert f"mCE{entry.qualifier}" == label
    for name in ("terminal", "markdown", "latex"):
        words = " ".join(FORMATS[name](summary).split())
        assert label in words
        assert ("(regenerated" in words) == ("(" in label)
    (model,) = json.loads(FORMATS["json"](summary))["models"]
    assert (model["pixels"], model["frost"], model["mce_label"]) == (pixels, frost, label)


def test_own_frost_is_said_only_where_frost_was_run(tmp_path: Path) -> None:
    path = write(tmp_path / "run", made_run(corruptions=STANDARD[:3]), frost="procedural")
    (entry,) = build([path]).sheet.entries
    assert (entry.frost, entry.qualifier) == (None, " (regenerated)")


def test_regenerated_and_published_figures_are_never_ranked_together(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", made_run({"mine@1a2b3c4d": ["bn"]}), pixels="regenerated")
    theirs = write(tmp_path / "theirs", made_run({"theirs@1a2b3c4d": ["bn"]}), pixels="published")
    summary = build([mine, theirs])
    assert [[e.label for e in entries] for _, entries in summary.sheet.ranks] == [["theirs"], ["mine"]]
    assert any("never ranked together" in warning for warning in summary.warnings)


def test_the_sheet_is_ranked_best_first(summary: Summary) -> None:
    ((_, entries),) = summary.sheet.ranks
    values = [entry.scores.mce.value for entry in entries if entry.scores.mce]
    assert len(values) == 3
    assert values == sorted(values)


# --- what is missing


def gap(made: Made, name: str = "snow", level: float = 3) -> Made:
    rows = [r for r in made.document.rows if (r.condition.name, r.condition.level) != (name, level)]
    made.document = made.document.model_copy(update={"rows": rows})
    return made


def test_missing_cells_withhold_mce_and_the_mean_says_over_what(tmp_path: Path) -> None:
    summary = build([write(tmp_path / "run", gap(made_run()))])
    (model,) = json.loads(FORMATS["json"](summary))["models"]
    assert model["mce"] is None
    assert model["n_corruptions"] == 14
    assert model["error"]["snow"][2] is None
    assert model["mean_corruption_error"] == pytest.approx(
        np.mean([row for name, row in model["error"].items() if name in STANDARD and name != "snow"])
    )
    for name in ("terminal", "markdown", "latex"):
        assert "mean over 14 of 15" in " ".join(FORMATS[name](summary).split())


# --- several inputs


def test_several_runs_stand_in_one_report(tmp_path: Path) -> None:
    one = write(tmp_path / "one", made_run({"one@1a2b3c4d": ["bn"]}))
    two = write(tmp_path / "two", made_run({"two@1a2b3c4d": ["bn"]}))
    alone, both = build([one]), build([one, two])
    assert [entry.label for entry in both.sheet.entries] == ["one", "two"]
    assert both.sheet.entries[0] == alone.sheet.entries[0]
    assert [source.path for source in both.sources] == [str(one), str(two)]
    for name in ("markdown", "html"):
        assert all(path.name in FORMATS[name](both) for path in (one, two))


def test_a_model_may_lie_in_two_folders(tmp_path: Path) -> None:
    whole = made_run()
    halves = [made_run(), made_run()]
    for half, keep in zip(halves, (STANDARD[:7], STANDARD[7:]), strict=True):
        rows = [r for r in half.document.rows if r.condition.kind != "corruption" or r.condition.name in keep]
        half.document = half.document.model_copy(update={"rows": rows})
    paths = [write(tmp_path / f"half{i}", half, frost=("procedural", None)[i]) for i, half in enumerate(halves)]
    (entry,) = build(paths).sheet.entries
    (expected,) = build([write(tmp_path / "whole", whole)]).sheet.entries
    assert entry.scores.mce == expected.scores.mce


MIXED: dict[str, Callable[[], tuple[Made, dict[str, Any]]]] = {
    "data": lambda: (made_run({"b@1a2b3c4d": ["bn"]}), {"sha256": "00" * 32}),
    "sizes": lambda: (made_run({"b@1a2b3c4d": ["bn"]}), {"image_size": [64, 64]}),
    "geometry": lambda: (made_run({"b@1a2b3c4d": ["bn"]}), {"geometry": "resize 256, crop 224"}),
    "suites": lambda: (made_run({"b@1a2b3c4d": ["bn"]}, suite="cifar10-c"), {}),
    "textures": lambda: (made_run({"b@1a2b3c4d": ["bn"]}), {"frost": "original", "frost_sha256": "00" * 32}),
    "numbers": lambda: (made_run(n=200), {}),
    "pixels": lambda: (made_run(), {"pixels": "published", "frost": "original", "frost_sha256": "11" * 32}),
}


@pytest.mark.parametrize("what", MIXED)
def test_mixed_inputs_are_refused_with_the_reason(tmp_path: Path, what: str) -> None:
    first = write(tmp_path / "first", made_run(), frost="original", frost_sha256="11" * 32)
    made, data = MIXED[what]()
    second = write(tmp_path / "second", made, **data)
    with pytest.raises(TrustError, match=what) as caught:
        build([first, second])
    assert caught.value.exit_code == 6
    assert caught.value.found
    build([first])
    build([second])


@pytest.mark.parametrize("what", ["data", "sizes", "suite"])
def test_a_normaliser_of_other_data_sizes_or_suites_is_refused(tmp_path: Path, run: Path, what: str) -> None:
    changes = {"data": {"sha256": "00" * 32}, "sizes": {"image_size": [64, 64]}}.get(what, {})
    other = write(tmp_path / "other", made_run(suite="cifar10-c" if what == "suite" else "imagenet-c"), **changes)
    with pytest.raises(TrustError, match=what):
        build([run], normaliser=str(other))


@pytest.mark.parametrize("name", ["alexnett", "{run}", "{run}#three", "{run}#one/ln-batch"])
def test_a_normaliser_that_is_none_is_refused(run: Path, name: str) -> None:
    with pytest.raises(UsageError, match="normaliser"):
        build([run], normaliser=name.format(run=run))


def test_a_normaliser_whose_file_is_missing_is_a_missing_file(run: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        build([run], normaliser="nowhere/results.json")


def test_two_suites_in_one_folder_need_a_choice(tmp_path: Path) -> None:
    a, b = made_run(suite="imagenet-c"), made_run(suite="own")
    rows = [*a.document.rows, *(r for r in b.document.rows if r.condition.kind == "corruption")]
    a.hits |= b.hits
    a.document = a.document.model_copy(update={"rows": rows})
    path = write(tmp_path / "run", a)
    with pytest.raises(TrustError, match="suites"):
        build([path])
    assert build([path], suite="own").sheet.entries[0].suite == "own"
    with pytest.raises(UsageError, match="cifar10-c"):
        build([path], suite="cifar10-c")


def test_what_a_file_does_not_say_is_no_difference(tmp_path: Path) -> None:
    one = write(tmp_path / "one", made_run({"one": ["bn"]}), geometry="resize 36, crop 32")
    two = write(tmp_path / "two", made_run({"two": ["bn"]}), sha256="", image_size=[0, 0])
    assert len(build([one, two]).sheet.entries) == 2
    other = write(tmp_path / "other", made_run({"other": ["bn"]}), sha256="", id="elsewhere")
    with pytest.raises(TrustError, match="data"):
        build([one, other])


def test_other_pixels_under_one_seed_are_told(tmp_path: Path) -> None:
    one, two = made_run({"one": ["bn"]}), made_run({"two": ["bn"]})
    rows = [row.model_copy(update={"fingerprint": "0" * 16}) for row in two.document.rows]
    two.document = two.document.model_copy(update={"rows": rows})
    summary = build([write(tmp_path / "one", one), write(tmp_path / "two", two)])
    assert any("other pixels" in warning for warning in summary.warnings)


def test_other_seeds_and_limits_are_told(tmp_path: Path) -> None:
    one, two = made_run({"one": ["bn"]}), made_run({"two": ["bn"]})
    two.document = two.document.model_copy(update={"run": two.document.run.model_copy(update={"seed": 7})})
    summary = build([write(tmp_path / "one", one), write(tmp_path / "two", two)])
    assert any("seed (0, 7)" in warning for warning in summary.warnings)
    assert not any("other pixels" in warning for warning in summary.warnings)


# --- formats


def unescaped(name: str, text: str) -> str:
    """What a reader of the format sees."""
    if name == "markdown":
        return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    if name == "latex":
        return text.replace(r"\_", "_").replace(r"\%", "%").replace("{[}", "[")
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_every_model_mode_and_noise(name: str, summary: Summary) -> None:
    text = unescaped(name, FORMATS[name](summary))
    for shown in ("one", "two", "bn", "dynbn-batch", "ln-batch", "agn", "clip", "glass_blur", "spatter"):
        assert shown in text
    assert name == "csv" or "mind the gap" in text


@pytest.mark.parametrize("name", ["terminal", "markdown", "latex"])
def test_formats_to_read_show_the_same_numbers(name: str, summary: Summary) -> None:
    text = unescaped(name, FORMATS[name](summary))
    for entry in summary.sheet.entries:
        every = [entry.clean, entry.mean, entry.scores.mce, entry.scores.relative_mce, *entry.scores.ce.values()]
        for one in every:
            assert one is not None
            assert f"{100 * one.value:.2f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" in text  # type: ignore[operator]
    assert "AlexNet" in text
    assert "unnormalised" in text


@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_terminal_keeps_to_its_width(summary: Summary, width: int) -> None:
    assert max(map(len, terminal.render(summary, width=width).splitlines())) <= width


def test_the_terminal_falls_back_to_ascii(summary: Summary) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    terminal.show(summary, Console(file=stream, width=80))
    stream.flush()
    assert b"mCE (regenerated)" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_json_is_the_contract(summary: Summary) -> None:
    document = json.loads(FORMATS["json"](summary), parse_constant=lambda text: pytest.fail(text))
    assert document["schema_version"] == 1
    assert document["warnings"] == list(summary.warnings)
    keys = {
        "model", "mode", "clean_error", "mce", "relative_mce", "mean_corruption_error", "normaliser", "n_corruptions",
        "pixels", "frost", "ce", "error",
    }  # fmt: skip
    for model, entry in zip(document["models"], summary.sheet.entries, strict=True):
        assert keys <= model.keys()
        assert (model["model"], model["mode"]) == (entry.model, entry.mode)
        assert model["normaliser"] == "alexnet"
        assert model["n_corruptions"] == 15
        assert list(model["ce"]) == list(STANDARD)
        assert all(len(row) == len(SEVERITIES) for row in model["error"].values())
        assert model["mce"] == np.mean([sum(model["error"][n]) / sum(ALEXNET_ERROR[n]) for n in STANDARD])
        low, high = model["ci95"]["mce"]
        assert low < model["mce"] < high


def test_csv_has_a_line_a_model_and_mode_and_the_numbers_of_the_json(summary: Summary) -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](summary))))
    models = json.loads(FORMATS["json"](summary))["models"]
    for line, model in zip(lines, models, strict=True):
        for name in ("mce", "relative_mce", "mean_corruption_error", "clean_error"):
            assert float(line[name]) == model[name]
            assert [float(line[f"{name}_low"]), float(line[f"{name}_high"])] == model["ci95"][name]
        assert float(line["ce_fog"]) == model["ce"]["fog"]
        assert [float(line[f"error_fog_{s}"]) for s in SEVERITIES] == model["error"]["fog"]
        assert float(line["area_agn_clip"]) == model["noise"][0]["area"]


def test_markdown_tables_have_cells_for_every_column(summary: Summary) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", FORMATS["markdown"](summary), flags=re.MULTILINE)
    assert len(blocks) == 1 + 1 + 1 + 1 + 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_latex_environments_and_braces_are_closed(summary: Summary) -> None:
    text = FORMATS["latex"](summary)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 7
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_a_report_without_corruptions_is_one_too(tmp_path: Path) -> None:
    summary = build([write(tmp_path / "run", made_run(corruptions=()))])
    for name, render in FORMATS.items():
        assert "agn" in render(summary), name
    (model,) = json.loads(FORMATS["json"](summary))["models"]
    assert (model["mce"], model["n_corruptions"], model["ce"], model["mean_corruption_error"]) == (None, 0, {}, None)


# --- hostile names

# What would act in each format, were a name put in as it is.
ACTS = {
    "terminal": r"[\x00-\x09\x0b-\x1f\x7f\u202e]",
    "markdown": r"(?<!\\)<|\]\(|^=|(?<!\\)\$",
    "latex": r"(?<!\\)[$&#^~]|<|\\frac|\\bad|^\[",
    "csv": r"(?:^|,)\"?[=+@-]",
    "json": r"[^\x0a\x20-\x7e]",
    "html": r"<script>\\|[\x00-\x09\x0b-\x1f]",
}


ACTING = {  # each pattern finds what it is for
    "terminal": "\x1b[31m", "markdown": "[a](b)", "latex": "5 & 6", "csv": "a,=1", "json": "\x1b",
    "html": "<script>\\u202e",
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile_summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return build([write(tmp_path_factory.mktemp("hostile") / "run", hostile())], normaliser="none")


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_names_stay_inert_in_every_format(name: str, hostile_summary: Summary) -> None:
    text = FORMATS[name](hostile_summary)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") for char in text.replace("\n", ""))
    body = re.sub(r"\\begin\{.*\}|\\caption|\}\{[lr]+\}| & | [\\]{2}", "", text) if name == "latex" else text
    acting = re.compile(ACTS[name], flags=re.MULTILINE)
    lines = [line for line in body.splitlines() if not (name == "latex" and line.startswith("%"))]
    assert not [line for line in lines if acting.search(line)]
    assert "evil" in text
    assert acting.search(ACTING[name])


def test_hostile_names_cannot_break_a_markdown_table(hostile_summary: Summary) -> None:
    for block in re.findall(r"(?:^\|.*\|\n)+", FORMATS["markdown"](hostile_summary), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_json_keeps_hostile_names_as_they_are(hostile_summary: Summary) -> None:
    models = json.loads(FORMATS["json"](hostile_summary))["models"]
    assert {model["mode"] for model in models} == {"=cmd|' /C calc'!A0", "<script>\u202e|%", "中文"}


# --- the command


def lnbench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[Any, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["lnbench", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return caught.value.code, out, err


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str, str]]:
    return lambda *arguments: lnbench(capsys, monkeypatch, "report", *map(str, arguments))


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_prints_every_format(name: str, run: Path, report: Callable[..., Any]) -> None:
    code, out, err = report(run, "--format", name)
    assert code == 0
    assert "glass" in out
    assert "mind the gap" in (out if name == "terminal" else err)


def test_the_command_writes_a_file(run: Path, report: Callable[..., Any], tmp_path: Path) -> None:
    code, out, err = report(run, "--format", "json", "--out", tmp_path / "sub" / "report.json")
    assert (code, out) == (0, "")
    assert str(tmp_path / "sub" / "report.json") in err
    assert json.loads((tmp_path / "sub" / "report.json").read_text())["models"]


def test_mce_that_is_asked_for_and_missing_is_exit_4_with_the_report(
    tmp_path: Path, report: Callable[..., Any]
) -> None:
    path = write(tmp_path / "run", gap(made_run()))
    code, out, err = report(path, "--format", "json", "--normaliser", "alexnet")
    assert code == 4
    assert json.loads(out)["models"][0]["mce"] is None
    assert "14 of 15" in err
    assert report(path, "--format", "json")[0] == 0


def test_failed_rows_are_exit_4(tmp_path: Path, report: Callable[..., Any]) -> None:
    made = made_run()
    failed = ResultRow(
        "net@1a2b3c4d", "bn", Condition("apn", 1.0), Counts(0, 0, None, 0.0, 0.0), "", None, 0.0, "failed"
    )
    made.document = made.document.model_copy(update={"rows": [*made.document.rows, row_to_document(failed)]})
    code, out, err = report(write(tmp_path / "run", made))
    assert code == 4
    assert "bn" in out
    assert "1 of " in err


def test_bad_requests_and_files_have_their_codes(run: Path, tmp_path: Path, report: Callable[..., Any]) -> None:
    assert report(run, "--format", "pdf")[0] == 2
    assert report(run, "--out", tmp_path)[0] == 2
    assert report(tmp_path / "nowhere")[0] == 3
    (tmp_path / "half.json").write_text((run / "results.json").read_text()[:500])
    assert report(tmp_path / "half.json")[0] == 3
    newer = json.loads((run / "results.json").read_text()) | {"schema_version": 2}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    code, out, err = report(tmp_path / "newer.json")
    assert (code, out) == (3, "")
    assert "2" in err
    other = write(tmp_path / "other", made_run({"b": ["bn"]}), sha256="00" * 32)
    code, out, err = report(run, other)
    assert (code, out) == (6, "")
    assert err.splitlines()[-3].startswith("error: the inputs have different data")


def test_edited_counts_are_noticed(run: Path, tmp_path: Path) -> None:
    edited = json.loads((run / "results.json").read_text())
    edited["rows"][3]["correct"] += 1
    (tmp_path / "results.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match="schema"):
        build([tmp_path])


def test_a_report_needs_no_torch(run: Path) -> None:
    code = (
        "import sys\n"
        "from robustbench_ln.cli.app import main\n"
        "_, run, *names = sys.argv\n"
        "for name in names:\n"
        "    sys.argv = ['lnbench', 'report', run, '--format', name]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'matplotlib', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run), *FORMATS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_documents_are_not_changed_by_a_report(run: Path) -> None:
    before = (run / "results.json").read_bytes()
    build([run])
    assert (run / "results.json").read_bytes() == before
    assert ResultsDocument.model_validate_json(before)
