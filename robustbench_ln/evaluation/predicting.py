"""One condition: degrade its images once, predict them under every model and mode, count.

Images flow through in the visiting order. Every mode cuts that stream into units (the images that share statistics),
and predicts whole units only, so who shares a batch never depends on how much is computed at once.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_ln.corruptions import ImageRng, Ranges, add_noise, degrade, fingerprint, to_float
from robustbench_ln.corruptions.degrade import FINGERPRINT_IMAGES
from robustbench_ln.errors import ResourceError
from robustbench_ln.evaluation.work import Finish, Progress, Task
from robustbench_ln.metrics.calibration import count, per_image
from robustbench_ln.metrics.sequential import narrow_interval
from robustbench_ln.models import Classifier
from robustbench_ln.models.imports import one_line
from robustbench_ln.norms.folding import fold_batchnorm
from robustbench_ln.norms.predict import Chance, decide, frozen_state, predict_logits
from robustbench_ln.planning import PRECISIONS, Plan
from robustbench_ln.results import Cell
from robustbench_ln.types import N_BINS, Condition, ResultRow

LOOK = 128  # images between looks at the width of an interval, at least


def run_condition(plan: Plan, condition: Condition, tasks: list[Task]) -> Iterator[Finish | Progress]:
    """Degrade the stream of images once and let every task predict it."""
    start = time.perf_counter()
    ranges = find_ranges(plan, condition) if condition.range == "rescale" and condition.kind == "noise" else None
    mark = _read(plan, condition, np.arange(min(FINGERPRINT_IMAGES, len(plan.dataset))))
    digest = fingerprint(_degraded(plan, condition, *mark, ranges))
    streams = [_Stream(plan, task) for task in tasks]
    end = max(stream.end for stream in streams)
    first, degrading = 0, time.perf_counter() - start
    with closing(_batches(plan, condition, end)) as batches:
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            if plan.timeout is not None and begun - start > plan.timeout:
                raise TimeoutError(f"took longer than --timeout {plan.timeout:g}")
            images = _degraded(plan, condition, *batch, ranges)
            degrading += time.perf_counter() - begun
            for stream in streams:
                scored = stream.feed(images, first)
                yield Progress(condition, (stream.task.mode.mode.name,), scored)
            first += len(images)
            if all(stream.stopped for stream in streams):
                break
    for stream in streams:
        extra: dict[str, object] = {"ranges": ranges.to_dict()} if ranges else {}
        if plan.published(condition):
            extra["files_sha256"] = plan.files_of(condition)
        cell = stream.cell(condition, digest, degrading / len(streams), extra)
        yield Finish(stream.task.key, cell)


def _batches(plan: Plan, condition: Condition, end: int) -> Generator[tuple[NDArray[np.int64], Tensor]]:
    """Indices and 8-bit images of the first `end` places of the wrapped order; one batch is read ahead."""
    n = len(plan.dataset)
    with ThreadPoolExecutor(1, "lnbench-read") as reader:
        ahead: Future[tuple[NDArray[np.int64], Tensor]] | None = None
        for first in range(0, end, plan.batch_size):
            places = torch.arange(first, min(first + plan.batch_size, end))
            before, ahead = ahead, reader.submit(_read, plan, condition, plan.order[places % n].numpy())
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()


def _read(plan: Plan, condition: Condition, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
    """Images of the data set, or what was published as their corruption."""
    images = (plan.published(condition) or plan.dataset).read(indices)
    # Pinned memory is copied to the GPU while it works.
    return indices, images.pin_memory() if plan.device.startswith("cuda") else images


def _degraded(
    plan: Plan, condition: Condition, indices: NDArray[np.int64], images: Tensor, ranges: Ranges | None
) -> Tensor:
    images = images.to(plan.device, non_blocking=True)
    if plan.published(condition):
        return to_float(images)
    return degrade(
        images,
        condition,
        torch.from_numpy(indices),
        plan.seed,
        ranges,
        suite=plan.suite,
        textures=plan.textures,
    )


def find_ranges(plan: Plan, condition: Condition) -> Ranges:
    """Per-channel extremes of the clean and the noisy images over the whole data set, limited or not."""
    channels = 3
    low = [torch.full((channels,), float("inf")) for _ in range(2)]
    high = [torch.full((channels,), float("-inf")) for _ in range(2)]
    for first in range(0, len(plan.dataset), plan.batch_size):
        indices = np.arange(first, min(first + plan.batch_size, len(plan.dataset)))
        clean = to_float(plan.dataset.read(indices).to(plan.device))
        noisy = add_noise(clean, condition, torch.from_numpy(indices), plan.seed)
        for i, images in enumerate((noisy, clean)):
            low[i] = torch.minimum(low[i], images.amin((0, 2, 3)).cpu())
            high[i] = torch.maximum(high[i], images.amax((0, 2, 3)).cpu())
    return Ranges(low[0], high[0], low[1], high[1])


@dataclass
class _Stream:
    """One task's view of the stream of images: collects whole units, predicts them, keeps a score for every image."""

    plan: Plan
    task: Task
    pending: Tensor | None = None
    predicted_to: int = 0
    seconds: float = 0.0
    batches: list[dict[str, np.ndarray]] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    looked: int = 0
    stopped: tuple[float, float] | None = None
    most: int = 0  # images of one forward pass, once memory has run out; 0 for no such bound
    network: Classifier = field(init=False)

    def __post_init__(self) -> None:
        self.network = _quickest(self.plan, self.task)

    @property
    def end(self) -> int:
        """Position in the (wrapped) order where the last unit with a scored image ends."""
        unit = self.task.mode.unit
        return -(-self.plan.limit // unit) * unit

    @property
    def step(self) -> int:
        """Images of one forward pass: as many whole units as the compute batch holds, at least one."""
        unit = self.task.mode.unit
        size = self.plan.batch_size if self.plan.manifest.precision == "fp32" else _FIXED_BATCH
        fits = max(1, size // (unit * (4 if self.task.mode.mode.rot90 else 1))) * unit
        return min(fits, self.most or fits)

    def feed(self, images: Tensor, first: int) -> int:
        """Take images from position `first` on; returns how many scored images were predicted."""
        start = time.perf_counter()
        images = images[: max(self.end - first, 0)]
        pending = images if self.pending is None else torch.cat((self.pending, images))
        last = first + len(images) >= self.end
        ready = len(pending) if last else len(pending) // self.step * self.step
        before = min(self.predicted_to, self.plan.limit)
        while not self.stopped and len(part := pending[: min(self.step, ready)]):
            try:
                self._predict(part)
            except torch.OutOfMemoryError:
                if len(part) <= self.task.mode.unit:
                    raise
                # Half of it from now on: what is computed at once changes no number.
                self.most = max(len(part) // 2 // self.task.mode.unit, 1) * self.task.mode.unit
                torch.cuda.empty_cache()
                continue
            pending, ready = pending[len(part) :], ready - len(part)
            self._look()
        self.pending = pending
        self.seconds += time.perf_counter() - start
        return min(self.predicted_to, self.plan.limit) - before

    def _predict(self, images: Tensor) -> None:
        positions = torch.arange(self.predicted_to, self.predicted_to + len(images))
        indices = self.plan.order[positions % len(self.plan.dataset)]
        labels = torch.from_numpy(self.plan.dataset.labels[indices.numpy()])
        # Chance is keyed by image alone, so that every condition gives an image the same group.
        group, tie = (
            ImageRng(self.plan.seed, f"predict/{what}", indices).uniform(1)[:, 0] for what in ("group", "tie")
        )
        chance = Chance(group, tie)
        network, schedule = self.network, self.task.mode
        exact = self.plan.manifest.precision == "fp32"
        # A single unit on one thread is the shape in which fragile images would be settled.
        final = network is self.task.model.classifier and len(images) == schedule.unit and torch.get_num_threads() == 1
        with frozen_state(network):
            if exact:
                logits = predict_logits(network, network.network, images, schedule, chance.group)
            else:
                logits = self._reduced(images, chance)
            made = decide(logits, chance.tie, labels, n_bins=N_BINS)
            if exact and made.fragile.any() and not final:
                settled = self._settled(logits, images, chance, made.fragile)
                made = decide(settled, chance.tie, labels, n_bins=N_BINS)
            log_probabilities = made.log_probabilities.cpu().numpy()
            predicted = made.predicted.cpu().numpy()
        scored = max(0, min(len(images), self.plan.limit - self.predicted_to))
        self.predicted_to += len(images)
        if not scored:
            return
        scores = per_image(log_probabilities[:scored], labels[:scored].numpy())
        self.hits.append(predicted[:scored] == labels[:scored].numpy())
        batch = {
            "index": indices[:scored].numpy(),
            "predicted": predicted[:scored].astype(np.int32),
            **scores._asdict(),
        }
        self.batches.append({name: value for name, value in batch.items() if value is not None})

    def _reduced(self, images: Tensor, chance: Chance) -> Tensor:
        """Logits in reduced precision, from a pass of full size: a short batch is filled up with its own images."""
        filled = torch.arange(self.step) % len(images)
        precision = PRECISIONS[self.plan.manifest.precision]
        with torch.autocast(images.device.type, precision):
            logits = predict_logits(
                self.network, self.network.network, images[filled], self.task.mode, chance.group[filled]
            )
        return logits[:, : len(images)]

    def _look(self) -> None:
        """Stop where the interval has become narrow enough.

        Looks are at fixed numbers of images, after whole units, so that it does not matter how much is computed at
        once. The last image is no look: a row that gets there is that of a whole run.
        """
        width, unit = self.plan.manifest.ci_width, self.task.mode.unit
        if width is None:
            return
        every = -(-LOOK // unit) * unit
        hits = np.concatenate(self.hits)
        for n in range(self.looked + every, min(len(hits), self.plan.limit - 1) + 1, every):
            self.looked = n
            self.stopped = narrow_interval(hits[:n], len(self.plan.dataset), width)
            if self.stopped:
                self.predicted_to = self.end  # what is left is done with
                return

    def _settled(self, logits: Tensor, images: Tensor, chance: Chance, fragile: Tensor) -> Tensor:
        """`logits` with the units of fragile images predicted again, each alone and on one thread.

        The last bits of a float32 forward pass differ between batch shapes and thread counts. Where they could change
        a count, one fixed shape decides, so that results do not depend on the compute batch.
        """
        unit = self.task.mode.unit
        network = self.task.model.classifier
        logits = logits.clone()
        with _threads(1):
            for first in (fragile.view(-1, unit).any(1).nonzero()[:, 0] * unit).tolist():
                part = slice(first, first + unit)
                logits[:, part] = predict_logits(
                    network, network.network, images[part], self.task.mode, chance.group[part]
                )
        return logits

    def cell(self, condition: Condition, digest: str, degrading: float, extra: dict[str, object]) -> Cell:
        """Count everything; images go back into data set order."""
        n = self.looked if self.stopped else self.plan.limit
        merged = {name: np.concatenate([batch[name] for batch in self.batches])[:n] for name in self.batches[0]}
        by_index = merged.pop("index").argsort(kind="stable")
        merged = {name: value[by_index] for name, value in merged.items()}
        labels = self.plan.dataset.labels[np.sort(self.plan.order[:n].numpy())]
        counts = count(
            merged["predicted"], merged["confidence"], merged["nll"], merged["brier"], merged.get("top5"), labels
        )
        lost = int((merged["predicted"] < 0).sum())
        row = ResultRow(
            model=self.task.model.info.id,
            mode=self.task.mode.mode.name,
            condition=condition,
            counts=counts,
            fingerprint=digest,
            images=self.task.mode.images,
            seconds=round(self.seconds + degrading, 3),
            anytime=self.stopped,
            extra=extra | ({"non_finite": lost} if lost else {}),
        )
        kept = slice(None) if self.plan.keep_predictions else slice(0)
        return Cell(row, merged["predicted"][kept], merged["confidence"][kept])


# Images of a forward pass in reduced precision. Its logits differ between shapes by more than could be settled image by
# image, so there every pass has one shape, whatever the compute batch.
_FIXED_BATCH = 128

# Copies of classifiers with BatchNorm folded, or the classifiers themselves where that cannot be done.
_FOLDED: WeakKeyDictionary[Classifier, Classifier] = WeakKeyDictionary()


def _quickest(plan: Plan, task: Task) -> Classifier:
    """The network to predict a task with: where statistics are frozen, one with BatchNorm folded, maybe compiled.

    Raises:
        ResourceError: it cannot be compiled here.
    """
    classifier, statistics = task.model.classifier, task.mode.mode.statistics
    frozen = statistics == "running" or (statistics == "native" and task.mode.images is None)
    if not frozen:
        return classifier
    if classifier not in _FOLDED:
        # Always the same few clean images, so that the choice does not depend on where a run begins.
        images = to_float(plan.dataset.read(range(min(FINGERPRINT_IMAGES, len(plan.dataset)))).to(plan.device))
        with frozen_state(classifier):
            quick = fold_batchnorm(classifier, images) or classifier
            if plan.compile:
                mean, std = quick.mean.flatten().tolist(), quick.std.flatten().tolist()
                quick = Classifier(_compiled(quick.network, images), mean, std).to(plan.device)
        _FOLDED[classifier] = quick
    return _FOLDED[classifier]


def _compiled(network: nn.Module, images: Tensor) -> nn.Module:
    compiled = torch.compile(network)
    try:
        compiled(images)
    except Exception as error:  # the compiler's, and what it calls: no C++ compiler, for one
        raise ResourceError(
            "--compile failed", found=one_line(error), hint="without --compile, or install a C++ compiler"
        ) from error
    assert isinstance(compiled, nn.Module)
    return compiled


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
