"""Reports: the numbers are right, every format shows all of them, and hostile names stay inert."""

from __future__ import annotations

import csv
import io
import itertools
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from robustbench_ln.metrics.accuracy import clustered_interval
from robustbench_ln.metrics.calibration import add, count
from robustbench_ln.reports import chart, summarise, terminal
from robustbench_ln.reports import csv as rows_csv
from robustbench_ln.reports.csv import COLUMNS
from robustbench_ln.reports.panels import spread
from robustbench_ln.reports.plots import accuracy_curves, save_plots
from robustbench_ln.reports.style import STYLES, mode_styles
from robustbench_ln.reports.summary import CAUTIOUS
from robustbench_ln.results.document import (
    ResultsDocument,
    RunInfo,
    data_to_document,
    model_to_document,
    row_to_document,
)
from robustbench_ln.types import Condition, Counts, DataInfo, ModelInfo, ResultRow

CLASSES = 10
RUN_FORMATS = {
    "terminal": terminal.render,
    "csv": rows_csv.render,
}  # what eval prints and keeps; test_report has the rest


def hits_of(rate: float, n: int, seed: int) -> np.ndarray:
    """(N,) hits at a rate, images of rising difficulty so that conditions depend on each other as real ones do."""
    noise = np.random.default_rng(seed).normal(0, 0.15, n)
    order = np.argsort(np.linspace(0, 1, n) + noise)
    hits = np.zeros(n, bool)
    hits[order[: round(rate * n)]] = True
    return hits


def counts_of(hits: np.ndarray) -> Counts:
    n = len(hits)
    confidence = np.where(hits, 0.9, 0.4).astype(np.float32)
    labels = np.zeros(n, int)
    return count(np.where(hits, 0, 1), confidence, -np.log(confidence, dtype=float), 1 - confidence * 1.0, hits, labels)


class Made:
    """A made-up run: the document, and the hits behind its rows."""

    def __init__(
        self,
        modes: dict[str, list[str]],
        noises: dict[str, list[float]],
        *,
        n: int = 2000,
        repeats: int = 1,
        ranges: tuple[str, ...] = ("clip",),
        corruptions: tuple[str, ...] = (),
        severities: int = 5,
        warnings: tuple[str, ...] = (),
        suite: str = "cifar10-c",
        data_id: str = "demo",
    ) -> None:
        self.hits: dict[tuple, np.ndarray] = {}
        models, rows = [], []
        for m, (model, its_modes) in enumerate(modes.items()):
            ln = any(mode.startswith("ln") for mode in its_modes)
            models.append(
                ModelInfo(model, model, "ab" * 32, "resnet20", "ln" if ln else "bn", 8 if ln else None,
                          16 if ln else None, (0.5,) * 3, (0.25,) * 3, "probe", CLASSES)
            )  # fmt: skip
            for k, mode in enumerate(its_modes):
                conditions = [Condition()]
                conditions += [
                    Condition(name, level, "", value_range, repeat)
                    for name, levels in noises.items()
                    for value_range in ranges
                    for level in levels
                    for repeat in range(repeats)
                ]
                conditions += [
                    Condition(name, float(s), suite, "clip", repeat)
                    for name in corruptions
                    for s in range(1, severities + 1)
                    for repeat in range(repeats)
                ]
                for condition in conditions:
                    harm = condition.level * (0.22 if condition.kind == "noise" else 0.08)
                    harm *= 1 + (sum(map(ord, condition.name)) % 7) / 7
                    rate = 0.1 + (0.82 - 0.02 * m) * np.exp(-harm * (1.9 - 0.3 * k + 0.4 * (m == 0)))
                    seed = 0 if condition.level == 0 else 1 + condition.repeat
                    hits = hits_of(rate, n, seed)
                    counts = add(counts_of(hits[: n // 2]), counts_of(hits[n // 2 :]))
                    self.hits[model, mode, condition] = hits
                    rows.append(row_to_document(ResultRow(model, mode, condition, counts, "f" * 16, None, 1.5)))
        data = DataInfo(data_id, data_id, "cd" * 32, n, CLASSES)
        run = RunInfo(
            lnbench_version="0.1.0", created="2026-01-01T00:00:00Z", command="lnbench eval", seed=0, limit=None,
            precision="fp32", torch="2.10", device="cpu", threads=1, batch_size=128, order_sha256="ef" * 32,
            warnings=list(warnings),
        )  # fmt: skip
        self.document = ResultsDocument(
            schema_version=1,
            run=run,
            models=[model_to_document(model) for model in models],
            data=data_to_document(data),
            predictions=None,
            rows=rows,
        )

    def known(self, row):
        return self.hits[row.model, row.mode, row.condition.to_condition()]


GRID = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3]


@pytest.fixture(scope="module")
def two_models() -> Made:
    return Made(
        {"demo-bn@1a2b3c4d": ["bn", "dynbn-batch"], "demo-ln@5a6b7c8d": ["ln-single", "ln-batch", "ln-voting"]},
        {"agn": GRID, "mbn": [0, 0.25, 0.5]},
        corruptions=("fog", "glass_blur"),
        warnings=("demo-bn cannot run ln-batch",),
    )


# --- the numbers


def test_a_curve_has_the_rows_numbers_and_their_area(two_models: Made) -> None:
    summary = summarise(two_models.document)
    curve = next(c for c in summary.curves if (c.mode, c.name) == ("bn", "agn"))
    rows = [r for r in two_models.document.rows if r.mode == "bn" and r.condition.name == "agn"]
    assert [p.level for p in curve.points] == GRID
    assert [(p.accuracy, (p.low, p.high), p.n) for p in curve.points] == [(r.accuracy, r.ci95, r.n) for r in rows]
    strips = itertools.pairwise(zip(GRID, (r.accuracy for r in rows), strict=True))
    assert curve.area == pytest.approx(sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in strips) / 3)


def test_curves_do_not_depend_on_the_order_of_the_rows(two_models: Made) -> None:
    backwards = two_models.document.model_copy(update={"rows": two_models.document.rows[::-1]})
    forth, back = summarise(two_models.document), summarise(backwards)
    assert set(forth.curves) == set(back.curves)
    assert forth.clean == back.clean


def test_every_model_and_mode_has_its_clean_accuracy(two_models: Made) -> None:
    summary = summarise(two_models.document)
    assert set(summary.clean) == {(m.id, mode) for m in summary.models for mode in m.modes}
    assert [m.label for m in summary.models] == ["demo-bn", "demo-ln"]


def test_models_that_differ_in_their_digest_only_keep_it_in_their_label() -> None:
    made = Made({"net@aaaaaaaa": ["bn"], "net@bbbbbbbb": ["bn"]}, {}, n=50)
    assert [m.label for m in summarise(made.document).models] == ["net@aaaaaaaa", "net@bbbbbbbb"]


def test_repeats_are_averaged_with_the_image_as_the_unit() -> None:
    made = Made({"m": ["bn"]}, {"agn": [1.0]}, n=500, repeats=4)
    table = np.stack([made.known(r) for r in made.document.rows if r.condition.name == "agn"])
    point = summarise(made.document, made.known).curves[0].points[0]
    assert (point.repeats, point.n) == (4, 500)
    assert point.accuracy == pytest.approx(table.mean())
    assert (point.low, point.high) == clustered_interval(table)
    assert not summarise(made.document, made.known).warnings


def test_without_predictions_intervals_of_means_are_wider_and_the_reader_is_told() -> None:
    made = Made({"m": ["bn"]}, {"agn": [0.5, 1.0]}, n=500, repeats=4)
    known, unknown = summarise(made.document, made.known), summarise(made.document)
    assert unknown.warnings == (CAUTIOUS,)
    for with_hits, without in zip(known.curves[0].points, unknown.curves[0].points, strict=True):
        assert without.accuracy == with_hits.accuracy
        assert without.low <= with_hits.low < with_hits.high <= without.high


def test_hits_that_contradict_the_counts_are_not_used() -> None:
    made = Made({"m": ["bn"]}, {"agn": [1.0]}, n=500, repeats=2)
    assert summarise(made.document, lambda row: ~made.known(row)) == summarise(made.document)


def test_corruptions_make_a_grid_with_means_over_the_complete_ones() -> None:
    made = Made({"m": ["bn"]}, {}, corruptions=("fog", "snow"), n=200)
    (grid,) = summarise(made.document, made.known).grids
    assert grid.severities == (1, 2, 3, 4, 5)
    assert grid.complete == ("fog", "snow")
    by_cell = {(r.condition.name, r.condition.level): r.accuracy for r in made.document.rows}
    for name, points in grid.cells:
        assert [p.accuracy for p in points if p] == [by_cell[name, s] for s in grid.severities]
    assert grid.means[2].accuracy == pytest.approx((by_cell["fog", 3] + by_cell["snow", 3]) / 2)

    rows = [r for r in made.document.rows if (r.condition.name, r.condition.level) != ("snow", 4)]
    (gap,) = summarise(made.document.model_copy(update={"rows": rows}), made.known).grids
    assert gap.complete == ("fog",)
    assert dict(gap.cells)["snow"][3] is None
    assert gap.means[0].accuracy == by_cell["fog", 1]


def test_failed_rows_take_no_part_and_are_named() -> None:
    made = Made({"m": ["bn"]}, {"agn": [0.5, 1.0]}, n=50)
    empty = ResultRow("m", "bn", Condition("apn", 1.0), Counts(0, 0, None, 0.0, 0.0), "", None, 0.0, status="failed")
    rows = [*made.document.rows, row_to_document(empty)]
    summary = summarise(made.document.model_copy(update={"rows": rows}))
    assert summary.noises == (("agn", "clip"),)
    assert "apn 1" in summary.warnings[0]


def test_one_mode_with_two_group_sizes_is_two_modes() -> None:
    made = Made({"m": ["ln-batch"]}, {"agn": [0.5]}, n=50)
    other = [r.model_copy(update={"images": 4}) for r in made.document.rows]
    rows = [*(r.model_copy(update={"images": 16}) for r in made.document.rows), *other]
    summary = summarise(made.document.model_copy(update={"rows": rows}))
    assert summary.modes == ("ln-batch (M 16)", "ln-batch (M 4)")
    assert all(point.repeats == 1 for curve in summary.curves for point in curve.points)


# --- looks


def test_no_two_modes_look_alike() -> None:
    modes = [*STYLES, "ln-batch:4", "ln-batch:8", "bn-adapt:16", "bn-adapt:256", "dynbn-batch:2", "something-new"]
    styles = mode_styles(modes)
    assert list(styles) == modes
    assert len({(style.color, style.dash) for style in styles.values()}) == len(modes)


def test_a_mode_looks_the_same_whatever_stands_beside_it() -> None:
    assert mode_styles(["bn"])["bn"] == mode_styles(["ln-batch:4", "x", "bn"])["bn"] == STYLES["bn"]
    assert mode_styles(["ln-batch:4"])["ln-batch:4"].color == STYLES["ln-batch"].color


def test_more_modes_than_styles_still_get_one() -> None:
    assert len(mode_styles(f"mode{i}" for i in range(50))) == 50


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted))
def test_labels_are_moved_apart_in_order_and_inside_the_panel(heights: list[float]) -> None:
    placed = spread(heights, 6.0)
    assert all(b - a >= 6.0 - 1e-6 for a, b in itertools.pairwise(placed))
    assert min(placed) >= -1e-6
    assert max(placed) <= 100 + 1e-6


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([10, 40, 90], 6.0) == pytest.approx([10, 40, 90])
    assert spread([50, 50], 6.0) == pytest.approx([47, 53])


# --- formats


@pytest.mark.parametrize("name", RUN_FORMATS)
def test_every_format_names_every_model_mode_and_noise(name: str, two_models: Made) -> None:
    summary = summarise(two_models.document)
    text = RUN_FORMATS[name](summary)
    for shown in (*(m.label for m in summary.models), *summary.modes, "agn", "mbn", "glass_blur", "clip"):
        assert shown in text


@pytest.mark.parametrize("name", RUN_FORMATS)
def test_hostile_names_stay_inert_in_every_format(name: str) -> None:
    text = RUN_FORMATS[name](summarise(hostile().document))
    assert not any(unicodedata.category(char) in ("Cc", "Cf") for char in text.replace("\n", ""))
    assert "[bold]" in text
    assert "\\x1b" in text


def hostile() -> Made:
    return Made(
        {"[bold]evil\x1b[2J$x_1$\r\n[/bold]": ["=cmd|' /C calc'!A0", "<script>\u202e|%", "中文"]},
        {"$\\frac{": [0, 1, 2]},
        n=100,
        data_id="\x1b]0;title\x07[/red]",
        warnings=("[/] $\\bad \x1b[31m\x00",),
        corruptions=("@snow\t",),
        suite="+suite",
    )


def test_csv_reads_back_as_the_rows(two_models: Made) -> None:
    table = pandas.read_csv(io.StringIO(rows_csv.render(summarise(two_models.document))))
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(two_models.document.rows)
    for read, row in zip(table.to_dict("records"), two_models.document.rows, strict=True):
        assert (read["model"], read["mode"], read["name"]) == (row.model, row.mode, row.condition.name)
        assert (read["level"], read["n"], read["correct"]) == (row.condition.level, row.n, row.correct)
        assert (read["accuracy"], (read["ci_low"], read["ci_high"])) == (row.accuracy, row.ci95)
        assert (read["nll"], read["ece"], read["brier"], read["top5"]) == (row.nll, row.ece, row.brier, row.top5)


def test_csv_cells_cannot_start_a_formula() -> None:
    cells = [cell for row in csv.reader(io.StringIO(rows_csv.render(summarise(hostile().document)))) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert "'=cmd|' /C calc'!A0" in cells
    assert "'@snow\\t" in cells


def test_csv_leaves_unknown_numbers_empty() -> None:
    made = Made({"m": ["bn"]}, {}, n=20)
    failed = ResultRow("m", "bn", Condition("apn", 1.0), Counts(0, 0, None, 0.0, 0.0), "", None, 0.0, status="failed")
    summary = summarise(made.document.model_copy(update={"rows": [row_to_document(failed)]}))
    (read,) = csv.DictReader(io.StringIO(rows_csv.render(summary)))
    assert read["accuracy"] == read["ci_low"] == read["top5"] == read["images"] == read["suite"] == ""
    assert read["status"] == "failed"


def test_terminal_shows_every_number(two_models: Made) -> None:
    summary = summarise(two_models.document)
    text = terminal.render(summary)
    points = [*summary.clean.values(), *(p for curve in summary.curves for p in curve.points)]
    for point in points:
        assert f"{100 * point.accuracy:5.2f} [{100 * point.low:.1f}, {100 * point.high:.1f}]" in text
    for curve in summary.curves:
        assert text.count(f"{curve.area:.3f}") >= 2
    for grid in summary.grids:
        for point in (p for _, points in grid.cells for p in points if p):
            assert f"{100 * point.accuracy:.2f}" in text
    assert "95 % interval" in text
    assert "warning: demo-bn cannot run ln-batch" in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_terminal_keeps_to_its_width(width: int, two_models: Made) -> None:
    lines = terminal.render(summarise(two_models.document), width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_terminal_draws_models_side_by_side_where_there_is_room(two_models: Made) -> None:
    summary = summarise(two_models.document)

    def shared(width: int) -> bool:
        lines = terminal.render(summary, width=width).splitlines()
        return any("demo-bn" in line and "demo-ln" in line for line in lines if "accuracy in %" in line)

    assert shared(80)
    assert not shared(60)


def test_terminal_falls_back_to_ascii(two_models: Made) -> None:
    for made in (two_models, hostile()):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        terminal.show(summarise(made.document), Console(file=stream, width=80))
        stream.flush()
        assert b"accuracy in %" in stream.buffer.getvalue()


def test_terminal_obeys_no_color(two_models: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        out = io.StringIO()
        terminal.show(summarise(two_models.document), Console(file=out, width=80, force_terminal=True))
        return out.getvalue()

    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[38;2;" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38;" not in shown()


def test_stdout_that_is_no_terminal_has_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.stdout_console().width == 80
    monkeypatch.setenv("COLUMNS", "132")
    assert terminal.stdout_console().width == 132
    terminal.show(summarise(Made({"m": ["bn"]}, {"agn": [1.0]}, n=20).document))
    assert "agn (clip)" in capsys.readouterr().out


def test_a_run_without_rows_is_shown_without_failing() -> None:
    document = Made({"m": ["bn"]}, {}, n=20).document.model_copy(update={"rows": []})
    assert "no finished rows" in terminal.render(summarise(document))


# --- the chart


def text_of(lines: list[list[chart.Span]]) -> list[str]:
    return ["".join(span.text for span in spans) for spans in lines]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_chart_puts_points_where_they_belong(ascii_only: bool) -> None:
    marker = (chart.ASCII_MARKERS if ascii_only else chart.MARKERS)[0]
    series = [chart.Series([(0.0, 1.0), (1.0, 0.5), (2.0, 0.0)], 0)]
    lines = text_of(chart.draw(series, width=30, height=11, x_label="sigma", ascii_only=ascii_only))
    assert len(lines) == 13
    assert {len(line) for line in lines} == {30}
    places = [(row, line.index(marker)) for row, line in enumerate(lines) if marker in line]
    assert places == [(0, 5), (5, 17), (10, 29)]
    assert lines[0].startswith("100")
    assert lines[10].startswith("  0")
    assert lines[12].split() == ["0", "sigma", "2"]


def test_the_chance_line_has_a_legend(two_models: Made) -> None:
    assert "┈ chance  10.0" in terminal.render(summarise(two_models.document))


def test_a_chart_of_one_level_has_it_in_the_middle() -> None:
    lines = text_of(chart.draw([chart.Series([(0.5, 0.5)], 0)], width=31, height=11, x_label="sigma"))
    assert lines[5].index(chart.MARKERS[0]) in (17, 18)
    assert "sigma 0.5" in lines[12]


def test_a_chart_says_which_character_belongs_to_which_series() -> None:
    series = [chart.Series([(0.0, 0.9), (1.0, 0.9)], 0), chart.Series([(0.0, 0.1), (1.0, 0.1)], 1)]
    lines = chart.draw(series, width=30, height=11, x_label="sigma", guide=0.5)
    owners = [{span.series for span in spans} for spans in lines]
    assert owners[1] == {chart.FRAME, 0}
    assert owners[9] == {chart.FRAME, 1}
    assert owners[5] == {chart.FRAME, chart.GUIDE}


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=8).map(sorted),
        min_size=1,
        max_size=10,
    ),
    st.integers(20, 80),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_curves_can_be_drawn(curves: list, width: int, ascii_only: bool) -> None:
    series = [chart.Series(points, index) for index, points in enumerate(curves)]
    lines = text_of(chart.draw(series, width=width, height=9, x_label="sigma", guide=0.1, ascii_only=ascii_only))
    assert len(lines) == 11
    assert {len(line) for line in lines[:-1]} == {width}
    assert len(lines[-1]) <= width


# --- figures


def test_plots_are_written_and_name_models_and_modes(two_models: Made, tmp_path: Path) -> None:
    summary = summarise(two_models.document, two_models.known)
    png, svg = save_plots(summary, tmp_path)
    assert png.name == "curves.png"
    with Image.open(png) as image:
        assert image.width > 1000
        assert round(image.info["dpi"][0]) == 150
    text = " ".join(ElementTree.parse(svg).getroot().itertext())
    for shown in (*summary.modes, "demo-bn", "demo-ln", "sigma (agn, clip)", "severity (cifar10-c", "chance"):
        assert shown in text
    assert "demo-bn cannot run ln-batch" in text


def test_the_same_summary_gives_the_same_files(tmp_path: Path) -> None:
    summary = summarise(Made({"m": ["bn", "ln-batch"]}, {"agn": [0, 1, 2]}, n=100).document)
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append([path.read_bytes() for path in save_plots(summary, tmp_path / name)])
    assert files[0] == files[1]


def test_hostile_names_make_a_valid_figure(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    _, svg = save_plots(summarise(hostile().document), tmp_path)
    text = " ".join(ElementTree.parse(svg).getroot().itertext())
    assert "<script>" in text
    assert "$\\frac{" in text
    assert "\\x1b" in text
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("models", [1, 2])
def test_words_stay_in_the_figure_and_off_the_panels(models: int) -> None:
    made = Made({f"m{i}": ["bn", "dynbn-batch"] for i in range(models)}, {"agn": [0, 1]}, n=50)
    warning = f"/HOME/{'SOMEBODY/' * 12}MODEL.PTH: preprocessing was found by trial, and {'the margin is small, ' * 6}"
    figures = [
        accuracy_curves(replace(summarise(made.document), warnings=tuple(warning + str(i) for i in range(n))))
        for n in (0, 5)
    ]
    panels = []
    for figure in figures:
        figure.draw_without_rendering()
        for words in figure.texts:
            box = words.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert "chance" not in {text.get_text() for axes in figure.axes for text in axes.texts}
        panels.append(figure.axes[0].get_window_extent().height)
    assert panels[1] == pytest.approx(panels[0], rel=0.12)


def test_the_figure_has_a_panel_a_noise_and_model_and_a_line_a_mode(two_models: Made) -> None:
    figure = accuracy_curves(summarise(two_models.document))
    assert len(figure.axes) == 6
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert {STYLES["bn"].color, STYLES["dynbn-batch"].color} <= colors
    assert all(axes.get_ylim() == (0, 100) for axes in figure.axes)
    assert len(figure.axes[0].collections) == 2


def test_a_noise_that_one_model_lacks_leaves_its_panel_empty() -> None:
    one, other = Made({"a": ["bn"]}, {"agn": [0, 1]}, n=50), Made({"b": ["bn"]}, {"mbn": [0, 0.5]}, n=50)
    both = one.document.model_copy(
        update={
            "models": [*one.document.models, *other.document.models],
            "rows": [*one.document.rows, *other.document.rows],
        }
    )
    panels = accuracy_curves(summarise(both)).axes
    assert [axes.axison for axes in panels] == [True, False, False, True]


def test_without_curves_nothing_is_drawn(tmp_path: Path) -> None:
    summary = summarise(Made({"m": ["bn"]}, {}, n=20).document)
    assert save_plots(summary, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no curve"):
        accuracy_curves(summary)


def test_reports_load_neither_torch_nor_ink_before_it_is_needed() -> None:
    late = ("torch", "matplotlib", "rich", "jinja2")
    code = f"import sys, robustbench_ln.reports; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
