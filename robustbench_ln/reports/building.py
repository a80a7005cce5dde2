"""From results on disk to a `Summary` with its mCE sheet: what ``lnbench report`` does before any ink."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from robustbench_ln.errors import TrustError, UsageError, unknown_name
from robustbench_ln.metrics.mce import ALEXNET, SEVERITIES, STANDARD, ErrorTable, Estimate, WrongImages, score
from robustbench_ln.reports.details import flips_of, reliabilities
from robustbench_ln.reports.importing import Imported
from robustbench_ln.reports.inputs import Inputs, check_same_data, key_of, read_inputs
from robustbench_ln.reports.sheet import NO_NORMALISER, Entry, Sheet, mean_words, ordered
from robustbench_ln.reports.summary import Hits, Summary, hit_table, mode_labels, suite_of, summarise
from robustbench_ln.results.document import DocumentRow

ALEXNET_SUITE = "imagenet-c"
PUBLISHED_MODE = "native"  # of figures that others measured
# The mode that is the network as it comes: what a results file divides by when several were run.
_OWN_MODES = ("native", "bn", "ln-batch")

Cells = dict[str, dict[float, list[DocumentRow]]]


def build(results: Sequence[Path | str], *, normaliser: str | None = None, suite: str | None = None) -> Summary:
    """Read results and bring them to the numbers of a report.

    Args:
        results: run folders or results files, at least one.
        normaliser: ``alexnet``, ``none``, or a results file, with ``#MODEL`` or ``#MODEL/MODE`` where it has several.
            None is ``alexnet`` for ImageNet-C and ``none`` for all else.
        suite: the suite to report on, where the results hold several.

    Raises:
        UsageError: no such suite, model or mode.
        InputError: something cannot be read, the normaliser's file included.
        TrustError: the inputs, or the normaliser, are of other data, sizes or suites.
    """
    return assemble(read_inputs(results), normaliser=normaliser, suite=suite)


def assemble(inputs: Inputs, *, normaliser: str | None = None, suite: str | None = None) -> Summary:
    """The numbers of inputs that were read; arguments and errors as of :func:`build`."""
    summary = summarise(inputs.document, inputs.hits)
    chosen = _one_suite(inputs, suite)
    name = normaliser or ("alexnet" if _base(chosen) == ALEXNET_SUITE else NO_NORMALISER)
    divisor = _normaliser(name, inputs, chosen)
    entries = [
        _entry(summary, inputs, model.id, model.label, mode, chosen, divisor)
        for model in summary.models
        for mode in model.modes
    ]
    lines = [line for line in inputs.imported if suite is None or line.suite in ("", _base(suite))]
    _check_imported(inputs, lines)
    entries += [_published_entry(line, chosen, divisor) for line in lines]
    sheet = Sheet(tuple(entries), name, asked=normaliser is not None)
    notes = [*(note for line in lines for note in line.notes), *_notes(sheet, chosen)]
    return replace(
        summary,
        grids=tuple(grid for grid in summary.grids if grid.suite == chosen),
        warnings=tuple(dict.fromkeys([*summary.warnings, *notes])),
        sheet=sheet,
        sources=inputs.sources,
    )


def _one_suite(inputs: Inputs, suite: str | None) -> str:
    """The suite that the report is on; empty where there are no corruptions."""
    rows = [row for row in inputs.document.rows if row.status == "ok"]
    suites = ordered(name for row in rows if (name := suite_of(row.condition)))
    bases = {_base(name) for name in suites}
    # Published images went through JPEG of quality 85, so that their figures go with either kind of ours.
    suites += ordered(line.suite for line in inputs.imported if line.suite and line.suite not in bases)
    if suite is not None:
        if suite not in suites:
            raise UsageError(
                f"the results hold no corruptions of suite {suite!r}",
                found=", ".join(suites) or "none",
                hint="lnbench eval --corruption all --suite ...",
            )
        return suite
    if len(suites) > 1:
        raise TrustError(
            "the inputs mix suites, whose severities are not the same",
            found=", ".join(suites),
            hint=f"--suite {shlex.quote(suites[0])}",
        )
    return suites[0] if suites else ""


def _base(suite: str) -> str:
    return suite.partition(",")[0]


def _normaliser(name: str, inputs: Inputs, suite: str) -> ErrorTable | None:
    if name == NO_NORMALISER:
        return None
    if name == "alexnet":
        return ALEXNET
    path, _, chosen = name.partition("#")
    if not Path(path).exists() and Path(path).name == path and not Path(path).suffix:
        raise unknown_name("normaliser", name, ["alexnet", NO_NORMALISER, "a results file"])
    other = read_inputs([path])
    for mine, theirs in zip(inputs.sources[:1], other.sources[:1], strict=False):
        check_same_data(mine, theirs)
    _check_imported(other if other.sources else inputs, [*inputs.imported, *other.imported])
    own = {suite_of(row.condition) for row in other.document.rows if row.status == "ok"} - {""}
    found = own | {suite if line.suite in ("", _base(suite)) else line.suite for line in other.imported}
    if suite not in found:
        raise TrustError(
            "the normaliser is of another suite",
            found=f"{', '.join(sorted(found)) or 'none'} in {path}, {suite or 'none'} in the results",
            hint="results of the same suite",
        )
    summary = summarise(other.document, other.hits)
    tables = {
        (model.id, mode): _table(*_cells(other, model.id, mode, suite))
        for model in summary.models
        for mode in model.modes
    }
    tables |= {(line.model, PUBLISHED_MODE): line.table for line in other.imported}
    wanted_model, _, wanted_mode = chosen.partition("/")
    fit = [(m, mode) for m, mode in tables if m.startswith(wanted_model) and wanted_mode in ("", mode)]
    fit = [pair for pair in fit if pair[0] == wanted_model] or fit
    if len({model for model, _ in fit}) == 1 and len(fit) > 1:
        fit = [pair for own_mode in _OWN_MODES for pair in fit if pair[1] == own_mode][:1] or fit
    if len(fit) != 1:
        listed = ", ".join(f"{model}/{mode}" for model, mode in (fit or list(tables))[:6])
        raise UsageError(
            "a normaliser is one model under one mode",
            found=f"{len(fit)} in {path}: {listed}",
            hint=f"--normaliser '{path}#MODEL/MODE'",
        )
    return tables[fit[0]]


def _check_imported(inputs: Inputs, lines: Sequence[Imported]) -> None:
    """Refuse figures of other data than ours, or than each other's, as far as they say.

    Raises: TrustError naming what differs.
    """
    classes: dict[int, str] = {}
    sizes: dict[int, str] = {}
    for source in inputs.sources[:1]:
        for model in inputs.document.models:
            classes.setdefault(model.num_classes or source.data.classes, source.path)
        sizes |= {max(source.data.image_size): source.path} if any(source.data.image_size) else {}
    for line in lines:
        for what, known, value in (("data", classes, line.classes), ("image sizes", sizes, line.size)):
            if value is None or value in known:
                continue
            if known:
                unit = "classes" if what == "data" else "pixels"
                others = ", ".join(f"{one} {unit} in {path}" for one, path in known.items())
                raise TrustError(
                    f"the inputs have different {what}",
                    found=f"{others}; {value} {unit} in {line.path}",
                    hint="a report of each alone",
                )
            known[value] = line.path


def _cells(inputs: Inputs, model: str, mode: str, suite: str) -> tuple[list[DocumentRow], Cells]:
    """The rows of a model under a mode: those of clean images, and by corruption and severity."""
    done = [row for row in inputs.document.rows if row.status == "ok"]
    clean: list[DocumentRow] = []
    cells: Cells = {}
    for row, label in zip(done, mode_labels(done), strict=True):
        if (row.model, label) != (model, mode):
            continue
        if row.condition.kind == "clean":
            clean.append(row)
        elif suite and suite_of(row.condition) == suite:
            cells.setdefault(row.condition.name, {}).setdefault(row.condition.level, []).append(row)
    return clean, {name: cells[name] for name in ordered(cells)}


def _noisy(inputs: Inputs, model: str, mode: str) -> list[DocumentRow]:
    """The rows of a model under a mode that noise has changed."""
    done = [row for row in inputs.document.rows if row.status == "ok"]
    return [
        row
        for row, label in zip(done, mode_labels(done), strict=True)
        if (row.model, label) == (model, mode) and row.condition.kind == "noise" and row.condition.level > 0
    ]


def _error(rows: Sequence[DocumentRow]) -> float:
    """Mean over the repeats; each has its own n, which is the same."""
    return float(np.mean([(row.n - row.correct) / row.n for row in rows]))


def _table(clean: list[DocumentRow], cells: Cells) -> ErrorTable:
    errors = {
        name: tuple(_error(levels[s]) if s in levels else None for s in SEVERITIES) for name, levels in cells.items()
    }
    return ErrorTable(_error(clean) if clean else None, errors)


def _wrong(clean: list[DocumentRow], cells: Cells, table: ErrorTable, hits: Hits) -> WrongImages | None:
    """The images behind a table; None where predictions were not kept, or rows are of other images."""
    errors = {}
    known = hit_table(clean, hits) if clean else None
    for name in table.complete:
        found = [hit_table(cells[name][s], hits) for s in SEVERITIES]
        if any(one is None for one in found):
            return None
        errors[name] = [1 - one.mean(axis=0, dtype=np.float32) for one in found if one is not None]
    if (clean and known is None) or len({len(one) for rows in errors.values() for one in rows}) > 1:
        return None
    lengths = {len(one) for rows in errors.values() for one in rows}
    if known is not None and lengths and lengths != {known.shape[1]}:
        return None
    return WrongImages(
        None if known is None else 1 - known.mean(axis=0, dtype=np.float32),
        {name: np.stack(rows) for name, rows in errors.items()},
    )


def _entry(
    summary: Summary, inputs: Inputs, model: str, label: str, mode: str, suite: str, normaliser: ErrorTable | None
) -> Entry:
    clean, cells = _cells(inputs, model, mode, suite)
    table = _table(clean, cells)
    degraded = [row for levels in cells.values() for rows in levels.values() for row in rows]
    degraded = degraded or _noisy(inputs, model, mode)
    point = summary.clean.get((model, mode))
    data = inputs.data[model]
    return Entry(
        model=model,
        label=label,
        mode=mode,
        suite=suite if cells else "",
        clean=None if point is None or table.clean is None else Estimate(table.clean, 1 - point.high, 1 - point.low),
        table=table,
        scores=score(table, normaliser, _wrong(clean, cells, table, inputs.hits)),
        pixels=data.pixels,
        frost=data.frost if "frost" in cells else None,
        calibration=reliabilities(clean, degraded),
        flips=flips_of(inputs.owners[key_of(clean[0])], clean[0], degraded) if clean and degraded else None,
    )


def _published_entry(line: Imported, suite: str, normaliser: ErrorTable | None) -> Entry:
    return Entry(
        model=line.model,
        label=line.model,
        mode=PUBLISHED_MODE,
        suite=line.suite or suite,
        clean=None if line.table.clean is None else Estimate(line.table.clean),
        table=line.table,
        scores=score(line.table, normaliser),
        pixels="published",
        frost="original" if "frost" in line.table.errors else None,
        origin=line.origin,
        file=line.path,
        stated_mean=line.stated_mean,
    )


def _notes(sheet: Sheet, suite: str) -> list[str]:
    """What a reader of the sheet must know."""
    notes = []
    entries = sheet.with_corruptions
    if sheet.normaliser == "alexnet" and suite and _base(suite) != ALEXNET_SUITE:
        notes.append(
            f"mCE divides errors of {suite} by AlexNet's on ImageNet-C: a number of its own, "
            "not comparable with published mCE"
        )
    for words in dict.fromkeys(mean_words(entry) for entry in entries):
        names = ", ".join(entry.name for entry in entries if mean_words(entry) == words)
        if words and not next(entry.n_corruptions for entry in entries if mean_words(entry) == words):
            notes.append(
                f"no mCE and no mean: of the {len(STANDARD)} corruptions that enter them none is whole: {names}"
            )
        elif words:
            notes.append(f"no mCE, only a {words}, as corruptions or severities are missing: {names}")
    if sheet.is_normalised:
        gone = [e for e in entries if e.scores.mce is None and e.is_whole]
        if gone:
            names = ", ".join(entry.name for entry in gone)
            notes.append(f"no mCE, as the normaliser or the cells lack corruptions: {names}")
        bare = [e for e in entries if e.scores.mce is not None and e.scores.relative_mce is None]
        if bare:
            names = ", ".join(entry.name for entry in bare)
            notes.append(f"no relative mCE, which needs clean errors, and a normaliser that loses accuracy: {names}")
    if any(not e.origin and e.scores.mean_error and e.scores.mean_error.low is None for e in entries):
        notes.append("means over corruptions have no intervals where predictions were not kept, or rows stopped early")
    if len({entry.qualifier for entry in entries}) > 1:
        notes.append("regenerated and published pixels are never ranked together: they stand in tables of their own")
    return notes
