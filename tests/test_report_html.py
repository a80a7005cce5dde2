"""The HTML report: one page that needs nothing else, says every number, and works in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from robustbench_ln.corruptions import load_suite
from robustbench_ln.metrics.mce import STANDARD
from robustbench_ln.reports import FORMATS, Summary, build
from robustbench_ln.reports.html import MARKS, TEMPLATES, policy
from robustbench_ln.reports.style import N_MARKERS
from robustbench_ln.reports.tables import estimate, percent
from tests.test_report import N, made_run, write
from tests.test_reports import Made, hostile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """A whole run of three models: 19 corruptions at 5 severities, and two noises."""
    modes = {"one@1a2b3c4d": ["bn", "dynbn-batch"], "two@5a6b7c8d": ["ln-single", "ln-batch"], "three": ["native"]}
    made = Made(
        modes,
        {"agn": [0, 0.5, 1, 2], "mbn": [0, 0.25]},
        corruptions=(*STANDARD, *EXTRA),
        n=N,
        warnings=("mind the gap",),
    )
    return build([write(tmp_path_factory.mktemp("html") / "run", made)], normaliser="alexnet")


@pytest.fixture(scope="module")
def page(summary: Summary) -> str:
    return FORMATS["html"](summary)


class Reader(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and tags that were not closed in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.disorder: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.disorder.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_is_well_formed_and_under_two_megabytes(page: str) -> None:
    reader = Reader(page)
    assert not reader.disorder
    assert not reader.open
    assert len(page.encode()) < 2_000_000


def test_the_page_loads_nothing_and_forbids_loading(page: str) -> None:
    tags = Reader(page).tags
    for tag, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        for name in ("src", "href", "action", "data"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    (rule,) = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert rule is not None
    assert rule.startswith("default-src 'none'")
    assert "unsafe" not in rule
    assert "//" not in rule


def test_every_number_is_on_the_page(page: str, summary: Summary) -> None:
    text = Reader(page).text
    for entry in summary.sheet.entries:
        for one in (entry.clean, entry.mean, entry.scores.mce, entry.scores.relative_mce, *entry.scores.ce.values()):
            assert estimate(one) in text
        for errors in entry.table.errors.values():
            assert all(f"{100 * (1 - error):.1f}" in text for error in errors if error is not None)
        for one in entry.calibration:
            assert percent(one.ece) in text
        assert entry.flips is not None
        assert f"of {entry.flips.right:,} images that are right when clean" in text
    for curve in summary.curves:
        assert f"area {curve.area:.3f}" in text
        for point in curve.points:
            assert f"{curve.mode}: {percent(point.accuracy)} %" in text
    for words in ("mind the gap", "mCE (regenerated)", "AlexNet", "unnormalised", "SHA-256", "lnbench eval"):
        assert words in text


def test_warnings_stand_before_all_numbers(page: str) -> None:
    assert page.index("mind the gap") < page.index("<main")


def test_a_screen_reader_finds_its_way(page: str) -> None:
    tags = Reader(page).tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    for tag, attributes in tags:
        if tag == "svg" and "aria-hidden" not in attributes:
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")
        if attributes.get("href", "").startswith("#"):  # type: ignore[union-attr]
            assert attributes["href"][1:] in ids  # type: ignore[index]
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert ("html", {"lang": "en"}) in tags


def test_every_mark_has_a_path() -> None:
    assert len(set(MARKS)) == N_MARKERS


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = FORMATS["html"](build([write(tmp_path / "run", hostile())]))
    reader = Reader(page)
    assert not reader.disorder
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", page)
    assert "<script>\\u202e|%" in reader.text
    assert "[bold]evil\\x1b[2J" in reader.text


def test_a_run_without_corruptions_or_predictions_has_a_shorter_page(tmp_path: Path) -> None:
    page = FORMATS["html"](build([write(tmp_path / "run", made_run(corruptions=()), predictions=False)]))
    assert not Reader(page).disorder
    assert 'id="curves"' in page
    assert 'id="sheet"' not in page
    assert 'id="flips"' not in page


def test_a_preview_in_the_run_folder_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "run", made_run(corruptions=STANDARD[:1]))
    Image.new("RGB", (8, 8), "red").save(path / "preview.png")
    sources = [attributes["src"] for tag, attributes in Reader(FORMATS["html"](build([path]))).tags if tag == "img"]
    assert [base64.b64decode(str(one).partition(",")[2]) for one in sources] == [(path / "preview.png").read_bytes()]
    (path / "preview.png").write_bytes(b"<svg onload=alert(1)>")
    assert "<img" not in FORMATS["html"](build([path]))


def test_missing_cells_are_said_on_the_page(tmp_path: Path) -> None:
    made = made_run()
    rows = [r for r in made.document.rows if (r.condition.name, r.condition.level) != ("snow", 3)]
    made.document = made.document.model_copy(update={"rows": rows})
    text = Reader(FORMATS["html"](build([write(tmp_path / "run", made)]))).text
    assert "mean over 14 of 15" in text
    assert "not run" in text


def test_the_heat_map_has_a_class_for_every_accuracy() -> None:
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    assert {f"h{step}" for step in range(20)} <= set(re.findall(r"\.(h\d+) \{ background", css))


def test_the_suites_of_the_field_fit_the_page() -> None:
    assert set(load_suite("cifar10-c").corruptions) == {*STANDARD, *EXTRA}


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    if CHROMIUM is None:
        pytest.skip("there is no chromium to open the page in (Debian: apt-get install chromium)")
    return Browser(tmp_path_factory.mktemp("browser"))


class Browser:
    """Opens a page: the document as it is after its script ran, and what the console says (blocked requests too)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, page: str, *options: str) -> tuple[str, list[str]]:
        path = self.folder / "page.html"
        path.write_text(page, encoding="utf-8")
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--no-first-run", f"--user-data-dir={self.folder / 'profile'}",
            "--enable-logging=stderr", *options, "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, console


def test_the_page_opens_without_errors(browser: Browser, page: str) -> None:
    text, console = browser.open(page)
    assert console == []
    assert 'id="theme"' in text
    # The script ran: one block of each choice is shown, and the rest are hidden.
    for choice, count in (("heat", 5), ("flips", 5)):
        blocks = re.findall(rf'<div data-choice="{choice}"([^>]*)>', text)
        assert len(blocks) == count
        assert [("hidden" in block) for block in blocks] == [False] + [True] * (count - 1)


def test_hostile_names_run_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    page = FORMATS["html"](build([write(tmp_path / "run", hostile())]))
    text, console = browser.open(with_hand(page, SPY))
    assert console == []
    assert told_in(text) == {"requests": [], "scripts": 1}


# Run after the page's own script; the answers are left in the document.
TELL = """
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
})();
"""
SPY = (
    """
;(() => {
  const told = {
    requests: performance.getEntriesByType("resource").map((one) => one.name),
    scripts: document.scripts.length,
  };
"""
    + TELL
)
HAND = (
    """
;(() => {
  const told = {requests: performance.getEntriesByType("resource").map((one) => one.name)};
  const tip = document.querySelector(".tip");
  const chart = document.querySelector("svg.chart");
  const box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * 0.97, clientY: box.top + 20}));
  told.hover = tip.hidden ? "" : tip.textContent;
  chart.dispatchEvent(new PointerEvent("pointerleave"));
  told.left = tip.hidden;
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  told.keys = document.getElementById("spoken").textContent;
  const table = document.querySelector("table.sortable");
  const first = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.v));
  table.tHead.rows[0].cells[2].querySelector("button").click();
  told.up = first();
  table.tHead.rows[0].cells[2].querySelector("button").click();
  told.down = first();
  told.sort = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
  const select = document.querySelector("select");
  select.selectedIndex = 2;
  select.dispatchEvent(new Event("change"));
  told.shown = [...document.querySelectorAll("[data-choice=heat]")].map((one) => !one.hidden);
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click();
  told.themes = [before, getComputedStyle(document.body).backgroundColor];
  told.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
"""
    + TELL
)


def told_in(text: str) -> dict[str, Any]:
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', text)
    return json.loads(told)


def with_hand(page: str, hand: str) -> str:
    css, js = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    escape = str.maketrans({"'": "&#39;"})
    assert policy(css, js).translate(escape) in page
    page = page.replace(policy(css, js).translate(escape), policy(css, js + hand).translate(escape))
    return page.replace(js, js + hand)


@pytest.mark.parametrize("size", ["1280,900", "390,800"])
def test_a_reader_can_hover_walk_sort_choose_and_darken(
    browser: Browser, page: str, summary: Summary, size: str
) -> None:
    text, console = browser.open(with_hand(page, HAND), f"--window-size={size}")
    assert console == []
    told = told_in(text)
    assert told["requests"] == []
    curve = summary.curves[0]
    last, second = curve.points[-1], curve.points[1]
    assert told["hover"].startswith(f"sigma {last.level:g}{curve.mode}: {percent(last.accuracy)} %")
    assert told["left"] is True
    assert told["keys"].startswith(f"sigma {second.level:g}, {curve.mode}: {percent(second.accuracy)} %")
    assert told["up"] == sorted(told["up"])
    assert told["down"] == sorted(told["up"], reverse=True)
    assert told["sort"] == "descending"
    assert told["shown"] == [False, False, True, False, False]
    assert told["themes"][0] != told["themes"][1]
    assert told["wide"] is False
