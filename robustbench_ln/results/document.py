"""The ``results.json`` document: what stands in it, reading it with suspicion, and the way from our records and back.

Keys shown here are always written; unknown further keys are accepted on reading and kept. Strict JSON: no NaN, no
infinity. Rows hold counts and sums (``counts``); the ratios beside them are derived and checked against the counts.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustbench_ln.errors import InputError
from robustbench_ln.metrics import calibration
from robustbench_ln.metrics.accuracy import wilson
from robustbench_ln.types import N_BINS, Condition, Counts, DataInfo, Kind, ModelInfo, ResultRow

SCHEMA_VERSION: Literal[1] = 1
FILE_NAME = "results.json"

Fraction = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
BinCounts = Annotated[tuple[Size, ...], Field(min_length=N_BINS, max_length=N_BINS)]
BinSums = Annotated[tuple[NonNegative, ...], Field(min_length=N_BINS, max_length=N_BINS)]

_ROUNDING = 1e-6  # how far a stored ratio may be from its counts: other tools print six digits


class _Entry(BaseModel):
    model_config = ConfigDict(
        extra="allow", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunInfo(_Entry):
    """How the numbers were made."""

    lnbench_version: str
    """Version of lnbench that wrote the file."""
    created: str
    """Time of the first write, ISO 8601."""
    command: str
    """Command line, for a reader; empty for a call from Python."""
    seed: int
    """Seed that every draw is keyed by."""
    limit: int | None
    """How many images of the visiting order were scored; null for all."""
    precision: str
    """Arithmetic of the forward passes (fp32)."""
    torch: str
    """Version of torch."""
    device: str
    """Where the forward passes ran."""
    threads: int
    """Threads of a forward pass."""
    batch_size: int
    """Images computed at once; changes no number."""
    order_sha256: str
    """Digest of the order in which images were visited and batched."""
    warnings: list[str]
    """What a reader must know before trusting the numbers."""
    shards: list[Annotated[str, Field(pattern=r"^\d{1,6}/\d{1,6}$")]] = []
    """Parts of the work, i/n, that are in here; empty where all of it is."""
    ci_width: Annotated[float, Field(gt=0, lt=1)] | None = None
    """How narrow an interval ended a row early; null where every row has all images."""


class ModelEntry(_Entry):
    """One model of the run."""

    id: str
    """Name that the rows refer to; changes with the model's content."""
    source: str
    """What was passed to --model."""
    sha256: str
    """Digest of the file, or of the weights where there is no file."""
    arch: str
    """Architecture."""
    norm: str
    """Kind of the norm layers: bn, ln, layernorm, groupnorm, instancenorm, none."""
    n_groups: int | None
    """K, the number of LocalNorm computation groups."""
    group_size: int | None
    """N/K, images a group had in training."""
    mean: list[float]
    """Per-channel mean subtracted from images in [0, 1]."""
    std: list[float]
    """Per-channel standard deviation divided by."""
    preprocessing: str
    """Where mean and std come from."""
    num_classes: int | None = None
    """Number of logits; null where a foreign file does not say."""


class DataEntry(_Entry):
    """The data set of the run."""

    id: str
    """Short name."""
    source: str
    """What was passed to --data."""
    sha256: str
    """Digest of pixels (or files) and labels."""
    n: Size
    """Number of images in the data set."""
    classes: Annotated[int, Field(ge=1)]
    """Number of classes in the data."""
    pixels: Literal["published", "regenerated"]
    """Whether degraded images are files of a published set or were made by lnbench."""
    frost: Literal["original", "procedural"] | None
    """Whose frost textures were used; null where none were."""
    frost_sha256: str | None = None
    """Digest of the frost textures; null where none were used."""
    image_size: Annotated[list[Size], Field(min_length=2, max_length=2)] = [0, 0]
    """Height and width at evaluation; zeros where unknown."""
    geometry: str = "as stored"
    """How images were brought to that size."""
    clean: str | None = None
    """What was passed to --clean, beside published images; null otherwise."""


class ConditionEntry(_Entry):
    """What was done to the images."""

    kind: Kind
    """clean, noise or corruption; follows from name and suite."""
    name: str
    """clean, or the name of the noise or corruption."""
    level: float
    """Sigma of a noise, severity of a corruption, 0 for clean."""
    range: Literal["clip", "rescale", "none"]
    """What happened to values outside [0, 1]."""
    suite: str | None
    """Whose constants a corruption has; null for clean and noise."""
    repeat: Size
    """Which redraw of the random numbers, from 0."""
    jpeg_parity: bool = False
    """Whether the corrupted image went through JPEG of quality 85, as the files of ImageNet-C did."""

    @model_validator(mode="after")
    def _kind_follows(self) -> ConditionEntry:
        kind = self.to_condition().kind
        if self.kind != kind:
            raise ValueError(f"kind is {self.kind!r}, but name {self.name!r} and suite {self.suite!r} make it {kind!r}")
        return self

    def to_condition(self) -> Condition:
        """The condition as the rest of lnbench knows it."""
        return Condition(
            self.name, float(self.level), self.suite or "", self.range, self.repeat, jpeg_parity=self.jpeg_parity
        )


class CountsEntry(_Entry):
    """Sums over the scored images; all of them add over disjoint images."""

    n: Size
    """Images scored."""
    correct: Size
    """Images predicted right."""
    top5: Size | None
    """Images whose label is among the five most probable classes; null with five classes or fewer."""
    nll_sum: float
    """Sum of the negative natural log of the label's probability."""
    brier_sum: NonNegative
    """Sum of the squared errors summed over classes."""
    bin_n: BinCounts
    """Images in each of 15 equal-width bins of the top probability."""
    bin_correct: BinCounts
    """Images predicted right in each bin."""
    bin_confidence: BinSums
    """Sum of the top probability in each bin."""

    def to_counts(self) -> Counts:
        """The counts as the rest of lnbench knows them."""
        return Counts(**{name: getattr(self, name) for name in Counts.__dataclass_fields__})


class DocumentRow(_Entry):
    """One counted cell: a model under a mode and a condition. Ratios are fractions, null where no image was scored."""

    model: str
    """Id of the model."""
    mode: str
    """Evaluation mode, NAME or NAME:M."""
    status: Literal["ok", "failed"]
    """Failed rows hold no numbers and are done again by the same command."""
    fingerprint: str
    """Digest of the condition's images 0 to 15."""
    condition: ConditionEntry
    """What was done to the images."""
    n: Size
    """Images scored."""
    correct: Size
    """Images predicted right."""
    accuracy: Fraction | None
    """correct / n."""
    ci95: tuple[Fraction, Fraction] | None
    """95 % interval of the accuracy; ignores the dependence inside a batch of batch-statistics modes."""
    top5: Fraction | None
    """Fraction with the label among the five most probable classes; null with five classes or fewer."""
    nll: float | None
    """Mean negative natural log-likelihood."""
    ece: Fraction | None
    """Expected calibration error over 15 equal-width bins."""
    brier: NonNegative | None
    """Mean squared error of the probabilities, summed over classes."""
    seconds: NonNegative
    """Wall time of the row."""
    images: Size | None = None
    """M, how many images shared statistics; null where none did."""
    counts: CountsEntry | None = None
    """What the ratios are derived from; null in files of other tools."""
    extra: dict[str, Any] = {}
    """Whatever else is worth keeping."""
    interval: Literal["wilson", "anytime"] = "wilson"
    """Kind of ci95: Wilson's, for images of this kind; or, of a row that stopped early, for the accuracy on this data
    set, valid at every look. The latter row has the first n images of the visiting order."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> DocumentRow:
        if self.correct > self.n:
            raise ValueError(f"correct is {self.correct}, more than n = {self.n}")
        if self.status == "ok" and (self.n == 0 or self.accuracy is None):
            raise ValueError("status is ok, but no image was scored")
        if self.n and self.accuracy is not None and abs(self.accuracy - self.correct / self.n) > _ROUNDING:
            raise ValueError(f"accuracy is {self.accuracy:g}, but correct / n is {self.correct / self.n:g}")
        if self.ci95 is not None and self.accuracy is not None:
            low, high = self.ci95
            if not low - _ROUNDING <= self.accuracy <= high + _ROUNDING:
                raise ValueError(f"ci95 [{low:g}, {high:g}] does not hold the accuracy {self.accuracy:g}")
        if self.counts is not None and (self.counts.n, self.counts.correct) != (self.n, self.correct):
            raise ValueError(
                f"counts hold {self.counts.correct} of {self.counts.n}, the row {self.correct} of {self.n}"
            )
        return self


class ResultsDocument(_Entry):
    """Everything a run found, and how. The file results.json of a run folder."""

    schema_version: Literal[1]
    """Version of this schema. An older one is always readable, a newer one is refused."""
    run: RunInfo
    """How the numbers were made."""
    models: list[ModelEntry]
    """The models, one entry an id."""
    data: DataEntry
    """The data set."""
    predictions: FileName | None
    """File beside this one with every image's predicted class and top probability; null when not kept."""
    rows: list[DocumentRow]
    """One a (model, mode, condition)."""

    @model_validator(mode="after")
    def _rows_fit_models(self) -> ResultsDocument:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError("two models have the same id")
        seen = set()
        for index, row in enumerate(self.rows):
            if row.model not in ids:
                raise ValueError(f"row {index} names the model {row.model!r}, which is not among the models")
            key = (row.model, row.mode, row.images, row.condition.to_condition())
            if row.status == "ok" and key in seen:
                raise ValueError(f"row {index} repeats {row.model!r}, {row.mode!r}, {row.condition.to_condition()}")
            if row.status == "ok":
                seen.add(key)
        return self


def model_to_document(model: ModelInfo) -> ModelEntry:
    """A model's entry in the document."""
    fields = {name: getattr(model, name) for name in ModelInfo.__dataclass_fields__}
    return ModelEntry(**{**fields, "mean": list(model.mean), "std": list(model.std)})


def model_from_document(entry: ModelEntry) -> ModelInfo:
    """The inverse of :func:`model_to_document`; a missing number of logits becomes 0."""
    fields = {name: getattr(entry, name) for name in ModelInfo.__dataclass_fields__}
    classes = entry.num_classes or 0
    return ModelInfo(**{**fields, "mean": tuple(entry.mean), "std": tuple(entry.std), "num_classes": classes})


def data_to_document(data: DataInfo) -> DataEntry:
    """The data set's entry in the document."""
    fields = {name: getattr(data, name) for name in DataInfo.__dataclass_fields__}
    return DataEntry(**{**fields, "image_size": list(data.image_size)})


def data_from_document(entry: DataEntry) -> DataInfo:
    """The inverse of :func:`data_to_document`."""
    fields = {name: getattr(entry, name) for name in DataInfo.__dataclass_fields__}
    return DataInfo(**{**fields, "image_size": (entry.image_size[0], entry.image_size[1])})


def row_to_document(row: ResultRow) -> DocumentRow:
    """A row's entry in the document: its counts, and the ratios derived from them (null without scored images)."""
    counts = row.counts
    some = counts.n > 0
    return DocumentRow(
        model=row.model,
        mode=row.mode,
        status=row.status,  # type: ignore[arg-type]  # checked by pydantic
        fingerprint=row.fingerprint,
        condition=ConditionEntry(**row.condition.to_dict()),
        n=counts.n,
        correct=counts.correct,
        accuracy=calibration.accuracy(counts) if some else None,
        ci95=(row.anytime or wilson(counts.correct, counts.n)) if some else None,
        top5=calibration.top5(counts) if some else None,
        nll=calibration.nll(counts) if some else None,
        # Sums of float32 confidences may leave [0, 1] by their last bits.
        ece=min(calibration.ece(counts), 1.0) if some else None,
        brier=calibration.brier(counts) if some else None,
        seconds=row.seconds,
        images=row.images,
        counts=CountsEntry(**asdict(counts)),
        extra=row.extra,
        interval="anytime" if row.anytime else "wilson",
    )


def row_from_document(entry: DocumentRow) -> ResultRow:
    """The inverse of :func:`row_to_document`.

    Raises: InputError for a row without counts, as other tools may write it: its sums cannot be had back.
    """
    condition = entry.condition.to_condition()
    if entry.counts is None:
        raise InputError(
            "a row of the results has no counts",
            found=f"{entry.model!r}, {entry.mode!r}, {condition}: ratios only",
            hint="results written by lnbench eval",
        )
    return ResultRow(
        model=entry.model,
        mode=entry.mode,
        condition=condition,
        counts=entry.counts.to_counts(),
        fingerprint=entry.fingerprint,
        images=entry.images,
        seconds=entry.seconds,
        status=entry.status,
        extra=dict(entry.extra),
        anytime=entry.ci95 if entry.interval == "anytime" else None,
    )


def shards_missing(run: RunInfo) -> list[str]:
    """The parts of the work that a run of shards lacks; empty where it lacks none, or was not divided."""
    wanted = {f"{i}/{n}" for n in {shard.partition("/")[2] for shard in run.shards} for i in range(1, int(n) + 1)}
    return sorted(wanted - set(run.shards), key=lambda shard: [int(part) for part in shard.split("/")])


def load_document(path: Path | str) -> ResultsDocument:
    """Read a results file and check all of it.

    Args:
        path: a run folder, or the ``results.json`` in it.
    Raises: InputError for a file that is missing, unreadable, no strict JSON, of a newer schema, or that does not fit
        the schema or contradicts itself; the message says where and what was found.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text", found=str(error), hint=f"the {FILE_NAME} of a run folder") from error
    except OSError as error:
        hint = f"a run folder with {FILE_NAME} in it, or that file"
        raise InputError(f"cannot read results {file}", found=error.strerror or str(error), hint=hint) from error
    return parse_document(text, name=str(file))


def parse_document(text: str, *, name: str = "results") -> ResultsDocument:
    """As :func:`load_document`, for the text itself; `name` stands for it in messages."""
    hint = "the file may be half written or edited: run the same lnbench eval again"
    try:
        raw = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON", found=str(error) or type(error).__name__, hint=hint) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        found = "no whole number under 'schema_version'" if version is None else f"schema_version {version!r:.60}"
        raise InputError(f"{name} is no results document of lnbench", found=found, hint=hint)
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{name} has a newer schema than this lnbench reads",
            found=f"schema_version {version}; this lnbench knows up to {SCHEMA_VERSION}",
            hint="upgrade lnbench (pip install --upgrade robustbench-ln)",
        )
    try:
        return ResultsDocument.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{name} does not fit the results schema", found=_first_problem(error), hint=hint) from error


def dump_document(document: ResultsDocument) -> str:
    """The document as strict JSON text, a line a row. The same document gives the same text.

    Among the extra keys NaN and infinity become null; anywhere else a document cannot hold them.
    """
    head = document.model_dump(mode="json")
    rows = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in head.pop("rows")]
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
    body = ",\n  ".join(rows)
    return f'{text},\n "rows": [\n  {body}\n ]\n}}\n' if rows else f'{text},\n "rows": []\n}}\n'


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document; ``results-schema.json`` beside this module holds it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ResultsDocument.model_json_schema()}


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the numbers of this machine")
    return value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    what = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    if isinstance(value, str | int | float | bool | None) and first["type"] not in ("missing", "value_error"):
        what += f", got {value!r:.60}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {what}{more}"
