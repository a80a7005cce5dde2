"""What the documentation says exists: commands and options, names, links, and the README's two lines."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from robustbench_ln.cli.app import app
from robustbench_ln.cli.list import _KINDS as LIST_KINDS
from robustbench_ln.corruptions import NOISES, list_presets, list_suites, load_suite, parse_noises
from robustbench_ln.corruptions.conditions import parse_corruptions
from robustbench_ln.data import DATASETS
from robustbench_ln.models import PREPROCESSINGS
from robustbench_ln.norms import EVAL_MODES, NORMS, parse_mode
from robustbench_ln.training.settings import OPTIMIZERS, PRECISIONS, SCHEDULES
from robustbench_ln.types import RANGES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CI = ROOT / ".ci" / "run"
README_LINES = [
    "python3 -m venv .venv && .venv/bin/pip install . && "
    ".venv/bin/lnbench eval --model demo:bn --model demo:ln --noise agn --sigma 0:3:0.25",
    "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest",
]
# docs/reference/cli.md is written by the build, so it is there on some machines and not on others.
PAGES = [
    path
    for path in [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
    if path != DOCS / "reference" / "cli.md" and "_build" not in path.parts
]
PAGE_NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def command_lines(text: str) -> Iterator[str]:
    """Every call of lnbench in the shell and YAML blocks of a page."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if language in ("bash", "sh", "console", "yaml"):
            for line in block.replace("\\\n", " ").splitlines():
                # A call ends at a pipe, a redirection or the next command.
                for match in re.finditer(r"(?:^|[\s/])lnbench((?: +(?:\"[^\"]*\"|'[^']*'|[^\s|&;>#]+))+)", line):
                    yield match[1].strip()


def help_examples() -> Iterator[str]:
    """The examples that the commands' own help shows."""
    apps = [app, *(info.typer_instance for info in app.registered_groups)]
    for info in (info for one in apps for info in one.registered_commands):
        yield from re.findall(r"`lnbench (.+?)`", inspect.getdoc(info.callback) or "")


CASES = [
    (name, line)
    for name, page in zip(PAGE_NAMES, PAGES, strict=True)
    for line in command_lines(page.read_text(encoding="utf-8"))
]
CASES += [("--help", line) for line in help_examples()]


def parse(line: str) -> tuple[str, dict[str, Any]]:
    """Subcommand and options of a call; an option that does not exist raises."""
    name, *arguments = shlex.split(line)
    command: Any = get_command(app).commands[name]
    if hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    context = command.make_context(name, [], resilient_parsing=True)
    context.resilient_parsing = False  # it was only for making a context without arguments
    options, rest, _ = command.make_parser(context).parse_args(list(arguments))
    assert not rest
    missing = [p.name for p in command.params if p.required and options.get(p.name) is None]
    assert not missing or options.get("config") or "--config" in arguments, f"missing: {missing}"
    return name, options


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page}: {line}" for page, line in CASES])
def test_a_documented_command_can_be_typed(page: str, line: str):
    name, options = parse(line)
    if name == "list":
        assert options.get("kind") in (None, *LIST_KINDS)
    for text in options.get("modes") or []:
        for mode in text.split(","):
            assert mode == "all" or parse_mode(mode)
    if options.get("noise") and not line.endswith("--noise ang"):  # the misspelt one shows the error
        assert parse_noises(options["noise"], options.get("sigma"))
    if options.get("corruption"):
        assert "--suite" in line or parse_corruptions(options["corruption"], load_suite("cifar10-c"))
    assert options.get("preset") in (None, *list_presets())
    assert options.get("range") in (None, *RANGES)
    kind = (options.get("data") or "demo").partition(":")[0]
    assert kind in DATASETS
    normalize = options.get("normalize") or "auto"
    assert normalize == "auto" or ";" in normalize or normalize in PREPROCESSINGS


def test_there_are_commands_on_the_pages():
    assert len(CASES) > 30


@pytest.mark.parametrize("line", ["evaluate --model x", "eval --modell x", "eval --model", "list modes extra"])
def test_a_command_that_does_not_exist_is_found(line: str):
    with pytest.raises(Exception):  # noqa: B017, PT011 - typer's own, which has moved between versions
        parse(line)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", [*EVAL_MODES, *NOISES]),
        ("docs/corruptions.md", [*load_suite("cifar10-c").corruptions, *list_suites()]),
        ("docs/convert.md", [*NORMS]),
        ("docs/modes.md", [*EVAL_MODES]),
        ("docs/noises.md", [*NOISES, *RANGES, *list_presets()]),
        ("docs/data.md", [*DATASETS]),
        ("docs/preprocessing.md", [*PREPROCESSINGS]),
        ("docs/training.md", [*NORMS, *OPTIMIZERS, *SCHEDULES, *PRECISIONS]),
    ],
)
def test_every_name_is_documented(page: str, names: list[str]):
    words = " ".join(re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8")))
    known = set(re.split(r"[\s,:]+", words))
    missing = [name for name in names if name not in known]
    assert not missing, f"{page} does not mention {missing}"


def anchor(heading: str) -> str:
    """GitHub's and MyST's name for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_links_lead_somewhere(name: str):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        generated = file == DOCS / "reference" / "cli.md"
        assert file.exists() or generated, f"{target} is not there"
        if fragment and not generated:
            headings = re.findall(r"^#+ (.+)$", without_code(file.read_text(encoding="utf-8")), flags=re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, f"{target} names no heading"


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for block in re.findall(
        r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.M | re.S
    ):
        listed |= {line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":")}
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if DOCS in p.parents} - {"index"}
    assert listed == pages | {"reference/cli"}


def test_the_readme_has_its_two_lines_word_for_word():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)\n```", text, flags=re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if block.startswith("python3")] == README_LINES


@pytest.mark.skipif(not CI.exists(), reason="not a checkout")
def test_ci_runs_the_lines_of_the_readme():
    done = subprocess.run(["bash", str(CI), "lines"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == README_LINES
