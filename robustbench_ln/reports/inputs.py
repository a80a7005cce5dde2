"""What a report is made from: one or several results, read and found to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustbench_ln.errors import TrustError
from robustbench_ln.reports.importing import Imported, merged, read_imported
from robustbench_ln.reports.summary import Hits, Source
from robustbench_ln.results import DocumentRow, Results, ResultsDocument, load_results
from robustbench_ln.results.document import DataEntry, ModelEntry, RunInfo
from robustbench_ln.types import Condition

PREVIEW = "preview.png"
_LARGEST_PREVIEW = 1_200_000  # bytes, so that a page stays under two megabytes

Key = tuple[str, str, int | None, Condition]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Results that may stand in one report.

    Attributes:
        document: all of them as one document.
        hits: a way to each image's prediction.
        sources: what each of them was.
        data: model id to the data entry of its results (pixels and frost may differ between inputs).
        owners: which results a row is of.
        imported: figures of other tools.
    """

    document: ResultsDocument
    hits: Hits
    sources: tuple[Source, ...]
    data: dict[str, DataEntry]
    owners: dict[Key, Results]
    imported: tuple[Imported, ...] = ()


def read_inputs(paths: Sequence[Path | str]) -> Inputs:
    """Read run folders, results files and figures of other tools, at least one.

    Raises:
        InputError: one of them cannot be read.
        TrustError: they do not belong in one report: other data, sizes or frost textures, or two of them hold
            different numbers for the same thing.
    """
    read: list[tuple[str, Results]] = []
    found: list[Imported] = []
    for path in paths:
        figures = read_imported(path)
        if figures is None:
            read.append((str(path), load_results(path)))
        else:
            found += figures
    lines = tuple(merged(found))
    inputs = join(read) if read else Inputs(_published(lines[0]), lambda _: None, (), {}, {})
    return replace(inputs, imported=lines)


def join(read: Sequence[tuple[str, Results]]) -> Inputs:
    """Results as one document; the arguments are names for messages and what was read. Raises as `read_inputs`."""
    sources = tuple(Source(path, one.document.run, one.document.data, _preview(one)) for path, one in read)
    for other in sources[1:]:
        check_same_data(sources[0], other)
    models: dict[str, ModelEntry] = {}
    data: dict[str, DataEntry] = {}
    rows: dict[Key, DocumentRow] = {}
    owners: dict[Key, Results] = {}
    seen: dict[tuple[int, Condition], str] = {}
    files: dict[Condition, str] = {}
    redrawn = False
    for path, one in read:
        for model in one.document.models:
            known = models.setdefault(model.id, model)
            if known.sha256 != model.sha256:
                raise _mixed("two models have one id", f"{model.id!r} again in {path}, with another digest")
            before = data.setdefault(model.id, one.document.data)
            if (before.pixels, before.frost or "") != (one.document.data.pixels, one.document.data.frost or ""):
                data[model.id] = _joined_pixels(model.id, path, before, one.document.data)
        for row in one.document.rows:
            key = key_of(row)
            pixels = seen.setdefault((one.document.run.seed, key[-1]), row.fingerprint)
            redrawn |= bool(pixels and row.fingerprint and pixels != row.fingerprint)
            published = str(row.extra.get("files_sha256", ""))
            if published and files.setdefault(key[-1], published) != published:
                raise _mixed("the inputs hold other published images of one condition", f"{key[-1]} in {path}")
            kept = rows.get(key)
            if kept is not None and kept.status == "ok" and row.status == "ok" and not _agree(kept, row):
                raise _mixed(
                    "the inputs hold different numbers for the same thing",
                    f"{row.model}, {row.mode}, {row.condition.to_condition()}: {kept.correct} of {kept.n}, "
                    f"and {row.correct} of {row.n} in {path}",
                )
            if kept is None or kept.status != "ok":
                rows[key], owners[key] = row, one
    first = read[0][1].document
    notes = [note for _, one in read for note in one.document.run.warnings] + _differences(sources)
    if redrawn:
        notes.append("the inputs hold other pixels for one condition and seed: they were made by other versions")
    document = first.model_copy(
        update={
            "run": first.run.model_copy(
                update={
                    "warnings": list(dict.fromkeys(notes)),
                    "shards": [shard for _, one in read for shard in one.document.run.shards],
                }
            ),
            "models": list(models.values()),
            "rows": list(rows.values()),
        }
    )

    def hits(row: DocumentRow) -> npt.NDArray[np.bool_] | None:
        owner = owners.get(key_of(row))
        return None if owner is None else owner.hits(row)

    return Inputs(document, hits, sources, data, owners)


def _preview(results: Results) -> bytes | None:
    """The picture that ``lnbench preview`` put into the run folder; None for none, or what is no PNG of usable size."""
    file = results.folder / PREVIEW if results.folder else None
    if file is None or not file.is_file() or file.stat().st_size > _LARGEST_PREVIEW:
        return None
    content = file.read_bytes()
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def _published(line: Imported) -> ResultsDocument:
    """A document without rows, for a report on figures of other tools alone."""
    return ResultsDocument(
        schema_version=1,
        run=RunInfo(
            lnbench_version="", created="", command="", seed=0, limit=None, precision="", torch="", device="",
            threads=1, batch_size=1, order_sha256="", warnings=[],
        ),
        models=[],
        data=DataEntry(
            id=line.dataset or line.origin, source="", sha256="", n=0, classes=line.classes or 1, pixels="published",
            frost=None,
        ),
        predictions=None,
        rows=[],
    )  # fmt: skip


def key_of(row: DocumentRow) -> Key:
    """What a row is of."""
    return row.model, row.mode, row.images, row.condition.to_condition()


def check_same_data(one: Source, other: Source) -> None:
    """Refuse two results that are not of the same images, as far as both say what theirs are.

    Raises: TrustError naming what differs.
    """
    a, b = one.data, other.data
    digests = bool(a.sha256 and b.sha256)
    sizes = any(a.image_size) and any(b.image_size)
    # Textures of other kinds may stand in one report: they are never ranked together.
    textures = a.frost == b.frost and bool(a.frost_sha256 and b.frost_sha256)
    for what, known, mine, theirs in (
        ("data", True, *((a.sha256, b.sha256) if digests else (a.id, b.id))),
        ("image sizes", sizes, a.image_size, b.image_size),
        ("image geometry", sizes, a.geometry, b.geometry),
        ("frost textures", textures, a.frost_sha256, b.frost_sha256),
    ):
        if known and mine != theirs:
            names = (f"{a.id}, {_shown(mine)}", f"{b.id}, {_shown(theirs)}")
            raise _mixed(f"the inputs have different {what}", f"{names[0]} in {one.path}; {names[1]} in {other.path}")


def _shown(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)[:24]


def _mixed(what: str, found: str) -> TrustError:
    return TrustError(what, found=found, hint="a report of each alone")


def _agree(a: DocumentRow, b: DocumentRow) -> bool:
    return (a.n, a.correct) == (b.n, b.correct)


def _joined_pixels(model: str, path: str, a: DataEntry, b: DataEntry) -> DataEntry:
    """The entry of a model whose rows lie in two folders, one of which has no frost."""
    if a.pixels == b.pixels and not (a.frost and b.frost):
        return a if a.frost else b
    raise _mixed(
        "the inputs mix published and regenerated pixels, or two kinds of frost, for one model",
        f"{model}: {a.pixels}, frost {a.frost}, and {b.pixels}, frost {b.frost} in {path}",
    )


def _differences(sources: Sequence[Source]) -> list[str]:
    """What may differ between inputs, and must be known."""
    notes = []
    for what in ("seed", "limit", "ci_width", "precision", "lnbench_version"):
        values = list(dict.fromkeys(getattr(source.run, what) for source in sources))
        if len(values) > 1:
            name = what.replace("_", " ")
            shown = ", ".join("none" if value is None else str(value) for value in values)
            notes.append(f"the inputs differ in {name} ({shown}): differences between models are not paired")
    return notes
