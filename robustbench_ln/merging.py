"""Putting the run folders of shards together into one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from robustbench_ln.api import write_everything
from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.planning import order_digest, visiting_order
from robustbench_ln.results import (
    Cell,
    FolderRun,
    Results,
    collect,
    is_part,
    load_results,
    open_run,
    read_manifest,
    shards_missing,
)
from robustbench_ln.types import Condition, Counts, ResultRow


def merge(folders: Sequence[str | Path], out: str | Path, *, command: str = "") -> Results:
    """Put shards together: their rows, and the rows of which they have parts.

    Args:
        folders: run folders of the same settings, as `lnbench eval --shard` makes them.
        out: run folder to be made or added to; one of `folders` will do.
        command: the command line to record.

    Returns: all rows of `out`. Rows that no folder has stand among them as failed.

    Raises:
        UsageError: nothing to merge, or folders of different settings.
        InputError: one that is no run folder, or whose command did not end.
    """
    sources = [Path(folder) for folder in folders]
    if not sources:
        raise UsageError("nothing to merge", hint="lnbench merge SHARD1 SHARD2 --out DIR")
    documents = [load_results(source) for source in sources]
    manifest = read_manifest(sources[0] / "run.json")
    for source in sources[1:]:
        manifest = manifest.extended(read_manifest(source / "run.json"))
    with open_run(Path(out), manifest) as run:
        assert isinstance(run, FolderRun)
        for source in sources:
            other = FolderRun(source, manifest)
            for key in other.stored():
                cell = other.get(key)
                if cell is not None and run.get(key) is None:
                    run.append(key, cell)
        for row, parts in _parts(run.stored()).items():
            whole = _joined(run, parts)
            if whole is not None:
                run.append(row, whole)
                run.drop(parts)
        found = [cell.row for _, cell in run.cells()]
        warnings = [text for one in documents for text in one.warnings]
        info = documents[0].document.run.model_copy(
            update={
                "command": command,
                "created": run.manifest.created,
                "warnings": list(dict.fromkeys(warnings)),
                "shards": list(run.manifest.shards),
            }
        )
        if not shards_missing(info):
            info = info.model_copy(update={"shards": []})
        scored = next((one.scored for one in documents if one.scored is not None), None)
        results = collect(run, info, scored, _missing(found, run.manifest.conditions))
        write_everything(run, results)
    return results


def _parts(keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys of parts by the key of their row, in visiting order."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        if is_part(key):
            parts.setdefault(key.partition("-")[0], []).append(key)
    return {row: sorted(mine, key=lambda key: int(key.partition("-")[2])) for row, mine in parts.items()}


def _joined(run: FolderRun, parts: Sequence[str]) -> Cell | None:
    """The row that parts make up; None while some are missing.

    Raises:
        InputError: images were visited in an order that is not the seed's.
    """
    manifest = run.manifest
    cells = [cell for cell in map(run.get, parts) if cell is not None]
    scored = manifest.data.n if manifest.limit is None else manifest.limit
    if sum(cell.row.counts.n for cell in cells) < scored:
        return None
    order = visiting_order(manifest.seed, manifest.data.n)
    if order_digest(order) != manifest.order_sha256:
        raise InputError(
            "the shards visited images in an order of their own",
            found=f"order {manifest.order_sha256[:12]}",
            hint="lnbench eval without --shard",
        )
    indices, first = [], 0
    for cell in cells:
        indices.append(order[first : first + cell.row.counts.n].sort().values.numpy())
        first += cell.row.counts.n
    return Cell.joined(cells, indices)


def _missing(rows: Sequence[ResultRow], conditions: Sequence[Condition]) -> list[ResultRow]:
    """A failed row for every condition that a model under a mode lacks."""
    have = {(row.model, row.mode, row.condition) for row in rows}
    pairs = {(row.model, row.mode): row for row in rows}
    return [
        replace(
            one,
            condition=condition,
            counts=Counts(0, 0, None, 0.0, 0.0),
            fingerprint="",
            seconds=0.0,
            status="failed",
            extra={"reason": "in none of the merged folders"},
        )
        for (model, mode), one in pairs.items()
        for condition in conditions
        if (model, mode, condition) not in have
    ]
