"""Models side by side: the right pairs, the right test, inert in every format."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from robustbench_ln.comparing import FORMATS, Comparison, compare
from robustbench_ln.errors import TrustError, UsageError
from robustbench_ln.metrics.mce import STANDARD
from robustbench_ln.metrics.paired import mcnemar_two_sided
from robustbench_ln.reports.text import between, percent, visible
from robustbench_ln.results import load_results
from robustbench_ln.types import Condition
from tests.made_results import CLEAN, hits, write_run
from tests.test_gate import FOG, HOSTILE, N, Run, lnbench, results
from tests.test_report_html import TELL, Browser, Reader, browser, told_in, with_hand

__all__ = ["browser", "lnbench"]  # the fixtures
SNOW = Condition("snow", 1.0, "cifar10-c")


def test_each_condition_is_tested_and_the_means(tmp_path: Path) -> None:
    old = results(tmp_path / "a", {CLEAN: hits(N, 1800), FOG: hits(N, 1200), SNOW: hits(N, 1000)})
    new = results(
        tmp_path / "b",
        {CLEAN: hits(N, 1800), FOG: hits(N, 1200, lost=120, gained=20), SNOW: hits(N, 1000, lost=5, gained=90)},
    )
    comparison = compare([old, new])
    found = {line.about: line for line in comparison.lines}
    assert {about: line.change for about, line in found.items()} == {
        "clean": "unclear", "fog 3": "worse", "snow 1": "better", "mean of 2 conditions": "unclear",
    }  # fmt: skip
    fog = found["fog 3"]
    assert (fog.lost, fog.gained, fog.difference) == (120, 20, pytest.approx(-0.05))
    assert fog.p == pytest.approx(float(mcnemar_two_sided(120, 20)))
    assert fog.interval[0] < -0.05 < fog.interval[1] < 0
    assert found["mean of 2 conditions"].difference == pytest.approx((-100 + 85) / 2 / N)


def test_holm_covers_all_lines(tmp_path: Path) -> None:
    conditions = [Condition("fog", float(level), "cifar10-c") for level in (1, 2, 3, 4, 5)]
    old = results(tmp_path / "a", {Condition("agn", 0.0): hits(N, 1800), **{one: hits(N, 1200) for one in conditions}})
    new = results(
        tmp_path / "b",
        {
            Condition("agn", 0.0): hits(N, 1800),
            **{one: hits(N, 1200, lost=7 if one is conditions[0] else 0) for one in conditions},
        },
    )
    first = compare([old, new]).lines[0]
    assert first.p == pytest.approx(2 * 2**-7)
    assert first.p_adjusted == pytest.approx(min(1, 6 * 2 * 2**-7))
    assert first.change == "unclear"


def test_errors_get_better_by_falling(tmp_path: Path) -> None:
    whole = [Condition(name, float(s), "imagenet-c") for name in STANDARD for s in (1, 2, 3, 4, 5)]
    old = results(tmp_path / "a", {one: hits(N, 1000) for one in whole})
    new = results(tmp_path / "b", {one: hits(N, 1000, gained=200) for one in whole})
    lines = {line.metric: line for line in compare([old, new]).lines if line.conditions > 1}
    assert set(lines) == {"accuracy", "mean_corruption_error", "mce"}
    assert lines["accuracy"].difference == pytest.approx(0.1)
    assert lines["mean_corruption_error"].difference == pytest.approx(-0.1)
    assert lines["mce"].interval[1] < 0
    assert {line.change for line in lines.values()} == {"better"}


def test_modes_within_one_result_are_compared_with_the_first_or_the_one_named(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800)}
    one = results(tmp_path / "a", {("a@1", "bn"): cells, ("a@1", "dynbn-batch"): cells, ("b@2", "ln-batch"): cells})
    assert [(line.model, line.mode, line.reference) for line in compare([one]).lines] == [
        ("a@1", "dynbn-batch", "a@1, bn"), ("b", "ln-batch", "a, bn"),
    ]  # fmt: skip
    chosen = compare([one], reference="b/ln-batch").lines
    assert [(line.mode, line.reference) for line in chosen] == [("bn", "b, ln-batch"), ("dynbn-batch", "b, ln-batch")]
    assert compare([one], reference="dynbn-batch").lines[0].reference == "a@1, dynbn-batch"
    with pytest.raises(UsageError, match="reference"):
        compare([one], reference="c")


def test_results_are_matched_by_name_and_mode(tmp_path: Path) -> None:
    cells = {CLEAN: hits(N, 1800)}
    old = results(tmp_path / "a", {("a@1", "bn"): cells, ("a@1", "native"): cells, ("b@1", "bn"): cells})
    new = results(tmp_path / "b", {("b@7", "bn"): cells, ("a@8", "native"): cells, ("c@9", "ln-batch"): cells})
    assert [line.reference for line in compare([old, new]).lines] == ["b@1, bn", "a@1, native", "a, bn"]
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([results(tmp_path / "c", cells)])


def test_other_images_are_refused_and_other_conditions_left_out(tmp_path: Path) -> None:
    old = results(tmp_path / "a", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    new = results(tmp_path / "b", {CLEAN: hits(N, 1800), SNOW: hits(N, 1200)})
    comparison = compare([old, new])
    assert [line.about for line in comparison.lines] == ["clean"]
    assert sum("left out" in warning for warning in comparison.warnings) == 2
    with pytest.raises(TrustError, match="seed"):
        compare([old, results(tmp_path / "c", {CLEAN: hits(N, 1800)}, run={"seed": 3})])


@pytest.mark.parametrize(
    ("sort", "expected"), [("file", ["clean", "fog 3"]), ("difference", ["fog 3", "clean"]), ("p", ["fog 3", "clean"])]
)
def test_lines_are_sorted_as_asked(lnbench: Run, tmp_path: Path, sort: str, expected: list[str]) -> None:
    write_run(tmp_path / "a", {CLEAN: hits(N, 1800), FOG: hits(N, 1200)})
    write_run(tmp_path / "b", {CLEAN: hits(N, 1800), FOG: hits(N, 1200, lost=100)})
    code, out, _ = lnbench("compare", "a", "b", "--sort", sort, "--format", "json")
    assert code == 0
    assert [row["about"] for row in json.loads(out)["rows"]] == expected
    assert lnbench("compare", "a", "b", "--sort", "size")[0] == 2
    assert lnbench("compare", "a", "b", "--format", "xml")[0] == 2
    assert lnbench("compare", "a", "b", "--alpha", "2")[0] == 2
    assert lnbench("compare", "a")[0] == 2
    assert lnbench("compare", "a", "none")[0] == 3
    assert lnbench("compare", "a", "b", "--format", "csv", "--out", "made/it.csv")[:2] == (0, "")
    assert len((tmp_path / "made" / "it.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_names_are_inert_in_every_format(tmp_path: Path, name: str) -> None:
    key = (f"={HOSTILE}@1", f"=bn{HOSTILE}")
    cells = {CLEAN: hits(N, 1800), Condition(HOSTILE, 1.0): hits(N, 1000)}
    write_run(tmp_path / "a", {key: cells}, run={"warnings": [HOSTILE]})
    shown = FORMATS[name](compare([load_results(tmp_path / "a"), load_results(tmp_path / "a")]))
    assert "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line.lstrip().startswith("::")]
    if name == "html":
        reader = Reader(shown)
        assert not reader.disorder
        assert sum(tag == "script" for tag, _ in reader.tags) == 1
        assert visible(HOSTILE) in reader.text
    if name == "latex":
        lines = [line for line in shown.splitlines() if not line.startswith("%")]
        assert not [line for line in lines if re.search(r"(?<!\\)[#^~]|<|^\[", line.replace(" & ", ""))]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines if line.endswith(r"\\")} == {8}
    if name == "markdown":
        assert "<script" not in shown
        tables = [line for line in shown.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables}) == 1
    if name == "csv":
        rows = list(csv.reader(io.StringIO(shown)))
        assert {len(row) for row in rows} == {18}
        assert not [cell for row in rows for cell in row if cell.startswith(("=", "@"))]
    if name == "json":
        assert json.loads(shown)["rows"][0]["mode"] == key[1]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two models against one, on more conditions than a page of LaTeX has room for."""
    folder = tmp_path_factory.mktemp("compare")
    conditions = [Condition(name, float(s), "cifar10-c") for name in STANDARD[:10] for s in (1, 2, 3, 4, 5)]
    runs = {
        ("a@1", "bn"): {CLEAN: hits(N, 1800), **{one: hits(N, 1000) for one in conditions}},
        ("b@2", "bn"): {
            CLEAN: hits(N, 1800),
            **{one: hits(N, 1000, gained=10 * i) for i, one in enumerate(conditions)},
        },
        ("c@3", "bn"): {CLEAN: hits(N, 1800), **{one: hits(N, 1000, lost=90) for one in conditions}},
    }
    return compare([load_results(write_run(folder / "run", runs, run={"warnings": ["mind the gap"]}))])


def test_the_page_says_every_number_and_loads_nothing(several: Comparison) -> None:
    page = FORMATS["html"](several)
    reader = Reader(page)
    assert not reader.disorder
    assert not reader.open
    assert page.index("mind the gap") < page.index("<main")
    for line in several.lines:
        assert f"{percent(line.difference, sign=True)}" in reader.text
        assert between(*line.interval, digits=2) in reader.text
    (rule,) = [a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(rule).startswith("default-src 'none'")
    for tag, attributes in reader.tags:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert re.match(r"#|data:", attributes.get("href") or "#"), tag
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")


def test_long_tables_of_latex_run_over_pages_and_have_a_minus(several: Comparison) -> None:
    text = FORMATS["latex"](several)
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 2
    assert r"\usepackage{booktabs,longtable}" in text
    assert r"$-$4.50" in text
    assert not re.search(r"& -\d", text)


SORT = (
    """
;(() => {
  const told = {requests: performance.getEntriesByType("resource").map((one) => one.name)};
  const table = document.querySelector("table.sortable");
  const button = table.tHead.rows[0].cells[1].querySelector("button");
  button.focus();
  told.focused = document.activeElement === button;
  button.click();
  told.up = [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.v));
  told.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
"""
    + TELL
)


@pytest.mark.parametrize("size", ["1280,900", "390,800"])
def test_the_page_sorts_and_fits_in_a_browser(browser: Browser, several: Comparison, size: str) -> None:
    text, console = browser.open(with_hand(FORMATS["html"](several), SORT), f"--window-size={size}")
    assert console == []
    told = told_in(text)
    assert (told["requests"], told["focused"], told["wide"]) == ([], True, False)
    assert told["up"] == sorted(told["up"])
    assert len(set(told["up"])) > 10


def test_values_are_in_percent_in_tables_only(tmp_path: Path) -> None:
    old = results(tmp_path / "a", {CLEAN: hits(N, 1800)})
    new = results(tmp_path / "b", {CLEAN: hits(N, 1800, gained=100)})
    comparison = compare([old, new])
    assert re.search(r"better +clean +90\.00 +95\.00 +\+5\.00", FORMATS["terminal"](comparison))
    assert json.loads(FORMATS["json"](comparison))["rows"][0]["difference"] == pytest.approx(0.05)
    assert np.isclose(float(next(csv.DictReader(io.StringIO(FORMATS["csv"](comparison))))["new"]), 0.95)
