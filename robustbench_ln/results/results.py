"""What an evaluation hands back: typed rows, a data frame where pandas is present, a table in a notebook."""

from __future__ import annotations

import html
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.errors import InputError, ResourceError, UsageError
from robustbench_ln.files import write_bytes, writing
from robustbench_ln.results.document import (
    FILE_NAME,
    DocumentRow,
    ResultsDocument,
    RunInfo,
    data_to_document,
    dump_document,
    load_document,
    model_to_document,
    row_from_document,
    row_to_document,
)
from robustbench_ln.results.store import Cell, FolderRun, Run
from robustbench_ln.types import ResultRow

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS = "predictions.npz"
Predictions = tuple[NDArray[np.int32], NDArray[np.float32]]


class Scored(NamedTuple):
    """The images that were scored, in data set order.

    Attributes:
        indices: ``(n,)`` int64, rising.
        labels: ``(n,)`` int64.
        places: ``(n,)`` int64, where each stands in the visiting order: a row that stopped after m of them has those
            with places below m. None in folders of older versions, whose rows have all.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    places: NDArray[np.int64] | None = None


class Results:
    """The rows of a run.

    Attributes:
        document: everything, as it stands in ``results.json``.
        folder: the run folder; None for a run that was kept in memory.
    """

    def __init__(
        self,
        document: ResultsDocument,
        folder: Path | None,
        predictions: Callable[[str], Predictions | None],
        scored: Scored | None,
    ) -> None:
        self.document, self.folder = document, folder
        self._predictions, self._scored = predictions, scored

    @property
    def rows(self) -> list[ResultRow]:
        """Every row, by model, condition and mode."""
        return [row_from_document(row) for row in self.document.rows]

    @property
    def warnings(self) -> list[str]:
        """What to know before trusting the numbers."""
        return self.document.run.warnings

    def accuracy(
        self,
        mode: str,
        name: str = "clean",
        level: float = 0.0,
        *,
        model: str | None = None,
        range: str | None = None,
        repeat: int = 0,
    ) -> float:
        """Accuracy of one cell, a fraction.

        Args:
            mode: the mode's name, with or without ``:M``.
            name: ``clean``, a noise or a corruption.
            level: sigma or severity.
            model: start of the model's id; may be left out when one model was run.
            range: what happened to noisy values outside [0, 1]; may be left out when one policy was run.
            repeat: which redraw.

        Raises:
            UsageError: no such cell, or more than one.
        """
        found = [
            row
            for row in self.rows
            if mode in (row.mode, f"{row.mode}:{row.images}")
            and (row.condition.name, row.condition.level, row.condition.repeat) == (name, level, repeat)
            and row.model.startswith(model or "")
            and range in (None, row.condition.range)
        ]
        if len(found) != 1:
            fit = "; ".join(f"{row.model}, {row.mode}, {row.condition}" for row in (found or self.rows)[:5])
            raise UsageError(
                f"{mode}, {name} {level:g} is not one row",
                found=f"{len(found)} rows",
                hint=f"one of {fit}{' ...' if len(found or self.rows) > 5 else ''}",
            )
        return found[0].accuracy

    @property
    def scored(self) -> Scored | None:
        """The images that were scored; None where predictions were not kept."""
        return self._scored

    def predictions(self, row: DocumentRow) -> Predictions | None:
        """``(n,)`` predicted class (-1: none) and top probability of each scored image in data set order.

        None where predictions were not kept.
        """
        key = row.extra.get("predictions")
        return None if key is None else self._predictions(str(key))

    def hits(self, row: DocumentRow) -> NDArray[np.bool_] | None:
        """``(n,)`` whether each scored image was predicted right, in data set order.

        None where that is not known, and for a row that stopped early: its images are not those of other rows.
        """
        kept = self.predictions(row)
        if kept is None or self._scored is None or row.interval == "anytime":
            return None
        hits: NDArray[np.bool_] = kept[0] == self._scored.labels
        return hits

    def to_dataframe(self) -> pd.DataFrame:
        """One line a row, with the condition's parts as columns.

        Raises:
            ResourceError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ResourceError(
                "a data frame needs pandas",
                found="pandas is not installed",
                hint="pip install pandas",
            ) from None
        lines = []
        for row in self.document.rows:
            line = row.model_dump(exclude={"condition", "counts", "extra", "ci95"})
            low, high = row.ci95 or (None, None)
            lines.append({**line, **row.condition.model_dump(), "ci_low": low, "ci_high": high})
        return pd.DataFrame(lines)

    def __len__(self) -> int:
        return len(self.document.rows)

    def __repr__(self) -> str:
        models = ", ".join(entry.id for entry in self.document.models)
        return f"<Results: {len(self)} rows of {models} on {self.document.data.id}>"

    def _repr_html_(self) -> str:
        cells = []
        for row in self.document.rows:
            ci = f"[{100 * row.ci95[0]:.2f}, {100 * row.ci95[1]:.2f}]" if row.ci95 else ""
            accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.2f}"
            texts = (row.model, row.mode, str(row.condition.to_condition()), accuracy, ci, str(row.n))
            cells.append("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>")
        head = "".join(
            f"<th>{text}</th>" for text in ("model", "mode", "condition", "accuracy %", "95 % interval", "n")
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>"


def collect(
    run: Run,
    info: RunInfo,
    scored: Scored | None,
    failed: Sequence[ResultRow] = (),
) -> Results:
    """All finished rows of an open run, and those that failed behind them.

    Args:
        run: an open run.
        info: how the numbers were made.
        scored: the images of a whole row; None where no predictions were kept.
        failed: rows without numbers.
    """
    rows = []
    kept = False
    for key, cell in run.cells():
        entry = row_to_document(cell.row)
        if len(cell.predicted):
            kept = True
            entry = entry.model_copy(update={"extra": {**entry.extra, "predictions": key}})
        rows.append(entry)
    rows += [row_to_document(row) for row in failed]
    used = {row.model for row in rows}
    document = ResultsDocument(
        schema_version=1,
        run=info,
        models=[model_to_document(model) for model in run.manifest.models if model.id in used],
        data=data_to_document(run.manifest.data),
        # A shard may have parts of rows only; which images were scored is then known all the same.
        predictions=PREDICTIONS if (kept or not rows) and isinstance(run, FolderRun) else None,
        rows=rows,
    )

    def predictions(key: str) -> Predictions | None:
        cell = run.get(key)
        return None if cell is None else (cell.predicted, cell.confidence)

    return Results(document, run.folder if isinstance(run, FolderRun) else None, predictions, scored)


def save(run: FolderRun, results: Results) -> None:
    """Write ``results.json`` and, where they were kept, ``predictions.npz`` into the run's folder.

    The archive holds the arrays of :class:`Scored`, and for each row ``KEY/predicted`` and ``KEY/confidence``, KEY
    being the row's ``extra.predictions``.
    """
    if results.document.predictions is not None:
        assert results._scored is not None
        with writing(run.folder / PREDICTIONS) as file, zipfile.ZipFile(file, "w") as archive:
            for name, whole in results._scored._asdict().items():
                _add(archive, name, whole)
            for key, cell in run.cells():
                for name, array in _arrays(cell):
                    _add(archive, f"{key}/{name}", array)
    write_bytes(run.folder / FILE_NAME, dump_document(results.document).encode())


def _arrays(cell: Cell) -> Iterator[tuple[str, NDArray[np.int32] | NDArray[np.float32]]]:
    if len(cell.predicted):
        yield "predicted", cell.predicted
        yield "confidence", cell.confidence


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[np.generic]) -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=False)
    # A fixed date: the same results are the same bytes.
    archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue(), zipfile.ZIP_DEFLATED)


def load_results(path: Path | str) -> Results:
    """Read a run folder or a ``results.json``.

    Raises:
        InputError: the file is missing, damaged, of a newer schema, or its predictions cannot be read.
    """
    file = Path(path)
    document = load_document(file)
    folder = file if file.is_dir() else file.parent
    if document.predictions is None:
        return Results(document, folder, lambda _: None, None)
    source = folder / document.predictions
    try:
        archive = np.load(source, allow_pickle=False)
        names = [name for name in Scored._fields if name != "places" or name in archive]
        scored = Scored(**{name: archive[name].astype(np.int64) for name in names})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read predictions {source}", found=str(error)[:200], hint="run the same lnbench eval again"
        ) from None

    def predictions(key: str) -> Predictions | None:
        if f"{key}/predicted" not in archive:
            return None
        return archive[f"{key}/predicted"], archive[f"{key}/confidence"]

    return Results(document, folder, predictions, scored)
