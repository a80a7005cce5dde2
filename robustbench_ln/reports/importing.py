"""Figures of other tools, as lines for the sheet. To add a format, write a reader and give it a row in `IMPORTERS`.

RobustBench keeps two files for its corruption leaderboards (github.com/RobustBench/robustbench, model_info/): the
accuracies of every cell in ``unaggregated_results*.csv``, and a JSON file a model with its clean and mean accuracy.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustbench_ln.errors import InputError, TrustError
from robustbench_ln.metrics.mce import SEVERITIES, STANDARD, ErrorTable

ORIGIN = "RobustBench"
_MOST_BYTES = 20_000_000
_AGREE = 0.002  # the JSON rounds to 0.01 %; more than that, and the two are of different models

# What RobustBench calls a data set: classes, side of the images, whose corruptions.
_DATASETS = {
    "cifar10": (10, 32, "cifar10-c"),
    "cifar100": (100, 32, "cifar10-c"),
    "imagenet": (1000, 224, "imagenet-c"),
}


@dataclass(frozen=True, slots=True)
class Imported:
    """Figures of a model that somebody else measured, on published pixels.

    Attributes:
        model: its name there.
        origin: whose figures.
        path: the file.
        dataset: the data set's name there; empty where the file does not say.
        suite: whose corruptions; empty where unknown.
        classes: of the data set; None where unknown.
        size: side of the images; None where unknown.
        table: errors.
        stated_mean: mean corruption error, where the file gives no cells.
        notes: what a reader should know.
    """

    model: str
    origin: str
    path: str
    dataset: str
    suite: str
    classes: int | None
    size: int | None
    table: ErrorTable
    stated_mean: float | None = None
    notes: tuple[str, ...] = ()


def read_imported(path: Path | str) -> list[Imported] | None:
    """The figures of a file of another tool; None where it is not one.

    Raises: InputError for such a file that cannot be used; the message says where and what was found.
    """
    file = Path(path)
    if file.is_dir() or file.suffix.lower() not in IMPORTERS or not file.exists():
        return None
    if file.stat().st_size > _MOST_BYTES:
        raise InputError(
            f"{file} is too large for a table of figures", found=f"{file.stat().st_size:,} bytes", hint="a results file"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}", found=str(error)[:200], hint="a text file in UTF-8") from None
    return IMPORTERS[file.suffix.lower()](file, text)


def merged(found: Sequence[Imported]) -> list[Imported]:
    """Figures of one model from several files as one line: cells from the CSV, the clean accuracy from the JSON.

    Raises: TrustError where two files contradict each other.
    """
    lines: list[Imported] = []
    for one in found:
        at = next((i for i, line in enumerate(lines) if _same(line, one)), None)
        if at is None:
            lines.append(one)
            continue
        cells, stated = (one, lines[at]) if one.table.errors else (lines[at], one)
        if stated.table.errors and stated.table != cells.table:
            raise TrustError(
                "two files hold different figures for one model",
                found=f"{one.model} in {lines[at].path} and in {one.path}",
                hint="one of them",
            )
        _check_mean(cells, stated)
        clean = cells.table.clean if cells.table.clean is not None else stated.table.clean
        lines[at] = replace(
            cells,
            dataset=cells.dataset or stated.dataset,
            suite=cells.suite or stated.suite,
            classes=cells.classes or stated.classes,
            size=cells.size or stated.size,
            table=ErrorTable(clean, cells.table.errors),
            notes=tuple(dict.fromkeys([*cells.notes, *stated.notes])),
        )
    return lines


def _same(a: Imported, b: Imported) -> bool:
    """Whether two lines are of one model: a file that does not say its data set goes with one that does."""
    if a.table.errors and b.table.errors and a.suite != b.suite:
        return False  # its cells under two suites
    return (a.origin, a.model) == (b.origin, b.model) and (a.dataset == b.dataset or not (a.dataset and b.dataset))


def _check_mean(cells: Imported, stated: Imported) -> None:
    known = cells.table.complete
    if stated.stated_mean is None or not all(name in known for name in STANDARD):
        return
    mean = sum(float(known[name].mean()) for name in STANDARD) / len(STANDARD)
    if abs(mean - stated.stated_mean) > _AGREE:
        raise TrustError(
            "two files contradict each other on one model",
            found=f"{cells.model}: mean corruption error {100 * mean:.2f} % in {cells.path}, "
            f"{100 * stated.stated_mean:.2f} % in {stated.path}",
            hint="one of them",
        )


# --- RobustBench


def _robustbench_csv(path: Path, text: str) -> list[Imported]:
    """Two lines of head (corruption, severity), then a line a model: its name and fractions of accuracy."""
    lines = list(csv.reader(io.StringIO(text)))
    if len(lines) < 3 or len(lines[0]) < 2:
        raise _not_a_table(path, f"{len(lines)} lines")
    places: dict[int, tuple[str, int]] = {}
    for column, (name, level) in enumerate(zip(lines[0], lines[1], strict=False)):
        if column and level.strip() in map(str, SEVERITIES):
            places[column] = (name.strip(), int(level))
    if not places or len(set(places.values())) < len(places):
        raise _not_a_table(path, f"heads {', '.join(lines[0][1:4])!r} and {', '.join(lines[1][1:4])!r}")
    dataset = _dataset_of(path)
    classes, size, suite = _DATASETS.get(dataset, (None, None, ""))
    if not any(name in STANDARD for name, _ in places.values()):
        suite = f"{dataset or 'unknown'}-3dcc"
    found: dict[str, Imported] = {}
    for number, line in enumerate(lines[2:], start=3):
        if not any(cell.strip() for cell in line[1:]):
            continue
        errors: dict[str, list[float | None]] = {}
        for column, (name, severity) in places.items():
            cell = line[column].strip() if column < len(line) else ""
            value = None if not cell else 1 - _fraction(cell, f"{path}, line {number}, {name} {severity}")
            errors.setdefault(name, [None] * len(SEVERITIES))[severity - 1] = value
        model = line[0].strip() or f"line {number}"
        table = ErrorTable(None, {name: tuple(row) for name, row in errors.items()})
        if model in found and found[model].table != table:
            raise TrustError(
                "a file holds different figures for one model", found=f"{model} again in line {number} of {path}",
                hint="keep one of the lines",
            )  # fmt: skip
        found[model] = Imported(
            model, ORIGIN, str(path), dataset, suite, classes, size, table, notes=_notes(path, dataset)
        )
    if not found:
        raise _not_a_table(path, "no line with figures")
    return list(found.values())


def _robustbench_json(path: Path, text: str) -> list[Imported] | None:
    """``clean_acc`` and ``corruptions_acc`` (or ``…_2d``) of a model: a text is in %, a number up to 1 a fraction."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None  # the reader of results says it better
    if not isinstance(value, dict) or "clean_acc" not in value or "schema_version" in value:
        return None
    mean = value.get("corruptions_acc_2d", value.get("corruptions_acc"))
    if mean in (None, ""):
        raise InputError(
            f"{path} holds no figures under corruption", found="no corruptions_acc",
            hint="a file of model_info/*/corruptions/",
        )  # fmt: skip
    dataset = str(value.get("dataset") or "")
    classes, size, suite = _DATASETS.get(dataset, (None, None, ""))
    notes = list(_notes(path, dataset))
    if value.get("corruptions_mce_2d", value.get("corruptions_mce")) not in (None, ""):
        notes.append("mCE that RobustBench states is left out: it divides by its own AlexNet figures")
    clean = 1 - _share(value["clean_acc"], f"{path}, clean_acc")
    return [
        Imported(
            path.stem, ORIGIN, str(path), dataset, suite, classes, size, ErrorTable(clean, {}),
            stated_mean=1 - _share(mean, f"{path}, corruptions_acc"), notes=tuple(notes),
        )
    ]  # fmt: skip


def _notes(path: Path, dataset: str) -> tuple[str, ...]:
    known = "figures of RobustBench stand as published there: no intervals, ImageNet on 5,000 images"
    return (known,) if dataset in _DATASETS else (known, f"{path.name} does not say of which data set its figures are")


def _dataset_of(path: Path) -> str:
    """The data set that the path names, as RobustBench's folders do; empty for none."""
    words = [word for part in reversed(path.resolve().parts[-4:]) for word in re.split(r"[^a-z0-9]+", part.lower())]
    return next((word for word in words if word in _DATASETS), "")


def _share(value: object, where: str) -> float:
    """A JSON value: a text is in %, a number in % where it is above 1."""
    text = str(value).strip().rstrip("%")
    return _fraction(text, where, percent=isinstance(value, str) or (isinstance(value, int | float) and value > 1))


def _fraction(text: str, where: str, *, percent: bool = False) -> float:
    most = 100 if percent else 1
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise InputError(f"{where} is no accuracy", found=repr(text)[:60], hint=f"a number from 0 to {most}")
    return number / most


def _not_a_table(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} is not a table of RobustBench",
        found=found,
        hint="unaggregated_results.csv, or a run folder of lnbench eval (its results.csv is not read)",
    )


IMPORTERS: dict[str, Callable[[Path, str], list[Imported] | None]] = {
    ".csv": _robustbench_csv,
    ".json": _robustbench_json,
}
