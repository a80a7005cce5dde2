"""Recipes of the paper: read strictly, its numbers typed right, and a run that trains, measures, judges and resumes."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_ln import reproduce
from robustbench_ln.cli.app import app
from robustbench_ln.corruptions import list_presets
from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.metrics.mce import Estimate
from robustbench_ln.reproducing import list_scales, list_targets, recipes
from robustbench_ln.reproducing.drawings import DRAWINGS
from robustbench_ln.reproducing.measuring import FAILS, HOLDS, OPEN, word_for
from robustbench_ln.reproducing.networks import Network, read_given, with_data
from robustbench_ln.reproducing.recipes import (
    NOISE_FORMS,
    Measure,
    grids_of,
    load_recipe,
    load_scale,
    preset_of,
)
from robustbench_ln.training import train
from tests.conftest import toy_arrays

RECIPE_FILES = Path(recipes.__file__).parent / "recipes"
RECIPES = {name: load_recipe(name) for name in list_targets()}

# Table 1 of Yin, Scholte & Bohté (ICANN 2021), row by row as printed, in %; read here against the recipe's columns.
TABLE_1 = """
BatchNorm       88.83 91.74 88.17
Dyn. BatchNorm  87.64 89.34 85.34
LN-Single       65.88 32.33 88.39
LN-Batch        92.07 91.15 89.34
LN-Voting       95.29 91.65 89.58
"""
MODES = {
    "BatchNorm": "bn", "Dyn. BatchNorm": "dynbn-batch", "LN-Single": "ln-single", "LN-Batch": "ln-batch",
    "LN-Voting": "ln-voting",
}  # fmt: skip


def test_the_targets_are_those_of_the_help() -> None:
    named = ["table1", "fig1", "fig3", "fig5", "fig6", "fig7a", "fig8", "cost", "groups", "imagenet"]
    assert list_targets() == named
    command = next(one for one in app.registered_commands if one.name == "reproduce")
    help_text = str(inspect.signature(command.callback).parameters["target"].annotation)
    assert all(name in help_text for name in named)


def test_table_1_is_typed_as_printed() -> None:
    paper = RECIPES["table1"].paper
    found = 0
    for line in TABLE_1.strip().splitlines():
        name, *values = re.split(r"\s{2,}|(?<=\d) (?=\d)", line)
        for setting, value in zip(("cifar10-vgg", "cifar10-resnet", "cars"), values, strict=True):
            assert paper[setting][Measure()][MODES[name]] == pytest.approx(float(value) / 100)
            found += 1
    assert found == sum(len(values) for measures in paper.values() for values in measures.values()) == 15


def test_the_numbers_of_the_text_are_typed_as_printed() -> None:
    # Section 4: at AGN sigma 1 BatchNorm has 29 %, LN-Voting 83 %.
    assert RECIPES["fig6"].paper == {"cifar10-vgg": {Measure("agn", 1.0): {"bn": 0.29, "ln-voting": 0.83}}}
    # VGG16-BN: 68 % with BatchNorm, 67 % with LocalNorm; mCE 0.8597, 0.8036 (LN-Batch), 0.7045 (LN-Voting).
    assert RECIPES["imagenet"].paper == {
        "imagenet": {
            Measure(): {"bn": 0.68, "ln-batch": 0.67},
            Measure("mce"): {"bn": 0.8597, "ln-batch": 0.8036, "ln-voting": 0.7045},
        }
    }
    assert RECIPES["groups"].best == (4, 8)
    assert RECIPES["cost"].slower == (1.10, 1.20)


@pytest.mark.parametrize("setting", ["cifar10-vgg", "cifar10-resnet", "cars"])
def test_claims_about_table_1_hold_in_the_papers_own_numbers(setting: str) -> None:
    numbers = RECIPES["table1"].paper[setting][Measure()]
    for claim in RECIPES["table1"].claims:
        assert numbers[claim.left] > numbers[claim.right], str(claim)


@pytest.mark.parametrize("name", list_targets())
def test_a_recipe_can_be_drawn_and_has_its_noises_in_both_forms(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.drawing in DRAWINGS
    assert recipe.about
    assert recipe.unmatched
    for form in NOISE_FORMS if recipe.noises else ():
        assert preset_of(recipe, form) in list_presets()
        grids, _ = grids_of(preset_of(recipe, form), None)
        kinds = {claim.measure.name for claim in recipe.claims} - {"clean", "corruptions"}
        assert all(any(noise.startswith(kind) for noise in grids) for kind in kinds)


@pytest.mark.parametrize("name", list_scales())
def test_a_scale_says_only_what_a_training_takes(name: str) -> None:
    taken = set(inspect.signature(train).parameters)
    for setting in load_scale(name).settings:
        assert setting.data or setting.needs
        for role, how in setting.training.items():
            assert set(how) - {"take"} <= taken
            if role == "groups" and how:
                assert all(how["batch_size"] % size == 0 for size in setting.sizes)


@pytest.mark.parametrize(
    ("written", "mistaken", "words"),
    [
        ("drawing: columns", "drawin: columns", "unknown key"),
        ("ln-voting: 95.29", "ln-votin: 95.29", "no evaluation mode"),
        ("bn: 88.83", "bn: 188.83", "expected a number from 0 to 100"),
        ("bn: 88.83", "bn: many", "expected float"),
        ("  cifar10-vgg:", "  cifar11-vgg:", "no setting of the paper"),
        ("- bn > dynbn-batch", "- bn beats dynbn-batch", "not a claim"),
        ("- bn > dynbn-batch", "- native > dynbn-batch", "not measured"),
        ("- bn > dynbn-batch", "- bn > dynbn-batch under rain", "none of clean"),
        ("modes: [bn,", "modes: [bm,", "unknown name"),
        ("modes: [bn, dynbn-batch, ln-single,", "modes: [bn, native,", "not measured"),
        ("networks: [bn, ln]", "networks: bn", "expected list"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_line(tmp_path: Path, written: str, mistaken: str, words: str) -> None:
    text = (RECIPE_FILES / "table1.yaml").read_text(encoding="utf-8")
    assert text.count(written) == 1
    # A claim about a mode that is no longer measured is a mistake of the claim.
    where = "- ln-batch > ln-single" if "native," in mistaken else written
    line = text[: text.index(where)].count("\n") + 1
    (tmp_path / "table1.yaml").write_text(text.replace(written, mistaken), encoding="utf-8")
    with pytest.raises(InputError, match=rf"table1.yaml, line {line}: .*{words}"):
        load_recipe("table1", tmp_path)


def test_a_mode_that_no_network_of_the_recipe_runs_is_named(tmp_path: Path) -> None:
    text = (RECIPE_FILES / "table1.yaml").read_text(encoding="utf-8")
    (tmp_path / "table1.yaml").write_text(text.replace("networks: [bn, ln]", "networks: [ln]"), encoding="utf-8")
    with pytest.raises(InputError, match="no network can run bn"):
        load_recipe("table1", tmp_path)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match="fig6"):
        load_recipe("fig66")
    with pytest.raises(UsageError, match="small"):
        load_scale("smal")
    with pytest.raises(UsageError, match="released"):
        preset_of(RECIPES["fig6"], "relased")


def test_thinned_grids_keep_their_ends_and_the_level_the_text_speaks_of() -> None:
    whole, policy = grids_of("paper-fig6", None)
    assert policy == "rescale"
    for levels in (3, 5, 10):
        thin, _ = grids_of("paper-fig6", levels)
        for noise, sigmas in thin.items():
            assert len(sigmas) == min(levels, len(whole[noise]))
            assert set(sigmas) <= set(whole[noise])
            assert (sigmas[0], sigmas[-1]) == (whole[noise][0], whole[noise][-1])
        assert 1.0 in thin["agn-released"]


@pytest.mark.parametrize(
    ("relation", "low", "high", "word"),
    [
        (">", 0.01, 0.03, HOLDS),
        (">", -0.01, 0.03, OPEN),
        (">", -0.03, -0.01, FAILS),
        (">", 0.0, 0.0, FAILS),
        (">=", -0.005, 0.03, HOLDS),
        (">=", -0.02, 0.03, OPEN),
        (">=", -0.005, -0.001, FAILS),
        (">=", 0.0, 0.0, HOLDS),
    ],
)
def test_an_order_holds_only_beyond_doubt(relation: str, low: float, high: float, word: str) -> None:
    assert word_for(relation, Estimate((low + high) / 2, low, high)) == word


def npz(path: Path, n: int, seed: int) -> str:
    images, labels = toy_arrays(n, size=32, seed=seed)
    np.savez(path, images=images, labels=labels)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    return {"data": npz(folder / "test.npz", 160, 0), "train_data": npz(folder / "train.npz", 288, 1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: dict[str, str]) -> tuple[Path, Any]:
    """Trains a BatchNorm and a LocalNorm network, and measures with both."""
    out = tmp_path_factory.mktemp("reproduced") / "out"
    return out, reproduce("fig5,table1,fig6", scale="smoke", out=out, threads=1, device="cpu", **images)


def test_pages_figures_and_data_are_written(run: tuple[Path, Any]) -> None:
    out, _ = run
    document = json.loads((out / "reproduced.json").read_text())
    assert [one["target"] for one in document["targets"]] == ["fig5", "table1", "fig6"]
    assert not document["left_out"]
    for name in ("fig5", "table1", "fig6"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        page = (out / f"{name}.html").read_text(encoding="utf-8")
        assert "data:image/png;base64," in page
        assert "http" not in page.replace("http-equiv", "")
        assert RECIPES[name].title in (out / f"{name}.md").read_text(encoding="utf-8")
    index = (out / "index.md").read_text(encoding="utf-8")
    assert "table1.md" in index
    numbers = document["targets"][1]["numbers"]
    assert {one["mode"] for one in numbers} == set(RECIPES["table1"].modes)
    for one in numbers:
        assert one["difference"] == pytest.approx(one["ours"] - one["paper"])
        assert one["ci95"][0] <= one["ours"] <= one["ci95"][1]
    claims = document["targets"][2]["claims"]
    assert len(claims) == len(RECIPES["fig6"].claims)
    assert {one["verdict"] for one in claims} <= {HOLDS, FAILS, OPEN}


def test_the_area_of_a_claim_is_that_of_the_curve(run: tuple[Path, Any]) -> None:
    from robustbench_ln import load_results
    from robustbench_ln.reports import summarise
    from robustbench_ln.reproducing.measuring import Part

    out, _ = run
    results = load_results(out / "runs" / "demo")
    summary = summarise(results.document, results.hits)
    part = Part(load_scale("smoke").settings[0], {}, results, tuple(results.document.rows))
    checked = 0
    for curve in summary.curves:
        estimate = part.estimate(curve.mode, Measure(curve.name[:3]), curve.model)
        assert estimate is not None
        assert estimate.value == pytest.approx(curve.area)
        at_one = [point for point in curve.points if point.level == 1]
        if at_one:
            one = part.estimate(curve.mode, Measure(curve.name[:3], 1.0), curve.model)
            assert (one.value, one.low, one.high) == (at_one[0].accuracy, at_one[0].low, at_one[0].high)
        checked += 1
    assert checked == 3 * len(RECIPES["fig6"].modes)


def test_the_same_call_trains_and_measures_nothing_anew(run: tuple[Path, Any], images: dict[str, str]) -> None:
    out, made = run
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".row", ".safetensors")}
    assert kept
    again = reproduce("fig5,table1,fig6", scale="smoke", out=out, threads=1, device="cpu", **images)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.to_json() == made.to_json()


def test_given_networks_are_taken_and_nothing_is_trained(
    tmp_path: Path, run: tuple[Path, Any], images: dict[str, str]
) -> None:
    networks = run[0] / "networks"
    given = [str(networks / "demo-bn"), str(networks / "demo-ln" / "last.safetensors")]
    made = reproduce("table1", scale="smoke", model=given, data=images["data"], out=tmp_path / "out", threads=1)
    assert not (tmp_path / "out" / "networks").exists()
    assert made.targets[0].numbers == run[1].targets[1].numbers


def test_figure_5_needs_the_log_of_a_training(tmp_path: Path, run: tuple[Path, Any], images: dict[str, str]) -> None:
    network = str(run[0] / "networks" / "demo-ln" / "last.safetensors")
    with pytest.raises(InputError, match="log of a training"):
        reproduce("fig5", scale="smoke", model=network, data=images["data"], out=tmp_path)


def test_training_images_are_never_the_ones_that_are_evaluated(tmp_path: Path, images: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="training images are not named") as error:
        reproduce("table1", scale="smoke", data=images["data"], out=tmp_path)
    assert "--train-data" in error.value.hint


def test_a_target_that_cannot_be_had_does_not_take_the_others_along(tmp_path: Path, images: dict[str, str]) -> None:
    made = reproduce("table1,fig1", scale="smoke", data=images["data"], out=tmp_path, threads=1)
    assert [one.name for one in made.targets] == ["fig1"]
    assert "table1" in made.left_out[0]


def test_one_network_given_twice_is_refused(run: tuple[Path, Any]) -> None:
    folder = run[0] / "networks" / "demo-bn"
    with pytest.raises(UsageError, match="the same"):
        read_given([str(folder), str(folder / "last.safetensors")])


def test_given_networks_stand_beside_the_papers_own_where_they_are_those() -> None:
    def given(arch: str) -> Network:
        return Network(arch, "bn", None, arch, f"{arch}.pt", None, f"{arch}.pt")

    for arch, paper, words in (
        ("resnet20", "cifar10-resnet", "ResNet-20"),  # the scale's own
        ("cifar_vgg19_bn", "cifar10-vgg", "VGG19"),
        ("wide_resnet", "cifar10-resnet", "wide_resnet"),
    ):
        settings, _ = with_data(load_scale("small"), [], [], [given(arch)])
        assert [one.paper for one in settings] == [paper]
        assert words in settings[0].network


def test_no_other_network_stands_in_where_the_papers_own_lacks_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no images for imagenet") as error:
        reproduce("imagenet", scale="paper", out=tmp_path)
    assert "validation images" in error.value.found


def test_settings_without_images_are_left_out_and_say_what_they_need() -> None:
    settings, left_out = with_data(load_scale("paper"), [], [])
    assert [one.name for one in settings] == ["cifar10-vgg", "cifar10-resnet"]
    assert "Stanford Cars" in left_out[0]
    settings, left_out = with_data(load_scale("paper"), ["cars=imagefolder:x/test"], ["cars=imagefolder:x/train"])
    cars = next(one for one in settings if one.name == "cars")
    assert (cars.data, cars.train_data) == ("imagefolder:x/test", "imagefolder:x/train")
    settings, _ = with_data(load_scale("paper"), ["cifar10:here"], [])
    assert [one.data for one in settings] == ["cifar10:here", "cifar10:here"]
    with pytest.raises(UsageError, match="no setting"):
        with_data(load_scale("paper"), ["trains=demo"], [])
