"""Which rows of two results answer each other, and whether they may be compared at all."""

from __future__ import annotations

import base64
import binascii
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from robustbench_ln.errors import IncompleteError, InputError, TrustError, UsageError, unknown_name
from robustbench_ln.metrics.accuracy import near_chance
from robustbench_ln.results import DocumentRow, Results
from robustbench_ln.types import Condition

# Modes whose clean accuracy stands for the network's own: native, or equal to it.
OWN_MODES = ("native", "bn", "ln-batch")
PACKED = "hits"  # in a row's `extra`: whether each image was predicted right, in a small baseline


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under a mode, and its finished rows.

    Attributes:
        results: where the rows stand.
        model: id of the model.
        mode: evaluation mode; with M behind it where the same name ran with several.
        rows: condition to row.
    """

    results: Results
    model: str
    mode: str
    rows: Mapping[Condition, DocumentRow]

    @property
    def name(self) -> str:
        """The model's id without its digest, which changes with the weights."""
        return model_name(self.model)

    def hits(self, row: DocumentRow) -> npt.NDArray[np.bool_] | None:
        """``(n,)`` was each image of a row predicted right; None where that was not kept.

        Raises:
            InputError: the predictions cannot be read, or contradict the row's count.
        """
        packed = row.extra.get(PACKED)
        hits = unpacked(packed, row.n) if packed is not None else _guarded(self.results.hits, row)
        if hits is not None and (hits.shape != (row.n,) or int(hits.sum()) != row.correct):
            raise _edited(row, f"{int(hits.sum())} of {hits.size} images are right, the row says {row.correct}")
        return hits

    def confidences(self, row: DocumentRow) -> npt.NDArray[np.float64] | None:
        """``(n,)`` top probability of each image of a row; None where that was not kept."""
        kept = None if PACKED in row.extra else _guarded(self.results.predictions, row)
        if kept is None:
            return None
        confidences: npt.NDArray[np.float64] = kept[1].astype(np.float64)
        if confidences.shape != (row.n,) or not bool(((confidences >= 0) & (confidences <= 1)).all()):
            raise _edited(row, "confidences that are no probabilities")
        return confidences


@dataclass(frozen=True, slots=True)
class Pair:
    """The same mode of an old and a new model, with the conditions both have.

    Attributes:
        old: what is compared with.
        new: what is judged.
        missing: conditions that only one of them has, in words.
    """

    old: Subject
    new: Subject
    missing: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Those of both, in the order of the new result."""
        return tuple(condition for condition in self.new.rows if condition in self.old.rows)

    @property
    def label(self) -> str:
        """Model and mode, for a reader."""
        return f"{self.new.name}, {self.new.mode}"


def model_name(model: str) -> str:
    """``ckpt`` of ``ckpt@e91563b6``."""
    return model.partition("@")[0] or model


def subjects(results: Results) -> list[Subject]:
    """Every (model, mode) of a result that has a finished row, in the order of the rows.

    Raises:
        TrustError: a row stopped early. Tests of a fixed number of images do not hold where the outcome chose it.
    """
    used: dict[tuple[str, str], set[int | None]] = {}
    done = [row for row in results.document.rows if row.status == "ok"]
    early = [row for row in done if row.interval == "anytime"]
    if early:
        raise TrustError(
            "rows that stopped early (--ci-width) cannot be compared",
            found=f"{len(early)} of {len(done)} rows, the first after {early[0].n} images",
            hint="lnbench eval without --ci-width, in another --out; lnbench gate --model stops by itself",
        )
    for row in done:
        used.setdefault((row.model, row.mode), set()).add(row.images)
    found: dict[tuple[str, str], dict[Condition, DocumentRow]] = {}
    for row in done:
        several = len(used[row.model, row.mode]) > 1
        mode = f"{row.mode} (M {row.images})" if several else row.mode
        found.setdefault((row.model, mode), {})[row.condition.to_condition()] = row
    return [Subject(results, model, mode, rows) for (model, mode), rows in found.items()]


def check_comparable(old: Results, new: Results) -> None:
    """Refuse results whose images were not the same.

    Raises:
        TrustError: naming the first thing that differs: data, seed, images scored, order, precision, pixels.
    """
    was, now = old.document, new.document
    facts = (
        ("data", was.data.sha256, now.data.sha256),
        ("seed", was.run.seed, now.run.seed),
        ("limit", was.run.limit, now.run.limit),
        ("precision", was.run.precision, now.run.precision),
        ("visiting order", was.run.order_sha256, now.run.order_sha256),
        ("pixels", was.data.pixels, now.data.pixels),
        ("frost textures", was.data.frost_sha256, now.data.frost_sha256),
        ("image size", was.data.image_size, now.data.image_size),
        ("geometry", was.data.geometry, now.data.geometry),
    )
    for name, before, after in facts:
        # Frost textures count only where both have some: frost itself is then missing on one side.
        unknown = name == "frost textures" and None in (before, after)
        if before != after and not unknown:
            shown = [f"{value}"[:16] for value in (before, after)]
            if name == "data":
                shown = [f"{one.data.source} ({value})" for one, value in zip((was, now), shown, strict=True)]
            raise TrustError(
                f"the results cannot be compared: {name} differs",
                found=f"{shown[0]} in the baseline, {shown[1]} in the new result",
                hint="evaluate both with the same settings",
            )


def match(old: Results, new: Results, pairs: Mapping[str, str] | None = None) -> list[Pair]:
    """Every mode of every model of the baseline with its answer in the new result.

    Models belong together that have the same id, or the same name before the digest, or are the only ones.

    Args:
        old: the baseline.
        new: what is judged.
        pairs: new name to old name, for models that were renamed.

    Raises:
        TrustError: the results are not comparable.
        UsageError: it is not clear which models belong together.
        IncompleteError: a mode of the baseline was not run.
    """
    check_comparable(old, new)
    partners = _partners(_models(old), _models(new), pairs or {})
    answers = {(one.model, one.mode): one for one in subjects(new)}
    found = []
    for before in subjects(old):
        if before.model not in partners:
            continue
        after = answers.get((partners[before.model], before.mode))
        if after is None:
            modes = [mode for model, mode in answers if model == partners[before.model]]
            raise IncompleteError(
                f"the new result lacks the mode {before.mode} of {before.name}",
                found=f"modes {', '.join(modes) or 'none'}",
                hint=f"lnbench eval --modes {before.mode}, or a new baseline",
            )
        found.append(pair(before, after))
    return found


def pair(old: Subject, new: Subject) -> Pair:
    """Two subjects on the same images.

    Raises:
        TrustError: a condition of both has other pixels, another number of images, or another M.
    """
    both = [condition for condition in new.rows if condition in old.rows]
    for condition in both:
        before, after = old.rows[condition], new.rows[condition]
        for name, was, now in (
            ("pixels", before.fingerprint, after.fingerprint),
            ("the files", before.extra.get("files_sha256", ""), after.extra.get("files_sha256", "")),
            ("the number of images", before.n, after.n),
            ("M, the images that share statistics,", before.images, after.images),
        ):
            # Other tools may leave the fingerprint empty. Modes that differ may differ in M.
            if was == now or "" in (was, now) or (name.startswith("M,") and old.mode != new.mode):
                continue
            raise TrustError(
                f"the results cannot be compared: {name} of {condition} differs",
                found=f"{was} in the baseline, {now} in the new result ({new.name}, {new.mode})",
                hint="evaluate both with the same data, settings and version of lnbench",
            )
    missing = [f"{condition} (not in the new result)" for condition in old.rows if condition not in new.rows]
    missing += [f"{condition} (not in the baseline)" for condition in new.rows if condition not in old.rows]
    return Pair(old, new, tuple(missing))


def doubts(results: Results, models: Iterable[str]) -> list[str]:
    """Reasons not to trust the numbers of models: clean accuracy near chance, logits that are not finite."""
    found = []
    classes = results.document.data.classes
    for model in models:
        rows = [row for row in results.document.rows if row.model == model and row.status == "ok"]
        clean = {row.mode: row for row in rows if row.condition.kind == "clean"}
        own = next((clean[mode] for mode in OWN_MODES if mode in clean), None)
        own = own or max(clean.values(), key=lambda row: row.correct / row.n, default=None)
        if own is not None and near_chance(own.correct, own.n, classes):
            found.append(
                f"{model_name(model)}: clean accuracy {100 * own.correct / own.n:.1f} % ({own.mode}, {own.n} images) "
                f"cannot be told from chance ({100 / classes:.1f} %)"
            )
        lost = sum(int(row.extra.get("non_finite") or 0) for row in rows)
        if lost:
            found.append(f"{model_name(model)}: {lost} predictions had logits that are not finite")
    return found


def packed(hits: npt.NDArray[np.bool_]) -> str:
    """Hits as short text, eight to a byte, compressed."""
    return base64.b64encode(zlib.compress(np.packbits(hits).tobytes(), 9)).decode("ascii")


def unpacked(text: object, n: int) -> npt.NDArray[np.bool_]:
    """The inverse of :func:`packed`.

    Raises:
        InputError: the text is not that of `n` hits.
    """
    size = -(-n // 8)
    try:
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(base64.b64decode(str(text), validate=True), size + 1)
        if len(content) != size or not decompressor.eof:
            raise ValueError(f"not {size} bytes")
    except (binascii.Error, ValueError, zlib.error) as error:
        raise InputError(
            "the baseline's predictions are damaged", found=str(error)[:100], hint="lnbench gate --init again"
        ) from None
    return np.unpackbits(np.frombuffer(content, np.uint8), count=n).astype(np.bool_)


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(row.model for row in results.document.rows if row.status == "ok"))


def _partners(old: Sequence[str], new: Sequence[str], pairs: Mapping[str, str]) -> dict[str, str]:
    """Old model id to new model id."""
    asked = {_named(before, old, "baseline"): _named(after, new, "new result") for after, before in pairs.items()}
    partners, taken = dict(asked), set(asked.values())
    for before in old:
        if before in partners:
            continue
        same = [after for after in new if after == before and after not in taken]
        same = same or [after for after in new if model_name(after) == model_name(before) and after not in taken]
        if not same and len(old) == len(new) == 1:
            same = list(new)
        if len(same) == 1:
            partners[before] = same[0]
            taken.add(same[0])
        elif not pairs:
            raise UsageError(
                f"it is not clear which new model answers the baseline's {model_name(before)}",
                found=f"{', '.join(new) or 'no rows'} in the new result; {', '.join(old)} in the baseline",
                hint=f"--pair {model_name(new[0]) if new else 'NEW'}={model_name(before)}",
            )
    return partners


def _named(text: str, models: Sequence[str], where: str) -> str:
    found = [model for model in models if text in (model, model_name(model))]
    if len(found) != 1:
        raise unknown_name(f"model of the {where}", text, models)
    return found[0]


def _guarded(read: Callable[[DocumentRow], T], row: DocumentRow) -> T:
    try:
        return read(row)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(
            "predictions beside the results cannot be read",
            found=f"{row.model}, {row.mode}, {row.condition.to_condition()}: {error}"[:200],
            hint="run the same lnbench eval again",
        ) from None


def _edited(row: DocumentRow, found: str) -> InputError:
    return InputError(
        f"predictions and counts of {row.model}, {row.mode}, {row.condition.to_condition()} do not agree",
        found=found,
        hint="the files are of different runs, or were edited: run the same lnbench eval again",
    )


def without_repeat(condition: Condition) -> Condition:
    """The condition whose redraws are averaged."""
    return replace(condition, repeat=0)
