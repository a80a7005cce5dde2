"""Figures of RobustBench beside our own: read right, refused where they do not belong, and never taken for ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_ln.errors import InputError, TrustError
from robustbench_ln.metrics.mce import ALEXNET_ERROR, STANDARD
from robustbench_ln.reports import FORMATS, build
from robustbench_ln.reports.importing import read_imported
from tests.test_report import made_run, write

# RobustBench's order of corruptions in the file, which is not the field's.
ORDER = (
    "shot_noise", "motion_blur", "snow", "pixelate", "gaussian_noise", "defocus_blur", "brightness", "fog", "zoom_blur",
    "frost", "glass_blur", "impulse_noise", "contrast", "jpeg_compression", "elastic_transform",
)  # fmt: skip
ALEXNET_ACCURACY = {name: [1 - error for error in ALEXNET_ERROR[name]] for name in ORDER}
HALF = {name: [0.9, 0.8, 0.7, 0.6, 0.5] for name in ORDER}


def table(folder: Path, models: dict[str, dict[str, list[float]]], name: str = "unaggregated_results.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(next(iter(models.values())))
    lines = ["," + ",".join(name for name in names for _ in range(5))]
    lines.append("," + ",".join(str(severity) for _ in names for severity in range(1, 6)))
    lines += [
        f"{model}," + ",".join(repr(value) for name in names for value in rows[name]) for model, rows in models.items()
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def info(folder: Path, model: str, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": "A paper", "dataset": "imagenet", "clean_acc": "76.52", "corruptions_acc": "39.48", **values}
    (folder / f"{model}.json").write_text(json.dumps(content))
    return folder / f"{model}.json"


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    return tmp_path / "model_info" / "imagenet" / "corruptions"


def test_a_csv_of_cells_gives_the_mce_of_every_model(imagenet: Path) -> None:
    path = table(imagenet, {"AlexNet": ALEXNET_ACCURACY, "Half": HALF})
    summary = build([path])
    assert summary.sheet.normaliser == "alexnet"
    alexnet, half = summary.sheet.entries
    assert alexnet.scores.mce is not None
    assert alexnet.scores.mce.value == pytest.approx(1, abs=1e-12)
    assert half.scores.mce is not None
    assert half.scores.mce.value == pytest.approx(sum(1.5 / sum(ALEXNET_ERROR[name]) for name in STANDARD) / 15)
    assert half.table.errors["fog"] == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.5))
    assert (half.pixels, half.frost, half.qualifier, half.clean) == ("published", "original", "", None)
    assert "RobustBench" in half.origin


def test_a_model_file_adds_the_clean_error(imagenet: Path) -> None:
    cells = table(imagenet, {"Half": HALF})
    (entry,) = build([cells, info(imagenet, "Half", corruptions_acc="70.00")]).sheet.entries
    assert entry.clean is not None
    assert entry.clean.value == pytest.approx(0.2348)
    assert entry.scores.relative_mce is not None
    assert entry.scores.mce is not None


def test_a_model_file_alone_gives_its_means(imagenet: Path) -> None:
    summary = build([info(imagenet, "Standard_R50", corruptions_mce_2d="76.70")])
    (model,) = json.loads(FORMATS["json"](summary))["models"]
    assert model["mean_corruption_error"] == pytest.approx(0.6052)
    assert model["clean_error"] == pytest.approx(0.2348)
    assert (model["mce"], model["n_corruptions"], model["pixels"]) == (None, 15, "published")
    assert any("own AlexNet" in warning for warning in summary.warnings)


@pytest.mark.parametrize(("value", "error"), [("56.24", 0.4376), ("56.24%", 0.4376), (0.5538, 0.4462), (55.38, 0.4462)])
def test_percent_and_fractions_are_told_apart(imagenet: Path, value: object, error: float) -> None:
    (entry,) = build([info(imagenet, "AlexNet", clean_acc=value)]).sheet.entries
    assert entry.clean is not None
    assert entry.clean.value == pytest.approx(error)


def test_published_models_stand_beside_ours_and_are_ranked_apart(imagenet: Path, tmp_path: Path) -> None:
    made = made_run()
    models = [model.model_copy(update={"num_classes": 1000}) for model in made.document.models]
    made.document = made.document.model_copy(update={"models": models})
    mine = write(tmp_path / "run", made, image_size=[224, 224], frost="procedural")
    summary = build([mine, table(imagenet, {"Half": HALF})])
    assert [[entry.label for entry in entries] for _, entries in summary.sheet.ranks] == [["Half"], ["net"]]
    for name, render in FORMATS.items():
        text = render(summary)
        assert "Half" in text, name
        assert "RobustBench" in text, name


def test_a_published_model_can_be_the_normaliser(imagenet: Path) -> None:
    path = table(imagenet, {"AlexNet": ALEXNET_ACCURACY, "Half": HALF})
    summary = build([path], normaliser=f"{path}#Half")
    values = {entry.label: entry.scores.mce.value for entry in summary.sheet.entries if entry.scores.mce}
    assert values["Half"] == 1.0
    assert values["AlexNet"] > 1


def test_the_3d_corruptions_are_not_those_of_mce(imagenet: Path) -> None:
    path = table(imagenet, {"R50": {"near_focus": [0.6] * 5, "flash": [0.5] * 5}}, "unaggregated_results_3d.csv")
    (entry,) = build([path]).sheet.entries
    assert entry.suite == "imagenet-3dcc"
    assert entry.scores.mce is None
    assert entry.table.errors["flash"] == (0.5,) * 5
    with pytest.raises(TrustError, match="suites"):
        build([path, table(imagenet, {"R50": HALF})])


@pytest.mark.parametrize("what", ["classes", "size", "suite"])
def test_figures_of_other_data_are_refused(tmp_path: Path, imagenet: Path, what: str) -> None:
    made = made_run(suite="cifar10-c" if what == "suite" else "imagenet-c")
    classes = 10 if what == "classes" else 1000
    models = [model.model_copy(update={"num_classes": classes}) for model in made.document.models]
    made.document = made.document.model_copy(update={"models": models})
    mine = write(tmp_path / "run", made, image_size=[64, 64] if what == "size" else [224, 224])
    with pytest.raises(TrustError):
        build([mine, table(imagenet, {"Half": HALF})])


def test_two_data_sets_of_theirs_are_refused(tmp_path: Path) -> None:
    paths = [table(tmp_path / name, {"Half": HALF}) for name in ("cifar10", "cifar100")]
    with pytest.raises(TrustError, match="data"):
        build(paths)


def test_files_that_contradict_each_other_are_refused(imagenet: Path) -> None:
    cells = table(imagenet, {"Half": HALF})
    with pytest.raises(TrustError, match="contradict"):
        build([cells, info(imagenet, "Half", corruptions_acc="60.00")])
    again = table(imagenet / "later", {"Half": {**HALF, "fog": [0.1] * 5}})
    with pytest.raises(TrustError, match="different figures"):
        build([cells, again])


def test_a_csv_without_the_data_set_in_its_path_says_so(tmp_path: Path) -> None:
    summary = build([table(tmp_path / "somewhere", {"Half": HALF})], normaliser="alexnet")
    assert summary.sheet.entries[0].scores.mce is not None
    assert any("does not say" in warning for warning in summary.warnings)


def test_gaps_and_further_columns_are_read(imagenet: Path) -> None:
    path = table(imagenet, {"Half": HALF})
    lines = path.read_text().splitlines()
    lines = [f"{line},{more}" for line, more in zip(lines, ("average", "", "0.7"), strict=True)]
    path.write_text("\n".join([*lines[:2], ",,,", lines[2].replace("0.5", "", 1)]) + "\n")
    (entry,) = build([path]).sheet.entries
    assert entry.scores.mce is None
    assert entry.table.errors["shot_noise"][4] is None
    assert len(entry.scores.complete) == 14


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "0 lines"),
        ("model,mode\na,b\nc,d\n", "mode"),
        (",fog\n,1\nm,93.2\n", "93.2"),
        (",fog\n,1\nm,nan\n", "nan"),
        (",fog\n,1\nm,x\n", "x"),
        (",fog\n,1\n,\n", "no line"),
        (",fog,fog\n,1,1\nm,.1,.2\n", "fog"),
    ],
)
def test_what_is_no_table_is_refused_with_the_place(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "imagenet.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        build([path])
    assert found in f"{caught.value.what} {caught.value.found}"


@pytest.mark.parametrize(
    "changes", [{"clean_acc": "n/a"}, {"clean_acc": True}, {"clean_acc": 560}, {"corruptions_acc": ""}]
)
def test_a_model_file_without_figures_is_refused(imagenet: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        build([info(imagenet, "M", **changes)])


def test_other_json_is_left_to_the_reader_of_results(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"clean_acc": 1, "schema_version": 1}')
    assert read_imported(path) is None
    assert read_imported(tmp_path) is None
    with pytest.raises(InputError):
        build([path])


def test_hostile_names_of_theirs_stay_inert(imagenet: Path) -> None:
    path = table(imagenet, {"'<script>alert(1)</script>\x1b[2J|=1'": HALF})
    summary = build([path])
    for name, render in FORMATS.items():
        text = render(summary)
        assert "\x1b" not in text, name
        assert name == "html" or "alert" in text
    assert "<script>alert" not in FORMATS["html"](summary)
