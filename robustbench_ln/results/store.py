"""A run's finished rows: one checksummed file a row, so that a kill at any moment loses none.

OUT/run.json            what the run is: data, seed, limit, precision, models, order of everything
OUT/rows/KEY.row        a finished row with its predictions; KEY is a digest of all that can change its numbers
OUT/results.json …      made from the rows when a command ends
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_ln.errors import InputError, UsageError
from robustbench_ln.files import leftovers, locked, write_bytes
from robustbench_ln.types import Condition, Counts, DataInfo, ModelInfo, ResultRow

log = logging.getLogger("robustbench_ln")

_SINGULAR = ("seed", "limit", "ci-width", "precision", "kernel version", "visiting order")


@dataclass(frozen=True, slots=True)
class Cell:
    """A finished row and what it was counted from.

    Attributes:
        row: the counted row.
        predicted: ``(n,)`` int32 class of each scored image in data set order; -1 where there were no finite logits.
        confidence: ``(n,)`` float32 top probability. Both are empty where predictions were not kept.
    """

    row: ResultRow
    predicted: NDArray[np.int32]
    confidence: NDArray[np.float32]

    @classmethod
    def joined(cls, cells: Sequence[Cell], indices: Sequence[NDArray[np.int64]]) -> Cell:
        """The row of which `cells` are parts.

        Args:
            cells: of one condition, model and mode.
            indices: of each cell's images in the data set, rising.
        """
        row = cells[0].row
        lost = sum(cell.row.extra.get("non_finite", 0) for cell in cells)
        row = replace(
            row,
            counts=reduce(add, (cell.row.counts for cell in cells)),
            seconds=round(sum(cell.row.seconds for cell in cells), 3),
            extra=row.extra | ({"non_finite": lost} if lost else {}),
        )
        by_index = np.concatenate(indices).argsort()
        predicted, confidence = (
            np.concatenate([getattr(cell, name) for cell in cells]) for name in ("predicted", "confidence")
        )
        if not len(predicted):
            return cls(row, predicted, confidence)
        return cls(row, predicted[by_index], confidence[by_index])

    def to_bytes(self) -> bytes:
        """A line with the SHA-256 of all that follows, a line of JSON, then the two arrays, little-endian."""
        row = asdict(self.row) | {"condition": self.row.condition.to_dict()}
        head = json.dumps({"row": row, "n": len(self.predicted)}, allow_nan=False, sort_keys=True)
        body = head.encode() + b"\n" + self.predicted.astype("<i4").tobytes() + self.confidence.astype("<f4").tobytes()
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, content: bytes) -> Cell:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: the content is not what was written.
        """
        digest, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError("checksum does not match")
        head, _, arrays = body.partition(b"\n")
        meta = json.loads(head)
        n = meta["n"]
        counts = _tuples(meta["row"]["counts"])
        condition = Condition.from_dict(meta["row"]["condition"])
        row = ResultRow(**{**_tuples(meta["row"]), "condition": condition, "counts": Counts(**counts)})
        predicted = np.frombuffer(arrays, "<i4", n).astype(np.int32)
        return cls(row, predicted, np.frombuffer(arrays, "<f4", n, offset=4 * n).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run folder is. Models, modes, conditions and warnings grow when commands add to it; the rest is fixed.

    Attributes:
        data: the data set.
        seed: of everything random.
        limit: how many images are scored; None for all.
        precision: of the forward passes.
        kernels: version of the noise and corruption kernels.
        order_sha256: digest of the visiting order.
        created: when the folder was made, ISO 8601, UTC.
        models: every model evaluated into the folder.
        modes: mode names in the order first asked for.
        conditions: conditions in the order first asked for.
        warnings: everything a reader should know.
        shards: parts of the work, ``i/n``, that were done into the folder; empty where it was not divided.
        files: digest of the images of each published condition.
        ci_width: how narrow an interval ends a row early; None for rows of all images.
    """

    data: DataInfo
    seed: int
    limit: int | None
    precision: str
    kernels: int
    order_sha256: str
    created: str
    models: tuple[ModelInfo, ...] = ()
    modes: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    warnings: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    ci_width: float | None = None

    def extended(self, other: Manifest) -> Manifest:
        """Return this manifest with what `other` adds.

        Raises:
            UsageError: `other` has another data set, seed, limit, interval width, precision, kernels, visiting order,
                other frost textures or published files.
        """
        mine, theirs = self.data.frost_sha256, other.data.frost_sha256
        data = replace(self.data, frost=self.data.frost or other.data.frost, frost_sha256=mine or theirs)
        for name, here, asked in (
            ("data", self.data.sha256, other.data.sha256),
            ("seed", self.seed, other.seed),
            ("limit", self.limit, other.limit),
            ("ci-width", self.ci_width, other.ci_width),
            ("precision", self.precision, other.precision),
            ("kernel version", self.kernels, other.kernels),
            ("visiting order", self.order_sha256, other.order_sha256),
            # Until frost is asked for, a folder has no textures; then they are fixed like the rest.
            ("frost textures", mine or theirs, theirs or mine),
            ("pixels", self.data.pixels, other.data.pixels),
            *((f"images of {name}", self.files.get(name, digest), digest) for name, digest in other.files.items()),
        ):
            if here != asked:
                shown, wanted = (value[:12] if isinstance(value, str) else value for value in (here, asked))
                if name == "data":
                    shown, wanted = f"{self.data.source} ({shown})", f"{other.data.source} ({wanted})"
                if name in ("limit", "ci-width"):
                    shown, wanted = (value or "none (all images)" for value in (shown, wanted))
                raise UsageError(
                    f"the run folder holds results of {'another' if name in _SINGULAR else 'other'} {name}",
                    found=f"{name} {shown} in the folder, {wanted} asked for",
                    hint="another --out, or the folder's own settings",
                )
        known = {model.id for model in self.models}
        return replace(
            self,
            data=data,
            models=self.models + tuple(model for model in other.models if model.id not in known),
            modes=tuple(dict.fromkeys(self.modes + other.modes)),
            conditions=tuple(dict.fromkeys(self.conditions + other.conditions)),
            warnings=tuple(dict.fromkeys(self.warnings + other.warnings)),
            shards=tuple(dict.fromkeys(self.shards + other.shards)),
            files={**self.files, **other.files},
        )

    def sort_key(self, row: ResultRow) -> tuple[int, int, int]:
        """Where a row stands among the others: by model, condition, mode, each in the order first asked for.

        Raises:
            ValueError: the manifest knows no such model, condition or mode.
        """
        ids = [model.id for model in self.models]
        return ids.index(row.model), self.conditions.index(row.condition), self.modes.index(row.mode)

    def to_json(self) -> bytes:
        """The content of ``run.json``."""
        value = asdict(self) | {"conditions": [condition.to_dict() for condition in self.conditions]}
        return json.dumps({"schema_version": 1, **value}, indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """The inverse of :meth:`to_json`; raises ValueError, KeyError or TypeError for anything else."""
        value = json.loads(content)
        return cls(
            **{one.name: value[one.name] for one in fields(cls) if one.name not in ("files", "shards", "ci_width")}
            | {
                "files": value.get("files", {}),
                "ci_width": value.get("ci_width"),  # older folders lack what could not be asked for
                "data": DataInfo(**_tuples(value["data"])),
                "models": tuple(ModelInfo(**_tuples(model)) for model in value["models"]),
                "modes": tuple(value["modes"]),
                "conditions": tuple(Condition.from_dict(condition) for condition in value["conditions"]),
                "warnings": tuple(value["warnings"]),
                "shards": tuple(value.get("shards", ())),
            }
        )


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


class MemoryRun:
    """Rows kept in memory, for a caller that wants no folder."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._cells: dict[str, Cell] = {}

    def get(self, key: str) -> Cell | None:
        """The finished cell of `key`, or None."""
        return self._cells.get(key)

    def append(self, key: str, cell: Cell) -> None:
        """Keep a finished cell."""
        self._cells[key] = cell

    def drop(self, keys: Iterable[str]) -> None:
        """Forget cells: parts of a row that is whole now."""
        for key in keys:
            self._cells.pop(key, None)

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Every finished row's cell with its key, sorted as the manifest says."""
        rows = [item for item in self._cells.items() if not is_part(item[0])]
        yield from sorted(rows, key=lambda item: self.manifest.sort_key(item[1].row))


class FolderRun:
    """Rows in a folder; see the module's head. Made by :func:`open_run`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._rows = folder / "rows"

    def get(self, key: str) -> Cell | None:
        """The finished cell of `key`, or None when there is none or its file is damaged."""
        path = self._path(key)
        try:
            return Cell.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("a damaged row is not used: %s", path)
            return None

    def _path(self, key: str) -> Path:
        return cell_file(self.folder, key)

    def append(self, key: str, cell: Cell) -> None:
        """Keep a finished cell on disk."""
        write_bytes(self._path(key), cell.to_bytes())

    def drop(self, keys: Iterable[str]) -> None:
        """Forget cells: parts of a row that is whole now."""
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def stored(self) -> list[str]:
        """Keys of every cell, parts of rows included, whether it can be read or not."""
        return sorted(path.stem for path in self._rows.glob("*.row"))

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Every finished row's cell with its key, sorted as the manifest says; one is read at a time."""
        order = []
        for path in self._rows.glob("*.row"):
            cell = None if is_part(path.stem) else self.get(path.stem)
            if cell is None:
                continue
            try:
                order.append((self.manifest.sort_key(cell.row), path.stem))
            except ValueError:
                log.warning("a row that run.json does not know is not used: %s", path)
        for _, key in sorted(order):
            cell = self.get(key)
            if cell is not None:
                yield key, cell


Run = MemoryRun | FolderRun


@contextmanager
def open_run(folder: Path | None, manifest: Manifest) -> Iterator[Run]:
    """A place for rows, locked while it is open; a second command on the same folder waits.

    Args:
        folder: where rows are kept; None keeps them in memory.
        manifest: what this command evaluates.

    Raises:
        UsageError: `folder` is a file, holds something else, or holds a run of other settings.
        InputError: its ``run.json`` cannot be read.
        ResourceError: the folder cannot be written.
    """
    if folder is None:
        yield MemoryRun(manifest)
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError("--out must be a folder", found=f"a file at {folder}", hint="another --out")
    with locked(folder, folder / ".lock"):
        path = folder / "run.json"
        for stale in (*leftovers(folder, path.name), *leftovers(folder / "rows", "*.row")):
            stale.unlink(missing_ok=True)
        if path.exists():
            manifest = read_manifest(path).extended(manifest)
        elif any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UsageError(
                "--out is a folder with other things in it",
                found=f"{folder} without run.json",
                hint="an empty or new folder",
            )
        write_bytes(path, manifest.to_json())
        yield FolderRun(folder, manifest)


def read_manifest(path: Path) -> Manifest:
    """Read a ``run.json``.

    Raises:
        InputError: it is missing, or is none.
    """
    try:
        return Manifest.from_json(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the record of a run", found=repr(error)[:200], hint="another --out, or remove the folder"
        ) from None


def cell_file(folder: Path, key: str) -> Path:
    """Where a folder keeps the cell of a key."""
    return folder / "rows" / f"{key}.row"


def is_part(key: str) -> bool:
    """Whether a key is that of a part of a row: the row's, a dash, and where in the visiting order the part begins."""
    return "-" in key


def row_key(parts: Iterable[object]) -> str:
    """A digest of everything that can change a row's numbers, as a file name."""
    return hashlib.sha256(json.dumps(list(parts), default=str).encode()).hexdigest()[:32]
